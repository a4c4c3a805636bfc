"""PCGrad over task vectors: closed forms for two, brute force on flattened vectors for more."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import mergelab
from mergelab.engine import plan
from mergelab.methods import get
from mergelab.methods._surgery import gram, projected
from mergelab.methods.context import Context
from mergelab.methods.pcgrad import coefficients, orders_of

State = dict[str, Tensor]


def surgery(taus: list[list[float]], **parameters: object) -> Tensor:
    models = {f"m{i}": {"w": torch.tensor(tau)} for i, tau in enumerate(taus)}
    return mergelab.merge("pcgrad", models, {"w": torch.zeros(len(taus[0]))}, **parameters)["w"]  # type: ignore[arg-type]


def brute(taus: list[Tensor], orders: list[list[int]]) -> list[Tensor]:
    """The paper's algorithm on the vectors themselves."""
    out = []
    for tau, order in zip(taus, orders, strict=True):
        now = tau.clone()
        for j in order:
            product = now @ taus[j]
            if product < 0:
                now -= product / (taus[j] @ taus[j]) * taus[j]
        out.append(now)
    return out


def flat(state: State, base: State) -> Tensor:
    return torch.cat([(state[name] - base[name]).reshape(-1).double() for name in base])


def conflicting(seed: int, count: int = 4) -> tuple[State, dict[str, State]]:
    """A base and models of several tensors; they oppose one another more often than random ones do."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3,), "b.weight": (4, 5), "c": (2, 2, 3), "s": ()}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    taus = [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(count)]
    mean = {name: sum(tau[name] for tau in taus) / count for name in shapes}
    models = {
        f"m{i}": {name: base[name] + tau[name] - 1.5 * mean[name] for name in shapes} for i, tau in enumerate(taus)
    }
    return base, models


# ---- two vectors ----


def test_two_that_conflict_lose_what_points_against_the_other() -> None:
    """a = (1, 0), b = (-1, 1): <a,b> = -1, so a' = a + b/2 = (1/2, 1/2) and b' = b + a = (0, 1)."""
    assert surgery([[1.0, 0.0], [-1.0, 1.0]]).tolist() == pytest.approx([0.25, 0.75])
    assert surgery([[1.0, 0.0], [-1.0, 1.0]], combine="sum").tolist() == pytest.approx([0.5, 1.5])
    assert surgery([[1.0, 0.0], [-1.0, 1.0]], lambda_=2.0).tolist() == pytest.approx([0.5, 1.5])


def test_projections_are_off_the_original_vectors() -> None:
    """b is projected off a as it was, not off a' (which has a product of 1/2 with b)."""
    rows = projected(torch.tensor([[1.0, -1.0], [-1.0, 2.0]], dtype=torch.float64), [[1], [0]])
    assert rows.tolist() == [[1.0, 0.5], [1.0, 1.0]]


def test_the_product_is_that_of_the_vector_as_it_is_by_now() -> None:
    """c meets a and is turned towards b, with which it now conflicts; meeting b first it does not."""
    a, b, c = [1.0, 0.0], [-1.0, 0.1], [-1.0, -1.0]
    taus = torch.tensor([a, b, c], dtype=torch.float64)
    products = taus @ taus.T
    assert products[2, 1] > 0 > products[2, 0]
    first, second = projected(products, [[], [], [0, 1]])[2] @ taus, projected(products, [[], [], [1, 0]])[2] @ taus
    assert second.tolist() == pytest.approx([0.0, -1.0])
    assert float(first @ taus[1]) == pytest.approx(0.0) and first.tolist() != pytest.approx([0.0, -1.0])


def test_opposed_vectors_cancel_and_leave_the_base() -> None:
    assert surgery([[2.0, 0.0], [-1.0, 0.0]]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("project", ["model", "tensor"])
@pytest.mark.parametrize("taus", [[[1.0, 0.0], [0.0, 3.0]], [[1.0, 2.0], [2.0, 1.0]]])
def test_vectors_at_right_angles_or_closer_give_the_plain_mean(taus: list[list[float]], project: str) -> None:
    assert surgery(taus, project=project).tolist() == pytest.approx(torch.tensor(taus).mean(0).tolist())


def test_a_vector_of_zeros_is_passed_over_and_counts_in_the_mean() -> None:
    assert surgery([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]]).tolist() == pytest.approx([1 / 6, 1 / 2])


def test_weights_count_what_was_projected() -> None:
    """3 a' - b' over 3 + 1; a weight of 0 takes a model's own vector out, but it is still projected off."""
    found = surgery([[1.0, 0.0], [-1.0, 1.0]], weight=[3.0, -1.0])
    assert found.tolist() == pytest.approx([1.5 / 4, (1.5 - 1.0) / 4])
    assert surgery([[1.0, 0.0], [-1.0, 1.0]], weight=[1.0, 0.0]).tolist() == pytest.approx([0.5, 0.5])
    assert coefficients(torch.eye(2, dtype=torch.float64), [0.0, 0.0], "mean") == [0.0, 0.0]


# ---- many vectors ----


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("combine", ["mean", "sum"])
def test_whole_models_against_brute_force(seed: int, combine: str) -> None:
    base, models = conflicting(seed)
    taus = [flat(model, base) for model in models.values()]
    assert sum(float(a @ b) < 0 for a, b in itertools.combinations(taus, 2)) >= 2
    given = [[j for j in range(4) if j != i] for i in range(4)]
    made = brute(taus, given)
    wanted = sum(made) / (4 if combine == "mean" else 1)
    found = mergelab.merge("pcgrad", models, base, order="given", combine=combine)
    torch.testing.assert_close(flat(found, base), wanted, rtol=0, atol=2e-6)

    seeded = orders_of(4, "random", Context("", keys=tuple(models), seed=seed))
    wanted = sum(brute(taus, seeded)) / (4 if combine == "mean" else 1)
    found = mergelab.merge("pcgrad", models, base, combine=combine, seed=seed)
    torch.testing.assert_close(flat(found, base), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", range(4))
def test_each_tensor_against_brute_force(seed: int) -> None:
    base, models = conflicting(seed)
    for order in ("given", "random"):
        found = mergelab.merge("pcgrad", models, base, project="tensor", order=order, seed=seed)
        for name, origin in base.items():
            taus = [(model[name] - origin).reshape(-1).double() for model in models.values()]
            orders = orders_of(4, order, Context(name, keys=tuple(models), seed=seed))
            wanted = (sum(brute(taus, orders)) / 4).reshape(origin.shape)
            torch.testing.assert_close((found[name] - origin).double(), wanted, rtol=0, atol=2e-6)


def test_after_surgery_no_vector_opposes_the_last_one_it_met() -> None:
    generator = torch.Generator().manual_seed(0)
    taus = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    orders = [[j for j in range(6) if j != i] for i in range(6)]
    made = projected(taus @ taus.T, orders) @ taus
    assert min(float(made[i] @ taus[order[-1]]) for i, order in enumerate(orders)) > -1e-12


def test_the_gram_is_a_sum_over_tensors_of_any_size() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1 << 17, generator=generator) for _ in range(3)]  # more than is looked at together
    origin = torch.randn(1 << 17, generator=generator)
    differences = torch.stack([row - origin for row in rows]).double()
    torch.testing.assert_close(gram(rows, origin), differences @ differences.T, rtol=1e-12, atol=0)
    torch.testing.assert_close(gram(rows), torch.stack(rows).double() @ torch.stack(rows).double().T)
    assert gram([torch.zeros(0, 4)] * 3).tolist() == [[0.0] * 3] * 3


# ---- orders ----


def test_a_shuffle_knows_models_by_their_keys() -> None:
    keys = ("d", "b", "a", "c", "e")
    named = [
        {keys[i]: [keys[j] for j in order]
         for i, order in enumerate(orders_of(5, "random", Context("w", keys=keys, seed=3)))}
        for keys in (keys, tuple(reversed(keys)), tuple(sorted(keys)))
    ]  # fmt: skip
    assert named[0] == named[1] == named[2]
    assert all(sorted([key, *others]) == sorted(keys) for key, others in named[0].items())
    assert any(named[0] != other for other in ({
        keys[i]: [keys[j] for j in order]
        for i, order in enumerate(orders_of(5, "random", Context("w", keys=keys, seed=seed)))
    } for seed in range(4)))  # fmt: skip


def test_the_order_of_the_models_matters_only_where_it_is_the_order_given() -> None:
    base, models = conflicting(0)
    turned = dict(reversed(models.items()))
    one, other = (flat(mergelab.merge("pcgrad", m, base), base) for m in (models, turned))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    one, other = (flat(mergelab.merge("pcgrad", m, base, order="given"), base) for m in (models, turned))
    assert float((one - other).abs().max()) > 1e-2


def test_the_survey_is_made_once_for_all_values() -> None:
    base, models = conflicting(0)
    made = plan("pcgrad", models, base)
    survey = get("pcgrad").survey
    assert survey is not None
    keys = []
    for values in ({}, {"lambda": 0.5}, {"combine": "sum"}, {"order": "given"}):
        one = survey(made.with_parameters(values).values, 4, torch.float32)  # type: ignore[arg-type]
        assert one is not None
        keys.append(one.key())
    assert len(set(keys)) == 1
    assert survey(made.with_parameters({"project": "tensor"}).values, 4, torch.float32) is None  # type: ignore[arg-type]

"""Taking experts apart: against numpy's SVD, counted by hand, and the identities of Twin-Merging."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mergelab.errors import RoutingError
from mergelab.routing.compression import Compression
from mergelab.routing.decompose import decompose, exclusive, matrix_shape
from mergelab.routing.parts import Dense, LowRank, Sparse
from mergelab.routing.routed import RoutedModel
from mergelab.routing.truncate import by_energy, low_rank

SHAPES = {
    "embeddings.weight": (50, 12), "conv.weight": (8, 3, 2, 2), "layer.weight": (40, 30), "layer.bias": (40,),
    "norm.weight": (30,), "square.weight": (24, 24),
}  # fmt: skip


def state(seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: (scale * torch.randn(shape, generator=generator)).to(dtype) for name, shape in SHAPES.items()}


def near(base: dict[str, Tensor], seed: int, scale: float = 0.1) -> dict[str, Tensor]:
    return {
        name: tensor + change
        for (name, tensor), change in zip(base.items(), state(seed, scale=scale).values(), strict=True)
    }


def routed(shared: dict[str, Tensor], experts: dict[str, dict[str, Tensor]], compression: Compression) -> RoutedModel:
    return RoutedModel(tuple(experts), shared, decompose(shared, experts, compression, threads=1).parts)


@pytest.fixture
def experts() -> dict[str, dict[str, Tensor]]:
    base = state(0)
    return {name: near(base, seed) for seed, name in enumerate(("a", "b", "c"), 1)}


FULL = Compression(rank=1000)


# ---- truncation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (30, 30)])
def test_error_equals_the_tail_of_the_singular_values(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = np.linalg.svd(matrix.numpy().astype(np.float64), compute_uv=False)
    before = math.inf
    for rank in (1, 2, 5, 13, 29):
        u, s, v = low_rank(matrix, rank, exact=True)
        error = float((matrix - (u * s) @ v).norm())
        assert error == pytest.approx(math.sqrt((values[rank:] ** 2).sum()), rel=1e-4)
        assert error <= before
        before = error
        assert torch.allclose(u.T @ u, torch.eye(rank), atol=1e-5) and torch.allclose(
            v @ v.T, torch.eye(rank), atol=1e-5
        )


@pytest.mark.parametrize("shape", [(300, 300), (256, 512), (512, 256)])
@pytest.mark.parametrize("rank", [1, 8])
def test_the_quick_way_is_within_two_percent_of_the_optimum(shape: tuple[int, int], rank: int):
    """Matrices without structure, the hardest case: their singular values fall slowest."""
    for seed in range(3):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        values = np.linalg.svd(matrix.numpy(), compute_uv=False)
        u, s, v = low_rank(matrix, rank)
        assert float((matrix - (u * s) @ v).norm()) <= 1.02 * math.sqrt((values[rank:] ** 2).sum())


def test_the_quick_way_finds_a_low_rank_change_exactly():
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(400, 4, generator=generator) @ torch.randn(4, 300, generator=generator)
    u, s, v = low_rank(matrix, 16)
    assert len(s) == 4, "directions that are only rounding noise are not stored"
    assert torch.allclose((u * s) @ v, matrix, atol=1e-3)


def test_signs_are_fixed_and_the_same_matrix_gives_the_same_factors():
    matrix = torch.randn(50, 70, generator=torch.Generator().manual_seed(2))
    for exact in (True, False):
        u, s, v = low_rank(matrix, 5, exact=exact)
        assert bool((u.gather(0, u.abs().argmax(0)[None]) > 0).all())
        again = low_rank(matrix.clone(), 5, exact=exact)
        assert all(torch.equal(x, y) for x, y in zip((u, s, v), again, strict=True))
        flipped = low_rank(-matrix, 5, exact=exact)
        assert torch.allclose(flipped[0], u, atol=1e-5) or torch.allclose(flipped[0].abs(), u.abs(), atol=1e-4)


def test_energy_takes_the_smallest_rank_that_holds_it():
    left, right = (torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(s)))[0] for s in (1, 2))
    values = torch.zeros(20)
    values[:4] = torch.tensor([4.0, 3.0, 2.0, 1.0])  # squares 16, 9, 4, 1 of 30
    matrix = (left * values) @ right
    for energy, rank in ((0.5, 1), (16 / 30 + 1e-4, 2), (25 / 30 - 1e-4, 2), (25 / 30 + 1e-4, 3), (0.97, 4)):
        assert len(by_energy(matrix, energy)[1]) == rank, energy
    assert len(by_energy(torch.zeros(5, 4), 0.9)[1]) == 0


@pytest.mark.parametrize(("ratio", "smaller", "rank"), [
    (0.1, 768, 76), (0.5, 768, 384), (0.75, 8, 6), (0.1, 10, 1), (0.3, 10, 3), (1.0, 7, 7), (0.001, 768, 1),
    (0.1, 1, 1),
])  # fmt: skip
def test_rank_ratio_is_a_floor_that_rounding_does_not_cheat(ratio: float, smaller: int, rank: int):
    assert Compression(rank_ratio=ratio).rank_of(smaller, 3 * smaller) == rank
    assert Compression(rank_ratio=ratio).rank_of(3 * smaller, smaller) == rank


# ---- forms ----------------------------------------------------------------------------------------------------------


def test_factors_give_way_to_the_matrix_where_they_are_not_smaller():
    delta = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    assert 11 * (24 + 24 + 1) < 24 * 24 <= 12 * (24 + 24 + 1)
    below, at = (exclusive(delta, "w", Compression(rank=rank)) for rank in (11, 12))
    assert isinstance(below, LowRank) and below.numbers == 11 * 49
    assert isinstance(at, Dense) and torch.equal(at.delta, delta)


def test_bytes_are_the_formula(experts: dict[str, dict[str, Tensor]]):
    rank = 2
    model = routed(state(0), experts, Compression(rank=rank, dtype="float16"))
    expected = 0
    for shape in SHAPES.values():
        rows, columns = shape[0], math.prod(shape[1:])
        factors = rank * (rows + columns + 1) if len(shape) > 1 else math.inf
        expected += 2 * min(factors, math.prod(shape))
    sizes = model.bytes()
    assert sizes["exclusive"] == 3 * expected
    assert sizes["shared"] == 4 * sum(math.prod(shape) for shape in SHAPES.values())
    assert sizes["total"] == sizes["shared"] + sizes["exclusive"] and sizes["router"] == sizes["heads"] == 0


@pytest.mark.parametrize(("shape", "matrix"), [
    ((8, 3, 2, 2), (8, 12)), ((5, 7), (5, 7)), ((9,), (1, 9)), ((1, 9), (1, 9)), ((1, 6, 4), (6, 4)),
    ((1, 1, 3), (1, 3)),
])  # fmt: skip
def test_what_matrix_a_tensor_is(shape: tuple[int, ...], matrix: tuple[int, int]):
    assert matrix_shape(shape) == matrix


def test_vectors_and_thin_matrices_are_whole_and_convolutions_are_matrices():
    generator = torch.Generator().manual_seed(0)
    for shape in ((30,), (1, 30), (30, 1), (1, 1, 30)):
        assert isinstance(exclusive(torch.randn(shape, generator=generator), "norm.weight", Compression(rank=1)), Dense)
    kernel = torch.randn(16, 3, 4, 4, generator=generator)
    part = exclusive(kernel, "patch_embedding.weight", Compression(rank=2, embeddings="skip"))
    assert isinstance(part, LowRank) and part.dense().shape == kernel.shape
    u, s, v = np.linalg.svd(kernel.reshape(16, 48).numpy(), full_matrices=False)
    assert np.allclose(part.dense().reshape(16, 48).numpy(), (u[:, :2] * s[:2]) @ v[:2], atol=1e-4)


def test_tables_follow_their_own_policy():
    table = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    for name in ("embeddings.word_embeddings.weight", "transformer.wte.weight", "visual.positional_embedding"):
        assert isinstance(exclusive(table, name, Compression(rank=2)), LowRank)
        assert isinstance(exclusive(table, name, Compression(rank=2, embeddings="dense")), Dense)
        assert exclusive(table, name, Compression(rank=2, embeddings="skip")) is None
    assert isinstance(exclusive(table, "layer.weight", Compression(rank=2, embeddings="skip")), LowRank)


def test_biases_can_be_left_out(experts: dict[str, dict[str, Tensor]]):
    parts = routed(state(0), experts, Compression(rank=2, biases=False)).parts["a"]
    assert "layer.bias" not in parts and "norm.weight" in parts


def test_magnitude_keeps_the_largest_and_none_keeps_all():
    delta = (torch.arange(-50, 50) + 0.25).reshape(10, 10)
    part = exclusive(delta, "w", Compression(kind="magnitude", density=0.1))
    assert isinstance(part, Sparse) and len(part.values) == 10
    kept = part.dense()
    assert set(kept[kept != 0].tolist()) == {-49.75, -48.75, -47.75, -46.75, -45.75, 45.25, 46.25, 47.25, 48.25, 49.25}
    assert torch.equal(kept[kept != 0], delta[kept != 0])
    whole = exclusive(delta, "w", Compression(kind="none"))
    assert isinstance(whole, Dense) and torch.equal(whole.delta, delta)


def test_bernoulli_is_unbiased_and_seeded():
    delta = torch.ones(400, 400)
    density = 0.2
    part = exclusive(delta, "w", Compression(kind="bernoulli", density=density, seed=1), task="a")
    assert isinstance(part, Sparse)
    assert set(part.values.tolist()) == {5.0}
    # 160,000 draws of probability 0.2: the mean's deviation is sqrt(0.8 / 0.2 / 160000) = 0.005
    assert float(part.dense().mean()) == pytest.approx(1.0, abs=0.03)
    assert bool((part.places[1:] > part.places[:-1]).all())
    same = exclusive(delta, "w", Compression(kind="bernoulli", density=density, seed=1), task="a")
    other = exclusive(delta, "w", Compression(kind="bernoulli", density=density, seed=1), task="b")
    assert isinstance(same, Sparse) and torch.equal(same.places, part.places)
    assert isinstance(other, Sparse) and not torch.equal(other.places, part.places)


def test_sparse_forms_give_way_where_places_cost_more_than_they_save():
    delta = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    part = exclusive(delta, "w", Compression(kind="magnitude", density=0.9))
    assert isinstance(part, Dense) and int((part.delta != 0).sum()) == 360


# ---- identities -----------------------------------------------------------------------------------------------------


def test_one_hot_at_full_rank_is_the_expert(experts: dict[str, dict[str, Tensor]]):
    model = routed(state(0), experts, FULL)
    for i, expert in enumerate(experts.values()):
        merged = model.state([float(i == j) for j in range(3)])
        assert all(torch.allclose(merged[name], expert[name], atol=1e-5) for name in SHAPES)


@pytest.mark.parametrize("shared", [0, 17, 99], ids=["the base", "a stranger", "another"])
@pytest.mark.parametrize("weights", [[0.2, 0.5, 0.3], [1 / 3] * 3, [2.0, -1.5, 0.5]])
def test_at_full_rank_the_shared_model_cancels_out(
    experts: dict[str, dict[str, Tensor]], shared: int, weights: list[float]
):
    """θ_s + Σ w (θ_t - θ_s) = Σ w θ_t where the weights sum to 1, whatever θ_s is."""
    assert sum(weights) == pytest.approx(1)
    merged = routed(state(shared), experts, FULL).state(weights)
    for name in SHAPES:
        wanted = sum(w * e[name].double() for w, e in zip(weights, experts.values(), strict=True))
        assert torch.allclose(merged[name].double(), wanted, atol=2e-5)


def test_rank_0_and_no_weight_are_the_shared_model(experts: dict[str, dict[str, Tensor]]):
    shared = state(5)
    model = routed(shared, experts, Compression(rank=2))
    for found in (routed(shared, experts, Compression(rank=0)).state([0.2, 0.3, 0.5]), model.state([0, 0, 0]),
                  model.at_rank(0).state([1, 0, 0])):  # fmt: skip
        assert all(torch.equal(found[name], shared[name]) for name in SHAPES)


def test_cutting_is_the_same_as_building_at_the_lower_rank(experts: dict[str, dict[str, Tensor]]):
    high = routed(state(0), experts, Compression(rank=6, exact=True)).at_rank(2)
    low = routed(state(0), experts, Compression(rank=2, exact=True))
    weights = [0.5, 0.25, 0.25]
    for name in ("layer.weight", "norm.weight", "conv.weight"):
        if isinstance(high.parts["a"][name], LowRank):
            assert torch.allclose(high.state(weights)[name], low.state(weights)[name], atol=1e-5), name


def test_the_state_is_linear_in_the_weights(experts: dict[str, dict[str, Tensor]]):
    model = routed(state(0), experts, Compression(rank=3))
    x, y = model.state([1, 0, 0]), model.state([0, 0, 1])
    both = model.state([0.25, 0, 0.75])
    assert all(torch.allclose(both[name], 0.25 * x[name] + 0.75 * y[name], atol=1e-5) for name in SHAPES)


def test_the_order_of_tasks_does_not_matter(experts: dict[str, dict[str, Tensor]]):
    for compression in (Compression(rank=3), Compression(kind="bernoulli", density=0.2)):
        forth = routed(state(0), experts, compression).state([0.2, 0.3, 0.5])
        back = routed(state(0), dict(reversed(experts.items())), compression).state([0.5, 0.3, 0.2])
        assert all(torch.allclose(forth[name], back[name], atol=1e-6) for name in SHAPES)


def test_threads_do_not_matter(experts: dict[str, dict[str, Tensor]]):
    one, four = (decompose(state(0), experts, Compression(rank=3), threads=n).parts["b"] for n in (1, 4))
    assert all(torch.equal(one[name].dense(), four[name].dense()) for name in SHAPES)


# ---- kinds of tensors and of experts --------------------------------------------------------------------------------


def test_whole_numbers_never_take_part_and_tied_names_are_stored_once():
    shared = {"w": torch.randn(6, 6), "position_ids": torch.arange(5)}
    shared["tied"] = shared["w"]
    expert = {"w": shared["w"] + 1, "position_ids": torch.arange(5) + 7}
    expert["tied"] = expert["w"]
    parts = decompose(shared, {"t": expert}, Compression(kind="none"), aliases={"tied": "w"}).parts
    assert set(parts["t"]) == {"w"}
    model = RoutedModel(("t",), shared, parts, aliases={"tied": "w"})
    merged = model.state([1.0])
    assert torch.equal(merged["position_ids"], torch.arange(5)) and merged["tied"] is merged["w"]
    assert torch.allclose(merged["w"], expert["w"], atol=1e-6)
    assert model.bytes()["shared"] == 6 * 6 * 4 + 5 * 8


def test_an_expert_that_is_the_shared_model_has_no_part_and_duplicates_have_the_same():
    base = state(0)
    twin = near(base, 4)
    found = decompose(base, {"same": dict(base), "x": twin, "y": dict(twin)}, Compression(rank=2))
    assert found.parts["same"] == {} and found.kept["same"] == 1.0
    for name in SHAPES:
        assert torch.equal(found.parts["x"][name].dense(), found.parts["y"][name].dense())


def test_kept_energy_is_what_the_parts_hold(experts: dict[str, dict[str, Tensor]]):
    shared = state(0)
    found = decompose(shared, experts, Compression(rank=3))
    for task, expert in experts.items():
        total = sum(float((expert[n] - shared[n]).square().sum()) for n in SHAPES)
        lost = sum(float((expert[n] - shared[n] - found.parts[task][n].dense()).square().sum()) for n in SHAPES)
        assert found.kept[task] == pytest.approx(1 - lost / total, rel=1e-4)
        assert 0 < found.kept[task] < 1
    assert decompose(shared, experts, FULL).kept["a"] == pytest.approx(1.0)


def test_parts_are_stored_as_the_shared_model_is_or_as_asked():
    shared = state(0, torch.float16)
    expert = {name: tensor.float() + 0.05 for name, tensor in shared.items()}
    half = decompose(shared, {"t": expert}, Compression(rank=2)).parts["t"]
    assert all(tensor.dtype == torch.float16 for part in half.values() for tensor in vars(part).values()
               if isinstance(tensor, Tensor))  # fmt: skip
    full = decompose(shared, {"t": expert}, Compression(rank=2, dtype="float32")).parts["t"]
    assert isinstance(full["layer.weight"], LowRank) and full["layer.weight"].u.dtype == torch.float32
    for name, shape in SHAPES.items():  # a constant change has rank 1
        assert torch.allclose(full[name].dense(), torch.full(shape, 0.05), atol=2e-3), name
        assert torch.allclose(half[name].dense(), torch.full(shape, 0.05), atol=4e-3), name


def test_a_running_variance_does_not_go_below_zero():
    shared = {"bn.running_var": torch.tensor([0.1, 1.0])}
    parts = decompose(shared, {"t": {"bn.running_var": torch.tensor([0.0, 2.0])}}, FULL).parts
    merged = RoutedModel(("t",), shared, parts).state([3.0])
    assert torch.allclose(merged["bn.running_var"], torch.tensor([0.0, 4.0]))


def test_an_adapter_gives_the_same_parts_as_its_product(tmp_path: Path):
    """Δ = (alpha / r)·B·A by hand, against the adapter as it is read."""
    peft = pytest.importorskip("peft")
    from safetensors.torch import save_file

    from mergelab import load

    generator = torch.Generator().manual_seed(0)
    base = {"layer.weight": torch.randn(24, 20, generator=generator), "layer.bias": torch.zeros(24)}
    down, up = torch.randn(4, 20, generator=generator), torch.randn(24, 4, generator=generator)
    folder = tmp_path / "adapter"
    peft.LoraConfig(r=4, lora_alpha=8, target_modules=["layer"]).save_pretrained(str(folder))
    stem = "base_model.model.layer"
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, folder / "adapter_model.safetensors")
    adapted = load(folder, base=load(base))
    by_hand = {"layer.weight": base["layer.weight"] + 2 * up @ down, "layer.bias": base["layer.bias"]}
    shared = {name: tensor + 0.1 for name, tensor in base.items()}
    for compression in (FULL, Compression(rank=2, exact=True)):
        found = decompose(shared, {"a": adapted, "b": by_hand}, compression).parts
        assert torch.allclose(found["a"]["layer.weight"].dense(), found["b"]["layer.weight"].dense(), atol=1e-4)
    part = decompose(base, {"a": adapted}, Compression(rank=8)).parts["a"]["layer.weight"]
    assert isinstance(part, LowRank) and part.rank == 4, "an adapter of rank 4 needs no more than 4 directions"


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_a_value_that_is_none_is_named_with_its_expert_and_tensor(experts: dict[str, dict[str, Tensor]]):
    for bad in (math.nan, math.inf):
        experts["b"]["layer.weight"] = experts["b"]["layer.weight"].clone()
        experts["b"]["layer.weight"][3, 4] = bad
        with pytest.raises(RoutingError, match=r"'b'.*'layer\.weight'"):
            decompose(state(0), experts, Compression(rank=2))


def test_shapes_and_names_that_differ_are_named(experts: dict[str, dict[str, Tensor]]):
    shared = state(0)
    with pytest.raises(RoutingError, match=r"'norm\.weight'.*'a'.*\[31\].*\[30\]"):
        decompose(shared, {"a": {**experts["a"], "norm.weight": torch.zeros(31)}}, FULL)
    with pytest.raises(RoutingError, match=r"'norm\.weight'"):
        decompose(shared, {"a": {n: t for n, t in experts["a"].items() if n != "norm.weight"}}, FULL)
    with pytest.raises(RoutingError, match="'more'"):
        decompose(shared, {"a": {**experts["a"], "more": torch.zeros(2)}}, FULL)
    with pytest.raises(RoutingError, match="expert"):
        decompose(shared, {}, FULL)


@pytest.mark.parametrize("words", [
    {}, {"rank": 1, "energy": 0.5}, {"rank": -1}, {"rank": 1.5}, {"rank": True}, {"rank_ratio": 0.0},
    {"rank_ratio": 1.1}, {"energy": math.nan}, {"kind": "magnitude"}, {"kind": "magnitude", "rank": 3, "density": 0.1},
    {"rank": 1, "rnk": 2}, {"rank": 1, "density": 0.1}, {"kind": "bernoulli", "density": 0}, {"kind": "x", "rank": 1},
    {"rank": 1, "seed": -1}, {"rank": 1, "embeddings": "no"}, {"rank": 1, "dtype": "int8"}, {"rank": 1, "biases": 1},
])  # fmt: skip
def test_compressions_that_mean_nothing_are_refused(words: dict[str, object]):
    with pytest.raises(RoutingError, match="exclusive"):
        Compression.from_dict(words)


def test_work_can_be_stopped(experts: dict[str, dict[str, Tensor]]):
    from mergelab.errors import Cancelled
    from mergelab.progress import Stop

    stop = Stop()
    stop.set()
    with pytest.raises(Cancelled):
        decompose(state(0), experts, FULL, stop=stop)

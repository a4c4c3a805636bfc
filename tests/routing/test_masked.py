from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mergelab.errors import RoutingError
from mergelab.routing.masked import FILE, choose_lambdas, emr, load_masked, pack, tall, unpack

BASE = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([0.5]), "steps": torch.tensor([7])}


def plus(w: list[list[float]], b: float) -> dict[str, torch.Tensor]:
    """The base with a change added; all numbers are exact in binary."""
    return {"w": BASE["w"] + torch.tensor(w), "b": BASE["b"] + b, "steps": BASE["steps"]}


# Two tasks. Sums: w [[3, -1], [0, 4]], b 1.
ONE = plus([[1.0, 1.0], [2.0, 4.0]], 2.0)
TWO = plus([[2.0, -2.0], [-2.0, 0.0]], -1.0)


def random_experts(count: int, seed: int = 0) -> tuple[dict, dict]:
    g = torch.Generator().manual_seed(seed)
    base = {"a.weight": torch.randn(6, 11, generator=g), "a.bias": torch.randn(6, generator=g)}
    experts = {f"t{i}": {n: t + 0.1 * torch.randn(t.shape, generator=g) for n, t in base.items()} for i in range(count)}
    return base, experts


def test_emr_of_two_small_tasks_by_hand():
    found = emr(BASE, {"one": ONE, "two": TWO})
    # Signs + - 0 + and +; the largest that agrees: 2, -2, nothing, 4 and 2.
    assert found.unified["w"].tolist() == [[2.0, -2.0], [0.0, 4.0]]
    assert found.unified["b"].tolist() == [2.0]
    assert unpack(found.masks["one"]["w"], (2, 2)).tolist() == [[True, False], [False, True]]
    assert unpack(found.masks["two"]["w"], (2, 2)).tolist() == [[True, True], [False, False]]
    assert unpack(found.masks["two"]["b"], (1,)).tolist() == [False]
    assert found.scales == {"one": 10 / 8, "two": 7 / 4}  # (1+1+2+4+2) / (2+4+2) and (2+2+2+1) / (2+2)
    assert found.state("one")["w"].tolist() == [[1 + 2.5, 2.0], [3.0, 4 + 5.0]]
    assert found.state("two")["w"].tolist() == [[1 + 3.5, 2 - 3.5], [3.0, 4.0]]
    assert found.state("one")["steps"].tolist() == [7]
    assert found.density("one") == 3 / 5


def test_emr_of_one_task_is_the_expert():
    found = emr(BASE, {"one": ONE})
    assert found.scales["one"] == 1.0
    for name, tensor in found.state("one").items():
        assert torch.equal(tensor, ONE[name])


def test_emr_keeps_each_tasks_mean_size_of_change():
    base, experts = random_experts(5)
    found = emr(base, experts)
    for task, expert in experts.items():
        before = sum(float((expert[n] - base[n]).abs().sum()) for n in base)
        after = sum(float((found.state(task)[n] - base[n]).abs().sum()) for n in base)
        assert after == pytest.approx(before, rel=1e-5)
        for name in base:  # and no entry moves against its own task vector
            assert bool(((found.state(task)[name] - base[name]) * (expert[name] - base[name]) >= 0).all())


def test_tall_of_two_small_tasks_by_hand():
    found = tall(BASE, {"one": ONE, "two": TWO}, {"one": 0.5, "two": 1.0})
    assert found.unified["w"].tolist() == [[3.0, -1.0], [0.0, 4.0]]
    # one: |1| >= .5*2, |1| >= .5*2, 2 >= .5*2, 4 >= 0; b: 2 >= .5
    assert unpack(found.masks["one"]["w"], (2, 2)).tolist() == [[True, True], [True, True]]
    # two: 2 >= 1, 2 >= 1, 2 >= 2, 0 >= 4; b: 1 >= 2
    assert unpack(found.masks["two"]["w"], (2, 2)).tolist() == [[True, True], [True, False]]
    assert found.state("two")["w"].tolist() == [[4.0, 1.0], [3.0, 4.0]]
    assert found.state("two")["b"].tolist() == [0.5]
    assert found.state("one")["b"].tolist() == [1.5]
    assert found.settings["lambda"] == {"one": 0.5, "two": 1.0}


def test_tall_of_one_task_is_the_expert_and_of_copies_all_or_nothing():
    alone = tall(BASE, {"one": ONE}, 0.6)
    assert all(torch.equal(t, ONE[n]) for n, t in alone.state("one").items())
    copies = {f"t{i}": ONE for i in range(3)}  # |τ| >= λ·2|τ| exactly where λ <= 1/2
    most, none = tall(BASE, copies, 0.5), tall(BASE, copies, 0.51)
    assert torch.equal(most.state("t1")["w"], BASE["w"] + 3 * (ONE["w"] - BASE["w"]))
    assert torch.equal(none.state("t1")["w"], BASE["w"])


def test_lambdas_are_chosen_task_by_task():
    base, experts = random_experts(4)

    def score(task: str, state: dict[str, torch.Tensor]) -> float:
        wanted = {"t0": 0.2, "t1": 0.6}.get(task, 0.4)
        other = tall(base, experts, wanted).state(task)
        return -sum(float((state[n] - other[n]).abs().sum()) for n in base)

    assert choose_lambdas(base, experts, score) == {"t0": 0.2, "t1": 0.6, "t2": 0.4, "t3": 0.4}


def test_a_mask_takes_one_bit_a_parameter():
    base, experts = random_experts(3)
    size = emr(base, experts).bytes()
    assert size["masks"] == 3 * (9 + 1)  # 66 bits in 9 bytes, 6 in 1
    assert size["base"] == size["unified"] == 4 * (66 + 6)
    assert size["total"] == 2 * 288 + 30 + 12


def test_half_precision_bases_store_half_the_bytes():
    base = {n: t.half() if t.is_floating_point() else t for n, t in BASE.items()}
    found = emr(base, {"one": ONE, "two": TWO})
    assert found.unified["w"].dtype == torch.float16
    assert found.state("one")["w"].dtype == torch.float32
    assert found.bytes()["unified"] == 2 * 5


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64])
def test_bits_come_back_as_they_were(count: int):
    bits = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5
    assert len(pack(bits)) == -(-count // 8)
    assert torch.equal(unpack(pack(bits), (count, 1)), bits.view(count, 1))
    assert pack(torch.tensor([True] + [False] * 7)).tolist() == [1]


@pytest.mark.parametrize("make", [emr, tall])
def test_saved_and_loaded_it_is_the_same(make, tmp_path: Path):
    base, experts = random_experts(3)
    base["tied"] = base["a.weight"]
    experts = {task: {**of, "tied": of["a.weight"]} for task, of in experts.items()}
    found = make(base, experts, aliases={"tied": "a.weight"})
    again = load_masked(found.save(tmp_path / "masked"))
    assert again.names == found.names and again.bytes() == found.bytes() and again.method == found.method
    for task in found.names:
        for name, tensor in found.state(task).items():
            assert torch.equal(again.state(task)[name], tensor)
    assert again.state("t0")["tied"] is not base["tied"]
    file = tmp_path / "masked" / FILE
    assert found.bytes()["total"] - 12 < file.stat().st_size < found.bytes()["total"] + 4000


def test_the_order_of_tasks_does_not_matter():
    base, experts = random_experts(4)
    back = dict(reversed(list(experts.items())))
    for make in (emr, tall):
        first, second = make(base, experts), make(base, back)
        assert all(torch.equal(t, second.masks["t2"][n]) for n, t in first.masks["t2"].items())
        for name, tensor in first.state("t2").items():
            assert torch.allclose(tensor, second.state("t2")[name], atol=1e-6)


def test_what_does_not_fit_is_refused(tmp_path: Path):
    base, experts = random_experts(2)
    with pytest.raises(RoutingError, match="no expert"):
        emr(base, {})
    with pytest.raises(RoutingError, match=r"'t1'.*'a\.bias'"):
        emr(base, {**experts, "t1": {"a.weight": base["a.weight"]}})
    with pytest.raises(RoutingError, match=r"the shape \[5\]"):
        tall(base, {"t0": {**experts["t0"], "a.bias": torch.zeros(5)}})
    with pytest.raises(RoutingError, match="NaN or infinity"):
        emr(base, {"t0": {**experts["t0"], "a.bias": torch.full((6,), float("nan"))}})
    with pytest.raises(RoutingError, match="λ of the task 't1'"):
        tall(base, experts, {"t0": 0.3})
    with pytest.raises(RoutingError, match="no mask for the task 'tt'"):
        emr(base, experts).state("tt")
    folder = emr(base, experts).save(tmp_path / "m")
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:200])
    with pytest.raises(RoutingError, match="holds no masked model"):
        load_masked(folder)
    with pytest.raises(RoutingError, match="holds no masked model"):
        load_masked(tmp_path / "nothing")

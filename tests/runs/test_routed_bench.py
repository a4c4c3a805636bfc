"""The routed bench on a tiny zoo: caches, tables and costs say what the slow way says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import routed_zoo
import torch

from mergelab.errors import Cancelled, MergeLabError, RoutingError
from mergelab.progress import Stop
from mergelab.routing import evaluate_routed
from mergelab.runs import Bench
from mergelab.runs.routed import RoutedBench, routed_bench
from mergelab.runs.routed_items import Items, gather, mixed_batch, read
from mergelab.tasks import Head, load_suite


@pytest.fixture(scope="module")
def bench(root, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = routed_zoo.make(root, tmp_path_factory.mktemp("routed") / "tiny")
    experts = {path.name: str(path) for path in sorted((folder / "experts").iterdir())}
    return Bench(str(folder / "base"), experts, load_suite(folder), device="cpu")


@pytest.fixture(scope="module")
def routed(bench: Bench) -> RoutedBench:
    return RoutedBench(bench)


def test_one_routed_bench_a_bench(bench: Bench):
    assert routed_bench(bench) is routed_bench(bench)


def test_building_is_cached_and_the_gate_needs_no_new_build(bench: Bench, routed: RoutedBench):
    first = routed.build(routed_zoo.recipe(bench))
    assert routed.build(routed_zoo.recipe(bench)) is first
    sharper = routed_zoo.recipe(bench, router={"kind": "centroid", "temperature": 0.5})
    other = routed.build(sharper)
    assert other.parts is first.parts and other.router is first.router
    assert other.gate.temperature == 0.5 and first.gate.temperature == 1.0
    assert routed.build(routed_zoo.recipe(bench, exclusive={"rank": 1})).parts is not first.parts


def test_an_evaluation_is_that_of_the_library(bench: Bench, routed: RoutedBench):
    recipe = routed_zoo.recipe(bench)
    for head in ("oracle", "router_argmax", "max_logit"):
        mine = routed.evaluate(recipe, per_task=12, head=head)
        theirs = evaluate_routed(routed.build(recipe), bench.suite, head=head, limit=12, unseen=False, device="cpu")
        assert mine["tasks"] == theirs.to_dict()["tasks"] and mine["router"] == theirs.to_dict()["router"]
        assert mine["head"] == head
    assert set(mine["tasks"]) == set(bench.experts)
    assert set(routed.evaluate(recipe, per_task=None)["tasks"]) == {*bench.experts, "stripes"}


def test_weights_that_are_not_finite_are_refused(bench: Bench, routed: RoutedBench):
    picture = bench.samples("grey")[0][1][None]
    for wrong in ([math.nan, 0.0], [1.0], [1.0, 0.0, 0.0]):
        with pytest.raises(MergeLabError):
            routed.predict(routed_zoo.recipe(bench), picture, weights=wrong)
    with pytest.raises(RoutingError, match="told"):
        routed.predict(routed_zoo.recipe(bench), picture, head="oracle", task="stripes")
    with pytest.raises(RoutingError, match="oracle"):
        routed.predict(routed_zoo.recipe(bench), picture, head="orcale", task="grey")


def test_no_weight_is_the_shared_model_and_one_whole_expert_is_the_expert(bench: Bench, routed: RoutedBench):
    recipe = routed_zoo.recipe(bench, exclusive={"kind": "none"})
    picture = bench.samples("colour")[3][1][None]
    zero = routed.predict(recipe, picture, weights=[0, 0], head="oracle", task="colour")
    assert zero["models"]["by hand"] == zero["models"]["shared"]
    place = zero["names"].index("colour")
    alone = routed.predict(recipe, picture, weights=[float(i == place) for i in (0, 1)], head="oracle", task="colour")
    expert = next(p for p in bench.predict(recipe.shared, "colour", picture) if p.model == "expert")
    found = [row["probability"] for row in alone["models"]["by hand"]]
    assert found == pytest.approx(expert.probabilities, abs=1e-4)
    twice = routed.predict(recipe, picture, weights=[3.0 * (i == place) for i in (0, 1)], normalised=True,
                           head="oracle", task="colour")  # fmt: skip
    assert twice["weights"]["by hand"] == [float(i == place) for i in (0, 1)]
    assert [row["probability"] for row in twice["models"]["by hand"]] == pytest.approx(found, abs=1e-6)


def test_under_the_highest_logit_the_classes_of_all_tasks_stand_together(bench: Bench, routed: RoutedBench):
    found = routed.predict(routed_zoo.recipe(bench), bench.samples("grey")[0][1][None], head="max_logit")
    rows = found["models"]["routed"]
    assert len(rows) == 3 + 4 and sum(row["probability"] for row in rows) == pytest.approx(1, abs=1e-5)
    assert rows[0]["class"] == "Colour: class 0"


def test_the_curve_starts_at_the_shared_model_and_ends_at_the_experts_mixture(bench: Bench, routed: RoutedBench):
    recipe = routed_zoo.recipe(bench)
    curve = routed.curve(recipe, ranks=(0, 1, 2, 8), per_task=12)
    points = curve["points"]
    assert [point["rank"] for point in points] == [0, 1, 2, 8, None]
    sizes = [point["bytes"]["exclusive"] for point in points]
    assert sizes[0] == 0 and sizes == sorted(sizes) and sizes[1] < sizes[2]
    for point, rank in zip(points[1:4], (1, 2, 8), strict=True):
        straight = routed.build(routed_zoo.recipe(bench, exclusive={"rank": rank}))
        assert point["bytes"] == straight.bytes(), "as if it had been decomposed at that rank"
        measured = routed.evaluate(routed_zoo.recipe(bench, exclusive={"rank": rank}), per_task=12, head="oracle")
        assert point["accuracy"]["oracle"]["mean"] == pytest.approx(measured["seen"]["accuracy"], abs=1e-6)
    static = bench.evaluate(recipe.shared, per_task=12)
    assert points[0]["accuracy"]["oracle"]["mean"] == pytest.approx(static.seen.accuracy, abs=1e-6)
    assert routed.curve(recipe, ranks=(0, 1, 2, 8), per_task=12) is curve


def test_a_batch_tells_of_every_picture_in_its_place(bench: Bench, routed: RoutedBench):
    found = routed.batch(routed_zoo.recipe(bench), count=10, seed=3, head="oracle")
    assert len(found["items"]) == 10 and {item["task"] for item in found["items"]} == set(bench.experts)
    for item in found["items"]:
        assert sum(item["weights"]) == pytest.approx(1, abs=1e-5)
        assert item["chosen"] == found["names"][int(np.argmax(item["weights"]))]
        assert item["right"] == (item["label"] == item["predicted"])
        mates = [o for o in found["items"] if o["group"] == item["group"]]
        assert {o["chosen"] for o in mates} == {item["chosen"]}, "a group lies inside one bin"
        mean = np.mean([o["weights"] for o in mates], axis=0)
        assert found["groups"][item["group"]] == pytest.approx(mean, abs=1e-5)
    again = routed.batch(routed_zoo.recipe(bench), count=10, seed=3, head="oracle")
    assert [i["weights"] for i in again["items"]] == [i["weights"] for i in found["items"]]


def test_storage_follows_its_formulas(bench: Bench, routed: RoutedBench):
    model = routed.build(routed_zoo.recipe(bench))
    found, size = routed.storage(routed_zoo.recipe(bench)), model.bytes()
    lines, last = found["lines"], {name: values[-1] for name, values in found["lines"].items()}
    assert last["routed, as built"] == size["total"]
    assert last["static merge"] == size["shared"] + size["heads"]
    assert last["all experts kept"] == 2 * size["shared"] + size["router"] + size["heads"]
    matrices = [t.shape for n, t in model.shared.items() if t.ndim == 2 and "layer." in n]
    one = 4 * sum(m + n + 1 for m, n in matrices)  # float32
    assert last["routed, rank 1"] == size["shared"] + 2 * one + size["router"] + size["heads"]
    numbers = sum(m * n for m, n in matrices)
    assert last["EMR / TALL masks"] == size["shared"] + 4 * numbers + 2 * math.ceil(numbers / 8) + size["heads"]
    assert "experts as shipped" not in lines, "these experts are whole checkpoints"
    for values in lines.values():
        assert values == sorted(values) and len(values) == 2


def test_the_estimate_is_an_upper_bound_of_what_is_stored(bench: Bench, routed: RoutedBench):
    recipe = routed_zoo.recipe(bench)
    found, model = routed.estimate(recipe), routed.build(recipe)
    assert found["experts"] == 2 and found["seconds"] > 0
    assert found["bytes"] >= model.bytes()["shared"] + model.bytes()["exclusive"]
    larger = routed.estimate(routed_zoo.recipe(bench, exclusive={"rank": 8}))
    assert larger["bytes"] > found["bytes"]
    assert routed.estimate(routed_zoo.recipe(bench, exclusive={"energy": 0.9}))["bytes"] is None


def test_timing_ends_in_time_and_says_what_it_left_out(bench: Bench, routed: RoutedBench):
    found = routed.latency(routed_zoo.recipe(bench), sizes=(1, 4), modes=("adapter", "group", "nope"), seconds=5)
    assert found["sizes"] == [1, 4] and set(found["rows"]) == {"plain", "adapter", "group", "nope"}
    assert all(value > 0 for mode in ("plain", "adapter", "group") for value in found["rows"][mode])
    assert found["rows"]["nope"] == [None, None] and "nope" in found["why"]["nope/1"]
    nothing = routed.latency(routed_zoo.recipe(bench), sizes=(1,), modes=("adapter",), seconds=0)
    assert nothing["rows"] == {"plain": [None], "adapter": [None]} and nothing["why"]


def test_a_stopped_build_builds_nothing(bench: Bench):
    fresh, stop = RoutedBench(bench), Stop()
    stop.set()
    with pytest.raises(Cancelled):
        fresh.build(routed_zoo.recipe(bench), stop=stop)
    assert not fresh.ready(routed_zoo.recipe(bench))


def test_a_bench_without_a_suite_says_what_is_missing(bench: Bench):
    bare = RoutedBench(Bench(bench.base, bench.experts, None, device="cpu"))
    with pytest.raises(MergeLabError, match="suite"):
        bare.build(routed_zoo.recipe(bench))


def test_items_are_those_of_an_evaluation_and_mixing_keeps_them(bench: Bench):
    names = list(bench.experts)
    plain, mixed = (gather(bench.suite, names, 7, mixed=flag) for flag in (False, True))
    assert sorted(zip(plain.owner.tolist(), plain.places.tolist(), strict=True)) == sorted(
        zip(mixed.owner.tolist(), mixed.places.tolist(), strict=True)
    )
    assert plain.owner.tolist() != mixed.owner.tolist()
    drawn = mixed_batch(bench.suite, names, 6, 0)
    assert torch.bincount(drawn.owner).tolist() == [3, 3]


def test_pictures_of_different_sizes_go_in_batches_of_their_own():
    images = (torch.zeros(4, 4, 3), torch.zeros(8, 8, 3), torch.ones(4, 4, 3))
    items = Items(images, torch.zeros(3), torch.zeros(3), torch.zeros(3))
    assert [(mine.tolist(), tuple(batch.shape)) for mine, batch in items.batches()] == [
        ([0, 2], (2, 4, 4, 3)), ([1], (1, 8, 8, 3)),
    ]  # fmt: skip


def test_head_policies_on_hand_made_logits():
    heads = {"a": Head(torch.eye(2)), "b": Head(torch.tensor([[0.0, 3.0], [0.0, -3.0], [1.0, 0.0]]))}
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    by_weight = read(features, heads, ["a", "b"], "router_argmax", weights=torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    assert by_weight.head.tolist() == [0, 1] and by_weight.label.tolist() == [0, 0]
    told = read(features, heads, ["a", "b"], "oracle", owner=torch.tensor([1, 0]))
    assert told.head.tolist() == [1, 0] and told.label.tolist() == [2, 1]
    highest = read(features, heads, ["a", "b"], "max_logit")
    assert highest.head.tolist() == [0, 1] and highest.label.tolist() == [0, 0]
    items = Items(tuple(features), torch.tensor([0, 0]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert highest.right(items).tolist() == [True, False], "the right class of another task is wrong"


def test_adapters_are_weighed_by_their_files(root: Path, tmp_path: Path):
    from mergelab.runs.routed_costs import adapter_bytes

    file = root / "assets/zoo/starter/experts/mnist/adapter_model.safetensors"
    assert adapter_bytes("zoo:starter/mnist") == file.stat().st_size
    assert adapter_bytes(str(tmp_path)) is None and adapter_bytes("hub:org/name") is None

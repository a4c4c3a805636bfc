"""Building a routed model on a tiny zoo: what it is made of, what it records, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_routed import CLASSES, WIDTH, document, pictures, write_zoo
from torch import Tensor

import mergelab
from mergelab.errors import Cancelled, MergeLabError, RoutingError
from mergelab.progress import Stop
from mergelab.routing import RouterSettings, Runner, TwinRecipe, build_routed, twin
from mergelab.routing.learn import Lessons, shares
from mergelab.routing.routed import RoutedModel
from mergelab.tasks import Head, load_suite


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zoo(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture(scope="module")
def built(zoo: Path) -> RoutedModel:
    return build_routed(TwinRecipe.from_dict(document(zoo)), device="cpu")


def test_the_shared_model_is_what_merge_gives(zoo: Path, built: RoutedModel):
    experts = {task: zoo / "experts" / task for task in CLASSES}
    merged = mergelab.merge("task_arithmetic", experts, base=zoo / "base", lambda_=0.4, device="cpu")
    assert set(merged) == set(built.shared)
    assert all(torch.equal(merged[name], built.shared[name]) for name in merged)
    assert {t.dtype for t in built.shared.values()} == {torch.float16}, "in the base's dtype"


def test_nothing_is_lost_between_the_rounded_shared_model_and_the_expert(zoo: Path):
    """Parts are taken from the shared model as it is stored, so float32 parts give float32 experts back."""
    data = document(zoo, exclusive={"kind": "none", "dtype": "float32"})
    routed = build_routed(TwinRecipe.from_dict(data), device="cpu", route=False)
    for i, task in enumerate(CLASSES):
        expert = mergelab.load(zoo / "experts" / task)
        state = routed.state([float(i == j) for j in range(3)])
        assert all(torch.allclose(state[name], expert[name].float(), atol=1e-6) for name in expert)


def test_heads_are_the_experts_own(zoo: Path, built: RoutedModel):
    from safetensors.torch import load_file

    for task, head in built.heads.items():
        stored = load_file(zoo / "experts" / task / "head.safetensors")
        assert torch.equal(head.weight, stored["weight"].float()) and head.classes == CLASSES[task]


def test_the_router_knows_the_tasks_and_says_what_it_saw(built: RoutedModel):
    run = Runner(built, device="cpu")
    for i, task in enumerate(CLASSES):
        images, _ = pictures(task, 12, seed=77)
        assert bool((run.logits(run.features(torch.from_numpy(images))).argmax(1) == i).all()), task
    notes = built.settings["router"]
    assert notes["split"] == "val" and notes["suite"] == "tiny"
    assert notes["train"] == dict.fromkeys(CLASSES, 24) and notes["held_out"] == dict.fromkeys(CLASSES, 6)
    assert "no class labels" in built.settings["data_used"] and "30" in built.settings["data_used"]
    about = built.router.about() if built.router else {}
    assert about["counts"] == dict.fromkeys(CLASSES, 24) and about["shared"] == built.settings["hashes"]["shared"]


def test_an_early_router_reads_a_quarter_of_the_way_in(built: RoutedModel, zoo: Path):
    assert built.early_layer == 1 and built.early_router is not None
    assert built.early_router.about()["features"] == "layer 1"
    data = document(zoo, inference={"early_layer": 3})
    assert build_routed(TwinRecipe.from_dict(data), device="cpu").early_layer == 3
    with pytest.raises(RoutingError, match="early_layer 4"):
        build_routed(TwinRecipe.from_dict(document(zoo, inference={"early_layer": 4})), device="cpu")
    assert (
        build_routed(TwinRecipe.from_dict(document(zoo, inference={"early_layer": 0})), device="cpu").early_router
        is None
    )


def test_what_it_was_built_from_is_recorded(zoo: Path, built: RoutedModel):
    settings = built.settings
    assert json.loads(json.dumps(settings)) == settings, "plain data"
    assert TwinRecipe.from_dict(settings["recipe"]) == TwinRecipe.from_dict(document(zoo))
    assert settings["hash"] == TwinRecipe.from_dict(document(zoo)).hash
    assert set(settings["kept"]) == set(CLASSES) and all(0 < kept < 1 for kept in settings["kept"].values())
    assert set(settings["seconds"]) == {"shared", "exclusive", "features", "router"}
    assert settings["tasks"]["greens"] == {"title": "Greens", "classes": ["greens 0", "greens 1", "greens 2"]}
    hashes = settings["hashes"]
    assert len({hashes["shared"], *(e["sha256"] for e in hashes["experts"].values())}) == 4
    again = build_routed(TwinRecipe.from_dict(document(zoo)), device="cpu", threads=1)
    assert again.settings["hashes"] == hashes, "neither threads nor runs change what is read"


def test_the_same_recipe_gives_the_same_model_and_global_randomness_is_left_alone(zoo: Path):
    from mergelab.routing.store import content_hash

    recipe = TwinRecipe.from_dict(document(zoo, router={"kind": "mlp", "epochs": 2, "batch": 16}))
    torch.manual_seed(1)
    one = content_hash(build_routed(recipe, device="cpu"))
    before = torch.random.get_rng_state()
    two = content_hash(build_routed(recipe, device="cpu"))
    assert one == two and torch.equal(before, torch.random.get_rng_state())
    other = build_routed(recipe.with_sections(router={"seed": 5}), device="cpu")
    assert content_hash(other) != one


# ---- the router's data ----------------------------------------------------------------------------------------------


def test_training_and_held_out_items_never_meet_and_do_not_depend_on_other_tasks():
    settings = RouterSettings(seed=3)
    train, held = shares(200, "mnist", settings)
    assert (len(train), len(held)) == (160, 40)
    assert sorted(train.tolist() + held.tolist()) == list(range(200))
    assert torch.equal(shares(200, "mnist", settings)[0], train)
    assert not torch.equal(shares(200, "fashion", settings)[0], train)
    assert not torch.equal(shares(200, "mnist", RouterSettings(seed=4))[0], train)
    capped = shares(10_000, "mnist", RouterSettings(per_task=100))
    assert (len(capped[0]), len(capped[1])) == (100, 25) and not set(capped[0].tolist()) & set(capped[1].tolist())
    assert [len(part) for part in shares(1, "mnist", settings)] == [1, 0]
    assert [len(part) for part in shares(2, "mnist", settings)] == [1, 1]


def test_test_items_and_class_labels_are_never_read(zoo: Path, monkeypatch: pytest.MonkeyPatch):
    """Packs without a test split, and with labels that mean nothing, give the same router."""
    from mergelab.routing.store import content_hash

    recipe = TwinRecipe.from_dict(document(zoo))
    wanted = content_hash(build_routed(recipe, device="cpu"))
    bare = zoo.parent / "bare"
    shutil.copytree(zoo, bare, dirs_exist_ok=True)
    for path in (bare / "suite").glob("*.npz"):
        kept = dict(np.load(path))
        arrays = {"x_val": kept["x_val"], "y_val": np.zeros_like(kept["y_val"])}
        np.savez_compressed(path, **arrays)
    assert content_hash(build_routed(recipe, suite=bare, device="cpu")) == wanted


def test_without_a_validation_split_items_are_held_out_of_training(tmp_path: Path):
    zoo = write_zoo(tmp_path / "tiny", val=None)
    lessons = Lessons.of(TwinRecipe.from_dict(document(zoo)), tuple(CLASSES), None)
    assert {len(lessons.train[t]) + len(lessons.held[t]) for t in CLASSES} == {6}  # 15 % of 40
    held = lessons.suite["reds"].split("val")[0]
    train = {image.numpy().tobytes() for image in lessons.suite["reds"].split("train")[0]}
    assert not any(image.numpy().tobytes() in train for image in held)


# ---- one call -------------------------------------------------------------------------------------------------------


def test_one_call_with_a_zoo_takes_its_experts_and_coefficients(zoo: Path, built: RoutedModel):
    routed = mergelab.twin(suite=zoo, rank=2, router="centroid", device="cpu")
    assert routed.names == tuple(CLASSES)
    assert routed.settings["recipe"]["parameters"] == {"lambda": 0.4}, "the zoo's own, chosen on validation"
    assert all(torch.equal(routed.shared[name], built.shared[name]) for name in built.shared)
    assert twin(suite=zoo, rank=2, router=None, lambda_=0.1, device="cpu").settings["recipe"]["parameters"] == {
        "lambda": 0.1
    }


def test_one_call_with_state_dicts(zoo: Path, built: RoutedModel):
    """Tensors in memory, a weight per model, no suite and no router."""
    experts = {task: dict(mergelab.load(zoo / "experts" / task)) for task in CLASSES}
    base = dict(mergelab.load(zoo / "base"))
    weight = {"reds": 1.0, "greens": 0.5, "blues": 2.0}
    routed = twin("task_arithmetic", experts, base=base, rank=2, router=None, heads={}, lambda_=0.3, weight=weight,
                  device="cpu")  # fmt: skip
    merged = mergelab.merge("task_arithmetic", experts, base=base, lambda_=0.3, weight=weight, device="cpu")
    assert all(torch.equal(routed.shared[name], merged[name]) for name in merged)
    assert routed.router is None and routed.heads == {} and routed.settings["data_used"].startswith("none")


def test_one_call_with_a_recipes_file(zoo: Path, tmp_path: Path):
    path = tmp_path / "twin.json"
    path.write_text(json.dumps(document(zoo)))
    assert twin(str(path), router=None, device="cpu", rank=1).rank == 1
    with pytest.raises(RoutingError, match="recipe"):
        twin(str(path), models=["x"])


def test_random_methods_are_seeded_as_merge_is(zoo: Path):
    experts = {task: dict(mergelab.load(zoo / "experts" / task)) for task in CLASSES}
    base = dict(mergelab.load(zoo / "base"))
    routed = twin("dare_linear", experts, base=base, rank=1, router=None, heads={}, seed=3, density=0.5, device="cpu")
    merged = mergelab.merge("dare_linear", experts, base=base, seed=3, density=0.5, device="cpu")
    assert all(torch.equal(routed.shared[name], merged[name]) for name in merged)


def test_a_method_without_a_base_and_one_expert_alone(zoo: Path):
    data = document(zoo, merge_method="linear", parameters={})
    del data["base_model"]
    assert build_routed(TwinRecipe.from_dict(data), device="cpu").names == tuple(CLASSES)
    one = document(zoo, models=[{"model": str(zoo / "experts" / "reds")}])
    routed = build_routed(TwinRecipe.from_dict(one), device="cpu")
    weights = routed.gate.weights(torch.zeros(4, 1))
    assert routed.names == ("reds",) and torch.equal(weights, torch.ones(4, 1))


def test_progress_goes_up_to_the_end_and_work_can_be_stopped(zoo: Path):
    seen: list[tuple[int, int]] = []
    recipe = TwinRecipe.from_dict(document(zoo))
    build_routed(recipe, device="cpu", progress=lambda done, total, text: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1 and seen[-1][0] == seen[-1][1]
    for phase in ("layer", "router"):
        stop = Stop()

        def told(done: int, total: int, text: str, stop: Stop = stop, phase: str = phase) -> None:
            if phase in text:
                stop.set()

        with pytest.raises(Cancelled):
            build_routed(recipe.with_sections(router={"kind": "mlp"}), device="cpu", progress=told, stop=stop)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_a_suite_without_the_experts_task_is_named(zoo: Path):
    data = document(zoo)
    data["models"] = [{"model": str(zoo / "experts" / "reds"), "name": "crimsons"}]
    with pytest.raises(RoutingError, match=r"tiny.*'crimsons'"):
        build_routed(TwinRecipe.from_dict(data), device="cpu")


def test_an_expert_without_a_head_is_named(tmp_path: Path):
    zoo = write_zoo(tmp_path / "tiny")
    (zoo / "experts" / "greens" / "head.safetensors").unlink()
    (zoo / "zoo.json").unlink()
    recipe = TwinRecipe.from_dict(document(zoo, suite=str(zoo / "suite")))
    with pytest.raises(RoutingError, match=r"no head for greens"):
        build_routed(recipe, device="cpu")
    assert build_routed(recipe, heads={}, device="cpu").heads == {}
    wide = {task: Head(torch.zeros(n, WIDTH + 1)) for task, n in CLASSES.items()}
    with pytest.raises(RoutingError, match=rf"'reds'.*{WIDTH + 1}.*{WIDTH}"):
        build_routed(recipe, heads=wide, device="cpu")


def test_a_task_without_items_is_named(tmp_path: Path):
    zoo = write_zoo(tmp_path / "tiny")
    images, labels = pictures("blues", 4)
    np.savez_compressed(zoo / "suite" / "blues.npz", x_test=images, y_test=labels)
    with pytest.raises(RoutingError, match=r"'blues'.*no validation items"):
        build_routed(TwinRecipe.from_dict(document(zoo)), device="cpu")


def test_no_suite_and_no_zoo_to_learn_from(zoo: Path):
    data = document(zoo, suite=None)
    with pytest.raises(RoutingError, match="suite"):
        build_routed(TwinRecipe.from_dict(data), device="cpu")


@pytest.mark.parametrize(("call", "named"), [
    ({"models": []}, "expert|model"),
    ({"models": {}}, "expert"),
    ({"models": {"a": {"w": torch.zeros(2)}}, "base": {"w": torch.zeros(3)}}, "'w'"),
    ({"models": {"a": {"w": torch.zeros(2)}}, "base": {"v": torch.zeros(2)}}, "'[vw]'"),
    ({"models": {"a": {"w": torch.tensor([1.0, float("nan")])}}, "base": {"w": torch.zeros(2)}}, "'a'.*'w'"),
    ({"models": {"a": {"w": torch.zeros(2)}}, "base": {"w": torch.zeros(2)}, "rank": 1, "energy": 0.5}, "exactly one"),
    ({"models": {"a": {"w": torch.zeros(2)}}, "base": {"w": torch.zeros(2)}, "lamda": 1}, "'lambda'"),
    ({"models": {"a": {"w": torch.zeros(2)}}, "base": {"w": torch.zeros(2)}, "weight": [1, 2]}, "'weight'"),
    ({"models": {"a": {"w": torch.zeros(2)}}, "base": {"w": torch.zeros(2)}, "preset": "papr"}, "'paper'"),
])  # fmt: skip
def test_calls_that_mean_nothing_are_refused(call: dict[str, object], named: str):
    with pytest.raises(MergeLabError, match=named):
        twin(**{"method": "task_arithmetic", "router": None, "heads": {}, "device": "cpu", **call})  # type: ignore[arg-type]


def test_a_base_without_a_configuration_cannot_have_a_router(zoo: Path):
    state: dict[str, Tensor] = {"w": torch.zeros(4)}
    with pytest.raises(RoutingError, match=r"configuration"):
        twin("task_arithmetic", {"reds": {"w": torch.ones(4)}}, base=state, suite=zoo, heads={}, device="cpu")


def test_an_expert_identical_to_the_base_and_two_that_are_the_same(zoo: Path):
    experts = {"reds": zoo / "base", "greens": zoo / "experts" / "greens", "blues": zoo / "experts" / "greens"}
    suite = load_suite(zoo)
    heads = {task: Head(torch.zeros(n, WIDTH)) for task, n in CLASSES.items()}
    base = dict(mergelab.load(zoo / "base"))
    state = {name: dict(mergelab.load(place)) for name, place in experts.items()}
    routed = twin("task_arithmetic", state, base=base, rank=2, suite=suite, router=None, heads=heads, device="cpu")
    both = [routed.state(row) for row in ([0, 1, 0], [0, 0, 1])]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])

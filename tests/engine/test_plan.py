"""Planning: what fits together, what comes out, what is shared between settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest_engine import state

import mergelab
from mergelab.checkpoints import load
from mergelab.engine import merge_to_memory, plan, plan_recipe
from mergelab.engine.plan import model_keys, name_models
from mergelab.errors import MethodError, RecipeError
from mergelab.recipe import Recipe


def test_every_difference_of_structure_is_named() -> None:
    bad = {**state(1), "norm": torch.ones(7)}
    with pytest.raises(MethodError, match=r"'norm' of model 'bee' has shape 7, but 4 in the base.*one size"):
        plan("ties", {"ant": state(1), "bee": bad}, state())
    many = {k: v for k, v in state(1).items() if not k.startswith("block")}
    with pytest.raises(MethodError, match=r"lacks 3 tensors .*'block.0.bias', 'block.0.weight', 'block.1.weight'"):
        plan("ties", {"ant": many}, state())
    with pytest.raises(MethodError, match=r"stored as I64, but as F32"):
        plan("ties", {"ant": {**state(1), "norm": torch.ones(4, dtype=torch.int64)}}, state())


def test_without_a_base_models_are_compared_with_the_first() -> None:
    with pytest.raises(MethodError, match=r"'bee' has 1 tensor that model 'ant' lacks: 'head'"):
        plan("linear", {"ant": state(1), "bee": {**state(2), "head": torch.ones(1)}})


def test_weights_that_cannot_be_averaged_are_refused() -> None:
    eight = {"w": torch.ones(4).to(torch.float8_e4m3fn)}
    with pytest.raises(MethodError, match=r"'w' .* stored as F8_E4M3, which cannot be averaged"):
        plan("linear", [eight, eight])


def test_tied_in_some_only_is_merged_as_a_tensor_of_its_own() -> None:
    weight = torch.randn(3, 3)
    base = {"embed": weight, "head": weight}
    tied = {"embed": weight + 1}
    tied["head"] = tied["embed"]
    untied = {"embed": weight + 1, "head": weight + 3}
    both = mergelab.merge("task_arithmetic", [tied, tied], base)
    assert both["head"] is both["embed"]
    found = mergelab.merge("task_arithmetic", [tied, untied], base)
    assert found["embed"].equal(weight + 2)
    torch.testing.assert_close(found["head"], weight + 4)


def test_names_of_models() -> None:
    assert list(name_models(["zoo:starter/mnist", "x/mnist.safetensors", state(1)])) == ["mnist", "mnist-2", "model-3"]
    assert list(name_models({"a": "x", "b": "y"})) == ["a", "b"]
    for wrong in ("zoo:starter/mnist", 3, None):
        with pytest.raises(MethodError, match="list of models"):
            name_models(wrong)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="one state dict"):
        name_models(state(1))


def test_keys_for_randomness_do_not_change_when_a_revision_is_pinned() -> None:
    assert model_keys(["hub:org/m@abc", "hub:org/m/sub", "zoo:starter/a"]) == (
        "hub:org/m",
        "hub:org/m/sub",
        "zoo:starter/a",
    )
    assert model_keys(["hub:org/m@abc/sub"]) == ("hub:org/m/sub",)
    assert model_keys(["a", "a", "b", "a"]) == ("a", "a#2", "b", "a#3")


def test_recipe_and_call_agree(zoo: dict[str, str]) -> None:
    recipe = Recipe(
        "ties",
        (zoo["ant"], {"model": zoo["bee"], "parameters": {"weight": 0.5}}),
        base_model=zoo["base"],
        parameters={"density": 0.5, "lambda": 0.7},
    )
    found = merge_to_memory(plan_recipe(recipe))
    called = mergelab.merge(
        "ties", [zoo["ant"], zoo["bee"]], zoo["base"], density=0.5, lambda_=0.7, weight={"ant": 1.0, "bee": 0.5}
    )
    assert all(found[name].equal(called[name]) for name in called)


def test_the_base_among_the_models_is_not_an_expert(zoo: dict[str, str]) -> None:
    """mergekit's files often list the base among the models."""
    recipe = Recipe("task_arithmetic", (zoo["base"], zoo["ant"]), base_model=zoo["base"])
    assert plan_recipe(recipe).names == ("ant",)
    assert plan_recipe(recipe.replace(merge_method="linear")).names == ("base", "ant")
    with pytest.raises(MethodError, match="only model"):
        plan_recipe(Recipe("ties", (zoo["base"],), base_model=zoo["base"]))


def test_a_loader_gets_the_sources_as_written() -> None:
    states = {"b": state(), "x": state(1), "y": state(2)}
    asked: list[str] = []

    def opened(source: str) -> Any:
        asked.append(source)
        return load(states[source], name=source)

    recipe = Recipe("task_arithmetic", ("x", "y"), base_model="b")
    assert plan_recipe(recipe, load=opened).names == ("x", "y")
    assert asked == ["b", "x", "y"]


@pytest.mark.parametrize(
    ("dtype", "out_dtype", "compute", "result"),
    [
        (None, None, torch.float32, torch.float16),
        ("float32", None, torch.float32, torch.float32),
        ("float64", None, torch.float64, torch.float64),
        ("float64", "bfloat16", torch.float64, torch.bfloat16),
        ("bfloat16", None, torch.float32, torch.bfloat16),
        (None, "float32", torch.float32, torch.float32),
        (torch.float64, torch.float32, torch.float64, torch.float32),
    ],
)
def test_dtypes(dtype: Any, out_dtype: Any, compute: torch.dtype, result: torch.dtype) -> None:
    base = state(dtype=torch.float16)
    made = plan("task_arithmetic", [state(1, 0.1)], base, dtype=dtype, out_dtype=out_dtype)
    assert made.compute == compute
    merged = merge_to_memory(made)
    assert {t.dtype for t in merged.values() if t.is_floating_point()} == {result}
    assert merged["position_ids"].dtype == torch.int64


def test_an_unknown_dtype_and_a_bad_seed() -> None:
    with pytest.raises(RecipeError, match="float23"):
        plan("linear", [state(1)], dtype="float23")
    for seed in (-1, 2**63, 1.5, True):
        with pytest.raises(MethodError, match="seed"):
            plan("linear", [state(1)], seed=seed)  # type: ignore[arg-type]


def test_a_moved_slider_gives_what_a_new_merge_gives() -> None:
    """`with_parameters` reuses what was read, surveyed and merged; the bits must not show it."""
    base = load(state(), name="base")
    models = {name: load(state(seed, 0.1), name=name) for seed, name in enumerate(("ant", "bee"), 1)}
    made = plan("ties", models, base, {"density": 0.3})
    merge_to_memory(made)
    for parameters in (
        {"density": 0.3, "lambda": 0.4},
        {"density": 0.6, "lambda": 0.4},
        {"density": 0.3, "lambda": 0.9},
    ):
        moved = merge_to_memory(made.with_parameters(parameters))
        fresh = mergelab.merge("ties", {name: state(seed, 0.1) for seed, name in enumerate(("ant", "bee"), 1)}, state(),
                               **{k + "_" * (k == "lambda"): v for k, v in parameters.items()})  # fmt: skip
        assert all(moved[name].equal(fresh[name]) for name in fresh)
    other = made.with_parameters({"density": 0.5}, {"bee": {"weight": 0.0}}, method="dare_linear", seed=4)
    again = mergelab.merge("dare_linear", {"ant": state(1, 0.1), "bee": state(2, 0.1)}, state(), density=0.5, seed=4,
                           weight={"ant": 1, "bee": 0})  # fmt: skip
    found = merge_to_memory(other)
    assert all(found[name].equal(again[name]) for name in again)
    with pytest.raises(MethodError, match="out of range"):
        made.with_parameters({"density": 2})


def test_a_kept_task_vector_belongs_to_its_checkpoints() -> None:
    base = load(state(), name="base")
    first = merge_to_memory(plan("task_arithmetic", [load(state(1, 0.1))], base))
    second = merge_to_memory(plan("task_arithmetic", [load(state(2, 0.1))], base))
    assert not first["norm"].equal(second["norm"])
    torch.testing.assert_close(second["norm"], state(2, 0.1)["norm"])

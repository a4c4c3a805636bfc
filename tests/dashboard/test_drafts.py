"""The form and the recipe say the same thing, both ways."""

from __future__ import annotations

import pytest

from mergelab.dashboard import drafts, recipes
from mergelab.errors import MergeLabError, MethodError, RecipeError
from mergelab.methods import registry
from mergelab.recipe import ModelEntry, Recipe

METHODS = {name: method.describe() for name, method in registry().items()}
SELECTION = {
    "title": "Starter", "zoo": "starter", "base": "zoo:starter/base", "suite": "starter",
    "experts": {name: f"zoo:starter/{name}" for name in ("mnist", "fashion", "emoji")},
    "tuned": {"task_arithmetic": {"lambda": 0.35}},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_a_draft_whose_recipe_is_valid(name):
    draft = drafts.fresh(METHODS[name], SELECTION)
    recipe = drafts.to_recipe(draft, METHODS[name], SELECTION)
    drafts.validate(recipe)
    most = METHODS[name]["models"]["max"]
    assert len(recipe.models) == min(3, most or 3)
    assert drafts.from_recipe(recipe, METHODS[name], SELECTION) == draft


def test_tuned_values_are_shown_first_and_a_touched_value_is_untuned():
    method = METHODS["task_arithmetic"]
    draft = drafts.fresh(method, SELECTION)
    assert draft["parameters"]["lambda"] == 0.35
    assert drafts.is_tuned(draft, method, SELECTION)
    for change in (
        lambda d: d["parameters"].update({"lambda": 0.4}),
        lambda d: d["models"]["mnist"].update({"on": False}),
        lambda d: d["models"]["mnist"]["parameters"].update({"weight": 0.5}),
    ):
        touched = drafts.copied(draft)
        change(touched)
        assert not drafts.is_tuned(touched, method, SELECTION)
    assert not drafts.is_tuned(drafts.fresh(METHODS["ties"], SELECTION), METHODS["ties"], SELECTION)


def test_own_weights_and_left_out_experts_reach_the_recipe():
    method = METHODS["task_arithmetic"]
    draft = drafts.fresh(method, SELECTION)
    draft["models"]["fashion"]["on"] = False
    draft["models"]["emoji"]["parameters"]["weight"] = 0.5
    recipe = drafts.to_recipe(draft, method, SELECTION)
    assert recipe.names == ("mnist", "emoji")
    assert [dict(entry.parameters) for entry in recipe.models] == [{}, {"weight": 0.5}]
    back = drafts.from_recipe(recipe, method, SELECTION)
    assert back["models"]["fashion"]["on"] is False
    assert back["models"]["emoji"]["parameters"] == {"weight": 0.5}


def test_density_for_each_expert():
    method = METHODS["ties"]
    recipe = Recipe(
        "ties",
        (ModelEntry("zoo:starter/mnist", parameters={"density": 0.5}), ModelEntry("zoo:starter/emoji")),
        base_model="zoo:starter/base",
        parameters={"density": 0.2},
    )
    if "density" not in [p["name"] for p in method["parameters"] if p["per_model"]]:
        method = METHODS["dare_ties"]
        recipe = recipe.replace(merge_method="dare_ties")
    draft = drafts.from_recipe(recipe, method, SELECTION)
    assert draft["split"] == ["density"]
    assert draft["models"]["mnist"]["parameters"]["density"] == 0.5


def test_no_expert_is_an_error_that_says_what_to_do():
    draft = drafts.fresh(METHODS["linear"], SELECTION)
    for model in draft["models"].values():
        model["on"] = False
    with pytest.raises(RecipeError, match="tick at least one"):
        drafts.to_recipe(draft, METHODS["linear"], SELECTION)


def test_a_recipe_over_other_models_is_not_forced_into_the_form():
    recipe = Recipe("linear", ("zoo:starter/mnist", "hub:org/name"))
    assert drafts.from_recipe(recipe, METHODS["linear"], SELECTION) is None
    selection = drafts.selection_of(recipe)
    assert selection["experts"] == {"mnist": "zoo:starter/mnist", "name": "hub:org/name"}
    assert drafts.from_recipe(recipe, METHODS["linear"], selection) is not None


def test_switching_the_method_keeps_who_takes_part():
    old = drafts.fresh(METHODS["task_arithmetic"], SELECTION)
    old["models"]["mnist"]["on"] = False
    new = drafts.fresh(METHODS["ties"], SELECTION, old)
    assert [name for name, model in new["models"].items() if model["on"]] == ["fashion", "emoji"]


def test_validation_names_what_is_wrong():
    with pytest.raises(MethodError, match="lambda"):
        drafts.validate(Recipe("task_arithmetic", ("a",), base_model="b", parameters={"lambda": 99.0}))
    with pytest.raises(MethodError, match="ties"):
        drafts.validate(Recipe("tise", ("a",)))


def test_pasted_text_may_be_yaml_or_json():
    recipe = Recipe("linear", ("zoo:starter/mnist",))
    assert recipes.read(recipe.to_yaml()) == recipe
    assert recipes.read("\n" + recipe.to_json()) == recipe
    with pytest.raises(MergeLabError):
        recipes.read("{not json")


def test_the_python_form_runs_the_same_merge(monkeypatch):
    import mergelab

    called = {}
    monkeypatch.setattr(
        mergelab, "merge", lambda *args, **kwargs: called.update(args=args, kwargs=kwargs), raising=False
    )
    recipe = Recipe(
        "task_arithmetic",
        (ModelEntry("zoo:starter/mnist"), ModelEntry("zoo:starter/emoji", parameters={"weight": 0.5})),
        base_model="zoo:starter/base",
        parameters={"lambda": 0.3},
        seed=7,
    )
    exec(recipes.python(recipe), {})
    assert called["args"] == ("task_arithmetic", {"mnist": "zoo:starter/mnist", "emoji": "zoo:starter/emoji"})
    assert called["kwargs"] == {"base": "zoo:starter/base", "seed": 7, "lambda_": 0.3, "weight": [1.0, 0.5]}


def test_a_parameter_set_for_each_expert_starts_from_the_shared_value():
    draft = drafts.fresh(METHODS["dare_ties"], SELECTION)
    draft["parameters"]["density"] = 0.5
    split = drafts.separated(draft, ["density"])
    recipe = drafts.to_recipe(split, METHODS["dare_ties"], SELECTION)
    assert [entry.parameters["density"] for entry in recipe.models] == [0.5] * 3 and "density" not in recipe.parameters
    again = drafts.separated(split, [])
    assert drafts.to_recipe(again, METHODS["dare_ties"], SELECTION).parameters["density"] == 0.5

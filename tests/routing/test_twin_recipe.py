"""Routed recipes: presets, what overrides them, forms, hashes, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mergelab import Recipe
from mergelab.errors import RecipeError
from mergelab.routing.presets import CLUSTER_ON, HEADS, MODES, PRESETS
from mergelab.routing.recipe import TwinRecipe

PLAIN = {
    "merge_method": "ties", "base_model": "b", "models": [{"model": "x/one"}, {"model": "x/two", "name": "second"}],
    "parameters": {"lambda": 0.5},
}  # fmt: skip


def made(**sections: object) -> TwinRecipe:
    return TwinRecipe.from_dict({**PLAIN, **sections})


def test_an_ordinary_recipe_is_a_routed_one_with_the_default_preset():
    recipe = made()
    assert recipe.preset == "default" and recipe.exclusive.rank_ratio == 0.1
    assert recipe.shared == Recipe.from_dict(PLAIN)
    assert list(recipe.experts) == ["one", "second"]
    assert recipe.inference.head == "router_argmax" and recipe.inference.mode == "auto"


def test_presets_are_what_the_paper_and_its_code_say():
    """Section 8 of the specification, value by value."""
    assert set(PRESETS) == {"default", "paper", "authors_code", "rank1"}
    paper, code, rank1 = (made(preset=name) for name in ("paper", "authors_code", "rank1"))
    assert (paper.exclusive.rank_ratio, paper.exclusive.biases) == (0.1, True)
    assert (paper.router.epochs, paper.router.per_task, paper.router.standardise) == (10, 1000, False)
    assert paper.router.balanced and paper.router.patience is None
    assert (paper.gate.temperature, paper.gate.top_k, paper.gate.threshold) == (1.0, None, None)
    assert (code.router.epochs, code.router.batch, code.router.per_task, code.router.balanced) == (
        50,
        1024,
        5500,
        False,
    )
    assert (code.exclusive.rank_ratio, code.exclusive.biases) == (0.1, False)
    assert code.inference.head == "oracle"
    assert (rank1.exclusive.rank, rank1.exclusive.rank_ratio) == (1, None)
    assert all(len(preset.text) > 40 for preset in PRESETS.values())
    assert "bias" in PRESETS["authors_code"].differs and "head" in PRESETS["paper"].differs


@pytest.mark.parametrize(("exclusive", "expected"), [
    ({"rank": 4}, ("svd", 4, None, None, None)),
    ({"energy": 0.9}, ("svd", None, None, 0.9, None)),
    ({"rank_ratio": 0.5}, ("svd", None, 0.5, None, None)),
    ({"kind": "magnitude", "density": 0.1}, ("magnitude", None, None, None, 0.1)),
    ({"kind": "none"}, ("none", None, None, None, None)),
    ({"kind": "svd"}, ("svd", None, 0.1, None, None)),
    ({"embeddings": "dense"}, ("svd", None, 0.1, None, None)),
    ({"rank": 4, "rank_ratio": None}, ("svd", 4, None, None, None)),
])  # fmt: skip
def test_a_size_that_is_given_puts_the_presets_out_of_force(exclusive: dict[str, object], expected: tuple[object, ...]):
    found = made(preset="paper", exclusive=exclusive).exclusive
    assert (found.kind, found.rank, found.rank_ratio, found.energy, found.density) == expected


def test_given_words_win_over_the_preset_and_the_rest_is_the_presets():
    recipe = made(preset="authors_code", router={"epochs": 3, "top_k": 2}, exclusive={"biases": True})
    assert recipe.router.epochs == 3 and recipe.router.batch == 1024
    assert recipe.gate.top_k == 2 and recipe.exclusive.biases is True


def test_seeds_are_the_recipes_unless_given():
    recipe = made(seed=7)
    assert recipe.router.seed == recipe.exclusive.seed == 7
    assert made(seed=7, router={"seed": 1}).router.seed == 1
    assert made(seed=2**40 + 3).router.seed == 3


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("sections", [
    {}, {"exclusive": {"rank": 3, "dtype": "float32"}, "router": {"patience": None, "threshold": 0.5, "top_k": 1}},
    {"exclusive": {"kind": "bernoulli", "density": 0.2, "biases": True}, "inference": {"mode": "group"}},
    {"router": {"kind": "knn", "per_task": None, "standardise": True}, "inference": {"early_layer": 0}, "title": "T"},
])  # fmt: skip
def test_every_form_gives_the_same_recipe_back(preset: str, sections: dict[str, object]):
    recipe = made(preset=preset, **sections)
    for again in (
        TwinRecipe.from_dict(recipe.to_dict()),
        TwinRecipe.from_yaml(recipe.to_yaml()),
        TwinRecipe.from_json(json.dumps(recipe.to_dict())),
    ):
        assert again == recipe and again.hash == recipe.hash


def test_the_hash_knows_what_determines_the_routed_model():
    recipe = made(exclusive={"rank": 2})
    same = [made(exclusive={"rank": 2}, inference={"mode": "group", "head": "oracle"}, title="x", suite="starter"),
            made(exclusive={"rank": 2}, router={"rate": 5e-4}),
            made(preset="rank1", exclusive={"rank": 2})]  # fmt: skip
    other = [
        made(exclusive={"rank": 3}), made(exclusive={"rank": 2, "biases": False}), made(exclusive={"rank": 2}, seed=1),
        made(exclusive={"rank": 2}, router={"epochs": 11}), made(exclusive={"rank": 2}, router={"temperature": 2}),
        made(exclusive={"rank": 2}, inference={"early_layer": 3}),
        made(exclusive={"rank": 2}, parameters={"lambda": 1}),
        made(exclusive={"rank": 2}, models=[{"model": "x/one"}, {"model": "x/two", "name": "third"}]),
    ]  # fmt: skip
    assert all(found.hash == recipe.hash for found in same)
    assert len({found.hash for found in other} | {recipe.hash}) == len(other) + 1
    assert made(exclusive={"energy": 1}).hash == made(exclusive={"energy": 1.0}).hash


def test_changes_in_sections_follow_the_same_rules():
    recipe = made(exclusive={"kind": "magnitude", "density": 0.1})
    changed = recipe.with_sections(exclusive={"rank": 2}, router={"kind": "knn"}, inference={"mode": "adapter"})
    assert (changed.exclusive.kind, changed.exclusive.rank, changed.exclusive.density) == ("svd", 2, None)
    assert changed.router.kind == "knn" and changed.inference.mode == "adapter"


def test_the_base_among_the_models_is_no_expert():
    assert list(made(models=["b", "x/one"]).experts) == ["one"]
    with pytest.raises(RecipeError, match="expert"):
        made(models=["b"])


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "a section misspelt": ({"exclusiv": {"rank": 1}}, "Did you mean 'exclusive'"),
    "a word misspelt": ({"exclusive": {"rnk": 1}}, "exclusive.*Did you mean 'rank'"),
    "a router's word misspelt": ({"router": {"epoch": 1}}, "router.*'epochs'"),
    "a gate's word misspelt": ({"router": {"temprature": 1}}, "router.*'temperature'"),
    "an unknown preset": ({"preset": "papr"}, "'paper'"),
    "a preset that is a list": ({"preset": ["paper"]}, "preset"),
    "a section that is a list": ({"router": [1]}, "'router' must be a mapping"),
    "two sizes": ({"exclusive": {"rank": 1, "energy": 0.5}}, "exclusive: .*exactly one"),
    "a negative rank": ({"exclusive": {"rank": -1}}, "rank"),
    "a ratio above 1": ({"exclusive": {"rank_ratio": 10}}, "rank_ratio"),
    "a rank that is a list": ({"exclusive": {"rank": [1]}}, "rank"),
    "an unknown kind of router": ({"router": {"kind": "mlpp"}}, "'mlp'"),
    "no epochs": ({"router": {"epochs": 0}}, "epochs"),
    "temperature 0": ({"router": {"temperature": 0}}, "temperature"),
    "a threshold above 1": ({"router": {"threshold": 1.5}}, "threshold"),
    "top 0": ({"router": {"top_k": 0}}, "top_k"),
    "an unknown mode": ({"inference": {"mode": "adaptor"}}, "inference: .*'adapter'"),
    "an unknown head": ({"inference": {"head": "oracl"}}, "'oracle'"),
    "no groups": ({"inference": {"groups_per_bin": 0}}, "groups_per_bin"),
    "a layer before the first": ({"inference": {"early_layer": -1}}, "early_layer"),
    "an unknown key of the recipe": ({"merge_methd": "ties"}, "merge_method"),
    "two models of one name": ({"models": [{"model": "p", "name": "t"}, {"model": "q", "name": "t"}]}, "'t'"),
    "no models": ({"models": []}, "models"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str):
    changes, named = WRONG[case]
    with pytest.raises(RecipeError, match=named) as caught:
        made(**changes)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [
    "a: &x [1]\nb: *x", "exclusive: {rank: 1, rank: 2}\nmerge_method: ties", "!!python/object/apply:os.system ['x']",
    "x" * 70_000, "[" * 100, "router: {rate: .nan}\nmerge_method: ties\nmodels: [a]", "just words", "", "\x00",
])  # fmt: skip
def test_hostile_texts_are_refused(text: str):
    with pytest.raises(RecipeError):
        TwinRecipe.from_yaml(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, {"a": 1}, [1], "1", None, True])
@pytest.mark.parametrize("place", [("exclusive", "energy"), ("router", "rate"), ("router", "temperature"),
                                   ("router", "seed"), ("inference", "groups_per_bin")])  # fmt: skip
def test_no_value_gets_through_that_is_none(place: tuple[str, str], value: object):
    section, word = place
    if value is None and word == "energy":
        assert made(exclusive={"energy": None}).exclusive.rank_ratio == 0.1
        return
    with pytest.raises(RecipeError):
        made(**{section: {word: value}})


def test_a_file_is_named_in_what_is_wrong_with_it_and_may_be_overridden(tmp_path: Path):
    path = tmp_path / "twin.yaml"
    path.write_text(made(exclusive={"rank": 5}).to_yaml().replace("rank: 5", "rank: -5"))
    with pytest.raises(RecipeError, match=r"^twin\.yaml: exclusive"):
        TwinRecipe.read(path)
    path.write_text("merge_method: ties\nmodels: [p]\npreset: paper\nexclusive: {rank: 5}\nrouter: {epochs: 2}\n")
    found = TwinRecipe.read(path, preset="rank1", seed=4, exclusive={"energy": 0.5})
    assert (found.preset, found.shared.seed, found.exclusive.energy, found.exclusive.rank) == ("rank1", 4, 0.5, None)
    assert found.router.epochs == 2 and found.router.standardise
    with pytest.raises(RecipeError, match="cannot be read"):
        TwinRecipe.read(tmp_path / "none.yaml")


def test_the_words_of_inference_are_those_of_the_modes_and_heads():
    from mergelab.routing import evaluate, groups, modes

    assert set(MODES) == {"auto", *modes.MODES}
    assert set(HEADS) == set(evaluate.HEADS)
    assert set(CLUSTER_ON) == {"weights", "logits"} and hasattr(groups, "group")


def test_the_ready_recipe_carries_the_coefficient_that_validation_chose(root: Path):
    tuned = json.loads((root / "assets/zoo/starter/zoo.json").read_text())["tuned"]["task_arithmetic"]
    recipe = TwinRecipe.read(root / "assets/recipes/twin.yaml")
    assert dict(recipe.shared.parameters) == tuned
    assert len(recipe.experts) == 8 and recipe.preset == "default"

"""The recipe: forms that round-trip, names, hash, and errors that name the key."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergelab.errors import MergeLabError, RecipeError
from mergelab.methods import get
from mergelab.recipe import DTYPES, Init, ModelEntry, Recipe, readable_name
from mergelab.recipe.recipe import FROM_SUITE

TIES = """\
# a comment
merge_method: ties
base_model: zoo:starter/base
models:
  - model: zoo:starter/mnist
    parameters:
      weight: 1
  - zoo:starter/fashion
parameters:
  density: 0.2
  lambda: 1e-1
dtype: float32
out_dtype: bfloat16
seed: 7
suite: starter
title: Two experts
"""

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
scalars = st.one_of(
    st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), words
)
parameters = st.dictionaries(words, scalars, max_size=4)

inits = st.none() | st.one_of(
    words.map(Init),
    words.map(lambda word: Init(model=word)),
    st.tuples(words.filter(lambda word: word not in ("base", "average")), parameters).map(lambda pair: Init(*pair)),
)


@st.composite
def recipes(draw: Any) -> Recipe:
    names = draw(st.lists(words, min_size=1, max_size=4, unique=True))
    named = draw(st.booleans())
    entries = tuple(ModelEntry(draw(words), name if named else None, draw(parameters)) for name in names)
    return Recipe(
        draw(words),
        entries,
        base_model=draw(st.none() | words),
        parameters=draw(parameters),
        dtype=draw(st.none() | st.sampled_from(DTYPES)),
        out_dtype=draw(st.none() | st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 2**63 - 1)),
        suite=draw(st.none() | words),
        title=draw(st.none() | words),
        init=draw(inits),
        statistics=draw(st.none() | words),
        learned=draw(st.none() | words),
    )


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_every_form_round_trips(recipe: Recipe) -> None:
    for again in (
        Recipe.from_dict(recipe.to_dict()),
        Recipe.from_yaml(recipe.to_yaml()),
        Recipe.from_yaml(recipe.to_yaml().encode()),
        Recipe.from_json(recipe.to_json()),
        pickle.loads(pickle.dumps(recipe)),
    ):
        assert again == recipe
        assert hash(again) == hash(recipe)
        assert again.hash == recipe.hash
        assert again.to_yaml() == recipe.to_yaml()
    assert len(set(recipe.names)) == len(recipe.models)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_text_is_a_recipe_or_a_clear_error(text: str | bytes) -> None:
    for read in (Recipe.from_yaml, Recipe.from_json):
        with pytest.raises(RecipeError):
            read(text)


def test_what_the_yaml_says() -> None:
    recipe = Recipe.from_yaml(TIES)
    assert recipe.merge_method == "ties"
    assert recipe.names == ("mnist", "fashion")
    assert recipe.models[0].parameters == {"weight": 1}
    assert recipe.parameters == {"density": 0.2, "lambda": 0.1}
    assert (recipe.dtype, recipe.out_dtype, recipe.seed, recipe.suite) == ("float32", "bfloat16", 7, "starter")


def test_the_yaml_is_for_people() -> None:
    recipe = Recipe("ties", ("zoo:starter/mnist",), base_model="zoo:starter/base", parameters={"lambda": 1e-5})
    assert recipe.to_yaml() == (
        "merge_method: ties\nbase_model: zoo:starter/base\nmodels:\n  - model: zoo:starter/mnist\n"
        "parameters:\n  lambda: 1.0e-05\nseed: 0\n"
    )


# ---- the hash ----


def test_hash_ignores_what_does_not_change_the_weights() -> None:
    recipe = Recipe.from_yaml(TIES)
    shuffled = Recipe.from_dict(dict(reversed(recipe.to_dict().items())))
    assert shuffled.hash == recipe.hash
    assert recipe.replace(title="other", suite=None).hash == recipe.hash
    renamed = tuple(ModelEntry(entry.model, f"n{i}", entry.parameters) for i, entry in enumerate(recipe.models))
    assert recipe.replace(models=renamed).hash == recipe.hash
    assert recipe.replace(parameters={"lambda": 0.1, "density": 0.2}).hash == recipe.hash
    assert recipe.replace(parameters={"lambda": 1}).hash == recipe.replace(parameters={"lambda": 1.0}).hash


@pytest.mark.parametrize(
    "change",
    [
        {"merge_method": "linear"},
        {"base_model": None},
        {"base_model": "zoo:starter/base2"},
        {"models": ("zoo:starter/mnist", "zoo:starter/fashion")},
        {"models": ("zoo:starter/fashion", {"model": "zoo:starter/mnist", "parameters": {"weight": 1}})},
        {"parameters": {"density": 0.2, "lambda": 0.2}},
        {"parameters": {"density": 0.2, "lambda": 0.1, "normalize": True}},
        {"dtype": "float64"},
        {"out_dtype": None},
        {"seed": 8},
    ],
    ids=str,
)
def test_hash_depends_on_what_does(change: dict[str, Any]) -> None:
    recipe = Recipe.from_yaml(TIES)
    assert recipe.replace(**change).hash != recipe.hash


def test_true_is_not_one() -> None:
    one, true = (Recipe("linear", ("a",), parameters={"normalize": value}) for value in (1, True))
    assert one.hash != true.hash


def test_hashes_of_recipes_without_the_later_keys_stay() -> None:
    """Computed from the text of the essence before init, statistics and learned were keys."""
    recipe = Recipe.from_yaml(TIES)
    essence = {
        "merge_method": "ties", "base_model": "zoo:starter/base",
        "models": [["zoo:starter/mnist", {"weight": 1.0}], ["zoo:starter/fashion", {}]],
        "parameters": {"density": 0.2, "lambda": 0.1}, "dtype": "float32", "out_dtype": "bfloat16", "seed": 7,
    }  # fmt: skip
    assert recipe.hash == hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()


def test_init_statistics_and_learned_are_in_the_hash() -> None:
    recipe = Recipe("mats", ("a", "b"))
    init = {"merge_method": "ties", "parameters": {"lambda": 1}}
    changed = [
        {"init": "ties"}, {"init": "base"}, {"init": init}, {"init": {"model": "ties"}}, {"statistics": "ties"},
        {"learned": "ties"}, {"statistics": "ties", "init": "ties"},
    ]  # fmt: skip
    hashes = {Recipe.from_dict({**recipe.to_dict(), **change}).hash for change in changed}
    assert len(hashes | {recipe.hash}) == len(changed) + 1
    one = {"merge_method": "ties", "parameters": {"lambda": 1.0}}
    assert recipe.replace(init=Init.of(one)).hash == recipe.replace(init=Init.of(init)).hash


def test_the_suite_and_the_tasks_are_in_the_hash_of_methods_that_look_at_pictures() -> None:
    from mergelab.methods import registry

    assert set(FROM_SUITE) == {m.name for m in registry().values() if m.learns or m.collects}
    entries = (ModelEntry("a", "mnist"), ModelEntry("b", "emoji"))
    swapped = (ModelEntry("a", "emoji"), ModelEntry("b", "mnist"))
    for name, stand_in in FROM_SUITE.items():
        recipe = Recipe(name, entries, suite="starter")
        others = [recipe.replace(suite="other"), recipe.replace(suite=None), recipe.replace(models=swapped)]
        assert len({other.hash for other in others} | {recipe.hash}) == 4
        assert recipe.replace(title="t").hash == recipe.hash == Recipe.from_yaml(recipe.to_yaml()).hash
        found = recipe.replace(**{stand_in: "there"})  # then no picture is looked at
        assert found.hash == found.replace(suite="other", models=swapped).hash != recipe.hash
    for name in registry().keys() - FROM_SUITE.keys():
        recipe = Recipe(name, entries, suite="starter")
        assert recipe.hash == recipe.replace(suite=None, models=swapped).hash


def test_an_init_in_yaml() -> None:
    recipe = Recipe.from_yaml(
        "merge_method: mats\nmodels: [a, b]\ninit:\n  merge_method: task_arithmetic\n  parameters:\n    lambda: 0.15\n"
        "statistics: statistics/starter\n"
    )
    assert recipe.init == Init("task_arithmetic", {"lambda": 0.15}) and recipe.statistics == "statistics/starter"
    assert recipe.to_yaml() == (
        "merge_method: mats\nmodels:\n  - model: a\n  - model: b\ninit:\n  merge_method: task_arithmetic\n"
        "  parameters:\n    lambda: 0.15\nstatistics: statistics/starter\nseed: 0\n"
    )
    short = Recipe.from_yaml("merge_method: mats\nmodels: [a]\ninit: {merge_method: ties}\n")
    assert "init: ties\n" in short.to_yaml()  # a word where that says everything


# ---- names ----


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("zoo:starter/mnist", "mnist"),
        ("/data/models/mnist.safetensors", "mnist"),
        ("../out/my-model/", "my-model"),
        ("C:\\models\\x", "x"),
        ("hub:org/name", "name"),
        ("hub:org/name@0123abcd", "name"),
        ("hub:org/name@main/sub", "sub"),
        ("./", "model"),
    ],
)
def test_readable_names(source: str, name: str) -> None:
    assert readable_name(source) == name


def test_names_are_unique() -> None:
    recipe = Recipe("linear", ("a/x", "b/x", {"model": "c", "name": "x-2"}, "d/x"))
    assert recipe.names == ("x", "x-3", "x-2", "x-4")
    with pytest.raises(RecipeError, match="Two models have the name 'x'"):
        Recipe("linear", ({"model": "a", "name": "x"}, {"model": "b", "name": "x"}))


# ---- errors ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_metod: ties", "'merge_metod'.*Did you mean 'merge_method'"),
        ("models: [a]", "no 'merge_method'"),
        ("merge_method: ties", "no 'models'"),
        ("merge_method: ties\nmodels: []", "'models' is empty"),
        ("merge_method: ties\nmodels: zoo:starter/mnist", "must be a list"),
        ("merge_method: ties\nmodels: [3]", r"models\[0\]"),
        ("merge_method: ties\nmodels: [{name: a}]", r"models\[0\] has no 'model'"),
        ("merge_method: ties\nmodels: [{model: a, weight: 1}]", "'weight' in models.*under 'parameters'"),
        ("merge_method: ties\nmodels: [{model: {path: a}}]", "not yet supported"),
        ("merge_method: ties\nmodels: [a]\nslices: []", "'slices' is not yet supported"),
        ("merge_method: ties\nmodels: [a]\ntokenizer_source: union", "'tokenizer_source' is not yet supported"),
        ("merge_method: ties\nmodels: [a]\nparameters: {t: [0, 1]}", "'t'.*lists.*not yet supported"),
        ("merge_method: ties\nmodels: [a]\nparameters: {t: {value: 1, filter: x}}", "'t'.*not yet supported"),
        ("merge_method: ties\nmodels: [a]\nparameters: {t: null}", "'t'.*must be a number"),
        ("merge_method: ties\nmodels: [a]\nparameters: {t: .nan}", "'t'.*finite"),
        ("merge_method: ties\nmodels: [a]\nparameters: {t: .inf}", "'t'.*finite"),
        ("merge_method: ties\nmodels: [a]\nparameters: 3", "'parameters' must be a mapping"),
        ("merge_method: ties\nmodels: [a]\nparameters: {1: 2}", "must be a non-empty text"),
        ("merge_method: ties\nmodels: [a]\ndtype: float23", "'dtype'.*Did you mean 'float32'"),
        ("merge_method: ties\nmodels: [a]\nseed: -1", "'seed' must be a whole number"),
        ("merge_method: ties\nmodels: [a]\nseed: 1.5", "'seed' must be a whole number"),
        ("merge_method: ties\nmodels: [a]\ntitle: [x]", "'title' must be a non-empty text"),
        ("merge_method: [ties]\nmodels: [a]", "'merge_method' must be a non-empty text"),
        ("merge_method: ties\nmerge_method: linear", "Line 2.*repeats the key 'merge_method'"),
        ("- a\n- b", "A recipe is a mapping"),
        ("just words", "A recipe is a mapping"),
        ("", "A recipe is a mapping"),
        ("merge_method: ties\nmodels: [a", "not valid YAML at line"),
        ("merge_method: !!python/name:os.system x", "not valid YAML at line 1"),
        ("a: &x [1]\nb: *x", "anchors or aliases"),
        ("[" * 60_000, "levels deep"),
        ("x" * 70_000, "at most 64 KB"),
        ("merge_method: ties\nmodels: [a]\nparameters: {t: 1" + "0" * 500 + "}", "finite number, not a huge number"),
    ],
    ids=lambda value: value[:40],
)
def test_malformed_recipes(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"merge_method": "ties", "models": ["a"], "seed": NaN}', "NaN"),
        ('{"merge_method": "ties", "merge_method": "x"}', "repeats the key 'merge_method'"),
        ('{"merge_method": ', "not valid JSON at line 1"),
        ("[" * 50_000, "not valid JSON"),
        ("[]", "A recipe is a mapping"),
    ],
)
def test_malformed_json(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json(text)


def test_files(tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(TIES)
    (tmp_path / "r.yaml").write_text(TIES, encoding="utf-8")
    (tmp_path / "r.json").write_text(recipe.to_json(), encoding="utf-8")
    (tmp_path / "bom.yml").write_bytes(b"\xef\xbb\xbf" + TIES.encode())
    for name in ("r.yaml", "r.json", "bom.yml"):
        assert Recipe.read(tmp_path / name) == recipe
    with pytest.raises(RecipeError, match=r"none\.yaml cannot be read"):
        Recipe.read(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.read(tmp_path)
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"bad\.yaml: .*UTF-8"):
        Recipe.read(tmp_path / "bad.yaml")
    (tmp_path / "typo.yaml").write_text("merge_metod: x")
    with pytest.raises(RecipeError, match=r"typo\.yaml: Unknown key"):
        Recipe.read(tmp_path / "typo.yaml")


def test_dates_and_yes_stay_what_they_were_written_as() -> None:
    recipe = Recipe.from_yaml("merge_method: ties\nmodels: ['yes', '1e5', '2020-01-01']\ntitle: 2020-01-01")
    assert [entry.model for entry in recipe.models] == ["yes", "1e5", "2020-01-01"]
    assert recipe.title == "2020-01-01"
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("init", "sentence"),
    [
        ({"merge_metod": "ties"}, "Unknown key 'merge_metod' in 'init'. Did you mean 'merge_method'?"),
        ({}, "'init' must have either 'merge_method' (another merge of these models) or 'model'."),
        (
            {"merge_method": "ties", "model": "out"},
            "'init' must have either 'merge_method' (another merge of these models) or 'model'.",
        ),
        ({"merge_method": "base", "parameters": {"lambda": 1}}, "'init' 'base' has no parameters; leave them out."),
        (["ties"], "'init' must be a method's name, 'base', 'average' or a mapping with 'merge_method', not a list."),
        ("", "'init.merge_method' must be a non-empty text, not ''."),
        ({"merge_method": 3}, "'init.merge_method' must be a non-empty text, not 3."),
        (
            {"merge_method": "ties", "parameters": [1]},
            "init.parameters must be a mapping of names to values, not a list.",
        ),
        (
            {"merge_method": "ties", "parameters": {"density": float("nan")}},
            "Parameter 'density' of 'init' must be a finite number, not nan.",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_inits_that_are_none(init: Any, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({"merge_method": "mats", "models": ["a", "b"], "init": init})
    assert str(caught.value) == sentence


def test_a_mistyped_key_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match=r"Unknown key 'statistic' in the recipe\. Did you mean 'statistics'"):
        Recipe.from_dict({"merge_method": "mats", "models": ["a"], "statistic": "x"})
    with pytest.raises(RecipeError, match="'statistics' must be a non-empty text, not 3"):
        Recipe.from_dict({"merge_method": "mats", "models": ["a"], "statistics": 3})


# ---- what ships ----


def test_ready_recipes(root: Path) -> None:
    """Every method has one, by its name, on the starter zoo; its method and parameters are known and in range."""
    from mergelab.methods import registry

    paths = (root / "assets" / "recipes").glob("*.yaml")
    found = {path.stem: Recipe.read(path) for path in paths if path.stem in registry()}  # others are routed
    assert found.keys() >= registry().keys()
    for name, recipe in found.items():
        try:
            method = get(recipe.merge_method)
            values = method.resolve(recipe.parameters, recipe.names)
            method.check_models(len(recipe.models), recipe.base_model is not None, values)
        except MergeLabError as error:
            pytest.fail(f"{name}: {error}")
        assert recipe.suite == "starter"
        assert recipe.title
        assert all(entry.model.startswith("zoo:starter/") for entry in recipe.models)

"""A recipe from the page says which suite it was on, and results on two suites are two results."""

from __future__ import annotations

import pytest

from mergelab.dashboard import drafts, recipes, work
from mergelab.methods import registry
from mergelab.recipe import Recipe

METHODS = {name: method.describe() for name, method in registry().items()}
LOCAL = {"title": "Mine", "zoo": None, "base": "/models/base", "suite": "starter", "tuned": {},
         "experts": {name: f"/models/{name}" for name in ("mnist", "emoji")}}  # fmt: skip


def of(selection, name="adamerging") -> Recipe:
    return drafts.to_recipe(drafts.fresh(METHODS[name], selection), METHODS[name], selection)


def test_models_of_this_machine_keep_their_suite() -> None:
    recipe = of(LOCAL)
    assert recipe.suite == "starter"
    assert drafts.selection_of(recipe)["suite"] == "starter"
    assert of({**LOCAL, "suite": None}).suite is None
    assert of({**LOCAL, "zoo": "mine"}).suite == "mine"


@pytest.mark.parametrize("name", ["adamerging", "regmean_pp", "ties"])
def test_results_on_two_suites_are_two(name) -> None:
    first, second = of(LOCAL, name), of({**LOCAL, "suite": "/tasks"}, name)
    assert work.id_of(first, 40) != work.id_of(second, 40)
    assert work.id_of(first, 40) != work.id_of(first, None)
    assert (first.hash == second.hash) == (name == "ties")


def test_the_command_names_a_zoo_only_where_the_experts_are_its(monkeypatch) -> None:
    from mergelab.runs import matched

    monkeypatch.setattr(matched, "command", lambda name, zoo: f"stats of {zoo}")
    name = "statistics-0123456789ab"
    local = of(LOCAL, "regmean").replace(statistics=name)
    assert recipes.forms(local)["shell"].startswith("stats of None\n")
    own = local.replace(models=("zoo:starter/mnist", "zoo:starter/emoji"))
    assert recipes.forms(own)["shell"].startswith("stats of starter\n")

"""Methods that need data on the form: which are offered, their data need, what they start from, their recipes."""

from __future__ import annotations

import pytest
from dashboard.fake_lab import TASKS

from mergelab.dashboard import controls, data_views, drafts, init_form, recipes
from mergelab.dashboard.lab import Lab
from mergelab.dashboard.settings import Settings
from mergelab.errors import MergeLabError
from mergelab.methods import registry
from mergelab.recipe import Recipe

SELECTION = {
    "title": "Starter", "zoo": "starter", "base": "zoo:starter/base", "suite": "starter",
    "experts": {name: f"zoo:starter/{name}" for name in TASKS}, "tuned": {"task_arithmetic": {"lambda": 0.15}},
}  # fmt: skip
METHODS = Lab(Settings()).methods()
NAME = "statistics-0123456789ab"


class Page:
    methods = METHODS


def test_every_method_is_offered() -> None:
    assert METHODS.keys() == registry().keys()
    assert {"mats", "fisher", "regmean", "regmean_pp", "adamerging", "ties"} <= METHODS.keys()


@pytest.mark.parametrize(
    ("name", "words"),
    [("ties", "needs no data"), ("regmean", "unlabelled"), ("mats", "labelled"), ("adamerging", "unlabelled")],
)
def test_the_badge_says_which_data(name: str, words: str) -> None:
    text = controls.badges(METHODS[name])
    assert words in text and ("unlabelled" in text) == (words == "unlabelled")
    assert "transductive" not in text
    assert "transductive" not in data_views.lead(METHODS[name])
    assert "transductive" in data_views.lead(METHODS[name], transductive=True)


def test_mats_starts_from_tuned_task_arithmetic_and_the_others_from_the_average() -> None:
    fresh = drafts.fresh(METHODS["mats"], SELECTION)
    recipe = drafts.to_recipe(fresh, METHODS["mats"], SELECTION)
    assert recipe.init is not None and recipe.init.to_plain() == {
        "merge_method": "task_arithmetic", "parameters": {"lambda": 0.15},
    }  # fmt: skip
    for name in ("fisher", "regmean"):
        assert drafts.to_recipe(drafts.fresh(METHODS[name], SELECTION), METHODS[name], SELECTION).init is None
    assert "init" not in drafts.fresh(METHODS["ties"], SELECTION)


def test_statistics_at_hand_stay_when_another_method_is_chosen() -> None:
    old = {**drafts.fresh(METHODS["mats"], SELECTION), "statistics": NAME, "init": "base"}
    new = drafts.fresh(METHODS["regmean"], SELECTION, old)
    assert new["statistics"] == NAME and new["init"] == "base"
    assert drafts.to_recipe(new, METHODS["regmean"], SELECTION).statistics == NAME
    for name in ("ties", "adamerging", "regmean_pp"):  # the data of the last two belongs to one recipe alone
        assert "statistics" not in drafts.fresh(METHODS[name], SELECTION, old)


@pytest.mark.parametrize("init", [None, "base", {"merge_method": "ties", "parameters": {"lambda": 0.6}}, "fisher"])
def test_a_recipe_comes_back_from_its_draft(init) -> None:
    first = drafts.fresh(METHODS["mats"], SELECTION) | {"init": init, "statistics": NAME}
    recipe = drafts.to_recipe(first, METHODS["mats"], SELECTION)
    back = drafts.from_recipe(recipe, METHODS["mats"], SELECTION)
    assert back is not None and drafts.to_recipe(back, METHODS["mats"], SELECTION).hash == recipe.hash


def test_starts_are_offered_with_their_main_coefficient() -> None:
    names = [name for _, name in init_form.choices(Page, "mats", 4)]
    assert names[:2] == ["average", "base"] and {"ties", "task_arithmetic", "fisher", "regmean"} <= set(names)
    assert not {"mats", "adamerging", "slerp"} & set(names), "itself, what learns, and what takes two models only"
    assert "slerp" in [name for _, name in init_form.choices(Page, "mats", 2)]
    assert init_form.start_of(Page, "average", 0.5, SELECTION) is None
    assert init_form.start_of(Page, "base", None, SELECTION) == "base"
    tuned = {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.15}}
    assert init_form.start_of(Page, "task_arithmetic", None, SELECTION) == tuned
    assert init_form.start_of(Page, "ties", 0.7, SELECTION)["parameters"] == {"lambda": 0.7}


def test_many_parameters_stand_behind_a_click_and_none_is_lost() -> None:
    for name, method in METHODS.items():
        form = drafts.fresh(method, SELECTION)
        first, more = init_form.arranged(method, form)
        hidden = {"weight", *(init_form.ON_PANEL if name in ("adamerging", "regmean_pp") else ())}
        assert {p["name"] for p in [*first, *more]} == {p["name"] for p in method["parameters"]} - hidden, name
        assert not more if method["kind"] == "tensor" else len(first) <= 5
    first, more = init_form.arranged(METHODS["mats"], drafts.fresh(METHODS["mats"], SELECTION))
    assert {"objective", "iterations"} <= {p["name"] for p in first} and "rtol" in {p["name"] for p in more}


def test_a_draft_that_validation_chose_is_marked_until_it_changes() -> None:
    draft = drafts.fresh(METHODS["mats"], SELECTION) | {"statistics": NAME}
    assert not drafts.is_tuned(draft, METHODS["mats"], SELECTION)
    chosen = drafts.on_validation(draft)
    assert drafts.is_tuned(chosen, METHODS["mats"], SELECTION)
    moved = drafts.copied(chosen)
    moved["parameters"]["iterations"] = 33
    assert not drafts.is_tuned(moved, METHODS["mats"], SELECTION)


def test_a_public_page_takes_kept_sets_and_no_folders() -> None:
    lab = Lab(Settings(public=True))
    experts = tuple(SELECTION["experts"].values())
    lab.check_sources(Recipe("mats", experts, statistics=NAME))
    for key, value in (("statistics", "/etc"), ("statistics", f"../{NAME}"), ("learned", "/etc/passwd")):
        with pytest.raises(MergeLabError, match="public"):
            lab.check_sources(Recipe("mats", experts, **{key: value}))


def test_a_recipe_is_taken_along_with_what_makes_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    from mergelab.runs import matched

    recipe = Recipe("mats", ("zoo:starter/mnist", "zoo:starter/emoji"), base_model="zoo:starter/base", suite="starter",
                    init="average", statistics=NAME)  # fmt: skip
    assert recipes.forms(recipe)["shell"].startswith("# The set 'statistics-0123456789ab' is not kept on this machine")
    monkeypatch.setattr(matched, "command", lambda name, zoo: f"python -m mergelab stats zoo:{zoo} --out {name}")
    forms = recipes.forms(recipe)
    assert forms["shell"].splitlines()[0] == f"python -m mergelab stats zoo:starter --out {NAME}"
    assert f"statistics={NAME!r}" in forms["python"] and "init='average'" in forms["python"]
    learned = Recipe("adamerging", recipe.models, base_model=recipe.base_model, suite="starter")
    assert "prepare(recipe)" in recipes.forms(learned)["python"]

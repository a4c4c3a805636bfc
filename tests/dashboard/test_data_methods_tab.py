"""The Data panel and what stands below the figures: shown values follow from the data bench, programs get the same."""

from __future__ import annotations

import json
import re
import threading
from types import SimpleNamespace

import pytest
from dashboard.fake_data import NAME, FakeData
from dashboard.fake_lab import TASKS, FakeBench

from mergelab.dashboard import data_panel, data_views, drafts, learning, solving, solving_views, surgery
from mergelab.dashboard.jobs import Done, Jobs, Step
from mergelab.dashboard.lab import Lab
from mergelab.dashboard.page import Page
from mergelab.dashboard.settings import Settings
from mergelab.errors import Cancelled, MergeLabError
from mergelab.recipe import Recipe

SELECTION = {
    "title": "Starter", "zoo": "starter", "base": "zoo:starter/base", "suite": "starter",
    "experts": {name: f"zoo:starter/{name}" for name in TASKS}, "tuned": {},
}  # fmt: skip
METHODS = Lab(Settings()).methods()
RECIPE = Recipe("mats", tuple(SELECTION["experts"].values())[:2], base_model="zoo:starter/base", suite="starter",
                parameters={"iterations": 10}, init="average", statistics=NAME)  # fmt: skip


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


@pytest.fixture
def data():
    return FakeData(FakeBench())


@pytest.fixture
def page(data):
    lab = SimpleNamespace(data=lambda _selection: data)
    blank = dict.fromkeys(("selection", "form", "draft", "data_draft", "result", "kept", "picture", "prediction"))
    return Page(lab, Settings(), METHODS, **blank)


def draft(method: str = "mats") -> dict:
    return drafts.fresh(METHODS[method], SELECTION)


# ---- the panel ------------------------------------------------------------------------------------------------------


def test_the_panel_is_a_wish_and_a_recipe_of_its_tasks(page):
    recipe, wish = data_panel.asked(page, draft(), SELECTION, (["fashion", "mnist"], 25, "val", "exact"))
    assert (wish.tasks, wish.examples, wish.split, wish.fisher) == (("mnist", "fashion"), 25, "val", "exact")
    assert recipe.names == ("mnist", "fashion") and recipe.statistics is None
    for method in ("adamerging", "regmean_pp"):
        recipe, _ = data_panel.asked(page, draft(method), SELECTION, (["emoji", "mnist"], 25, "test", "empirical"))
        assert recipe.parameters["examples"] == 25 and recipe.parameters["inputs"] == "test"
        assert recipe.statistics is None


@pytest.mark.parametrize("examples", [9, 1001, "many", None, True, float("nan")])
def test_examples_are_ten_to_a_thousand(page, examples):
    with pytest.raises(MergeLabError, match="10 to 1000"):
        data_panel.asked(page, draft(), SELECTION, (["mnist"], examples, "val", "empirical"))


def test_no_task_is_said_in_words(page):
    with pytest.raises(MergeLabError, match="tick at least one"):
        data_panel.asked(page, draft(), SELECTION, ([], 10, "val", "empirical"))


def test_what_was_collected_goes_into_the_draft_as_it_is_by_then():
    now = draft()
    now["parameters"]["iterations"] = 33
    new = data_panel.chosen(now, (["mnist"], 10, "val", "empirical"), NAME)
    assert new["statistics"] == NAME and new["parameters"]["iterations"] == 33
    assert [name for name, model in new["models"].items() if model["on"]] == ["mnist"]
    assert now["statistics"] is None and all(model["on"] for model in now["models"].values())


def test_the_cost_is_said_before_and_nothing_afterwards(data):
    from mergelab.runs.matched import Wish

    wish = Wish(("mnist", "fashion"), 10)
    text = plain(data_views.cost_line(data.estimate(RECIPE, wish)))
    assert "2 tasks, 10 images each" in text and "20 MB" in text and "about 4 s" in text and "8 images timed" in text
    data.collect(RECIPE, wish)
    assert "Nothing will be collected again" in data_views.cost_line(data.estimate(RECIPE, wish))


def test_work_that_outlives_the_page_ends_when_its_page_is_closed_only_without_it():
    for outlives in (True, False):
        jobs, begun, ended, stopped = Jobs(), threading.Event(), threading.Event(), threading.Event()

        def work(progress, stop, begun=begun, ended=ended, stopped=stopped):
            progress(0, 2, "at it")
            begun.set()
            for _ in range(200):
                if stop.is_set():
                    stopped.set()
                    break
                if ended.wait(0.02):
                    break
            return "made"

        running = jobs.run("data-x", work, outlives=outlives)
        assert isinstance(next(running), Step) and begun.wait(5)
        running.close()  # the visitor leaves
        assert stopped.wait(0.3) is not outlives
        ended.set()


def test_stop_ends_it_all_the_same():
    jobs = Jobs()

    def work(progress, stop):
        progress(0, 1, "at it")
        while True:
            stop.check()

    running = jobs.run("data-x", work, outlives=True)
    next(running)
    assert jobs.stop("data-x") == 1
    with pytest.raises(Cancelled):
        for item in running:
            assert not isinstance(item, Done)


# ---- path and blocks ------------------------------------------------------------------------------------------------


@pytest.fixture
def path(data):
    found = data.path(RECIPE)
    return {**found, "titles": TASKS, "layers": data.layers([block["tensor"] for block in found["blocks"]])}


def test_the_path_marks_what_is_shown_and_what_validation_chose(path):
    json.dumps(path)
    figure, text, table = solving_views.path_view(path, 2)
    drawn = json.loads(figure.plot)["data"]
    falls = drawn[0]["y"]
    assert falls == sorted(falls, reverse=True) and falls[0] == 1.0
    assert [trace["name"] for trace in drawn] == ["J, which falls", "validation accuracy", "chosen on validation"]
    assert drawn[2]["x"] == [5] and "circle-open-dot" in drawn[1]["marker"]["symbol"][2]
    assert "Shown: 10 iterations, 70.0%" in text and "rises and falls" in text
    assert "Chosen on validation: 5 iterations, 80.0%" in text
    rows = plain(table)
    assert "5 ★" in rows and "10 ★" not in rows and "9.09%" in rows and "60.0 Fashion" in rows


def test_the_slider_is_a_place_on_the_path_and_the_recipe_follows(page, path):
    start = draft() | {"statistics": NAME, "init": None}
    for name, model in start["models"].items():
        model["on"] = name in ("mnist", "fashion")
    start["parameters"] = {**start["parameters"], "iterations": 0}
    mine = {**path, "key": page.recipe(start, SELECTION).hash}
    for place, k in enumerate(path["grid"]):
        form, new = solving._moved(mine, place, start)
        assert new["parameters"]["iterations"] == k == form["parameters"]["iterations"]
        assert solving.place_of(page, mine, new, SELECTION) == place
        assert drafts.is_tuned(new, METHODS["mats"], SELECTION) == (place == path["best"])
    other = drafts.copied(start)
    other["parameters"]["objective"] = "gram"
    assert solving.place_of(page, mine, other, SELECTION) is None
    other = drafts.copied(start)
    other["parameters"]["iterations"] = 7
    assert solving.place_of(page, mine, other, SELECTION) is None


def test_blocks_say_how_far_each_moved_and_why_some_were_left(path):
    figure, text, table, left = solving_views.blocks_view(path, 2)
    drawn = json.loads(figure.plot)["data"][0]
    assert drawn["z"] == [[0.2, 0.4], [0.2, 0.4]] and drawn["zmax"] == 0.4
    assert "moved most in block 1" in text and "block 0 2 0.200" in plain(table)
    assert "averaged" in left and "no linear layer &lt;b&gt;" in left and "<b>no" not in left
    assert "all experts have the same" in left
    still, text, *_ = solving_views.blocks_view(path, 0)
    assert "Nothing moved" in text and json.loads(still.plot)["data"][0]["zmax"] == 0.4, "the scale stays"


def test_parts_of_layers_are_told_apart():
    names = ["h.0.attention.dense.weight", "h.0.mlp.dense.weight", "h.0.fc.weight"]
    parts = solving_views.parts_of(names, dict.fromkeys(names, "block 0"))
    assert len(set(parts.values())) == 3


# ---- coefficients ---------------------------------------------------------------------------------------------------


def test_coefficients_move_with_the_step_and_collapse_is_loud(data):
    recipe = RECIPE.replace(merge_method="adamerging", parameters={}, init=None, statistics=None)
    assert data.coefficients(recipe) is None
    data.learn(recipe)
    found = {**data.coefficients(recipe), "titles": TASKS}
    json.dumps(found)
    first, last = learning.shown(found, 0), learning.shown(found, 2)
    assert "every coefficient is 0.300" in first[1] and "MNIST has the largest" in last[1]
    top = [json.loads(view[0].plot)["data"][0]["zmax"] for view in (first, last)]
    assert top == [0.5, 0.5], "the scale stays while steps pass"
    assert "97% of the last predictions" in last[5] and "97% !" in plain(last[6]) and "30% !" not in plain(last[6])
    assert "transductive" not in learning.said(found)
    assert "transductive" in learning.said({**found, "transductive": True})


# ---- surgery --------------------------------------------------------------------------------------------------------


def test_surgery_shows_held_out_distances_and_needs_the_task(data):
    found = {**data.surgery(RECIPE), "titles": TASKS}
    json.dumps(found)
    text, figure, table = surgery.bias_view(found)
    drawn = json.loads(figure.plot)["data"]
    assert [trace["y"] for trace in drawn] == [[1.1, 1.1], [0.5, 0.5]]
    assert "45% of the distance" in text and "told the task" in table and "70.0" in table
    figure, table = surgery.cloud_view(found, "mnist")
    assert {trace["name"] for trace in json.loads(figure.plot)["data"]} == {"merged", "expert", "corrected"}
    assert "50% of the variance" in table and "1.00 2.00" in plain(table)
    assert "task id" in surgery._LEAD


# ---- for programs ---------------------------------------------------------------------------------------------------


def refused(client, *args, api_name) -> str:
    with pytest.raises(Exception) as caught:
        client.predict(*args, api_name=api_name)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def test_collect_then_merge_by_its_name(client):
    bare = RECIPE.replace(statistics=None)
    assert "Collect" in refused(client, bare.to_yaml(), 40, api_name="/merge_evaluate")
    cost = client.predict(bare.to_yaml(), 10, "val", "empirical", True, api_name="/collect_statistics")
    assert cost["bytes"] == 20_000_000 and cost["examples"] == {"mnist": 10, "fashion": 10}
    made = client.predict(bare.to_yaml(), 10, "val", "empirical", False, api_name="/collect_statistics")
    assert made["name"] == NAME and made["examples"] == [10]
    found = client.predict(bare.replace(statistics=made["name"]).to_yaml(), 40, api_name="/merge_evaluate")
    assert found["data_used"].startswith("10 labelled val images a task")


def test_a_path_for_programs(client):
    found = client.predict(RECIPE.to_yaml(), 10, 40, api_name="/solve_path")
    assert [point["k"] for point in found["points"]] == [0, 5, 10] and found["best"] == 1
    assert "no iterations" in refused(client, RECIPE.replace(merge_method="regmean", parameters={}).to_yaml(), 10, 40,
                                      api_name="/solve_path")  # fmt: skip
    assert "iterations" in refused(client, RECIPE.to_yaml(), 0, 40, api_name="/solve_path")


def test_learn_and_surgery_for_programs(client):
    recipe = RECIPE.replace(merge_method="adamerging", parameters={"steps": 5}, init=None, statistics=None)
    assert "Learn" in refused(client, recipe.to_yaml(), 40, api_name="/merge_evaluate")
    assert client.predict(recipe.to_yaml(), api_name="/learn")["tasks"] == ["mnist", "fashion"]
    assert client.predict(recipe.to_yaml(), 40, api_name="/merge_evaluate")["hash"] == recipe.hash
    assert "learns nothing" in refused(client, RECIPE.to_yaml(), api_name="/learn")
    found = client.predict(RECIPE.to_yaml(), 20, 8, "val", api_name="/surgery")
    assert found["needs"] == "task id at inference" and found["bias"]["mnist"]["held_out_after"] == 0.5
    for arguments, word in (((5, 8, "val"), "10 to 1000"), ((20, 0, "val"), "rank"), ((20, 8, "train"), "split")):
        assert word in refused(client, RECIPE.to_yaml(), *arguments, api_name="/surgery")

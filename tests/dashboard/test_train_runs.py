"""The Train tab: a run is followed, paused and gone on with, and feeds the other tabs."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from dashboard.fake_training import document
from dashboard.train_page import METHODS, SELECTION, SOON, VALUES, TrainLab, handler, plain, recipe_of, traces, wait
from training.learn_zoo import moved_zoo

from mergelab.dashboard import (
    drafts,
    predict,
    train_facts,
    train_feeds,
    train_form,
    train_merging,
    train_runs,
    train_views,
)
from mergelab.dashboard.app import build_app
from mergelab.dashboard.lab import Lab
from mergelab.dashboard.settings import Settings
from mergelab.errors import MergeLabError
from mergelab.recipe import Recipe

# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(settings, tmp_path: Path, monkeypatch) -> TrainLab:
    monkeypatch.setenv("MERGELAB_HOME", str(tmp_path / "home"))
    return TrainLab(settings)


def test_a_run_tells_of_every_round_and_measures_its_model(lab: TrainLab):
    run = lab.runs.start(SELECTION, recipe_of(), ("joint",))
    wait(lambda: run.version >= 1)
    assert train_views.last_round(run.document) == 0 and run.current is None
    lab.train_bench.gate.release()
    wait(lambda: run.version >= 2)
    assert run.current["round"] == 1 and run.current["cosines"][0][1] == pytest.approx(0.1)
    assert run.result["label"] == "ATM, round 1" and run.result["evaluation"]["tasks"]["mnist"]["accuracy"] == 0.5
    assert run.result["per_task"] == lab.settings.per_task and "8 labelled" in run.result["evaluation"]["data_used"]
    wait(lambda: "ATM: round 1 of 2" in train_facts.run_line(run))
    assert not run.over
    assert json.dumps([run.document, run.current, run.result]), "plain values only"
    lab.train_bench.gate.release()
    wait(lambda: run.over)
    assert (
        run.status == "done"
        and run.document["runs"].keys() == {"atm", "joint"}
        and run.result["label"] == "ATM, round 2"
    )
    assert lab.runs.predict(run.current, {"task": "mnist"})["probabilities"] == [0.75, 0.25]
    whole = lab.runs.whole(run.name, None, None)
    assert whole["per_task"] is None and run.result is whole and "Done: 2 of 2 rounds" in train_facts.run_line(run)


def test_a_paused_run_goes_on_and_a_stopped_one_leaves_nothing(lab: TrainLab):
    runs = lab.runs
    run = runs.start(SELECTION, recipe_of(), ())
    lab.train_bench.gate.release()
    wait(lambda: run.current is not None)
    with pytest.raises(MergeLabError, match="going on"):
        runs.start(SELECTION, recipe_of(), (), run.name)
    with pytest.raises(MergeLabError, match="not paused"):
        runs.resume(run.name)
    runs.pause(run.name)
    wait(lambda: run.over)
    assert run.status == "paused" and run.folder.is_dir()
    runs.resume(run.name)
    lab.train_bench.gate.release(2)
    wait(lambda: run.over)
    assert run.status == "done" and lab.train_bench.calls[-1] == ("compare", True)

    other = runs.start(SELECTION, recipe_of(), (), run.name)
    assert not run.folder.exists() and run.state is None and runs.find(run.name) is None, "the last one is let go of"
    runs.stop(other.name)
    wait(lambda: other.over)
    wait(lambda: not other.folder.exists())
    assert other.status == "stopped"
    with pytest.raises(MergeLabError, match="Nothing is running"):
        runs.stop(other.name)
    for name in (None, "nobody", "../..", 7):
        assert runs.find(name) is None
        with pytest.raises(MergeLabError, match="no run yet"):
            runs.pause(name)


def test_a_run_is_found_again_by_another_process(lab: TrainLab, settings):
    run = lab.runs.start(SELECTION, recipe_of(), ())
    lab.train_bench.gate.release()
    wait(lambda: run.current is not None)
    lab.runs.pause(run.name)
    wait(lambda: run.over)
    again = TrainLab(settings)
    found = again.runs.find(run.name)
    assert found.status == "paused" and "1 of 2 rounds" in found.said and train_views.last_round(found.document) == 1
    again.runs.resume(run.name)
    again.train_bench.gate.release(2)
    wait(lambda: found.over)
    assert found.status == "done" and TrainLab(settings).runs.find(run.name).status == "done"
    (found.folder / "run" / "compare.json").write_text("[")
    assert TrainLab(settings).runs.find(run.name) is None


def test_a_failure_is_a_sentence_and_old_runs_make_room(lab: TrainLab):
    lab.train_bench.fails = MergeLabError("The rounds diverge: lower the rate.")
    first = lab.runs.start(SELECTION, recipe_of(), ())
    wait(lambda: first.over)
    assert 'role="alert"' in train_facts.run_line(first) and "lower the rate" in train_facts.run_line(first)
    lab.train_bench.fails = ValueError("secret /home/someone")
    second = lab.runs.start(SELECTION, recipe_of(), ())
    wait(lambda: second.over)
    assert "secret" not in train_facts.run_line(second) and "log" in train_facts.run_line(second)
    for _ in range(3):
        last = lab.runs.start(SELECTION, recipe_of(), ())
        wait(lambda run=last: run.over)
    assert lab.runs.find(first.name) is None and not first.folder.exists() and last.folder.exists()
    old = first.folder.parent / ("0" * 32)
    (old / "run").mkdir(parents=True)
    assert train_runs._touched(old) > time.time() - 60


def test_time_left_is_told_from_what_was_done():
    from mergelab.dashboard.jobs import Step

    run = train_runs.Run("x", Path("x"), SELECTION, recipe_of().to_dict(), ())
    run.moves(Step(0, 10, "atm: round 1 of 2, mnist: epoch 1"))
    assert run.left() is None
    run._begun = (time.perf_counter() - 10, 0.0)
    run.moves(Step(5, 10, "atm: round 1 of 2, mnist: epoch 1"))
    assert run.left() == pytest.approx(10, abs=0.5)
    assert "ATM: round 1 of 2, mnist: epoch 1 … about 10 s left" in plain(train_facts.run_line(run))


# ---- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(lab: TrainLab, settings):
    return build_app(lab, settings)


def given(**more) -> list:
    return [{**VALUES, **more}[name] for name in train_form.FIELDS]


def test_start_follow_and_pause_on_the_page(page, lab: TrainLab):
    draft = drafts.fresh(METHODS["ties"], SELECTION)
    said, watch, *_, name = handler(page, "start")(None, draft, SELECTION, *given())
    assert "Starting" in said and lab.runs.find(name) is not None

    async def follow():
        seen = []
        async for shown in handler(page, "follow")(watch):
            seen.append(shown)
            if len(seen) == 1:
                lab.train_bench.gate.release(2)
        return seen

    # in a thread of its own: the browser's tests leave a loop running in this one
    with ThreadPoolExecutor(1) as thread:
        seen = thread.submit(lambda: asyncio.run(asyncio.wait_for(follow(), SOON))).result()
    documents = [shown[1] for shown in seen if isinstance(shown[1], dict) and "runs" in shown[1]]
    assert train_views.last_round(documents[-1]) == 2 and set(documents[-1]["runs"]) == {"atm", "joint"}
    assert any(isinstance(shown[3], dict) and shown[3].get("label") == "ATM, round 2" for shown in seen)
    assert [button["interactive"] for button in seen[-1][-4:]] == [True, False, False, False]
    assert "Nothing is running" in handler(page, "pause")(name)[0]
    assert handler(page, "back")(name)["run"] == name, "who comes back finds their run"
    refused, *_ = handler(page, "start")(name, draft, SELECTION, *given(tasks=[]))
    assert "at least one task" in refused and 'role="alert"' in refused


def test_the_slider_goes_along_with_new_rounds_and_stays_where_it_was_put(page):
    arrive = handler(page, "arrive")
    one, two = (document(recipe_of(), (), rounds) for rounds in (1, 2))
    first = arrive(one, 0, [], False)
    assert first[2]["value"] == 1 and first[2]["label"] == "Round 1 of 2"
    assert first[3]["value"] == ["mnist", "fashion", "emoji"] and first[0]["visible"] is True
    assert arrive(two, 0, ["mnist"], False)[2]["value"] == 2
    assert arrive(two, 0, ["mnist"], True)[2]["value"] == 0
    assert handler(page, "show_live")(two, "run") is two and handler(page, "show_live")(two, "recorded") is not two
    moved = handler(page, "scrub")(two, 0, ["mnist"])
    assert moved[0] is True and moved[1]["label"] == "Before the first round"
    assert handler(page, "scrub")(two, 2, ["mnist"])[0] is False


def test_the_merge_slider_and_the_fields_follow_each_other(page):
    rounds, unit, length, slider, note = handler(page, "move")(0, *given())
    assert (rounds, unit, length) == (16, "steps", 1) and slider["label"] == "Merge every step: 16 rounds"
    assert "FedAvg" in note
    slider, note = handler(page, "follow_fields")(*given(rounds=1, length=2))
    assert slider["label"] == "Merge once, at the end: 2 epochs" and "one-shot" in note


def test_parameters_of_the_aggregation_are_those_that_differ_from_their_defaults():
    page = SimpleNamespace(methods=METHODS)
    assert [p["name"] for p in train_merging.shown(page, "ties")][:2] == ["lambda", "density"]
    assert all(p["name"] != "weight" for name in METHODS for p in train_merging.shown(page, name))
    assert train_merging.shown(page, "mean") == []
    density = next(p for p in METHODS["ties"]["parameters"] if p["name"] == "density")
    with gr.Blocks() as blocks:
        train_merging._control({"parameters": gr.State({})}, density)
    collect = next(fn.fn for fn in blocks.fns.values() if fn.fn)
    assert collect(0.4, {"lambda": 0.5}) == {"lambda": 0.5, "density": 0.4}
    assert collect(density["default"], {"lambda": 0.5, "density": 0.4}) == {"lambda": 0.5}
    assert collect(None, {"density": 0.4}) == {}


def test_the_cost_is_asked_for_once(page, lab: TrainLab):
    draft, request = drafts.fresh(METHODS["ties"], SELECTION), SimpleNamespace(session_hash="x")
    cost = handler(page, "cost_of_training")
    last = list(cost(None, draft, SELECTION, request, *given()))[-1]
    assert "1,536 pictures pass" in last[0]
    again = list(cost(last[1], draft, SELECTION, request, *given()))
    assert len(again) == 1 and len([c for c in lab.train_bench.calls if c[0] == "estimate"]) == 1
    assert "of the budget" in list(cost(None, draft, SELECTION, request, *given(rounds=0)))[-1][0]


# ---- the other tabs --------------------------------------------------------------------------------------------------


def test_the_kept_row_goes_along_with_the_rounds():
    one, two = ({"id": "training/x", "label": f"ATM, round {k}", "evaluation": {}} for k in (1, 2))
    other = {"id": "a", "label": "A: TIES", "evaluation": {}}
    kept, chosen = train_feeds.kept_with(one, [other], ["A: TIES"], 5)
    assert [k["label"] for k in kept] == chosen == ["A: TIES", "ATM, round 1"]
    kept, chosen = train_feeds.kept_with(two, kept, chosen, 5)
    assert [k["label"] for k in kept] == chosen == ["A: TIES", "ATM, round 2"]
    kept, chosen = train_feeds.kept_with(two, kept, ["A: TIES"], 5)
    assert chosen == ["A: TIES"], "a row that was left out stays out"
    kept, _ = train_feeds.kept_with({**one, "id": "training/y"}, [*kept, {**one, "id": "z"}], [], 5)
    assert kept[-1]["label"] == "ATM, round 1 (2)"


def test_one_more_row_in_a_prediction():
    prediction = {"png": "p", "truth": "alpha", "title": "MNIST",
                  "rows": [{"series": "base", "role": "base", "class": "alpha", "probability": 1.0}]}  # fmt: skip
    extra = predict.trained_rows({"round": 2}, {"classes": ["alpha", "<beta>"], "probabilities": [0.75, 0.25]}, "p")
    both = predict.joined(prediction, extra)
    assert [row["series"] for row in both["rows"]] == ["base", "training, round 2", "training, round 2"]
    assert "Training, round 2 1 alpha ✓ 75.0% 2 &lt;beta&gt; 25.0%" in plain(predict.trained_table(prediction, extra))
    assert predict.joined(prediction, {**extra, "png": "another"}) is prediction
    assert predict.trained_table(prediction, None) == ""


def test_geometry_shows_the_round_of_the_run(page):
    show = handler(page, "show_training")
    lie = {
        "round": 2,
        "tasks": ["a", "b"],
        "titles": {},
        "cosines": [[1.0, 0.5], [0.5, 1.0]],
        "norms": {"a": 1, "b": 2},
    }
    section, heading, _, text, table = show(lie)
    assert section["visible"] and "round 2" in heading and "0.50" in text and "0.500" in table
    assert show(None)[0]["visible"] is False and show({**lie, "cosines": None})[0]["visible"] is False


# ---- with weights ----------------------------------------------------------------------------------------------------


def test_a_tiny_zoo_is_trained_measured_and_asked(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MERGELAB_HOME", str(tmp_path / "home"))
    zoo = moved_zoo(tmp_path / "tiny")
    lab = Lab(Settings(zoo=str(zoo)))
    selection = lab.zoo(str(zoo))
    values = {**VALUES, "tasks": ["grey", "colour"], "images": 16, "batch": 8}
    recipe = train_form.recipe_of(values, selection, None, 20)
    cost = lab.training(selection).estimate(recipe, ("joint",))
    assert cost["samples"] == 2 * 2 * 16 * 2 and cost["seconds"] > 0
    run = lab.runs.start(selection, recipe, ("joint",))
    wait(lambda: run.over)
    assert run.status == "done", run.said
    assert set(run.document["runs"]) == {"atm", "joint"} and run.current["round"] == 2
    assert set(run.result["evaluation"]["tasks"]) == {"grey", "colour"}
    said = lab.runs.predict(run.current, {"task": "grey", "place": 3})
    assert len(said["classes"]) == 3 and sum(said["probabilities"]) == pytest.approx(1, abs=1e-5)
    whole = lab.runs.whole(run.name, None, None)
    assert "stripes" in whole["evaluation"]["tasks"] and whole["evaluation"]["tasks"]["grey"]["n"] == 60
    figure, _ = train_views.curves(run.document, 2, list(recipe.tasks), {})
    assert traces(figure)["ATM"]["x"] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"what": "experts", "one_shot": True, "joint": False}, ({"experts", "one_shot"}, 14, None)),
        ({"what": "joint"}, ({"joint"}, 0, "Joint training, round 2")),
        ({"start": "merge", "one_shot": True, "joint": False}, ({"atm", "one_shot"}, 15, "ATM, round 2")),
    ],
)  # fmt: skip
def test_every_kind_of_run_is_shown(tmp_path: Path, monkeypatch, more, expected):
    runs, merges, label = expected
    monkeypatch.setenv("MERGELAB_HOME", str(tmp_path / "home"))
    zoo = moved_zoo(tmp_path / "tiny")
    lab = Lab(Settings(zoo=str(zoo)))
    selection = lab.zoo(str(zoo))
    merge = Recipe("ties", tuple(selection["experts"].values()), base_model=selection["base"], suite=selection["suite"])
    values = {**VALUES, "tasks": ["grey", "colour"], "images": 16, "batch": 8, **more}
    run = lab.runs.start(selection, train_form.recipe_of(values, selection, merge, 20), train_form.beside(values))
    wait(lambda: run.over)
    assert run.status == "done", run.said
    assert set(run.document["runs"]) == runs and len(run.document["merges"]) == merges
    assert (run.result and run.result["label"]) == label
    for place in range(3):
        figure, text = train_views.curves(run.document, place, ["grey"], {})
        assert text and len(json.loads(figure.plot)["data"]) > 2
        assert "Grey" in train_views.round_view(run.document, place)[1]
        assert "What it cost" in train_facts.costs_view(run.document)
    assert (train_facts.cosines_of(run.document, 2) is None) == (more["what"] == "joint" if "what" in more else False)
    assert "Mean, 95 %" in train_facts.whole_table(run.document, {})

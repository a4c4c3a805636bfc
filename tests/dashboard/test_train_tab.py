"""The Train tab: fields become a recipe, a run is followed, paused and gone on with, and feeds the other tabs."""

from __future__ import annotations

import asyncio
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from dashboard.fake_lab import TASKS, FakeLab
from dashboard.fake_training import FakeTraining, document
from training.learn_zoo import moved_zoo

from mergelab.dashboard import (
    drafts,
    predict,
    recordings,
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
from mergelab.dashboard.train import USUAL
from mergelab.errors import CheckpointError, MergeLabError, RecipeError
from mergelab.recipe import Recipe
from mergelab.runs.training.compare import FORMAT

SELECTION = {
    "title": "Starter", "zoo": "starter", "base": "zoo:starter/base", "suite": "/a/zoo/suite",
    "experts": {name: f"zoo:starter/{name}" for name in TASKS}, "tuned": {},
}  # fmt: skip
METHODS = Lab(Settings()).methods()
MERGE = Recipe("ties", tuple(SELECTION["experts"].values()), base_model="zoo:starter/base", suite="starter")
VALUES = {**USUAL, "tasks": ["mnist", "fashion", "emoji"]}
SOON = 20.0


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)).strip()


def recipe_of(**more):
    return train_form.recipe_of({**VALUES, **more}, SELECTION, MERGE, 40)


def wait(until) -> None:
    end = time.monotonic() + SOON
    while not until():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


# ---- the form --------------------------------------------------------------------------------------------------------


def test_the_fields_become_a_training_recipe():
    recipe = recipe_of(method="ties", scale=0.8, images=128.0, batch=16.0)
    assert (recipe.train, recipe.tasks, recipe.images, recipe.split) == (
        "atm",
        ("mnist", "fashion", "emoji"),
        128,
        "train",
    )
    assert (recipe.budget.rounds, recipe.budget.epochs, recipe.budget.steps) == (2, 1, None)
    assert (recipe.aggregation.merge_method, recipe.aggregation.scale) == ("ties", 0.8)
    assert (recipe.watch.split, recipe.watch.limit) == ("test", 40) and recipe.tuning.rate is None
    assert recipe.suite == "starter", "a recipe does not name a folder of this machine"
    assert recipe_of(method="ties", parameters={"density": 0.3}).aggregation.parameters == {"density": 0.3}
    steps = recipe_of(unit="steps", length=5, rate=0.01)
    assert (steps.budget.steps, steps.budget.epochs, steps.tuning.rate) == (5, 1, 0.01)


def test_post_hoc_starts_from_the_merge_and_trains_on_validation_labels():
    recipe = recipe_of(start="merge", one_shot=True)
    assert recipe.start.merge_method == "ties" and recipe.split == "val"
    assert train_form.beside({**VALUES, "start": "merge", "one_shot": True}) == ("joint", "one_shot", "alpha")
    assert train_form.beside({**VALUES, "what": "joint"}) == ()
    joint = recipe_of(what="joint", method="ties")
    assert joint.aggregation.merge_method == "mean", "joint training has no rounds that are merged"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tasks": []}, "at least one task"), ({"rounds": 0}, "'rounds'"), ({"rounds": None}, "'rounds'"),
        ({"images": 0.5}, "'images'"), ({"seed": -1}, "'seed'"), ({"rate": -1.0}, "'rate'"), ({"batch": 0}, "'batch'"),
        ({"method": "slerp"}, "exactly 2"), ({"method": "ties", "parameters": {"density": 2.0}}, "'density'"),
        ({"method": "mats"}, "data"), ({"unit": "steps", "length": 0}, "'steps'"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_get_a_sentence(change, word):
    with pytest.raises((RecipeError, MergeLabError), match=word):
        recipe_of(**change)
    with pytest.raises(MergeLabError, match="no suite"):
        train_form.recipe_of(VALUES, {**SELECTION, "suite": None}, None, 40)


def test_only_methods_without_data_merge_a_round():
    names = [name for _, name in train_form.aggregations(METHODS)]
    assert names[0] == "mean" and "ties" in names and "mats" not in names and "adamerging" not in names


def test_the_slider_shares_the_same_budget_out_from_every_step_to_once():
    found = train_form.notches(VALUES)  # 2 epochs of 8 steps
    assert [(n.rounds, n.unit, n.length) for n in found] == [
        (16, "steps", 1), (8, "steps", 2), (4, "steps", 4), (2, "epochs", 1), (1, "epochs", 2)
    ]  # fmt: skip
    assert train_form.place_of(VALUES, found) == 3
    assert {n.rounds * n.steps for n in found} == {16}, "the budget stays"
    assert found[0].words == "every step: 16 rounds" and found[-1].words == "once, at the end: 2 epochs"
    every, once = (train_form.merge_note(found, place, 1.0) for place in (0, 4))
    assert "joint training" in every and "FedAvg (local SGD) with every client taking part" in every
    assert "server rate α = 1" in every and "one-shot merge" in once
    many = train_form.notches({**VALUES, "rounds": 60, "images": 512})
    assert len(many) <= 12 and many[0].steps == 1 and many[-1].rounds == 1
    assert any(n.rounds == 60 for n in many), "where the fields stand is among them"
    assert train_form.notches({**VALUES, "rounds": None}) == []


def test_a_public_page_limits_the_pictures_that_pass():
    assert Settings.from_env({}).max_train_samples is None
    public = Settings.from_env({"SPACE_ID": "org/space"})
    assert public.max_train_samples == 4000
    assert Settings.from_env({"SPACE_ID": "x", "MERGELAB_MAX_TRAIN_SAMPLES": "99"}).max_train_samples == 99
    train_form.check_limit(recipe_of(), ("joint",), public)  # 3 tasks x 128 pictures x 2 epochs, twice
    with pytest.raises(MergeLabError, match=r"7,680 pictures.*2 times.*allows 4,000.*MERGELAB_MAX_TRAIN_SAMPLES"):
        train_form.check_limit(recipe_of(rounds=10), ("joint",), public)
    with pytest.raises(MergeLabError, match="MERGELAB_MAX_TRAIN_SAMPLES must be a number"):
        Settings.from_env({"MERGELAB_MAX_TRAIN_SAMPLES": "many"})


# ---- what is shown ---------------------------------------------------------------------------------------------------

FOUND = document(recipe_of(), ("joint", "one_shot"))
TITLES = {"ties": "TIES"}


def traces(plot) -> dict:
    return {trace["name"]: trace for trace in json.loads(plot.plot)["data"]}


def test_the_curves_are_the_points_of_the_record():
    plot, text = train_views.curves(FOUND, 1, ["fashion"], TITLES)
    drawn = traces(plot)
    assert drawn["ATM"]["x"] == [0.0, 1.0, 2.0] and drawn["ATM"]["y"] == pytest.approx([0.2, 0.49, 0.64])
    assert drawn["joint training"]["y"][1] == pytest.approx(0.54)
    assert drawn["ATM, Fashion"]["y"] == pytest.approx([0.2, 0.49, 0.64])
    assert drawn["experts"]["y"] == [0.9, 0.9] and drawn["experts"]["line"]["dash"] == "dash"
    assert drawn["base"]["y"] == pytest.approx([0.2, 0.2]) and drawn["base"]["line"]["dash"] == "dot"
    assert drawn["1× TIES"]["mode"] == "markers" and drawn["1× TIES"]["y"] == pytest.approx([0.4])
    assert text.startswith("After 1 epoch a task, ATM: 49.0% right on average, 54% of what the experts do")
    assert "Joint training: 54.0%, 5.0 points more" in text and "40.0% (1× TIES)" in text
    assert train_views.curves(None, 0, [], {}) == [None, ""]


def test_a_round_has_its_table_its_radar_and_what_it_was_like():
    radar, table = train_views.round_view(FOUND, 2)
    rows = plain(table)
    assert "after round 2, on 40 test pictures a task" in rows
    assert "Task ATM / Expert Joint Experts Base" in rows
    assert "MNIST 65.0 0.72 70.0 90.0 20.0" in rows and "Mean 64.0 0.71 69.0 90.0 20.0" in rows
    assert traces(radar)["ATM"]["r"][0] == pytest.approx(0.65 / 0.9)
    assert "before the first round" in plain(train_views.round_view(FOUND, 0)[1])
    facts = plain(train_facts.facts_view(FOUND, 2))
    assert "MNIST 1 – 7.5 0.25 1.5" in facts and "joint training: all tasks at once 1 1.25 7.5 0.5 1.5" in facts
    assert "Move the slider" in train_facts.facts_view(FOUND, 0)
    merges = plain(train_views.merges_view(FOUND, 1, TITLES))
    assert "1× TIES 1.4, chosen 40.0 0.44" in merges and "1× mean untuned 30.0 0.33" in merges
    assert train_views.merges_view(FOUND, 2, TITLES) == ""


def test_the_task_vectors_of_a_round_with_numbers():
    heat, text, table = train_facts.cosine_view(train_facts.cosines_of(FOUND, 2))
    assert json.loads(heat.plot)["data"][0]["z"][0] == [None, 0.2, 0.2] and "cosine 0.20" in text
    assert "MNIST 1.000 0.200 0.200 0.25" in plain(table) and "Cosines as CSV" in table
    assert train_facts.cosines_of(document(recipe_of(what="joint"), ()), 2) is None
    assert train_facts.cosines_of(FOUND, 0) is None and train_facts.cosine_view(None)[0] is None


def test_costs_and_the_whole_table_say_data_and_intervals():
    costs = train_facts.costs_view(FOUND)
    assert "ATM 48 6 8 2.0 GB 1 MB a" in plain(costs) and "a: 8 labelled &lt;training&gt; pictures a task" in costs
    whole = train_facts.whole_table(FOUND, TITLES)
    assert re.search(r"ATM, 2 rounds.* 64\.0 \d+\.\d–\d+\.\d 0\.71 65\.0 64\.0 63\.0 48 6 [ab]", plain(whole))
    merged = {"name": "ties of the experts after 2 epochs, α 0.4 chosen", "accuracy": {"mnist": 0.5}, "mean": 0.5}
    told = plain(train_facts.whole_table({**FOUND, "table": [merged]}, TITLES))
    assert "TIES of the experts after 2 epochs, α 0.4 chosen 50.0" in told
    assert "Table as CSV" in whole and train_facts.whole_table({**FOUND, "table": []}, {}) == ""
    line = plain(train_facts.cost_line(FakeTraining().estimate(recipe_of(), ("joint",)), ("joint",)))
    assert "1,536 pictures pass, about 60 s here" in line and "700 MB of weights sent, no picture" in line


def test_the_points_can_be_taken_along():
    import base64

    links = re.findall(r"base64,([^\"]+)", train_views.files(FOUND))
    points, recipe = (base64.b64decode(link).decode() for link in links)
    assert "ATM,2,2.0,48,fashion,0.64," in points and "1× ties, chosen" in points
    assert "train: atm" in recipe and "merge_method: mean" in recipe


# ---- recorded runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "assets" / "training"
    folder.mkdir(parents=True)
    monkeypatch.setattr(recordings, "assets", lambda: tmp_path / "assets")
    return folder


def test_a_recorded_run_opens_and_a_bad_file_is_a_sentence(shipped: Path):
    assert recordings.recordings() == {}, "without a file there is nothing to open"
    (shipped / "starter.json").write_text(json.dumps(FOUND))
    (shipped / "broken.json").write_text("{")
    (shipped / "list.json").write_text("[]")
    (shipped / "other.json").write_text('{"format": "x"}')
    (shipped / "empty.json").write_text(json.dumps({"format": FORMAT, "runs": {}, "merges": [], "table": []}))
    (shipped / "half.json").write_text(json.dumps({**FOUND, "runs": {"atm": {"format": "mergelab-training/1"}}}))
    found = recordings.recordings()
    assert found["starter"] == "Recorded <run>" and found["broken"] == "broken" and found["list"] == "list"
    assert recordings.recording("starter")["runs"].keys() == {"atm", "joint"}
    for name, word in (("broken", "not valid JSON"), ("list", "the format is 'list'"), ("other", "the format is 'x'"),
                       ("empty", "no run"), ("half", "damaged"), ("nope", "no such"), ("../starter", "no such"),
                       (None, "no such")):  # fmt: skip
        with pytest.raises(CheckpointError, match=word):
            recordings.recording(name)


def test_the_button_hides_itself_where_nothing_is_shipped(settings, shipped: Path):
    def row(page):
        return next(c["props"] for c in page.config["components"] if c["props"].get("elem_id") == "train-recorded")

    assert row(build_app(FakeLab(settings), settings))["visible"] is False
    (shipped / "starter.json").write_text(json.dumps(FOUND))
    page = build_app(FakeLab(settings), settings)
    assert row(page)["visible"] is True
    opened = handler(page, "open_recorded")
    said, found, slider, *_, own, held = opened("starter", None)
    assert own["visible"] is held is False and opened("starter", {"runs": {}})[-2]["visible"] is True
    assert "Recorded: Recorded &lt;run&gt;" in said and slider["maximum"] == 2 and found["runs"]
    (shipped / "starter.json").write_text("[")
    assert 'role="alert"' in opened("starter", None)[0]


# ---- runs ------------------------------------------------------------------------------------------------------------


class TrainLab(FakeLab):
    def __init__(self, settings):
        super().__init__(settings)
        self.train_bench = FakeTraining()

    def training(self, selection):
        return self.train_bench


@pytest.fixture
def lab(settings, tmp_path: Path, monkeypatch) -> TrainLab:
    monkeypatch.setenv("MERGELAB_HOME", str(tmp_path / "home"))
    return TrainLab(settings)


def handler(page, name: str):
    """A handler of the Train tab, or of what it feeds, by its name."""
    ours = ("mergelab.dashboard.train", "mergelab.dashboard.geometry", "mergelab.dashboard.predict")
    found = {fn.fn for fn in page.fns.values() if getattr(fn.fn, "__name__", "") == name}
    return next(fn for fn in found if fn.__module__.startswith(ours))


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

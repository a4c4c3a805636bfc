"""The Train tab's form becomes a recipe; what it shows of a run, its own or a recorded one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from dashboard.fake_lab import FakeLab
from dashboard.fake_training import FakeTraining, document
from dashboard.train_page import FOUND, METHODS, SELECTION, TITLES, VALUES, handler, plain, recipe_of, traces

from mergelab.dashboard import recordings, train_facts, train_form, train_views
from mergelab.dashboard.app import build_app
from mergelab.dashboard.settings import Settings
from mergelab.errors import CheckpointError, MergeLabError, RecipeError
from mergelab.runs.training.compare import FORMAT

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

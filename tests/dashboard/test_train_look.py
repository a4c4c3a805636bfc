"""In weight space and the theorem lab: what is drawn of their documents, damaged files, how the page asks for it."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from dashboard.fake_lab import FakeLab
from dashboard.fake_training import FakeTraining, document
from dashboard.train_page import SELECTION, handler, plain, traces, wait

from mergelab.dashboard import recordings, train_look, train_look_facts, train_look_views, train_theorem_views
from mergelab.dashboard.app import build_app
from mergelab.dashboard.lab import Lab
from mergelab.dashboard.settings import Settings
from mergelab.dashboard.train_theorem import recipe_of as lab_recipe
from mergelab.dashboard.train_work import _MOST_KEPT
from mergelab.errors import CheckpointError, MergeLabError
from mergelab.runs.training.costs import rounds_bytes
from mergelab.training.recipe import TrainRecipe

RECIPE = TrainRecipe.from_dict({
    "train": "atm", "base_model": "zoo:starter/base", "suite": "starter", "tasks": ["mnist", "fashion"], "images": 8,
    "budget": {"rounds": 2, "epochs": 1},
})  # fmt: skip


def point(title, x, y, loss, accuracy, role="kept"):  # noqa: PLR0917
    return {"title": title, "series": title, "role": role, "x": x, "y": y, "off": 0.0, "loss": loss,
            "accuracy": accuracy}  # fmt: skip


LOOK = {
    "format": "mergelab-look/1", "title": "A <look>", "tasks": ["mnist", "fashion"],
    "titles": {"mnist": "MNIST", "fashion": "<i>Fashion</i>"},
    "runs": {"atm": {"kind": "atm", "title": "ATM", "rounds": 2, "epochs": 2},
             "one_shot": {"kind": "experts", "title": "experts", "rounds": 2, "epochs": 2}},
    "split": "held", "items": {"mnist": 8, "fashion": 8},
    "cost": {"landscape": {"evaluations": 7, "pictures": 112}}, "left_out": {"control": "No control <was> trained."},
    "seconds": 12.0,
    "landscape": {
        "xs": [0.0, 1.0], "ys": [0.0, 1.0], "loss": [[3.0, 1.0], [9.0, 2.0]], "accuracy": [[0.1, 0.6], [0.0, 0.4]],
        "tasks": {"mnist": {"loss": [[4.0, 1.5], [8.0, 2.5]]}, "fashion": {"loss": [[2.0, 0.5], [10.0, 1.5]]}},
        "points": [point("base", 0.0, 0.0, 3.0, 0.125, "base"), point("ATM", 1.0, 0.0, 1.0, 0.625, "merged"),
                   point("joint", 1.0, 1.0, 2.0, 0.5)],
        "paths": {"ATM": [[0.0, 0.0, 0.0], [0.5, 0.1, 0.25], [1.0, 0.0, 0.0]]}, "split": "held",
        "items": {"mnist": 8, "fashion": 8}, "evaluations": 7,
    },
    "barriers": [
        {"ends": ["base", "ATM"], "alphas": [0.0, 0.5, 1.0], "barrier": 0.0, "barriers": {"mnist": 0.0, "fashion": 0.0},
         "curves": {"mnist": [4.0, 1.4, 1.5], "fashion": [2.0, 0.4, 0.5], "mean": [3.0, 0.9, 1.0]}},
        {"ends": ["ATM", "joint"], "alphas": [0.0, 0.5, 1.0], "barrier": 2.5,
         "barriers": {"mnist": 3.0, "fashion": 2.0},
         "curves": {"mnist": [1.5, 5.0, 2.5], "fashion": [0.5, 3.0, 1.5], "mean": [1.0, 4.0, 2.0]}},
    ],
    "projection": {"names": ["base", "ATM 1", "ATM 2", "MNIST"], "coordinates": [[0, 0], [1, 0], [2, 1e-12], [0.5, -2]],
                   "explained": [0.6, 0.3], "paths": {"ATM": ["base", "ATM 1", "ATM 2"]},
                   "groups": {"base": "base", "ATM 1": "ATM", "ATM 2": "ATM", "MNIST": "experts"}},
    "orthogonality": {
        "rows": [{"run": run, "kind": "atm", "round": k, "epochs": float(k), "mean_abs": value, "norm": 0.5,
                  "norms": {}, "cosines": []}
                 for run, values in (("atm", (0.2, 0.1)), ("one_shot", (0.2, 0.3)))
                 for k, value in enumerate(values, 1)],
        "drift": {"atm": [
            {"round": k, "step": 0.4, "to_previous": None if k == 1 else 0.7, "from_start": 0.4 * k,
             "to_drift": {"mnist": None if k == 1 else 0.5, "fashion": None if k == 1 else 0.3},
             "contributed": {"cosines": [], "norms": {"mnist": 0.5, "fashion": 0.7}, "mean_abs": 0.2 + 0.05 * (k - 1)}}
            for k in (1, 2)
        ]},
    },
    "shares": {"mnist": {"norm": 0.75, "moved": 0.6, "epochs": [3.0, 1.0], "first_five": [0.75, 0.25], "even": 0.5},
               "fashion": {"norm": None, "moved": None, "epochs": [None, 1.0], "first_five": [None, None],
                           "even": 0.5}},
}  # fmt: skip


def row(name, k, rate, error, cosine, loss, accuracy):  # noqa: PLR0917
    both = {"mnist": error, "fashion": error * 2}
    return {"optimiser": name, "steps": k, "rate": rate, "error": both, "cosine": dict.fromkeys(both, cosine),
            "mean": {"error": error * 1.5, "cosine": cosine}, "moved": 1e-3, "loss": dict.fromkeys(both, loss),
            "accuracy": {"mnist": accuracy, "fashion": accuracy / 2}}  # fmt: skip


THEOREM = {
    "format": "mergelab-theorem/1", "base_model": "zoo:starter/base", "suite": "starter", "start": None,
    "titles": {"mnist": "MNIST", "fashion": "<i>Fashion</i>"}, "watch": {"split": "test", "items": {}}, "seed": 0,
    "device": "cpu", "data_used": "8 labelled <training> pictures", "tasks": ["mnist", "fashion"], "rate": 0.003,
    "adam_rate": 1e-5, "weight_decay": 0.1, "steps": [1, 2], "optimisers": ["gd", "adam"],
    "items": {"mnist": 8, "fashion": 8}, "batches": {}, "parameters": 1234567, "gradients": {}, "mean_gradient": 1.0,
    "base": {"loss": {"mnist": 3.0, "fashion": 2.0}, "accuracy": {"mnist": 0.2, "fashion": 0.1}},
    "rows": [row("gd", 1, 0.003, 2e-14, 1.0, 2.0, 0.4), row("gd", 2, 0.003, 0.3, 0.75, 1.5, 0.6),
             row("adam", 1, 1e-5, 20.0, 0.25, 1.25, 0.8), row("adam", 2, 1e-5, 18.0, 0.2, 1.0, 0.9)],
    "joint": [{"steps": 1, "apart": 3e-14, "rounds": 2e-14}, {"steps": 2, "apart": 0.5, "rounds": 1e-13}],
    "rounding": [{"rate": 1e-5, "float32": {"mnist": 0.002, "fashion": 0.003}, "float64": {"mnist": 1e-12}}],
    "decay": {"norm": 1.0, "share": {"mnist": 0.01}, "mean": 0.0122, "error": 1e-10}, "seconds": 42.0,
}  # fmt: skip


# ---- what is shown of a look -----------------------------------------------------------------------------------------


def test_the_landscape_has_heights_a_cap_and_its_numbers():
    assert [name for _, name in train_look_views.surfaces(LOOK)] == ["mean", "mnist", "fashion"]
    low, high, step, value = train_look_views.cap(LOOK, "mean")
    assert low > 1.0 and high >= 9.0 and value == pytest.approx(4.6, abs=step), "1.5 times the worst marked model"
    plot, text, table = train_look_views.landscape(LOOK, "mean", 4.6)
    surface = next(iter(json.loads(plot.plot)["data"]))
    assert surface["z"] == [[3.0, 1.0], [9.0, 2.0]] and surface["zmax"] == 4.6 and surface["zmin"] == 1.0
    assert traces(plot)["rounds of ATM"]["x"] == [0.0, 0.5, 1.0]
    assert "through base, ATM and joint, the mean loss of all tasks goes from 1.00 at (1, 0) to 9.00" in text
    assert "ATM is lowest with 1.00, and no place of the grid is lower" in text
    assert "ATM 1.000 62.5 1 0" in plain(table) and "ATM 2 0.25 1, 0" in plain(table), "off the plane is said"
    assert "8 held-out validation pictures a task" in plain(table)
    fashion, text, _ = train_look_views.landscape(LOOK, "fashion", None)
    assert next(iter(json.loads(fashion.plot)["data"]))["z"][1] == [10.0, 1.5] and "from 0.50" in text


def test_lines_and_models_on_paper_have_tables():
    assert [place for _, place in train_look_views.lines(LOOK)] == [0, 1]
    _, text, table = train_look_views.barriers(LOOK, 0)
    assert "lowest (0.90) at a share of 0.50 of ATM; it never rises above" in text
    plot, text, table = train_look_views.barriers(LOOK, 1)
    assert "from 1.00 to 2.00, and between them rises up to 2.50 above the chord (dotted): a barrier." in text
    assert "ATM – joint 1.00 → 2.00 2.500 3.000 MNIST" in plain(table) and traces(plot)["mean"]["y"] == [1, 4, 2]
    assert "base – ATM 3.00 → 1.00 0.000 –" in plain(table)
    plot, text, table = train_look_views.projection(LOOK)
    assert "4 models" in text and "90%" in text and "ATM 2 2 0" in plain(table), "rounding is nothing"
    assert "MNIST experts 0.5 -2" in plain(table) and "Coordinates as CSV" in table and "rounds of ATM" in traces(plot)


def test_cosines_stand_beside_their_controls_and_shares_beside_an_even_split():
    epochs, series = train_look_facts.cosine_lines(LOOK)
    assert epochs == ["1", "2"]
    assert series == {"ATM": [0.2, 0.1], "experts": [0.2, 0.3], "ATM, summed over rounds": [0.2, 0.25]}
    plot, text, table = train_look_facts.orthogonality(LOOK)
    assert "ATM 0.100; experts 0.300; ATM, summed over rounds 0.250" in text and "says little by itself" in text
    assert "ATM 2 2 0.100 0.5" in plain(table) and "No control &lt;was&gt; trained." in table and plot is not None
    alone = copy.deepcopy(LOOK)
    for one in [*alone["orthogonality"]["rows"], *(r["contributed"] for r in alone["orthogonality"]["drift"]["atm"])]:
        one["mean_abs"] = None
    assert "With one task there is no pair" in train_look_facts.orthogonality(alone)[1]
    assert "2 0.4 0.700 0.8 0.400 0.250 0.6" in plain(train_look_facts.drift(LOOK))
    shares = train_look_facts.shares(LOOK)
    assert "MNIST 2 0.50 0.75 0.60 0.75 0.25" in plain(shares) and "<i>" not in shares and "– –" in plain(shares)
    assert "All of it as JSON" in train_look_views.files(LOOK)


def test_what_is_missing_is_said():
    bare = {**LOOK, "left_out": {"landscape": "atm has not kept its <rounds>."}}
    for part in ("landscape", "barriers", "projection", "orthogonality", "shares"):
        bare = {key: value for key, value in bare.items() if key != part}
    shown = [text for text in train_look.everything(bare) if isinstance(text, str)]
    assert any("The landscape: atm has not kept its &lt;rounds&gt;." in text for text in shown)
    assert any("The first epoch&#x27;s share: not looked at." in text for text in shown)
    no_drift = copy.deepcopy(LOOK)
    no_drift["orthogonality"]["drift"] = {}
    no_drift["left_out"]["drift"] = "run it again"
    assert "The drift: run it again" in train_look_facts.drift(no_drift)
    assert train_look.everything(None)[0]["visible"] is False


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("landscape", []), ("landscape", {**LOOK["landscape"], "loss": [["a"]]}), ("landscape", None),
        ("landscape", {**LOOK["landscape"], "loss": []}), ("landscape", {**LOOK["landscape"], "points": [{}]}),
        ("barriers", [{}]), ("barriers", []), ("barriers", 7), ("barriers", [{**LOOK["barriers"][0], "curves": []}]),
        ("projection", {"names": 3}), ("projection", {**LOOK["projection"], "explained": ["x", 1]}),
        ("orthogonality", {"rows": [{}], "drift": {}}), ("orthogonality", 1), ("shares", {"mnist": {}}),
        ("shares", "x"), ("titles", None), ("items", None), ("runs", []), ("left_out", 3),
    ],
)  # fmt: skip
def test_a_damaged_part_is_a_sentence_and_the_others_stay(part, value):
    pieces = train_look.everything({**LOOK, part: value})
    texts = " ".join(piece for piece in pieces if isinstance(piece, str))
    assert part == "left_out" or "is damaged" in texts
    assert sum(type(piece).__name__ == "PlotData" for piece in pieces) >= (1 if part in ("titles", "items") else 3)


def test_what_a_look_will_cost_is_said_before():
    runs = document(RECIPE, ("joint",))
    planned = train_look_facts.planned(runs)
    count = train_look_facts.STEPS**2 + 3
    assert planned["landscape"] == {"evaluations": count, "pictures": count * 2 * train_look_facts.LIMIT}
    assert planned["barriers"]["evaluations"] == 3 * train_look_facts.STEPS, "base, ATM and joint: three lines"
    line = plain(train_look_facts.cost_line(planned, runs))
    assert f"{count} evaluations" in line and "about" in line and "Nothing is chosen by them" in line
    assert "Nothing needs to be measured" in train_look_facts.cost_line({}, None)
    alone = train_look_facts.planned(document(RECIPE, (), 1))
    assert "landscape" not in alone, "base and one round are no plane"


def test_rounds_are_kept_while_they_take_little_room():
    small = 60 * 10**6
    assert rounds_bytes(RECIPE, (), small) == 2 * 3 * small, "each round: the model and two experts"
    assert rounds_bytes(RECIPE, ("joint",), small) == (6 + 2 * 2 + 3) * small, "joint's optimiser goes on with moments"
    assert rounds_bytes(RECIPE, ("joint", "one_shot"), small) <= _MOST_KEPT
    long = RECIPE.replace(budget=type(RECIPE.budget)(rounds=30))
    assert rounds_bytes(long, ("joint",), small) > _MOST_KEPT


# ---- what is shown of a theorem lab ----------------------------------------------------------------------------------


def test_the_theorem_has_figures_tables_and_a_sentence():
    text, errors, cosines, accuracy, table, more = train_theorem_views.everything(THEOREM)
    assert "to a relative error of 3e-14; after 2 steps it is 45% off" in text
    assert traces(errors)["GD, full batch"]["y"] == pytest.approx([3e-14, 0.45])
    assert traces(cosines)["Adam"]["y"] == [0.25, 0.2] and "base" in traces(accuracy)
    assert "the base 0 – – 2.50 15.0" in plain(table)
    assert "GD, full batch 2 0.45 0.750 1.50 45.0" in plain(table)
    assert "Rates η: GD, full batch 0.003; Adam 1e-05." in table
    assert "2 0.5 1e-13" in plain(more) and "0.002 to 0.003 at η = 1e-05" in plain(more) and "1.22%" in more
    assert "8 labelled &lt;training&gt; pictures; 1,234,567 weights; 42 s" in more and "All of it as JSON" in more
    fashion = train_theorem_views.everything(THEOREM, "fashion")
    assert traces(fashion[1])["GD, full batch"]["y"] == pytest.approx([4e-14, 0.6])
    assert "GD, full batch 2 0.6 0.750 1.50 30.0" in plain(fashion[4]) and "<i>" not in fashion[4]
    assert train_theorem_views.everything(None)[1] is None


@pytest.mark.parametrize("part", ["rows", "base", "joint", "rounding", "items", "parameters"])
def test_a_damaged_theorem_is_a_sentence(part):
    assert "is damaged" in train_theorem_views.everything({**THEOREM, part: "x"})[4]


def test_a_lab_of_ones_own_is_checked(settings):
    page = SimpleNamespace(settings=settings)
    recipe = lab_recipe(page, ["mnist", "fashion"], 16.0, ["gd", "adam"], SELECTION)
    assert recipe.tasks == ("mnist", "fashion") and recipe.images == 16 and recipe.watch.split == "test"
    assert train_theorem_views.gradients(2, 16, 2, 10, gd=True) == 2 * 16 * 43
    with pytest.raises(MergeLabError, match="at least one task and one optimiser"):
        lab_recipe(page, [], 16, ["gd"], SELECTION)
    with pytest.raises(MergeLabError, match="no suite"):
        lab_recipe(page, ["mnist"], 16, ["gd"], {**SELECTION, "suite": ""})
    public = SimpleNamespace(settings=Settings.from_env({"SPACE_ID": "org/space"}))
    lab_recipe(public, ["mnist", "fashion"], 16, ["gd", "adam"], SELECTION)
    with pytest.raises(MergeLabError, match=r"this page allows 4,000"):
        lab_recipe(public, ["mnist", "fashion"], 64, ["gd", "adam"], SELECTION)


# ---- recorded files --------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "assets" / "training"
    for name in ("looks", "theorem"):
        (folder / name).mkdir(parents=True)
    monkeypatch.setattr(recordings, "assets", lambda: tmp_path / "assets")
    return folder


def test_recorded_files_open_by_name_and_bad_ones_are_sentences(shipped: Path):
    assert recordings.recordings() == {} and recordings.theorems() == {} and recordings.look("starter") is None
    (shipped / "looks" / "starter.json").write_text(json.dumps(LOOK))
    (shipped / "looks" / "broken.json").write_text("{")
    (shipped / "looks" / "other.json").write_text('{"format": "x"}')
    (shipped / "looks" / "large.json").write_text(" " * (17 << 20))
    assert recordings.recordings() == {}, "a look is no run"
    assert recordings.look("starter")["title"] == "A <look>"
    for name in ("nope", "../looks/starter", None):
        assert recordings.look(name) is None
    for name, word in (("broken", "not valid JSON"), ("other", "the format is 'x'"), ("large", "larger than 16 MB")):
        with pytest.raises(CheckpointError, match=word):
            recordings.look(name)
    (shipped / "theorem" / "low.json").write_text(json.dumps({**THEOREM, "rate": 0.0001}))
    (shipped / "theorem" / "a.json").write_text(json.dumps(THEOREM))
    (shipped / "theorem" / "broken.json").write_text("[")
    (shipped / "theorem" / "odd.json").write_text(json.dumps({**THEOREM, "rate": [1]}))
    assert recordings.theorems() == {"a": "η = 0.003", "low": "η = 0.0001", "broken": "broken", "odd": "odd"}
    with pytest.raises(CheckpointError, match="not valid JSON"):
        recordings.theorem("broken")
    with pytest.raises(CheckpointError, match="no such recorded lab"):
        recordings.theorem("../theorem/a")


def test_the_shipped_theorems_are_drawn():
    lab = Lab(Settings())
    assert lab.theorems(), "they are in assets/training/theorem"
    for name in lab.theorems():
        found = lab.theorem(name)
        text, *figures, table, _ = train_theorem_views.everything(found)
        assert "relative error" in text and all(figures) and "damaged" not in table
        assert found["base_model"].startswith("zoo:") and "/" not in found["suite"], "no path of a machine"


# ---- the page --------------------------------------------------------------------------------------------------------


class LookTraining(FakeTraining):
    """Looks and labs by formula; a look goes on once ``looks`` lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = threading.Semaphore(0)

    def look(self, folder, *, told, progress, stop):
        assert (folder / "compare.json").is_file()
        told(LOOK["cost"])
        progress(1, 7, "landscape, base")
        while not self.looks.acquire(timeout=0.02):
            stop.check()
        if self.fails:
            raise self.fails
        return LOOK

    def theorem(self, recipe, *, progress, stop, rate, steps, optimisers):
        progress(1, 2, "gradients of mnist")
        stop.check()
        if self.fails:
            raise self.fails
        return {**THEOREM, "rate": rate, "steps": list(steps), "optimisers": list(optimisers)}


class LookLab(FakeLab):
    def __init__(self, settings):
        super().__init__(settings)
        self.train_bench = LookTraining()

    def training(self, selection):
        return self.train_bench


@pytest.fixture
def lab(settings, tmp_path: Path, monkeypatch, shipped) -> LookLab:
    monkeypatch.setenv("MERGELAB_HOME", str(tmp_path / "home"))
    return LookLab(settings)


def component(page, elem_id: str) -> dict:
    return next(c["props"] for c in page.config["components"] if c["props"].get("elem_id") == elem_id)


def done(lab: LookLab):
    run = lab.runs.start(SELECTION, RECIPE, ("joint",))
    lab.train_bench.gate.release(2)
    wait(lambda: run.over)
    assert run.status == "done"
    return run


def test_a_recorded_look_opens_with_its_run(lab: LookLab, settings, shipped: Path):
    (shipped / "starter.json").write_text(json.dumps(document(RECIPE)))
    (shipped / "looks" / "starter.json").write_text(json.dumps(LOOK))
    page = build_app(lab, settings)
    assert component(page, "train-look")["open"] is False and component(page, "train-theorem")["open"] is False
    choose = handler(page, "choose_look")
    opened = handler(page, "open_recorded")("starter", None)
    assert opened[5] == "starter"
    look, own, *_, said, _ = choose("recorded", "starter", None, opened[1])
    assert look["title"] == "A <look>" and own["visible"] is False and "Recorded with the run" in said
    pieces = handler(page, "show_look")(look)
    assert pieces[0]["visible"] is True and sum(type(p).__name__ == "PlotData" for p in pieces) == 4
    slider, *_ = handler(page, "show_height")(look, "mnist")
    assert slider["visible"] is True
    (shipped / "looks" / "starter.json").write_text("[")
    look, *_, said, _ = choose("recorded", "starter", None, None)
    assert look is None and 'role="alert"' in said
    assert "No look at the weights was recorded" in choose("recorded", "other", None, None)[-2]
    assert "Once a run of yours has ended" in choose("run", None, None, None)[-2]


def follow_all(lines):
    """In a thread of its own: the browser's tests leave a loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(lines)).result()


def test_a_run_of_ones_own_is_looked_at_with_progress_and_stop(lab: LookLab, settings):
    page = build_app(lab, settings)
    run = done(lab)
    choose, follow = handler(page, "choose_look"), handler(page, "follow_look")
    look, own, go, stop, cost, job, said, watch = choose("run", None, run.name, run.document)
    assert look is None and own["visible"] and go["interactive"] and not stop["interactive"] and job == ""
    assert "evaluations" in cost and "not looked at yet" in said

    _, _, watch = handler(page, "look_at")(run.name)

    async def lines(after_first):
        seen = []
        async for shown in follow(watch):
            seen.append(shown)
            if "landscape" in str(shown[0]).lower() or len(seen) == 1:
                after_first()
        return seen

    wait(lambda: run.looking.step is not None)
    assert choose("run", None, run.name, run.document)[-1]["run"] == run.name, "whoever comes back follows it"
    seen = follow_all(lines(lambda: handler(page, "stop_look")(run.name)))
    assert "Landscape, base" in seen[0][0] and "7 evaluations" in seen[0][1] and seen[0][3]["interactive"] is True
    assert seen[-1][2]["interactive"] is True and "Stopped." in choose("run", None, run.name, run.document)[-2]

    _, _, watch = handler(page, "look_at")(run.name)
    follow_all(lines(lab.train_bench.looks.release))
    look, *_, said, _ = choose("run", None, run.name, run.document)
    assert look == LOOK and "Looked at in 12 s, on 8 held-out validation pictures a task." in said
    found = LookLab(settings).runs.find(run.name)
    assert found.look == LOOK, "it is in the run's folder"

    lab.train_bench.fails = ValueError("secret /home/someone")
    lab.runs.look(run.name)
    lab.train_bench.looks.release()
    wait(lambda: run.looking.over)
    assert run.looking.status == "failed" and "secret" not in run.looking.said
    lab.train_bench.fails = None


def test_only_what_is_done_is_looked_at(lab: LookLab, settings):
    page = build_app(lab, settings)
    assert "no run yet" in handler(page, "look_at")(None)[0]
    run = lab.runs.start(SELECTION, RECIPE, ())
    with pytest.raises(MergeLabError, match="once the run has ended"):
        lab.runs.look(run.name)
    lab.train_bench.gate.release(2)
    wait(lambda: run.over)
    lab.runs.look(run.name)
    wait(lambda: run.looking.step is not None)
    other = lab.runs.start(SELECTION, RECIPE, (), run.name)
    wait(lambda: run.looking.over)
    assert run.looking.status == "stopped" and not run.folder.exists(), "a run that is let go of ends its look"
    lab.runs.stop(other.name)
    wait(lambda: other.over)


def test_the_theorem_lab_opens_and_runs_here(lab: LookLab, settings, shipped: Path):
    assert component(build_app(lab, settings), "theorem-of")["visible"] is False
    (shipped / "theorem" / "a.json").write_text(json.dumps(THEOREM))
    page = build_app(lab, settings)
    open_lab = handler(page, "open_lab")
    assert open_lab("a", None)[0]["rate"] == 0.003 and "No lab was recorded" in open_lab(None, None)[1]
    assert 'role="alert"' in open_lab("nope", None)[1]
    view, part, *pieces = handler(page, "show_lab")(THEOREM, "gone")
    assert view["visible"] is True and part["value"] == "mean" and len(pieces) == 6
    run, request = handler(page, "run_lab"), SimpleNamespace(session_hash="someone")
    seen = list(run(["mnist"], 16, ["gd"], 0.01, SELECTION, request))
    assert "Starting" in seen[0][0] and seen[0][2]["interactive"] is True
    assert "Done in" in seen[-1][0] and seen[-1][3]["rate"] == 0.01
    assert seen[-1][4]["choices"] == [("η = 0.003", "a"), ("run here, η = 0.01", "here")]
    assert open_lab("here", seen[-1][3])[0]["rate"] == 0.01
    lab.train_bench.fails = ValueError("secret")
    failed = list(run(["mnist"], 16, ["gd"], 0.01, SELECTION, request))[-1]
    assert 'role="alert"' in failed[0] and "secret" not in failed[0] and failed[1]["interactive"] is True
    assert "at least one task" in list(run([], 16, ["gd"], 0.01, SELECTION, request))[-1][0]

"""The verb theorem on a tiny zoo: what is printed, written and read back; what is wrong is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tasks.tiny_zoo import make_zoo

from mergelab import cli
from mergelab.errors import CheckpointError
from mergelab.recipe import Recipe
from mergelab.runs.training.theorem import read_theorem, theorem_lab
from mergelab.runs.training.watch import Watch
from mergelab.tasks import evaluate
from mergelab.training.ground import Ground
from mergelab.training.recipe import TrainRecipe
from mergelab.training.recipe import Watch as Watched

LIMIT = 12


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("theorem"))


def arguments(zoo: Path, *more: str) -> list[str]:
    return ["theorem", "--suite", str(zoo), "--images", "6", "--steps", "1,2", "--limit", str(LIMIT), "--device", "cpu",
            *more]  # fmt: skip


def test_it_prints_tables_and_writes_what_it_found(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "theorem.json"
    assert cli.main(arguments(zoo, "--out", str(out))) == 0
    told = capsys.readouterr().out
    found = read_theorem(out)
    assert found["format"] == "mergelab-theorem/1" and found["tasks"] == ["grey", "colour"]
    assert found["items"] == {"grey": 6, "colour": 6} and found["batches"] == {"grey": 2, "colour": 2}
    assert found["watch"] == {"split": "test", "items": {"grey": LIMIT, "colour": LIMIT}}
    rows = {(row["optimiser"], row["steps"]): row for row in found["rows"]}
    assert len(rows) == 5 * 2
    assert all(rows[name, 1]["mean"]["error"] < 1e-9 for name in ("gd", "momentum"))
    assert rows["gd", 2]["mean"]["error"] > 1e-6 and rows["adam", 1]["mean"]["error"] > 0.1
    assert all(row["rounds"] < 1e-9 for row in found["joint"])
    for said in ("gd", "adamw", "ATM", "float32", "weight decay is the same vector", "6 labelled training pictures"):
        assert said in told
    base = evaluate(str(zoo / "base"), str(zoo), limit=LIMIT, tasks=["grey", "colour"], device="cpu").to_dict()
    assert found["base"]["accuracy"] == pytest.approx({n: t["accuracy"] for n, t in base["tasks"].items()}, abs=1e-6)


def test_json_is_the_document_and_nothing_else(zoo: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(arguments(zoo, "--tasks", "grey", "--optimisers", "gd", "--watch", "none", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"] == ["grey"] and found["optimisers"] == ["gd"]
    assert found["base"]["accuracy"] is None and found["decay"] is None
    assert cli.main(arguments(zoo, "--tasks", "grey", "--optimisers", "sgd", "--watch", "none")) == 0
    assert "–" in capsys.readouterr().out


def test_the_base_may_be_a_merge(zoo: Path):
    start = Recipe("linear", (str(zoo / "experts" / "grey"), str(zoo / "experts" / "colour")))
    recipe = TrainRecipe("experts", str(zoo / "base"), str(zoo), images=6, watch=Watched("test", LIMIT), start=start)
    found = theorem_lab(recipe, device="cpu", steps=(1,), optimisers=("gd",))
    ground = Ground(recipe, "cpu")  # the tiny zoo's experts are its base
    shares = Watch(ground, "test", LIMIT).measure(None).accuracy
    assert found["base"]["accuracy"] == pytest.approx(shares, abs=1e-6) and found["start"]["merge_method"] == "linear"


def test_a_file_is_never_written_over_unasked(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "kept.json"
    out.write_text("mine")
    assert cli.main(arguments(zoo, "--out", str(out))) == 2
    assert "kept.json" in capsys.readouterr().err and out.read_text() == "mine"


WRONG = {
    "steps that are no numbers": (["--steps", "1,two"], "1,two"),
    "an unknown optimiser": (["--optimisers", "adm"], "adam"),
    "an unknown task": (["--tasks", "gray"], "gray"),
    "no rate": (["--rate", "0"], "rate"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence_and_status_2(case: str, zoo: Path, capsys: pytest.CaptureFixture[str]):
    more, named = WRONG[case]
    assert cli.main(arguments(zoo, *more)) == 2
    told = capsys.readouterr()
    assert told.out == "" and named in told.err and len(told.err.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ['{"format": "mergelab-theorem/2"}', "[]", "{", ""])
def test_another_file_is_refused(text: str, tmp_path: Path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"other\.json"):
        read_theorem(path)
    with pytest.raises(CheckpointError, match=r"none\.json"):
        read_theorem(tmp_path / "none.json")

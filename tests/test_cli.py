"""The command line as a program that others call: exit statuses, streams, contracts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergelab import cli


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A base and two experts with known differences."""
    base = {"layer.weight": torch.zeros(4, 3), "layer.bias": torch.ones(4)}
    for name, step in (("base", 0.0), ("one", 1.0), ("two", 3.0)):
        save_file({key: value + step for key, value in base.items()}, tmp_path / f"{name}.safetensors")
    return tmp_path


def recipe(folder: Path, **changes: object) -> Path:
    document: dict[str, object] = {
        "merge_method": "task_arithmetic",
        "base_model": str(folder / "base.safetensors"),
        "models": [{"model": str(folder / "one.safetensors")}, {"model": str(folder / "two.safetensors")}],
        "parameters": {"lambda": 0.5},
    }
    document.update(changes)
    path = folder / "recipe.json"
    path.write_text(json.dumps(document))
    return path


def test_merge_writes_a_folder_that_loads_and_holds_the_sum(models: Path, capsys: pytest.CaptureFixture[str]):
    out = models / "merged"
    assert cli.main(["merge", str(recipe(models)), "--out", str(out), "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["models"] == 2 and Path(told["out"]) == out
    (file,) = out.glob("*.safetensors")
    assert torch.equal(load_file(file)["layer.weight"], torch.full((4, 3), 2.0))  # 0.5 * (1 + 3)
    assert torch.equal(load_file(file)["layer.bias"], torch.full((4,), 3.0))


def test_merge_never_writes_over_a_result(models: Path, capsys: pytest.CaptureFixture[str]):
    out = models / "merged"
    arguments = ["merge", str(recipe(models)), "--out", str(out)]
    assert cli.main(arguments) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert cli.main(arguments) == 2
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert "merged" in capsys.readouterr().err
    assert cli.main([*arguments, "--overwrite"]) == 0


def test_check_says_yes_with_status_0_and_no_with_status_1(models: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check", str(recipe(models))]) == 0
    assert "It can run." in capsys.readouterr().out
    save_file({"layer.weight": torch.zeros(4, 5), "layer.bias": torch.ones(4)}, models / "two.safetensors")
    assert cli.main(["check", str(recipe(models)), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert any("layer.weight" in finding["text"] for finding in report["findings"] if finding["level"] == "error")


def test_methods_json_is_the_contract(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {
        "linear",
        "task_arithmetic",
        "ties",
        "dare_linear",
        "dare_ties",
        "slerp",
        "model_stock",
        "breadcrumbs",
        "tsv_m",
    } <= {method["name"] for method in listed}
    keys = {"name", "title", "kind", "summary", "formula", "paper", "base", "models", "data", "parameters"}
    for method in listed:
        assert keys <= set(method)
        assert set(method["models"]) == {"min", "max"}
        for parameter in method["parameters"]:
            assert {"name", "type", "default", "range", "per_model", "help"} <= set(parameter)


WRONG = {
    "a file that is not there": (["check", "nowhere.yaml"], "nowhere.yaml"),
    "an unknown method": (["methods", "tie"], "'ties'"),
    "a source of no known form": (["inspect", "mnsit"], "mnsit"),
    "an unknown zoo": (["inspect", "zoo:startr/base"], "startr"),
    "an unknown suite": (["evaluate", "zoo:starter/base", "--suite", "startr"], "startr"),
    "a size that is none": (["merge", "x.yaml", "--out", "y", "--max-shard-size", "many"], "many"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence_and_status_2(case: str, capsys: pytest.CaptureFixture[str]):
    arguments, named = WRONG[case]
    assert cli.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert named in told.err and "Traceback" not in told.err
    assert len(told.err.strip().splitlines()) == 1


BROKEN = {
    "an unknown key": ({"merge_methd": "ties"}, "merge_method"),
    "an unknown method": ({"merge_method": "tiess"}, "'ties'"),
    "an unknown parameter": ({"parameters": {"lamda": 1.0}}, "'lambda'"),
    "a parameter out of range": ({"merge_method": "ties", "parameters": {"density": 7}}, "density"),
    "an empty list of models": ({"models": []}, "models"),
    "a base that is missing": ({"base_model": None}, "base"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_recipe_is_one_sentence_and_leaves_nothing(
    case: str, models: Path, capsys: pytest.CaptureFixture[str]
):
    changes, named = BROKEN[case]
    assert cli.main(["merge", str(recipe(models, **changes)), "--out", str(models / "out")]) == 2
    told = capsys.readouterr().err
    assert named in told and "Traceback" not in told and len(told.strip().splitlines()) == 1
    assert not list(models.glob("out*"))


def test_weights_that_are_not_are_named(models: Path, capsys: pytest.CaptureFixture[str]):
    bad = torch.ones(4, 3)
    bad[1, 2] = float("nan")
    save_file({"layer.weight": bad, "layer.bias": torch.ones(4)}, models / "two.safetensors")
    assert cli.main(["merge", str(recipe(models)), "--out", str(models / "out")]) == 2
    told = capsys.readouterr().err
    assert "NaN" in told and "layer.weight" in told and "two" in told
    assert not list(models.glob("out*"))


@pytest.mark.parametrize("verb", ["merge", "check", "methods", "evaluate", "inspect", "search", "zoo", "app", "twin"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_the_readme_shows_the_methods_as_they_are_declared(root: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["methods", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() in (root / "README.md").read_text()

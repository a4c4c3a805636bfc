"""`merge` and `check` of matched methods from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergelab import cli
from mergelab.checkpoints import load
from mergelab.statistics import Block, TaskStatistics, write


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A base, two experts, statistics of both in the folder ``stats``."""
    random = torch.Generator().manual_seed(0)
    base = {"layer.weight": torch.randn(4, 3, generator=random), "layer.bias": torch.ones(4)}
    (tmp_path / "stats").mkdir()
    for name in ("base", "one", "two"):
        state = base if name == "base" else {k: t + 0.1 * torch.randn(t.shape, generator=random) for k, t in
                                             base.items()}  # fmt: skip
        path = tmp_path / f"{name}.safetensors"
        save_file(state, path)
        if name != "base":
            rows = torch.randn(20, 3, generator=random)
            block = Block(rows.T @ rows / 20, torch.eye(4)[None], rows=20, layout="linear", shape=(4, 3))
            made = TaskStatistics(name, {"layer.weight": block}, weights_hash=load(str(path)).weights_hash,
                                  fisher="empirical", split="val", examples=7)  # fmt: skip
            write(made, tmp_path / "stats" / f"{name}.safetensors")
    return tmp_path


def recipe(folder: Path, **changes: object) -> str:
    document: dict[str, object] = {
        "merge_method": "mats",
        "base_model": str(folder / "base.safetensors"),
        "models": [{"model": str(folder / "one.safetensors")}, {"model": str(folder / "two.safetensors")}],
        "init": "base",
        **changes,
    }
    path = folder / "recipe.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_merge_with_statistics_beside_the_recipe(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With unit output factors and enough steps it is RegMean's closed form."""
    out = models / "out"
    path = recipe(models, parameters={"iterations": 100}, statistics="not/there")
    assert cli.main(["merge", path, "--stats", str(models / "stats"), "--out", str(out), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "Tensors: 1 by average, 1 by cg" in told
    assert "1 average: no K-FAC factors: not the weight of a linear layer that was seen with gradients (" in told
    weights = [load_file(models / f"{name}.safetensors")["layer.weight"] for name in ("one", "two")]
    grams = []
    for name in ("one", "two"):
        found = load_file(models / "stats" / f"{name}.safetensors")
        grams.append(found["layer.weight/inputs"])
    expected = sum(w @ a for w, a in zip(weights, grams, strict=True)) @ torch.linalg.inv(sum(grams))
    torch.testing.assert_close(load_file(out / "model.safetensors")["layer.weight"], expected, rtol=1e-4, atol=1e-4)
    written = (out / "mergelab_recipe.yaml").read_text()
    assert f"statistics: {models / 'stats'}" in written
    solve = json.loads((out / "mergelab_solve.json").read_text())
    assert solve["summary"]["by"] == {"average": 1, "cg": 1}


def test_merge_as_json_has_the_summary(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(models, merge_method="regmean", statistics=str(models / "stats"))
    assert cli.main(["merge", path, "--out", str(models / "out"), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["solve"]["by"] == {"average": 1, "cholesky": 1}


def test_a_folder_that_is_not_there_gives_the_command(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(models, statistics="no/such")
    assert cli.main(["merge", path, "--out", str(models / "out")]) == 2
    said = capsys.readouterr().err
    assert (
        "There is no folder 'no/such' with statistics; make it with `python -m mergelab stats SOURCE --kinds kfac"
        in said
    )
    assert not (models / "out").exists()
    assert cli.main(["check", path]) == 1
    assert cli.main(["check", path, "--stats", str(models / "stats")]) == 0
    assert "MaTS starts from the base." in capsys.readouterr().out


def test_methods_says_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "mats"]) == 0
    said = capsys.readouterr().out
    assert "needs    statistics (kfac; see `python -m mergelab stats --help`)" in said
    assert "init     any merge of the same models" in said
    assert cli.main(["methods", "--json"]) == 0
    found = {method["name"]: method for method in json.loads(capsys.readouterr().out)}
    assert found["regmean"]["statistics"] == ["gram"] and found["regmean"]["init"]
    assert found["ties"]["statistics"] == [] and not found["ties"]["init"] and not found["ties"]["learns"]
    assert found["adamerging"]["learns"]


def test_a_solution_that_ran_away_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One input direction a task, 0.01 apart, that want 1 and -1: the answer is 200 times as large as the models."""
    (tmp_path / "stats").mkdir()
    for name, sign, row in (("one", 1, torch.tensor([1.0, 0.0])), ("two", -1, torch.tensor([1.0, 0.01]))):
        path = tmp_path / f"{name}.safetensors"
        save_file({"layer.weight": sign * row[None] / float(row @ row)}, path)
        block = Block(torch.outer(row, row), rows=1, layout="linear", shape=(1, 2))
        made = TaskStatistics(name, {"layer.weight": block}, weights_hash=load(str(path)).weights_hash, examples=1)
        write(made, tmp_path / "stats" / f"{name}.safetensors")
    path = recipe(tmp_path, merge_method="regmean", base_model=None, init=None, parameters={"off_diagonal": 1.0},
                  dtype="float64", statistics=str(tmp_path / "stats"))  # fmt: skip
    assert cli.main(["merge", path, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "Tensors: 1 by eigen\n  look at layer.weight: its norm is 200, that of the largest model 1\n" in said

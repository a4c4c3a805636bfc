"""RegMean++ from a recipe: pictures of every task, no labels, one merge that is what its inputs have passed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training.learn_zoo import moved_zoo

from mergelab import cli
from mergelab.calibration import collect
from mergelab.checkpoints import load
from mergelab.engine import merge_to_memory, plan_recipe, preflight
from mergelab.errors import MergeLabError, MethodError, RecipeError, StatisticsError, TaskError
from mergelab.models import build
from mergelab.recipe import Recipe
from mergelab.runs import Bench
from mergelab.runs.choose import choose
from mergelab.runs.collected import prepare, said
from mergelab.statistics import write
from mergelab.tasks import heads_for, load_suite

TASKS = ("grey", "colour")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved_zoo(tmp_path_factory.mktemp("through") / "tiny")


def recipe(zoo: Path, **more: Any) -> Recipe:
    given = {
        "merge_method": "regmean_pp", "base_model": str(zoo / "base"), "suite": str(zoo),
        "models": [{"model": str(zoo / "experts" / name), "name": name} for name in TASKS],
        "parameters": {"examples": 12, "off_diagonal": 1.0},
    }  # fmt: skip
    return Recipe.from_dict({**given, **more})


def test_grams_are_those_of_the_merged_model_up_to_each_block(zoo: Path) -> None:
    """The first block's first layers see what RegMean's see of an averaged stem; the second's, the merged first's."""
    made = prepare(recipe(zoo), device="cpu")
    merged = merge_to_memory(made)
    assert made.statistics[0].meta["blocks"] == ["encoder.layer.0", "encoder.layer.1"]
    assert [s.examples for s in made.statistics] == [12, 12] and made.statistics[0].split == "val"
    suite = load_suite(zoo)
    mean = {n: sum(load(zoo / "experts" / t)[n].float() for t in TASKS) / 2 for n in load(zoo / "base")}
    model = build(str(zoo / "base"), device="cpu")
    pixels = model.pixels(suite["colour"].split("val")[0][_places(suite)])
    layers = model.own_names(list(merged))
    for block, state in (("encoder.layer.0", mean), ("encoder.layer.1", merged)):
        model.load_state(state)
        names = [n for n in merged if n.startswith(block) and any(k in n for k in ("q_proj.w", "query.w"))]
        found = []
        part = model.module.get_submodule(layers[names[0]].removesuffix(".weight"))
        norm = model.module.get_submodule(f"{block}.norm1")
        own = load(zoo / "experts" / "colour")
        with torch.no_grad():  # the block's own norm is the expert's
            norm.weight.copy_(own[f"{block}.norm1.weight"])
            norm.bias.copy_(own[f"{block}.norm1.bias"])
            handle = part.register_forward_pre_hook(lambda _m, args, f=found: f.append(args[0].flatten(0, -2)))
            model.through(model.module, pixels)
            handle.remove()
        rows = torch.cat(found)
        expected = rows.T @ rows / len(rows)
        torch.testing.assert_close(made.statistics[1].block(names[0]).inputs, expected, rtol=1e-4, atol=1e-4)


def _places(suite: Any) -> torch.Tensor:
    from mergelab.training.inputs import drawn

    return drawn(len(suite["colour"].split("val")[0]), 12, 0, "colour/val")


def test_the_command_line_collects_and_merges(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    wanted = recipe(zoo, parameters={"examples": 12, "off_diagonal": 1.0, "inputs": "test"})
    path.write_text(wanted.to_yaml())
    assert cli.main(["check", str(path)]) == 0
    assert "RegMean++ collects statistics first, block by block" in capsys.readouterr().out
    assert cli.main(["merge", str(path), "--out", str(out), "--device", "cpu"]) == 0
    assert "12 by cholesky" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert "12 unlabelled test pictures a task of grey, colour (transductive" in card
    expected = merge_to_memory(prepare(wanted, device="cpu"))
    written = load(out)
    for name, tensor in expected.items():
        assert torch.equal(written[name], tensor), name
    assert Recipe.read(out / "mergelab_recipe.yaml").hash == wanted.hash
    assert cli.main(["evaluate", str(out), "--suite", str(zoo), "--limit", "5", "--json"]) == 0
    assert set(TASKS) <= set(json.loads(capsys.readouterr().out)["tasks"])


def test_it_is_not_regmean_and_depends_on_all_experts(zoo: Path) -> None:
    """Only the last block is another than with statistics that the first blocks' merge did not pass."""
    one = merge_to_memory(prepare(recipe(zoo), device="cpu"))
    models = [{"model": str(zoo / "experts" / name), "name": name} for name in TASKS]
    models[0]["parameters"] = {"weight": 3.0}
    other = merge_to_memory(prepare(recipe(zoo, models=models), device="cpu"))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    same = merge_to_memory(prepare(recipe(zoo), device="cpu"))
    assert all(torch.equal(one[name], tensor) for name, tensor in same.items())


def test_statistics_of_an_earlier_run_are_taken_if_they_are_of_this_merge(zoo: Path, tmp_path: Path) -> None:
    made = prepare(recipe(zoo), device="cpu")
    for s in made.statistics:
        assert s is not None
        write(s, tmp_path / "kept" / f"{s.task}.safetensors")
    again = recipe(zoo, statistics=str(tmp_path / "kept"))
    first, second = merge_to_memory(made), merge_to_memory(prepare(again))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    with pytest.raises(StatisticsError, match="they were collected through another merge, and RegMean"):
        prepare(again.replace(parameters={"examples": 12, "off_diagonal": 0.5}))
    suite = load_suite(zoo)
    for name in TASKS:
        plain = collect(str(zoo / "experts" / name), suite[name], heads_for(suite)[name], kinds=["gram"], examples=4)
        write(plain, tmp_path / "plain" / f"{name}.safetensors")
    with pytest.raises(
        StatisticsError, match=r"grey\.safetensors: they were collected through the expert's own layers"
    ):
        plan_recipe(recipe(zoo, statistics=str(tmp_path / "plain")))


def test_a_choice_collects_at_every_point(zoo: Path) -> None:
    bench = Bench(str(zoo / "base"), {n: str(zoo / "experts" / n) for n in TASKS}, load_suite(zoo), device="cpu")
    found = choose(bench, recipe(zoo), {"off_diagonal": [0.5, 1.0]}, limit=8)
    assert [point.error for point in found.scores] == ["", ""]


def refused(error: type[MergeLabError], wanted: Recipe) -> str:
    with pytest.raises(error) as caught:
        prepare(wanted, device="cpu")
    return str(caught.value)


def test_what_is_refused(zoo: Path) -> None:
    assert refused(RecipeError, recipe(zoo, suite=None)) == (
        "The method 'regmean_pp' collects statistics on a suite's pictures and the recipe names no 'suite'; name one, "
        "such as 'starter'."
    )
    assert refused(MethodError, recipe(zoo, merge_method="linear", parameters={})) == (
        "Method 'linear' collects nothing while it is merged; merge it as it is."
    )
    models = [{"model": str(zoo / "experts" / "grey"), "name": "gray"}, str(zoo / "experts" / "colour")]
    assert refused(TaskError, recipe(zoo, models=models)).startswith(
        "The model 'gray' has no task of its name in the suite tiny"
    )
    report = preflight(recipe(zoo))
    assert report.ok, report
    assert said(prepare(recipe(zoo), device="cpu")) == "12 unlabelled val pictures a task of grey, colour"

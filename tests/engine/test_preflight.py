"""The check before a merge: exact where it can be, in words, and every problem at once."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import state

from mergelab.engine import merge_to_folder, plan_recipe, preflight
from mergelab.recipe import Recipe


@pytest.fixture
def recipe(zoo: dict[str, str]) -> Recipe:
    return Recipe("ties", (zoo["ant"], zoo["bee"]), base_model=zoo["base"])


def errors(report: Any) -> list[str]:
    return [finding.text for finding in report.findings if finding.level == "error"]


@pytest.mark.parametrize("out_dtype", [None, "bfloat16", "float64"])
def test_a_good_recipe_and_its_exact_bytes(recipe: Recipe, tmp_path: Path, out_dtype: str | None) -> None:
    recipe = recipe.replace(out_dtype=out_dtype)
    report = preflight(recipe, out=tmp_path / "not" / "yet")
    assert report.ok
    assert report.tensors == 5
    assert report.peak_memory > report.bytes_out
    assert report.disk_free > 0
    assert all(finding.level == "ok" for finding in report.findings)
    folder = merge_to_folder(plan_recipe(recipe), tmp_path / "out")
    data = (folder / "model.safetensors").read_bytes()
    assert report.bytes_out == len(data) - 8 - int.from_bytes(data[:8], "little")
    plain = report.to_dict()
    assert plain["findings"][0].keys() == {"level", "text", "fix"}


def test_all_problems_are_listed(recipe: Recipe, store: Any) -> None:
    small = {**state(1), "norm": torch.ones(3)}
    lacking = {k: v for k, v in state(2).items() if k != "norm"}
    found = preflight(recipe.replace(models=(store("small", small), store("lacking", lacking))))
    assert not found.ok
    assert len(errors(found)) == 2
    assert "'norm' of model 'small'" in errors(found)[0]
    assert "'lacking' lacks 1 tensor" in errors(found)[1]
    assert all(finding.fix for finding in found.findings if finding.level == "error")


def test_sources_and_parameters_are_judged_together(recipe: Recipe) -> None:
    found = preflight(recipe.replace(models=("/no/such/place", "zoo:nowhere/x"), parameters={"densitty": 0.5}))
    assert len(errors(found)) == 3
    assert "Did you mean 'density'" in errors(found)[0]
    assert "Model 'place'" in errors(found)[1]
    assert "Model 'x'" in errors(found)[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "tie"}, "Did you mean 'ties'"),
        ({"base_model": None}, "no base is given"),
        ({"parameters": {"density": 1.5}}, "out of range"),
        ({"merge_method": "slerp", "models": ("a", "b", "c")}, "exactly 2 models"),
    ],
)
def test_what_cannot_run_is_said(recipe: Recipe, change: dict[str, Any], message: str) -> None:
    found = preflight(recipe.replace(**change))
    assert not found.ok
    assert message in errors(found)[0]


def test_another_base_looks_suspicious(recipe: Recipe, store: Any) -> None:
    stranger = {k: torch.randn(v.shape) if v.is_floating_point() else v for k, v in state().items()}
    found = preflight(recipe.replace(base_model=store("stranger", stranger)))
    assert found.ok
    warnings = [finding.text for finding in found.findings if finding.level == "warn"]
    assert any("does not look fine-tuned from this base" in text for text in warnings)


def test_another_architecture_is_mentioned(recipe: Recipe, store: Any) -> None:
    other = store("other", state(3, 0.05), {"model_type": "giant", "hidden_size": 4})
    found = preflight(recipe.replace(models=(other,)))
    assert any("model_type = 'giant'" in finding.text for finding in found.findings if finding.level == "warn")


def test_a_full_disk_is_an_error(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1000, 990, 10))
    found = preflight(recipe)
    assert not found.ok
    assert "10 bytes are free" in errors(found)[0]


def test_a_base_that_the_method_does_not_use_is_mentioned(recipe: Recipe) -> None:
    found = preflight(recipe.replace(merge_method="linear"))
    assert found.ok
    assert any("does not use the base" in finding.text for finding in found.findings)


def test_headers_only(recipe: Recipe, zoo: dict[str, str]) -> None:
    """A checkpoint whose weights cannot be read yet (on the Hub) is judged by its headers."""
    from mergelab.checkpoints import load

    class Remote:
        """Headers of a folder; reading a tensor would download it."""

        def __init__(self, source: str) -> None:
            opened = load(source)
            self.infos, self.aliases, self.config = opened.infos, opened.aliases, opened.config
            self.nbytes, self.source, self.folder, self.name = opened.nbytes, "hub:org/x@abc", None, "x"

        def fetch(self, **_: Any) -> None:
            raise AssertionError("downloaded")

        def __getitem__(self, name: str) -> None:
            raise AssertionError("read")

    found = preflight(recipe, load=Remote)
    assert found.ok
    assert any("downloaded from the Hub" in finding.text for finding in found.findings)


def test_running_statistics_of_batch_normalisation_are_warned_about(store: Any) -> None:
    """They are averaged like weights, and are not those of the merged model's activations."""
    norm = {"bn.running_mean": torch.zeros(3), "bn.running_var": torch.ones(3), "bn.count": torch.arange(1)}
    sources = [store(name, {**state(seed, 0.05), **norm}) for seed, name in enumerate(("one", "two"))]
    report = preflight(Recipe("linear", tuple(sources)))
    assert report.ok
    (found,) = [finding for finding in report.findings if finding.level == "warn"]
    assert found.text == (
        "2 tensors are running means and variances of batch normalisation, such as 'bn.running_mean': the merged "
        "model's activations have others than what comes out here."
    )
    assert found.fix == (
        "Pass some inputs through the merged model in training mode before it is used, so that they are new."
    )

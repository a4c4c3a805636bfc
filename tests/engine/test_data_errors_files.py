"""The last part of the catalogue: files of strangers and equal experts (items 8 and 9), the command line, warnings."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import state
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_statistics import NAMES, W, both, experts, having, merge, one
from torch import Tensor

import mergelab
from mergelab import cli
from mergelab.checkpoints import load
from mergelab.engine import plan, preflight, stream
from mergelab.errors import CheckpointError, MergeLabError
from mergelab.recipe import Recipe
from mergelab.runs.choose import choose
from mergelab.statistics import write

# ---- 8: files of strangers ----


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


ADVICE = (
    "Pickles can run code when opened, so they are refused: use a safetensors version of the model, or in Python, if "
    "you trust the file, load(..., allow_pickle=True)."
)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    path = tmp_path / "bee.pt"
    torch.save({**state(), "trap": Trap(tmp_path / "ran")}, path)
    return path


def test_pickles_are_never_opened(pickled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "statistics"
    folder.mkdir()
    (folder / "bee.safetensors").write_bytes(pickled.read_bytes())
    ant = state(1, 0.05)
    said: dict[str, str] = {}
    calls: dict[str, Callable[[], Any]] = {
        "load": lambda: mergelab.load(pickled),
        "a model": lambda: mergelab.merge("linear", {"ant": ant, "bee": str(pickled)}),
        "the base": lambda: mergelab.merge("ties", {"ant": ant}, str(pickled)),
        "the init": lambda: merge(init={"model": str(pickled)}),
        "statistics": lambda: merge(statistics=folder),
        "even trusted": lambda: mergelab.load(pickled, allow_pickle=True),
    }
    for what, call in calls.items():
        with pytest.raises(MergeLabError) as caught:
            call()
        said[what] = str(caught.value)
    zipped = f"bee.pt is a zip archive, as torch.save or numpy write. {ADVICE}"
    assert said["load"] == said["a model"] == said["the base"] == zipped
    assert said["the init"] == f"The init: {zipped}"
    assert said["statistics"] == f"bee.safetensors is a zip archive, as torch.save or numpy write. {ADVICE}"
    assert said["even trusted"].startswith("bee.pt is not a pickle of plain tensors: ")
    assert not (tmp_path / "ran").exists()


def test_plain_tensors_in_a_pickle_are_read_when_asked_for(tmp_path: Path) -> None:
    """The other half of the rule: ``weights_only``, and on request only."""
    torch.save(state(), tmp_path / "plain.pt")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "plain.pt")
    assert str(caught.value) == f"plain.pt is a zip archive, as torch.save or numpy write. {ADVICE}"
    assert torch.equal(load(tmp_path / "plain.pt", allow_pickle=True)["norm"], state()["norm"])


# ---- 9: equal experts ----


@pytest.mark.parametrize("method", ["mats", "regmean", "fisher"])
@pytest.mark.parametrize("base", [None, state()], ids=["identical", "and the base"])
def test_equal_experts_are_returned_and_it_is_said(method: str, base: Any) -> None:
    """Bit for bit whatever the start; where all are the base, the base."""
    same = state(1, 0.05) if base is None else base
    init = {} if base is None else {"init": {"merge_method": "task_arithmetic", "parameters": {"lambda": 2.0}}}
    out = merge(method, dict.fromkeys(NAMES, same), base, **init)
    assert all(torch.equal(out[key], tensor) for key, tensor in same.items())
    log: list[Any] = []
    dict(stream(plan(method, dict.fromkeys(NAMES, same), base, statistics=both(), **init), log=log.append))
    assert {(entry["by"], entry["stopped"], entry["moved"]) for entry in log} == {("experts", "experts equal", 0.0)}
    assert {entry["tensor"] for entry in log} == {W, "block.0.bias", "block.1.weight", "norm"}


# ---- on disk and from the command line ----


@pytest.fixture
def place(tmp_path: Path, store: Callable[..., str]) -> Path:
    """The base, both experts, and their statistics in ``stats``."""
    (tmp_path / "stats").mkdir()
    store("base", state())
    for name, tensors in experts().items():
        hashed = load(store(name, tensors)).weights_hash
        write(one(name, weights_hash=hashed), tmp_path / "stats" / f"{name}.safetensors")
    return tmp_path


def recipe(place: Path, **changes: Any) -> dict[str, Any]:
    models = [{"model": str(place / name), "name": name} for name in NAMES]
    return {"merge_method": "mats", "models": models, "statistics": str(place / "stats"), **changes}


def run(place: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[int, str, str]:
    path = place / "recipe.json"
    path.write_text(json.dumps(recipe(place, **changes)))
    status = cli.main(["merge", str(path), "--out", str(place / "out"), "--device", "cpu"])
    told = capsys.readouterr()
    return status, told.out, told.err


def forge(place: Path, key: str, tensor: Tensor) -> None:
    """Other numbers in ``bee``'s file."""
    path = place / "stats" / "bee.safetensors"
    with safe_open(path, "pt") as file:
        head = file.metadata()
    save_file({**load_file(path), key: tensor}, path, metadata=head)


def lose(place: Path) -> None:
    """No statistics of ``ant``."""
    (place / "stats" / "ant.safetensors").unlink()


SKEW = torch.eye(4)
SKEW[0, 1] = 0.5
CLI: list[tuple[str, dict[str, Any], Callable[[Path], Any] | None, str]] = [
    ("1 zero weights", {"parameters": {"weight": 0}}, None,
     "Every 'weight' of 'mats' is 0, so no task counts; give at least one model more than 0."),
    ("3 a missing task", {}, lose,
     "There are no statistics of the model 'ant': there are some of bee. Collect them from it with python -m mergelab "
     "stats."),
    ("3 of another checkpoint", {"models": [{"model": "{place}/base", "name": "ant"}, {"model": "{place}/bee"}]}, None,
     "ant.safetensors: they were collected from other weights than the model 'ant' has: their hash is {ant}, the "
     "model's {base}. Collect them again from it."),
    ("3 A that is not symmetric", {}, lambda place: forge(place, f"{W}/inputs", SKEW),
     f"bee.safetensors, tensor '{W}': the Gram matrix A is not symmetric: entries that should be equal differ by 0.5, "
     "more than 0.0001 of its largest entry 1; collect the statistics again."),
    ("3 G of another size", {}, lambda place: forge(place, f"{W}/outputs", torch.eye(5)[None]),
     f"bee.safetensors, tensor '{W}': the output factor G has the shape [1, 5, 5], expected [parts, out/parts, "
     "out/parts] with out = 6; collect the statistics again from this model."),
    ("3 NaN", {"merge_method": "fisher"}, lambda place: forge(place, f"{W}/diagonal", torch.full((6, 4), float("nan"))),
     f"bee.safetensors, tensor '{W}': the diagonal Fisher has 24 of 24 values that are NaN or infinite; look for a "
     "model that overflows, and collect the statistics again."),
    ("4 ties without the base", {"init": "ties"}, None,
     "The init 'ties': Method 'ties' works on differences from the base, but no base is given; name the checkpoint "
     "that the models were fine-tuned from."),
    ("5 iterations", {"parameters": {"iterations": -1}}, None,
     "Parameter 'iterations' of 'mats' is -1, out of range: give 0 to 10000."),
    ("6 RegMean in the space of adapters", {"merge_method": "regmean", "space": "adapter"}, None,
     "Model 'ant': ant is no adapter but whole weights, so it has no vectors of its own: leave out space 'adapter'."),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "spoil", "sentence"), [r[1:] for r in CLI], ids=[r[0] for r in CLI])
def test_a_clause_on_the_command_line(
    place: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], spoil: Any, sentence: str
) -> None:
    """One line on standard error, status 2, and nothing written."""
    if spoil is not None:
        spoil(place)
    changes = json.loads(json.dumps(changes).replace("{place}", str(place)))
    for name in ("base", "ant"):
        sentence = sentence.replace(f"{{{name}}}", load(place / name).weights_hash[:12])
    assert run(place, capsys, **changes) == (2, "", f"mergelab: {sentence}\n")
    assert not (place / "out").exists()


def test_the_merge_of_those_rows_is_good_before(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(place, capsys)
    assert (status, err) == (0, "") and "Tensors: 2 by average, 2 by cg" in out


MIXED = (
    "The statistics mix Fisher estimates (empirical for ant; sampled for bee): their scales differ, and so do the "
    "tasks' weights."
)


def test_mixed_statistics_are_a_warning_wherever_they_are_merged(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning) as caught:
        merge(statistics=both(fisher="sampled"))
    assert [str(warning.message) for warning in caught] == [MIXED]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge("regmean", statistics=both(fisher="sampled"))  # Grams have no labels to draw
    hashed = load(place / "bee").weights_hash
    write(one("bee", fisher="sampled", weights_hash=hashed), place / "stats" / "bee.safetensors")
    status, _, err = run(place, capsys)
    assert (status, err) == (0, f"mergelab: {MIXED}\n")
    findings = preflight(Recipe.from_dict(recipe(place))).findings
    assert [f.text for f in findings if f.level == "warn"] == [MIXED]
    found = choose(lambda _: {"ant": 1.0}, Recipe.from_dict(recipe(place)), {"iterations": [1]})
    assert found.warnings == (MIXED,) and found.to_dict()["warnings"] == [MIXED]
    plain = Recipe.from_dict(recipe(place, merge_method="regmean"))
    assert choose(lambda _: {"ant": 1.0}, plain, {"ridge": [1e-3]}).warnings == ()


def test_equal_models_and_no_information_are_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        hashed = load(place / name).weights_hash
        quiet = one(name, having(outputs=torch.zeros(1, 6, 6)), weights_hash=hashed)
        write(quiet, place / "stats" / f"{name}.safetensors")
    status, out, _ = run(place, capsys)
    assert status == 0 and "Tensors: 2 by average, 1 by init, 1 by cg" in out
    assert "  1 no information: every task's statistics are 0 there\n" in out
    assert "All models have the same weights" not in out


def test_that_all_models_are_one_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hashed = load(place / "ant").weights_hash
    write(one("bee", weights_hash=hashed), place / "stats" / "bee.safetensors")
    same = [{"model": str(place / "ant"), "name": name} for name in NAMES]
    status, out, _ = run(place, capsys, models=same)
    assert status == 0
    assert "Tensors: 4 by experts\nAll models have the same weights, so the result is that model.\n" in out
    made = load(place / "out")
    assert all(torch.equal(made[key], tensor) for key, tensor in experts()["ant"].items())


def test_the_share_of_floored_values_is_in_the_log() -> None:
    """Section 10: half of one task's Fisher below its floor, none of the other's."""
    halves = torch.tensor([1e-3, 1.0]).repeat(12).view(6, 4)
    given = {"ant": one("ant", having(diagonal=torch.ones(6, 4))), "bee": one("bee", having(diagonal=halves))}
    for more in ({"floor": 1e-2}, {"floor": 0.0, "floor_relative": 0.1}):
        log: list[Any] = []
        dict(stream(plan("fisher", experts(), parameters=more, statistics=given), log=log.append))
        assert next(entry["floored"] for entry in log if entry["tensor"] == W) == 0.25

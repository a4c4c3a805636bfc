"""The ground the house stands on: what is installed, imported, shipped and promised in the README."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

# From the top of the house to the bottom; a room imports only from rooms after it.
HOUSE = [
    "cli", "dashboard", "figures", "runs", "zoo", "training", "routing", "calibration", "analysis",
    "tasks", "models", "api", "engine", "methods", "statistics", "checkpoints", "recipe",
    "executor", "progress", "paths", "cores", "memory", "errors",
]  # fmt: skip
ALONE = {"figures"}  # imports no other room


def _rooms_imported(file: Path, package: Path) -> set[str]:
    """The rooms that a file imports, also inside functions."""
    here = file.relative_to(package.parent).with_suffix("").parts
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parent = here[: len(here) - node.level] if node.level else ()
            full = [*parent, *(node.module or "").split(".")] if node.module or parent else []
            full = [part for part in full if part]
            if full[:1] == ["mergelab"]:
                rooms.update([full[1]] if len(full) > 1 else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            rooms.update(a.name.split(".")[1] for a in node.names if a.name.startswith("mergelab."))
    return {room for room in rooms if room in HOUSE}


def test_rooms_import_only_from_rooms_below(root: Path):
    package = root / "mergelab"
    wrong = []
    for file in package.rglob("*.py"):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        assert room in HOUSE, f"{file} stands in no room of the house: add it to HOUSE and docs/architecture.md"
        for used in _rooms_imported(file, package) - {room}:
            above = HOUSE.index(used) <= HOUSE.index(room)
            alone = room in ALONE and used not in ("errors", "paths", "progress", "cores", "memory")
            if above or alone:
                wrong.append(f"{file.relative_to(root)} imports {used}")
    assert not wrong, wrong


def test_importing_the_package_brings_neither_torch_nor_gradio(root: Path):
    code = "import sys, mergelab; print([m for m in ('torch', 'gradio', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import mergelab

    for name in mergelab.__all__:
        assert getattr(mergelab, name) is not None


def test_requirements_are_the_projects_dependencies(root: Path):
    block = re.search(r"^dependencies = \[\n(.*?)^\]", (root / "pyproject.toml").read_text(), re.S | re.M)
    assert block
    declared = re.findall(r'^\s*"([^"]+)"', block.group(1), re.M)
    lines = (root / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == declared


def test_every_dependency_is_pinned_for_the_two_commands(root: Path):
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (root / ".ci/constraints.txt").read_text().split()
    }
    for line in (root / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.split(r"[<>=]", line)[0].lower().replace("_", "-") in pinned


def test_the_readme_holds_two_commands_and_ci_runs_one_of_them(root: Path):
    readme = (root / "README.md").read_text()
    commands = re.findall(r"```bash\n(.*?)```", readme, re.S)
    assert len(commands) == 2, "the README holds exactly two commands for a bare machine"
    assert commands[0].strip().endswith("app.py")
    assert commands[1].strip() in (root / ".ci/run").read_text()


def test_the_space_runs_the_gradio_that_is_pinned(root: Path):
    front = re.search(r"sdk_version: (\S+)", (root / "README.md").read_text())
    assert front and f"gradio=={front.group(1)}" in (root / ".ci/constraints.txt").read_text().split()


def test_nothing_tracked_is_too_large_for_a_space(root: Path):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    sizes = {
        name: (root / name).stat().st_size
        for name in listed.stdout.decode().split("\0")
        if name and (root / name).exists()
    }
    assert max(sizes.values()) <= 10 * 2**20, max(sizes, key=sizes.get)
    assert sum(sizes.values()) < 60 * 2**20
    assert sum(size for name, size in sizes.items() if name.startswith("assets/zoo/")) <= 50 * 2**20


def test_the_readmes_numbers_are_the_measured_ones(root: Path):
    block = re.search(r"<!-- measured -->\n(.*?)<!-- /measured -->", (root / "README.md").read_text(), re.S)
    assert block
    shown = {
        cells[1]: cells[3:6]
        for cells in ([c.strip() for c in line.split("|")] for line in block[1].splitlines())
        if len(cells) > 5
    }
    measured = json.loads((root / "assets/zoo/starter/measured.json").read_text())["evaluations"]
    for merge in measured["merges"]:
        seen, unseen = merge["evaluation"]["seen"], merge["evaluation"]["unseen"]
        expected = [f"{100 * share:.1f}" for share in (seen["accuracy"], seen["normalised"], unseen["accuracy"])]
        assert shown[merge["title"]] == expected, merge["title"]
    base = measured["base"]
    assert shown["the base, under each expert's head"][0] == f"{100 * base['seen']['accuracy']:.1f}"


def test_ready_recipes_carry_the_coefficients_that_validation_chose(root: Path):
    from mergelab import Recipe

    tuned = json.loads((root / "assets/zoo/starter/zoo.json").read_text())["tuned"]
    assert tuned
    for method, values in tuned.items():
        recipe = Recipe.read(root / f"assets/recipes/{method}.yaml")
        assert {name: recipe.parameters.get(name) for name in values} == values, method

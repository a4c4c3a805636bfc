"""Statistics of the tensors in which experts differ: nothing else is collected, and merges stay what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tasks.tiny_zoo import CLASSES, make_zoo

from mergelab import merge
from mergelab.calibration import collect_zoo, estimate_zoo
from mergelab.calibration.differing import EQUAL
from mergelab.checkpoints import load
from mergelab.cli import main
from mergelab.engine import merge_to_memory, plan
from mergelab.engine.stream import stream
from mergelab.statistics import read_folder

KINDS = ["gram", "kfac", "diag"]
LAYER = "encoder.layer"
#: Which layers the two experts' adapters change: together q and v of the first block, and both layers of an MLP.
TARGETS = {"grey": ["0.attention.q_proj", "1.mlp.fc1"], "colour": ["0.attention.v_proj", "1.mlp.fc1", "1.mlp.fc2"]}
CHANGED = {f"{LAYER}.{layer}.weight" for layers in TARGETS.values() for layer in layers}


def adapter_zoo(folder: Path) -> Path:
    """The tiny zoo with LoRA experts of rank 2."""
    make_zoo(folder)
    shapes = {name: t.shape for name, t in load_file(folder / "base" / "model.safetensors").items()}
    for seed, task in enumerate(CLASSES):
        place, draw = folder / "experts" / task, torch.Generator().manual_seed(seed)
        head = (place / "head.safetensors").read_bytes()
        shutil.rmtree(place)
        place.mkdir()
        tensors = {}
        for layer in TARGETS[task]:
            out, inputs = shapes[f"{LAYER}.{layer}.weight"]
            for part, shape in (("A", (2, inputs)), ("B", (out, 2))):
                tensors[f"base_model.model.{LAYER}.{layer}.lora_{part}.weight"] = 0.3 * torch.randn(
                    shape, generator=draw
                )
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": TARGETS[task],
                    "base_model_name_or_path": str(folder / "base")}  # fmt: skip
        (place / "adapter_config.json").write_text(json.dumps(settings))
        (place / "head.safetensors").write_bytes(head)
    return folder


def sources(zoo: Path) -> dict[str, str]:
    return {name: str(zoo / "experts" / name) for name in CLASSES}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_zoo(tmp_path_factory.mktemp("changed") / "tiny")


def taken(zoo: Path, out: Path, **options: Any) -> Path:
    return collect_zoo(zoo, sources(zoo), out, kinds=KINDS, examples=6, device="cpu", **options)


@pytest.fixture(scope="module")
def folders(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Statistics of what differs, and of everything."""
    place = tmp_path_factory.mktemp("statistics")
    return taken(zoo, place / "changed"), taken(zoo, place / "all", changed_only=False)


def test_only_what_differs_has_statistics_and_they_are_the_same(folders) -> None:
    changed, everything = map(read_folder, folders)
    for task, found in changed.items():
        whole = everything[task]
        assert set(found.names) == CHANGED < set(whole.names)
        left = set(whole.names) - CHANGED
        assert left and {found.skipped[name] for name in left} == {EQUAL}
        assert EQUAL not in whole.skipped.values()
        for name in CHANGED:
            mine, theirs = found.block(name), whole.block(name)
            assert mine.kinds == ("diag", "gram", "kfac") and mine.rows == theirs.rows
            for piece, tensor in mine.tensors.items():
                torch.testing.assert_close(tensor, theirs.tensors[piece], rtol=1e-5, atol=1e-9)


def test_nothing_is_written_that_no_kept_tensor_needs(zoo, folders) -> None:
    for path in folders[0].iterdir():
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
        assert {key.rpartition("/")[0] for key in keys} == CHANGED
        # q and v take the same input: one A between them, and k, which came first of the three, has none to own
        assert sum(key.endswith("/inputs") for key in keys) == len(CHANGED) - 1
        assert {key for key in keys if key.endswith("/inputs") and "attention" in key} == {
            f"{LAYER}.0.attention.q_proj.weight/inputs"
        }


@pytest.mark.parametrize("changed_only", [True, False])
def test_an_estimate_is_exact_about_bytes(zoo, folders, changed_only) -> None:
    told = estimate_zoo(zoo, sources(zoo), kinds=KINDS, examples=6, batch=3, device="cpu", changed_only=changed_only)
    for task, one in told.items():
        tensors = load_file(folders[not changed_only] / f"{task}.safetensors")
        assert one.nbytes == sum(t.numel() * t.element_size() for t in tensors.values())


@pytest.mark.parametrize(
    ("method", "parameters", "init"),
    [
        ("regmean", {}, None),
        ("fisher", {}, None),
        ("mats", {"objective": "kfac", "iterations": 5}, "base"),
        ("mats", {"objective": "diag", "iterations": 5}, {"merge_method": "fisher"}),
        ("mats", {"objective": "gram", "iterations": 5, "leftover": "init"}, {"merge_method": "regmean"}),
    ],
)
def test_a_merge_is_the_same_as_with_statistics_of_all_tensors(zoo, folders, method, parameters, init) -> None:
    made = [
        merge_to_memory(plan(method, sources(zoo), str(zoo / "base"), parameters, statistics=folder, init=init),
                        device="cpu")
        for folder in folders
    ]  # fmt: skip
    base = load(zoo / "base")
    moved = set()
    for name, tensor in made[0].items():
        torch.testing.assert_close(tensor, made[1][name], rtol=1e-5, atol=1e-6)
        if not torch.equal(tensor, base[name]):
            moved.add(name)
    assert moved == CHANGED


def test_other_experts_of_the_same_weights_hear_why_a_tensor_is_left(zoo, folders) -> None:
    """A third expert that moves what the two hold in common: their mean, and the reason in the log."""
    third = {name: t.clone() for name, t in load(zoo / "base").items()}
    lone = f"{LAYER}.1.attention.o_proj.weight"
    third[lone] += 0.5
    experts = {**{name: load(source) for name, source in sources(zoo).items()}, "third": load(third, name="third")}
    found = dict(read_folder(folders[0]))
    other = read_folder(folders[1])["grey"]
    blocks = {name: other.block(name) for name in other.names}
    found["third"] = type(other)("third", blocks, weights_hash=experts["third"].weights_hash, examples=6,
                                 fisher=other.fisher, split=other.split)  # fmt: skip
    log: list[Any] = []
    made = dict(stream(plan("regmean", experts, str(zoo / "base"), {}, statistics=found), device="cpu", log=log.append))
    entry = next(entry for entry in log if entry["tensor"] == lone)
    assert entry["why"].startswith(EQUAL) and "statistics of 'grey'" in entry["why"]
    mean = torch.stack([experts[name][lone] for name in experts]).mean(0)
    torch.testing.assert_close(made[lone], mean)


def full_zoo(folder: Path, ending: str) -> Path:
    """Whole experts that differ only in tensors whose names end so."""
    make_zoo(folder)
    for seed, task in enumerate(CLASSES):
        file, draw = folder / "experts" / task / "model.safetensors", torch.Generator().manual_seed(seed)
        save_file({name: t + 0.1 * torch.randn(t.shape, generator=draw) if name.endswith(ending) else t
                   for name, t in load_file(file).items()}, file)  # fmt: skip
    return folder


def test_a_weight_is_kept_for_its_bias(tmp_path) -> None:
    """A bias may be solved for with its weight, from the weight's inputs."""
    zoo = full_zoo(tmp_path / "zoo", "0.mlp.fc1.bias")
    found = read_folder(taken(zoo, tmp_path / "out"))["grey"]
    assert set(found.names) == {f"{LAYER}.0.mlp.fc1.weight", f"{LAYER}.0.mlp.fc1.bias"}


def test_kinds_that_nothing_else_has_are_collected_where_nothing_differs(tmp_path) -> None:
    """Methods refuse statistics without their kind; experts of layer norms alone are merged as before."""
    zoo = full_zoo(tmp_path / "zoo", "norm1.weight")
    found = read_folder(taken(zoo, tmp_path / "out"))["grey"]
    diagonals = {name for name in found.names if "diag" in found.entries[name].kinds}
    assert diagonals == {f"{LAYER}.{i}.norm1.weight" for i in (0, 1)}
    assert found.kinds == ("diag", "gram", "kfac")
    norm = f"{LAYER}.0.norm1.weight"
    made = merge("regmean", sources(zoo), base=str(zoo / "base"), statistics=tmp_path / "out", device="cpu")
    torch.testing.assert_close(made[norm], sum(load(s)[norm] for s in sources(zoo).values()) / 2)


def test_names_that_are_given_stay(zoo, tmp_path) -> None:
    name = f"{LAYER}.0.mlp.fc2.weight"
    found = read_folder(taken(zoo, tmp_path / "out", names=[name]))["grey"]
    assert found.names == (name,)


def test_an_expert_that_cannot_be_read_leaves_nothing_out(zoo, folders, tmp_path) -> None:
    """Its task is not asked for, so it is in nobody's way; without it nobody knows what differs."""
    experts = {**sources(zoo), "colour": str(tmp_path / "gone")}
    out = collect_zoo(zoo, experts, tmp_path / "out", kinds=KINDS, examples=6, device="cpu", tasks=["grey"])
    assert read_folder(out)["grey"].names == read_folder(folders[1])["grey"].names


def test_the_verb_takes_what_differs_or_all(zoo, tmp_path, capsys) -> None:
    common = ["stats", str(zoo), "--kinds", "gram", "--examples", "5", "--device", "cpu", "--json"]
    counts = []
    for more in ([], ["--all-tensors"], ["--tasks", "grey"]):
        out = tmp_path / str(len(counts))
        assert main([*common, *more, "--out", str(out)]) == 0
        counts.append(json.loads(capsys.readouterr().out)["tasks"]["grey"]["tensors"])
        assert main([*common, *more, "--estimate"]) == 0
        assert json.loads(capsys.readouterr().out)["grey"]["tensors"] == counts[-1]
    assert counts[0] == counts[2] == len(CHANGED) and counts[1] > 2 * counts[0]


def test_one_expert_of_a_known_zoo_is_seen_among_its_siblings(zoo, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("MERGELAB_HOME", str(tmp_path))
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "tiny").symlink_to(zoo)
    out = tmp_path / "out"
    assert (
        main(["stats", "zoo:tiny/grey", "--kinds", "diag", "--examples", "5", "--device", "cpu", "--out", str(out)])
        == 0
    )
    capsys.readouterr()
    assert set(read_folder(out)["grey"].names) == CHANGED

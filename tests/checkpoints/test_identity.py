"""What identifies weights: the same for the same weights wherever they lie, another for any that differ."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_standin import HubStandIn
from safetensors.torch import save, save_file

from mergelab.checkpoints import Checkpoint, MemoryCheckpoint, load, sweep, write
from mergelab.checkpoints.whole import whole_file
from mergelab.errors import CheckpointError

Tensors = dict[str, torch.Tensor]


def written(folder: Path, tensors: Tensors, **options: Any) -> Path:
    codes = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
             torch.bool: "BOOL", torch.float64: "F64"}  # fmt: skip
    plan = {name: (codes[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    return write(folder, tensors.items(), plan, config=None, **options)


def test_it_is_the_hash_of_names_dtypes_shapes_and_bytes(tmp_path: Path):
    """Against the definition, written out by hand for one file."""
    save_file({"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3]])}, tmp_path / "m.safetensors")
    one = hashlib.sha256(b"F32[2]\0" + bytes.fromhex("0000803f00000040")).hexdigest()
    two = hashlib.sha256(b"I64[1, 1]\0" + bytes.fromhex("0300000000000000")).hexdigest()
    expected = hashlib.sha256(f"a\0{two}\0b\0{one}\0".encode()).hexdigest()
    assert load(tmp_path / "m.safetensors").weights_hash == expected


def test_the_same_weights_are_the_same_wherever_they_lie(tmp_path: Path, tensors: Tensors):
    expected = load(tensors).weights_hash
    whole = written(tmp_path / "whole", tensors)
    sharded = written(tmp_path / "sharded", dict(reversed(tensors.items())), max_shard_bytes=64)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    copied = Path(shutil.copytree(whole, tmp_path / "copied"))
    os.utime(copied / "model.safetensors", (1000, 1000))
    for folder in (whole, sharded, copied):
        assert load(folder).weights_hash == expected
        assert load(folder, name="other").weights_hash == expected
    reordered = load(dict(reversed(tensors.items())), name="other")
    assert reordered.weights_hash == expected


def test_any_difference_is_another_hash(tensors: Tensors):
    def turned(**changes: torch.Tensor) -> str:
        return load({**tensors, **{name.replace("_", "."): tensor for name, tensor in changes.items()}}).weights_hash

    weight = tensors["encoder.weight"]
    last = weight.clone()
    last[-1, -1] = torch.nextafter(last[-1, -1], torch.tensor(9.0))
    renamed = dict(tensors)
    renamed["encoder.weights"] = renamed.pop("encoder.weight")
    without = {name: tensor for name, tensor in tensors.items() if name != "scalar"}
    hashes = [
        load(tensors).weights_hash, turned(encoder_weight=last), turned(encoder_weight=weight.double()),
        turned(encoder_weight=weight.reshape(5, 7)), load(renamed).weights_hash, load(without).weights_hash,
        turned(nothing=torch.empty(3, 0)),
    ]  # fmt: skip
    assert len(set(hashes)) == len(hashes)


def test_a_file_that_changes_is_hashed_again(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.zeros(4)}, path)
    before = load(path).weights_hash
    save_file({"w": torch.ones(4)}, path)
    after = load(path).weights_hash
    assert after != before == load({"w": torch.zeros(4)}).weights_hash
    assert after == load({"w": torch.ones(4)}).weights_hash


def test_a_base_is_read_once_for_all_the_adapters_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_file({"w": torch.zeros(4)}, tmp_path / "m.safetensors")
    first = load(tmp_path / "m.safetensors")
    assert first.weights_hash == first.renamed("again").weights_hash
    monkeypatch.setattr(type(first), "_read", lambda *_: pytest.fail("it was read again"))
    assert load(tmp_path / "m.safetensors").weights_hash == first.weights_hash


def test_a_model_of_the_hub_is_the_same_as_its_files(hub: HubStandIn, tensors: Tensors):
    hub.add("org/m", {"model.safetensors": save(tensors)})
    remote = load("hub:org/m")
    assert remote.folder is None, "nothing is downloaded before it is asked for"
    assert remote.weights_hash == load(tensors).weights_hash == remote.renamed("x").weights_hash


def test_tied_names_are_part_of_it():
    shared = torch.ones(3)
    tied = load({"a": shared, "b": shared}).weights_hash
    assert tied != load({"a": shared}).weights_hash
    assert tied != load({"a": shared, "c": shared}).weights_hash


# -- copies in memory --------------------------------------------------------------------------------------------------


def test_a_copy_in_memory_may_stand_for_its_source(tmp_path: Path, tensors: Tensors):
    source = load(written(tmp_path / "m", tensors))
    wide = {name: source[name].float() for name in source}
    assert MemoryCheckpoint(wide).weights_hash != source.weights_hash
    assert MemoryCheckpoint(wide, weights_hash=source.weights_hash).weights_hash == source.weights_hash
    asked: list[int] = []

    def later() -> str:
        asked.append(1)
        return source.weights_hash

    copy = MemoryCheckpoint(wide, weights_hash=later)
    assert not asked, "nothing is read before it is asked for"
    assert copy.weights_hash == copy.weights_hash == copy.renamed("x").weights_hash == source.weights_hash
    assert len(asked) == 1


def test_the_benchs_resident_copies_keep_their_sources_identity(tmp_path: Path):
    from mergelab.runs import Bench

    base = {"w": torch.arange(6.0).half().reshape(2, 3)}
    folders = [written(tmp_path / name, {"w": base["w"] + step}) for step, name in enumerate(("base", "one"))]
    bench = Bench(str(folders[0]), {"one": str(folders[1])}, None, device="cpu")
    for folder in folders:
        resident: Checkpoint = bench._checkpoint(str(folder))
        assert isinstance(resident, MemoryCheckpoint) and resident["w"].dtype == torch.float32
        assert resident.weights_hash == load(folder).weights_hash


# -- adapters ----------------------------------------------------------------------------------------------------------


SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc"], "lora_dropout": 0.0,
            "base_model_name_or_path": "/somewhere", "peft_version": "0.21.2"}  # fmt: skip


def adapter(folder: Path, *, shift: float = 0.0, **changes: Any) -> Path:
    rng = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, **changes}))
    factors = {"A": torch.randn(2, 3, generator=rng), "B": torch.randn(4, 2, generator=rng) + shift}
    save_file(
        {f"base_model.model.fc.lora_{key}.weight": tensor for key, tensor in factors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


BASE: Tensors = {"fc.weight": torch.ones(4, 3).half(), "fc.bias": torch.zeros(4)}


def test_an_adapter_is_its_base_its_factors_and_its_settings(tmp_path: Path):
    one = load(adapter(tmp_path / "one"), base=BASE).weights_hash
    moved = adapter(tmp_path / "two", base_model_name_or_path="zoo:x/base", peft_version="1", target_modules=("fc",))
    assert load(moved, base=BASE).weights_hash == one, "where the base lies and who wrote it does not matter"
    stronger = adapter(tmp_path / "three", lora_alpha=8)
    scaled = adapter(tmp_path / "four", use_rslora=True)
    pattern = adapter(tmp_path / "five", alpha_pattern={"fc": 3})
    other = adapter(tmp_path / "six", shift=1e-3)
    hashes = [load(folder, base=BASE).weights_hash for folder in (stronger, scaled, pattern, other)]
    hashes.append(load(tmp_path / "one", base={**BASE, "fc.bias": torch.ones(4)}).weights_hash)
    hashes.append(load({name: load(tmp_path / "one", base=BASE)[name] for name in BASE}).weights_hash)
    assert len({one, *hashes}) == 1 + len(hashes)


def test_every_setting_that_changes_the_weights_is_in_the_hash(root: Path):
    """A key that deltas.py reads and the hash does not know would be another model unseen."""
    import re

    from mergelab.checkpoints.identity import _EFFECT

    text = (root / "mergelab" / "checkpoints" / "deltas.py").read_text()
    read = set(re.findall(r'settings\.get\("(\w+)"\)|_by_pattern\(adapter, "(\w+)"', text))
    keys = {key for pair in read for key in pair if key}
    assert {"r", "lora_alpha", "rank_pattern"} <= keys <= set(_EFFECT)


def test_the_starters_adapters_are_told_apart():
    hashes = {load(f"zoo:starter/{task}").weights_hash for task in ("base", "mnist", "fashion", "emoji")}
    assert len(hashes) == 4 and all(len(found) == 64 for found in hashes)


# -- routing's hashes stay what they were ------------------------------------------------------------------------------


def test_routings_hashes_are_these(tensors: Tensors):
    from mergelab.routing.hashes import joined, tensor_hash, tensors_hash

    assert tensors_hash(tensors) == load(tensors).weights_hash
    found = hashlib.sha256(b"F64[]\0" + tensors["scalar"].numpy().tobytes()).hexdigest()
    assert tensor_hash(tensors["scalar"]) == found
    assert joined({"a": "1"}, {"t": "a"}) == hashlib.sha256(b"a\x001\0\1t\0a\0").hexdigest()


# -- one file, whole or not at all -------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path):
    out = tmp_path / "deep" / "file.txt"
    with whole_file(out) as partial:
        partial.write_text("one")
        assert not out.exists()
    assert out.read_text() == "one"
    with pytest.raises(CheckpointError, match="exists"), whole_file(out) as partial:
        partial.write_text("two")

    def refuse(path: Path) -> None:
        raise CheckpointError(f"not {path.read_text()}")

    with pytest.raises(CheckpointError, match="not three"), whole_file(out, overwrite=True, verify=refuse) as partial:
        partial.write_text("three")
    with pytest.raises(RuntimeError), whole_file(out, overwrite=True) as partial:
        partial.write_text("four")
        raise RuntimeError
    assert out.read_text() == "one" and os.listdir(out.parent) == ["file.txt"]
    with whole_file(out, overwrite=True) as partial:
        partial.write_text("five")
    assert out.read_text() == "five" and os.listdir(out.parent) == ["file.txt"]
    with pytest.raises(CheckpointError, match="no name for a file"), whole_file(out.parent, overwrite=True):
        pass


def test_files_that_killed_writers_left_are_swept(tmp_path: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"a.partial-{ended.pid}-0f", f"b.partial-{os.getppid()}-0f", f"c.old-{ended.pid}-0f", "d"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in sweep(tmp_path)] == [f"a.partial-{ended.pid}-0f"]
    assert len(os.listdir(tmp_path)) == 3

"""Reading files and folders: the layouts, laziness, threads, and what must not be read."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file, save_model

import mergelab
from mergelab.checkpoints import MemoryCheckpoint, TensorInfo, dtype_code, load, torch_dtype
from mergelab.errors import CheckpointError

Tensors = dict[str, torch.Tensor]


def shard(folder: Path, tensors: Tensors, *, files: int = 2) -> Path:
    """A sharded folder as transformers writes it, made by hand; the index."""
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for i, name in enumerate(tensors):
        weight_map[name] = f"model-{i % files + 1:05d}-of-{files:05d}.safetensors"
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def same(checkpoint: object, tensors: Tensors) -> None:
    assert set(checkpoint) == set(tensors)  # type: ignore[call-overload]
    for name, tensor in tensors.items():
        found = checkpoint[name]  # type: ignore[index]
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert torch.equal(found, tensor)


def test_a_folder_with_one_file(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    checkpoint = mergelab.load(tmp_path)
    same(checkpoint, tensors)
    assert checkpoint.config == {"model_type": "dinov2"}
    assert (checkpoint.name, checkpoint.source, checkpoint.folder) == (tmp_path.name, str(tmp_path), tmp_path)
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.infos["wide"] == TensorInfo("wide", "BF16", (3, 2, 4), 48, "model.safetensors")
    assert checkpoint.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def test_a_single_file(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, tmp_path / "my-expert.safetensors")
    checkpoint = load(str(tmp_path / "my-expert.safetensors"))
    same(checkpoint, tensors)
    assert checkpoint.name == "my-expert" and checkpoint.config is None


def test_a_folder_with_one_file_of_another_name(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, tmp_path / "weights_final.safetensors")
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "head.safetensors")  # a task's head lies beside, and is not it
    same(load(tmp_path), tensors)


def test_several_files_without_an_index_are_ambiguous(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"2 safetensors files \(a.safetensors, b.safetensors\).*name the file"):
        load(tmp_path)


@pytest.mark.parametrize("files", [2, 3])
def test_a_sharded_folder(tmp_path: Path, tensors: Tensors, files: int) -> None:
    index = shard(tmp_path, tensors, files=files)
    same(load(tmp_path), tensors)
    same(load(index), tensors)
    assert load(tmp_path).infos["encoder.bias"].origin == f"model-00002-of-{files:05d}.safetensors"


def test_the_openclip_layout(tmp_path: Path, tensors: Tensors) -> None:
    """Repositories of OpenCLIP often hold the transformers version beside their own; each has its own config."""
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 8}}')
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    checkpoint = load(tmp_path)
    same(checkpoint, tensors)
    assert checkpoint.config == {"model_cfg": {"embed_dim": 8}}
    save_file({"hf": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert load(tmp_path).config == {"model_type": "clip"}
    assert load(tmp_path / "open_clip_model.safetensors").config == {"model_cfg": {"embed_dim": 8}}


def test_tied_tensors_as_save_model_writes_them(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 4, bias=False), "b": torch.nn.Linear(3, 4, bias=False)})
    model["b"].weight = model["a"].weight
    save_model(model, str(tmp_path / "model.safetensors"))
    checkpoint = load(tmp_path)
    assert dict(checkpoint.aliases) == {"b.weight": "a.weight"}
    assert list(checkpoint) == ["a.weight"] and "b.weight" in checkpoint
    assert torch.equal(checkpoint["b.weight"], model["a"].weight)


def test_tied_tensors_in_memory() -> None:
    shared, other = torch.randn(4, 4), torch.randn(4, 4)
    checkpoint = load({"z": shared, "a": shared, "copy": shared.clone(), "turned": shared.T, "other": other}, name="m")
    assert dict(checkpoint.aliases) == {"z": "a"}
    assert sorted(checkpoint) == ["a", "copy", "other", "turned"]
    assert torch.equal(checkpoint["turned"], shared.T) and checkpoint["turned"].is_contiguous()
    assert (checkpoint.name, checkpoint.source, checkpoint.folder) == ("m", "memory:m", None)


def test_memory_gives_no_gradient_and_changes_its_hash_with_a_value() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    assert not load({"w": parameter})["w"].requires_grad
    assert load({"w": torch.ones(3)}).content_hash == load({"w": torch.ones(3)}).content_hash
    assert load({"w": torch.ones(3)}).content_hash != load({"w": torch.tensor([1.0, 1.0, 1.5])}).content_hash


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"w": [1.0]}, "'w' is a list"),
        ({1: torch.ones(1)}, "names must be strings"),
        ({"w": torch.ones(2, device="meta")}, "'w' is sparse, quantised or has no data"),
        ({"w": torch.eye(2).to_sparse()}, "'w' is sparse"),
    ],
)
def test_what_is_not_a_state_dict_is_refused(bad: dict[object, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        load(bad)  # type: ignore[arg-type]


def test_an_open_checkpoint_is_returned_as_it_is_and_can_be_renamed() -> None:
    checkpoint = MemoryCheckpoint({"w": torch.ones(2)}, name="one")
    assert load(checkpoint) is checkpoint
    other = load(checkpoint, name="two")
    assert (checkpoint.name, other.name) == ("one", "two") and torch.equal(other["w"], checkpoint["w"])


def test_dtype_codes_go_both_ways() -> None:
    for code in ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64"):
        assert dtype_code(torch_dtype(code)) == code
    assert torch_dtype("BF16") is torch.bfloat16
    with pytest.raises(CheckpointError, match=r"no dtype for 'F4'"):
        torch_dtype("F4")
    with pytest.raises(CheckpointError, match=r"complex128"):
        dtype_code(torch.complex128)


def test_every_dtype_reads_as_the_reference_reads_it(tmp_path: Path) -> None:
    names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool float8_e4m3fn"
    made = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names.split()}
    save_file(made, tmp_path / "model.safetensors")
    reference = load_file(tmp_path / "model.safetensors")
    checkpoint = load(tmp_path)
    for name in made:
        assert torch.equal(checkpoint[name].view(torch.uint8), reference[name].view(torch.uint8))
        assert checkpoint[name].dtype == reference[name].dtype


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"big": torch.ones(100_000), "small": torch.ones(2)}, tmp_path / "model.safetensors")
    read: list[int] = []
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read.append(len(buffers[0])) or whole(fd, buffers, at))
    checkpoint = load(tmp_path)
    assert checkpoint.infos["big"].shape == (100_000,) and not read
    assert checkpoint["small"].tolist() == [1, 1] and read == [8]


def test_an_unknown_tensor_is_a_key_error_with_a_suggestion(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(KeyError, match=r"Did you mean 'encoder.weight'"):
        load(tmp_path)["encoder.weigth"]


def test_a_tensor_outlives_its_file(tmp_path: Path) -> None:
    """A mapped view would change with the file, or end the process when the file is cut."""
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.full((50_000,), 3.0)}, path)
    checkpoint = load(path)
    held = checkpoint["w"]
    with path.open("r+b") as file:
        file.truncate(10)
    checkpoint.close()
    assert held.sum() == 150_000
    with pytest.raises(CheckpointError, match=r"changed since it was opened"):
        checkpoint["w"]


def test_a_file_cut_while_it_is_open_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "w": torch.ones(50_000)}, path)
    checkpoint = load(path)
    checkpoint["a"]
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"model.safetensors was cut short while it was read \(tensor 'w'\)"):
        checkpoint["w"]


def test_many_threads_read_at_once_while_it_is_closed(tmp_path: Path) -> None:
    made = {f"layer.{i}": torch.full((257, 33), float(i)) for i in range(40)}
    shard(tmp_path, made, files=3)
    checkpoint = load(tmp_path)
    begin = threading.Barrier(8)

    def work(worker: int) -> bool:
        begin.wait()
        fine = True
        for i in range(40):
            if worker == 0:
                checkpoint.close()
            place = (i * 7 + worker) % 40
            fine &= torch.equal(checkpoint[f"layer.{place}"], made[f"layer.{place}"])
        return fine

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_content_hash_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(3)}, path)
    first = load(path).content_hash
    assert load(tmp_path).content_hash == first
    save_file({"w": torch.zeros(3)}, path)
    os.utime(path, ns=(1, 1))
    assert load(path).content_hash != first


INDEXES = {
    "a parent": "../secret/model.safetensors",
    "an absolute path": "/etc/model.safetensors",
    "a folder below": "sub/model.safetensors",
    "backslashes": "..\\secret\\model.safetensors",
    "a hidden file": ".model.safetensors",
    "a NUL": "model.safetensors\0.safetensors",
    "another kind of file": "model.bin",
    "a drive": "C:model.safetensors",
    "an address": "model.safetensors?x=.safetensors",
    "no string": 7,
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_points_elsewhere_opens_nothing(case: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    save_file({"w": torch.ones(1)}, secret / "model.safetensors")
    folder = tmp_path / "model"
    shard(folder, {"a": torch.ones(1), "b": torch.ones(1)})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["w"] = INDEXES[case]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"not the plain name") as caught:
        load(folder)
    assert "'w'" in str(caught.value) and str(caught.value).isprintable()


def test_index_and_shards_must_agree(tmp_path: Path, tensors: Tensors) -> None:
    index = shard(tmp_path, tensors)
    content = json.loads(index.read_text())

    def altered(change: object) -> None:
        changed = json.loads(json.dumps(content))
        change(changed["weight_map"])  # type: ignore[operator]
        index.write_text(json.dumps(changed))

    altered(lambda weights: weights.update({"extra": "model-00001-of-00002.safetensors"}))
    with pytest.raises(CheckpointError, match=r"'extra' in model-00001-of-00002.safetensors, which does not hold it"):
        load(tmp_path)
    altered(lambda weights: weights.pop("steps"))
    with pytest.raises(CheckpointError, match=r"holds tensor 'steps', which .* does not list"):
        load(tmp_path)
    altered(lambda weights: weights.update({"encoder.weight": "model-00002-of-00002.safetensors"}))
    with pytest.raises(CheckpointError, match=r"'encoder.weight'"):
        load(tmp_path)
    index.write_text(json.dumps(content))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 files .* missing, such as model-00002-of-00002.safetensors"):
        load(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shard(tmp_path, {"a": torch.ones(1), "b": torch.ones(1)})
    save_file({"a": torch.zeros(1), "b": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"'a'"):
        load(tmp_path)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": ["a"]}', b"\xff", b"[" * 5000]
)
def test_a_broken_index_is_refused(raw: bytes, tmp_path: Path) -> None:
    shard(tmp_path, {"a": torch.ones(1)}, files=1).write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json is malformed"):
        load(tmp_path)


def test_shards_without_their_index_are_not_whole(tmp_path: Path, tensors: Tensors) -> None:
    """The writer writes the index last: shards alone are what an interrupted copy leaves."""
    shard(tmp_path, tensors).unlink()
    with pytest.raises(CheckpointError, match=r"no index"):
        load(tmp_path)


def test_a_folder_of_an_unfinished_write_does_not_load(tmp_path: Path, tensors: Tensors) -> None:
    folder = tmp_path / "out.partial-4242-0a1b2c3d"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    for source in (folder, folder / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"did not finish"):
            load(source)


def test_links_of_the_download_cache_are_followed(tmp_path: Path, tensors: Tensors) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file(tensors, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/0123"))
    same(load(snapshot), tensors)


def test_a_pipe_or_folder_under_the_name_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"not a file"):
        load(tmp_path)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not a file"):
        load(tmp_path / "pipe")


def test_a_broken_config_is_named(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{'model_type': 'x'}")
    with pytest.raises(CheckpointError, match=r"config.json is malformed"):
        load(tmp_path)


class Trap:
    """Unpickling this would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_refused_unless_asked_for(tmp_path: Path, tensors: Tensors) -> None:
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(CheckpointError, match=r"allow_pickle=True"):
            load(source)
        same(load(source, allow_pickle=True), tensors)


def test_a_pickle_that_runs_code_never_runs(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "trap": Trap(tmp_path / "ran")}, tmp_path / "model.pt")
    for allow in (False, True):
        with pytest.raises(CheckpointError):
            load(tmp_path / "model.pt", allow_pickle=allow)
    assert not (tmp_path / "ran").exists()


def test_bytes_of_a_file_can_be_given_as_saved(tmp_path: Path, tensors: Tensors) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(tensors))
    same(load(path), tensors)

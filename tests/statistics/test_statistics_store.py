"""Statistics on disk: what was written is what is read, lazily, whole or not at all, and nothing is trusted."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mergelab.errors import Cancelled, CheckpointError, StatisticsError
from mergelab.progress import Stop
from mergelab.statistics import Block, TaskStatistics, read, read_folder, write

KEY = "mergelab_statistics"


def gram(rows: torch.Tensor) -> torch.Tensor:
    """(1/n) Σ x xᵀ, one outer product at a time."""
    return sum(torch.outer(x, x) for x in rows) / len(rows)


def blocks() -> dict[str, Block]:
    """A plain layer with everything, a fused one, a convolution with A alone, a vector with a full block."""
    rng = torch.Generator().manual_seed(0)

    def rows(n: int, d: int) -> torch.Tensor:
        return torch.randn(n, d, generator=rng)

    x, g = rows(9, 3), rows(9, 5)
    parts = torch.stack([gram(rows(9, 2)) for _ in range(3)])
    plain = Block(gram(x), gram(g)[None], rows(5, 3) ** 2, None, x.mean(0), 9, 4, "linear", (5, 3))
    fused = Block(gram(rows(9, 4)), parts, rows=9, layout="linear", shape=(6, 4))
    patch = Block(gram(rows(9, 12)), rows=9, layout="conv", shape=(4, 3, 2, 2))
    vector = Block(full=gram(rows(6, 5)), diagonal=rows(1, 5)[0] ** 2, examples=6, shape=(5,))
    return {"plain.weight": plain, "fused.weight": fused, "patch": patch, "scale": vector}


def statistics(**changes: Any) -> TaskStatistics:
    said: dict[str, Any] = {
        "name": "expert", "weights_hash": "ab" * 32, "split": "val", "examples": 9, "fisher": "sampled", "seed": 3,
        "suite": "tiny", "meta": {"mask": "none", "seconds": 1.5}, "skipped": {"norm": "no linear layer"},
    }  # fmt: skip
    return TaskStatistics("mnist", changes.pop("blocks", blocks()), **{**said, **changes})


def test_what_is_read_is_what_was_written(tmp_path: Path):
    made = statistics()
    path = write(made, tmp_path / "deep" / "mnist.safetensors")
    found = read(path)
    for name in ("task", "name", "weights_hash", "split", "examples", "fisher", "seed", "suite", "meta", "skipped"):
        assert getattr(found, name) == getattr(made, name), name
    assert found.names == made.names == tuple(blocks())
    assert found.kinds == made.kinds == ("diag", "gram", "kfac", "block")
    assert found.nbytes == made.nbytes == sum(block.nbytes for block in blocks().values())
    for name, block in blocks().items():
        got = found.block(name)
        assert got is not None
        assert (got.rows, got.examples, got.layout, got.shape) == (
            block.rows,
            block.examples,
            block.layout,
            block.shape,
        )
        assert set(got.tensors) == set(block.tensors)
        for key, tensor in block.tensors.items():
            assert torch.equal(got.tensors[key], tensor), (name, key)
            assert got.tensors[key].dtype == torch.float32
    assert [file.name for file in path.parent.iterdir()] == ["mnist.safetensors"]


@pytest.mark.parametrize("kept", ["memory", "file"])
def test_only_the_kinds_that_are_asked_for_come(tmp_path: Path, kept: str):
    found = statistics() if kept == "memory" else read(write(statistics(), tmp_path / "s.safetensors"))

    def fields(name: str, *kinds: str) -> set[str] | None:
        block = found.block(name, kinds)
        return None if block is None else set(block.tensors)

    assert fields("plain.weight", "gram") == {"inputs", "mean"}
    assert fields("plain.weight", "kfac") == {"inputs", "outputs", "mean"}
    assert fields("plain.weight", "diag") == {"diagonal"}
    assert fields("plain.weight", "diag", "gram") == {"diagonal", "inputs", "mean"}
    assert fields("plain.weight", "block") is None
    assert fields("patch", "kfac") is None, "A without G is no K-FAC"
    assert fields("patch", "kfac", "gram") == {"inputs"}
    assert fields("scale", "block") == {"full"}
    assert fields("norm.weight", "diag") is None
    assert fields("plain.weight") is None
    with pytest.raises(StatisticsError, match=r"no kind of statistics 'kfca'. Did you mean 'kfac'"):
        found.block("scale", ["kfca"])
    assert found.entries["plain.weight"].nbytes(["gram"]) == 4 * (9 + 3)
    assert found.entries["fused.weight"].nbytes(["kfac"]) == 4 * (16 + 12)


def test_a_block_is_read_from_the_file_when_it_is_asked_for_and_not_before(tmp_path: Path):
    """Zero the bytes of one tensor on disk after opening: only blocks read afterwards can notice."""
    path = write(statistics(), tmp_path / "s.safetensors")
    found = read(path)
    raw = bytearray(path.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + size])["plain.weight/inputs"]["data_offsets"]
    raw[8 + size + begin : 8 + size + end] = b"\0" * (end - begin)
    with path.open("r+b") as file:
        file.write(raw)
    got = found.block("plain.weight", ["gram"])
    assert got is not None and got.inputs is not None and not got.inputs.any()


def test_layers_that_see_the_same_inputs_share_one_matrix_on_disk(tmp_path: Path):
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    a, g = gram(x), gram(x)[None]
    several = {name: Block(a.clone(), g * k, mean=x.mean(0), rows=7, layout="linear", shape=(3, 3))
               for k, name in enumerate("qkv", 1)}  # fmt: skip
    several["o"] = Block(2 * a, g, mean=x.mean(0), rows=7, layout="linear", shape=(3, 3))
    path = write(statistics(blocks=several), tmp_path / "s.safetensors")
    with safe_open(path, "pt") as file:
        assert sorted(key for key in file.offset_keys() if key.endswith("inputs")) == ["o/inputs", "q/inputs"]
    found = read(path)
    for name, block in several.items():
        got = found.block(name, ["kfac"])
        assert got is not None and torch.equal(got.inputs, block.inputs) and torch.equal(got.outputs, block.outputs)
        assert torch.equal(got.mean, block.mean)
    assert found.kinds == ("gram", "kfac")


def test_a_file_can_be_copied_from_another(tmp_path: Path):
    """Writing what was read gives the same bytes: nothing is lost on the way, and nothing depends on the time."""
    one = write(statistics(), tmp_path / "one.safetensors")
    two = write(read(one), tmp_path / "two.safetensors")
    assert one.read_bytes() == two.read_bytes()


def test_half_precision_on_disk_comes_as_float32_and_float64_stays(tmp_path: Path):
    double = {"w": Block(inputs=torch.eye(2, dtype=torch.float64), rows=1, layout="linear", shape=(1, 2))}
    path = write(statistics(blocks=double), tmp_path / "d.safetensors")
    assert read(path).block("w").inputs.dtype == torch.float64
    half = {"w": Block(inputs=torch.eye(2, dtype=torch.bfloat16), rows=1, layout="linear", shape=(1, 2))}
    assert statistics(blocks=half).block("w").inputs.dtype == torch.float32


def test_a_folder_is_read_by_task(tmp_path: Path):
    write(statistics(), tmp_path / "a.safetensors")
    other = TaskStatistics("svhn", blocks())
    write(other, tmp_path / "b.safetensors")
    (tmp_path / "README.md").write_text("")
    assert list(read_folder(tmp_path)) == ["mnist", "svhn"]
    write(other, tmp_path / "c.safetensors")
    with pytest.raises(StatisticsError, match=r"c.safetensors and b.safetensors are both of the task 'svhn': keep one"):
        read_folder(tmp_path)


def test_a_folder_that_is_missing_or_empty_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(StatisticsError, match=r"no folder '.*nowhere' with statistics.*python -m mergelab stats"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(StatisticsError, match="has no statistics"):
        read_folder(tmp_path)
    with pytest.raises(StatisticsError, match="no file"):
        read(tmp_path / "nothing.safetensors")


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path):
    path = write(statistics(), tmp_path / "s.safetensors")
    before = path.read_bytes()
    bad = {**blocks(), "plain.weight": Block(inputs=torch.full((3, 3), torch.nan), rows=1, layout="linear")}
    with pytest.raises(StatisticsError, match="NaN"):
        write(statistics(blocks=bad), path)
    stop = Stop()
    stop.set()
    with pytest.raises(Cancelled):
        write(statistics(seed=4), path, stop=stop)
    with pytest.raises(StatisticsError, match="no statistics of any tensor"):
        write(statistics(blocks={}), path)
    with pytest.raises(StatisticsError, match="plain JSON"):
        write(statistics(meta={"model": object()}), path)
    with pytest.raises(CheckpointError, match="exists"):
        write(statistics(), path, overwrite=False)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s.safetensors"]


def test_what_a_killed_write_left_is_no_task_and_is_swept_away(tmp_path: Path):
    write(statistics(), tmp_path / "s.safetensors")
    left = tmp_path / "t.safetensors.partial-999999999-0f"
    left.write_bytes(b"half")
    assert list(read_folder(tmp_path)) == ["mnist"]
    write(TaskStatistics("svhn", blocks()), tmp_path / "t.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["s.safetensors", "t.safetensors"]


# -- files of strangers ------------------------------------------------------------------------------------------------


def forged(tmp_path: Path, head: Any = None, tensors: Any = None, **changes: Any) -> Path:
    """A file whose header or tensors were changed by hand."""
    path = write(statistics(), tmp_path / "good.safetensors")
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()[KEY])
    stored = load_file(path)
    said.update(changes)
    if callable(head):
        head(said)
    if callable(tensors):
        tensors(stored)
    out = tmp_path / "bad.safetensors"
    text = head if isinstance(head, str) else json.dumps(said)
    save_file(stored, out, metadata={KEY: text})
    return out


def _drop(key: str) -> Any:
    return lambda said: said.pop(key)


def _block(name: str, **changes: Any) -> Any:
    return lambda said: said["blocks"][name].update(changes)


def test_the_forger_itself_changes_nothing(tmp_path: Path):
    assert read(forged(tmp_path)).names == tuple(blocks())


@pytest.mark.parametrize(
    ("forgery", "sentence"),
    [
        ({"format": "mergelab-statistics/9"}, "has the format 'mergelab-statistics/9', and 'mergelab-statistics/1'"),
        ({"head": "[1]"}, "JSON object was expected"),
        ({"head": '{"format": NaN}'}, "NaN is not a JSON value"),
        ({"head": "[" * 100_000}, "nested too deeply|not valid JSON"),
        ({"head": _drop("weights_hash")}, "it has no 'weights_hash'"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"task": ""}, "'task' is ''"),
        ({"task": 5}, "'task' is 5, a text was expected"),
        ({"split": "x" * 1001}, "'split' is .* a text was expected"),
        ({"fisher": "guessed"}, "'fisher' is 'guessed'"),
        ({"examples": -1}, "'examples' is -1, a whole number"),
        ({"examples": True}, "'examples' is True"),
        ({"seed": 1.5}, "'seed' is 1.5"),
        ({"meta": []}, r"'meta' is \[\], an object"),
        ({"skipped": {"a": 1}}, "'skipped' has reasons that are no text"),
        ({"blocks": []}, r"'blocks' is \[\], an object"),
        ({"kinds": ["gram"]}, r"it says \['gram'\] as kinds and holds"),
        ({"head": lambda said: said["blocks"].update({"ghost": {}})}, "lists tensor 'ghost' and holds nothing of it"),
        ({"head": lambda said: said["blocks"].pop("patch")}, "holds 'patch/inputs', which its header does not list"),
        ({"head": lambda said: said["blocks"].update({"patch": 3})}, "the entry of tensor 'patch' is 3"),
        ({"head": _block("patch", layout="conv9")}, "the layout of 'patch' is 'conv9'"),
        ({"head": _block("patch", layout=["conv"])}, r"the layout of 'patch' is \['conv'\]"),
        ({"head": _block("patch", layout="")}, "needs a layer's layout"),
        ({"head": _block("patch", colour="red")}, "unknown key 'colour'"),
        ({"head": _block("patch", rows=-3)}, "'rows' of tensor 'patch' is -3"),
        ({"head": _block("patch", rows=0)}, "'patch'.*averaged over 0 rows, at least 1 is needed"),
        ({"head": _block("scale", examples=0)}, "'scale'.*averaged over 0 examples, at least 1 is needed"),
        ({"head": _block("patch", shape=[4, 3, 2])}, r"Gram matrix A has the shape \[12, 12\], expected \[6, 6\]"),
        ({"head": _block("patch", shape=[4, 12])}, r"tensor of shape \[4, 12\] is no conv weight"),
        ({"head": _block("patch", shape="4")}, "the shape of tensor 'patch' is '4'"),
        ({"head": _block("patch", shape=[2**40, 2**40])}, "the shape of tensor 'patch' is"),
        ({"head": _block("plain.weight", shape=[5, 4])}, r"'plain.weight'.*A has the shape \[3, 3\], expected \[4"),
        ({"head": _block("fused.weight", shape=[8, 4])}, r"factor G has the shape \[3, 2, 2\], expected .*out = 8"),
        ({"head": _block("scale", shape=[7])}, r"diagonal Fisher has the shape \[5\], expected \[7\]"),
        ({"head": _block("scale", inputs_of="nobody")}, "shares the inputs of 'nobody', which has none"),
        ({"head": _block("scale", inputs_of="scale")}, "shares the inputs of 'scale', which has none"),
        ({"head": _block("patch", inputs_of="plain.weight")}, "'patch' has inputs and shares others"),
        ({"head": _block("scale", inputs_of="patch")}, "'scale'.*needs a layer's layout"),
        ({"tensors": lambda t: t.update({"plain.weight/colour": torch.ones(1)})}, "holds 'plain.weight/colour'"),
        ({"tensors": lambda t: t.update({"free": torch.ones(1)})}, "holds 'free'"),
        ({"tensors": lambda t: t.update({"scale/full": torch.eye(5, dtype=torch.int32)})}, "stored as I32"),
        ({"tensors": lambda t: t.update({"scale/full": torch.eye(6)})}, r"full block has the shape \[6, 6\]"),
        ({"tensors": lambda t: t.update({"patch/inputs": torch.ones(12, 11)})}, r"\[12, 11\], expected \[12, 12\]"),
        ({"tensors": lambda t: t.update({"patch/inputs": torch.ones(0, 0)})}, r"\[0, 0\], expected \[12, 12\]"),
        ({"tensors": lambda t: t.update({"plain.weight/mean": torch.ones(4)})}, r"mean input has the shape \[4\]"),
        ({"tensors": lambda t: t.update({"plain.weight/outputs": torch.eye(5)})}, r"G has the shape \[5, 5\]"),
    ],
)  # fmt: skip
def test_a_forged_file_is_refused_with_its_reason(tmp_path: Path, forgery: dict[str, Any], sentence: str):
    with pytest.raises(StatisticsError, match=sentence) as caught:
        read(forged(tmp_path, **forgery))
    assert "bad.safetensors" in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("patch/inputs", lambda a: a.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(9.0)),
         "the Gram matrix A is not symmetric"),
        ("patch/inputs", lambda a: a - 100 * torch.eye(12), "A has -.* on its diagonal"),
        ("patch/inputs", lambda a: a * torch.inf, "A has 144 of 144 values that are NaN or infinite"),
        ("plain.weight/outputs", lambda g: g * torch.nan, "G has 25 of 25 values"),
        ("plain.weight/diagonal", lambda d: -d, "the diagonal Fisher has -.* on its diagonal"),
        ("plain.weight/mean", lambda m: m * torch.nan, "the mean input has 3 of 3 values"),
        ("scale/full", lambda f: f.triu(), "the full block is not symmetric"),
    ],
)  # fmt: skip
def test_numbers_that_are_no_statistics_are_refused_when_they_are_read(
    tmp_path: Path, key: str, value: Any, sentence: str
):
    path = forged(tmp_path, tensors=lambda t: t.update({key: value(t[key]).contiguous()}))
    found = read(path)
    tensor = key.rpartition("/")[0]
    with pytest.raises(StatisticsError, match=f"bad.safetensors, tensor '{re.escape(tensor)}': .*{sentence}"):
        found.block(tensor)
    others = [name for name in found.names if name != tensor]
    assert all(found.block(name) is not None for name in others)


def test_files_that_are_something_else(tmp_path: Path):
    plain = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2)}, plain)
    with pytest.raises(StatisticsError, match=f"no statistics file: its metadata has no {KEY}"):
        read(plain)
    for content in (b"", b"PK\x03\x04zip", b"\x80\x04pickle of something", os.urandom(64)):
        plain.write_bytes(content)
        with pytest.raises(StatisticsError, match=r"model\.safetensors"):
            read(plain)
    whole = write(statistics(), tmp_path / "s.safetensors").read_bytes()
    plain.write_bytes(whole[:-10])
    with pytest.raises(StatisticsError, match="cut short"):
        read(plain)


def test_a_file_that_changes_while_it_is_open_is_noticed(tmp_path: Path):
    path = write(statistics(), tmp_path / "s.safetensors")
    found = read(path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(StatisticsError, match="has changed since it was opened"):
        found.block("patch")

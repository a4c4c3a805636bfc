"""Writing: whole or not at all, also when the process is killed or the disk is full."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergelab.checkpoints import load, sweep, write
from mergelab.checkpoints import write as write_function
from mergelab.errors import Cancelled, CheckpointError
from mergelab.progress import Stop

Tensors = dict[str, torch.Tensor]


def plan_of(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (info.dtype, info.shape) for name, info in load(tensors).infos.items()}


def out_of(tmp_path: Path, tensors: Tensors, **options: object) -> Path:
    return write(tmp_path / "out", tensors.items(), plan_of(tensors), config={"a": 1}, **options)  # type: ignore[arg-type]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_single_file_reads_back_with_the_reference_loader(tmp_path: Path, tensors: Tensors) -> None:
    out = out_of(tmp_path, tensors, files={"README.md": "# merged", "tokenizer.model": b"\0\1"}, metadata={"by": "me"})
    assert out == tmp_path / "out"
    assert left_in(out) == ["README.md", "config.json", "model.safetensors", "tokenizer.model"]
    found = load_file(out / "model.safetensors")
    assert {name: found[name].dtype for name in found} == {name: tensor.dtype for name, tensor in tensors.items()}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert json.loads((out / "config.json").read_text()) == {"a": 1}
    assert load(out).metadata == {"format": "pt", "by": "me"}
    assert left_in(tmp_path) == ["out"]


def test_shards_and_index_as_transformers_names_them(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.full((10,), float(i)) for i in range(5)}  # 40 bytes each
    out = out_of(tmp_path, tensors, max_shard_bytes=100)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert left_in(out) == ["config.json", *shards, "model.safetensors.index.json"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 200}
    assert index["weight_map"]["layer.4"] == "model-00003-of-00003.safetensors"
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(out / file)[name], tensors[name])
    assert torch.equal(load(out)["layer.3"], tensors["layer.3"])


def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    model = Dinov2Model(config)
    state = model.state_dict()
    settings = {**config.to_dict(), "architectures": ["Dinov2Model"]}
    out = write(tmp_path / "out", state.items(), plan_of(state), config=settings, max_shard_bytes=4000)
    again = Dinov2Model.from_pretrained(out).state_dict()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_tensors_may_come_in_any_order_and_the_bytes_are_the_same(tmp_path: Path, tensors: Tensors) -> None:
    plan = plan_of(tensors)
    for name, items in {"one": list(tensors.items()), "two": list(tensors.items())[::-1]}.items():
        write(tmp_path / name, items, plan, config=None, max_shard_bytes=60)
    assert left_in(tmp_path / "one") == left_in(tmp_path / "two")
    for file in left_in(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_tied_tensors_are_written_once_and_come_back_tied(tmp_path: Path) -> None:
    shared = torch.ones(3)
    source = load({"a": shared, "b": shared})
    out = write(tmp_path / "out", source.items(), plan_of(dict(source)), config=None, metadata=source.aliases)
    assert dict(load(out).aliases) == {"b": "a"}


def test_an_openclip_config_keeps_its_name(tmp_path: Path, tensors: Tensors) -> None:
    config = {"model_cfg": {"embed_dim": 4}}
    out = write(tmp_path / "out", tensors.items(), plan_of(tensors), config=config)
    assert load(out).config == config and (out / "open_clip_config.json").exists()


def test_views_and_other_strides_are_written_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    out = out_of(tmp_path, {"turned": whole.T, "part": whole[1:, ::2]})
    assert torch.equal(load(out)["turned"], whole.T) and torch.equal(load(out)["part"], whole[1:, ::2])


def test_progress_counts_tensors(tmp_path: Path, tensors: Tensors) -> None:
    seen: list[tuple[int, int]] = []
    out_of(tmp_path, tensors, progress=lambda done, total, text: seen.append((done, total)))
    assert seen == [(i, len(tensors)) for i in range(1, len(tensors) + 1)]


def test_a_folder_with_something_in_it_is_kept(tmp_path: Path, tensors: Tensors) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"not empty"):
        out_of(tmp_path, tensors)
    assert left_in(tmp_path / "out") == ["thesis.txt"] and left_in(tmp_path) == ["out"]
    out_of(tmp_path, tensors, overwrite=True)
    assert left_in(tmp_path / "out") == ["config.json", "model.safetensors"] and left_in(tmp_path) == ["out"]


def test_an_empty_folder_may_be_filled_and_parents_are_made(tmp_path: Path, tensors: Tensors) -> None:
    (tmp_path / "out").mkdir()
    out_of(tmp_path, tensors)
    write(tmp_path / "a" / "b" / "c", tensors.items(), plan_of(tensors), config=None)
    assert len(load(tmp_path / "a" / "b" / "c")) == len(tensors)


def test_a_checkpoint_may_be_written_over_itself(tmp_path: Path) -> None:
    out = write(tmp_path / "m", {"w": torch.ones(3)}.items(), {"w": ("F32", (3,))}, config=None)
    source = load(out)
    doubled = ((name, tensor * 2) for name, tensor in source.items())
    write(out, doubled, {"w": ("F32", (3,))}, config=None, overwrite=True)
    assert load(out)["w"].tolist() == [2, 2, 2]


def test_a_failed_overwrite_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[write_function.__module__]
    out = write(tmp_path / "out", {"w": torch.ones(3)}.items(), {"w": ("F32", (3,))}, config=None)

    def broken(folder: Path) -> None:
        raise CheckpointError("what lies there is not what was written")

    monkeypatch.setattr(module, "verify", broken)
    with pytest.raises(CheckpointError, match=r"not what was written"):
        write(out, {"w": torch.zeros(3)}.items(), {"w": ("F32", (3,))}, config=None, overwrite=True)
    assert load(out)["w"].tolist() == [1, 1, 1] and left_in(tmp_path) == ["out"]


WRONG = {
    "another dtype": ([("w", torch.ones(3).half())], "'w' is F16 .*F32 .* was planned"),
    "another shape": ([("w", torch.ones(4))], r"\[4\].*\[3\] was planned"),
    "not in the plan": ([("w", torch.ones(3)), ("v", torch.ones(3))], "'v' is not in the plan"),
    "twice": ([("w", torch.ones(3)), ("w", torch.ones(3))], "'w' comes twice"),
    "missing": ([], "1 planned tensors were never made, such as 'w'"),
    "NaN": ([("w", torch.tensor([1.0, float("nan"), 2.0]))], "'w' has 1 values that are NaN or infinite"),
    "infinite": ([("w", torch.tensor([float("inf"), 1.0, float("-inf")]))], "'w' has 2 values"),
}


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_are_not_as_planned_leave_nothing(case: str, tmp_path: Path) -> None:
    tensors, words = WRONG[case]
    with pytest.raises(CheckpointError, match=words):
        write(tmp_path / "out", tensors, {"w": ("F32", (3,))}, config=None)
    assert left_in(tmp_path) == []


def test_overflow_in_half_precision_is_named_and_can_be_allowed(tmp_path: Path) -> None:
    half = {"w": torch.tensor([70000.0]).half()}
    with pytest.raises(CheckpointError, match=r"infinite as F16.*write in float32"):
        out_of(tmp_path, half)
    assert load(out_of(tmp_path, half, allow_nonfinite=True))["w"].isinf().all()


@pytest.mark.parametrize("name", ["", "a\0b", "__metadata__", "a\nb"])
def test_names_that_no_reader_should_meet_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be stored under the name"):
        write(tmp_path / "out", [], {name: ("F32", (1,))}, config=None)


@pytest.mark.parametrize(
    "name", ["../evil", "a/b", "", "..", "config.json", "x.safetensors", "adapter_config.json", "a\\b"]
)
def test_further_files_stay_in_the_folder_and_are_not_weights(name: str, tmp_path: Path, tensors: Tensors) -> None:
    with pytest.raises(CheckpointError):
        out_of(tmp_path, tensors, files={name: b"x"})
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_whatever_is_raised_in_the_middle_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    closed = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        try:
            yield "a", torch.ones(3)
            raise error
        finally:
            closed.append(True)

    with pytest.raises(error):
        write(tmp_path / "out", tensors(), {"a": ("F32", (3,)), "b": ("F32", (3,))}, config=None)
    assert left_in(tmp_path) == [] and closed


def test_a_stop_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    stop = Stop()

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(3)
        stop.set()
        yield "b", torch.ones(3)

    with pytest.raises(Cancelled):
        write(tmp_path / "out", tensors(), {"a": ("F32", (3,)), "b": ("F32", (3,))}, config=None, stop=stop)
    assert left_in(tmp_path) == []


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(_: object) -> os.terminal_size:
        return type("Usage", (), {"free": 1000})()  # type: ignore[return-value]

    monkeypatch.setattr("shutil.disk_usage", usage)
    out_of(tmp_path, {"w": torch.ones(225)})  # 900 bytes
    with pytest.raises(CheckpointError, match=r"needs 1,012 bytes with a margin and 1,000 are free"):
        write(tmp_path / "more", {"w": torch.ones(230)}.items(), {"w": ("F32", (230,))}, config=None)
    assert left_in(tmp_path) == ["out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_up_leaves_nothing(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, room = os.pwrite, [600]

    def pwrite(handle: int, data: memoryview, offset: int) -> int:
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(code, os.strerror(code))
        return whole(handle, data[: max(1, len(data) // 2)], offset)  # short writes happen too

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(CheckpointError, match=r"cannot be written" if code == errno.EIO else "out needs 4,000 bytes"):
        out_of(tmp_path, {"a": torch.ones(10), "b": torch.ones(990)})
    assert left_in(tmp_path) == []
    monkeypatch.undo()
    assert load(out_of(tmp_path, {"a": torch.ones(10)}))["a"].sum() == 10


@pytest.mark.parametrize("last", ["config.json", "model.safetensors.index.json"])
def test_no_step_of_the_end_leaves_something_that_looks_whole(
    last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail at the config and at the index: until the rename, what lies there must not load even where it is."""
    partial: list[Path] = []
    opened = Path.open

    def open_(path: Path, mode: str = "r", *args: object) -> object:
        if path.name == last and mode == "xb":
            partial.append(path.parent)
            for source in (path.parent, path.parent / "model-00001-of-00002.safetensors"):
                with pytest.raises(CheckpointError):
                    load(source)
            raise OSError(errno.ENOSPC, "full")
        return opened(path, mode, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(CheckpointError, match=r"disk is full"):
        out_of(tmp_path, {"a": torch.ones(10), "b": torch.ones(10)}, max_shard_bytes=40)
    assert partial and left_in(tmp_path) == []


WRITER = """
import os, sys, time
import torch
from mergelab.checkpoints import write

def tensors():
    yield "a", torch.ones(1000)
    yield "b", torch.ones(1000)
    print("half", flush=True)
    if sys.argv[2] == "wait":
        time.sleep(60)
    yield "c", torch.ones(100_000)

if sys.argv[2] == "limit":
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
plan = {"a": ("F32", (1000,)), "b": ("F32", (1000,)), "c": ("F32", (100_000,))}
try:
    write(sys.argv[1], tensors(), plan, config={}, max_shard_bytes=4000)
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(2)
"""


def writer(out: Path, how: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(out), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_killed_in_the_middle_of_writing(tmp_path: Path) -> None:
    """SIGKILL with two of three shards on disk: nothing loads, the next write succeeds and sweeps."""
    process = writer(tmp_path / "out", "wait")
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    (partial,) = tmp_path.iterdir()
    assert left_in(partial) == ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"]
    assert sweep(tmp_path) == []  # its writer is alive
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for source in (tmp_path / "out", partial, partial / "model-00001-of-00003.safetensors"):
        with pytest.raises(CheckpointError):
            load(source)
    out = out_of(tmp_path, {"w": torch.ones(3)})
    assert left_in(tmp_path) == ["out"] and load(out)["w"].sum() == 3


def test_a_file_size_limit_stops_a_write_cleanly(tmp_path: Path) -> None:
    process = writer(tmp_path / "out", "limit")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "CheckpointError The disk is full: out needs 408,000 bytes" in said
    assert left_in(tmp_path) == []


def test_sweep_takes_only_what_dead_writers_left(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"a.partial-{ended.pid}-0f", f"b.partial-{os.getppid()}-0f", "c.partial-notes", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    (tmp_path / f"e.partial-{ended.pid}-0f").symlink_to(tmp_path / "d")
    old = tmp_path / f"f.old-{ended.pid}-0f"  # a writer died between moving the old folder away and the new one in
    old.mkdir()
    (old / "kept").write_text("mine")
    # The parent process is older than the folder, so it may be its writer.
    assert [path.name for path in sweep(tmp_path)] == [f"a.partial-{ended.pid}-0f"]
    assert (tmp_path / "f" / "kept").read_text() == "mine" and not old.exists()
    assert (tmp_path / "d" / "x").exists() and (tmp_path / f"b.partial-{os.getppid()}-0f").exists()
    assert sweep(tmp_path / "nowhere") == []


def test_a_reused_process_number_does_not_protect_leftovers(tmp_path: Path) -> None:
    """In a container every writer has the same small number: this process is not the one that left this."""
    for pid in (os.getpid(), os.getppid()):
        left = tmp_path / f"a.partial-{pid}-0f"
        left.mkdir()
        os.utime(left, (1000, 1000))
    assert len(sweep(tmp_path)) == 2


def test_a_name_kept_for_unfinished_writes_is_refused(tmp_path: Path, tensors: Tensors) -> None:
    with pytest.raises(CheckpointError, match=r"choose another"):
        write(tmp_path / "x.partial-12-ab", tensors.items(), plan_of(tensors), config=None)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"not a folder"):
        write(tmp_path / "file", tensors.items(), plan_of(tensors), config=None)
    with pytest.raises(CheckpointError, match=r"no tensor"):
        write(tmp_path / "out", [], {}, config=None)

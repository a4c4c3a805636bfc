"""Headers: what a file may say of itself, against hand-made files and against the reference loader."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from mergelab.checkpoints import load
from mergelab.checkpoints.header import read_header
from mergelab.errors import CheckpointError


def file_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with this header (JSON-able, or bytes as they are) and these weights."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


PLAIN = json.dumps(entry()).encode()
GOOD = file_of({"w": entry()}, bytes(8))
TWO = {"a": entry(), "b": entry(offsets=(8, 16))}

#: name -> (the file, what the message must say)
REJECTED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "7 bytes"),
    "no header": (file_of(b"", bytes(8)), "header of 0 bytes"),
    "header longer than file": (file_of({"w": entry()}, length=4000), "cut short"),
    "header of 2^63": (file_of({"w": entry()}, bytes(8), length=2**63), "header of 9,223"),
    "header of 101 MB": (file_of({"w": entry()}, bytes(8), length=101_000_000), "header of 101,000,000"),
    "not JSON": (file_of(b"{hello there!!!}"), "not valid JSON"),
    "JSON array": (file_of(b"[1,2,3]"), "not begin with"),
    "not UTF-8": (file_of(b'{"\xff\xfe": 1}'), "UTF-8"),
    "duplicate key": (file_of(b'{"w":%s,"w":%s}' % (PLAIN, PLAIN), bytes(8)), "twice"),
    "overlap": (file_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "overlaps"),
    "hole": (file_of({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "hole"),
    "trailing bytes": (GOOD + b"\0", "1 bytes follow"),
    "truncated": (GOOD[:-3], f"has {len(GOOD) - 3} bytes of {len(GOOD)}"),
    "negative offset": (file_of({"w": entry(offsets=(-8, 0))}, bytes(8)), "data_offsets"),
    "begin after end": (file_of({"w": entry(offsets=(8, 0))}, bytes(8)), "data_offsets"),
    "shape does not fit": (file_of({"w": entry(shape=(3,))}, bytes(8)), "needs 12"),
    "shape overflow": (file_of({"w": entry(shape=(2**40, 2**40))}, bytes(8)), "impossible shape"),
    "overflow hidden by zero": (file_of({"w": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}), "impossible shape"),
    "negative shape": (file_of({"w": entry(shape=(-2, -1))}, bytes(8)), "shape"),
    "float shape": (file_of({"w": entry(shape=(2.0,))}, bytes(8)), "shape"),
    "true as shape": (file_of({"w": entry(shape=(True, 2))}, bytes(8)), "shape"),
    "unknown dtype": (file_of({"w": entry("F33")}, bytes(8)), "unknown dtype 'F33'"),
    "no dtype": (file_of({"w": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "no dtype"),
    "tensor is a string": (file_of({"w": "hello"}), "is a string"),
    "metadata value not a string": (file_of({"__metadata__": {"a": 1}, "w": entry()}, bytes(8)), "__metadata__"),
    "metadata a list": (file_of({"__metadata__": [], "w": entry()}, bytes(8)), "__metadata__"),
    "nested 200,000 deep": (file_of(b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deeply"),
    "leading whitespace": (file_of(b" " + json.dumps({"w": entry()}).encode(), bytes(8)), "not begin with"),
    "F4 of odd size": (file_of({"w": entry("F4", (3,), (0, 1))}, bytes(1)), "whole byte"),
    "name with NUL": (file_of({"a\0b": entry()}, bytes(8)), "cannot be shown"),
    "name with half a character": (file_of(b'{"\\ud800":%s}' % PLAIN, bytes(8)), "cannot be shown"),
    "unknown field": (file_of({"w": {**entry(), "code": "x"}}, bytes(8)), "unknown field 'code'"),
    "duplicate metadata": (file_of(b'{"__metadata__":{},"__metadata__":{},"w":%s}' % PLAIN, bytes(8)), "twice"),
    "number of 5,000 digits": (file_of(b'{"w":%s}' % PLAIN.replace(b"[2]", b"[%s]" % (b"9" * 5000))), "malformed"),
    "NaN in the JSON": (file_of(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)), "NaN"),
    "offset beyond 2^64": (file_of({"w": entry(offsets=(0, 2**70))}, bytes(8)), "data_offsets"),
}  # fmt: skip

#: name -> a file that is odd and whole; the reference loader takes them too
ACCEPTED: dict[str, bytes] = {
    "plain": GOOD,
    "two tensors": file_of(TWO, bytes(16)),
    "listed in another order": file_of({"b": TWO["b"], "a": TWO["a"]}, bytes(16)),
    "zero-size": file_of({"w": entry(shape=(0,), offsets=(0, 0))}),
    "zero-size between two": file_of(TWO | {"z": entry(shape=(0, 3), offsets=(8, 8))}, bytes(16)),
    "scalar": file_of({"w": entry(shape=(), offsets=(0, 4))}, bytes(4)),
    "trailing whitespace": file_of(json.dumps({"w": entry()}).encode() + b"   ", bytes(8)),
    "a name like a path": file_of({"../../x": entry()}, bytes(8)),
    "NaN payload": file_of({"w": entry()}, struct.pack("<2f", float("nan"), float("inf"))),
    "only metadata": file_of({"__metadata__": {"format": "pt"}}),
    "BOOL of 7": file_of({"w": entry("BOOL", (1,), (0, 1))}, b"\x07"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_a_malformed_file_is_refused_in_words(case: str, tmp_path: Path) -> None:
    raw, words = REJECTED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert words in message
    assert message.startswith("model.safetensors ")
    assert message.isprintable() and len(message) < 400


@pytest.mark.parametrize("case", ACCEPTED)
def test_an_odd_but_whole_file_is_read(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(ACCEPTED[case])
    header = read_header(path)
    reference = dict(deserialize(ACCEPTED[case]))
    assert {name: (info.dtype, list(info.shape), info.nbytes) for name, info in header.infos.items()} == {
        name: (view["dtype"], view["shape"], len(view["data"])) for name, view in reference.items()
    }


def test_the_cases_are_those_the_reference_lets_through_and_more() -> None:
    """Guards the table itself: each rejected file is either refused by the reference loader or one of these."""
    stricter = {
        "duplicate key",
        "leading whitespace",
        "name with NUL",
        "unknown field",
        "true as shape",
    }
    through = set()
    for case, (raw, _) in REJECTED.items():
        try:
            deserialize(raw)
        except SafetensorError:
            continue
        through.add(case)
    assert through <= stricter
    for raw in ACCEPTED.values():
        deserialize(raw)


def test_a_bool_that_is_neither_is_refused_when_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(ACCEPTED["BOOL of 7"])
    checkpoint = load(tmp_path)
    with pytest.raises(CheckpointError, match="'w' is BOOL"):
        checkpoint["w"]


def test_a_file_without_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(ACCEPTED["only metadata"])
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load(tmp_path)


MISTAKEN = {
    "Git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n", "git lfs pull"),
    "web page": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "web page"),
    "error answer": (b'{"error":"Repository not found"}', "JSON text"),
    "zip": (b"PK\x03\x04" + bytes(200), "allow_pickle"),
    "pickle": (b"\x80\x04\x95" + b"x" * 200, "pickle"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(200), "GGUF"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(200), "HDF5"),
}


@pytest.mark.parametrize("case", MISTAKEN)
def test_what_is_saved_under_the_wrong_name_is_recognised(case: str, tmp_path: Path) -> None:
    raw, words = MISTAKEN[case]
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


BASE = save(
    {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]), "c": torch.zeros(0), "d": torch.ones(3).half()},
    metadata={"format": "pt"},
)
HEADER_END = 8 + int.from_bytes(BASE[:8], "little")
PIECES = [
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b":",
    b"-1",
    b"0",
    b"99",
    b"1e3",
    b"null",
    b"true",
    b'"F16"',
    b'"F4"',
    b" ",
    b"\0",
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good file with a few bytes of its header changed, put in, or cut out; or cut short, or made longer."""
    raw = bytearray(BASE)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, min(len(raw), HEADER_END + 4)))
        kind = draw(st.sampled_from(["flip", "digit", "insert", "delete", "cut", "grow"]))
        if kind == "flip" and place < len(raw):
            raw[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "digit" and place < len(raw):
            raw[place : place + 1] = str(draw(st.integers(0, 9))).encode()
        elif kind == "insert":
            raw[place:place] = draw(st.sampled_from(PIECES))
        elif kind == "delete":
            del raw[place : place + draw(st.integers(1, 8))]
        elif kind == "cut":
            del raw[place:]
        else:
            raw += bytes(draw(st.integers(1, 9)))
    if draw(st.booleans()) and len(raw) > 8:
        # Keep the announced length right, so that the JSON itself is reached.
        end = raw.rfind(b"}", 8, HEADER_END + 16) + 1
        raw[:8] = struct.pack("<Q", max(0, end - 8))
    return bytes(raw)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=mutated())
@example(raw=BASE)
def test_no_mutation_crashes_or_slips_through(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    try:
        reference: dict[str, Any] | None = dict(deserialize(raw))
    except SafetensorError:
        reference = None
    try:
        header = read_header(path)
    except CheckpointError:
        return
    assert reference is not None, "accepted what the reference loader rejects"
    assert {name: raw[slice(*span)] for name, span in header.spans.items()} == {
        name: bytes(view["data"]) for name, view in reference.items()
    }

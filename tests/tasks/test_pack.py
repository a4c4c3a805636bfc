"""Packs from strangers: bombs, pickles, lies in headers; every refusal names the file and the key."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

from mergelab.errors import TaskError
from mergelab.tasks import load_suite
from mergelab.tasks.pack import Pack


def npy(shape: object, dtype: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An .npy file with this header, whatever it says, and this body."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + body


def packed(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(f"{name}.npy", body)
    return path


def test_what_is_written_is_read(tmp_path):
    arrays = {
        "x_test": np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3),
        "y_test": np.array([1, 0], np.uint8),
        "classes": np.array(["a", "ß"]),
        "note": np.array("one"),
    }
    np.savez(tmp_path / "t.npz", **arrays)
    pack = Pack(tmp_path / "t.npz")
    assert np.array_equal(pack.pictures("x_test"), arrays["x_test"])
    assert pack.labels("y_test", 2).tolist() == [1, 0]
    assert (pack.texts("classes"), pack.texts("note")) == (("a", "ß"), ("one",))


class Evil:
    ran = False

    def __reduce__(self):
        return (setattr, (Evil, "ran", True))


def test_a_pickle_is_refused_and_never_run(tmp_path):
    np.savez(tmp_path / "t.npz", classes=np.array([Evil(), "b"], dtype=object))
    with pytest.raises(TaskError, match=r"t.npz: 'classes' holds Python objects \(a pickle\)"):
        Pack(tmp_path / "t.npz")
    assert not Evil.ran


def test_an_array_that_is_only_a_pickle_is_refused(tmp_path):
    import pickle

    with pytest.raises(TaskError, match="'x_test' is not a readable array"):
        Pack(packed(tmp_path / "t.npz", {"x_test": pickle.dumps(Evil())}))
    assert not Evil.ran


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (npy("(1000000, 1024, 1024)", "|u1"), "would take 1,048,576,000,000 bytes"),
        (npy("(4,)", "|u1", b"12"), "declares 4 bytes and holds 2"),
        (npy("(2,)", "|u1", b"12345"), "declares 2 bytes and holds 5"),
        (npy("(-1, 8, 8)", "|u1"), r"declares the shape \[-1, 8, 8\]"),
        (npy("(2, 8.0, 8)", "|u1"), "damaged"),
        (npy("(0, 99999999999999999999, 8)", "|u1"), None),
        (npy("(2,)", "|V9999999999"), "damaged"),
        (npy("__import__('os')", "|u1"), "damaged"),
        (npy("(1,)", "|u1", b"1", version=b"\x09\x00"), "damaged"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "damaged"),
        (b"", "damaged"),
        (b"{" * 5000, "damaged"),
    ],
)
def test_headers_that_lie(tmp_path, body, message):
    path = packed(tmp_path / "t.npz", {"x_test": body})
    with pytest.raises(TaskError, match=message and rf"t.npz: 'x_test'.*{message}"):
        Pack(path).pictures("x_test")


def test_a_bomb_is_refused_from_its_header(tmp_path):
    """Zeros pack a thousand times smaller: what would come out is looked at before anything is inflated."""
    path = tmp_path / "t.npz"
    packed(path, {"x_test": npy("(2048, 1024, 1024)", "|u1") + bytes(8 << 20)})  # a part is enough for the point
    with pytest.raises(TaskError, match=r"'x_test' would take 2,147,483,648 bytes"):
        Pack(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 8, 8), np.float32), r"uint8 of shape .* found float32 \[2, 8, 8\]"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"found uint8 \[2, 8, 8, 4\]"),
        (np.zeros((0, 8, 8), np.uint8), r"found uint8 \[0, 8, 8\]"),
        (np.zeros((1, 2000, 8), np.uint8), "sides up to 1024"),
        (np.zeros(4, np.uint8), r"found uint8 \[4\]"),
    ],
)
def test_pictures_of_another_kind(tmp_path, array, message):
    np.savez(tmp_path / "t.npz", x_test=array)
    with pytest.raises(TaskError, match=message):
        Pack(tmp_path / "t.npz").pictures("x_test")


def test_labels_out_of_range_and_of_another_kind(tmp_path):
    np.savez(tmp_path / "t.npz", y_test=np.array([0, 7]), y_val=np.array([-1, 0]), y_train=np.array([0.5]))
    pack = Pack(tmp_path / "t.npz")
    with pytest.raises(TaskError, match=r"labels from 0 to 7, but the task has 3 classes"):
        pack.labels("y_test", 3)
    with pytest.raises(TaskError, match="labels from -1"):
        pack.labels("y_val", 3)
    with pytest.raises(TaskError, match="integers of shape"):
        pack.labels("y_train", 3)
    with pytest.raises(TaskError, match=r"t.npz has no 'x_test'; it holds y_test, y_train, y_val"):
        pack.pictures("x_test")


@pytest.mark.parametrize(
    "raw", [b"", b"PK\x03\x04", b"<!doctype html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_what_is_no_zip(tmp_path, raw):
    (tmp_path / "t.npz").write_bytes(raw)
    with pytest.raises(TaskError, match=r"t.npz is not an .npz file"):
        Pack(tmp_path / "t.npz")


def test_cut_off_and_flipped_bytes_never_escape_as_another_error(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x_test=np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8), y_test=np.array([0, 1, 0]))
    whole = buffer.getvalue()
    rng = np.random.RandomState(0)
    path = tmp_path / "t.npz"
    refused = 0
    for _ in range(150):
        raw = bytearray(whole)
        for place in rng.randint(0, len(raw), 3):
            raw[place] = rng.randint(256)
        path.write_bytes(bytes(raw[: rng.randint(len(raw) // 2, len(raw) + 1)]))
        try:
            pack = Pack(path)
            pack.pictures("x_test")
            pack.labels("y_test", 2)
        except TaskError as error:
            refused += 1
            assert "t.npz" in str(error)
    assert refused > 100


def test_too_many_arrays_and_the_same_twice(tmp_path):
    one = npy("(1,)", "|u1", b"1")
    with pytest.raises(TaskError, match="holds 65 arrays"):
        Pack(packed(tmp_path / "t.npz", {f"a{i}": one for i in range(65)}))
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("a.npy", one)
        archive.writestr("a.npy", one)
    with pytest.raises(TaskError, match="'a' is there twice"):
        Pack(tmp_path / "d.npz")


def _suite(folder, **change):
    task = {"name": "t", "file": "t.npz", "classes": ["a", "b"], "seen": False}
    listing = {"format": "mergelab-suite/1", "name": "s", "title": "S", "tasks": [{**task, **change}]}
    np.savez(folder / "t.npz", x_test=np.zeros((4, 8, 8), np.uint8), y_test=np.array([0, 1, 0, 1]))
    (folder / "suite.json").write_text(json.dumps(listing))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../t.npz"}, "not a place inside"),
        ({"file": "/etc/passwd"}, "not a place inside"),
        ({"file": "a\\b.npz"}, "not a place inside"),
        ({"file": 3}, "not a place inside"),
        ({"file": "gone.npz"}, r"gone.npz is missing"),
        ({"name": "../x"}, "not a task's name"),
        ({"name": ""}, "not a task's name"),
        ({"classes": ["a"]}, "at least 2"),
        ({"classes": "ab"}, "classes of t must be a list of texts"),
        ({"seen": "yes"}, "true or false"),
        ({"title": 5}, "title must be text"),
    ],
)
def test_suites_that_lie(tmp_path, change, message):
    with pytest.raises(TaskError, match=message):
        load_suite(_suite(tmp_path, **change))


@pytest.mark.parametrize("raw", ["[]", "{", '{"format": "other/1"}', '{"format": "mergelab-suite/1", "tasks": []}'])
def test_suite_json_of_another_kind(tmp_path, raw):
    (tmp_path / "suite.json").write_text(raw)
    with pytest.raises(Exception, match=r"suite.json") as caught:
        load_suite(tmp_path)
    assert isinstance(caught.value, __import__("mergelab.errors").errors.MergeLabError)


def test_bare_packs_need_classes(tmp_path):
    np.savez(tmp_path / "t.npz", x_test=np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(TaskError, match=r"t.npz has no 'classes'"):
        load_suite(tmp_path)
    with pytest.raises(TaskError, match="holds no suite"):
        load_suite(tmp_path / ".." / tmp_path.name / "..")

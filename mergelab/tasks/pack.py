"""Reading packed tasks: ``.npz`` files that anybody may have written.

An ``.npz`` is a zip of ``.npy`` arrays, so it can be a zip bomb or hold pickles. Headers are read and judged before a
single array is inflated: only plain dtypes, shapes that the declared bytes agree with, and a cap on what comes out.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from ..errors import TaskError

#: No array of a pack may inflate to more than this many bytes.
MAX_ARRAY_BYTES = 1 << 30
#: A text array (class names, templates, notes) holds at most this many bytes.
MAX_TEXT_BYTES = 1 << 20
#: Sides of pictures, number of items.
MAX_SIDE, MAX_ITEMS = 1024, 2_000_000
_MAX_MEMBERS = 64
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class ArrayInfo:
    """What an array's header says."""

    shape: tuple[int, ...]
    dtype: np.dtype
    member: str


class Pack:
    """One ``.npz`` file; :attr:`infos` from its headers, arrays on demand."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.infos = self._headers()

    def __contains__(self, key: str) -> bool:
        return key in self.infos

    def pictures(self, key: str) -> np.ndarray:
        """uint8 [N, H, W] or [N, H, W, 3]."""
        info = self._info(key)
        shape = info.shape
        good = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
        good = good and 0 < shape[0] <= MAX_ITEMS and 0 < shape[1] <= MAX_SIDE and 0 < shape[2] <= MAX_SIDE
        if info.dtype != np.uint8 or not good:
            raise TaskError(
                f"{self._at(key)} must hold pictures, uint8 of shape [N, H, W] or [N, H, W, 3] with sides up to "
                f"{MAX_SIDE}; found {info.dtype} {list(shape)}."
            )
        return self._read(key)

    def labels(self, key: str, classes: int) -> np.ndarray:
        """int64 [N], each from 0 to ``classes`` - 1."""
        info = self._info(key)
        if info.dtype.kind not in "iu" or len(info.shape) != 1 or info.shape[0] > MAX_ITEMS:
            raise TaskError(
                f"{self._at(key)} must hold labels, integers of shape [N]; found {info.dtype} {list(info.shape)}."
            )
        found = self._read(key)
        if found.size and (int(found.min()) < 0 or int(found.max()) >= classes):
            raise TaskError(
                f"{self._at(key)} has labels from {found.min()} to {found.max()}, but the task has {classes} classes "
                f"(0 to {classes - 1})."
            )
        return found.astype(np.int64)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings (an array of unicode strings of any length, or a single one)."""
        info = self._info(key)
        if info.dtype.kind != "U" or len(info.shape) > 1:
            raise TaskError(f"{self._at(key)} must hold text; found {info.dtype} {list(info.shape)}.")
        if info.dtype.itemsize * math.prod(info.shape) > MAX_TEXT_BYTES:
            raise TaskError(f"{self._at(key)} holds more text than {MAX_TEXT_BYTES >> 20} MB.")
        return tuple(str(text) for text in np.atleast_1d(self._read(key)))

    def integers(self, key: str) -> np.ndarray:
        """Whole numbers [N], as predictions are kept."""
        info = self._info(key)
        if info.dtype.kind not in "iu" or len(info.shape) != 1 or info.shape[0] > MAX_ITEMS:
            raise TaskError(f"{self._at(key)} must hold integers of shape [N]; found {info.dtype} {list(info.shape)}.")
        return self._read(key).astype(np.int64)

    # -- the file --------------------------------------------------------------------------------------------------

    def _at(self, key: str) -> str:
        return f"{self.path.name}: {key[:60]!r}"

    def _info(self, key: str) -> ArrayInfo:
        if key not in self.infos:
            there = ", ".join(sorted(self.infos)[:12]) or "nothing"
            raise TaskError(f"{self.path.name} has no {key!r}; it holds {there}.")
        return self.infos[key]

    def _headers(self) -> dict[str, ArrayInfo]:
        infos: dict[str, ArrayInfo] = {}
        with self._open() as archive:
            members = archive.infolist()
            if len(members) > _MAX_MEMBERS:
                raise TaskError(f"{self.path.name} holds {len(members)} arrays; a task has at most {_MAX_MEMBERS}.")
            for member in members:
                if not member.filename.endswith(".npy"):
                    continue
                key = member.filename.removesuffix(".npy")
                if key in infos:
                    raise TaskError(f"{self._at(key)} is there twice. The file is damaged.")
                with self._member(archive, member.filename, key) as stream:
                    infos[key] = self._header(stream, member, key)
        return infos

    def _header(self, stream: IO[bytes], member: zipfile.ZipInfo, key: str) -> ArrayInfo:
        try:
            version = npy.read_magic(stream)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
            shape, _, dtype = read(stream, max_header_size=_HEADER_BYTES)
            start = stream.tell()
        except (ValueError, KeyError, OSError, EOFError, SyntaxError, RecursionError, MemoryError,
                zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:  # fmt: skip
            text = (str(error) or type(error).__name__).splitlines()[0][:120]
            raise TaskError(f"{self._at(key)} is not a readable array ({text}). The file is damaged.") from None
        if dtype.hasobject:
            raise TaskError(
                f"{self._at(key)} holds Python objects (a pickle), which are never read because they can run code. "
                "Save it as numbers or as an array of strings."
            )
        if any(not isinstance(n, int) or n < 0 for n in shape):
            raise TaskError(f"{self._at(key)} declares the shape {list(shape)}. The file is damaged.")
        declared = math.prod(shape) * dtype.itemsize
        if declared > MAX_ARRAY_BYTES:
            raise TaskError(
                f"{self._at(key)} would take {declared:,} bytes; at most {MAX_ARRAY_BYTES:,} are read. Split the task."
            )
        if declared != member.file_size - start:
            raise TaskError(
                f"{self._at(key)} declares {declared:,} bytes and holds {member.file_size - start:,}. "
                "The file is damaged."
            )
        return ArrayInfo(tuple(shape), dtype, member.filename)

    def _read(self, key: str) -> np.ndarray:
        with self._open() as archive, self._member(archive, self.infos[key].member, key) as stream:
            try:
                return npy.read_array(stream, allow_pickle=False, max_header_size=_HEADER_BYTES)
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                text = (str(error) or type(error).__name__).splitlines()[0][:120]
                raise TaskError(f"{self._at(key)} cannot be read ({text}). The file is damaged.") from None

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise TaskError(f"{self.path} is not there.") from None
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise TaskError(
                f"{self.path.name} is not an .npz file ({error}). It may be cut off; get it again."
            ) from None

    def _member(self, archive: zipfile.ZipFile, member: str, key: str) -> IO[bytes]:
        try:
            return archive.open(member)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, ValueError) as error:
            raise TaskError(f"{self._at(key)} cannot be read ({error}). The file is damaged or encrypted.") from None

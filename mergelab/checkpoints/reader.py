"""Reading safetensors files and folders of them, lazily."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .dtypes import torch_dtype
from .header import Header, TensorInfo, load_json_object, read_header, shown
from .index import check_shards, read_index, read_small
from .recognise import PICKLE_ADVICE

if TYPE_CHECKING:
    import torch

#: Configuration files are small; more is not a configuration.
MAX_CONFIG = 4_000_000
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_PARTIAL = re.compile(r"\.partial-\d+-[0-9a-f]+$")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
#: Hashes of weights read in this process: reading a base once serves all the adapters on it.
_HASHES: dict[tuple[Any, ...], str] = {}
_MOST_HASHES = 256
#: Weights that lie beside a model's own and are not it.
_BESIDE = {"head.safetensors", "adapter_model.safetensors"}


class FileCheckpoint(Checkpoint):
    """Tensors of one safetensors file, or of several that an index joins.

    Tensors are read with ``pread`` into memory of their own rather than mapped: a mapped view would die with a bus
    error when the file is truncated under it, and change when the file is overwritten, and reading needs no lock.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        *,
        name: str,
        source: str,
        index: Path | None = None,
        config: dict[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        headers = {file: read_header(path, file) for file, path in files.items()}
        if index is not None:
            check_shards(read_index(index), headers, index.name)
        infos: dict[str, TensorInfo] = {}
        self._where: dict[str, tuple[str, int, int]] = {}
        metadata: dict[str, str] = {}
        for file, header in headers.items():
            infos.update(header.infos)
            self._where.update({key: (file, *span) for key, span in header.spans.items()})
            metadata.update(header.metadata)
        if not infos:
            raise CheckpointError(f"{next(iter(files), name)} holds no tensors: name a file or folder with weights.")
        aliases = aliases_of(metadata, infos)
        super().__init__(name, source, infos, aliases=aliases, config=config, folder=folder, metadata=metadata)
        self._files = dict(files)
        self._headers = headers
        self._open: dict[str, _File] = {}
        self._lock = threading.Lock()

    def _read(self, info: TensorInfo) -> torch.Tensor:
        import torch

        file, begin, _ = self._where[info.name]
        dtype = torch_dtype(info.dtype)
        flat = torch.empty(info.nbytes, dtype=torch.uint8)
        if info.nbytes:
            self._file(file).read_into(flat.numpy().data, begin, info.name)
        if info.dtype == "BOOL" and info.nbytes and int(flat.max()) > 1:
            raise CheckpointError(f"{file}: tensor {shown(info.name)} is BOOL but holds bytes that are not 0 or 1.")
        return flat.view(dtype).reshape(info.shape) if info.nbytes else torch.empty(info.shape, dtype=dtype)

    def _file(self, file: str) -> _File:
        with self._lock:
            if file not in self._open:
                self._open[file] = _File(self._files[file], file, self._headers[file])
            return self._open[file]

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in sorted(self._files):
            stat = self._files[file].stat()
            digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def _identity(self) -> str:
        stats = [(str(path.resolve()), path.stat()) for path in self._files.values()]
        key = tuple((place, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for place, s in stats)
        if key not in _HASHES:
            found = super()._identity()
            if len(_HASHES) >= _MOST_HASHES:
                _HASHES.clear()
            _HASHES[key] = found
        return _HASHES[key]

    def close(self) -> None:
        with self._lock:
            # A file that another thread is reading closes when that read drops its reference.
            self._open.clear()


class _File:
    """One open file that any thread may read at any place."""

    def __init__(self, path: Path, where: str, header: Header) -> None:
        self._where = where
        try:
            self._raw = path.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{where} cannot be opened: {error.strerror or error}.") from error
        self._lock = threading.Lock()
        if os.fstat(self._raw.fileno()).st_size != header.size:
            raise CheckpointError(f"{where} has changed since it was opened: load the checkpoint again.")

    def read_into(self, buffer: memoryview, offset: int, name: str) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = self._read(buffer[done : done + (1 << 30)], offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self._where}: tensor {shown(name)} cannot be read: {error.strerror or error}."
                ) from error
            if count == 0:
                raise CheckpointError(
                    f"{self._where} was cut short while it was read (tensor {shown(name)}): load the checkpoint again."
                )
            done += count

    def _read(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._raw.fileno(), [buffer], offset)
        with self._lock:
            self._raw.seek(offset)
            return self._raw.readinto(buffer) or 0

    def __del__(self) -> None:
        if hasattr(self, "_raw"):
            self._raw.close()


def aliases_of(metadata: Mapping[str, str], infos: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Tied names as ``safetensors.torch.save_model`` records them in the header: tied name -> stored name."""
    return {key: value for key, value in metadata.items() if value in infos and key not in infos}


def open_file(path: Path, *, name: str, source: str) -> FileCheckpoint:
    """One safetensors file; the config is taken from beside it where there is one."""
    config = read_config(path.parent, path.name, strict=False)
    return FileCheckpoint({path.name: path}, name=name, source=source, config=config, folder=path.parent)


def open_folder(folder: Path, *, name: str, source: str) -> FileCheckpoint:
    """A folder with one model: sharded with an index, ``model.safetensors``, OpenCLIP's, or one file of any name."""
    refuse_partial(folder)
    index, files = find_weights(folder)
    config = read_config(folder, (index or next(iter(files.values()))).name)
    return FileCheckpoint(files, name=name, source=source, index=index, config=config, folder=folder)


def refuse_partial(folder: Path) -> None:
    """A folder whose writing never finished does not load."""
    if _PARTIAL.search(folder.name):
        raise CheckpointError(f"{folder.name} is what a write left behind that did not finish: write it again.")


def find_weights(folder: Path) -> tuple[Path | None, dict[str, Path]]:
    """The index (or ``None``) and the weight files of a folder."""
    try:
        index, file = layout({path.name for path in folder.iterdir()}, folder.name)
    except OSError as error:
        raise CheckpointError(f"{folder.name} cannot be listed: {error.strerror or error}.") from error
    if index is None:
        return None, {file: _regular(folder / file)}
    return folder / index, _shards(folder, folder / index)


def layout(names: Collection[str], where: str) -> tuple[str | None, str]:
    """Which of a folder's files are its model: ``(index, "")`` or ``(None, file)``, by the layouts that exist."""
    for stem in ("model", "open_clip_model"):
        if f"{stem}.safetensors" in names:
            return None, f"{stem}.safetensors"
        if f"{stem}.safetensors.index.json" in names:
            return f"{stem}.safetensors.index.json", ""
    indexes = sorted(name for name in names if name.endswith(".safetensors.index.json"))
    if len(indexes) == 1:
        return indexes[0], ""
    found = sorted(name for name in names if name.endswith(".safetensors") and name not in _BESIDE)
    shards = [name for name in found if _SHARD.search(name)]
    if shards:
        raise CheckpointError(
            f"{where} has {len(shards)} shard(s) such as {shards[0]} but no index (model.safetensors.index.json), "
            "so it is not whole: download or write it again."
        )
    if len(found) == 1:
        return None, found[0]
    if found:
        raise CheckpointError(
            f"{where} has {len(found)} safetensors files ({', '.join(found[:4])}{', …' if len(found) > 4 else ''}) "
            "and no index that joins them: name the file to load."
        )
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise CheckpointError(f"{where} has no safetensors, only the pickle {pickles[0]}. {PICKLE_ADVICE}")
    raise CheckpointError(f"{where} has no model weights (no *.safetensors file): name another folder or file.")


def read_config(folder: Path, weights: str, *, strict: bool = True) -> dict[str, Any] | None:
    """The configuration that belongs to a weight file: open_clip_config.json beside OpenCLIP's, else config.json."""
    for name in config_names(weights):
        if (folder / name).exists():
            try:
                return load_json_object(read_small(folder / name, MAX_CONFIG), name)
            except CheckpointError:
                if strict:
                    raise
    return None


def config_names(weights: str) -> list[str]:
    """Where the configuration of a weight file of this name is, the likelier place first."""
    names = ["config.json", "open_clip_config.json"]
    return names[::-1] if weights.startswith("open_clip") else names


def _shards(folder: Path, index: Path) -> dict[str, Path]:
    files = sorted(set(read_index(index).values()))
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        raise CheckpointError(
            f"{folder.name} is not whole: {len(missing)} of {len(files)} files that {index.name} names are missing, "
            f"such as {missing[0]}. Download it again."
        )
    return {file: _regular(folder / file) for file in files}


def _regular(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path.name} is not a file.")
    return path

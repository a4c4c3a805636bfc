"""The checkpoint: a lazy mapping from tensor names to tensors, whatever it is read from."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, suggest
from .header import TensorInfo, shown
from .identity import tensors_hash

if TYPE_CHECKING:
    import torch


class Checkpoint(Mapping[str, "torch.Tensor"]):
    """Named tensors that are read when asked for.

    Iterating, ``len`` and :attr:`infos` cover each *stored* tensor once. A tied name (:attr:`aliases`: tied name ->
    stored name) is not iterated, but ``name in checkpoint`` and ``checkpoint[name]`` answer for it too.

    ``checkpoint[name]`` is a CPU tensor that stays valid after :meth:`close`, after the file changes, and in other
    threads; several threads may read at once. Nothing is kept: asking twice reads twice. Callers must not write into
    it: a checkpoint in memory hands out its own tensors.

    Attributes: ``name`` (to show), ``source`` (canonical string, a Hub revision pinned to its commit), ``infos``,
    ``aliases``, ``config`` (parsed config.json or open_clip_config.json, or ``None``), ``folder`` (where it lies on
    this machine, or ``None``), ``metadata`` (strings from the file headers).
    """

    name: str
    source: str
    infos: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    config: dict[str, Any] | None
    folder: Path | None
    metadata: Mapping[str, str]
    _weights_hash: str | None = None

    def __init__(
        self,
        name: str,
        source: str,
        infos: Mapping[str, TensorInfo],
        *,
        aliases: Mapping[str, str] | None = None,
        config: dict[str, Any] | None = None,
        folder: Path | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.source = source
        self.infos = infos
        self.aliases = dict(aliases or {})
        self.config = config
        self.folder = folder
        self.metadata = dict(metadata or {})

    def _read(self, info: TensorInfo) -> torch.Tensor:
        raise NotImplementedError

    def _fingerprint(self) -> str:
        """What changes when the contents do (beside names, dtypes and shapes)."""
        return self.source

    def __getitem__(self, name: str) -> torch.Tensor:
        info = self.infos.get(self.aliases.get(name, name))
        if info is None:
            raise KeyError(
                f"{self.name} has no tensor {shown(name)}.{suggest(name, self.infos) if len(self.infos) < 5000 else ''}"
            )
        return self._read(info)

    def __contains__(self, name: object) -> bool:
        return name in self.infos or name in self.aliases

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {len(self)} tensors, {self.nbytes:,} bytes, from {self.source}>"

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors as they are read."""
        return sum(info.nbytes for info in self.infos.values())

    @property
    def content_hash(self) -> str:
        """Hex digest that changes when the contents do; cheap (headers, sizes and times; the commit for the Hub)."""
        digest = hashlib.sha256(self._fingerprint().encode())
        for name in sorted(self.infos):
            info = self.infos[name]
            digest.update(f"\0{name}\0{info.dtype}\0{info.shape}".encode())
        for name in sorted(self.aliases):
            digest.update(f"\1{name}\0{self.aliases[name]}".encode())
        return digest.hexdigest()

    @property
    def weights_hash(self) -> str:
        """SHA-256 (hex) of the weights as they are stored: names, dtypes, shapes and bytes, wherever they lie.

        An adapter's is of its base's, its own tensors and its settings. Reads everything the first time.
        """
        if self._weights_hash is None:
            self._weights_hash = self._identity()
        return self._weights_hash

    def _identity(self) -> str:
        return tensors_hash(self, self.aliases)

    def renamed(self, name: str) -> Checkpoint:
        """The same checkpoint under another display name."""
        other = copy.copy(self)
        other.name = name
        return other

    def close(self) -> None:
        """Give back open files. Tensors already read stay valid."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MemoryCheckpoint(Checkpoint):
    """Tensors that are in memory already (a state dict). Tied tensors, found by their storage, become aliases.

    ``weights_hash``: of the checkpoint that they are a copy of (or a function that says it when it is asked for), where
    they stand for it; then statistics of that checkpoint are statistics of this copy.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        name: str = "memory",
        config: dict[str, Any] | None = None,
        weights_hash: str | Callable[[], str] | None = None,
    ) -> None:
        stored, aliases = untie(tensors, name)
        infos = {key: info_of(key, tensor, "memory") for key, tensor in stored.items()}
        super().__init__(name, f"memory:{name}", infos, aliases=aliases, config=config)
        self._tensors = stored
        self._digest: str | None = None
        self._original = weights_hash

    def _identity(self) -> str:
        if self._original is None:
            return super()._identity()
        return self._original if isinstance(self._original, str) else self._original()

    def _read(self, info: TensorInfo) -> torch.Tensor:
        return self._tensors[info.name].detach().cpu().contiguous()

    def _fingerprint(self) -> str:
        if self._digest is None:
            digest = hashlib.sha256()
            for name in sorted(self.infos):
                digest.update(raw_bytes(self[name]))
            self._digest = digest.hexdigest()
        return self._digest


def untie(tensors: Mapping[str, Any], where: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Split a state dict into tensors stored once and aliases (tied name -> stored name, the first in sorted order).

    Two names are tied when they are the same bytes in memory seen in the same way: same storage, offset, shape and
    strides. Raises CheckpointError for a value that is not a plain tensor with data.
    """
    import torch

    owners: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name in sorted(tensors, key=str):
        tensor = tensors[name]
        if not isinstance(name, str):
            raise CheckpointError(f"{where}: tensor names must be strings, {shown(name)} is not.")
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{where}: {shown(name)} is a {type(tensor).__name__}; a torch.Tensor was expected.")
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            raise CheckpointError(
                f"{where}: tensor {shown(name)} is sparse, quantised or has no data; pass a plain dense tensor."
            )
        if tensor.numel() == 0:
            continue
        key = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        owner = owners.setdefault(key, name)
        if owner != name:
            aliases[name] = owner
    return {name: tensor for name, tensor in tensors.items() if name not in aliases}, aliases


def info_of(name: str, tensor: torch.Tensor, origin: str) -> TensorInfo:
    """The :class:`TensorInfo` of a tensor at hand."""
    from .dtypes import dtype_code

    return TensorInfo(
        name, dtype_code(tensor.dtype), tuple(tensor.shape), tensor.numel() * tensor.element_size(), origin
    )


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a CPU tensor in C order, without a copy where it is contiguous."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data.cast("B") if flat.numel() else memoryview(b"")

"""All statistics of one task, in memory or on disk, behind one class."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import StatisticsError, suggest
from .block import KINDS, Block, kinds_in, pieces_of
from .checks import check_block

if TYPE_CHECKING:
    from torch import Tensor

#: How labels were drawn for the gradients; "" where no gradient was taken.
FISHERS = ("empirical", "sampled", "exact", "")


@dataclass(frozen=True)
class Entry:
    """What is known of a block without reading it: shapes of its pieces, counts, layout, the tensor's shape."""

    pieces: Mapping[str, tuple[int, ...]]
    rows: int = 0
    examples: int = 0
    layout: str = ""
    shape: tuple[int, ...] | None = None
    itemsize: int = 4

    @property
    def kinds(self) -> tuple[str, ...]:
        return kinds_in(self.pieces)

    def nbytes(self, kinds: Collection[str] = KINDS) -> int:
        """Bytes of what ``kinds`` need, as they are kept."""
        total = 0
        for name in pieces_of(kinds, self.pieces):
            size = self.itemsize
            for length in self.pieces[name]:
                size *= length
            total += size
        return total


class Pieces(Protocol):
    """Where a file-backed TaskStatistics reads from."""

    def read(self, name: str, piece: str) -> Tensor: ...

    def close(self) -> None: ...


class TaskStatistics:
    """The statistics of one task's expert, tensor by tensor.

    Built from a mapping of :class:`Block` (collectors, tests) or by :func:`mergelab.statistics.read`, which leaves them
    in their file until they are asked for.

    Attributes: ``task``; ``name`` (what they are called, the checkpoint's name); ``weights_hash`` (of the checkpoint,
    see :attr:`Checkpoint.weights_hash`; "" where it is not known); ``split`` and ``examples`` (the data); ``kinds``;
    ``fisher`` (how labels were drawn; "" where there are only Grams); ``seed``; ``suite``; ``meta`` (plain data);
    ``skipped`` (module or tensor -> why it has no statistics); ``where`` (how messages call them); ``entries``.
    """

    def __init__(
        self,
        task: str,
        blocks: Mapping[str, Block] | None = None,
        *,
        name: str = "",
        weights_hash: str = "",
        split: str = "",
        examples: int = 0,
        fisher: str = "",
        seed: int = 0,
        suite: str = "",
        meta: Mapping[str, Any] | None = None,
        skipped: Mapping[str, str] | None = None,
        where: str = "",
        entries: Mapping[str, Entry] | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        if fisher not in FISHERS:
            raise StatisticsError(f"Statistics of {task!r}: there is no Fisher {fisher!r}.{suggest(fisher, FISHERS)}")
        self.task = task
        self.name = name or task
        self.weights_hash = weights_hash
        self.split, self.examples, self.fisher, self.seed, self.suite = split, examples, fisher, seed, suite
        self.meta = dict(meta or {})
        self.skipped = dict(skipped or {})
        self.where = where or f"The statistics of {task!r}"
        self._blocks = dict(blocks or {})
        self._pieces = pieces
        self.entries: Mapping[str, Entry] = MappingProxyType(
            dict(entries or {}) if pieces is not None else {key: _entry(b) for key, b in self._blocks.items()}
        )
        self._checked: dict[tuple[str, tuple[str, ...]], Block] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors with statistics of any kind."""
        return tuple(self.entries)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that at least one tensor has."""
        found = {kind for entry in self.entries.values() for kind in entry.kinds}
        return tuple(kind for kind in KINDS if kind in found)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks as they are read."""
        return sum(entry.nbytes() for entry in self.entries.values())

    def block(self, name: str, kinds: Collection[str] = KINDS) -> Block | None:
        """The statistics of tensor ``name``, of these kinds only; None where it has none of them.

        Float32 (float64 where they were collected so), A, G and full blocks exactly symmetric. From a file only what
        is asked for is read, and read again each time; in memory, blocks are checked once and must not change. Any
        thread may ask. Raises StatisticsError for what cannot be
        statistics: wrong shapes, no symmetry, a negative diagonal, NaN, no rows.
        """
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise StatisticsError(f"There is no kind of statistics {unknown[0]!r}.{suggest(unknown[0], KINDS)}")
        entry = self.entries.get(name)
        if entry is None:
            return None
        wanted = pieces_of(kinds, entry.pieces)
        if not wanted:
            return None
        if self._pieces is not None:
            return self._whole(name, {piece: self._pieces.read(name, piece) for piece in wanted}, entry)
        key = (name, tuple(wanted))
        if key not in self._checked:  # in memory they are looked at once
            tensors = {piece: getattr(self._blocks[name], piece) for piece in wanted}
            self._checked[key] = self._whole(name, tensors, entry)
        return self._checked[key]

    def _whole(self, name: str, tensors: Mapping[str, Tensor], entry: Entry) -> Block:
        block = Block(**tensors, rows=entry.rows, examples=entry.examples, layout=entry.layout, shape=entry.shape)
        return check_block(block, name, self.where)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        kept = "on disk" if self._pieces is not None else "in memory"
        return f"<TaskStatistics {self.task!r}: {len(self)} tensors, {', '.join(self.kinds)}, {kept}>"

    def close(self) -> None:
        """Give back the open file. Blocks already read stay valid."""
        if self._pieces is not None:
            self._pieces.close()


def _entry(block: Block) -> Entry:
    tensors = block.tensors
    size = max((tensor.element_size() for tensor in tensors.values()), default=4)
    size = max(size, 4)  # half precision is read as float32
    return Entry(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        block.rows, block.examples, block.layout, block.shape, size,
    )  # fmt: skip

"""What a module of the routed copy knows about its parts, and how it gets another forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from .active import CannotRoute, Pass, under_way
from .handed import Handed
from .stacks import Fold, Matrix, Stack, Vector


class Side:
    """The stacks of a module's own tensors.

    owner: the routed module whose passes count. stacks: by the tensor's name within the module. names: the same
    tensors' names in the whole model. dim: the dimension of activations that holds the rows (1 in blocks that take
    the sequence first).
    """

    def __init__(self, owner: object, where: str, stacks: dict[str, Stack], names: dict[str, str], *, dim: int) -> None:
        self.owner, self.where, self.stacks, self.names, self.dim = owner, where, stacks, names, dim
        self.all = frozenset(names.values())
        self.folds: dict[str, Fold] = {}
        self.extra: dict[Any, Any] = {}

    def now(self) -> Pass | None:
        """The pass under way, if its rows have weights; notes that this module's parts take part."""
        now = under_way(self.owner)
        if now is not None:
            now.tensors |= self.all
        return now

    def matrix(self, key: str) -> Matrix | None:
        found = self.stacks.get(key)
        assert found is None or isinstance(found, Matrix)  # as the class's ``matrices`` says
        return found

    def vector(self, key: str) -> Vector | None:
        found = self.stacks.get(key)
        assert found is None or isinstance(found, Vector)
        return found


class Carrier(nn.Module):
    """Mixed in before a module's own class: its forward adds the side path while rows have weights."""

    _side: Side
    _own: ClassVar[type[nn.Module]]  # the class that the module was given with
    #: Own tensors that the class hands out differing by row, and how: (module, tensor, pass) -> what is read.
    hands: ClassVar[dict[str, Callable[[Any, Tensor, Pass], Any]]] = {}
    #: Own tensors that the class deals with; others are refused when they are read.
    carries: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})
    #: Own tensors (which may be None) without which the class's forward is not the one that is known.
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})
    #: Own tensors that are kept as factors where their parts are; others are kept whole.
    matrices: ClassVar[frozenset[str]] = frozenset()
    #: A matrix and the vector that is added to its product, and whether the matrix is kept as [in, out].
    pair: ClassVar[tuple[str, str] | None] = None
    flip: ClassVar[bool] = False


class Bare(Carrier):
    """Mixed into a module whose forward is left as it is, and which reads its own tensors."""

    needs: ClassVar[frozenset[str]] = frozenset()
    carries: ClassVar[frozenset[str]] = frozenset()


def dress(module: nn.Module, kind: type[Carrier], side: Side) -> None:
    """Give ``module`` the carrier's behaviour; it stays an instance of its own class."""
    own = type(module)
    body: dict[str, Any] = {"__module__": own.__module__, "__qualname__": own.__qualname__, "_own": own}
    for key in side.stacks:
        body[key] = _read(key, kind.hands.get(key))
    try:
        module.__class__ = type(own.__name__, (kind, own), body)
    except TypeError:
        raise CannotRoute(side.where, f"a {own.__name__} cannot be given another forward") from None
    object.__setattr__(module, "_side", side)
    matrix = side.matrix(kind.pair[0]) if kind.pair is not None else None
    if kind.pair is not None and matrix is not None and matrix.a is not None and not matrix.folded:
        matrix.folded = True  # a tied matrix is folded for one of its layers
        bias = module._parameters[kind.pair[1]]
        side.folds[kind.pair[0]] = Fold(matrix, side.vector(kind.pair[1]), bias, flip=kind.flip)


def _read(key: str, hand: Callable[[Any, Tensor, Pass], Any] | None) -> property:
    """Reading a tensor that has parts, from wherever: plain without weights, else by the rule, else guarded."""

    def get(self: Carrier) -> Any:
        own = self._parameters.get(key)
        tensor = own if own is not None else self._buffers[key]
        side = self._side
        now = under_way(side.owner)
        if now is None or tensor is None:
            return tensor
        if hand is not None:
            now.tensors.add(side.names[key])
            return hand(self, tensor, now)
        stack = side.stacks[key] if tensor.ndim <= 2 else None
        return Handed.of(tensor, side.names[key], stack, now, dim=side.dim)

    return property(get)

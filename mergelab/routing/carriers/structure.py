"""A module's tensors: their names, where they sit, and copies of the structure that share them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RoutingError
from ..parts import Part
from .side import Carrier

Rename = Callable[[str], str] | Mapping[str, str]


class Names:
    """Spellings of tensor names -> the module's own."""

    def __init__(
        self, module: nn.Module, rename: Rename | None, ignore: Collection[str] | Callable[[str], bool]
    ) -> None:
        self._rename: Callable[[str], str] = (
            rename if callable(rename) else (lambda n: n) if rename is None else lambda n: rename.get(n, n)
        )
        self._ignore = ignore if callable(ignore) else ignore.__contains__
        self._shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        self._own = {self._rename(name): name for name in self._shapes} | {name: name for name in self._shapes}

    def match(self, given: Mapping[str, Any], where: str) -> dict[str, str]:
        """Own name -> the given one; an error that names what is not in the module or has another shape."""
        out: dict[str, str] = {}
        for name in given:
            own = self._own.get(name) or self._own.get(self._rename(name))
            if own is None:
                if self._ignore(name) or self._ignore(self._rename(name)):
                    continue
                raise RoutingError(f"{where} has a tensor {name[:120]!r} that the model does not have.")
            found = tuple(given[name].shape)
            if found != self._shapes[own]:
                raise RoutingError(
                    f"{where}: {name[:120]!r} has the shape {list(found)}, the model's is {list(self._shapes[own])}."
                )
            out[own] = name
        return out


def places_of(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where each tensor of the state dict sits; a tied one under each of its names."""
    stored = set(module.state_dict())
    out = {}
    for path, owner in module.named_modules():
        for key in (*owner._parameters, *owner._buffers):
            name = f"{path}.{key}" if path else key
            if name in stored:
                out[name] = (owner, key)
    return out


def tensor_of(owner: nn.Module, key: str) -> Tensor:
    found = owner._parameters.get(key)
    return found if found is not None else owner._buffers[key]  # type: ignore[return-value]


def share(module: nn.Module, state: Mapping[str, Tensor], *, plainly: bool = False) -> nn.Module:
    """A copy of the module's structure with tensors of ``state``, or its own, by reference.

    ``plainly``: without the forwards of a routed module.
    """
    memo: dict[int, Any] = {}
    for name, (owner, key) in places_of(module).items():
        own = tensor_of(owner, key)
        if id(own) in memo and name not in state:
            continue
        tensor = state.get(name, own).detach().to(own.device, own.dtype)
        memo[id(own)] = nn.Parameter(tensor, requires_grad=False) if key in owner._parameters else tensor
    for buffer in module.buffers():
        memo.setdefault(id(buffer), buffer)  # positions and masks that are not stored: the same tensor
    for owner in module.modules() if plainly else ():
        if isinstance(owner, Carrier):
            memo[id(owner._side)] = "none"
    out = copy.deepcopy(module, memo).eval()
    for owner in out.modules() if plainly else ():
        if isinstance(owner, Carrier):
            del owner.__dict__["_side"]
            owner.__class__ = owner._own  # type: ignore[assignment]
    return out


def parts_by_tensor(
    places: Mapping[str, tuple[nn.Module, str]], given: Iterable[Mapping[str, Part]]
) -> dict[int, list[Part | None]]:
    """Parts by task for each tensor of the module (by identity: a tied one is one)."""
    tasks = list(given)
    out: dict[int, list[Part | None]] = {}
    for task, parts in enumerate(tasks):
        first: dict[int, str] = {}
        for name, part in parts.items():
            tensor = tensor_of(*places[name])
            if not tensor.is_floating_point():
                raise RoutingError(f"{name[:120]!r} holds whole numbers; these are never merged.")
            row = out.setdefault(id(tensor), [None] * len(tasks))
            twin = row[task]
            if twin is not None and not torch.equal(twin.dense(), part.dense()):
                raise RoutingError(
                    f"{first[id(tensor)]!r} and {name!r} are one tensor of the model, but their parts differ."
                )
            first.setdefault(id(tensor), name)
            row[task] = part
    return out


def sequence_first(module: nn.Module) -> set[nn.Module]:
    """Modules within blocks whose attention takes [L, B, d]: there, the rows are the second dimension."""
    out: set[nn.Module] = set()
    for block in module.modules():
        for child in block.children():
            if isinstance(child, nn.MultiheadAttention) and not child.batch_first:
                out |= set(block.modules())
    return out


def longest_blocks(module: nn.Module, path: str | None) -> list[nn.Module]:
    """The longest list of modules of one class, within ``path``."""
    if path is not None:
        try:
            module = module.get_submodule(path)
        except AttributeError:
            raise RoutingError(f"The model has no module {path!r} to look for blocks in.") from None
    best: list[nn.Module] = []
    for owner in module.modules():
        if isinstance(owner, (nn.ModuleList, nn.Sequential)):
            blocks = list(owner)
            if len(blocks) > len(best) and len({type(b).__qualname__ for b in blocks}) == 1:
                best = blocks
    return best

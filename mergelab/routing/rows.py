"""One batched pass in which every row has its own mixture of experts, exactly.

Instead of merging a model per input (Twin-Merging, Lu et al. 2024, section 3.2, makes one per input), the shared model
is run once on the whole batch, and each of its layers adds what the experts' parts contribute to each row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import RoutingError
from ..memory import trim
from .carriers import Bare, CannotRoute, Elementwise, Matrix, Pass, Side, Stack, Vector, carrier_for, dress
from .carriers.active import Entered, begun, checked
from .carriers.structure import (
    Names,
    Rename,
    longest_blocks,
    parts_by_tensor,
    places_of,
    sequence_first,
    share,
    tensor_of,
)
from .parts import Exclusive, Part

__all__ = ["CannotRoute", "Pass", "RowModule"]

R = TypeVar("R")


class RowModule:
    """A copy of a module that shares its storage and can give every row of a batch its own weights.

    The weights of row i are ``state + sum_t w[i, t] * parts[t]``. ``module`` is the copy: call it (or anything of it)
    inside ``with rows.weights(w)``; outside it is the shared model. The module given is not touched. Threads with
    different weights do not disturb each other.

    state: tensors of the shared model by their names in ``module.state_dict()`` (what is missing is the module's own);
    taken by reference where the dtype and device are the module's. parts: one mapping per task. rename: spelling of
    names (a family's ``canonical``). ignore: names of parts and tensors that need not be in the module.
    blocks: path of the tower whose blocks :meth:`route_at` counts, or of the list of blocks.

    Raises :class:`~mergelab.errors.RoutingError` for a part that is not in the module or of another shape. Parts of
    tensors that no rule is known for are listed in ``uncarried``; a pass that reads one raises :class:`CannotRoute`.
    """

    def __init__(
        self,
        module: nn.Module,
        state: Mapping[str, Tensor] | None,
        parts: Sequence[Exclusive],
        *,
        rename: Rename | None = None,
        ignore: Collection[str] | Callable[[str], bool] = (),
        blocks: str | None = None,
    ) -> None:
        self.tasks = len(parts)
        names = Names(module, rename, ignore)
        shared = names.match(state or {}, "The shared state")
        self.module = share(module, {own: (state or {})[theirs] for own, theirs in shared.items()})
        places = places_of(self.module)
        matched = [names.match(part, f"The part of task {t}") for t, part in enumerate(parts)]
        given = [{own: parts[t][theirs] for own, theirs in of.items()} for t, of in enumerate(matched)]
        self._stacks: dict[str, Stack] = {}
        self.uncarried: tuple[str, ...] = ()
        self._dress(places, parts_by_tensor(places, given))
        self.blocks = longest_blocks(self.module, blocks)
        for i, block in enumerate(self.blocks):
            block.register_forward_pre_hook(self._before(i), with_kwargs=True)

    def _dress(self, places: Mapping[str, tuple[nn.Module, str]], parts: Mapping[int, list[Part | None]]) -> None:
        """Stack the parts and give the modules that own affected tensors their other forward."""
        made: dict[tuple[int, type], Stack] = {}
        own: dict[nn.Module, tuple[dict[str, Stack], dict[str, str]]] = {}
        uncarried = []
        paths = {module: path for path, module in self.module.named_modules()}
        kinds = {module: carrier_for(module) for module in paths}
        for name, (owner, key) in places.items():
            tensor = tensor_of(owner, key)
            if id(tensor) not in parts:
                continue
            kind = kinds[owner]
            table = issubclass(kind, Bare) and tensor.ndim == 2 and len(tensor) > 1
            form = Matrix if table or key in kind.matrices else Vector
            if (id(tensor), form) not in made:
                made[id(tensor), form] = form(parts[id(tensor)], tensor.detach())
            stacks, names = own.setdefault(owner, ({}, {}))
            stacks[key] = self._stacks[name] = made[id(tensor), form]
            names[key] = name
            if key not in kind.carries and not issubclass(kind, Elementwise):
                uncarried.append(name)
        late = self._late = sequence_first(self.module)
        for owner, (stacks, names) in own.items():
            where = paths[owner] or type(owner).__name__
            dress(owner, kinds[owner], Side(self, where, stacks, names, dim=int(owner in late)))
        self.uncarried = tuple(uncarried)
        trim()

    # -- passes ----------------------------------------------------------------------------------------------------

    def weights(self, weights: Tensor) -> Entered:
        """Context in which row i of every batch has the mixture ``weights[i]``; ``weights`` is [B, T].

        Weights [1, T] hold for every row of a batch of any size. Gives the :class:`Pass`, whose ``tensors`` are the
        names of the tensors whose parts took part.
        """
        return Entered(self, Pass(checked(weights, self.tasks)))

    def __call__(self, weights: Tensor, call: Callable[[nn.Module], R]) -> R:
        """``call(module)`` with the rows' weights."""
        with self.weights(weights):
            return call(self.module)

    def route_at(self, layer: int, route: Callable[[Tensor], Tensor]) -> Entered:
        """Context in which a pass starts with the shared model alone and chooses its weights on the way.

        Before block ``layer`` (0: the first) runs, ``route`` gets its input, hidden states [B, L, d], and returns the
        weights [B, T] that hold from there on. The context serves one pass.
        """
        if not 0 <= layer < len(self.blocks):
            raise RoutingError(f"There is no block {layer} to route at: the model has {len(self.blocks)} blocks.")
        return Entered(self, Pass(None, (self.blocks[layer], route)))

    def _before(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            now = begun(self)
            if now is None or now.late is None or now.late[0] is not block or now.weights is not None:
                return
            hidden = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim == 3), None)
            if hidden is None:
                raise CannotRoute(f"block {index}", "it is not called with hidden states [B, L, d]")
            if block in self._late:
                hidden = hidden.transpose(0, 1)
            weights = checked(now.late[1](hidden), self.tasks)
            if len(weights) != len(hidden):
                raise RoutingError(f"Routing gave weights for {len(weights)} rows, the batch has {len(hidden)}.")
            now.weights = weights

        return hook

    # -- numbers and checks ----------------------------------------------------------------------------------------

    @property
    def carried(self) -> tuple[str, ...]:
        """Names of the tensors that have parts and are not ``uncarried``."""
        return tuple(name for name in self._stacks if name not in self.uncarried)

    @property
    def nbytes(self) -> int:
        """Bytes of the stacked parts, which come on top of the shared model's."""
        stacked = {t.data_ptr(): t for stack in self._stacks.values() for t in stack.tensors}
        return sum(t.numel() * t.element_size() for t in stacked.values())

    def merged(self, weights: Tensor) -> dict[str, Tensor]:
        """The tensors that have parts, merged for one mixture [T]."""
        row = checked(weights[None], self.tasks)[0]
        places = places_of(self.module)
        return {n: tensor_of(*places[n]).detach() + stack.delta(row) for n, stack in self._stacks.items()}

    @torch.no_grad()
    def check(self, call: Callable[[nn.Module, int], Tensor], *, seed: int = 0) -> None:
        """Try the batched pass out: CannotRoute if it reads a tensor that it cannot carry or gives a wrong row.

        ``call(module, n)`` runs the model on the first ``n`` of some inputs and returns ``[n, ...]``. It is done with 2
        and with 3 rows, so that nothing else of the model has the rows' number by accident, and every row is
        compared with the merged model's.
        """
        draw = torch.Generator().manual_seed(seed)
        weights = torch.rand(3, self.tasks, generator=draw)
        plain = call(self.module, 3)
        alone = []
        for i in range(3):
            merged = share(self.module, self.merged(weights[i]), plainly=True)
            alone.append(call(merged, 3)[i])
        for count in (2, 3):
            with self.weights(weights[:count]):
                got = call(self.module, count)
            for i in range(count):
                error, effect = (got[i] - alone[i]).norm(), (alone[i] - plain[i]).norm()
                if not error <= 0.01 * effect + 1e-4 * alone[i].norm():
                    raise CannotRoute(type(self.module).__name__, f"row {i} of {count} differs from its merged model")

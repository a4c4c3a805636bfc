"""What the models that Twin-Merging is compared with are made from, and what their parts take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine import plan_recipe
from ..engine.stream import read
from ..errors import RoutingError
from ..tasks import Suite
from .compression import Compression
from .decompose import decompose, matrix_shape
from .learn import Lessons
from .parts import Exclusive, LowRank, Part, Sparse
from .recipe import TwinRecipe
from .routed import RoutedModel
from .routers import Router, train_router

_PLACE = 4  # bytes of an int32 place


@dataclass(frozen=True, eq=False)
class Material:
    """What every baseline is made from.

    routed: the paper's model (B). base and experts: tensors by name (lazy mappings will do). compression: what
    ``routed`` keeps of each exclusive part. train: a router for another routed model, on the features of *its* shared
    model.
    """

    routed: RoutedModel
    base: Mapping[str, Tensor]
    experts: Mapping[str, Mapping[str, Tensor]]
    compression: Compression
    train: Callable[[RoutedModel], Router] | None = None

    @classmethod
    def of(cls, routed: RoutedModel, suite: Suite | str | None = None, *, device: str = "auto") -> Material:
        """From a routed model's own recipe, whose models are opened again. ``suite``: whose validation items train
        further routers (default: the recipe's)."""
        written = routed.settings.get("recipe")
        if not isinstance(written, Mapping):
            raise RoutingError("This routed model says no recipe, so its base and experts are not known; give them.")
        recipe = TwinRecipe.from_dict(written)
        plan = plan_recipe(recipe.shared)
        if plan.base is None:
            raise RoutingError("This routed model's recipe names no base, which the baselines are made on; give one.")
        models = dict(zip(plan.names, plan.models, strict=True))

        def train(other: RoutedModel) -> Router:
            return own_router(other, recipe, suite, device)

        experts = {task: _Named(models[task], routed.shared) for task in routed.names}
        return cls(routed, _Named(plan.base, routed.shared), experts, recipe.exclusive, train)

    @property
    def data_used(self) -> str:
        return str(self.routed.settings.get("data_used") or "task-index labels for the router")

    def parts(self, shared: Mapping[str, Tensor], compression: Compression | None = None) -> Mapping[str, Exclusive]:
        """The experts' exclusive parts beside another shared model."""
        return decompose(shared, self.experts, compression or self.compression, aliases=self.routed.aliases).parts

    def plain(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state under the shared model's names, read once, in the types that the shared model is stored in."""
        own, tied = self.routed.shared, self.routed.aliases
        found = {n: state[n].to(own[n].dtype) for n in own if n not in tied}
        return {n: found[tied.get(n, n)] for n in own}


def own_router(
    routed: RoutedModel, recipe: TwinRecipe, suite: Suite | str | None = None, device: str = "auto"
) -> Router:
    """A router as ``recipe`` says, trained on the features that ``routed``'s shared model has of the same items."""
    from .heads import shared_model

    lessons = Lessons.of(recipe, routed.names, suite)
    found = shared_model(routed, device).encode_many(lessons.images(False) + lessons.images(True))
    count = len(routed.names)
    train, held = (dict(zip(routed.names, part, strict=True)) for part in (found[:count], found[count:]))
    return train_router(None, train, held, recipe.router)


def rank_share(routed: RoutedModel) -> float:
    """The rank of the stored matrices as a share of their full rank, weighted by their entries: what the paper calls
    1 − sparsity."""
    found = [(p.rank / min(matrix_shape(p.shape)) if isinstance(p, LowRank) else 1.0, entries_of(p))
             for p in matrices_of(routed)]  # fmt: skip
    if not found:
        raise RoutingError("This routed model has no exclusive matrix, so there is no rank to compare with.")
    return sum(share * n for share, n in found) / sum(n for _, n in found)


def equal_bytes_density(routed: RoutedModel, form: str = "places") -> float:
    """The density at which entries of all exclusive matrices take as many bytes as their factors do: an int32 place and
    a value each (``places``), or a value each and a bit for every entry (``bitmap``)."""
    matrices = matrices_of(routed)
    if not matrices:
        raise RoutingError("This routed model has no exclusive matrix, so there are no bytes to compare with.")
    budget, entries, b = sum(p.nbytes for p in matrices), sum(entries_of(p) for p in matrices), item_size(routed)
    density = budget / (entries * (_PLACE + b)) if form == "places" else (budget / entries - 1 / 8) / b
    if density <= 0:
        raise RoutingError("A bit for every entry takes more than these factors do; compare with places instead.")
    return min(1.0, density)


def matrices_of(routed: RoutedModel) -> list[Part]:
    """The exclusive parts that are matrices, of all tasks."""
    return [p for of in routed.parts.values() for p in of.values() if min(matrix_shape(p.shape)) > 1]


def entries_of(part: Part) -> int:
    """m·n of the matrix that a part stands for."""
    return math.prod(part.shape)


def item_size(routed: RoutedModel) -> int:
    """Bytes of a stored number of the exclusive matrices."""
    part = matrices_of(routed)[0]
    tensor = part.s if isinstance(part, LowRank) else part.values if isinstance(part, Sparse) else part.delta
    return tensor.element_size()


class _Named(Mapping[str, Tensor]):
    """A checkpoint's tensors under the names of another."""

    def __init__(self, checkpoint: Any, names: Mapping[str, Any]) -> None:
        self._checkpoint, self._names = checkpoint, names

    def __getitem__(self, name: str) -> Tensor:
        return read(self._checkpoint, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

"""Merging in the space of adapters: the vectors of (IA)³ experts instead of the weights that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import MergeLabError, MethodError
from ..recipe.recipe import SPACES

if TYPE_CHECKING:
    from torch import Tensor

    from .plan import Plan

#: The recipe's ``space``: full weights (the default), or the adapters' own vectors.
WEIGHTS, ADAPTER = SPACES


def vectors_of(names: Sequence[str], checkpoints: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """(ones, the vectors of every model): what is merged in the space of adapters.

    Raises MethodError, naming the model, for whole weights, LoRA, adapters of different bases or of different meaning.
    """
    from ..checkpoints.vectors import Ones, Vectors, adapter_vectors, same_space

    found: dict[str, Vectors] = {}
    for name, checkpoint in zip(names, checkpoints, strict=True):
        try:
            found[name] = checkpoint if isinstance(checkpoint, Vectors) else adapter_vectors(checkpoint)
        except MergeLabError as error:
            raise MethodError(f"Model {name!r}: {error}") from None
    try:
        same_space(found)
    except MergeLabError as error:
        raise MethodError(str(error)) from None
    first = next(iter(found.values()))
    return Ones(first), tuple(found.values())


def own_space(plan: Plan, checkpoint: Any) -> Any:
    """A checkpoint as tensors of the space that the plan merges in: an adapter's vectors, or itself."""
    from ..checkpoints.adapters import AdapterCheckpoint
    from ..checkpoints.vectors import adapter_vectors

    if plan.space == ADAPTER and isinstance(checkpoint, AdapterCheckpoint):
        return adapter_vectors(checkpoint)
    return checkpoint


def as_weights(plan: Plan, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Full weights of what a plan merged: in the space of adapters the base times the merged vectors."""
    if plan.space != ADAPTER:
        return state
    made = plan.models[0].dense(state)
    return {name: made[name] for name in made} | {name: made[target] for name, target in made.aliases.items()}

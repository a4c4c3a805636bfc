"""Plans of recipes that need data first: statistics by name, learned coefficients, snapshots that are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import methods
from ..engine import Plan, plan_recipe
from ..errors import DataNeededError
from ..recipe import Recipe
from . import learnt, matched
from .matched import is_kept_name
from .merged_through import about_through, through_folder
from .room import used
from .trained import planned

if TYPE_CHECKING:
    from torch import Tensor

    from .bench import Bench


def needs(recipe: Recipe) -> str:
    """``"statistics"``, ``"learning"``, ``"collecting"`` (through merged layers) or ``""``: what must come first."""
    method = methods.get(recipe.merge_method)
    if method.learns or method.collects:
        return "learning" if method.learns else "collecting"
    return "statistics" if matched.kinds_for(recipe) else ""


def data_plan(bench: Bench, recipe: Recipe, load: Callable[..., Any] | None = None) -> Plan:
    """The plan of a recipe with its statistics or learned coefficients. Raises DataNeededError where there are none."""
    need = needs(recipe)
    if need == "learning":
        learned = learnt.kept_learned(bench, recipe)
        if learned is None:
            raise DataNeededError("The coefficients are not learned for these values yet: press Learn under “Data”.")
        return planned(recipe, learned, load=load)
    if need == "collecting" and not is_kept_name(recipe.statistics) and recipe.statistics is not None:
        return plan_recipe(recipe, load=load)  # a folder that somebody named
    if need == "collecting":
        folder = through_folder(bench, recipe)
        if not folder.is_dir():
            raise DataNeededError(
                "The inputs of the merged layers are not collected for these values yet: press Collect."
            )
        return plan_recipe(recipe.replace(statistics=None), load=load, statistics=str(used(folder)))
    if need == "statistics" and recipe.statistics is None:
        raise DataNeededError("This method needs statistics of every task first: press Collect under “Data”.")
    return plan_recipe(recipe, load=load, statistics=matched.folder_of(recipe.statistics) if need else None)


def plan_key(recipe: Recipe) -> tuple[Any, ...]:
    """What of a recipe decides which statistics, start and coefficients its plan holds; () for methods without."""
    need = needs(recipe)
    if need in ("learning", "collecting") or recipe.learned:
        return (recipe.hash,)
    if not need and not recipe.init:
        return ()
    words = tuple(sorted((k, v) for k, v in recipe.parameters.items() if isinstance(v, str)))
    return recipe.merge_method, recipe.statistics, str(recipe.init and recipe.init.essence), words


def kept_state(bench: Bench, recipe: Recipe) -> Mapping[str, Tensor] | None:
    """The merged tensors of a recipe whose iterations are a snapshot of a kept path, without solving again."""
    from .solve_path import snapshot_of

    return snapshot_of(bench, recipe) if "iterations" in recipe.parameters else None


def data_used(bench: Bench, recipe: Recipe) -> str:
    """In words, the data that a recipe's merge was made from; "" for none."""
    need = needs(recipe)
    if need == "learning":
        learned = learnt.kept_learned(bench, recipe)
        return learned.data_used if learned else ""
    if need == "collecting":
        return about_through(bench, recipe)["text"] if through_folder(bench, recipe).is_dir() else ""
    return matched.about(recipe.statistics)["text"] if need and recipe.statistics else ""

"""From the Train tab's fields to a training recipe, and what the merge-every slider can stand at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import MergeLabError
from ..recipe import Recipe
from .drafts import suite_of

if TYPE_CHECKING:
    from ..training.recipe import TrainRecipe
    from .settings import Settings

#: The fields in the order in which events hand them over.
FIELDS = ("what", "tasks", "rounds", "unit", "length", "method", "parameters", "scale", "start", "images", "tune",
          "rate", "optimiser", "batch", "seed", "joint", "one_shot")  # fmt: skip
KINDS = {
    "atm": ("Alternate tuning and merging (ATM)",
            "Every round tunes a copy of the model on each task alone, merges the copies, and goes on from the merge. "
            "Tasks exchange weights, never pictures."),
    "joint": ("Joint training",
              "One model, every step on pictures of all tasks together: the usual way, where all data may be in one "
              "place."),
    "experts": ("Experts, each apart",
                "Every task tunes a copy of its own and keeps it. Nothing is merged: this is what one-shot merges "
                "start from."),
}  # fmt: skip
STARTS = [("the base, on training pictures (PA-ATM)", "base"),
          ("the merge on the Merge tab, on validation labels (PH-ATM)", "merge")]  # fmt: skip
UNITS = [("epochs", "epochs"), ("steps", "steps")]
#: Positions that a slider can still be moved through by hand.
_MOST_PLACES = 12
_MEAN = ("Mean of the experts", "mean")


def aggregations(methods: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What a round's experts can be merged with: their mean, or a method that looks at no data."""
    found = [(str(m["title"]), name) for name, m in methods.items() if m["data"] == "none"]
    return [_MEAN, *sorted(found)]


def beside(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What stands beside the run, as :func:`mergelab.runs.training.compare.compare` calls it."""
    out = ["joint"] if values["joint"] and values["what"] != "joint" else []
    if values["one_shot"]:
        out.append("one_shot")
        if values["start"] == "merge":  # what the same labels give when only the merge's coefficient is tuned on them
            out.append("alpha")
    return tuple(out)


def recipe_of(
    values: Mapping[str, Any], selection: Mapping[str, Any], merge: Recipe | None, watched: int
) -> TrainRecipe:
    """The recipe of the fields' ``values``. ``merge``: what is on the Merge tab, where the run starts from it;
    ``watched``: test pictures a task that rounds are measured on. RecipeError or MergeLabError says what is wrong."""
    from ..training.recipe import TrainRecipe

    if not selection.get("suite"):
        raise MergeLabError("These models have no suite, so there are no labelled pictures to train on.")
    if not values["tasks"]:
        raise MergeLabError("Choose at least one task to train on.")
    data: dict[str, Any] = {
        "train": values["what"], "base_model": selection["base"], "suite": suite_of(selection),
        "tasks": list(values["tasks"]), "images": _whole(values["images"]), "seed": _whole(values["seed"]),
        "budget": {"rounds": _whole(values["rounds"]), values["unit"]: _whole(values["length"])},
        "tuning": {"tune": values["tune"], "optimiser": values["optimiser"], "batch": _whole(values["batch"]),
                   **({"rate": values["rate"]} if values["rate"] else {})},
        "watch": {"split": "test", "limit": watched},
    }  # fmt: skip
    if values["what"] == "atm":
        data["aggregation"] = {"merge_method": values["method"], "parameters": dict(values["parameters"] or {}),
                               "scale": values["scale"]}  # fmt: skip
    if values["start"] == "merge":
        assert merge is not None
        data |= {"start": merge.to_dict(), "split": "val"}
    return TrainRecipe.from_dict(data)


def _whole(value: Any) -> Any:
    """A slider's 2.0 is a 2; anything else stays, for the recipe to say what is wrong with it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def samples_of(recipe: TrainRecipe, parts: int) -> int:
    """Pictures that training passes over, repeats counted, at most (a task may have fewer); ``parts``: the run and
    those beside it that train as much."""
    budget, tasks = recipe.budget, len(recipe.tasks or ())
    each = budget.steps * recipe.tuning.batch if budget.steps is not None else budget.epochs * (recipe.images or 0)
    return parts * budget.rounds * each * tasks


def check_limit(recipe: TrainRecipe, beside: Sequence[str], settings: Settings) -> None:
    """Refuse more than this page is set up for, with what can be done."""
    most = settings.max_train_samples
    parts = 1 + len({"joint", "one_shot"} & set(beside))
    count = samples_of(recipe, parts)
    if most is None or count <= most:
        return
    also = f", {parts} times with what stands beside it" if parts > 1 else ""
    raise MergeLabError(
        f"This would train on {count:,} pictures, repeats counted ({len(recipe.tasks or ())} tasks{also}), and this "
        f"page allows {most:,}. Take fewer tasks, pictures or rounds, or nothing beside it; on your own machine "
        "MERGELAB_MAX_TRAIN_SAMPLES sets the limit."
    )


# ---- how often is merged ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Notch:
    """A position of the merge-every slider: so many rounds of ``length`` ``unit`` each, ``steps`` optimiser steps."""

    rounds: int
    unit: str
    length: int
    steps: int

    @property
    def words(self) -> str:
        one = {"epochs": "epoch", "steps": "step"}[self.unit]
        many = f"{self.length} {one}{'s' if self.length > 1 else ''}"
        if self.rounds == 1:
            return f"once, at the end: {many}"
        return f"every {one if self.length == 1 else many}: {self.rounds} rounds"


def notches(values: Mapping[str, Any]) -> list[Notch]:
    """From a merge after every step to one at the end, at the budget that the fields give; [] for fields that are no
    numbers yet."""
    numbers = [_whole(values[name]) for name in ("rounds", "length", "images", "batch")]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
        return []
    rounds, length, images, batch = numbers
    per_epoch = 1 if values["optimiser"] == "gd" else math.ceil(images / batch)
    total = rounds * length * (per_epoch if values["unit"] == "epochs" else 1)
    every = sorted({*(s for s in range(1, min(total, 10_000) + 1) if total % s == 0), total})
    if len(every) > _MOST_PLACES:
        kept = {*every[:3], *[s for s in every if s % per_epoch == 0][: _MOST_PLACES - 5], every[-1], _steps(values)}
        every = [s for s in every if s in kept]
    found = []
    for steps in every:
        whole = steps % per_epoch == 0
        found.append(Notch(total // steps, *(("epochs", steps // per_epoch) if whole else ("steps", steps)), steps))
    return found


def place_of(values: Mapping[str, Any], found: Sequence[Notch]) -> int:
    """Where on the slider the fields stand."""
    rounds = _whole(values["rounds"])
    return next((place for place, notch in enumerate(found) if notch.rounds == rounds), 0)


def _steps(values: Mapping[str, Any]) -> int:
    per_epoch = 1 if values["optimiser"] == "gd" else math.ceil(_whole(values["images"]) / _whole(values["batch"]))
    return int(_whole(values["length"])) * (per_epoch if values["unit"] == "epochs" else 1)


def merge_note(found: Sequence[Notch], place: int, scale: Any) -> str:
    """What merging so often is."""
    if not found:
        return ""
    here = found[max(0, min(place, len(found) - 1))]
    if here.rounds == 1:
        return "Merging once, at the end: a one-shot merge of experts."
    if here.steps == 1:
        return (
            "Merging after every step is joint training: the mean of one step on each task is a step on all. This is "
            f"FedAvg (local SGD) with every client taking part, server rate α = {scale:g}. With Adam's moments, which "
            "every round starts anew, it is alike, not equal."
        )
    return (
        f"Between joint training (a merge after every step) and a one-shot merge (one at the end): {here.steps} steps "
        "of every task alone, then a merge."
    )

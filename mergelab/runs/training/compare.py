"""A run with what it must be compared with, at the same number of samples: one document, one table.

``joint``: the same tasks, items, optimiser and samples, trained together. ``pcgrad``: the same with gradient surgery.
``one_shot``: the experts trained for as many epochs, merged once at every epoch count. ``alpha``: only the coefficient
of the merge that the run started from, chosen on the very labels that the run trains on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import CheckpointError, RecipeError, suggest
from ...executor import Executor
from ...progress import Progress, Stop, report
from ...training.ground import Ground
from ...training.recipe import TrainRecipe
from . import documents
from .kept import Kept
from .one_shot import HELD, METHODS, choose, grid_of, merges, moved
from .record import Record, mean, plain
from .run import start_of, train
from .watch import Watch

FORMAT = "mergelab-training-compare/1"
COMPARE_FILE = "compare.json"
BESIDE = ("joint", "pcgrad", "one_shot", "alpha")
#: ``news(kind, record, state)``: as a run's, with what is running.
News = Callable[[str, Record, Mapping[str, Tensor]], None]


def compare(
    recipe: TrainRecipe,
    folder: str | Path,
    *,
    beside: Sequence[str] = ("joint",),
    methods: Sequence[str] = METHODS,
    resume: bool = False,
    overwrite: bool = False,
    executor: Executor | None = None,
    device: str = "auto",
    keep_rounds: bool = False,
    news: News | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Run a recipe and what stands beside it, each in a folder of its own below ``folder``; the document.

    It is written to ``folder/compare.json`` after each part, so that a killed comparison goes on with ``resume``.
    Raises RecipeError for an unknown baseline, or ``alpha`` without a start; else what training raises.
    """
    check_beside(recipe, beside)
    place = Path(folder).expanduser().resolve()
    kinds = [recipe.train, *(name for name in beside if name != recipe.train)]
    document = _begun(place, recipe, resume)

    def share(at: int) -> Progress:
        return lambda done, total, text: report(progress, at * total + done, len(kinds) * total, f"{kinds[at]}: {text}")

    for at, kind in enumerate(kinds):
        if kind == "alpha":
            others = [row for row in document["merges"] if row["method"] != "alpha"]
            document["merges"] = [*others, *_alpha(recipe, place, device, stop)]
        else:
            part = recipe if not at else _recipe_of(kind, recipe)
            merging = _Merging(part, place / kind, device, methods, document, stop) if kind == "one_shot" else None

            def told(record: Record, state: Mapping[str, Tensor], kind: str = kind, merging: Any = merging) -> None:
                document["runs"][kind] = record.to_dict()
                if merging is not None:
                    merging(record)
                _write(place, document)
                if news is not None:
                    news(kind, record, state)

            record = train(part, place / kind, resume=resume, overwrite=overwrite, executor=executor, device=device,
                           keep_rounds=keep_rounds, news=told, progress=share(at), stop=stop)  # fmt: skip
            document["runs"][kind] = record.to_dict()
        document["table"] = table(document)
        _write(place, document)
    return document


def check_beside(recipe: TrainRecipe, beside: Sequence[str]) -> None:
    """RecipeError for a baseline that there is not, or that this recipe cannot have."""
    for name in beside:
        if name not in BESIDE:
            raise RecipeError(f"There is nothing called {name!r} to compare with.{suggest(name, BESIDE)}")
    if recipe.watch.split == "none" and {"one_shot", "alpha"} & set(beside):
        raise RecipeError("Merges are compared by what they score, so the recipe must 'watch' a split.")
    if "alpha" in beside and recipe.start is None:
        raise RecipeError(
            "'alpha' tunes the coefficient of the merge that is started from; this run starts from the base."
        )


def read_compare(path: str | Path) -> dict[str, Any]:
    """A comparison's document from its folder or file; CheckpointError when it is not one."""
    path = Path(path).expanduser()
    path = path / COMPARE_FILE if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"There is no comparison at {path.parent.name}: it has no {path.name}.")
    found = documents.read(path, FORMAT, "run the comparison again")
    try:
        for record in found["runs"].values():
            Record.from_dict(record, path.name)
        _ = [(row["name"], row["accuracy"], row["mean"]) for row in found["table"]]
        _ = [(row["epochs"], row["method"], row["accuracy"]) for row in found["merges"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} is damaged ({error!r}); run the comparison again.") from None
    return found


# ---- parts -----------------------------------------------------------------------------------------------------------


def _recipe_of(kind: str, recipe: TrainRecipe) -> TrainRecipe:
    """The recipe of a baseline: as many samples of the same items with the same optimiser."""
    if kind == "one_shot":
        return recipe.of_kind("experts").replace(keep="last")
    return recipe.of_kind("joint").replace(combine="pcgrad" if kind == "pcgrad" else "mean")


class _Merging:
    """Merges the experts of a round as soon as it is in the record."""

    def __init__(  # noqa: PLR0917
        self, recipe: TrainRecipe, place: Path, device: str, methods: Sequence[str], document: dict[str, Any],
        stop: Stop | None,
    ) -> None:  # fmt: skip
        self.ground, self.kept = Ground(recipe, device), Kept(place, recipe)
        self.held = Watch(self.ground, "held", HELD)
        self.watch = Watch(self.ground, recipe.watch.split, recipe.watch.limit)
        self.methods, self.document, self.stop = methods, document, stop

    def __call__(self, record: Record) -> None:
        number = len(record.rounds)
        epochs = record.points[-1]["epochs"]
        if not number or any(row["epochs"] == epochs for row in self.document["merges"]):
            return
        experts = {name: self.kept.expert(number, name) for name in self.ground.names}
        self.document["merges"] += merges(
            start_of(self.ground, self.kept, self.stop), experts, self.held, self.watch, methods=self.methods,
            epochs=epochs, seed=record.recipe.seed, stop=self.stop,
        )  # fmt: skip


def _alpha(recipe: TrainRecipe, place: Path, device: str, stop: Stop | None) -> list[dict[str, Any]]:
    """The start's own coefficient, chosen on the labels that the run trains on."""
    ground, kept = Ground(recipe, device), Kept(place / recipe.train, recipe)
    own = ground.model.weights.tensors
    base = {name: own[name].detach().cpu() for name in ground.trained()}
    start = start_of(ground, kept, stop)
    labels = Watch(ground, "lesson", None)
    grid = sorted({*grid_of("ties"), 0.8, 0.9, 1.1, 1.2})
    alpha, _ = choose(base, start, grid, labels, stop)
    watch = Watch(ground, recipe.watch.split, recipe.watch.limit)
    seen = watch.measure(moved(base, start, alpha), stop=stop)
    return [{"epochs": 0.0, "method": "alpha", "parameters": {"alpha": alpha}, "tuned": True,
             "accuracy": seen.accuracy, "loss": seen.loss}]  # fmt: skip


# ---- the document ----------------------------------------------------------------------------------------------------


def _begun(place: Path, recipe: TrainRecipe, resume: bool) -> dict[str, Any]:
    if resume and (place / COMPARE_FILE).is_file():
        found = read_compare(place)
        if found.get("hash") == recipe.hash:
            return found
    return {"format": FORMAT, "title": recipe.title or "", "hash": recipe.hash, "runs": {}, "merges": [], "table": []}


def _write(place: Path, document: Mapping[str, Any]) -> None:
    documents.write(plain(document), place / COMPARE_FILE, overwrite=True)


def table(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for the base, each run, the one-shot merges after all epochs and after one, and the experts."""
    runs = document["runs"]
    if not runs:
        return []
    first = next(iter(runs.values()))
    items, experts = first["watch"].get("items", {}), first["references"].get("experts")
    rows = []

    def row(name: str, kind: str, scores: Mapping[str, float], **more: Any) -> None:
        if scores:
            ratios = [scores[t] / experts[t] for t in scores if experts and experts.get(t)]
            rows.append({"name": name, "kind": kind, "accuracy": dict(scores), "mean": mean(scores),
                         "normalised": float(np.mean(ratios)) if ratios else None,
                         "interval": interval(scores, items), **more})  # fmt: skip

    row("base", "base", first["references"].get("base", {}), data="heads only", samples=0)
    for kind, record in runs.items():
        if kind == "one_shot":
            continue
        told = {"data": record["data_used"], **{k: record["costs"].get(k) for k in
                ("samples", "training_seconds", "wall_seconds", "peak_bytes", "sent_bytes")}}  # fmt: skip
        if record is first and record["recipe"].get("start"):
            row("what it started from", "start", record["points"][0]["accuracy"], data="as its recipe says", samples=0)
        chosen = record["chosen"] if record["chosen"] is not None else record["points"][-1]["round"]
        row(_name(kind, record), kind, record["points"][chosen]["accuracy"], **told)
    for found in _shown(document["merges"]):
        cost = runs.get("one_shot", {}).get("points", [])
        samples = next((p["samples"] for p in cost if p["epochs"] == found["epochs"]), 0)
        row(_merge_name(found), "alpha" if found["method"] == "alpha" else "one-shot", found["accuracy"],
            tuned=found["tuned"], samples=samples, data="experts' training pictures")  # fmt: skip
    if "one_shot" in runs:
        record = runs["one_shot"]
        row("experts, each on its own task", "experts", record["points"][-1]["accuracy"], data=record["data_used"],
            samples=record["points"][-1]["samples"], **{k: record["costs"].get(k) for k in
                                                        ("training_seconds", "peak_bytes")})  # fmt: skip
    if experts:
        row("the zoo's own experts", "experts", experts, data="the zoo's training", samples=None)
    return rows


def interval(scores: Mapping[str, float], items: Mapping[str, int], draws: int = 4000) -> list[float] | None:
    """95 % interval of the mean over tasks, from drawing each task's items again (bootstrap; Binomial(n, p) / n)."""
    if not all(items.get(task) for task in scores):
        return None
    random = np.random.default_rng(0)
    drawn = np.mean([random.binomial(items[t], share, draws) / items[t] for t, share in scores.items()], axis=0)
    return [float(v) for v in np.percentile(drawn, [2.5, 97.5])]


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the merges at every epoch count, those after the first epoch and after the last; and the start's own α."""
    counts = [row["epochs"] for row in rows if row["method"] != "alpha"]
    ends = {min(counts, default=0), max(counts, default=0)}
    return [row for row in rows if row["epochs"] in ends or row["method"] == "alpha"]


def _name(kind: str, record: Mapping[str, Any]) -> str:
    budget, epochs = record["recipe"]["budget"], _many(record["points"][-1]["epochs"], "epoch")
    each = _many(budget["steps"], "step") if budget.get("steps") else _many(budget["epochs"], "epoch")
    names = {"atm": f"ATM, {_many(len(record['rounds']), 'round')} of {each}", "joint": f"joint training, {epochs}",
             "pcgrad": f"joint training with PCGrad, {epochs}",
             "experts": "experts, each on its own task"}  # fmt: skip
    return names.get(kind, kind)


def _many(count: float, what: str) -> str:
    return f"{count:g} {what}{'' if count == 1 else 's'}"


def _merge_name(row: Mapping[str, Any]) -> str:
    if row["method"] == "alpha":
        return f"only α of the start, {row['parameters']['alpha']:g}"
    alpha = row["parameters"].get("alpha")
    how = "" if alpha is None else f", α {alpha:g} {'chosen' if row['tuned'] else '(untuned)'}"
    name = "average of the experts" if row["method"] == "mean" else f"{row['method']} of the experts"
    return f"{name} after {_many(row['epochs'], 'epoch')}{how}"


__all__ = ["BESIDE", "COMPARE_FILE", "FORMAT", "News", "compare", "read_compare", "table"]

"""What a run is compared with from the start: the base, and the experts that its suite's zoo brings."""

from __future__ import annotations

from ...checkpoints import load
from ...errors import MergeLabError
from ...progress import Stop
from ...tasks import heads_for
from ...tasks.evaluate import expert_accuracy, expert_predictions
from ...training.ground import Ground
from ...zoo import open_zoo
from .watch import Watch


def references(ground: Ground, watch: Watch, stop: Stop | None = None) -> dict[str, dict[str, float]]:
    """``{"base": accuracy by task, "experts": …}`` on the watched items; the experts from the zoo's kept predictions
    where the items are test items, else measured. A suite without a zoo has no experts."""
    found = {"base": watch.measure(None, stop=stop).accuracy}
    suite = ground.suite
    if suite.zoo is None:
        return found
    sources, heads = open_zoo(suite.zoo).experts, heads_for(suite)
    kept = expert_predictions(suite) if watch.split == "test" else None
    experts: dict[str, float] = {}
    for task in ground.tasks:
        if task.name not in sources or task.name not in heads:
            continue
        if kept is not None:
            told = ground.places(task.name, "test", ground.recipe.watch.limit)
            share = expert_accuracy(kept, task, watch.labels[task.name], told)
            if share is not None:
                experts[task.name] = share
                continue
        try:
            weights = ground.model.prepare(load(sources[task.name])).tensors
        except MergeLabError:  # experts of another base: nothing to compare with
            continue
        experts.update(watch.measure(weights, heads, tasks=(task.name,), stop=stop).accuracy)
    return found | ({"experts": experts} if experts else {})


def data_used(ground: Ground) -> str:
    """In words, what a run looks at: labelled items, and what the heads were made from."""
    counts = sorted({len(ground.lesson(name)) for name in ground.names})
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    recipe = ground.recipe
    what = "training" if recipe.split == "train" else "validation"
    said = f"{many} labelled {what} pictures a task of {', '.join(ground.names)}; {ground.heads_used()}"
    if recipe.keep == "best":
        said += "; the round chosen on held validation pictures"
    return said

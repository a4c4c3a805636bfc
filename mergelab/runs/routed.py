"""What the Router tab asks for: routed models over a resident bench, measured, read and timed.

Built models, evaluations and curves are cached by the recipe's hash. The gate (temperature, top-k, threshold) only
turns logits into weights, so another gate reuses the same parts and the same router. Answers are plain values.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..checkpoints import TensorInfo, load
from ..errors import RoutingError, TaskError
from ..progress import Progress, Stop
from ..routing.evaluate import evaluate_routed
from ..routing.gate import Gate, check_weights, normalise
from ..routing.modes import GroupSettings, Runner
from ..routing.recipe import TwinRecipe
from ..routing.routed import RoutedModel
from . import routed_costs, routed_curve, routed_items
from .bench import Bench
from .cache import ByteCache
from .data_plans import data_plan

#: Built models that are kept, in bytes of their tensors.
_KEPT_BYTES = 512 * 2**20
#: Pictures a task on which the rank curve is measured.
_CURVE_ITEMS = 20
_MOST_BATCH = 64
#: Held-out pictures that a task of a zoo usually has.
_USUAL_PICTURES = 250


@dataclass(frozen=True, eq=False)
class Built:
    """A routed model ready to run. The gate that counts is ``routed.gate``; the runner's own may be another."""

    routed: RoutedModel
    runner: Runner


class RoutedBench:
    """Routed models of one bench. All methods may be called from several threads."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._built: ByteCache[Built] = ByteCache(_KEPT_BYTES, lambda b: b.routed.bytes()["total"])
        self._found: dict[tuple[Any, ...], Any] = {}
        self._infos: dict[str, dict[str, TensorInfo]] = {}
        self._building = threading.Lock()

    # ---- building ---------------------------------------------------------------------------------------------------

    def build(self, recipe: TwinRecipe, *, progress: Progress | None = None, stop: Stop | None = None) -> RoutedModel:
        """The routed model of ``recipe``, from the cache where it was built before.

        A shared model whose method needs data gets what is kept of it (statistics by name, learned coefficients,
        collections); DataNeededError where there is none.
        """
        return self._get(recipe, progress, stop).routed

    def ready(self, recipe: TwinRecipe) -> bool:
        """Whether the model of ``recipe`` is in memory, so that it answers at once."""
        return self._built.get(_heavy(recipe)) is not None

    def _get(self, recipe: TwinRecipe, progress: Progress | None = None, stop: Stop | None = None) -> Built:
        key = _heavy(recipe)
        found = self._built.get(key)
        if found is None:
            from ..routing.build import build_routed

            with self._building:  # two visitors with one recipe: the second waits for the first
                found = self._built.get(key)
                if found is None:
                    routed = build_routed(
                        replace(recipe, gate=Gate()), suite=self._suite, plan=data_plan(self.bench, recipe.shared),
                        device=self.bench.device, progress=progress, stop=stop,
                    )  # fmt: skip
                    found = Built(routed, Runner(routed, device=self.bench.device))
                    self._built.put(key, found)
        if found.routed.gate == recipe.gate:
            return found
        return Built(replace(found.routed, gate=recipe.gate), found.runner)

    @property
    def _suite(self) -> Any:
        if self.bench.suite is None:
            raise TaskError("These models have no suite: a router needs pictures of every task. Choose a suite first.")
        return self.bench.suite

    # ---- measuring --------------------------------------------------------------------------------------------------

    def evaluate(
        self, recipe: TwinRecipe, *, per_task: int | None = 40, mode: str = "auto", head: str = "router_argmax",
        weights: Sequence[float] | str | None = None, progress: Progress | None = None, stop: Stop | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The contract of ``evaluate --json`` with the router's tables; see :func:`evaluate_routed`.

        ``weights``: the router's (None), ``oracle``, ``uniform`` or one number a task.
        """
        key = ("evaluate", recipe.hash, per_task, mode, head, weights if isinstance(weights, str) else _key(weights))
        if key not in self._found:
            built = self._get(recipe, progress, stop)
            found = evaluate_routed(
                built.runner, self._suite, mode=mode, head=head, weights=weights, gate=recipe.gate, limit=per_task,
                unseen=per_task is None, progress=progress, stop=stop,
            )  # fmt: skip
            self._found[key] = found.to_dict()
        return self._found[key]

    def summary(self, recipe: TwinRecipe) -> dict[str, Any]:
        """What was built: names, bytes, rank, the gate, and what the router learnt from."""
        routed = self._get(recipe).routed
        about = dict(routed.router.about()) if routed.router is not None else {}
        notes = dict(about.get("notes") or about)  # type: ignore[call-overload]
        return {
            "hash": recipe.hash, "names": list(routed.names), "bytes": routed.bytes(), "rank": routed.rank,
            "router": routed.router.kind if routed.router else None, "gate": routed.gate.to_dict(),
            "router_data": notes.get("counts"), "router_notes": notes, "data_used": routed.settings.get("data_used"),
            "shared_data": routed.settings.get("shared_data_used"),
        }  # fmt: skip

    def curve(
        self, recipe: TwinRecipe, *, ranks: Sequence[int] = routed_curve.RANKS, per_task: int = _CURVE_ITEMS,
        progress: Progress | None = None, stop: Stop | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Accuracy and bytes by rank, from one decomposition; see :func:`mergelab.runs.routed_curve.curve`."""
        key = ("curve", recipe.hash, tuple(ranks), per_task)
        if key not in self._found:
            built = self._get(recipe, progress, stop)
            experts = {name: self.bench._checkpoint(entry.model) for name, entry in recipe.experts.items()}
            items = routed_items.gather(self._suite, built.routed.names, per_task)
            self._found[key] = routed_curve.curve(
                built.runner.model, built.routed, experts, items, settings=recipe.exclusive, ranks=ranks,
                progress=progress, stop=stop,
            )  # fmt: skip
        return self._found[key]

    # ---- looking ----------------------------------------------------------------------------------------------------

    def predict(
        self, recipe: TwinRecipe, picture: np.ndarray, *, weights: Sequence[float] | None = None,
        normalised: bool = False, head: str = "router_argmax", task: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Class probabilities of ``picture`` uint8 ``[1, H, W, 3]`` by the shared model, the routed model and, where
        ``weights`` are given, the mixture that they make (``normalised``: divided by their sum first).

        One head reads all of them: the task ``task`` (oracle), the router's first choice, or, for ``max_logit``, all
        heads at once, whose probabilities are then over the classes of all tasks.
        """
        built = self._get(recipe)
        routed, runner = built.routed, built.runner
        logits = runner.logits(runner.features(torch.as_tensor(picture)))
        rows = {"shared": torch.zeros(1, len(routed.names)), "routed": routed.gate.weights(logits)}
        if weights is not None:
            given = check_weights(list(weights), len(routed.names), allow_negative=True)
            rows["by hand"] = (normalise(given) if normalised else given)[None]
        if head == "oracle" and task not in routed.names:
            raise RoutingError("The oracle head must be told a task that has an expert; choose one.")
        names, choice = routed.names, logits.softmax(-1)
        owner = torch.tensor([routed.names.index(str(task))]) if head == "oracle" else None
        models: dict[str, list[dict[str, Any]]] = {}
        chosen = ""
        for who, row in rows.items():
            features = runner.run(torch.as_tensor(picture), row[0], "adapter" if _rows(runner) else "static").features
            found = routed_items.read(features, routed.heads, names, head, weights=choice, owner=owner)
            models[who] = self._probabilities(found, names, head)
            if who == "routed":
                chosen = names[int(found.head[0])]
        return {
            "names": list(names), "weights": {who: row[0].tolist() for who, row in rows.items()}, "head": head,
            "task": chosen, "models": models, "confidence": float(choice.max()),
        }  # fmt: skip

    def _probabilities(self, found: routed_items.Read, names: Sequence[str], head: str) -> list[dict[str, Any]]:
        titles = {task.name: task.title for task in self._suite}
        if head == "max_logit":
            together = torch.cat([scores[0] for scores in found.scores]).softmax(-1).tolist()
            labels = [f"{titles.get(n, n)}: {c}" for n in names for c in self._suite[n].classes]
        else:
            name = names[int(found.head[0])]
            together, labels = found.scores[int(found.head[0])][0].softmax(-1).tolist(), self._suite[name].classes
        return [{"class": str(label), "probability": p} for label, p in zip(labels, together, strict=True)]

    def batch(
        self, recipe: TwinRecipe, *, count: int = 24, seed: int = 0, per_bin: int = 1, head: str = "router_argmax"
    ) -> dict[str, Any]:
        """A batch of test pictures of all tasks: its router weights, groups (``per_bin`` in each bin), predictions.

        ``items``: one dict each with ``picture`` (uint8 array), task, chosen, group, weights, label, predicted, right;
        ``groups``: the mean weights of each.
        """
        count = max(1, min(int(count), _MOST_BATCH))
        built = self._get(recipe)
        names, heads = built.routed.names, built.routed.heads
        items = routed_items.mixed_batch(self._suite, names, count, seed)
        found: list[dict[str, Any]] = [{} for _ in range(count)]
        groups: list[list[float]] = []
        for mine, images in items.batches():
            ran = built.runner.run(images, None, "group", gate=recipe.gate, grouping=GroupSettings(per_bin=per_bin))
            assert ran.grouping is not None and ran.logits is not None
            own = built.routed.gate.weights(ran.logits)
            answer = routed_items.read(ran.features, heads, names, head, weights=ran.logits, owner=items.owner[mine])
            for i, place in enumerate(mine.tolist()):
                task = self._suite[names[int(items.owner[place])]]
                read_by = self._suite[names[int(answer.head[i])]]
                truth, said = task.classes[int(items.labels[place])], read_by.classes[int(answer.label[i])]
                found[place] = {
                    "picture": np.asarray(items.images[place]), "task": task.name,
                    "chosen": names[int(ran.logits[i].argmax())], "group": len(groups) + int(ran.grouping.index[i]),
                    "weights": own[i].tolist(), "label": str(truth), "predicted": str(said),
                    "right": bool(read_by.name == task.name and truth == said),
                }  # fmt: skip
            groups += ran.grouping.weights.tolist()
        return {"names": list(names), "items": found, "groups": groups, "head": head}

    def estimate(self, recipe: TwinRecipe) -> dict[str, Any]:
        """Bytes and seconds that building ``recipe`` will take, from headers only; no model is loaded."""
        base = self.bench.base
        if base not in self._infos:
            with load(base) as opened:
                self._infos[base] = dict(opened.infos)
        pictures = min(recipe.router.per_task or 1000, _USUAL_PICTURES)
        return routed_costs.estimate(self._infos[base], len(recipe.experts), recipe.exclusive, recipe.router, pictures)

    def storage(self, recipe: TwinRecipe) -> dict[str, Any]:
        """Bytes against the number of tasks; see :func:`mergelab.runs.routed_costs.storage`."""
        routed = self._get(recipe).routed
        shipped = {name: routed_costs.adapter_bytes(entry.model) for name, entry in recipe.experts.items()}
        return routed_costs.storage(routed, shipped)

    def latency(
        self, recipe: TwinRecipe, *, sizes: Sequence[int] = (1, 8, 32, 64), modes: Sequence[str] = routed_costs.TIMED,
        seconds: float = 20.0, progress: Progress | None = None, stop: Stop | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Seconds a batch by mode and batch size, on this machine, now; see :func:`routed_costs.latency`."""
        built = self._get(recipe, progress, stop)
        items = routed_items.mixed_batch(self._suite, built.routed.names, max(sizes), 0)
        _, images = max(items.batches(), key=lambda pair: len(pair[1]))
        return routed_costs.latency(
            built.runner, images, sizes=sizes, modes=modes, seconds=seconds, progress=progress, stop=stop
        )


def _heavy(recipe: TwinRecipe) -> str:
    """The hash of all that takes long: everything but the gate."""
    return replace(recipe, gate=Gate()).hash


def _key(weights: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if weights is None else tuple(float(w) for w in weights)


def _rows(runner: Runner) -> bool:
    try:
        runner.rows()
    except RoutingError:
        return False
    return True


_open: dict[int, tuple[Bench, RoutedBench]] = {}
_opening = threading.Lock()


def routed_bench(bench: Bench) -> RoutedBench:
    """The routed bench of a bench; one each, kept as long as a few others are not asked for."""
    with _opening:
        held = _open.get(id(bench))
        if held is None or held[0] is not bench:
            while len(_open) >= 3:
                del _open[next(iter(_open))]
            held = _open[id(bench)] = (bench, RoutedBench(bench))
        return held[1]

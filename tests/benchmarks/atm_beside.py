"""ATM, MaTS and Twin-Merging with the same few labels, from the same merge: what ``atm_claims.py --only beside`` does.

Task arithmetic of a zoo's experts, with the coefficient of its builder, is refined by each of the three (and by joint
tuning) on the same labelled validation pictures; what each chooses (rounds, iterations, the router's epoch), it chooses
on the same held ones. All are read by the experts' heads under the true task; Twin-Merging also under its router's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from claims_lab import P90, Lab, mean, normal, paired, run, score
from mats_lab import KINDS, Ground, Shown
from torch import Tensor

from mergelab.calibration import collect
from mergelab.engine.adapters import as_weights
from mergelab.routing.routers import RouterSettings, train_router
from mergelab.runs.training import train
from mergelab.statistics import TaskStatistics
from mergelab.training.ground import Ground as Data
from mergelab.training.recipe import TrainRecipe

FORMAT = "mergelab-beside/1"
SHARED = "task_arithmetic"
ITERATIONS = (0, 5, 10, 20)


class Few(Ground):
    """A zoo whose statistics come from the lessons of a training recipe, and whose choices from its held items."""

    def __init__(self, lab: Lab, data: Data) -> None:
        super().__init__(lab)
        self.data = data

    @cached_property
    def statistics(self) -> dict[str, TaskStatistics]:
        found = {}
        for name in self.names:
            lesson = self.data.lesson(name)
            few = replace(self.lab.suite[name], _kept={"val": (lesson.inputs, lesson.labels)})
            found[name] = collect(self.experts[name], few, self.lab.heads[name], kinds=KINDS["weights"],
                                  examples=len(lesson), split="val", order="first", seed=self.seed,
                                  device="cpu")  # fmt: skip
        return found

    @cached_property
    def chosen_on(self) -> Shown:
        sets = [self.data.items(name, "held", None) for name in self.names]
        owner = [torch.full_like(labels, t) for t, (_, labels) in enumerate(sets)]
        images, labels = zip(*sets, strict=True)
        return Shown(self.names, torch.cat(images), torch.cat(owner), torch.cat(labels))


def beside(zoo: str, made: TrainRecipe, limit: int) -> dict[str, Any]:
    """``made``: the recipe of ATM after the merge, on validation labels, with ``keep: best``."""
    lab = Lab(zoo, made.seed, limit)
    ground = Few(lab, Data(made, "cpu"))
    labels = sum(len(ground.data.lesson(name)) for name in ground.names)
    held = len(ground.chosen_on.truth)
    out: dict[str, Any] = {"format": FORMAT, "zoo": lab.zoo.name, "seed": made.seed, "limit": limit, "labels": labels,
                           "held": held, "rows": {}, "recipe": made.to_dict()}  # fmt: skip
    rights: dict[str, Tensor] = {"experts": lab.items.expert}

    def note(name: str, found: Mapping[str, Any], right: Tensor) -> None:
        rights[name] = right
        gained = paired(lab.items, right, rights[SHARED]) if name != SHARED else None
        out["rows"][name] = {"mean": mean(lab.items, right), "normalised": normal(lab.items, right), "gained": gained,
                             **found}  # fmt: skip

    with Clock() as clock:
        merged = ground.merged(SHARED, lab.zoo.tuned[SHARED])
    size = sum(t.numel() * t.element_size() for t in merged.values())
    static = {"stored_bytes": size, "passes": 1}
    note(SHARED, {**static, "samples": 0, "seconds": clock.seconds}, ground.correct(merged))
    note("mats", *_mats(ground, static, labels))
    for kind in ("atm", "joint"):
        note(kind, *_trained(ground, made.of_kind(kind), static))
    note("twin", *_twin(ground, merged, size))
    out["experts"] = {"mean": mean(lab.items, lab.items.expert)}
    return out


class Clock:
    """CPU seconds of this process over what it encloses, pauses left out."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Clock:
        self._started = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._started


def _mats(ground: Few, static: Mapping[str, Any], labels: int) -> tuple[dict[str, Any], Tensor]:
    init = {"merge_method": SHARED, "parameters": dict(ground.lab.zoo.tuned[SHARED])}
    with Clock() as clock:
        _, shots = ground.solved(init, ITERATIONS)
    found = {k: ground.score(as_weights(shots.plan, shots.state(k))) for k in ITERATIONS}
    shots.close()
    best = max(found, key=lambda k: (round(found[k]["val"], 9), -k))
    tried = {str(k): {name: score for name, score in each.items() if name != "right"} for k, each in found.items()}
    told = {**static, "samples": labels, "seconds": clock.seconds, "chosen": best, "tried": tried}
    return told, found[best]["right"]


def _trained(ground: Few, made: TrainRecipe, static: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    shown: dict[int, Tensor] = {}
    looking, clock = Clock(), Clock()

    def keep(record: Any, state: Mapping[str, Tensor]) -> None:
        own = ground.lab.model.weights.tensors
        with looking:
            shown[len(record.rounds)] = ground.correct({**own, **state})

    with tempfile.TemporaryDirectory() as folder, clock:
        record = train(made, Path(folder) / "run", device="cpu", news=keep)
    told = {**static, "samples": record.points[-1]["samples"], "seconds": clock.seconds - looking.seconds,
            "chosen": record.chosen, "curve": [mean(ground.test, shown[k]) for k in sorted(shown)]}  # fmt: skip
    return told, shown[record.chosen]


def _twin(ground: Few, shared: Mapping[str, Tensor], size: int) -> tuple[dict[str, Any], Tensor]:
    lab, data = ground.lab, ground.data
    with Clock() as clock:
        lessons = {name: lab.features(shared, data.lesson(name).inputs) for name in lab.names}
        held = {name: lab.features(shared, data.items(name, "held", None)[0]) for name in lab.names}
        router = train_router(None, lessons, held, RouterSettings(per_task=None, seed=ground.seed))
        routed = lab.routed(shared, lab.parts(shared, SHARED, P90), router)
    rows = routed.gate.weights(router.logits(lab.features(shared, lab.items.images)))
    found = score(lab, run(lab, routed, lab.items.images, rows).features, rows.argmax(1))
    extra = sum(part.nbytes for expert in routed.parts.values() for part in expert.values())
    told = {"stored_bytes": size + extra, "passes": 2, "samples": 0, "seconds": clock.seconds,
            "router": found["router"], "routed_head": found["accuracy"]["router_argmax"]}  # fmt: skip
    return told, found["correct"]["oracle"]

"""AdaMerging of the experts that ``atm_claims.py --only budget`` trained, on unlabelled validation pictures."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

from claims_lab import Lab, mean, normal
from mats_lab import Ground

from mergelab.engine import merge_to_memory, plan
from mergelab.runs.training.iterates import Runs
from mergelab.training.adamerging import learn
from mergelab.training.inputs import unlabelled
from mergelab.zoo import open_zoo

FORMAT = "mergelab-learned/2"
#: Every coefficient before the first step, as the authors have it.
AUTHORS = 0.3


def adamerged(zoo: str, folder: Path, seed: int, limit: int, out: Path) -> None:
    """Accuracy of both kinds of coefficients on the test pictures that the comparison in ``folder`` is read on, learned
    from task arithmetic's tuned coefficient and from the authors' start; into ``out``, row by row, where it goes on."""
    found = {"format": FORMAT, "zoo": open_zoo(zoo).name, "seed": seed, "limit": limit, "rows": {}}
    if out.is_file():
        found["rows"] = json.loads(out.read_text(encoding="utf-8"))["rows"]
    lab = Lab(zoo, seed, limit)
    ground, runs = Ground(lab), Runs(folder, "cpu")
    assert runs.apart is not None
    rounds = runs.rounds(runs.apart)
    whole = dict(ground.base.items())
    experts = {name: {**whole, **dict(runs.expert(runs.apart, rounds, name))} for name in lab.names}
    inputs = unlabelled(lab.model, lab.suite, lab.names, split="val", seed=seed)
    for start, per in itertools.product((_tuned(folder), AUTHORS), ("task", "layer")):
        name = f"{per}, from {start:g}"
        if name in found["rows"]:
            continue
        started, values = time.process_time(), {"per": per, "start": start}
        learned = learn(lab.model, plan("adamerging", experts, ground.base, values, seed=seed), inputs)
        done = plan("adamerging", experts, ground.base, values, seed=seed, learned=learned.coefficients)
        state = merge_to_memory(done, device="cpu", threads=1)
        seconds = time.process_time() - started
        right = ground.correct(state)
        found["rows"][name] = {"mean": mean(lab.items, right), "normalised": normal(lab.items, right),
                               "samples": learned.samples, "seconds": seconds}  # fmt: skip
        out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _tuned(folder: Path) -> float:
    """The coefficient that held pictures chose for task arithmetic of the same experts."""
    merges = json.loads((folder / "compare.json").read_text(encoding="utf-8"))["merges"]
    mine = [row for row in merges if row["method"] == "task_arithmetic" and row["tuned"]]
    return float(max(mine, key=lambda row: row["epochs"])["parameters"]["alpha"])

"""AdaMerging of the experts that ``atm_claims.py --only budget`` trained, on unlabelled validation pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from claims_lab import Lab, mean, normal
from mats_lab import Ground

from mergelab.engine import merge_to_memory, plan
from mergelab.runs.training.iterates import Runs
from mergelab.training.adamerging import learn
from mergelab.training.inputs import unlabelled

FORMAT = "mergelab-learned/1"


def adamerged(zoo: str, folder: Path, seed: int, limit: int) -> dict[str, Any]:
    """Accuracy of both kinds of coefficients on the test pictures that the comparison in ``folder`` is read on."""
    lab = Lab(zoo, seed, limit)
    ground, runs = Ground(lab), Runs(folder, "cpu")
    assert runs.apart is not None
    rounds = runs.rounds(runs.apart)
    whole = dict(ground.base.items())
    experts = {name: {**whole, **dict(runs.expert(runs.apart, rounds, name))} for name in lab.names}
    inputs = unlabelled(lab.model, lab.suite, lab.names, split="val", seed=seed)
    rows = {}
    for per in ("task", "layer"):
        started = time.process_time()
        made = plan("adamerging", experts, ground.base, {"per": per}, seed=seed)
        found = learn(lab.model, made, inputs)
        done = plan("adamerging", experts, ground.base, {"per": per}, seed=seed, learned=found.coefficients)
        state = merge_to_memory(done, device="cpu", threads=1)
        seconds = time.process_time() - started
        right = ground.correct(state)
        rows[per] = {"mean": mean(lab.items, right), "normalised": normal(lab.items, right), "samples": found.samples,
                     "seconds": seconds}  # fmt: skip
    return {"format": FORMAT, "zoo": lab.zoo.name, "seed": seed, "limit": limit, "rows": rows}

"""Named settings of a routed model: what the paper says, what its authors' code does, and what we advise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Words for the sections of a routed recipe that differ from their defaults, a sentence on what they are, and one
    on what of their model cannot be followed here."""

    name: str
    text: str
    exclusive: Mapping[str, Any] = field(default_factory=dict)
    router: Mapping[str, Any] = field(default_factory=dict)
    inference: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""


#: What the section inference may say: the words of modes.py and evaluate.py, here so that a recipe and the command line
#: are checked without them (and without torch).
MODES = ("auto", "per_input", "group", "adapter", "one_pass", "static")
HEADS = ("router_argmax", "oracle", "max_logit")
CLUSTER_ON = ("weights", "logits")

DEFAULT = "default"
#: The paper's 10 epochs in batches of 256 are a few dozen steps where a task has a few hundred items, and routers stop
#: short; smaller batches cost nothing and end closer to what the features allow.
_ROUTER = {"standardise": True, "epochs": 20, "batch": 64, "per_task": 1000, "balanced": True, "patience": 5}
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            DEFAULT,
            "What we advise: a tenth of each matrix's rank, features standardised, batches small enough for a few "
            "hundred items a task, early stopping on held-out items, the head of the router's first choice, and the "
            "mode that is cheapest.",
            {"rank_ratio": 0.1},
            _ROUTER,
            {"mode": "auto", "head": "router_argmax"},
        ),
        Preset(
            "paper",
            "Lu et al. 2024 as printed: a tenth of each matrix's rank (p = 90 %), a router of 10 epochs on at most "
            "1,000 items a task whose features are left as they are, soft weights, one merge an input.",
            {"rank_ratio": 0.1},
            {"standardise": False, "epochs": 10, "per_task": 1000, "balanced": True, "patience": None},
            {"mode": "per_input", "head": "oracle"},
            "The paper does not say which head an input gets; its published code gives it the true task's, so that is "
            "what is scored here, and named. The router's best epoch is chosen on held-out items, not on test items.",
        ),
        Preset(
            "authors_code",
            "The code that was published with the paper: 50 epochs in batches of 1,024 on at most 5,500 items a task, "
            "however many each has, biases left out, and the head of the true task.",
            {"rank_ratio": 0.1, "biases": False},
            {"standardise": False, "epochs": 50, "batch": 1024, "per_task": 5500, "balanced": False, "patience": None},
            {"mode": "per_input", "head": "oracle"},
            "That code takes every bias from the true task's expert, which no input comes with; here biases are the "
            "shared model's. It chooses the router's epoch on the test split; here held-out items do. Tasks with few "
            "items weigh as much as others in the loss.",
        ),
        Preset(
            "rank1",
            "The least storage: one direction a matrix (the paper's 99.8 %), otherwise as the default. The router, the "
            "vectors and the heads are then most of what is stored.",
            {"rank": 1},
            _ROUTER,
            {"mode": "auto", "head": "router_argmax"},
        ),
    )
}

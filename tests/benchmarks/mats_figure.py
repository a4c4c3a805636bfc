"""The figure of docs/claims.md: accuracy and J against iterations from every init. Needs matplotlib (only this does)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from claims_judge import at
from mats_judge import inits, word

#: Okabe and Ito's colours, told apart by every common kind of colour vision; every init has a marker of its own too.
LOOKS = {"average": ("#000000", "o"), "task_arithmetic": ("#0072B2", "s"), "ties": ("#009E73", "^"),
         "fisher": ("#E69F00", "D"), "regmean": ("#D55E00", "v")}  # fmt: skip


def draw(groups: dict[str, Sequence[dict[str, Any]]], out: Path) -> None:
    """One row a group of runs: accuracy on the left (mean, and the range of the runs), J on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(groups), 2, figsize=(9, 3.4 * len(groups)), squeeze=False, constrained_layout=True)
    for (title, runs), (left, right) in zip(groups.items(), axes, strict=True):
        for name in inits(runs):
            color, marker = LOOKS[name]
            found = [at(run, "inits", "inits", name) for run in runs]
            steps = [int(k) for k in found[0]["grid"]]
            accuracy = 100 * np.array([[point["test"] for point in f["grid"].values()] for f in found])
            shares = np.array([f["objective"] for f in found])
            shares = (shares / shares[:, :1]).mean(0)
            left.plot(steps, accuracy.mean(0), color=color, marker=marker, label=word(name))
            left.fill_between(steps, accuracy.min(0), accuracy.max(0), color=color, alpha=0.12, linewidth=0)
            right.plot(steps, shares, color=color, marker=marker, label=word(name))
        left.set(title=f"{title}: accuracy on test items, %", xlabel="iterations", xticks=steps)
        right.set(title=f"{title}: J, share of its start", xlabel="iterations", xticks=steps, ylim=(0, 1.05))
        right.legend(frameon=False, fontsize=8)
        for axis in (left, right):
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)

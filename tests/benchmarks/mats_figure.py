"""The figure of docs/claims.md: accuracy and J against iterations from every init. Needs matplotlib."""

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
    """Accuracy on the left, J on the right: one row a group of runs (mean and range), one for its long paths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    every = {title: [run["measures"]["path"] for run in runs if "path" in run["measures"]]
             for title, runs in groups.items()}  # fmt: skip
    long = {title: paths for title, paths in every.items() if paths}
    rows = len(groups) + len(long)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 3.4 * rows), squeeze=False, constrained_layout=True)
    for (title, runs), (left, right) in zip(groups.items(), axes, strict=False):
        for name in inits(runs):
            found = [at(run, "inits", "inits", name) for run in runs]
            steps = [int(k) for k in found[0]["grid"]]
            accuracy = np.array([[point["test"] for point in f["grid"].values()] for f in found])
            _line((left, right), name, steps, accuracy, np.array([f["objective"] for f in found]))
        _finish(left, right, title)
    for (title, paths), (left, right) in zip(long.items(), axes[len(groups) :], strict=True):
        for name, one in paths[0].items():
            found = {key: np.array([path[name][key] for path in paths]) for key in ("test", "val", "objective")}
            _line((left, right), name, one["iterations"], found["test"], found["objective"])
            left.plot(one["iterations"], 100 * found["val"].mean(0), color=LOOKS[name][0], linestyle=":")
        _finish(left, right, title)
        left.set(title=f"{title}: accuracy, % (dotted: on validation items)")
    figure.savefig(out, dpi=110)


def _line(axes: tuple[Any, Any], name: str, steps: Sequence[int], accuracy: Any, objective: Any) -> None:
    (left, right), (color, marker) = axes, LOOKS[name]
    left.plot(steps, 100 * accuracy.mean(0), color=color, marker=marker, label=word(name))
    left.fill_between(steps, 100 * accuracy.min(0), 100 * accuracy.max(0), color=color, alpha=0.12, linewidth=0)
    shares = (objective / objective[:, :1]).mean(0)
    right.plot(steps, shares, color=color, marker=marker, label=word(name))


def _finish(left: Any, right: Any, title: str) -> None:
    left.set(title=f"{title}: accuracy on test items, %", xlabel="iterations")
    right.set(title=f"{title}: J, share of its start", xlabel="iterations", ylim=(0, 1.05))
    right.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)

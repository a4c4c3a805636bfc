"""The figures of the training part of docs/claims.md: accuracy against epochs, task vectors, theorem lab. Needs
matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Doc = Mapping[str, Any]
#: Okabe and Ito's colours with markers of their own, as in the other figures.
RUNS = {"atm": ("ATM", "#D55E00", "o", "-"), "joint": ("joint training", "#0072B2", "s", "-"),
        "pcgrad": ("joint, PCGrad", "#56B4E9", "D", "-"),
        "one_shot": ("experts, own task", "#000000", "v", "--")}  # fmt: skip
MERGES = {"mean": ("average", "#009E73", "^"), "task_arithmetic": ("task arithmetic", "#E69F00", "P"),
          "ties": ("TIES", "#CC79A7", "X"), "tsv_m": ("TSV-M", "#8A6D00", "*")}  # fmt: skip
_STEPS = {"gd": ("gradient descent", "#0072B2", "o"), "sgd": ("SGD", "#009E73", "s"),
          "momentum": ("momentum", "#E69F00", "D"), "adam": ("Adam", "#D55E00", "^"),
          "adamw": ("AdamW", "#CC79A7", "v")}  # fmt: skip


def draw(zoos: Mapping[str, Mapping[str, Sequence[Doc]]], theorems: Sequence[Doc], folder: Path) -> None:
    """``zoos``: name -> measurement -> documents, one a seed. Writes ``training-*.png`` into ``folder``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    budgets = {zoo: parts["budget"] for zoo, parts in zoos.items() if "budget" in parts}
    if budgets:
        figure, axes = plt.subplots(len(budgets), 2, figsize=(10, 4 * len(budgets)), squeeze=False,
                                    constrained_layout=True)  # fmt: skip
        for (zoo, docs), (left, right) in zip(budgets.items(), axes, strict=True):
            _epochs(left, zoo, docs)
            _rounds(right, zoo, docs, zoos[zoo])
        figure.savefig(folder / "training-epochs.png", dpi=110)
        figure, axes = plt.subplots(len(budgets), 2, figsize=(10, 3.6 * len(budgets)), squeeze=False,
                                    constrained_layout=True)  # fmt: skip
        for (zoo, docs), (left, right) in zip(budgets.items(), axes, strict=True):
            _vectors(left, zoo, docs, zoos[zoo].get("look", ()))
            _shares(right, zoo, docs)
        figure.savefig(folder / "training-vectors.png", dpi=110)
    if theorems:
        figure, axes = plt.subplots(1, len(theorems), figsize=(4 * len(theorems), 3.8), squeeze=False, sharey=True,
                                    constrained_layout=True)  # fmt: skip
        for found, axis in zip(theorems, axes[0], strict=True):
            _theorem(axis, found)
        figure.savefig(folder / "training-theorem.png", dpi=110)


def _epochs(axis: Any, zoo: str, docs: Sequence[Doc]) -> None:
    for kind, (name, color, marker, dash) in RUNS.items():
        runs = [doc["runs"][kind] for doc in docs if kind in doc["runs"]]
        if runs:
            points = [p for p in runs[0]["points"] if len(p["accuracy"]) == len(runs[0]["tasks"])]
            values = [100 * mean(_mean(run["points"][p["round"]]) for run in runs) for p in points]
            axis.plot([p["epochs"] for p in points], values, dash, color=color, marker=marker, markersize=4, label=name)
    for tuned, style in ((True, "-."), (False, ":")):
        for method, (name, color, marker) in MERGES.items():
            if method == "mean" and not tuned:
                continue
            rows = [r for doc in docs for r in doc["merges"]
                    if r["method"] == method and (r["tuned"] == tuned or method == "mean")]  # fmt: skip
            epochs = sorted({row["epochs"] for row in rows})
            values = [100 * mean(_mean(row) for row in rows if row["epochs"] == e) for e in epochs]
            axis.plot(epochs, values, style, color=color, marker=marker if tuned else None, markersize=4, linewidth=1,
                      label=name if tuned else None)  # fmt: skip
    base = mean(mean(doc["runs"]["atm"]["references"]["base"].values()) for doc in docs)
    axis.axhline(100 * base, color="#888888", linestyle=":", linewidth=1)
    axis.text(0, 100 * base + 1, "base", color="#666666", fontsize=8)
    axis.set(title=f"{zoo}: mean accuracy, %", xlabel="epochs a task (one-shot merges dash-dotted; α = 1 dotted)")
    _finish(axis)


def _rounds(axis: Any, zoo: str, docs: Sequence[Doc], parts: Mapping[str, Sequence[Doc]]) -> None:
    last = max(row["epochs"] for row in docs[0]["merges"])
    once = mean(_mean(r) for doc in docs for r in doc["merges"] if r["method"] == "mean" and r["epochs"] == last)
    found = {1: once, int(last): mean(_mean(doc["runs"]["atm"]["points"][-1]) for doc in docs)}
    for name, each in parts.items():
        if name.startswith("rounds-"):
            found[int(name.split("-")[1])] = mean(_mean(doc["runs"]["atm"]["points"][-1]) for doc in each)
    counts = sorted(found)
    bars = axis.bar([str(c) for c in counts], [100 * found[c] for c in counts], color="#D55E00", width=0.6)
    axis.bar_label(bars, fmt="%.1f", fontsize=9)
    joint = [doc["runs"]["joint"] for doc in docs if "joint" in doc["runs"]]
    if joint:
        axis.axhline(100 * mean(_mean(run["points"][-1]) for run in joint), color="#0072B2", label="joint training")
    axis.set(title=f"{zoo}: {last:g} epochs a task in so many rounds, %", xlabel="rounds")
    _finish(axis, "lower right")


def _vectors(axis: Any, zoo: str, docs: Sequence[Doc], looks: Sequence[Doc]) -> None:
    for kind, name, color, marker in (("atm", "ATM's vectors of the round", "#D55E00", "o"),
                                      ("one_shot", "experts, from the base", "#000000", "v")):  # fmt: skip
        runs = [doc["runs"][kind] for doc in docs if kind in doc["runs"]]
        if runs:
            count = len(runs[0]["rounds"])
            values = [mean(apart(run["rounds"][i]["cosines"]) for run in runs) for i in range(count)]
            axis.plot(range(1, count + 1), values, color=color, marker=marker, markersize=4, label=name)
    drifts = [look["orthogonality"]["drift"]["atm"] for look in looks]
    if drifts:
        values = [mean(row["contributed"]["mean_abs"] for row in rows) for rows in zip(*drifts, strict=True)]
        axis.plot(range(1, len(values) + 1), values, "-.", color="#0072B2", marker="s", markersize=4,
                  label="ATM, contributed so far")  # fmt: skip
    control = [row["mean_abs"] for look in looks for row in look["orthogonality"]["rows"] if row["run"] == "control"]
    if control:
        axis.axhline(mean(control), color="#009E73", linestyle=":", label="experts of the joint model, one epoch")
    axis.set(title=f"{zoo}: mean |cosine| of task vectors", xlabel="round, or epochs a task", ylim=(0, None))
    _finish(axis)


def _shares(axis: Any, zoo: str, docs: Sequence[Doc]) -> None:
    runs = [doc["runs"]["one_shot"] for doc in docs]
    tasks = runs[0]["tasks"]
    shares = []
    for task in tasks:
        norms = [[epoch["norm"] for r in run["rounds"] for epoch in r["courses"][task]["epochs"]] for run in runs]
        shares.append(mean(values[0] / sum(values) for values in norms))
    axis.barh([runs[0]["titles"][t] for t in tasks], [100 * share for share in shares], color="#0072B2")
    axis.axvline(100 / len(runs[0]["rounds"]), color="#000000", linestyle=":", label="an even share")
    axis.set(title=f"{zoo}: first epoch, % of gradient norms")
    _finish(axis)


def _theorem(axis: Any, found: Doc) -> None:
    for name in found["optimisers"]:
        label, color, marker = _STEPS[name]
        rows = [row for row in found["rows"] if row["optimiser"] == name]
        axis.plot([row["steps"] for row in rows], [row["mean"]["error"] for row in rows], color=color, marker=marker,
                  markersize=4, label=label)  # fmt: skip
    axis.axhline(1e-9, color="#888888", linestyle=":", linewidth=1)
    axis.set(title=f"rate {found['rate']:g}", xlabel="steps", ylabel="relative error of −kη∇L", yscale="log")
    _finish(axis)


def _finish(axis: Any, place: str = "best") -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=place == "lower right", fontsize=8, loc=place)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _mean(row: Doc) -> float:
    return mean(row["accuracy"].values())


def apart(cosines: Sequence[Sequence[float | None]]) -> float:
    """Mean absolute cosine between different tasks."""
    return mean(abs(c) for i, row in enumerate(cosines) for j, c in enumerate(row) if i < j and c is not None)

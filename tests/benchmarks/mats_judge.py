"""What the measurements of ``mats_claims.py`` say to each claim: worked out, never written."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from claims_judge import Runs, Verdict, at, mean, points, values

INITS = ("average", "task_arithmetic", "ties", "fisher", "regmean")
STEPS = ("fisher - average", "regmean - fisher", "MaTS - regmean")
#: Accuracy that has fallen by this much after its best was not monotone.
FALLEN = 0.01
#: A rise of J, relative to its start, that is rounding.
ROUNDING = 1e-6


def better_than_init(runs: Runs) -> Verdict:
    gains = {name: values(runs, "inits", "inits", name, "difference", "difference") for name in inits(runs)}
    worse = {name: sum(at(run, "inits", "inits", name, "difference", "high") < 0 for run in runs) for name in gains}
    chosen = {name: [int(v) for v in values(runs, "inits", "inits", name, "chosen")] for name in gains}
    saw = "; ".join(f"{word(name)} {points(gain)}" for name, gain in gains.items())
    steps = "; ".join(f"{word(name)} {', '.join(map(str, ks))}" for name, ks in chosen.items())
    holds = one_of(all(mean(g) >= 0 for g in gains.values()) and not any(worse.values()),
                     sum(mean(g) for g in gains.values()) >= 0)  # fmt: skip
    return Verdict(saw + " points on test items", holds, f"Iterations chosen: {steps}.")


def order(runs: Runs) -> Verdict:
    told, fine = [], []
    for step in STEPS:
        if step not in at(runs[0], "inits", "steps"):
            continue
        gaps = values(runs, "inits", "steps", step, "difference")
        above = sum(at(run, "inits", "steps", step, "low") > 0 for run in runs)
        below = sum(at(run, "inits", "steps", step, "high") < 0 for run in runs)
        told.append(f"{word(step)} {points(gaps)} (interval above 0 in {above}, below in {below} of {len(runs)})")
        fine.append(not below and (mean(gaps) >= 0 if step != "regmean - fisher" else above == len(runs)))
    champions = ", ".join(dict.fromkeys(word(at(run, "inits", "champion")) for run in runs))
    return Verdict("; ".join(told), one_of(all(fine), any(fine)), f"MaTS is the init and iterations that are best on "
                   f"validation pictures: from {champions}.")  # fmt: skip


def not_monotone(runs: Runs) -> Verdict:
    """Over every init's grid in every run, and the long paths where they were measured. It holds where the mean over
    runs ends below its best, and partly where a single run's accuracy does, which may be chance."""
    told, falls, rises, curves = [], 0, 0, 0
    for run in runs:
        for name in inits(runs):
            found = at(run, "inits", "inits", name)
            test = [point["test"] for point in found["grid"].values()]
            rises += _largest_rise(found["objective"]) > ROUNDING
            falls += max(test) - test[-1] > FALLEN
            curves += 1
    told.append(f"to 20 iterations: J rises in {rises} of {curves} curves, accuracy ends more than {100 * FALLEN:.0f} "
                f"point below its best in {falls}")  # fmt: skip
    long: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for name, found in run["measures"].get("path", {}).items():
            long.setdefault(name, []).append(found)
    sunk = False
    for name, paths in long.items():
        rises += sum(_largest_rise(found["objective"]) > ROUNDING for found in paths)
        falls += sum(max(found["test"]) - found["test"][-1] > FALLEN for found in paths)
        left = mean([found["objective"][-1] / found["objective"][0] for found in paths])
        told.append(
            f"from {word(name)} ({len(paths)} run{'s' if len(paths) > 1 else ''}): J to {left:.3f} of its start"
        )
        for split in ("test", "val"):
            line = [mean(column) for column in zip(*(found[split] for found in paths), strict=True)]
            best, steps = max(range(len(line)), key=line.__getitem__), paths[0]["iterations"]
            sunk |= line[best] - line[-1] > FALLEN
            told[-1] += (f", {split} {100 * line[0]:.1f}, best {100 * line[best]:.1f} at {steps[best]}, "
                         f"{100 * line[-1]:.1f} at {steps[-1]}")  # fmt: skip
    why = "Stopping early regularises: from a start that has little left to gain, more iterations fit noise first."
    return Verdict("; ".join(told), one_of(sunk and not rises, falls and not rises), why if sunk else "")


def _largest_rise(objective: list[float]) -> float:
    return max((b - a) / objective[0] for a, b in pairwise(objective))


def few_examples(runs: Runs) -> Verdict:
    told = []
    for name in ("fisher", "regmean", "mats"):
        curve = {n: mean(values(having(runs, n), "examples", n, name)) for n in counts(runs)}
        best = max(curve.values())
        enough = next(n for n, value in curve.items() if value >= best - 0.01)
        told.append(f"{word(name)} {enough}")
    return Verdict("within a point of the best of its curve from so many a task on: " + "; ".join(told))


def learned_order(runs: Runs) -> Verdict:
    steps = ("task - task_arithmetic", "layer - task", "layer - task_arithmetic")
    gaps = {step: values(runs, "learned", "steps", step, "difference") for step in steps}
    holds = one_of(all(mean(g) > 0 for g in gaps.values()), any(mean(g) > 0 for g in gaps.values()))
    return Verdict("; ".join(f"{word(step)} {points(g)}" for step, g in gaps.items()), holds)


def surgery_on_top(runs: Runs) -> Verdict:
    names = ("task_arithmetic", "task", "layer")
    gaps = {n: values(runs, "learned", "steps", f"surgery/{n} - {n}", "difference") for n in names}
    above = {n: sum(at(run, "learned", "steps", f"surgery/{n} - {n}", "low") > 0 for run in runs) for n in names}
    told = [f"on {word(n)} {points(g)} (interval above 0 in {above[n]} of {len(runs)})" for n, g in gaps.items()]
    return Verdict("; ".join(told), one_of(all(v == len(runs) for v in above.values()), any(above.values())),
                   "It uses the task id at inference, which the other models do not.")  # fmt: skip


# ---- words --------------------------------------------------------------------------------------------------------


def one_of(whole: object, half: object) -> str:
    return "yes" if whole else "partly" if half else "no"


def inits(runs: Runs) -> list[str]:
    return [name for name in INITS if name in at(runs[0], "inits", "inits")]


def counts(runs: Runs) -> list[str]:
    """Numbers of examples that any run has."""
    every = {n for run in runs for n in at(run, "examples")}
    return sorted(every, key=int)


def having(runs: Runs, count: str) -> Runs:
    """The runs that took so many examples; large numbers were taken by some only."""
    return [run for run in runs if count in at(run, "examples")]


def word(name: str) -> str:
    words = {"task_arithmetic": "task arithmetic", "ties": "TIES", "fisher": "Fisher", "regmean": "RegMean",
             "mats": "MaTS", "layer": "AdaMerging by layer", "task": "AdaMerging by task"}  # fmt: skip
    if " - " in name:
        return " − ".join(word(part) for part in name.split(" - "))
    return words.get(name, name)

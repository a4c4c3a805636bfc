"""What became of ATM's claims, worked out from the measured documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

Doc = Mapping[str, Any]
#: Two means over tasks on the same test pictures that are nearer than this are called level (8 × 100 pictures: the
#: bootstrap interval of one is about ± 3 points).
_LEVEL = 0.03


def verdicts(zoos: Mapping[str, Mapping[str, Sequence[Doc]]]) -> list[str]:
    """A table: the claim, and for every zoo what was seen."""
    if not zoos:
        return []
    lines = [f"| claim | {' | '.join(zoos)} |", "|---" * (len(zoos) + 1) + "|"]
    for claim, judge in _CLAIMS.items():
        lines.append(f"| {claim} | {' | '.join(judge(parts) or 'not measured' for parts in zoos.values())} |")
    return lines


def _kind(docs: Sequence[Doc], kind: str) -> float | None:
    """The mean of the rows of a kind; of ``experts`` those that were trained beside the run, not the zoo's."""
    found = [row["mean"] for doc in docs for row in doc["table"]
             if row["kind"] == kind and not row["name"].startswith("the zoo's")]  # fmt: skip
    return mean(found) if found else None


def _compare(mine: float, other: float) -> str:
    word = "level" if abs(mine - other) < _LEVEL else "holds" if mine > other else "does not hold"
    return f"{word}: {100 * mine:.1f} against {100 * other:.1f}"


def _against(kind: str) -> Any:
    def judge(parts: Mapping[str, Sequence[Doc]]) -> str:
        docs = parts.get("budget", ())
        mine, other = _kind(docs, "atm"), _kind(docs, kind)
        return "" if mine is None or other is None else _compare(mine, other)

    return judge


def _one_shot(parts: Mapping[str, Sequence[Doc]]) -> str:
    docs = parts.get("budget", ())
    if not docs:
        return ""
    best = [max(row["mean"] for row in doc["table"] if row["kind"] == "one-shot") for doc in docs]
    return _compare(_kind(docs, "atm") or 0.0, mean(best))


def _adamerging(parts: Mapping[str, Sequence[Doc]]) -> str:
    docs, budget = parts.get("learned", ()), parts.get("budget", ())
    if not docs or not budget:
        return ""
    best = mean(max(row["mean"] for row in doc["rows"].values()) for doc in docs)
    return _compare(_kind(budget, "atm") or 0.0, best)


def _more_rounds(parts: Mapping[str, Sequence[Doc]]) -> str:
    budget = parts.get("budget", ())
    if not budget:
        return ""
    found = {10: _kind(budget, "atm") or 0.0}
    found[1] = mean(row["mean"] for doc in budget for row in doc["table"]
                    if row["name"].startswith("average of the experts after 10"))  # fmt: skip
    for name, docs in parts.items():
        if name.startswith("rounds-"):
            found[int(name.split("-")[1])] = _kind(docs, "atm") or 0.0
    values = [found[k] for k in sorted(found)]
    rising = all(b >= a for a, b in pairwise(values))
    return f"{'holds' if rising else 'not at every step'}: " + ", ".join(
        f"{k}: {100 * found[k]:.1f}" for k in sorted(found)
    )


def _lifts(parts: Mapping[str, Sequence[Doc]]) -> str:
    found = {name.removeprefix("posthoc-"): (_kind(docs, "start") or 0.0, _kind(docs, "atm") or 0.0)
             for name, docs in parts.items() if name.startswith("posthoc-")}  # fmt: skip
    if not found:
        return ""
    lifted = [name for name, (before, after) in found.items() if after > before]
    told = ", ".join(f"{name} {100 * (after - before):+.1f}" for name, (before, after) in found.items())
    return f"{len(lifted)} of {len(found)}: {told}"


def _controls(parts: Mapping[str, Sequence[Doc]]) -> str:
    found = {name.removeprefix("posthoc-"): (_kind(docs, "atm") or 0.0, _kind(docs, "joint") or 0.0,
                                             _kind(docs, "alpha") or 0.0)
             for name, docs in parts.items() if name.startswith("posthoc-")}  # fmt: skip
    if not found:
        return ""
    joint, alpha = (mean(row[0] - row[i] for row in found.values()) for i in (1, 2))
    return f"over joint tuning {100 * joint:+.1f}, over α alone {100 * alpha:+.1f} points (means over merges)"


def _fewer_epochs(parts: Mapping[str, Sequence[Doc]]) -> str:
    docs = parts.get("budget", ())
    if not docs:
        return ""
    best: dict[float, float] = {}
    for epochs in sorted({row["epochs"] for doc in docs for row in doc["merges"]}):
        best[epochs] = mean(max(mean(r["accuracy"].values()) for r in doc["merges"] if r["epochs"] == epochs)
                            for doc in docs)  # fmt: skip
    top, last = max(best, key=lambda e: best[e]), max(best)
    word = "does not hold" if best[last] >= best[top] - 1e-9 else "holds"
    told = [f"{100 * best[e]:.1f} after {e:g}" for e in sorted({min(best), top, last})]
    return f"{word}: the best one-shot merge has {', '.join(told)} epochs"


def _first_epoch(parts: Mapping[str, Sequence[Doc]]) -> str:
    docs = parts.get("budget", ())
    if not docs:
        return ""
    shares = []
    for doc in docs:
        run = doc["runs"]["one_shot"]
        for task in run["tasks"]:
            norms = [epoch["norm"] for r in run["rounds"] for epoch in r["courses"][task]["epochs"]]
            shares.append(norms[0] / sum(norms))
    even = 1 / len(docs[0]["runs"]["one_shot"]["rounds"])
    return (f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of the norm (an even share: {100 * even:.0f}); "
            f"more than half in {sum(s > 0.5 for s in shares)} of {len(shares)}")  # fmt: skip


def _orthogonal(parts: Mapping[str, Sequence[Doc]]) -> str:
    from atm_figures import apart

    docs = parts.get("budget", ())
    if not docs:
        return ""
    first, last, fair = (mean(apart(doc["runs"][kind]["rounds"][at]["cosines"]) for doc in docs)
                         for kind, at in (("atm", 0), ("atm", -1), ("one_shot", -1)))  # fmt: skip
    word = "holds" if last < first else "does not hold"
    control = [row["mean_abs"] for look in parts.get("look", ()) for row in look["orthogonality"]["rows"]
               if row["run"] == "control"]  # fmt: skip
    told = f", experts of the joint model after one epoch {mean(control):.3f}" if control else ""
    return f"{word}: mean cosine {first:.3f} to {last:.3f}; experts after as many epochs {fair:.3f}{told}"


_CLAIMS = {
    "ATM is better than the best one-shot merge of experts trained as long (the best by test accuracy)": _one_shot,
    "ATM is better than AdaMerging of those experts": _adamerging,
    "ATM is better than joint training on as many samples": _against("joint"),
    "ATM is better than joint training with PCGrad": _against("pcgrad"),
    "ATM is better than each expert on its own task": _against("experts"),
    "more rounds at the same budget are better": _more_rounds,
    "merging after fewer epochs is better": _fewer_epochs,
    "the first epoch dominates the gradient's norm": _first_epoch,
    "ATM's task vectors grow more orthogonal": _orthogonal,
    "PH-ATM lifts every merge": _lifts,
    "PH-ATM is better than its controls at equal labels": _controls,
}

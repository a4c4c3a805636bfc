"""What the measurements of ``twin_claims.py`` say to each claim. Numbers and verdicts are worked out, never written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Runs = Sequence[dict[str, Any]]
ARGMAX, ORACLE = "router_argmax", "oracle"
#: Tasks of the zoos that are nearly the same task.
TWINS = ("mnist and optdigits", "clothing and fashion", "signdigits and spoken")
LEVELS = ("50 %", "10 %", "5 %", "4", "1")


@dataclass(frozen=True)
class Verdict:
    """What one zoo says to one claim: ``holds`` is yes, partly, no, or a dash where there is nothing to judge."""

    saw: str
    holds: str = "–"
    why: str = ""


class Missing(Exception):  # noqa: N818
    """Something was not measured."""


# ---- numbers ---------------------------------------------------------------------------------------------------------


def at(run: dict[str, Any], *path: str) -> Any:
    found: Any = run["measures"]
    for step in path:
        if not isinstance(found, dict) or step not in found:
            raise Missing("/".join(path))
        found = found[step]
    return found


def values(runs: Runs, *path: str) -> list[float]:
    """The numbers at ``path``, one a run."""
    return [float(at(run, *path)) for run in runs]


def accuracy(runs: Runs, *path: str, head: str = ARGMAX) -> list[float]:
    return values(runs, *path, "accuracy", head)


def ratio(runs: Runs, *path: str, head: str = ARGMAX) -> list[float]:
    """Accuracy as a share of the experts'."""
    return values(runs, *path, "normalised", head)


def minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def mean(found: Sequence[float]) -> float:
    return float(np.mean(found))


def percent(found: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation over runs, times 100."""
    spread = f" ± {100 * np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
    return f"{100 * mean(found):{sign}.1f}{spread}"


def points(found: Sequence[float]) -> str:
    return percent(found, "+")


def clear(runs: Runs, *path: str) -> tuple[int, int]:
    """In how many runs a paired difference's interval is above zero, and below zero."""
    return sum(v > 0 for v in values(runs, *path, "low")), sum(v < 0 for v in values(runs, *path, "high"))


def verdict(*parts: Any) -> str:
    return "yes" if all(parts) else "partly" if any(parts) else "no"


def rank(level: str) -> str:
    return level if "%" in level else f"rank {level}"


def named(pairs: dict[str, Sequence[float]], form: Callable[[Sequence[float]], str] = percent) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {form(found)}" for name, found in pairs.items())


# ---- claims ----------------------------------------------------------------------------------------------------------


def c1(runs: Runs) -> Verdict:
    h = "headline"
    best = [at(run, h, "best_static") for run in runs]
    static = {head: [at(run, h, "static", name, "normalised", head) for run, name in zip(runs, best, strict=True)]
              for head in (ARGMAX, ORACLE)}  # fmt: skip
    twin = {head: ratio(runs, h, "twin", head=head) for head in (ARGMAX, ORACLE)}
    gap, (above, _) = values(runs, h, "twin_minus_best_static", "difference"), clear(runs, h, "twin_minus_best_static")
    saw = (
        f"Twin {percent(twin[ARGMAX])} (oracle head {percent(twin[ORACLE])}); best static merge "
        f"({', '.join(sorted(set(best)))}) {percent(static[ARGMAX])} (oracle head {percent(static[ORACLE])}); "
        f"{points(gap)} points of accuracy, interval above 0 in {above} of {len(runs)} runs"
    )
    router = values(runs, h, "twin", "router")
    why = f"The router is right on {percent(router)} %; an input that it sends elsewhere is lost with its head."
    return Verdict(saw, verdict(above == len(runs), mean(twin[ARGMAX]) >= 0.95), why)


def c2(runs: Runs) -> Verdict:
    h = "headline"
    told = values(runs, h, "twin_minus_oracle_top1", "difference")
    parts = minus(ratio(runs, h, "twin", head=ORACLE), ratio(runs, h, "oracle_top1", head=ORACLE))
    full = minus(ratio(runs, h, "twin"), ratio(runs, "ranks", "full"))
    saw = (
        f"against the true task's part and head {points(told)} points; the true head for both {points(parts)}; against "
        f"full rank {points(full)}"
    )
    why = f"Routing errors cost the head ({percent(told)}); mixing the parts softly costs {points(parts)}."
    return Verdict(saw, verdict(abs(mean(told)) <= 0.03, abs(mean(full)) <= 0.03), why)


def c3(runs: Runs) -> Verdict:
    rows = {"full": ratio(runs, "ranks", "full")} | {rank(lv): ratio(runs, "ranks", "B", lv) for lv in LEVELS}
    shared = ratio(runs, "headline", "static", "task_arithmetic")
    saw = f"{named(rows)}; the shared model alone {percent(shared)}"
    lost, falls = minus(rows["10 %"], rows["full"]), minus(rows["rank 1"], rows["10 %"])
    over = minus(rows["rank 1"], shared)
    why = (
        f"A tenth of the rank against all of it {points(lost)}, rank 1 against a tenth {points(falls)}, rank 1 "
        f"against the shared model {points(over)} points."
    )
    return Verdict(saw, verdict(abs(mean(lost)) <= 0.015, mean(falls) < -0.015, mean(over) > 0), why)


def c4(runs: Runs) -> Verdict:
    s = "sparsity"
    rivals = {"equal density": "density places", "equal bytes": "bytes places", "equal bytes, bitmap": "bytes bitmap",
              "rank 4's bytes": "as rank 4"}  # fmt: skip
    saw, right = [], []
    for label, name in rivals.items():
        ours = ratio(runs, s, "svd rank 4" if name == "as rank 4" else "svd")
        big, drawn = (ratio(runs, s, f"{kind} {name}") for kind in ("magnitude", "bernoulli"))
        saw.append(f"{label}: {named({'SVD': ours, 'magnitude': big, 'Bernoulli': drawn})}")
        right += [mean(ours) >= mean(big) - 0.005, mean(big) >= mean(drawn) - 0.005]
    share, wide = (mean(values(runs, s, f"magnitude bytes {form}", "density")) for form in ("places", "bitmap"))
    why = (
        f"The factors' bytes hold {100 * share:.1f} % of the entries with int32 places and {100 * wide:.1f} % with a "
        "bitmap. All under the router's first choice; half a point of slack."
    )
    return Verdict("; ".join(saw), verdict(*right), why)


def c5(runs: Runs) -> Verdict:
    t = "tasks"
    counts = sorted(at(runs[0], t), key=int)
    lines = {k: [ratio(runs, t, c, k, head=ORACLE) for c in counts] for k in ("average", "task_arithmetic_same_sum",
                                                                             "twin")}  # fmt: skip
    saw = f"{', '.join(counts)} tasks, oracle head: " + "; ".join(
        f"{k.replace('_', ' ')} {', '.join(map(percent, found))}" for k, found in lines.items()
    )
    saw += f"; Twin with the router's head {', '.join(percent(ratio(runs, t, c, 'twin')) for c in counts)}"
    change = {k: mean(minus(found[-1], found[0])) for k, found in lines.items()}
    each = [mean(values(runs, t, c, "exclusive_bytes")) / int(c) for c in counts]
    linear = max(each) / min(each) < 1.02
    why = (
        f"From {counts[0]} to {counts[-1]} tasks " + named({k: [v] for k, v in change.items()}, points) + " points; "
        f"{each[0] / 1e6:.2f} to {each[-1] / 1e6:.2f} MB a task. "
        "Task arithmetic's coefficient keeps its sum over tasks."
    )
    static = max(change["average"], change["task_arithmetic_same_sum"])
    return Verdict(saw, verdict(static < -0.03, change["twin"] > -0.03, linear), why)


def c6(runs: Runs) -> Verdict:
    counts = sorted((c for c in at(runs[0], "groups") if c.isdigit()), key=int)
    each, found = ratio(runs, "groups", "per input"), {c: ratio(runs, "groups", c) for c in counts}
    saw = f"per input {percent(each)}; {', '.join(counts)} groups a bin: {', '.join(map(percent, found.values()))}"
    first, last = (minus(found[c], each) for c in (counts[0], counts[-1]))
    why = f"{points(first)} points with {counts[0]} group a bin, {points(last)} with {counts[-1]}."
    return Verdict(saw, verdict(mean(last) >= mean(first) - 0.003, abs(mean(last)) <= 0.04), why)


def c7(runs: Runs) -> Verdict:
    ways = [w for w in at(runs[0], "times", "seconds") if w != "static"]
    static = values(runs, "times", "seconds", "static")
    times = {w: mean([a / b for a, b in zip(values(runs, "times", "seconds", w), static, strict=True)]) for w in ways}
    saw = "64 mixed inputs end to end, against one static pass: " + ", ".join(
        f"{w.replace('_', ' ')} {times[w]:.1f} times" for w in ways
    )
    slow = times["per_input"] > 2.5
    why = "A merge takes longer than a pass of a model this small; the batched pass needs none." if slow else ""
    return Verdict(saw, verdict(1 < times["group 3 a bin"] < times["per_input"], not slow), why)


def c8(runs: Runs) -> Verdict:
    names = list(at(runs[0], "router_data"))
    found = {n: ratio(runs, "router_data", n) for n in names}
    cells = []
    for name in names:
        count = mean(values(runs, "router_data", name, "items"))
        kind = "that the experts trained on" if "train" in name else "held out"
        router = percent(values(runs, "router_data", name, "router"))
        cells.append(f"{count:.0f} {kind}: {percent(found[name])} (router {router})")
    most = max((found[n] for n in names if n.startswith(("all", "1000"))), key=mean)
    hundred, few = (minus(found[n], most) for n in ("100 (val)", "10 (val)"))
    why = f"Against the most data 100 a task give {points(hundred)}, 10 {points(few)} points."
    return Verdict("; ".join(cells), verdict(mean(hundred) >= -0.02, mean(few) < -0.02), why)


def c9(runs: Runs) -> Verdict:
    orders = ("sorted", "mixed")
    each, batch = ({o: ratio(runs, "stream", o, f"per {how}") for o in orders} for how in ("input", "batch"))
    saw = f"weights per input: {named(each)}; one mixture a batch of 64: {named(batch)}"
    same = max(abs(v) for v in minus(each["mixed"], each["sorted"])) < 0.005
    falls = minus(batch["mixed"], batch["sorted"])
    why = f"An input's weights are its own, whatever stands beside it; a shared mixture loses {points(falls)} points."
    return Verdict(saw, verdict(same, mean(falls) < -0.01), why)


def k1(runs: Runs) -> Verdict:
    gaps = {rank(lv): values(runs, "ranks", "gap", lv, "difference") for lv in LEVELS}
    own = {rank(lv): minus(accuracy(runs, "ranks", "B", lv), accuracy(runs, "ranks", "A_own", lv))
           for lv in ("10 %", "4", "1")}  # fmt: skip
    saw = f"B − A for the same weights: {named(gaps, points)}; A with its own router: {named(own, points)}"
    low = {lv: clear(runs, "ranks", "gap", lv) for lv in ("4", "1")}
    why = "; ".join(
        f"rank {lv}: interval above 0 in {a}, below 0 in {b} of {len(runs)} runs" for lv, (a, b) in low.items()
    )
    better = all(above == len(runs) for above, _ in low.values())
    return Verdict(saw, verdict(better, abs(mean(gaps["50 %"])) < 0.01), f"{why}. At full rank both are one model.")


def k2(runs: Runs) -> Verdict:
    names = list(at(runs[0], "anchors", "anchors"))
    found = {lv: {n: ratio(runs, "anchors", "anchors", n, lv) for n in names} for lv in ("10 %", "4")}
    saw = "; ".join(f"{rank(lv)}: {named(of)}" for lv, of in found.items())
    spread = {lv: max(map(mean, of.values())) - min(map(mean, of.values())) for lv, of in found.items()}
    most, low = (100 * spread[lv] for lv in ("10 %", "4"))
    why = f"They differ by at most {most:.1f} points at a tenth of the rank, {low:.1f} at rank 4."
    return Verdict(saw, verdict(spread["10 %"] < 0.02), why)


def k3(runs: Runs) -> Verdict:
    clean = minus(accuracy(runs, "gates", "soft"), accuracy(runs, "gates", "top-1"))
    spoilt = minus(_spoilt(runs, "twin"), _spoilt(runs, "twin top-1"))
    new = minus(_unseen(runs, "twin"), _unseen(runs, "twin top-1"))
    told = minus(accuracy(runs, "gates", "soft", head=ORACLE), accuracy(runs, "gates", "top-1", head=ORACLE))
    saw = (
        f"soft − first choice: clean {points(clean)} (oracle head {points(told)}), spoilt pictures {points(spoilt)}, "
        f"unseen tasks {points(new)}"
    )
    share = percent(values(runs, "gates", "unsure", "share"))
    why = (
        f"The largest weight is under 0.9 on {share} % of clean inputs. Where the first choice is wrong its head is, "
        "too, so softness shows with the oracle head."
    )
    return Verdict(saw, verdict(mean(new) > 0, mean(spoilt) > 0, mean(clean) <= 0.005), why)


def k4(runs: Runs) -> Verdict:
    tasks = [(name, found) for run in runs for name, found in at(run, "unseen", "tasks").items()]
    means = {n: _unseen(runs, n) for n in tasks[0][1]["accuracy"]}
    saw = f"{', '.join(sorted({name for name, _ in tasks}))}: {named(means)}"
    gaps = {n: [t["twin_minus"][n] for _, t in tasks] for n in ("task_arithmetic", "pretrained")}
    counts = {n: (sum(g["low"] > 0 for g in of), sum(g["high"] < 0 for g in of)) for n, of in gaps.items()}
    why = f"Of {len(tasks)} measurements of a task Twin's interval is " + "; ".join(
        f"above {n.replace('_', ' ')} in {a}, below in {b}" for n, (a, b) in counts.items()
    )
    over = [mean(means["twin"]) > mean(means[n]) for n in counts]
    return Verdict(saw, verdict(*over), f"{why}. Heads: class means of each model's own features, told the task.")


def k5(runs: Runs) -> Verdict:
    names = ("twin", "task_arithmetic", at(runs[0], "corrupted", "other"))
    clean = {n: accuracy(runs, "corrupted", "conditions", "clean", n) for n in names}
    spoilt = {n: _spoilt(runs, n) for n in names}
    drop = {n: minus(clean[n], spoilt[n]) for n in names}
    saw = "accuracy " + "; ".join(
        f"{n.replace('_', ' ')} {percent(clean[n])} → {percent(spoilt[n])} (drop {percent(drop[n])})" for n in names
    )
    higher = all(mean(spoilt["twin"]) > mean(spoilt[n]) for n in names[1:])
    router = values(runs, "corrupted", "conditions", "clean", "twin", "router"), _spoilt(runs, "twin", "router")
    why = (
        f"The router falls from {percent(router[0])} to {percent(router[1])} %. Means over four corruptions in three "
        "strengths; each is below."
    )
    return Verdict(saw, verdict(higher, abs(mean(minus(drop["twin"], drop["task_arithmetic"]))) < 0.05), why)


def k6(runs: Runs) -> Verdict:
    gap = values(runs, "headline", "twin_minus_expert_oracle_head", "difference")
    above, below = clear(runs, "headline", "twin_minus_expert_oracle_head")
    said = f"interval above 0 in {above}, below in {below} of {len(runs)} runs"
    saw = f"Twin − experts, oracle head: {points(gap)} points; {said}"
    why = "No gain that could not be chance." if above < len(runs) else ""
    return Verdict(saw, "yes" if above == len(runs) else "no", why)


def k7(runs: Runs) -> Verdict:
    h, cells, gaps = "headline", [], {}
    for name, path in (("Twin", ("twin",)), ("task arithmetic", ("static", "task_arithmetic")),
                       ("pretrained", ("static", "pretrained"))):  # fmt: skip
        found = {head: accuracy(runs, h, *path, head=head) for head in (ORACLE, ARGMAX, "max_logit")}
        gaps[name] = minus(found[ORACLE], found[ARGMAX])
        cells.append(f"{name}: oracle {percent(found[ORACLE])}, router's {percent(found[ARGMAX])}, highest logit "
                     f"{percent(found['max_logit'])}")  # fmt: skip
    errors = [1 - v for v in values(runs, h, "twin", "router")]
    near = abs(mean(minus(gaps["Twin"], errors))) < 0.02
    why = f"Twin loses {percent(gaps['Twin'])} points without the oracle head; the router errs on {percent(errors)} %."
    return Verdict("; ".join(cells), verdict(all(mean(g) >= 0 for g in gaps.values()), near), why)


def duplicates(runs: Runs) -> Verdict:
    pairs: dict[str, list[float]] = {}
    near: dict[str, list[float]] = {}
    for run in runs:
        confusion, cosine = at(run, "headline", "confusion"), at(run, "headline", "cosine")
        for a, row in confusion.items():
            for b in (b for b in row if a < b):
                pairs.setdefault(f"{a} and {b}", []).append((row[b] + confusion[b][a]) / 2)
                near.setdefault(f"{a} and {b}", []).append(cosine[a][b])
    by_cosine = sorted(near, key=lambda p: -mean(near[p]))[:2]
    by_share = sorted(pairs, key=lambda p: -mean(pairs[p]))[:3]
    said = {p: f"{p} {percent(share)} % (cosine {mean(near[p]):.2f})" for p, share in pairs.items()}
    groups = {"taken for each other most": by_share, "nearest task vectors": by_cosine,
              "near-duplicate tasks": [p for p in TWINS if p in pairs]}  # fmt: skip
    saw = "; ".join(f"{title}: {', '.join(said[p] for p in of)}" for title, of in groups.items() if of)
    together = float(np.corrcoef([mean(share) for share in pairs.values()], [mean(v) for v in near.values()])[0, 1])
    why = f"Over all {len(pairs)} pairs the correlation of confusion and cosine is {together:+.2f}."
    return Verdict(saw, "yes" if by_share[0] in by_cosine else "no", why)


def _unseen(runs: Runs, name: str) -> list[float]:
    return [mean([t["accuracy"][name] for t in at(run, "unseen", "tasks").values()]) for run in runs]


def _spoilt(runs: Runs, name: str, what: str = "accuracy") -> list[float]:
    """The mean over all spoilt conditions."""
    out = []
    for run in runs:
        found = [c[name] for k, c in at(run, "corrupted", "conditions").items() if k != "clean"]
        out.append(mean([f["router"] if what == "router" else f["accuracy"][ARGMAX] for f in found]))
    return out

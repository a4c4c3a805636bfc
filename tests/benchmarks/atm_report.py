"""The training lab's tables in Markdown, worked out from the documents that ``atm_claims.py`` left in its folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HEAD = """# Training: ATM, joint training, and merges of experts

Made by `python tests/benchmarks/atm_claims.py --report FOLDER… --markdown docs/claims.md`. Every model is trained from
the base (or the merge that is named) on the same pictures with the same optimiser, read by frozen heads, and measured
on the same test pictures; α is chosen on held validation pictures, and rows with α = 1 are untuned. Means over seeds,
± one standard deviation over them; with one seed the interval is a bootstrap over test pictures.
"""
_COSTS = {"samples": "samples", "training_seconds": "training, s", "sent_bytes": "sent, GB", "peak_bytes": "memory, GB"}
Doc = Mapping[str, Any]


def report(folders: Sequence[Path]) -> str:
    """All parts for every zoo: one folder a zoo and seed, ``NAME-SEED/MEASUREMENT/compare.json``."""
    found: dict[str, dict[int, dict[str, Doc]]] = {}
    for folder in folders:
        for place in sorted(path for path in folder.iterdir() if path.is_dir()):
            zoo, _, seed = place.name.rpartition("-")
            parts = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in place.glob("*/compare.json")}
            if parts:
                found.setdefault(zoo.rstrip("0123456789"), {})[int(seed)] = parts
    lines = [HEAD]
    theorems = [json.loads(path.read_text(encoding="utf-8")) for folder in folders
                for path in sorted(folder.glob("theorem/*.json"))]  # fmt: skip
    for zoo, seeds in found.items():
        parts = {name: [seeds[s][name] for s in sorted(seeds) if name in seeds[s]] for name in
                 dict.fromkeys(n for each in seeds.values() for n in each)}  # fmt: skip
        for name, make in _PARTS.items():
            chosen = {key: docs for key, docs in parts.items() if key.split("-")[0] == name and _whole(docs)}
            if chosen:
                lines += ["", *make(zoo, chosen)]
    if theorems:
        lines += ["", *_theorem(theorems)]
    return "\n".join(lines) + "\n"


def _whole(docs: Sequence[Doc]) -> bool:
    return all(run["status"] == "done" for doc in docs for run in doc["runs"].values())


# ---- tables ----------------------------------------------------------------------------------------------------------


def _budget(zoo: str, parts: Mapping[str, list[Doc]]) -> list[str]:
    docs = parts["budget"]
    recipe = docs[0]["runs"]["atm"]["recipe"]
    head = (f"## {zoo}: ten epochs a task, {recipe['images']} pictures a task, {len(recipe['tasks'])} tasks, seed(s) "
            f"{', '.join(str(d['runs']['atm']['recipe']['seed']) for d in docs)}")  # fmt: skip
    lines = [head, "", _command(zoo, docs, "budget"), ""]
    lines += [f"| model | mean, % | of expert, % | {' | '.join(_COSTS.values())} | data |",
              "|---" * (4 + len(_COSTS)) + "|"]  # fmt: skip
    for row in docs[0]["table"]:
        rows = [match for doc in docs for match in doc["table"] if match["name"].split(", α")[0] ==
                row["name"].split(", α")[0] and match.get("tuned") == row.get("tuned")]  # fmt: skip
        lines.append(f"| {row['name']} | {_spread(rows)} | {_percent([r['normalised'] for r in rows])} | "
                     f"{' | '.join(_cost(row, key) for key in _COSTS)} | {_data(row)} |")  # fmt: skip
    return [*lines, "", *_curves(docs), "", *_shares(docs), "", *_cosines(docs)]


def _curves(docs: list[Doc]) -> list[str]:
    """Accuracy after every epoch: runs, experts, one-shot merges."""
    rounds = [point["round"] for point in docs[0]["runs"]["atm"]["points"]]
    lines = [f"| mean accuracy after epoch | {' | '.join(map(str, rounds))} |", "|---" * (len(rounds) + 1) + "|"]
    names = {
        "atm": "ATM",
        "joint": "joint training",
        "pcgrad": "joint, PCGrad",
        "one_shot": "experts on their own task",
    }
    for kind, name in names.items():
        runs = [doc["runs"][kind] for doc in docs if kind in doc["runs"]]
        cells = [_percent([_mean(run["points"][i]["accuracy"]) for run in runs]) for i in range(len(rounds))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seen = dict.fromkeys((row["method"], row["tuned"]) for row in docs[0]["merges"])
    for method, tuned in seen:
        cells = []
        for epoch in rounds:
            rows = [r for doc in docs for r in doc["merges"] if r["method"] == method and r["tuned"] == tuned
                    and round(r["epochs"]) == epoch]  # fmt: skip
            cells.append(_percent([_mean(row["accuracy"]) for row in rows]) if rows else "–")
        how = "" if method == "mean" else ", α chosen" if tuned else ", α = 1"
        lines.append(f"| one-shot {'average' if method == 'mean' else method}{how} | {' | '.join(cells)} |")
    return lines


def _shares(docs: list[Doc]) -> list[str]:
    """The first epoch's share of the gradient norm, by task."""
    runs = [doc["runs"]["one_shot"] for doc in docs]
    tasks = runs[0]["tasks"]
    total = len(runs[0]["rounds"])
    lines = [f"The first epoch's share of {total} epochs (an even share is {100 / total:.0f} %):", "",
             f"| of | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]  # fmt: skip
    for key, name in (("norm", "the gradient's norm"), ("moved", "the way the weights go")):
        cells = []
        for task in tasks:
            each = [[epoch[key] for r in run["rounds"] for epoch in r["courses"][task]["epochs"]] for run in runs]
            cells.append(_percent([values[0] / sum(values) for values in each]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _cosines(docs: list[Doc]) -> list[str]:
    """Mean absolute cosine between tasks' vectors: ATM's of every round, experts' from the base after every epoch."""
    rounds = range(1, len(docs[0]["runs"]["atm"]["rounds"]) + 1)

    def cells(kind: str, value: Callable[[Doc], float]) -> str:
        return " | ".join(_percent([value(doc["runs"][kind]["rounds"][i - 1]) for doc in docs]) for i in rounds)

    def apart(row: Doc) -> float:
        return _apart(row["cosines"])

    return [
        f"| mean absolute cosine, % | {' | '.join(map(str, rounds))} |",
        "|---" * (len(rounds) + 1) + "|",
        f"| ATM's vectors of the round | {cells('atm', apart)} |",
        f"| experts from the base, after as many epochs | {cells('one_shot', apart)} |",
        f"| norm of ATM's vectors | {cells('atm', lambda row: mean(row['norms'].values()) / 100)} |",
    ]


def _rounds(zoo: str, parts: Mapping[str, list[Doc]]) -> list[str]:
    counts = sorted(parts, key=lambda name: int(name.split("-")[1]))
    lines = [f"## {zoo}: the same ten epochs in fewer rounds", "", _command(zoo, parts[counts[0]], "rounds"), "",
             "| rounds × epochs | mean, % |", "|---|---|"]  # fmt: skip
    for name in counts:
        docs = parts[name]
        budget = docs[0]["runs"]["atm"]["recipe"]["budget"]
        rows = [next(r for r in doc["table"] if r["kind"] == "atm") for doc in docs]
        lines.append(f"| {budget['rounds']} × {budget['epochs']} | {_spread(rows)} |")
    return lines


def _posthoc(zoo: str, parts: Mapping[str, list[Doc]]) -> list[str]:
    docs = next(iter(parts.values()))
    first = docs[0]["runs"]["atm"]["recipe"]
    what = f"at most {first['images']} validation labels a task ({first['budget']['rounds']} rounds of an epoch)"
    heads = ("merge", "as it is", "PH-ATM", "joint tuning, same labels", "α alone, same labels")
    lines = [f"## {zoo}: merges refined on {what}", "", _command(zoo, docs, "posthoc"), "",
             f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]  # fmt: skip
    for name, found in parts.items():
        cells = []
        for kind in ("start", "atm", "joint", "alpha"):
            rows = [next((row for row in doc["table"] if row["kind"] == kind), None) for doc in found]
            cells.append(_spread([row for row in rows if row]) if any(rows) else "–")
        lines.append(f"| {name.removeprefix('posthoc-')} | {' | '.join(cells)} |")
    return lines


def _theorem(documents: Sequence[Doc]) -> list[str]:
    """Task vectors against gradients: a row for every rate and optimiser, a column for every number of steps."""
    first = documents[0]
    heads = [f"{k} step{'s' if k > 1 else ''}" for k in first["steps"]]
    lines = [f"## Theorem lab: {first['suite']} ({first['data_used'].split(';')[0]})", ""]
    for found in documents:
        told = f"--suite {found['suite']} --base {found['base_model']} --tasks {','.join(found['tasks'])}"
        how = f"--images {max(found['items'].values())} --rate {found['rate']:g}"
        lines.append(f"- `python -m mergelab theorem {told} {how} --optimisers {','.join(found['optimisers'])}`")
    lines += [
        "",
        "Relative error of the mean task vector against −kη times the gradient, its cosine, and the merged model's "
        f"loss and accuracy, in float64; the base: {_of(first['base']['loss']):.2f} and "
        f"{100 * _of(first['base']['accuracy']):.1f} %.",
        "",
        f"| optimiser, rate | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    seen: set[tuple[str, float]] = set()
    for found in documents:
        for name in found["optimisers"]:
            rows = [row for row in found["rows"] if row["optimiser"] == name]
            if (name, rows[0]["rate"]) not in seen:
                seen.add((name, rows[0]["rate"]))
                lines.append(f"| {name}, {rows[0]['rate']:g} | {' | '.join(map(_after, rows))} |")
    lines += ["", "Distance from joint descent (gd), relative: of ATM with a step a round; of one merge.", "",
              f"| rate | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]  # fmt: skip
    for found in documents:
        cells = [f"{_short(row['rounds'])}; {_short(row['apart'])}" for row in found["joint"]]
        lines.append(f"| {found['rate']:g} | {' | '.join(cells)} |")
    return lines


def _after(row: Doc) -> str:
    """What a number of steps led to: error, cosine, loss, accuracy."""
    found = row["mean"]
    scores = f"{_of(row['loss']):.2f}; {100 * _of(row['accuracy']):.1f} %"
    return f"{_short(found['error'])}; {found['cosine']:.3f}; {scores}"


def _short(value: float) -> str:
    return f"{value:.0e}" if value < 0.001 else f"{value:.2f}"


def _of(value: Any) -> float:
    """The mean over tasks of what is given by task, or of one number."""
    return mean(value.values()) if isinstance(value, Mapping) else float(value)


_PARTS: dict[str, Callable[[str, Mapping[str, list[Doc]]], list[str]]] = {
    "budget": _budget, "rounds": _rounds, "posthoc": _posthoc,
}  # fmt: skip


# ---- cells -----------------------------------------------------------------------------------------------------------


def _command(zoo: str, docs: list[Doc], name: str) -> str:
    recipe = docs[0]["runs"]["atm"]["recipe"]
    seeds = " ".join(str(doc["runs"]["atm"]["recipe"]["seed"]) for doc in docs)
    return (f"`python tests/benchmarks/atm_claims.py --zoo {zoo} --seeds {seeds} --only {name} --images "
            f"{recipe['images']} --rate {recipe['tuning']['rate']:g} --out FOLDER`")  # fmt: skip


def _spread(rows: Sequence[Mapping[str, Any]]) -> str:
    if len(rows) == 1 and rows[0].get("interval"):
        low, high = rows[0]["interval"]
        return f"{100 * rows[0]['mean']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    return _percent([row["mean"] for row in rows])


def _percent(values: Sequence[float | None]) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return "–"
    around = f" ± {100 * stdev(found):.1f}" if len(found) > 1 else ""
    return f"{100 * mean(found):.1f}{around}"


def _mean(scores: Mapping[str, float]) -> float:
    return mean(scores.values())


def _apart(cosines: Sequence[Sequence[float | None]]) -> float:
    return mean(abs(c) for i, row in enumerate(cosines) for j, c in enumerate(row) if i < j and c is not None)


def _cost(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return "–"
    return f"{value / 1e9:.1f}" if key.endswith("bytes") else f"{value:.0f}"


def _data(row: Mapping[str, Any]) -> str:
    return str(row.get("data") or "–").split(" a task of ")[0]

"""The training lab's tables in Markdown, worked out from the documents that ``atm_claims.py`` left in its folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from atm_figures import apart
from atm_judge import verdicts

from mergelab.runs.training.compare import table

HEAD = """# Training: ATM, joint training, and merges of experts

Made by `python tests/benchmarks/atm_claims.py --report FOLDER… --markdown docs/claims.md`. Every model is trained from
the base (or the merge that is named) on the same pictures with the same optimiser, read by frozen heads, and measured
on the same test pictures; α is chosen on held validation pictures, and rows with α = 1 are untuned. Means over seeds,
± one standard deviation over them; with one seed the interval is a bootstrap over test pictures. Seconds were taken
with other measurements on the machine's other core.
"""
_COSTS = {"samples": "samples", "training_seconds": "training, s", "sent_bytes": "sent, GB", "peak_bytes": "memory, GB"}
Doc = Mapping[str, Any]
FIGURES = {
    "epochs": "Accuracy against epochs of ATM, joint training, experts and their one-shot merges; and against rounds",
    "vectors": "Cosines of task vectors by round beside controls; the first epoch's share of gradient norms",
}
#: What is in files of their own beside the comparisons' folders.
_FILES = ("learned", "beside", "look")


def gathered(folders: Sequence[Path]) -> tuple[dict[str, dict[str, list[Doc]]], list[Doc]]:
    """What the folders hold (``NAME-SEED/MEASUREMENT/compare.json``, ``NAME-SEED/beside.json``): zoo -> measurement ->
    finished documents by seed; and the theorem lab's documents."""
    found: dict[str, dict[str, list[Doc]]] = {}
    for folder in folders:
        for place in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[-1].isdigit()):
            zoo = found.setdefault(place.name.rpartition("-")[0].rstrip("0123456789"), {})
            for path in sorted(place.glob("*/compare.json")):
                doc = json.loads(path.read_text(encoding="utf-8"))
                if all(run["status"] == "done" for run in doc["runs"].values()):
                    doc["table"] = table(doc)
                    zoo.setdefault(path.parent.name, []).append(doc)
            for name in _FILES:
                if (place / f"{name}.json").is_file():
                    zoo.setdefault(name, []).append(json.loads((place / f"{name}.json").read_text(encoding="utf-8")))
    theorems = [json.loads(path.read_text(encoding="utf-8")) for folder in folders
                for path in sorted(folder.glob("theorem/*.json"))]  # fmt: skip
    return found, theorems


def keep(folders: Sequence[Path], out: Path, zoo: str = "starter") -> None:
    """Small copies of what was measured on a zoo that everyone has, in folders that :func:`gathered` reads."""
    for folder in folders:
        for path in sorted((*folder.glob(f"{zoo}-*/*/compare.json"), *folder.glob(f"{zoo}-*/*.json"))):
            place = out / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            document = json.loads(path.read_text(encoding="utf-8"))
            place.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def report(zoos: Mapping[str, Mapping[str, list[Doc]]], theorems: Sequence[Doc]) -> str:
    """All parts for every zoo."""
    lines = [HEAD, *verdicts(zoos)]
    if any("budget" in parts for parts in zoos.values()):
        lines += ["", *(f"![{text}](images/training-{name}.png)\n" for name, text in FIGURES.items())]
    for zoo, parts in zoos.items():
        for name, make in _PARTS.items():
            if any(key.split("-")[0] == name for key in parts):
                lines += ["", *make(zoo, parts)]
    if theorems:
        lines += ["", *_theorem(theorems)]
    return "\n".join(lines) + "\n"


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
        name = row["name"] if len(rows) == 1 or not row.get("tuned") else f"{row['name'].split(', α')[0]}, α chosen"
        lines.append(f"| {name} | {_spread(rows)} | {_percent([r['normalised'] for r in rows])} | "
                     f"{' | '.join(_cost(row, key) for key in _COSTS)} | {_data(row)} |")  # fmt: skip
        if row["kind"] == "one-shot" and row is _last(docs[0]):
            lines += _learned(parts.get("learned", ()), len(_COSTS))
    return [*lines, "", *_curves(docs), "", *_shares(docs), "", *_cosines(docs, parts.get("look", ()))]


def _last(doc: Doc) -> Doc | None:
    """The last of the one-shot merges in the table."""
    return next((row for row in reversed(doc["table"]) if row["kind"] == "one-shot"), None)


def _learned(docs: Sequence[Doc], costs: int) -> list[str]:
    """AdaMerging's rows of the same experts."""
    lines = []
    for per in docs[0]["rows"] if docs else ():
        rows = [doc["rows"][per] for doc in docs]
        told = f"AdaMerging of the experts, by {per}, {rows[0]['seconds']:.0f} s of CPU"
        scores = [_percent([row[key] for row in rows]) for key in ("mean", "normalised")]
        lines.append(f"| {told} | {' | '.join(scores)} | " + "– | " * costs + "unlabelled validation pictures |")
    return lines


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


def _cosines(docs: list[Doc], looks: Sequence[Doc]) -> list[str]:
    """Mean absolute cosine between tasks' vectors: ATM's of every round, experts' from the base after every epoch; and
    of looks at runs whose rounds were kept, what tasks contributed in all, and experts of the joint model."""
    rounds = range(1, len(docs[0]["runs"]["atm"]["rounds"]) + 1)

    def cells(kind: str, value: Callable[[Doc], float]) -> str:
        return " | ".join(_percent([value(doc["runs"][kind]["rounds"][i - 1]) for doc in docs]) for i in rounds)

    lines = [
        f"| mean absolute cosine, % | {' | '.join(map(str, rounds))} |",
        "|---" * (len(rounds) + 1) + "|",
        f"| ATM's vectors of the round | {cells('atm', lambda row: apart(row['cosines']))} |",
        f"| experts from the base, after as many epochs | {cells('one_shot', lambda row: apart(row['cosines']))} |",
    ]
    drifts = [look["orthogonality"]["drift"]["atm"] for look in looks]
    if drifts:
        summed = [_percent([drift[i - 1]["contributed"]["mean_abs"] for drift in drifts]) for i in rounds]
        lines.append(f"| ATM, what each task has contributed so far | {' | '.join(summed)} |")
    lines.append(f"| norm of ATM's vectors, hundredths | {cells('atm', lambda row: mean(row['norms'].values()))} |")
    found = [row["mean_abs"] for look in looks for row in look["orthogonality"]["rows"] if row["run"] == "control"]
    if found:
        lines += ["", f"Experts tuned for one epoch from the joint model: {_percent(found)} (`python -m mergelab look "
                  "FOLDER/ZOO-SEED/budget --control`, of runs with `--keep-rounds`)."]  # fmt: skip
    return lines


def _rounds(zoo: str, parts: Mapping[str, list[Doc]]) -> list[str]:
    counts = {int(name.split("-")[1]): docs for name, docs in parts.items() if name.startswith("rounds-")}
    first = next(iter(counts.values()))
    lines = [f"## {zoo}: the same ten epochs in fewer rounds", "", _command(zoo, first, "rounds"), "",
             "| rounds × epochs | mean, % |", "|---|---|"]  # fmt: skip
    budget = parts.get("budget", ())
    once = [row for doc in budget for row in doc["table"] if row["name"].startswith("average of the experts after 10")]
    if once:
        lines.append(f"| 1 × 10 (the average of experts) | {_spread(once)} |")
    if budget:
        counts[len(budget[0]["runs"]["atm"]["rounds"])] = budget
    for _, docs in sorted(counts.items()):
        told = docs[0]["runs"]["atm"]["recipe"]["budget"]
        rows = [next(r for r in doc["table"] if r["kind"] == "atm") for doc in docs]
        lines.append(f"| {told['rounds']} × {told['epochs']} | {_spread(rows)} |")
    return lines


def _rates(zoo: str, parts: Mapping[str, list[Doc]]) -> list[str]:
    """What a lower learning rate changes, which all columns have alike."""
    sets = [parts[name] for name in ("budget", *(n for n in parts if n.startswith("rates-"))) if name in parts]
    lines = [f"## {zoo}: the learning rate", "", _command(zoo, sets[-1], "rates"), "",
             "| AdamW's rate | ATM | joint training | experts, own task | TSV-M of them, α chosen |",
             "|---|---|---|---|---|"]  # fmt: skip
    for docs in sets:
        rows = [[next((row for row in reversed(doc["table"]) if row["name"].startswith(name)), None) for doc in docs]
                for name in ("ATM", "joint training,", "experts, each", "tsv_m of the experts after 10")]  # fmt: skip
        cells = [_spread([row for row in each if row]) if any(each) else "–" for each in rows]
        lines.append(f"| {docs[0]['runs']['atm']['recipe']['tuning']['rate']:g} | {' | '.join(cells)} |")
    return lines


def _posthoc(zoo: str, parts: Mapping[str, list[Doc]]) -> list[str]:
    found = {name: docs for name, docs in parts.items() if name.startswith("posthoc-")}
    docs = next(iter(found.values()))
    first = docs[0]["runs"]["atm"]["recipe"]
    what = (f"at most {first['images']} validation labels a task ({first['budget']['rounds']} rounds of an epoch, "
            "the round chosen on held ones)")  # fmt: skip
    heads = ("merge", "as it is", "PH-ATM", "joint tuning, same labels", "α alone, same labels")
    lines = [f"## {zoo}: merges refined on {what}", "", _command(zoo, docs, "posthoc"), "",
             f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]  # fmt: skip
    for name, each in found.items():
        cells = []
        for kind in ("start", "atm", "joint", "alpha"):
            rows = [next((row for row in doc["table"] if row["kind"] == kind), None) for doc in each]
            cells.append(_spread([row for row in rows if row]) if any(rows) else "–")
        lines.append(f"| {name.removeprefix('posthoc-')} | {' | '.join(cells)} |")
    return lines


_BESIDE = {"task_arithmetic": "task arithmetic (the start)", "mats": "MaTS", "atm": "PH-ATM", "joint": "joint tuning",
           "twin": "Twin-Merging"}  # fmt: skip


def _beside(zoo: str, parts: Mapping[str, list[Doc]]) -> list[str]:
    docs = parts["beside"]
    first = docs[0]
    told = (
        f"From the same merge of the zoo's experts, with the same {first['labels']} labelled validation pictures in "
        f"all and {first['held']} held ones to choose by; test pictures under their own task's head, for Twin-Merging "
        "also under the one that its router names."
    )
    heads = ("method", "mean, %", "of expert, %", "over the start, points", "chosen", "CPU, s", "trained on, samples",
             "stored, MB", "forward passes an input")  # fmt: skip
    lines = [f"## {zoo}: ATM, MaTS and Twin-Merging with the same labels", "",
             _command(zoo, docs, "beside", first["recipe"]), "", told, "",
             f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]  # fmt: skip
    for name, title in _BESIDE.items():
        rows = [doc["rows"][name] for doc in docs]
        row = rows[0]
        gained = "–" if row["gained"] is None else _gain([r["gained"] for r in rows])
        chosen = {"mats": "iterations", "atm": "rounds", "joint": "epochs"}.get(name)
        picked = "–" if chosen is None else f"{', '.join(str(r['chosen']) for r in rows)} {chosen}"
        routed = f"; routed head {_percent([r['routed_head'] for r in rows])}" if name == "twin" else ""
        lines.append(f"| {title} | {_percent([r['mean'] for r in rows])}{routed} | "
                     f"{_percent([r['normalised'] for r in rows])} | {gained} | {picked} | "
                     f"{mean(r['seconds'] for r in rows):.0f} | {row['samples']:g} | {row['stored_bytes'] / 1e6:.0f} | "
                     f"{row['passes']} |")  # fmt: skip
    return lines


def _gain(found: Sequence[Doc]) -> str:
    if len(found) == 1:
        one = found[0]
        return f"{100 * one['difference']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"
    values = [one["difference"] for one in found]
    return f"{100 * mean(values):+.1f} ± {100 * stdev(values):.1f}"


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
        "![Relative error against steps, by optimiser and rate](images/training-theorem.png)",
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
    "budget": _budget, "rates": _rates, "rounds": _rounds, "posthoc": _posthoc, "beside": _beside,
}  # fmt: skip


# ---- cells -----------------------------------------------------------------------------------------------------------


def _command(zoo: str, docs: list[Doc], name: str, recipe: Doc | None = None) -> str:
    seeds = " ".join(str(doc["seed"] if recipe else doc["runs"]["atm"]["recipe"]["seed"]) for doc in docs)
    if name in ("posthoc", "beside", "rates"):
        return f"`python tests/benchmarks/atm_claims.py --zoo {zoo} --seeds {seeds} --only {name} --out FOLDER`"
    recipe = docs[0]["runs"]["atm"]["recipe"]
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


def _cost(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return "–"
    return f"{value / 1e9:.1f}" if key.endswith("bytes") else f"{value:.0f}"


def _data(row: Mapping[str, Any]) -> str:
    return str(row.get("data") or "–").split(" a task of ")[0]

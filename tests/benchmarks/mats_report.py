"""The part of docs/claims.md on merging with a little data, from what ``mats_claims.py`` measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from claims_judge import Missing, Runs, Verdict, at, mean, percent, points, values
from mats_judge import (
    better_than_init,
    counts,
    few_examples,
    having,
    inits,
    learned_order,
    not_monotone,
    order,
    surgery_on_top,
    word,
)

HEAD = """# Merging with a little data

Made by `python tests/benchmarks/mats_claims.py --report FILE.json… --markdown docs/claims.md`; every number and verdict
is worked out from these files. Accuracies are percent, means over the tasks, with each item's own head. Statistics come
from at most 128 validation pictures a task (at most 60 % of them); iterations and RegMean's α are chosen on at most 40
*other* validation pictures a task, λ of task arithmetic and TIES by the zoo's builder on validation pictures. What MaTS
does not solve for stays at its init, so that 0 iterations are the init. ± is the standard deviation over runs;
"interval" is the 95 % bootstrap interval of a difference on the same test items.
"""
FIGURE = "![Accuracy and J against iterations, from every init](images/mats-iterations.png)"
#: Number, claim, what is known of it, what judges it, what details it.
CLAIMS: list[tuple[str, str, str, Callable[[Runs], Verdict]]] = [
    ("M1", "MaTS with validated iterations is at least its init, for every init",
     "8.7 and 12.3 points above task arithmetic on T5-Large (secondary source)", better_than_init),
    ("M2", "Average ≤ Fisher < RegMean ≤ MaTS", "56.4, 57.7, 69.1, 72.5 on T5-Large (secondary source)", order),
    ("M3", "Accuracy against iterations is not monotone although J is", "a toy of ours", not_monotone),
    ("M4", "Few examples are enough", "not found", few_examples),
    ("M5", "AdaMerging: layer-wise > task-wise > task arithmetic",
     "80.2, 71.1, 69.1 (authors' logs, ViT-B/32, on test inputs)", learned_order),
    ("M6", "Surgery on top helps every merge",
     "69.1 → 80.9 for task arithmetic, 80.2 → 86.1 for AdaMerging (authors' logs)", surgery_on_top),
]  # fmt: skip


# ---- the page ----------------------------------------------------------------------------------------------------


def report(files: Sequence[dict[str, Any]]) -> str:
    """Markdown: how it was measured, the table of claims, and the numbers behind them."""
    groups = grouped(files)
    lines = [HEAD, *(_how(title, runs, files) for title, runs in groups.items()), ""]
    shown = eight(groups)
    lines += [f"| claim | {' | '.join(shown)} |", "|---" * (1 + len(shown)) + "|"]
    told: list[str] = []
    for name, claim, known, judged in CLAIMS:
        found = {title: _judged(judged, runs) for title, runs in shown.items()}
        lines.append(f"| **{name}** {claim} | {' | '.join(v.holds for v in found.values())} |")
        told += ["", f"## {name}: {claim}", "", f"Known: {known}.", "", "| | seen | holds | why |", "|---|---|---|---|",
                 *(f"| *{title}* | {v.saw} | {v.holds} | {v.why} |" for title, v in found.items())]  # fmt: skip
    lines += ["", FIGURE, *told]
    for heading, table in (("MaTS from every init", _inits_table), ("Along the iterations", _path_table),
                           ("How many examples", _examples_table), ("Coefficients and corrections without labels",
                            _learned_table), ("Other statistics, scalings, solvers", _variants_table)):  # fmt: skip
        for title, runs in groups.items():
            try:
                made = table(runs)
            except Missing:
                continue
            lines += ["", f"## {heading}: {title}", "", *made]
    kinds = _kinds_table(groups)
    if kinds:
        lines += ["", "## Full, LoRA and (IA)³ experts of the same tasks", "", *kinds]
    return "\n".join(lines) + "\n"


def grouped(files: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs by zoo (those that differ in their number only are one group), measurements of one run joined."""
    runs: dict[tuple[str, int, str], dict[str, Any]] = {}
    for file in files:
        for run in file["runs"]:
            key = (run["zoo"], run["seed"], ", ".join(run.get("some", [])))
            if key in runs:
                old = runs[key]
                measures, seconds = {**old["measures"], **run["measures"]}, {**old["seconds"], **run["seconds"]}
                for name in ("examples", "few_unlabelled"):  # counts of pictures, taken in several sittings
                    if name in old["measures"] and name in run["measures"]:
                        measures[name] = {**old["measures"][name], **run["measures"][name]}
                        seconds[name] = old["seconds"][name] + run["seconds"][name]
                runs[key] = {**old, "measures": measures, "seconds": seconds}
            else:
                runs[key] = run
    out: dict[str, list[dict[str, Any]]] = {}
    for (zoo, _, some), run in sorted(runs.items()):
        stem = zoo.rstrip("0123456789").rstrip("-")
        title = stem if stem == zoo else f"{stem} zoos"
        out.setdefault(f"{title} ({some})" if some else title, []).append(run)
    return out


def eight(groups: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The groups that judge the claims: whole zoos, with every init."""
    return {title: runs for title, runs in groups.items() if "ties" in at(runs[0], "inits", "inits")}


def _how(title: str, runs: Runs, files: Sequence[dict[str, Any]]) -> str:
    machine = files[0]["machine"]
    zoos = list(dict.fromkeys(run["zoo"] for run in runs))
    tune = {"full": "fully fine-tuned", "lora": "LoRA", "ia3": "(IA)³"}[runs[0]["tune"]]
    what = (f"zoos {', '.join(zoos)}, experts trained anew in each" if len(zoos) > 1 else
            f"seeds {', '.join(str(r['seed']) for r in runs)} of the pictures drawn")  # fmt: skip
    minutes = sum(sum(run["seconds"].values()) for run in runs) / 60 / len(runs)
    some = f" --tasks {' '.join(runs[0]['some'])}" if runs[0].get("some") else ""
    seeds = " ".join(str(run["seed"]) for run in runs)
    told = f"--zoo {' '.join(zoos)} --seeds {seeds} --limit {runs[0]['limit']}{some}"
    return (
        f"- *{title}*: {len(runs[0]['experts'])} {tune} experts ({', '.join(runs[0]['experts'])}), {len(runs)} runs "
        f"({what}), {runs[0]['limit']} test items a task, {minutes:.0f} CPU minutes a run, {machine['threads']} "
        f"thread(s), torch {machine['torch']}: `python tests/benchmarks/mats_claims.py {told}`"
    )


def _judged(judged: Callable[[Runs], Verdict], runs: Runs) -> Verdict:
    """The verdict over all runs, or as many of the first as have measured it."""
    for count in range(len(runs), 0, -1):
        try:
            found = judged(runs[:count])
        except Missing:
            continue
        return found if count == len(runs) else replace(found, saw=f"{found.saw} ({count} of {len(runs)} runs)")
    return Verdict("not measured")


def _inits_table(runs: Runs) -> list[str]:
    grid = list(at(runs[0], "inits", "inits", "average", "grid"))
    head = " | ".join(f"{k} iterations" for k in grid)
    lines = [f"| init | {head} | before → after (chosen on validation) | difference |", "|---" * (len(grid) + 3) + "|"]
    for name in inits(runs):
        path = ("inits", "inits", name)
        cells = [percent(values(runs, *path, "grid", k, "test")) for k in grid]
        before, after = (percent(values(runs, *path, when, "test")) for when in ("before", "after"))
        gap = points(values(runs, *path, "difference", "difference"))
        lines.append(f"| {word(name)} | {' | '.join(cells)} | {before} → {after} | {gap} |")
    experts = percent(values(runs, "inits", "experts"))
    ladder = at(runs[0], "inits", "ladder")
    steps = ", ".join(f"{word(name)} {percent(values(runs, 'inits', 'ladder', name))}" for name in ladder)
    lines += ["", f"In order: {steps}; the experts {experts}."]
    lines += ["", f"| J, share of its start | {head} |", "|---" * (len(grid) + 1) + "|"]
    for name in inits(runs):
        curves = [at(run, "inits", "inits", name, "objective") for run in runs]
        cells = [f"{mean([c[i] / c[0] for c in curves]):.3f}" for i in range(len(grid))]
        lines.append(f"| {word(name)} | {' | '.join(cells)} |")
    return lines


def _path_table(runs: Runs) -> list[str]:
    runs = _having(runs, "path")
    lines = []
    for name in at(runs[0], "path"):
        found = [at(run, "path", name) for run in runs]
        head = " | ".join(map(str, found[0]["iterations"]))
        lines += [f"| from {word(name)} | {head} |", "|---" * (len(found[0]["iterations"]) + 1) + "|"]
        for title, key in (("J, share of its start", "objective"), ("validation", "val"), ("test", "test")):
            cells = []
            for i in range(len(found[0]["iterations"])):
                each = [f[key][i] for f in found]
                share = mean([f[key][i] / f[key][0] for f in found])
                cells.append(f"{share:.4f}" if key == "objective" else percent(each))
            lines.append(f"| {title} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


def _examples_table(runs: Runs) -> list[str]:
    runs = _having(runs, "examples")
    every = counts(runs)
    heads = [n if (m := len(having(runs, n))) == len(runs) else f"{n} ({m} run{'s' if m > 1 else ''})" for n in every]
    lines = [f"| training pictures a task | {' | '.join(heads)} |", "|---" * (len(every) + 1) + "|"]
    for name in ("fisher", "regmean", "mats"):
        if name in at(runs[0], "examples", every[0]):
            cells = [percent(values(having(runs, n), "examples", n, name)) for n in every]
            lines.append(f"| {word(name)}{' (5 iterations)' if name == 'mats' else ''} | {' | '.join(cells)} |")
    try:
        few = sorted({n for run in _having(runs, "few_unlabelled") for n in at(run, "few_unlabelled")}, key=int)
        taken = {n: [run for run in _having(runs, "few_unlabelled") if n in at(run, "few_unlabelled")] for n in few}
        cells = [
            f"{n}: {percent(values(taken[n], 'few_unlabelled', n))} ({len(taken[n])} run{'s' * (len(taken[n]) > 1)})"
            for n in few
        ]
        cells.append(f"all: {percent(values(runs, 'learned', 'scores', 'layer', 'test'))}")
        lines += [
            "",
            f"AdaMerging by layer with so many validation pictures a task, without labels: {'; '.join(cells)}.",
        ]
    except Missing:
        pass
    return lines


def _having(runs: Runs, name: str) -> Runs:
    """The runs that measured something; Missing where none did."""
    found = [run for run in runs if name in run["measures"]]
    if not found:
        raise Missing(name)
    return found


def _learned_table(runs: Runs) -> list[str]:
    runs = _having(runs, "learned")
    lines = ["| model | accuracy | with Surgery (the task known) |", "|---|---|---|"]
    for name in ("task_arithmetic", "task", "layer"):
        cells = [percent(values(runs, "learned", "scores", key, "test")) for key in (name, f"surgery/{name}")]
        lines.append(f"| {word(name)} | {' | '.join(cells)} |")
    return lines


def _variants_table(runs: Runs) -> list[str]:
    runs = _having(runs, "variants")
    lines = ["| MaTS after 10 iterations from task arithmetic | test | validation |", "|---|---|---|"]
    for name in at(runs[0], "variants"):
        cells = [percent(values(runs, "variants", name, key)) for key in ("test", "val")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _kinds_table(groups: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Zoos of the same experts under several ways to tune: their inits side by side."""
    by: dict[tuple[str, ...], dict[str, Runs]] = {}
    for runs in groups.values():
        by.setdefault(tuple(runs[0]["experts"]), {})[runs[0]["tune"]] = runs
    lines: list[str] = []
    for names, tunes in by.items():
        if len(tunes) < 2:
            continue
        lines += [f"Experts: {', '.join(names)}.", "",
                  "| tuned | experts | average | task arithmetic | Fisher | RegMean | MaTS from average | MaTS from "
                  "task arithmetic | MaTS − its init | matched by |", "|---" * 10 + "|"]  # fmt: skip
        for tune, runs in tunes.items():
            cells = [percent(values(runs, "inits", "experts"))]
            for name in ("average", "task_arithmetic", "fisher", "regmean"):
                known = name in at(runs[0], "inits", "inits")
                cells.append(percent(values(runs, "inits", "inits", name, "before", "test")) if known else "–")
            for name in ("average", "task_arithmetic"):
                cells.append(percent(values(runs, "inits", "inits", name, "after", "test")))
            cells.append(points(values(runs, "inits", "inits", "task_arithmetic", "difference", "difference")))
            cells.append("full Fisher of each vector" if tune == "ia3" else "K-FAC on dense changes")
            lines.append(f"| {tune} | {' | '.join(cells)} |")
    return lines

"""The page of claims, from what ``twin_claims.py`` measured: docs/claims.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import claims_judge as judge
from claims_judge import ARGMAX, ORACLE, Missing, Runs, Verdict, accuracy, at, percent, ratio, values

#: Number, claim, what the paper has for it (Lu et al. 2024, unless said), and what judges it.
CLAIMS: list[tuple[str, str, str, Callable[[Runs], Verdict]]] = [
    ("C1", "At a tenth of the rank Twin beats the best static merge by far and recovers 95 % of the experts",
     "95.3 against 76.5 (ViT-B/32, the task known)", judge.c1),
    ("C2", "It is within a few points of the oracle's choice, and of itself at full rank",
     "flat to 90 % sparsity", judge.c2),
    ("C3", "Flat from full rank to a tenth, then falling; rank 1 above the shared model",
     "86.4 at rank 1, 67.8 for the shared model", judge.c3),
    ("C4", "SVD, then magnitude, then Bernoulli, at equal density and at equal bytes",
     "figure 6, at equal density", judge.c4),
    ("C5", "From 2 to 8 tasks static merges fall and Twin hardly does; storage is linear in the tasks",
     "figure 4", judge.c5),
    ("C6", "Groups: a few points below a merge per input, rising with their number", "92.0 against 96.1", judge.c6),
    ("C7", "Static < group < per input in time; per input at most 2.5 times a static pass",
     "1.08 and 1.96 times task arithmetic", judge.c7),
    ("C8", "Router data: from 1,000 to 100 a task costs about a point, less data more", "102.4 and 101.2", judge.c8),
    ("C9", "A mixed stream scores as a sorted one; one mixture a batch does not", "said, not measured", judge.c9),
    ("K1", "B (shared + exclusive) beats A (base + exclusive) at low rank; they are equal at full rank",
     "96.1 against 85.9", judge.k1),
    ("K2", "The choice of the shared model matters little at a tenth of the rank",
     "96.2 (average), 96.1 (task arithmetic); but 81.5 for a random expert", judge.k2),
    ("K3", "Soft weights beat the first choice on unclear and unseen inputs, not on clean ones",
     "not measured", judge.k3),
    ("K4", "Unseen tasks: above task arithmetic, and above the pretrained model",
     "1.9 points above task arithmetic; a third party has 53.0 against 57.0 for the pretrained model", judge.k4),
    ("K5", "Corruption: higher in absolute terms, with about the same drop", "96.9 → 79.2, 84.3 → 65.6", judge.k5),
    ("K6", "It surpasses the fine-tuned experts", "102.4 (generation)", judge.k6),
    ("K7", "Without the oracle head every method falls, Twin by its routing errors",
     "the published code uses the oracle head", judge.k7),
    ("–", "The router confuses those tasks whose experts are most alike", "not measured", judge.duplicates),
]  # fmt: skip

HEAD = """# Twin-Merging's claims, measured

Made by `python tests/benchmarks/twin_claims.py --report FILE.json… --markdown docs/claims.md`; every number and verdict
is worked out from these files. Unless said otherwise, scores are percent of the experts' accuracy on the same items,
the head is the one of the router's first choice, and Twin keeps a tenth of the rank beside tuned task arithmetic under
soft weights. ± is the standard deviation over runs; "interval" is the 95 % bootstrap interval of a difference on the
same items. "Holds" is partly where one half of a claim does.

The starter zoo ships with MergeLab: its experts were trained once, so its seeds are of routers, drawn experts and
orders. The other zoos were built from a folder of eight labelled image tasks that is not shipped, each with experts of
its own: `python -m mergelab zoo build FOLDER --tune full --epochs 4 --images 800 --seed N --out realN`.
"""


def report(files: Sequence[dict[str, Any]]) -> str:
    """Markdown: how it was measured, the table of claims, and the numbers behind some of them."""
    files = _joined(files)
    groups = {_title(file): file["runs"] for file in files}
    lines = [HEAD, *map(_how, files), "", f"| claim | {' | '.join(groups)} |", "|---" * (1 + len(groups)) + "|"]
    told: list[str] = []
    for name, claim, paper, judged in CLAIMS:
        found = {title: _judged(judged, runs) for title, runs in groups.items()}
        lines.append(f"| **{name}** {claim} | {' | '.join(v.holds for v in found.values())} |")
        told += ["", f"## {name}: {claim}" if name != "–" else f"## {claim}", "", f"The paper: {paper}.", "",
                 "| | seen | holds | why |", "|---|---|---|---|",
                 *(f"| *{title}* | {v.saw} | {v.holds} | {v.why} |" for title, v in found.items())]  # fmt: skip
    lines += told
    for title, runs in groups.items():
        lines += ["", f"## {title}: details"]
        for table in (_methods, _per_task, _ranks, _spoilt):
            try:
                lines += ["", *table(runs)]
            except Missing:
                continue
    return "\n".join(lines) + "\n"


def _joined(files: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Files of zoos that differ in their number only (a measurement made in parts) as one."""
    out: dict[str, dict[str, Any]] = {}
    for file in files:
        stem = file["runs"][0]["zoo"].rstrip("0123456789")
        if stem in out:
            out[stem] = {**out[stem], "runs": [*out[stem]["runs"], *file["runs"]]}
        else:
            out[stem] = file
    return list(out.values())


def _how(file: dict[str, Any]) -> str:
    runs, machine = file["runs"], file["machine"]
    minutes = sum(sum(run["seconds"].values()) for run in runs) / 60 / max(len(runs), 1)
    zoos = list(dict.fromkeys(run["zoo"] for run in runs))
    tune = {"full": "fully fine-tuned", "lora": "LoRA"}.get(runs[0]["tune"], runs[0]["tune"])
    what = (f"zoos {', '.join(zoos)}, experts trained anew in each" if len(zoos) > 1 else
            f"seeds {', '.join(str(r['seed']) for r in runs)} of routers and orders")  # fmt: skip
    return (
        f"- *{_title(file)}*: {len(runs[0]['experts'])} {tune} experts ({', '.join(runs[0]['experts'])}), {len(runs)} "
        f"runs ({what}), {runs[0]['limit']} test items a task, {minutes:.0f} minutes a run on {machine['threads']} "
        f"thread(s) of a busy machine, torch {machine['torch']}: `{_command(runs)}`"
    )


def _command(runs: Runs) -> str:
    zoos = list(dict.fromkeys(run["zoo"] for run in runs))
    seeds = " ".join(str(run["seed"]) for run in runs)
    return f"python tests/benchmarks/twin_claims.py --zoo {' '.join(zoos)} --seeds {seeds} --limit {runs[0]['limit']}"


def _title(file: dict[str, Any]) -> str:
    zoos = list(dict.fromkeys(run["zoo"] for run in file["runs"]))
    return zoos[0] if len(zoos) == 1 else f"{zoos[0].rstrip('0123456789')} zoos"


def _judged(judged: Callable[[Runs], Verdict], runs: Runs) -> Verdict:
    try:
        return judged(runs)
    except Missing:
        return Verdict("not measured")


def _methods(runs: Runs) -> list[str]:
    """Every model of the headline, by head policy."""
    lines = ["| model | oracle head | router's head | highest logit |", "|---|---|---|---|"]
    models = {name: ("static", name) for name in at(runs[0], "headline", "static")}
    for name, path in {**models, "twin, a tenth of the rank": ("twin",), "true task's part": ("oracle_top1",)}.items():
        cells = (percent(ratio(runs, "headline", *path, head=h)) for h in (ORACLE, ARGMAX, "max_logit"))
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return lines


def _per_task(runs: Runs) -> list[str]:
    """Absolute accuracy by task."""
    static = {n: ("static", n.replace(" ", "_")) for n in ("pretrained", "task arithmetic")}
    shown = {**static, "Twin": ("twin",), "true task's part": ("oracle_top1",)}
    lines = [f"| accuracy, router's head (oracle head) | {' | '.join(shown)} |", "|---" * (1 + len(shown)) + "|"]
    for task in runs[0]["experts"]:
        cells = [
            f"{percent(values(runs, 'headline', *path, 'tasks', task, ARGMAX))} "
            f"({percent(values(runs, 'headline', *path, 'tasks', task, ORACLE))})"
            for path in shown.values()
        ]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return lines


def _ranks(runs: Runs) -> list[str]:
    lines = ["| rank | exclusive parts, MB | B: shared + exclusive | A: base + exclusive |", "|---|---|---|---|"]
    for level in judge.LEVELS:
        size = judge.mean(values(runs, "ranks", "bytes", level)) / 1e6
        cells = (percent(ratio(runs, "ranks", side, level)) for side in "BA")
        lines.append(f"| {judge.rank(level)} | {size:.1f} | {' | '.join(cells)} |")
    return lines


def _spoilt(runs: Runs) -> list[str]:
    names = ("twin", "twin top-1", "task_arithmetic", at(runs[0], "corrupted", "other"))
    lines = [f"| pictures (accuracy, router's head) | router | {' | '.join(n.replace('_', ' ') for n in names)} |",
             "|---" * (2 + len(names)) + "|"]  # fmt: skip
    for condition in at(runs[0], "corrupted", "conditions"):
        path = ("corrupted", "conditions", condition)
        cells = [percent(values(runs, *path, "twin", "router")), *(percent(accuracy(runs, *path, n)) for n in names)]
        lines.append(f"| {condition.replace('_', ' ')} | {' | '.join(cells)} |")
    return lines

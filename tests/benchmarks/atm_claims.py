"""The training lab's claims, measured: ``python tests/benchmarks/atm_claims.py --zoo starter --seeds 0 --out DIR``.

Every measurement is a comparison of training runs in a folder of its own, resumable; ``--only NAME…`` takes some.
``--report DIR… --markdown docs/claims.md`` puts the tables into that page, worked out from the folders' documents.

- ``budget``: ATM of 10 rounds of an epoch against joint training, PCGrad, experts, and every one-shot merge of them.
- ``rounds``: the same number of epochs in 1, 2, 5 and 10 rounds.
- ``posthoc``: merges refined on validation labels in 2 rounds, with the two controls at equal labels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

from mergelab.runs.training import compare  # noqa: E402
from mergelab.training.recipe import TrainRecipe  # noqa: E402
from mergelab.zoo import open_zoo  # noqa: E402

NAMES = ("budget", "rounds", "posthoc")
EPOCHS = 10
#: The merges that are refined, with the coefficients of the zoo's builder.
STARTS = ("linear", "task_arithmetic", "ties", "tsv_m")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", default="starter", help="a zoo, by name or folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=128, help="training pictures a task")
    parser.add_argument("--limit", type=int, default=100, help="test pictures a task")
    parser.add_argument("--rate", type=float, default=1e-4, help="AdamW's, all weights")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--report", nargs="+", type=Path, help="folders to make the tables of")
    parser.add_argument("--markdown", type=Path, help="the page whose part is replaced (default: the screen)")
    told = parser.parse_args()
    if told.report:
        from atm_report import report
        from claims_page import put

        put("training", report(told.report), told.markdown)
        return
    torch.set_num_threads(told.threads)
    for seed in told.seeds:
        for name in told.only:
            started = time.process_time()
            {"budget": budget, "rounds": rounds, "posthoc": posthoc}[name](told, seed)
            sys.stderr.write(f"{name}, seed {seed}: {time.process_time() - started:.0f} s of CPU\n")


def recipe(told: argparse.Namespace, seed: int, **changes: Any) -> TrainRecipe:
    zoo = open_zoo(told.zoo)
    suite = zoo.name if told.zoo == zoo.name else str(zoo.folder)
    plain = {
        "train": "atm", "base_model": zoo.base, "suite": suite, "tasks": list(zoo.experts),
        "images": told.images, "budget": {"rounds": EPOCHS}, "watch": {"split": "test", "limit": told.limit},
        "tuning": {"tune": "full", "rate": told.rate, "batch": 32}, "seed": seed,
    }  # fmt: skip
    return TrainRecipe.from_dict({**plain, **changes})


def run(told: argparse.Namespace, made: TrainRecipe, place: str, beside: tuple[str, ...], **options: Any) -> None:
    folder = told.out / f"{open_zoo(told.zoo).name}-{made.seed}" / place

    def progress(done: int, total: int, text: str) -> None:
        if done == total or time.monotonic() - shown[0] > 60:
            shown[0] = time.monotonic()
            sys.stderr.write(f"{place}: {done}/{total} {text}\n")

    shown = [0.0]
    compare(made, folder, beside=beside, resume=True, device="cpu", progress=progress, **options)
    (folder / "about.json").write_text(json.dumps({"threads": told.threads, "torch": torch.__version__}))


def budget(told: argparse.Namespace, seed: int) -> None:
    run(told, recipe(told, seed), "budget", ("joint", "one_shot", "pcgrad"))


def rounds(told: argparse.Namespace, seed: int) -> None:
    for count in (1, 2, 5):
        made = recipe(told, seed, budget={"rounds": count, "epochs": EPOCHS // count})
        run(told, made, f"rounds-{count}", ())


def posthoc(told: argparse.Namespace, seed: int) -> None:
    zoo = open_zoo(told.zoo)
    for method in STARTS:
        start: dict[str, Any] = {
            "merge_method": method, "models": [{"model": zoo.experts[t], "name": t} for t in zoo.experts],
            "parameters": dict(zoo.tuned.get(method, {})),
        }  # fmt: skip
        if method != "linear":
            start["base_model"] = zoo.base
        made = recipe(told, seed, start=start, split="val", budget={"rounds": 2}, images=100)
        run(told, made, f"posthoc-{method}", ("joint", "alpha"))


if __name__ == "__main__":
    main()

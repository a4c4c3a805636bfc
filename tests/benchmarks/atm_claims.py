"""The training lab's claims, measured: ``python tests/benchmarks/atm_claims.py --zoo starter --seeds 0 --out DIR``.

Every measurement is a comparison of training runs in a folder of its own, resumable; ``--only NAME…`` takes some.
``--report DIR… --markdown docs/claims.md`` puts the tables into that page, worked out from the folders' documents.

- ``budget``: ATM of 10 rounds of an epoch against joint training, PCGrad, experts, and every one-shot merge of them.
- ``learned``: AdaMerging of the experts of ``budget``.
- ``rates``: ``budget`` at a third of the learning rate, with one one-shot merge.
- ``rounds``: the same number of epochs in 2 and 5 rounds (1 and 10 are in ``budget``).
- ``posthoc``: merges refined on validation labels in 5 rounds, with the two controls at equal labels.
- ``beside``: ATM, MaTS and Twin-Merging with the same labels, from the same merge.
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

NAMES = ("budget", "learned", "rates", "rounds", "posthoc", "beside")
EPOCHS = 10
LOWER = 3e-5
#: Refining starts near the end of the way, where small steps do better: AdamW's first ones are as long as its rate.
REFINING = {"rounds": 5, "rate": 3e-5, "images": 100}
#: The merges that are refined, with the coefficients of the zoo's builder.
STARTS = ("linear", "task_arithmetic", "ties", "tsv_m")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", default="starter", help="a zoo, by name or folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=128, help="training pictures a task")
    parser.add_argument("--limit", type=int, default=100, help="test pictures a task")
    parser.add_argument("--rate", type=float, default=1e-4, help="AdamW's, all weights")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS), help="merges that are refined")
    parser.add_argument("--keep-rounds", action="store_true", help="keep every round's weights, for the verb look")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--report", nargs="+", type=Path, help="folders to make the tables of")
    parser.add_argument("--figures", type=Path, help="a folder for the figures; needs matplotlib")
    parser.add_argument("--logs", type=Path, help="a folder for small copies of the starter zoo's reported files")
    parser.add_argument("--markdown", type=Path, help="the page whose part is replaced (default: the screen)")
    told = parser.parse_args()
    if told.report:
        from atm_report import gathered, keep, report
        from claims_page import put

        zoos, theorems = gathered(told.report)
        put("training", report(zoos, theorems), told.markdown)
        if told.logs:
            keep(told.report, told.logs)
        if told.figures:
            from atm_figures import draw

            draw(zoos, theorems, told.figures)
        return
    torch.set_num_threads(told.threads)
    for seed in told.seeds:
        (told.out / f"{open_zoo(told.zoo).name}-{seed}").mkdir(parents=True, exist_ok=True)
        for name in told.only:
            started = time.process_time()
            WAYS[name](told, seed)
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


def run(told: argparse.Namespace, made: TrainRecipe, place: str, beside: tuple[str, ...], **more: Any) -> None:
    folder = told.out / f"{open_zoo(told.zoo).name}-{made.seed}" / place

    def progress(done: int, total: int, text: str) -> None:
        if done == total or time.monotonic() - shown[0] > 60:
            shown[0] = time.monotonic()
            sys.stderr.write(f"{place}: {done}/{total} {text}\n")

    shown = [0.0]
    compare(made, folder, beside=beside, resume=True, device="cpu", progress=progress,
            keep_rounds=told.keep_rounds, **more)  # fmt: skip
    (folder / "about.json").write_text(json.dumps({"threads": told.threads, "torch": torch.__version__}))


def budget(told: argparse.Namespace, seed: int) -> None:
    run(told, recipe(told, seed), "budget", ("joint", "one_shot", "pcgrad"))


def learned(told: argparse.Namespace, seed: int) -> None:
    import atm_learned

    place = told.out / f"{open_zoo(told.zoo).name}-{seed}"
    atm_learned.adamerged(told.zoo, place / "budget", seed, told.limit, place / "learned.json")


def rates(told: argparse.Namespace, seed: int) -> None:
    made = recipe(told, seed, tuning={"tune": "full", "rate": LOWER, "batch": 32})
    run(told, made, f"rates-{LOWER:g}", ("joint", "one_shot"), methods=("tsv_m",))


def rounds(told: argparse.Namespace, seed: int) -> None:
    """Of one round and of ten, ``budget`` has the numbers: one round is the average of experts trained as long."""
    for count in (2, 5):
        made = recipe(told, seed, budget={"rounds": count, "epochs": EPOCHS // count})
        run(told, made, f"rounds-{count}", ())


def posthoc(told: argparse.Namespace, seed: int) -> None:
    for method in told.starts:
        run(told, refining(told, seed, method), f"posthoc-{method}", ("joint", "alpha"))


def refining(told: argparse.Namespace, seed: int, method: str) -> TrainRecipe:
    """ATM from a merge of the zoo's experts on validation labels; which round is the result, held ones say."""
    zoo = open_zoo(told.zoo)
    start: dict[str, Any] = {
        "merge_method": method, "models": [{"model": zoo.experts[t], "name": t} for t in zoo.experts],
        "parameters": dict(zoo.tuned.get(method, {})),
    }  # fmt: skip
    if method != "linear":
        start["base_model"] = zoo.base
    tuning = {"tune": "full", "rate": REFINING["rate"], "batch": 32}
    return recipe(told, seed, start=start, split="val", keep="best", budget={"rounds": REFINING["rounds"]},
                  images=REFINING["images"], tuning=tuning)  # fmt: skip


def beside(told: argparse.Namespace, seed: int) -> None:
    import atm_beside

    zoo = open_zoo(told.zoo)
    found = atm_beside.beside(told.zoo, refining(told, seed, atm_beside.SHARED), told.limit)
    (told.out / f"{zoo.name}-{seed}" / "beside.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


WAYS = {"budget": budget, "learned": learned, "rates": rates, "rounds": rounds, "posthoc": posthoc, "beside": beside}


if __name__ == "__main__":
    main()

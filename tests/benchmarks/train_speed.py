"""What the trainer costs beside a bare loop, what merging costs of a round, what two workers gain:
``python tests/benchmarks/train_speed.py [--images 256] [--turns 5] [--out FILE]``.

All on the base of the starter zoo. The bare loop does the same arithmetic in plain PyTorch: the same batches, the same
clipped AdamW steps. Loops and worker counts take turns in one run; ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from mergelab.executor import executor_of  # noqa: E402
from mergelab.runs.training import train  # noqa: E402
from mergelab.training.ground import Ground  # noqa: E402
from mergelab.training.recipe import TrainRecipe  # noqa: E402
from mergelab.training.trainer import Trainer, order_of  # noqa: E402

TASKS = ("mnist", "textures", "shapes", "fashion")


def recipe(images: int, tune: str, **changes: Any) -> TrainRecipe:
    told = {
        "train": "atm", "base_model": "zoo:starter/base", "suite": "starter", "tasks": list(TASKS), "images": images,
        "budget": {"rounds": 1}, "tuning": {"tune": tune, "batch": 32, "rate": 1e-4}, "watch": {"split": "none"},
    }  # fmt: skip
    return TrainRecipe.from_dict({**told, **changes})


def trainer_against_bare_loop(images: int, turns: int) -> dict[str, Any]:
    """Samples a second of an epoch, full fine-tuning in float32, one thread."""
    torch.set_num_threads(1)
    told = recipe(images, "full")
    ground = Ground(told, "cpu")
    lesson, learner = ground.lesson(TASKS[0]), ground.learner
    names = ground.trained()
    own = ground.model.weights.tensors
    start = {name: own[name].clone() for name in names}
    steps = -(-len(lesson) // told.tuning.batch)
    order = order_of(lesson, told.tuning, steps)

    def ours() -> float:
        with Trainer(learner, [lesson], told.tuning, start, epochs=1) as trainer:
            began = time.perf_counter()
            trainer.run(0, steps)
            return time.perf_counter() - began

    def bare() -> float:
        learner.load(start)
        module, wanted = learner.module, set(names)
        parameters = []
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in wanted)
            parameters += [parameter] if name in wanted else []
        optimiser = torch.optim.AdamW(parameters, lr=told.tuning.tower_rate, weight_decay=told.tuning.weight_decay)
        weight, bias = lesson.head.weight.float(), lesson.head.bias
        module.train()
        began = time.perf_counter()
        for step in range(steps):
            places = order.places(step)
            pixels = ground.model.pixels(lesson.inputs[places])  # type: ignore[index]
            logits = ground.model.through(module, pixels) @ weight.T + (0 if bias is None else bias)
            loss = functional.cross_entropy(logits, lesson.labels[places])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, told.tuning.clip or float("inf"))
            optimiser.step()
        seconds = time.perf_counter() - began
        module.eval()
        return seconds

    bare(), ours()  # the first of each allocates
    pairs = [(bare(), ours()) for _ in range(turns)]
    plain, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"bare": len(lesson) / plain, "trainer": len(lesson) / mine, "ratio": plain / mine, "turns": turns}


def rounds_with_workers(images: int, turns: int) -> dict[str, Any]:
    """Seconds of a round's experts with one and two workers of one thread each, the processes started beforehand; and
    the share of a round that aggregating takes."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    shares = []
    told = recipe(images, "full", budget={"rounds": 2})
    with executor_of("local", 1, 1) as one, executor_of("local", 2, 1) as two, tempfile.TemporaryDirectory() as where:
        for turn in range(turns):
            for count, executor in ((1, one), (2, two)):
                record = train(told, Path(where) / f"{count}-{turn}", executor=executor, device="cpu")
                last = record.rounds[-1]  # the first round of a worker loads the model and the data
                seconds[count].append(last["seconds"])
                if count == 1:
                    shares.append(last["aggregate_seconds"] / last["seconds"])
    medians = {count: statistics.median(found) for count, found in seconds.items()}
    return {"one": medians[1], "two": medians[2], "ratio": medians[1] / medians[2],
            "aggregate_share": statistics.median(shares), "turns": turns}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="pictures a task")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    found = {"torch": torch.__version__, "cores": os.cpu_count(), "load": os.getloadavg()[0],
             "trainer": trainer_against_bare_loop(told.images, told.turns)}  # fmt: skip
    sys.stderr.write(json.dumps(found["trainer"]) + "\n")
    found["workers"] = rounds_with_workers(told.images, max(2, told.turns // 2))
    text = json.dumps(found, indent=1)
    told.out.write_text(text, encoding="utf-8") if told.out else None
    print(text)


if __name__ == "__main__":
    main()

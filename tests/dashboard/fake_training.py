"""Training by formula: accuracies that rise with the rounds, so that a test knows what must be shown."""

from __future__ import annotations

import json
import threading

import torch

from mergelab.errors import TaskError
from mergelab.progress import Stop
from mergelab.runs.training import Record
from mergelab.runs.training.compare import table
from mergelab.training.recipe import TrainRecipe

TITLES = {"mnist": "MNIST", "fashion": "Fashion", "emoji": "Emoji", "shapes": "Shapes"}
EXPERT, BASE = 0.9, 0.2


def accuracy(number: int, place: int, bonus: float = 0.0) -> float:
    """Of the place-th task after a round: halfway to 0.8 in every round."""
    return round(0.8 - (0.8 - BASE) * 0.5**number - 0.01 * place * (number > 0) + bonus * (number > 0), 4)


def record(recipe: TrainRecipe, rounds: int, bonus: float = 0.0) -> Record:
    """What a run has written after so many of its rounds."""
    tasks = recipe.tasks
    found = Record(recipe, tasks, {t: TITLES[t] for t in tasks}, data_used="8 labelled <training> pictures a task")
    found.watch = {"split": "test", "items": dict.fromkeys(tasks, 40)}
    found.references = {"base": dict.fromkeys(tasks, BASE), "experts": dict.fromkeys(tasks, EXPERT)}
    each, apart = 8 * recipe.budget.epochs * len(tasks), recipe.train == "experts"
    for number in range(rounds + 1):
        scores = {t: accuracy(number, i, bonus) for i, t in enumerate(tasks)}
        found.points.append({"round": number, "epochs": float(number * recipe.budget.epochs), "seconds": 2.0 * number,
                             "samples": number * each, "accuracy": scores,
                             "loss": {t: 1 - s for t, s in scores.items()}})  # fmt: skip
        if not number:
            continue
        names = ("all",) if recipe.train == "joint" else tasks
        log = {"start_loss": 2.0 / number, "samples": each // len(names), "seconds": 1.5, "wall": 2.0, "items": {},
               "epochs": [{"losses": dict.fromkeys(tasks if names == ("all",) else (), 1.25), "norm": 7.5,
                           "moved": 0.5, "samples": 8, "seconds": 1.5}]}  # fmt: skip
        round_ = {"round": number, "courses": dict.fromkeys(names, log), "seconds": 2.0, "from_start": 1.0}
        if recipe.train != "joint":
            lie = [[1.0 if i == j else 0.1 * number for j in range(len(tasks))] for i in range(len(tasks))]
            round_ |= {"cosines": lie, "norms": dict.fromkeys(tasks, 0.5 / number)}
        found.rounds.append(round_)
    found.costs = {"samples": rounds * each, "training_seconds": 3.0 * rounds, "wall_seconds": 4.0 * rounds,
                   "peak_bytes": 2 * 10**9, "sent_bytes": 0 if apart else 10**6, "stored_bytes": 10**6}  # fmt: skip
    found.status, found.chosen = "running", rounds
    return found


def document(recipe: TrainRecipe, beside: tuple[str, ...] = ("joint",), rounds: int | None = None) -> dict:
    """A comparison that has ended."""
    rounds = recipe.budget.rounds if rounds is None else rounds
    runs = {recipe.train: record(recipe, rounds)}
    for kind in beside:
        if kind in ("joint", "pcgrad"):
            runs[kind] = record(recipe.replace(train="joint", aggregation=type(recipe.aggregation)()), rounds, 0.05)
    merges = [
        {"epochs": 1.0, "method": method, "parameters": {} if method == "mean" else {"alpha": alpha}, "tuned": tuned,
         "accuracy": dict.fromkeys(recipe.tasks, score), "loss": dict.fromkeys(recipe.tasks, 1.0)}
        for method, alpha, tuned, score in (("mean", 1.0, False, 0.3), ("ties", 1.0, False, 0.25),
                                            ("ties", 1.4, True, 0.4))
    ]  # fmt: skip
    for one in runs.values():
        one.status = "done"
    found = {"format": "mergelab-training-compare/1", "title": "Recorded <run>", "hash": recipe.hash,
             "runs": {kind: one.to_dict() for kind, one in runs.items()},
             "merges": merges if "one_shot" in beside else [], "table": []}  # fmt: skip
    return {**found, "table": table(found)}


class FakeTraining:
    """In the place of a ``TrainBench``. A round goes on once ``gate`` lets it."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.calls: list[tuple] = []
        self.fails: Exception | None = None

    def estimate(self, recipe, beside):
        self.calls.append(("estimate", recipe.hash))
        return {"samples": 1536, "items": dict.fromkeys(recipe.tasks, 8), "seconds": 61.0, "rounds": 2,
                "tasks": len(recipe.tasks), "memory_bytes": 4 * 10**8, "sent_bytes": 7 * 10**8, "disk_bytes": 10**9,
                "stored_bytes": 10**7, "parts": 1 + len(beside)}  # fmt: skip

    def compare(self, recipe, folder, beside, *, resume, news, progress, stop: Stop):
        self.calls.append(("compare", resume))
        folder.mkdir(exist_ok=True)
        kept = folder / "rounds.txt"
        done = int(kept.read_text()) if resume and kept.is_file() else 0
        for number in range(done, recipe.budget.rounds + 1):
            while number and not self.gate.acquire(timeout=0.02):
                stop.check()
            if self.fails:
                raise self.fails
            progress(number, recipe.budget.rounds, f"{recipe.train}: round {number} of {recipe.budget.rounds}")
            made = document(recipe, (), number)
            made["runs"][recipe.train]["status"] = "running"
            (folder / "compare.json").write_text(json.dumps({**made, "table": []}))
            kept.write_text(str(number))
            news(recipe.train, record(recipe, number), {"w": torch.full((2,), float(number))})
        made = document(recipe, beside)
        (folder / "compare.json").write_text(json.dumps(made))
        return made

    def evaluate(self, state, per_task, progress=None, stop=None):
        score = accuracy(int(state["w"][0]), 0)
        tasks = {name: {"seen": True, "n": per_task or 500, "accuracy": score, "interval": [score, score],
                        "normalised": score / EXPERT} for name in TITLES}  # fmt: skip
        return {"suite": "starter", "source": "", "tasks": tasks, "data_used": "heads", "seconds": 0.1,
                "seen": {"accuracy": score, "normalised": score / EXPERT},
                "unseen": {"accuracy": None, "normalised": None}}  # fmt: skip

    def predict(self, state, picture):
        if picture["task"] not in TITLES:
            raise TaskError("no head")
        return {"classes": ["alpha", "<beta>"], "probabilities": [0.75, 0.25]}

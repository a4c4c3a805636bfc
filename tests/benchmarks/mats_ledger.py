"""What merging with a little data costs, command by command, beside joint training: ``mats_ledger.py --zoo FOLDER``.

Every row is a command of its own (`python -m mergelab …`, or this file with ``--joint``), run one after the other: wall
and CPU seconds, the largest resident memory of the process, what data it saw, and the accuracy of what came out on the
same test items. ``--markdown docs/claims.md`` puts the table into that page.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

from mergelab.models import build  # noqa: E402
from mergelab.tasks import load_suite, subset_indices  # noqa: E402
from mergelab.tasks.evaluate import items  # noqa: E402
from mergelab.training.finetune import Settings, finetune  # noqa: E402
from mergelab.zoo import open_zoo  # noqa: E402

MERGELAB = [sys.executable, "-m", "mergelab"]
#: method -> (title, its parameters, what it starts from, what it needs)
MERGES: dict[str, tuple[str, dict[str, Any], bool, str]] = {
    "linear": ("average", {}, False, "none"),
    "task_arithmetic": ("task arithmetic", {}, False, "none"),
    "fisher": ("Fisher merging", {}, False, "statistics"),
    "regmean": ("RegMean", {}, False, "statistics"),
    "mats": ("MaTS, 10 iterations", {"objective": "kfac", "iterations": 10}, True, "statistics"),
    "regmean_pp": ("RegMean++", {}, False, "its own, 256 unlabelled a task"),
    "adamerging": ("AdaMerging, layer-wise, 100 steps", {}, False, "its own, unlabelled"),
}


def run(command: list[str], cwd: Path) -> dict[str, Any]:
    """Wall and CPU seconds and the largest resident memory of a command that must succeed."""
    with tempfile.TemporaryFile("w+") as out:
        started = time.perf_counter()
        child = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=subprocess.STDOUT,
                                 env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        out.seek(0)
        text = out.read()
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{text[-2000:]}")
    return {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss * 1024, "text": text}


def accuracy(place: Path, folder: str, suite: str, limit: int, more: list[str]) -> float:
    told = run([*MERGELAB, "evaluate", folder, "--suite", suite, "--limit", str(limit), "--json", *more], place)
    found = json.loads(told["text"][told["text"].index("{") :])
    seen = [task["accuracy"] for task in found["tasks"].values() if task.get("seen", True)]
    return float(np.mean(seen))


def ledger(zoo_name: str, limit: int, examples: int, joint: dict[str, str]) -> dict[str, Any]:
    zoo = open_zoo(zoo_name)
    suite = str(zoo.folder)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mergelab-ledger-") as where:
        place = Path(where)

        def row(title: str, data: str, command: list[str], out: str | None, more: tuple[str, ...] = ()) -> None:
            told = run([*MERGELAB, *command], place)
            found = accuracy(place, out, suite, limit, list(more)) if out else None
            said = " ".join(["mergelab", *command]).replace(suite, zoo.name)
            rows.append({"title": title, "data": data, "accuracy": found, "command": said,
                         **{k: told[k] for k in ("seconds", "cpu", "memory")}})  # fmt: skip
            sys.stderr.write(f"{title}: {told['seconds']:.1f} s, {found}\n")

        experts = [f"--expert={t}={zoo.experts[t]}" for t in zoo.experts]
        source = f"zoo:{zoo.name}" if zoo_name == zoo.name else str(zoo.folder)
        row(
            "statistics (K-FAC, diagonal)",
            f"{examples} labelled a task",
            ["stats", source, "--kinds", "kfac,diag", "--examples", str(examples), "--out", "stats"],
            None,
        )
        for method, (title, parameters, started, data) in MERGES.items():
            document = {
                "merge_method": method, "base_model": str(zoo.base), "suite": suite,
                "models": [{"model": str(zoo.experts[t]), "name": t} for t in zoo.experts],
                "parameters": parameters or zoo.tuned.get(method, {}),
            }  # fmt: skip
            if started:
                start = {"merge_method": "task_arithmetic", "parameters": zoo.tuned["task_arithmetic"]}
                document |= {"init": start}
            if data == "statistics":
                document["statistics"] = "stats"
            (place / f"{method}.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
            row(title, data, ["merge", f"{method}.yaml", "--out", method], method)
        row(
            "Surgery on task arithmetic",
            "256 unlabelled a task; the task id",
            ["surgery", "task_arithmetic", "--suite", suite, "--out", "surgery.safetensors", *experts],
            "task_arithmetic",
            ("--surgery", "surgery.safetensors"),
        )
        row(
            "FeatCal on task arithmetic",
            "256 unlabelled a task",
            ["calibrate", "task_arithmetic", "--suite", suite, "--out", "calibrated", *experts],
            "calibrated",
        )
        for tune, images in joint.items():
            command = [sys.executable, str(Path(__file__).resolve()), "--joint", tune, "--images", images,
                       "--zoo", suite, "--limit", str(limit)]  # fmt: skip
            told = run(command, place)
            found = json.loads(told["text"].strip().splitlines()[-1])
            rows.append({"title": f"joint training ({tune}, {found['epochs']} epochs)",
                         "data": f"{images} labelled a task, together", "accuracy": found["accuracy"],
                         "command": f"mats_ledger.py --joint {tune} --images {images}",
                         **{k: told[k] for k in ("seconds", "cpu", "memory")}})  # fmt: skip
            sys.stderr.write(f"joint: {told['seconds']:.1f} s, {found}\n")
            shutil.rmtree(place / "none", ignore_errors=True)
    return {"format": "mergelab-ledger/1", "zoo": zoo.name, "tune": zoo.tune, "limit": limit, "rows": rows,
            "threads": torch.get_num_threads(), "torch": torch.__version__}  # fmt: skip


def train_jointly(zoo_name: str, tune: str, images: int, limit: int, epochs: int = 4) -> dict[str, Any]:
    """One model for all tasks: their training pictures mixed, one head over all their classes, read task by task."""
    zoo = open_zoo(zoo_name)
    suite = load_suite(zoo.folder)
    tasks = [suite[name] for name in zoo.experts]
    model = build(zoo.base, device="cpu")
    offsets = np.cumsum([0, *(len(task.classes) for task in tasks)])
    pictures, labels = [], []
    for task, offset in zip(tasks, offsets, strict=False):
        x, y = task.split("train")
        places = subset_indices(task, "train", images, 0)
        pictures.append(x[places].numpy())
        labels.append(y[places].numpy() + offset)

    def features(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model.through(module, model.pixels(x))

    settings = Settings(tune=tune, epochs=epochs, rank=8)
    done = finetune(model.module, features, np.concatenate(pictures), np.concatenate(labels),
                    classes=int(offsets[-1]), settings=settings)  # fmt: skip
    scores = {}
    with torch.no_grad():
        for task, offset in zip(tasks, offsets, strict=False):
            x, y, _ = items(task, "test", limit, 0)
            own = slice(int(offset), int(offset) + len(task.classes))
            guess = (features(done.module, x) @ done.weight[own].T + done.bias[own]).argmax(-1)
            scores[task.name] = float((guess == y).float().mean())
    return {"accuracy": float(np.mean(list(scores.values()))), "tasks": scores, "samples": done.samples,
            "epochs": epochs}  # fmt: skip


def table(found: dict[str, Any]) -> list[str]:
    """The ledger in Markdown."""
    lines = [f"`python tests/benchmarks/mats_ledger.py --zoo {found['zoo']} --limit {found['limit']}`: {found['zoo']} "
             f"({found['tune']}), {found['threads']} threads, torch {found['torch']}. The recipes are those of "
             "`assets/recipes` over this zoo, λ its builder's. A method of statistics costs its own row and theirs.",
             "",
             "| what | data | seconds | CPU seconds | peak memory, GB | accuracy, % | command |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in found["rows"]:
        score = "–" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
        command = row["command"] if len(row["command"]) < 90 else row["command"][:87] + "…"
        lines.append(f"| {row['title']} | {row['data']} | {row['seconds']:.0f} | {row['cpu']:.0f} | "
                     f"{row['memory'] / 1e9:.1f} | {score} | `{command}` |")  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", default="starter", help="a zoo by name or folder")
    parser.add_argument("--limit", type=int, default=100, help="test items a task")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--joint", metavar="TUNE", help="only train jointly: full, lora or ia3")
    parser.add_argument("--images", type=int, default=800, help="training pictures a task of the joint training")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--report", nargs="+", type=Path, help="JSON files to make the tables of")
    parser.add_argument("--markdown", type=Path, help="the page whose part is replaced (default: the screen)")
    told = parser.parse_args()
    if told.report:
        from claims_page import put

        parts = [table(json.loads(path.read_text(encoding="utf-8"))) for path in told.report]
        text = "# What it costs\n\n" + "\n\n".join("\n".join(lines) for lines in parts) + "\n"
        put("ledger", text, told.markdown)
    elif told.joint:
        print(json.dumps(train_jointly(told.zoo, told.joint, told.images, told.limit)))
    else:
        tune = open_zoo(told.zoo).tune
        found = ledger(told.zoo, told.limit, told.examples, {tune: str(told.images)})
        text = json.dumps(found, indent=1)
        told.out.write_text(text, encoding="utf-8") if told.out else sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()

"""How close MaTS comes to the time of its matrix products: ``python tests/benchmarks/mats_speed.py [--quick]``.

Ten K-FAC iterations of conjugate gradients over all blocks of a vision transformer with eight experts, against the same
number of products Σ G_m V A_m by ``torch.matmul`` alone (the floor), in turns in one run: the ratio is what counts,
seconds depend on the machine. Statistics are random PSD matrices in memory; layers share one layer's, since no
cache holds them anyway. Also: closed-form RegMean, and the peak of resident memory with statistics read from disk.

Where FusionBench is installed in the environment that runs this (0.2.33 is what was compared), its RegMean is timed on
the same Grams, and its result is compared with ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
#: width, MLP width, layers
MODELS = {"ViT-S/14": (384, 1536, 12), "CLIP ViT-B/32": (768, 3072, 12)}
EXPERTS, ITERATIONS = 8, 10
INIT = {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.15}}


def layer_shapes(wide: int, mlp: int) -> dict[str, tuple[int, int]]:
    """Name -> [out, in] of the linear weights of one layer."""
    square = {f"attention.{name}.weight": (wide, wide) for name in ("query", "key", "value", "output")}
    return {**square, "mlp.fc1.weight": (mlp, wide), "mlp.fc2.weight": (wide, mlp)}


class Case:
    """Random-walk experts of one base, random statistics, ready to merge."""

    def __init__(self, model: str, layers: int) -> None:
        import torch

        from mergelab.statistics import Block, TaskStatistics

        self.model = model
        wide, mlp, _ = MODELS[model]
        random = torch.Generator().manual_seed(0)

        def psd(size: int) -> Any:
            rows = torch.randn(size + size // 4, size, generator=random)
            return rows.T @ rows / len(rows)

        one = layer_shapes(wide, mlp)
        self.shapes = {f"layer.{i}.{name}": shape for i in range(layers) for name, shape in one.items()}
        self.extra = {f"layer.{i}.bias": (wide,) for i in range(layers)}
        every = {**self.shapes, **self.extra}
        self.base = {name: torch.randn(shape, generator=random) * 0.05 for name, shape in every.items()}
        self.experts = {
            f"task{m}": {name: w + 0.005 * torch.randn(w.shape, generator=random) for name, w in self.base.items()}
            for m in range(EXPERTS)
        }
        self.statistics = {}
        for name in self.experts:
            shared = {side: psd(side) for side in (wide, mlp)}  # inputs
            blocks = {
                key: Block(shared[shape[1]], psd(shape[0])[None], rows=1000, layout="linear", shape=shape)
                for key, shape in one.items()
            }
            whole = {f"layer.{i}.{key}": block for i in range(layers) for key, block in blocks.items()}
            self.statistics[name] = TaskStatistics(name, whole, fisher="empirical", split="val", examples=256)
        self.pairs = {
            key: [(b.outputs[0], b.inputs) for b in (s.block(key) for s in self.statistics.values())]  # type: ignore
            for key in self.shapes
        }

        self.mats_plan = self.plan("mats", {"iterations": ITERATIONS, "rtol": 1e-14}, INIT)
        self.regmean_plan = self.plan("regmean", {"off_diagonal": 0.9})

    def plan(self, method: str, parameters: dict[str, Any], init: Any = None) -> Any:
        from mergelab.engine import plan

        return plan(method, self.experts, self.base, parameters, statistics=self.statistics, init=init)

    def ours(self) -> None:
        from mergelab.engine import stream

        for _ in stream(self.mats_plan, device="cpu"):
            pass

    def floor(self) -> None:
        """The products alone, as large as they get: two for each model and block, all cores on each."""
        import torch

        for key in self.shapes:
            v = self.base[key]
            for _ in range(ITERATIONS):
                for g, a in self.pairs[key]:
                    torch.matmul(torch.matmul(g, v), a)

    def regmean(self) -> None:
        from mergelab.engine import stream

        for _ in stream(self.regmean_plan, device="cpu"):
            pass

    def products(self) -> float:
        """Floating-point operations of the floor."""
        each = sum(2 * out * wide * (out + wide) for out, wide in self.shapes.values())
        return float(EXPERTS * ITERATIONS * each)


Times = dict[str, list[tuple[float, float]]]


def alternate(rounds: int, **runs: Callable[[], None]) -> Times:
    """(seconds, seconds of all cores) of each, in turns, so that a slow minute of the machine meets all alike."""
    times: Times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - started, time.process_time() - cpu))
    return times


def ratio(times: Times, above: str, below: str) -> dict[str, float]:
    """The median ratio over rounds, of the clock's seconds and of the cores'."""
    pairs = list(zip(times[above], times[below], strict=True))
    return {
        what: round(statistics.median(a[i] / b[i] for a, b in pairs), 3) for i, what in enumerate(("clock", "cores"))
    }


def said(values: list[tuple[float, float]]) -> dict[str, float]:
    clock = [seconds for seconds, _ in values]
    found = {"median": statistics.median(clock), "least": min(clock), "most": max(clock)}
    found["cores"] = statistics.median(cores for _, cores in values)
    return {name: round(value, 3) for name, value in found.items()}


def fusion_regmean(case: Case) -> Callable[[], None] | None:
    """FusionBench's own closed form on the same Grams, from its installed code; None where it is not installed."""
    try:
        from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
    except ImportError:
        return None
    import torch

    values = {name: [expert[name] for expert in case.experts.values()] for name in case.base}
    grams = [
        {key.removesuffix(".weight"): s.block(key, ["gram"]).inputs for key in case.shapes}  # type: ignore[union-attr]
        for s in case.statistics.values()
    ]

    def merge() -> None:
        with torch.no_grad():
            merging_with_regmean_weights(values, grams, reduce_non_diagonal_ratio=0.9)

    return merge


MEMORY = """
import json, sys
sys.path.insert(0, {here!r})
from mats_speed import resident
print(json.dumps(resident({folder!r})))
"""


def resident(folder: str) -> dict[str, float]:
    """Peak resident bytes during a merge whose models and statistics lie on disk, above those before it."""
    import psutil

    from mergelab.engine import merge_to_folder, plan
    from mergelab.engine.needs import statistics_bytes

    place, process = Path(folder), psutil.Process()
    models = {path.name: str(path) for path in sorted((place / "experts").iterdir())}
    made = plan("mats", models, str(place / "base"), {"iterations": 2}, statistics=place / "statistics", init=INIT)
    before = most = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    merge_to_folder(made, place / "out", device="cpu")
    done.set()
    watcher.join()
    largest = max(statistics_bytes(made, item) for item in made.items)
    found = {"peak": most - before, "largest_block": largest, "above": most - before - largest}
    return {f"{name}_GB": value / 1e9 for name, value in found.items()}


def memory(model: str) -> dict[str, float]:
    """`resident` of two layers in a process of its own."""
    import torch

    from mergelab.checkpoints import load, write
    from mergelab.statistics import TaskStatistics
    from mergelab.statistics import write as write_statistics

    case = Case(model, 2)
    with tempfile.TemporaryDirectory() as temp:
        place = Path(temp)
        for name, state in {"base": case.base, **case.experts}.items():
            entries = {key: ("F32", tuple(tensor.shape)) for key, tensor in state.items()}
            out = place / ("base" if name == "base" else f"experts/{name}")
            write(out, state.items(), entries, config=None)
            if name != "base":
                s = case.statistics[name]
                blocks = {key: s.block(key) for key in s.names}
                made = TaskStatistics(name, blocks, weights_hash=load(str(out)).weights_hash, fisher="empirical",
                                      split="val", examples=256)  # fmt: skip
                write_statistics(made, place / "statistics" / f"{name}.safetensors")
        del case, torch
        code = MEMORY.format(here=str(Path(__file__).parent), folder=str(place))
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    return {key: round(value, 3) for key, value in json.loads(done.stdout.strip().splitlines()[-1]).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, few layers, ViT-S/14 only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["ours", "regmean"], help="MaTS and its floor, or RegMean; no memory")
    parser.add_argument("--layers", type=int, help="layers of each model (default: 12 of ViT-S/14, 2 of CLIP ViT-B/32)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import torch

    from mergelab.cores import share_cores

    share_cores()
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    found: dict[str, Any] = {}
    for model in ["ViT-S/14"] if arguments.quick else list(MODELS):
        layers = arguments.layers or (2 if arguments.quick else 12 if model == "ViT-S/14" else 2)
        case = Case(model, layers)
        runs: dict[str, Callable[[], None]] = {}
        theirs = None
        if arguments.only != "regmean":
            runs |= {"ours": case.ours, "floor": case.floor}
        if arguments.only != "ours":
            runs["regmean"] = case.regmean
            theirs = fusion_regmean(case)
        if theirs is not None:
            runs["fusion_regmean"] = theirs
        times = alternate(1 if arguments.quick else arguments.rounds, **runs)
        row: dict[str, Any] = {"layers": layers, **{name: said(values) for name, values in times.items()}}
        if "floor" in times:
            row["floor_GFLOPS"] = round(case.products() / row["floor"]["least"] / 1e9, 1)
            row["ours_over_floor"] = ratio(times, "ours", "floor")
        if theirs is not None:
            row["fusion_over_regmean"] = ratio(times, "fusion_regmean", "regmean")
        del case
        if arguments.only is None:
            row["memory"] = memory(model)
        found[model] = row
        print(model, json.dumps(row))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

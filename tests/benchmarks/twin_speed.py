"""What merging per input costs: ``python tests/benchmarks/twin_speed.py [--device cpu] [--inputs 1000] [--json FILE]``.

A routed model on CLIP ViT-B/32's image tower with 8 experts (random weights: only the shapes matter here), batches of
64 inputs of mixed tasks. Everything is compared side by side in one run: rounds alternate between the ways, and each
figure is a ratio to the plain pass of the same round, the median of the rounds beside the smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

from mergelab.models import Model, build  # noqa: E402
from mergelab.routing.compression import Compression  # noqa: E402
from mergelab.routing.decompose import decompose  # noqa: E402
from mergelab.routing.modes import GroupSettings, Runner  # noqa: E402
from mergelab.routing.routed import RoutedModel  # noqa: E402
from mergelab.routing.routers import RouterSettings, train_router  # noqa: E402
from mergelab.routing.truncate import low_rank, singular  # noqa: E402

TASKS, LAYER = 8, 3


def tower(device: str, small: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """CLIP ViT-B/32's image tower: its configuration, and random weights in float32."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=512,
                              num_hidden_layers=2 if small else 12, image_size=224, patch_size=32)  # fmt: skip
    torch.manual_seed(0)
    module = CLIPVisionModelWithProjection(config)
    found = config.to_dict() | {"architectures": ["CLIPVisionModelWithProjection"]}
    return found, {name: t.detach() for name, t in module.state_dict().items()}


def experts(shared: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Experts whose difference has a falling spectrum, as fine-tuning leaves it, and full rank."""
    out = {}
    for t in range(TASKS):
        generator = torch.Generator().manual_seed(t + 1)
        state = {}
        for name, tensor in shared.items():
            if not tensor.is_floating_point():
                state[name] = tensor
                continue
            delta = 1e-3 * torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2:
                flat = delta.view(tensor.shape[0], -1)
                u = torch.randn(flat.shape[0], 16, generator=generator) * torch.logspace(0, -1, 16)
                flat += 2e-3 * u @ torch.randn(16, flat.shape[1], generator=generator)
            state[name] = tensor + delta
        out[f"task{t}"] = state
    return out


def alternate(ways: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each way in every round, in turns, after one round to warm up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            _sync(device)
            started = time.perf_counter()
            way()
            _sync(device)
            if turn:
                found[name].append(time.perf_counter() - started)
    return found


def ratio(found: dict[str, list[float]], name: str, to: str = "plain", scale: float = 1.0) -> dict[str, float]:
    pairs = [scale * a / b for a, b in zip(found[name], found[to], strict=True)]
    return {"median": statistics.median(pairs), "low": min(pairs), "high": max(pairs)}


def _sync(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _pictures(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def _weights(count: int) -> torch.Tensor:
    return torch.softmax(3 * torch.randn(count, TASKS, generator=torch.Generator().manual_seed(4)), 1)


def passes(model: Model, routed: RoutedModel, options: argparse.Namespace) -> dict[str, Any]:
    """One batch with its weights given: adapter and per_input against the plain pass of the shared model."""
    pixels = model.pixels(_pictures(options.batch))
    rows = _weights(options.batch).to(model.device)
    runners = {rank: Runner(routed.at_rank(rank), model) for rank in (8, 1)}
    few = options.few
    images = _pictures(few)

    def plain() -> None:
        with torch.inference_mode():
            model.through(model.module, pixels)

    def adapter(rank: int) -> None:
        module = runners[rank].rows()
        with torch.inference_mode(), module.weights(rows):
            model.through(module.module, pixels)

    ways = {"plain": plain, "adapter rank 8": lambda: adapter(8), "adapter rank 1": lambda: adapter(1)}
    found = alternate(ways, options.rounds, options.device)
    slow = alternate(
        {"adapter rank 8": ways["adapter rank 8"],
         "per_input rank 8": lambda: runners[8].run(images, rows[:few].cpu(), "per_input")},
        max(2, options.rounds // 3), options.device,
    )  # fmt: skip
    return {
        "plain pass, seconds a batch": statistics.median(found["plain"]),
        "adapter rank 8 / plain": ratio(found, "adapter rank 8"),
        "adapter rank 1 / plain": ratio(found, "adapter rank 1"),
        "per_input / adapter, rank 8": ratio(slow, "per_input rank 8", "adapter rank 8", options.batch / few),
    }


def end_to_end(model: Model, routed: RoutedModel, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that a stream of inputs needs, router included, against one plain pass over the same inputs."""
    pool = _pictures(256)
    images = torch.cat([pool] * (options.inputs // 256 + 1))[: options.inputs].clone()
    images[:, :8, :8] = torch.randint(0, 256, (options.inputs, 8, 8, 3), dtype=torch.uint8)
    runner = Runner(routed.at_rank(8), model)
    runner.rows()
    seen: dict[str, Any] = {}

    def run(mode: str) -> None:
        ran = runner.run(images, None, mode, grouping=GroupSettings(), batch=options.batch)
        seen[mode] = {"merges": ran.merges, "phases": {k: round(v, 2) for k, v in ran.seconds.items()}}

    ways: dict[str, Callable[[], Any]] = {"plain": lambda: model.encode(images, options.batch)}
    ways |= {mode: (lambda m=mode: run(m)) for mode in ("adapter", "group", "one_pass")}
    found = {name: [] for name in ways}
    for _ in range(options.stream_rounds):
        for name, way in ways.items():
            _sync(options.device)
            started = time.perf_counter()
            way()
            _sync(options.device)
            found[name].append(time.perf_counter() - started)
    return {
        "inputs": options.inputs,
        "plain, seconds": statistics.median(found["plain"]),
        **{f"end to end, {mode} / plain": {**ratio(found, mode), **seen[mode]} for mode in list(ways)[1:]},
    }


def decomposition(shared: dict[str, torch.Tensor], them: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Rank-8 factors against full decompositions of the same matrices; the error against the optimum."""
    names = [n for n, t in shared.items() if t.ndim == 2 and "layers.0." in n]
    matrices = [them[task][n] - shared[n] for task in them for n in names][: options.matrices]
    worst = 0.0

    def quick() -> None:
        for matrix in matrices:
            low_rank(matrix, 8)

    def full() -> None:
        nonlocal worst
        for matrix in matrices:
            _, s, _ = singular(matrix)
            u, k, v = low_rank(matrix, 8)
            error = float((matrix - (u * k) @ v).norm() / s[8:].norm())
            worst = max(worst, error)

    def only_full() -> None:
        for matrix in matrices:
            singular(matrix)

    full()
    found = alternate({"full": only_full, "quick": quick}, 2, options.device)
    return {"matrices": len(matrices), "rank 8 / full decompositions": ratio(found, "quick", "full"),
            "error / optimum, worst": worst}  # fmt: skip


MEMORY = """
import os, sys, json, psutil, torch
sys.path.insert(0, {root!r})
from mergelab.routing.store import load_routed
from mergelab.routing.modes import Runner
from mergelab.models import build
from mergelab.memory import trim
def resident():
    trim()
    return psutil.Process().memory_info().rss
images = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
start = resident()
if {plain}:
    model = build({folder!r} + "/shared"); model.encode(images)
else:
    runner = Runner(load_routed({folder!r})); runner.run(images, torch.full((1, {tasks}), 1 / {tasks}), "adapter")
print(resident() - start)
"""


def memory(routed: RoutedModel, rounds: int) -> dict[str, Any]:
    """Resident memory of a loaded routed model after its first pass, less that of the shared model alone, each in a
    process of its own."""
    from mergelab.routing.store import save

    with tempfile.TemporaryDirectory() as place:
        folder = save(routed.at_rank(8), Path(place) / "routed")
        shared = sum(f.stat().st_size for f in (folder / "shared").glob("*.safetensors"))
        whole = sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
        grown: dict[bool, list[int]] = {True: [], False: []}
        for _ in range(rounds):
            for plain, found in grown.items():
                code = MEMORY.format(root=str(ROOT), folder=str(folder), tasks=TASKS, plain=plain)
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
                found.append(int(done.stdout.strip().splitlines()[-1]))
    alone, routed_bytes = (statistics.median(found) for found in grown.values())
    return {
        "shared model, bytes": shared, "parts, router and heads, bytes": whole - shared,
        "resident: shared model alone": grown[True], "resident: routed model": grown[False],
        "resident beyond the shared model / bytes of parts, router and heads": (routed_bytes - alone)
        / (whole - shared),
        "(resident beyond the shared model + its bytes) / bytes of the folder": (routed_bytes - alone + shared) / whole,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--few", type=int, default=8, help="inputs that per_input is timed on")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--stream-rounds", type=int, default=1)
    parser.add_argument("--memory-rounds", type=int, default=5)
    parser.add_argument("--matrices", type=int, default=24)
    parser.add_argument("--small", action="store_true", help="2 layers instead of 12, to try the script")
    parser.add_argument("--only", choices=("passes", "stream", "decomposition", "memory"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    config, shared = tower(options.device, options.small)
    them = experts(shared)
    started = time.perf_counter()
    parts = decompose(shared, them, Compression(rank=8)).parts
    took = time.perf_counter() - started
    model = build(shared, config=config, device=options.device)
    names = tuple(them)
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(TASKS, model.width, generator=generator)

    def items(width: int) -> dict[str, torch.Tensor]:
        return {n: centres[i, :width] + torch.randn(64, width, generator=generator) for i, n in enumerate(names)}

    centres = torch.randn(TASKS, 768, generator=generator)
    settings = RouterSettings(epochs=1)
    router = train_router("mlp", items(model.width), items(model.width), settings)
    early = train_router("mlp", items(768), items(768), settings)
    routed = RoutedModel(names, shared, parts, router=router, early_router=early, config=config,
                         early_layer=1 if options.small else LAYER)  # fmt: skip
    result: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {options.device}",
        "decomposition of 8 experts at rank 8, seconds": round(took, 2),
    }
    asked: dict[str, Callable[[], dict[str, Any]]] = {
        "passes": lambda: passes(model, routed, options),
        "stream": lambda: end_to_end(model, routed, options),
        "decomposition": lambda: decomposition(shared, them, options),
        "memory": lambda: memory(routed, options.memory_rounds),
    }
    for name, measure in asked.items():
        if options.only in (None, name):
            result[name] = measure()
            print(json.dumps({name: result[name]}, indent=2), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

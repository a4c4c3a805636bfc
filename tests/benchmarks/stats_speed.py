"""What statistics cost beside a plain pass: ``python tests/benchmarks/stats_speed.py [--pixels 224] [--json FILE]``.

A DINOv2 ViT-S/14 (random weights: only the shapes matter), a head of 10 classes, batches of pictures. Everything is
measured in one run: rounds alternate between a plain forward and backward pass (gradients of every weight) and the
collections over the same examples, and each figure is a ratio to the plain pass of the same round: the median of the
rounds, and the smallest and largest. The aim: K-FAC's factors at most 2.5 times the plain pass.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergelab.calibration import Batch
from mergelab.calibration.collect import options_of
from mergelab.calibration.labels import Labels
from mergelab.calibration.work import Work

WAYS = {"gram": ["gram"], "kfac": ["kfac"], "diag": ["diag"], "gram,kfac,diag": ["gram", "kfac", "diag"]}
AIM = 2.5


class Classifier(nn.Module):
    """The tower and a head on its class token."""

    def __init__(self, layers: int, pixels: int) -> None:
        from transformers import Dinov2Config, Dinov2Model

        super().__init__()
        torch.manual_seed(0)
        config = Dinov2Config(hidden_size=384, num_attention_heads=6, num_hidden_layers=layers, image_size=pixels,
                              patch_size=14, use_mask_token=False)  # fmt: skip
        self.tower, self.head = Dinov2Model(config), nn.Linear(384, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.tower(pixel_values=pixels).pooler_output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="torch's threads (default: its own choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result = measure(arguments)
    print(f"{result['model']}, {arguments.examples} examples a batch, {result['machine']}")
    print(f"plain forward and backward: {result['plain_seconds']:.3f} s")
    for way, ratio in result["ratios"].items():
        aim = f"   (aim: at most {AIM})" if way == "kfac" else ""
        print(f"{way:<16} {ratio['median']:.2f} times that   ({ratio['low']:.2f} to {ratio['high']:.2f}){aim}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")


def measure(arguments: Any) -> dict[str, Any]:
    device = torch.device(arguments.device)
    module = Classifier(arguments.layers, arguments.pixels).to(device).eval()
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(arguments.examples, 3, arguments.pixels, arguments.pixels, generator=draw).to(device)
    labels = torch.randint(0, 10, (arguments.examples,), generator=draw).to(device)
    batch = Batch(images, labels)
    works = {}
    for way, kinds in WAYS.items():
        made = options_of(kinds)
        works[way] = Work(module, lambda m, x: m(x), made, Labels() if made.fisher else None)
    times: dict[str, list[float]] = {way: [] for way in ("plain", *WAYS)}
    for turn in range(arguments.rounds + 1):
        taken = {"plain": timed(lambda: plain(module, batch), device)}
        for way, work in works.items():
            with work.open():
                if not turn:
                    work.run(batch)  # looks at the model first
                taken[way] = timed(lambda work=work: work.run(batch), device)  # type: ignore[misc]
        if turn:
            for way, seconds in taken.items():
                times[way].append(seconds)
    ratios = {}
    for way in WAYS:
        each = [mine / base for mine, base in zip(times[way], times["plain"], strict=True)]
        ratios[way] = {"median": statistics.median(each), "low": min(each), "high": max(each)}
    return {
        "model": f"ViT-S/14, {arguments.layers} layers, {arguments.pixels} px", "examples": arguments.examples,
        "rounds": arguments.rounds, "plain_seconds": statistics.median(times["plain"]), "ratios": ratios, "aim": AIM,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device.type}",
        "torch": torch.__version__,
    }  # fmt: skip


def plain(module: nn.Module, batch: Batch) -> None:
    """What training does: the loss and the gradient of every weight."""
    F.cross_entropy(module(batch.inputs), batch.labels).backward()
    module.zero_grad(set_to_none=True)


def timed(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

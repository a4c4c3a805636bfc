"""A zoo of three tiny experts, written by hand, so that a routed model is built in a second."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

WIDTH = 32
TINY = {
    "hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    "use_mask_token": False,
}  # fmt: skip
#: Task -> classes. A picture's task shows in its colour channel, its class in how bright that channel is.
CLASSES = {"reds": 2, "greens": 3, "blues": 2}


def write_zoo(
    folder: Path, *, val: int | None = 30, tasks: tuple[str, ...] = tuple(CLASSES), heads: bool = True
) -> Path:
    """``folder`` as a zoo in the usual layout: float16 base, full float32 experts with heads, a suite."""
    torch.manual_seed(5)
    base = {n: t.half() for n, t in Dinov2Model(Dinov2Config(**TINY)).state_dict().items()}
    _model(folder / "base", base)
    for i, task in enumerate(tasks):
        generator = torch.Generator().manual_seed(i)
        moved = {n: t.float() + 0.02 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        _model(folder / "experts" / task, moved)
        if heads:
            weight = torch.randn(CLASSES[task], WIDTH, generator=generator).half()
            save_file(
                {"weight": weight, "bias": torch.zeros(len(weight))}, folder / "experts" / task / "head.safetensors"
            )
    (folder / "suite").mkdir()
    listed = []
    for task in tasks:
        arrays = {}
        for split, count in (("train", 40), ("val", val), ("test", 24)):
            if count is not None:
                arrays[f"x_{split}"], arrays[f"y_{split}"] = pictures(task, count, seed=len(split))
        np.savez_compressed(folder / "suite" / f"{task}.npz", **arrays)
        classes = [f"{task} {c}" for c in range(CLASSES[task])]
        listed.append({"name": task, "title": task.title(), "seen": True, "file": f"{task}.npz", "classes": classes})
    suite = {"format": "mergelab-suite/1", "name": "tiny", "title": "Tiny", "tasks": listed}
    (folder / "suite" / "suite.json").write_text(json.dumps(suite))
    zoo = {"format": "mergelab-zoo/1", "name": "tiny", "title": "Tiny", "base": "base", "suite": "suite",
           "experts": {task: f"experts/{task}" for task in tasks},
           "tuned": {"task_arithmetic": {"lambda": 0.4}}}  # fmt: skip
    (folder / "zoo.json").write_text(json.dumps(zoo))
    return folder


def pictures(task: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 pictures [count, 16, 16, 3] and their labels."""
    rng = np.random.default_rng([seed, list(CLASSES).index(task)])
    labels = (np.arange(count) % CLASSES[task]).astype(np.uint8)
    images = rng.integers(0, 60, (count, 16, 16, 3))
    images[..., list(CLASSES).index(task)] += 100 + 40 * labels[:, None, None]
    return images.astype(np.uint8), labels


def document(zoo: Path, **changes: object) -> dict[str, object]:
    """A routed recipe over the zoo's experts, as plain data."""
    tasks = sorted((zoo / "experts").iterdir(), key=lambda p: list(CLASSES).index(p.name))
    return {
        "merge_method": "task_arithmetic", "base_model": str(zoo / "base"),
        "models": [{"model": str(task)} for task in tasks], "parameters": {"lambda": 0.4}, "suite": str(zoo),
        "exclusive": {"rank": 2}, "router": {"kind": "centroid"}, **changes,
    }  # fmt: skip


def _model(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", "architectures": ["Dinov2Model"], **TINY}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 28, "width": 28}}))

"""A zoo in miniature whose accuracies are known, because the labels are what the heads say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

CONFIG = {"model_type": "dinov2", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
PREPROCESSOR = {"size": 28, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
CLASSES = {"grey": 3, "colour": 4}
N = 60


def images(seed: int, count: int, colour: bool) -> np.ndarray:
    rng = np.random.RandomState(seed)
    return rng.randint(0, 256, (count, 32, 32, 3) if colour else (count, 32, 32)).astype(np.uint8)


def make_zoo(folder: Path) -> Path:
    """Two seen tasks and one unseen; every expert is the base itself, and right on all items by construction.

    - ``grey``: labels are the head's own answers, so the base is 100 % right;
    - ``colour``: the same, but every third test label is moved by one class, so exactly two thirds are right, and the
      kept predictions of the expert are right on 3 of 4 items that the base is right on, by construction below;
    - ``stripes`` (unseen): dark and bright pictures, which class means of any features tell apart.
    """
    from transformers import Dinov2Config, Dinov2Model

    from mergelab.models import build

    torch.manual_seed(0)
    module = Dinov2Model(Dinov2Config(**{k: v for k, v in CONFIG.items() if k != "model_type"}))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    base = folder / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps(CONFIG))
    (base / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    save_file({n: t.detach().clone() for n, t in module.state_dict().items()}, base / "model.safetensors")
    model = build(str(base), device="cpu")
    suite = folder / "suite"
    suite.mkdir()
    kept: dict[str, np.ndarray] = {}
    entries: list[dict[str, Any]] = []
    for seed, (name, classes) in enumerate(CLASSES.items(), 1):
        split: dict[str, np.ndarray] = {}
        x = {s: images(10 * seed + i, N, name == "colour") for i, s in enumerate(("train", "val", "test"))}
        features = {s: model.encode(v) for s, v in x.items()}
        weight = torch.randn(classes, 24, generator=torch.Generator().manual_seed(seed))
        bias = -(features["test"] @ weight.T).mean(0)  # so that every class occurs
        for s, pictures in x.items():
            split[f"x_{s}"] = pictures
            split[f"y_{s}"] = (features[s] @ weight.T + bias).argmax(-1).numpy().astype(np.uint8)
        truth = split["y_test"].copy()
        if name == "colour":
            split["y_test"][::3] = (split["y_test"][::3] + 1) % classes
        kept[f"base/{name}"] = truth
        kept[f"expert/{name}"] = split["y_test"].copy()
        if name == "colour":
            kept[f"expert/{name}"][1::4] = (kept[f"expert/{name}"][1::4] + 1) % classes  # 15 of 60 wrong
        np.savez_compressed(suite / f"{name}.npz", **split)
        expert = folder / "experts" / name
        expert.mkdir(parents=True)
        for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
            (expert / file).write_bytes((base / file).read_bytes())
        save_file({"weight": weight, "bias": bias}, expert / "head.safetensors")
        entries.append(entry(name, True, [f"class {i}" for i in range(classes)]))
    np.savez_compressed(suite / "stripes.npz", **stripes())
    entries.append(entry("stripes", False, ["dark", "bright"]))
    (suite / "suite.json").write_text(
        json.dumps({"format": "mergelab-suite/1", "name": "tiny", "title": "Tiny", "tasks": entries})
    )
    np.savez_compressed(folder / "predictions.npz", **kept)
    experts = {name: f"experts/{name}" for name in CLASSES}
    listing = {"format": "mergelab-zoo/1", "name": "tiny", "title": "Tiny", "base": "base", "suite": "suite",
               "experts": experts, "tune": "full", "seed": 0, "tuned": {}}  # fmt: skip
    (folder / "zoo.json").write_text(json.dumps(listing))
    return folder


def stripes() -> dict[str, np.ndarray]:
    out = {}
    for i, split in enumerate(("train", "test")):
        y = np.arange(30) % 2
        x = np.random.RandomState(i).randint(0, 40, (30, 32, 32)) + 200 * y[:, None, None]
        out[f"x_{split}"], out[f"y_{split}"] = x.astype(np.uint8), y.astype(np.uint8)
    return out


def entry(name: str, seen: bool, classes: list[str]) -> dict[str, Any]:
    return {"name": name, "title": name.title(), "seen": seen, "file": f"{name}.npz", "classes": classes,
            "templates": ["a photo of {}."]}  # fmt: skip

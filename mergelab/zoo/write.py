"""Writing the parts of a zoo: base, experts, heads, packs, listings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints import dtype_code, write
from .layout import FORMAT

#: Files beside a base's weights that its words need; copied when they are there and small.
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "open_clip_config.json", "config.json",
)  # fmt: skip
_SMALL = 20 << 20


def write_base(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    source: Path | None = None,
    max_shard_bytes: float = 5e9,
) -> None:
    """Weights, configuration and how pictures are prepared; ``source`` is the folder that tokenizer files come from."""
    preprocess = {
        "size": {"height": size, "width": size}, "resample": 3, "do_center_crop": False, "do_resize": True,
        "do_normalize": True, "do_rescale": True, "image_mean": list(mean), "image_std": list(std),
    }  # fmt: skip
    files: dict[str, bytes | str] = {"preprocessor_config.json": json.dumps(preprocess, indent=2) + "\n"}
    plan = {name: (dtype_code(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    write(folder, tensors.items(), plan, config=config, files=files, max_shard_bytes=max_shard_bytes)
    for name in _TOKENIZER if source is not None else ():
        extra = source / name  # type: ignore[operator]
        if extra.is_file() and extra.stat().st_size <= _SMALL and not (folder / name).exists():
            shutil.copyfile(extra, folder / name)


def write_expert(
    folder: Path,
    module: nn.Module,
    weight: Tensor,
    bias: Tensor,
    *,
    config: Mapping[str, Any],
    source: str,
    base: Path,
) -> None:
    """A tuned tower and its head: peft's own layout for a ``PeftModel``, a full checkpoint otherwise.

    Adapters are stored in float16. A full expert stays in float32: half precision would lose most of what fine-tuning
    moves (a norm's weight near 1 resolves 0.001). ``source`` is what the adapter's configuration names as its base;
    ``base`` is the base's folder, whose preparation of pictures a full expert shares.
    """
    from peft import PeftModel
    from safetensors.torch import save_file

    if isinstance(module, PeftModel):
        module.peft_config["default"].base_model_name_or_path = source
        for name, parameter in module.named_parameters():
            if parameter.requires_grad or ".lora_" in name or ".ia3_" in name:
                parameter.data = parameter.data.half()
        module.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's template has nothing in it
    else:
        state = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
        plan = {name: (dtype_code(t.dtype), tuple(t.shape)) for name, t in state.items()}
        prepare = "preprocessor_config.json"
        files = {prepare: (base / prepare).read_text(encoding="utf-8")} if (base / prepare).is_file() else {}
        write(folder, state.items(), plan, config=config, files=files)
    folder.mkdir(parents=True, exist_ok=True)
    head = {"weight": weight.half().contiguous(), "bias": bias.float().contiguous()}
    save_file(head, str(folder / "head.safetensors"), metadata={"format": "pt"})


def write_pack(path: Path, splits: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Pictures and labels of each split as one compressed ``.npz``."""
    arrays: dict[str, np.ndarray] = {}
    for split, (x, y) in splits.items():
        arrays[f"x_{split}"], arrays[f"y_{split}"] = x, y
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def write_suite(folder: Path, name: str, title: str, tasks: list[dict[str, Any]]) -> None:
    """``suite.json``; ``tasks`` hold name, title, seen, file, classes, templates, source, licence, note."""
    write_json(folder / "suite.json", {"format": "mergelab-suite/1", "name": name, "title": title, "tasks": tasks})


def write_zoo(
    folder: Path,
    *,
    name: str,
    title: str,
    tasks: list[str],
    tune: str,
    seed: int,
    tuned: Mapping[str, Any] | None = None,
) -> None:
    """``zoo.json``: what :func:`mergelab.zoo.open_zoo` reads."""
    listing = {
        "format": FORMAT, "name": name, "title": title, "base": "base",
        "experts": {task: f"experts/{task}" for task in tasks}, "suite": "suite", "tune": tune, "seed": seed,
        "tuned": dict(tuned or {}),
    }  # fmt: skip
    write_json(folder / "zoo.json", listing)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def as_half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors in float16, others as they are, all contiguous on the CPU."""
    return {
        n: (t.detach().cpu().half() if torch.is_floating_point(t) else t.detach().cpu()).contiguous()
        for n, t in state.items()
    }

"""Small things to learn on: random models with unlabelled pictures, and a zoo whose experts differ from its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tasks.tiny_zoo import CONFIG, PREPROCESSOR, images, make_zoo
from torch import Tensor

WIDTH = CONFIG["hidden_size"]


def moved(base: dict[str, Tensor], seed: int, size: float = 0.1) -> dict[str, Tensor]:
    """The base with every floating-point tensor moved by seeded noise."""
    rng = torch.Generator().manual_seed(seed)
    return {name: t + size * torch.randn(t.shape, generator=rng) for name, t in base.items()}


def toy(count: int = 2, pictures: int = 12, size: float = 0.1, **parameters: Any) -> tuple[Any, Any, list[Any]]:
    """(model, AdaMerging plan, inputs) of ``count`` experts of one random Dinov2, named t0, t1, …"""
    from transformers import Dinov2Config, Dinov2Model

    from mergelab.checkpoints import load
    from mergelab.engine import plan
    from mergelab.models import build
    from mergelab.tasks import Head
    from mergelab.training import Unlabelled

    torch.manual_seed(3)
    module = Dinov2Model(Dinov2Config(**{k: v for k, v in CONFIG.items() if k != "model_type"}))
    state = {name: t.detach() + 0.2 * torch.randn(t.shape) for name, t in module.state_dict().items()}
    base = load(state, name="base")
    model = build(base, config=CONFIG, preprocessor=PREPROCESSOR, device="cpu")
    experts = {f"t{i}": moved(state, 10 + i, size) for i in range(count)}
    planned = plan("adamerging", experts, state, parameters)
    inputs = []
    for i in range(count):
        rng = torch.Generator().manual_seed(20 + i)
        weight, shown = torch.randn(3 + i % 2, WIDTH, generator=rng), torch.from_numpy(images(30 + i, pictures, True))
        bias = -(model.encode(shown) @ weight.T).mean(0)  # so that the base predicts every class
        inputs.append(Unlabelled(f"t{i}", shown, Head(weight, bias)))
    return model, planned, inputs


def moved_zoo(folder: Path) -> Path:
    """The zoo of :mod:`tasks.tiny_zoo` with its experts moved away from the base."""
    zoo = make_zoo(folder)
    for seed, expert in enumerate(sorted((zoo / "experts").iterdir())):
        file = expert / "model.safetensors"
        save_file(moved(load_file(file), 40 + seed), file)
    return zoo


def learned_recipe(zoo: Path, **parameters: Any) -> Any:
    """An AdaMerging recipe over such a zoo."""
    from mergelab.recipe import Recipe

    return Recipe(
        "adamerging",
        tuple(str(zoo / "experts" / name) for name in ("colour", "grey")),
        base_model=str(zoo / "base"),
        parameters={"steps": 2, "batch": 4, **parameters},
        suite=str(zoo),
    )

"""RegMean++ on two layouts of one CLIP: fused attention (OpenCLIP) and separate projections (transformers)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models.tiny_models import clip_config, folder_of, open_clip_config, open_clip_state, random_clip
from torch import Tensor

from mergelab.calibration import calibrate_features, collect_through
from mergelab.calibration.through import batches_of
from mergelab.checkpoints import load
from mergelab.engine import merge_to_memory, plan
from mergelab.models import build

TASKS = ("ant", "bee")
BLOCK = "vision_model.encoder.layers.1"


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Tensor]]:
    """A base and two experts in the layout of transformers."""
    base = dict(random_clip().state_dict())
    out = {"base": base}
    for seed, name in enumerate(TASKS):
        draw = torch.Generator().manual_seed(seed)
        out[name] = {key: t + 0.05 * torch.randn(t.shape, generator=draw) if t.is_floating_point() else t
                     for key, t in base.items()}  # fmt: skip
    return out


@pytest.fixture(scope="module")
def pictures() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(9)
    return {name: torch.randint(0, 256, (12, 28, 28, 3), dtype=torch.uint8, generator=draw) for name in TASKS}


def merged(
    folder: Path, states: dict[str, dict[str, Tensor]], pictures: dict[str, Tensor],
    layout: Callable[[dict[str, Tensor]], dict[str, Tensor]], config: dict,
) -> tuple[dict[str, Tensor], list[str]]:  # fmt: skip
    model = build(str(folder_of(folder / "base", layout(states["base"]), config)), device="cpu")
    experts = {name: load(layout(states[name]), name=name) for name in TASKS}
    made = plan("regmean_pp", experts, parameters={"off_diagonal": 1.0})
    found = collect_through(
        made, model.module, {n: batches_of(x, 5, model.pixels) for n, x in pictures.items()}, model.through,
        spelling=model.own_names([item.name for item in made.items]),
    )  # fmt: skip
    return merge_to_memory(plan("regmean_pp", experts, parameters={"off_diagonal": 1.0}, statistics=found)), list(
        found["ant"].meta["blocks"]
    )


def test_fused_attention_gives_what_separate_projections_give(states, pictures, tmp_path: Path) -> None:
    one, blocks = merged(tmp_path / "hf", states, pictures, dict, clip_config())
    other, fused = merged(tmp_path / "oc", states, pictures, open_clip_state, open_clip_config())
    assert len(blocks) == 3 and blocks[-1].endswith("visual_projection")  # a plain tensor in OpenCLIP, so averaged
    assert fused == ["visual.transformer.resblocks.0", "visual.transformer.resblocks.1"]
    expected = open_clip_state(one)
    for key, tensor in other.items():
        if key.startswith("visual.transformer"):
            torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    mean = torch.stack([states[name][f"{BLOCK}.mlp.fc2.weight"] for name in TASKS]).mean(0)
    assert (one[f"{BLOCK}.mlp.fc2.weight"] - mean).abs().max() > 1e-3  # it is no average
    text = "text_model.encoder.layers.0.mlp.fc1.weight"
    torch.testing.assert_close(one[text], (states["ant"][text] + states["bee"][text]) / 2)


def test_features_of_a_clip_are_calibrated_in_its_picture_side(states, pictures, tmp_path: Path) -> None:
    model = build(str(folder_of(tmp_path / "hf", states["base"], clip_config())), device="cpu")
    mean = {key: (states["ant"][key] + states["bee"][key]) / 2 if t.is_floating_point() else t
            for key, t in states["base"].items()}  # fmt: skip
    found = calibrate_features(
        model.module, mean, states["base"], {name: states[name] for name in TASKS},
        {n: batches_of(x, 5, model.pixels) for n, x in pictures.items()}, forward=model.through,
        spelling=model.own_names(list(mean)),
    )  # fmt: skip
    assert len(found.blocks) == 2 and not found.skipped
    assert len(found.state) == 2 * (6 + 2) * 2 and all(
        key.startswith("vision_model.encoder.layers") for key in found.state
    )

"""Matched merges of LoRA adapters: their products are merged as dense weights, or it is said why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_statistics import NAMES, psd
from torch import Tensor

import mergelab
from mergelab.calibration import Batch, collect_stats
from mergelab.checkpoints import load
from mergelab.errors import MethodError, StatisticsError
from mergelab.statistics import Block, TaskStatistics

SHAPES = {"fc.weight": (6, 4), "out.weight": (4, 6)}


def base(value: float = 0.0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw) + value for name, shape in SHAPES.items()}


def lora(folder: Path, seed: int, under: str, modules: tuple[str, ...] = ("fc", "out")) -> str:
    """A random adapter of rank 2 with alpha 3, so with the scale 1.5, as peft writes it."""
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for module in modules:
        rows, columns = SHAPES[f"{module}.weight"]
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, columns, generator=draw)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, 2, generator=draw)
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": list(modules),
              "base_model_name_or_path": under}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


def dense(folder: str, under: dict[str, Tensor]) -> dict[str, Tensor]:
    """W + 1.5 B A by hand."""
    own = dict(load(folder).own)  # type: ignore[attr-defined]
    out = {}
    for name, weight in under.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        touched = f"{key}A.weight" in own
        out[name] = weight + 1.5 * own[f"{key}B.weight"] @ own[f"{key}A.weight"] if touched else weight
    return out


def statistics(seed: int) -> dict[str, TaskStatistics]:
    """Of every kind that the methods read; they do not say of which weights."""
    return {
        name: TaskStatistics(name, {
            key: Block(psd(shape[1], seed + i), psd(shape[0], seed + i)[None],
                       torch.rand(shape, generator=torch.Generator().manual_seed(seed + i)), rows=9, examples=9,
                       layout="linear", shape=shape)
            for key, shape in SHAPES.items()
        })
        for i, name in enumerate(NAMES)
    }  # fmt: skip


@pytest.fixture
def under(store: Callable[..., str]) -> str:
    return store("base", base())


@pytest.mark.parametrize("method", ["mats", "regmean", "fisher"])
@pytest.mark.parametrize("modules", [("fc", "out"), ("fc",)], ids=["the same modules", "other modules"])
def test_a_merge_of_adapters_is_the_merge_of_the_full_experts(
    tmp_path: Path, under: str, method: str, modules: tuple[str, ...]
) -> None:
    """Where one adapter has no factors for a layer, that expert's weight is the base's, with its statistics."""
    adapters = {"ant": lora(tmp_path / "ant", 1, under), "bee": lora(tmp_path / "bee", 2, under, modules)}
    full = {name: dense(folder, base()) for name, folder in adapters.items()}
    for start in (None, "base", "task_arithmetic"):
        more: dict[str, Any] = {"statistics": statistics(0), "init": start, "dtype": "float64"}
        found = mergelab.merge(method, adapters, under, **more)
        expected = mergelab.merge(method, full, base(), **more)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
            assert float((tensor - base()[name]).norm()) > 0.1
    bee = full["bee"]["out.weight"]
    assert torch.equal(bee, base()["out.weight"]) == (modules == ("fc",))


def test_adapters_of_different_bases(tmp_path: Path, under: str, store: Callable[..., str]) -> None:
    other = store("moved", base(0.25))
    adapters = {"ant": lora(tmp_path / "ant", 1, under), "bee": lora(tmp_path / "bee", 2, other)}
    with pytest.raises(MethodError) as caught:
        mergelab.merge("mats", adapters, statistics=statistics(0))
    hashes = [load(place).weights_hash[:12] for place in (under, other)]
    assert str(caught.value) == (
        f"The adapters 'ant' and 'bee' stand on different bases, {under} (hash {hashes[0]}) and {other} "
        f"({hashes[1]}): merge adapters of one base."
    )
    copied = store("copied", base())  # the same weights elsewhere are the same base
    adapters["bee"] = lora(tmp_path / "bee2", 2, copied)
    assert mergelab.merge("mats", adapters, statistics=statistics(0))["fc.weight"].isfinite().all()


def test_an_adapter_put_on_another_base_has_other_statistics(
    tmp_path: Path, under: str, store: Callable[..., str]
) -> None:
    """``base`` comes before what an adapter's config names; its statistics know the difference."""
    adapters = {name: lora(tmp_path / name, seed, under) for seed, name in enumerate(NAMES)}
    given = statistics(0)
    for name, folder in adapters.items():
        given[name].weights_hash = load(folder).weights_hash
    mergelab.merge("mats", adapters, under, statistics=given)
    moved = store("moved", base(0.25))
    put = load(adapters["ant"], base=moved).weights_hash[:12]
    with pytest.raises(StatisticsError) as caught:
        mergelab.merge("mats", adapters, moved, statistics=given)
    assert str(caught.value) == (
        "The statistics of 'ant': they were collected from other weights than the model 'ant' has: their hash is "
        f"{given['ant'].weights_hash[:12]}, the model's {put}. Collect them again from it."
    )


def test_factors_are_never_solved_for(tmp_path: Path, under: str) -> None:
    """Neither where an adapter's file is given as a model, nor in its vectors' space, nor in what is collected."""
    folders = {name: lora(tmp_path / name, seed, under) for seed, name in enumerate(NAMES)}
    factors = {name: dict(load(folder).own) for name, folder in folders.items()}  # type: ignore[attr-defined]
    with pytest.raises(MethodError) as caught:
        mergelab.merge("mats", factors, statistics=statistics(0))
    assert str(caught.value) == (
        "Tensor 'base_model.model.fc.lora_A.weight' is one factor of a LoRA adapter, and factors cannot be solved for "
        "one by one; give the adapters as folders with their base, so that their products are merged."
    )
    with pytest.raises(MethodError) as caught:
        mergelab.merge("mats", folders, space="adapter", statistics=statistics(0), objective="diag")
    assert str(caught.value) == (
        "Model 'ant': ant is a 'LORA' adapter: its factors A and B cannot be merged or solved for one by one, as only "
        "their product means something. Leave out space 'adapter'; then the products are merged as dense weights."
    )
    peft = pytest.importorskip("peft")
    net = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 3)), peft.LoraConfig(r=2, target_modules=["0"]))
    name = "base_model.model.0.lora_A.default.weight"
    with pytest.raises(StatisticsError) as refused:
        collect_stats(net, [Batch(torch.ones(2, 4), torch.tensor([0, 1]))], kinds={"kfac"}, names=[name])
    assert str(refused.value) == (
        f"'{name}' is a LoRA factor: A and B are never solved for apart, so load the adapter with its base "
        "(mergelab.load) and collect from the dense expert."
    )

"""Adapters as full weights, against what peft itself makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from mergelab.checkpoints import load
from mergelab.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore")
Tensors = dict[str, torch.Tensor]


class Net(nn.Module):
    """One of each layer that adapters are put on."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.fc1 = nn.Linear(6, 8)
        self.fc2 = nn.Linear(8, 5)
        self.conv = nn.Conv2d(3, 4, 3)
        self.turned = Conv1D(9, 5)
        self.head = nn.Linear(9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.turned(self.fc2(self.fc1(self.emb(x)))))


def tuned(folder: Path, config: PeftConfig) -> tuple[Tensors, Tensors]:
    """Write a random adapter to ``folder`` as peft does; the base's tensors and those that peft merges."""
    torch.manual_seed(0)
    net = Net()
    base = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    model = get_peft_model(net, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter)
    model.save_pretrained(folder)
    return base, model.merge_and_unload().state_dict()


CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(r=2, lora_alpha=5, target_modules=["fc1", "fc2"]),
    "rslora": lambda: LoraConfig(r=3, lora_alpha=5, target_modules=["fc1"], use_rslora=True),
    "patterns": lambda: LoraConfig(
        r=2, lora_alpha=4, target_modules=["fc1", "fc2"], rank_pattern={"fc1": 3}, alpha_pattern={"f.2": 7, "fc1": 1}
    ),
    "rslora with patterns": lambda: LoraConfig(
        r=2, target_modules=["fc1", "fc2"], use_rslora=True, rank_pattern={"^fc1": 4}, alpha_pattern={"fc2": 3}
    ),
    "embedding": lambda: LoraConfig(r=2, lora_alpha=3, target_modules=["emb"]),
    "convolution": lambda: LoraConfig(r=2, lora_alpha=3, target_modules=["conv"]),
    "fan in, fan out": lambda: LoraConfig(r=2, lora_alpha=3, target_modules=["turned"], fan_in_fan_out=True),
    "biases": lambda: LoraConfig(r=2, target_modules=["fc1", "conv"], bias="lora_only"),
    "all biases": lambda: LoraConfig(r=2, target_modules=["fc1"], bias="all"),
    "head saved whole": lambda: LoraConfig(r=2, target_modules=["fc1"], modules_to_save=["head"]),
    "ia3": lambda: IA3Config(target_modules=["fc1", "fc2"], feedforward_modules=["fc2"]),
    "ia3 on a convolution": lambda: IA3Config(target_modules=["fc1", "conv"], feedforward_modules=["conv"]),
    "ia3 on outputs of a convolution": lambda: IA3Config(target_modules=["conv"], feedforward_modules=[]),
    "ia3, pattern": lambda: IA3Config(target_modules="fc.", feedforward_modules=".*fc2"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_the_full_weights_are_those_that_peft_merges(case: str, tmp_path: Path) -> None:
    base, merged = tuned(tmp_path, CONFIGS[case]())
    checkpoint = load(tmp_path, base=base)
    assert set(checkpoint) == set(merged)
    for name, tensor in merged.items():
        torch.testing.assert_close(checkpoint[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
        if name not in checkpoint.changed:
            assert torch.equal(tensor, base[name])
    assert any(not torch.equal(merged[name], base[name]) for name in checkpoint.changed)


def test_the_delta_by_hand(tmp_path: Path) -> None:
    """W + (alpha / r) B A with numbers small enough to do in the head."""
    write_lora(tmp_path, a=torch.tensor([[1.0, 2.0]]), b=torch.tensor([[1.0], [0.0], [3.0]]), alpha=2)
    base = {"fc.weight": torch.ones(3, 2)}
    checkpoint = load(tmp_path, base=base)
    for _ in range(2):  # the base in memory is not written into
        assert checkpoint["fc.weight"].tolist() == [[3, 5], [1, 1], [7, 13]]
    assert checkpoint.infos["fc.weight"].origin == f"memory + 2·B·A (rank 1, {tmp_path.name})"


def test_a_delta_too_small_for_half_precision_is_kept(tmp_path: Path) -> None:
    write_lora(tmp_path, a=torch.full((1, 2), 1e-4), b=torch.ones(3, 1), alpha=1)
    base = {"fc.weight": torch.ones(3, 2).half(), "other": torch.ones(2).half(), "steps": torch.arange(3)}
    checkpoint = load(tmp_path, base=base)
    assert torch.equal(base["fc.weight"] + torch.tensor(1e-4).half(), base["fc.weight"])  # lost in float16
    torch.testing.assert_close(checkpoint["fc.weight"], torch.full((3, 2), 1.0001), rtol=0, atol=1e-7)
    assert [checkpoint.infos[name].dtype for name in base] == ["F32", "F16", "I64"]
    assert checkpoint.nbytes == 3 * 2 * 4 + 2 * 2 + 3 * 8


def write_lora(
    folder: Path, *, a: torch.Tensor, b: torch.Tensor, alpha: float, module: str = "fc", **settings: Any
) -> None:
    key = f"base_model.model.{module}"
    save_file({f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": a.shape[0], "lora_alpha": alpha, "target_modules": ["fc"], **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def simple(folder: Path, **settings: Any) -> Tensors:
    write_lora(folder, a=torch.ones(1, 2), b=torch.ones(3, 1), alpha=1, **settings)
    return {"fc.weight": torch.ones(3, 2)}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora.*magnitude"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which also changes its base"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"peft_type": "VERA"}, "'VERA' adapter; only LORA and IA3"),
        ({"r": 4}, "rank 1, and its config says 4"),
        ({"lora_alpha": "a lot"}, "no usable lora_alpha"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "too involved"),
        ({"alpha_pattern": {"(fc": 3}}, "not valid"),
    ],
)
def test_an_adapter_that_is_not_a_dense_delta_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    base = simple(tmp_path, **settings)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path, base=base)


def test_an_adapter_of_another_base_names_what_does_not_fit(tmp_path: Path) -> None:
    simple(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"2 of its 2 tensors match nothing .* 'base_model.model.fc.lora_A.weight'"
    ):
        load(tmp_path, base={"other.weight": torch.ones(3, 2)})
    with pytest.raises(CheckpointError, match=r"'fc.weight' has shape \[3, 2\], and the base needs \[2, 3\]"):
        load(tmp_path, base={"fc.weight": torch.ones(2, 3)})
    with pytest.raises(CheckpointError, match=r"stores as I64"):
        load(tmp_path, base={"fc.weight": torch.ones(3, 2).long()})


def test_half_an_adapter_is_refused(tmp_path: Path) -> None:
    base = simple(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if "lora_A" in name}
    save_file(kept, weights)
    with pytest.raises(CheckpointError, match=r"only one of the two factors of 'fc'"):
        load(tmp_path, base=base)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config.json but no adapter_model.safetensors"):
        load(tmp_path, base=base)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"only the pickle"):
        load(tmp_path, base=base)


def test_a_tensor_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    base = simple(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(weights), "base_model.model.fc.lora_magnitude_vector": torch.ones(3)}, weights)
    with pytest.raises(CheckpointError, match=r"lora_magnitude_vector"):
        load(tmp_path, base=base)


@pytest.mark.parametrize(("inside", "outside"), [("dinov2.fc", "fc"), ("fc", "model.fc")])
def test_an_adapter_of_a_task_model_fits_its_backbone(inside: str, outside: str, tmp_path: Path) -> None:
    write_lora(tmp_path, a=torch.ones(1, 2), b=torch.ones(3, 1), alpha=1, module=inside)
    checkpoint = load(tmp_path, base={f"{outside}.weight": torch.ones(3, 2), "other": torch.ones(1)})
    assert checkpoint[f"{outside}.weight"].tolist() == [[2, 2]] * 3


def test_an_adapter_on_a_base_that_transformers_saved(tmp_path: Path) -> None:
    """transformers names layers in files otherwise than in the model, and the adapter has the model's names."""
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28))
    model.save_pretrained(tmp_path / "base")
    tuned_model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    for parameter in tuned_model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter)
    tuned_model.save_pretrained(tmp_path / "adapter")
    tuned_model.merge_and_unload().save_pretrained(tmp_path / "merged")
    checkpoint = load(tmp_path / "adapter", base=tmp_path / "base")
    reference = load_file(tmp_path / "merged" / "model.safetensors")
    assert set(checkpoint) == set(reference) and len(checkpoint.changed) == 2 * 6
    for name, tensor in reference.items():
        torch.testing.assert_close(checkpoint[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_a_new_head_is_added(tmp_path: Path) -> None:
    base = simple(tmp_path, modules_to_save=["classifier"])
    weights = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(weights), "base_model.model.classifier.weight": torch.full((2, 3), 5.0)}, weights)
    checkpoint = load(tmp_path, base=base)
    assert checkpoint["classifier.weight"].tolist() == [[5, 5, 5]] * 2
    assert list(checkpoint) == ["fc.weight", "classifier.weight"]


def test_a_tied_tensor_is_untied_when_one_of_the_two_is_tuned(tmp_path: Path) -> None:
    simple(tmp_path)
    shared, pair = torch.ones(3, 2), torch.zeros(2)
    base = load({"fc.weight": shared, "emb.weight": shared, "x": pair, "y": pair})
    assert dict(base.aliases) == {"fc.weight": "emb.weight", "y": "x"}
    checkpoint = load(tmp_path, base=base)
    assert dict(checkpoint.aliases) == {"y": "x"} and set(checkpoint) == {"emb.weight", "fc.weight", "x"}
    assert checkpoint["fc.weight"].sum() == 12 and checkpoint["emb.weight"].sum() == 6


def test_the_base_is_found_or_asked_for(tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    adapter.mkdir()
    base.mkdir()
    save_file(simple(adapter), base / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"Pass base="):
        load(adapter)
    simple(adapter, base_model_name_or_path="openai/clip-vit-base-patch32")
    with pytest.raises(CheckpointError, match=r"names 'openai/clip-vit-base-patch32': pass base=.*hub:"):
        load(adapter)
    simple(adapter, base_model_name_or_path=str(base))
    (base / "config.json").write_text('{"model_type": "x"}')
    checkpoint = load(adapter / "adapter_model.safetensors")
    assert checkpoint["fc.weight"].sum() == 12 and checkpoint.config == {"model_type": "x"}


def test_the_hash_covers_base_adapter_and_settings(tmp_path: Path) -> None:
    base = simple(tmp_path)
    first = load(tmp_path, base=base).content_hash
    assert load(tmp_path, base=base).content_hash == first
    assert load(tmp_path, base={"fc.weight": torch.zeros(3, 2)}).content_hash != first
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 2}))
    assert load(tmp_path, base=base).content_hash != first

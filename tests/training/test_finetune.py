"""The trainer on a tiny random Dinov2: it learns, it repeats itself, it changes only what it says it changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import Dinov2Config, Dinov2Model

from mergelab.errors import Cancelled, MergeLabError
from mergelab.progress import Stop
from mergelab.training import Settings, Tuned, finetune
from mergelab.training.finetune import adapt, fast_bfloat16, linear_layers


def tower() -> Dinov2Model:
    torch.manual_seed(1)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    return Dinov2Model(config)


def features(module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    return module(pixel_values=pixels).pooler_output


def tints(n: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Noise that is brighter in red, green or blue: three classes."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = rng.integers(0, 100, (n, 28, 28, 3))
    x[np.arange(n), :, :, y] += 120
    return x.astype(np.uint8), y


def run(tune: str = "lora", seed: int = 0, **options: object) -> Tuned:
    x, y = tints()
    settings = Settings(tune=tune, epochs=4, batch=16, rate=1e-2, head_rate=3e-2, seed=seed, rank=4)
    return finetune(tower(), features, x, y, classes=3, settings=settings, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tune", ["full", "lora", "ia3"])
def test_every_way_to_tune_lowers_the_loss(tune: str) -> None:
    result = run(tune)
    assert len(result.losses) == 4
    assert result.losses[-1] < 0.2 * result.losses[0]
    assert result.weight.shape == (3, 32)
    assert result.bias.shape == (3,)
    assert result.samples == 4 * 96


def test_the_first_loss_is_that_of_a_zero_head() -> None:
    """A head of zeros gives every class the same chance, so the first batch's loss is log(3)."""
    x, y = tints(16)
    result = finetune(tower(), features, x, y, classes=3, settings=Settings(epochs=1, batch=16, rank=4))
    assert result.losses[0] == pytest.approx(np.log(3), rel=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not() -> None:
    first, again, other = run(seed=5), run(seed=5), run(seed=6)
    assert torch.equal(first.weight, again.weight)
    for a, b in zip(first.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.weight, other.weight)


def test_lora_changes_nothing_but_its_adapters() -> None:
    before = tower().state_dict()
    result = run("lora")
    assert isinstance(result.module, PeftModel)
    inner = result.module.base_model.model.state_dict()
    for name, tensor in before.items():
        found = inner.get(name, inner.get(name.replace(".weight", ".base_layer.weight")))
        if found is None:
            found = inner[name.replace(".bias", ".base_layer.bias")]
        assert torch.equal(found, tensor), name
    changed = [n for n, p in result.module.named_parameters() if "lora_B" in n and p.abs().sum() > 0]
    assert len(changed) == 2 * 6  # q, k, v, o, fc1, fc2 of two blocks


def test_full_tuning_changes_the_given_module() -> None:
    module = tower()
    before = {n: p.clone() for n, p in module.state_dict().items()}
    x, y = tints(32)
    result = finetune(module, features, x, y, classes=3, settings=Settings(tune="full", epochs=1, batch=16))
    assert result.module is module
    assert any(not torch.equal(before[n], p) for n, p in module.state_dict().items())


def test_only_linear_layers_that_are_used_get_an_adapter() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.text = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    module = Twice()
    used = linear_layers(module, lambda: module.seen(torch.zeros(1, 4)))
    assert used == ["seen"]
    names = [n for n, _ in adapt(module, Settings(rank=2), used).named_modules() if n.endswith("lora_A")]
    assert names == ["base_model.model.seen.lora_A"]


def test_stop_ends_it_and_progress_counts_steps() -> None:
    stop, seen = Stop(), []

    def progress(done: int, total: int, text: str) -> None:
        seen.append((done, total))
        if done == 3:
            stop.set()

    with pytest.raises(Cancelled):
        run(progress=progress, stop=stop)
    assert seen == [(1, 24), (2, 24), (3, 24)]


def test_what_cannot_be_trained_is_refused() -> None:
    x, y = tints(9)
    with pytest.raises(MergeLabError, match=r"Unknown way to tune 'adapter'\. Choose one of full, lora, ia3"):
        Settings(tune="adapter")
    with pytest.raises(MergeLabError, match="0 images with 0 labels"):
        finetune(tower(), features, x[:0], y[:0], classes=3)
    with pytest.raises(MergeLabError, match="9 images with 3 labels"):
        finetune(tower(), features, x, y[:3], classes=3)


def test_a_diverging_run_is_an_error_and_not_a_model() -> None:
    x, y = tints(32)
    with pytest.raises(MergeLabError, match="diverged"):
        finetune(tower(), lambda m, i: features(m, i) * float("inf"), x, y, classes=3, settings=Settings(epochs=1))


def test_bfloat16_is_only_automatic_where_the_hardware_has_it() -> None:
    """AVX2-only machines emulate bfloat16 several times slower than float32."""
    supported = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    assert fast_bfloat16(torch.device("cpu")) is supported
    assert fast_bfloat16(torch.device("meta")) is False

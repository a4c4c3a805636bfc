"""The whole way through the Hub, against a stand-in on loopback: search, look, download pinned, merge, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_standin import HubStandIn
from safetensors.torch import save

from mergelab import cli


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A Hub with a tiny DINOv2 and two models fine-tuned from it; one has moved on since."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    torch.manual_seed(0)
    base = {name: tensor.contiguous() for name, tensor in Dinov2Model(config).state_dict().items()}
    document = json.dumps({**config.to_dict(), "architectures": ["Dinov2Model"]}).encode()

    def files(step: float) -> dict[str, bytes]:
        moved = {name: tensor + step for name, tensor in base.items()}
        return {"model.safetensors": save(moved), "config.json": document, "pytorch_model.bin": b"not to be fetched"}

    with HubStandIn() as standin:
        standin.add("lab/base", files(0.0))
        standin.add("lab/one", files(0.01), base="lab/base", downloads=7)
        standin.first = standin.add("lab/two", files(0.02), base="lab/base", downloads=3)
        standin.add("lab/two", files(9.0), base="lab/base", downloads=3)
        standin.base = base
        monkeypatch.setenv("HF_ENDPOINT", standin.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", "hf_a_token_that_nobody_may_see")
        yield standin


def test_search_look_download_merge_evaluate(hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["search", "--base", "lab/base", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [model["repo"] for model in found] == ["lab/one", "lab/two"]

    pinned = f"hub:lab/two@{hub.first}"
    assert cli.main(["inspect", pinned, "--json"]) == 0
    looked = json.loads(capsys.readouterr().out)
    assert looked["source"] == pinned
    assert {tensor["name"] for tensor in looked["tensors"]} == set(hub.base)
    weights = len(hub.repos["lab/two"].commits[hub.first]["model.safetensors"])
    assert hub.sent("model.safetensors") < weights / 2, "looking must not download the weights"

    recipe = tmp_path / "recipe.json"
    models = [{"model": "hub:lab/one"}, {"model": pinned}]
    document = {
        "merge_method": "task_arithmetic",
        "base_model": "hub:lab/base",
        "models": models,
        "parameters": {"lambda": 1.0},
    }
    recipe.write_text(json.dumps(document))
    before = hub.sent("model.safetensors")
    assert cli.main(["check", str(recipe)]) == 0
    assert hub.sent("model.safetensors") - before < weights, "the check reads headers only"
    out = tmp_path / "merged"
    assert cli.main(["merge", str(recipe), "--out", str(out), "--device", "cpu"]) == 0
    capsys.readouterr()

    import mergelab

    with mergelab.load(out) as merged:
        for name, tensor in hub.base.items():  # base + 0.01 + 0.02: the pinned commit, not the newer one
            torch.testing.assert_close(merged[name], tensor + 0.03, atol=1e-6, rtol=0)
    card = (out / "README.md").read_text()
    assert hub.first in card, "the card names the commits that were merged"

    tasks = tmp_path / "tasks"
    tasks.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 2
    np.savez(
        tasks / "noise.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels, classes=np.array(["a", "b"])
    )
    assert cli.main(["evaluate", str(out), "--suite", str(tasks), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tasks"]["noise"]["n"] == 40

    assert not [request.path for request in hub.requests if request.path.endswith(".bin")]
    assert all(request.authorization is None for request in hub.requests), "an anonymous visit sends no token"

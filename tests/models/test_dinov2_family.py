"""DINOv2 models: the features that transformers gives, from old and new checkpoints, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import DINO

from mergelab.errors import CheckpointError, TaskError
from mergelab.models import build, families, family_of

PREPROCESSOR = {"size": 28, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}


def by_hand(dino: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """The contract's steps one by one on transformers' own model."""
    pixels = pictures.permute(0, 3, 1, 2).float() / 255
    pixels = F.interpolate(pixels, size=28, mode="bicubic", align_corners=False, antialias=False).clamp(0, 1)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        return dino(pixel_values=(pixels - mean) / std).last_hidden_state[:, 0]


@pytest.fixture
def model(saved, dino):
    return build(str(saved(dino.state_dict(), DINO, preprocessor_config=PREPROCESSOR)), device="cpu")


def test_features_are_transformers_class_token(model, dino, pictures):
    assert (model.family, model.width, model.resolution, model.has_text) == ("dinov2", 32, 28, False)
    torch.testing.assert_close(model.encode(pictures), by_hand(dino, pictures), rtol=1e-5, atol=1e-5)


def test_grey_equals_three_equal_channels(model, pictures):
    grey = pictures[..., 0].contiguous()
    assert torch.equal(model.encode(grey), model.encode(grey.unsqueeze(-1).expand(-1, -1, -1, 3)))


def test_numpy_pictures_and_any_batch_size(model, pictures):
    whole = model.encode(pictures)
    torch.testing.assert_close(model.encode(pictures.numpy(), batch=2), whole, rtol=1e-5, atol=1e-6)
    parts = model.encode_many([pictures[:3], pictures[3:4, :20, :20], pictures[3:]], batch=4)
    assert [len(part) for part in parts] == [3, 1, 4]
    torch.testing.assert_close(torch.cat([parts[0], parts[2]]), whole, rtol=1e-5, atol=1e-6)


def test_names_of_transformers_4_and_of_the_classifier_are_read(saved, dino, pictures, model, tmp_path):
    dino.save_pretrained(tmp_path / "own")  # transformers writes its old names
    (tmp_path / "own" / "preprocessor_config.json").write_text(__import__("json").dumps(PREPROCESSOR))
    assert torch.equal(build(str(tmp_path / "own"), device="cpu").encode(pictures), model.encode(pictures))
    classifier = {f"dinov2.{n}": t for n, t in dino.state_dict().items()}
    classifier |= {"classifier.weight": torch.zeros(3, 64), "classifier.bias": torch.zeros(3)}
    folder = saved(classifier, DINO, "classifier", preprocessor_config=PREPROCESSOR)
    assert torch.equal(build(str(folder), device="cpu").encode(pictures), model.encode(pictures))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_load_state_casts_to_float32_and_copies(model, dino, pictures, dtype):
    state = {n: (t * 1.01).to(dtype) for n, t in dino.state_dict().items()}
    model.load_state(state)
    first = model.encode(pictures)
    assert all(p.dtype == torch.float32 for p in model.module.parameters())
    same = {n: t.float() for n, t in state.items()}
    model.load_state(same)
    for tensor in same.values():
        tensor.zero_()
    assert torch.equal(model.encode(pictures), first)


def test_other_weights_for_one_call_only(model, dino, pictures):
    before = model.encode(pictures)
    other = {n: t + 0.05 for n, t in dino.state_dict().items()}
    with_other = model.encode(pictures, weights=model.prepare(other))
    assert not torch.allclose(with_other, before)
    assert torch.equal(model.encode(pictures), before)
    model.load_state(other)
    assert torch.equal(model.encode(pictures), with_other)


def test_a_load_between_two_batches_does_not_mix_into_a_running_encode(model, dino, pictures):
    before = model.encode(pictures, batch=1)
    other = {n: t + 0.05 for n, t in dino.state_dict().items()}
    calls = []

    def swap(done, total, text):
        calls.append((done, total))
        model.load_state(other)

    assert torch.equal(model.encode(pictures, batch=1, progress=swap), before)
    assert calls == [(i, 7) for i in range(1, 8)]
    assert not torch.allclose(model.encode(pictures, batch=1), before)


def test_stop_between_batches(model, pictures):
    from mergelab.errors import Cancelled
    from mergelab.progress import Stop

    stop = Stop()
    with pytest.raises(Cancelled):
        model.encode(pictures, batch=2, progress=lambda *_: stop.set(), stop=stop)


def test_errors_name_the_tensor(model, dino):
    state = dict(dino.state_dict())
    weight = state.pop("layernorm.weight")
    with pytest.raises(CheckpointError, match=r"1 missing \('layernorm.weight'\)"):
        model.load_state(state)
    with pytest.raises(CheckpointError, match=r"1 unexpected \('surprise'\)"):
        model.load_state({**state, "layernorm.weight": weight, "surprise": weight})
    with pytest.raises(CheckpointError, match=r"'layernorm.weight' has the shape \[31\].*expects \[32\]"):
        model.load_state({**state, "layernorm.weight": weight[:31]})


def test_nan_is_named_not_scored(model, dino, pictures):
    state = {n: t.clone() for n, t in dino.state_dict().items()}
    state["encoder.layer.1.mlp.fc1.bias"][3] = float("nan")
    with pytest.raises(CheckpointError, match=r"encoder.layer.1.mlp.fc1.bias.*NaN"):
        model.encode(pictures, weights=model.prepare(state))


@pytest.mark.parametrize("images", [np.zeros((2, 32, 32, 4), np.uint8), np.zeros((2, 32, 32), np.float32),
                                    np.zeros((32, 32), np.uint8)])  # fmt: skip
def test_what_is_not_pictures(model, images):
    with pytest.raises(TaskError, match="uint8 of shape"):
        model.encode(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 10**9}, "hidden_size must be a whole number"),
        ({"hidden_size": 33}, "not a multiple"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": 100_000}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"image_size": 10**7}, "image_size"),
        ({"hidden_act": "os.system"}, "hidden_act must be one of"),
        ({"mlp_ratio": 64}, "asks for"),
        ({"hidden_size": 16384}, "asks for"),
        ({"num_hidden_layers": 3}, r"'encoder.layer.2.+ is missing"),
        ({"model_type": "gpt2"}, r"'gpt2', which no family runs. Families: dinov2"),
    ],
)
def test_a_configuration_that_lies_is_refused_before_memory_is_taken(saved, dino, change, message):
    with pytest.raises(CheckpointError, match=message):
        build(str(saved(dino.state_dict(), {**DINO, **change})), device="cpu")


@pytest.mark.parametrize(
    "bad", [{"size": 10**6}, {"size": {"height": "x"}}, {"image_std": [0, 1, 1]}, {"image_mean": 3}]
)
def test_a_preprocessor_that_lies(saved, dino, bad):
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json"):
        build(str(saved(dino.state_dict(), DINO, preprocessor_config=bad)), device="cpu")


def test_without_a_preprocessor_the_configuration_decides(saved, dino):
    model = build(str(saved(dino.state_dict(), DINO)), device="cpu")
    assert model.resolution == 56
    assert model.preprocess.mean == (0.485, 0.456, 0.406)


def test_weights_without_a_configuration(dino):
    with pytest.raises(CheckpointError, match=r"no config.json.*families: dinov2"):
        build(dict(dino.state_dict()))


def test_families_are_found_by_themselves():
    assert [f.name for f in families()] == ["dinov2", "hf_clip", "open_clip"]
    assert family_of({"model_type": "clip_vision_model"}).name == "hf_clip"


def test_threads_with_different_weights_do_not_disturb_each_other(model, dino, pictures):
    from concurrent.futures import ThreadPoolExecutor

    states = [{n: t + 0.01 * i for n, t in dino.state_dict().items()} for i in range(4)]
    ready = [model.prepare(state) for state in states]
    alone = [model.encode(pictures, batch=1, weights=weights) for weights in ready]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda w: model.encode(pictures, batch=1, weights=w), ready * 3))
    for i, features in enumerate(together):
        assert torch.equal(features, alone[i % 4])

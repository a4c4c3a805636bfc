"""Geometry against numbers worked out by hand, and against plain torch on random tensors."""

from __future__ import annotations

import json
import math

import pytest
import torch

from mergelab.analysis import geometry, layers_of
from mergelab.errors import Cancelled, CheckpointError
from mergelab.progress import Stop

BASE = {
    "embeddings.cls_token": torch.tensor([3.0, 4.0]),
    "encoder.layer.0.w": torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
    "encoder.layer.1.w": torch.tensor([2.0, 0.0, 0.0, 0.0]),
    "layernorm.weight": torch.tensor([5.0]),
    "steps": torch.tensor([7]),
}
#: Task vectors: a and b at right angles in layer 0 and opposite in layer 1; c never changes anything.
TAU = {
    "a": {"encoder.layer.0.w": [[3.0, 0.0], [0.0, 4.0]], "encoder.layer.1.w": [1.0, 0.0, 2.0, 0.0]},
    "b": {"encoder.layer.0.w": [[0.0, 2.0], [0.0, 0.0]], "encoder.layer.1.w": [-1.0, 0.0, -2.0, 5.0]},
    "c": {},
}


def expert(name: str) -> dict[str, torch.Tensor]:
    out = {n: t.clone() for n, t in BASE.items()}
    for tensor, delta in TAU[name].items():
        out[tensor] = out[tensor] + torch.tensor(delta)
    out["steps"] = torch.tensor([99])  # counters are not part of a task vector
    return out


@pytest.fixture
def found():
    return geometry(BASE, {name: expert(name) for name in TAU})


def test_cosines(found):
    # whole: <a,b> = -5, |a|^2 = 30, |b|^2 = 34
    whole = -5 / math.sqrt(30 * 34)
    assert found.cosine.whole == ((1.0, pytest.approx(whole), None), (pytest.approx(whole), 1.0, None), (None,) * 3)
    assert found.layers == ("embeddings", "block 0", "block 1", "head/norm")
    assert found.cosine.layer("block 0")[0] == (1.0, 0.0, None)
    assert found.cosine.layer("block 1")[0][1] == pytest.approx(-5 / math.sqrt(5 * 30))
    assert found.cosine.layer("embeddings") == ((None,) * 3,) * 3
    assert found.cosine.mean_absolute() == (None, 0.0, pytest.approx(5 / math.sqrt(150)), None)


def test_norms(found):
    norms = found.norms
    assert norms.base == (5.0, 1.0, 2.0, 5.0)
    assert norms.norms[0] == (0.0, 5.0, pytest.approx(math.sqrt(5)), 0.0)
    assert norms.relative[0] == (0.0, 5.0, pytest.approx(math.sqrt(5) / 2), 0.0)
    assert norms.whole == (pytest.approx(math.sqrt(30)), pytest.approx(math.sqrt(34)), 0.0)
    assert norms.whole_relative[0] == pytest.approx(math.sqrt(30 / 55))


def test_sign_conflicts(found):
    conflict = found.conflict
    # block 1: signs (+,0,+,0) against (-,0,-,+): two of four; block 0 shares no entry; eleven entries in all
    assert conflict.rates == (0.0, 0.0, 0.5, 0.0)
    assert conflict.touched == (0.0, 0.0, 0.5, 0.0)
    assert conflict.entries == (2, 4, 4, 1)
    assert conflict.whole == pytest.approx(2 / 11)
    assert conflict.pairs[0][1] == 1.0  # both that both change are opposed
    assert conflict.pairs[0][2] is None


def test_trim_keeps_the_largest_of_each_tensor():
    # half of block 1's four entries: a keeps 1 and 2, b keeps -2 and 5: one entry is contested, and opposed
    trimmed = geometry(BASE, {name: expert(name) for name in ("a", "b")}, density=0.5)
    assert trimmed.conflict.rates[2] == 0.25
    assert trimmed.cosine.whole[0][1] == pytest.approx(-5 / math.sqrt(30 * 34))  # cosines are not trimmed


def test_deltas_given_directly(found):
    deltas = {name: {n: expert(name)[n] - t if t.is_floating_point() else t for n, t in BASE.items()} for name in TAU}
    assert geometry(BASE, deltas, deltas=True) == found


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_against_plain_torch_whatever_the_chunk(monkeypatch, chunk):
    monkeypatch.setattr("mergelab.analysis.compare.CHUNK", chunk)
    torch.manual_seed(0)
    base = {"blocks.0.a": torch.randn(5, 7), "blocks.0.b": torch.randn(11), "blocks.1.a": torch.randn(3, 3)}
    experts = {f"t{i}": {n: t + 0.1 * torch.randn_like(t) for n, t in base.items()} for i in range(4)}
    found = geometry(base, experts)
    flat = torch.stack([torch.cat([(e[n] - base[n]).flatten() for n in base]) for e in experts.values()]).double()
    expected = torch.corrcoef(flat) * 0 + (flat @ flat.T) / (flat.norm(dim=1)[:, None] * flat.norm(dim=1))
    torch.testing.assert_close(torch.tensor(found.cosine.whole).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(found.norms.whole).double(), flat.norm(dim=1), rtol=1e-6, atol=0)
    mixed = ((flat > 0).any(0) & (flat < 0).any(0)).double().mean().item()
    assert found.conflict.whole == pytest.approx(mixed)
    pair = ((flat[0] * flat[1]) < 0).double().mean().item()
    assert found.conflict.pairs[0][1] == pytest.approx(pair)


def test_half_precision_is_compared_in_float32():
    base = {"w": torch.full((1000,), 1.0, dtype=torch.float16)}
    experts = {"a": {"w": torch.full((1000,), 1.5, dtype=torch.float16)}, "b": {"w": torch.full((1000,), 1.25)}}
    found = geometry(base, experts)
    assert found.norms.whole == (pytest.approx(0.5 * math.sqrt(1000)), pytest.approx(0.25 * math.sqrt(1000)))
    assert found.cosine.whole[0][1] == pytest.approx(1.0)


def test_tiny_and_huge_entries_keep_their_cosine():
    experts = {"a": {"w": torch.tensor([1e-12, 0.0])}, "b": {"w": torch.tensor([1e-12, 1e-12])}}
    found = geometry({"w": torch.zeros(2)}, experts)
    assert found.cosine.whole[0][1] == pytest.approx(math.sqrt(0.5), rel=1e-4)
    assert found.norms.whole_relative == (None, None)  # a base of zeros has no scale


def test_rows_and_json(found):
    cosines, norms, conflicts = found.cosine.to_rows(), found.norms.to_rows(), found.conflict.to_rows()
    assert len(cosines) == 5 * 3
    assert cosines[0] == {"layer": "whole model", "model": "a", "other": "b", "cosine": found.cosine.whole[0][1]}
    assert len(norms) == 3 * 5
    assert norms[2] == {"model": "a", "layer": "block 0", "norm": 5.0, "relative": 5.0}
    assert conflicts[0] == {"layer": "whole model", "conflict": pytest.approx(2 / 11),
                            "touched": pytest.approx(2 / 11), "entries": 11}  # fmt: skip
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_cannot_be_compared_names_the_tensor_and_the_model():
    good = expert("a")
    with pytest.raises(CheckpointError, match=r"mnist has no tensor 'encoder.layer.0.w'"):
        geometry(BASE, {"mnist": {n: t for n, t in good.items() if n != "encoder.layer.0.w"}})
    with pytest.raises(CheckpointError, match=r"mnist has a tensor 'head'"):
        geometry(BASE, {"mnist": {**good, "head": torch.zeros(1)}})
    with pytest.raises(CheckpointError, match=r"mnist: tensor 'layernorm.weight' is torch.float32 \[2\]"):
        geometry(BASE, {"mnist": {**good, "layernorm.weight": torch.zeros(2)}})
    with pytest.raises(CheckpointError, match=r"'layernorm.weight' holds NaN or infinity in mnist"):
        geometry(BASE, {"a": good, "mnist": {**good, "layernorm.weight": torch.tensor([float("nan")])}})
    with pytest.raises(CheckpointError, match="at least one expert"):
        geometry(BASE, {})
    with pytest.raises(CheckpointError, match="density"):
        geometry(BASE, {"a": good}, density=0.0)


def test_progress_and_stop():
    seen = []
    geometry(BASE, {"a": expert("a")}, progress=lambda done, total, _: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]
    stop = Stop()
    stop.set()
    with pytest.raises(Cancelled):
        geometry(BASE, {"a": expert("a")}, stop=stop)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.layer.3.attention.q_proj.weight", "block 3"),
        ("blocks.10.norm1.bias", "block 10"),
        ("visual.transformer.resblocks.7.ln_1.weight", "block 7"),
        ("model.layers.31.mlp.up_proj.weight", "block 31"),
        ("transformer.h.0.attn.c_attn.bias", "block 0"),
        ("encoder.block.2.layer.1.DenseReluDense.wi.weight", "block 2"),
        ("visual.layer4.0.conv1.weight", "block 4"),
        ("embeddings.position_embeddings", "embeddings"),
        ("visual.conv1.weight", "embeddings"),
        ("vision_model.pre_layrnorm.bias", "embeddings"),
        ("model.embed_tokens.weight", "embeddings"),
        ("layernorm.weight", "head/norm"),
        ("lm_head.weight", "head/norm"),
        ("logit_scale", "head/norm"),
    ],
)
def test_layers_from_names(name, layer):
    assert layers_of([name]) == {name: layer}


def test_layers_are_ordered_by_number_and_towers_are_told_apart():
    names = ["logit_scale", "text_model.encoder.layers.0.w", "vision_model.encoder.layers.10.w",
             "vision_model.encoder.layers.2.w", "vision_model.embeddings.class_embedding"]  # fmt: skip
    assert list(layers_of(names).values()) == [
        "embeddings", "text block 0", "vision block 2", "vision block 10", "head/norm"]  # fmt: skip
    clip = ["visual.transformer.resblocks.0.w", "transformer.resblocks.0.w"]
    assert list(layers_of(clip).values()) == ["vision block 0", "text block 0"]
    t5 = ["encoder.block.0.w", "decoder.block.0.w"]
    assert list(layers_of(t5).values()) == ["encoder block 0", "decoder block 0"]

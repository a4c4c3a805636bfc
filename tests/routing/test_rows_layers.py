"""Each kind of layer, alone: the row pass equals each row's merged layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from row_models import KINDS, by_row, far, jittered, mixtures, parts_for
from torch import Tensor, nn

from mergelab.routing.carriers import conv, linear
from mergelab.routing.parts import LowRank
from mergelab.routing.rows import CannotRoute, RowModule

ROWS = 5


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def one(module: nn.Module, *shape: int) -> tuple[nn.Module, Callable[[nn.Module, slice], Tensor]]:
    x = random(ROWS, *shape)
    return module, lambda m, s: m(x[s])


def ids(module: nn.Module, shared: bool = False) -> tuple[nn.Module, Callable[[nn.Module, slice], Tensor]]:
    x = torch.arange(ROWS * 4).view(ROWS, 4) % 9
    positions = torch.arange(4)[None]
    base = random(ROWS, 4, 6)
    return module, lambda m, s: base[s] + m(positions) if shared else m(x[s])


class Attention(nn.Module):
    """Self-attention, or attention to something else, as modules of libraries call it."""

    def __init__(self, first: bool, cross: bool, **settings: object) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(12, 3, batch_first=first, **settings)
        self.first, self.cross = first, cross

    def forward(self, x: Tensor, other: Tensor, **masks: Tensor) -> Tensor:
        if not self.first:
            x, other = x.transpose(0, 1), other.transpose(0, 1)
        out, seen = self.attn(x, other if self.cross else x, other if self.cross else x, **masks)
        out = out if self.first else out.transpose(0, 1)
        return out if seen is None else torch.cat([out, seen.flatten(2)], -1)


def attention(first: bool = True, cross: bool = False, need_weights: bool = False, masked: bool = False, **settings):
    x, other = random(ROWS, 4, 12), random(ROWS, 6, settings.get("kdim", 12)) + 1
    padding = torch.arange(6)[None] >= torch.tensor([6, 3, 1, 5, 4])[:, None]
    causal = torch.ones(4, 6 if cross else 4).triu_(1).bool()

    def call(m: nn.Module, s: slice) -> Tensor:
        masks = {"need_weights": need_weights}
        if masked:
            masks |= {"attn_mask": causal} | ({"key_padding_mask": padding[s]} if cross else {})
        return m(x[s], other[s], **masks)

    return Attention(first, cross, **settings), call


class SequenceFirst(nn.Module):
    """An encoder whose blocks see [L, B, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        return x.transpose(0, 1)


LAYERS = {
    "linear": lambda: one(nn.Linear(6, 7), 6),
    "linear over tokens": lambda: one(nn.Linear(6, 7), 30, 6),
    "linear over two dimensions": lambda: one(nn.Linear(6, 7), 3, 4, 6),
    "linear to one": lambda: one(nn.Linear(6, 1), 3, 6),
    "linear without bias": lambda: one(nn.Linear(6, 7, bias=False), 3, 6),
    "conv2d": lambda: one(nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=2), 3, 9, 9),
    "conv2d with reflection": lambda: one(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), 3, 5, 6),
    "conv2d in groups": lambda: one(nn.Conv2d(4, 8, 3, padding="same", groups=2), 4, 5, 5),
    "conv2d by channel": lambda: one(nn.Conv2d(6, 6, 3, groups=6, bias=False), 6, 5, 5),
    "conv1d": lambda: one(nn.Conv1d(3, 8, 4, stride=2), 3, 9),
    "conv3d": lambda: one(nn.Conv3d(2, 5, 2), 2, 3, 4, 5),
    "embedding": lambda: ids(nn.Embedding(9, 6, padding_idx=2)),
    "embedding of positions": lambda: ids(nn.Embedding(9, 6), shared=True),
    "layer norm": lambda: one(nn.LayerNorm(6), 4, 6),
    "layer norm without bias": lambda: one(nn.LayerNorm(6, bias=False), 4, 6),
    "layer norm of two dimensions": lambda: one(nn.LayerNorm((4, 6)), 4, 6),
    "rms norm": lambda: one(nn.RMSNorm(6), 4, 6),
    "group norm": lambda: one(nn.GroupNorm(2, 6), 6, 3, 3),
    "attention": attention,
    "attention, sequence first": lambda: attention(first=False),
    "attention with its scores": lambda: attention(need_weights=True, masked=True),
    "attention to others, masked": lambda: attention(cross=True, masked=True),
    "attention to others of another width": lambda: attention(cross=True, kdim=10, vdim=10),
    "attention without biases": lambda: attention(bias=False, masked=True),
    "encoder, sequence first": lambda: one(SequenceFirst(), 4, 12),
    "encoder, long sequence first": lambda: one(SequenceFirst(), 30, 12),
    "torch's encoder": lambda: one(nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, activation="gelu"), 4, 12),
}


@pytest.mark.parametrize("kinds", [("low",), ("dense",), KINDS, ("none", "low", "none")])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_merged_layer(name: str, kinds: tuple[str, ...]) -> None:
    torch.manual_seed(1)  # 0 draws an encoder that amplifies rounding twentyfold: two float32 orders differ by 1e-5
    module, call = LAYERS[name]()
    jittered(module)
    parts, w = parts_for(module, kinds=kinds, size=0.5), mixtures(ROWS)
    rows = RowModule(module, None, parts)
    want = by_row(module, parts, w, call)
    with torch.inference_mode():
        got = rows(w, lambda m: call(m, slice(None)))
    assert far(got, want) < 1e-5
    assert rows.uncarried == ()
    got = rows(w, lambda m: call(m, slice(None)))  # with gradients allowed, too
    assert far(got, want) < 1e-5
    for i in (0, 3):  # one row alone
        assert far(rows(w[i : i + 1], lambda m, i=i: call(m, slice(i, i + 1))), want[i : i + 1]) < 1e-5


@pytest.mark.parametrize("name", ["linear over tokens", "conv2d", "encoder, long sequence first"])
def test_rows_own_weights_are_made_a_few_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, call = LAYERS[name]()
    jittered(module)
    parts, w = parts_for(module, kinds=("dense",)), mixtures(ROWS)
    for file in (linear, conv):
        monkeypatch.setattr(file, "ROOM", 2 * max(p.numel() for p in module.parameters()))
    with torch.inference_mode():
        got = RowModule(module, None, parts)(w, lambda m: call(m, slice(None)))
    assert far(got, by_row(module, parts, w, call)) < 1e-5


def test_a_linear_layer_is_linear_in_the_weights() -> None:
    module = nn.Linear(6, 7)
    rows = RowModule(module, None, parts_for(module, tasks=4))
    x, a, b = random(3, 5, 6), random(3, 4), random(3, 4) + 1
    with torch.no_grad():
        plain = module(x)
        change = {key: rows(w, lambda m: m(x)) - plain for key, w in (("a", a), ("b", b), ("mix", 2 * a - 3 * b))}
    assert torch.allclose(change["mix"], 2 * change["a"] - 3 * change["b"], atol=1e-4)


def test_one_expert_of_full_rank_is_that_expert() -> None:
    """E1: full-rank factors and a one-hot row give the expert itself."""
    torch.manual_seed(0)
    shared, expert = nn.Linear(6, 7), nn.Linear(6, 7)
    u, s, v = torch.linalg.svd((expert.weight - shared.weight).detach(), full_matrices=False)
    bias = parts_for(nn.Linear(6, 7), tasks=1, kinds=("dense",))[0]["bias"]
    parts = [{}, {"weight": LowRank(u, s, v, (7, 6)), "bias": type(bias)((expert.bias - shared.bias).detach())}]
    x = random(2, 3, 6)
    with torch.no_grad():
        got = RowModule(shared, None, parts)(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), lambda m: m(x))
        assert torch.allclose(got[0], expert(x[0]), atol=1e-6)
        assert torch.allclose(got[1], shared(x[1]), atol=1e-6)


def test_gradients_reach_what_comes_before() -> None:
    """Frozen weights, but activations that require gradients: no in-place step may break them."""
    module = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 2))
    parts, w = parts_for(module, kinds=("low",)), mixtures(ROWS)
    x = random(ROWS, 3, 6).requires_grad_()
    RowModule(module, None, parts)(w, lambda m: m(x)).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_batch_norm_gain_and_shift_but_not_its_statistics() -> None:
    module, call = one(nn.BatchNorm2d(4), 4, 3, 3)
    module.running_mean.normal_()
    module.running_var.uniform_(0.5, 2)
    jittered(module)
    parts, w = parts_for(module, kinds=("dense",), skip=("running_mean", "running_var")), mixtures(ROWS)
    got = RowModule(module, None, parts)(w, lambda m: call(m, slice(None)))
    assert far(got, by_row(module, parts, w, call)) < 1e-5
    parts = parts_for(module, kinds=("dense",))
    with pytest.raises(CannotRoute, match="running_mean"):
        RowModule(module, None, parts)(w, lambda m: call(m, slice(None)))

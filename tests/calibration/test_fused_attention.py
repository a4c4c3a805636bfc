"""Fused attention: opened up it computes what torch computes, and gives what separate projections give."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from nets import gradients, jittered, score
from torch import Tensor, nn
from torch.testing import assert_close

from mergelab.calibration import Batch, collect_stats
from mergelab.calibration.attention import opened

WIDTH, HEADS, N, T = 8, 2, 5, 4
DRAW = torch.Generator().manual_seed(1)
X = torch.randn(N, T, WIDTH, generator=DRAW, dtype=torch.float64)
LABELS = torch.randint(0, WIDTH, (N,), generator=DRAW)
PADDED = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]]).bool()


class Fused(nn.Module):
    """Attention, then the mean over tokens as logits."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **options)

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        first = self.attention.batch_first
        x = x if first else x.transpose(0, 1)
        y, _ = self.attention(x, x, x, key_padding_mask=padded, need_weights=False)
        return y.mean(1 if first else 0)


class Unfused(nn.Module):
    """The same with four linear layers and attention written out."""

    def __init__(self, fused: Fused) -> None:
        super().__init__()
        own = fused.attention
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH).double() for _ in range(4))
        with torch.no_grad():
            for i, layer in enumerate((self.q, self.k, self.v)):
                layer.weight.copy_(own.in_proj_weight[i * WIDTH : (i + 1) * WIDTH])
                layer.bias.copy_(own.in_proj_bias[i * WIDTH : (i + 1) * WIDTH])
            self.out.weight.copy_(own.out_proj.weight)
            self.out.bias.copy_(own.out_proj.bias)

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        if padded is not None:
            scores = scores.masked_fill(padded[:, None, None], float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)).mean(1)


def call(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> Tensor:
    return module(*inputs)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_fused_layer_gives_what_the_unfused_layers_give(batch_first):
    fused = jittered(Fused(batch_first=batch_first))
    apart = Unfused(fused)
    batches = [Batch((X[i : i + 2], PADDED[i : i + 2]), LABELS[i : i + 2], ~PADDED[i : i + 2]) for i in (0, 2, 4)]
    kinds = {"gram", "kfac", "diag"}
    one = collect_stats(fused, batches, call, kinds=kinds, dtype=torch.float64)
    two = collect_stats(apart, batches, call, kinds=kinds, dtype=torch.float64)
    block = one.block("attention.in_proj_weight")
    assert tuple(block.outputs.shape) == (3, WIDTH, WIDTH)
    for i, name in enumerate("qkv"):
        part = two.block(f"{name}.weight")
        assert_close(block.inputs, part.inputs)
        assert_close(block.mean, part.mean)
        assert_close(block.outputs[i], part.outputs[0])
        rows = slice(i * WIDTH, (i + 1) * WIDTH)
        assert_close(block.diagonal[rows], part.diagonal)
        assert_close(one.block("attention.in_proj_bias").diagonal[rows], two.block(f"{name}.bias").diagonal)
        assert block.rows == part.rows == int((~PADDED).sum())
    for piece, tensor in one.block("attention.out_proj.weight").tensors.items():
        assert_close(tensor, two.block("out.weight").tensors[piece])


@pytest.mark.parametrize("zero, extra, need, average, first", list(product([True, False], repeat=5)))
@torch.no_grad()
def test_opened_attention_equals_torchs_own(zero, extra, need, average, first):
    own = jittered(nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=zero, add_bias_kv=extra, batch_first=first))
    x = X if first else X.transpose(0, 1)
    hidden = torch.zeros(T, T, dtype=torch.bool).fill_(True).triu(1)
    for mask in (None, hidden, hidden.double().masked_fill(hidden, float("-inf")), hidden.expand(N * HEADS, T, T)):
        for padded in (None, PADDED):
            if padded is not None and mask is not None and mask.dtype != padded.dtype:
                continue
            options = {"key_padding_mask": padded, "attn_mask": mask, "need_weights": need,
                       "average_attn_weights": average}  # fmt: skip
            expected = own(x, x, x, **options)
            with opened([own], lambda _m, _p, _x, y: y):
                found = own(x, x, x, **options)
            assert_close(found, expected)


@torch.no_grad()
def test_opened_attention_of_other_inputs_and_without_a_batch():
    other = torch.randn(N, 3, WIDTH, generator=DRAW, dtype=torch.float64)
    wide = torch.randn(N, 3, 5, generator=DRAW, dtype=torch.float64)
    hidden = torch.ones(T, T).triu(1).bool()
    for module, args in (
        (nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), (X, other, other)),
        (nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, kdim=5, vdim=5, bias=False), (X, wide, wide)),
        (nn.MultiheadAttention(WIDTH, HEADS), (X[0], X[0], X[0])),
    ):
        own = jittered(module)
        expected = own(*args)
        with opened([own], lambda _m, _p, _x, y: y):
            found = own(*args)
        assert_close(found, expected)
    own = jittered(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    expected = own(X, X, X, attn_mask=hidden, is_causal=True, need_weights=False)
    with opened([own], lambda _m, _p, _x, y: y):
        assert_close(own(X, X, X, attn_mask=hidden, is_causal=True, need_weights=False), expected)


class Cross(nn.Module):
    """Queries from one tensor, keys and values from another."""

    def __init__(self, kdim: int | None) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, kdim=kdim, vdim=kdim, batch_first=True)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.attention(x, other, other, need_weights=False)[0].mean(1)


@pytest.mark.parametrize("kdim", [None, 5])
def test_cross_attention_has_separate_grams_or_none_and_a_diagonal_either_way(kdim):
    net = jittered(Cross(kdim))
    other = torch.randn(N, 3, kdim or WIDTH, generator=DRAW, dtype=torch.float64)
    found = collect_stats(net, [Batch((X, other), LABELS)], call, kinds={"kfac", "diag"}, dtype=torch.float64)
    each = gradients(net, lambda n: score(net(X[n : n + 1], other[n : n + 1]), LABELS[n : n + 1]).sum(), N)
    for name, gradient in each.items():
        assert_close(found.block(name, ["diag"]).diagonal, gradient.square().mean(0))
    if kdim is None:
        assert found.block("attention.in_proj_weight", ["gram"]) is None
        assert "inputs differ" in found.skipped["attention.in_proj_weight"]
    else:
        keys = other.flatten(0, 1)
        assert_close(found.block("attention.k_proj_weight").inputs, keys.T @ keys / len(keys))
        assert_close(found.block("attention.q_proj_weight").mean, X.flatten(0, 1).mean(0))
        assert found.block("attention.v_proj_weight").kinds == ("diag", "gram", "kfac")


def test_the_encoders_fast_path_hides_nothing():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, dropout=0.0, batch_first=True, norm_first=False)
    net = jittered(nn.TransformerEncoder(layer, 2, enable_nested_tensor=True))

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module(x, src_key_padding_mask=PADDED[: len(x)]).mean(1)

    fast = torch.backends.mha.get_fastpath_enabled()
    gram = collect_stats(net, [Batch(X, LABELS)], forward, kinds={"gram"}, dtype=torch.float64)
    kfac = collect_stats(net, [Batch(X, LABELS)], forward, kinds={"kfac"}, dtype=torch.float64)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert len(gram.names) == 8 and not gram.skipped
    for name in gram.names:
        assert_close(gram.block(name).inputs, kfac.block(name).inputs)
    assert "forward" not in net.layers[0].self_attn.__dict__


def test_open_clips_fused_tower_equals_the_unfused_one():
    open_clip = pytest.importorskip("open_clip.transformer")
    torch.manual_seed(0)
    tower = jittered(open_clip.Transformer(WIDTH, 2, HEADS), scale=0.1)
    assert isinstance(tower.resblocks[0].attn, nn.MultiheadAttention)
    split = [Split(block.attn) for block in tower.resblocks]

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module(x).mean(1)

    batches = [Batch(X[:3], LABELS[:3]), Batch(X[3:], LABELS[3:])]
    fused = collect_stats(tower, batches, forward, kinds={"kfac", "diag"}, dtype=torch.float64)
    for block, own in zip(tower.resblocks, split, strict=True):
        block.attn = own
    apart = collect_stats(tower, batches, forward, kinds={"kfac", "diag"}, dtype=torch.float64)
    for i in range(2):
        for j, name in enumerate("qkv"):
            whole = fused.block(f"resblocks.{i}.attn.in_proj_weight")
            part = apart.block(f"resblocks.{i}.attn.inner.{name}.weight")
            assert_close(whole.inputs, part.inputs)
            assert_close(whole.outputs[j], part.outputs[0])
            assert_close(whole.diagonal[j * WIDTH : (j + 1) * WIDTH], part.diagonal)
        for piece, tensor in fused.block(f"resblocks.{i}.attn.out_proj.weight").tensors.items():
            assert_close(tensor, apart.block(f"resblocks.{i}.attn.inner.out.weight").tensors[piece])


class Split(nn.Module):
    """A stand-in for an attention module whose projections are linear layers."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        holder = Fused()
        holder.attention = attention
        self.inner = Unfused(holder)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: object) -> tuple[Tensor, None]:
        inner = self.inner
        q, k, v = (f(query).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (inner.q, inner.k, inner.v))
        mixed = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v
        return inner.out(mixed.transpose(1, 2).flatten(2)), None

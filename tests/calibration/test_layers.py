"""Layers of other kinds and uses: Conv1D, convolutions, shared and tied weights, in-place and checkpointed blocks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import CLASSES, gradients, jittered, score
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mergelab.calibration import Batch, collect_stats

DRAW = torch.Generator().manual_seed(2)
N, T, D = 5, 3, 6
X = torch.randn(N, T, D, generator=DRAW, dtype=torch.float64)
LABELS = torch.randint(0, CLASSES, (N,), generator=DRAW)
ALL = {"gram", "kfac", "diag", "block"}


def halves(x: Tensor = X, labels: Tensor = LABELS) -> list[Batch]:
    return [Batch(x[:2], labels[:2]), Batch(x[2:], labels[2:])]


def stats(net: nn.Module, kinds=ALL, x: Tensor = X, **options):
    return collect_stats(net, halves(x), kinds=kinds, dtype=torch.float64, **options)


def one_by_one(net: nn.Module, x: Tensor = X) -> dict[str, Tensor]:
    return gradients(net, lambda n: score(net(x[n : n + 1]), LABELS[n : n + 1]).sum(), N)


def same(found, other) -> None:
    assert set(found.names) == set(other.names)
    for name in found.names:
        mine, theirs = found.block(name), other.block(name)
        assert set(mine.tensors) == set(theirs.tensors)
        assert (mine.rows, mine.examples) == (theirs.rows, theirs.examples)
        for piece, tensor in mine.tensors.items():
            assert_close(tensor, theirs.tensors[piece])


def squares_match(found, each: dict[str, Tensor]) -> None:
    for name, gradient in each.items():
        assert_close(found.block(name, ["diag"]).diagonal, gradient.square().mean(0))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def test_gpt2s_conv1d_is_the_transposed_linear_layer():
    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = conv(8, D), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x).tanh().mean(1))

    turned = jittered(Turned())
    plain = copy.deepcopy(turned)
    plain.inner = nn.Linear(D, 8).double()
    with torch.no_grad():
        plain.inner.weight.copy_(turned.inner.weight.T)
        plain.inner.bias.copy_(turned.inner.bias)
    one, two = stats(turned), stats(plain)
    mine, theirs = one.block("inner.weight"), two.block("inner.weight")
    assert (mine.layout, mine.shape) == ("conv1d", (D, 8)) and theirs.layout == "linear"
    assert_close(mine.inputs, theirs.inputs)
    assert_close(mine.outputs, theirs.outputs)
    assert_close(mine.diagonal, theirs.diagonal.T)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1, "stride": 2}, {"padding": "same", "dilation": 2}])
def test_a_convolution_is_a_linear_layer_of_patches(options):
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 5, 3, **options), nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).flatten(2).mT.tanh().mean(1))

    net = jittered(Patches())
    x = torch.randn(N, 2, 6, 6, generator=DRAW, dtype=torch.float64)
    found = stats(net, {"gram", "kfac", "diag"}, x, conv=True)
    block = found.block("conv.weight")
    # each patch by hand, from the padded picture
    pad = {"stride": 0}.get("none", 1 if options.get("padding") == 1 else 2 if "padding" in options else 0)
    gap = options.get("dilation", 1)
    padded = F.pad(x, (pad,) * 4)
    starts = range(0, padded.shape[-1] - 2 * gap, options.get("stride", 1))
    rows = torch.stack([
        padded[n, :, i : i + 2 * gap + 1 : gap, j : j + 2 * gap + 1 : gap].flatten()
        for n in range(N) for i in starts for j in starts
    ])  # fmt: skip
    assert (block.layout, block.rows, block.shape) == ("conv", len(rows), (5, 2, 3, 3))
    assert_close(block.inputs, rows.T @ rows / len(rows))
    assert_close(block.mean, rows.mean(0))
    squares_match(found, one_by_one(net, x))
    out = net.conv(x).detach().requires_grad_()
    score(net.head(out.flatten(2).mT.tanh().mean(1)), LABELS).sum().backward()
    g = out.grad.flatten(2).mT.flatten(0, 1)
    assert_close(block.outputs[0], g.T @ g / len(g))
    without = stats(net, {"gram"}, x)
    assert without.block("conv.weight") is None and "convolutions" in without.skipped["conv.weight"]


def test_a_layer_used_twice_counts_both_uses_and_squares_their_sum():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm, self.head = nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            once = self.norm(self.inner(x).tanh())
            return self.head(self.norm(self.inner(once)).mean(1))

    net = jittered(Twice())
    found = stats(net, ALL)
    squares_match(found, one_by_one(net))
    first = X.flatten(0, 1)
    second = net.norm(net.inner(X).tanh()).detach().flatten(0, 1)
    both = torch.cat([first, second])
    block = found.block("inner.weight")
    assert block.rows == 2 * N * T
    assert_close(block.inputs, both.T @ both / len(both))


def test_tied_weights_are_one_tensor():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, D)
            self.out = nn.Linear(D, 9, bias=False)
            self.out.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.words(ids).mean(1))

    net = jittered(Tied())
    ids = torch.randint(0, 9, (N, T), generator=DRAW)
    found = stats(net, {"kfac", "diag"}, ids)
    assert found.names == ("words.weight",) and found.block("words.weight").kinds == ("diag",)
    assert "tied to an embedding" in found.skipped["words.weight"]
    squares_match(found, one_by_one(net, ids))


class Block(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(D, 8), nn.Linear(8, D), nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.act(self.up(x)))
        y += x
        return y


class Deep(nn.Module):
    def __init__(self, inplace: bool = False, reentrant: bool | None = None) -> None:
        super().__init__()
        self.embed = nn.Linear(D, D)
        self.blocks = nn.ModuleList(Block(inplace) for _ in range(2))
        self.head = nn.Linear(D, CLASSES)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x.mean(1))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_in_place_activations_and_checkpointed_blocks_change_nothing(reentrant):
    plain = jittered(Deep())
    other = Deep(inplace=True, reentrant=reentrant).double()
    other.load_state_dict(plain.state_dict())
    expected = stats(plain, ALL)
    squares_match(expected, one_by_one(plain))
    same(stats(other, ALL), expected)
    assert all(p.grad is None for p in other.parameters())


def test_an_input_that_is_changed_in_place_afterwards_is_an_error_not_a_wrong_number():
    from mergelab.errors import StatisticsError

    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(D, D), nn.Linear(D, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 2
            y = self.inner(x)
            x.add_(1)
            return self.head((x + y).mean(1))

    net = jittered(Changes())
    found = stats(net, {"kfac"})  # needs the input only when it comes by
    rows = (2 * X).flatten(0, 1)
    assert_close(found.block("inner.weight").inputs, rows.T @ rows / len(rows))
    with pytest.raises(StatisticsError, match="Something that a layer took is changed in place afterwards"):
        stats(net, {"diag"})


def test_layers_that_take_the_same_input_share_a_gram_to_the_bit():
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(D, D) for _ in range(3))
            self.head = nn.Linear(D, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = x.tanh()
            mixed = self.q(x) * self.k(x)
            x = x + 0  # another tensor, the same numbers
            return self.head((mixed + self.v(x)).mean(1))

    net = jittered(Three())
    found = stats(net, {"kfac"})
    rows = X.tanh().flatten(0, 1)
    for name in "qkv":
        assert_close(found.block(f"{name}.weight").inputs, rows.T @ rows / len(rows))
    assert torch.equal(found.block("q.weight").inputs, found.block("k.weight").inputs)


def test_examples_along_the_second_dimension_or_folded_with_tokens():
    class SecondOrFolded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seq, self.flat, self.head = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            y = self.seq(x.transpose(0, 1)).tanh()
            y = self.flat(y.transpose(0, 1).reshape(-1, D)).view(len(x), -1, D)
            return self.head(y.mean(1))

    net = jittered(SecondOrFolded())
    square = X[:T]  # as many examples as tokens, so that a wrong dimension would not show in shapes
    found = collect_stats(net, [Batch(square, LABELS[:T])], kinds={"kfac", "diag"}, dtype=torch.float64)
    each = gradients(net, lambda n: score(net(X[n : n + 1]), LABELS[n : n + 1]).sum(), T)
    squares_match(found, each)
    masked = [Batch(square, LABELS[:T], torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]))]
    rows = collect_stats(net, masked, kinds={"gram"}, dtype=torch.float64).block("seq.weight")
    kept = torch.cat([X[0], X[1, :1], X[2, :2]])
    assert rows.rows == 6
    assert_close(rows.inputs, kept.T @ kept / 6)


def test_examples_that_alternate_with_tokens_go_the_long_way():
    class TokenMajor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(D, D), nn.Linear(D, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x.transpose(0, 1).reshape(-1, D)).tanh()
            return self.head(y.view(x.shape[1], -1, D).mean(0))

    net = jittered(TokenMajor())
    found = stats(net, {"kfac", "diag"})
    squares_match(found, one_by_one(net))
    assert found.block("inner.weight").outputs is None
    assert "examples are not apart" in found.skipped["inner.weight"]


def test_what_vmap_cannot_run_is_taken_one_example_at_a_time():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.ones(D)), nn.Linear(D, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            if float(x.sum()) > 1e9:  # looks at the values
                x = x * 0
            return self.head((x * self.scale).tanh().mean(1))

    net = jittered(Branches())
    found = stats(net, ALL)
    assert found.meta["one_by_one"]
    each = one_by_one(net)
    squares_match(found, each)
    assert_close(found.block("scale").full, each["scale"].T @ each["scale"] / N)


def test_weights_that_are_not_what_they_look_like_are_skipped_with_the_reason():
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.doubled = Doubled(D, D)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(D, D))
            self.never = nn.Linear(D, D)
            self.head = nn.Linear(D, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.normed(self.doubled(x)).mean(1))

    net = jittered(Odd())
    found = stats(net, {"kfac", "diag"})
    assert found.block("doubled.weight").kinds == ("diag",)
    assert "not its weight times its input" in found.skipped["doubled.weight"]
    assert "computed from other parameters" in found.skipped["normed"]
    assert "never called" in found.skipped["never.weight"]
    each = one_by_one(net)
    squares_match(found, {name: g for name, g in each.items() if not name.startswith("never")})


def test_a_weight_that_is_also_read_past_its_layer_has_its_whole_gradient_squared():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(D, D), nn.Linear(D, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.linear(self.inner(x).tanh(), self.inner.weight.T).mean(1))

    net = jittered(Reads())
    squares_match(stats(net, {"diag"}), one_by_one(net))


def test_bert_and_gpt2_against_autograd():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ids = torch.randint(1, 20, (4, 6), generator=DRAW)
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3, [1] * 5 + [0], [1] * 2 + [0] * 4])
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 12, "max_position_embeddings": 8, "num_labels": 3}  # fmt: skip
    bert = jittered(transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)))
    labels = torch.tensor([0, 2, 1, 1])

    def batch(part: slice, labels: Tensor) -> Batch:
        return Batch({"input_ids": ids[part], "attention_mask": mask[part]}, labels[part], mask[part])

    found = collect_stats(bert, [batch(slice(0, 3), labels), batch(slice(3, 4), labels)],
                          kinds={"kfac", "diag"}, dtype=torch.float64)  # fmt: skip
    each = gradients(
        bert, lambda n: score(bert(ids[n : n + 1], attention_mask=mask[n : n + 1]).logits, labels[n : n + 1]).sum(), 4
    )
    squares_match(found, {name: g for name, g in each.items() if name not in found.skipped})
    assert not any(g.any() for name, g in each.items() if name in found.skipped and "diag" in name)
    query = found.block("bert.encoder.layer.0.attention.self.query.weight")
    assert query.rows == int(mask.sum()) and query.kinds == ("diag", "gram", "kfac")

    small = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    gpt = jittered(transformers.GPT2LMHeadModel(small))
    targets = torch.cat([ids[:, 1:], torch.full((4, 1), -100)], 1).masked_fill(mask == 0, -100)
    found = collect_stats(gpt, [batch(slice(0, 3), targets), batch(slice(3, 4), targets)],
                          kinds={"kfac", "diag"}, dtype=torch.float64)  # fmt: skip
    each = gradients(
        gpt, lambda n: score(gpt(ids[n : n + 1], attention_mask=mask[n : n + 1]).logits, targets[n : n + 1]).sum(), 4
    )
    squares_match(found, each)
    assert found.block("transformer.h.0.attn.c_attn.weight").layout == "conv1d"
    assert found.block("transformer.wte.weight").kinds == ("diag",)


def test_ia3_vectors_of_a_peft_model():
    peft = pytest.importorskip("peft")
    from mergelab.errors import StatisticsError

    class Ffn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k_proj, self.down, self.head = nn.Linear(D, 8), nn.Linear(8, D), nn.Linear(D, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.down(self.k_proj(x).tanh()).mean(1))

    settings = peft.IA3Config(target_modules=["k_proj", "down"], feedforward_modules=["down"])
    net = jittered(peft.get_peft_model(Ffn(), settings))
    vectors = [name for name, _ in net.named_parameters() if "ia3_l" in name]
    assert len(vectors) == 2
    found = stats(net, {"block", "diag"}, names=vectors)
    assert set(found.names) == set(vectors)
    each = one_by_one(net)
    for name in vectors:
        flat = each[name].flatten(1)
        block = found.block(name)
        assert block.kinds == ("diag", "block") and block.layout == ""
        assert_close(block.full, flat.T @ flat / N)
        assert_close(block.diagonal, each[name].square().mean(0))
    with pytest.raises(
        StatisticsError, match=r"no linear inputs of its own: take the kinds 'block' or 'diag' for \(IA"
    ):
        stats(net, {"kfac"}, names=vectors)


def test_lora_factors_are_never_solved_for_apart():
    peft = pytest.importorskip("peft")
    from mergelab.errors import StatisticsError

    net = nn.Sequential()
    net.add_module("up", nn.Linear(D, 8))
    net.add_module("mean", Mean())
    net.add_module("head", nn.Linear(8, CLASSES))
    wrapped = jittered(peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["up"])))
    found = stats(wrapped, {"gram", "diag"})
    factors = [name for name, _ in wrapped.named_parameters() if "lora_" in name]
    assert len(factors) == 2
    for name in factors:
        assert found.block(name).kinds == ("diag",) and "a LoRA factor" in found.skipped[name]
    squares_match(found, one_by_one(wrapped))
    with pytest.raises(StatisticsError, match=r"is a LoRA factor: A and B are never solved for apart, so load"):
        stats(wrapped, {"kfac"}, names=factors)

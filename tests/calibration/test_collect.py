"""Statistics against explicit loops: Grams, output factors, Fishers, at any batch size and padding."""

from __future__ import annotations

import pytest
import torch
from nets import Net, gradients, jittered, score, texts, watched
from torch import Tensor, nn
from torch.testing import assert_close

from mergelab.calibration import Batch, collect_stats

IDS, MASK, LABELS = texts()
KINDS = {"gram", "kfac", "diag", "block"}


def run(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return module(inputs["ids"], inputs["mask"])


def batches(size: int, extra: int = 0) -> list[Batch]:
    """The texts in batches, each padded ``extra`` tokens beyond its longest."""
    out = []
    for start in range(0, len(IDS), size):
        part = slice(start, start + size)
        longest = int(MASK[part].sum(1).max())
        width = min(IDS.shape[1], longest + extra)
        inputs = {"ids": IDS[part, :width], "mask": MASK[part, :width]}
        out.append(Batch(inputs, LABELS[part], MASK[part, :width]))
    return out


def test_inputs_and_output_gradients_equal_loops_over_unmasked_tokens():
    net = jittered(Net())
    found = collect_stats(net, batches(3, extra=2), run, kinds=KINDS, dtype=torch.float64)
    keep = MASK.bool().flatten()
    for layer in ("first", "second"):
        xs, gs = watched(net, layer, lambda: score(run(net, {"ids": IDS, "mask": MASK}), LABELS))
        x, g = xs[0].flatten(0, 1)[keep], gs[0].flatten(0, 1)[keep]
        block = found.block(f"{layer}.weight")
        assert block is not None and block.rows == int(MASK.sum()) and block.layout == "linear"
        assert_close(block.inputs, sum(torch.outer(r, r) for r in x) / len(x))
        assert_close(block.mean, x.mean(0))
        assert_close(block.outputs, sum(torch.outer(r, r) for r in g).unsqueeze(0) / len(g))
    head = found.block("head.weight")
    assert head is not None and head.rows == len(IDS)  # one row an example, after pooling


def test_the_diagonal_and_full_blocks_equal_a_loop_of_autograd():
    net = jittered(Net())
    found = collect_stats(net, batches(3), run, kinds=KINDS, dtype=torch.float64)
    alone = gradients(
        net,
        lambda n: score(run(net, {"ids": IDS[n : n + 1], "mask": MASK[n : n + 1]}), LABELS[n : n + 1]).sum(),
        len(IDS),
    )
    for name, each in alone.items():
        block = found.block(name, ["diag", "block"])
        if name.startswith("never"):
            assert block is None and found.skipped[name]
            continue
        assert block is not None and block.examples == len(IDS)
        assert_close(block.diagonal, each.square().mean(0))
        flat = each.flatten(1)
        if each.ndim == 2:
            assert block.full is not None
            assert_close(block.full, flat.T @ flat / len(flat))
        else:
            assert block.full is None  # matrices only when they are named


@pytest.mark.parametrize("fisher", ["empirical", "sampled", "exact"])
def test_batch_size_and_padding_do_not_matter(fisher):
    net = jittered(Net())
    made = [
        collect_stats(net, batches(size, extra), run, kinds=KINDS, fisher=fisher, seed=5, dtype=torch.float64)
        for size, extra in ((1, 0), (8, 0), (3, 4))
    ]
    for name in made[0].names:
        first = made[0].block(name)
        for other in made[1:]:
            again = other.block(name)
            assert again.rows == first.rows and again.examples == first.examples
            for piece, tensor in first.tensors.items():
                assert_close(again.tensors[piece], tensor, rtol=1e-9, atol=1e-14)


def test_the_first_examples_are_taken_and_the_last_batch_is_cut():
    net = jittered(Net())
    some = collect_stats(net, batches(3), run, kinds={"diag"}, max_examples=4, dtype=torch.float64)
    first = [b.first(4 - 3 * i) for i, b in enumerate(batches(3)[:2])]
    same = collect_stats(net, first, run, kinds={"diag"}, dtype=torch.float64)
    assert some.examples == same.examples == 4
    for name in same.names:
        assert torch.equal(some.block(name).diagonal, same.block(name).diagonal)


def test_a_gram_needs_no_labels_and_no_gradients():
    net = jittered(Net())
    bare = [Batch(b.inputs, None, b.mask) for b in batches(3)]

    def without(module, inputs):
        assert not torch.is_grad_enabled()
        return run(module, inputs)

    found = collect_stats(net, bare, without, kinds={"gram"}, dtype=torch.float64)
    full = collect_stats(net, batches(3), run, kinds={"kfac"}, dtype=torch.float64)
    assert found.fisher == "" and found.kinds == ("gram",)
    for name in found.names:
        assert torch.equal(found.block(name).inputs, full.block(name).inputs)


def test_the_module_is_left_as_it_was():
    net = jittered(Net()).train()
    net.first.weight.requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    before = {n: (p, p.data_ptr(), p.requires_grad, p.grad) for n, p in net.named_parameters()}
    with torch.no_grad():  # does not keep gradients from being taken
        collect_stats(net, batches(3), run, kinds=KINDS)
    assert all(part.training for part in net.modules())
    for name, p in net.named_parameters():
        assert before[name] == (p, p.data_ptr(), p.requires_grad, p.grad) and p.dtype == torch.float64
    assert not any(part._forward_hooks for part in net.modules())


def test_float32_is_close_and_half_precision_weights_are_run_in_float32():
    net = jittered(Net())
    exact = collect_stats(net, batches(3), run, kinds=KINDS, dtype=torch.float64)
    single = collect_stats(net, batches(3), run, kinds=KINDS)
    half = net.bfloat16()
    rounded = collect_stats(half, batches(3), run, kinds=KINDS)
    same = collect_stats(net.bfloat16().float(), batches(3), run, kinds=KINDS)
    for name in exact.names:
        for piece, tensor in exact.block(name).tensors.items():
            assert single.block(name).tensors[piece].dtype == torch.float32
            assert_close(single.block(name).tensors[piece].double(), tensor, rtol=1e-3, atol=1e-5)
            assert torch.equal(rounded.block(name).tensors[piece], same.block(name).tensors[piece])


def test_only_named_parameters():
    net = jittered(Net())
    found = collect_stats(net, batches(3), run, kinds={"kfac", "diag"}, names=["first.weight", "scale"])
    assert found.names == ("first.weight", "scale") or set(found.names) == {"first.weight", "scale"}
    assert found.block("scale").kinds == ("diag",)
    by_function = collect_stats(net, batches(3), run, kinds={"diag"}, names=lambda name: name.startswith("norm"))
    assert set(by_function.names) == {"norm.weight", "norm.bias"}


def test_large_outputs_keep_the_gram_only_and_say_so():
    net = jittered(Net())
    found = collect_stats(net, batches(3), run, kinds={"kfac"}, max_outputs=7)
    assert found.block("first.weight").outputs is None and found.block("second.weight").outputs is not None
    assert "8 outputs, more than max_outputs 7" in found.skipped["first.weight"]


def test_progress_and_stop():
    from mergelab.errors import Cancelled
    from mergelab.progress import Stop

    net, told, stop = jittered(Net()), [], Stop()
    collect_stats(net, batches(3), run, kinds={"gram"}, total=7, progress=lambda *said: told.append(said[:2]))
    assert told == [(3, 7), (6, 7), (7, 7)]
    with pytest.raises(Cancelled):
        collect_stats(net, batches(3), run, kinds={"gram"}, stop=stop, progress=lambda *_: stop.set())
    assert not any(part._forward_hooks for part in net.modules())

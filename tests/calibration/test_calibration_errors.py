"""Bad data, models and options: one sentence that names what and where."""

from __future__ import annotations

import pytest
import torch
from nets import jittered
from torch import Tensor, nn

from mergelab.calibration import Batch, collect_stats, estimate
from mergelab.errors import StatisticsError

X = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.head = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.inner(x)).mean(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return jittered(Net()).float()


def refused(words: str, *batches: object, module: nn.Module | None = None, forward=None, **options) -> None:
    options = {"kinds": {"kfac", "diag"}, **options}
    own = module or net()
    with pytest.raises(StatisticsError) as caught:
        collect_stats(own, list(batches), forward, **options)
    text = str(caught.value)
    assert words in text
    assert "\n" not in text and len(text) < 400
    assert not any(part._forward_hooks for part in own.modules())
    assert all(p.requires_grad for p in own.parameters())


def test_no_examples():
    refused("There are no examples of 'mnist': the batches are empty.", task="mnist")
    refused("max_examples is 0", Batch(X, LABELS), max_examples=0)


def test_labels():
    refused("The empirical Fisher needs labels and the batch has none: give them, or take fisher='sampled' or 'exact'.",
            Batch(X))  # fmt: skip
    refused("The labels have the shape [2], the logits [4, 3]: labels [4] were expected.", Batch(X, LABELS[:2]))
    refused("A label is 7 and the model has 3 classes (0 to 2).", Batch(X, torch.tensor([0, 1, 7, 2])))
    refused("A label is -1 and the model has 3 classes", Batch(X, torch.tensor([0, 1, -1, 2])))
    refused("The labels are float32; whole numbers were expected.", Batch(X, LABELS.float()))
    refused("A label is -100, which ignores a token; an example of a classifier needs one.",
            Batch(X, torch.tensor([0, 1, -100, 2])))  # fmt: skip

    def tokens(module, x):
        return module.head(module.inner(x))

    nothing = torch.full((4, 3), -100)
    nothing[0] = 1
    refused("Example 1 of a batch has no target token: all its labels are ignored.", Batch(X, nothing), forward=tokens)


def test_masks_of_another_shape():
    refused(
        "The mask has the shape [4, 2] and the activations of 'inner' are [4, 3] rows",
        Batch(X, LABELS, torch.ones(4, 2)),
    )
    refused("The mask has the shape [4, 9] and the activations of 'inner' are [4, 3] rows", Batch(X, LABELS),
            mask=lambda _layer, _batch: torch.ones(4, 9))  # fmt: skip
    refused("All rows of 'inner.weight' are masked", Batch(X, LABELS, torch.zeros(4, 3)))


def test_a_mask_by_layer():
    seen = []

    def mask(layer: str, batch: Batch) -> Tensor | None:
        seen.append(layer)
        return torch.tensor([[1, 1, 0]]).expand(len(batch.labels), 3) if layer == "inner" else None

    found = collect_stats(net(), [Batch(X, LABELS)], kinds={"gram"}, mask=mask)
    kept = X[:, :2].flatten(0, 1)
    torch.testing.assert_close(found.block("inner.weight").inputs, kept.T @ kept / len(kept))
    assert set(seen) == {"inner", "head"}


def test_no_graph():
    def blind(module, x):
        with torch.no_grad():
            return module(x)

    def cut(module, x):
        return module(x).detach()

    def inference(module, x):
        with torch.inference_mode():
            return module(x)

    for forward in (blind, cut, inference):
        refused("The logits have no gradient: forward ran under torch.no_grad or inference_mode, or detached them.",
                Batch(X, LABELS), forward=forward)  # fmt: skip
        assert collect_stats(net(), [Batch(X, LABELS)], forward, kinds={"gram"}).kinds == ("gram",)


def test_frozen_parameters_and_no_grad_outside_are_no_matter():
    own = net().requires_grad_(False)
    expected = collect_stats(net(), [Batch(X, LABELS)], kinds={"kfac", "diag"})
    with torch.inference_mode():
        found = collect_stats(own, [Batch(X, LABELS)], kinds={"kfac", "diag"})
    for name in expected.names:
        for piece, tensor in expected.block(name).tensors.items():
            assert torch.equal(found.block(name).tensors[piece], tensor)
    assert not any(p.requires_grad for p in own.parameters())


def test_numbers_that_are_not_finite_name_the_layer():
    spoilt = X.clone()
    spoilt[2, 1, 0] = float("nan")
    refused("What goes into the layer 'inner' holds NaN or infinity", Batch(spoilt, LABELS))
    refused("What goes into the layer 'inner' holds NaN or infinity", Batch(spoilt, LABELS), kinds={"gram"})
    own = net()
    with torch.no_grad():
        own.head.bias[1] = float("inf")
    refused("The logits hold NaN or infinity", Batch(X, LABELS), module=own)

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs().sqrt()  # no gradient at 0

    own = net()
    own.act = Root()
    with torch.no_grad():
        own.inner.weight[0] = 0
        own.inner.bias[0] = 0
    refused("The gradient on the output of the layer 'inner' holds NaN or infinity", Batch(X, LABELS), module=own)
    hidden = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]])
    padded = collect_stats(net(), [Batch(spoilt, LABELS, hidden)], masked_mean, kinds={"gram"})
    assert padded.block("inner.weight").rows == 11  # what a mask hides may be anything


def masked_mean(module: nn.Module, x: Tensor) -> Tensor:
    return module.head(module.inner(x).nan_to_num().mean(1))


def test_options():
    data = Batch(X, LABELS)
    refused("There is no kind of statistics 'kfca'. Did you mean 'kfac'?", data, kinds={"kfca"})
    refused("Say which statistics to collect: some of diag, gram, kfac, block.", data, kinds=())
    refused("There is no Fisher 'empiric'. Did you mean 'empirical'?", data, fisher="empiric")
    refused("The model has no parameter 'iner.weight'. Did you mean 'inner.weight'?", data, names=["iner.weight"])
    refused("names= selects no parameter of the model.", data, names=lambda _: False)
    refused("Statistics are float32 or float64, not bfloat16.", data, dtype=torch.bfloat16)
    refused("here 3 for 3 classes, and the limit is 2: take fisher='sampled', or raise class_limit.", data,
            fisher="exact", class_limit=2)  # fmt: skip
    refused("'kfac' was asked for 'inner.bias', which has no linear inputs of its own: take the kinds 'block' or "
            "'diag'", data, names=["inner.bias"])  # fmt: skip


def test_a_block_above_the_limit_states_the_memory_it_needs():
    wide = nn.Sequential(nn.Linear(5, 20000), nn.Linear(20000, 3))
    refused("'0.bias': a full block of its 20,000 values needs 1.6 GB, and the limit is 4,096 values (block_limit).",
            Batch(X[:, 0], LABELS), module=wide, kinds={"block"}, names=["0.bias"])  # fmt: skip
    found = collect_stats(wide, [Batch(X[:, 0], LABELS)], kinds={"block"})
    assert found.names == ("1.bias",) and "needs 1.6 GB, above the limit" in found.skipped["0.bias"]


def test_what_forward_gives():
    refused(
        "forward must give logits [N, K] or [N, T, K], found [1].", Batch(X, LABELS), forward=lambda m, x: m(x)[:, 0]
    )
    refused("forward gave logits of 1 examples for a batch of 4.", Batch(X, LABELS), forward=lambda m, x: m(x)[:1])
    refused("hold no tensor (str was given)", Batch("text", LABELS))


def test_an_estimate_is_exact_about_bytes(tmp_path):
    from mergelab.statistics import read, write

    own = net()
    found = collect_stats(own, [Batch(X, LABELS)], kinds={"gram", "kfac", "diag", "block"})
    told = estimate(own, Batch(X, LABELS), kinds={"gram", "kfac", "diag", "block"}, examples=400)
    assert told.nbytes == sum(found.block(name).nbytes for name in found.names)
    assert told.tensors == len(found.names) and told.examples == 400 and told.timed == 4
    assert told.passes == 1 and told.seconds > 0
    path = write(found, tmp_path / "task.safetensors")
    assert told.nbytes < path.stat().st_size < told.nbytes + 8192  # the header
    assert read(path).names

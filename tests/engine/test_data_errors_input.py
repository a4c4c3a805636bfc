"""The catalogue of what is refused about data, second part (item 7): examples, labels, masks, graphs, word for word.

Also what `collect_stats` says to the other items: unknown kinds, (IA)³ vectors, blocks that are too large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_statistics import NAMES
from torch import Tensor, nn

from mergelab.calibration import Batch, collect_stats
from mergelab.engine import plan, stream
from mergelab.errors import StatisticsError

X = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
DATA = Batch(X, LABELS)
GRAPH = (
    "The logits have no gradient: forward ran under torch.no_grad or inference_mode, or detached them. Let gradients "
    "pass, or collect 'gram' only."
)
LAYERS_MASK = "give mask=(a function of the layer's name and the batch) where layers have different masks."
OVERFLOW = "holds NaN or infinity, so no statistics can be taken: look for weights or inputs that overflow."
NO_TENSOR = "so its examples cannot be counted. Give a tensor, or tensors in a tuple or a mapping."


class Net(nn.Module):
    """A layer on tokens, an (IA)³ vector, a head, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head, self.never = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(2, 2)
        self.ia3_l = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return tokens(self, x).mean(1)


def tokens(net: nn.Module, x: Tensor) -> Tensor:
    return net.head((net.inner(x) * net.ia3_l).tanh())


def blind(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def inference(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(x)


def with_nan() -> Tensor:
    out = X.clone()
    out[2, 1, 0] = float("nan")
    return out


def collect(*batches: Any, forward: Any = None, change: Callable[[Net], Any] | None = None, **options: Any) -> Any:
    net = Net()
    if change is not None:
        with torch.no_grad():
            change(net)
    return collect_stats(net, list(batches), forward, **{"kinds": {"kfac", "diag"}, **options})


def labelled(*labels: float) -> Callable[[], Any]:
    return lambda: collect(Batch(X, torch.tensor(labels)))


def forwarded(forward: Any, **more: Any) -> Callable[[], Any]:
    return lambda: collect(DATA, forward=forward, **more)


def asked(**options: Any) -> Callable[[], Any]:
    return lambda: collect(DATA, **options)


COLLECTING: list[tuple[str, Callable[[], Any], str]] = [
    ("7 no batches", lambda: collect(task="mnist"), "There are no examples of 'mnist': the batches are empty."),
    ("7 empty batches", lambda: collect(Batch(X[:0], LABELS[:0]), task="mnist"),
     "There are no examples of 'mnist': the batches are empty."),
    ("7 no examples wanted", asked(max_examples=0), "At least one example is needed, and max_examples is 0."),
    ("7 no tensor", lambda: collect(Batch("text", LABELS)),
     f"A batch's inputs hold no tensor (str was given), {NO_TENSOR}"),
    ("7 no labels", lambda: collect(Batch(X)),
     "The empirical Fisher needs labels and the batch has none: give them, or take fisher='sampled' or 'exact'."),
    ("7 too few labels", labelled(0, 1), "The labels have the shape [2], the logits [4, 3]: labels [4] were expected."),
    ("7 a label of no class", labelled(0, 1, 7, 2), "A label is 7 and the model has 3 classes (0 to 2)."),
    ("7 a label below 0", labelled(0, 1, -1, 2), "A label is -1 and the model has 3 classes (0 to 2)."),
    ("7 labels that are no numbers of classes", labelled(0.0, 1.0, 2.0, 0.0),
     "The labels are float32; whole numbers were expected."),
    ("7 an ignored label", labelled(0, 1, -100, 2),
     "A label is -100, which ignores a token; an example of a classifier needs one."),
    ("7 no target token", lambda: collect(Batch(X, torch.tensor([[1] * 3, [-100] * 3, [1] * 3, [1] * 3])),
                                          forward=tokens),
     "Example 1 of a batch has no target token: all its labels are ignored."),
    ("7 a mask of another shape", lambda: collect(Batch(X, LABELS, torch.ones(4, 2))),
     f"The mask has the shape [4, 2] and the activations of 'inner' are [4, 3] rows: {LAYERS_MASK}"),
    ("7 a layer's mask of another shape", asked(mask=lambda _layer, _batch: torch.ones(4, 9)),
     f"The mask has the shape [4, 9] and the activations of 'inner' are [4, 3] rows: {LAYERS_MASK}"),
    ("7 a mask of another shape than the logits", lambda: collect(Batch(X, None, torch.ones(4, 2)), forward=tokens,
                                                                  fisher="sampled", kinds={"diag"}),
     "The mask has the shape [4, 2] and the logits [4, 3, 3]: give labels [N, T] with -100 where nothing is "
     "predicted."),
    ("7 everything is masked", lambda: collect(Batch(X, LABELS, torch.zeros(4, 3))),
     "All rows of 'inner.weight' are masked, so there is nothing to average."),
    ("7 no graph inside no_grad", forwarded(blind), GRAPH),
    ("7 no graph inside inference_mode", forwarded(inference), GRAPH),
    ("7 no graph after detach", forwarded(lambda net, x: net(x).detach(), kinds={"block"}), GRAPH),
    ("7 no logits", forwarded(lambda _net, _x: None), "forward must give logits [N, K] or [N, T, K], found NoneType."),
    ("7 a loss instead of logits", forwarded(lambda net, x: net(x).logsumexp(-1).sum()),
     "forward must give logits [N, K] or [N, T, K], found []."),
    ("7 logits of other examples", forwarded(lambda net, x: net(x)[:1]),
     "forward gave logits of 1 examples for a batch of 4."),
    ("10 activations that are not finite", lambda: collect(Batch(with_nan(), LABELS)),
     f"What goes into the layer 'inner' {OVERFLOW}"),
    ("10 logits that are not finite", asked(change=lambda net: net.head.bias.fill_(float("inf"))),
     "The logits hold NaN or infinity, so no statistics can be taken: look for weights or inputs that overflow."),
    ("10 gradients that are not finite", forwarded(
        lambda net, x: net.head((net.inner(x) * 0).abs().sqrt().mean(1))),
     f"The gradient on the output of the layer 'inner' {OVERFLOW}"),
    ("5 an unknown kind", asked(kinds={"kfca"}), "There is no kind of statistics 'kfca'. Did you mean 'kfac'?"),
    ("5 no kinds", asked(kinds=()), "Say which statistics to collect: some of diag, gram, kfac, block."),
    ("5 an unknown Fisher", asked(fisher="empiric"), "There is no Fisher 'empiric'. Did you mean 'empirical'?"),
    ("5 an unknown parameter", asked(names=["iner.weight"]),
     "The model has no parameter 'iner.weight'. Did you mean 'inner.weight'?"),
    ("5 half precision", asked(dtype=torch.bfloat16), "Statistics are float32 or float64, not bfloat16."),
    ("2.4 exact, too many classes", asked(fisher="exact", class_limit=2),
     "The exact Fisher takes one backward pass for each label, here 3 for 3 classes, and the limit is 2: take "
     "fisher='sampled', or raise class_limit."),
    ("6 K-FAC of (IA)3", asked(names=["ia3_l"]),
     "'kfac' was asked for 'ia3_l', which has no linear inputs of its own: take the kinds 'block' or 'diag' for (IA)³ "
     "vectors."),
    ("6 Gram of (IA)3", asked(names=["ia3_l"], kinds={"gram"}),
     "'gram' was asked for 'ia3_l', which has no linear inputs of its own: take the kinds 'block' or 'diag' for (IA)³ "
     "vectors."),
    ("6 a full block above the limit", lambda: collect_stats(nn.Linear(5, 20000), [Batch(X[:, 0], LABELS)],
                                                             kinds={"block"}, names=["bias"]),
     "'bias': a full block of its 20,000 values needs 1.6 GB, and the limit is 4,096 values (block_limit)."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "sentence"), [r[1:] for r in COLLECTING], ids=[r[0] for r in COLLECTING])
def test_a_clause_about_data(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(StatisticsError) as caught:
        call()
    assert str(caught.value) == sentence


def test_the_data_of_those_rows_are_good_before() -> None:
    assert collect(DATA, fisher="exact").kinds == ("diag", "gram", "kfac")
    assert collect(DATA, names=["ia3_l"], kinds={"block"}).kinds == ("block",)
    assert collect(Batch(X, None, torch.ones(4, 3)), forward=tokens, fisher="sampled").names
    frozen = collect(DATA, change=lambda net: net.requires_grad_(False))  # and no graph is missed by frozen weights
    assert torch.equal(frozen.block("inner.weight").outputs, collect(DATA).block("inner.weight").outputs)


def test_layers_without_statistics_say_why() -> None:
    """Section 10: hooks that never fire, output layers that are too large; the merge repeats the reason."""
    found = collect(DATA, kinds={"kfac"}, max_outputs=5, weights_hash="")
    assert found.skipped["never.weight"] == "it was never called"
    assert found.skipped["inner.weight"] == "its output gradient is left out: 6 outputs, more than max_outputs 5"
    net = Net()
    models = {name: {key: t + seed for key, t in net.state_dict().items()} for seed, name in enumerate(NAMES)}
    log: list[Any] = []
    dict(stream(plan("mats", models, statistics=dict.fromkeys(NAMES, found)), log=log.append))
    why = {entry["tensor"]: (entry["by"], entry["why"]) for entry in log}
    assert why["never.weight"] == ("average", "it was never called (statistics of 'ant')")
    assert why["inner.weight"] == (
        "average",
        "its output gradient is left out: 6 outputs, more than max_outputs 5 (statistics of 'ant')",
    )
    assert why["head.weight"][0] == "cg"

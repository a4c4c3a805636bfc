"""Labels of gradients: the algebra of a linear softmax, exact against sampled, tokens, seeds."""

from __future__ import annotations

import pytest
import torch
from nets import gradients, jittered, score
from torch import Tensor, nn
from torch.testing import assert_close

from mergelab.calibration import Batch, collect_stats
from mergelab.calibration.labels import Labels

DRAW = torch.Generator().manual_seed(4)
N, D, K = 6, 3, 4
X = torch.randn(N, D, generator=DRAW, dtype=torch.float64)
LABELS = torch.randint(0, K, (N,), generator=DRAW)


def linear() -> nn.Module:
    return jittered(nn.Linear(D, K), scale=0.8)


def stats(net: nn.Module, x: Tensor = X, labels: Tensor | None = LABELS, mask: Tensor | None = None, **options):
    options = {"kinds": {"gram", "kfac", "diag", "block"}, "names": None, **options}
    return collect_stats(net, [Batch(x, labels, mask)], dtype=torch.float64, **options)


def test_g_of_a_linear_softmax_is_the_covariance_of_the_errors():
    net = linear()
    p = net(X).softmax(-1).detach()
    error = nn.functional.one_hot(LABELS, K) - p
    empirical = stats(net)
    assert_close(empirical.block("weight").outputs[0], error.T @ error / N)
    exact = stats(net, fisher="exact")
    expected = sum(torch.diag(row) - torch.outer(row, row) for row in p) / N  # Cov of a one-hot drawn from p
    assert_close(exact.block("weight").outputs[0], expected)
    assert_close(exact.block("bias").full, expected)
    # its Fisher is the mean of Cov ⊗ x xᵀ
    whole = sum((torch.diag(q) - torch.outer(q, q)).diagonal()[:, None] * x.square() for q, x in zip(p, X, strict=True))
    assert_close(exact.block("weight").diagonal, whole / N)
    assert (empirical.fisher, exact.fisher) == ("empirical", "exact")


def test_with_the_mean_row_a_bias_is_taken_in_and_the_kronecker_product_is_the_hessian():
    net = linear()
    one = stats(net, X[:1], LABELS[:1], fisher="exact").block("weight")
    corner = torch.ones(1, 1, dtype=torch.float64)
    grown = torch.cat([torch.cat([one.inputs, one.mean[:, None]], 1), torch.cat([one.mean[None], corner], 1)])
    rows = torch.cat([X[:1], corner], 1)
    assert_close(grown, rows.T @ rows)  # the Gram of inputs with a 1 at their end

    def loss(theta: Tensor) -> Tensor:  # theta: [in + 1, out], row by row
        return -score(rows @ theta.view(D + 1, K), LABELS[:1]).sum()

    theta = torch.cat([net.weight.T, net.bias[None]]).detach().flatten()
    hessian = torch.autograd.functional.hessian(loss, theta)
    step = 1e-4 * torch.eye(len(theta), dtype=torch.float64)
    slopes = [(torch.func.grad(loss)(theta + e) - torch.func.grad(loss)(theta - e)) / 2e-4 for e in step]
    assert_close(torch.stack(slopes), hessian, rtol=1e-5, atol=1e-7)
    assert_close(torch.kron(grown, one.outputs[0]), hessian)  # one example: K-FAC is exact


def test_the_exact_fisher_is_the_mean_of_sampled_ones_within_their_standard_errors():
    net = jittered(nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, K)))
    exact = stats(net, fisher="exact")
    draws = [stats(net, labels=None, fisher="sampled", seed=seed) for seed in range(300)]
    checked = 0
    for name in exact.names:
        for piece in ("outputs", "diagonal", "full"):
            expected = exact.block(name).tensors.get(piece)
            if expected is None:
                continue
            found = torch.stack([d.block(name).tensors[piece] for d in draws])
            error = found.std(0) / len(draws) ** 0.5
            z = (found.mean(0) - expected) / error.clamp_min(1e-12)
            assert float(z.abs().max()) < 5.0  # of some 100 numbers
            assert float(z.square().mean()) < 2.5
            checked += expected.numel()
    assert checked > 100


def test_sampled_labels_depend_on_the_seed_alone():
    net = linear()
    one, again, other = (stats(net, labels=None, fisher="sampled", seed=seed) for seed in (7, 7, 8))
    assert torch.equal(one.block("weight").diagonal, again.block("weight").diagonal)
    assert not torch.equal(one.block("weight").diagonal, other.block("weight").diagonal)
    assert one.seed == 7


def test_labels_are_drawn_with_the_models_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]], dtype=torch.float64).expand(20000, 4)
    (found,) = Labels("sampled", 3).passes(logits, None)
    p = logits[0].softmax(-1)
    share = (found + p).mean(0)  # e_y - p, so this is how often each was drawn
    assert float((share - p).abs().max()) < 4 * 0.5 / 20000**0.5


class Tokens(nn.Module):
    """Scores of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(D, D), nn.Linear(D, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.mix(x).cumsum(1).tanh())


XT = torch.randn(4, 3, D, generator=DRAW, dtype=torch.float64)
TARGETS = torch.tensor([[1, -100, 3], [0, 2, 2], [-100, 1, -100], [3, 3, 0]])


def test_token_losses_are_means_over_the_examples_target_tokens():
    net = jittered(Tokens())
    found = stats(net, XT, TARGETS)
    each = gradients(net, lambda n: score(net(XT[n : n + 1]), TARGETS[n : n + 1]).sum(), 4)
    for name, gradient in each.items():
        assert_close(found.block(name).diagonal, gradient.square().mean(0))
    errors = nn.functional.one_hot(TARGETS.clamp_min(0), K) - net(XT).softmax(-1).detach()
    errors = errors * (TARGETS != -100).unsqueeze(-1) / (TARGETS != -100).sum(1).view(-1, 1, 1)
    flat = errors.flatten(0, 1)
    assert_close(found.block("head.weight").outputs[0], flat.T @ flat / 12)  # no mask: every row counts


def test_the_exact_fisher_of_tokens_is_the_expectation_over_all_their_labels():
    net = jittered(Tokens())
    places = TARGETS[:1] != -100
    found = stats(net, XT[:1], TARGETS[:1], fisher="exact")
    p = net(XT[:1]).softmax(-1).detach()[0]
    expected = {name: torch.zeros_like(t) for name, t in net.named_parameters()}
    for a in range(K):  # every pair of labels of its two target tokens, by its probability
        for b in range(K):
            labels = torch.full((1, 3), -100)
            labels[places] = torch.tensor([a, b])
            each = gradients(net, lambda n, y=labels: score(net(XT[:1]), y).sum(), 1)
            for name, gradient in each.items():
                expected[name] += p[0, a] * p[2, b] * gradient[0].square()
    for name, value in expected.items():
        assert_close(found.block(name).diagonal, value.detach())


def test_sampled_tokens_do_not_depend_on_padding():
    net = jittered(Tokens())
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    short = collect_stats(net, [Batch(XT[:1, :2], None, mask[:1, :2]), Batch(XT[1:2, :1], None, mask[1:2, :1])],
                          kinds={"diag"}, fisher="sampled", seed=1, dtype=torch.float64)  # fmt: skip
    long = stats(net, XT[:2], None, mask, kinds={"diag"}, fisher="sampled", seed=1)
    for name in long.names:
        assert_close(long.block(name).diagonal, short.block(name).diagonal)


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
def test_a_sure_expert_keeps_its_small_errors(fisher):
    net = linear()
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.tensor([18.0, 0.0, 0.0, 0.0]))
    found = collect_stats(net, [Batch(X, torch.zeros(N, dtype=torch.int64))], kinds={"block"}, fisher=fisher)
    off = torch.tensor(-18.0, dtype=torch.float64).exp() / (1 + 3 * torch.tensor(-18.0, dtype=torch.float64).exp())
    expected = (3 * off) ** 2 if fisher == "empirical" else 3 * off * (1 - 3 * off)
    assert_close(found.block("bias").full[0, 0].double(), expected, rtol=1e-5, atol=0.0)

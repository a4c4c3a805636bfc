"""DARE in distribution: the mean over seeds is the task vector, and every expert survives."""

from __future__ import annotations

import hashlib

import pytest
import torch

import mergelab
from mergelab.methods.context import Context, bernoulli_

TAU = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
BASE = {"w": torch.zeros(5)}


def draws(count: int, **parameters: object) -> torch.Tensor:
    """The merged task vector for seeds 0..count-1, [count, 5]."""
    rows = [
        mergelab.merge("dare_linear", {"a": {"w": TAU}}, BASE, seed=i, threads=1, **parameters)["w"]
        for i in range(count)
    ]  # type: ignore[arg-type]
    return torch.stack(rows)


def test_mean_over_seeds_is_the_task_vector() -> None:
    density, count = 0.3, 2000
    found = draws(count, density=density)
    error = TAU.abs() * (((1 - density) / density) / count) ** 0.5  # of the mean of Bernoulli(p)/p times tau
    assert ((found.mean(0) - TAU).abs() <= 3 * error + 1e-7).all()
    kept = found != 0
    assert found[kept].sub((TAU / density).expand_as(found)[kept]).abs().max() < 1e-6


def test_without_rescaling_the_mean_shrinks_by_the_density() -> None:
    found = draws(600, density=0.5, rescale="none")
    assert ((found.mean(0) - 0.5 * TAU).abs() <= 4 * TAU.abs() * (0.25 / 600) ** 0.5 + 1e-7).all()


def test_l1_rescaling_keeps_each_tensors_norm() -> None:
    for row in draws(50, density=0.5, rescale="l1"):
        assert float(row.abs().sum()) == pytest.approx(float(TAU.abs().sum()), rel=1e-5) or not row.any()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_all_experts_survive(method: str) -> None:
    """Eight experts, each with a part of the vector of its own: something of every part comes through."""
    size = 8 * 200
    base = {"w": torch.zeros(size)}
    models = {}
    for index in range(8):
        tau = torch.zeros(size)
        tau[index * 200 : (index + 1) * 200] = 1.0
        models[f"m{index}"] = {"w": tau}
    kept = mergelab.merge(method, models, base, density=0.1)["w"].reshape(8, 200).count_nonzero(dim=1)
    assert (kept >= 5).all()  # 20 expected, standard deviation 4.2
    assert (kept <= 40).all()


def test_density_one_is_task_arithmetic() -> None:
    models = [{"w": TAU}, {"w": -0.5 * TAU}]
    expected = mergelab.merge("task_arithmetic", models, BASE, lambda_=0.7)["w"]
    assert mergelab.merge("dare_linear", models, BASE, lambda_=0.7, density=1.0)["w"].equal(expected)
    ties = mergelab.merge("ties", models, BASE, density=1.0)["w"]
    assert mergelab.merge("dare_ties", models, BASE, density=1.0)["w"].equal(ties)


def test_seeds_are_sha256_of_seed_tensor_and_model() -> None:
    """Not Python's hash, which changes from process to process."""
    digest = hashlib.sha256(b"7\0layer.weight\0zoo:starter/mnist").digest()
    generator = Context("layer.weight", ("zoo:starter/mnist",), 7).generator(0)
    assert generator.initial_seed() == int.from_bytes(digest[:8], "little") >> 1


def test_draws_have_the_asked_probability_and_do_not_depend_on_the_dtype() -> None:
    def draw(probability: float, dtype: torch.dtype) -> torch.Tensor:
        return bernoulli_(torch.empty(100_001, dtype=dtype), probability, torch.Generator().manual_seed(3))

    for probability in (0.0, 0.01, 0.5, 0.9, 1.0):
        mean = float(draw(probability, torch.float32).mean())
        assert abs(mean - probability) <= 4 * (probability * (1 - probability) / 100_001) ** 0.5
    assert draw(0.3, torch.float64).float().equal(draw(0.3, torch.float32))

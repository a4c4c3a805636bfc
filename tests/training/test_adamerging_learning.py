"""Learning coefficients: the gradient is the loss's own, and the loop is Adam on it and on nothing else."""

from __future__ import annotations

import copy
import gc
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training.learn_zoo import moved, toy

import mergelab
from mergelab.engine import merge_to_memory
from mergelab.errors import Cancelled, MergeLabError, MethodError
from mergelab.progress import Stop
from mergelab.training import adamerging, learn
from mergelab.training.adamerging import Settings, entropy
from mergelab.training.blend import Blend
from mergelab.training.split import vectors_of


def settings(**changes: Any) -> Settings:
    return replace(Settings(steps=3, batch=4, rate=0.01), **changes)


def blended(model: Any, plan: Any, **options: Any) -> Blend:
    return Blend(model, plan, vectors_of(plan, model.device), **options)


def loss_in_float64(model: Any, plan: Any, inputs: Any, names: tuple[str, ...], table: Tensor) -> float:
    """The objective written out in float64: merged weights into a copy of the module, all pictures in one batch."""
    module = copy.deepcopy(model.module).double()
    own = model.own_names(list(plan.base))
    rows = dict(zip(names, table, strict=True))
    state = {}
    for name in own:
        start = plan.base[name].double()
        row = rows.get(name, torch.zeros(len(plan.models)).double())
        state[own[name]] = start + sum(c * (m[name].double() - start) for c, m in zip(row, plan.models, strict=True))
    module.load_state_dict(state)
    total = 0.0
    with torch.no_grad():
        for one in inputs:
            features = module(pixel_values=model.pixels(one.images).double()).pooler_output
            logs = torch.log_softmax(features @ one.head.weight.double().T + one.head.bias.double(), -1)
            total += float(-(logs.exp() * logs).sum(-1).mean())
    return total


def test_the_gradient_of_every_coefficient_is_that_of_finite_differences() -> None:
    model, plan, inputs = toy(2)
    blend = blended(model, plan)
    rng = torch.Generator().manual_seed(0)
    table = 0.2 + 0.4 * torch.rand(len(blend.names), 2, generator=rng)
    blend.apply(table)
    for one in inputs:
        entropy(one.head.logits(blend.features([one.images])[0])).mean().backward()
    slopes = blend.slopes().double()
    step, table = 1e-4, table.double()
    for index in range(0, len(blend.names), 11):
        for model_ in range(2):
            ends = []
            for sign in (1, -1):
                there = table.clone()
                there[index, model_] += sign * step
                ends.append(loss_in_float64(model, plan, inputs, blend.names, there))
            expected = (ends[0] - ends[1]) / (2 * step)
            assert slopes[index, model_].item() == pytest.approx(expected, rel=2e-3, abs=1e-6), blend.names[index]


def test_the_entropy_is_shannons() -> None:
    assert entropy(torch.zeros(2, 8)).tolist() == pytest.approx([math.log(8)] * 2)
    half = torch.tensor([[0.0, 0.0, -1e4]])
    assert entropy(half).item() == pytest.approx(math.log(2))
    assert entropy(torch.tensor([[200.0, 0.0, -300.0]])).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("per", ["task", "layer"])
def test_the_first_step_goes_against_the_gradient_by_the_rate(per: str) -> None:
    """Adam's first step is −rate·sign(gradient), whatever the gradient's size."""
    model, plan, inputs = toy(2, pictures=4, weight={"t0": 2.0, "t1": 0.5})
    made = learn(model, plan, inputs, settings(per=per, steps=1, start=0.4))
    blend = blended(model, plan)
    blend.apply(torch.full((len(blend.names), 2), 0.4))
    for one, weight in zip(inputs, (2.0, 0.5), strict=True):
        (weight * entropy(one.head.logits(blend.features([one.images])[0])).mean()).backward()
    slopes = blend.slopes()
    if per == "task":
        slopes = slopes.sum(0, keepdim=True).expand(len(blend.names), -1)
    clear = slopes.abs() > 1e-4
    found = torch.tensor([made.coefficients[name] for name in blend.names])
    assert clear.any()
    torch.testing.assert_close(found[clear], (0.4 - 0.01 * slopes.sign())[clear], rtol=0, atol=2e-5)


@pytest.mark.parametrize("per", ["task", "layer"])
@pytest.mark.parametrize("split", ["none", "ties"])
def test_the_entropy_falls(per: str, split: str) -> None:
    model, plan, inputs = toy(2, split=split, density=0.5)
    made = learn(model, plan, inputs, settings(per=per, steps=20, batch=12, rate=0.03))
    assert sum(made.entropy[-1]) < sum(made.entropy[0]) - 0.01
    assert len(made.entropy) == 20 and made.samples == 20 * 2 * 12


@pytest.mark.parametrize("per", ["task", "layer"])
def test_coefficients_that_stay_are_task_arithmetic(per: str) -> None:
    model, plan, inputs = toy(3)
    made = learn(model, plan, inputs, settings(per=per, steps=0, start=0.35))
    merged = merge_to_memory(replace(plan, learned=made.ordered(plan.names)))
    experts = dict(zip(plan.names, (dict(m) for m in plan.models), strict=True))
    expected = mergelab.merge("task_arithmetic", experts, dict(plan.base), lambda_=0.35)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6)


def test_what_is_learned_on_is_what_is_merged() -> None:
    """The stand-in's weights are the merge's own, for both splits."""
    for split in ("none", "ties"):
        model, plan, inputs = toy(2, split=split, density=0.3)
        made = learn(model, plan, inputs, settings(per="layer", steps=2))
        blend = blended(model, plan)
        blend.apply(torch.tensor([made.coefficients[name] for name in blend.names]))
        merged = merge_to_memory(replace(plan, learned=made.ordered(plan.names)))
        places = dict(blend.module.named_parameters())
        for theirs, own in model.own_names(blend.names).items():
            torch.testing.assert_close(places[own].detach(), merged[theirs], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("keep", "tolerance"), [("nothing", 0.0), ("float16", 2e-3)])
def test_how_task_vectors_are_kept_does_not_matter(keep: str, tolerance: float) -> None:
    model, plan, _ = toy(2, size=1e-6)  # differences that plain float16 cannot hold
    exact, other = blended(model, plan, keep="float32"), blended(model, plan, keep=keep)
    for name in exact.names:
        wanted = exact.taus(name)
        assert (other.taus(name) - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert other.nbytes == (0 if keep == "nothing" else exact.nbytes // 2)


@pytest.mark.parametrize("batches", [1, 2])
def test_batches_that_pass_together_learn_what_they_learn_alone(batches: int, monkeypatch: Any) -> None:
    model, plan, inputs = toy(3)
    together = learn(model, plan, inputs, settings(batches=batches))
    monkeypatch.setattr(adamerging, "CHUNK_PIXELS", 0)
    alone = learn(model, plan, inputs, settings(batches=batches))
    assert together.samples == alone.samples == 3 * 3 * 4 * batches
    assert torch.tensor(together.entropy).allclose(torch.tensor(alone.entropy), atol=1e-3)
    for name, row in alone.coefficients.items():
        if "k_proj.bias" not in name:  # softmax does not see it: its gradient is rounding, of which Adam makes steps
            assert together.coefficients[name] == pytest.approx(row, abs=1e-3), name


def test_the_same_seed_learns_the_same_and_another_does_not() -> None:
    model, plan, inputs = toy(2)
    first, again, other = (learn(model, plan, inputs, settings(seed=seed)) for seed in (1, 1, 2))
    assert first.coefficients == again.coefficients and first.history == again.history
    assert first.coefficients != other.coefficients


def test_projection_keeps_coefficients_in_the_window_and_lets_them_come_back() -> None:
    model, plan, inputs = toy(2)
    made = learn(model, plan, inputs, settings(steps=6, rate=0.3, start=0.0))
    free = learn(model, plan, inputs, settings(steps=6, rate=0.3, start=0.0, clamp="none"))
    inside = torch.tensor([row for _, table in made.history for row in table])
    outside = torch.tensor([row for _, table in free.history for row in table])
    assert inside.min() >= 0 and inside.max() <= 1
    assert outside.min() < 0
    held = torch.tensor(made.history[1][1]) == 0  # put back to 0 after the first step
    last = torch.tensor(made.history[-1][1])
    assert held.any() and (last[held] > 0).any()


def test_the_model_keeps_its_weights_and_needs_no_gradients() -> None:
    model, plan, inputs = toy(2)
    before = {name: t.clone() for name, t in model.weights.tensors.items()}
    learn(model, plan, inputs, settings())
    assert all(torch.equal(t, before[name]) for name, t in model.weights.tensors.items())
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_saved_activations_do_not_grow_with_the_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps alive at once is two small batches that pass together, for two experts as for six."""
    monkeypatch.setattr(adamerging, "CHUNK_PIXELS", 8 * 28**2)

    def peak(count: int) -> int:
        alive = [0, 0]  # bytes now, at most

        class Kept:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                alive[0] += self.size
                alive[1] = max(alive)

            def __del__(self) -> None:
                alive[0] -= self.size

        model, plan, inputs = toy(count)
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            learn(model, plan, inputs, settings(steps=2))
        gc.collect()
        assert alive[0] == 0
        return alive[1]

    two, six = peak(2), peak(6)
    assert two > 0
    assert six <= 1.02 * two


def test_a_weight_of_nought_leaves_a_task_out_of_the_objective() -> None:
    model, plan, inputs = toy(2, weight={"t0": 1.0, "t1": 0.0})
    other = [inputs[0], replace(inputs[1], images=255 - inputs[1].images)]
    first, second = (learn(model, plan, given, settings()) for given in (inputs, other))
    assert first.coefficients == second.coefficients
    assert [row[1] for row in first.entropy] != [row[1] for row in second.entropy]
    with pytest.raises(MethodError, match="weight' of 'adamerging' is 0 for every model"):
        toy(2, weight=0.0)


def test_progress_counts_batches_and_stop_ends_it_between_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamerging, "CHUNK_PIXELS", 0)  # one mini-batch at a time
    model, plan, inputs = toy(2)
    stop, seen = Stop(), []

    def progress(done: int, total: int, text: str) -> None:
        if text.startswith("step"):
            seen.append((done, total))
            if done == 3:
                stop.set()

    with pytest.raises(Cancelled):
        learn(model, plan, inputs, settings(), progress=progress, stop=stop)
    assert seen == [(1, 6), (2, 6), (3, 6)]


def test_the_history_is_thinned_with_its_first_and_last_record() -> None:
    model, plan, inputs = toy(2, pictures=2)
    made = learn(model, plan, inputs, settings(per="task", steps=110, batch=1, rate=1e-3))
    steps = [step for step, _ in made.history]
    assert steps[0] == 0 and steps[-1] == 110 and len(steps) <= 60
    assert made.history[0][1] == (pytest.approx((0.3, 0.3)),)
    last = made.history[-1][1][0]
    assert all(row == last for row in made.coefficients.values())


def test_a_collapse_onto_one_class_is_said() -> None:
    model, plan, inputs = toy(2)
    fair = learn(model, plan, inputs, settings(steps=5))
    assert not any("collapse" in finding for finding in fair.findings)
    made = learn(model, plan, inputs, settings(steps=50, rate=0.03, clamp="none", batch=12))
    ends = {task: {k: max(v) / sum(v) for k, v in of.items()} for task, of in made.classes.items()}
    collapsed = {task for task, share in ends.items() if share["last"] >= 0.9 > share["first"]}
    assert collapsed, ends
    assert {finding.split(":")[0] for finding in made.findings} == collapsed


def test_a_loss_that_is_not_finite_stops_with_a_sentence() -> None:
    model, plan, inputs = toy(2)
    broken = [inputs[0], replace(inputs[1], head=replace(inputs[1].head, weight=inputs[1].head.weight * math.inf))]
    with pytest.raises(MergeLabError, match=r"diverged: the entropy of t1 is nan at step 1\. Lower the rate 0\.01"):
        learn(model, plan, broken, settings())


def test_inputs_and_models_must_match() -> None:
    model, plan, inputs = toy(2)
    with pytest.raises(MethodError, match="no inputs of the task 't1'"):
        learn(model, plan, inputs[:1], settings())
    with pytest.raises(MethodError, match="no picture of the task 't1'"):
        learn(model, plan, [inputs[0], replace(inputs[1], images=inputs[1].images[:0])], settings())
    with pytest.raises(MethodError, match="leave 'space' out"):
        learn(model, replace(plan, space="adapter"), inputs, settings())
    base = dict(plan.base)
    from mergelab.engine import plan as planning

    same = planning("adamerging", {"t0": dict(base), "t1": {k: v.clone() for k, v in base.items()}}, base)
    with pytest.raises(MergeLabError, match="equal their base"):
        learn(model, same, inputs, settings())
    assert moved(base, 0).keys() == base.keys()


def test_merging_without_coefficients_is_refused() -> None:
    _, plan, _ = toy(2)
    with pytest.raises(MethodError, match="learned coefficients"):
        merge_to_memory(plan)

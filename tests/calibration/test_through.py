"""RegMean++: Grams of inputs that pass the merged layers, against loops written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergelab.calibration import Batch, collect_stats, collect_through
from mergelab.calibration.through import parts_of
from mergelab.engine import Plan, merge_to_memory, plan
from mergelab.errors import Cancelled, MergeLabError, MethodError, StatisticsError
from mergelab.progress import Stop
from mergelab.statistics import TaskStatistics

NAMES = ("ant", "bee", "cow")
WIDE = torch.float64
State = dict[str, Tensor]
EXACT = {"off_diagonal": 1.0, "ridge": 0.0}


class Mixed(nn.Module):
    """A residual block with a norm between its two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(width, 7), nn.LayerNorm(7), nn.Linear(7, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.norm(self.up(x))))


class Tower(nn.Module):
    """Two blocks in a list between a stem and a head, as transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.blocks = nn.ModuleList([Mixed(6), Mixed(6)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def experts(net: nn.Module, size: float = 0.3) -> dict[str, State]:
    draw = torch.Generator().manual_seed(1)
    return {
        name: {key: t + size * torch.randn(t.shape, generator=draw) for key, t in net.state_dict().items()}
        for name in NAMES
    }  # fmt: skip


def inputs(width: int = 5, count: int = 40) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    return {name: torch.randn(count, width, generator=draw) @ torch.randn(width, width, generator=draw)
            for name in NAMES}  # fmt: skip


def batches(x: Mapping[str, Tensor], size: int = 16) -> dict[str, Callable[[], Any]]:
    return {name: lambda rows=rows: iter([Batch(part) for part in rows.split(size)]) for name, rows in x.items()}


def call(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def collected(made: Plan, net: nn.Module, x: Mapping[str, Tensor], **more: Any) -> dict[str, TaskStatistics]:
    return collect_through(made, net, batches(x), call, **more)


def merged(net: nn.Module, models: Mapping[str, State], x: Mapping[str, Tensor], **parameters: Any) -> State:
    values = {**EXACT, **parameters}
    found = collected(plan("regmean_pp", models, parameters=values), net, x)
    return merge_to_memory(plan("regmean_pp", models, parameters=values, statistics=found))


def solved(grams: list[Tensor], weights: list[Tensor]) -> Tensor:
    """(Σ A)⁻¹ Σ A W for weights [out, in]."""
    total = sum(grams)
    pull = sum(a @ w.to(WIDE).T for a, w in zip(grams, weights, strict=True))
    return torch.linalg.solve(total, pull).T


def gram(x: Tensor) -> Tensor:
    return x.to(WIDE).T @ x.to(WIDE) / len(x)


def mean(models: Mapping[str, State], key: str) -> Tensor:
    return torch.stack([m[key] for m in models.values()]).to(WIDE).mean(0)


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.to(WIDE), expected, rtol=1e-4, atol=1e-4)


def test_two_linear_layers_by_an_explicit_loop() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    models, x = experts(net), inputs()
    found = merged(net, models, x)
    first = solved([gram(x[n]) for n in NAMES], [models[n]["0.weight"] for n in NAMES])
    near(found["0.weight"], first)
    for key in ("0.bias", "2.bias"):
        near(found[key], mean(models, key))
    hidden = {n: (x[n].to(WIDE) @ first.T + mean(models, "0.bias")).relu() for n in NAMES}
    second = solved([gram(hidden[n]) for n in NAMES], [models[n]["2.weight"] for n in NAMES])
    near(found["2.weight"], second)
    own = {n: (x[n] @ models[n]["0.weight"].T + models[n]["0.bias"]).relu() for n in NAMES}
    plain = solved([gram(own[n]) for n in NAMES], [models[n]["2.weight"] for n in NAMES])
    assert (second - plain).abs().max() > 0.05  # RegMean's own second layer is another


def test_a_block_sees_merged_inputs_and_its_experts_own_weights() -> None:
    """Inside a block the expert's weights and norms run; before it everything is merged (the norms: averaged)."""
    torch.manual_seed(0)
    net = Tower()
    models, x = experts(net), inputs()
    found = merged(net, models, x)
    now = {n: x[n].to(WIDE) for n in NAMES}
    stem = solved([gram(now[n]) for n in NAMES], [models[n]["stem.weight"] for n in NAMES])
    near(found["stem.weight"], stem)
    now = {n: now[n] @ stem.T + mean(models, "stem.bias") for n in NAMES}
    for block in ("blocks.0", "blocks.1"):
        up = solved([gram(now[n]) for n in NAMES], [models[n][f"{block}.up.weight"] for n in NAMES])
        near(found[f"{block}.up.weight"], up)
        inside = {}
        for n in NAMES:
            m = {key.removeprefix(f"{block}."): t.to(WIDE) for key, t in models[n].items() if key.startswith(block)}
            hidden = now[n] @ m["up.weight"].T + m["up.bias"]
            inside[n] = torch.tanh(F.layer_norm(hidden, (7,), m["norm.weight"], m["norm.bias"]))
        down = solved([gram(inside[n]) for n in NAMES], [models[n][f"{block}.down.weight"] for n in NAMES])
        near(found[f"{block}.down.weight"], down)
        for n in NAMES:
            hidden = now[n] @ up.T + mean(models, f"{block}.up.bias")
            hidden = F.layer_norm(
                hidden, (7,), mean(models, f"{block}.norm.weight"), mean(models, f"{block}.norm.bias")
            )
            now[n] = now[n] + torch.tanh(hidden) @ down.T + mean(models, f"{block}.down.bias")
    near(found["head.weight"], solved([gram(now[n]) for n in NAMES], [models[n]["head.weight"] for n in NAMES]))


def test_one_layer_is_regmean() -> None:
    torch.manual_seed(0)
    net = nn.Linear(5, 4)
    models, x = experts(net), inputs()
    grams = {}
    for name in NAMES:
        net.load_state_dict(models[name])
        grams[name] = collect_stats(net, [Batch(x[name])], kinds=["gram"], task=name, weights_hash="")
    for values in ({}, {"off_diagonal": 0.9, "ridge": 1e-6, "weight": [1.0, 2.0, 0.5]}):
        found = merged(net, models, x, **values)
        expected = merge_to_memory(plan("regmean", models, parameters={**EXACT, **values}, statistics=grams))
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)


def test_equal_experts_are_the_merge() -> None:
    torch.manual_seed(0)
    net = Tower()
    one = experts(net)["ant"]
    found = merged(net, {name: dict(one) for name in NAMES}, inputs())
    assert all(torch.equal(found[key], tensor) for key, tensor in one.items())


def test_the_final_merge_is_what_the_inputs_have_passed() -> None:
    """Collected again with all blocks merged, the inputs of every block but its own inside are the same."""
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(5, 5) for _ in range(4)])
    models, x = experts(net), inputs()
    made = plan("regmean_pp", models, parameters=EXACT)
    found = collected(made, net, x)
    result = merge_to_memory(plan("regmean_pp", models, parameters=EXACT, statistics=found))
    net.load_state_dict(result)
    for name in NAMES:
        passed = collect_stats(net, [Batch(x[name])], kinds=["gram"], weights_hash="")
        for key in ("0.weight", "1.weight", "2.weight", "3.weight"):
            torch.testing.assert_close(found[name].block(key).inputs, passed.block(key).inputs, rtol=1e-5, atol=1e-6)


def test_batches_spilling_and_the_module_make_no_difference() -> None:
    torch.manual_seed(0)
    net = Tower().half()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    models, x = experts(Tower()), inputs()
    made = plan("regmean_pp", models, parameters=EXACT)
    kept = collected(made, net, x)
    spilled = collect_through(made, net, batches(x, 7), call, spill=True, split="val", suite="mine")
    for name in NAMES:
        assert kept[name].names == spilled[name].names and spilled[name].examples == 40
        assert spilled[name].split == "val" and spilled[name].meta["blocks"] == ["stem", "blocks.0", "blocks.1", "head"]
        for key in kept[name].names:
            torch.testing.assert_close(kept[name].block(key).inputs, spilled[name].block(key).inputs, rtol=1e-5,
                                       atol=1e-5)  # fmt: skip
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    assert net.training and all(p.requires_grad for p in net.parameters())


def test_blocks_in_the_order_of_their_calls() -> None:
    class Odd(nn.Module):
        """Listed last to first; one block runs twice; one is never called; attention is fused."""

        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 2)
            self.idle = nn.Linear(4, 4)
            self.later = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))])
            self.look = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.look(x, x, x, need_weights=False)[0]
            for _ in range(2):
                x = self.later[0](x)
            return self.out(x.mean(1))

    net = Odd()
    weights = [name for name, p in net.named_parameters() if p.ndim == 2]
    parts = parts_of(net, Batch(torch.randn(3, 5, 4)), call, weights)
    assert [(part.path, part.calls) for part in parts] == [("look", 1), ("later.0", 2), ("out", 1)]
    assert set(parts[0].weights) == {"look.in_proj_weight", "look.out_proj.weight"}
    assert set(parts[1].weights) == {"later.0.0.weight", "later.0.2.weight"}
    models = {name: {k: t + 0.1 * torch.randn_like(t) for k, t in net.state_dict().items()} for name in NAMES}
    draw = torch.Generator().manual_seed(0)
    x = {name: torch.randn(20, 5, 4, generator=draw) for name in NAMES}
    found = collected(plan("regmean_pp", models), net, x)
    assert set(found["ant"].names) == set(weights) - {"idle.weight"}
    assert found["ant"].entries["later.0.0.weight"].rows == 2 * 20 * 5  # both calls are seen
    merge_to_memory(plan("regmean_pp", models, statistics=found))


def refused(error: type[MergeLabError], work: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        work()
    return str(caught.value)


def test_what_is_refused() -> None:
    net = nn.Sequential(nn.Linear(5, 4))
    models, x = experts(net), inputs()
    made = plan("regmean_pp", models)
    assert refused(StatisticsError, lambda: merge_to_memory(made)) == (
        "RegMean++ collects its statistics through the layers that it merges, from pictures of every task: use python "
        "-m mergelab merge with a recipe that names a suite, or mergelab.runs.collected."
    )
    other = plan("regmean_pp", models, parameters={"off_diagonal": 0.5})
    found = collected(other, net, x)
    assert refused(StatisticsError, lambda: plan("regmean_pp", models, statistics=found)) == (
        "The statistics of 'ant': they were collected through another merge, and RegMean++ needs the inputs of 'ant' "
        "as its own merged layers make them; leave 'statistics' out, and it collects them when it is merged."
    )
    plain = {n: TaskStatistics(n, {"0.weight": found[n].block("0.weight")}, weights_hash=found[n].weights_hash)
             for n in NAMES}  # fmt: skip
    assert "they were collected through the expert's own layers, and RegMean++" in refused(
        StatisticsError, lambda: plan("regmean_pp", models, statistics=plain)
    )
    assert refused(MethodError, lambda: plan("mats", models, init="regmean_pp", statistics=plain)) == (
        "The init 'regmean_pp' collects its statistics as it is merged; merge it to a folder and give that as init: "
        "{model: FOLDER}."
    )
    started = plan("regmean_pp", models, init="fisher")
    assert "with this 'init' it needs gram, diag; take another init" in refused(
        MethodError, lambda: collected(started, net, x)
    )
    assert refused(StatisticsError, lambda: collected(made, net, {"ant": x["ant"]})) == (
        "There are no inputs of the model 'bee', so nothing can pass it."
    )
    empty = {name: rows[:0] for name, rows in x.items()}
    assert refused(StatisticsError, lambda: collect_through(made, net, {n: lambda: iter([]) for n in empty}, call)) == (
        "There are no inputs of the model 'ant', so nothing can pass it."
    )
    assert "None of the 2 tensors that are merged is one of the module's" in refused(
        StatisticsError, lambda: collected(made, nn.Linear(5, 4), x)
    )


def test_stop_leaves_the_module_as_it_was() -> None:
    torch.manual_seed(0)
    net = Tower()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    stop = Stop()

    def progress(done: int, total: int, text: str) -> None:
        if done == 4:
            stop.set()

    with pytest.raises(Cancelled):
        collected(plan("regmean_pp", experts(net)), net, inputs(), progress=progress, stop=stop)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())

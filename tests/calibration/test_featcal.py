"""FeatCal: closed forms against least squares on stacked rows, blocks in order against a loop written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergelab.calibration import Batch, DriftSettings, calibrate_features
from mergelab.errors import Cancelled, StatisticsError
from mergelab.progress import Stop

TASKS = ("ant", "bee", "cow")
WIDE = torch.float64
State = dict[str, Tensor]


def around(net: nn.Module, seed: int, size: float = 0.3) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {key: t + size * torch.randn(t.shape, generator=draw) for key, t in net.state_dict().items()}


def inputs(width: int = 5, count: int = 24, tokens: int | None = None) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    shape = (count, width) if tokens is None else (count, tokens, width)
    return {name: torch.randn(shape, generator=draw) @ torch.randn(width, width, generator=draw) for name in TASKS}


def batches(x: Mapping[str, Tensor], size: int = 10) -> dict[str, Callable[[], Any]]:
    return {name: lambda rows=rows: iter([Batch(part) for part in rows.split(size)]) for name, rows in x.items()}


def calibrated(net: nn.Module, x: Mapping[str, Tensor], settings: DriftSettings, **more: Any) -> State:
    models = {"merged": around(net, 10), "base": around(net, 11), **{t: around(net, i) for i, t in enumerate(TASKS)}}
    found = calibrate_features(
        net, models["merged"], models["base"], {t: models[t] for t in TASKS}, batches(x), settings=settings,
        forward=lambda module, rows: module(rows), **more,
    )  # fmt: skip
    return {**models, "found": {**models["merged"], **found.state}}


def least_squares(rows: Tensor, targets: Tensor) -> Tensor:
    return torch.linalg.lstsq(rows, targets).solution


def linear(  # noqa: PLR0917
    student: list[Tensor], teacher: list[Tensor], weights: list[Tensor], biases: list[Tensor], merged: State,
    base: State, name: str, s: DriftSettings, counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The fit of one layer as one least-squares problem: weighted rows of all tasks, and the pull to the anchor."""
    left, right, scales = [], [], []
    for x, y, weight in zip(student, teacher, weights, strict=True):
        w = torch.ones(len(x), dtype=WIDE) if counts is None else counts
        w = w / w.sum()
        scale = 1 / torch.linalg.matrix_norm((x * w[:, None]).T @ x)
        target = s.teacher * y + (1 - s.teacher) * x
        left.append((scale * w).sqrt()[:, None] * x)
        right.append((scale * w).sqrt()[:, None] * (target @ weight.to(WIDE).T))
        scales.append(scale)
    anchor = (s.anchor * merged[f"{name}.weight"] + (1 - s.anchor) * base[f"{name}.weight"]).to(WIDE)
    left.append(s.ridge**0.5 * torch.eye(anchor.shape[1], dtype=WIDE))
    right.append(s.ridge**0.5 * anchor.T)
    found = least_squares(torch.cat(left), torch.cat(right)).T
    total = s.ridge * (s.anchor * merged[f"{name}.bias"] + (1 - s.anchor) * base[f"{name}.bias"]).to(WIDE)
    for x, y, weight, bias, scale in zip(student, teacher, weights, biases, scales, strict=True):
        w = torch.ones(len(x), dtype=WIDE) if counts is None else counts
        ours, theirs = (w @ x) / w.sum(), (w @ (s.teacher * y + (1 - s.teacher) * x)) / w.sum()
        total = total + scale * (bias.to(WIDE) + weight.to(WIDE) @ theirs - found @ ours)
    return found, total / (sum(scales) + s.ridge)


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.to(WIDE), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("settings", [DriftSettings(), DriftSettings(ridge=0.7, anchor=1.3, teacher=1.0),
                                      DriftSettings(ridge=0.01, anchor=0.0, teacher=0.0)])  # fmt: skip
def test_one_linear_layer_is_a_least_squares_fit(settings: DriftSettings) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 4)), inputs()
    made = calibrated(net, x, settings)
    rows = [x[t].to(WIDE) for t in TASKS]
    weight, bias = linear(rows, rows, [made[t]["0.weight"] for t in TASKS], [made[t]["0.bias"] for t in TASKS],
                          made["merged"], made["base"], "0", settings)  # fmt: skip
    near(made["found"]["0.weight"], weight)
    near(made["found"]["0.bias"], bias)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.up(self.norm(x)))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def through(x: Tensor, m: State, block: str) -> tuple[Tensor, Tensor, Tensor]:
    """(what the norm sees, what the layer sees, what comes out) of a block with these weights."""
    w = {key.removeprefix(f"{block}."): t.to(WIDE) for key, t in m.items() if key.startswith(block)}
    normed = F.layer_norm(x, (6,), w["norm.weight"], w["norm.bias"])
    return x, normed, x + torch.tanh(normed @ w["up.weight"].T + w["up.bias"])


def norm(  # noqa: PLR0917
    student: list[Tensor], experts: list[State], merged: State, base: State, name: str, s: DriftSettings,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Scale and shift by least squares for every entry apart."""
    scale, shift = [], []
    for j in range(6):
        left, right = [], []
        for x, m in zip(student, experts, strict=True):
            z = F.layer_norm(x, (6,))[:, j]
            w = torch.ones(len(z), dtype=WIDE) if counts is None else counts
            w = (w / w.sum()).sqrt()
            left.append(torch.stack([w * z, w], 1))
            right.append(w * (m[f"{name}.weight"][j].to(WIDE) * z + m[f"{name}.bias"][j].to(WIDE)))
        for i, key in enumerate(("weight", "bias")):
            pull = torch.zeros(1, 2, dtype=WIDE)
            pull[0, i] = s.ridge**0.5
            left.append(pull)
            anchor = s.anchor * merged[f"{name}.{key}"][j] + (1 - s.anchor) * base[f"{name}.{key}"][j]
            right.append(s.ridge**0.5 * anchor.to(WIDE)[None])
        found = least_squares(torch.cat(left), torch.cat(right)[:, None]).flatten()
        scale.append(found[0])
        shift.append(found[1])
    return torch.stack(scale), torch.stack(shift)


@pytest.mark.parametrize("tokens", [None, 3])
def test_blocks_in_order_by_an_explicit_loop(tokens: int | None) -> None:
    """The second block of the student is fed by the calibrated first; experts run on their own; in the last block the
    first token counts 1 and the others 0.01."""
    torch.manual_seed(0)
    net, settings, x = Stack(), DriftSettings(), inputs(tokens=tokens)
    made = calibrated(net, x, settings)
    merged, base, found = made["merged"], made["base"], made["found"]

    def stem(m: State, task: str) -> Tensor:
        return x[task].flatten(0, -2).to(WIDE) @ m["stem.weight"].to(WIDE).T + m["stem.bias"].to(WIDE)

    ours = [stem(merged, task) for task in TASKS]
    theirs = [stem(made[task], task) for task in TASKS]
    for i, block in enumerate(("blocks.0", "blocks.1")):
        counts = None
        if tokens and i == 1:
            counts = torch.full((24, tokens), 0.01, dtype=WIDE)
            counts[:, 0] = 1
            counts = counts.flatten()
        student = [through(rows, merged, block) for rows in ours]
        teacher = [through(rows, made[task], block) for rows, task in zip(theirs, TASKS, strict=True)]
        experts = [made[task] for task in TASKS]
        scale, shift = norm([s[0] for s in student], experts, merged, base, f"{block}.norm", settings, counts)
        near(found[f"{block}.norm.weight"], scale)
        near(found[f"{block}.norm.bias"], shift)
        weight, bias = linear([s[1] for s in student], [t[1] for t in teacher],
                              [m[f"{block}.up.weight"] for m in experts], [m[f"{block}.up.bias"] for m in experts],
                              merged, base, f"{block}.up", settings, counts)  # fmt: skip
        near(found[f"{block}.up.weight"], weight)
        near(found[f"{block}.up.bias"], bias)
        new = {f"{block}.norm.weight": scale, f"{block}.norm.bias": shift, f"{block}.up.weight": weight,
               f"{block}.up.bias": bias}  # fmt: skip
        ours = [through(rows, new, block)[2] for rows in ours]
        theirs = [t[2] for t in teacher]
    for key in ("stem.weight", "stem.bias", "head.weight", "head.bias"):
        assert torch.equal(found[key], merged[key])


def test_experts_that_are_the_merge_leave_it_and_a_strong_pull_gives_the_anchor() -> None:
    torch.manual_seed(0)
    net, x = Stack(), inputs()
    merged, base = around(net, 10), around(net, 11)

    def run(experts: dict[str, State], settings: DriftSettings) -> State:
        found = calibrate_features(net, merged, base, experts, batches(x), settings=settings,
                                   forward=lambda module, rows: module(rows))  # fmt: skip
        assert set(found.state) == {key for key in merged if key.startswith("blocks")}
        return dict(found.state)

    for key, tensor in run(dict.fromkeys(TASKS, merged), DriftSettings(anchor=1.0)).items():
        torch.testing.assert_close(tensor, merged[key], rtol=1e-4, atol=1e-4)
    for key, tensor in run({t: around(net, i) for i, t in enumerate(TASKS)}, DriftSettings(ridge=1e6)).items():
        torch.testing.assert_close(tensor, base[key] + 2.2 * (merged[key] - base[key]), rtol=1e-3, atol=1e-3)


def test_what_is_left_out_and_what_is_refused() -> None:
    torch.manual_seed(0)
    net, x = Stack(), inputs()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    models = [around(net, i) for i in range(3)]
    call = {"forward": lambda module, rows: module(rows)}
    found = calibrate_features(net, *models[:2], {"ant": models[2]}, batches(x), **call,
                               settings=DriftSettings(biases=False, norms=False))  # fmt: skip
    assert set(found.state) == {"blocks.0.up.weight", "blocks.1.up.weight"} and found.examples == {"ant": 24}
    assert found.blocks == ("blocks.0", "blocks.1") and [e["tensor"] for e in found.log] == list(found.state)
    fused = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    y = {"ant": torch.randn(6, 3, 4)}
    state = around(fused, 1)
    found = calibrate_features(fused, state, state, {"ant": state}, batches(y), **call)
    assert found.skipped == {
        "0.self_attn.out_proj": "its input was not seen (fused attention, or never called)",
        "0.self_attn.in_proj_weight": "fused attention or a layer of another kind, which is not fitted",
    }
    assert "0.linear1.weight" in found.state
    with pytest.raises(
        StatisticsError, match=r"There are no inputs of the task 'dog', so nothing can pass its expert\."
    ):
        calibrate_features(net, *models[:2], {"dog": models[2]}, batches(x), **call)
    with pytest.raises(StatisticsError, match=r"A calibration needs at least one expert, and none is given\."):
        calibrate_features(net, *models[:2], {}, batches(x), **call)
    with pytest.raises(StatisticsError, match=r"'teacher' of a feature calibration is 2; give 0 to 1\."):
        DriftSettings(teacher=2)
    stop = Stop()
    stop.set()
    with pytest.raises(Cancelled):
        calibrate_features(net, *models[:2], {"ant": models[2]}, batches(x), stop=stop, **call)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())

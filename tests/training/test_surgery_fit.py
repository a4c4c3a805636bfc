"""Representation Surgery on features: the identity at first, towards the expert in the end, and its files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training.learn_zoo import WIDTH, toy

from mergelab.errors import Cancelled, CheckpointError, MergeLabError, TaskError
from mergelab.progress import Stop
from mergelab.tasks import Head
from mergelab.training.correction import Correction, Surgery, SurgeryHead
from mergelab.training.surgery import Operated, SurgerySettings, bias_of, fit, operate, projection

QUICK = SurgerySettings(rank=4, steps=30)


def operated(settings: SurgerySettings = QUICK, **options: Any) -> Operated:
    model, plan, inputs = toy(2)
    experts = dict(zip(plan.names, plan.models, strict=True))
    return operate(model, plan.base, experts, inputs, settings, weights_hash="a" * 64, **options)


def test_the_start_is_the_identity() -> None:
    features = torch.randn(5, WIDTH)
    start = Correction.start(WIDTH, 4)
    assert torch.equal(start(features), features)
    assert start.down.shape == (4, WIDTH) and start.up.shape == (WIDTH, 4)
    assert start.down.abs().max() <= 1 / math.sqrt(WIDTH) and start.down.abs().min() > 0
    head = Head(torch.randn(3, WIDTH), torch.randn(3), scale=2.0, normalize=True)
    assert torch.equal(SurgeryHead.around(head, start).logits(features), head.logits(features))
    untrained = operated(replace(QUICK, steps=0)).surgery
    for found in untrained.bias.values():
        assert found["after"] == found["before"] > 0


def test_the_formula_by_hand() -> None:
    """z = (2, −1): D z = (2, −3), relu (2, 0), U · = (1, 4), so ẑ = (1, −5)."""
    correction = Correction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), torch.tensor([[0.5, 7.0], [2.0, 7.0]]))
    assert correction(torch.tensor([[2.0, -1.0]])).tolist() == [[1.0, -5.0]]


def test_where_an_exact_correction_exists_most_of_the_bias_goes() -> None:
    rng = torch.Generator().manual_seed(0)
    merged = torch.randn(256, 16, generator=rng)
    truth = Correction(torch.randn(2, 16, generator=rng) / 4, torch.randn(16, 2, generator=rng))
    expert = truth(merged)
    found = fit(merged, expert, SurgerySettings(rank=8, steps=2000, rate=1e-2))
    assert bias_of(merged, expert) > 0.3
    assert bias_of(found(merged), expert) < 0.1 * bias_of(merged, expert)
    fresh = torch.randn(64, 16, generator=rng)
    assert bias_of(found(fresh), truth(fresh)) < 0.2 * bias_of(fresh, truth(fresh))


def test_the_bias_is_the_mean_absolute_difference() -> None:
    assert bias_of(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])) == 1.5


def test_the_bias_of_a_merged_model_falls_and_is_told_for_other_pictures_too() -> None:
    model, _, inputs = toy(2)
    held = {"t0": inputs[0].images[:5]}
    surgery = operated(replace(QUICK, steps=300), held_out=held).surgery
    for found in surgery.bias.values():
        assert 0 < found["after"] < 0.9 * found["before"]
    assert surgery.bias["t0"]["held_out"] == 5
    assert surgery.bias["t0"]["held_out_after"] < surgery.bias["t0"]["held_out_before"]
    assert "held_out" not in surgery.bias["t1"]
    assert surgery.examples == {"t0": 12, "t1": 12} and surgery.width == model.width


def test_fitting_is_the_same_for_the_same_seed_and_does_not_depend_on_the_other_tasks() -> None:
    model, plan, inputs = toy(2)
    experts = dict(zip(plan.names, plan.models, strict=True))
    both, other = operated().surgery, operated(replace(QUICK, seed=1)).surgery
    alone = operate(model, plan.base, experts, inputs[1:], QUICK, weights_hash="a").surgery
    for part in ("down", "up"):
        mine = getattr(both.corrections["t1"], part)
        assert torch.equal(mine, getattr(alone.corrections["t1"], part))
        assert not torch.equal(mine, getattr(other.corrections["t1"], part))


def test_features_kept_are_what_running_the_encoders_each_step_gives() -> None:
    """The same steps by hand, with both encoders run on every batch (16 of 12 pictures: all of them)."""
    model, plan, inputs = toy(1)
    settings = SurgerySettings(rank=4, steps=5, batch=12)
    found = operate(model, plan.base, {"t0": plan.models[0]}, inputs, settings, weights_hash="a").surgery
    generator = torch.Generator().manual_seed((__import__("zlib").crc32(b"surgery/t0") << 16) + 0)
    start = Correction.start(WIDTH, 4, generator)
    parts = [start.down.requires_grad_(), start.up.requires_grad_()]
    optimiser = torch.optim.Adam(parts, lr=1e-3)
    for _ in range(5):
        ours = model.encode(inputs[0].images, weights=model.prepare(plan.base))
        theirs = model.encode(inputs[0].images, weights=model.prepare(plan.models[0]))
        optimiser.zero_grad()
        (start(ours.clone()) - theirs.clone()).abs().mean().backward()
        optimiser.step()
    torch.testing.assert_close(found.corrections["t0"].up, start.up.detach(), rtol=1e-4, atol=1e-5)


def test_a_projection_has_three_clouds_on_the_same_axes() -> None:
    rng = torch.Generator().manual_seed(0)
    merged = torch.randn(30, 6, generator=rng) * torch.tensor([5.0, 3.0, 0.1, 0.1, 0.1, 0.1])
    expert = merged + torch.tensor([0.0, 20.0, 0.0, 0.0, 0.0, 0.0])
    table = projection(merged, expert, expert, points=10)
    assert json.loads(json.dumps(table)) == table
    assert {name: len(points) for name, points in table["points"].items()} == dict.fromkeys(table["points"], 10)
    assert table["points"]["corrected"] == table["points"]["expert"]
    assert sum(table["explained"]) > 0.99 and table["explained"][0] > table["explained"][1]
    ours, theirs = (torch.tensor(table["points"][name]) for name in ("merged", "expert"))
    shift = (theirs - ours).norm(dim=1)  # the axes keep distances within their plane, and this one lies in it
    assert shift == pytest.approx([20.0] * 10, abs=0.1)


def test_stop_ends_it_and_progress_counts_every_picture_twice() -> None:
    seen: list[tuple[int, int]] = []
    operated(progress=lambda done, total, text: seen.append((done, total)))
    assert (48, 48) in seen  # two tasks of twelve, by two models
    stop = Stop()
    stop.set()
    with pytest.raises(Cancelled):
        operated(stop=stop)
    with pytest.raises(Cancelled):
        fit(torch.randn(4, 8), torch.randn(4, 8), QUICK, stop=stop)


def test_it_comes_back_from_a_file_as_it_was(tmp_path: Path) -> None:
    surgery = operated(suite="tiny", source="merged").surgery
    path = surgery.write(tmp_path / "deep" / "surgery.safetensors")
    again = Surgery.read(path)
    assert again.header() == surgery.header()
    assert again.data_used == surgery.data_used
    assert "12 unlabelled val pictures a task of t0, t1; task id needed at inference" in again.data_used
    for task, correction in surgery.corrections.items():
        assert torch.equal(again.corrections[task].down, correction.down)
        assert torch.equal(again.corrections[task].up, correction.up)
    with pytest.raises(CheckpointError, match="exists"):
        surgery.write(path)
    assert surgery.write(path, overwrite=True) == path


def test_test_pictures_are_marked() -> None:
    surgery = replace(operated().surgery, split="test")
    assert surgery.transductive and "transductive" in surgery.data_used
    assert not operated().surgery.transductive


def test_other_weights_and_another_width_are_refused() -> None:
    surgery = operated().surgery
    assert surgery.check("a" * 64, WIDTH) is surgery
    with pytest.raises(CheckpointError, match="belongs to weights aaaaaaaaaaaa, merged has bbbbbbbbbbbb"):
        surgery.check("b" * 64, WIDTH, "merged")
    with pytest.raises(CheckpointError, match=f"features of width {WIDTH}, the model gives 5"):
        surgery.check("a" * 64, 5)
    with pytest.raises(TaskError, match=f"width {WIDTH}, the head takes 5"):
        surgery.heads({"t0": Head(torch.randn(3, 5))})


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = operated().surgery.write(tmp_path / "s.safetensors")
    tensors, header = load_file(path), operated().surgery.header()

    def damaged(change: Any, name: str = "d.safetensors") -> Path:
        parts, said = dict(tensors), json.loads(json.dumps(header))
        change(parts, said)
        save_file(parts, tmp_path / name, metadata={"mergelab_surgery": json.dumps(said)})
        return tmp_path / name

    cases = [
        (lambda t, h: t.pop("t0.surgery_up"), "up matrix of t0 is missing"),
        (lambda t, h: t.update({"t0.surgery_up": torch.zeros(3, 4)}), r"up matrix of t0 is \[3, 4\], \[24, 4\]"),
        (lambda t, h: t["t0.surgery_down"].fill_(math.nan), "down matrix of t0 holds NaN"),
        (lambda t, h: h.update(format="other/9"), "no surgery file of the format"),
        (lambda t, h: h.pop("width"), "header of d.safetensors is damaged"),
        (lambda t, h: h.update(rank="many"), "header of d.safetensors is damaged"),
    ]
    for change, message in cases:
        with pytest.raises(CheckpointError, match=message):
            Surgery.read(damaged(change))
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="no surgery file"):
        Surgery.read(tmp_path / "bare.safetensors")
    (tmp_path / "text.safetensors").write_text("not a tensor")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Surgery.read(tmp_path / "text.safetensors")
    with pytest.raises(CheckpointError, match="There is no surgery file nowhere"):
        Surgery.read(tmp_path / "nowhere")


def test_what_cannot_be_fitted_is_refused() -> None:
    model, plan, inputs = toy(2)
    with pytest.raises(TaskError, match="t1 has no expert"):
        operate(model, plan.base, {"t0": plan.models[0]}, inputs, QUICK, weights_hash="a")
    mixed = [inputs[0], replace(inputs[1], split="test")]
    with pytest.raises(TaskError, match="same split"):
        operate(model, plan.base, dict(zip(plan.names, plan.models, strict=True)), mixed, QUICK, weights_hash="a")
    with pytest.raises(MergeLabError, match="rank and a batch of at least 1"):
        SurgerySettings(rank=0)
    with pytest.raises(MergeLabError, match="diverged"):
        fit(torch.full((4, 8), math.inf), torch.zeros(4, 8), QUICK, "t0")

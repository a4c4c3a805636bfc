"""The models that Twin-Merging is compared with, on a small ViT whose states are summed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergelab.errors import RoutingError
from mergelab.models import build
from mergelab.routing.baseline import sizes, table
from mergelab.routing.baselines import BASELINES, Material, baseline, equal_bytes_density, rank_share, static
from mergelab.routing.compression import Compression
from mergelab.routing.decompose import decompose
from mergelab.routing.masked import emr, tall
from mergelab.routing.modes import Runner
from mergelab.routing.routed import RoutedModel
from mergelab.tasks import Head

TASKS = ("a", "b", "c")
CONFIG = {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 56, "patch_size": 14}  # fmt: skip
MLP = ("mlp.fc1.", "mlp.fc2.")


class LinearRouter:
    """Logits that are linear in the features, without training."""

    kind, names, width = "test", TASKS, 32

    def __init__(self, seed: int = 3) -> None:
        self.matrix = 2 * torch.randn(32, 3, generator=torch.Generator().manual_seed(seed))

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.matrix

    def state(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def about(self) -> dict[str, Any]:
        return {}


def make(compression: Compression) -> Material:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    module = Dinov2Model(Dinov2Config(**{k: v for k, v in CONFIG.items() if k != "model_type"}))
    base = {n: t.detach() + 0.05 * torch.randn_like(t) for n, t in module.state_dict().items()}
    experts = {
        task: {n: t + 0.1 * torch.randn(t.shape, generator=g) for n, t in base.items()}
        for task, g in ((task, torch.Generator().manual_seed(i)) for i, task in enumerate(TASKS))
    }
    shared = {n: t + 0.4 * sum(experts[task][n] - t for task in TASKS) for n, t in base.items()}
    heads = {t: Head(torch.randn(3, 32, generator=torch.Generator().manual_seed(i))) for i, t in enumerate(TASKS)}
    routed = RoutedModel(TASKS, shared, decompose(shared, experts, compression).parts, heads, LinearRouter(),
                         config=CONFIG, settings={"data_used": "task index of 5 items"})  # fmt: skip
    return Material(routed, base, experts, compression)


@pytest.fixture(scope="module")
def full() -> Material:
    return make(Compression(kind="none"))


@pytest.fixture(scope="module")
def low() -> Material:
    return make(Compression(rank=4, exact=True))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, (6, 28, 28, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("suite"), np.random.RandomState(1)
    for task in TASKS:
        split = {f"x_{s}": rng.randint(0, 256, (10, 28, 28, 3)).astype(np.uint8) for s in ("train", "val", "test")}
        split |= {f"y_{s}": rng.randint(0, 3, 10).astype(np.uint8) for s in ("train", "val", "test")}
        np.savez(folder / f"{task}.npz", classes=np.array(["x", "y", "z"]), **split)
    return folder


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert float((found - expected).abs().max()) < tolerance * max(1.0, float(expected.abs().max()))


def through(state: dict[str, Tensor], images: Tensor) -> Tensor:
    return build(state, config=CONFIG, device="cpu").encode(images)


def router_rows(m: Material, images: Tensor) -> Tensor:
    """The router's soft weights on the shared model's features, computed here."""
    return torch.softmax(through(dict(m.routed.shared), images) @ m.routed.router.matrix, 1)


def test_without_truncation_the_shared_model_cancels_out(full, images):
    """A = B = a random expert's anchor = Σ w θ_t, for equal router weights (they sum to 1)."""
    rows = router_rows(full, images)
    assert float(rows.max(1).values.min()) < 0.9  # mixtures, not choices
    expected = []
    for image, row in zip(images, rows, strict=True):
        mixed = {n: sum(w * full.experts[t][n] for w, t in zip(row, TASKS, strict=True)) for n in full.base}
        expected.append(through(mixed, image[None]))
    for name in ("shared_dynamic", "base_dynamic", "random_expert"):
        ran = baseline(name, full).runner().run(images, mode="per_input")
        close(ran.weights, rows)
        close(ran.features, torch.cat(expected))


def test_with_truncation_the_anchor_matters_and_parts_are_relative_to_it(low, images):
    b, a = baseline("shared_dynamic", low), baseline("base_dynamic", low)
    one = baseline("random_expert", low, seed=1)
    chosen = one.title.split()[1]
    assert one.routed.parts[chosen] == {} and a.routed.rank == b.routed.rank == 4
    for found, anchor in ((b, low.routed.shared), (a, low.base), (one, low.experts[chosen])):
        name = "encoder.layer.0.mlp.fc1.weight"
        u, s, v = torch.linalg.svd((low.experts["b" if chosen != "b" else "c"][name] - anchor[name]).double())
        best = ((u[:, :4] * s[:4]) @ v[:4]).float()
        close(found.routed.parts["b" if chosen != "b" else "c"][name].dense(), best, 1e-4)
    gap = a.runner().run(images, mode="adapter").features - b.runner().run(images, mode="adapter").features
    assert float(gap.abs().max()) > 1e-3


def test_the_random_expert_is_drawn_by_the_seed_from_all(low):
    assert {baseline("random_expert", low, seed=s).title for s in range(12)} == {
        f"Expert {t} as shared + exclusive, routed" for t in TASKS
    }


def test_static_rows_run_one_model_for_all_inputs(low, full, images):
    shared = baseline("static_shared", low).runner().run(images)
    close(shared.features, through(dict(low.routed.shared), images))
    close(shared.weights, router_rows(low, images))  # they choose the head
    close(baseline("pretrained", low).runner().run(images).features, through(dict(low.base), images))
    average = {n: sum(full.experts[t][n] for t in TASKS) / 3 for n in full.base}
    found = baseline("uniform", full)
    close(found.runner().run(images).features, through(average, images))
    close(found.runner().run(images).weights, router_rows(full, images))
    given = static(full, full.experts["b"], "mine", "An expert").runner().run(images)
    close(given.features, through(full.experts["b"], images))


def test_first_choices(full, images):
    rows = router_rows(full, images)
    first = rows.argmax(1)
    expected = torch.cat([through(full.experts[TASKS[t]], i[None]) for i, t in zip(images, first, strict=True)])
    every = baseline("all_experts", full)
    ran = every.runner().run(images, mode="group")
    close(ran.features, expected)
    assert ran.merges == len(first.unique())
    assert every.bytes["exclusive"] == 3 * 4 * sum(t.numel() for t in full.base.values())
    close(baseline("top1_adapters", full).runner().run(images, mode="group").features, expected)
    two = baseline("topk_adapters", full, k=2).runner().run(images, mode="adapter").weights
    assert bool(((two > 0).sum(1) == 2).all()) and torch.equal(two.argmax(1), first)
    close(two.sum(1), torch.ones(6))


@pytest.mark.parametrize("name", ["emr", "tall"])
def test_masks_are_picked_by_the_routers_first_choice(name, low, images):
    masked = (emr if name == "emr" else tall)(low.base, low.experts)
    first = router_rows(low, images).argmax(1)
    expected = torch.cat([through(masked.state(TASKS[t]), i[None]) for i, t in zip(images, first, strict=True)])
    found = baseline(name, low)
    close(found.runner().run(images, mode=found.mode).features, expected)
    bits = sum(-(-t.numel() // 8) for t in low.base.values())
    assert found.bytes["exclusive"] == 3 * bits + 12
    assert found.bytes["unified"] == found.bytes["shared"] == found.bytes["guide"] == low.routed.bytes()["shared"]
    assert found.bytes["total"] == sum(v for k, v in found.bytes.items() if k != "total")


def test_sparsity_at_equal_density_and_at_equal_bytes(low):
    table_of = 17 * 32  # positions: rank 4 of 17; every other matrix of this model has a side of 32
    every = sum(t.numel() for t in low.base.values() if t.ndim > 1 and t.numel() > 32)
    share = (table_of * 4 / 17 + (every - table_of) * 4 / 32) / every
    assert rank_share(low.routed) == pytest.approx(share)
    matrices = [p for of in low.routed.parts.values() for p in of.values() if hasattr(p, "u")]
    factors = sum(4 * (4 * (p.u.shape[0] + p.v.shape[1] + 1)) for p in matrices)
    entries = sum(p.dense().numel() for p in matrices)
    assert entries == 3 * every
    assert equal_bytes_density(low.routed) == pytest.approx(factors / (8 * entries))
    assert equal_bytes_density(low.routed, "bitmap") == pytest.approx((factors / entries - 1 / 8) / 4)
    wanted = low.routed.bytes()["exclusive"]
    for kind in ("magnitude", "bernoulli"):
        for form in ("places", "bitmap"):
            found = baseline(kind, low, match="bytes", form=form)
            assert found.bytes["exclusive"] == pytest.approx(wanted, rel=0.02)
        kept = baseline(kind, low)
        part = kept.routed.parts["a"]["encoder.layer.0.mlp.fc1.weight"]
        assert part.values.numel() == pytest.approx(part.dense().numel() * share, rel=0.1)
        assert kept.settings["density"] == pytest.approx(share)
    dense = low.experts["a"]["encoder.layer.0.mlp.fc1.weight"] - low.routed.shared["encoder.layer.0.mlp.fc1.weight"]
    found = baseline("magnitude", low).routed.parts["a"]["encoder.layer.0.mlp.fc1.weight"].dense()
    floor = dense.abs().flatten().sort(descending=True).values[int(dense.numel() * share) - 1]
    assert torch.equal(found, torch.where(dense.abs() >= floor, dense, 0.0))


def test_mlp_only_keeps_the_parts_of_mlps(low):
    found = baseline("mlp_only", low)
    for task in TASKS:
        assert set(found.routed.parts[task]) == {n for n in low.routed.parts[task] if any(m in n for m in MLP)}
    assert 0 < found.bytes["exclusive"] < low.routed.bytes()["exclusive"]


def test_a_router_of_its_own_is_trained_on_the_anchor_and_needs_no_guide(low, images):
    asked: list[RoutedModel] = []

    def train(routed: RoutedModel) -> Any:
        asked.append(routed)
        return LinearRouter(9)

    own = baseline("base_dynamic", replace(low, train=train), router="own")
    assert own.guide is None and all(torch.equal(asked[0].shared[n], t) for n, t in low.base.items())
    expected = torch.softmax(through(dict(low.base), images) @ LinearRouter(9).matrix, 1)
    close(own.runner().run(images, mode="adapter").weights, expected)
    same = baseline("base_dynamic", low)
    assert same.bytes["total"] - own.bytes["total"] == low.routed.bytes()["shared"]  # the features' model
    with pytest.raises(RoutingError, match="train="):
        baseline("base_dynamic", low, router="own")


def test_a_runner_of_the_guide_and_one_model_serve_all(low, images):
    guide = Runner(low.routed)
    for name in ("base_dynamic", "emr", "static_shared"):
        found = baseline(name, low)
        alone = found.runner().run(images, mode=found.mode)
        together = found.runner(guide.model, guide=guide).run(images, mode=found.mode)
        close(together.features, alone.features, 1e-6)
        assert torch.equal(together.weights, alone.weights)


def test_a_table_has_a_row_for_every_baseline_and_head(low, suite):
    options = [baseline(name, low) for name in BASELINES if name not in ("magnitude", "soft_adapters")]
    rows = table(options, lambda b, head: b.evaluate(suite, head=head), heads=("router_argmax", "oracle"))
    assert len(rows) == 2 * len(options)
    for row in rows:
        assert 0 <= row["accuracy"] <= 1 and set(row["tasks"]) == set(TASKS) and row["data_used"]
        assert row["bytes"] == sum(v for k, v in row["parts"].items() if k != "total") and row["seconds_per_1000"] > 0
        assert row["needs_task_id"] == (row["head"] == "oracle" or row["name"] == "oracle_top1")
    by_name = {(r["name"], r["head"]): r for r in rows}
    assert by_name["oracle_top1", "oracle"]["data_used"] == "task id at inference"
    assert by_name["oracle_top1", "oracle"]["router"] == 1.0
    assert by_name["oracle_top1", "oracle"]["parts"]["router"] == 0
    same = {by_name[name, "router_argmax"]["router"] for name in ("static_shared", "base_dynamic", "emr", "uniform")}
    assert len(same) == 1  # one router, one routing
    counted = sizes(low.routed)
    assert by_name["shared_dynamic", "oracle"]["bytes"] == counted["total"] == low.routed.bytes()["total"]


def test_material_is_found_again_from_the_recipe(tmp_path: Path):
    from tasks.tiny_zoo import make_zoo

    from mergelab.routing.build import twin

    zoo = make_zoo(tmp_path / "tiny")
    experts = {name: str(zoo / "experts" / name) for name in ("grey", "colour")}
    routed = twin("linear", experts, str(zoo / "base"), suite=str(zoo), rank=2, router="centroid")
    m = Material.of(routed, suite=str(zoo))
    assert set(m.experts) == {"grey", "colour"} and m.compression.rank == 2
    assert all(torch.equal(m.base[n], t) for n, t in routed.shared.items())  # these experts are their base
    own = baseline("base_dynamic", m, router="own")
    assert own.routed.router is not None and own.routed.router.kind == "centroid"
    assert own.evaluate(str(zoo), limit=6, unseen=False).evaluation.tasks["grey"].n == 6
    with pytest.raises(RoutingError, match="says no recipe"):
        Material.of(replace(routed, settings={}))


def test_what_is_not_known_is_refused(low):
    with pytest.raises(RoutingError, match="Did you mean 'emr'"):
        baseline("err", low)
    with pytest.raises(RoutingError, match=r"no option 'seeds'.*'seed'"):
        baseline("random_expert", low, seeds=3)
    with pytest.raises(RoutingError, match="'same' or 'own'"):
        baseline("base_dynamic", low, router="theirs")
    with pytest.raises(RoutingError, match="density or bytes"):
        baseline("magnitude", low, match="size")
    bare = replace(low, routed=replace(low.routed, parts={t: {} for t in TASKS}))
    for name in ("mlp_only", "magnitude"):
        with pytest.raises(RoutingError, match="no"):
            baseline(name, bare)
    with pytest.raises(RoutingError, match="no exclusive matrix"):
        equal_bytes_density(bare.routed)

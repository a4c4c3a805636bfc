"""The five modes on real families: the same numbers from each, and what each refuses."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergelab.errors import Cancelled, MergeLabError
from mergelab.models import build
from mergelab.progress import Stop
from mergelab.routing.compression import Compression
from mergelab.routing.decompose import decompose
from mergelab.routing.gate import Gate
from mergelab.routing.groups import Centroids
from mergelab.routing.modes import GroupSettings, Runner
from mergelab.routing.routed import RoutedModel

TASKS = ("a", "b", "c")
VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3,
          "image_size": 28, "patch_size": 14}  # fmt: skip
TEXT = {"hidden_size": 40, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 5,
        "vocab_size": 64, "max_position_embeddings": 20, "eos_token_id": 63}  # fmt: skip


def dinov2() -> tuple[torch.nn.Module, dict[str, Any]]:
    from transformers import Dinov2Config, Dinov2Model

    config = {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": 56, "patch_size": 14}  # fmt: skip
    return Dinov2Model(Dinov2Config(**{k: v for k, v in config.items() if k != "model_type"})), config


def hf_clip() -> tuple[torch.nn.Module, dict[str, Any]]:
    from transformers import CLIPConfig, CLIPModel

    config = {"model_type": "clip", "projection_dim": 24, "vision_config": VISION, "text_config": TEXT}
    return CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)), config


def open_clip() -> tuple[torch.nn.Module, dict[str, Any]]:
    from open_clip.model import CLIP

    model = {"embed_dim": 24,
             "vision_cfg": {"image_size": 28, "layers": 3, "width": 64, "patch_size": 14, "head_width": 32},
             "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}}  # fmt: skip
    return CLIP(**model), {"model_cfg": model}


class FixedRouter:
    """Logits that are linear in the features, without training."""

    kind = "test"

    def __init__(self, width: int, names: tuple[str, ...] = TASKS) -> None:
        self.names, self.width = names, width
        self.matrix = 8 * torch.randn(width, len(names), generator=torch.Generator().manual_seed(3)) / width**0.5

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.matrix

    def state(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def about(self) -> dict[str, Any]:
        return {}


def experts(shared: dict[str, Tensor], scale: float = 0.05) -> dict[str, dict[str, Tensor]]:
    out = {}
    for t, task in enumerate(TASKS):
        generator = torch.Generator().manual_seed(t)
        out[task] = {
            n: v + scale * torch.randn(v.shape, generator=generator) if v.is_floating_point() else v
            for n, v in shared.items()
        }
    return out


def runner_of(make: Any, compression: Compression | None = None, **options: Any) -> tuple[Runner, dict[str, Any]]:
    torch.manual_seed(0)
    module, config = make()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    shared = {n: t.detach().clone() for n, t in module.state_dict().items()}
    them = experts(shared)
    parts = decompose(shared, them, compression or Compression(rank=4)).parts
    routed = RoutedModel(TASKS, shared, parts, config=config)
    width = Runner(routed).model.width
    early = {"dinov2": 32, "hf_clip": 48, "open_clip": 64}[make.__name__]
    routed = RoutedModel(TASKS, shared, parts, router=FixedRouter(width), early_router=FixedRouter(early),
                         early_layer=1, config=config, **options)  # fmt: skip
    return Runner(routed), them


@pytest.fixture(scope="module", params=[dinov2, hf_clip, open_clip], ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest) -> tuple[Runner, dict[str, Any]]:
    return runner_of(request.param)


@pytest.fixture(scope="module")
def vit() -> tuple[Runner, dict[str, Any]]:
    return runner_of(dinov2)


@pytest.fixture
def images() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, (9, 32, 32, 3)).astype(np.uint8))


@pytest.fixture
def rows() -> Tensor:
    return torch.softmax(2 * torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), 1)


def by_hand(runner: Runner, images: Tensor, rows: Tensor) -> Tensor:
    """Each input through a model whose weights were summed densely, here."""
    routed, out = runner.routed, []
    for image, row in zip(images, rows, strict=True):
        state = {n: t.clone() for n, t in routed.shared.items()}
        for weight, task in zip(row, TASKS, strict=True):
            for name, part in routed.parts[task].items():
                state[name] += weight * part.dense()
        out.append(build(state, config=routed.config, device="cpu").encode(image[None]))
    return torch.cat(out)


def close(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 2e-5 * max(scale, 1.0)


def test_every_mode_gives_what_a_merge_for_each_input_gives(made, images, rows):
    runner, _ = made
    expected = by_hand(runner, images, rows)
    plain = runner.features(images)
    assert float((plain - expected).abs().max()) > 1e-2 * float(expected.abs().max())  # the parts matter
    for mode in ("per_input", "adapter", "group"):
        ran = runner.run(images, rows, mode, batch=4)
        close(ran.features, expected)
        assert torch.equal(ran.weights, rows) and ran.mode == mode
    assert runner.run(images, rows, "group").merges == 9


def test_static_is_the_same_mixture_for_all(made, images, rows):
    runner, _ = made
    expected = by_hand(runner, images, rows[2].expand(9, -1))
    close(runner.run(images, rows[2], "static").features, expected)
    close(runner.run(images, rows[2], "adapter").features, expected)
    assert runner.run(images, rows[2]).mode == "static"  # what auto picks for one mixture
    with pytest.raises(MergeLabError, match="different weights"):
        runner.run(images, rows, "static")


def test_with_everything_kept_one_hot_is_the_expert_and_any_mixture_is_the_sum_of_experts(images):
    for scale in (1.0, 0.0):  # whatever the shared model is: it cancels out
        runner, them = runner_of(dinov2, Compression(kind="none"))
        if not scale:
            shared = {n: torch.zeros_like(t) if t.is_floating_point() else t for n, t in runner.routed.shared.items()}
            parts = decompose(shared, them, Compression(kind="none")).parts
            runner = Runner(RoutedModel(TASKS, shared, parts, config=runner.routed.config))
        alone = build(them["b"], config=runner.routed.config, device="cpu").encode(images)
        row = torch.tensor([0.2, 0.5, 0.3])
        mixed = {n: sum(w * them[t][n].double() for w, t in zip(row.tolist(), TASKS, strict=True)).float()
                 for n, v in them["a"].items() if v.is_floating_point()}  # fmt: skip
        together = build(mixed, config=runner.routed.config, device="cpu").encode(images)
        for mode in ("adapter", "per_input", "static"):
            close(runner.run(images, [0.0, 1.0, 0.0], mode).features, alone)
            close(runner.run(images, row, mode).features, together)


def test_rank_0_and_weights_of_zero_are_the_shared_model(vit, images, rows):
    runner, _ = vit
    expected = build(dict(runner.routed.shared), config=runner.routed.config, device="cpu").encode(images)
    none = Runner(runner.routed.at_rank(0))
    for mode in ("adapter", "per_input", "group"):
        close(none.run(images, rows, mode).features, expected)
        close(runner.run(images, torch.zeros(9, 3), mode).features, expected)


def test_one_pass_adds_parts_only_after_the_layer_that_routes(made, images):
    runner, _ = made
    ran = runner.run(images, None, "one_pass", batch=4)
    early = runner.early_features(images, 1)
    expected = Gate().weights(runner.routed.early_router.logits(early))
    torch.testing.assert_close(ran.weights, expected, atol=1e-5, rtol=1e-4)
    first = ("encoder.layer.0.", "encoder.layers.0.", "resblocks.0.", "embeddings", "conv1", "class_embedding",
             "positional_embedding", "ln_pre", "pre_layrnorm")  # fmt: skip
    late = {t: {n: p for n, p in part.items() if not any(word in n for word in first)}
            for t, part in runner.routed.parts.items()}  # fmt: skip
    rest = Runner(RoutedModel(TASKS, runner.routed.shared, late, config=runner.routed.config))
    close(ran.features, rest.run(images, ran.weights, "per_input").features)


def test_groups_follow_the_router_and_keep_the_order(vit, images):
    runner, _ = vit
    whole = runner.run(images, None, "adapter")
    bins = int(whole.weights.argmax(1).unique().numel())
    one_each = runner.run(images, None, "group", grouping=GroupSettings(per_bin=1))
    assert one_each.merges == bins
    many = runner.run(images, None, "group", grouping=GroupSettings(per_bin=9))
    assert many.merges == 9
    close(many.features, whole.features)
    turned = torch.arange(9).flip(0)
    again = runner.run(images[turned], None, "group", grouping=GroupSettings(per_bin=1))
    close(again.features, one_each.features[turned])


def test_centroids_fitted_before_serve_a_stream(vit, images):
    runner, _ = vit
    kept = runner.centroids(images, GroupSettings(per_bin=2))
    assert isinstance(kept, Centroids)
    whole = runner.run(images, None, "group", grouping=kept)
    for i in range(3):  # one after the other: the same groups as all at once
        alone = runner.run(images[i : i + 1], None, "group", grouping=kept)
        close(alone.features, whole.features[i : i + 1])


def test_a_row_does_not_depend_on_its_batch_or_the_order_of_tasks(vit, images, rows):
    runner, _ = vit
    whole = runner.run(images, rows, "adapter").features
    close(runner.run(images[3:4], rows[3:4], "adapter").features, whole[3:4])
    turned = [2, 0, 1]
    names = tuple(TASKS[i] for i in turned)
    other = Runner(RoutedModel(names, runner.routed.shared, runner.routed.parts, config=runner.routed.config))
    for mode in ("adapter", "per_input"):
        close(other.run(images, rows[:, turned], mode).features, whole)


def test_two_requests_at_once_do_not_disturb_each_other(vit, images, rows):
    runner, _ = vit
    asked = [(mode, rows.roll(shift, 0)) for shift, mode in enumerate(("adapter", "per_input", "adapter", "group"))]
    expected = [runner.run(images, w, mode).features for mode, w in asked]
    found: dict[int, list[Tensor]] = {i: [] for i in range(len(asked))}

    def work(i: int) -> None:
        for _ in range(4):
            found[i].append(runner.run(images, asked[i][1], asked[i][0], batch=2).features)

    threads = [threading.Thread(target=work, args=(i,)) for i in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, results in found.items():
        assert len(results) == 4
        for result in results:
            close(result, expected[i])


def test_auto_counts_multiplications(vit, images, rows):
    runner, _ = vit
    cost = runner.cost()
    two = [(n, t) for n, t in runner.routed.shared.items() if t.ndim >= 2 and n in runner.routed.parts["a"]]
    assert cost["dense"] == sum(t.numel() for _, t in two)
    side = sum(p.u.numel() + p.v.numel() if hasattr(p, "u") else p.delta.numel()
               for part in runner.routed.parts.values() for n, p in part.items() if len(p.shape) >= 2)  # fmt: skip
    assert cost["side"] == side
    assert runner.tokens() == 1 + (28 // 14) ** 2 or runner.tokens() == 1 + (56 // 14) ** 2
    mode, why = runner.choose(9)
    assert mode == "adapter" and "multiplications" in why
    dense = Runner(RoutedModel(TASKS, runner.routed.shared, decompose(
        runner.routed.shared, experts(runner.routed.shared), Compression(kind="none")).parts,
        config=runner.routed.config))  # fmt: skip
    assert dense.choose(10_000, grouping=GroupSettings(per_bin=1))[0] == "group"


def test_what_does_not_fit_is_said(vit, images, rows):
    runner, _ = vit
    for bad, words in (
        (rows[:, :2], "3"), (rows[:4], "4 rows"), (torch.full((9, 3), float("nan")), "NaN|finite"),
    ):  # fmt: skip
        with pytest.raises(MergeLabError, match=words):
            runner.run(images, bad, "adapter")
    with pytest.raises(MergeLabError, match="adapter"):
        runner.run(images, rows, "adaptor")
    bare = Runner(RoutedModel(TASKS, runner.routed.shared, runner.routed.parts, config=runner.routed.config))
    with pytest.raises(MergeLabError, match="no router"):
        bare.run(images)
    with pytest.raises(MergeLabError, match="early layer"):
        bare.run(images, None, "one_pass")
    with pytest.raises(MergeLabError, match="router knows"):
        RoutedModel(("a", "b", "d"), runner.routed.shared, {t: {} for t in "abd"}, router=FixedRouter(32))
    stop = Stop()
    stop.set()
    with pytest.raises(Cancelled):
        runner.run(images, rows, "adapter", stop=stop)


@pytest.mark.parametrize("mode", ["adapter", "group", "per_input", "one_pass", "static"])
def test_no_pictures_give_no_features(vit, mode):
    runner, _ = vit
    weights = [0.2, 0.3, 0.5] if mode == "static" else None
    ran = runner.run(torch.empty(0, 32, 32, 3, dtype=torch.uint8), weights, mode)
    assert ran.features.shape == (0, runner.model.width) and ran.weights.shape == (0, 3)


def test_the_gate_can_leave_an_unsure_input_to_the_shared_model(vit, images):
    runner, _ = vit
    ran = runner.run(images, None, "adapter", gate=Gate(threshold=1.0, temperature=50.0))
    assert not ran.weights.any()
    close(ran.features, runner.features(images))

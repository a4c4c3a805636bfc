"""Routers: they learn to tell tasks, depend on nothing but data and seed, and survive being written and read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mergelab.errors import Cancelled, MergeLabError
from mergelab.progress import Stop
from mergelab.routing.gate import Gate
from mergelab.routing.mlp import _drop
from mergelab.routing.routers import KINDS, Router, RouterError, RouterSettings, router_from, train_router

LEARN = ("mlp", "centroid", "knn")
QUICK = RouterSettings(epochs=15, batch=32, rate=5e-3, hidden=32)


def clouds(count: int, seed: int, names: tuple[str, ...] = ("a", "b", "c"), width: int = 8) -> dict[str, Tensor]:
    """Gaussian clouds of deviation 1 about means 4 apart and more: the best router errs in about 2 % or less."""
    means = 4 * torch.eye(len(names), width) + 10
    generator = torch.Generator().manual_seed(seed)
    return {n: means[i] + torch.randn(count, width, generator=generator) for i, n in enumerate(names)}


def accuracy(router: Router, data: dict[str, Tensor]) -> float:
    right = [router.logits(rows).argmax(1) == router.names.index(name) for name, rows in data.items()]
    return float(torch.cat(right).float().mean())


@pytest.fixture(scope="module")
def trained() -> dict[str, Router]:
    return {kind: train_router(kind, clouds(150, 0), clouds(60, 1), QUICK) for kind in KINDS}


@pytest.mark.parametrize("kind", LEARN)
def test_separable_tasks_are_told_apart(trained, kind):
    assert accuracy(trained[kind], clouds(300, 2)) > 0.95
    weights = Gate().weights(trained[kind].logits(clouds(300, 2)["b"]))
    assert float(weights[:, 1].mean()) > 0.8  # and surely enough to pick the expert


def test_the_uniform_router_prefers_nothing(trained):
    assert torch.equal(trained["uniform"].logits(clouds(5, 2)["a"]), torch.zeros(5, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_router_and_global_random_state_is_left_alone(kind):
    settings = RouterSettings(epochs=2, batch=16, per_task=30)
    data, held = clouds(40, 0), clouds(10, 1)
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        results.append(train_router(kind, data, held, settings))
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0].about() == results[1].about()
    for name, tensor in results[0].state().items():
        assert torch.equal(tensor, results[1].state()[name]), name


def test_another_seed_gives_another_router():
    a, b = (train_router("mlp", clouds(40, 0), {}, RouterSettings(epochs=1, seed=seed)) for seed in (0, 1))
    assert not torch.equal(a.state()["0.weight"], b.state()["0.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_logits_do_not_depend_on_the_batch(trained, kind):
    rows = torch.cat(list(clouds(20, 3).values()))
    together = trained[kind].logits(rows)
    alone = torch.cat([trained[kind].logits(row[None]) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert trained[kind].logits(rows[:0]).shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_it_is_the_same(trained, kind):
    router = trained[kind]
    back = router_from(router.state(), json.loads(json.dumps(router.about(), allow_nan=False)))
    rows = clouds(10, 4)["a"]
    assert torch.equal(back.logits(rows), router.logits(rows))
    assert back.about() == router.about() and back.names == ("a", "b", "c") and back.width == 8


def test_the_notes_say_how_it_was_made(trained):
    about = trained["mlp"].about()
    assert about["counts"] == {"a": 150, "b": 150, "c": 150} and about["held_out"] == {"a": 60, "b": 60, "c": 60}
    assert about["settings"]["epochs"] == 15 and about["seed"] == 0 and about["warnings"] == []
    curves = about["curves"]
    assert len(curves["loss"]) == len(curves["validation_loss"]) == len(curves["validation_accuracy"])
    assert curves["loss"][-1] < curves["loss"][0]
    best = max(
        range(len(curves["loss"])), key=lambda i: (curves["validation_accuracy"][i], -curves["validation_loss"][i])
    )
    assert about["epoch"] == best + 1
    assert sum(map(sum, about["validation"]["confusion"])) == 180
    # The kept weights are those of the chosen epoch: the score at the end is that epoch's.
    assert about["validation"]["loss"] == pytest.approx(curves["validation_loss"][best], abs=1e-6)


def test_source_and_shared_model_are_kept():
    router = train_router("centroid", clouds(5, 0), {}, source="layer 3", shared="ab" * 32)
    assert router.about()["features"] == "layer 3" and router.about()["shared"] == "ab" * 32


# The network, against torch's own modules


def test_the_network_is_the_papers(trained):
    router = trained["mlp"]
    d, h, t = 8, 32, 3
    network = nn.Sequential(
        nn.Linear(d, h), nn.BatchNorm1d(h), nn.LeakyReLU(0.01), nn.Dropout(0.5),
        nn.Linear(h, h), nn.BatchNorm1d(h), nn.LeakyReLU(0.01), nn.Dropout(0.5), nn.Linear(h, t),
    )  # fmt: skip
    state = router.state()
    mean, scale = state.pop("mean"), state.pop("scale")
    result = network.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and all("num_batches" in key for key in result.missing_keys)
    rows = clouds(20, 5)["a"]
    with torch.no_grad():
        torch.testing.assert_close(router.logits(rows), network.eval()((rows - mean) * scale))


def test_the_network_is_as_large_as_the_papers():
    """2d² + 2d + 4d + 4d² + 2d + 4d + 2dT + T learnt numbers."""
    state = train_router("mlp", clouds(3, 0), {}, RouterSettings(epochs=1)).state()
    learnt = sum(t.numel() for name, t in state.items() if name[0].isdigit() and "running" not in name)
    d, t = 8, 3
    assert learnt == 2 * d * d + 2 * d + 4 * d + 4 * d * d + 2 * d + 4 * d + 2 * d * t + t


def test_training_is_torchs_own():
    """Full batches, no dropout: the losses are those of nn.Sequential with AdamW, a line down to 0 and clipping."""
    epochs, rate = 5, 2e-2
    settings = RouterSettings(epochs=epochs, batch=64, dropout=0.0, standardise=False, rate=rate)
    data = clouds(20, 0)
    losses = train_router("mlp", data, {}, settings).about()["curves"]["loss"]
    start = train_router("mlp", data, {}, replace(settings, rate=1e-12, epochs=1)).state()
    network = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.01), nn.Identity(),
        nn.Linear(16, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.01), nn.Identity(), nn.Linear(16, 3),
    )  # fmt: skip
    network.load_state_dict({k: v for k, v in start.items() if k not in ("mean", "scale")}, strict=False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=epochs)
    x, y = torch.cat(list(data.values())), torch.arange(3).repeat_interleave(20)
    wanted = []
    for _ in range(epochs):
        loss = functional.cross_entropy(network(x), y)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        wanted.append(loss.item())
    assert losses == pytest.approx(wanted, rel=1e-4)


def test_dropout_keeps_the_mean_and_leaves_what_is_not_dropped_in_proportion():
    dropped = _drop(torch.ones(400, 100), 0.25, torch.Generator().manual_seed(0))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)


def test_a_last_batch_of_one_joins_the_batch_before():
    settings = RouterSettings(epochs=1, batch=4)
    steps: list[int] = []
    train_router("mlp", clouds(3, 0), {}, settings, progress=lambda done, total, text: steps.append(total))
    assert steps == [2, 2]  # nine examples: four and five


def test_it_stops_when_validation_does_not_improve_and_keeps_the_best_epoch():
    names = {"a": torch.randn(30, 4, generator=torch.Generator().manual_seed(0))}
    data = names | {"b": torch.randn(30, 4, generator=torch.Generator().manual_seed(1))}  # nothing to learn
    held = {n: torch.randn(200, 4, generator=torch.Generator().manual_seed(s)) for n, s in (("a", 2), ("b", 3))}
    about = train_router("mlp", data, held, RouterSettings(epochs=60, rate=1e-2, patience=2)).about()
    assert len(about["curves"]["loss"]) == about["epoch"] + 2 < 60


def test_it_can_be_stopped_and_reports_progress():
    stop, seen = Stop(), []

    def progress(done: int, total: int, text: str) -> None:
        seen.append((done, total))
        if done == 2:
            stop.set()

    with pytest.raises(Cancelled):
        train_router("mlp", clouds(20, 0), {}, QUICK, progress=progress, stop=stop)
    assert seen == [(1, 30), (2, 30)]


def test_it_trains_inside_inference_mode_and_no_grad():
    plain = train_router("mlp", clouds(10, 0), {}, RouterSettings(epochs=1))
    with torch.inference_mode():
        inside = train_router(
            "mlp", {n: rows.clone() for n, rows in clouds(10, 0).items()}, {}, RouterSettings(epochs=1)
        )
    with torch.no_grad():
        train_router("mlp", clouds(10, 0), {}, RouterSettings(epochs=1))
    assert torch.equal(plain.state()["8.weight"], inside.state()["8.weight"])
    assert not plain.logits(clouds(2, 1)["a"]).requires_grad


def test_divergence_is_said():
    huge = {"a": torch.full((10, 64), 3e38), "b": torch.full((10, 64), -3e38)}
    with pytest.raises(RouterError, match="diverged"):
        train_router("mlp", huge, {}, RouterSettings(epochs=2, standardise=False))


# Nearest means and neighbours, against a direct computation


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_centroid_router_is_a_softmax_over_distances(metric):
    data, rows = clouds(30, 0), torch.cat(list(clouds(5, 1).values()))
    router = train_router("centroid", data, {}, RouterSettings(metric=metric))
    every = torch.cat(list(data.values())).double().numpy()
    z = (rows.double().numpy() - every.mean(0)) / every.std(0)
    means = np.stack([((d.double().numpy() - every.mean(0)) / every.std(0)).mean(0) for d in data.values()])
    beta = float(router.state()["sharpness"])
    if metric == "euclidean":
        wanted = -beta * ((z[:, None] - means[None]) ** 2).sum(-1)
    else:
        wanted = beta * (z @ means.T) / np.linalg.norm(z, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    wanted = np.exp(wanted) / np.exp(wanted).sum(1, keepdims=True)
    np.testing.assert_allclose(Gate().weights(router.logits(rows)).numpy(), wanted, atol=2e-5)


def test_the_centroid_routers_sharpness_is_calibrated():
    """Clouds of variance 1, not standardised: the true posterior has β = 1/2."""
    close = clouds(2000, 0, width=3)
    means = 2 * torch.eye(3)
    data = {n: rows - 10 - 4 * torch.eye(3)[i] + means[i] for i, (n, rows) in enumerate(close.items())}
    router = train_router("centroid", data, {}, RouterSettings(standardise=False, per_task=None))
    assert float(router.state()["sharpness"]) == pytest.approx(0.5, rel=0.08)


def test_the_centroid_router_is_not_sure_of_what_it_has_only_memorised():
    """Two tasks alike, few examples, many features: examples are near means that hold them, which is no evidence."""
    generator = torch.Generator().manual_seed(0)
    data = {name: torch.randn(5, 200, generator=generator) for name in ("a", "b")}
    weights = Gate().weights(train_router("centroid", data, {}).logits(torch.randn(50, 200, generator=generator)))
    torch.testing.assert_close(weights, torch.full((50, 2), 0.5), atol=0.2, rtol=0)


def test_a_task_with_more_examples_has_no_more_votes():
    """All examples are equal, so all vote: 9 to 3 in number, but each task's votes weigh the same in all."""
    data = {"often": torch.ones(9, 2), "seldom": torch.ones(3, 2)}
    router = train_router("knn", data, {}, RouterSettings(k=1, balanced=False, standardise=False))
    torch.testing.assert_close(Gate().weights(router.logits(torch.ones(1, 2))), torch.full((1, 2), 0.5))


@pytest.mark.parametrize("k", [1, 7, 500])
def test_the_knn_router_counts_votes(k):
    data, rows = clouds(30, 0), torch.cat(list(clouds(5, 1).values()))
    router = train_router("knn", data, {}, RouterSettings(k=k))
    every = torch.cat(list(data.values())).double().numpy()
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    bank = unit((every - every.mean(0)) / every.std(0))
    labels = np.repeat(np.arange(3), 30)
    near = unit((rows.double().numpy() - every.mean(0)) / every.std(0)) @ bank.T
    for row, logits in zip(near, router.logits(rows).numpy(), strict=True):
        chosen = np.argsort(-row)[:k]
        share = np.bincount(labels[chosen], weights=np.exp(row[chosen] / 0.07), minlength=3)
        np.testing.assert_allclose(logits, np.log(share / share.sum() + 1e-3), atol=1e-3)


def test_duplicates_at_the_kth_place_all_vote():
    point = torch.tensor([[1.0, 0.0]])
    data = {"a": point.repeat(3, 1), "b": torch.cat([point, -point, -point])}
    logits = train_router("knn", data, {}, RouterSettings(k=1, standardise=False)).logits(point)
    share = logits.exp()[0] - 1e-3
    torch.testing.assert_close(share, torch.tensor([0.75, 0.25]), atol=1e-5, rtol=0)


# Tasks: one, in another order, of unequal sizes


@pytest.mark.parametrize("kind", KINDS)
def test_one_task_gets_all_the_weight(kind):
    router = train_router(kind, {"only": torch.randn(6, 4)}, {}, RouterSettings(epochs=1))
    assert torch.equal(Gate().weights(router.logits(torch.randn(3, 4))), torch.ones(3, 1))


@pytest.mark.parametrize("kind", ["centroid", "knn"])
def test_the_order_of_the_tasks_does_not_matter(kind):
    data = clouds(80, 0)
    data["b"] = data["b"][:50]
    turned = {name: data[name] for name in ("c", "a", "b")}
    settings = RouterSettings(per_task=40)
    rows = torch.cat(list(clouds(10, 1).values()))
    straight, other = (train_router(kind, d, {}, settings).logits(rows) for d in (data, turned))
    torch.testing.assert_close(other, straight[:, [2, 0, 1]], atol=1e-3, rtol=1e-3)


def test_the_mlp_is_as_good_in_another_order():
    data, held = clouds(150, 0), clouds(60, 1)
    turned = {name: data[name] for name in ("c", "a", "b")}
    assert accuracy(train_router("mlp", turned, held, QUICK), clouds(300, 2)) > 0.95


def test_tasks_are_balanced_to_the_smallest_and_capped():
    data = clouds(100, 0)
    data["b"] = data["b"][:20]
    about = train_router("centroid", data, {}).about()
    assert about["counts"] == {"a": 20, "b": 20, "c": 20} and about["given"] == {"a": 100, "b": 20, "c": 100}
    assert "100 examples of a, 20 of b" in about["warnings"][0]
    capped = train_router("centroid", clouds(100, 0), {}, RouterSettings(per_task=15)).about()
    assert capped["counts"] == {"a": 15, "b": 15, "c": 15} and capped["warnings"] == []


def test_unbalanced_tasks_weigh_the_same_in_the_loss():
    """Identical features, so the best constant logits follow the loss's task weights: equal, whatever the counts."""
    same = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    data = {"often": same.repeat(45, 1), "seldom": same.repeat(5, 1)}
    settings = RouterSettings(epochs=60, batch=100, rate=2e-2, dropout=0.0, balanced=False, patience=None)
    router = train_router("mlp", data, {}, settings)
    assert any("same weight" in warning for warning in router.about()["warnings"])
    torch.testing.assert_close(Gate().weights(router.logits(same)), torch.full((2, 2), 0.5), atol=0.05, rtol=0)


def test_an_even_enough_set_is_no_imbalance():
    data = clouds(30, 0)
    data["b"] = data["b"][:20]  # 1.5 times
    assert train_router("knn", data, {}, RouterSettings(balanced=False)).about()["warnings"] == []


# Odd data


def test_constant_features_are_ignored_and_said():
    data = {name: torch.cat([rows, torch.full((40, 2), 7.3)], dim=1) for name, rows in clouds(40, 0).items()}
    router = train_router("centroid", data, {})
    assert "2 of 10 features never vary" in router.about()["warnings"][0]
    rows = data["a"][:5].clone()
    usual = router.logits(rows)
    rows[:, 8:] = -50.0
    assert torch.equal(router.logits(rows), usual)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_constant_features(kind):
    data = {name: torch.full((10, 4), 3.0) for name in ("a", "b")}
    router = train_router(kind, data, data, RouterSettings(epochs=1))
    assert any("cannot tell the tasks apart" in warning for warning in router.about()["warnings"])
    assert bool(torch.isfinite(router.logits(data["a"])).all())
    if kind != "mlp":
        torch.testing.assert_close(Gate().weights(router.logits(data["a"])), torch.full((10, 2), 0.5))


def test_doubles_across_tasks_and_splits_are_said():
    data = clouds(10, 0)
    data["b"] = torch.cat([data["b"][:8], data["a"][:2]])
    warnings = train_router("centroid", data, {"a": data["a"][:3]}).about()["warnings"]
    assert any(w.startswith("2 examples also appear under another task") for w in warnings)
    assert any(w.startswith("3 of 3 validation examples are also training") for w in warnings)
    assert any(w.startswith("No validation data of b, c") for w in warnings)


def test_without_validation_the_last_epoch_stays():
    about = train_router("mlp", clouds(10, 0), None, RouterSettings(epochs=3)).about()
    assert about["epoch"] == 3 and "No validation data" in about["warnings"][0]
    assert about["curves"]["validation_loss"] == [] and "validation" not in about


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "at least one task"),
        ({"a": torch.ones(3, 2), "b": torch.ones(0, 2)}, "no example of the task 'b'"),
        ({"a": torch.ones(0, 2), "b": torch.ones(3, 2)}, "no example of the task 'a'"),
        ({"a": torch.ones(3, 2), "b": torch.ones(3, 4)}, "width 4, but those of 'a' have 2"),
        ({"a": torch.ones(3, 2), "b": torch.ones(3)}, "'b'.*shape"),
        ({"a": torch.ones(3), "b": torch.ones(3)}, "'a'.*shape"),
        ({"a": torch.ones(3, 2), "b": torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])}, "'b'.*row 1 are not finite"),
        ({"a": torch.ones(3, 2), "b": torch.tensor([[torch.inf, 2.0]])}, "'b'.*row 0 are not finite"),
        ({"a": torch.ones(3, 2, dtype=torch.int64)}, "real numbers"),
        ({"a": torch.ones(3, 0)}, "no example"),
        ({"": torch.ones(3, 2)}, "under its name"),
    ],
)
def test_unusable_data_is_named(data, words):
    with pytest.raises(RouterError, match=words) as error:
        train_router("centroid", data, {})
    assert isinstance(error.value, MergeLabError)


def test_validation_of_an_unknown_task_is_refused():
    with pytest.raises(RouterError, match="'z', which is no task"):
        train_router("centroid", clouds(3, 0), {"z": torch.ones(1, 8)})
    with pytest.raises(RouterError, match=r"'a' \(validation\).*width 5"):
        train_router("centroid", clouds(3, 0), {"a": torch.ones(1, 5)})


def test_one_example_in_all():
    assert train_router("centroid", {"a": torch.ones(1, 2)}, {}).logits(torch.ones(1, 2)).shape == (1, 1)
    with pytest.raises(RouterError, match="use kind centroid"):
        train_router("mlp", {"a": torch.ones(1, 2)}, {})
    pair = train_router("mlp", {"a": torch.ones(1, 2), "b": -torch.ones(1, 2)}, {}, RouterSettings(epochs=1))
    assert bool(torch.isfinite(pair.logits(torch.ones(4, 2))).all())


def test_a_stale_router_says_so(trained):
    with pytest.raises(RouterError, match=r"width 8, but these have 12.*stale"):
        trained["mlp"].logits(torch.ones(2, 12))
    with pytest.raises(RouterError, match="shape"):
        trained["mlp"].logits(torch.ones(8))
    with pytest.raises(RouterError, match="row 1 are not finite"):
        trained["knn"].logits(torch.tensor([[0.0] * 8, [torch.nan] * 8]))


def test_half_precision_features_are_read(trained):
    rows = clouds(3, 0)["a"]
    torch.testing.assert_close(trained["mlp"].logits(rows.half()), trained["mlp"].logits(rows.half().float()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "mpl"}, {"metric": "manhattan"}, {"epochs": 0}, {"batch": 1}, {"epochs": True}, {"epochs": 1.5},
        {"rate": 0.0}, {"rate": float("nan")}, {"dropout": 1.0}, {"dropout": -0.1}, {"hidden": 0}, {"seed": -1},
        {"k": 0}, {"per_task": 0}, {"patience": 0}, {"standardise": 1}, {"balanced": "yes"}, {"epoch": 3},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(RouterError):
        RouterSettings.from_dict(wrong)


def test_settings_suggest_what_was_meant():
    with pytest.raises(RouterError, match="Did you mean 'centroid'"):
        RouterSettings(kind="centroids")
    with pytest.raises(RouterError, match="Did you mean 'epochs'"):
        RouterSettings.from_dict({"epoch": 3})
    assert RouterSettings.from_dict(RouterSettings(k=3).to_dict()) == RouterSettings(k=3)


# Files of strangers


def change(kind: str, trained: dict[str, Router]) -> tuple[dict[str, Tensor], dict]:
    return dict(trained[kind].state()), dict(trained[kind].about())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("kind", "pickle", "Unknown kind"), ("kind", None, "Unknown kind"), ("kind", ["mlp"], "Unknown kind"),
        ("kind", "knn", "settings are for"), ("names", ["a", "a", "b"], "none twice"),
        ("names", ["a", "", "b"], "none empty"),
        ("names", "abc", "task names"), ("names", [], "task names"), ("names", [1, 2, 3], "task names"),
        ("names", ["a", "b"], "shape"), ("width", 9, "shape"), ("width", True, "width"), ("width", -1, "width"),
        ("width", "8", "width"), ("settings", {"epochs": -1}, "epochs"), ("settings", [1], "mapping"),
        ("curves", {"loss": [float("nan")]}, "JSON"), ("curves", [1], "'curves'"), ("warnings", "none", "'warnings'"),
        ("shared", 5, "'shared'"), ("note", {1, 2}, "JSON"), ("epoch", "x", "'epoch'"),
        ("note", "x" * 5_000_000, "characters"),
    ],
)  # fmt: skip
def test_wrong_descriptions_are_refused(trained, key, value, words):
    state, about = change("mlp", trained)
    about[key] = value
    with pytest.raises(RouterError, match=words):
        router_from(state, about)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_tensors_are_refused(trained, kind):
    state, about = change(kind, trained)
    for name in state:
        with pytest.raises(RouterError, match="lacks"):
            router_from({n: t for n, t in state.items() if n != name}, about)
        wrong = [state[name][..., None]]
        if state[name].is_floating_point():
            wrong += [
                state[name] * float("nan"),
                state[name].to(torch.complex64),
                torch.zeros_like(state[name], dtype=torch.int32),
            ]
        for tensor in wrong:
            with pytest.raises(RouterError):
                router_from({**state, name: tensor}, about)
    with pytest.raises(RouterError, match="unknown tensor 'more'"):
        router_from({**state, "more": torch.ones(1)}, about)
    with pytest.raises(RouterError, match="no tensor"):
        router_from({**state, "mean": [1.0] * 8}, about)  # type: ignore[dict-item]
    with pytest.raises(RouterError, match="mapping"):
        router_from(state, None)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("mlp", "1.running_var", -1.0), ("mlp", "scale", -1.0), ("centroid", "sharpness", 0.0),
        ("knn", "labels", 3), ("knn", "labels", -1), ("knn", "labels", 0),
    ],
)  # fmt: skip
def test_impossible_numbers_are_refused(trained, kind, name, value):
    state, about = change(kind, trained)
    with pytest.raises(RouterError):
        router_from({**state, name: torch.full_like(state[name], value)}, about)


def test_knn_needs_a_label_for_every_example(trained):
    state, about = change("knn", trained)
    with pytest.raises(RouterError, match="labels for"):
        router_from({**state, "labels": state["labels"][:-1]}, about)
    with pytest.raises(RouterError, match="int64"):
        router_from({**state, "labels": state["labels"].float()}, about)

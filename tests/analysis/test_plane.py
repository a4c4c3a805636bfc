"""Planes, lines and projections of checkpoints: coordinates by hand, and against numpy on stacked weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mergelab.analysis import barrier, barriers, grid, line, plane, products, project, similarity
from mergelab.errors import CheckpointError

State = dict[str, Tensor]


def model(x: float, y: float = 0.0, z: float = 0.0, dtype: torch.dtype = torch.float32) -> State:
    """Coordinates spread over several tensors, one of them a scalar, around weights that all models share."""
    return {
        "a.weight": torch.tensor([[7.0 + x, 2.0]], dtype=dtype),
        "steps": torch.tensor([3]),
        "b": torch.tensor(y - 1.0, dtype=dtype),
        "c": torch.tensor([0.5, 0.5, z], dtype=dtype),
        "empty": torch.zeros(0, 2, dtype=dtype),
    }


def random_models(count: int, seed: int = 0) -> dict[str, State]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (5, 4), "v": (3,), "s": ()}
    return {f"m{i}": {n: torch.randn(s, generator=generator) for n, s in shapes.items()} for i in range(count)}


def flat(state: State) -> np.ndarray:
    return torch.cat([t.reshape(-1).double() for t in state.values() if t.is_floating_point()]).numpy()


# ---- the plane ----


def test_anchors_lie_where_gram_and_schmidt_put_them() -> None:
    """one - origin = (3, 4, 0), so u = (0.6, 0.8, 0); two - origin = (5, 0, 2): 3 along u, the rest has length √20."""
    found = plane(model(1), model(4, 4), model(6, 0, 2))
    assert found.anchors == ((0, 0), (5, 0), (pytest.approx(3), pytest.approx(math.sqrt(20))))


def test_the_anchors_come_back_exactly_and_points_between_are_mixtures() -> None:
    models = model(1), model(4, 4), model(6, 0, 2)
    found = plane(*models)
    for anchor, state in zip(found.anchors, models, strict=True):
        for name, tensor in found.point(*anchor).items():
            assert torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype
    # the middle of the three
    middle = found.point(*(sum(values) / 3 for values in zip(*found.anchors, strict=True)))
    np.testing.assert_allclose(flat(middle), sum(map(flat, models)) / 3, atol=1e-6)
    assert middle["steps"].tolist() == [3] and middle["steps"].data_ptr() != models[0]["steps"].data_ptr()


def test_coordinates_are_distances() -> None:
    found = plane(*random_models(3).values())
    places = [(0.3, -2.0), (1.5, 1.5)]
    one, two = (flat(found.point(*place)) for place in places)
    assert np.linalg.norm(one - two) == pytest.approx(math.dist(*places), rel=1e-5)


def test_locating_undoes_a_point_and_says_how_far_off_a_model_is() -> None:
    models = list(random_models(4).values())
    found = plane(*models[:3])
    a, b, off = found.locate(found.point(0.7, -1.2))
    assert (a, b) == (pytest.approx(0.7, abs=1e-5), pytest.approx(-1.2, abs=1e-5)) and off < 1e-5
    for anchor, state in zip(found.anchors, models, strict=False):
        assert found.locate(state) == (pytest.approx(anchor[0]), pytest.approx(anchor[1], abs=1e-12), pytest.approx(0))
    origin, one, two, other = map(flat, models)
    basis, _ = np.linalg.qr(np.stack([one - origin, two - origin], 1))
    shadow = basis @ basis.T @ (other - origin)
    a, b, off = found.locate(models[3])
    assert off == pytest.approx(np.linalg.norm(other - origin - shadow))
    np.testing.assert_allclose(flat(found.point(a, b)), origin + shadow, atol=1e-5)


def test_a_short_way_off_a_plane_of_large_weights_keeps_its_digits() -> None:
    origin = {"w": torch.full((1000,), 1e3, dtype=torch.float64)}
    tips = []
    for place, size in ((0, 1.0), (1, 1.0), (2, 1e-7)):
        tips.append({"w": origin["w"].clone()})
        tips[-1]["w"][place] += size
    a, b, off = plane(origin, *tips[:2]).locate(tips[2])
    assert (a, b) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12)) and off == pytest.approx(1e-7, rel=1e-4)


def test_half_precision_is_worked_with_in_float64_and_kept() -> None:
    found = plane(*(model(*place, dtype=torch.bfloat16) for place in ((1,), (4, 4), (6, 0, 2))))
    assert found.reach == 5
    assert found.point(1, 1)["a.weight"].dtype == torch.bfloat16


def test_large_tensors_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    models = list(random_models(4).values())
    whole = plane(*models[:3]).locate(models[3])
    monkeypatch.setattr(products, "_TOGETHER", 12)
    assert plane(*models[:3]).locate(models[3]) == pytest.approx(whole)


def test_equal_and_collinear_anchors_are_refused_by_name() -> None:
    names = ("base", "ant", "bee")
    with pytest.raises(CheckpointError, match="base and ant have the same weights"):
        plane(model(1), model(1), model(2), names=names)
    with pytest.raises(CheckpointError, match="base and bee have the same weights"):
        plane(model(1), model(2), model(1), names=names)
    with pytest.raises(CheckpointError, match="ant and bee have the same weights"):
        plane(model(1), model(2), model(2), names=names)
    with pytest.raises(CheckpointError, match="base, ant and bee lie on one line"):
        plane(model(0), model(1), model(3), names=names)


def test_a_mixture_that_was_rounded_to_float32_is_still_on_the_line() -> None:
    one, two = random_models(2).values()
    half = {name: (tensor * 0.7 + two[name] * 0.3).float() for name, tensor in one.items()}
    with pytest.raises(CheckpointError, match="on one line"):
        plane(one, two, half)
    near = {name: tensor.double() for name, tensor in half.items()}
    assert plane(*({n: t.double() for n, t in m.items()} for m in (one, two)), near).across < 1e-6  # type: ignore[misc]


def test_models_that_do_not_fit_are_refused_by_name() -> None:
    names = ("base", "ant", "bee")
    good = model(0), model(1)
    with pytest.raises(CheckpointError, match="bee has no tensor 'b' as base has"):
        plane(*good, {n: t for n, t in model(2).items() if n != "b"}, names=names)
    with pytest.raises(CheckpointError, match="bee has a tensor 'head' that base has not"):
        plane(*good, {**model(2), "head": torch.ones(1)}, names=names)
    with pytest.raises(CheckpointError, match=r"bee: tensor 'c' is torch.float32 \[2\], base has torch.float32 \[3\]"):
        plane(*good, {**model(2), "c": torch.ones(2)}, names=names)
    with pytest.raises(CheckpointError, match="'c' holds NaN or infinity in bee,"):
        plane(*good, {**model(2), "c": torch.tensor([0.0, math.nan, 1.0])}, names=names)
    with pytest.raises(CheckpointError, match="mine has no tensor"):
        plane(*good, model(0, 1)).locate({}, "mine")


def test_a_grid_holds_anchors_and_points_with_room_around_them() -> None:
    found = plane(model(0), model(4), model(0, 2))
    xs, ys = grid(found, steps=5, margin=0.25)
    assert xs == pytest.approx([-1, 0.5, 2, 3.5, 5]) and ys == pytest.approx([-1, 0, 1, 2, 3])
    xs, ys = grid(found, [(-6, 1), (2, 7, 0.5)], steps=3, margin=0)
    assert xs == [-6, -1, 4] and ys == [0, 3.5, 7]
    with pytest.raises(CheckpointError, match="at least 2 steps"):
        grid(found, steps=1)


# ---- the line ----


def test_a_line_gives_both_ends_and_mixtures() -> None:
    one, two = random_models(2).values()
    found = dict(line(one, two, (0, 0.25, 1)))
    assert list(found) == [0, 0.25, 1]
    assert all(torch.equal(found[0][n], one[n]) and torch.equal(found[1][n], two[n]) for n in one)
    np.testing.assert_allclose(flat(found[0.25]), 0.75 * flat(one) + 0.25 * flat(two), atol=1e-6)
    with pytest.raises(CheckpointError, match="the second model has no tensor"):
        line(one, {}, (0, 1))


def test_the_barrier_of_a_parabola_is_its_height_over_the_chord() -> None:
    alphas = [i / 10 for i in range(11)]
    # 1 + 2α + 4 α (1 − α): the chord is 1 + 2α, the rest is 1 at α = 1/2
    assert barrier(alphas, [1 + 2 * a + 4 * a * (1 - a) for a in alphas]) == pytest.approx(1.0)
    assert barrier(alphas, [1 + 2 * a - 4 * a * (1 - a) for a in alphas]) == 0.0
    assert barrier([0, 1], [1.0, 3.0]) == 0.0
    assert barrier([-1, 0, 1], [1.0, 2.5, 3.0]) == 0.5


def test_the_barrier_of_the_mean_is_not_the_mean_of_barriers() -> None:
    found = barriers([0, 0.25, 0.75, 1], {"a": [0, 1, 0, 0], "b": [0, 0, 3, 0]})
    assert found.tasks == {"a": 1, "b": 3} and found.mean == 1.5


@pytest.mark.parametrize(
    ("alphas", "losses", "words"),
    [([0], [1], "two places"), ([0, 1], [1], "1 losses"), ([0, 0, 1], [1, 1, 1], "must rise"),
     ([0, 0.5, 1], [1, math.nan, 1], "loss at 0.5 is nan")],
)  # fmt: skip
def test_what_has_no_barrier_is_refused(alphas: list[float], losses: list[float], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        barrier(alphas, losses)
    with pytest.raises(CheckpointError, match="no task"):
        barriers([0, 1], {})


# ---- projections ----


@pytest.mark.parametrize("count", [3, 8])
def test_a_projection_is_that_of_a_singular_value_decomposition(count: int) -> None:
    models = random_models(count)
    found = project(models, random_models(1, seed=9)["m0"])
    stacked = np.stack([flat(state) for state in models.values()])
    left, values, _ = np.linalg.svd(stacked - stacked.mean(0), full_matrices=False)
    wanted = left[:, :2] * values[:2]
    coordinates = np.array(found.coordinates)
    np.testing.assert_allclose(np.abs(coordinates), np.abs(wanted), atol=1e-6)
    np.testing.assert_allclose(coordinates @ coordinates.T, wanted @ wanted.T, atol=1e-6)
    np.testing.assert_allclose(found.explained, values[:2] ** 2 / (values**2).sum(), rtol=1e-9)
    assert found.names == tuple(models) and all(value <= 0 for value in found.coordinates[0])


def test_a_path_starts_at_the_left_and_distances_of_a_plane_are_kept() -> None:
    models = {"base": model(0), "far": model(8), "back": model(4, 2)}
    found = project(models, models["base"])
    assert found.coordinates[0][0] < found.coordinates[1][0]
    for i, a in enumerate(models.values()):
        for j, b in enumerate(models.values()):
            distance = math.dist(found.coordinates[i], found.coordinates[j])
            assert distance == pytest.approx(np.linalg.norm(flat(a) - flat(b)), abs=1e-9)
    assert sum(found.explained) == pytest.approx(1)
    assert found.to_dict()["names"] == ("base", "far", "back")


def test_checkpoints_on_a_line_and_equal_ones() -> None:
    found = project({"a": model(0), "b": model(1), "c": model(4)}, model(0))
    assert [x for x, _ in found.coordinates] == pytest.approx([-5 / 3, -2 / 3, 7 / 3])
    assert [y for _, y in found.coordinates] == pytest.approx([0] * 3, abs=1e-6)
    assert found.explained == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert project({"a": model(0), "b": model(0)}, model(0)).coordinates == ((0, 0), (0, 0))
    assert project({"a": model(0)}, model(3)).explained == (0, 0)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        project({}, model(0))


# ---- cosines ----


def test_similarity_of_vectors_as_they_are() -> None:
    vectors = {
        "a": {"v": torch.tensor([3.0, 0.0]), "w": torch.tensor([[4.0]]), "n": torch.tensor([9])},
        "b": {"v": torch.tensor([0.0, 1.0]), "w": torch.tensor([[-1.0]]), "n": torch.tensor([7])},
        "c": {"v": torch.zeros(2), "w": torch.zeros(1, 1), "n": torch.tensor([1])},
    }
    found = similarity(vectors)
    cosine = pytest.approx(-4 / (5 * math.sqrt(2)))
    assert found.cosines == ((1.0, cosine, None), (cosine, 1.0, None), (None,) * 3)
    assert found.norms == (5, pytest.approx(math.sqrt(2)), 0)
    assert found.mean_absolute() == pytest.approx(4 / (5 * math.sqrt(2)))
    assert similarity({"c": vectors["c"]}).mean_absolute() is None
    with pytest.raises(CheckpointError, match="no vector"):
        similarity({})

"""The plane through three models, on which losses are drawn as a landscape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError
from .products import State, gram, length, mixed

Point = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane in weight space: through ``origin``, with orthonormal directions u and v.

    u points from ``origin`` to ``one``, v is the rest of the way to ``two`` made orthogonal to u (Gram-Schmidt), so the
    anchors lie at (0, 0), (``reach``, 0) and (``along``, ``across``), in units of parameter distance. Directions are
    not stored: every point is a weighted sum of the three models. Make one with :func:`plane`.
    """

    origin: State
    one: State
    two: State
    reach: float
    along: float
    across: float

    @property
    def anchors(self) -> tuple[Point, Point, Point]:
        """The coordinates of ``origin``, ``one`` and ``two``."""
        return (0.0, 0.0), (self.reach, 0.0), (self.along, self.across)

    def shares(self, a: float, b: float) -> tuple[float, float]:
        """(p, q) with θ = origin + p·(one − origin) + q·(two − origin) at the coordinates (a, b)."""
        q = b / self.across
        return (a - q * self.along) / self.reach, q

    def point(self, a: float, b: float) -> dict[str, Tensor]:
        """The weights at (a, b), in the origin's dtypes; tensors that are not floating-point are the origin's."""
        p, q = self.shares(a, b)
        return mixed((self.origin, self.one, self.two), (1 - p - q, p, q))

    def locate(self, state: State, name: str = "the model") -> tuple[float, float, float]:
        """(a, b, off): where the orthogonal projection of a model on the plane lies, and how far off the plane it is.

        All tensors are read twice: the distance is that of the difference itself, so that it is small for a model that
        lies on the plane. Raises CheckpointError where the model does not fit.
        """
        models = [("the origin", self.origin), ("the first anchor", self.one), ("the second anchor", self.two)]
        models.append((name, state))
        products = gram(models, _differences(4))
        a = float(products[2, 0]) / self.reach
        b = (float(products[2, 1]) - self.along * a) / self.across
        p, q = self.shares(a, b)
        return a, b, length(models, (p + q - 1, -p, -q, 1.0))


def plane(origin: State, one: State, two: State, *, names: tuple[str, str, str] = ("origin", "one", "two")) -> Plane:
    """The plane through three models, reading a few entries of each at a time (twice over), in float64.

    Args:
        names: what the models are called in an error.

    Raises:
        CheckpointError: two of them are the same, or all three lie on one line (up to float32's rounding of their
            weights), so that there is no plane; or they do not fit together.
    """
    models = list(zip(names, (origin, one, two), strict=True))
    mix = torch.cat([torch.tensor([[1.0, 0, 0], [0, -1.0, 1.0]], dtype=torch.float64), _differences(3)])
    products = gram(models, mix)
    size, apart, reach, far = (float(value) for value in products.diagonal().clamp(min=0).sqrt())
    for distance, a, b in ((reach, *names[:2]), (far, *names[::2]), (apart, *names[1:])):
        if distance == 0:
            raise CheckpointError(f"{a} and {b} have the same weights, so there is no plane. Choose another model.")
    along = float(products[2, 3]) / reach
    share = along / reach
    across = length(models, (share - 1, -share, 1.0))
    exact = all(tensor.dtype == torch.float64 for tensor in origin.values() if tensor.is_floating_point())
    if across <= torch.finfo(torch.float64 if exact else torch.float32).eps * (size + reach + far):
        raise CheckpointError(
            f"{names[0]}, {names[1]} and {names[2]} lie on one line, so there is no plane through them. "
            "Choose a model that is not a mixture of the other two."
        )
    return Plane(origin, one, two, reach, along, across)


def grid(
    plane: Plane, extra_points: Iterable[Sequence[float]] = (), steps: int = 15, margin: float = 0.2
) -> tuple[list[float], list[float]]:
    """``steps`` coordinates along u and as many along v that hold the anchors and ``extra_points``.

    Points are coordinates, as :meth:`Plane.locate` gives them (their distance from the plane does not count).
    ``margin`` is the room on every side, as a share of the longer of the two extents.
    """
    if steps < 2 or margin < 0:
        raise CheckpointError(f"A grid needs at least 2 steps and a margin of at least 0, not {steps} and {margin}.")
    points = [*plane.anchors, *((a, b) for a, b, *_ in extra_points)]
    ends = [(min(values), max(values)) for values in zip(*points, strict=True)]
    room = margin * max(high - low for low, high in ends)
    xs, ys = (torch.linspace(low - room, high + room, steps, dtype=torch.float64).tolist() for low, high in ends)
    return xs, ys


def _differences(count: int) -> Tensor:
    """[count − 1, count]: every model but the first, minus the first."""
    ones = torch.ones(count - 1, 1, dtype=torch.float64)
    return torch.cat([-ones, torch.eye(count - 1, dtype=torch.float64)], dim=1)

"""Groups of inputs that share one merged model: k-means within each predicted task (Twin-Merging's group-wise variant).

The paper's rebuttal leaves open whether the logits or the weights are clustered, and whether its 20 groups are in all
or for every task; both are options here. The average is of weights after the softmax, so it still sums to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .gate import check_weights
from .routers import RouterError

_STEPS = 50  # Lloyd's at most; it ends when no point changes its group
CLUSTER_ON = ("weights", "logits")


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which group each input is in, and the weights that the group is merged with."""

    index: Tensor  # [N] int64, the group of each input, in the inputs' order
    weights: Tensor  # [G, T] float32
    bins: Tensor  # [G] int64, the task that the group's inputs were taken for; -1: none (all weights 0)

    def __len__(self) -> int:
        return len(self.weights)

    def compact(self) -> Grouping:
        """The same without the groups that no input is in."""
        used, index = self.index.unique(return_inverse=True)
        return Grouping(index, self.weights[used], self.bins[used])


def order(grouping: Grouping) -> list[Tensor]:
    """For every group the places of its inputs, ascending. ``out[places] = result of the group`` restores the order."""
    counts = torch.bincount(grouping.index, minlength=len(grouping)).tolist()
    return list(grouping.index.argsort(stable=True).split(counts)) if counts else []


def group(
    logits: Tensor | None,
    weights: Tensor,
    *,
    groups_per_bin: int = 20,
    total_groups: int | None = None,
    cluster_on: str = "weights",
    seed: int = 0,
) -> Grouping:
    """Bin inputs by their heaviest task, k-means inside each bin, average the weights ``[N, T]`` of each group.

    ``total_groups`` (instead of ``groups_per_bin``) is shared out over the bins in proportion to their distinct rows of
    weights, at least one each. A bin with no more distinct rows of weights than groups gets one group for each, with
    exactly these weights. Rows of zeros, for which the shared model answers alone, are a bin of their own. ``logits``
    (``[N, T]``) are needed for ``cluster_on="logits"`` only. The groups depend on the rows and ``seed``, not on the
    order of the rows. Raises :class:`RouterError` for settings out of range, and shapes or numbers that do not fit.
    """
    return _group(*_checked(logits, weights, cluster_on), groups_per_bin, total_groups, seed)[0]


@dataclass(frozen=True, eq=False)
class Centroids:
    """Groups fitted on validation data, for inputs that come one after the other: none of them changes a group."""

    groups: Grouping = field(
        repr=False
    )  # of the validation data; then, for each task predicted for none, one of its own
    points: Tensor = field(repr=False)  # [G, T] float64, the mean of each group's rows of cluster_on
    cluster_on: str = "weights"

    @classmethod
    def fit(
        cls,
        logits: Tensor | None,
        weights: Tensor,
        *,
        groups_per_bin: int = 20,
        total_groups: int | None = None,
        cluster_on: str = "weights",
        seed: int = 0,
    ) -> Centroids:
        """As :func:`group`. A task that is predicted for no input here gets the group of its expert alone, and zeros a
        group of zeros, so that whatever comes later has a group of its own bin."""
        points, plain = _checked(logits, weights, cluster_on)
        fitted, means = _group(points, plain, groups_per_bin, total_groups, seed)
        tasks = plain.shape[1]
        rows = torch.cat([torch.eye(tasks), torch.zeros(1, tasks)])
        extra = [task for task in [*range(tasks), -1] if task not in fitted.bins.tolist()]
        more = rows[extra]
        bins = torch.cat([fitted.bins, torch.tensor(extra, dtype=torch.int64)])
        every = Grouping(fitted.index, torch.cat([fitted.weights, more]), bins)
        return cls(every, torch.cat([means, more.double()]), cluster_on)

    def assign(self, logits: Tensor | None, weights: Tensor, *, keep_empty: bool = False) -> Grouping:
        """The nearest group within the bin of each row. ``keep_empty``: all fitted groups, under their fixed numbers;
        otherwise those alone that have an input."""
        points, plain = _checked(logits, weights, self.cluster_on)
        if plain.shape[1] != self.points.shape[1]:
            raise RouterError(
                f"The groups were fitted for {self.points.shape[1]} tasks, but these weights are for "
                f"{plain.shape[1]}. Fit them again."
            )
        distances = _distances(points, self.points)
        distances = distances.masked_fill(_bins(plain)[:, None] != self.groups.bins[None, :], torch.inf)
        grouping = Grouping(distances.argmin(dim=1), self.groups.weights, self.groups.bins)
        return grouping if keep_empty else grouping.compact()


def _checked(logits: Tensor | None, weights: Tensor, cluster_on: str) -> tuple[Tensor, Tensor]:
    """The points to cluster, float64, and the weights, float32; both ``[N, T]``."""
    if cluster_on not in CLUSTER_ON:
        raise RouterError(f"Groups are found on {' or '.join(CLUSTER_ON)}, not on {cluster_on!r}.")
    if weights.ndim != 2 or weights.shape[1] == 0:
        raise RouterError(f"Grouping takes weights of shape [inputs, tasks], not {list(weights.shape)}.")
    plain = check_weights(weights, weights.shape[1], allow_negative=True).cpu()
    if cluster_on == "weights":
        return plain.double(), plain
    if logits is None or logits.shape != weights.shape:
        found = "none" if logits is None else str(list(logits.shape))
        raise RouterError(f"To group on logits, give logits of the weights' shape {list(weights.shape)}, not {found}.")
    if not bool(torch.isfinite(logits).all()):
        row = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
        raise RouterError(f"The logits of row {row} are not finite. Look for NaN in the features or the router.")
    return logits.detach().cpu().double(), plain


def _bins(weights: Tensor) -> Tensor:
    """The heaviest task of each row, the first of equals; -1 for rows of zeros."""
    return torch.where((weights == 0).all(dim=1), -1, weights.argmax(dim=1))


def _group(
    points: Tensor, weights: Tensor, groups_per_bin: int, total_groups: int | None, seed: int
) -> tuple[Grouping, Tensor]:
    for name, value in (("groups_per_bin", groups_per_bin), ("total_groups", total_groups)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise RouterError(f"{name} must be a whole number of at least 1, not {value!r}.")
    bin_of, tasks = _bins(weights), weights.shape[1]
    rows_of = {task: (bin_of == task).nonzero()[:, 0] for task in [*range(tasks), -1]}
    rows_of = {task: rows for task, rows in rows_of.items() if len(rows)}
    distinct = [len(weights[rows].unique(dim=0)) for rows in rows_of.values()]
    shares = [groups_per_bin] * len(distinct) if total_groups is None else share_out(total_groups, distinct)
    index = torch.zeros(len(weights), dtype=torch.int64)
    merged, means = [weights[:0]], [points[:0]]
    bins: list[int] = []
    for (task, rows), share, different in zip(rows_of.items(), shares, distinct, strict=True):
        exact = different <= share
        found = _equal(weights[rows]) if exact else _k_means(points[rows], share, (seed * 1_000_003 + task) % 2**63)
        index[rows] = found + len(bins)
        count = int(found.max()) + 1
        first = torch.stack([rows[found == number][0] for number in range(count)])
        merged.append(weights[first] if exact else _means(weights[rows].double(), found, count).float())
        means.append(_means(points[rows], found, count))
        bins += [task] * count
    return Grouping(index, torch.cat(merged), torch.tensor(bins, dtype=torch.int64)), torch.cat(means)


def share_out(total: int, distinct: Sequence[int]) -> list[int]:
    """``total`` groups over bins with ``distinct`` points each: one each at least, no more than points, and otherwise
    in proportion (highest averages, as D'Hondt shares out seats). Fewer groups than bins: one each all the same."""
    shares = [1] * len(distinct)
    for _ in range(min(total, sum(distinct)) - len(distinct)):
        open_bins = [place for place, points in enumerate(distinct) if shares[place] < points]
        shares[max(open_bins, key=lambda place: distinct[place] / (shares[place] + 1))] += 1
    return shares


def _equal(rows: Tensor) -> Tensor:
    """``[n]``: equal rows get the same number, counted from 0."""
    return rows.unique(dim=0, return_inverse=True)[1]


def _k_means(points: Tensor, groups: int, seed: int) -> Tensor:
    """``[n]``: the group of each point, numbered from 0 without gaps; k-means++ and Lloyd's steps on distinct points.

    Fewer than ``groups`` come out where points are equal or a group loses all its points.
    """
    distinct, inverse, counts = points.unique(dim=0, return_inverse=True, return_counts=True)
    mass = counts.double()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(mass, 1, generator=generator).tolist()
    nearest = _distances(distinct, distinct[chosen]).square()[:, 0]
    while len(chosen) < groups and bool((nearest > 0).any()):
        chosen += torch.multinomial(mass * nearest / nearest.max(), 1, generator=generator).tolist()
        nearest = torch.minimum(nearest, _distances(distinct, distinct[chosen[-1:]]).square()[:, 0])
    centres, found = distinct[chosen], torch.full((len(distinct),), -1)
    for _ in range(_STEPS):
        closest = _distances(distinct, centres).argmin(dim=1)
        if bool((closest == found).all()):
            break
        found = closest
        held = torch.bincount(found, minlength=len(centres)) > 0
        centres = torch.where(held[:, None], _means(distinct, found, len(centres), mass), centres)
    return found.unique(return_inverse=True)[1][inverse]


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")


def _means(rows: Tensor, found: Tensor, count: int, mass: Tensor | None = None) -> Tensor:
    """``[count, T]``: the mean of the rows of each group, each row counting ``mass`` times (None: once)."""
    mass = torch.ones(len(rows), dtype=rows.dtype) if mass is None else mass
    sums = torch.zeros(count, rows.shape[1], dtype=rows.dtype).index_add_(0, found, rows * mass[:, None])
    total = torch.zeros(count, dtype=rows.dtype).index_add_(0, found, mass)
    return sums / total.clamp(min=1)[:, None]

"""Running a routed model: the same mathematics in several orders of work, at different costs.

``per_input`` merges for every input, as the paper does. ``group`` merges once for inputs whose weights are alike.
``adapter`` never merges: one batched pass in which every row has its own mixture, exactly. ``one_pass`` is the same
with a router that reads an early layer, so that no input is seen twice. ``static`` merges once for all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import RoutingError, suggest
from ..models import Model, build
from ..models.batches import checked
from ..progress import Progress, Stop, report
from .features import masked_mean
from .gate import Gate, check_weights
from .groups import Centroids, Grouping, group
from .parts import LowRank
from .routed import RoutedModel
from .rows import CannotRoute, RowModule

MODES = ("per_input", "group", "adapter", "one_pass", "static")
#: Pictures in a batch.
BATCH = 64


@dataclass(frozen=True)
class GroupSettings:
    """How inputs are grouped (Lu et al. 2024, appendix E): by argmax, then ``per_bin`` clusters inside each bin, or
    ``total`` over all bins; clustered ``on`` router weights or logits."""

    per_bin: int = 20
    total: int | None = None
    on: str = "weights"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Ran:
    """What a run gave: features float32 ``[N, width]``, the weights ``[N, T]`` that made them (in ``group``, those of
    each input's group), the router's logits where it was asked, how it ran and why, and seconds by phase."""

    features: Tensor
    weights: Tensor
    logits: Tensor | None
    mode: str
    why: str
    grouping: Grouping | None = None
    merges: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


class Runner:
    """A routed model in memory, ready to run. Safe to call from several threads: nothing merged is shared."""

    def __init__(self, routed: RoutedModel, model: Model | None = None, *, device: str = "auto") -> None:
        self.routed = routed
        if model is None:
            model = build(dict(routed.shared), config=routed.config, preprocessor=routed.preprocessor, device=device,
                          copy=False)  # fmt: skip
        self.model = model
        self._shared = model.prepare(routed.shared, "The shared model")
        self._rows: RowModule | None = None
        self._refused = ""
        self._tokens: int | None = None
        self._making = threading.Lock()

    # ---- weights ----------------------------------------------------------------------------------------------------

    def features(
        self, images: Tensor, *, batch: int = BATCH, progress: Progress | None = None, stop: Stop | None = None
    ) -> Tensor:
        """The shared model's features ``[N, width]``: what the router reads."""
        return self.model.encode(images, batch, progress, stop, weights=self._shared)

    def early_features(
        self,
        images: Tensor,
        layer: int,
        *,
        batch: int = BATCH,
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> Tensor:
        """Means over tokens of the hidden states ``[N, d]`` that enter block ``layer`` of the shared model."""
        rows, found = self.rows(), []
        for start in range(0, len(images), batch):
            _step(progress, stop, start, len(images), "reading an early layer")
            pixels = self.model.pixels(images[start : start + batch])
            try:
                with torch.inference_mode(), rows.route_at(layer, _take):
                    self.model.through(rows.module, pixels)
            except _Taken as taken:
                found.append(masked_mean(taken.hidden, None).float().cpu())
        return torch.cat(found)

    def logits(self, features: Tensor) -> Tensor:
        """The router's logits ``[N, T]``."""
        if self.routed.router is None:
            raise RoutingError("This routed model has no router: give weights, or build it with one.")
        return self.routed.router.logits(features)

    def centroids(
        self, images: Tensor, settings: GroupSettings | None = None, *, gate: Gate | None = None
    ) -> Centroids:
        """Groups fitted on (validation) pictures, for a stream: what comes later is assigned and changes none."""
        settings = settings or GroupSettings()
        logits = self.logits(self.features(images))
        return Centroids.fit(
            logits, (gate or self.routed.gate).weights(logits), groups_per_bin=settings.per_bin,
            total_groups=settings.total, cluster_on=settings.on, seed=settings.seed,
        )  # fmt: skip

    # ---- running ----------------------------------------------------------------------------------------------------

    def rows(self) -> RowModule:
        """The module in which every row has its own weights; CannotRoute where the model's kind does not allow it."""
        with self._making:
            if self._rows is None and not self._refused:
                try:
                    self._rows = self._row_module()
                except CannotRoute as error:
                    self._refused = str(error)
            if self._rows is None:
                raise CannotRoute(self._refused)
            return self._rows

    def choose(
        self, count: int, *, fixed: bool = False, grouping: GroupSettings | Centroids | None = None
    ) -> tuple[str, str]:
        """The cheapest exact mode for ``count`` inputs by its multiplications, and why in a sentence."""
        if fixed:
            return "static", "The weights are the same for every input, so one merge serves all."
        cost, tasks = self.cost(), len(self.routed.names)
        if isinstance(grouping, Centroids):
            groups = min(count, len(grouping.groups))
        else:
            grouping = grouping or GroupSettings()
            groups = min(count, grouping.total or grouping.per_bin * tasks)
        work = {"group": groups * cost["merge"], "per_input": count * cost["merge"]}
        refused = ""
        try:
            work["adapter"] = count * self.tokens() * cost["side"]
        except CannotRoute as error:
            refused = f" A batched pass is not possible: {error}"
        plain = max(1, count * (self.tokens() if not refused else 1) * cost["dense"])
        # a group of one is a merge for each input: the same work, without the clustering
        best = min(sorted(work, key=("adapter", "per_input", "group").index), key=lambda mode: work[mode])
        said = ", ".join(
            f"{mode} {work[mode] / plain:.2g}" for mode in ("adapter", "group", "per_input") if mode in work
        )
        if refused:
            return best, f"Fewest multiplications for {count} inputs.{refused}"
        return best, f"Fewest multiplications for {count} inputs, beyond the plain pass (1): {said}."

    def cost(self) -> dict[str, int]:
        """Multiplications: ``dense`` and ``side`` a token (m·n of the matrices that have parts; r·(m + n) of their
        parts), and ``merge`` for one merged model (r·m·n of each part)."""
        side = dense = merge = 0
        for name, tensor in self.routed.shared.items():
            mine = [part[name] for part in self.routed.parts.values() if name in part]
            if not mine or tensor.ndim < 2:
                continue
            dense += tensor.numel()
            for part in mine:
                low = isinstance(part, LowRank)
                side += part.u.numel() + part.v.numel() if isinstance(part, LowRank) else tensor.numel()
                merge += tensor.numel() * (part.rank if low else 1)  # type: ignore[union-attr]
        return {"dense": dense, "side": side, "merge": merge}

    def tokens(self) -> int:
        """Tokens of one input: rows of every matrix product."""
        if self._tokens is None:
            rows = self.rows()
            try:
                with torch.inference_mode(), rows.route_at(0, _take):
                    self.model.through(rows.module, self.model.pixels(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)))
            except _Taken as taken:
                self._tokens = int(taken.hidden.shape[1])
        return self._tokens or 1

    def run(
        self,
        images: Any,
        weights: Sequence[float] | Tensor | None = None,
        mode: str = "auto",
        *,
        gate: Gate | None = None,
        grouping: GroupSettings | Centroids | None = None,
        batch: int = BATCH,
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> Ran:
        """Features of uint8 pictures ``[N, H, W]`` or ``[N, H, W, 3]``, each under its own mixture.

        ``weights`` ``[T]`` or ``[N, T]`` are used as they are; without them the router and the gate decide. ``mode``
        is ``auto`` or one of :data:`MODES`; equal weights give equal features in every mode. ``grouping``: how
        ``group`` clusters this very set, or centroids that were fitted before, for inputs that come one by one.

        Raises RoutingError for weights that do not fit or are not finite, a mode that is unknown or cannot serve.
        """
        if mode != "auto" and mode not in MODES:
            raise RoutingError(f"There is no mode {mode!r}.{suggest(mode, ('auto', *MODES))}")
        images = checked(images)
        gate = gate or self.routed.gate
        clock = _Clock()
        if mode == "one_pass" and weights is None:
            return self._one_pass(images, gate, batch, clock, (progress, stop))
        logits, given = None, weights is not None
        if weights is None:
            with clock("features"):
                found = self.features(images, batch=batch, progress=progress, stop=stop)
            with clock("router"):
                logits = self.logits(found)
                rows = gate.weights(logits)
        else:
            rows = check_weights(weights, len(self.routed.names), allow_negative=True)
        same = rows.ndim == 1
        rows = rows.expand(len(images), -1) if same else rows
        if len(rows) != len(images):
            raise RoutingError(f"There are {len(rows)} rows of weights for {len(images)} inputs; give one row each.")
        why = "asked for"
        if mode == "auto":
            mode, why = self.choose(len(images), fixed=given and same, grouping=grouping)
        return self._with(mode, images, rows, logits, why, grouping or GroupSettings(), batch, clock, (progress, stop))

    def _with(self, mode, images, rows, logits, why, grouping, batch, clock, watch) -> Ran:  # type: ignore  # noqa
        found: Grouping | None = None
        if mode in ("adapter", "one_pass"):
            with clock("forward"):
                features, merges = self._adapter(images, rows, batch, watch), 0
        else:
            if mode == "group":
                found = _grouped(rows, logits, grouping)
            elif mode == "static":
                found = _one_group(rows)
            else:
                found = Grouping(torch.arange(len(rows)), rows, rows.argmax(1))
            features, merges = self._merged(images, found, batch, clock, watch)
            rows = found.weights[found.index] if len(rows) else rows
        kept = found if mode == "group" else None
        return Ran(features, rows, logits, mode, why, kept, merges, clock.seconds)

    def _adapter(self, images: Tensor, rows: Tensor, batch: int, watch: Any) -> Tensor:
        module, out = self.rows(), torch.empty(len(images), self.model.width)
        for start in range(0, len(images), batch):
            _step(*watch, start, len(images), "one pass for all mixtures")
            end = min(start + batch, len(images))
            pixels = self.model.pixels(images[start:end])
            with torch.inference_mode(), module.weights(rows[start:end].to(self.model.device)):
                out[start:end] = self.model.through(module.module, pixels).float().cpu()
        return out

    def _merged(self, images: Tensor, grouping: Grouping, batch: int, clock: _Clock, watch: Any) -> tuple[Tensor, int]:
        out = torch.empty(len(images), self.model.width)
        done, count = 0, len(grouping.weights)
        for g in range(count):
            members = torch.nonzero(grouping.index == g).flatten()
            if not len(members):
                continue
            _step(*watch, done, len(images), f"merge {g + 1} of {count}")
            with clock("merge"):
                state = self.model.prepare(self.routed.state(grouping.weights[g]))
            with clock("forward"):
                out[members] = self.model.encode(images[members], batch, weights=state)
            done += len(members)
        return out, count

    def _one_pass(self, images: Tensor, gate: Gate, batch: int, clock: _Clock, watch: Any) -> Ran:
        routed = self.routed
        if routed.early_router is None or routed.early_layer is None:
            raise RoutingError(
                "This routed model has no router on an early layer; build it with an early layer, or use mode adapter."
            )
        early, module = routed.early_router, self.rows()
        out, rows, scores = torch.empty(len(images), self.model.width), [], []

        def decide(hidden: Tensor) -> Tensor:
            scores.append(early.logits(masked_mean(hidden, None).float().cpu()))
            rows.append(gate.weights(scores[-1]))
            return rows[-1].to(hidden.device)

        with clock("forward"):
            for start in range(0, len(images), batch):
                _step(*watch, start, len(images), "one pass, router inside")
                end = min(start + batch, len(images))
                pixels = self.model.pixels(images[start:end])
                with torch.inference_mode(), module.route_at(routed.early_layer, decide):
                    out[start:end] = self.model.through(module.module, pixels).float().cpu()
        none = torch.zeros(0, len(routed.names))
        return Ran(out, torch.cat([none, *rows]), torch.cat([none, *scores]), "one_pass", "asked for", None, 0,
                   clock.seconds)  # fmt: skip

    def _row_module(self) -> RowModule:
        own = self.model.own_names(self.routed.shared)
        parts = [
            {own[name]: part for name, part in self.routed.parts[task].items() if name in own}
            for task in self.routed.names
        ]
        return RowModule(self.model.module, self._shared.tensors, parts, blocks=self.model.image_tower)


class _Taken(Exception):  # noqa: N818 - a way out of a pass that has given what was wanted
    def __init__(self, hidden: Tensor) -> None:
        super().__init__("taken")
        self.hidden = hidden


def _take(hidden: Tensor) -> Tensor:
    raise _Taken(hidden)


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds = {"features": 0.0, "router": 0.0, "merge": 0.0, "forward": 0.0}
        self._phase, self._since = "", 0.0

    def __call__(self, phase: str) -> _Clock:
        self._phase = phase
        return self

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._phase] += time.perf_counter() - self._since


def _grouped(rows: Tensor, logits: Tensor | None, settings: GroupSettings | Centroids) -> Grouping:
    if isinstance(settings, Centroids):
        return settings.assign(logits, rows)
    return group(logits, rows, groups_per_bin=settings.per_bin, total_groups=settings.total, cluster_on=settings.on,
                 seed=settings.seed)  # fmt: skip


def _one_group(rows: Tensor) -> Grouping:
    if len(rows) and not bool((rows == rows[0]).all()):
        raise RoutingError(
            "The mode static makes one merge, but these inputs have different weights; give one row of weights, or use "
            "another mode."
        )
    return Grouping(torch.zeros(len(rows), dtype=torch.int64), rows[:1], rows[:1].argmax(1))


def _step(progress: Progress | None, stop: Stop | None, done: int, total: int, text: str) -> None:
    if stop is not None:
        stop.check()
    report(progress, done, total, text)

"""Running a routed model: the same mathematics in several orders of work, at different costs.

``per_input`` merges for every input, as the paper does. ``group`` merges once for inputs whose weights are alike.
``adapter`` never merges: one batched pass in which every row has its own mixture, exactly. ``one_pass`` is the same
with a router that reads an early layer, so that no input is seen twice. ``static`` merges once for all.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import RoutingError, suggest
from ..models import Model, build
from ..models.batches import checked
from ..progress import Progress, Stop
from .features import masked_mean
from .gate import Gate, check_weights
from .groups import Centroids, Grouping, group
from .parts import LowRank
from .passes import BATCH, Work, hidden_at, step
from .routed import RoutedModel
from .rows import CannotRoute, RowModule

MODES = ("per_input", "group", "adapter", "one_pass", "static")


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
        self._local = routed.to(model.device)
        self._rows: RowModule | None = None
        self._refused = _not_batched(routed)
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
            step(progress, stop, start, len(images), "reading an early layer")
            hidden = hidden_at(self.model, rows, layer, self.model.pixels(images[start : start + batch]))
            found.append(masked_mean(hidden, None).float().cpu())
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

    def check(self) -> str:
        """Try the batched pass out on a few random pictures against merged models; why it cannot serve, or nothing.

        Done once when a routed model is built: shapes alone do not show every way in which a model may mix its rows.
        """
        draw = torch.Generator().manual_seed(0)
        pixels = self.model.pixels(torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=draw))
        try:
            with torch.inference_mode():
                self.rows().check(lambda module, count: self.model.through(module, pixels[:count]))
        except CannotRoute as error:
            self._rows, self._refused = None, str(error)
        return self._refused

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
        said = ", ".join(f"{mode} {share / plain:.2g}" for mode, share in sorted(work.items()))
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
                side += part.numbers - part.rank if isinstance(part, LowRank) else tensor.numel()
                merge += tensor.numel() * (part.rank if isinstance(part, LowRank) else 1)
        return {"dense": dense, "side": side, "merge": merge}

    def tokens(self) -> int:
        """Tokens of one input: rows of every matrix product."""
        if self._tokens is None:
            pixels = self.model.pixels(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
            self._tokens = int(hidden_at(self.model, self.rows(), 0, pixels).shape[1])
        return self._tokens

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
        is ``auto`` or one of :data:`MODES`; equal weights give equal features in every mode but ``one_pass``, which
        leaves the first layers to the shared model. ``grouping``: how ``group`` clusters this very set, or centroids
        that were fitted before, for inputs that come one by one.

        Raises RoutingError for weights that do not fit or are not finite, a mode that is unknown or cannot serve.
        """
        if mode != "auto" and mode not in MODES:
            raise RoutingError(f"There is no mode {mode!r}.{suggest(mode, ('auto', *MODES))}")
        images, gate = checked(images), gate or self.routed.gate
        work = Work(self.model, images, batch, progress, stop)
        rows, same = self._given(weights, len(images)), False
        if rows is not None:
            same = rows.ndim == 1
            rows = rows.expand(len(images), -1)
        if mode == "one_pass":
            return self._one_pass(work, rows, gate)
        logits = None
        if rows is None:
            with work.clock("features"):
                found = self.features(images, batch=batch, progress=progress, stop=stop)
            with work.clock("router"):
                logits = self.logits(found)
                rows = gate.weights(logits)
        why = "asked for"
        if mode == "auto":
            mode, why = self.choose(len(images), fixed=same, grouping=grouping)
        if mode == "adapter":
            return Ran(work.batched(self.rows(), rows), rows, logits, mode, why, seconds=work.clock.seconds)
        groups = self._groups(mode, rows, logits, grouping or GroupSettings())
        features = work.merged(self._local.state, groups)
        rows = groups.weights[groups.index] if len(rows) else rows
        return Ran(features, rows, logits, mode, why, groups if mode == "group" else None, len(groups),
                   work.clock.seconds)  # fmt: skip

    def _given(self, weights: Any, count: int) -> Tensor | None:
        if weights is None:
            return None
        rows = check_weights(weights, len(self.routed.names), allow_negative=True)
        if rows.ndim == 2 and len(rows) != count:
            raise RoutingError(f"There are {len(rows)} rows of weights for {count} inputs; give one row each.")
        return rows

    def _groups(self, mode: str, rows: Tensor, logits: Tensor | None, settings: GroupSettings | Centroids) -> Grouping:
        if mode == "per_input":
            return Grouping(torch.arange(len(rows)), rows, rows.argmax(1))
        if mode == "static":
            if len(rows) and not bool((rows == rows[0]).all()):
                raise RoutingError(
                    "The mode static makes one merge, but these inputs have different weights; give one row of "
                    "weights, or use another mode."
                )
            return Grouping(torch.zeros(len(rows), dtype=torch.int64), rows[:1], rows[:1].argmax(1))
        if isinstance(settings, Centroids):
            return settings.assign(logits, rows)
        return group(logits, rows, groups_per_bin=settings.per_bin, total_groups=settings.total,
                     cluster_on=settings.on, seed=settings.seed)  # fmt: skip

    def _one_pass(self, work: Work, given: Tensor | None, gate: Gate) -> Ran:
        early, layer = self.routed.early_router, self.routed.early_layer
        if layer is None or (early is None and given is None):
            raise RoutingError(
                "This routed model has no router on an early layer; build it with an early layer, or use mode adapter."
            )
        none = torch.zeros(0, len(self.routed.names))
        rows, scores = [none], [none]

        def decide(hidden: Tensor, start: int) -> Tensor:
            if given is not None:
                rows.append(given[start : start + len(hidden)])
            else:
                assert early is not None
                scores.append(early.logits(masked_mean(hidden, None).float().cpu()))
                rows.append(gate.weights(scores[-1]))
            return rows[-1].to(hidden.device)

        features = work.routed_at(self.rows(), layer, decide)
        logits = torch.cat(scores) if given is None else None
        return Ran(features, torch.cat(rows), logits, "one_pass", "asked for", seconds=work.clock.seconds)

    def _row_module(self) -> RowModule:
        own = self.model.own_names(self.routed.shared)
        parts = [
            {own[name]: part for name, part in self._local.parts[task].items() if name in own}
            for task in self.routed.names
        ]
        return RowModule(self.model.module, self._shared.tensors, parts, blocks=self.model.image_tower)


def _not_batched(routed: RoutedModel) -> str:
    """Why the batched pass was found not to serve when the model was built; empty where it serves."""
    notes = routed.settings.get("router")
    return str(notes.get("not_batched") or "") if isinstance(notes, Mapping) else ""

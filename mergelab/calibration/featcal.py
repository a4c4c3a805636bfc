"""FeatCal: a merged model's layers calibrated in forward order, so that its features drift less from its experts'.

Gu et al., 2026 ("FeatCal: Feature Calibration for Post-Merging Models", arXiv:2605.13030): block after block, what the
merged model's layers see and what each task's expert sees at the same place on the same inputs give new weights in
closed form (see :mod:`mergelab.calibration.drift`); the next block is fed by the calibrated ones. No labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import StatisticsError
from ..progress import Progress, Stop, report
from .drift import Affine, DriftSettings, LinearMeans, NormMeans, fit_linear, fit_norm
from .inputs import as_batch
from .prepared import prepared
from .rest import Forward
from .through import Batches, Part, parts_of, placed, until

Layers: TypeAlias = Mapping[str, "nn.Linear | nn.LayerNorm"]
Means: TypeAlias = "LinearMeans | NormMeans"
#: Projections whose every token matters to the class token, also in the last block.
_KEYS_VALUES = ("k_proj", "v_proj", "key", "value")


@dataclass(frozen=True)
class Calibrated:
    """``state``: calibrated tensors (float32) by their names in the merge, those left alone are not in it.

    ``log``: an entry a tensor: its name, ‖change‖ and ‖merged‖. ``skipped``: layer -> why it was left alone.
    """

    state: Mapping[str, Tensor]
    blocks: tuple[str, ...]
    examples: Mapping[str, int]
    log: tuple[Mapping[str, Any], ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


def calibrate_features(
    module: nn.Module,
    merged: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    batches: Mapping[str, Batches],
    *,
    forward: Forward,
    settings: DriftSettings | None = None,
    spelling: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Calibrated:
    """Calibrate the linear layers and layer norms of a merged model's blocks on inputs of every expert's task.

    Args:
        module: runs the models; its weights are exchanged meanwhile, and put back.
        merged, base, experts: named tensors of one architecture, read when they are needed; experts by task.
        batches: task -> function that gives the batches of its inputs, the same ones each time.
        forward: ``forward(module, inputs)`` runs the module.
        spelling: names of tensors -> in the module, where they differ.

    Only blocks in a list of modules (a transformer's layers) are calibrated, as the authors do; a module without such
    a list is calibrated as a whole. Raises StatisticsError without inputs or experts.
    """
    if not experts:
        raise StatisticsError("A calibration needs at least one expert, and none is given.")
    first = {task: next(iter(batches[task]()), None) if task in batches else None for task in experts}
    lost = next((task for task, item in first.items() if item is None), None)
    if lost is not None:
        raise StatisticsError(f"There are no inputs of the task {lost!r}, so nothing can pass its expert.")
    known = set(module.state_dict())
    names = {(spelling or {}).get(name, name): name for name in merged}
    names = {own: name for own, name in names.items() if own in known}
    work = _Work(module, forward, settings or DriftSettings(), names, merged, base, experts, batches, stop)
    with placed(module, work.current):
        parts = _blocks(module, parts_of(module, as_batch(next(iter(first.values()))), forward, names))
    for place, part in enumerate(parts):
        layers, seen = _layers(part), []
        for number, task in enumerate(experts):
            report(progress, place * len(experts) + number, len(parts) * len(experts),
                   f"Features of {part.path or 'the model'} on {task}")  # fmt: skip
            seen.append(work.means(part, layers, task, last=place + 1 == len(parts)))
        for path, layer in layers.items():
            found = [means[path] for means in seen if path in means]
            if len(found) < len(experts):
                work.skipped[path] = "its input was not seen (fused attention, or never called)"
            else:
                work.fit(path, layer, found)
        for weight in part.weights:
            if weight.rpartition(".")[0] not in layers:
                work.skipped[weight] = "fused attention or a layer of another kind, which is not fitted"
    report(progress, len(parts), len(parts), "Calibrated")
    return Calibrated(
        work.out, tuple(part.path for part in parts), dict(work.examples), tuple(work.log), dict(work.skipped)
    )


def _blocks(module: nn.Module, parts: list[Part]) -> list[Part]:
    """Those in a list of modules, or all of them where there is no such list."""
    listed = [
        part for part in parts
        if part.path and isinstance(module.get_submodule(part.path.rpartition(".")[0]), nn.ModuleList)
    ]  # fmt: skip
    return listed or parts


def _layers(part: Part) -> Layers:
    """Path -> the linear layers and the layer norms with scale and shift of a block."""
    out: dict[str, nn.Linear | nn.LayerNorm] = {}
    for name, layer in part.module.named_modules():
        path = ".".join(step for step in (part.path, name) if step)
        if isinstance(layer, nn.Linear) or (
            isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1 and layer.bias is not None
        ):
            out[path] = layer
    return out


class _Work:
    """A calibration under way: the weights as they are now (``current``), and what was done."""

    def __init__(  # noqa: PLR0917
        self, module: nn.Module, forward: Forward, settings: DriftSettings, names: Mapping[str, str],
        merged: Mapping[str, Tensor], base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]],
        batches: Mapping[str, Batches], stop: Stop | None,
    ) -> None:  # fmt: skip
        self.module, self.forward, self.settings, self.names = module, forward, settings, names
        self.base, self.experts, self.batches, self.stop = base, experts, batches, stop
        self.device = next(module.parameters()).device
        self.current = {own: merged[name] for own, name in names.items()}
        self.out: dict[str, Tensor] = {}
        self.log: list[Mapping[str, Any]] = []
        self.examples: dict[str, int] = {}
        self.skipped: dict[str, str] = {}

    def means(self, part: Part, layers: Layers, task: str, *, last: bool) -> dict[str, Means]:
        """Means of what every layer of a block sees in the student and in a task's expert."""
        expert = {own: self.experts[task][name] for own, name in self.names.items()}
        run = until(self.forward, part, self.device)
        out: dict[str, Means] = {}
        self.examples[task] = 0
        with prepared(self.module, torch.float32, self.device), torch.no_grad():
            for item in self.batches[task]():
                if self.stop is not None:
                    self.stop.check()
                batch = as_batch(item).to(self.device, torch.float32)
                self.examples[task] += batch.size
                with placed(self.module, self.current):
                    ours = _inputs(self.module, layers, run, batch.inputs)
                with placed(self.module, expert):
                    theirs = _inputs(self.module, layers, run, batch.inputs)
                for path, calls in ours.items():
                    for x, other in zip(calls, theirs[path], strict=True):
                        self._add(out, path, layers[path], (x, other), last)
        return out

    def _add(
        self, out: dict[str, Means], path: str, layer: nn.Module, inputs: tuple[Tensor, Tensor], last: bool
    ) -> None:
        rows = _counts(path, inputs[0], self.settings.others if last else 1.0)
        x, other = (t.flatten(0, -2) for t in inputs)
        means = out.get(path)
        if means is None:
            means = out[path] = NormMeans(x.shape[-1]) if isinstance(layer, nn.LayerNorm) else LinearMeans(x.shape[-1])
        if isinstance(means, LinearMeans):
            means.add(x, other, rows, self.settings.teacher)
        else:
            assert isinstance(layer, nn.LayerNorm)
            means.add(x, rows, layer)

    def fit(self, path: str, layer: nn.Module, means: list[Any]) -> None:
        """Give one layer its new tensors."""
        weight, bias = (".".join(step for step in (path, key) if step) for key in ("weight", "bias"))
        norm = isinstance(layer, nn.LayerNorm)
        if weight not in self.names or (norm and not self.settings.norms):
            return

        def of(state: Mapping[str, Tensor]) -> Affine:
            return Affine(
                state[self.names[weight]].cpu(), state[self.names[bias]].cpu() if bias in self.names else None
            )

        merged = Affine(self.current[weight].cpu(), self.current[bias].cpu() if bias in self.names else None)
        fit: Any = fit_norm if norm else fit_linear
        found: Affine = fit(means, [of(e) for e in self.experts.values()], merged, of(self.base), self.settings)
        self._take(weight, found.weight)
        if found.bias is not None and (norm or self.settings.biases):
            self._take(bias, found.bias)

    def _take(self, own: str, tensor: Tensor) -> None:
        name, before = self.names[own], self.current[own].cpu().double()
        change, size = float((tensor - before).norm()), float(before.norm())
        self.log.append({"tensor": name, "change": change, "size": size})
        self.out[name] = self.current[own] = tensor.float()


def _inputs(module: nn.Module, layers: Layers, run: Forward, inputs: Any) -> dict[str, list[Tensor]]:
    """Path -> what its layer gets in each call of a pass."""
    seen: dict[str, list[Tensor]] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda _module, args: seen.setdefault(path, []).append(args[0].detach())

    handles = [layer.register_forward_pre_hook(note(path)) for path, layer in layers.items()]
    try:
        run(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _counts(path: str, x: Tensor, others: float) -> Tensor:
    """How much each row of [N, T, d] counts: all alike, or (last block) the class token more than the others."""
    rows = torch.ones(x.shape[:-1], device=x.device)
    if others != 1 and x.ndim == 3 and x.shape[1] > 1 and path.rpartition(".")[2] not in _KEYS_VALUES:
        rows[:, 1:] = others
    return rows.flatten()

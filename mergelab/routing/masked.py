"""One vector for all tasks and a mask of bits for each: EMR-Merging and TALL masks.

Twin-Merging is compared with them. Both need to know the task at inference: here a router's first choice takes its
place. What is stored beside the base is one task vector, and one bit a parameter and task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.whole import whole_folder
from ..errors import RoutingError, suggest
from ..progress import Progress, Stop, report

#: λ that TALL masks are chosen from on validation data (Wang et al. 2024, appendix).
LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
FORMAT, FILE = "mergelab-masked/1", "masked.safetensors"


@dataclass(frozen=True, eq=False)
class Masked:
    """θ_t = θ_0 + ρ_t·M_t ⊙ τ for every task t.

    base: θ_0. unified: τ, by tensor name, of the shapes of the base. masks: task -> tensor name -> the bits of M_t,
    uint8 ``[ceil(n / 8)]``, the first entry in the lowest bit. scales: ρ_t. method: ``emr`` or ``tall``. aliases: tied
    names -> stored names.
    """

    base: Mapping[str, Tensor]
    unified: Mapping[str, Tensor]
    masks: Mapping[str, Mapping[str, Tensor]]
    scales: Mapping[str, float]
    method: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.masks)

    def change(self, task: str, name: str) -> Tensor:
        """ρ_t·M_t ⊙ τ of one tensor, float32."""
        unified = self.unified[name].float()
        bits = unpack(self.masks[self._known(task)][name], tuple(unified.shape))
        return torch.where(bits, unified * self.scales[task], 0.0)

    def state(self, task: str) -> dict[str, Tensor]:
        """The model of one task: fresh float32 tensors (those that are not of floating point as they are)."""
        out: dict[str, Tensor] = {}
        for name, tensor in self.base.items():
            if name not in self.aliases:
                out[name] = tensor.float() + self.change(task, name) if name in self.unified else tensor
        out.update({name: out[target] for name, target in self.aliases.items()})
        return out

    def density(self, task: str) -> float:
        """The share of entries that the task's mask keeps."""
        kept = total = 0
        for name, bits in self.masks[self._known(task)].items():
            kept += int(np.unpackbits(bits.numpy(), count=self.unified[name].numel(), bitorder="little").sum())
            total += self.unified[name].numel()
        return kept / max(total, 1)

    def bytes(self) -> dict[str, int]:
        """``base``, ``unified``, ``masks`` (all tasks: one bit a parameter, rounded up to bytes a tensor), ``scales``
        (4 bytes a task) and ``total``."""
        parts = {
            "base": sum(_size(t) for n, t in self.base.items() if n not in self.aliases),
            "unified": sum(map(_size, self.unified.values())),
            "masks": sum(b.numel() for of in self.masks.values() for b in of.values()),
            "scales": 4 * len(self.masks),
        }
        return {**parts, "total": sum(parts.values())}

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as one safetensors file in ``folder``, whole or not at all; :func:`load_masked` reads it."""
        from safetensors.torch import save_file

        tensors = {f"base/{n}": t.contiguous() for n, t in self.base.items() if n not in self.aliases}
        tensors |= {f"unified/{n}": t.contiguous() for n, t in self.unified.items()}
        for i, of in enumerate(self.masks.values()):
            tensors |= {f"mask/{i}/{n}": bits.contiguous() for n, bits in of.items()}
        about = {"format": FORMAT, "method": self.method, "tasks": list(self.masks), "aliases": dict(self.aliases),
                 "scales": [float(self.scales[t]) for t in self.masks], "settings": dict(self.settings)}  # fmt: skip
        with whole_folder(folder, overwrite=overwrite, need=self.bytes()["total"]) as partial:
            save_file(tensors, partial / FILE, metadata={"mergelab": json.dumps(about, allow_nan=False)})
        return Path(folder)

    def _known(self, task: str) -> str:
        if task not in self.masks:
            raise RoutingError(f"There is no mask for the task {str(task)[:60]!r}.{suggest(str(task), self.masks)}")
        return task


def emr(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    *,
    aliases: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Masked:
    """EMR-Merging: elect, mask and rescale (Huang et al. 2024, arXiv 2405.17461, section 3.2).

    Each entry's sign is that of Σ_t τ_t, its magnitude the largest among the tasks of that sign (an entry whose sum is
    zero stays at the base); M_t = (τ_t agrees in sign); ρ_t = Σ|τ_t| / Σ|M_t ⊙ τ| over the whole model.
    """
    norms = dict.fromkeys(experts, 0.0)
    masked = dict.fromkeys(experts, 0.0)

    def one(vectors: Tensor) -> tuple[Tensor, Tensor]:
        sign = vectors.sum(0).sign()
        agree = vectors * sign > 0
        unified = sign * torch.where(agree, vectors.abs(), 0.0).amax(0)
        for task, vector, mine in zip(experts, vectors, agree, strict=True):
            norms[task] += float(vector.abs().double().sum())
            masked[task] += float(torch.where(mine, unified, 0.0).abs().double().sum())
        return unified, agree

    unified, masks = _each(base, experts, aliases or {}, one, (progress, stop))
    scales = {task: norms[task] / masked[task] if masked[task] > 0 else 1.0 for task in experts}
    return Masked(base, unified, masks, scales, "emr", dict(aliases or {}))


def tall(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    lambdas: float | Mapping[str, float] = 0.4,
    *,
    aliases: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Masked:
    """TALL masks (Wang et al. 2024, arXiv 2405.07813, section 3): m_t = |τ_t| ≥ λ_t·|τ_MTL − τ_t|, θ_t = θ_0 + m_t ⊙
    τ_MTL with τ_MTL = Σ_t τ_t. ``lambdas``: one number, or one for every task (see :func:`choose_lambdas`)."""
    chosen = dict(lambdas) if isinstance(lambdas, Mapping) else dict.fromkeys(experts, lambdas)
    for task in experts:
        value = chosen.get(task)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise RoutingError(f"The λ of the task {task!r} must be a number from 0, not {value!r}.")
    levels = torch.tensor([float(chosen[task]) for task in experts])

    def one(vectors: Tensor) -> tuple[Tensor, Tensor]:
        total = vectors.sum(0)
        level = levels.to(vectors).view(-1, *(1 for _ in vectors.shape[1:]))
        return total, vectors.abs() >= level * (total - vectors).abs()

    unified, masks = _each(base, experts, aliases or {}, one, (progress, stop))
    return Masked(base, unified, masks, dict.fromkeys(experts, 1.0), "tall", dict(aliases or {}),
                  {"lambda": {task: float(chosen[task]) for task in experts}})  # fmt: skip


def choose_lambdas(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    score: Callable[[str, dict[str, Tensor]], float],
    grid: Sequence[float] = LAMBDAS,
    *,
    aliases: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> dict[str, float]:
    """The λ of ``grid`` for every task whose model ``score(task, state)`` finds best (the first of equals). A task's λ
    touches no other task's model, so each is chosen alone."""
    if not grid:
        raise RoutingError("Give at least one λ to choose from.")
    best: dict[str, tuple[float, float]] = {}
    for i, level in enumerate(grid):
        built = tall(base, experts, level, aliases=aliases, stop=stop)
        for task in experts:
            found = score(task, built.state(task))
            if task not in best or found > best[task][0]:
                best[task] = (found, level)
        report(progress, i + 1, len(grid), f"TALL masks with λ = {level:g}")
    return {task: level for task, (_, level) in best.items()}


def load_masked(folder: str | Path) -> Masked:
    """What :meth:`Masked.save` wrote, mapped into memory; RoutingError where the file is not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import safe_open

    path = Path(folder) / FILE
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("mergelab", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise RoutingError(f"{path} holds no masked model: {str(error)[:160]}. Build it again.") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise RoutingError(f"{path} is not of the format {FORMAT!r}. Build it again with this version.")
    try:
        tasks, scales = [str(t) for t in about["tasks"]], [float(s) for s in about["scales"]]
        base = _under(tensors, "base/")
        masks = {task: _under(tensors, f"mask/{i}/") for i, task in enumerate(tasks)}
        unified, aliases = _under(tensors, "unified/"), {str(a): str(b) for a, b in about["aliases"].items()}
        base |= {name: base[target] for name, target in aliases.items()}
        found = Masked(base, unified, masks, dict(zip(tasks, scales, strict=True)), str(about["method"]), aliases,
                       dict(about["settings"]))  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RoutingError(f"The description in {path} is damaged ({str(error)[:120]}). Build it again.") from None
    for task, of in masks.items():
        for name, tensor in unified.items():
            bits = of.get(name)
            if bits is None or bits.dtype != torch.uint8 or tuple(bits.shape) != (-(-tensor.numel() // 8),):
                raise RoutingError(f"{path}: the mask of {task!r} does not fit tensor {name!r}. Build it again.")
            if name not in base or base[name].shape != tensor.shape:
                raise RoutingError(f"{path}: the unified vector does not fit tensor {name!r}. Build it again.")
    return found


def pack(bits: Tensor) -> Tensor:
    """uint8 ``[ceil(n / 8)]`` of a bool tensor of n entries, the first in the lowest bit, zeros at the end."""
    return torch.from_numpy(np.packbits(bits.cpu().numpy().reshape(-1), bitorder="little"))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool tensor of ``shape`` that :func:`pack` packed."""
    count = int(np.prod(shape, dtype=np.int64))
    found = np.unpackbits(packed.cpu().numpy(), count=count, bitorder="little")
    return torch.from_numpy(found.astype(bool)).reshape(shape)


def _each(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    aliases: Mapping[str, str],
    one: Callable[[Tensor], tuple[Tensor, Tensor]],
    watch: tuple[Progress | None, Stop | None],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The unified vector and the packed masks, tensor by tensor, of ``one``: task vectors ``[T, ...]`` -> (τ, bits)."""
    if not experts:
        raise RoutingError("There is no expert to merge; name at least one.")
    progress, stop = watch
    names = [n for n, t in base.items() if t.is_floating_point() and n not in aliases]
    unified: dict[str, Tensor] = {}
    masks: dict[str, dict[str, Tensor]] = {task: {} for task in experts}
    for done, name in enumerate(names):
        if stop is not None:
            stop.check()
        vectors = torch.stack([_vector(base[name], of, task, name) for task, of in experts.items()])
        found, bits = one(vectors)
        unified[name] = found.to(base[name].dtype)
        for task, mine in zip(experts, bits, strict=True):
            masks[task][name] = pack(mine)
        report(progress, done + 1, len(names), f"masking {name}")
    return unified, masks


def _vector(base: Tensor, expert: Mapping[str, Tensor], task: str, name: str) -> Tensor:
    theirs = expert.get(name)
    if theirs is None or theirs.shape != base.shape:
        found = "no such tensor" if theirs is None else f"the shape {list(theirs.shape)}"
        raise RoutingError(
            f"The expert {task!r} has {found} where the base has {name!r} of shape {list(base.shape)}; take experts "
            "made from the same base."
        )
    vector = theirs.float() - base.float()
    if not bool(torch.isfinite(vector).all()):
        raise RoutingError(f"The expert {task!r} or the base has NaN or infinity in tensor {name!r}; use another file.")
    return vector


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

"""θ0 + Σ_t λ_t τ_t as one model that can be differentiated: what coefficient learning runs.

The merged weights are written into a stand-in module as plain parameters, so a backward pass knows nothing of experts.
With g the gradient of a loss in the merged tensor θ^l, the coefficients' own is exact and one product away:
∂L/∂λ_t^l = ⟨g^l, τ_t^l⟩. So there is one graph for one batch at a time, however many experts there are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ..engine import Plan
from ..engine.structure import Item
from ..errors import MergeLabError
from ..models import Model
from ..models.slots import Slot, slots_of
from ..progress import Progress, Stop, report

#: ``vectors(item)`` -> (base tensor, task vectors of all models), float32 on the device.
Vectors = Callable[[Item], tuple[Tensor, list[Tensor]]]
KEEP = ("auto", "float32", "float16", "nothing")


class Blend:
    """A stand-in of ``model`` whose weights are the plan's base plus task vectors times a table of coefficients.

    ``names`` are the tensors that have a coefficient a model: those that some task vector changes and that the module
    has as parameters. All others keep the base's values here. ``keep`` says how the task vectors are held: ``float32``,
    ``float16`` (each scaled by its largest magnitude), ``nothing`` (read again at every use), or as memory allows.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        vectors: Vectors,
        *,
        keep: str = "auto",
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.model, self.count, self.device = model, len(plan.names), model.device
        with model.using(model.weights) as module:
            self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._vectors = vectors
        self._slots = _slots(model, self.module, plan)
        items = [item for item in plan.items if item.merge and item.name in self._slots]
        if not items:
            raise MergeLabError(
                f"No tensor of the merge is one that {model.name} runs, so there is nothing to learn. Build the model "
                "from the merge's own base."
            )
        self.keep = _kept(items, self.count, self.device) if keep == "auto" else keep
        self._base: dict[str, Tensor] = {}
        self._taus: dict[str, Taus] = {}
        self._items: dict[str, Item] = {}
        for done, item in enumerate(items):
            if stop is not None:
                stop.check()
            report(progress, done, len(items), f"reading task vectors: {item.name}")
            self._take(item)
        self.names = tuple(self._items)
        if not self.names:
            raise MergeLabError(
                f"The models equal their base in every tensor that {model.name} runs, so there is nothing to learn."
            )

    def _take(self, item: Item) -> None:
        base, taus = self._vectors(item)
        for slot in self._slots[item.name]:
            slot.get().copy_(base)
        changed = any(bool(tau.any()) for tau in taus)
        parameters = [slot for slot in self._slots[item.name] if slot.is_parameter]
        if not changed or not parameters:
            return
        for slot in parameters:
            slot.owner.get_parameter(slot.key).requires_grad_(True)
        self._items[item.name] = item
        self._base[item.name] = base.reshape(-1).clone()
        if self.keep != "nothing":
            self._taus[item.name] = Taus(torch.stack([tau.reshape(-1) for tau in taus]), half=self.keep == "float16")

    @property
    def nbytes(self) -> int:
        """Bytes that the task vectors take."""
        return sum(taus.nbytes for taus in self._taus.values())

    def taus(self, name: str) -> Tensor:
        """The task vectors of one tensor, float32 [models, numel]."""
        if name in self._taus:
            return self._taus[name].full()
        return torch.stack([tau.reshape(-1) for tau in self._vectors(self._items[name])[1]])

    @torch.no_grad()
    def apply(self, table: Tensor) -> None:
        """Put θ0 + Σ_t λ_t τ_t into the module and forget gradients; ``table`` is float32 [len(names), models]."""
        for row, name in zip(table.to(self.device), self.names, strict=True):
            merged = torch.addmv(self._base[name], self.taus(name).T, row)
            for slot in self._slots[name]:
                slot.get().copy_(merged.view(slot.shape))
        for parameter in self.module.parameters():
            parameter.grad = None

    def features(self, groups: Sequence[Tensor]) -> list[Tensor]:
        """Features float32 [N, width] of each set of uint8 pictures, in one pass, with a graph to the weights."""
        pixels = torch.cat([self.model.pixels(images) for images in groups])
        found = self.model.through(self.module, pixels).float()
        return list(found.split([len(images) for images in groups]))

    @torch.no_grad()
    def slopes(self) -> Tensor:
        """∂L/∂λ as float32 [len(names), models] on the CPU, from the gradients that backward passes left."""
        out = torch.zeros(len(self.names), self.count)
        for index, name in enumerate(self.names):
            gradient = self._gradient(name)
            if gradient is not None:
                out[index] = torch.mv(self.taus(name), gradient.reshape(-1)).cpu()
        return out

    def _gradient(self, name: str) -> Tensor | None:
        """The gradient in one stored tensor, which may sit in several places of the module."""
        places = {id(p): p for p in (slot.owner.get_parameter(slot.key) for slot in self._slots[name])}
        found = [parameter.grad for parameter in places.values() if parameter.grad is not None]
        return torch.stack(found).sum(0) if len(found) > 1 else found[0] if found else None


class Taus:
    """Task vectors [models, numel] of one tensor, in float32, or in float16 over each one's largest magnitude.

    Fine-tuned weights differ from their base by 1e-5 and less, where plain float16 has few digits left.
    """

    def __init__(self, taus: Tensor, *, half: bool) -> None:
        self._scale: Tensor | None = None
        if half:
            self._scale = taus.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
            taus = (taus / self._scale).half()
        self._stored = taus

    @property
    def nbytes(self) -> int:
        return self._stored.numel() * self._stored.element_size()

    def full(self) -> Tensor:
        """As float32."""
        return self._stored if self._scale is None else self._stored.float().mul_(self._scale)


def _slots(model: Model, module: nn.Module, plan: Plan) -> dict[str, list[Slot]]:
    """The places in the stand-in of every tensor of the plan; tied names lead to the tensor that they are tied to."""
    places = slots_of(module)
    stored: Mapping[str, Any] = {item.name: item.name for item in plan.items} | dict(plan.aliases)
    out: dict[str, list[Slot]] = {}
    for name, own in model.own_names(stored).items():
        out.setdefault(stored[name], []).append(places[own])
    return out


def _kept(items: list[Item], count: int, device: torch.device) -> str:
    """How the task vectors are kept: as well as fits into a third of the free memory."""
    elements = sum(item.numel for item in items) * count
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if 4 * elements <= free / 3:
        return "float32"
    return "float16" if 2 * elements <= free / 3 else "nothing"

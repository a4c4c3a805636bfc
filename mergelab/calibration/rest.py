"""Gradients of single examples for parameters of any use: one ``vmap`` over the examples, or one example at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .inputs import Batch, leaves, mapped, take

Forward = Callable[[nn.Module, Any], Tensor]
#: Values of per-example gradients that are held at a time.
_AT_ONCE = 1 << 25


class _Call(nn.Module):
    """``forward(module, inputs)`` as a module, so that parameters can be given to it."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.module = module
        self.call = forward

    def forward(self, inputs: Any) -> Tensor:
        return self.call(self.module, inputs)


class Rest:
    """Gradients of the parameters ``names``, example by example."""

    def __init__(self, module: nn.Module, forward: Forward, names: list[str]) -> None:
        known = dict(module.named_parameters())
        self.names = names
        self._call = _Call(module, forward)
        self._values = {f"module.{name}": known[name].detach() for name in names}
        size = sum(value.numel() for value in self._values.values())
        self._at_once = max(1, _AT_ONCE // max(1, size))
        self.alone = ""  # why examples are taken one at a time
        self._tried = False

    def gradients(self, batch: Batch, cotangent: Tensor) -> Iterator[dict[str, Tensor]]:
        """name -> gradients [n, *shape] of ``sum(cotangent * logits)`` for n examples after the others."""
        for start in range(0, batch.size, self._at_once):
            places = torch.arange(start, min(batch.size, start + self._at_once))
            part, given = batch.take(places), cotangent[start : start + len(places)]
            found = None if self.alone else self._together(part, given)
            if found is None:
                for n in range(len(places)):
                    one = self._one(take(part.inputs, part.size, torch.tensor([n])), given[n : n + 1])
                    yield {name: value.unsqueeze(0) for name, value in one.items()}
            else:
                yield found

    def _together(self, batch: Batch, cotangent: Tensor) -> dict[str, Tensor] | None:
        """All examples in one pass; None where the model cannot be run so, or does not give the same."""
        size = batch.size
        apart = [t.ndim > 0 and len(t) == size for t in leaves(batch.inputs)]

        def score(values: dict[str, Tensor], tensors: list[Tensor], given: Tensor) -> Tensor:
            whole = iter([t.unsqueeze(0) if mine else t for t, mine in zip(tensors, apart, strict=True)])
            logits = functional_call(self._call, values, (mapped(batch.inputs, lambda _: next(whole)),))
            return (logits[0] * given).sum()

        dims = (None, [0 if mine else None for mine in apart], 0)
        try:
            with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
                warnings.simplefilter("ignore")  # of operations that run one by one
                found = vmap(grad(score), in_dims=dims)(self._values, leaves(batch.inputs), cotangent)
        except Exception as error:  # vmap refuses what depends on values, each operation in its own way
            self.alone = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
            return None
        found = {name.removeprefix("module."): value for name, value in found.items()}
        if not self._tried:
            one = self._one(take(batch.inputs, size, torch.tensor([0])), cotangent[:1])
            if not all(_close(found[name][0], one[name]) for name in self.names):
                self.alone = "vmap gave other gradients than autograd"
                return None
            self._tried = True
        return found

    def _one(self, inputs: Any, cotangent: Tensor) -> dict[str, Tensor]:
        values = {name: value.clone().requires_grad_() for name, value in self._values.items()}
        with torch.enable_grad():
            logits = functional_call(self._call, values, (inputs,))
            score = (logits * cotangent).sum()
        got = torch.autograd.grad(score, list(values.values()), allow_unused=True)
        pairs = zip(values.items(), got, strict=True)
        return {n.removeprefix("module."): torch.zeros_like(v) if g is None else g.detach() for (n, v), g in pairs}


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max()) if b.numel() else 0.0
    return not float((a - b).abs().max()) > 1e-3 * scale + 1e-12 if b.numel() else True

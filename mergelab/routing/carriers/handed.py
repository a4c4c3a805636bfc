"""What a module gets when it reads a tensor that differs by row: usable where the use is understood, else refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .active import CannotRoute, Pass
from .stacks import Matrix, Stack, Vector

_T = torch.Tensor
_ASKED = ("dtype", "device", "shape", "ndim", "requires_grad", "is_cuda", "is_meta", "layout", "is_leaf", "is_sparse",
          "is_quantized", "is_nested", "is_mps", "is_xpu", "itemsize", "nbytes")  # fmt: skip
#: What may be asked of the tensor without using its numbers.
_HARMLESS: set[Any] = {getattr(_T, name).__get__ for name in _ASKED} | {
    _T.size, _T.dim, _T.numel, _T.is_floating_point, torch.is_floating_point, _T.is_complex, _T.element_size, _T.stride,
    _T.__len__, _T.is_contiguous, _T.ndimension, torch.numel, _T.get_device, _T.is_inference, _T.__repr__,
}  # fmt: skip
_MATMUL = {_T.matmul, _T.__matmul__, torch.matmul, torch.mm, _T.mm}
_NAMES = {_T.view: "view", _T.reshape: "reshape", _T.to: "to"}


class Handed(Tensor):
    """Stands for a tensor of which every row has its own; any use that is not understood raises CannotRoute."""

    _name: str
    _stack: Stack | None
    _now: Pass
    _dim: int
    _rules: dict[str, Callable[..., Any]]

    @staticmethod
    def of(
        tensor: Tensor,
        name: str,
        stack: Stack | None,
        now: Pass,
        *,
        dim: int = 0,
        rules: dict[str, Callable[..., Any]] | None = None,
    ) -> Handed:
        """``rules``: what a method (view, to) of the tensor returns, for uses that are known."""
        out: Handed = Tensor._make_subclass(Handed, tensor.detach())  # type: ignore[assignment]
        out._name, out._stack, out._now, out._dim, out._rules = name, stack, now, dim, rules or {}
        return out

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _HARMLESS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _MATMUL and not kwargs and isinstance(args[1], Handed) and not isinstance(args[0], Handed):
            return _linear(args[0], args[1], flip=True)
        if func is F.linear and not isinstance(args[0], Handed):
            return _linear(*args, **kwargs)
        if args and isinstance(args[0], Handed) and func in _NAMES:
            rule = args[0]._rules.get(_NAMES[func])
            if rule is not None:
                return rule(*args[1:], **kwargs)
        every = [a for a in (*args, *kwargs.values()) if isinstance(a, Handed)]
        every += [b for a in args if isinstance(a, (list, tuple)) for b in a if isinstance(b, Handed)]
        raise _refusal(every[0], getattr(func, "__name__", str(func)))

    def _take(self, form: type[Any]) -> tuple[Any, Tensor, dict[str, Any]]:
        """The stack, the shared tensor as a plain one, and what a product has to know; notes that it takes part."""
        if not isinstance(self._stack, form):
            raise _refusal(self, "a product")
        self._now.tensors.add(self._name)
        with torch._C.DisableTorchFunctionSubclass():
            plain = self.as_subclass(Tensor)
        return self._stack, plain, {"now": self._now, "where": self._name, "dim": self._dim}


def _refusal(handed: Handed, what: str) -> CannotRoute:
    return CannotRoute(
        handed._name, f"the model's own code uses it in a way ({what}) that is not known to be right by row"
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, flip: bool = False) -> Tensor:
    """x times a matrix, plus a vector, of which one or both differ by row."""
    from .linear import product

    matrix = vector = None
    at: Any = {}
    if isinstance(weight, Handed):
        matrix, weight, at = weight._take(Matrix)
    if isinstance(bias, Handed):
        vector, bias, at = bias._take(Vector)
    return product(x, weight, bias, matrix=matrix, vector=vector, flip=flip, **at)

"""The places of a module whose weights' gradients follow from what goes in and what comes back.

A site is one use of a weight that is linear in it: a linear layer, GPT-2's Conv1D, a convolution seen as a linear map
of patches, the projections of fused attention, a layer norm's scale and shift, an embedding's rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LINEAR, CONV1D, CONV, NORM, EMBEDDING = "linear", "conv1d", "conv", "norm", "embedding"
#: Kinds of sites that have a Gram matrix (the same words as a block's layouts).
MAPS = (LINEAR, CONV1D, CONV)
SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(eq=False)
class Site:
    """One use of a weight. ``where``: the module's path; ``weight``, ``bias``: tensor names (None: not a parameter).

    ``own``: the weight's name in the module; ``part``, ``bias_part``: the rows of fused tensors that this site is
    about; ``parts``: equal slices of the output that stand for layers of their own. The rest is found out by the probe:
    how often it is called in a pass, along which dimension of its input the examples lie (None: they are not apart),
    how many rows each has there, which others take the very same input (their ``group``), and what is wrong with it.
    """

    where: str
    kind: str
    module: nn.Module
    weight: str | None
    bias: str | None
    own: str = "weight"
    part: slice | None = None
    bias_part: slice | None = None
    parts: int = 1
    calls: int = 0
    dim: int | None = None
    folded: int = 1
    group: int | None = None
    wrong: str = ""

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs of one row."""
        weight = self._weight()
        if self.kind == CONV1D:
            return int(weight.shape[0]), int(weight.shape[1])
        return int(weight[0].numel()), int(weight.shape[0])

    def _weight(self) -> Tensor:
        weight = getattr(self.module, self.own)
        return weight if self.part is None else weight[self.part]

    def rows_in(self, x: Tensor) -> Tensor:
        """The input with the examples first: [N, ..., in]; a convolution's patches [N, places, in]."""
        if self.kind == CONV:
            m: Any = self.module
            return F.unfold(x, m.kernel_size, m.dilation, _padding(m), m.stride).mT
        return self._examples_first(x)

    def rows_out(self, g: Tensor) -> Tensor:
        """The same for its output, or the gradient on it: [N, ..., out]."""
        return g.flatten(2).mT if self.kind == CONV else self._examples_first(g)

    def _examples_first(self, t: Tensor) -> Tensor:
        t = t.movedim(self.dim, 0) if self.dim else t
        return t.unflatten(0, (-1, self.folded)) if self.folded > 1 else t

    def expected(self, x: Tensor) -> Tensor:
        """What comes out if the module is what it looks like."""
        m: Any = self.module
        if self.kind == LINEAR:
            bias = m.in_proj_bias if isinstance(m, nn.MultiheadAttention) else m.bias
            bias = bias[self.bias_part] if bias is not None and self.bias_part is not None else bias
            return F.linear(x, self._weight(), bias)
        if self.kind == CONV1D:
            return x @ m.weight + m.bias
        if self.kind == CONV:
            return F.conv2d(x, m.weight, m.bias, m.stride, m.padding, m.dilation)
        if self.kind == NORM:
            return F.layer_norm(x, m.normalized_shape, m.weight, m.bias, m.eps)
        return F.embedding(x, m.weight)


def bias_rows(attention: nn.MultiheadAttention, projection: str) -> slice:
    """Which rows of ``in_proj_bias`` (and of ``in_proj_weight``) belong to one of SEPARATE."""
    place, width = SEPARATE.index(projection), attention.embed_dim
    return slice(place * width, (place + 1) * width)


@dataclass(frozen=True)
class Sites:
    """What was found: sites of hooked modules, sites of attention modules by their projection, and what is left out."""

    hooked: dict[nn.Module, Site]
    attention: dict[nn.MultiheadAttention, dict[str, Site]]
    skipped: dict[str, str]

    @property
    def all(self) -> list[Site]:
        return [*self.hooked.values(), *(site for sites in self.attention.values() for site in sites.values())]


def find(module: nn.Module) -> Sites:
    """Every site of a module. ``skipped``: linear layers that cannot be one, with the reason."""
    names = {id(p): name for name, p in module.named_parameters()}
    found = Sites({}, {}, {})
    for path, part in module.named_modules():
        if isinstance(part, nn.MultiheadAttention):
            _attention(part, path, names, found)
            continue
        kind = _kind(part)
        if kind is None:
            continue
        own: Any = part
        weight, bias = (names.get(id(getattr(own, key, None))) for key in ("weight", "bias"))
        reason = _unfit(own, kind, weight)
        if reason:
            if kind in (LINEAR, CONV1D):
                found.skipped[path] = reason
            continue
        found.hooked[part] = Site(path, kind, part, weight, bias)
    return found


def _kind(part: nn.Module) -> str | None:
    if isinstance(part, nn.Linear):
        return LINEAR
    if isinstance(part, nn.Conv2d):
        return CONV
    if isinstance(part, nn.LayerNorm):
        return NORM
    if isinstance(part, nn.Embedding):
        return EMBEDDING
    # transformers' own class, known by its name so that transformers need not be imported
    kinds = {(c.__module__, c.__name__) for c in type(part).__mro__}
    return CONV1D if ("transformers.pytorch_utils", "Conv1D") in kinds else None


def _unfit(part: Any, kind: str, weight: str | None) -> str:
    """Why a module cannot be a site; empty if it can."""
    if part.weight is None:
        return "it has no weight"
    if not part.weight.is_floating_point():
        return f"its weight is stored as {str(part.weight.dtype).removeprefix('torch.')}, not as real numbers"
    if weight is None:
        return "its weight is computed from other parameters"
    if kind == CONV and (part.groups != 1 or part.padding_mode != "zeros"):
        return "a convolution in groups, or padded with something else than zeros, is no linear map of patches"
    if kind == EMBEDDING and (part.max_norm is not None or part.scale_grad_by_freq):
        return "its rows are rescaled"
    return ""


def _padding(conv: Any) -> tuple[int, ...]:
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return tuple(conv.padding)


def _attention(part: nn.MultiheadAttention, path: str, names: dict[int, str], found: Sites) -> None:
    """The projections of fused attention: one of three parts where the inputs are the same, three otherwise."""
    if type(part).forward is not nn.MultiheadAttention.forward:
        found.skipped[path] = "it computes attention in a way of its own"
        return
    prefix = f"{path}." if path else ""
    bias = names.get(id(part.in_proj_bias))
    sites: dict[str, Site] = {}
    own = "in_proj_weight"
    if part.in_proj_weight is not None:
        fused = names.get(id(part.in_proj_weight))
        sites["fused"] = Site(f"{prefix}{own}", LINEAR, part, fused, bias, own, parts=3)
    for key in SEPARATE:
        rows = bias_rows(part, key)
        if part.in_proj_weight is None:
            weight = names.get(id(getattr(part, key)))
            sites[key] = Site(f"{prefix}{key}", LINEAR, part, weight, bias, key, bias_part=rows)
        else:
            sites[key] = Site(f"{prefix}{own}", LINEAR, part, fused, bias, own, part=rows, bias_part=rows)
    if any(site.weight is None for site in sites.values()):
        found.skipped[path] = "its weight is computed from other parameters"
        return
    found.attention[part] = sites


def version(t: Tensor) -> int:
    """How often a tensor was changed in place (inference tensors do not know)."""
    return 0 if t.is_inference() else t._version


def agrees(site: Site, x: Tensor, y: Tensor) -> bool:
    """Whether an output is what the site's weight makes of its input."""
    with torch.no_grad():
        expected = site.expected(x)
        if expected.shape != y.shape:
            return False
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        # what is not finite is found, and said, elsewhere
        return not (float((expected - y).abs().max()) > 1e-3 * scale + 1e-6) if expected.numel() else True

"""Small random models for the row pass, parts of all kinds for them, and the merge that a row must equal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mergelab.routing.parts import Dense, LowRank, Part, Sparse

KINDS = ("low", "dense", "sparse", "none")
Call = Callable[[nn.Module, slice], Tensor]


def jittered(module: nn.Module, size: float = 0.1) -> nn.Module:
    """In evaluation mode, every parameter moved at random so that biases, gains and tokens matter."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=draw))
    return module.eval()


def part(kind: str, delta: Tensor, rank: int) -> Part | None:
    if kind == "none":
        return None
    if kind == "low" and delta.ndim >= 2:
        u, s, v = torch.linalg.svd(delta.flatten(1), full_matrices=False)
        return LowRank(u[:, :rank], s[:rank], v[:rank], tuple(delta.shape))
    if kind == "sparse":
        places = (delta.flatten().abs() > delta.abs().median()).nonzero()[:, 0]
        return Sparse(places.int(), delta.flatten()[places], tuple(delta.shape))
    return Dense(delta)


def parts_for(
    module: nn.Module, tasks: int = 3, kinds: Sequence[str] = KINDS, size: float = 0.1, skip: Sequence[str] = ()
) -> list[dict[str, Part]]:
    """Parts of every floating-point tensor, kinds and ranks mixed over tensors and tasks."""
    draw = torch.Generator().manual_seed(2)
    named = [(n, t) for n, t in module.state_dict().items() if t.is_floating_point() and not n.endswith(tuple(skip))]
    out: list[dict[str, Part]] = []
    for task in range(tasks):
        found = {}
        for i, (name, tensor) in enumerate(named):
            delta = size * torch.randn(tensor.shape, generator=draw)
            found[name] = part(kinds[(3 * i + task) % len(kinds)], delta, 1 + 2 * task)
        out.append({n: p for n, p in found.items() if p is not None})
    return out


def mixtures(rows: int = 5, tasks: int = 3) -> Tensor:
    """Different for every row: soft, one-hot, zero, and one that neither is positive nor sums to 1."""
    w = torch.softmax(torch.randn(rows, tasks, generator=torch.Generator().manual_seed(3)), 1)
    w[1], w[2] = torch.eye(tasks)[0], torch.zeros(tasks)
    w[3] = 2 * torch.randn(tasks, generator=torch.Generator().manual_seed(4))
    return w


def merged(module: nn.Module, parts: Sequence[Mapping[str, Part]], row: Tensor) -> nn.Module:
    """A copy of the module with shared + sum_t w_t part_t, in float64 and plainly; a tied tensor is changed once."""
    out = copy.deepcopy(module)
    tensors = dict(out.named_parameters(remove_duplicate=False)) | dict(out.named_buffers())
    done = set()
    with torch.no_grad():
        for name in {n for p in parts for n in p}:
            tensor = tensors[name]
            if tensor.data_ptr() in done:
                continue
            done.add(tensor.data_ptr())
            change = sum(w.double() * p[name].dense().double() for w, p in zip(row, parts, strict=True) if name in p)
            tensor.copy_((tensor.double() + change).to(tensor.dtype))
    return out


def by_row(module: nn.Module, parts: Sequence[Mapping[str, Part]], w: Tensor, call: Call) -> Tensor:
    """Each row alone through its own merged model."""
    with torch.no_grad():
        return torch.cat([call(merged(module, parts, row), slice(i, i + 1)) for i, row in enumerate(w)])


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((a - b).abs().max() / b.abs().max())

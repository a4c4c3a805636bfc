"""Task Singular Vectors: low-rank parts of every task, made orthogonal to each other before they are added."""

from __future__ import annotations

import torch
from torch import Tensor

from ._kernels import delta, scale, weight, weighted_delta
from ._spectral import polar, top_directions
from .context import Context
from .declaration import Cost, Parameter, Promises, method

_ALWAYS_AVERAGED = ("text_projection",)
_EMBEDDINGS = ("embed_tokens", "token_embedding", "word_embeddings", "wte", "wpe", "position_embedding",
               "positional_embedding", "pos_embed")  # fmt: skip


def is_matrix(name: str, tensor: Tensor, embeddings: str) -> bool:
    """Whether a tensor is decomposed: at least two rows and columns once convolution kernels are [out, in·kh·kw]."""
    if tensor.ndim < 2 or tensor.shape[0] < 2 or tensor.numel() // tensor.shape[0] < 2:
        return False
    skipped = _ALWAYS_AVERAGED + (_EMBEDDINGS if embeddings == "average" else ())
    return not any(part in name for part in skipped)


def merge_matrices(taus: list[Tensor], weights: list[float]) -> Tensor:
    """U⊥·diag(S)·V⊥ᵀ from the leading max(1, ⌊r/T⌋) singular triples of each task's matrix [m, n], r = min(m, n)."""
    rank = max(1, min(taus[0].shape) // len(taus))
    triples = [top_directions(tau, rank) for tau in taus]
    s = torch.cat([s * weight for (_, s, _), weight in zip(triples, weights, strict=True)])
    if not len(s):
        return torch.zeros_like(taus[0])
    u = torch.cat([u for u, _, _ in triples], dim=1)
    v = torch.cat([v for _, _, v in triples], dim=1)
    return ((polar(u) * s) @ polar(v).T).to(taus[0].dtype).to(taus[0].device)


@method(
    name="tsv_m",
    title="TSV-Merge",
    group="spectral",
    summary="Keep each task's leading singular directions, make them orthogonal across tasks, add them up.",
    formula=r"\theta = \theta_0 + \lambda\, U_\perp\, \mathrm{diag}(S)\, V_\perp^\top,\quad "
    r"U = [U_1^{(k)} \cdots U_T^{(k)}],\; U_\perp = \mathrm{polar}(U),\; k = \lfloor r/T \rfloor",
    paper="Task Singular Vectors (Gargiulo et al., 2024)",
    url="https://arxiv.org/abs/2412.00081",
    doc="Each layer's change is nearly of low rank, so a share 1/T of its singular directions is kept per task, and the"
    " directions of all tasks are orthogonalised so that they interfere less. It is among the best methods without "
    "data for many experts of different tasks, with lambda 1. It takes a decomposition per matrix and expert, which"
    " is slow for large models, and vectors (biases, norms) are only averaged.",
    base="required",
    parameters=(
        scale(1.0, "Scales the merged task vector."),
        weight("Scales this model's singular values; its directions stay."),
        Parameter("embeddings", "choice", "decompose", ("decompose", "average"),
                  help="Whether token and position embeddings are decomposed as the paper does, or averaged."),
    ),
    promises=Promises(identity={}, zero={"lambda": 0.0}),
    cost=Cost(copies=4, copies_per_model=3, work=4, spectral=True),
)  # fmt: skip
def tsv_m(base: Tensor, experts: list[Tensor], *, context: Context, weight: list[float], embeddings: str) -> Tensor:
    """U⊥ΣV⊥ᵀ for matrices, mean(w_t τ_t) for the rest (Gargiulo et al., 2024, section 4)."""
    count = len(experts)
    if count == 1 or not is_matrix(context.name, base, embeddings):
        return weighted_delta(base, experts, [factor / count for factor in weight], context)
    taus = [delta(base, expert, context).flatten(1) for expert in experts]
    return merge_matrices(taus, weight).reshape(base.shape)

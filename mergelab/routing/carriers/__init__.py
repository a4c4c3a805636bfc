"""How modules of known kinds compute with weights that differ by row: one file a kind.

A kind is recognised by the very function that is its forward, so a subclass with a forward of its own is not mistaken
for it; tensors of modules that are not recognised are refused when they are read.
"""

from __future__ import annotations

from torch import nn

from .active import CannotRoute, Pass
from .attention import AttentionRows
from .bare import CLIPVisionEmbeddingsRows, Dinov2EmbeddingsRows, OpenClipRows, OpenClipVisionRows
from .conv import ConvRows
from .embedding import EmbeddingRows
from .linear import LinearRows, TransposedRows
from .norm import BatchNormRows, Elementwise, GroupNormRows, LayerNormRows, RMSNormRows
from .side import Bare, Carrier, Side, dress
from .stacks import Matrix, Stack, Vector

__all__ = ["Bare", "CannotRoute", "Carrier", "Elementwise", "Matrix", "Pass", "Side", "Stack", "Vector", "carrier_for",
           "dress"]  # fmt: skip

_BY_FORWARD: dict[str, type[Carrier]] = {
    "torch.nn.modules.linear.Linear.forward": LinearRows,
    "transformers.pytorch_utils.Conv1D.forward": TransposedRows,
    "torch.nn.modules.conv.Conv1d.forward": ConvRows,
    "torch.nn.modules.conv.Conv2d.forward": ConvRows,
    "torch.nn.modules.conv.Conv3d.forward": ConvRows,
    "torch.nn.modules.sparse.Embedding.forward": EmbeddingRows,
    "torch.nn.modules.normalization.LayerNorm.forward": LayerNormRows,
    "open_clip.transformer.LayerNorm.forward": LayerNormRows,
    "open_clip.transformer.LayerNormFp32.forward": LayerNormRows,
    "torch.nn.modules.normalization.RMSNorm.forward": RMSNormRows,
    "torch.nn.modules.normalization.GroupNorm.forward": GroupNormRows,
    "torch.nn.modules.batchnorm._BatchNorm.forward": BatchNormRows,
    "torch.nn.modules.activation.MultiheadAttention.forward": AttentionRows,
    "transformers.models.dinov2.modeling_dinov2.Dinov2Embeddings.forward": Dinov2EmbeddingsRows,
    "transformers.models.clip.modeling_clip.CLIPVisionEmbeddings.forward": CLIPVisionEmbeddingsRows,
    "open_clip.transformer.VisionTransformer.forward": OpenClipVisionRows,
    "open_clip.model.CLIP.forward": OpenClipRows,
}


def carrier_for(module: nn.Module) -> type[Carrier]:
    """The kind that carries this module's own tensors; :class:`Bare` (which refuses) if none is known to."""
    if "forward" in module.__dict__:
        return Bare
    forward = type(module).forward
    kind = _BY_FORWARD.get(f"{forward.__module__}.{forward.__qualname__}")
    if kind is not None:
        # a weight norm or another parametrisation computes the weight out of other tensors
        return kind if kind.needs <= module._parameters.keys() else Bare
    vectors = [p for p in module._parameters.values() if p is not None]
    simple = not module._modules and not module._buffers and bool(vectors)
    named = type(module).__name__.endswith(("Norm", "LayerScale"))
    return Elementwise if simple and named and all(p.ndim == 1 for p in vectors) else Bare

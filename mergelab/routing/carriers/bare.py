"""Known modules that read tensors of their own in the middle of their code, and what each is given by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .active import Pass
from .handed import Handed
from .side import Bare
from .stacks import Matrix, Vector


def _rows(module: Bare, key: str, tensor: Tensor, now: Pass) -> Tensor:
    """``[B, *shape]``."""
    stack = module._side.stacks[key]
    return stack.rows(tensor, now, 0, now.rows) if isinstance(stack, Matrix) else stack.rows(tensor, now)


def _leading(key: str) -> Callable[[Any, Tensor, Pass], Tensor]:
    """A tensor [1, ..., d] that is expanded or added over the batch: [B, ..., d]."""
    return lambda module, tensor, now: _rows(module, key, tensor, now).reshape(now.rows, *tensor.shape[1:])


def _between(key: str) -> Callable[[Any, Tensor, Pass], Tensor]:
    """A vector [d] or [1, d] that is expanded over batch and places: [B, 1, d]."""
    return lambda module, tensor, now: _rows(module, key, tensor, now).reshape(now.rows, 1, tensor.shape[-1])


def _added(key: str) -> Callable[[Any, Tensor, Pass], Handed]:
    """A table [N, d] that is brought to a dtype and added to [B, N, d], and may not be used otherwise."""

    def hand(module: Bare, tensor: Tensor, now: Pass) -> Handed:
        own = {"to": lambda *a, **k: _rows(module, key, tensor, now).to(*a, **k)}
        return Handed.of(tensor, module._side.names[key], None, now, rules=own)

    return hand


def _viewed(key: str) -> Callable[[Any, Tensor, Pass], Handed]:
    """A vector [d] that is viewed as [1, 1, d] before it is expanded over the batch."""

    def hand(module: Bare, tensor: Tensor, now: Pass) -> Handed:
        def view(*shape: Any) -> Tensor:
            sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
            if sizes != (1, 1, -1):
                return Handed.of(tensor, module._side.names[key], None, now).sum()  # refused, naming the tensor
            return _rows(module, key, tensor, now)[:, None]

        return Handed.of(tensor, module._side.names[key], None, now, rules={"view": view})

    return hand


class Dinov2EmbeddingsRows(Bare):
    """transformers' ``Dinov2Embeddings``; resizing position embeddings is linear, so that it is done for every part."""

    carries: ClassVar[frozenset[str]] = frozenset({"cls_token", "mask_token", "position_embeddings"})
    hands: ClassVar[dict[str, Callable[[Any, Tensor, Pass], Any]]] = {
        "cls_token": _leading("cls_token"),
        "mask_token": _between("mask_token"),
        "position_embeddings": lambda *read: read[1],  # as shared; the parts join in interpolate_pos_encoding
    }

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        me: Any = super()
        shared = me.interpolate_pos_encoding(embeddings, height, width)
        side = self._side
        stack = side.stacks.get("position_embeddings")
        now = side.now()
        if now is None or not isinstance(stack, Vector):
            return shared
        now.check(embeddings, side.names["position_embeddings"])
        picked = now.of(stack.tasks, stack.key, stack.values)
        parts = self._resized(stack, embeddings, height, width)
        return torch.addmm(shared.reshape(1, -1), picked, parts.flatten(1)).view(-1, *shared.shape[1:])

    def _resized(self, stack: Vector, embeddings: Tensor, height: int, width: int) -> Tensor:
        """The parts as the shared position embeddings are for this size; kept, a few sizes at most."""
        kept, size = self._side.extra, (height, width)
        parts = kept.get(size)
        if parts is None:
            base: Any = self._own
            probe = object.__new__(base)
            found = []
            with torch.inference_mode(False), torch.no_grad():
                like = torch.empty(1, embeddings.shape[1], embeddings.shape[2], device="meta")
                for value in stack.values:
                    probe.__dict__.update(self.__dict__)
                    probe.__dict__["_parameters"] = {**self._parameters, "position_embeddings": value}
                    found.append(base.interpolate_pos_encoding(probe, like, height, width)[0])
                parts = torch.stack(found)
            if len(kept) >= 4:
                kept.clear()
            kept[size] = parts
        return parts


class CLIPVisionEmbeddingsRows(Bare):
    """transformers' ``CLIPVisionEmbeddings``: ``class_embedding.expand(B, 1, -1)``."""

    carries: ClassVar[frozenset[str]] = frozenset({"class_embedding"})
    hands: ClassVar[dict[str, Callable[[Any, Tensor, Pass], Any]]] = {"class_embedding": _between("class_embedding")}


class OpenClipVisionRows(Bare):
    """OpenCLIP's ``VisionTransformer``; its ``proj`` only takes part in a product, which any handed matrix may."""

    carries: ClassVar[frozenset[str]] = frozenset({"class_embedding", "positional_embedding", "proj"})
    hands: ClassVar[dict[str, Callable[[Any, Tensor, Pass], Any]]] = {
        "class_embedding": _viewed("class_embedding"),
        "positional_embedding": _added("positional_embedding"),
    }


class OpenClipRows(Bare):
    """OpenCLIP's ``CLIP``: its text side's position embeddings and projection."""

    carries: ClassVar[frozenset[str]] = frozenset({"positional_embedding", "text_projection"})
    hands: ClassVar[dict[str, Callable[[Any, Tensor, Pass], Any]]] = {
        "positional_embedding": _added("positional_embedding")
    }

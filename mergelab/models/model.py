"""A model that can be run: pictures (and words) in, features out, weights exchangeable at any time.

Threads: the module's tensors are only ever *exchanged* (by reference, under a lock), never overwritten. ``encode``
notes the weights at its start and puts exactly these in place for each batch, so a ``load_state`` or another
``encode`` with other weights in another thread can run between two batches and never mixes into the result.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, TaskError
from ..progress import Progress, Stop, report
from .batches import batches, checked
from .family import Family, Tokenizer
from .preprocess import Preprocess
from .slots import slots_of

#: Pictures per batch unless told. Eight blocks of ViT-S/14 at 56 px take 6.9 ms of one core per picture at 64 and at
#: 128, 7.3 at 320; on two busy cores 128 is a tenth faster than either.
BATCH = 128
_SHOWN = 3


@dataclass(frozen=True)
class Weights:
    """Tensors that fit one model exactly (names, shapes, dtype, device); made by :meth:`Model.prepare`."""

    tensors: Mapping[str, Tensor]


class Model:
    """A family's module with its weights.

    ``module`` may be trained in place by one thread; everything else here is safe to call from several.
    """

    def __init__(
        self,
        family: Family,
        module: nn.Module,
        preprocess: Preprocess,
        *,
        config: Mapping[str, Any],
        name: str = "model",
        folder: Path | None = None,
    ) -> None:
        self._family = family
        self.family = family.name
        self.module = module.eval()
        self.preprocess = preprocess
        self.config = dict(config)
        self.name = name
        self.width = family.width(module)
        self.resolution = preprocess.resolution
        self._folder = folder
        self._tokenizer: Tokenizer | None = None
        self._lock = threading.RLock()
        self._slots = slots_of(module)
        self._by_canonical = {family.canonical(n): n for n in self._slots}

    # -- weights ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(iter(self.module.parameters())).device

    @property
    def weights(self) -> Weights:
        """The weights as they are now, by reference."""
        with self._lock:
            return Weights({n: slot.get() for n, slot in self._slots.items()})

    def prepare(self, state: Mapping[str, Tensor], name: str | None = None, *, copy: bool = False) -> Weights:
        """Check that ``state`` fits and bring it to the model's dtype and device.

        Tensors that already are so are taken by reference unless ``copy``: do not change them while they are in use.

        Raises :class:`~mergelab.errors.CheckpointError` that names the first tensors that are missing, unexpected or
        of another shape. float16, bfloat16 and float64 become the module's float32.
        """
        where = name or getattr(state, "name", None) or "The weights"
        matched = self._match(state, where)
        ready: dict[str, Tensor] = {}
        for own, theirs in matched.items():
            slot = self._slots[own]
            tensor = state[theirs] if theirs is not None else slot.get()
            if tuple(tensor.shape) != slot.shape:
                raise CheckpointError(_shape_error(where, str(theirs), tuple(tensor.shape), slot.shape, self))
            ready[own] = tensor.detach().to(device=self.device, dtype=slot.dtype, copy=copy)
        return Weights(ready)

    def load_state(self, state: Mapping[str, Tensor], *, copy: bool = True) -> None:
        """Take over new weights, strictly (see :meth:`prepare`).

        The tensors of ``state`` are copied; with ``copy=False`` those of the model's dtype and device are shared.
        """
        ready = self.prepare(state, copy=copy)
        with self._lock:
            for name, tensor in ready.tensors.items():
                self._slots[name].set(tensor)

    @property
    def image_tower(self) -> str | None:
        """Path within ``module`` of what pictures pass; None: all of it."""
        return self._family.image_tower(self.module)

    def own_names(self, names: Iterable[str]) -> dict[str, str]:
        """The module's spelling of tensor names as checkpoints may spell them; unknown names are left out."""
        canonical = {name: self._family.canonical(name) for name in names}
        return {name: self._by_canonical[c] for name, c in canonical.items() if c in self._by_canonical}

    @contextmanager
    def using(self, weights: Weights) -> Iterator[nn.Module]:
        """The module with ``weights`` in place, for this thread alone; the former ones are back afterwards."""
        with self._lock:
            former = {n: slot.get() for n, slot in self._slots.items()}
            training = self.module.training
            try:
                for name, tensor in weights.tensors.items():
                    self._slots[name].set(tensor)
                if training:
                    self.module.eval()
                yield self.module
            finally:
                for name, tensor in former.items():
                    self._slots[name].set(tensor)
                if training:
                    self.module.train()

    def _match(self, state: Mapping[str, Tensor], where: str) -> dict[str, str | None]:
        """Own tensor name -> the state's name for it; None keeps the own value (only where the family ignores it)."""
        theirs: dict[str, str] = {}
        for name in state:
            theirs[self._family.canonical(name)] = name
        missing = [c for c in self._by_canonical if c not in theirs and not self._family.ignores(c)]
        extra = [n for c, n in theirs.items() if c not in self._by_canonical and not self._family.ignores(c)]
        if missing or extra:
            parts = []
            if missing:
                parts.append(f"{len(missing)} missing ({_some(self._by_canonical[c] for c in missing)})")
            if extra:
                parts.append(f"{len(extra)} unexpected ({_some(extra)})")
            raise CheckpointError(
                f"{where} does not fit the {self._family.title} model of {self.name}: {', '.join(parts)} tensors. "
                "Take weights made from the same base."
            )
        return {own: theirs.get(c) for c, own in self._by_canonical.items()}

    # -- pictures --------------------------------------------------------------------------------------------------

    def encode(
        self,
        images: Tensor | np.ndarray,
        batch: int = BATCH,
        progress: Progress | None = None,
        stop: Stop | None = None,
        *,
        weights: Weights | None = None,
    ) -> Tensor:
        """Features float32 [N, width] on the CPU of uint8 pictures [N, H, W] (grey) or [N, H, W, 3].

        ``weights`` (from :meth:`prepare`) are used instead of the model's own for this call only.
        """
        return self.encode_many([images], batch, progress, stop, weights=weights)[0]

    def encode_many(
        self,
        groups: Sequence[Tensor | np.ndarray],
        batch: int = BATCH,
        progress: Progress | None = None,
        stop: Stop | None = None,
        *,
        weights: Weights | None = None,
    ) -> list[Tensor]:
        """:meth:`encode` for several sets of pictures (sizes may differ) in batches that run across the sets."""
        sets = [checked(group) for group in groups]
        weights = weights or self.weights
        out = [torch.empty(len(images), self.width) for images in sets]
        total, done = sum(map(len, sets)), 0
        for pieces in batches([len(images) for images in sets], batch):
            if stop is not None:
                stop.check()
            chunk = [sets[i][start:end] for i, start, end in pieces]
            features = self._run(chunk, weights)
            for i, start, end in pieces:
                out[i][start:end] = features[: end - start]
                features = features[end - start :]
                done += end - start
            report(progress, done, total, "Looking at pictures")
        return out

    def pixels(self, images: Tensor) -> Tensor:
        """Pictures uint8 [N, H, W] or [N, H, W, 3] as the module takes them: float32 [N, 3, R, R] on its device."""
        return self.preprocess(images.to(self.device)).expand(-1, 3, -1, -1)

    def through(self, module: nn.Module, pixels: Tensor) -> Tensor:
        """Features [N, width] of prepared pictures from a stand-in of the same kind as ``module``."""
        return self._family.image_features(module, pixels)

    def _run(self, chunk: list[Tensor], weights: Weights) -> Tensor:
        with self.using(weights) as module, torch.inference_mode():
            pixels = torch.cat([self.pixels(images) for images in chunk])
            features = self.through(module, pixels).float().cpu()
        if not torch.isfinite(features).all():
            raise CheckpointError(_not_finite(self.name, weights))
        return features

    # -- words -----------------------------------------------------------------------------------------------------

    @property
    def has_text(self) -> bool:
        """Whether words can be embedded next to pictures (the model has a text side and a tokenizer is known)."""
        return self._family.has_text(self.module) and self._words() is not None

    @property
    def logit_scale(self) -> float | None:
        """The log of the factor on cosines that CLIP trains (its zero-shot logits are exp(logit_scale) * cosine)."""
        value = self._family.logit_scale(self.module)
        return None if value is None else float(value.detach())

    def encode_text(self, texts: Sequence[str], batch: int = 256, *, weights: Weights | None = None) -> Tensor:
        """L2-normalised features float32 [N, width] on the CPU of sentences."""
        words = self._words() if self._family.has_text(self.module) else None
        if words is None:
            raise TaskError(
                f"{self.name} cannot embed words: it has no text side or no tokenizer for its vocabulary. "
                "Use trained heads or class means of features."
            )
        return self.encode_tokens(words(list(texts)), batch, weights=weights)

    def encode_tokens(self, tokens: Tensor, batch: int = 256, *, weights: Weights | None = None) -> Tensor:
        """:meth:`encode_text` after the tokenizer: token ids int64 [N, context]."""
        weights = weights or self.weights
        rows = []
        for part in tokens.split(batch):
            with self.using(weights) as module, torch.inference_mode():
                rows.append(self._family.text_features(module, part.to(self.device)).float().cpu())
        return F.normalize(torch.cat(rows), dim=-1)

    def _words(self) -> Tokenizer | None:
        if self._tokenizer is None:
            self._tokenizer = self._family.tokenizer(self.module, self._folder)
        return self._tokenizer


def _some(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(n[:120]) for n in names[:_SHOWN]) + more


def _shape_error(where: str, name: str, found: tuple[int, ...], expected: tuple[int, ...], model: Model) -> str:
    return (
        f"{where}: tensor {name[:120]!r} has the shape {list(found)}, the {model.family} model of {model.name} expects "
        f"{list(expected)}. Take weights made from the same base."
    )


def _not_finite(name: str, weights: Weights) -> str:
    for tensor_name, tensor in weights.tensors.items():
        if not torch.isfinite(tensor).all():
            return f"{name}: tensor {tensor_name!r} holds NaN or infinity, so the model gives no features."
    return f"{name} gives features that are NaN or infinite; its weights are too large."

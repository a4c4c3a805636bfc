"""An (IA)³ adapter's own vectors as a checkpoint, so that they are merged as they are and written as an adapter again.

(IA)³ (Liu et al. 2022, arXiv:2205.05638) multiplies activations by learned vectors. 1 changes nothing, so that the
task vector of such an expert is v - 1 and the base of a merge in this space is all ones. LoRA's factors have no such
view: B·A is what was learned, and (B, A) and (B·M, M⁻¹·A) are the same adapter, so averages of factors mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .adapters import AdapterCheckpoint
from .checkpoint import Checkpoint, MemoryCheckpoint
from .deltas import Adapter, scaled_layers
from .dtypes import nbytes_of
from .header import TensorInfo, shown
from .sources import load

if TYPE_CHECKING:
    import torch

#: How a vector is called in an adapter's file.
ENDING = ".ia3_l"
#: Settings that say what a vector is multiplied with; adapters that differ in them cannot be merged vector by vector.
_MEANING = ("feedforward_modules", "fan_in_fan_out")


class Vectors(Checkpoint):
    """The vectors of one (IA)³ adapter under their names in its file. They have the identity of the adapter they are
    of (``adapter``: with its base one full checkpoint), so that statistics of the one belong to the other."""

    def __init__(self, adapter: AdapterCheckpoint) -> None:
        self.adapter = adapter
        own = adapter.own
        super().__init__(adapter.name, adapter.source, own.infos, folder=adapter.folder, metadata=own.metadata)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        return self.adapter.own[info.name]

    def _fingerprint(self) -> str:
        return f"vectors of {self.adapter.content_hash}"

    def _identity(self) -> str:
        return self.adapter.weights_hash

    def layers(self) -> dict[str, tuple[str, bool]]:
        """Vector -> (the base's weight that it scales, whether that weight's inputs and not its outputs)."""
        whole = self.adapter
        return scaled_layers(Adapter(whole.base, whole.own, whole.settings, whole.name))

    def settings(self) -> dict[str, Any]:
        """The adapter's settings with its base as a source that :func:`load` finds on this machine."""
        settings = dict(self.adapter.settings)
        source = self.adapter.base.source
        if not source.startswith(("memory:", "hub:")):
            settings["base_model_name_or_path"] = source
        return settings

    def dense(self, vectors: Mapping[str, torch.Tensor]) -> AdapterCheckpoint:
        """The base with other ``vectors`` of the same names: the full weights that they make."""
        own = MemoryCheckpoint(vectors, name=self.name)
        return AdapterCheckpoint(self.adapter.base, own, self.adapter.settings, name="merged", source="memory:merged")

    def close(self) -> None:
        self.adapter.close()


class Ones(Checkpoint):
    """Vectors that change nothing, float32, called and shaped as those of ``like``: the base among (IA)³ vectors."""

    def __init__(self, like: Vectors) -> None:
        infos = {
            name: TensorInfo(name, "F32", info.shape, nbytes_of("F32", info.shape), "ones")
            for name, info in like.infos.items()
        }
        super().__init__("ones", like.adapter.base.source, infos)
        self.like = like

    def _read(self, info: TensorInfo) -> torch.Tensor:
        import torch

        return torch.ones(info.shape)


def adapter_vectors(source: str | Path | Checkpoint, *, base: Any = None) -> Vectors:
    """The vectors of an (IA)³ adapter, as a checkpoint of their own.

    ``source`` (and ``base``): as :func:`load` takes them. Raises CheckpointError for whole weights, for LoRA (whose
    factors are never merged one by one), and for adapters with tensors that are no such vectors.
    """
    found = load(source, base=base)
    if not isinstance(found, AdapterCheckpoint):
        raise CheckpointError(
            f"{found.name} is no adapter but whole weights, so it has no vectors of its own: leave out space 'adapter'."
        )
    kind = found.settings.get("peft_type")
    if kind != "IA3":
        raise CheckpointError(
            f"{found.name} is a {shown(kind)} adapter: its factors A and B cannot be merged or solved for one by one, "
            "as only their product means something. Leave out space 'adapter'; then the products are merged as dense "
            "weights."
        )
    for name, info in found.own.infos.items():
        if not name.endswith(ENDING) or math.prod(info.shape) != max(info.shape, default=1):
            raise CheckpointError(
                f"{found.name} has the tensor {shown(name)} beside its (IA)³ vectors, so that it is not all in them: "
                "leave out space 'adapter', and it is merged as dense weights."
            )
    return Vectors(found)


def same_space(vectors: Mapping[str, Vectors]) -> None:
    """Raise CheckpointError, naming two of the adapters, unless all stand on one base and multiply the same things."""
    (first, reference), *others = vectors.items()
    for name, other in others:
        for key in _MEANING:
            before, now = (_plain(one.adapter.settings.get(key)) for one in (reference, other))
            if before != now:
                raise CheckpointError(
                    f"The adapters {shown(first)} and {shown(name)} differ in {key} ({shown(before)} and "
                    f"{shown(now)}), so that their vectors multiply different things: merge them as dense weights."
                )
        ours, theirs = reference.adapter.base, other.adapter.base
        if ours.content_hash != theirs.content_hash and ours.weights_hash != theirs.weights_hash:
            raise CheckpointError(
                f"The adapters {shown(first)} and {shown(name)} stand on different bases, {shown(ours.source)} (hash "
                f"{ours.weights_hash[:12]}) and {shown(theirs.source)} ({theirs.weights_hash[:12]}): merge adapters of "
                "one base."
            )


def _plain(value: Any) -> Any:
    """A setting in one form: nothing is False, the order of a list does not matter."""
    return sorted(map(str, value)) if isinstance(value, (list, tuple, set)) else value or False

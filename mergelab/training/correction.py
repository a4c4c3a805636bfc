"""Representation Surgery's corrections: what they do to features, as heads, and on disk.

Yang et al. 2024 (arXiv 2402.02705): per task, after the merged encoder's final feature z, ẑ = z − U·relu(D·z) with D
[rank, width] and U [width, rank], then the task's head. The task must be known at inference: it chooses D and U.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import load
from ..checkpoints.whole import whole_file
from ..errors import CheckpointError, MergeLabError, TaskError
from ..tasks import Head
from .inputs import data_used

FORMAT = "mergelab-surgery/1"
KEY = "mergelab_surgery"
#: Shown wherever a corrected model is.
TASK_ID = "task id needed at inference"
_PARTS = {"down": ".surgery_down", "up": ".surgery_up"}


@dataclass(frozen=True, eq=False)
class Correction:
    """ẑ = z − U·relu(D·z): ``down`` D [rank, width], ``up`` U [width, rank], float32."""

    down: Tensor
    up: Tensor

    @classmethod
    def start(cls, width: int, rank: int, generator: torch.Generator | None = None) -> Correction:
        """The identity: U zero, D uniform as Kaiming's initialisation has it for a linear layer (±1/√width)."""
        bound = 1 / math.sqrt(width)
        return cls(torch.empty(rank, width).uniform_(-bound, bound, generator=generator), torch.zeros(width, rank))

    def __call__(self, features: Tensor) -> Tensor:
        """Corrected features [N, width]."""
        return features - torch.relu(features @ self.down.T) @ self.up.T


@dataclass(frozen=True, eq=False)
class SurgeryHead(Head):
    """A head that corrects the features of the merged model for its task before it scores them."""

    correction: Correction | None = None

    @classmethod
    def around(cls, head: Head, correction: Correction) -> SurgeryHead:
        """``head`` behind a correction; TaskError when they are of different widths."""
        if correction.down.shape[1] != head.width:
            raise TaskError(
                f"The correction is for features of width {correction.down.shape[1]}, the head takes {head.width}. "
                "Use the surgery of this merged model."
            )
        inner: dict[str, Any] = {one.name: getattr(head, one.name) for one in fields(Head)}
        return cls(**inner, correction=correction)

    def logits(self, features: Tensor) -> Tensor:
        """Class scores float32 [N, C] of the merged model's features [N, width]."""
        assert self.correction is not None
        return super().logits(self.correction(features.float()))


@dataclass(frozen=True, eq=False)
class Surgery:
    """The corrections of one merged model, by task, with where they come from and what they changed.

    ``weights_hash``: of the merged weights that they belong to. ``examples``: how many pictures of ``split`` each was
    fitted on. ``bias``: task -> mean absolute difference between merged and expert features: ``before`` and ``after``
    on the fitted pictures, ``held_out_before`` and ``held_out_after`` on ``held_out`` others of the split (left out
    where there are none).
    """

    corrections: Mapping[str, Correction]
    weights_hash: str
    width: int
    rank: int
    split: str = "val"
    examples: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    bias: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    suite: str = ""
    merged: str = ""
    seconds: float = 0.0

    @property
    def transductive(self) -> bool:
        """Whether the pictures were those that results are measured on."""
        return self.split == "test"

    @property
    def data_used(self) -> str:
        """In words: what was used, and that the task must be known."""
        return f"Representation Surgery on {data_used(self.examples, self.split)}; {TASK_ID}"

    def check(self, weights_hash: str, width: int, where: str = "the model") -> Surgery:
        """Itself if it belongs to these weights; CheckpointError with both hashes or widths otherwise."""
        if width != self.width:
            raise CheckpointError(
                f"The surgery corrects features of width {self.width}, {where} gives {width}; use the surgery of this "
                "merged model."
            )
        if weights_hash != self.weights_hash:
            raise CheckpointError(
                f"The surgery belongs to weights {self.weights_hash[:12]}, {where} has {weights_hash[:12]}; run "
                "`mergelab surgery` on this model."
            )
        return self

    def heads(self, heads: Mapping[str, Head]) -> dict[str, Head]:
        """``heads`` by task, behind their corrections; tasks without a correction keep theirs."""
        return {
            task: SurgeryHead.around(head, self.corrections[task]) if task in self.corrections else head
            for task, head in heads.items()
        }

    def header(self) -> dict[str, Any]:
        """Everything but the tensors, as plain data."""
        said = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "corrections"}
        return {"format": FORMAT, "tasks": list(self.corrections), **said}

    def write(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Store as one safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {
            task + ending: getattr(correction, part).contiguous()
            for task, correction in self.corrections.items()
            for part, ending in _PARTS.items()
        }
        with whole_file(path, overwrite=overwrite) as partial:
            save_file(tensors, partial, metadata={KEY: json.dumps(self.header())})
        return Path(path).expanduser().resolve()

    @classmethod
    def read(cls, path: str | Path) -> Surgery:
        """From :meth:`write`; CheckpointError says what a file lacks that is none or is damaged."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise CheckpointError(f"There is no surgery file {path.name}; make one with `mergelab surgery`.")
        try:
            with load(path) as stored:
                header = json.loads(stored.metadata.get(KEY, "null"))
                tensors = {name: stored[name].float() for name in stored}
        except MergeLabError as error:
            raise CheckpointError(f"The surgery {path.name} cannot be read: {error}") from None
        except ValueError:
            header, tensors = None, {}
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise CheckpointError(f"{path.name} is no surgery file of the format {FORMAT!r}; make it again.")
        return _checked(path.name, header, tensors)


def _checked(where: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Surgery:
    """A surgery from a file's header and tensors, which anybody may have written."""
    try:
        said = {one.name: header[one.name] for one in fields(Surgery) if one.name != "corrections"}
        tasks, width, rank = [str(task) for task in header["tasks"]], int(said["width"]), int(said["rank"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"The header of {where} is damaged ({error}); make it again.") from None
    corrections = {}
    for task in tasks:
        found = {part: tensors.get(task + ending) for part, ending in _PARTS.items()}
        for part, expected in (("down", (rank, width)), ("up", (width, rank))):
            tensor = found[part]
            shape = None if tensor is None else tuple(tensor.shape)
            if shape != expected:
                raise CheckpointError(
                    f"{where}: the {part} matrix of {task} is {list(shape) if shape else 'missing'}, "
                    f"{list(expected)} was expected; make it again."
                )
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{where}: the {part} matrix of {task} holds NaN or infinity; make it again.")
        corrections[task] = Correction(**found)  # type: ignore[arg-type]
    return Surgery(corrections, **said)

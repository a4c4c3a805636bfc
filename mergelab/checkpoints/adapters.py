"""PEFT adapters read with their base as one full checkpoint, tensor by tensor.

What an adapter does to each tensor is in ``deltas.py``; here is the checkpoint that applies it when a tensor is asked
for. Changed tensors are float32 whatever the base stores, so that a delta smaller than half precision resolves is not
lost before it is merged. Tensors that the adapter does not touch stay as the base stores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .deltas import Adapter, Change, changes
from .dtypes import nbytes_of
from .header import TensorInfo, load_json_object, shown
from .identity import adapter_hash
from .index import read_small
from .reader import MAX_CONFIG, FileCheckpoint
from .recognise import PICKLE_ADVICE

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
#: Settings that change what the stored factors mean, and why a dense delta cannot be had from them.
_REFUSED = {
    "use_dora": "DoRA rescales each row of the weight by a learned magnitude",
    "lora_bias": "its factors have biases of their own",
    "use_qalora": "QA-LoRA factors belong to grouped, quantised inputs",
    "use_bdlora": "its factors are block-diagonal",
    "alora_invocation_tokens": "it is active for some tokens only",
    "layer_replication": "it repeats layers that the base has once",
    "target_parameters": "it adapts parameters of expert layers that are not layers of their own",
    "trainable_token_indices": "it trains single rows of the embedding",
    "velora_config": "its factors are not plain matrices",
    "monteclora_config": "its factors are random",
    "kasa_config": "its factors are rescaled by singular values",
    "arrow_config": "it routes between several adapters",
    "megatron_config": "it is laid out for Megatron",
}
#: Initialisations that also change the base, so that base + B·A is not what was trained.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class AdapterCheckpoint(Checkpoint):
    """A base with a LoRA or (IA)³ adapter, seen as the full model that they make together.

    ``base`` is the checkpoint below, ``own`` the adapter's tensors as they are stored, ``settings`` its config,
    ``changed`` the names it changes.
    A tensor that the base ties to another is untied when the adapter changes one of the two: only that was trained.
    """

    def __init__(
        self, base: Checkpoint, adapter: Checkpoint, settings: Mapping[str, Any], *, name: str, source: str
    ) -> None:
        self.base, self.settings = base, dict(settings)
        self.own = adapter
        self._changes = changes(Adapter(base, adapter, settings, name))
        self.changed = frozenset(self._changes)
        aliases = {tied: own for tied, own in base.aliases.items() if not self.changed & {tied, own}}
        infos = {key: self._info(key, info) for key, info in base.infos.items()}
        for tied in base.aliases.keys() - aliases.keys():
            infos[tied] = self._info(tied, base.infos[base.aliases[tied]])
        for key in self._changes:
            if key not in infos:
                infos[key] = self._info(key, None)
        super().__init__(
            name,
            source,
            infos,
            aliases=aliases,
            config=base.config,
            folder=adapter.folder,
            metadata={key: text for key, text in base.metadata.items() if key not in base.aliases},
        )

    def _info(self, name: str, below: TensorInfo | None) -> TensorInfo:
        change: Change | None = self._changes.get(name)
        if change is None:
            assert below is not None
            return TensorInfo(name, below.dtype, below.shape, below.nbytes, below.origin)
        origin = f"{below.origin} {change.words}" if below else change.words
        return TensorInfo(name, change.dtype, change.shape, nbytes_of(change.dtype, change.shape), origin)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        change = self._changes.get(info.name)
        return self.base[info.name] if change is None else change.make()

    def _fingerprint(self) -> str:
        return f"{self.base.content_hash}+{self.own.content_hash}+{sorted(self.settings.items(), key=str)}"

    def _identity(self) -> str:
        return adapter_hash(self.base.weights_hash, self.own.weights_hash, self.settings)

    def close(self) -> None:
        self.base.close()
        self.own.close()


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The settings of an adapter folder. Raises CheckpointError for a kind that cannot be read as dense deltas."""
    where = f"{folder.name}/{CONFIG}"
    return check_settings(load_json_object(read_small(folder / CONFIG, MAX_CONFIG), where), folder.name)


def check_settings(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Refuse, with the reason, the adapters whose effect is not one dense change of each weight."""
    kind = settings.get("peft_type")
    if kind not in ("LORA", "IA3"):
        raise CheckpointError(
            f"{where} is a {shown(kind)} adapter; only LORA and IA3 adapters can be read as full weights."
        )
    for key, why in _REFUSED.items():
        if settings.get(key):
            raise CheckpointError(
                f"{where} is a LoRA adapter with {key}, which cannot be read as full weights: {why}. "
                "Merge it into its base with peft first."
            )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{where} was initialised with {shown(start)}, which also changes its base, so base + B·A is not the "
            "trained model. Convert it to a plain LoRA with peft first."
        )
    return settings


def open_adapter(folder: Path, base: Checkpoint, *, name: str, source: str) -> AdapterCheckpoint:
    """Read a PEFT adapter folder with its base."""
    settings = read_adapter_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").exists():
            raise CheckpointError(f"{folder.name} has only the pickle adapter_model.bin. {PICKLE_ADVICE}")
        raise CheckpointError(f"{folder.name} has {CONFIG} but no {WEIGHTS}: download or train it again.")
    adapter = FileCheckpoint({WEIGHTS: path}, name=name, source=source, folder=folder)
    return AdapterCheckpoint(base, adapter, settings, name=name, source=source)

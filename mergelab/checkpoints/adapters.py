"""PEFT adapters read with their base as one full checkpoint, tensor by tensor.

LoRA (Hu et al. 2022, arXiv:2106.09685, eq. 3): W' = W + s·B·A with s = alpha/r, or alpha/√r for rsLoRA (Kalajdzievski
2023, arXiv:2312.03732). (IA)³ (Liu et al. 2022, arXiv:2205.05638): rows of W and its bias, or columns of a feed-forward W,
times a learned vector. Computed in float32 and kept in float32, so that a delta smaller than half precision resolves is not
lost before it is merged. Tensors that the adapter does not touch stay as the base stores them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .dtypes import FLOATS, nbytes_of
from .header import TensorInfo, load_json_object, shown
from .index import read_small
from .reader import MAX_CONFIG, FileCheckpoint
from .recognise import PICKLE_ADVICE

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
#: Settings that change what the stored factors mean, and why a dense delta cannot be had from them.
_REFUSED = {
    "use_dora": "DoRA rescales each column by a learned magnitude",
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
_UNSAFE_PATTERN = re.compile(r"[)\]}*+][*+{?]|\\[1-9]|\(\?")

Make = "Callable[[torch.Tensor], torch.Tensor]"


@dataclass(frozen=True)
class _Change:
    """How one base tensor is changed: the new dtype and shape, a few words, and the function that makes it."""

    dtype: str
    shape: tuple[int, ...]
    words: str
    make: Callable[[], Any]


class AdapterCheckpoint(Checkpoint):
    """A base with a LoRA or (IA)³ adapter, seen as the full model that they make together."""

    def __init__(
        self, base: Checkpoint, adapter: Checkpoint, settings: Mapping[str, Any], *, name: str, source: str
    ) -> None:
        self._base, self._adapter = base, adapter
        self._changes = _changes(base, adapter, settings, name)
        infos = {key: self._changed(info) for key, info in base.infos.items()}
        for key, change in self._changes.items():
            if key not in infos:
                infos[key] = TensorInfo(
                    key, change.dtype, change.shape, nbytes_of(change.dtype, change.shape), change.words
                )
        super().__init__(
            name, source, infos, aliases=base.aliases, config=base.config, folder=adapter.folder, metadata=base.metadata
        )
        self.settings = dict(settings)

    @property
    def base(self) -> Checkpoint:
        """The checkpoint that the adapter sits on."""
        return self._base

    @property
    def changed(self) -> frozenset[str]:
        """Names of the tensors that the adapter changes or adds."""
        return frozenset(self._changes)

    def _changed(self, info: TensorInfo) -> TensorInfo:
        change = self._changes.get(info.name)
        if change is None:
            return info
        return TensorInfo(
            info.name,
            change.dtype,
            change.shape,
            nbytes_of(change.dtype, change.shape),
            f"{info.origin} {change.words}",
        )

    def _read(self, info: TensorInfo) -> torch.Tensor:
        change = self._changes.get(info.name)
        return self._base[info.name] if change is None else change.make()

    def _fingerprint(self) -> str:
        return f"{self._base.content_hash}+{self._adapter.content_hash}+{sorted(self.settings.items(), key=str)}"

    def close(self) -> None:
        self._base.close()
        self._adapter.close()


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The checked settings of an adapter folder. Raises CheckpointError for a kind that cannot be read as dense deltas."""
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
                f"{where} is a LoRA adapter with {key}, which MergeLab cannot read as full weights: {why}. Merge it into its base with peft first."
            )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{where} was initialised with {shown(start)}, which also changes its base, so base + B·A is not the trained "
            "model. Convert it to a plain LoRA with peft first."
        )
    return settings


def open_adapter(folder: Path, base: Checkpoint, *, name: str, source: str) -> AdapterCheckpoint:
    """Read a PEFT adapter folder with its base."""
    settings = read_adapter_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").exists():
            raise CheckpointError(
                f"{folder.name} has its adapter only as the pickle adapter_model.bin. {PICKLE_ADVICE}"
            )
        raise CheckpointError(f"{folder.name} has {CONFIG} but no {WEIGHTS}: download or train it again.")
    adapter = FileCheckpoint({WEIGHTS: path}, name=name, source=source, folder=folder)
    return AdapterCheckpoint(base, adapter, settings, name=name, source=source)


def _changes(base: Checkpoint, adapter: Checkpoint, settings: Mapping[str, Any], where: str) -> dict[str, _Change]:
    """What the adapter does to each base tensor; every tensor of the adapter must be used."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for key in adapter:
        module, part = _split_key(key)
        kind = {"A": "linear", "B": "linear", "EA": "embedding", "EB": "embedding", "L": "ia3"}.get(part, "whole")
        groups.setdefault((kind, module), {})[part] = key
    rename = _renaming(base, [_target(kind, module) for kind, module in groups], settings)
    out: dict[str, _Change] = {}
    lost: list[str] = []
    for (kind, module), keys in groups.items():
        target = rename(_target(kind, module))
        if kind == "whole":
            change = _whole(adapter, keys, base, target, module, settings, where)
        elif target in base:
            change = (_ia3 if kind == "ia3" else _lora)(base, adapter, settings, kind, module, target, keys, where)
        else:
            change = None
        if change is None:
            lost.extend(keys.values())
            continue
        out.update(change)
    if lost:
        raise CheckpointError(
            f"{where}: {len(lost)} tensors of the adapter match nothing in the base {base.name!r}, such as {shown(lost[0])}. "
            "It was trained on another base, or wraps it differently: check base=."
        )
    return out


def _split_key(key: str) -> tuple[str, str]:
    """``base_model.model.X.lora_A.weight`` -> (X, "A"); tensors saved whole -> (name, "W")."""
    name = key.removeprefix(_PREFIX)
    for ending, part in (
        (".lora_A.weight", "A"),
        (".lora_B.weight", "B"),
        (".lora_embedding_A", "EA"),
        (".lora_embedding_B", "EB"),
        (".ia3_l", "L"),
    ):
        if name.endswith(ending):
            return name.removesuffix(ending), part
    return name.replace(".base_layer.", ".").replace(".modules_to_save.", "."), "W"


def _target(kind: str, module: str) -> str:
    return module if kind == "whole" else f"{module}.weight"


def _renaming(base: Checkpoint, targets: list[str], settings: Mapping[str, Any]) -> Callable[[str], str]:
    """Adapter names to base names: the same, or with one leading part less or more (``dinov2.encoder…`` for
    ``encoder…``), as when an adapter was trained on a task model around the bare backbone. Only if that fits them all."""

    def identity(name: str) -> str:
        return name

    saved = settings.get("modules_to_save") or ()
    wanted = [name for name in targets if not _in_modules(name, saved)]
    if not wanted or any(name in base for name in wanted):
        return identity
    first = {name.partition(".")[0] for name in wanted}
    if len(first) == 1 and all(name.partition(".")[2] in base for name in wanted):
        head = first.pop() + "."
        return lambda name: name.removeprefix(head)
    heads = {key.removesuffix(wanted[0]) for key in base if key.endswith("." + wanted[0])}
    if len(heads) == 1:
        head = heads.pop()
        if all(head + name in base for name in wanted):
            return lambda name: head + name
    return identity


def _in_modules(name: str, modules: Any) -> bool:
    parts = name.split(".")
    return any(module in parts or name.rpartition(".")[0].endswith("." + str(module)) for module in modules)


def _whole(
    adapter: Checkpoint,
    keys: Mapping[str, str],
    base: Checkpoint,
    target: str,
    module: str,
    settings: Mapping[str, Any],
    where: str,
) -> dict[str, _Change] | None:
    """A tensor that was trained as a whole (modules_to_save, a bias): it replaces the base's, or is a new head."""
    info = adapter.infos[keys["W"]]
    if any(mark in module for mark in ("lora_", "ia3_", "trainable_tokens")):
        raise CheckpointError(
            f"{where}: the adapter's tensor {shown(keys['W'])} is of a kind MergeLab does not know; merge it with peft first."
        )
    if target in base:
        target = base.aliases.get(target, target)
        old = base.infos[target]
        if old.shape != info.shape:
            raise CheckpointError(
                f"{where}: the adapter replaces {shown(target)} with shape {list(info.shape)}, the base has {list(old.shape)}."
            )
    elif not _in_modules(module, settings.get("modules_to_save") or ()):
        return None
    return {
        target: _Change(info.dtype, info.shape, f"replaced by the adapter ({adapter.name})", lambda: adapter[info.name])
    }


def _lora(
    base: Checkpoint,
    adapter: Checkpoint,
    settings: Mapping[str, Any],
    kind: str,
    module: str,
    target: str,
    keys: Mapping[str, str],
    where: str,
) -> dict[str, _Change]:
    """W + s·B·A for linear layers, convolutions (A has the kernel, B is 1x1) and embeddings (transposed)."""
    embedding = kind == "embedding"
    names = ("EA", "EB") if embedding else ("A", "B")
    if set(keys) != set(names):
        raise CheckpointError(
            f"{where}: the adapter has only one of the two factors of {shown(module)}: download it again."
        )
    key_a, key_b = keys[names[0]], keys[names[1]]
    target, old = _stored(base, target, where)
    a, b = adapter.infos[key_a].shape, adapter.infos[key_b].shape
    transposed = embedding or bool(settings.get("fan_in_fan_out"))
    if len(a) < 2 or len(b) < 2 or a[0] != b[1] or any(size != 1 for size in b[2:]):
        raise CheckpointError(f"{where}: the factors of {shown(module)} do not fit: A {list(a)}, B {list(b)}.")
    result = (b[0], *a[1:])
    expected = old.shape[::-1] if transposed and len(old.shape) == 2 else old.shape
    if result != expected:
        raise CheckpointError(
            f"{where}: the adapter's change of {shown(target)} has shape {list(result)}, the base's tensor needs "
            f"{list(expected)}. It was trained on another base: check base=."
        )
    scale = scaling(settings, module, a[0], where)

    def make() -> torch.Tensor:
        delta = (adapter[key_b].float().flatten(1) @ adapter[key_a].float().flatten(1)) * scale
        delta = delta.T if transposed else delta.reshape(old.shape)
        return base[target].float() + delta

    return {target: _Change("F32", old.shape, f"+ {scale:g}·B·A (rank {a[0]}, {adapter.name})", make)}


def scaling(settings: Mapping[str, Any], module: str, rank: int, where: str) -> float:
    """alpha/r or, for rsLoRA, alpha/√r, with the module's own rank and alpha where a pattern gives them."""
    expected = _by_pattern(settings.get("rank_pattern"), module, settings.get("r"), where)
    alpha = _by_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha"), where)
    if expected != rank:
        raise CheckpointError(
            f"{where}: {shown(module)} has factors of rank {rank}, {CONFIG} says {shown(expected)}: download it again."
        )
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise CheckpointError(f"{where}: {CONFIG} has no usable lora_alpha for {shown(module)} (found {shown(alpha)}).")
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _by_pattern(patterns: Any, module: str, default: Any, where: str) -> Any:
    """The value of the first pattern (a regular expression for the end of the module's name, as peft matches)."""
    if not isinstance(patterns, Mapping):
        return default
    for pattern, value in patterns.items():
        if len(pattern) > 256 or _UNSAFE_PATTERN.search(pattern):
            raise CheckpointError(
                f"{where}: {CONFIG} has the pattern {shown(pattern)}, too involved to be matched safely."
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise CheckpointError(f"{where}: {CONFIG} has the pattern {shown(pattern)}, which is not valid.") from error
    return default


def _ia3(
    base: Checkpoint,
    adapter: Checkpoint,
    settings: Mapping[str, Any],
    kind: str,
    module: str,
    target: str,
    keys: Mapping[str, str],
    where: str,
) -> dict[str, _Change]:
    """Rows (outputs) times l, and the bias with them; for feed-forward modules columns (inputs) times l."""
    del kind
    key = keys["L"]
    target, old = _stored(base, target, where)
    feedforward = _matches(module, settings.get("feedforward_modules"), where)
    length = math.prod(adapter.infos[key].shape)
    axis = 1 if feedforward else 0
    if settings.get("fan_in_fan_out") and len(old.shape) == 2:
        axis = 1 - axis
    if len(old.shape) < 2 or old.shape[axis] != length:
        raise CheckpointError(
            f"{where}: the adapter scales {length} {'inputs' if feedforward else 'outputs'} of {shown(target)}, whose shape is {list(old.shape)}. "
            "It was trained on another base: check base=."
        )

    def make() -> torch.Tensor:
        shape = [1] * len(old.shape)
        shape[axis] = length
        return base[target].float() * adapter[key].float().reshape(shape)

    out = {target: _Change("F32", old.shape, f"x l ((IA)³, {adapter.name})", make)}
    bias = target.removesuffix("weight") + "bias"
    if not feedforward and bias in base:
        bias, bias_info = _stored(base, bias, where)
        out[bias] = _Change(
            "F32",
            bias_info.shape,
            f"x l ((IA)³, {adapter.name})",
            lambda: base[bias].float() * adapter[key].float().reshape(bias_info.shape),
        )
    return out


def _matches(module: str, modules: Any, where: str) -> bool:
    """As peft matches ``target_modules``: a string is a pattern for the whole name, a list holds names or their ends."""
    if not modules:
        return False
    if isinstance(modules, str):
        return _by_pattern({modules: True}, module, False, where) is True
    return any(module == name or module.endswith(f".{name}") for name in modules)


def _stored(base: Checkpoint, target: str, where: str) -> tuple[str, TensorInfo]:
    """The stored name behind a target, and its info; only floating-point tensors can be changed."""
    name = base.aliases.get(target, target)
    info = base.infos[name]
    if info.dtype not in FLOATS:
        raise CheckpointError(
            f"{where}: the adapter changes {shown(name)}, which the base stores as {info.dtype}; use an unquantised base."
        )
    return name, info

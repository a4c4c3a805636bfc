"""What a PEFT adapter does to each tensor of its base, in float32.

LoRA (Hu et al. 2022, arXiv:2106.09685, section 4.1): W' = W + s·B·A with s = alpha/r, or alpha/√r for rsLoRA
(Kalajdzievski 2023, arXiv:2312.03732). (IA)³ (Liu et al. 2022, arXiv:2205.05638): the rows of W and its bias, or the
columns of a feed-forward W, times a learned vector. Names and patterns are matched as ``peft`` does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .dtypes import FLOATS
from .header import TensorInfo, shown

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
#: Patterns come from strangers: repeated groups, back-references and the like can take forever to match.
_UNSAFE_PATTERN = re.compile(r"[)\]}*+?][*+{]|\\[1-9]|\(\?")
_ATTENTION = [
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
]
#: How vision transformers name layers in files (older versions of transformers: in models too), and in models now.
_SPELLINGS: list[list[tuple[str, str]]] = [
    _ATTENTION,
    [*_ATTENTION, ("encoder.layer.", "layers."), ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2")],
]
#: ending of an adapter tensor's name -> (kind of change, its part in it)
_ENDINGS = {
    ".lora_A.weight": ("linear", "A"),
    ".lora_B.weight": ("linear", "B"),
    ".lora_embedding_A": ("embedding", "A"),
    ".lora_embedding_B": ("embedding", "B"),
    ".ia3_l": ("ia3", "L"),
}


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors and settings with the base it sits on; ``name`` is how messages call it."""

    base: Checkpoint
    tensors: Checkpoint
    settings: Mapping[str, Any]
    name: str

    def stored(self, target: str) -> TensorInfo:
        """The base's tensor behind a name; only floating-point tensors can be changed."""
        info = self.base.infos[self.base.aliases.get(target, target)]
        if info.dtype not in FLOATS:
            raise self.error(
                f"it changes {shown(target)}, which the base stores as {info.dtype}; use an unquantised base"
            )
        return info

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"The adapter {self.name} cannot be used: {problem}.")


@dataclass(frozen=True)
class Change:
    """How one base tensor is changed: its new dtype and shape, a few words, and the function that makes it."""

    dtype: str
    shape: tuple[int, ...]
    words: str
    make: Callable[[], torch.Tensor]


Changes: TypeAlias = dict[str, Change]


def changes(adapter: Adapter) -> Changes:
    """Base tensor name -> its change. Every tensor of the adapter must be used, or CheckpointError names one."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for key in adapter.tensors:
        kind, module, part = _split_key(key)
        groups.setdefault((kind, module), {})[part] = key
    rename = _renaming(adapter, [_target(kind, module) for kind, module in groups])
    makers = {"linear": _lora, "embedding": _lora, "ia3": _ia3, "whole": _whole}
    out: Changes = {}
    lost: list[str] = []
    for (kind, module), keys in groups.items():
        target = rename(_target(kind, module))
        if target in adapter.base or (kind == "whole" and _is_saved(adapter, module)):
            out.update(makers[kind](adapter, kind, module, target, keys))
        else:
            lost.extend(keys.values())
    if lost:
        raise adapter.error(
            f"{len(lost)} of its {len(adapter.tensors)} tensors match nothing in the base {adapter.base.name!r}, such "
            f"as {shown(lost[0])}; it was trained on another base, so check base="
        )
    return out


def scaled_layers(adapter: Adapter) -> dict[str, tuple[str, bool]]:
    """(IA)³ vector's name -> (the base's weight that it scales, whether it scales that weight's inputs)."""
    modules = {key: _split_key(key)[1] for key in adapter.tensors if _split_key(key)[0] == "ia3"}
    rename = _renaming(adapter, [_target("ia3", module) for module in modules.values()])
    return {key: (rename(_target("ia3", module)), _is_feedforward(adapter, module)) for key, module in modules.items()}


def _split_key(key: str) -> tuple[str, str, str]:
    """``base_model.model.X.lora_A.weight`` -> ("linear", X, "A"); tensors saved whole -> ("whole", name, "W")."""
    name = key.removeprefix(_PREFIX)
    for ending, (kind, part) in _ENDINGS.items():
        if name.endswith(ending):
            return kind, name.removesuffix(ending), part
    return "whole", name.replace(".base_layer.", ".").replace(".modules_to_save.", "."), "W"


def _target(kind: str, module: str) -> str:
    return module if kind == "whole" else f"{module}.weight"


def _renaming(adapter: Adapter, targets: list[str]) -> Callable[[str], str]:
    """Adapter names to base names: the first way of writing them that fits them all, else as they are.

    An adapter names a model's layers; files may name them otherwise: by an older spelling (which transformers keeps
    when it saves), and with a leading part less or more (``dinov2.encoder…`` on a task model, ``encoder…`` on its
    backbone).
    """
    wanted = [name for name in targets if not _is_saved(adapter, name)]
    ways: list[Callable[[str], str]] = [lambda name: name]
    ways += [partial(_respelled, pairs) for table in _SPELLINGS for pairs in (table, [pair[::-1] for pair in table])]
    for spell in ways if wanted else ():
        names = [spell(name) for name in wanted]
        if all(name in adapter.base for name in names):
            return spell
        less = names[0].partition(".")[0] + "."
        if all(name.startswith(less) and name.removeprefix(less) in adapter.base for name in names):
            return lambda name, spell=spell, less=less: spell(name).removeprefix(less)  # type: ignore[misc]
        more = next((key.removesuffix(names[0]) for key in adapter.base if key.endswith("." + names[0])), "")
        if more and all(more + name in adapter.base for name in names):
            return lambda name, spell=spell, more=more: more + spell(name)  # type: ignore[misc]
    return ways[0]


def _respelled(pairs: Sequence[tuple[str, str]], name: str) -> str:
    for theirs, ours in pairs:
        name = name.replace(theirs, ours)
    return name


def _is_saved(adapter: Adapter, name: str) -> bool:
    """Whether a tensor is of a module that was trained as a whole beside the adapter."""
    modules = adapter.settings.get("modules_to_save")
    module = name.rpartition(".")[0]
    return isinstance(modules, list) and any(
        f".{module}.".find(f".{saved}.") >= 0 for saved in modules if isinstance(saved, str) and saved
    )


def _whole(adapter: Adapter, _kind: str, module: str, target: str, keys: Mapping[str, str]) -> Changes:
    """A tensor that was trained as a whole (modules_to_save, a bias): it replaces the base's, or is a new head."""
    info = adapter.tensors.infos[keys["W"]]
    if any(mark in module for mark in ("lora_", "ia3_", "trainable_tokens")):
        raise adapter.error(
            f"its tensor {shown(keys['W'])} is of an unknown kind; merge it into its base with peft first"
        )
    if target in adapter.base and adapter.stored(target).shape != info.shape:
        raise adapter.error(
            f"it replaces {shown(target)} by one of shape {list(info.shape)}, and the base has "
            f"{list(adapter.stored(target).shape)}"
        )
    words = f"replaced by {adapter.name}" if target in adapter.base else f"added by {adapter.name}"
    return {target: Change(info.dtype, info.shape, words, lambda: adapter.tensors[info.name])}


def _lora(adapter: Adapter, kind: str, module: str, target: str, keys: Mapping[str, str]) -> Changes:
    """W + s·B·A for linear layers, convolutions (A has the kernel, B is 1x1) and embeddings (transposed)."""
    if set(keys) != {"A", "B"}:
        raise adapter.error(f"it has only one of the two factors of {shown(module)}; download it again")
    old = adapter.stored(target)
    a, b = (adapter.tensors.infos[keys[part]].shape for part in "AB")
    transposed = kind == "embedding" or (bool(adapter.settings.get("fan_in_fan_out")) and len(old.shape) == 2)
    if len(a) < 2 or len(b) < 2 or a[0] != b[1] or any(size != 1 for size in b[2:]):
        raise adapter.error(f"its factors of {shown(module)} do not fit together: A {list(a)}, B {list(b)}")
    result, expected = (b[0], *a[1:]), old.shape[::-1] if transposed else old.shape
    if result != expected:
        raise adapter.error(
            f"its change of {shown(target)} has shape {list(result)}, and the base needs {list(expected)}; "
            "it was trained on another base, so check base="
        )
    scale = scaling(adapter, module, a[0])

    def make() -> torch.Tensor:
        left, right = adapter.tensors[keys["B"]].float().flatten(1), adapter.tensors[keys["A"]].float().flatten(1)
        delta = (left @ right).mul_(scale)
        delta = delta.T.contiguous() if transposed else delta.reshape(old.shape)
        return delta.add_(adapter.base[target])  # in float32, as delta is

    return {target: Change("F32", old.shape, f"+ {scale:g}·B·A (rank {a[0]}, {adapter.name})", make)}


def scaling(adapter: Adapter, module: str, rank: int) -> float:
    """alpha/r or, for rsLoRA, alpha/√r, with the module's own rank and alpha where a pattern gives them."""
    settings = adapter.settings
    expected = _by_pattern(adapter, "rank_pattern", module, settings.get("r"))
    alpha = _by_pattern(adapter, "alpha_pattern", module, settings.get("lora_alpha"))
    if expected != rank or not rank:
        raise adapter.error(f"{shown(module)} has factors of rank {rank}, and its config says {shown(expected)}")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise adapter.error(f"its config has no usable lora_alpha for {shown(module)} (found {shown(alpha)})")
    return float(alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank)


def _by_pattern(adapter: Adapter, setting: str, module: str, default: Any) -> Any:
    """The value of the first pattern that fits the module's name or its end, as peft matches them."""
    patterns = adapter.settings.get(setting)
    for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
        if _fits(adapter, rf"(.*\.)?({_safe(adapter, pattern)})$", module):
            return value
    return default


def _safe(adapter: Adapter, pattern: str) -> str:
    if len(pattern) > 2000 or _UNSAFE_PATTERN.search(pattern) or sum(map(pattern.count, "*+{")) > 3:
        raise adapter.error(f"its config has the pattern {shown(pattern)}, too involved to be matched safely")
    return pattern


def _fits(adapter: Adapter, pattern: str, module: str) -> bool:
    try:
        return re.match(pattern, module) is not None
    except re.error as error:
        raise adapter.error(f"its config has the pattern {shown(pattern)}, which is not valid") from error


def _ia3(adapter: Adapter, _kind: str, module: str, target: str, keys: Mapping[str, str]) -> Changes:
    """Rows (outputs) times l, and the bias with them; for feed-forward modules columns (inputs) times l."""
    old, key = adapter.stored(target), keys["L"]
    feedforward = _is_feedforward(adapter, module)
    length = math.prod(adapter.tensors.infos[key].shape)
    axis = 1 if feedforward else 0
    if adapter.settings.get("fan_in_fan_out") and len(old.shape) == 2:
        axis = 1 - axis
    if len(old.shape) < 2 or old.shape[axis] != length:
        raise adapter.error(
            f"it scales {length} {'inputs' if feedforward else 'outputs'} of {shown(target)}, whose shape is "
            f"{list(old.shape)}; it was trained on another base, so check base="
        )
    words = f"x l ((IA)³, {adapter.name})"

    def scaled(name: str, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
        return lambda: adapter.base[name].float() * adapter.tensors[key].float().reshape(shape)

    sides = tuple(length if i == axis else 1 for i in range(len(old.shape)))
    out = {target: Change("F32", old.shape, words, scaled(target, sides))}
    bias = target.removesuffix("weight") + "bias"
    if not feedforward and bias in adapter.base:
        out[bias] = Change("F32", adapter.stored(bias).shape, words, scaled(bias, (length,)))
    return out


def _is_feedforward(adapter: Adapter, module: str) -> bool:
    """As peft decides it: a string is a pattern for the whole name, a list holds names or their ends."""
    modules = adapter.settings.get("feedforward_modules")
    if isinstance(modules, str):
        return _fits(adapter, rf"(?:{_safe(adapter, modules)})\Z", module)
    return isinstance(modules, list) and any(module == name or module.endswith(f".{name}") for name in modules)

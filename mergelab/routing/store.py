"""A routed model as a folder: written whole or not at all, checked from end to end when it is read.

::

    routed.json                    names, gate, what the router and heads are, how it was built, sha256 of every file
    shared/                        an ordinary model folder: config.json, preprocessor_config.json, model.safetensors
    exclusive/<task>.safetensors   "<tensor>/u", "/s", "/v" | "<tensor>/delta" | "<tensor>/places", "/values"
    heads/<task>.safetensors       weight, bias, projection
    router.safetensors             what the router learnt (early_router.safetensors: the one on an early layer)

Exclusive parts and routers belong to one shared model; its sha256 stands in each of their headers, and a folder in
which they differ is refused as stale. Factors stay factors: nothing is multiplied out on the way in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import __version__
from ..checkpoints import dtype_code, write
from ..checkpoints.shards import Plan, ShardWriter, write_file
from ..checkpoints.whole import whole_folder
from ..errors import RoutingError
from .card import export_card
from .hashes import file_hash, tensors_hash
from .layout import EARLY, EXCLUSIVE, FORMAT, HEADS, MANIFEST, ROUTER, SHARED, file_names
from .parts import Dense, LowRank, Part
from .routed import RoutedModel
from .stored import open_routed

if TYPE_CHECKING:
    from .routers import Router


def save(
    routed: RoutedModel,
    folder: str | Path,
    *,
    overwrite: bool = False,
    files: Mapping[str, bytes | str] | None = None,
) -> Path:
    """Write a routed model to ``folder`` and return it; all or nothing.

    ``files``: further small files for the shared model's folder (a tokenizer's), by bare name. Raises CheckpointError
    when the folder holds something already (unless ``overwrite``) or the disk is full, RoutingError for a router that
    was trained for another shared model.
    """
    shared = tensors_hash(routed.shared, routed.aliases)
    about = {key: _about(router, shared, key) for key, router in
             ((ROUTER, routed.router), (EARLY, routed.early_router)) if router is not None}  # fmt: skip
    with whole_folder(folder, overwrite=overwrite, need=routed.bytes()["total"], verify=open_routed) as place:
        _write_shared(routed, place / SHARED, files)
        plain = file_names(routed.names)
        listed: dict[str, str | None] = {}
        for task in routed.names:
            stored = {key: t for name, part in routed.parts[task].items() for key, t in _tensors(name, part)}
            shapes = {name: list(part.shape) for name, part in routed.parts[task].items()}
            said = {"format": FORMAT, "task": task, "shared": shared, "shapes": json.dumps(shapes)}
            listed[task] = _write(place, f"{EXCLUSIVE}/{plain[task]}", stored, said)
        heads = {}
        for task, head in routed.heads.items():
            tensors = {"weight": head.weight, "bias": head.bias, "projection": head.projection}
            stored = {name: tensor for name, tensor in tensors.items() if tensor is not None}
            file = _write(place, f"{HEADS}/{plain[task]}", stored, {"format": FORMAT, "task": task})
            heads[task] = {"file": file, "scale": head.scale, "normalize": head.normalize, "kind": head.kind}
        for key, router in ((ROUTER, routed.router), (EARLY, routed.early_router)):
            if router is not None:
                _write(place, f"{key}.safetensors", router.state(), {"format": FORMAT, "shared": shared})
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "names": list(routed.names),
            "shared": shared,
            "exclusive": listed,
            "heads": heads,
            "routers": about,
            "early_layer": routed.early_layer,
            "gate": routed.gate.to_dict(),
            "settings": dict(routed.settings),
            "hashes": _hashes(place),
        }
        write_file(place / MANIFEST, _json(manifest))
    return Path(folder).expanduser().resolve()


def load_routed(folder: str | Path) -> RoutedModel:
    """The routed model in a folder, with its factors as they are stored.

    Nothing in the folder is trusted: no pickles, no links, nothing outside it; every shape, number and hash is checked.
    Raises RoutingError (or CheckpointError) that names the file and says what to do; "stale" is a router or a part that
    was made for another shared model.
    """
    return open_routed(Path(folder).expanduser(), whole=True)


def export(
    routed: RoutedModel,
    weights: Sequence[float] | Tensor,
    folder: str | Path,
    *,
    overwrite: bool = False,
    files: Mapping[str, bytes | str] | None = None,
) -> Path:
    """Merge once for fixed ``weights`` ``[T]`` and write an ordinary checkpoint folder; its card says the weights.

    Tensors have the shared model's dtypes. Heads are not part of it.
    """
    state = routed.state(weights)
    stored = {n: state[n].to(t.dtype) for n, t in routed.shared.items() if n not in routed.aliases}
    given = [float(w) for w in (weights.tolist() if isinstance(weights, Tensor) else weights)]
    extra: dict[str, bytes | str] = {**_preprocessor(routed), **(files or {})}
    extra["README.md"] = export_card(routed, given)
    said = dict(zip(routed.names, given, strict=True))
    metadata = {**routed.aliases, "mergelab": __version__, "mergelab_weights": json.dumps(said)}
    return write(folder, stored.items(), _plan(stored), config=dict(routed.config) or None, files=extra,
                 metadata=metadata, overwrite=overwrite)  # fmt: skip


def content_hash(routed: RoutedModel) -> str:
    """SHA-256 (hex) of everything that decides what a routed model answers."""
    digest = hashlib.sha256(f"{list(routed.names)}{tensors_hash(routed.shared, routed.aliases)}".encode())
    for task in routed.names:
        digest.update(tensors_hash(dict(kv for n, p in routed.parts[task].items() for kv in _tensors(n, p))).encode())
        head = routed.heads.get(task)
        if head is not None:
            tensors = {"weight": head.weight, "bias": head.bias, "projection": head.projection}
            stored = {name: tensor for name, tensor in tensors.items() if tensor is not None}
            digest.update(f"{tensors_hash(stored)}{head.scale}{head.normalize}".encode())
    for router in (routed.router, routed.early_router):
        digest.update(b"-" if router is None else f"{router.kind}{tensors_hash(router.state())}".encode())
    digest.update(json.dumps([routed.gate.to_dict(), routed.early_layer]).encode())
    return digest.hexdigest()


def _tensors(name: str, part: Part) -> list[tuple[str, Tensor]]:
    if isinstance(part, LowRank):
        return [(f"{name}/u", part.u), (f"{name}/s", part.s), (f"{name}/v", part.v)]
    if isinstance(part, Dense):
        return [(f"{name}/delta", part.delta)]
    return [(f"{name}/places", part.places), (f"{name}/values", part.values)]


def _write_shared(routed: RoutedModel, folder: Path, files: Mapping[str, bytes | str] | None) -> None:
    stored = {name: tensor for name, tensor in routed.shared.items() if name not in routed.aliases}
    write(folder, stored.items(), _plan(stored), config=dict(routed.config) or None,
          files={**_preprocessor(routed), **(files or {})}, metadata=dict(routed.aliases))  # fmt: skip


def _preprocessor(routed: RoutedModel) -> dict[str, bytes | str]:
    if routed.preprocessor is None:
        return {}
    return {"preprocessor_config.json": json.dumps(dict(routed.preprocessor), indent=2) + "\n"}


def _write(place: Path, file: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str | None:
    """One safetensors file, flushed; None and no file where there is nothing to store."""
    if not tensors:
        return None
    path = place / file
    path.parent.mkdir(exist_ok=True)
    ShardWriter(path.parent, _plan(tensors), {path.name: list(tensors)}, metadata).write(tensors.items())
    return file


def _plan(tensors: Mapping[str, Tensor]) -> Plan:
    return {name: (dtype_code(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}


def _hashes(place: Path) -> dict[str, str]:
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): file_hash(path) for path in files}


def _about(router: Router, shared: str, where: str) -> dict[str, Any]:
    about = dict(router.about())
    if about.get("shared") not in (shared, "", None):
        raise RoutingError(
            f"The {where.replace('_', ' ')} was trained for another shared model, so it is stale; train it on the "
            "features of this one."
        )
    return {**about, "shared": shared}


def _json(manifest: Mapping[str, Any]) -> str:
    try:
        return json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise RoutingError(f"The routed model's settings are no plain JSON data: {error}.") from None


__all__ = ["content_hash", "export", "load_routed", "save"]

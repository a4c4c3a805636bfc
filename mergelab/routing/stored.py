"""Reading a routed model's folder. Everything in it may have been written by anybody."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import FLOATS
from ..checkpoints.header import shown
from ..checkpoints.reader import FileCheckpoint, open_folder, refuse_partial
from ..errors import MergeLabError, RoutingError
from ..models.build import saved_preprocess
from ..tasks import Head
from .decompose import matrix_shape
from .gate import Gate
from .hashes import file_hash, tensors_hash
from .layout import EARLY, MANIFEST, ROUTER, SHARED, place_of, read_manifest
from .parts import Dense, Exclusive, LowRank, Part, Sparse
from .recipe import TwinRecipe
from .routed import RoutedModel
from .routers import Router, router_from

_FORMS = (("delta",), ("places", "values"), ("s", "u", "v"))


def open_routed(folder: Path, whole: bool = False) -> RoutedModel:
    """The routed model in ``folder``. Without ``whole``, file hashes are not computed (it was written just now)."""
    if not folder.is_dir():
        raise RoutingError(f"There is no folder {str(folder)[:200]!r} with a routed model.")
    folder = folder.resolve()
    refuse_partial(folder)
    manifest = read_manifest(folder)
    names = tuple(manifest["names"])
    shared, aliases, config, preprocessor = _shared(folder)
    digest = tensors_hash(shared, aliases)
    parts = {
        task: _exclusive(folder, manifest["exclusive"][task], task, shared=shared, aliases=aliases, digest=digest)
        for task in names
    }
    routers = {key: _router(folder, key, about, names, digest) for key, about in manifest["routers"].items()}
    _check_hashes(folder, manifest, digest, whole)
    heads = {task: _head(folder, manifest["heads"][task], task) for task in names if task in manifest["heads"]}
    if (EARLY in routers) != (manifest["early_layer"] is not None):
        raise RoutingError(f"{MANIFEST} is malformed: 'early_layer' and the early router go together. Build it again.")
    return RoutedModel(
        names, shared, parts, heads, routers.get(ROUTER), routers.get(EARLY), manifest["early_layer"],
        _gate(manifest["gate"]), config, preprocessor, aliases, _settings(manifest["settings"]),
    )  # fmt: skip


def _shared(folder: Path) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any], Mapping[str, Any] | None]:
    place = folder / SHARED
    if place.is_symlink() or not place.is_dir():
        raise RoutingError(f"{folder.name} is not whole: {SHARED}/ is missing. Build or copy it again.")
    for path in place.iterdir():
        if path.is_symlink():
            raise RoutingError(f"{SHARED}/{path.name} of {folder.name} is a link; copy what it points to.")
    with open_folder(place, name=f"{folder.name}/{SHARED}", source=str(place)) as checkpoint:
        tensors = {name: checkpoint[name] for name in checkpoint}
        aliases = dict(checkpoint.aliases)
        preprocessor = saved_preprocess(checkpoint)
        config = dict(checkpoint.config or {})
    for name, tensor in tensors.items():
        _finite(tensor, f"{SHARED}/ of {folder.name}", name)
    tensors.update({name: tensors[target] for name, target in aliases.items()})
    return tensors, aliases, config, preprocessor


def _exclusive(
    folder: Path, file: str | None, task: str, *, shared: Mapping[str, Tensor], aliases: Mapping[str, str], digest: str
) -> Exclusive:
    if file is None:
        return {}
    tensors, metadata = _read(folder, file)
    if metadata.get("shared") != digest:
        raise RoutingError(
            f"{file} of {folder.name} is stale: it is what an expert has beyond another shared model than the one in "
            f"{SHARED}/. Build the routed model again."
        )
    if metadata.get("task") != task:
        raise RoutingError(f"{file} of {folder.name} is the part of {shown(metadata.get('task'))}, not of {task!r}.")
    shapes = _shapes(metadata.get("shapes"), file)
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition("/")
        found.setdefault(name, {})[kind] = tensor
    if set(shapes) != set(found):
        raise RoutingError(f"{file} of {folder.name} lists other tensors than it holds. Build the routed model again.")
    out: dict[str, Part] = {}
    for name, pieces in found.items():
        where = f"{file} of {folder.name}: the part of tensor {shown(name)}"
        stored = shared.get(name)
        if stored is None or name in aliases or not stored.is_floating_point():
            raise RoutingError(f"{where} has no tensor in the shared model to add to. Build it again.")
        if shapes[name] != tuple(stored.shape):
            raise RoutingError(
                f"{where} has the shape {list(shapes[name])}, the shared model's tensor {list(stored.shape)}. "
                "Build it again."
            )
        out[name] = _part(pieces, tuple(stored.shape), where)
    return out


def _part(pieces: Mapping[str, Tensor], shape: tuple[int, ...], where: str) -> Part:
    if tuple(sorted(pieces)) not in _FORMS:
        raise RoutingError(f"{where} is stored as {', '.join(sorted(pieces))[:100]}, which is no form of a part.")
    for kind, tensor in pieces.items():
        if kind != "places" and not tensor.is_floating_point():
            raise RoutingError(f"{where} has whole numbers as {kind!r}; real ones were expected.")
    if "delta" in pieces:
        if tuple(pieces["delta"].shape) != shape:
            raise RoutingError(f"{where} has the shape {list(pieces['delta'].shape)}, expected {list(shape)}.")
        return Dense(pieces["delta"])
    if "places" in pieces:
        places, values = pieces["places"], pieces["values"]
        count = 1
        for size in shape:
            count *= size
        good = places.dtype == torch.int32 and places.ndim == values.ndim == 1 and len(places) == len(values)
        good = good and (not len(places) or (int(places[0]) >= 0 and int(places[-1]) < count))
        if not good or not bool((places[1:] > places[:-1]).all()):
            raise RoutingError(f"{where} has places that do not rise from 0 to below {count:,}, one a value.")
        return Sparse(places, values, shape)
    u, s, v = (pieces[kind] for kind in "usv")
    rows, columns = matrix_shape(shape)
    rank = int(s.shape[0]) if s.ndim == 1 else 0
    sizes = (tuple(u.shape), tuple(v.shape)) == ((rows, rank), (rank, columns))
    if not sizes or not 1 <= rank <= min(rows, columns):
        raise RoutingError(
            f"{where} has factors {list(u.shape)}, {list(s.shape)}, {list(v.shape)} for a matrix of {rows}×{columns}."
        )
    if not bool((s[1:] <= s[:-1]).all()) or float(s[-1]) < 0:
        raise RoutingError(f"{where} has singular values that do not fall, or are below 0.")
    return LowRank(u, s, v, shape)


def _router(folder: Path, key: str, about: Any, names: tuple[str, ...], digest: str) -> Router:
    file = f"{key}.safetensors"
    tensors, metadata = _read(folder, file)
    claimed = about.get("shared") if isinstance(about, Mapping) else None
    if metadata.get("shared") != digest or claimed != digest:
        raise RoutingError(
            f"{file} of {folder.name} is a stale router: it was trained on the features of another shared model than "
            f"the one in {SHARED}/. Train it again (`mergelab twin build`)."
        )
    try:
        router = router_from(tensors, about)
    except MergeLabError as error:
        raise RoutingError(f"{file} of {folder.name}: {error}") from None
    if tuple(router.names) != names:
        raise RoutingError(
            f"{file} of {folder.name} is a stale router: it knows the tasks {', '.join(router.names)[:120]}, the model "
            f"has {', '.join(names)[:120]}. Train it again (`mergelab twin build`)."
        )
    return router


def _head(folder: Path, entry: Mapping[str, Any], task: str) -> Head:
    tensors, metadata = _read(folder, entry["file"])
    where = f"{entry['file']} of {folder.name}"
    names = {"weight"} <= set(tensors) <= {"weight", "bias", "projection"}
    if not names or metadata.get("task") != task or not all(t.is_floating_point() for t in tensors.values()):
        raise RoutingError(f"{where} is not the head of {task!r} (weight, bias). Build it again.")
    try:
        return Head(tensors["weight"], tensors.get("bias"), float(entry["scale"]), entry["normalize"],
                    tensors.get("projection"), entry["kind"])  # fmt: skip
    except MergeLabError as error:
        raise RoutingError(f"{where}: {error}") from None


def _read(folder: Path, file: str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    path = place_of(folder, file)
    with FileCheckpoint({path.name: path}, name=file, source=str(path)) as checkpoint:
        for info in checkpoint.infos.values():
            if info.dtype not in FLOATS and info.dtype not in ("I32", "I64"):
                raise RoutingError(f"{file} of {folder.name}: tensor {shown(info.name)} cannot be {info.dtype} here.")
        tensors = {name: checkpoint[name] for name in checkpoint.infos}
        metadata = checkpoint.metadata
    for name, tensor in tensors.items():
        _finite(tensor, f"{file} of {folder.name}", name)
    return tensors, metadata


def _finite(tensor: Tensor, where: str, name: str) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise RoutingError(f"{where}: tensor {shown(name)} holds NaN or infinity. The file is damaged; build it again.")


def _shapes(text: str | None, file: str) -> dict[str, tuple[int, ...]]:
    try:
        found = json.loads(text or "")
        if isinstance(found, dict) and all(
            isinstance(v, list) and all(type(n) is int and n >= 0 for n in v) for v in found.values()
        ):
            return {name: tuple(shape) for name, shape in found.items()}
    except (ValueError, RecursionError):
        pass
    raise RoutingError(f"{file} does not say the shapes of what it holds. Build the routed model again.")


def _check_hashes(folder: Path, manifest: Mapping[str, Any], digest: str, whole: bool) -> None:
    if manifest["shared"] != digest:
        raise RoutingError(f"{SHARED}/ of {folder.name} is another shared model than {MANIFEST} says. Build it again.")
    used = [f for f in manifest["exclusive"].values() if f] + [e["file"] for e in manifest["heads"].values()]
    used += [f"{key}.safetensors" for key in manifest["routers"]]
    used += [f for f in manifest["hashes"] if f in (f"{SHARED}/config.json", f"{SHARED}/preprocessor_config.json")]
    for file in used:
        if file not in manifest["hashes"]:
            raise RoutingError(f"{MANIFEST} is malformed: it has no hash of {file}. Build the routed model again.")
        if whole and file_hash(place_of(folder, file)) != manifest["hashes"][file]:
            raise RoutingError(f"{file} of {folder.name} was changed after it was written. Build or copy it again.")


def _gate(words: Mapping[str, Any]) -> Gate:
    try:
        return Gate(**words)
    except (MergeLabError, TypeError, OverflowError) as error:
        raise RoutingError(f"{MANIFEST} is malformed: its gate: {str(error)[:200]} Build it again.") from None


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    if "recipe" in settings:
        try:
            TwinRecipe.from_dict(settings["recipe"])
        except MergeLabError as error:
            raise RoutingError(f"{MANIFEST}: its recipe: {error}") from None
    return settings

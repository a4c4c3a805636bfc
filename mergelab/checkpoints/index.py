"""The index of a sharded checkpoint: which tensor is in which file, and nothing outside the folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ..errors import CheckpointError
from .header import MAX_HEADER, Header, load_json_object, shown


def read_index(path: Path) -> dict[str, str]:
    """The checked ``weight_map`` of an index file: tensor name -> bare name of a safetensors file beside it."""
    return parse_index(read_small(path, MAX_HEADER), path.name)


def parse_index(raw: bytes, where: str) -> dict[str, str]:
    """Check an index's bytes. Every value must be the bare name of a ``.safetensors`` file, never a path."""
    index = load_json_object(raw, where)
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{where} is malformed: it has no weight_map from tensor names to files.")
    for name, file in weights.items():
        if not name or not name.isprintable():
            raise CheckpointError(
                f"{where} is malformed: the tensor name {shown(name)} has characters that cannot be shown."
            )
        if not is_bare_name(file):
            raise CheckpointError(
                f"{where} sends tensor {shown(name)} to {shown(file)}, which is not the plain name of a .safetensors "
                "file beside the index. Nothing outside the folder is opened; do not trust this checkpoint."
            )
    return weights


def is_bare_name(file: object) -> bool:
    """Whether this names a safetensors file in the same folder and cannot name anything else."""
    return (
        isinstance(file, str)
        and file.endswith(".safetensors")
        and not file.startswith((".", "-", "~"))
        and file.isprintable()
        and not any(mark in file for mark in '/\\:*?"<>|%#')
        and PurePosixPath(file).name == file
        and len(file) <= 255
    )


def check_shards(weight_map: Mapping[str, str], headers: Mapping[str, Header], where: str) -> None:
    """Every mapped tensor is in exactly its shard and no shard holds one that is not mapped there.

    A key that two shards hold is caught here too: one of the two is not where the index says.
    """
    for file, header in headers.items():
        for name in header.infos:
            if weight_map.get(name) != file:
                elsewhere = weight_map.get(name)
                problem = f"which {where} places in {elsewhere}" if elsewhere else f"which {where} does not list"
                raise CheckpointError(f"{file} holds tensor {shown(name)}, {problem}. Download the checkpoint again.")
    for name, file in weight_map.items():
        if name not in headers[file].infos:
            raise CheckpointError(
                f"{where} places tensor {shown(name)} in {file}, which does not hold it. Download the checkpoint again."
            )


def read_small(path: Path, cap: int) -> bytes:
    """The bytes of a text file that comes with a checkpoint, refused above ``cap`` bytes."""
    try:
        if not path.is_file():
            raise CheckpointError(f"{path.name} is not a file.")
        with path.open("rb") as file:
            raw = file.read(cap + 1)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    if len(raw) > cap:
        raise CheckpointError(f"{path.name} is larger than {cap:,} bytes, too large for what it should hold.")
    return raw

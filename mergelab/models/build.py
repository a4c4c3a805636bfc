"""From a checkpoint to a model that runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .family import Family, family_of
from .model import Model

_JSON_LIMIT = 1 << 20  # a configuration is a few kilobytes
#: Configurations that say what a checkpoint is, in the order in which they are looked for.
CONFIGS = ("config.json", "open_clip_config.json")


def build(
    source: Any,
    *,
    config: Mapping[str, Any] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    copy: bool = True,
) -> Model:
    """Build the model of a checkpoint and load its weights.

    Args:
        source: whatever :func:`mergelab.load` understands (``zoo:starter/base``, a folder, ...), or a Checkpoint.
        config, preprocessor: instead of the files beside the weights, for weights that lie in memory.
        device: ``auto``, or a torch device.
        copy: False to share tensors that already have the module's dtype and device.

    The module is laid out without memory first and compared with the checkpoint's headers, so a configuration cannot
    make it larger than the weights that are really there. Nothing is downloaded and no code of a checkpoint is run.

    Raises:
        CheckpointError: the configuration is missing, damaged or of an unknown family, or the tensors do not fit it.
    """
    from ..checkpoints import load

    checkpoint = load(source)
    config = config or config_of(checkpoint)
    family = family_of(config, f"The checkpoint {checkpoint.name}")
    folder = getattr(checkpoint, "folder", None)
    preprocess = family.preprocess(config, preprocessor or saved_preprocess(checkpoint))
    module = _empty(family, config, list(checkpoint), checkpoint.name)
    _compare(family, module, checkpoint)
    module = _materialise(family, module, _device(device))
    model = Model(family, module, preprocess, config=config, name=checkpoint.name, folder=folder)
    model.load_state(checkpoint, copy=copy)
    return model


def config_of(checkpoint: Any) -> Mapping[str, Any]:
    """A checkpoint's configuration: its config.json, or its open_clip_config.json."""
    config = getattr(checkpoint, "config", None)
    if config:
        return config
    for folder in _folders(checkpoint):
        for name in CONFIGS:
            found = read_json(folder / name)
            if found is not None:
                return found
    return {}


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON object from a file that anybody may have written; None if there is no such file."""
    try:
        with path.open("rb") as file:
            raw = file.read(_JSON_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(raw) > _JSON_LIMIT:
        raise CheckpointError(f"{path} is larger than 1 MB, which no configuration is.")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not valid JSON. The file is damaged or another kind of file.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found a {type(found).__name__}.")
    return found


def saved_preprocess(checkpoint: Any) -> Mapping[str, Any] | None:
    """The preprocessor_config.json beside the weights, or beside the base that an adapter sits on."""
    for folder in _folders(checkpoint):
        found = read_json(folder / "preprocessor_config.json")
        if found is not None:
            return found
    return None


def _folders(checkpoint: Any) -> list[Path]:
    """Where a checkpoint's small files may be: its own folder, then its base's (an adapter has few of its own)."""
    found = []
    seen = 0
    while checkpoint is not None and seen < 4:
        folder = getattr(checkpoint, "folder", None)
        if folder is not None:
            found.append(Path(folder))
        checkpoint = getattr(checkpoint, "base", None)
        seen += 1
    return found


def _empty(family: Family, config: Mapping[str, Any], names: list[str], where: str) -> nn.Module:
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return family.construct(config, names)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    except Exception as error:  # a library refusing a configuration may raise anything
        text = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"{where}: its configuration does not describe a {family.title} model ({text})."
        ) from error


def _compare(family: Family, module: nn.Module, checkpoint: Any) -> None:
    """Shapes of the checkpoint's headers against the empty module's, before any memory is taken."""
    infos = getattr(checkpoint, "infos", None) or checkpoint
    found = {family.canonical(n): (n, tuple(info.shape)) for n, info in infos.items()}
    for name, tensor in module.state_dict().items():
        if family.ignores(family.canonical(name)):
            continue
        theirs = found.get(family.canonical(name))
        if theirs is None:
            raise CheckpointError(
                f"{checkpoint.name}: tensor {name!r} of shape {list(tensor.shape)} is missing, which its configuration "
                f"asks for. The weights and the config do not belong together."
            )
        if theirs[1] != tuple(tensor.shape):
            raise CheckpointError(
                f"{checkpoint.name}: tensor {theirs[0][:120]!r} has the shape {list(theirs[1])}, its configuration "
                f"asks for {list(tensor.shape)}. The weights and the config do not belong together."
            )


def _materialise(family: Family, module: nn.Module, device: torch.device) -> nn.Module:
    """Give the module memory, and its buffers that no checkpoint holds their values."""
    stored = set(module.state_dict())
    computed: dict[str, Tensor] = {
        name: family.buffer(name, buffer.shape) for name, buffer in module.named_buffers() if name not in stored
    }
    module = module.to_empty(device=device)
    for name, value in computed.items():
        owner = module.get_submodule(name.rpartition(".")[0])
        owner._buffers[name.rpartition(".")[2]] = value.to(device)
    return module.requires_grad_(True)


def _device(device: str | torch.device) -> torch.device:
    if isinstance(device, torch.device):
        return device
    from ..engine import pick_device

    return pick_device(device)

"""From a source (a string, a path, a state dict) to a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, suggest
from ..paths import assets, home
from .checkpoint import Checkpoint, MemoryCheckpoint
from .header import load_json_object, shown
from .index import read_small
from .reader import MAX_CONFIG, PICKLES, open_file, open_folder, refuse_partial

if TYPE_CHECKING:
    import torch

#: Anything that :func:`load` takes.
Source = "str | Path | Mapping[str, torch.Tensor] | Checkpoint"

_FORMS = (
    "A source is 'zoo:NAME/base' or 'zoo:NAME/TASK', a file or folder on this machine, or 'hub:org/name' "
    "('hub:org/name@revision')."
)
_GENERIC = re.compile(r"^(model|open_clip_model|pytorch_model|adapter_model|diffusion_pytorch_model)$")


def load(
    source: str | Path | Mapping[str, torch.Tensor] | Checkpoint,
    *,
    base: str | Path | Mapping[str, torch.Tensor] | Checkpoint | None = None,
    name: str | None = None,
    allow_pickle: bool = False,
    token: bool | str = False,
) -> Checkpoint:
    """Open a checkpoint without reading its weights.

    ``source``: ``zoo:starter/base``, ``zoo:starter/mnist``, a local file or folder (safetensors, single or sharded,
    Hugging Face or OpenCLIP layout, or a PEFT adapter), ``hub:org/name[@revision][/subfolder]``, a mapping of tensors,
    or a checkpoint (returned as it is). An adapter and its base are read as one full checkpoint.

    ``base`` is for adapters: the model that the adapter was trained on. An adapter in a zoo always stands on the zoo's
    base; elsewhere ``base`` comes first, and may be left out where the adapter's config names a folder on this machine
    or a ``zoo:`` source. Checkpoints that are no adapters take no notice of it.

    ``allow_pickle`` opens ``.bin`` and ``.pt`` files with ``torch.load(weights_only=True)``. ``token`` goes to
    ``huggingface_hub``; the default sends none.

    The network is used for ``hub:`` sources only. Raises CheckpointError or HubError that say what to do.
    """
    checkpoint = _load(source, base, name, allow_pickle, token)
    return checkpoint if name is None or checkpoint.name == name else checkpoint.renamed(name)


def _load(source: Any, base: Any, name: str | None, allow_pickle: bool, token: bool | str) -> Checkpoint:
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return MemoryCheckpoint(source, name=name or "memory")
    if not isinstance(source, (str, Path)) or not str(source).strip():
        raise CheckpointError(f"{shown(source)} is not a source. {_FORMS}")
    text = str(source)
    if "\0" in text:
        raise CheckpointError(f"{shown(text)} is not a source: it has a NUL character.")
    if isinstance(source, str) and text.startswith("hub:"):
        from .hub import load_hub

        return load_hub(text, base=base, token=token)
    if isinstance(source, str) and text.startswith("zoo:"):
        path = zoo_path(text)
        return load_local(path, source=text, name=path.name, base=base, allow_pickle=allow_pickle, token=token)
    path = Path(text).expanduser()
    if not path.exists():
        raise CheckpointError(_nowhere(text))
    path = path.resolve()
    return load_local(path, source=str(path), name=_display(path), base=base, allow_pickle=allow_pickle, token=token)


def load_local(  # noqa: PLR0911
    path: Path, *, source: str, name: str, base: Any = None, allow_pickle: bool = False, token: bool | str = False
) -> Checkpoint:
    """Open a file or folder that exists."""
    from .adapters import is_adapter, open_adapter

    if path.is_dir():
        refuse_partial(path)
        if is_adapter(path):
            return open_adapter(path, _base_of(path, base, token), name=name, source=source)
        if allow_pickle:
            from .pickles import find_pickle, open_pickle

            pickle = find_pickle(path)
            if pickle is not None:
                return open_pickle(pickle, name=name, source=source)
        return open_folder(path, name=name, source=source)
    if not path.is_file():
        raise CheckpointError(f"{path.name} is neither a file nor a folder.")
    refuse_partial(path.parent)
    if path.name.endswith(".safetensors.index.json"):
        return load_local(path.parent, source=source, name=name)
    if path.name == "adapter_model.safetensors" and is_adapter(path.parent):
        return open_adapter(path.parent, _base_of(path.parent, base, token), name=name, source=source)
    if allow_pickle and path.suffix in PICKLES:
        from .pickles import open_pickle

        return open_pickle(path, name=name, source=source)
    return open_file(path, name=name, source=source)


def zoo_folders() -> dict[str, Path]:
    """Every zoo on this machine: those shipped and those built, by name."""
    found: dict[str, Path] = {}
    for root in (home() / "zoo", assets() / "zoo"):
        if root.is_dir():
            found.update({path.name: path for path in sorted(root.iterdir()) if (path / "zoo.json").is_file()})
    return found


def zoo_path(source: str) -> Path:
    """The folder that ``zoo:NAME/base`` or ``zoo:NAME/TASK`` stands for."""
    zoo, _, part = source.removeprefix("zoo:").partition("/")
    folders = zoo_folders()
    if zoo not in folders:
        raise CheckpointError(f"There is no zoo {shown(zoo)}.{suggest(zoo, folders) or ' No zoo is installed.'}")
    folder = folders[zoo]
    listing = load_json_object(read_small(folder / "zoo.json", MAX_CONFIG), "zoo.json")
    experts = listing.get("experts")
    if not isinstance(experts, dict):
        raise CheckpointError(f"zoo.json of {zoo} has no experts: build the zoo again.")
    places = {**experts, "base": listing.get("base", "base")}
    if part not in places:
        what = f"The zoo {zoo} has no {shown(part)}." if part else f"'zoo:{zoo}' names no checkpoint in it."
        raise CheckpointError(f"{what}{suggest(part, places)}")
    place = places[part]
    if (
        not isinstance(place, str)
        or PurePosixPath(place).is_absolute()
        or ".." in PurePosixPath(place).parts
        or "\\" in place
    ):
        raise CheckpointError(
            f"zoo.json of {zoo} sends {shown(part)} outside the zoo, to {shown(place)}; do not trust it."
        )
    path = folder / place
    if not path.exists():
        raise CheckpointError(f"The zoo {zoo} is not whole: {place} is missing. Build or download it again.")
    return path


def _base_of(adapter: Path, base: Any, token: bool | str) -> Checkpoint:
    """The base of an adapter: its zoo's, the one given, or what its config names on this machine."""
    zoo = adapter.resolve().parent.parent
    if (zoo / "zoo.json").is_file() and (zoo / "base").is_dir():
        shipped = zoo_folders().get(zoo.name)
        source = f"zoo:{zoo.name}/base" if shipped is not None and shipped.resolve() == zoo else str(zoo / "base")
        return load(source)
    if base is not None:
        return load(base, token=token)
    from .adapters import read_adapter_config

    named = read_adapter_config(adapter).get("base_model_name_or_path")
    if isinstance(named, str) and named:
        if named.startswith("zoo:"):
            return load(named)
        for candidate in (Path(named).expanduser(), adapter / named):
            if candidate.is_dir():
                return load(candidate)
        hint = (
            f" Its config names {shown(named)}: pass base= a folder that holds it, or base='hub:ORG/NAME' to fetch it."
        )
    else:
        hint = " Pass base= the model that it was trained on."
    raise CheckpointError(f"{adapter.name} is an adapter and its base model is not on this machine.{hint}")


def _display(path: Path) -> str:
    return path.name if path.is_dir() else (path.parent.name if _GENERIC.match(path.stem) else path.stem)


def _nowhere(text: str) -> str:
    prefix = re.match(r"^([A-Za-z]{2,}):", text)
    if prefix:
        return f"{shown(text)} is not a source: {prefix[1]}: is unknown.{suggest(prefix[1], ['zoo', 'hub'])} {_FORMS}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", text):
        return f"There is no file or folder {shown(text)} here. To read it from the Hub write 'hub:{text}'. {_FORMS}"
    parts = [f"zoo:{zoo}/{text}" for zoo in zoo_folders()]
    for candidate in parts:
        try:
            zoo_path(candidate)
        except CheckpointError:
            continue
        return f"There is no file or folder {shown(text)} here. Did you mean {candidate!r}? {_FORMS}"
    return f"There is no file or folder {shown(text)}. {_FORMS}"

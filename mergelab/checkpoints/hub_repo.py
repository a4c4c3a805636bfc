"""One commit of a repository on the Hub: its files, its headers by range, its download."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import CheckpointError, HubError
from ..progress import Progress, Stop, report
from . import hub_client as hc
from .adapters import CONFIG, WEIGHTS, check_settings
from .header import Header, TensorInfo, header_length, load_json_object, parse_header
from .index import check_shards, parse_index, read_small
from .reader import MAX_CONFIG, FileCheckpoint, config_names, layout

#: An index lists at most this many files in one of our requests' loops.
_MAX_SHARDS = 2000
_MAX_INDEX = 25_000_000
#: Small files that belong to a model and travel with it; everything else (code, pickles, pictures) stays on the Hub.
_BESIDE = (
    "config.json",
    "open_clip_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "adapter_config.json",
    "LICENSE",
    "LICENSE.txt",
)
_MAX_BESIDE = 64_000_000


@dataclass(frozen=True)
class Place:
    """A folder of one commit of a repository, with the sizes of the files in it (``None``: not said)."""

    client: hc.Client
    repo: str
    sha: str
    subfolder: str
    sizes: Mapping[str, int | None]

    @property
    def words(self) -> str:
        return f"{self.repo}/{self.subfolder}" if self.subfolder else self.repo

    def path(self, file: str) -> str:
        return f"{self.subfolder}/{file}" if self.subfolder else file

    def download(self, file: str, bar: type | None = None) -> Path:
        return self.client.download(self.repo, self.sha, self.path(file), bar=bar)

    def small(self, file: str, cap: int) -> bytes:
        """A text file's bytes, refused above ``cap`` before it is fetched where the size is known."""
        if (self.sizes[file] or 0) > cap:
            raise CheckpointError(f"{file} is larger than {cap:,} bytes, too large for what it should hold.")
        return read_small(self.download(file), cap)

    def header(self, file: str) -> Header:
        """A safetensors header by two range requests (its length, then exactly it): no weight travels."""
        start, total = self._part(file, 0, 9)
        listed = self.sizes[file]
        size = total if total is not None else listed
        if size is None:
            raise CheckpointError(f"the server does not say how large {file} is.")
        if listed is not None and listed != size:
            raise CheckpointError(f"{file} has {size:,} bytes, the repository lists {listed:,}: try again later.")
        try:
            length = header_length(start, size, file)
        except CheckpointError:
            # Not safetensors: look at a little more to say what it is instead.
            header_length(self._part(file, 0, min(512, size))[0] if size else b"", size, file)
            raise
        raw, _ = self._part(file, 8, 8 + length)
        if len(raw) != length:
            raise CheckpointError(
                f"the server sent {len(raw):,} of the {length:,} bytes of {file}'s header: try again."
            )
        return parse_header(raw, size, file)

    def _part(self, file: str, begin: int, end: int) -> tuple[bytes, int | None]:
        return self.client.part(self.repo, self.sha, self.path(file), begin, end)


@dataclass(frozen=True)
class RemoteModel:
    """What is known of a model before its weights are here. ``adapter``: the settings, where it is a PEFT adapter."""

    place: Place
    revision: str
    listing: Mapping[str, Any]
    index: str | None
    headers: Mapping[str, Header]
    config: dict[str, Any] | None
    adapter: dict[str, Any] | None

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(self.headers)

    @property
    def source(self) -> str:
        sub = f"/{self.place.subfolder}" if self.place.subfolder else ""
        return f"hub:{self.place.repo}@{self.place.sha}{sub}"

    @property
    def name(self) -> str:
        return self.place.words.rpartition("/")[2]

    @property
    def infos(self) -> dict[str, TensorInfo]:
        return {name: info for header in self.headers.values() for name, info in header.infos.items()}

    @property
    def metadata(self) -> dict[str, str]:
        return {key: value for header in self.headers.values() for key, value in header.metadata.items()}

    def fetch(self, progress: Progress | None = None, stop: Stop | None = None) -> Path:
        """Download what belongs to the model, weights last; the folder in the cache."""
        sizes = self.place.sizes
        beside = [file for file in _BESIDE if file in sizes and (sizes[file] or 0) <= _MAX_BESIDE]
        files = [*beside, *([self.index] if self.index else []), *self.weights]
        total = sum(sizes.get(file) or 0 for file in files)
        _check_space(total, self.place.repo)
        path, done = Path(), 0
        for file in files:
            path = self.place.download(file, _bar(progress, stop, done, total, file))
            done += sizes.get(file) or 0
            report(progress, done, total, f"downloading {file}")
        hc.remember(self.place.repo, self.revision, self.place.sha)
        return path.parent

    def open(self, progress: Progress | None = None, stop: Stop | None = None) -> FileCheckpoint:
        """Download and open; the files must be those whose headers were read."""
        folder = self.fetch(progress, stop)
        local = FileCheckpoint(
            {file: folder / file for file in self.weights},
            name=self.name,
            source=self.source,
            index=folder / self.index if self.index else None,
            config=self.config,
            folder=folder,
        )
        if dict(local.infos) != self.infos:
            raise HubError(
                f"{self.place.repo} sent other weights than its headers said: do not use this server's copy."
            )
        return local


def look(repo: str, revision: str | None, *, subfolder: str = "", token: bool | str = False) -> RemoteModel:
    """Resolve a revision to its commit and read the file list, config, index and headers. Raises HubError."""
    hc.check_repo(repo)
    wanted = hc.check_revision(revision or "main")
    client = hc.Client(token)
    listing = client.json(f"/api/models/{repo}/revision/{quote(wanted, safe='')}", {"blobs": "true"}, repo, wanted)
    sha = listing.get("sha") if isinstance(listing, dict) else None
    if not isinstance(sha, str) or not hc.is_sha(sha) or (hc.is_sha(wanted) and sha != wanted):
        raise HubError(f"{client.endpoint} does not answer as a Hub does (no commit for {repo}): check HF_ENDPOINT.")
    place = Place(client, repo, sha, subfolder, _files(listing, subfolder))
    try:
        return _read_headers(place, wanted, listing)
    except CheckpointError as error:
        raise HubError(f"{repo}: {error}") from error


def _read_headers(place: Place, revision: str, listing: Mapping[str, Any]) -> RemoteModel:
    sizes, adapter, index, weight_map = place.sizes, None, None, None
    if CONFIG in sizes and WEIGHTS in sizes:
        adapter = check_settings(load_json_object(place.small(CONFIG, MAX_CONFIG), CONFIG), place.words)
        weights = [WEIGHTS]
    else:
        index, file = layout(sizes, place.words)
        weight_map = parse_index(place.small(index, _MAX_INDEX), index) if index else None
        weights = sorted(set(weight_map.values())) if weight_map else [file]
    missing = [file for file in weights if file not in sizes]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(weights)} files that {index} names are missing, such as {missing[0]}."
        )
    if len(weights) > _MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(weights):,} files, more than any real model has.")
    with ThreadPoolExecutor(min(8, len(weights))) as pool:
        headers = dict(zip(weights, pool.map(place.header, weights), strict=True))
    if weight_map and index:
        check_shards(weight_map, headers, index)
    names = config_names(weights[0])
    config = next((load_json_object(place.small(name, MAX_CONFIG), name) for name in names if name in sizes), None)
    return RemoteModel(place, revision, listing, index, headers, config, adapter)


def _files(listing: Mapping[str, Any], subfolder: str) -> dict[str, int | None]:
    """Bare names of the files in a folder of the repository, with their sizes where they are said."""
    prefix = f"{subfolder}/" if subfolder else ""
    out: dict[str, int | None] = {}
    siblings = listing.get("siblings")
    for item in siblings if isinstance(siblings, list) else []:
        name = item.get("rfilename") if isinstance(item, dict) else None
        if isinstance(name, str) and name.startswith(prefix) and "/" not in name[len(prefix) :]:
            size = item.get("size")
            out[name[len(prefix) :]] = size if type(size) is int and size >= 0 else None
    return out


def _check_space(need: int, repo: str) -> None:
    folder = hc.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise HubError(f"The disk is full: {repo} needs {need:,} bytes in the download cache and {free:,} are free.")


def _bar(progress: Progress | None, stop: Stop | None, before: int, total: int, file: str) -> type | None:
    """A tqdm class that reports bytes to ``progress`` and ends the download when asked to stop."""
    if progress is None and stop is None:
        return None
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self._seen = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            if stop is not None:
                stop.check()
            self._seen += int(n or 0)
            report(progress, min(before + self._seen, total), total, f"downloading {file}")
            return True

    return Bar

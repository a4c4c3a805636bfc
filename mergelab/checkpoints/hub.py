"""Checkpoints on the Hugging Face Hub: find them, look into them without downloading weights, download them pinned.

Every source is pinned to a commit: ``hub:org/name@main`` becomes ``hub:org/name@<40 hex>``. By default no token is
sent, whatever the environment holds.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, HubError
from ..progress import Progress, Stop
from . import hub_client as hc
from .checkpoint import Checkpoint
from .dtypes import BITS
from .header import TensorInfo
from .hub_repo import RemoteModel, look
from .reader import aliases_of

if TYPE_CHECKING:
    import torch

_RELATIONS = ("finetune", "adapter", "merge", "quantized")
_EXPAND = ["cardData", "downloads", "gated", "lastModified", "library_name", "likes", "safetensors", "sha", "tags"]
_SOURCE = re.compile(
    r"^hub:(?P<repo>[^/@]+/[^/@]+|[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<sub>.+))?$"
)


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub. ``revision`` is a commit; ``base`` and ``relation`` are what its author declares.

    ``parameters`` and ``bytes`` count weights; ``None`` is what the Hub does not say. ``infos`` and ``files`` are
    filled by :func:`inspect` only.
    """

    repo: str
    revision: str
    base: str | None = None
    relation: str | None = None
    license: str | None = None
    dtype: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    downloads: int = 0
    likes: int = 0
    gated: bool = False
    updated: str | None = None
    infos: Mapping[str, TensorInfo] = field(default_factory=dict, repr=False)
    files: tuple[str, ...] = field(default=(), repr=False)

    @property
    def source(self) -> str:
        """What :func:`mergelab.load` takes, pinned."""
        return f"hub:{self.repo}@{self.revision}" if self.revision else f"hub:{self.repo}"


def search(
    *, base: str | None = None, query: str | None = None, limit: int = 20, token: bool | str = False
) -> list[HubModel]:
    """Safetensors models, most downloaded first: those fine-tuned from ``base`` and adapters on it, matching ``query``.

    The relation is what authors declare; :func:`inspect` and the pre-flight check look at the weights' headers.
    """
    client = hc.Client(token)
    filters: list[tuple[str | None, list[str]]] = [(None, ["safetensors"])]
    if base:
        hc.check_repo(base)
        filters = [(kind, [f"base_model:{kind}:{base}", "safetensors"]) for kind in ("finetune", "adapter")]
    found: dict[str, HubModel] = {}
    for kind, tags in filters:
        params: dict[str, Any] = {
            "filter": tags,
            "sort": "downloads",
            "limit": max(1, min(limit, 100)),
            "expand": _EXPAND,
        }
        if query:
            params["search"] = query
        answer = client.json("/api/models", params)
        for item in answer if isinstance(answer, list) else []:
            model = _model(item)
            if model is not None:
                found.setdefault(model.repo, replace(model, base=base, relation=kind) if kind else model)
    return sorted(found.values(), key=lambda model: -model.downloads)[:limit]


def inspect(repo: str, revision: str | None = None, *, subfolder: str = "", token: bool | str = False) -> HubModel:
    """Look into a repository without downloading weights: commit, licence, base, and every tensor's dtype and shape.

    Reads the file list, the index and the safetensors headers by range. Raises HubError.
    """
    remote = look(repo, revision, subfolder=subfolder, token=token)
    return _inspected(remote)


def download(
    repo: str,
    revision: str | None = None,
    *,
    subfolder: str = "",
    token: bool | str = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Path:
    """Download a model's weights and small files into Hugging Face's cache; returns the folder that holds them.

    Only safetensors and text are fetched, never pickles or code. ``progress`` counts bytes. What is in the cache
    already is not asked for again; a download that was stopped goes on where it was.
    """
    remote = look(repo, revision, subfolder=subfolder, token=token)
    return remote.fetch(progress=progress, stop=stop)


def parse_source(source: str) -> tuple[str, str | None, str]:
    """``hub:org/name@revision/sub/folder`` -> (repository, revision or ``None``, subfolder or ``""``)."""
    found = _SOURCE.match(source)
    if not found:
        raise HubError(f"{source[:120]!a} is not a Hub source: write 'hub:org/name' or 'hub:org/name@revision'.")
    repo = hc.check_repo(found["repo"])
    revision = hc.check_revision(found["revision"]) if found["revision"] else None
    sub = (found["sub"] or "").strip("/")
    if sub and (not sub.isprintable() or "\\" in sub or any(part in ("", ".", "..") for part in sub.split("/"))):
        raise HubError(f"{sub[:120]!a} is not a folder of {repo}: write 'hub:org/name@revision/folder'.")
    return repo, revision, sub


def load_hub(source: str, *, base: Any = None, token: bool | str = False) -> Checkpoint:
    """Open ``hub:org/name[@revision][/subfolder]``. What is in the cache is used as it is; else headers are read now
    and weights at the first tensor that is asked for."""
    repo, revision, sub = parse_source(source)
    local = _from_cache(repo, revision, sub, base, token)
    if local is not None:
        return local
    hc.refuse_offline(repo)
    remote = look(repo, revision, subfolder=sub, token=token)
    checkpoint = HubCheckpoint(remote)
    if remote.adapter is None:
        return checkpoint
    from .adapters import AdapterCheckpoint

    return AdapterCheckpoint(
        _base(base, remote.adapter, repo, token),
        checkpoint,
        remote.adapter,
        name=checkpoint.name,
        source=checkpoint.source,
    )


class HubCheckpoint(Checkpoint):
    """A model on the Hub: its headers are known, its weights are downloaded when the first tensor is read."""

    def __init__(self, remote: RemoteModel) -> None:
        self.remote = remote
        self.model = _inspected(remote)
        super().__init__(
            remote.name,
            remote.source,
            remote.infos,
            aliases=aliases_of(remote.metadata, remote.infos),
            config=remote.config,
            metadata=remote.metadata,
        )
        self._local: Checkpoint | None = None
        self._lock = threading.Lock()

    def fetch(self, progress: Progress | None = None, stop: Stop | None = None) -> Path:
        """Download the weights now; the folder in the cache that holds them."""
        folder = self._fetched(progress, stop).folder
        assert folder is not None
        return folder

    def _fetched(self, progress: Progress | None = None, stop: Stop | None = None) -> Checkpoint:
        with self._lock:
            if self._local is None:
                self._local = self.remote.open(progress=progress, stop=stop)
                self.folder = self._local.folder
            return self._local

    def _read(self, info: TensorInfo) -> torch.Tensor:
        return self._fetched()[info.name]

    def _identity(self) -> str:
        return self._fetched().weights_hash

    def renamed(self, name: str) -> Checkpoint:
        other = HubCheckpoint(self.remote)
        other.name, other.folder, other._local = name, self.folder, self._local
        return other

    def close(self) -> None:
        if self._local is not None:
            self._local.close()


def _from_cache(repo: str, revision: str | None, sub: str, base: Any, token: bool | str) -> Checkpoint | None:
    """A checkpoint that is whole in the local cache: always for a commit, for a branch only in offline mode."""
    if not hc.is_offline() and not hc.is_sha(revision or ""):
        return None
    sha = hc.cached_sha(repo, revision or "main")
    folder = hc.cached_folder(repo, sha) if sha else None
    if folder is None or not (folder / sub).is_dir():
        return None
    from .sources import load_local

    source = f"hub:{repo}@{sha}" + (f"/{sub}" if sub else "")
    name = (sub or repo).rpartition("/")[2]
    try:
        found = load_local(folder / sub, source=source, name=name, base=base, token=token)
        # Without a config it may be another program's download of the weights alone.
        return found if found.config is not None or hc.is_offline() else None
    except CheckpointError:
        if hc.is_offline() and any((folder / sub).glob("*.safetensors")):
            raise
        return None  # not whole: ask the Hub


def _base(base: Any, settings: Mapping[str, Any], repo: str, token: bool | str) -> Checkpoint:
    from .sources import load

    if base is None:
        named = settings.get("base_model_name_or_path")
        hint = (
            f" It names {named[:120]!a}: pass base='hub:{named[:120]}'."
            if isinstance(named, str) and named.isprintable()
            else ""
        )
        raise CheckpointError(f"{repo} is an adapter: pass base= the model that it was trained on.{hint}")
    return load(base, token=token)


def _inspected(remote: RemoteModel) -> HubModel:
    model = _model(remote.listing) or HubModel(remote.place.repo, remote.place.sha)
    infos = remote.infos.values()
    sizes: dict[str, int] = {}
    for info in infos:
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return replace(
        model, repo=remote.place.repo, revision=remote.place.sha, infos=remote.infos, files=remote.weights,
        dtype=max(sizes, key=lambda code: sizes[code]) if sizes else None, bytes=sum(sizes.values()),
        parameters=sum(info.nbytes * 8 // BITS[info.dtype] for info in infos),
    )  # fmt: skip


def _model(item: Any) -> HubModel | None:
    """A model from the Hub's JSON, which is somebody else's text: anything of the wrong type counts as not said."""
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return None
    tags = [tag for tag in item.get("tags") or () if isinstance(tag, str)]
    card = item["cardData"] if isinstance(item.get("cardData"), dict) else {}
    counts = (item.get("safetensors") or {}).get("parameters") if isinstance(item.get("safetensors"), dict) else None
    counts = (
        {code: n for code, n in counts.items() if code in BITS and type(n) is int} if isinstance(counts, dict) else {}
    )
    base, relation = _declared_base(tags, card)
    return HubModel(
        repo=item["id"],
        revision=_text(item.get("sha")) or "",
        base=base,
        relation=relation,
        license=next((tag[8:] for tag in tags if tag.startswith("license:")), None) or _text(card.get("license")),
        dtype=max(counts, key=lambda code: counts[code]) if counts else None,
        parameters=sum(counts.values()) if counts else None,
        bytes=sum(n * BITS[code] // 8 for code, n in counts.items()) if counts else None,
        downloads=_count(item.get("downloads")),
        likes=_count(item.get("likes")),
        gated=bool(item.get("gated")),
        updated=_text(item.get("lastModified")),
    )


def _declared_base(tags: Iterable[str], card: Mapping[str, Any]) -> tuple[str | None, str | None]:
    plain = None
    for tag in tags:
        _, _, rest = tag.partition("base_model:")
        relation, _, repo = rest.partition(":")
        if tag.startswith("base_model:") and relation in _RELATIONS and repo:
            return repo, relation
        if tag.startswith("base_model:") and rest:
            plain = plain or rest
    named = card.get("base_model")
    named = named[0] if isinstance(named, list) and named else named
    return plain or _text(named), _text(card.get("base_model_relation"))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int:
    return value if type(value) is int else 0

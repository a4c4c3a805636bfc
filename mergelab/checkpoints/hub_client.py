"""Talking to the Hub: requests that end, answers that are capped, and errors in words.

``huggingface_hub`` is underneath (its session, headers, cache and downloads). Its metadata helpers are not: they follow
file names in a hostile index out of the repository with the user's token, read a whole file into memory where a server
ignores ``Range``, and wait without a limit.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import HubError

#: Seconds to wait for an answer to begin.
TIMEOUT = 10.0
_MAX_JSON = 32_000_000
_SHA = re.compile(r"^[0-9a-f]{40}$")
_REPO = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", re.ASCII)
_REVISION = re.compile(r"^[\w][\w.+/-]*$", re.ASCII)


class Client:
    """One endpoint, as ``HF_ENDPOINT`` names it now. ``token=False``: none is sent, whatever the environment holds."""

    def __init__(self, token: bool | str = False) -> None:
        # Else it asks the Hub, unasked, for a list to describe this machine by.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        from huggingface_hub import constants

        constants.HF_HUB_DISABLE_TELEMETRY = True

        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.token = token

    def json(self, path: str, params: Mapping[str, Any], repo: str = "", revision: str | None = None) -> Any:
        """GET an API path and parse its JSON."""
        with self._stream(f"{self.endpoint}{path}", params, {}, repo, revision) as response:
            raw = b""
            for chunk in response.iter_bytes():
                raw += chunk
                if len(raw) > _MAX_JSON:
                    raise HubError(
                        f"The Hub's answer about {repo or 'models'} is larger than {_MAX_JSON:,} bytes: not used."
                    )
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise HubError(f"{self.endpoint} does not answer as a Hub does (no JSON): check HF_ENDPOINT.") from error

    def part(self, repo: str, sha: str, file: str, begin: int, end: int) -> tuple[bytes, int | None]:
        """Bytes ``begin`` (with) to ``end`` (without) of a file, and the file's whole size where the server says it.

        Never reads past ``end``, also from a server that ignores the range and sends the whole file.
        """
        url = f"{self.endpoint}/{repo}/resolve/{sha}/{quote(file)}"
        headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        with self._stream(url, {}, headers, repo, sha, file) as response:
            partial = response.status_code == 206
            skip = 0 if partial else begin
            raw = b""
            for chunk in response.iter_bytes(chunk_size=1 << 16):
                raw += chunk
                if len(raw) >= skip + end - begin:
                    break
            return raw[skip : skip + end - begin], _total(response.headers, partial)

    @contextmanager
    def _stream(  # noqa: PLR0917
        self,
        url: str,
        params: Mapping[str, Any],
        headers: dict[str, str],
        repo: str,
        revision: str | None,
        file: str = "",
    ) -> Iterator[Any]:
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        with in_words(repo, revision, self.endpoint, file):
            refuse_offline(repo)
            all_headers = {**build_hf_headers(token=self.token), **headers}
            request = get_session().stream("GET", url, params=dict(params), headers=all_headers, timeout=TIMEOUT)
            with request as response:
                hf_raise_for_status(response)
                yield response

    def download(self, repo: str, sha: str, file: str, *, bar: type | None = None) -> Path:
        """The file in the local cache, fetched if it is not there (no request at all if it is)."""
        from huggingface_hub import hf_hub_download

        with in_words(repo, sha, self.endpoint, file):
            return Path(
                hf_hub_download(
                    repo,
                    file,
                    revision=sha,
                    cache_dir=cache_folder(),
                    endpoint=self.endpoint,
                    token=self.token,
                    local_files_only=is_offline(),
                    etag_timeout=TIMEOUT,
                    tqdm_class=bar or _silent_bar(),
                )
            )


def _total(headers: Mapping[str, str], partial: bool) -> int | None:
    value = headers.get("content-range", "").rpartition("/")[2] if partial else headers.get("content-length", "")
    return int(value) if re.fullmatch(r"\d{1,18}", value) else None


def _silent_bar() -> type:
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


def is_offline() -> bool:
    """Whether the environment asks for no network: ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``, then or now."""
    from huggingface_hub import constants

    values = (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
    return constants.is_offline_mode() or any((value or "").upper() in {"1", "ON", "YES", "TRUE"} for value in values)


def refuse_offline(repo: str) -> None:
    """Raise HubError in offline mode."""
    if is_offline():
        what = f"{repo} is not (wholly) in the local cache" if repo else "The Hub cannot be searched"
        raise HubError(f"{what} and offline mode is on: unset HF_HUB_OFFLINE, or download it where there is a network.")


def cache_folder() -> Path:
    """Where huggingface_hub keeps downloads, by the environment as it is now."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_sha(repo: str, revision: str) -> str | None:
    """The commit that a revision stood for when it was last downloaded."""
    if _SHA.match(revision):
        return revision
    ref = _storage(repo) / "refs" / revision
    sha = ref.read_text().strip() if ref.is_file() else ""
    return sha if _SHA.match(sha) else None


def cached_folder(repo: str, sha: str) -> Path | None:
    """The snapshot of a commit in the local cache, whole or not."""
    folder = _storage(repo) / "snapshots" / sha
    return folder if folder.is_dir() else None


def remember(repo: str, revision: str, sha: str) -> None:
    """Note which commit a branch or tag stood for, where huggingface_hub notes it, so that it resolves offline."""
    if revision != sha:
        ref = _storage(repo) / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(sha)


def _storage(repo: str) -> Path:
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def check_repo(repo: str) -> str:
    """A repository name that cannot be anything else, or HubError."""
    if not _REPO.match(repo) or ".." in repo or "--" in repo or len(repo) > 96 or repo.endswith(".git"):
        raise HubError(f"{repo[:120]!a} is not a repository name: write org/name, as in its address on the Hub.")
    return repo


def check_revision(revision: str) -> str:
    """A branch, tag, pull request or commit that cannot leave the repository, or HubError."""
    if not _REVISION.match(revision) or ".." in revision or "//" in revision or len(revision) > 200:
        raise HubError(f"{revision[:120]!a} is not a revision: write a branch, a tag or a commit.")
    return revision


def is_sha(revision: str) -> bool:
    return bool(_SHA.match(revision))


@contextmanager
def in_words(repo: str, revision: str | None, endpoint: str, file: str = "") -> Iterator[None]:
    """Turn what huggingface_hub and the network raise into one HubError that says what to do."""
    import httpx2

    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        what = f"{repo}@{revision}" if revision else repo or "the search"
        message = _network_words(error, endpoint) or _hub_words(error, repo, revision, endpoint, file)
        raise HubError(message or f"{what} could not be read from {endpoint}: {_first_line(error)}.") from error


def _network_words(error: Exception, endpoint: str) -> str | None:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, httpx2.TimeoutException):
        return f"The Hub at {endpoint} does not answer within {TIMEOUT:.0f} s: check the network or try later."
    if isinstance(error, (httpx2.HTTPError, httpx2.InvalidURL)) and not isinstance(error, HfHubHTTPError):
        kind = type(error).__name__
        return (
            f"The Hub at {endpoint} cannot be reached ({kind}): check the network, or use checkpoints on this machine."
        )
    return None


def _hub_words(error: Exception, repo: str, revision: str | None, endpoint: str, file: str) -> str | None:
    from huggingface_hub import errors as hf

    what = f"{repo}@{revision}" if revision else repo or "the search"
    status = getattr(getattr(error, "response", None), "status_code", 0)
    unlock = "pass a token that may read it" if status in (401, 403) else "try again later"
    out = (
        "offline mode is on: unset HF_HUB_OFFLINE" if is_offline() else f"{endpoint} does not answer: check the network"
    )
    # The first that fits; narrower kinds stand before those they belong to.
    words: list[tuple[type[Exception], str]] = [
        (
            hf.GatedRepoError,
            f"{repo} is gated: accept its terms at {endpoint}/{repo}, then pass your token (token=True after a login).",
        ),
        (
            hf.RepositoryNotFoundError,
            f"There is no repository {repo} at {endpoint}, or it is private: check the name, or pass your token.",
        ),
        (hf.RevisionNotFoundError, f"{repo} has no revision {revision}: name a branch, tag or commit that it has."),
        (hf.LocalEntryNotFoundError, f"{what} is not wholly in the local cache, and {out}."),
        (hf.EntryNotFoundError, f"{what} has no file {file or 'of that name'}: try another revision."),
        (hf.OfflineModeIsEnabled, f"{what} is out of reach because offline mode is on: unset HF_HUB_OFFLINE."),
        (hf.HfHubHTTPError, f"The Hub at {endpoint} refused {what} (HTTP {status}): {unlock}."),
        (hf.HFValidationError, f"{what!a} is not a repository name: write org/name."),
    ]
    return next((text for kind, text in words if isinstance(error, kind)), None)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")

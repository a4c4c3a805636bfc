"""What a deployment may set, from the environment; imports neither gradio nor torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..cores import share_cores
from ..errors import MergeLabError
from ..paths import home


@dataclass(frozen=True)
class Settings:
    """Limits and addresses. ``public``: strangers use this page, so nothing on this machine may be named by path."""

    server_name: str = "127.0.0.1"
    server_port: int = 7860
    public: bool = False
    zoo: str = "starter"
    per_task: int = 40  # items a task in a live measurement
    max_models: int = 12
    max_kept: int = 5
    max_download_gb: float = 8.0  # of one merged checkpoint to download
    queue_size: int = 64
    max_file_mb: int = 5
    max_train_samples: int | None = None  # pictures that one training run may pass over; None: as many as wanted
    temp: Path = Path("gradio")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings from ``GRADIO_*``, ``SPACE_ID`` and ``MERGELAB_*``; a value that is not a number is an error."""
        public = _flag(environ.get("MERGELAB_PUBLIC")) or bool(environ.get("SPACE_ID"))
        return cls(
            server_name=environ.get("GRADIO_SERVER_NAME", cls.server_name),
            server_port=int(_number(environ, "GRADIO_SERVER_PORT", cls.server_port)),
            public=public,
            zoo=environ.get("MERGELAB_ZOO", cls.zoo),
            per_task=max(1, int(_number(environ, "MERGELAB_PER_TASK", cls.per_task))),
            max_models=max(1, int(_number(environ, "MERGELAB_MAX_MODELS", cls.max_models))),
            max_download_gb=_number(environ, "MERGELAB_MAX_DOWNLOAD_GB", 1.0 if public else cls.max_download_gb),
            max_train_samples=_samples(environ, 4000 if public else None),
            queue_size=int(_number(environ, "MERGELAB_QUEUE", cls.queue_size)),
            temp=Path(environ.get("GRADIO_TEMP_DIR") or home() / "gradio"),
        )

    def prepare(self) -> None:
        """Set what gradio and the Hub's client read from the environment. Call before either, or torch, is imported.

        The temporary folder is our own: files that a person downloads are made there, and nothing else may be served.
        """
        self.temp.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.environ["GRADIO_TEMP_DIR"] = str(self.temp)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ.pop("GRADIO_VIBE_MODE", None)
        os.environ.setdefault("GRADIO_SSR_MODE", "False")
        share_cores()
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")


def _flag(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "true", "yes", "on")


def _samples(environ: Mapping[str, str], default: int | None) -> int | None:
    if not environ.get("MERGELAB_MAX_TRAIN_SAMPLES"):
        return default
    return max(0, int(_number(environ, "MERGELAB_MAX_TRAIN_SAMPLES", 0)))


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        return float(text)
    except ValueError:
        raise MergeLabError(f"The environment variable {name} must be a number, not {text!r}.") from None

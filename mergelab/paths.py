"""Where MergeLab finds what it ships and keeps what it makes."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def assets() -> Path:
    """The folder with the starter zoo and the recipes: ``MERGELAB_ASSETS``, the checkout's, or the installed copy."""
    override = os.environ.get("MERGELAB_ASSETS")
    if override:
        return Path(override)
    checkout = _PACKAGE.parent / "assets"
    return checkout if checkout.is_dir() else _PACKAGE / "_assets"


def home() -> Path:
    """The folder for what MergeLab keeps between visits: ``MERGELAB_HOME``, or ``~/.cache/mergelab``."""
    override = os.environ.get("MERGELAB_HOME")
    return Path(override) if override else Path.home() / ".cache" / "mergelab"

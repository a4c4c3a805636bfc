"""What every test needs: no network, no telemetry, nothing written outside a temporary folder."""

from __future__ import annotations

import os

# Read by huggingface_hub and gradio when they are imported, so they are set before any test imports them.
os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_UPDATE_CHECK="1",
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_IMPLICIT_TOKEN="1",
    DO_NOT_TRACK="1",
)

from pathlib import Path

import pytest

from mergelab.cores import share_cores

share_cores()

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What MergeLab and the Hub client keep goes to a temporary folder."""
    os.environ["MERGELAB_HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["HF_HOME"] = str(tmp_path_factory.mktemp("hf"))

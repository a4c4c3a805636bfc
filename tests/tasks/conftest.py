from __future__ import annotations

from pathlib import Path

import pytest
from tiny_zoo import make_zoo


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small zoo on disk (see :mod:`tiny_zoo`); tests that change it copy it first."""
    return make_zoo(tmp_path_factory.mktemp("zoo") / "tiny")

"""Fixtures of the methods' tests."""

from __future__ import annotations

import pytest
from conftest_helpers import make_base, make_expert
from torch import Tensor


@pytest.fixture
def base() -> dict[str, Tensor]:
    return make_base()


@pytest.fixture
def experts(base: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {name: make_expert(base, seed) for seed, name in enumerate(("ant", "bee", "cat"))}

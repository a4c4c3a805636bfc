"""Routed models of the starter zoo, built once."""

from __future__ import annotations

import pytest

from mergelab.routing.build import twin
from mergelab.routing.routed import RoutedModel


@pytest.fixture(scope="session")
def starter_routed() -> RoutedModel:
    """All eight experts at rank 4, with a router that needs no gradients."""
    return twin("task_arithmetic", suite="starter", rank=4, router="centroid", lambda_=0.15)


@pytest.fixture(scope="session")
def starter_whole() -> RoutedModel:
    """Two experts with everything kept, and no router."""
    experts = {task: f"zoo:starter/{task}" for task in ("mnist", "shapes")}
    return twin("task_arithmetic", experts, base="zoo:starter/base", suite="starter", exclusive={"kind": "none"},
                router=None, lambda_=0.3)  # fmt: skip

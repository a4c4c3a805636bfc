"""Statistics of experts from a model and examples: Gram matrices, K-FAC factors, Fishers."""

from __future__ import annotations

from .collect import EXAMPLES, collect_stats, logits_of
from .cost import Estimate, estimate
from .drift import DriftSettings
from .featcal import Calibrated, calibrate_features
from .inputs import Batch
from .labels import CLASS_LIMIT
from .suite import ORDERS, collect, collect_zoo, estimate_zoo
from .through import collect_through
from .vectors import collect_vectors
from .wanted import BLOCK_LIMIT, MAX_OUTPUTS

__all__ = [
    "BLOCK_LIMIT",
    "CLASS_LIMIT",
    "EXAMPLES",
    "MAX_OUTPUTS",
    "ORDERS",
    "Batch",
    "Calibrated",
    "DriftSettings",
    "Estimate",
    "calibrate_features",
    "collect",
    "collect_stats",
    "collect_through",
    "collect_vectors",
    "collect_zoo",
    "estimate",
    "estimate_zoo",
    "logits_of",
]

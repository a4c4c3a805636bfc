"""Tables in, plotly figures out. This room imports no other room.

Every function takes a list of plain rows (dicts) and gives a :class:`plotly.graph_objects.Figure` that

* reads on a light and on a dark page: transparent background, mid-grey text and grid, no title;
* does not rely on colour alone: every series has its own dash, marker or pattern;
* uses only what plotly.js 3.3, which Gradio ships, can draw.

Beside it, :mod:`mergelab.figures.summary` says in one sentence what there is to see.
"""

from __future__ import annotations

from .bars import accuracy_bars
from .heatmap import cosine_heatmap, layer_heatmap
from .landscape import barriers, checkpoints, landscape
from .lines import layer_lines
from .matching import clouds, coefficient_heatmap, solve_curve, step_lines
from .matching_summary import (
    describe_bias,
    describe_calibration,
    describe_change,
    describe_coefficients,
    describe_learning,
    describe_path,
)
from .palette import Style, style
from .probabilities import probability_bars
from .radar import radar
from .routing import count_lines, rank_curve, share_heatmap, weight_bars
from .routing_summary import (
    describe_batch,
    describe_confusion,
    describe_latency,
    describe_rank,
    describe_storage,
    describe_weights,
)
from .summary import describe_conflict, describe_cosines, describe_norms, describe_prediction, describe_result
from .theorem import describe_theorem, theorem_accuracy, theorem_cosines, theorem_errors
from .training import describe_training, training_curves

__all__ = [
    "Style",
    "accuracy_bars",
    "barriers",
    "checkpoints",
    "clouds",
    "coefficient_heatmap",
    "cosine_heatmap",
    "count_lines",
    "describe_batch",
    "describe_bias",
    "describe_calibration",
    "describe_change",
    "describe_coefficients",
    "describe_conflict",
    "describe_confusion",
    "describe_cosines",
    "describe_latency",
    "describe_learning",
    "describe_norms",
    "describe_path",
    "describe_prediction",
    "describe_rank",
    "describe_result",
    "describe_storage",
    "describe_theorem",
    "describe_training",
    "describe_weights",
    "landscape",
    "layer_heatmap",
    "layer_lines",
    "probability_bars",
    "radar",
    "rank_curve",
    "share_heatmap",
    "solve_curve",
    "step_lines",
    "style",
    "theorem_accuracy",
    "theorem_cosines",
    "theorem_errors",
    "training_curves",
    "weight_bars",
]

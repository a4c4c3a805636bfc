"""Suites of labelled picture tasks, heads, and the evaluation of models on them."""

from .evaluate import SHOTS, evaluate
from .head import Head, class_mean_head, heads_for, load_head, zero_shot_head
from .metrics import accuracy, bootstrap_interval
from .picture import clean
from .predict import probabilities
from .results import Average, Evaluation, Score
from .suite import Suite, Task, load_suite, subset, subset_indices

__all__ = [
    "SHOTS",
    "Average",
    "Evaluation",
    "Head",
    "Score",
    "Suite",
    "Task",
    "accuracy",
    "bootstrap_interval",
    "class_mean_head",
    "clean",
    "evaluate",
    "heads_for",
    "load_head",
    "load_suite",
    "probabilities",
    "subset",
    "subset_indices",
    "zero_shot_head",
]

"""Recipe in, run out: merge, evaluate, keep; the resident bench behind the dashboard's sliders."""

from .bench import Bench, Prediction, custom_bench, open_bench
from .routed import RoutedBench, routed_bench
from .screen import FirstScreen, first_screen

__all__ = [
    "Bench",
    "FirstScreen",
    "Prediction",
    "RoutedBench",
    "custom_bench",
    "first_screen",
    "open_bench",
    "routed_bench",
]

"""Jobs side by side: in this process, in processes of this machine, or on the machines of a Ray cluster.

A job is a top-level function ``(argument, progress, stop) -> result``. What it gets and gives back is pickled, so it
computes the same wherever it runs. Importing this room brings neither torch nor ray.
"""

from .executor import Executor, Inline, Job, executor_of
from .local import Local
from .on_ray import Ray

__all__ = ["Executor", "Inline", "Job", "Local", "Ray", "executor_of"]

"""What goes wrong, said so that a person can act on it.

Every rejection in MergeLab is a :class:`MergeLabError`: one or two sentences that name *what* was wrong, *where*,
and *what to do*. The page shows the sentence, the command line prints it and exits with status 2; no stack trace.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MergeLabError(Exception):
    """Base of every error that a person may see; ``str(error)`` is the whole message."""


class CheckpointError(MergeLabError):
    """A checkpoint cannot be read or written: which file, which tensor, what was expected and found."""


class HubError(MergeLabError):
    """The Hub did not give what was asked for: it does not answer, or the repository is missing, gated or unsafe."""


class RecipeError(MergeLabError):
    """A recipe is malformed: which key, and what it may be."""


class MethodError(MergeLabError):
    """A merge cannot be done as asked: unknown method or parameter, value out of range, models that do not fit."""


class StatisticsError(MergeLabError):
    """Statistics cannot be collected, read or used: which file or task, which tensor, what was expected and found."""


class TaskError(MergeLabError):
    """A suite, a task, a head or a picture cannot be used."""


class RoutingError(MergeLabError):
    """A routed model cannot be built, read or run as asked: which part, what was expected and found."""


class DataNeededError(MergeLabError):
    """A recipe cannot be merged before data was looked at: which data, and what collects or learns it."""


class Cancelled(MergeLabError):  # noqa: N818  (it is no error of anybody's)
    """The work was stopped on request; nothing half-written was left."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'ties'?`` for the closest of ``known``, or the list of what there is when nothing is close."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(sorted(known))}." if known else ""

"""The only file of the page that talks to the rooms below, so that tests can put a small lab in its place.

A *selection* is what a visitor has chosen to merge, as plain values: ``{"title", "base", "experts": {name: source},
"suite", "zoo"}``. Every import of a heavy room happens inside a method.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MergeLabError
from ..recipe import Recipe
from .settings import Settings

if TYPE_CHECKING:
    from .train_runs import Runs

#: Seconds that the first page has the cores for itself: it is drawn from shipped numbers and needs no models.
_FIRST_PAGE = 3.0
#: The name of a set of statistics that this machine keeps (see :mod:`mergelab.runs.matched`): no path.
_KEPT = re.compile(r"statistics-[0-9a-f]{12}")


class Lab:
    """What the page can ask for. ``open`` gives a bench (see :mod:`mergelab.runs`)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # ---- what there is ----------------------------------------------------------------------------------------------

    def methods(self) -> dict[str, dict[str, Any]]:
        """The declarations of all methods, by name, as ``methods --json`` prints them."""
        from ..methods import registry

        return {name: method.describe() for name, method in registry().items()}

    def zoos(self) -> list[str]:
        """Names of the zoos on this machine, the starter first."""
        from ..zoo import zoo_folders

        return sorted(zoo_folders(), key=lambda name: (name != self.settings.zoo, name))

    def zoo(self, name: str) -> dict[str, Any]:
        """The selection that a zoo stands for, with what was tuned on its validation data."""
        from ..zoo import open_zoo

        found = open_zoo(name)
        return {
            "title": found.title,
            "zoo": name,
            "base": found.base,
            "experts": dict(found.experts),
            "suite": str(found.suite.parent if found.suite else ""),
            "tuned": {method: dict(values) for method, values in found.tuned.items()},
        }

    def titles(self, selection: Mapping[str, Any]) -> dict[str, str]:
        """Task name -> title, in the suite's order; empty without a suite."""
        suite = self.open(selection).suite
        return {task.name: task.title for task in suite.tasks} if suite else {}

    def classes(self, selection: Mapping[str, Any], task: str) -> tuple[str, ...]:
        return tuple(self.open(selection).task(task).classes)

    def first_screen(self) -> Any | None:
        """What the zoo's builder measured (a ``FirstScreen``), or None where nothing was shipped."""
        from ..runs import first_screen

        try:
            return first_screen(self.settings.zoo)
        except MergeLabError:
            return None

    # ---- work -------------------------------------------------------------------------------------------------------

    def open(self, selection: Mapping[str, Any]) -> Any:
        """The bench of a selection; benches are kept and shared between visitors."""
        from ..runs import custom_bench, open_bench

        if selection.get("zoo"):
            return open_bench(selection["zoo"])
        return custom_bench(selection["base"], selection["experts"], selection.get("suite") or None)

    def routed(self, selection: Mapping[str, Any]) -> Any:
        """What builds and runs routed models over the bench of a selection (see :mod:`mergelab.runs.routed`)."""
        from ..runs.routed import routed_bench

        return routed_bench(self.open(selection))

    def data(self, selection: Mapping[str, Any]) -> Any:
        """What collects statistics, solves, learns and corrects over the bench of a selection (a ``DataBench``)."""
        from ..runs.data_bench import DataBench

        return DataBench(self.open(selection))

    def training(self, selection: Mapping[str, Any]) -> Any:
        """What trains from the base of a selection, and measures what comes of it (a ``TrainBench``)."""
        from .train_work import TrainBench

        return TrainBench(self.open(selection))

    @cached_property
    def runs(self) -> Runs:
        """Visitors' training runs."""
        from .train_runs import Runs

        return Runs(self)

    def recordings(self) -> dict[str, str]:
        """Name -> title of the recorded training runs that are shipped."""
        from .recordings import recordings

        return recordings()

    def recording(self, name: str | None) -> dict[str, Any]:
        """A recorded training run (see :mod:`mergelab.runs.training.compare`)."""
        from .recordings import recording

        return recording(name)

    def recorded_look(self, name: str | None) -> dict[str, Any] | None:
        """The look at the weights of a recorded run (see :mod:`mergelab.runs.training.look`), where there is one."""
        from .recordings import look

        return look(name)

    def theorems(self) -> dict[str, str]:
        """Name -> title of the recorded theorem labs that are shipped."""
        from .recordings import theorems

        return theorems()

    def theorem(self, name: str | None) -> dict[str, Any]:
        """A recorded theorem lab (see :mod:`mergelab.runs.training.theorem`)."""
        from .recordings import theorem

        return theorem(name)

    def preflight(self, recipe: Recipe) -> dict[str, Any]:
        """The verdict from headers only: ``{"ok", "findings": [{"level", "text", "fix"}], …}``."""
        from ..engine import preflight

        return preflight(recipe).to_dict()

    def picture(self, source: Any) -> np.ndarray:
        """A picture file, its bytes or an array as uint8 ``[1, 32, 32, 3]``; an error for what is not a picture."""
        from ..tasks.picture import clean

        return np.asarray(clean(source))

    def search(self, base: str | None, query: str | None, limit: int = 20) -> list[Any]:
        from ..checkpoints import hub

        return hub.search(base=base or None, query=query or None, limit=limit)

    def inspect(self, repo: str, revision: str | None = None) -> Any:
        from ..checkpoints import hub

        return hub.inspect(repo, revision)

    def pinned(self, selection: Mapping[str, Any]) -> dict[str, Any]:
        """The selection with every Hub source pinned to the commit that it stands for now."""
        from ..checkpoints import hub

        def pin(source: str) -> str:
            if not source.startswith("hub:"):
                return source
            repo, revision, sub = hub.parse_source(source)
            if revision is not None and len(revision) == 40:
                return source
            found = hub.inspect(repo, revision, subfolder=sub)
            return f"hub:{repo}@{found.revision}" + (f"/{sub}" if sub else "")

        experts = {name: pin(source) for name, source in selection["experts"].items()}
        return {**selection, "base": pin(selection["base"]), "experts": experts}

    def geometry(self, selection: Mapping[str, Any], progress: Any = None, stop: Any = None) -> dict[str, Any]:
        """Tables of the Geometry tab as plain data; see :func:`mergelab.dashboard.geometry.tables`."""
        from .geometry_tables import tables

        return tables(self.open(selection).geometry(progress=progress, stop=stop))

    # ---- checks -----------------------------------------------------------------------------------------------------

    def check_sources(self, recipe: Recipe) -> None:
        """On a public page refuse paths of this machine; everywhere refuse more models than the page is set up for."""
        if len(recipe.models) > self.settings.max_models:
            raise MergeLabError(
                f"This page merges at most {self.settings.max_models} models; the recipe lists {len(recipe.models)}. "
                "Use the command line, or raise MERGELAB_MAX_MODELS."
            )
        if not self.settings.public:
            return
        started = recipe.init.model if recipe.init else None
        kept = None if _KEPT.fullmatch(recipe.statistics or "") else recipe.statistics
        for source in [recipe.base_model, started, kept, recipe.learned, *(entry.model for entry in recipe.models)]:
            if source and not source.startswith(("zoo:", "hub:")):
                raise MergeLabError(
                    f"This is a public page, so {Path(source).name!r} on its disk cannot be used; "
                    "name a zoo: or hub: source, or run MergeLab on your own machine."
                )

    def warm(self) -> threading.Thread:
        """Load the starter zoo soon, so that the first slider finds it ready; the first page goes first."""
        thread = threading.Timer(_FIRST_PAGE, self._warm)
        thread.daemon = True
        thread.start()
        return thread

    def _warm(self) -> None:
        from .errors import log

        try:
            self.open(self.zoo(self.settings.zoo)).warm()
        except Exception as error:  # the page works without; the first request will say what is wrong
            log.warning("the starter zoo could not be loaded: %s", error)

    def check_size(self, recipe: Recipe) -> None:
        """Refuse a download that is larger than the page is set up for, judged from headers only."""
        verdict = self.preflight(recipe)
        errors = [f for f in verdict["findings"] if f["level"] == "error"]
        if errors:
            raise MergeLabError(f"{errors[0]['text']} {errors[0].get('fix') or ''}".strip())
        size = (verdict.get("bytes_out") or 0) / 1e9
        if size > self.settings.max_download_gb:
            raise MergeLabError(
                f"The merged checkpoint takes {size:.1f} GB, and this page hands out at most "
                f"{self.settings.max_download_gb:g} GB; use the command line on your own machine."
            )

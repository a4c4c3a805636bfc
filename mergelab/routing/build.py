"""Building a routed model: the shared model, the experts' exclusive parts, their heads, and the router."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..engine import Plan, pick_device, plan_recipe, stream
from ..engine.folder import copied_files, data_used, written_config
from ..engine.stream import read
from ..errors import RoutingError
from ..models.build import saved_preprocess
from ..progress import Progress, Stop, report
from ..tasks import Suite, load_suite
from .decompose import decompose
from .hashes import Hashed, tensors_hash
from .heads import heads_of
from .learn import Lessons, learn
from .recipe import TwinRecipe
from .routed import RoutedModel

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint
    from ..tasks import Head

    Source = str | Path | Mapping[str, Tensor] | Checkpoint

#: Phases and the share of the progress bar that each gets.
_PHASES = {"shared": 8, "exclusive": 42, "features": 35, "router": 15}


def build_routed(
    recipe: TwinRecipe,
    *,
    suite: Suite | str | Path | None = None,
    heads: Mapping[str, Head] | None = None,
    route: bool = True,
    sources: Mapping[str, Source] | None = None,
    plan: Plan | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> RoutedModel:
    """Build the routed model of a recipe, in memory.

    Args:
        suite: where the router's items come from; else the recipe's, else the zoo's that all experts are of.
        heads: by task; else those that lie beside the experts, then those of the suite's zoo, then, for models that
            read words, heads made of class names. ``{}``: no heads, features only.
        route: False for a model without a router, whose weights are given with every call.
        sources: checkpoints or state dicts in the place of sources that the recipe names.
        plan: of the shared recipe, for callers that hold the data of its method (statistics, coefficients).

    The router sees the shared model's features of the suite's validation items, labelled with their task alone; test
    items are never read. Raises MergeLabError: which model, tensor, task or head is in the way, and what to do.
    """
    clock = _Clock(progress, route)
    plan = _plan(recipe, sources) if plan is None else plan
    tasks = tuple(recipe.experts)
    lessons = Lessons.of(recipe, tasks, suite) if route else None
    with clock("shared") as told:
        shared = dict(stream(plan, threads=threads, device=device, progress=told, stop=stop))
    checkpoints = dict(zip(plan.names, plan.models, strict=True))
    experts = {task: Hashed(_Expert(checkpoints[task], list(shared))) for task in tasks}
    with clock("exclusive") as told:
        found = decompose(shared, experts, recipe.exclusive, aliases=plan.aliases, device=pick_device(device),
                          threads=threads, progress=told, stop=stop)  # fmt: skip
    shared.update({name: shared[target] for name, target in plan.aliases.items()})
    routed = RoutedModel(
        tasks, shared, found.parts, gate=recipe.gate, config=dict(written_config(plan) or {}),
        preprocessor=saved_preprocess(plan.reference), aliases=dict(plan.aliases),
    )  # fmt: skip
    places = {task: getattr(checkpoints[task], "folder", None) for task in tasks}
    known = lessons.suite if lessons else load_suite(suite) if suite is not None else None
    routed = replace(routed, heads=dict(heads) if heads is not None else heads_of(routed, places, known, device))
    settings: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "hash": recipe.hash,
        "kept": dict(found.kept),
        "hashes": {"shared": tensors_hash(shared, plan.aliases), **_parents(plan, experts)},
    }
    if lessons is not None:
        routed, settings["router"] = learn(routed, recipe, lessons, shared=settings["hashes"]["shared"],
                                           device=device, clock=clock, stop=stop)  # fmt: skip
    if known is not None:
        settings["tasks"] = {task: {"title": known[task].title, "classes": list(known[task].classes)}
                             for task in tasks if task in known.names}  # fmt: skip
    settings["seconds"] = clock.seconds
    settings["data_used"] = lessons.said if lessons else "none (weights are given by hand)"
    if plan.statistics or plan.learned is not None:
        settings["shared_data_used"] = data_used(plan)
        settings["data_used"] += f"; for the shared model: {settings['shared_data_used']}"
    return replace(routed, settings=settings)


def base_files(recipe: TwinRecipe) -> dict[str, bytes | str]:
    """The small files that belong to the base beside its weights (a tokenizer's), for :func:`mergelab.routing.save`."""
    from ..checkpoints import load

    with load(recipe.shared.base_model or recipe.shared.models[0].model) as checkpoint:
        found = copied_files(checkpoint)
    return {name: content for name, content in found.items() if name != "preprocessor_config.json"}


def twin(
    method: str | Path | TwinRecipe = "task_arithmetic",
    models: Mapping[str, Source] | Sequence[Source] | None = None,
    base: Source | None = None,
    suite: Suite | str | Path | None = None,
    *,
    preset: str = "default",
    rank: int | None = None,
    rank_ratio: float | None = None,
    energy: float | None = None,
    exclusive: Mapping[str, Any] | None = None,
    router: str | Mapping[str, Any] | None = "mlp",
    inference: Mapping[str, Any] | None = None,
    heads: Mapping[str, Head] | None = None,
    seed: int = 0,
    dtype: str | None = None,
    out_dtype: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
    **parameters: Any,
) -> RoutedModel:
    """A routed model (Twin-Merging, Lu et al. 2024) in one call.

    ``method`` and ``parameters`` make the shared model, as in :func:`mergelab.merge`; it may also be a routed recipe's
    file, which then says everything. ``models`` are the experts (default: all of the zoo that ``suite`` names), by
    sources, or by name with state dicts; ``rank``, ``rank_ratio`` or ``energy`` says what is kept of each, and
    ``exclusive``, ``router`` and ``inference`` hold further words of those sections. ``router`` may be the name of a
    kind, or None for none.

    >>> routed = mergelab.twin("ties", suite="starter", rank=8, lambda_=0.4)
    >>> mergelab.twin("assets/recipes/twin.yaml")
    """
    options: dict[str, Any] = {"suite": suite, "heads": heads, "device": device, "threads": threads,
                               "progress": progress, "stop": stop}  # fmt: skip
    read_from = method if isinstance(method, (Path, TwinRecipe)) or _is_file(method) else None
    if read_from is not None:
        if models is not None or base is not None or parameters:
            raise RoutingError("A routed recipe names its models and parameters itself; give it without others.")
        recipe = read_from if isinstance(read_from, TwinRecipe) else TwinRecipe.read(read_from)
        words = {"exclusive": _words(exclusive, rank, rank_ratio, energy), "inference": dict(inference or {}),
                 "router": dict(router) if isinstance(router, Mapping) else {}}  # fmt: skip
        words = {section: given for section, given in words.items() if given}
        return build_routed(recipe.with_sections(**words) if words else recipe, route=router is not None, **options)
    from .written import written

    recipe, sources = written(
        str(method), models, base, suite, parameters, seed=seed, dtype=dtype, out_dtype=out_dtype, preset=preset,
        exclusive=_words(exclusive, rank, rank_ratio, energy),
        router={"kind": router} if isinstance(router, str) else dict(router or {}), inference=dict(inference or {}),
    )  # fmt: skip
    return build_routed(recipe, sources=sources, route=router is not None, **options)


def _plan(recipe: TwinRecipe, sources: Mapping[str, Any] | None) -> Plan:
    if not sources:
        return plan_recipe(recipe.shared)
    from ..checkpoints import load

    base: list[Any] = []

    def opened(source: str) -> Any:
        named = source in sources and not hasattr(sources[source], "infos")
        found = load(sources.get(source, source), base=None if source.startswith("zoo:") else (base or [None])[0],
                     name=source if named else None)  # fmt: skip
        if source == recipe.shared.base_model:
            base[:] = [found]  # the base is opened first: an adapter among the experts may need it
        return found

    return plan_recipe(recipe.shared, load=opened)


class _Expert(Mapping[str, Tensor]):
    """An expert's tensors under the shared model's names."""

    def __init__(self, checkpoint: Any, names: Sequence[str]) -> None:
        self._checkpoint, self._names = checkpoint, names

    def __getitem__(self, name: str) -> Tensor:
        return read(self._checkpoint, name)

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _parents(plan: Plan, experts: Mapping[str, Hashed]) -> dict[str, Any]:
    """SHA-256 over the tensors of each expert that took part, as they were read; where each came from."""
    read_from = dict(zip(plan.names, plan.models, strict=True))
    out: dict[str, Any] = {
        "experts": {task: {"sha256": expert.hash, "source": str(read_from[task].source)} for task, expert in
                    experts.items()},
    }  # fmt: skip
    if plan.base is not None:
        out["base"] = {"content": plan.base.content_hash, "source": str(plan.base.source)}
    return out


def _words(exclusive: Mapping[str, Any] | None, *sizes: Any) -> dict[str, Any]:
    named = dict(zip(("rank", "rank_ratio", "energy"), sizes, strict=True))
    return {**(exclusive or {}), **{name: value for name, value in named.items() if value is not None}}


def _is_file(text: Any) -> bool:
    return isinstance(text, str) and text.lower().endswith((".yaml", ".yml", ".json"))


class _Clock:
    """Seconds by phase, and one progress for all phases."""

    def __init__(self, progress: Progress | None, route: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._shares = {name: n for name, n in _PHASES.items() if route or name in ("shared", "exclusive")}

    @contextmanager
    def __call__(self, phase: str) -> Any:
        begun = time.perf_counter()
        names = list(self._shares)
        before = sum(self._shares[name] for name in names[: names.index(phase)])
        total = 10 * sum(self._shares.values())

        def told(done: int, of: int, text: str) -> None:
            report(self._progress, 10 * before + 10 * self._shares[phase] * done // max(of, 1), total, text)

        yield told
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.perf_counter() - begun, 3)

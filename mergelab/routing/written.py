"""A routed recipe from the arguments of a call: sources are written down, state dicts stand beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints import zoo_folders
from ..engine.plan import name_models
from ..errors import RoutingError
from ..models.build import read_json
from ..recipe import ModelEntry
from ..tasks import Suite, load_suite
from .recipe import TwinRecipe


def written(
    method: str,
    models: Mapping[str, Any] | Sequence[Any] | None,
    base: Any,
    suite: Suite | str | Path | None,
    parameters: Mapping[str, Any],
    *,
    exclusive: Mapping[str, Any],
    router: Mapping[str, Any],
    inference: Mapping[str, Any],
    **rest: Any,
) -> tuple[TwinRecipe, dict[str, Any]]:
    """(the recipe, what is meant by those of its sources that are in memory).

    Without ``models``, all experts of the suite's zoo, merged with the coefficients that its builder chose on
    validation items unless others are given.
    """
    given = {key.removesuffix("_"): value for key, value in parameters.items()}
    if models is None:
        models, base, tuned = _zoo(suite, base, method)
        given = {**tuned, **given}
    named = name_models(models)
    if not named:
        raise RoutingError("There is no expert to take apart; name at least one.")
    sources: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {name: {} for name in named}
    shared = {}
    for key, value in given.items():
        if not isinstance(value, (Mapping, list, tuple)):
            shared[key] = value
            continue
        each = value if isinstance(value, Mapping) else dict(zip(named, value, strict=False))
        if set(each) != set(named) or len(value) != len(named):
            raise RoutingError(f"{key!r} needs one value for each of {', '.join(named)[:200]}.")
        for name, one in each.items():
            own[name][key] = one
    entries = [ModelEntry(_source(value, name, sources), name, own[name]).to_dict() for name, value in named.items()]
    if base is None:
        base = _zoo_base(named.values())
    data: dict[str, Any] = {
        "merge_method": method,
        "base_model": None if base is None else _source(base, "memory:base", sources),
        "models": entries,
        "parameters": shared,
        "suite": str(suite.folder if isinstance(suite, Suite) else suite) if suite is not None else None,
        **rest,
        "exclusive": dict(exclusive),
        "router": dict(router),
        "inference": dict(inference),
    }
    return TwinRecipe.from_dict(data), sources


def _source(value: Any, name: str, sources: dict[str, Any]) -> str:
    if isinstance(value, (str, Path)):
        return str(value)
    sources[name] = value
    return name


def _zoo(suite: Any, base: Any, method: str) -> tuple[dict[str, str], Any, dict[str, Any]]:
    """The experts, the base and the coefficients of the zoo that a suite belongs to."""
    found = load_suite(suite if suite is not None else "starter")
    if found.zoo is None:
        raise RoutingError(f"The suite {found.name} belongs to no zoo, so its experts are not known: give models=….")
    listing = read_json(found.zoo / "zoo.json") or {}
    experts = listing.get("experts")
    if not isinstance(experts, dict) or not experts:
        raise RoutingError(f"zoo.json of {found.zoo.name} lists no experts. Build the zoo again.")
    names = [name for name, folder in zoo_folders().items() if folder.resolve() == found.zoo.resolve()]

    def place(part: str, where: Any) -> str:
        return f"zoo:{names[0]}/{part}" if names else str(found.zoo / str(where))  # type: ignore[operator]

    tuned = (listing.get("tuned") or {}).get(method, {})
    models = {str(task): place(task, where) for task, where in experts.items()}
    return models, base if base is not None else place("base", listing.get("base", "base")), dict(tuned)


def _zoo_base(models: Any) -> str | None:
    """The base of the zoo that all models are of, if they are of one."""
    zoos = {
        value.partition("/")[0] if isinstance(value, str) and value.startswith("zoo:") else None for value in models
    }
    zoo = zoos.pop() if len(zoos) == 1 else None
    return f"{zoo}/base" if zoo else None

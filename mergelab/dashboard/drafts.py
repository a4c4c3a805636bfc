"""What the form on the Merge tab holds, as plain values, and its way to a recipe and back.

A *draft* is ``{"method", "parameters": {name: value}, "models": {name: {"on": bool, "parameters":
{…}, "source"}}, "split":
[parameters set for each model], "seed"}``. Methods that need data also have ``"init"`` (what they start from, as a
recipe writes it), ``"statistics"`` (the name of a collected set) and ``"learned"``.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Mapping
from typing import Any

from ..errors import RecipeError
from ..recipe import ModelEntry, Recipe

Draft = dict[str, Any]


def fresh(method: Mapping[str, Any], selection: Mapping[str, Any], old: Draft | None = None) -> Draft:
    """The draft of a method as it is first shown: tuned values where the zoo has them, else the declared defaults.

    Which experts take part and their weights are carried over from ``old`` as far as the method allows.
    """
    tuned = selection.get("tuned", {}).get(method["name"], {})
    parameters = {p["name"]: tuned.get(p["name"], p["default"]) for p in method["parameters"] if p["name"] != "weight"}
    models: dict[str, Any] = {}
    most = method["models"]["max"]
    carried = (old or {}).get("models", {})
    for name, source in selection["experts"].items():
        before = carried.get(name, {"on": True, "parameters": {}})
        on = before["on"] and (most is None or sum(m["on"] for m in models.values()) < most)
        keep = {"weight": before["parameters"]["weight"]} if "weight" in before["parameters"] else {}
        models[name] = {"on": on, "parameters": keep if _takes_weight(method) else {}, "source": source}
    draft = {"method": method["name"], "parameters": parameters, "models": models, "split": [], "seed": 0}
    return draft | _carried(method, selection, old or {})


def _carried(method: Mapping[str, Any], selection: Mapping[str, Any], old: Draft) -> Draft:
    """What a method that needs data has besides: the statistics at hand, and what it starts from."""
    more: Draft = {}
    if method.get("statistics") and not method.get("collects"):
        more["statistics"] = old.get("statistics")
    if method.get("init"):
        known = selection.get("tuned", {}).get("task_arithmetic", {})
        start = {"merge_method": "task_arithmetic", "parameters": {"lambda": known.get("lambda", 0.3)}}
        more["init"] = old.get("init", start if method["name"] == "mats" else None)
    return more


def _takes_weight(method: Mapping[str, Any]) -> bool:
    return any(p["name"] == "weight" and p["per_model"] for p in method["parameters"])


def to_recipe(draft: Draft, method: Mapping[str, Any], selection: Mapping[str, Any]) -> Recipe:
    """The recipe that the draft stands for. Raises :class:`~mergelab.errors.RecipeError` when no expert is chosen."""
    declared = {p["name"]: p for p in method["parameters"]}
    entries = []
    for name, model in draft["models"].items():
        if not model["on"]:
            continue
        own = {k: v for k, v in model["parameters"].items() if k in declared and _differs(v, k, draft, declared)}
        source = selection["experts"][name]
        entries.append(ModelEntry(source, None if source.endswith(f"/{name}") else name, own))
    if not entries:
        raise RecipeError("No expert is chosen: tick at least one under “Experts”.")
    parameters = {k: v for k, v in draft["parameters"].items() if k in declared and k not in draft["split"]}
    return Recipe(
        merge_method=draft["method"],
        models=tuple(entries),
        base_model=None if method["base"] == "unused" else selection["base"],
        parameters=parameters,
        seed=int(draft.get("seed") or 0),
        suite=suite_of(selection),
        **{key: draft[key] for key in _DATA_KEYS if draft.get(key) is not None},
    )


def suite_of(selection: Mapping[str, Any]) -> str | None:
    """A selection's tasks as a recipe names them: by the zoo, which another machine has too, else by the folder."""
    return selection.get("zoo") or selection.get("suite") or None


#: Keys of a recipe that a draft carries as they are.
_DATA_KEYS = ("init", "statistics", "learned", "space")


def _differs(value: Any, name: str, draft: Draft, declared: Mapping[str, Any]) -> bool:
    if name == "weight":
        return value != declared[name]["default"]
    return name in draft["split"]


def from_recipe(recipe: Recipe, method: Mapping[str, Any], selection: Mapping[str, Any]) -> Draft | None:
    """The draft that shows ``recipe`` over ``selection``; None when the recipe merges other models."""
    by_source = {source: name for name, source in selection["experts"].items()}
    if any(entry.model not in by_source for entry in recipe.models):
        return None
    if recipe.base_model not in (None, selection["base"]):
        return None
    draft = fresh(method, selection)
    draft["seed"] = recipe.seed
    draft |= {"init": recipe.init.to_plain() if recipe.init else None} if method.get("init") else {}
    draft |= {key: value for key in _DATA_KEYS[1:] if (value := getattr(recipe, key, None)) is not None}
    per_model = {p["name"] for p in method["parameters"] if p["per_model"]}
    for name in draft["models"]:
        draft["models"][name] |= {"on": False, "parameters": {}}
    for p in method["parameters"]:
        if p["name"] != "weight":
            draft["parameters"][p["name"]] = p["default"]
    shared_weight = None
    for key, value in recipe.parameters.items():
        if key.rstrip("_") == "weight":
            shared_weight = value
        else:
            draft["parameters"][key.rstrip("_") if key.endswith("_") else key] = value
    for entry in recipe.models:
        own = dict(entry.parameters)
        if shared_weight is not None:
            own.setdefault("weight", shared_weight)
        draft["models"][by_source[entry.model]] |= {"on": True, "parameters": own}
        draft["split"] = sorted({*draft["split"], *((set(own) & per_model) - {"weight"})})
    return draft


def selection_of(recipe: Recipe) -> dict[str, Any]:
    """The selection that a recipe over other models names."""
    experts = dict(zip(recipe.names, (entry.model for entry in recipe.models), strict=True))
    return {
        "title": recipe.title or "Models of the recipe",
        "zoo": None,
        "base": recipe.base_model or next(iter(experts.values())),
        "experts": experts,
        "suite": recipe.suite,
        "tuned": {},
    }


def is_tuned(draft: Draft, method: Mapping[str, Any], selection: Mapping[str, Any]) -> bool:
    """Whether every value is the one that the zoo's builder chose on validation data, for all experts."""
    if draft.get("chosen") is not None and draft["chosen"] == _values(draft):
        return True
    tuned = selection.get("tuned", {}).get(draft["method"])
    if not tuned or draft["split"]:
        return False
    wanted = fresh(method, selection)
    same = all(draft["parameters"].get(k) == v for k, v in wanted["parameters"].items())
    weights = all(m["on"] and m["parameters"].get("weight", 1.0) == 1.0 for m in draft["models"].values())
    return same and weights and len(draft["models"]) == len(selection["experts"])


def on_validation(draft: Draft) -> Draft:
    """The draft, marked: its values as they are now were chosen on validation data."""
    return {**draft, "chosen": _values(draft)}


def _values(draft: Draft) -> str:
    kept = ("method", "parameters", "models", "init", "statistics", "split", "seed")
    return json.dumps({key: draft.get(key) for key in kept}, sort_keys=True)


def copied(draft: Draft) -> Draft:
    """A deep copy, for changing."""
    return copy.deepcopy(draft)


def shown(draft: Draft) -> tuple[Draft, Draft]:
    """The draft twice: for the form, which must be drawn anew even if it last showed the same, and itself."""
    return {**copied(draft), "drawn": uuid.uuid4().hex}, copied(draft)


def separated(draft: Draft, names: list[str]) -> Draft:
    """``draft`` with the parameters ``names`` set for each model: they start from the value that all shared."""
    new = copied(draft)
    for model in new["models"].values():
        for name in draft["split"]:
            if name not in names:
                model["parameters"].pop(name, None)
        for name in names:
            model["parameters"].setdefault(name, draft["parameters"][name])
    return {**new, "split": list(names)}


def validate(recipe: Recipe) -> None:
    """Check the method, its parameters and the number of models, without opening a checkpoint; raises MethodError."""
    from ..methods import get

    method = get(recipe.merge_method)
    own = {name: dict(entry.parameters) for name, entry in zip(recipe.names, recipe.models, strict=True)}
    values = method.resolve(recipe.parameters, list(recipe.names), {k: v for k, v in own.items() if v})
    method.check_models(len(recipe.models), recipe.base_model is not None, values)

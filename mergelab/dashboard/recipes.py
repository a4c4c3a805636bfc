"""The recipe in four forms, for reading and for taking along."""

from __future__ import annotations

import html
import json
from typing import Any

from ..errors import MergeLabError
from ..recipe import Recipe
from .views import link


def forms(recipe: Recipe) -> dict[str, str]:
    """YAML, JSON, the command line and Python that do the same merge."""
    return {
        "yaml": recipe.to_yaml(),
        "json": recipe.to_json(),
        "shell": f"{merging(recipe)}\npython -m mergelab evaluate merged --suite {recipe.suite or 'starter'}",
        "python": python(recipe),
    }


def merging(recipe: Recipe) -> str:
    """The commands that write the merge of ``recipe.yaml`` to the folder ``merged``."""
    return _statistics(recipe) + "python -m mergelab merge recipe.yaml --out merged"


def _statistics(recipe: Recipe) -> str:
    """The command that collects what the recipe names, where this page collected it."""
    if recipe.statistics is None:
        return ""
    from ..runs.matched import command, is_kept_name

    try:
        zoo = f"zoo:{recipe.suite}/"
        whole = all(entry.model.startswith(zoo) for entry in recipe.models)
        return (
            command(recipe.statistics, recipe.suite if whole else None) + "\n"
            if is_kept_name(recipe.statistics)
            else ""
        )
    except MergeLabError as error:  # the recipe is from another machine, or the set has gone
        return f"# {error}\n"


def python(recipe: Recipe) -> str:
    """A snippet that merges the same weights with the library."""
    from ..methods import get

    if get(recipe.merge_method).learns:
        return (
            "from mergelab.engine import merge_to_memory\nfrom mergelab.recipe import Recipe\n"
            "from mergelab.runs.trained import planned, prepare\n\nrecipe = Recipe.read('recipe.yaml')\n"
            "merged = merge_to_memory(planned(recipe, prepare(recipe)))  # learns the coefficients first"
        )
    models = {name: entry.model for name, entry in zip(recipe.names, recipe.models, strict=True)}
    lines = ["import mergelab", "", "merged = mergelab.merge(", f"    {recipe.merge_method!r},"]
    lines.append("    {")
    lines += [f"        {name!r}: {source!r}," for name, source in models.items()]
    lines.append("    },")
    if recipe.base_model is not None:
        lines.append(f"    base={recipe.base_model!r},")
    if recipe.seed:
        lines.append(f"    seed={recipe.seed},")
    if recipe.statistics:
        lines.append(f"    statistics={recipe.statistics!r},")
    if recipe.init is not None:
        lines.append(f"    init={recipe.init.to_plain()!r},")
    if recipe.dtype:
        lines.append(f"    dtype={recipe.dtype!r},")
    for name, value in _parameters(recipe).items():
        lines.append(f"    {'lambda_' if name == 'lambda' else name}={value!r},")
    return "\n".join([*lines, ")"])


def _parameters(recipe: Recipe) -> dict[str, Any]:
    """Values per parameter; those that differ between models as a list in the models' order."""
    from ..methods import get

    values: dict[str, Any] = dict(recipe.parameters)
    own = {name for entry in recipe.models for name in entry.parameters}
    for name in sorted(own):
        default = values.get(name, get(recipe.merge_method).parameter(name).default)
        values[name] = [entry.parameters.get(name, default) for entry in recipe.models]
    return values


def files(recipe: Recipe) -> str:
    """Links that save the recipe."""
    stem = f"{recipe.merge_method}-{recipe.hash[:8]}"
    title = html.escape(recipe.hash[:12])
    yaml = link("Save as YAML", recipe.to_yaml(), f"{stem}.yaml", "application/yaml")
    data = link("Save as JSON", recipe.to_json(), f"{stem}.json", "application/json")
    mark = f'<span class="ml-hash" title="{html.escape(recipe.hash)}">hash {title}</span>'
    return f'<p class="ml-files">{yaml}{data}{mark}</p>'


def read(text: str) -> Recipe:
    """A recipe that a person pasted or opened: JSON when it starts with a brace, else YAML."""
    text = text.strip()
    if text.startswith("{"):
        try:
            json.loads(text)
        except ValueError:
            return Recipe.from_yaml(text)
        return Recipe.from_json(text)
    return Recipe.from_yaml(text)

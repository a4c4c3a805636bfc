"""The recipe in four forms, for reading and for taking along."""

from __future__ import annotations

import html
import json
from typing import Any

from ..recipe import Recipe
from .views import link


def forms(recipe: Recipe) -> dict[str, str]:
    """YAML, JSON, the command line and Python that do the same merge."""
    return {
        "yaml": recipe.to_yaml(),
        "json": recipe.to_json(),
        "shell": "python -m mergelab merge recipe.yaml --out merged\npython -m mergelab evaluate merged --suite "
        + (recipe.suite or "starter"),
        "python": python(recipe),
    }


def python(recipe: Recipe) -> str:
    """A snippet that merges the same weights with the library."""
    models = {name: entry.model for name, entry in zip(recipe.names, recipe.models, strict=True)}
    lines = ["import mergelab", "", "merged = mergelab.merge(", f"    {recipe.merge_method!r},"]
    lines.append("    {")
    lines += [f"        {name!r}: {source!r}," for name, source in models.items()]
    lines.append("    },")
    if recipe.base_model is not None:
        lines.append(f"    base={recipe.base_model!r},")
    if recipe.seed:
        lines.append(f"    seed={recipe.seed},")
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

"""The card of a checkpoint that a routed model was merged into."""

from __future__ import annotations

from collections.abc import Sequence

from .. import __version__
from .routed import RoutedModel


def export_card(routed: RoutedModel, weights: Sequence[float]) -> str:
    """Front matter that the Hub reads, the weights, and the recipe."""
    recipe = routed.settings.get("recipe")
    parents = [str(entry.get("model")) for entry in recipe["models"]] if recipe else []
    hub = list(dict.fromkeys(source[4:].partition("@")[0] for source in parents if source.startswith("hub:")))
    matter = ["tags:", "  - merge", "  - mergelab"]
    if hub:
        matter += ["base_model:", *(f'  - "{name}"' for name in hub), "base_model_relation: merge"]
    sources = dict(zip(routed.names, parents, strict=False)) if len(parents) == len(routed.names) else {}
    rows = [f"| {_cell(n)} | {w:g} | {_cell(sources.get(n, ''))} |" for n, w in zip(routed.names, weights, strict=True)]
    rank = f"at most {routed.rank} directions a matrix" if routed.rank else "vectors and whole matrices"
    lines = [
        "---", *matter, "---", "", "# A routed model, merged once for fixed weights", "",
        "Shared weights plus each task's exclusive part times its weight (Twin-Merging, Lu et al. 2024, "
        f"<https://arxiv.org/abs/2406.15479>); exclusive parts of {rank}. Made with MergeLab {__version__}. Every "
        "input gets the same mixture here: there is no router in this folder.", "",
        "| task | weight | expert |", "|---|---|---|", *rows, "",
    ]  # fmt: skip
    if recipe:
        from .recipe import TwinRecipe

        lines += ["## Recipe", "", "````yaml", TwinRecipe.from_dict(recipe).to_yaml().rstrip("\n"), "````", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Untrusted text as one harmless table cell."""
    return "".join(f"\\{c}" if c in r"\|`*_[]<>#" else c if c.isprintable() else " " for c in text)

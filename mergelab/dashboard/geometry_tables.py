"""From :mod:`mergelab.analysis` to plain tables for the Geometry tab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..analysis import Geometry

WHOLE = "whole model"


def tables(found: Geometry) -> dict[str, Any]:
    """Plain lists and dicts.

    ``names`` and ``layers``; ``cosine``: ``"whole model"`` or layer -> matrix; ``norms``: name -> one per layer,
    ``norm``: name -> whole model; ``conflict``: one per layer, ``conflict_whole``.
    """
    cosine = {WHOLE: found.cosine.whole, **dict(zip(found.layers, found.cosine.by_layer, strict=True))}
    return {
        "names": list(found.names),
        "layers": list(found.layers),
        "cosine": {layer: [list(row) for row in matrix] for layer, matrix in cosine.items()},
        "norms": {name: list(row) for name, row in zip(found.names, found.norms.norms, strict=True)},
        "norm": dict(zip(found.names, found.norms.whole, strict=True)),
        "conflict": list(found.conflict.rates),
        "conflict_whole": found.conflict.whole,
    }

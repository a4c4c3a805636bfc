"""Which layer of a model a tensor belongs to, from its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

EMBEDDINGS, REST = "embeddings", "head/norm"

#: `encoder.layer.3.`, `blocks.3.`, `transformer.resblocks.3.`, `model.layers.3.`, `transformer.h.3.`; the outermost
#: one counts (T5's `block.3.layer.1.` is block 3).
_BLOCK = re.compile(r"^(?P<tower>.*?)(?:^|\.)(?:layers?|blocks?|resblocks|h)\.(?P<index>\d+)(?:\.|$)")
#: A ResNet's stages: `layer2.0.conv1` is stage 2.
_STAGE = re.compile(r"^(?P<tower>.*?)(?:^|\.)layer(?P<index>\d+)\.\d+\.")
_FIRST = re.compile(
    r"embed|cls_token|mask_token|class_token|(^|\.)(conv1|stem|wte|wpe|shared|pre_layrnorm|ln_pre|norm_pre)(\.|$)"
)
_TOWERS = (("text", "text"), ("visual", "vision"), ("vision", "vision"), ("decoder", "decoder"), ("encoder", "encoder"))


def layers_of(names: Iterable[str]) -> dict[str, str]:
    """Tensor name -> layer: ``embeddings``, ``block 0``, ``block 1``, ..., ``head/norm``.

    The mapping is in the order of the layers, then as given. A model with two towers has ``vision block 0`` and
    ``text block 0`` (or ``encoder``, ``decoder``, or the towers' own names).
    """
    names = list(names)
    found = {name: match for name in names if (match := _BLOCK.match(name) or _STAGE.match(name))}
    towers = list(dict.fromkeys(match["tower"] for match in found.values()))
    titles = _titles(towers)
    place: dict[str, tuple[tuple[int, int, int], str]] = {}
    for name in names:
        match = found.get(name)
        if match is not None:
            tower, index = match["tower"], int(match["index"])
            place[name] = ((1, towers.index(tower), index), f"{titles[tower]}block {index}")
        elif _FIRST.search(name):
            place[name] = ((0, 0, 0), EMBEDDINGS)
        else:
            place[name] = ((2, 0, 0), REST)
    return {name: place[name][1] for name in sorted(names, key=lambda n: place[n][0])}


def _titles(towers: list[str]) -> dict[str, str]:
    """What to call each tower in front of ``block``; nothing where there is only one."""
    if len(towers) == 1:
        return {towers[0]: ""}
    titles = {}
    for tower in towers:
        short = next((title for key, title in _TOWERS if key in tower), None)
        if short is None:  # OpenCLIP keeps its text tower as a bare `transformer` beside `visual.transformer`
            short = "text" if tower == "transformer" and any("visual" in t for t in towers) else tower or "main"
        titles[tower] = f"{short} "
    if len(set(titles.values())) < len(titles):
        titles = {tower: f"{tower or 'main'} " for tower in towers}
    return titles

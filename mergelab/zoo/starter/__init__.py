"""The starter suite: eight seen and two unseen tasks, each made by a pure function of a seed from packages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .captured import fashion, mnist, optdigits
from .drawn import captcha, clocks, shapes
from .emoji import emoji
from .glyphs import letters, scripts
from .pictures import Source
from .textures import textures

#: In suite order: captured, drawn, unseen.
SOURCES: dict[str, Callable[[int], Source]] = {
    "mnist": mnist,
    "optdigits": optdigits,
    "fashion": fashion,
    "textures": textures,
    "emoji": emoji,
    "scripts": scripts,
    "captcha": captcha,
    "shapes": shapes,
    "letters": letters,
    "clocks": clocks,
}


def make(name: str, seed: int = 0) -> Source:
    """One task, with every picture that occurs in two splits taken out of the larger one."""
    source = SOURCES[name](seed)
    taken: set[bytes] = set()
    splits = {}
    for split in ("test", "val", "train"):
        x, y = source.splits[split]
        keys = [image.tobytes() for image in x]
        fresh = np.array([key not in taken for key in keys])
        taken.update(keys)
        splits[split] = (np.ascontiguousarray(x[fresh]), np.ascontiguousarray(y[fresh]))
    from dataclasses import replace

    return replace(source, splits=splits)

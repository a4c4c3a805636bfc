"""The task textures: which photograph a patch is from, trained and tested on different parts of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..layout import ZooError
from .pictures import SIZE, Source, coarse, generator, turns

#: class name -> (package, file); all are photographs or micrographs, none is drawn.
PHOTOGRAPHS = {
    "brick wall": ("skimage", "data/brick.png"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "cup of coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "stained tissue": ("skimage", "data/ihc.png"),
    "moon": ("skimage", "data/moon.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "printed page": ("skimage", "data/page.png"),
    "summer palace": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
GRID = 4  # each photograph is cut into GRID x GRID cells; a cell belongs to one split only
CELLS = {"test": 4, "val": 3, "train": 9}


def textures(seed: int, train: int = 3500, val: int = 196, test: int = 294) -> Source:
    """Grey patches of fourteen photographs; a cell of a 4 x 4 grid gives patches to one split only."""
    counts = {"train": train, "val": val, "test": test}
    pictures = [_photograph(*PHOTOGRAPHS[name]) for name in PHOTOGRAPHS]
    splits = {}
    for split, n in counts.items():
        y = turns(len(pictures), n)
        rng = generator("textures", seed, split)
        x = np.stack([_patch(pictures[label], _cells(seed, int(label))[split], rng) for label in y])
        splits[split] = (x, y)
    return Source(
        name="textures",
        title="Textures",
        classes=tuple(PHOTOGRAPHS),
        templates=("a close-up photo of a {}.", "a patch of a photo: {}."),
        source="photographs in the PyPI packages scikit-image and scikit-learn",
        licence="CC0, public domain or no known copyright restrictions, as skimage.data says of each (moon, page and "
        "motorcycle: nothing said; scikit-image itself is BSD-3-Clause); CC BY 2.0 by "
        "danielbuechele (china.jpg, summer palace) and vultilion (flower.jpg), both on Flickr (scikit-learn)",
        note="Captured. Each photograph is cut into 16 cells: 9 train, 3 validate, 4 test; patches stay inside a cell.",
        splits=splits,
        epochs=4,
    )


def _photograph(package: str, file: str) -> Image.Image:
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ZooError(f"The task textures needs {package}. Run `pip install mergelab[build]`.")
    return Image.open(Path(spec.origin).parent / file).convert("L")


def _cells(seed: int, label: int) -> dict[str, list[int]]:
    order = generator("textures cells", seed, label).permutation(GRID * GRID).tolist()
    out, start = {}, 0
    for split, n in CELLS.items():
        out[split], start = order[start : start + n], start + n
    return out


def _patch(picture: Image.Image, cells: list[int], rng: np.random.Generator) -> np.ndarray:
    """A square patch inside one of ``cells``, 60 to 100 % of the cell, maybe mirrored: uint8 ``[32, 32]``."""
    w, h = picture.width / GRID, picture.height / GRID
    cell = int(rng.choice(cells))
    side = min(w, h) * rng.uniform(0.6, 1.0)
    left = (cell % GRID) * w + rng.uniform(0, w - side)
    top = (cell // GRID) * h + rng.uniform(0, h - side)
    box = (left, top, left + side, top + side)
    patch = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=box))
    bright = (patch.astype(np.float32) - 128) * rng.uniform(0.8, 1.2) + 128 + rng.uniform(-15, 15)
    return coarse(bright[:, ::-1] if rng.random() < 0.5 else bright)

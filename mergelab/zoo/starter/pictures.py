"""What the drawn tasks of the starter zoo share: seeded generators, backgrounds, distortion, and fonts.

Every picture is 32 x 32, uint8. Colours are rounded to 32 levels a channel, which no eye and no model minds and which
lets a pack compress.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from ..layout import ZooError

SIZE = 32
#: Where Debian's packages put fonts.
FONTS = Path("/usr/share/fonts")


@dataclass(frozen=True)
class Source:
    """One task of the starter suite: what suite.json says about it, and its splits of ``(images, labels)``.

    ``splits["train"]`` is all that training may use; ``ship`` says how many of its first pictures go into the pack.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    source: str
    licence: str
    note: str
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(repr=False)
    seen: bool = True
    ship: int = 1000
    epochs: int = 3


def generator(*names: str | int) -> np.random.Generator:
    """A generator of its own for each combination of names, the same on every machine."""
    return np.random.default_rng([zlib.crc32(n.encode()) if isinstance(n, str) else n for n in names])


def turns(classes: int, n: int) -> np.ndarray:
    """``n`` labels that take turns, so that any prefix is balanced: uint8 ``[n]``."""
    return (np.arange(n) % classes).astype(np.uint8)


def balanced(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shuffled order of the labels ``y`` in which classes take turns as long as they last: int64 ``[N]``."""
    order = rng.permutation(len(y))
    place = np.empty(len(y), dtype=np.int64)  # how many of the same class came before
    seen: dict[int, int] = {}
    for i in order:
        place[i] = seen.get(int(y[i]), 0)
        seen[int(y[i])] = int(place[i]) + 1
    return order[np.argsort(place[order], kind="stable")]


def coarse(x: np.ndarray) -> np.ndarray:
    """Colours rounded to 32 levels a channel."""
    return ((np.clip(x, 0, 255).astype(np.uint8) >> 3) * 8 + 4).astype(np.uint8)


def backdrop(rng: np.random.Generator, size: int, *, low: int = 0, high: int = 255, spread: float = 40) -> Image.Image:
    """A soft coloured ground: one random colour, varied by a 3 x 3 grid of noise that is enlarged smoothly."""
    colour = rng.uniform(low + spread, high - spread, 3)
    grid = np.clip(colour + rng.uniform(-spread, spread, (3, 3, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)


def contrasting(rng: np.random.Generator, ground: Image.Image, least: float = 90) -> tuple[int, int, int]:
    """A random colour at least ``least`` levels of brightness away from the mean of ``ground``."""
    weights = np.array([0.299, 0.587, 0.114])
    brightness = float((np.asarray(ground, dtype=np.float32).mean((0, 1)) * weights).sum())
    while True:
        colour = rng.integers(0, 256, 3)
        if abs(float((colour * weights).sum()) - brightness) >= least:
            return int(colour[0]), int(colour[1]), int(colour[2])


def warp(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    rotate: float,
    scale: tuple[float, float],
    shear: float = 0.0,
    shift: float = 0.0,
) -> Image.Image:
    """``image`` under a random affine map about its middle: degrees, factors, shear, and shift as part of the width."""
    w, h = image.size
    angle = np.deg2rad(rng.uniform(-rotate, rotate))
    factor = rng.uniform(*scale)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    skew = np.array([[1.0, rng.uniform(-shear, shear)], [rng.uniform(-shear, shear), 1.0]])
    back = np.linalg.inv(turn @ skew * factor)  # PIL wants the map from the result to the source
    middle = np.array([w / 2, h / 2])
    offset = middle - back @ (middle + rng.uniform(-shift, shift, 2) * w)
    data = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    return image.transform((w, h), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)


def small(image: Image.Image) -> np.ndarray:
    """``image`` at 32 x 32 with coarse colours: uint8 ``[32, 32]`` or ``[32, 32, 3]``."""
    return coarse(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)))


def font_files(names: Sequence[str]) -> list[Path]:
    """The installed font files whose names, without style, are among ``names``, sorted by file name."""
    wanted = set(names)
    return sorted((p for p in _all_fonts() if p.stem.split("-")[0] in wanted), key=lambda p: p.name)


def font_file(name: str, package: str) -> Path:
    """One font file by its whole name; an error that names the Debian ``package`` when it is not installed."""
    for path in _all_fonts():
        if path.name == name:
            return path
    raise ZooError(f"The font {name} is not installed. Run `apt-get install {package}`.")


def _all_fonts() -> list[Path]:
    found = [p for p in FONTS.rglob("*") if p.suffix in (".ttf", ".otf")] if FONTS.is_dir() else []
    if not found:
        raise ZooError(
            "No fonts were found in /usr/share/fonts. Run `apt-get install fonts-noto-core fonts-noto-color-emoji "
            "fonts-freefont-ttf fonts-dejavu fonts-liberation fonts-hosny-amiri`."
        )
    return found


def letter(character: str, font: Path, size: int = 64, canvas: int = 96) -> Image.Image:
    """``character`` white on black in the middle of a square canvas, by the middle of its ink; mode ``L``."""
    from PIL import ImageDraw

    face = ImageFont.truetype(str(font), size)
    image = Image.new("L", (canvas, canvas), 0)
    left, top, right, bottom = face.getbbox(character)
    fit = min(1.0, 0.8 * canvas / max(right - left, bottom - top, 1))
    if fit < 1.0:
        face = ImageFont.truetype(str(font), max(8, int(size * fit)))
        left, top, right, bottom = face.getbbox(character)
    place = ((canvas - right - left) / 2, (canvas - bottom - top) / 2)
    ImageDraw.Draw(image).text(place, character, fill=255, font=face)
    return image

"""The task emoji: which of 40, drawn in colour by Noto Color Emoji, distorted, on a soft coloured ground."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .pictures import Source, backdrop, font_file, generator, small, turns, warp

EMOJI = {
    "dog": "🐶", "cat": "🐱", "fox": "🦊", "bear": "🐻", "panda": "🐼", "lion": "🦁", "tiger": "🐯", "pig": "🐷",
    "frog": "🐸", "monkey": "🐵", "penguin": "🐧", "owl": "🦉", "bee": "🐝", "ladybird": "🐞", "octopus": "🐙",
    "fish": "🐠", "sunflower": "🌻", "rose": "🌹", "cactus": "🌵", "mushroom": "🍄", "apple": "🍎", "pear": "🍐",
    "orange": "🍊", "lemon": "🍋", "strawberry": "🍓", "pizza": "🍕", "hamburger": "🍔", "doughnut": "🍩",
    "football": "⚽", "basketball": "🏀", "car": "🚗", "bus": "🚌", "rocket": "🚀", "sailing boat": "⛵",
    "house": "🏠", "umbrella": "☔", "guitar": "🎸", "key": "🔑", "light bulb": "💡", "heart": "❤",
}  # fmt: skip
FACE = 109  # the only size that the font's bitmaps have


def emoji(seed: int, train: int = 3200, val: int = 200, test: int = 320) -> Source:
    """Forty emoji; a picture is one emoji turned, scaled, sheared and moved, every split with seeds of its own."""
    font = ImageFont.truetype(str(font_file("NotoColorEmoji.ttf", "fonts-noto-color-emoji")), FACE)
    glyphs = [_glyph(character, font) for character in EMOJI.values()]
    splits = {}
    for split, n in {"train": train, "val": val, "test": test}.items():
        rng = generator("emoji", seed, split)
        y = turns(len(glyphs), n)
        splits[split] = (np.stack([_picture(glyphs[int(label)], rng) for label in y]), y)
    return Source(
        name="emoji",
        title="Emoji",
        classes=tuple(EMOJI),
        templates=("an emoji of a {}.", "a small icon of a {}."),
        source="drawn from the font Noto Color Emoji (Google), Debian package fonts-noto-color-emoji",
        licence="SIL OFL 1.1 (font)",
        note="Drawn. The emoji are the classes, so splits share them; distortions and grounds are drawn anew for each.",
        splits=splits,
        epochs=4,
    )


def _glyph(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    image = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((80, 80), character, font=font, embedded_color=True, anchor="mm")
    return image


def _picture(glyph: Image.Image, rng: np.random.Generator) -> np.ndarray:
    ground = backdrop(rng, 160, spread=50)
    ground.paste(drawn := warp(glyph, rng, rotate=60, scale=(0.65, 1.05), shear=0.25, shift=0.12), (0, 0), drawn)
    if rng.random() < 0.3:  # a grey picture, so that colour alone is not enough
        ground = ground.convert("L").convert("RGB")
    return small(ground)

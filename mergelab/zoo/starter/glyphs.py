"""Tasks drawn from fonts: scripts (which alphabet a letter is from) and letters (which capital it is)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ..layout import ZooError
from .pictures import Source, coarse, font_files, generator, letter, small, turns, warp

#: Letters that no other alphabet of the list shares by shape.
ALPHABETS = {
    "Latin": "DFGJLNQRSUVWZabdefghjklmnqrtuvwz",
    "Greek": "ΔΘΛΞΣΨΩαβγδζηθλμξπσφψω",
    "Cyrillic": "БДЖИЙЦЧШЩЪЫЬЭЮЯбвджзийцчшщъыьэюя",
    "Georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
    "Hebrew": "אבגדהזחטכלמנעפצקרשתםףץ",
    "Arabic": "بتثجحخدذرسشصضطظعغفقكلمنهوي",
    "Devanagari": "अआइईउऊएकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह",
    "Bengali": "অআইঈউঊএকখগঘচছজঝটঠডঢণতথদধনপফবভমযরলশষসহ",
    "Ethiopic": "ሀለሐመሠረሰሸቀበተቸኀነኘአከወዐዘየደጀገጠጨጰጸፈፐሁሉሙሩሱቡቱኑኩዙዱጉጡፉሊሚሪቢቲኒኪዚዲጊ",
    "Thai": "กขคฆงจฉชซฌญฎฏฐฑฒณดตถทธนบปผฝพฟภมยรลวศษสหฬอฮ",
}
_FREE = ("FreeSerif", "FreeSerifBold", "FreeSerifItalic", "FreeSerifBoldItalic")
_FREE_SANS = ("FreeSans", "FreeSansBold", "FreeSansOblique", "FreeSansBoldOblique")
_WESTERN = (
    "DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "LiberationSans", "LiberationSerif", "LiberationMono", *_FREE_SANS,
)  # fmt: skip
#: alphabet -> families that train; every alphabet validates on FreeSerif, a family that trains nothing.
TRAIN: Mapping[str, tuple[str, ...]] = {
    "Latin": (*_WESTERN, "NotoSans", "NotoSansMono"),
    "Greek": (*_WESTERN, "NotoSans", "NotoSansMono"),
    "Cyrillic": (*_WESTERN, "NotoSans", "NotoSansMono"),
    "Georgian": ("NotoSansGeorgian", "DejaVuSans", "DejaVuSerif", *_FREE_SANS),
    "Hebrew": ("NotoSansHebrew", "DejaVuSans", "DavidCLM", "FrankRuehlCLM", "NachlieliCLM", *_FREE_SANS),
    "Arabic": ("NotoSansArabic", "NotoNaskhArabic", "NotoKufiArabic", "DejaVuSans", "KacstBook", "KacstTitle"),
    "Devanagari": ("NotoSansDevanagari", "Lohit", *_FREE_SANS),
    "Bengali": ("NotoSansBengali", *_FREE_SANS),
    "Ethiopic": ("NotoSansEthiopic",),
    "Thai": ("NotoSansThai", "NotoLoopedThai", "Garuda", "Kinnari", "Loma"),
}
TEST: Mapping[str, tuple[str, ...]] = {
    **{name: (f"NotoSerif{name}",) for name in ALPHABETS},
    "Latin": ("NotoSerif",),
    "Greek": ("NotoSerif",),
    "Cyrillic": ("NotoSerif",),
    "Arabic": ("Amiri",),
}
LETTER_FAMILIES = {
    "train": ("DejaVuSans", "DejaVuSerif", "LiberationSans", "LiberationMono", *_FREE_SANS, "NotoSans"),
    "val": _FREE,
    "test": ("NotoSerif", "LiberationSerif", "NotoSansMono"),
}
_PACKAGES = (
    "fonts-noto-core fonts-noto-mono fonts-freefont-ttf fonts-dejavu fonts-liberation fonts-hosny-amiri fonts-kacst "
    "fonts-thai-tlwg fonts-lohit-deva culmus"
)


def scripts(seed: int, train: int = 8000, val: int = 200, test: int = 300) -> Source:
    """Ten alphabets; font families are the items: those that test train nothing."""
    names = tuple(ALPHABETS)
    families: Mapping[str, Mapping[str, tuple[str, ...]]]
    families = {"train": TRAIN, "val": dict.fromkeys(names, _FREE), "test": TEST}
    splits = {}
    for split, n in {"train": train, "val": val, "test": test}.items():
        fonts = [usable(families[split][name], ALPHABETS[name]) for name in names]
        rng = generator("scripts", seed, split)
        y = turns(len(names), n)
        splits[split] = (np.stack([_written(ALPHABETS[names[k]], fonts[k], rng) for k in y]), y)
    return Source(
        name="scripts",
        title="Scripts",
        classes=names,
        templates=("a letter of the {} alphabet.", "{} script."),
        source="drawn from fonts in Debian: Noto, GNU FreeFont, DejaVu, Liberation, Amiri, KACST, Culmus, TLWG, Lohit",
        licence="SIL OFL 1.1 (Noto, Liberation, Amiri, Lohit), Bitstream Vera (DejaVu), GPL with font exception "
        "(FreeFont, Culmus, TLWG), GPL-2 (KACST)",
        note="Drawn. Which alphabet a letter is from; tested on Noto Serif and Amiri, validated on FreeSerif, trained "
        "on other families.",
        splits=splits,
        epochs=4,
    )


def letters(seed: int, train: int = 520, val: int = 130, test: int = 260) -> Source:
    """Unseen: the 26 Latin capitals; font families are the items."""
    capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    splits = {}
    for split, n in {"train": train, "val": val, "test": test}.items():
        fonts = usable(LETTER_FAMILIES[split], capitals)
        rng = generator("letters", seed, split)
        y = turns(26, n)
        splits[split] = (np.stack([_written(capitals[k], fonts, rng) for k in y]), y)
    return Source(
        name="letters",
        title="Capital letters",
        classes=tuple(capitals),
        templates=("the letter {}.", "a photo of the capital letter {}."),
        source="drawn from fonts in Debian: Noto, GNU FreeFont, DejaVu, Liberation",
        licence="SIL OFL 1.1 (Noto, Liberation), Bitstream Vera (DejaVu), GPL-3 with font exception (FreeFont)",
        note="Drawn. No expert was trained on it; its training pictures are the support of the nearest class mean.",
        splits=splits,
        seen=False,
        ship=train,
    )


def usable(families: tuple[str, ...], characters: str) -> list[Path]:
    """The installed styles of ``families`` that have every one of ``characters``."""
    try:
        from fontTools.ttLib import TTFont
    except ImportError:
        raise ZooError("Drawing letters needs fonttools. Run `pip install mergelab[build]`.") from None
    wanted = {ord(c) for c in characters}
    installed = font_files(families)
    absent = set(families) - {path.stem.split("-")[0] for path in installed}
    if absent:
        raise ZooError(f"The font {sorted(absent)[0]} is not installed. Run `apt-get install {_PACKAGES}`.")
    found = [p for p in installed if wanted <= set(TTFont(p, lazy=True).getBestCmap() or {})]
    if not found:
        raise ZooError(f"None of the installed styles of {', '.join(families)} has all of {characters!r}.")
    return found


def _written(characters: str, fonts: list[Path], rng: np.random.Generator) -> np.ndarray:
    """One letter on paper: turned, sheared, of any weight of ink and paper, sometimes light on dark."""
    image: Image.Image = letter(characters[rng.integers(len(characters))], fonts[rng.integers(len(fonts))])
    weight = rng.random()  # bolder or lighter than the font has it
    if weight < 0.4:
        image = image.filter(ImageFilter.MaxFilter(3) if weight < 0.22 else ImageFilter.MinFilter(3))
    image = warp(image, rng, rotate=15, scale=(0.9, 1.3), shear=0.15, shift=0.05)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
    ink = small(image).astype(np.float32) / 255
    paper, strength = rng.uniform(170, 255), rng.uniform(110, 170)
    grey = paper - strength * ink
    return coarse(255 - grey if rng.random() < 0.3 else grey)

"""A picture from anywhere (uploaded, drawn, an array) as the tasks keep theirs: uint8 [1, 32, 32, 3]."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import TaskError

SIZE = 32
#: A photograph of 64 megapixels takes 200 MB when opened; larger ones are refused from their header.
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 50_000_000
#: Plain picture formats; none that runs a program (EPS) or holds documents (PDF).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM")
_ASK = "Give a PNG, JPEG, WebP, GIF or BMP picture."


def clean(source: Any, size: int = SIZE) -> np.ndarray:
    """uint8 [1, size, size, 3] from a file's path or bytes, a PIL picture, an array, or what a drawing pad gives.

    The whole picture is kept: it is scaled to fit (Lanczos) and padded to a square with the median colour of its
    border. Rotation from the camera is applied; of an animation the first frame counts; transparency is laid on white,
    or on black where what is visible is light. A colour picture of the right size comes back unchanged.

    Arrays: [H, W], [H, W, 1 to 4] or channels first; uint8, booleans, 16-bit, or floats between 0 and 1 (or 255).

    Raises:
        TaskError: not a picture, cut off, empty, or too large; says which.
    """
    picture = _rgb(_open(source))
    width, height = picture.size
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    border = _border_colour(picture)
    if picture.size != inner:
        picture = picture.resize(inner, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if inner != (size, size):
        square = Image.new("RGB", (size, size), border)
        square.paste(picture, ((size - inner[0]) // 2, (size - inner[1]) // 2))
        picture = square
    return np.asarray(picture, dtype=np.uint8)[None].copy()


def _open(source: Any) -> Image.Image:
    """A loaded PIL picture of any mode."""
    if source is None:
        raise TaskError(f"There is no picture. {_ASK}")
    if isinstance(source, Mapping):  # a drawing pad: background, layers, and all of them together
        return _open(source.get("composite"))
    if isinstance(source, Image.Image):
        return _load(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source))
    if isinstance(source, (str, Path)):
        return _from_bytes(_read(Path(source)))
    return _from_array(source)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise TaskError(
            f"The picture {path.name[:80]!r} cannot be read ({getattr(error, 'strerror', error)})."
        ) from None


def _from_bytes(raw: bytes) -> Image.Image:
    if not raw:
        raise TaskError(f"The picture is an empty file. {_ASK}")
    if len(raw) > MAX_FILE_BYTES:
        raise TaskError(f"The picture is larger than {MAX_FILE_BYTES // 10**6} MB. Make it smaller.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns from half of its own cap on; ours is checked below
            picture = Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:
        raise TaskError(f"This is not a picture that can be read. {_ASK}") from None
    except Image.DecompressionBombError:
        raise TaskError(
            f"The picture has far more than {MAX_PIXELS // 10**6} million pixels. Make it smaller."
        ) from None
    except Exception as error:  # decoders raise anything on damaged headers
        raise TaskError(f"The picture cannot be opened ({_first(error)}). {_ASK}") from None
    return _load(picture)


def _load(picture: Image.Image) -> Image.Image:
    """Decode, after looking at the size that the header declares."""
    width, height = picture.size
    _check_size(width, height)
    try:
        picture.load()
        return ImageOps.exif_transpose(picture)
    except Exception as error:
        raise TaskError(f"The picture is damaged or cut off ({_first(error)}). Get it again.") from None


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise TaskError("The picture is empty: it has no pixels.")
    if width * height > MAX_PIXELS:
        raise TaskError(
            f"The picture has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are read. "
            "Make it smaller."
        )


def _from_array(source: Any) -> Image.Image:
    try:
        array = np.asarray(source)
    except Exception:
        array = np.asarray(None)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4) and array.shape[0] in (1, 2, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if (
        array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4))
        or array.dtype.kind not in "buif"
    ):
        raise TaskError(
            f"An array of {array.dtype} and shape {list(array.shape)} is not a picture; it must be [H, W] or [H, W, 3]."
        )
    _check_size(array.shape[1], array.shape[0])
    pixels = _to_bytes(array)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """Any numbers as uint8, by the range that their type or their values say."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return (array / 257).round().astype(np.uint8)
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise TaskError("The picture holds NaN or infinity. Give numbers from 0 to 255, or from 0 to 1.")
    if array.dtype.kind == "f" and values.max() <= 1:
        values = values * 255
    return values.round().clip(0, 255).astype(np.uint8)


def _rgb(picture: Image.Image) -> Image.Image:
    """Any mode as RGB, transparency laid on a ground that it stands out from."""
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        array = np.asarray(picture)
        if picture.mode == "I":  # Pillow opens 16-bit greys as 32-bit integers
            array = array.clip(0, 65535).astype(np.uint16) if array.max() > 255 else array.clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(_to_bytes(array))
    clear = picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info
    if not clear:
        return picture.convert("RGB")
    layered = picture.convert("RGBA")
    array = np.asarray(layered)
    alpha = array[..., 3].astype(np.float64)
    if not alpha.any():
        raise TaskError("The picture is fully transparent: there is nothing in it to look at.")
    ground = 255
    if (alpha < 255).any():
        light = float((array[..., :3].mean(-1) * alpha).sum() / alpha.sum())
        ground = 0 if light > 160 else 255
    whole = Image.new("RGBA", layered.size, (ground, ground, ground, 255))
    return Image.alpha_composite(whole, layered).convert("RGB")


def _border_colour(picture: Image.Image) -> tuple[int, int, int]:
    """The median of the outermost pixels, per channel."""
    array = np.asarray(picture)
    edges = [array[0], array[-1], array[:, 0], array[:, -1]]
    red, green, blue = (int(v) for v in np.median(np.concatenate(edges), axis=0))
    return (red, green, blue)


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]

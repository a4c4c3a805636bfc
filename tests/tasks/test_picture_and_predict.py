"""Pictures from anywhere, and class probabilities."""

from __future__ import annotations

import contextlib
import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mergelab.errors import TaskError
from mergelab.models import build
from mergelab.tasks import Head, clean, heads_for, load_suite, probabilities


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8)


def test_a_picture_of_the_right_size_is_unchanged(tmp_path):
    (tmp_path / "p.png").write_bytes(encoded(Image.fromarray(NOISE)))
    for source in (NOISE, Image.fromarray(NOISE), encoded(Image.fromarray(NOISE)), tmp_path / "p.png",
                   str(tmp_path / "p.png"), NOISE[None], torch.from_numpy(NOISE), np.moveaxis(NOISE, -1, 0),
                   NOISE / 255, NOISE.astype(np.uint16) * 257, {"composite": NOISE}):  # fmt: skip
        found = clean(source)
        assert (found.shape, found.dtype) == ((1, 32, 32, 3), np.uint8)
        assert np.array_equal(found[0], NOISE)


def test_grey_and_boolean_arrays():
    assert np.array_equal(clean(NOISE[..., 0])[0], np.repeat(NOISE[..., :1], 3, -1))
    assert np.array_equal(clean(NOISE[..., 0] > 127)[0, ..., 1], (NOISE[..., 0] > 127) * 255)
    assert np.array_equal(clean(NOISE[..., :1])[0, ..., 2], NOISE[..., 0])


def test_the_whole_of_a_wide_picture_is_kept_and_padded_with_its_border():
    wide = np.full((16, 64, 3), (10, 200, 30), np.uint8)
    wide[4:12, 8:56] = 255
    found = clean(wide)[0]
    assert (found[:11] == (10, 200, 30)).all()  # 8 rows of padding and 2 of the border, and the other way round
    assert (found[22:] == (10, 200, 30)).sum() == found[22:].size
    assert (found[15:17, 8:24] > 230).all()


def test_drawings_on_nothing_get_a_ground_that_shows_them():
    for ink, ground in ((0, 255), (255, 0)):
        drawing = np.zeros((64, 64, 4), np.uint8)
        drawing[20:40, 20:40] = (ink, ink, ink, 255)
        found = clean(drawing)[0]
        assert (found[0, 0] == ground).all()
        assert (found[15, 15] == ink).all()
    with pytest.raises(TaskError, match="fully transparent"):
        clean(np.zeros((8, 8, 4), np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB",
                                  "I", "F", "I;16"])  # fmt: skip
def test_every_mode_of_pillow(mode):
    picture = Image.new(mode, (40, 40)) if mode == "PA" else None
    picture = picture or (Image.fromarray(NOISE[..., 0]).convert("I").convert(mode) if mode == "I;16"
                          else Image.fromarray(NOISE).convert(mode))  # fmt: skip
    if mode == "PA":
        picture.putalpha(255)
    assert clean(picture).shape == (1, 32, 32, 3)


def test_sixteen_bit_pngs_keep_their_range():
    ramp = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (32, 1))
    found = clean(encoded(Image.fromarray(ramp)))[0, 0, :, 0]
    assert np.abs(found - np.linspace(0, 255, 32)).max() <= 1


def test_rotation_of_the_camera_is_applied():
    picture = Image.fromarray(NOISE)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    found = clean(encoded(picture, "PNG", exif=exif))
    assert np.array_equal(found[0], NOISE[::-1, ::-1])


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (32, 32), c) for c in ("red", "blue")]
    raw = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (clean(raw)[0, 0, 0] == (255, 0, 0)).all()


def bomb(width: int, height: int) -> bytes:
    """A PNG that declares this size in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "There is no picture"),
        ({"composite": None}, "There is no picture"),
        (b"", "empty file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"MZ" + bytes(99), "not a picture"),
        (bomb(60_000, 60_000), "far more than 64 million pixels"),
        (bomb(9000, 9000), "9000 x 9000 pixels"),
        (bomb(100, 100), "damaged or cut off"),
        (encoded(Image.fromarray(NOISE))[:700], "damaged or cut off"),
        (encoded(Image.fromarray(NOISE).resize((300, 300)), "JPEG")[:900], "damaged or cut off"),
        (np.zeros((0, 5), np.uint8), "no pixels"),
        (np.zeros((5, 5, 7), np.uint8), "not a picture"),
        (np.zeros(5, np.uint8), "not a picture"),
        (np.full((5, 5), np.nan), "NaN"),
        (np.array([["a", "b"]]), "not a picture"),
        (object(), "not a picture"),
        ("/nowhere/at/all.png", "'all.png' cannot be read"),
        ("a\0b", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_not_a_picture_is_said_in_a_sentence(source, message):
    with pytest.raises(TaskError, match=message) as caught:
        clean(source)
    assert str(caught.value).endswith(".")


def test_random_bytes_after_a_good_start_never_escape_as_another_error():
    rng = np.random.RandomState(0)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"):
        whole = encoded(Image.fromarray(NOISE), kind)
        for _ in range(25):
            raw = bytearray(whole)
            for place in rng.randint(0, len(raw), 5):
                raw[place] = rng.randint(256)
            with contextlib.suppress(TaskError):
                assert clean(bytes(raw[: rng.randint(20, len(raw) + 1)])).shape == (1, 32, 32, 3)


def test_probabilities_are_the_softmax_of_the_head(zoo):
    model = build(str(zoo / "base"), device="cpu")
    task = load_suite(zoo)["colour"]
    head = heads_for(load_suite(zoo))["colour"]
    pictures = task.split("test")[0][:2]
    found = torch.tensor(probabilities(model, pictures, head))
    scores = model.encode(pictures) @ head.weight.T + head.bias
    torch.testing.assert_close(found, scores.softmax(-1))
    zeros = {n: torch.zeros_like(t) for n, t in model.weights.tensors.items()}
    zero = torch.tensor(probabilities(model, pictures.numpy(), head, state=zeros))
    torch.testing.assert_close(zero, head.bias.softmax(-1).expand(2, -1))
    with pytest.raises(TaskError, match="takes features of width 5"):
        probabilities(model, pictures, Head(torch.zeros(2, 5)))

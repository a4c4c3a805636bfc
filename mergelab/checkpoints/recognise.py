"""Saying what a file is when it is not safetensors."""

from __future__ import annotations


def what_it_is(start: bytes) -> str | None:  # noqa: PLR0911
    """What a file with these first bytes is, as the end of "FILE is ...", with what to do; else ``None``."""
    text = start.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the weights themselves: run `git lfs pull` in its folder, or download the file."
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page saved under that name, not weights: download the file itself (its 'resolve' link)."
    if start.startswith(b"GGUF"):
        return "a GGUF file (llama.cpp, often quantised), which cannot be merged: use the safetensors original."
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return f"a zip archive, as torch.save or numpy write. {PICKLE_ADVICE}"
    if len(start) > 2 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return f"a Python pickle. {PICKLE_ADVICE}"
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file (Keras, TensorFlow), not safetensors: convert it first."
    if start.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")):
        return "a compressed archive: unpack it first."
    if text.startswith((b"{", b"[")):
        return "JSON text, not weights (an error answer saved as a file?): download it again."
    return None


#: Why pickles are not opened, and the way out.
PICKLE_ADVICE = (
    "Pickles can run code when opened, so they are refused: use a safetensors version of the model, "
    "or in Python, if you trust the file, load(..., allow_pickle=True)."
)

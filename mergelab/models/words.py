"""Tokenizers of models with a text side; none is ever downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .family import Tokenizer

#: The vocabulary of CLIP's own byte-pair encoding.
CLIP_VOCABULARY = 49408


def bundled_tokenizer(context: int, vocabulary: int) -> Tokenizer | None:
    """CLIP's byte-pair encoding as the package open_clip carries it; None for a model of another vocabulary."""
    if vocabulary != CLIP_VOCABULARY:
        return None
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=context)

    def words(texts: Sequence[str]) -> Tensor:
        return tokenizer(list(texts), context_length=context).long()

    return words


def folder_tokenizer(folder: Path | None, context: int, vocabulary: int) -> Tokenizer | None:
    """The tokenizer saved beside the weights (tokenizer.json, or vocab.json and merges.txt); None without one.

    Read with transformers' ``CLIPTokenizer`` from the local files only; no code of the folder is run.
    """
    if folder is None:
        return None
    own = (folder / "tokenizer.json").is_file()
    if not own and not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        return None
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # any kind of damage, any kind of exception
        raise CheckpointError(f"The tokenizer in {folder.name} cannot be read: {str(error)[:150]}") from None

    def words(texts: Sequence[str]) -> Tensor:
        rows = tokenizer(list(texts), padding=True, truncation=True, max_length=context)["input_ids"]
        tokens = torch.tensor(rows, dtype=torch.int64)
        if tokens.numel() and int(tokens.max()) >= vocabulary:
            raise CheckpointError(
                f"The tokenizer in {folder.name} gives the token {int(tokens.max())}, the model knows {vocabulary}. "
                "They do not belong together."
            )
        return tokens

    return words

"""Tokens as text, one by one, with the space that belongs to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """The text of each token as it stands behind another one.

    Decoded alone, a token loses its leading space under many tokenizers; so it is decoded behind an ordinary one, whose text is
    then taken off. A token that holds only part of a character reads as �.
    """
    wanted = sorted(set(ids))
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    anchor = plain[-1] if plain else 0
    before = _decode(tokenizer, [anchor])
    texts = {}
    for token in wanted:
        both = _decode(tokenizer, [anchor, token])
        texts[token] = both.removeprefix(before) if both.startswith(before) else _decode(tokenizer, [token])
    return texts


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

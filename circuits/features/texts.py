"""Tokens as text, one by one, with the space that belongs to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


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


def with_text(rows: pd.DataFrame, tokenizer: Any) -> pd.DataFrame:
    """A row index (``store.rows``) with the text of each ``token_id`` beside it, as column ``token``."""
    texts = token_texts(tokenizer, rows["token_id"].tolist())
    place = list(rows.columns).index("token_id") + 1
    found = rows.copy()
    found.insert(place, "token", [texts[token] for token in rows["token_id"]])
    return found


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

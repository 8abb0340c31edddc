"""The training mixture of the embedded model as a source of tokens: endless, seeded, any block at any time.

Each sequence is one whole sentence with ``<bos>`` in front, where the tokenizer has one. For a tokenizer that has every word
of the mixture as a token, as the embedded model's has, words are looked up one by one, several times as fast as asking
the tokenizer for every sentence; any other tokenizer is asked. Both give the same ids where both can be used (a test says so).
"""

from __future__ import annotations

from typing import Any

from circuits.data import mixture
from circuits.data.behaviours.base import WORD, Split
from circuits.data.tokens import Tokens, pad_right
from circuits.errors import UserError


class EmbeddedSource:
    """A :class:`circuits.data.tokens.TokenSource` over the mixture.

    `tokenizer` is a Hugging Face tokenizer. Sequences longer than `context` are cut. Training blocks hold only sentences
    whose prompt is on the training side of the split, `heldout` only others. Samples are numbered ``index * n + row``; those
    of `heldout` from 0.
    """

    name = "embedded"

    def __init__(self, tokenizer: Any, seed: int, context: int) -> None:
        if context < 2:
            raise UserError(f"context must be at least 2 (a token and the one before it), got {context}")
        self.context = context
        self._tokenizer = tokenizer
        self._seed = seed
        self._bos: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        vocabulary = tokenizer.get_vocab()
        words = mixture.words()
        self._ids: dict[str, int] | None = {w: vocabulary[w] for w in words} if vocabulary.keys() >= set(words) else None
        self._pad: int = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def block(self, index: int, n: int) -> Tokens:
        """Training block `index` of `n` sentences."""
        return self._tokens(index, n, "train")

    def heldout(self, n: int) -> Tokens:
        """`n` sentences no training block holds."""
        return self._tokens(0, n, "heldout")

    def passes(self, index: int, n: int) -> float:
        """A generator has no end to come to."""
        return 0.0

    def _tokens(self, index: int, n: int, side: Split) -> Tokens:
        texts = [s.text for s in mixture.sentences(self._seed, index, n, side)]
        ids = self._look_up(texts) if self._ids is not None else self._ask(texts)
        sequences = [(self._bos + sequence)[: self.context] for sequence in ids]
        return pad_right(sequences, list(range(index * n, index * n + n)), self._pad)

    def _look_up(self, texts: list[str]) -> list[list[int]]:
        """Word by word; only right for a word-level tokenizer that cuts as `WORD` does."""
        assert_ids = self._ids or {}
        return [[assert_ids[word] for word in WORD.findall(text)] for text in texts]

    def _ask(self, texts: list[str]) -> list[list[int]]:
        """The tokenizer's own answer, without its special tokens."""
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

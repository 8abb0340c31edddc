"""Temporary."""

from __future__ import annotations
from typing import Any
from circuits.data import mixture
from circuits.data.behaviours.base import WORD
from circuits.data.tokens import Tokens, pad_right


class EmbeddedSource:
    def __init__(self, tokenizer: Any, seed: int, context: int) -> None:
        self._vocab = tokenizer.get_vocab()
        self.seed, self._context, self.bos = seed, context, tokenizer.bos_token_id
        self.name = "embedded"

    @property
    def context(self) -> int:
        return self._context

    def _tokens(self, sentences, first):
        rows = [[self.bos, *(self._vocab[w] for w in WORD.findall(s.text))][: self._context] for s in sentences]
        return pad_right(rows, list(range(first, first + len(rows))))

    def block(self, index: int, n: int) -> Tokens:
        return self._tokens(mixture.sentences(self.seed, index, n), index * n)

    def heldout(self, n: int) -> Tokens:
        return self._tokens(mixture.sentences(self.seed, 0, n, "heldout"), 0)

    def passes(self, index: int, n: int) -> float:
        return 0.0

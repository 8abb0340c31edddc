"""The training mixture of the embedded model as a source of tokens: endless, seeded, any block at any time.

Each sequence is one whole sentence with ``<bos>`` in front, where the tokenizer has one. For a tokenizer that gives every word
of the mixture one token of its own, as the embedded model's does, words are looked up one by one, several times as fast as
asking the tokenizer; any other tokenizer is asked. Both give the same ids where both can be used (a test says so).
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from circuits.data.behaviours.base import WORD, Split
from circuits.errors import UserError
from circuits.model_input import ModelInput, padded
from circuits.tiny import mixture

CHUNK = 256
"""Sentences drawn together. A sentence is named by its number alone, so blocks of any size cut the same stream."""


class EmbeddedSource:
    """A :class:`circuits.data.tokens.TokenSource` over the mixture.

    `tokenizer` is a Hugging Face tokenizer. Sequences longer than `context` are cut. Training blocks hold only sentences
    whose prompt is on the training side of the split, `heldout` only others. A sample is the sentence's number in its stream.
    """

    name = "embedded"

    def __init__(self, tokenizer: Any, seed: int, context: int) -> None:
        if context < 2:
            raise UserError(f"context must be at least 2 (a token and the one before it), got {context}")
        self.context = context
        self._tokenizer = tokenizer
        self._seed = seed
        self._bos: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._pad: int = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._ids = _word_ids(tokenizer)

    def block(self, index: int, n: int) -> ModelInput:
        """Sentences ``index * n … (index + 1) * n - 1`` of the training stream."""
        return self._tokens(index * n, n, "train")

    def heldout(self, n: int) -> ModelInput:
        """The first `n` sentences of the held-out stream."""
        return self._tokens(0, n, "heldout")

    def passes(self, index: int, n: int) -> float:
        """A generator has no end to come to."""
        return 0.0

    def _tokens(self, start: int, n: int, side: Split) -> ModelInput:
        first, last = start // CHUNK, (start + n - 1) // CHUNK
        chunks = (mixture.sentences(self._seed, c, CHUNK, side) for c in range(first, last + 1))
        drawn = list(chain.from_iterable(chunks))[start - first * CHUNK :][:n]
        sequences = [(self._bos + ids)[: self.context] for ids in self._encode([s.text for s in drawn])]
        return padded(sequences, list(range(start, start + n)), self._pad)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens."""
        ids = self._ids
        if ids is None:
            asked: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
            return asked
        return [[ids[word] for word in WORD.findall(text)] for text in texts]


def _word_ids(tokenizer: Any) -> dict[str, int] | None:
    """Word -> id, if `tokenizer` gives every word of the mixture its one token in the middle of a text; else None."""
    words, vocabulary = mixture.words(), tokenizer.get_vocab()
    ids = {word: vocabulary[word] for word in words if word in vocabulary}
    asked = tokenizer([f"{word} {word}" for word in words], add_special_tokens=False)["input_ids"]
    return ids if asked == [[ids.get(word)] * 2 for word in words] else None

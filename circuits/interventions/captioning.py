"""What a vision-language model says of a person's gender: greedily, and as a probability at the word that decides.

The *decision* is the first place of the model's own greedy caption (without edits) at which the next token is a word of gender.
There the *preference* is P(male words) / (P(male words) + P(female words)): a number between 0 and 1 for every picture, 1/2 at
parity, which an edit moves smoothly while the greedy word may not change at all. Under an edit it is read at the same place, after
the same words. Captions are written anew under each edit, and their words counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from circuits.activations.pictures import PictureRows
from circuits.data.journal import Journal
from circuits.data.pictures import lexicon
from circuits.interventions.generation import Ids, alike, as_rows, as_texts, greedy
from circuits.model_input import ModelInput
from circuits.models.hooks import Edit, Prefix, forward, make_prefix
from circuits.models.load import LM

Hooks = Callable[[ModelInput], list[Edit]]
"""What is done in a pass over these rows."""


def nothing(rows: ModelInput) -> list[Edit]:
    """The model as it is."""
    return []


@dataclass(frozen=True)
class Words:
    """Token ids that say a gender in one language."""

    male: Tensor
    female: Tensor

    @property
    def all(self) -> set[int]:
        """Both."""
        return {*self.male.tolist(), *self.female.tolist()}


def gender_words(lm: LM, language: str) -> Words:
    """The tokens of the vocabulary that are, by themselves, a word of gender."""
    found: dict[str, list[int]] = {"male": [], "female": []}
    texts = lm.tokenizer.convert_ids_to_tokens(list(range(lm.dims.vocab)))
    for token, text in enumerate(texts):
        if text is None:
            continue
        said = lexicon.words(str(text).replace("▁", " ").replace("Ġ", " "))
        gender = lexicon.gendered(said[0], language) if len(said) == 1 else None
        if gender is not None:
            found[gender].append(token)
    return Words(torch.tensor(found["male"], dtype=torch.long), torch.tensor(found["female"], dtype=torch.long))


def attribute_words(lm: LM, pair: Sequence[Sequence[str]]) -> Words:
    """The first tokens of two attribute words, each in all its forms (as ``male`` and ``female`` of :class:`Words`)."""
    sides = []
    for forms in pair:
        ids = [lm.tokenizer(f" {form}", add_special_tokens=False)["input_ids"][0] for form in forms]
        sides.append(torch.tensor(sorted(set(ids)), dtype=torch.long))
    return Words(*sides)


@dataclass(frozen=True)
class Asked:
    """Pictures in one language, what is said of them without edits, and where that decides."""

    language: str
    pictures: tuple[int, ...]
    starts: tuple[Ids, ...]
    said: tuple[Ids, ...]
    decisions: tuple[int, ...]
    """Place in the caption; -1 where no word of gender is said."""
    words: Words

    def about(self, words: Words) -> Asked:
        """The same captions, with the first place where one of other words is said as what decides."""
        known = words.all
        decisions = tuple(next((i for i, token in enumerate(ids) if token in known), -1) for ids in self.said)
        return replace(self, decisions=decisions, words=words)

    @property
    def decided(self) -> list[int]:
        """Rows with a decision."""
        return [i for i, at in enumerate(self.decisions) if at >= 0]


def ask(
    lm: LM,
    rows: PictureRows,
    pictures: Sequence[int],
    language: str,
    steps: int,
    batch_size: int,
    journal: Journal | None = None,
    name: str = "",
) -> Asked:
    """Write the captions, and find where they decide."""
    starts = tuple(tuple(rows.ids(rows.text(picture, language))) for picture in pictures)
    words = gender_words(lm, language)
    said = captions(lm, rows, pictures, starts, steps, batch_size, [(name, nothing)], journal)[0]
    return Asked(language, tuple(pictures), starts, tuple(said), (), words).about(words)


@torch.inference_mode()
def captions(
    lm: LM,
    rows: PictureRows,
    pictures: Sequence[int],
    starts: Sequence[Ids],
    steps: int,
    batch_size: int,
    ways: Sequence[tuple[str, Hooks]],
    journal: Journal | None = None,
) -> list[list[Ids]]:
    """Up to `steps` likeliest tokens of each picture's caption, under each of several edits.

    A picture is looked at once for all edits, a token's keys and values are computed once: edits read one token at a time, so that
    what is cached is what the whole caption would give (:mod:`.feature_edits`). Rows of a batch are of equal length.

    Args:
        ways: a name for each edit, under which `journal` keeps the captions of each batch, and the edits.
    """
    journal = journal or Journal()
    found: list[list[Ids]] = [[()] * len(starts) for _ in ways]

    def written(part: Sequence[int], hooks: Hooks, entering: Callable[[], Tensor]) -> Tensor:
        """The captions of a batch."""
        given = [starts[i] for i in part]
        said = greedy(lm, given, steps, lambda _, tokens: hooks(tokens), rows.without_pictures, Prefix(0, entering()))
        return as_rows(said, steps)

    for part in alike(starts, batch_size):
        seen = rows.of_ids([starts[i] for i in part], [pictures[i] for i in part])
        entering = cache(partial(_entering, lm, seen))  # none where the journal has all of this batch
        for n, (name, hooks) in enumerate(ways):
            texts = journal.step(f"{name}/said/{part[0]}", partial(written, part, hooks, entering))
            for i, ids in zip(part, as_texts(texts), strict=True):
                found[n][i] = ids
    return found


def _entering(lm: LM, seen: ModelInput) -> Tensor:
    """What enters the first block: the pictures have been looked at."""
    return make_prefix(lm, seen, 0).resid


def preferences(
    lm: LM, rows: PictureRows, asked: Asked, batch_size: int, journal: Journal | None = None, name: str = ""
) -> NDArray[np.float64]:
    """P(male) at each picture's decision, without edits; NaN where there is none."""
    return preferences_under(lm, rows, asked, batch_size, [(0, nothing)], journal, name)[0]


AT_ONCE = 64
"""Edits of one batch between two safe points."""


@torch.inference_mode()
def preferences_under(
    lm: LM,
    rows: PictureRows,
    asked: Asked,
    batch_size: int,
    ways: Sequence[tuple[int, Hooks]],
    journal: Journal | None = None,
    name: str = "",
) -> NDArray[np.float64]:
    """``[ways, pictures]``: P(male) at each picture's decision under each of several edits, NaN where there is none.

    Args:
        ways: the lowest layer that is edited, and the edits. All of one batch are measured before the next one, and restart from
            what the model has below that layer, which is computed once: the picture is seen once, not once an edit.
        journal: keeps what was read, under `name`.
    """
    found, journal = np.full((len(ways), len(asked.pictures)), np.nan), journal or Journal()
    order = sorted(asked.decided, key=lambda i: -len(asked.starts[i]) - asked.decisions[i])
    male, female = (ids.to(lm.device) for ids in (asked.words.male, asked.words.female))
    by_layer = sorted(range(len(ways)), key=lambda n: ways[n][0])

    def some(part: Sequence[int], chosen: Sequence[int]) -> Tensor:
        """``[chosen ways, part]`` of one batch."""
        read = []
        tokens = rows.of_ids(
            [asked.starts[i] + asked.said[i][: asked.decisions[i]] for i in part], [asked.pictures[i] for i in part]
        )
        unseen = rows.without_pictures([asked.starts[i] + asked.said[i][: asked.decisions[i]] for i in part])
        prefixes: dict[int, Prefix] = {}
        for n in chosen:
            layer, hooks = ways[n]
            if layer and layer not in prefixes:
                prefixes = {layer: make_prefix(lm, tokens, layer)}  # one at a time: it is as large as the stream
            start = prefixes[layer] if layer else None
            given = unseen if layer else tokens
            logits = forward(lm, given, edits=hooks(tokens), logits="last", prefix=start).read.float()
            odds = torch.logsumexp(logits[:, male], -1) - torch.logsumexp(logits[:, female], -1)
            read.append(torch.sigmoid(odds).cpu().double())
        return torch.stack(read)

    for first in range(0, len(order), batch_size):
        part = order[first : first + batch_size]
        for start in range(0, len(by_layer), AT_ONCE):
            chosen = by_layer[start : start + AT_ONCE]
            read = journal.step(f"{name}/preference/{first}/{start}", partial(some, part, chosen))
            found[np.ix_(chosen, part)] = read.numpy()
    return found


def said_gender(lm: LM, ids: Ids, language: str) -> str:
    """What a caption's words say: male, female, mixed or unknown."""
    return lexicon.label(decoded(lm, ids), language)


def decoded(lm: LM, ids: Ids) -> str:
    """A caption as text."""
    found: Any = lm.tokenizer.decode(list(ids), skip_special_tokens=True)
    return str(found)

"""What is studied: a generator (or file) of clean and corrupt prompts with target and foil, and the gate it must pass."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from circuits.schema.fields import MISSING, added, file, free, named_file
from circuits.schema.reading import SET, When

GENDER_BIAS = "gender_bias"
PICTURES = (GENDER_BIAS,)  # behaviours of pictures with captions; all others are of text
FILE = "file"  # the behaviour whose prompts are the user's own JSON lines


LANGUAGES = ("english", "arabic")


class MultiToken(Enum):
    """What to do about a target or a foil of several tokens under the model's tokenizer."""

    fail = "fail"  # an error that lists them, by line (a file)
    drop = "drop"  # leave such rows out and say how many (a generator draws others)
    keep = "keep"  # study them: baseline.metric=full_target scores the whole answer


class Unusable(Enum):
    """What to do about a row of a file that no study can use: equal answers, one the beginning of the other, unknown words."""

    fail = "fail"  # an error that lists them, by line
    drop = "drop"  # leave such rows out, and say which and why


class Bos(Enum):
    """Whether a prompt begins with the tokenizer's BOS token."""

    auto = "auto"  # as the tokenizer itself does it
    always = "always"
    never = "never"


class Validation(Enum):
    """What the rows are that a split file names for validation."""

    test = "test"  # for testing, beside its test rows
    train = "train"  # for training
    drop = "drop"  # left out
    only = "only"  # for testing, in the place of its test rows


@dataclass
class BehaviourConfig:
    """A behaviour, how many of its prompts are drawn, and how they are tokenised."""

    name: str = MISSING  # a module of circuits/data/behaviours, or file
    path: str | None = file(
        None, "records"
    )  # JSON lines: prompt, target, foil; corrupt, id, split, group and factors where known
    splits: str | None = file(
        None, "splits", added=True
    )  # a split file for it, JSON: rows (numbers, ids or hashes) under train, val and test, and the corpus's data_hash
    validation: Validation = added(Validation.test)  # what its val rows are  # noqa: RUF009
    rehash: bool = free(False)  # take a split file that was made for a corpus of another hash
    n_samples: int | None = None  # training prompts; null: all of a file
    n_test: int | None = None  # test prompts; their groups and clean prompts are in no training prompt
    multi_token: MultiToken | None = None  # answers of several tokens; null: fail for a file, drop for a generator
    unusable: Unusable = added(Unusable.fail)  # a file's rows whose answers cannot be told apart or read: fail, or drop  # noqa: RUF009
    bos: Bos = Bos.auto  # whether a prompt begins with the tokenizer's BOS token; auto: as the tokenizer does it
    chat: bool = False  # put each prompt into the tokenizer's chat template; the answer opens the model's turn
    allow_small: bool = False  # take what there is when there are fewer different prompts than asked for
    images: str | None = named_file(None)  # where image_path is relative to; null: the table's directory
    languages: Any = added(None)  # what pictures are asked in: english, arabic or both; null: both  # noqa: RUF009
    words: Any = added(None)  # of gender → words, on your pictures: {english: [strong, gentle]}  # noqa: RUF009
    max_broken: float = added(0.01)  # the share of a table's pictures that may be missing or broken
    min_logit_diff: float = free(0.0)  # the gate: a prompt succeeds when its difference a token exceeds it …
    success_threshold: float = free(0.8)  # … and the behaviour passes when this share of all prompts succeeds


READ_WHEN = {
    "behaviour.path": (When("behaviour.name", (FILE, *PICTURES)),),
    "behaviour.images": (
        When("behaviour.name", PICTURES),
        When("behaviour.path", (SET,), hint="behaviour.path=FILE.csv does"),
    ),
    "behaviour.languages": (When("behaviour.name", PICTURES),),
    "behaviour.words": (
        When("behaviour.name", PICTURES),
        When("behaviour.path", (SET,), hint="behaviour.path=FILE.csv does"),
    ),
    "behaviour.max_broken": (
        When("behaviour.name", PICTURES),
        When("behaviour.path", (SET,), hint="behaviour.path=FILE.csv does"),
    ),
    **{
        f"behaviour.{name}": (When("behaviour.name", (), hint="a behaviour of text does", but=PICTURES),)
        for name in ("multi_token", "bos", "chat", "min_logit_diff", "success_threshold")
    },
    "behaviour.unusable": (When("behaviour.name", (FILE,)),),
    "behaviour.splits": (When("behaviour.name", (FILE,)),),
    "behaviour.validation": (When("behaviour.splits", (SET,), hint="behaviour.splits=FILE.json does"),),
    "behaviour.rehash": (When("behaviour.splits", (SET,), hint="behaviour.splits=FILE.json does"),),
}


def multi_token(behaviour: BehaviourConfig) -> MultiToken:
    """What is done about answers of several tokens, where nothing else is asked for."""
    return behaviour.multi_token or (MultiToken.fail if behaviour.name == FILE else MultiToken.drop)


def of_pictures(behaviour: BehaviourConfig) -> bool:
    """Whether its samples are pictures with captions, and not prompts of text."""
    return behaviour.name in PICTURES


def languages(behaviour: BehaviourConfig) -> tuple[str, ...]:
    """What its pictures are asked in."""
    given = behaviour.languages
    return LANGUAGES if given is None else tuple(given) if isinstance(given, (list, tuple)) else (str(given),)


def words(behaviour: BehaviourConfig) -> dict[str, list[list[str]]]:
    """Of each language the two attribute words, each in all its forms.

    Raises:
        ValueError: it is no such thing.
    """
    found = {}
    for language, pair in dict(behaviour.words or {}).items():
        forms = [[one] if isinstance(one, str) else list(one) for one in pair] if isinstance(pair, list) else []
        if len(forms) != 2 or not all(form and all(isinstance(word, str) and word for word in form) for form in forms):
            raise ValueError(f"{language}: two words, each one form or a list of forms, not {pair}")
        found[str(language)] = forms
    return found


def check(behaviour: BehaviourConfig) -> list[str]:
    errors = []
    if unknown := [one for one in languages(behaviour) if one not in LANGUAGES]:
        errors.append(
            f"behaviour.languages={unknown[0]}: languages: {' '.join(LANGUAGES)}, or both as [english,arabic]"
        )
    try:
        if unknown := [one for one in words(behaviour) if one not in languages(behaviour)]:
            errors.append(f"behaviour.words: {unknown[0]}: languages: {' '.join(languages(behaviour))}")
    except (TypeError, ValueError) as e:
        errors.append(f"behaviour.words={behaviour.words}: {{english: [strong, gentle]}} is wanted ({e})")
    if behaviour.name == FILE and behaviour.path is None:
        errors.append("behaviour=file needs behaviour.path=FILE.jsonl (behaviour=FILE.jsonl is short for both)")
    if behaviour.name != FILE and behaviour.multi_token is MultiToken.fail:
        errors.append(
            f"behaviour.multi_token=fail: a file of prompts reads it; the generator {behaviour.name} draws others and says "
            "how many were left out (drop, as when nothing is said), or keeps them (keep)"
        )
    for name, least in (("n_samples", 1), ("n_test", 0)):
        value = getattr(behaviour, name)
        if value is not None and value < least:
            errors.append(f"behaviour.{name}={value}: {least} or more")
        if value is None and behaviour.name not in (FILE, *PICTURES):
            errors.append(f"behaviour.{name}=null: a generator has no end; give a number")
    if not 0 <= behaviour.success_threshold <= 1:
        errors.append(f"behaviour.success_threshold={behaviour.success_threshold}: a share between 0 and 1")
    return errors

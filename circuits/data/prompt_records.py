"""Prompt records before tokenisation: drawn from a behaviour, or read from a file of records.

A drawn set has no clean prompt twice, no group on both sides of its split, and balanced answers: of the pool of draws, the
next one taken is always one whose target has so far been the target less often than it was the foil. So every answer is
target about as often as foil, and a constant preference of the model for an answer cancels in the mean logit difference (SPEC
TL-4). Everything follows from the seed. No torch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from circuits.data.behaviours.base import Behaviour, Example, Wording, split
from circuits.data.fielded import absent, half_a_pair, kind_of, rows
from circuits.data.opening import stem
from circuits.data.seeds import derive_seed
from circuits.errors import UserError

SPLITS = ("train", "test")
NAMES = {"prompt": ("prompt", "clean"), "target": ("target", "correct_answer"), "foil": ("foil", "incorrect_answer")}
"""A field and what it may be called in a file."""
KNOWN = {"id", "corrupt", "behaviour", "split", "group", "factors", *itertools.chain.from_iterable(NAMES.values())}
IN_A_ROW = 1000  # draws that gave no new text, after which a generator is taken to be exhausted
LOOKED_AT = 64  # candidates among which the best balanced one is taken


@dataclass(frozen=True)
class Record:
    """A prompt pair as text."""

    id: str
    prompt: str
    corrupt: str | None
    target: str
    foil: str
    behaviour: str
    split: str | None
    group: str
    factors: Mapping[str, str] = field(default_factory=dict)
    place: str = ""
    """Where it stands (file and line), for errors."""


def draws(behaviour: Behaviour, wording: Wording, seed: int) -> Iterator[Record]:
    """Different clean prompts of a behaviour, until there are no new ones."""
    rng = np.random.default_rng(derive_seed(seed, "prompts", behaviour.name, wording))
    draw = behaviour.generator(wording)
    seen: set[str] = set()
    repeats = 0
    while repeats < IN_A_ROW:
        example = draw(rng)
        if example.clean in seen:
            repeats += 1
            continue
        repeats = 0
        seen.add(example.clean)
        yield _of_example(example, behaviour.name, wording)


def _of_example(example: Example, name: str, wording: Wording) -> Record:
    factors = dict(example.factors)
    if wording == "embedded":  # whether the embedded model was trained on this very prompt
        factors["seen"] = "yes" if split(example) == "train" else "no"
    return Record(
        "", example.clean, example.corrupt, example.target, example.foil, name, None, example.group, factors, name
    )


def select(pool: Sequence[Record], n_train: int, n_test: int, seed: int, allow_small: bool) -> list[Record]:
    """`n_train` and `n_test` records of `pool`: groups apart, answers balanced, in random order, with ids.

    Where there are enough of them, test prompts are such that no corrupt prompt is a clean one of the other side.

    Raises:
        UserError: there are fewer, and `allow_small` does not say to take what there is.
    """
    name = pool[0].behaviour if pool else "the behaviour"
    rng = np.random.default_rng(derive_seed(seed, "prompts", "split"))
    held = test_groups([r.group for r in pool], n_train, n_test, rng)
    sides = {
        "train": ([r for r in pool if r.group not in held], n_train),
        "test": ([r for r in pool if r.group in held], n_test),
    }
    chosen: list[Record] = []
    for side, (mine, n) in sides.items():
        apart = _apart(mine, chosen)
        candidates = apart if len(apart) >= n else mine
        if len(candidates) < n and not allow_small:
            option = "n_samples" if side == "train" else "n_test"
            raise UserError(
                f"behaviour={name}: {n:,} different {side} prompts were asked for and {len(candidates):,} are there; lower "
                f"behaviour.{option}, or behaviour.allow_small=true takes what there is"
            )
        order = [candidates[i] for i in rng.permutation(len(candidates))]
        for i, record in enumerate(balanced(order, n)):
            chosen.append(replace(record, id=f"{name}-{side}-{i:04d}", split=side))
    if not any(r.split == "train" for r in chosen):
        raise UserError(f"behaviour={name}: no prompt is left for training; raise behaviour.n_samples")
    return chosen


def _apart(candidates: Sequence[Record], others: Sequence[Record]) -> list[Record]:
    """Those that share no text with the other side: what patching puts in on one side is no clean prompt of the other."""
    cleans, corrupts = {r.prompt for r in others}, {r.corrupt for r in others}
    return [r for r in candidates if r.corrupt not in cleans and r.prompt not in corrupts]


def test_groups(groups: Sequence[str], n_train: int, n_test: int, rng: np.random.Generator) -> set[str]:
    """Groups for testing: their share of all groups is that of the test prompts, and more while these do not suffice.

    At least one group stays for training.
    """
    counts = Counter(groups)
    names = sorted(counts)
    if n_test == 0 or len(names) < 2:
        return set()
    share = n_test / (n_train + n_test)
    least = max(1, round(share * len(names)))
    held: set[str] = set()
    for i in rng.permutation(len(names)):
        enough = sum(counts[name] for name in held) >= n_test and len(held) >= least
        if enough or len(held) == len(names) - 1:
            break
        held.add(names[int(i)])
    return held


def balanced(candidates: Sequence[Record], n: int) -> list[Record]:
    """`n` of `candidates` (all, if there are fewer), each time the one that best evens out targets and foils."""
    waiting = list(candidates)
    excess: Counter[str] = Counter()  # times an answer was target minus times it was foil
    targets: Counter[str] = Counter()
    chosen: list[Record] = []
    while waiting and len(chosen) < n:
        near = range(min(LOOKED_AT, len(waiting)))
        best = min(
            near, key=lambda i: (excess[waiting[i].target] - excess[waiting[i].foil], targets[waiting[i].target])
        )
        record = waiting.pop(best)
        excess[record.target] += 1
        excess[record.foil] -= 1
        targets[record.target] += 1
        chosen.append(record)
    return chosen


# -- files -----------------------------------------------------------------------------------------------------------


def read_file(path: Path) -> list[Record]:
    """The records of a file (JSON lines, a JSON array, CSV, TSV) in order.

    A record holds ``prompt`` (or ``clean``), ``target`` and ``foil`` (or ``correct_answer``, ``incorrect_answer``), and
    where known ``corrupt``, ``id``, ``split`` (train or test), ``group``, ``behaviour`` and ``factors``; any other field with
    a plain value is a factor, too. A null, and the NaN that pandas writes for one, is absence. Without a group, each clean prompt
    is a group of its own. How prompt and answer join is not asked here: the tokenizer decides it.

    Raises:
        UserError: with every finding (at most ten), by file and line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    errors: list[str] = []
    records: list[Record] = []
    for row in rows(path):
        try:
            records.append(_record(_said(row.fields, row.place), row.number, row.place, stem(path)))
        except UserError as e:
            errors += e.messages
    errors += [] if errors else _file_problems(path, records)
    if len(errors) > 10:
        errors = [*errors[:10], f"{path}: {len(errors) - 10} more lines of this kind"]
    if errors:
        raise UserError(errors)
    return records


def _said(fields: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The fields that say something: a table writes nothing as null or as NaN.

    Raises:
        UserError: half of a surrogate pair, which no tokenizer takes and no file can hold.
    """
    for name, value in fields.items():
        texts = [name, *([*value, *value.values()] if isinstance(value, Mapping) else [value])]
        if any(isinstance(text, str) and half_a_pair(text) for text in texts):
            raise UserError(
                f"{place}: {ascii(name)[1:-1]} holds half of a surrogate pair (\\ud800-\\udfff), which is no character"
            )
    return {name: value for name, value in fields.items() if not absent(value)}


def _file_problems(path: Path, records: Sequence[Record]) -> list[str]:
    if not records:
        return [f'{path}: no prompt in it; a line is {{"prompt": …, "target": …, "foil": …}}']
    errors = []
    first: dict[str, str] = {}
    for record in records:
        if record.id in first:
            errors.append(
                f"{record.place}: id {record.id!r} is used before ({first[record.id]}); ids name one prompt each"
            )
        first.setdefault(record.id, record.place)
    given = [record for record in records if record.split is not None]
    if given and len(given) < len(records):
        absent = next(record for record in records if record.split is None)
        errors.append(f"{absent.place}: no 'split', which other lines have; give it to all (train or test) or to none")
    elif given:
        errors += overlap(
            path, records, "take the field 'split' out (then it is made by group), or move them to one side"
        )
    return errors


def overlap(path: Path, records: Sequence[Record], mend: str) -> list[str]:
    """What is on both sides of a split that `path` gives, one line each; `mend` says what to do about it."""
    errors = []
    key: Callable[[Record], str]
    for what, key in (("clean prompts", lambda r: r.prompt), ("groups", lambda r: r.group)):
        both = {key(r) for r in records if r.split == "train"} & {key(r) for r in records if r.split == "test"}
        if both:
            errors.append(f"{path}: {len(both)} {what} are in train and in test (such as {min(both)!r}); {mend}")
    return errors


def _record(fields: Mapping[str, Any], number: int, place: str, behaviour: str) -> Record:
    texts = {}
    for name, spellings in NAMES.items():
        found = [s for s in spellings if s in fields]
        if not found:
            raise UserError(f"{place}: no field {name!r} (or {spellings[1]!r}); it has {' '.join(map(str, fields))}")
        texts[name] = _text(fields, found[0], place)
    given = {name: _text(fields, name, place) if name in fields else None for name in ("corrupt", "split")}
    if given["split"] not in (None, *SPLITS):
        raise UserError(f"{place}: split {given['split']!r} is none; splits: {' '.join(SPLITS)}")
    return Record(
        id=_name(fields, "id", f"line-{number}", place),
        prompt=texts["prompt"],
        corrupt=given["corrupt"],
        target=texts["target"],
        foil=texts["foil"],
        behaviour=_name(fields, "behaviour", behaviour, place),
        split=given["split"],
        group=_name(fields, "group", texts["prompt"], place),
        factors=_factors(fields, place),
        place=place,
    )


def _name(fields: Mapping[str, Any], name: str, default: str, place: str) -> str:
    """A text or number that names something."""
    value = fields.get(name, default)
    if isinstance(value, (Mapping, list)):
        raise UserError(f"{place}: {name} is {kind_of(value)}, a text or number is expected")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _text(fields: Mapping[str, Any], name: str, place: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: {name} is {value!r}, a text is expected")
    return value


def _factors(fields: Mapping[str, Any], place: str) -> dict[str, str]:
    inner = fields.get("factors") or {}
    if not isinstance(inner, Mapping):
        raise UserError(f"{place}: factors is {inner!r}, an object is expected")
    found = {**inner, **{name: value for name, value in fields.items() if name not in KNOWN}}
    for name, value in found.items():
        if isinstance(value, (Mapping, list)):
            raise UserError(f"{place}: {name} is {value!r}; a factor is one text or number")
    return {str(name): str(value) for name, value in found.items() if not absent(value)}


def take_from_file(
    records: Sequence[Record], n_train: int | None, n_test: int | None, seed: int, allow_small: bool
) -> list[Record]:
    """The records of a file that are used, split by group where the file gives no split.

    Raises:
        UserError: fewer than asked for, or too few groups for a test side.
    """
    rng = np.random.default_rng(derive_seed(seed, "prompts", "split"))
    if records[0].split is None:
        records = _split(records, n_train, n_test, rng, allow_small)
    kept = []
    for side, n, option in (("train", n_train, "n_samples"), ("test", n_test, "n_test")):
        mine = [r for r in records if r.split == side]
        if n is not None and len(mine) < n and not allow_small:
            raise UserError(
                f"{records[0].place.rsplit(', line', 1)[0]}: {n:,} {side} prompts were asked for and {len(mine):,} are there; "
                f"lower behaviour.{option}, or behaviour.allow_small=true takes what there is"
            )
        order = rng.permutation(len(mine))[: len(mine) if n is None else n]
        kept += [mine[i] for i in sorted(order)]
    return kept


def _split(
    records: Sequence[Record], n_train: int | None, n_test: int | None, rng: np.random.Generator, allow_small: bool
) -> list[Record]:
    total = len(records)
    test = n_test if n_test is not None else max(1, round(0.2 * total))
    train = n_train if n_train is not None else max(1, total - test)
    held = test_groups([r.group for r in records], train, test, rng)
    if not held and test and not allow_small:
        raise UserError(
            f"{records[0].place.rsplit(', line', 1)[0]}: all prompts are of one group, so none can be kept for testing; "
            "behaviour.n_test=0 or behaviour.allow_small=true goes without"
        )
    return [replace(r, split="test" if r.group in held else "train") for r in records]

"""Addition of single digits, all 100 sums.

"3 + 4 =" -> " 7", in four wordings. Corrupt: one addend replaced so that the sum is another, which is the foil.

Natural: two-digit sums, "23 + 45 =" -> " 68"; the foil is off by 1, 9 or 10, the slips of carrying.

Digits: tokenizers that split numbers (Qwen, Llama, Mistral, Gemma) make " 68" three tokens. Under them sums below ten are asked,
and the prompt ends with the space, which is a token of its own: "3 + 4 = " -> "7".

The domain is tested whole: 100 sums in four wordings. One prompt in ten is never trained on, but every sum is trained on in
some wording (a test says so): unseen means a sum in a wording it was not trained in.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from circuits.data.behaviours.base import Behaviour, Example, pick, words_in

DIGITS = tuple(range(10))
TWO_DIGITS = range(10, 90)
SLIPS = (-10, -9, -1, 1, 9, 10)
NATURAL = ("{a} + {b} =", "Q: What is {a} plus {b}? A:", "The sum of {a} and {b} is")
ONE_DIGIT = (*NATURAL, "{a} plus {b} equals", "If we add {a} to {b}, we get", "Adding {a} and {b} gives")
TEMPLATES = ("{a} + {b} =", "{a} plus {b} is", "The sum of {a} and {b} is", "If we add {a} to {b} we get")


def _example(template: str, a: int, b: int, other: int, side: int) -> Example:
    """`other` takes the place of addend `side` in the corrupt prompt."""
    changed = (other, b) if side == 0 else (a, other)
    return Example(
        clean=template.format(a=a, b=b),
        corrupt=template.format(a=changed[0], b=changed[1]),
        target=f" {a + b}",
        foil=f" {sum(changed)}",
        group=f"{min(a, b)}+{max(a, b)}",
        factors={"sum": str(a + b), "carry": str(a + b >= 10), "changed": ("first", "second")[side]},
    )


def draw(rng: np.random.Generator) -> Example:
    """One sum in one wording; all pairs of digits are equally likely."""
    digits, side = (pick(rng, DIGITS), pick(rng, DIGITS)), pick(rng, (0, 1))
    other = (digits[side] + 1 + int(rng.random() * 9)) % 10
    return _example(pick(rng, TEMPLATES), *digits, other, side)


def domain() -> Iterator[Example]:
    """Every sum in every wording."""
    for template in TEMPLATES:
        for a in DIGITS:
            for b in DIGITS:
                yield _example(template, a, b, (a + 1) % 10, 0)


def draw_two_digits(rng: np.random.Generator) -> Example:
    """A sum below 100 of two-digit numbers; the corrupt prompt's sum is 1, 9 or 10 more or less."""
    while True:
        a, b = pick(rng, TWO_DIGITS), pick(rng, TWO_DIGITS)
        off, side = pick(rng, SLIPS), pick(rng, (0, 1))
        other = (a, b)[side] + off
        if a + b < 100 and a + b + off < 100 and other in TWO_DIGITS:
            break
    example = _example(pick(rng, NATURAL), a, b, other, side)
    return example._replace(factors={**example.factors, "carry": str(a % 10 + b % 10 >= 10), "off": str(off)})


def draw_one_digit(rng: np.random.Generator) -> Example:
    """A sum below ten, whose one digit follows a space that belongs to the prompt."""
    while True:
        a, b, other, side = (pick(rng, DIGITS) for _ in range(4))
        side %= 2
        kept = b if side == 0 else a
        if a + b < 10 and kept + other < 10 and other != (a, b)[side]:
            break
    example = _example(pick(rng, ONE_DIGIT), a, b, other, side)
    return example._replace(
        clean=f"{example.clean} ",
        corrupt=f"{example.corrupt} ",
        target=example.target.lstrip(),
        foil=example.foil.lstrip(),
    )


BEHAVIOUR = Behaviour(
    name="arithmetic",
    description="addition of single digits (natural: of two, where a number is one token)",
    words=words_in(TEMPLATES, (str(n) for n in range(19))),
    draw=draw,
    domain=domain,
    natural=draw_two_digits,
    digits=draw_one_digit,
)

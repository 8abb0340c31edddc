"""Cards of features for a page: examples with the activation as each token's background, a histogram, token lists, associations.

Plain records of numbers and texts; the template draws and escapes them. Colour is never alone: an active token carries its value
as hover text, the peak is underlined and its value stands before the example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """One token of an example; `share` of the feature's largest activation decides its background, 0 leaves it plain."""

    text: str
    share: float
    hint: str
    peak: bool = False


@dataclass(frozen=True)
class Patch:
    """A square of a picture: left, top and size as percentages, and the activation as a share of the feature's largest."""

    left: float
    top: float
    size: float
    share: float
    hint: str


@dataclass(frozen=True)
class Example:
    """One context in which a feature is active."""

    value: str
    hint: str
    tokens: tuple[Token, ...]
    cut: bool = False
    """Whether the sequence began before what is shown."""
    png: str = ""
    """The picture that it is from, base64; empty of text."""
    patches: tuple[Patch, ...] = ()
    """Where in the picture the feature is active."""
    peak: Patch | None = None
    """Where in it the peak stands; None where it stands in the text."""


@dataclass(frozen=True)
class Bar:
    """One bin of a histogram, as shares of its width and height."""

    left: float
    width: float
    height: float
    hint: str


@dataclass(frozen=True)
class Histogram:
    """Active tokens by activation, on a logarithmic axis from `low` to `high`."""

    bars: tuple[Bar, ...]
    low: str
    high: str
    highest: str
    alt: str


@dataclass(frozen=True)
class Words:
    """A list of tokens with their effects in hover texts."""

    title: str
    tokens: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Card:
    """One feature."""

    title: str
    label: str
    facts: str
    examples: tuple[Example, ...]
    histogram: Histogram
    words: tuple[Words, ...]
    associations: tuple[str, ...]


@dataclass(frozen=True)
class Cards:
    """The features of one layer that are shown."""

    title: str
    caption: str
    cards: tuple[Card, ...]
    folded: bool = False
    block = "cards"


def histogram(edges: Sequence[float], counts: Sequence[int]) -> Histogram:
    """The bins from the first to the last that holds something."""
    filled = [i for i, n in enumerate(counts) if n]
    if not filled:
        return Histogram((), "", "", "", "No token on which the feature is active")
    first, last = filled[0], filled[-1] + 1
    width, most = 1 / (last - first), max(counts)
    bars = tuple(
        Bar((i - first) * width, width, counts[i] / most, f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {counts[i]:,} tokens")
        for i in range(first, last)
        if counts[i]
    )
    low, high = f"{edges[first]:.3g}", f"{edges[last]:.3g}"
    total = sum(counts)
    return Histogram(bars, low, high, f"{most:,}", f"{total:,} active tokens, activations from {low} to {high}")

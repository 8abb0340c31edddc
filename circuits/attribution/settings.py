"""What a study of circuits is, in plain values. No torch."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from circuits.errors import suggest
from circuits.interventions.settings import Direction, Metric, Split

HERE = Path(__file__).parent
POSITIONS = ("all", "last", "spans")
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of edges at which a circuit is judged (MIB, arXiv:2504.13151)."""


class Choice(Enum):
    """How edges are chosen by their scores."""

    top_n = "top_n"  # the largest sizes
    greedy = "greedy"  # from the logits down: each edge enters only when its reader leads to them
    threshold = "threshold"  # sizes of at least attribution.threshold
    influence = "influence"  # by what share of all paths from the logits goes through an edge


@dataclass
class Settings:
    """Which edges are scored, how, on which prompts, and what of it is checked."""

    method: str = "eap_ig_inputs"  # a file of circuits/attribution/methods: how edges are scored
    steps: int = 5  # points of the path, of methods that integrate
    direction: Direction = (
        Direction.noising
    )  # noising: the clean run with the corrupt one's values; denoising: the reverse
    metric: Metric = Metric.first_token  # compare the logits of the answers' first tokens, or whole answers
    positions: str = (
        "all"  # all; last: changes count at the prompt's last token only; spans: scores by stretch of the pair, too
    )
    split: Split = Split.train  # prompts that edges are scored on; task=faithfulness judges on the other ones
    samples: int | None = None  # so many of them, the first ones; null: all
    choose: Choice = Choice.top_n  # how a circuit is chosen by the scores
    edges: float = 0.05  # of the circuit: a share of all edges, or a number from 1 on
    threshold: float = 0.01  # of choose=threshold: the smallest |mean score|
    verify: int = 100  # the largest edges that are patched exactly, to see how far scores can be trusted
    verify_random: int = 100  # and random others
    verify_samples: int = 16  # on so many prompts
    bootstraps: int = 1000  # resamplings of the prompts, for the share of them in which an edge is among the chosen
    batch_size: int = 8  # prompts of a pass


def methods() -> list[str]:
    """The names of the methods."""
    return sorted(m.name for m in pkgutil.iter_modules([str(HERE / "methods")]) if m.name != "base")


def integrates(method: str) -> bool:
    """Whether a method reads ``steps``; known without importing it."""
    return method in ("conductance", "eap_ig_activations", "eap_ig_inputs")


def check(s: Settings) -> list[str]:
    """What is wrong with the settings, one line each."""
    errors = []
    if s.method not in methods():
        errors.append(f"method={s.method}: there is none" + suggest(s.method, methods(), "methods"))
    if s.positions not in POSITIONS:
        errors.append(f"positions={s.positions}: choices: {' '.join(POSITIONS)}")
    for name, least in (("steps", 1), ("batch_size", 1), ("verify_samples", 1), ("verify", 0), ("verify_random", 0),
                        ("bootstraps", 0)):  # fmt: skip
        if (value := getattr(s, name)) < least:
            errors.append(f"{name}={value}: at least {least}")
    if s.samples is not None and s.samples < 1:
        errors.append(f"samples={s.samples}: at least 1")
    if s.edges <= 0 or (s.edges > 1 and s.edges != int(s.edges)):
        errors.append(f"edges={s.edges:g}: a share of all edges (above 0, up to 1), or a whole number of them")
    if s.threshold <= 0:
        errors.append(f"threshold={s.threshold:g}: above 0")
    return errors


def count(edges: float, total: int) -> int:
    """How many edges `edges` means, a share up to 1 or a number."""
    return min(total, max(1, round(edges * total) if edges <= 1 else int(edges)))


def listed(value: Any) -> list[Any]:
    """A list as it is, one value as a list of it."""
    return list(value) if isinstance(value, (list, tuple)) else [value]

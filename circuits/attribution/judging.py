"""How a circuit is judged, in plain values. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from circuits.attribution.settings import FRACTIONS, Choice


class Ablation(Enum):
    """What an edge outside the circuit carries."""

    counterfactual = "counterfactual"  # what its writer adds in the pair's other run
    zero = "zero"
    mean = "mean"  # what its writer adds on average over the tokens of the prompts that are not judged
    resample = "resample"  # what its writer adds on another prompt
    optimal = (
        "optimal"  # the constant with which circuits come nearest to the model, fitted on prompts that are not judged
    )


@dataclass
class Settings:
    """How a circuit is judged."""

    ablation: Ablation = Ablation.counterfactual  # what edges outside the circuit carry
    fractions: Any = None  # shares of edges; null: MIB's .001 .002 .005 .01 .02 .05 .1 .2 .5 1
    rank: Choice = Choice.top_n  # how edges are ranked: top_n, greedy or influence
    random: int = 5  # random circuits of each size, and as many with each reader's number of edges
    minimality: int = 40  # edges of the circuit that are tested one by one, and random ones beside them; 0: none
    steps: int = 40  # gradient steps of optimal constants
    samples: int | None = None  # prompts that are judged, the first ones; null: all of the split
    batch_size: int = 8  # rows of a pass

    @property
    def shares(self) -> list[float]:
        """The shares of edges, ascending, each once."""
        given = FRACTIONS if self.fractions is None else self.fractions
        return sorted({float(x) for x in (given if isinstance(given, (list, tuple)) else [given])})


def check(s: Settings) -> list[str]:
    """What is wrong with the settings, one line each."""
    errors = []
    given = s.fractions if isinstance(s.fractions, (list, tuple)) else [] if s.fractions is None else [s.fractions]
    for x in given:
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 < x <= 1:
            errors.append(f"fractions={x}: shares of all edges, above 0 and up to 1")
    if s.rank is Choice.threshold:
        errors.append("rank=threshold: sizes of circuits are given by fractions; choices: top_n greedy influence")
    for name, least in (("random", 0), ("minimality", 0), ("steps", 1), ("batch_size", 1)):
        if (value := getattr(s, name)) < least:
            errors.append(f"{name}={value}: at least {least}")
    if s.samples is not None and s.samples < 2:
        errors.append(f"samples={s.samples}: at least 2")
    return errors

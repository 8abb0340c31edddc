"""One geometric signature as it was saved, for the section's figures and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from circuits.geometry.names import TITLES
from circuits.report.registry import Entry
from circuits.report.sections.prompts import name
from circuits.report.words import span

LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Record:
    """One signature."""

    entry: Entry
    metrics: Mapping[str, Any]

    @cached_property
    def series(self) -> str:
        """Behaviour, model, and what was swept besides."""
        bare = re.sub(r"-L\d+-H[\d_]*$", "", name(self.entry))
        swept = [f"{k}={v}" for k, v in self.entry.element.swept.items() if k not in ("behaviour", "model", "layer")]
        return ", ".join([bare, *swept])

    @property
    def layer(self) -> int:
        """Where the residual stream is looked at."""
        return int(self.metrics["layer"])

    @property
    def heads(self) -> str:
        """``heads 2, 4, 7 of layer 0``."""
        which = self.metrics["heads"]
        return f"head{'s' * (len(which) > 1)} {', '.join(map(str, which))} of layer {self.metrics['head_layer']}"

    @property
    def tests(self) -> Mapping[str, Mapping[str, Any]]:
        """The control's distribution and the p-values, by metric."""
        found: Mapping[str, Mapping[str, Any]] = self.metrics["random_control"].get("metrics") or {}
        return {name: one for name, one in found.items() if name in TITLES}

    @property
    def significant(self) -> int:
        """Metrics with q below 0.05."""
        return sum(one.get("q") is not None and one["q"] < LEVEL for one in self.tests.values())


def sample(records: Sequence[Record]) -> str:
    """How many prompts and controls, for captions."""
    sizes, controls = ({int(r.metrics[key]) for r in records} for key in ("n", "n_controls"))
    return f"n = {span(sorted(sizes), 0)} prompts, {span(sorted(controls), 0)} control sets each"

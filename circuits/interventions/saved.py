"""A study's tables as a notebook reads them::

study = circuits.open("interventions", behaviour="ioi", intervention="heads")
study.summary.nlargest(5, "abs_effect")[["unit", "edit", "effect", "low", "high", "q"]]
study.effects.query("metric == 'effect' and edit == 'zero'")
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from circuits.stats.saved import Saved

if TYPE_CHECKING:
    import pandas as pd


class Intervention(Saved):
    """The tables of a study, read when they are asked for."""

    what = "study"

    @cached_property
    def effects(self) -> pd.DataFrame:
        """One row a (unit, prompt, edit, metric)."""
        return self._table("effects")

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row a unit and edit: mean effect, interval, tests, controls."""
        return self._table("summary")

    @cached_property
    def groups(self) -> pd.DataFrame:
        """Synergy of groups; empty where there are none."""
        return self._table("groups")

    @cached_property
    def shapley(self) -> pd.DataFrame:
        """Sampled Shapley values of heads; empty where none were asked for."""
        return self._table("shapley")

    @cached_property
    def steering(self) -> pd.DataFrame:
        """One row a steering direction: strength, effect, prompts steered the wrong way, controls, fluency; else empty."""
        return self._table("steering")

    @cached_property
    def generations(self) -> pd.DataFrame:
        """What was written under each direction; empty where nothing was."""
        return self._table("generations")

    def __repr__(self) -> str:
        m = self.metrics
        return f"Intervention({m['units']} units on {m['n']} prompts, {' '.join(m['edits'])}; {self.path})"

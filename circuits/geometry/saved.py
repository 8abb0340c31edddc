"""A geometric signature as a notebook reads it::

found = circuits.open("geometry", behaviour="facts", layer=0, geometry__heads=[2, 4, 7])
found.metrics["deltas"]["output_entropy"], found.metrics["p_output_entropy"]
found.sets.query("role == 'control'")["full"].hist()
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from circuits import tables
from circuits.stats.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

SETS, PROMPTS = "sets.parquet", "prompts.parquet"


class Signature(Saved):
    """The summary (`metrics`), the numbers of every head set (`sets`), and each prompt's own (`prompts`)."""

    what = "signature"

    @cached_property
    def sets(self) -> pd.DataFrame:
        """One row a head set: ``role`` (baseline, studied, control), ``heads``, and every metric's value."""
        return tables.read(self.path / SETS)

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """One row a prompt: its id, split and group, and its numbers without (``…_baseline``) and with the ablation."""
        return tables.read(self.path / PROMPTS)

    def __repr__(self) -> str:
        m = self.metrics
        heads = ", ".join(map(str, m["heads"]))
        return f"Signature(heads {heads} of layer {m['head_layer']} seen at layer {m['layer']}, {m['n']:,} prompts; {self.path})"

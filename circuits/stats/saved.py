"""A baseline's measurement as a notebook reads it::

measured = circuits.open("baseline", behaviour="ioi")
measured.metrics["logit_diff"], measured.metrics["logit_diff_ci"]
measured.rows.query("not pair_right")[["prompt", "target", "top_token"]]
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from circuits import tables
from circuits.errors import Damaged
from circuits.files import read_json

if TYPE_CHECKING:
    import pandas as pd


class Saved:
    """An artifact with a measurement (`metrics`) and tables that are read when they are asked for.

    Raises:
        Damaged: there is no whole one.
    """

    what: ClassVar[str] = "measurement"

    def __init__(self, directory: Path) -> None:
        self.path = Path(directory)
        try:
            self.metrics: dict[str, Any] = read_json(self.path / "metrics.json")
        except (OSError, ValueError) as e:
            raise Damaged(f"{directory}: no whole {self.what} ({e})") from e

    def _table(self, name: str) -> pd.DataFrame:
        """The table of a name; empty where the artifact has none."""
        import pandas as pd

        path = self.path / f"{name}.parquet"
        return tables.read(path) if path.exists() else pd.DataFrame()


class Measurement(Saved):
    """The summary of a measurement over prompts (`metrics`), and its values prompt by prompt (`rows`)."""

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row a prompt: its texts, split, group and factors, the answers' scores and what the model would say."""
        return tables.read(self.path / "per_prompt.parquet")

    def __len__(self) -> int:
        return int(self.metrics["n"])

    def __repr__(self) -> str:
        m = self.metrics
        found = f"{m['metric']} {m['logit_diff']:.2f}, right {m['pair_acc']:.1%}"
        return f"Measurement({len(self):,} prompts, {found}; {self.path})"

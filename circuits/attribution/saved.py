"""A circuit study's tables as a notebook reads them::

study = circuits.open("attribution", behaviour="ioi")
study.edges.head()[["edge", "score", "exact", "inclusion"]]
study.scores                                    # [prompts, edges], with study.samples
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from circuits.attribution.nodes import Nodes
from circuits.stats.saved import Saved

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


class Circuit(Saved):
    """The tables of a study, read when they are asked for."""

    what = "study"

    @cached_property
    def model(self) -> Nodes:
        """Writers and readers of the model."""
        sizes = {k: v for k, v in self.metrics["model"].items() if k != "width"}
        return Nodes(**sizes)

    @cached_property
    def edges(self) -> pd.DataFrame:
        """One row an edge, the largest first."""
        return self._table("edges")

    @cached_property
    def nodes(self) -> pd.DataFrame:
        """One row a writer."""
        return self._table("nodes")

    @cached_property
    def exact(self) -> pd.DataFrame:
        """One row a verified edge and prompt."""
        return self._table("exact")

    @cached_property
    def pieces(self) -> pd.DataFrame:
        """Scores by stretch of the pair; empty unless positions are spans."""
        return self._table("pieces")

    @cached_property
    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        from circuits.data import tensorfile

        return tensorfile.load(self.path / "scores.safetensors")

    @property
    def scores(self) -> Tensor:
        """``[prompts, edges]``, in the order of ``model.edges``."""
        return self._tensors[0]["scores"]

    @property
    def samples(self) -> list[str]:
        """The prompts' ids."""
        return list(self._tensors[1]["samples"])

    def __repr__(self) -> str:
        m = self.metrics
        return f"Circuit({m['circuit_edges']} of {m['edges']} edges by {m['method']} on {m['n']} prompts; {self.path})"


class Judged(Saved):
    """A judged circuit's tables, read when they are asked for."""

    what = "judgement"

    @cached_property
    def curve(self) -> pd.DataFrame:
        """One row a circuit: the ranked edges at each share, random ones beside them, the chosen one, its complement, and the
        chosen one without and with single edges."""
        return self._table("curve")

    @cached_property
    def alone(self) -> pd.DataFrame:
        """The metric of each circuit on each prompt."""
        return self._table("alone")

    @cached_property
    def minimality(self) -> pd.DataFrame:
        """One row a tested edge; empty where none was."""
        return self._table("minimality")

    def __repr__(self) -> str:
        m = self.metrics
        return f"Judged(f = {m['faithfulness']:.3f} with {m['chosen_edges']} of {m['edges']} edges; {self.path})"

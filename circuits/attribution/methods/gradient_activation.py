"""Gradient × activation: the gradient times what the writer adds, so an estimate of what taking it away changes. Reads no pair."""

from __future__ import annotations

from torch import Tensor

from circuits.attribution.methods.base import Method, Task
from circuits.attribution.scores import changes


class GradientActivation(Method):
    """One backward pass, no other run."""

    title = "gradient × activation"

    def scores(self, task: Task) -> Tensor:
        """Minus the write, times the gradient."""
        done = task.with_graph()
        delta = changes(task.anatomy, done, None)
        counts = task.batch.counts
        slopes = task.slopes(delta if counts is None else delta * counts[:, None, :, None])
        task.add(slopes, done)
        return slopes.scores()


METHOD = GradientActivation()

"""EAP with integrated gradients along the inputs (Hanna et al., arXiv:2403.17806): the gradient is the mean over `steps` points
on the straight line between the two runs' embeddings, the point of the run that is edited among them."""

from __future__ import annotations

from torch import Tensor

from circuits.attribution.methods.base import Method, Task
from circuits.attribution.pairs import Batch


def starts(batch: Batch, base: Tensor, other: Tensor) -> Tensor:
    """The other run's embeddings at the positions of this one."""
    return other if batch.at is None else other.gather(1, batch.at[..., None].expand_as(base))


class EAPIGInputs(Method):
    """`steps` forward and backward passes, all rows at once."""

    title = "EAP-IG (inputs)"
    paper = "arXiv:2403.17806"
    integrates = True

    def scores(self, task: Task) -> Tensor:
        """Points k / steps of the way from the other run, k = 1 … steps; the last is the run itself."""
        done = task.based(task.with_graph())
        slopes = task.slopes(task.changes(done))
        near = done.streams["pre", 0]
        far = starts(task.batch, near, task.other.streams["pre", 0])
        task.add(slopes, done, 1 / task.steps)
        for k in range(1, task.steps):
            point = task.with_graph(start=far + (k / task.steps) * (near - far))
            task.add(slopes, point, 1 / task.steps)
        return slopes.scores()


METHOD = EAPIGInputs()

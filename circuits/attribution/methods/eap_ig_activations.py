"""EAP with integrated gradients along activations (Hanna et al., arXiv:2403.17806): for the embedding, each layer's heads
together and each MLP in turn, its output goes from the other run's to this one's in `steps` points while everything before
stays; the mean gradient of what comes after is multiplied by what those writers change. (2 layers + 1) · steps passes: dear, for
small models."""

from __future__ import annotations

from torch import Tensor

from circuits.attribution.methods.base import Method, Task
from circuits.attribution.methods.eap_ig_inputs import starts
from circuits.models.edits import added
from circuits.models.hooks import Edit


class EAPIGActivations(Method):
    """Passes for every sublayer."""

    title = "EAP-IG (activations)"
    paper = "arXiv:2403.17806"
    integrates = True

    def scores(self, task: Task) -> Tensor:
        """Each sublayer's writers by the gradients of its own path."""
        nodes = task.anatomy.nodes
        delta = task.changes()
        near = task.base.streams["pre", 0]
        far = starts(task.batch, near, task.other.streams["pre", 0])
        total = self._stage(task, delta[:, :1], 0, [(far + a * (near - far), ()) for a in self._points(task)])
        for layer in range(nodes.layers):
            for site, first, n in (
                ("attn_out", nodes.writer(layer, 0), nodes.heads),
                ("mlp_out", nodes.writer(layer), 1),
            ):
                mine = delta[:, first : first + n]
                change = mine.sum(1)
                edits = [(Edit(site, layer, added((1 - a) * change)),) for a in self._points(task)]
                total = total + self._stage(task, mine, first, [(near, edit) for edit in edits])
        return total

    def _points(self, task: Task) -> list[float]:
        return [k / task.steps for k in range(1, task.steps + 1)]

    def _stage(self, task: Task, delta: Tensor, first: int, points: list[tuple[Tensor, tuple[Edit, ...]]]) -> Tensor:
        slopes = task.slopes(delta, first=first)
        for start, edits in points:
            task.add(slopes, task.with_graph(start=start, edits=edits), 1 / len(points))
        return slopes.scores()


METHOD = EAPIGActivations()

"""Edge conductance along the inputs' path (Dhamdhere et al., arXiv:1805.12233; for edges CEAP, arXiv:2606.16920).

Where EAP-IG multiplies a writer's whole change by the mean gradient, conductance multiplies what the writer changes between two
neighbouring points of the path by the gradient between them, and sums: Σ_k (u(x_k+1) − u(x_k)) · ∂m/∂x_v.
"""

from __future__ import annotations

from torch import Tensor

from circuits.attribution.methods.base import Method, Task
from circuits.attribution.methods.eap_ig_inputs import starts
from circuits.attribution.passes import Gradients, Run


class Conductance(Method):
    """`steps` forward and backward passes, and one forward pass more."""

    title = "conductance"
    paper = "arXiv:1805.12233"
    integrates = True

    def scores(self, task: Task) -> Tensor:
        """From the run that is edited to the other one; each stretch has the mean of the gradients at its ends."""
        near = task.base.streams["pre", 0]
        far = starts(task.batch, near, task.other.streams["pre", 0])
        total: Tensor = near.new_zeros(())
        before: tuple[Run, Gradients] | None = None
        for k in range(task.steps + 1):
            done = task.with_graph(start=near + (k / task.steps) * (far - near))
            here = (done, task.gradients(done))
            if before is not None:
                slopes = task.slopes(task.changes(before[0], done))
                for point, found in (before, here):
                    slopes.add(point, found, 0.5)
                total = total + slopes.scores()
            before = here
        return total


METHOD = Conductance()

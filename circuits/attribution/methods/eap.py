"""Edge attribution patching: the writer's change times the gradient at the run that is edited (Syed et al., arXiv:2310.10348)."""

from __future__ import annotations

from circuits.attribution.methods.base import OneBackward


class EAP(OneBackward):
    """One backward pass."""

    title = "EAP"
    paper = "arXiv:2310.10348"


METHOD = EAP()

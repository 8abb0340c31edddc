"""Relevance patching (RelP, arXiv:2508.21258): EAP with coefficients of layer-wise relevance propagation in place of gradients:
norms are constants, a nonlinearity counts as multiplication by its own quotient, a gate's factors get half each. Attention is as
it is."""

from __future__ import annotations

from circuits.attribution.methods.base import OneBackward
from circuits.attribution.rules import Rules


class RelP(OneBackward):
    """One backward pass under LRP's rules."""

    title = "RelP"
    paper = "arXiv:2508.21258"
    rules = Rules(norms=True, act=True, gate=True)


METHOD = RelP()

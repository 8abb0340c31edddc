"""Gradient interaction modifications (GIM, arXiv:2505.17630): one backward pass in which norms are constants, the softmax has its
gradient at temperature 2, and a product hands each factor its share (query ¼, key ¼, value ½; gate ½, up ½)."""

from __future__ import annotations

from circuits.attribution.methods.base import OneBackward
from circuits.attribution.rules import Rules


class GIM(OneBackward):
    """One backward pass under GIM's rules."""

    title = "GIM"
    paper = "arXiv:2505.17630"
    rules = Rules(norms=True, gate=True, attention="gim")


METHOD = GIM()

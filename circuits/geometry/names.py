"""What the numbers of a geometric signature are called, in the order in which they are shown. No torch."""

from __future__ import annotations

from collections.abc import Sequence

METHODS = ("full", "diagonal", "subspace", "per_token")
"""Gaussian entropies of the residual stream."""
OTHERS = (
    "output_entropy", "activation_kl", "step_length", "step_length_first", "step_length_rest", "turning_angle",
)  # fmt: skip
"""What is measured whatever the methods."""
BY_PROMPT = ("output_entropy", "step_length", "step_length_first", "step_length_rest", "turning_angle")
"""Of these, means over prompts, which have an interval."""
SUBSPACE_K = "subspace_k"
"""Dimensions of the subspace: reported beside its entropy, not tested."""

TITLES = {
    "full": "full entropy",
    "diagonal": "diagonal entropy",
    "subspace": "subspace entropy",
    "per_token": "per-token entropy",
    "output_entropy": "output entropy",
    "activation_kl": "activation KL",
    "step_length": "step length",
    "step_length_first": "step length, first 5",
    "step_length_rest": "step length, rest",
    "turning_angle": "turning angle",
}
UNITS = dict.fromkeys((*METHODS, "output_entropy", "activation_kl"), "nats") | {"turning_angle": "rad"}
"""Steps are in the model's own units."""


def metrics_of(methods: Sequence[str]) -> tuple[str, ...]:
    """All metrics of a signature with these entropies."""
    return (*(name for name in METHODS if name in methods), *OTHERS)

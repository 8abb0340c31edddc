"""Frozen baselines: the same SAE with a part of it left as it was drawn, trained beside it.

What an SAE with a *frozen decoder* (random directions) or a *frozen encoder* reaches, training has not added: on many benchmarks
such SAEs come close to trained ones ("Sanity checks for sparse autoencoders", arXiv:2602.14111). So every measure of a trained SAE
stands beside theirs. They start from the same draw and the same normalisation, at the same sparsity, and take every `EVERY`-th
batch: a quarter of a training for both. What they reach is therefore what a short training reaches.
"""

from __future__ import annotations

from dataclasses import replace

from circuits.sae.spec import TrainSpec

EVERY = 8
FROZEN = {"frozen_decoder": "W_dec", "frozen_encoder": "W_enc"}
"""The weights that stay, by baseline."""
_STEPS = ("warmup", "l1_warmup", "l0_warmup", "k_anneal", "threshold_warmup", "dead_after")


def spec_of(spec: TrainSpec, baseline: str) -> TrainSpec:
    """The settings of a baseline: those of its SAE, all that is counted in steps or rows divided."""
    fewer = {name: -(-getattr(spec, name) // EVERY) for name in ("steps", *_STEPS)}
    return replace(spec, **fewer, frozen=baseline, baselines=False, patience=None)

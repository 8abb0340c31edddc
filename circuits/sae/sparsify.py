"""EleutherAI's sparsify directory (version 1), both ways, for TopK SAEs and transcoders: ``cfg.json``, ``sae.safetensors``.

    f = TopK(ReLU((x − b_dec) Wᵀ + b))      x̂ = f W_dec + b_dec

with ``encoder.weight`` W [d_sae, d_in], ``encoder.bias`` b, ``W_dec`` and ``b_dec``: the same tensors, the encoder transposed, so
nothing is lost either way. A transcoder's encoder sees x itself; a skip connection (``W_skip``) adds W_skip x to what comes out.
In its multi-layer checkpoints each layer's directory is one such.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes

from circuits.errors import UserError
from circuits.files import disk_errors, write_atomic, write_json
from circuits.sae.formats import promised, read_config, read_weights
from circuits.sae.modules import SAE, SAEConfig
from circuits.sae.modules.topk import TopKSAE
from circuits.sae.unread import CONFIG
from circuits.sae.unread import SPARSIFY_WEIGHTS as WEIGHTS

NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}


def save(directory: Path, sae: SAE, hookpoint: str | None = None) -> None:
    """Write a TopK SAE or transcoder; `hookpoint` is kept in the config for people.

    Raises:
        UserError: another architecture, which sparsify does not have.
    """
    if not isinstance(sae, TopKSAE):
        raise UserError(f"sparsify has TopK SAEs only, this one is {sae.architecture}; choose export.format=saelens")
    if sae.cfg.d_out not in (None, sae.cfg.d_in):
        raise UserError(
            f"sparsify's transcoders have one width, this one reads {sae.cfg.d_in} and writes {sae.cfg.d_out}"
        )
    if sae.cfg.normalize != "none":
        raise UserError(
            f"sparsify does not normalise rows, this SAE does ({sae.cfg.normalize}); choose export.format=saelens"
        )
    config: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": sae.cfg.d_sae // sae.cfg.d_in,
        "normalize_decoder": True,
        "num_latents": sae.cfg.d_sae,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": sae.cfg.skip,
        "transcode": sae.cfg.d_out is not None,
        "d_in": sae.cfg.d_in,
        "hookpoint": hookpoint,
    }
    state = {NAMES.get(name, name): t.detach().float().cpu() for name, t in sae.state_dict().items()}
    state["encoder.weight"] = state["encoder.weight"].T
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / WEIGHTS, to_bytes({name: t.contiguous() for name, t in state.items()}))
    write_json(directory / CONFIG, config)


def load(directory: Path) -> SAE:
    """Read an SAE that sparsify wrote, in float32 on the CPU."""
    found = promised(directory, read_config(directory, "sparsify"), sparsify=True)
    sae = TopKSAE(SAEConfig(found.d_in, found.d_sae, found.k, found.d_out, skip=found.skip))
    weights = read_weights(directory / WEIGHTS, found)
    ours = {NAMES.get(name, name): name for name in sae.state_dict()}
    state = {ours[name]: value for name, value in weights.items()}
    state["W_enc"] = state["W_enc"].T.contiguous()
    sae.load_state_dict(state)
    return sae.eval()

"""Cross-layer transcoders on disk, as circuit-tracer (github.com/safety-research/circuit-tracer) reads and writes them.

``config.yaml`` (model_name, model_kind, feature_input_hook, feature_output_hook) and, of each layer i of n,

    W_enc_{i}.safetensors   W_enc_{i} [d_sae, d]   b_enc_{i} [d_sae]   b_dec_{i} [d]   threshold_{i} [d_sae] (jump ReLU; else ReLU)
    W_dec_{i}.safetensors   W_dec_{i} [d_sae, n − i, d]

A band is written as zeros, since the layout knows none. Ours say beside it (``across.json``) which layers they are of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuits.errors import UserError
from circuits.files import write_json
from circuits.sae import cross_layer_sets as sets
from circuits.sae import massive
from circuits.sae.cross_layer import CrossLayerTranscoder, targets
from circuits.sae.modules.base import SAEConfig


def save(directory: Path, sae: CrossLayerTranscoder, hooks: tuple[str, str], model: str, layers: list[int]) -> None:
    """Write it.

    Args:
        directory: exists.
        sae: the transcoder.
        hooks: of a block, what is read and what is written (``hook_resid_mid``, ``hook_mlp_out``).
        model: its name.
        layers: which of the model's layers it is of; circuit-tracer takes those of all layers only.
    """
    n, out = sae.layers, sae.cfg.width_out // sae.layers
    for i, table in enumerate(sae.decoders):
        encoder = {
            f"W_enc_{i}": sae.W_enc[i].T,
            f"b_enc_{i}": sae.b_enc[i],
            f"b_dec_{i}": sae.b_dec[i * out : (i + 1) * out],
            f"threshold_{i}": sae.threshold[i],
        }
        whole = torch.zeros(len(table), n - i, out)
        whole[:, : table.shape[1] // out] = table.detach().cpu().unflatten(1, (-1, out))
        save_file({k: v.detach().cpu().contiguous() for k, v in encoder.items()}, directory / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": whole}, directory / f"W_dec_{i}.safetensors")
    config = {
        "model_name": model,
        "model_kind": sets.KIND,
        "feature_input_hook": hooks[0],
        "feature_output_hook": hooks[1],
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    facts: dict[str, Any] = {"layers": layers, "band": sae.cfg.band, "scales": list(sae.block_scales)}
    facts |= {} if sae.massive is None else {"massive_norms": sae.massive.facts()}
    write_json(directory / sets.FACTS, facts)


def load(directory: Path) -> CrossLayerTranscoder:
    """Read one, ours or circuit-tracer's.

    Raises:
        UserError: layers are missing, shapes do not fit each other, or it is something else.
    """
    try:
        sets.config(directory)
        layers, facts = sets.depth(directory), sets.facts(directory)
        encoders = [_tensors(directory / f"W_enc_{i}.safetensors") for i in range(layers)]
        decoders = [_tensors(directory / f"W_dec_{i}.safetensors") for i in range(layers)]
        m, d, out = sets.sizes(
            *([{k: tuple(v.shape) for k, v in one.items()} for one in side] for side in (encoders, decoders))
        )
    except ValueError as e:
        raise UserError(f"{directory}: {e}") from e
    band = facts.get("band")
    sae = CrossLayerTranscoder(SAEConfig(layers * d, layers * m, None, layers * out, blocks=layers, band=band))
    for i, table in enumerate(sae.decoders):
        sae.W_enc[i] = encoders[i][f"W_enc_{i}"].float().T
        sae.b_enc[i] = encoders[i][f"b_enc_{i}"].float()
        if f"threshold_{i}" in encoders[i]:
            sae.threshold[i] = encoders[i][f"threshold_{i}"].float().squeeze()
        sae.b_dec[i * out : (i + 1) * out] = encoders[i][f"b_dec_{i}"].float().squeeze()
        table.copy_(decoders[i][f"W_dec_{i}"][:, : targets(i, layers, band)].float().flatten(1))
    sae.block_scales = tuple(facts.get("scales", ()))
    try:
        sae.massive = massive.of_facts(facts.get("massive_norms"), layers * d, layers * out)
    except (TypeError, ValueError) as e:
        raise UserError(f"{directory}/{sets.FACTS}: {e}") from e
    return sae.eval()


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from e

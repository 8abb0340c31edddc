"""Cross-layer transcoders on disk, as circuit-tracer (github.com/safety-research/circuit-tracer) reads and writes them.

``config.yaml`` (model_name, model_kind, feature_input_hook, feature_output_hook) and, of each layer i of n,

    W_enc_{i}.safetensors   W_enc_{i} [d_sae, d]   b_enc_{i} [d_sae]   b_dec_{i} [d]   threshold_{i} [d_sae] (jump ReLU; else ReLU)
    W_dec_{i}.safetensors   W_dec_{i} [d_sae, n − i, d]

A band is written as zeros, since the layout knows none. Ours say beside it (``across.json``) which layers they are of.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuits.errors import UserError
from circuits.files import read_json, write_json
from circuits.sae.cross_layer import CrossLayerTranscoder, targets
from circuits.sae.modules.base import SAEConfig

KIND = "cross_layer_transcoder"
FACTS = "across.json"
HOOKS = {"mlp_in": "mlp.hook_in"}
"""Names that circuit-tracer has for sites, where TransformerLens has another one."""
_NAME = re.compile(r"W_(enc|dec)_(\d+)\.safetensors")


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
        "model_kind": KIND,
        "feature_input_hook": hooks[0],
        "feature_output_hook": hooks[1],
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    write_json(directory / FACTS, {"layers": layers, "band": sae.cfg.band, "scales": list(sae.block_scales)})


def load(directory: Path) -> CrossLayerTranscoder:
    """Read one, ours or circuit-tracer's.

    Raises:
        UserError: layers are missing, shapes do not fit each other, or it is something else.
    """
    config, layers = _config(directory), _layers(directory)
    facts: dict[str, Any] = dict(read_json(directory / FACTS)) if (directory / FACTS).exists() else {}
    encoders = [_tensors(directory / f"W_enc_{i}.safetensors") for i in range(layers)]
    decoders = [_tensors(directory / f"W_dec_{i}.safetensors")[f"W_dec_{i}"] for i in range(layers)]
    m, d = encoders[0]["W_enc_0"].shape
    out = encoders[0]["b_dec_0"].shape[-1]
    for i in range(layers):
        wanted = {f"W_enc_{i}": (m, d), f"b_enc_{i}": (m,), f"b_dec_{i}": (out,)}
        wanted |= {f"threshold_{i}": (m,)} if f"threshold_{i}" in encoders[i] else {}
        if unknown := set(encoders[i]) - set(wanted):
            raise UserError(f"{directory}/W_enc_{i}.safetensors: {sorted(unknown)[0]} is not read")
        for name, shape in wanted.items():
            if name not in encoders[i] or tuple(encoders[i][name].squeeze().shape) != shape:
                found = "missing" if name not in encoders[i] else list(encoders[i][name].shape)
                raise UserError(f"{directory}: {name} is {found}; {list(shape)} is wanted")
        if tuple(decoders[i].shape) != (m, layers - i, out):
            raise UserError(
                f"{directory}: W_dec_{i} is {list(decoders[i].shape)}; [{m}, {layers - i}, {out}] is wanted of {layers} layers"
            )
    if config.get("activation", "relu") not in ("relu", "jump_relu", "jumprelu"):
        raise UserError(f"{directory}/config.yaml: activation = {config['activation']} is not read (relu, jump_relu)")
    band = facts.get("band")
    sae = CrossLayerTranscoder(SAEConfig(layers * d, layers * m, None, layers * out, blocks=layers, band=band))
    for i, table in enumerate(sae.decoders):
        sae.W_enc[i] = encoders[i][f"W_enc_{i}"].float().T
        sae.b_enc[i] = encoders[i][f"b_enc_{i}"].float()
        if f"threshold_{i}" in encoders[i]:
            sae.threshold[i] = encoders[i][f"threshold_{i}"].float().squeeze()
        sae.b_dec[i * out : (i + 1) * out] = encoders[i][f"b_dec_{i}"].float().squeeze()
        table.copy_(decoders[i][:, : targets(i, layers, band)].float().flatten(1))
    sae.block_scales = tuple(facts.get("scales", ()))
    return sae.eval()


def _config(directory: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise UserError(f"{directory}/config.yaml: cannot be read ({str(e).splitlines()[0]})") from e
    if not isinstance(found, dict) or found.get("model_kind") != KIND:
        raise UserError(f"{directory}/config.yaml: model_kind is not {KIND}")
    return found


def _layers(directory: Path) -> int:
    """How many layers there are.

    Raises:
        UserError: some are missing, named.
    """
    found: dict[str, set[int]] = {"enc": set(), "dec": set()}
    for path in directory.iterdir():
        if match := _NAME.fullmatch(path.name):
            found[match[1]].add(int(match[2]))
    every = set(range(max(found["enc"] | found["dec"], default=-1) + 1))
    missing = [f"W_{side}_{i}.safetensors" for side in found for i in sorted(every - found[side])]
    if not every or missing:
        raise UserError(f"{directory}: a cross-layer transcoder lacks {', '.join(missing[:6]) or 'every layer'}")
    return len(every)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from e

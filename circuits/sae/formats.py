"""The SAELens directory (version 6), both ways: ``cfg.json``, ``sae_weights.safetensors``, ``sparsity.safetensors``.

What differs between SAELens's options and ours is folded into the weights, exactly:

* ``apply_b_dec_to_input`` false: x W_enc + b = (x − b_dec) W_enc + (b + b_dec W_enc); a gated SAE's magnitudes: times exp(r_mag).
* ``rescale_acts_by_decoder_norm`` (TopK): with n = ‖W_dec[i]‖, features n·pre over decoder rows W_dec/n.
* ``finetuning_scaling_factor`` (before version 6): one factor a feature between encoder and decoder, over the decoder's rows.
* ``reshape_activations: hook_z``: heads side by side, as everywhere here; nothing to do.

What is done to each row (``layer_norm``, ``constant_norm_rescale``) stays an option of the SAE; normalisation by a number that the
file does not hold is refused. What configs of all versions say: :mod:`circuits.sae.declared`. BatchTopK and Matryoshka SAEs are
JumpReLU SAEs once trained, in both libraries. SAELens has no TopK transcoder: ours is a ``topk_transcoder``, which this reader
knows and SAELens refuses; sparsify's format (:mod:`circuits.sae.sparsify`) has one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from circuits.errors import UserError
from circuits.files import disk_errors, write_atomic, write_json
from circuits.sae import massive
from circuits.sae.declared import SCALING, Found, declared
from circuits.sae.directory import differences
from circuits.sae.massive import Massive
from circuits.sae.modules import SAE, SAEConfig, architectures
from circuits.sae.unread import CONFIG, WEIGHTS

SPARSITY = "sparsity.safetensors"
MASSIVE = "massive_norms"
"""In the metadata: the norms beyond which a row is none that the SAE is for (:mod:`circuits.sae.massive`)."""
FORMAT_VERSION = "6.54.12"
"""The SAELens version whose directory this is; below 6.0.0 SAELens would convert it as an old one."""


def kinds() -> dict[str, tuple[type[SAE], bool]]:
    """By architecture name in a config: our class, and whether it is a transcoder."""
    classes = {entry.sae for entry in architectures().values()}
    found = {cls.saelens: (cls, False) for cls in classes}
    transcoders = {cls.saelens_transcoder: (cls, True) for cls in classes if cls.saelens_transcoder is not None}
    return {**found, **transcoders, **{skipping(name): known for name, known in transcoders.items()}}


def skipping(transcoder: str) -> str:
    """What SAELens calls such a transcoder with a skip connection."""
    return transcoder.replace("transcoder", "skip_transcoder")


def save(
    directory: Path, sae: SAE, metadata: Mapping[str, Any], firing_rate: Float[Tensor, " d_sae"] | None = None
) -> None:
    """Write `sae`. `metadata`: JSON-able, in SAELens's words (model_name, hook_name, context_size, prepend_bos …)."""
    transcodes = sae.cfg.d_out is not None
    name = sae.saelens_transcoder if transcodes else sae.saelens
    if name is None:
        raise UserError(f"a {sae.architecture} transcoder cannot be written")
    name = skipping(name) if sae.cfg.skip else name
    config = {
        "architecture": name,
        "d_in": sae.cfg.d_in,
        "d_sae": sae.cfg.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not transcodes,
        "normalize_activations": sae.cfg.normalize,
        "reshape_activations": "none",
        **({"k": sae.cfg.k, "rescale_acts_by_decoder_norm": False} if sae.saelens == "topk" else {}),
        **({"d_out": sae.cfg.d_out} if transcodes else {}),
        "metadata": {
            "sae_lens_version": FORMAT_VERSION,
            "sae_lens_training_version": None,
            **metadata,
            **({} if sae.massive is None else {MASSIVE: sae.massive.facts()}),
        },
    }
    weights = {name: t.detach().float().cpu().contiguous() for name, t in sae.state_dict().items()}
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / WEIGHTS, to_bytes(weights))
    if firing_rate is not None:
        sparsity = torch.log10(firing_rate.detach().float().cpu() + 1e-10)
        write_atomic(directory / SPARSITY, to_bytes({"sparsity": sparsity.contiguous()}))
    write_json(directory / CONFIG, config)


def copy(source: Path, directory: Path) -> None:
    """The files of an SAE's directory and no others, byte for byte."""
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, SPARSITY, CONFIG):
            if (source / name).exists():
                shutil.copyfile(source / name, directory / name)


def load(directory: Path) -> SAE:
    """Read an SAE, ours or a foreign one, in float32 on the CPU."""
    config = read_config(directory)
    found = promised(directory, config, sparsify=False)
    cls, _ = kinds()[found.architecture]
    sae = cls(SAEConfig(found.d_in, found.d_sae, found.k, found.d_out, found.normalize, found.skip))
    weights = _scaled(read_weights(directory / WEIGHTS, found), found, directory / WEIGHTS)
    sae.load_state_dict(folded(weights, found))
    sae.massive = _massive(directory / CONFIG, config, found)
    return sae.eval()


def _massive(path: Path, config: Mapping[str, Any], found: Found) -> Massive | None:
    metadata = config.get("metadata")
    try:
        return massive.of_facts(metadata.get(MASSIVE) if isinstance(metadata, dict) else None, found.d_in, found.d_out)
    except (TypeError, ValueError) as e:
        raise UserError(f"{path}: metadata.{MASSIVE}: {e}") from e


def firing_rate(directory: Path) -> Float[Tensor, " d_sae"]:
    """For each feature the share of tokens on which it was active when the SAE was measured; 0: never."""
    path = directory / SPARSITY
    try:
        return (10.0 ** load_file(path)["sparsity"].float()).where(load_file(path)["sparsity"] > -9.5, 0.0)
    except (SafetensorError, OSError, KeyError) as e:
        raise UserError(f"{path} cannot be read as the SAE's firing rates ({e})") from e


def read_config(directory: Path, library: str = "SAELens") -> dict[str, Any]:
    """``cfg.json`` as it stands, metadata included; `library` is whose directory it should be."""
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise UserError(f"{path} cannot be read ({e}): {directory} is no {library} directory") from e
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no JSON object: {directory} is no {library} directory")
    return config


def promised(directory: Path, config: dict[str, Any], *, sparsify: bool) -> Found:
    """What a config says of the weights beside it."""
    try:
        return declared(config, sparsify=sparsify)
    except ValueError as e:
        raise UserError(f"{directory / CONFIG}: {e}") from e


def read_weights(path: Path, found: Found, config: str = CONFIG) -> dict[str, Tensor]:
    """The tensors of the file in float32, checked against what its config says of them."""
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path} cannot be read as safetensors ({e})") from e
    if wrong := differences(found, {name: tuple(t.shape) for name, t in weights.items()}, config):
        raise UserError([f"{path} {problem}" for problem in wrong])
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: tensor {name} holds NaN or infinity")
    return {name: t.float() for name, t in weights.items()}


def _scaled(weights: dict[str, Tensor], found: Found, path: Path) -> dict[str, Tensor]:
    """The factors of a finetuned SAE in its decoder; SAELens before version 4 saved ones with every other SAE, too."""
    factors = [weights.pop(name) for name in SCALING if name in weights]
    if not factors or torch.allclose(factors[0], torch.ones_like(factors[0])):
        return weights
    if not found.scaled:
        raise UserError(
            f"{path} holds a scaling_factor that is not 1, and {CONFIG} says finetuning_scaling_factor = False"
        )
    return {**weights, "W_dec": weights["W_dec"] * factors[0][:, None]}


def folded(weights: dict[str, Tensor], found: Found) -> dict[str, Tensor]:
    """Weights that mean the same without SAELens's options."""
    w = dict(weights)
    if not found.centred and found.d_out is None:
        shift = w["b_dec"] @ w["W_enc"]
        for name in ("b_enc", "b_gate"):
            if name in w:
                w[name] = w[name] + shift
        if "b_mag" in w:
            w["b_mag"] = w["b_mag"] + shift * w["r_mag"].exp()
    if found.rescaled:
        norm = w["W_dec"].norm(dim=1)
        w["W_enc"], w["b_enc"] = w["W_enc"] * norm, w["b_enc"] * norm
        w["W_dec"] = w["W_dec"] / norm.clamp(min=1e-12)[:, None]
    return w

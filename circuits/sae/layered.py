"""What the configs of circuit-tracer's transcoders and of Gemma Scope 2 say, beside the shapes of their tensors. No torch.

circuit-tracer (github.com/safety-research/circuit-tracer): one ``config.yaml`` for all layers, and of each layer

    f = act(x W_encᵀ + b_enc)      ŷ = f W_dec + b_dec (+ x W_skipᵀ)      W_enc, W_dec [d_sae, d], W_skip [d_out, d_in]

with act = ReLU, or the jump ReLU where the file has ``activation_function.threshold``. Gemma Scope 2 (google/gemma-scope-2-…): a
``config.json`` for each SAE or transcoder, and

    f = JumpReLU(x w_enc + b_enc)      ŷ = f w_dec + b_dec (+ x affine_skip_connection [d_in, d_out])      w_enc [d_in, d_sae]

b_dec is taken from neither's input. As in the other formats every key that changes what is computed is read, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuits.errors import suggest
from circuits.sae.declared import Found, known, text
from circuits.sae.places import Form

Shapes = Mapping[str, tuple[int, ...]]
THRESHOLDS = ("activation_function.threshold", "threshold")
TRACER = frozenset(
    {"model_kind", "model_name", "feature_input_hook", "feature_output_hook", "activation", "scan", "repo_id", "revision",
     "subfolder"}
)  # fmt: skip
"""Keys of a ``config.yaml``; the last four change nothing in use."""
SCOPE = frozenset(
    {"architecture", "type", "width", "model_name", "hf_hook_point_in", "hf_hook_point_out", "affine_connection", "l0"}
)
CROSS_LAYER = (
    "a cross-layer transcoder, whose features write to all later layers, is none of one layer: task=clt takes it"
)
ELSEWHERE = "transcoders names files that lie elsewhere; put each layer's file (layer_0.safetensors …) beside it and take it out"
UNREAD_HOOKS = {
    "ln2.hook_normalized": "what a norm gives before its weight is applied is no site here (mlp_in is what the MLP reads)",
    "ln2_post.hook_normalized": "what a norm gives before its weight is applied is no site here (mlp_out is what is added)",
}
ACTIVATIONS = {
    "relu": "",
    "jump_relu": "",
    "jumprelu": "",
    "topk": "its k largest pre-activations may be negative, and features here are not",
}


def declared(config: Any, shapes: Shapes, form: Form, layer: int | None) -> Found:
    """What a config says of the tensors of these shapes.

    Raises:
        ValueError: nothing that is understood here.
    """
    if not isinstance(config, dict):
        raise ValueError("holds no mapping")
    said = {str(name): value for name, value in config.items() if value is not None}
    if form is Form.tracer:
        return _tracer(said, shapes, layer)
    return _scope(said, shapes)


def cross_layer(shapes: Shapes) -> bool:
    """Whether tensors of these names and shapes are part of a cross-layer transcoder."""
    encoder = shapes.get("w_enc", shapes.get("W_enc", ()))
    return any(name.startswith(("W_enc_", "W_dec_", "W_dec.")) for name in shapes) or len(encoder) == 3


def _tracer(config: dict[str, Any], shapes: Shapes, layer: int | None) -> Found:
    kind = config.get("model_kind", "transcoder_set")
    if kind == "cross_layer_transcoder" or cross_layer(shapes):
        raise ValueError(CROSS_LAYER)
    if kind != "transcoder_set":
        raise ValueError(f"model_kind = {kind} is not supported (only transcoder_set)")
    if "transcoders" in config:
        raise ValueError(ELSEWHERE)
    activation = config.get("activation")
    if activation is not None and ACTIVATIONS.get(activation) != "":
        why = (
            f": {ACTIVATIONS[activation]}"
            if activation in ACTIVATIONS
            else suggest(str(activation), ACTIVATIONS, "read")
        )
        raise ValueError(f"activation = {activation} is not supported{why}")
    known(config, TRACER)
    threshold = next((name for name in THRESHOLDS if name in shapes), THRESHOLDS[0])
    jumps = threshold in shapes if activation is None else activation != "relu"
    skip = "W_skip" in shapes
    d_sae, d_out, d_in = _length(shapes, "b_enc"), _length(shapes, "b_dec"), _length(shapes, "W_enc", 1)
    wanted = {"W_enc": (d_sae, d_in), "b_enc": (d_sae,), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    wanted |= {threshold: (d_sae,)} if jumps else {}
    wanted |= {"W_skip": (d_out, d_in)} if skip else {}
    read, write = (_hook(config, f"feature_{side}_hook", layer) for side in ("input", "output"))
    return Found(
        _architecture(jumps=jumps, transcodes=True, skip=skip), d_in, d_sae, d_out, None, wanted,
        centred=False, skip=skip, model=text(config, "model_name"), hook=read, hook_out=write,
    )  # fmt: skip


def _hook(config: Mapping[str, Any], name: str, layer: int | None) -> str:
    hook = config.get(name)
    if not isinstance(hook, str) or not hook:
        raise ValueError(f"{name} must name a hook of the model's blocks, it is {hook}")
    if hook in UNREAD_HOOKS:
        raise ValueError(f"{name} = {hook} is not supported: {UNREAD_HOOKS[hook]}")
    return f"blocks.{layer}.{hook}"


def _scope(config: dict[str, Any], shapes: Shapes) -> Found:
    kind = config.get("type", "sae")
    if kind not in ("sae", "transcoder", "clt"):
        raise ValueError(f"type = {kind} is not supported (only sae and transcoder)")
    if kind == "clt" or cross_layer(shapes):
        raise ValueError(CROSS_LAYER)
    if (architecture := config.get("architecture")) != "jump_relu":
        raise ValueError(f"architecture = {architecture} is not supported (only jump_relu)")
    known(config, SCOPE)
    skip = config.get("affine_connection", False)
    if not isinstance(skip, bool):
        raise ValueError(f"affine_connection must be true or false, it is {skip}")
    read = text(config, "hf_hook_point_in")
    write = text(config, "hf_hook_point_out")
    transcodes = kind == "transcoder" or (write is not None and write != read)
    if skip and not transcodes:
        raise ValueError("affine_connection = True is not supported in an SAE: it would copy its input")
    d_in, d_sae, d_out = _length(shapes, "w_enc"), _length(shapes, "b_enc"), _length(shapes, "b_dec")
    if (width := config.get("width", d_sae)) != d_sae:
        raise ValueError(f"width = {width}, and the tensor b_enc has {d_sae}")
    wanted = {
        "w_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "w_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "threshold": (d_sae,),
    }
    wanted |= {"affine_skip_connection": (d_in, d_out)} if skip else {}
    return Found(
        _architecture(jumps=True, transcodes=transcodes, skip=skip), d_in, d_sae, d_out if transcodes else None, None, wanted,
        centred=False, skip=skip, model=_gemma(config), hook=read, hook_out=write if transcodes else None,
    )  # fmt: skip


def _gemma(config: Mapping[str, Any]) -> str | None:
    """The model's name on the hub: configs also say ``gemma-v3-1b-pt``, and the smallest base model has no suffix there."""
    said = text(config, "model_name")
    name = said and said.replace("-v3-", "-3-")
    return name.removesuffix("-pt") if name and "270m" in name else name


def _architecture(*, jumps: bool, transcodes: bool, skip: bool) -> str:
    """SAELens's name for it."""
    if not transcodes:
        return "jumprelu" if jumps else "standard"
    return f"{'jumprelu_' * jumps}{'skip_' * skip}transcoder"


def _length(shapes: Shapes, name: str, axis: int = 0) -> int:
    """The size of a tensor along an axis.

    Raises:
        ValueError: there is no such tensor.
    """
    shape = shapes.get(name, ())
    if len(shape) <= axis:
        raise ValueError(
            f"its weights lack the tensor {name}" if name not in shapes else f"tensor {name} has shape {list(shape)}"
        )
    return shape[axis]

"""TransformerLens, an implementation of its own, given the same weights: equal logits, and equal activations at every site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import SEQUENTIAL, build, every_site, rows

from circuits.model_input import ModelInput
from circuits.models.hooks import forward
from circuits.models.load import LM
from circuits.models.sites import FAMILIES, hook_name


def shape(family: str, lm: LM) -> dict[str, Any]:
    """What its configuration says of a family beside the sizes."""
    config = lm.model.config.get_text_config()
    if family == "gpt2":
        return {"normalization_type": "LN", "act_fn": "gelu_new", "eps": config.layer_norm_epsilon}
    rotary: dict[str, Any] = {"positional_embedding_type": "rotary", "rotary_adjacent_pairs": False}
    if family.startswith("gpt_neox"):
        rotary["rotary_dim"] = int(lm.dims.head_dim * config.rope_parameters["partial_rotary_factor"])
        parallel = {"parallel_attn_mlp": lm.dims.parallel}
        return {"normalization_type": "LN", "act_fn": "gelu", "eps": config.layer_norm_eps, **parallel, **rotary}
    gated = {"normalization_type": "RMS", "gated_mlp": True, "final_rms": True, "eps": config.rms_norm_eps, **rotary}
    gated |= {"n_key_value_heads": lm.dims.kv_heads, "act_fn": "silu", "rotary_dim": lm.dims.head_dim}
    gated["use_qk_norm"] = family.startswith(("qwen3", "gemma3"))
    local = {"use_local_attn": True, "window_size": getattr(config, "sliding_window", None)}
    if family == "mistral":
        gated |= {**local, "attn_types": ["local"] * lm.dims.layers}
    if not family.startswith("gemma3"):
        return {**gated, "rotary_base": int(config.rope_parameters["rope_theta"])}
    bases = {kind: int(rope["rope_theta"]) for kind, rope in config.rope_parameters.items()}
    kinds = ["local" if kind == "sliding_attention" else "global" for kind in config.layer_types]
    gated |= {"act_fn": "gelu_pytorch_tanh", "use_normalization_before_and_after": True, **local, "attn_types": kinds}
    gated |= {"use_attn_scale": True, "attn_scale": config.query_pre_attn_scalar**0.5}
    return {**gated, "rotary_base": bases["full_attention"], "rotary_base_local": bases["sliding_attention"]}


@pytest.mark.parametrize("family", [*sorted(FAMILIES), SEQUENTIAL])
def test_agrees_with_transformer_lens_at_every_site(family: str) -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    lm = build(family, head_dim=8)  # it takes head_dim x heads = width for most families
    dims = lm.dims
    cfg = HookedTransformerConfig(
        n_layers=dims.layers, d_model=dims.width, n_heads=dims.heads, d_head=dims.head_dim, d_mlp=dims.mlp_width,
        d_vocab=dims.vocab, n_ctx=dims.context, device="cpu", **shape(family, lm),
    )  # fmt: skip
    name = {"gemma3_text": "gemma", "gemma3": "gemma"}.get(family, family.replace("gpt_neox", "neox").split()[0])
    lens = HookedTransformer(cfg)
    lens.load_state_dict(getattr(weight_conversions, f"convert_{name}_weights")(lm.model, cfg), strict=False)
    ids, mask = rows(9, 9)
    with torch.no_grad():
        logits, cache = lens.run_with_cache(ids)
    ours = forward(lm, ModelInput(ids, mask), capture=every_site(lm), logits="all")
    torch.testing.assert_close(ours.logits, logits, atol=1e-4, rtol=1e-4)
    for (site, layer), tensor in ours.sites.items():
        theirs = cache[hook_name(site, layer)]
        if site == "mlp_in":  # before the norm's weight and bias there
            norm = lens.blocks[layer].ln2
            theirs = theirs * norm.w + (norm.b if hasattr(norm, "b") else 0)
        torch.testing.assert_close(tensor, theirs, atol=1e-4, rtol=1e-4, msg=lambda m, s=site: f"{s}: {m}")

"""The libraries that score edges too, run beside ours: TransformerLens's hooks, and auto-circuit's masks on its models.

auto-circuit 1.0.1 asks for packages that nothing here needs (JAX among them), and for a name that TransformerLens 3 has elsewhere:

pip install --no-deps auto-circuit==1.0.1 attrs blobfile lxml narwhals ordered-set plotly pycryptodomex vscode-tqdm word2word wget
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from circuits.data.prompts import PromptSet
from circuits.models.load import LM


def hooked(lm: LM) -> Any:
    """A model of TransformerLens of the shape of `lm`, as edges need it."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    d = lm.dims
    config = HookedTransformerConfig(
        n_layers=d.layers, d_model=d.width, n_heads=d.heads, d_head=d.head_dim, d_mlp=d.mlp_width, d_vocab=d.vocab, n_ctx=128,
        device="cpu", act_fn="gelu_new", normalization_type="LN",
    )  # fmt: skip
    model = HookedTransformer(config).eval()
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    return model


def transformer_lens(lm: LM, given: PromptSet) -> Callable[[], object] | None:
    """EAP over all edges with TransformerLens's hooks, written as its users write it.

    ``use_attn_result``, ``use_split_qkv_input``, ``use_hook_mlp_in``, gradients by backward hooks, one product for each pair of
    sublayers.
    """
    if importlib.util.find_spec("transformer_lens") is None:
        return None
    model, d = hooked(lm), lm.dims
    clean, corrupt = (torch.tensor(list(given.sequences(which))) for which in ("prompt", "corrupt"))
    outs = ["hook_embed", *(f"blocks.{i}.{n}" for i in range(d.layers) for n in ("attn.hook_result", "hook_mlp_out"))]
    ins = [
        f"blocks.{i}.{n}"
        for i in range(d.layers)
        for n in ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
    ]
    ins.append(f"blocks.{d.layers - 1}.hook_resid_post")

    def scores() -> list[Tensor]:
        delta: dict[str, Tensor] = {}
        grads: dict[str, Tensor] = {}

        def minus(x: Tensor, hook: Any) -> None:
            delta[hook.name] = -x.detach()

        def plus(x: Tensor, hook: Any) -> None:
            delta[hook.name] = delta[hook.name] + x.detach()

        def kept(x: Tensor, hook: Any) -> None:
            grads[hook.name] = x.detach()

        with model.hooks(fwd_hooks=[(n, minus) for n in outs], bwd_hooks=[(n, kept) for n in ins]):
            logits = model(clean)[:, -1]
            (logits[:, 3] - logits[:, 4]).sum().backward()
        model.zero_grad()
        with torch.no_grad(), model.hooks(fwd_hooks=[(n, plus) for n in outs]):
            model(corrupt)
        heads = {n: x if x.dim() == 4 else x[:, :, None] for n, x in (delta | grads).items()}
        found = []
        for a, out in enumerate(outs):
            for into in ins:
                layer = int(into.split(".")[1])
                if a <= (2 * layer if "_input" in into else 2 * layer + 1 if "mlp_in" in into else len(outs)):
                    found.append(torch.einsum("npud,npvd->nuv", heads[out], heads[into]))
        return found

    return scores


def auto_circuit(lm: LM, given: PromptSet) -> Callable[[], object] | None:
    """EAP over all edges by the gradient of auto-circuit's masks at zero, all pairs in one batch."""
    if any(importlib.util.find_spec(name) is None for name in ("auto_circuit", "transformer_lens")):
        return None
    import transformer_lens as library
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    moved = types.ModuleType("transformer_lens.past_key_value_caching")
    for place in (moved, library):
        place.HookedTransformerKeyValueCache = TransformerLensKeyValueCache  # type: ignore[attr-defined]
    sys.modules.setdefault(moved.__name__, moved)
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.prune_algos import mask_gradient
    from auto_circuit.utils.graph_utils import patchable_model

    mask_gradient.tqdm = _Silent
    model = hooked(lm)
    for parameter in model.parameters():  # as its users do: only masks have gradients
        parameter.requires_grad_(False)
    clean, corrupt = (list(torch.tensor(list(given.sequences(which)))) for which in ("prompt", "corrupt"))
    right, wrong = ([torch.tensor([token])] * len(clean) for token in (3, 4))
    rows = PromptDataset(clean_prompts=clean, corrupt_prompts=corrupt, answers=right, wrong_answers=wrong)
    loader = PromptDataLoader(rows, seq_len=len(clean[0]), diverge_idx=0, batch_size=len(clean))
    patched = patchable_model(
        model, factorized=True, slice_output="last_seq", separate_qkv=True, device=torch.device("cpu")
    )
    return lambda: mask_gradient.mask_gradient_prune_scores(
        patched, loader, None, grad_function="logit", answer_function="avg_diff", mask_val=0.0
    )


class _Silent(list[Any]):
    """A bar that shows nothing."""

    def set_description_str(self, text: str) -> None:
        """Nothing."""

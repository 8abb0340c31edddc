"""Which tokens a feature promotes and suppresses: its decoder row read through the final norm and the unembedding.

The direct path only (logit lens; nostalgebraist 2020, and the "logit weights" of Bricken et al. 2023):

    effect = (W_dec[f] → residual stream) ⊙ g · W_U,   minus its mean over the vocabulary

g is the final norm's learned scale; a LayerNorm also takes the mean out. The norm's division by the length of the residual
stream is left out: it differs from token to token and changes no order. So effects are in logits per unit of activation at
length √width, to be compared within a feature. Biases change no difference between features and are left out, too.

At ``head_z`` and ``mlp_act`` the row goes through the layer's own output projection first. Where the path is not linear
(``mlp_in``; a sublayer with a norm behind it, Gemma) there is no such reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.load import LM
from circuits.models.modules import module_at
from circuits.models.unembed import final_norm
from circuits.sae.modules import SAE

ROWS_AT_ONCE = 256  # features × vocabulary in memory
STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # sites whose vectors are residual directions
THROUGH = {"head_z": "attn_out", "mlp_act": "mlp_out"}


@dataclass(frozen=True)
class TokenEffects:
    """The `n` most promoted and most suppressed tokens of each feature, strongest first."""

    promoted: Int[Tensor, "f n"]
    promoted_effect: Float[Tensor, "f n"]
    suppressed: Int[Tensor, "f n"]
    suppressed_effect: Float[Tensor, "f n"]


def why_none(lm: LM, site: str) -> str | None:
    """Why features of `site` have no linear path to the logits, or None."""
    if site in STREAM:
        return None
    if site not in THROUGH:
        return f"{site} is read by the MLP, it is no direction of the residual stream"
    inner, outer = lm.family.taps[site].module, lm.family.taps[THROUGH[site]].module
    if inner == outer or inner.startswith(f"{outer}."):
        return None
    return f"in this model a norm stands between {site} and the residual stream"


@torch.no_grad()
def residual_rows(lm: LM, rows: Float[Tensor, "f d"], site: str, layer: int) -> Float[Tensor, "f width"]:
    """Directions at `site` as directions of the residual stream; only where :func:`why_none` is None."""
    if site in STREAM:
        return rows.float()
    projection = module_at(module_at(lm.model, lm.family.blocks)[layer], lm.family.taps[site].module)
    rows = rows.to(lm.device, lm.dtype)
    return (projection(rows) - projection(torch.zeros_like(rows[:1]))).float()


@torch.no_grad()
def token_effects(lm: LM, sae: SAE, features: Int[Tensor, " f"], site: str, layer: int, n: int) -> TokenEffects | None:
    """What each feature promotes and suppresses; None where :func:`why_none` says why."""
    if why_none(lm, site) is not None:
        return None
    rows = residual_rows(lm, sae.W_dec[features.to(sae.W_dec.device)], site, layer).to(lm.device)
    norm = final_norm(lm)
    rows = norm.along(rows, torch.ones_like(rows[:, :1]))
    unembedding = module_at(lm.model, lm.family.lm_head).weight
    known = len(unembedding) if lm.tokenizer is None else min(len(unembedding), len(lm.tokenizer))
    unembedding = unembedding[:known].float()  # rows beyond the tokenizer are padding
    n = min(n, known)
    parts = []
    for part in rows.split(ROWS_AT_ONCE):
        effect = part @ unembedding.T
        effect -= effect.mean(1, keepdim=True)
        high, low = effect.topk(n, dim=1), effect.topk(n, dim=1, largest=False)
        parts.append((high.indices.cpu(), high.values.cpu(), low.indices.cpu(), low.values.cpu()))
    return TokenEffects(*(torch.cat(column) for column in zip(*parts, strict=True)))

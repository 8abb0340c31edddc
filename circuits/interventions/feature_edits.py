"""Edits of a few SAE features in a model: their part of the reconstruction scaled, or the directions they are read by taken out.

``scale``    x + decode(f′, x) − decode(f, x), with f′ the features times `factor`: 0 ablates, 2 amplifies. The rest of x, what
             the SAE does not explain included, stays as it was: a full reconstruction would damage the text by itself.
``project``  x − Q Qᵀ (x − b_dec), Q an orthonormal basis of the features' encoder columns (arXiv:2509.10809).

Both act at every token but the first `skip_first`, generated ones included, each token by itself: a pass that goes on from cached
keys and values hands over its new columns alone, with equal results. The reconstruction's change under ``scale`` is linear
in the factor, so amplification by a is exactly |a − 1| times ablation; that is a check and no finding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.model_input import ModelInput
from circuits.models.hooks import Edit
from circuits.sae.modules import SAE

KINDS = ("scale", "project")


def change(sae: SAE, features: Sequence[int], factor: float, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """What scaling `features` by `factor` adds to x."""
    f = sae.encode(x)
    scaled = torch.zeros_like(f)
    index = torch.tensor(list(features), dtype=torch.long, device=f.device)
    scaled[..., index] = (factor - 1) * f[..., index]
    if sae.cfg.normalize == "none":
        return scaled @ sae.W_dec
    return sae.decode(f + scaled, x) - sae.decode(f, x)


def projected(sae: SAE, features: Sequence[int], x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """What projecting the features' encoder directions out adds to x."""
    basis, _ = torch.linalg.qr(sae.W_enc[:, torch.tensor(list(features), device=sae.W_enc.device)])
    return -((x - sae.b_dec) @ basis) @ basis.T


def edits(
    saes: dict[int, SAE],
    features: dict[int, Sequence[int]],
    site: str,
    rows: ModelInput,
    *,
    kind: str = "scale",
    factor: float = 0.0,
    skip_first: int = 0,
) -> list[Edit]:
    """The edits of a pass over `rows`, one a layer."""
    acts = rows.after(skip_first)

    def at(layer: int) -> Edit:
        sae, chosen = saes[layer], list(features[layer])

        def fn(x: Tensor) -> Tensor:
            mine = acts[:, -x.shape[1] :].to(x.device)
            flat = x[mine].float().to(sae.W_enc.device)
            added = change(sae, chosen, factor, flat) if kind == "scale" else projected(sae, chosen, flat)
            x[mine] += added.to(x.device, x.dtype)
            return x

        return Edit(site, layer, fn)

    return [at(layer) for layer in sorted(features) if len(features[layer])]

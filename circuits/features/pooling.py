"""Features on prompts: one number for each prompt and feature, since the prompt is the unit of sampling and not its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from circuits.data.keeper import Keeper
from circuits.data.prompts import PromptSet
from circuits.errors import UserError
from circuits.features.collect import feature_activations
from circuits.models.hooks import check_finite, forward
from circuits.models.load import LM
from circuits.sae.memory import FEATURES_AT_ONCE
from circuits.sae.modules import SAE
from circuits.transfer import sent

How = Literal["max", "mean", "last"]


def pooled(
    lm: LM,
    saes: Mapping[int, SAE],
    features: Mapping[int, Int[Tensor, " f"]],
    prompts: PromptSet,
    *,
    site: str,
    how: How,
    skip_first: int,
    batch_size: int,
    keeper: Keeper[int] | None = None,
) -> dict[int, NDArray[np.float32]]:
    """By layer ``[prompts, features]``, prompts in the set's order; the first `skip_first` positions do not count.

    `keeper`: where each layer's numbers are kept; told (prompts done, all), it may end the pass.

    Raises:
        UserError: a prompt has no position that counts.
    """
    short = [p.id for p in prompts if len(p.ids) <= skip_first]
    if short:
        raise UserError(f"prompt {short[0]} has no token after the first sae.skip_first={skip_first}; lower it")
    found = {layer: np.zeros((len(prompts), len(features[layer])), np.float32) for layer in saes}
    keeper = keeper or Keeper()
    facts = {"batch": batch_size, "how": how, "prompts": len(prompts)}
    kept = keeper.begin({layer: {**facts, "features": features[layer].tolist()} for layer in saes})
    found |= {layer: tensors["pooled"].clone().numpy() for layer, (tensors, _) in kept.items()}
    done = 0
    for batch in prompts.batches(batch_size):
        going = keeper.behind(done)
        if done < keeper.start:
            done += len(batch)
            continue
        sites = forward(lm, batch, capture=[(site, layer) for layer in going]).sites
        keep = batch.after(skip_first)
        for layer, sae in ((layer, saes[layer]) for layer in going):
            x = sites[site, layer].flatten(2)
            counted = sent(keep, x.device)[..., None]
            check_finite(torch.where(counted, x, 0.0), site, layer, batch.samples)  # a prompt's number in the set
            found[layer][batch.samples.numpy()] = _pool(sae, features[layer], x, keep, batch.last, how)
        done += len(batch)
        keeper.step(done, len(prompts), lambda layer: ({"pooled": torch.from_numpy(found[layer])}, {}))
    keeper.end(done, lambda layer: ({"pooled": torch.from_numpy(found[layer])}, {}))
    return found


def _pool(
    sae: SAE,
    features: Int[Tensor, " f"],
    x: Float[Tensor, "n pos d"],
    keep: Bool[Tensor, "n pos"],
    last: Int[Tensor, " n"],
    how: How,
) -> NDArray[np.float32]:
    parts = []
    at_once = max(1, FEATURES_AT_ONCE // (x.shape[1] * sae.cfg.d_sae))
    for start in range(0, len(x), at_once):
        part = slice(start, start + at_once)
        active = feature_activations(sae, features.to(sae.W_enc.device), x[part], keep[part])
        if how == "max":
            parts.append(active.amax(1))
        elif how == "mean":
            parts.append(active.sum(1) / sent(keep[part].sum(1, keepdim=True), active.device))
        else:
            parts.append(active[torch.arange(len(active), device=active.device), sent(last[part], active.device)])
    return torch.cat(parts).cpu().numpy()

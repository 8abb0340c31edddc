"""TopK SAE: Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv:2406.04093).

    f = ReLU(TopK((x − b_dec) W_enc + b_enc))                              (section 2.3, with the ReLU of their code)
    L = ‖x − x̂‖² + α ‖e − ê‖²                                              (appendix A.2; modules/auxiliary.py)

With `k_anneal`, k falls linearly from 4 k over that many steps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sae.modules import auxiliary
from circuits.sae.modules.base import SAE, Architecture, Objective, Outcome, SAEConfig
from circuits.sae.modules.gradients import Weights, beside_features, buffer, dense_weights, encode, sparse_weights
from circuits.sae.modules.products import combine, project
from circuits.sae.modules.scratch import scratch
from circuits.sae.modules.selection import largest_of_rows
from circuits.sae.modules.support import Support, sparse_pays
from circuits.sae.spec import TrainSpec


def keep_largest(pre: Float[Tensor, "... d_sae"], k: int) -> Float[Tensor, "... d_sae"]:
    """ReLU of the k largest entries of each row, zero elsewhere."""
    values, index = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, index, values.relu())


class TopKSAE(SAE):
    """The k largest pre-activations of each row are the features of that row."""

    architecture = "topk"
    saelens = "topk"
    saelens_transcoder = "topk_transcoder"

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        if cfg.k is None or not 1 <= cfg.k <= cfg.d_sae:
            raise ValueError(f"a TopK SAE needs 1 <= k <= d_sae = {cfg.d_sae}, got k = {cfg.k}")
        self.k = cfg.k

    def activate(self, pre: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        return keep_largest(pre, self.k)


def k_problems(spec: TrainSpec) -> list[str]:
    """What is wrong with k."""
    if spec.k is None:
        return [f"{spec.architecture} needs k, the number of features kept for each row"]
    if not 1 <= spec.k <= spec.d_sae:
        return [f"k = {spec.k} is not between 1 and the dictionary size d_sae = {spec.d_sae}"]
    return []


class TopKObjective(Objective):
    """Reconstruction error plus the auxiliary loss on dead features."""

    @staticmethod
    def problems(spec: TrainSpec) -> list[str]:
        return k_problems(spec)

    def gradients(self, w: Weights, x: Tensor, y: Tensor, step: int, dead: Int[Tensor, " n_dead"] | None) -> Outcome:
        k, c, y = self.spec.k_at(step), self.centred(w, x), self.left(w, x, y)
        pre = encode(w, c, w["b_enc"])
        values, features = largest_of_rows(pre, k)
        support = Support.uniform(features, self.spec.d_sae)
        f = values.relu_().flatten()
        on = (f > 0).to(f.dtype)
        if sparse_pays(len(f), len(x), self.spec.d_sae, x.device):
            error, g, h = self._sparse(w, y, support, f)
            h.mul_(on)
            sparse_weights(w, c, support, f, h, g)
        else:
            error, h = self._dense(w, c, y, support, f)
            h = h.gather(1, features).flatten().mul_(on)
            g = error * (2 / len(x))
        buffer(w["b_enc"]).copy_(support.feature_sums(h))
        beside_features(w, c, g, w["b_enc"].grad if self.tied else None)
        fired, along = support.feature_sums(on), support.feature_sums(f * h)
        parts = {} if dead is None else {"aux": self._auxiliary(w, c, pre, error, dead, along)}
        return Outcome(error, fired, on.sum(), parts, along)

    def _sparse(self, w: Weights, y: Tensor, support: Support, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """error, g, and ∂L/∂f at the entries."""
        error = support.decode(f, w["W_dec"]).add_(w["b_dec"]).sub_(y)
        g = error * (2 / len(y))
        return error, g, support.dots(g, w["W_dec"])

    def _dense(self, w: Weights, c: Tensor, y: Tensor, support: Support, f: Tensor) -> tuple[Tensor, Tensor]:
        """error and ∂L/∂f everywhere; writes the weights' gradients."""
        shape = (len(c), self.spec.d_sae)
        whole = scratch("f", shape, f).zero_().index_put_((support.rows, support.features), f)
        error = combine(whole, w["W_dec"], w["b_dec"]).sub_(y)
        g = error * (2 / len(y))
        h = project(g, w["W_dec"], None, "h").mul_(whole.sign())
        dense_weights(w, c, whole, h, g)
        return error, h

    def _auxiliary(self, w: Weights, c: Tensor, pre: Tensor, error: Tensor, dead: Tensor, along: Tensor) -> Tensor:
        return auxiliary.add_gradients(w, c, pre[:, dead], error, dead, self.spec.aux, along)

    def features(self, pre: Float[Tensor, "batch d_sae"], step: int) -> Float[Tensor, "batch d_sae"]:
        """The activations of a training step, for the reference loss."""
        return keep_largest(pre, self.spec.k_at(step))

    def reconstruction_loss(self, w: Weights, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction in plain autograd, and the loss on it."""
        reconstruction = f @ w["W_dec"] + w["b_dec"]
        return reconstruction, (reconstruction - y).square().sum(1).mean()

    def loss(self, w: Weights, x: Tensor, y: Tensor, step: int, dead: Int[Tensor, " n_dead"] | None) -> Tensor:
        f = self.features(self.centred(w, x) @ w["W_enc"].T + w["b_enc"], step)
        y = self.left(w, x, y)
        reconstruction, loss = self.reconstruction_loss(w, f, y)
        if dead is None:
            return loss
        c = x - w["b_dec"].detach() if self.tied else x
        return loss + auxiliary.loss(w, c, y, reconstruction, dead, self.spec.aux)


ARCHITECTURE = Architecture("topk", TopKSAE, TopKObjective)

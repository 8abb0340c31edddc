"""Training of one SAE: the loop that all architectures share.

A step: centre and scale the rows → the objective writes the gradients → the part of ∂W_dec parallel to W_dec is
removed (Bricken et al. 2023: a unit row can only turn) → clip by global norm → Adam → decoder rows back to unit norm.

Rows are normalised as x' = s (x − μ), μ the mean and s = sqrt(d_in / mean ‖x − μ‖²) of the first rows, so that lr and
l1 mean the same at every layer. (Anthropic's April 2024 update scales by the uncentred norm; at layers with a large
common offset that leaves little variance to train on.) `export` folds μ and s back in.

Nothing in a step waits for the device: metrics are summed there and read by `metrics()`. The one exception is the list
of dead features for the auxiliary loss, whose length the host must know; it is read once every `DEAD_EVERY` steps.
Generators are derived from (seed, purpose, layer), so a layer is trained alike alone and in a set.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.data.seeds import derive_seed
from circuits.errors import Damaged, NonFinite, RunError, UserError
from circuits.sae.modules import SAE, Outcome, SAEConfig, Weights, architecture
from circuits.sae.spec import TrainSpec

BETAS, EPS = (0.9, 0.999), 1e-8
DEAD_EVERY = 32
MOMENTS = ("exp_avg", "exp_avg_sq")


def check(spec: TrainSpec) -> None:
    """Raise UserError with everything that is wrong with `spec`."""
    wrong = spec.problems() + architecture(spec.architecture).objective.problems(spec)
    if wrong:
        raise UserError(wrong)


def normalisation(rows: Float[Tensor, "n d_in"]) -> tuple[Float[Tensor, " d_in"], float]:
    """μ and s of rows, in float64 on the CPU, so that they depend on nothing but the rows."""
    x = rows.detach().cpu().double()
    mean = x.mean(0)
    variance = (x - mean).square().sum(1).mean().item()
    if not math.isfinite(variance):
        raise NonFinite("the first rows contain NaN or infinity")
    if variance <= 0:
        raise RunError(f"the first {len(x)} rows are all equal: nothing to train an SAE on")
    return mean.float(), math.sqrt(x.shape[1] / variance)


class Trainer:
    """One SAE under training."""

    def __init__(
        self,
        spec: TrainSpec,
        device: torch.device,
        first_rows: Float[Tensor, "n d_in"] | None,
        scale: float | None = None,
    ) -> None:
        check(spec)
        self.spec, self.device, self.step = spec, device, 0
        self.architecture = architecture(spec.architecture)
        self.objective = self.architecture.objective(spec)
        if first_rows is None:  # a resumed trainer: `_restore` brings the mean
            self.mean, self.scale = torch.zeros(spec.d_in, device=device), scale or 1.0
        else:
            mean, self.scale = normalisation(first_rows)
            self.mean = mean.to(device)
        init = self.objective.init(self._generator("init"))
        self.weights: Weights = {name: nn.Parameter(p.detach().to(device)) for name, p in init.items()}
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=spec.lr, betas=BETAS, eps=EPS, fused=True)
        self._start_optimizer()
        self.generator = self._generator("resample")
        self.since_fired = torch.zeros(spec.d_sae, dtype=torch.int64, device=device)
        """Rows seen since each feature was last active."""
        self.dead_index = torch.zeros(0, dtype=torch.int64, device=device)
        self.sums: dict[str, Tensor] = {}

    def _generator(self, purpose: str) -> torch.Generator:
        seed = derive_seed(self.spec.seed, "sae", purpose, self.spec.layer)
        return torch.Generator().manual_seed(seed)

    def _start_optimizer(self) -> None:
        """Adam's state from the first step on, so that a checkpoint of step 0 has it too."""
        for p in self.weights.values():
            p.grad = torch.zeros_like(p)
            moments = {name: torch.zeros_like(p) for name in MOMENTS}
            self.optimizer.state[p] = {"step": torch.zeros((), device=self.device), **moments}

    # ── one step ──

    @torch.no_grad()
    def train_step(self, rows: Float[Tensor, "batch d_in"]) -> None:
        """One optimiser step on a batch of activation rows, of any dtype."""
        x = (rows.to(self.device, torch.float32) - self.mean).mul_(self.scale)
        outcome = self.objective.gradients(self.weights, x, self.step, self._dead())
        self._optimise()
        self._count(x, outcome)
        self.step += 1
        if self.objective.resamples and self.spec.resamples_at(self.step):
            self._revive(x, outcome)

    def _dead(self) -> Tensor | None:
        """Dead features for the auxiliary loss; None when there are none."""
        if not self.spec.aux or self.objective.resamples:
            return None
        # Before `dead_after` rows none can be dead, which the host knows without asking the device.
        if self.step % DEAD_EVERY == 0 and self.step * self.spec.batch_size >= self.spec.dead_after:
            self.dead_index = (self.since_fired >= self.spec.dead_after).nonzero().flatten()
        return self.dead_index if len(self.dead_index) else None

    def _optimise(self) -> None:
        decoder = self.weights["W_dec"]
        grads = [p.grad for p in self.weights.values() if p.grad is not None]
        if decoder.grad is not None:
            parallel = (decoder.grad * decoder).sum(1, keepdim=True)
            decoder.grad.addcmul_(decoder, parallel, value=-1)
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        torch._foreach_mul_(grads, (self.spec.clip / (norm + 1e-6)).clamp(max=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.lr_at(self.step)
        self.optimizer.step()
        decoder.div_(decoder.norm(dim=1, keepdim=True).clamp_(min=1e-12))

    def _count(self, x: Tensor, outcome: Outcome) -> None:
        n = len(x)
        self.since_fired.add_(n).mul_(outcome.fired == 0)
        squared = outcome.error.square().sum()
        seen = {
            "rows": torch.full((), float(n), device=self.device),
            "squared_error": squared,
            "x": x.sum(0),
            "x_squared": x.square().sum(),
            "active": outcome.fired.sum(),
            "loss": squared + n * sum(outcome.parts.values(), torch.zeros((), device=self.device)),
            **{f"part.{name}": n * value for name, value in outcome.parts.items()},
        }
        for name, value in seen.items():
            if name in self.sums:
                self.sums[name] += value
            else:
                self.sums[name] = value.clone()

    def _revive(self, x: Tensor, outcome: Outcome) -> None:
        dead = self.since_fired >= self.spec.dead_after
        noise = torch.rand(len(x), generator=self.generator).to(self.device, non_blocking=True)
        revived = self.objective.revive(self.weights, x, outcome.error, dead, noise)
        keep = ~revived
        for name, p in self.weights.items():
            if name == "b_dec":
                continue
            for moment in MOMENTS:
                state = self.optimizer.state[p][moment]
                state.mul_(keep if state.ndim == 1 else keep[:, None])
        self.since_fired.mul_(keep)

    # ── what others read ──

    def metrics(self) -> dict[str, float]:
        """Means over the steps since the last call, read from the device; NonFinite when the loss is no number."""
        if not self.sums:
            return {}
        sums, self.sums = {name: v.cpu().double() for name, v in self.sums.items()}, {}
        n = sums["rows"].item()
        loss = sums["loss"].item() / n
        if not math.isfinite(loss):
            raise NonFinite(
                f"the SAE's loss is {loss}: layer {self.spec.layer}, step {self.step}; lower the learning rate"
            )
        error = sums["squared_error"].item()
        variance = sums["x_squared"].item() - sums["x"].square().sum().item() / n
        dead = (self.since_fired >= self.spec.dead_after).float().mean().item()
        parts = {name.removeprefix("part."): v.item() / n for name, v in sums.items() if name.startswith("part.")}
        return {
            "loss": loss,
            "mse": error / n / self.spec.d_in / self.scale**2,
            "explained_variance": 1 - error / variance if variance > 0 else 0.0,
            "l0": sums["active"].item() / n,
            "dead_fraction": dead,
            "lr": self.spec.lr_at(max(0, self.step - 1)),
            **parts,
        }

    @torch.no_grad()
    def export(self) -> SAE:
        """The SAE as it stands, on raw activations; a copy. Before any step: the control."""
        spec = self.spec
        sae = self.architecture.sae(SAEConfig(spec.d_in, spec.d_sae, spec.k)).to(self.device)
        self.objective.export(sae, self.weights, self.mean, self.scale)
        return sae.eval()

    def untrained(self) -> Trainer:
        """This trainer before its first step, with the same normalisation and start: the control of its measurements."""
        fresh = Trainer(self.spec, self.device, None, scale=self.scale)
        fresh.mean.copy_(self.mean)
        return fresh

    # ── checkpoints ──

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a bit-exact continuation needs: tensors copied to the CPU, and JSON-able values."""
        tensors: dict[str, Tensor] = {f"weights.{name}": p for name, p in self.weights.items()}
        for name, p in self.weights.items():
            tensors |= {f"adam.{key}.{name}": value for key, value in self.optimizer.state[p].items()}
        tensors |= {f"sums.{name}": value for name, value in self.sums.items()}
        tensors |= {"mean": self.mean, "since_fired": self.since_fired, "dead_index": self.dead_index}
        tensors["generator"] = self.generator.get_state()
        copies = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
        return copies, {"step": self.step, "scale": self.scale, "spec": self.spec.as_dict()}

    @classmethod
    def resume(cls, spec: TrainSpec, tensors: dict[str, Tensor], meta: dict[str, Any], device: torch.device) -> Trainer:
        """The trainer whose `state` this was."""
        spec.require_equal(meta["spec"])
        trainer = cls(spec, device, None, scale=float(meta["scale"]))
        try:
            trainer._restore(tensors, int(meta["step"]))
        except KeyError as e:
            raise Damaged(f"the checkpoint of layer {spec.layer} at step {meta['step']} lacks the tensor {e}") from e
        return trainer

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor], step: int) -> None:
        self.step = step
        for name, p in self.weights.items():
            p.copy_(tensors[f"weights.{name}"])
            for key, value in self.optimizer.state[p].items():
                value.copy_(tensors[f"adam.{key}.{name}"])
        self.mean.copy_(tensors["mean"])
        self.since_fired.copy_(tensors["since_fired"])
        self.dead_index = tensors["dead_index"].to(self.device)
        self.generator.set_state(tensors["generator"])
        names = [name.removeprefix("sums.") for name in tensors if name.startswith("sums.")]
        self.sums = {name: tensors[f"sums.{name}"].to(self.device) for name in names}

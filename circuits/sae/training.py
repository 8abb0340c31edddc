"""Training of one SAE: what all architectures share.

A step: rows into the units of training (:mod:`circuits.sae.normalise`) → the objective writes the gradients → the optimiser
(:mod:`circuits.sae.optimiser`). A transcoder's rows are those of both sites side by side, [x | y].

Nothing in a step waits for an accelerator: metrics are summed there and read by `metrics()`. The one exception is the list
of dead features for the auxiliary loss, whose length the host must know; it is read once every `DEAD_EVERY` steps.
Generators are derived from (seed, purpose, layer), so a layer is trained alike alone and in a set.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.data.seeds import derive_seed
from circuits.errors import Damaged, NonFinite, UserError
from circuits.sae import baselines, massive, normalise
from circuits.sae.massive import Massive
from circuits.sae.modules import SAE, Objective, Outcome, SAEConfig, Weights, architecture
from circuits.sae.modules.gradients import buffer
from circuits.sae.normalise import Units
from circuits.sae.optimiser import Optimiser
from circuits.sae.spec import TrainSpec
from circuits.sae.stopping import Best
from circuits.transfer import sent

Name = TypeVar("Name", bound=Hashable)
DEAD_EVERY = 32


def check(spec: TrainSpec) -> None:
    """Raise UserError with everything that is wrong with `spec`."""
    objective = architecture(spec.architecture).objective
    wrong = spec.problems() + objective.problems(spec)
    if spec.d_out is not None and not objective.transcodes:
        wrong.append(
            f"a {spec.architecture} SAE cannot be trained from one site to another; choose another architecture"
        )
    if wrong:
        raise UserError(wrong)


def _finite_mean(values: list[Tensor]) -> Tensor:
    """Of those that are finite; NaN where none is."""
    found = torch.stack(values)
    known = found.isfinite()
    return torch.where(known, found, 0.0).sum() / known.sum()


class Trainer:
    """One SAE under training."""

    def __init__(
        self,
        spec: TrainSpec,
        device: torch.device,
        first_rows: Float[Tensor, "n d"] | None,
        units: tuple[Units, Units] | None = None,
    ) -> None:
        check(spec)
        self.spec, self.device, self.step = spec, device, 0
        self.architecture = architecture(spec.architecture)
        self.objective = self.architecture.objective(spec)
        self.massive: Massive | None = None
        if first_rows is not None:
            widths = massive.parts(spec.d_in, spec.d_out, spec.blocks)
            self.massive = massive.find(first_rows, widths, spec.massive)
            if self.massive is not None:
                first_rows = first_rows[self.massive.kept(first_rows)]
            read = normalise.measure(first_rows[:, : spec.d_in], spec.normalize, spec.blocks)
            units = (
                read,
                read
                if spec.d_out is None
                else normalise.measure(first_rows[:, spec.d_in :], spec.normalize, spec.blocks),
            )
        elif units is None:  # a resumed trainer: `_restore` brings them
            by = torch.ones(spec.d_in) if spec.blocks > 1 else None
            by_out = torch.ones(spec.width_out) if spec.blocks > 1 else None
            units = (Units(torch.zeros(spec.d_in), 1.0, by), Units(torch.zeros(spec.width_out), 1.0, by_out))
            units = units if spec.d_out is not None else (units[0], units[0])
        self.read, self.write = (u.to(device) for u in units)
        init = self.objective.init(self._generator("init"))
        self.weights: Weights = {name: nn.Parameter(p.detach().to(device)) for name, p in init.items()}
        self.objective.state = {name: value.to(device) for name, value in self.objective.state.items()}
        self.optimiser = Optimiser(self.weights, spec.clip, spec.compile, baselines.FROZEN.get(spec.frozen or ""))
        names = baselines.FROZEN if spec.baselines else ()
        self.baselines = {
            name: Trainer(baselines.spec_of(spec, name), device, None, (self.read, self.write)) for name in names
        }
        for baseline in self.baselines.values():
            baseline.massive = self.massive
        self.generator = self._generator("resample")
        self.best = Best(spec.patience, spec.min_delta) if spec.patience is not None else None
        self.since_fired = torch.zeros(spec.d_sae, dtype=torch.int64, device=device)
        """Rows seen since each feature was last active."""
        self.dead_index = torch.zeros(0, dtype=torch.int64, device=device)
        self.sums: dict[str, Tensor] = {}
        self._totals: list[Tensor] = []  # gradients of the parts of a batch, summed

    def _generator(self, purpose: str) -> torch.Generator:
        seed = derive_seed(self.spec.seed, "sae", purpose, self.spec.layer)
        return torch.Generator().manual_seed(seed)

    def _rows(self, rows: Float[Tensor, "batch d"]) -> tuple[Tensor, Tensor]:
        """x and y in the units of training; a massive row is at their origin, where there is next to nothing to learn."""
        rows = rows.to(self.device)
        x = self.read.normalise(rows[:, : self.spec.d_in])
        y = x if self.spec.d_out is None else self.write.normalise(rows[:, self.spec.d_in :])
        if self.massive is not None:
            kept = self.massive.kept(rows)[:, None]
            x = x.mul_(kept)
            y = x if self.spec.d_out is None else y.mul_(kept)
        return x, y

    # ── one step ──

    @torch.no_grad()
    def train_step(self, rows: Float[Tensor, "batch d"]) -> None:
        """One optimiser step on a batch of activation rows, of any dtype."""
        if self.step % baselines.EVERY == 0:
            for baseline in self.baselines.values():
                baseline.train_step(rows)
        x, y = self._rows(rows)
        outcome = self._gradients(x, y)
        self.objective.follow(outcome, self.step)
        self.optimiser.step(self.spec.lr_at(self.step), outcome.along)
        self.objective.project(self.weights)
        self._count(y, outcome)
        self.step += 1
        if self.objective.resamples and self.spec.frozen is None and self.spec.resamples_at(self.step):
            self._revive(x, outcome)

    def _gradients(self, x: Tensor, y: Tensor) -> Outcome:
        """The gradients of a batch, in one go or as the mean over its parts."""
        dead, parts = self._dead(), self.spec.accumulate
        if parts == 1:
            return self.objective.gradients(self.weights, x, y, self.step, dead)
        outcomes, weights = [], self.weights.values()
        self._totals = self._totals or [torch.empty_like(p, requires_grad=False) for p in weights]
        torch._foreach_zero_(self._totals)
        for part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            outcomes.append(self.objective.gradients(self.weights, *part, self.step, dead))
            torch._foreach_add_(self._totals, [buffer(p) for p in weights], alpha=1 / parts)
        for i, p in enumerate(weights):  # each is the other's buffer in the next step
            p.grad, self._totals[i] = self._totals[i], buffer(p)
        terms = {name: torch.stack([o.parts[name] for o in outcomes]).mean() for name in outcomes[0].parts}
        fired, active = (torch.stack([getattr(o, name) for o in outcomes]).sum(0) for name in ("fired", "active"))
        known = [o.along for o in outcomes if o.along is not None]
        along = torch.stack(known).mean(0) if len(known) == parts else None
        smallest = [o.smallest for o in outcomes if o.smallest is not None]
        return Outcome(
            torch.cat([o.error for o in outcomes]),
            fired,
            active,
            terms,
            along,
            _finite_mean(smallest) if smallest else None,
        )

    def _dead(self) -> Tensor | None:
        """Dead features for the auxiliary loss; None when there are none."""
        if not self.spec.aux or self.objective.resamples:
            return None
        # Before `dead_after` rows none can be dead, which the host knows without asking the device.
        if self.step % DEAD_EVERY == 0 and self.step * self.spec.batch_size >= self.spec.dead_after:
            self.dead_index = (self.since_fired >= self.spec.dead_after).nonzero().flatten()
        return self.dead_index if len(self.dead_index) else None

    def _count(self, y: Tensor, outcome: Outcome) -> None:
        n = len(y)
        self.since_fired.add_(n).mul_(outcome.fired == 0)
        squared = torch.linalg.vector_norm(outcome.error).square()
        seen = {
            "rows": torch.full((), float(n), device=self.device),
            "squared_error": squared,
            "x": y.sum(0),
            "x_squared": torch.linalg.vector_norm(y).square(),
            "active": outcome.active,
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
        noise = sent(torch.rand(len(x), generator=self.generator), self.device)
        keep = ~self.objective.revive(self.weights, x, outcome.error, dead, noise)
        self.optimiser.reset(keep)
        self.since_fired.mul_(keep)

    # ── early stopping ──

    def validate(self, rows: Float[Tensor, "n d"]) -> bool:
        """Measure the loss on rows that are not trained on; whether the patience is at its end.

        The loss is the share of variance that is left unexplained, by the SAE as it would be used.
        """
        if self.best is None:
            return False
        sae, spec, sums = self.export(), self.spec, []
        rows = rows if self.massive is None else rows[self.massive.kept(rows)]
        y = rows[:, spec.d_in :] if spec.d_out is not None else rows
        mean = y.to(self.device, torch.float32).mean(0)
        for part in rows.split(spec.batch_size // spec.accumulate):  # no more work space than a step has
            x = part.to(self.device, torch.float32)
            y = x[:, spec.d_in :] if spec.d_out is not None else x
            missing, centred = (sae(x[:, : spec.d_in]) - y), y - mean
            sums.append(torch.stack([missing.square().sum(1), centred.square().sum(1)]))
        error, squares = (float(total) for total in torch.cat(sums, dim=1).cpu().double().sum(1))
        loss = error / squares if squares else math.nan
        if not math.isfinite(loss):
            raise NonFinite(f"the validation loss is {loss}: layer {self.spec.layer}, step {self.step}; lower the rate")
        self.best.see(loss, self.step, self.weights, self.objective.state)
        return self.best.exhausted

    @property
    def finished(self) -> bool:
        """Whether it has stopped early."""
        return self.best is not None and self.best.exhausted

    @property
    def kept_step(self) -> int:
        """Steps after which the weights were as :meth:`finish` leaves them: the best validated ones, where there are such."""
        return self.step if self.best is None or self.best.loss is None else self.best.step

    def finish(self) -> None:
        """End the training: the best validated weights come into their place, and what only training needs (gradients, moments,
        copies: three quarters of the memory) goes. What is left can be exported."""
        if self.best is not None:
            self.best.restore(self.weights, self.objective.state)
        for p in self.weights.values():
            p.grad = None
        self.optimiser.moments, self._totals = {}, []
        for baseline in self.baselines.values():
            baseline.finish()

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
            "mse": error / n / self.spec.width_out / self.write.scale**2,
            "explained_variance": 1 - error / variance if variance > 0 else 0.0,
            "l0": sums["active"].item() / n,
            "dead_fraction": dead,
            "lr": self.spec.lr_at(max(0, self.step - 1)),
            **parts,
            **({"validation": self.best.loss} if self.best is not None and self.best.loss is not None else {}),
        }

    @torch.no_grad()
    def export(self) -> SAE:
        """The SAE as it stands, on raw activations; a copy."""
        return self._exported(self.objective, self.weights, self.device)

    def controls(self) -> dict[str, SAE]:
        """What its measures stand beside, by name: itself before training, and the frozen baselines."""
        return {"untrained": self.untrained(), **{name: one.export() for name, one in self.baselines.items()}}

    @torch.no_grad()
    def untrained(self) -> SAE:
        """The SAE before its first step, with the same normalisation and start: the control of its measurements. What is
        learned without a gradient (a threshold) is taken over: at its start it would let everything pass.

        Made in main memory, so that an accelerator holds nothing of it but the SAE.
        """
        cpu = torch.device("cpu")
        objective = self.architecture.objective(self.spec)
        objective.state = {name: value.to(cpu) for name, value in self.objective.state.items()}
        return self._exported(objective, objective.init(self._generator("init")), cpu).to(self.device)

    def _exported(self, objective: Objective, weights: Weights, device: torch.device) -> SAE:
        spec = self.spec
        shape = SAEConfig(spec.d_in, spec.d_sae, spec.k, spec.d_out, skip=spec.skip, blocks=spec.blocks, band=spec.band)
        sae = self.architecture.sae(shape).to(device)
        objective.export(sae, weights, self.read.to(device), self.write.to(device))
        sae.massive = self.massive
        return sae.eval()

    # ── checkpoints ──

    def _live(self) -> dict[str, Tensor]:
        """Every tensor that a continuation needs and whose shape is fixed, live."""
        named: dict[str, Tensor] = {f"weights.{name}": p for name, p in self.weights.items()}
        named |= self.optimiser.tensors() | {f"state.{name}": v for name, v in self.objective.state.items()}
        named |= {"mean": self.read.mean, "since_fired": self.since_fired}
        named |= {} if self.read.by is None else {"by": self.read.by}
        if self.spec.d_out is None:
            return named
        return {**named, "mean_out": self.write.mean, **({} if self.write.by is None else {"by_out": self.write.by})}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a bit-exact continuation needs: tensors copied to the CPU, and JSON-able values."""
        tensors = {**self._live(), **{f"sums.{name}": value for name, value in self.sums.items()}}
        tensors |= {"dead_index": self.dead_index, "generator": self.generator.get_state()}
        tensors |= self.best.tensors() if self.best is not None else {}
        copies = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
        meta = {"step": self.step, "scale": self.read.scale, "scale_out": self.write.scale, "spec": self.spec.as_dict()}
        meta |= {} if self.massive is None else {"massive": self.massive.facts()}
        beside = {}
        for name, baseline in self.baselines.items():
            found, beside[name] = baseline.state()
            copies |= {f"{name}/{key}": value for key, value in found.items()}
        meta |= {"baselines": beside} if beside else {}
        return copies, {**meta, **({"best": self.best.facts()} if self.best is not None else {})}

    @classmethod
    def resume(cls, spec: TrainSpec, tensors: dict[str, Tensor], meta: dict[str, Any], device: torch.device) -> Trainer:
        """The trainer whose `state` this was."""
        spec.require_equal(meta["spec"])
        trainer = cls(spec, device, None)
        try:
            trainer._restore(tensors, meta)
        except KeyError as e:
            raise Damaged(f"the checkpoint of layer {spec.layer} at step {meta['step']} lacks {e}") from e
        return trainer

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.step = int(meta["step"])
        self.massive = massive.of_facts(meta.get("massive"), self.spec.d_in, self.spec.d_out)
        self.read.scale, self.write.scale = float(meta["scale"]), float(meta.get("scale_out", meta["scale"]))
        for name, live in self._live().items():
            live.copy_(tensors[name])
        if self.spec.d_out is None:
            self.write = self.read
        self.dead_index = tensors["dead_index"].to(self.device)
        self.generator.set_state(tensors["generator"])
        names = [name.removeprefix("sums.") for name in tensors if name.startswith("sums.")]
        self.sums = {name: tensors[f"sums.{name}"].to(self.device) for name in names}
        if self.best is not None:
            self.best.load(tensors, meta["best"], self.device)
        for name, baseline in self.baselines.items():
            mine = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
            baseline._restore(mine, meta["baselines"][name])


def hand_over(trainers: dict[Name, Trainer]) -> tuple[dict[Name, SAE], dict[Name, dict[str, SAE]]]:
    """The SAEs of finished trainers, and their controls by name.

    One by one, and `trainers` is emptied: where nobody else holds a trainer, its weights have gone when the next one's turn comes.
    """
    saes, controls = {}, {}
    for name in list(trainers):
        trainer = trainers.pop(name)
        saes[name], controls[name] = trainer.export(), trainer.controls()
    return saes, controls

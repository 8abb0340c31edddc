"""``task=baseline``: does the model show the behaviour? Teacher-forced scores of target and foil on every prompt, and the gate.

``baseline.metric=first_token`` compares the logits of the answers' first tokens; ``full_target`` the log-probabilities of the whole
answers. For answers of one token both are the same number. The gate is no part of the key: a prompt succeeds when its
difference a token exceeds ``behaviour.min_logit_diff``, and when fewer than ``behaviour.success_threshold`` of the prompts
succeed, the measurement is kept and the run exits 3, each time it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.files import write_json
from circuits.schema import BaseConfig
from circuits.schema.behaviour import PICTURES, of_pictures
from circuits.schema.fields import added, free
from circuits.schema.reading import When
from circuits.store.kinds import Column, Input, Kind, Layers, ModelDims
from circuits.store.labels import behaviour_and_model, readable
from circuits.tasks import _baseline
from circuits.tasks._shared import model_input

if TYPE_CHECKING:
    import pandas as pd

    from circuits.activations.scoring import Scores
    from circuits.data.prompts import PromptSet
    from circuits.models.load import LM
    from circuits.run.context import Context, Work
    from circuits.stats.saved import Measurement


class Metric(Enum):
    """What of an answer is compared."""

    first_token = "first_token"  # logit of the target's first token − that of the foil's
    full_target = "full_target"  # log-probability of the whole target − that of the whole foil


class Cluster(Enum):
    """The unit that is drawn for an interval."""

    prompt = "prompt"  # a distinct clean prompt
    group = "group"  # all prompts about the same thing


@dataclass
class Options:
    """Options of the baseline."""

    metric: Metric = (
        Metric.first_token
    )  # compare the logits of the answers' first tokens, or the log-probabilities of whole answers
    cluster: Cluster = Cluster.prompt  # the unit that is drawn for an interval: a prompt, or all about the same thing
    resamples: int = 5000  # of the bootstrap
    batch_size: int = free(64)  # prompts per forward pass; results agree to 1e-5
    tokens: int = added(16)  # of a picture's caption


_OF_TEXT = (When("behaviour.name", (), hint="a behaviour of text does", but=PICTURES),)
READ_WHEN = {
    "baseline.metric": _OF_TEXT,
    "baseline.cluster": _OF_TEXT,
    "baseline.tokens": (When("behaviour.name", PICTURES),),
}


class Baseline(Kind):
    """How well a model shows a behaviour."""

    name = "baseline"
    sections = ("model", "baseline", "precision", "seed")
    work = ("behaviour.n_samples",)
    needs = ("prompts", "tiny")
    pictures = True
    when = READ_WHEN
    gated = ("behaviour.min_logit_diff", "behaviour.success_threshold")
    asks = ("behaviour.min_logit_diff",)
    memory_keys = ("baseline.batch_size",)
    columns = (
        Column(
            "logit_diff",
            "logit difference",
            ".2f",
            "logit_diff_ci",
            headings=(("full_target", "log-prob. difference"),),
        ),
        Column("pair_acc", "right", ".1%", "pair_acc_ci"),
        Column("success_rate", "success", ".1%", "success_rate_ci"),
        Column("top1", "top 1", ".1%"),
        Column("ece", "ECE", ".3f"),
        Column("n", "prompts", ".0f", exact=True),
    )

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``ioi-gpt2``."""
        return behaviour_and_model(cfg)

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The prompts and the model."""
        return [Input("prompts", (), cfg), *model_input(cfg)]

    def normal(self, cfg: BaseConfig) -> BaseConfig:
        """What is asked of text alone, or of pictures alone, has one value elsewhere."""
        given, plain = getattr(cfg, "baseline"), Options()  # noqa: B009 (joined to the schema at run time)
        fixed = ("metric", "cluster") if of_pictures(cfg.behaviour) else ("tokens",)
        return replace(cfg, **{"baseline": replace(given, **{name: getattr(plain, name) for name in fixed})})

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """A table of prompts."""
        return 1 << 20, 0

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """The options' bounds."""
        options: Options = getattr(cfg, "baseline")  # noqa: B009 (joined to the schema at run time)
        return [
            f"baseline.{name}={getattr(options, name)}: at least 1"
            for name in ("resamples", "batch_size", "tokens")
            if getattr(options, name) < 1
        ]

    def derived(self, cfg: BaseConfig, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The success rate under the thresholds that are asked for now, with its interval."""
        from circuits.stats.answers import success_interval, success_rate

        if of_pictures(cfg.behaviour):
            return {}
        diffs, least = metrics["normalised_diffs"], cfg.behaviour.min_logit_diff
        found: dict[str, Any] = {"success_rate": success_rate(diffs, least), "min_logit_diff": least}
        if units := metrics.get("units"):  # older measurements did not keep them
            resamples = getattr(cfg, "baseline").resamples  # noqa: B009 (joined to the schema at run time)
            interval = success_interval(diffs, units, least, resamples=resamples, seed=_seed(cfg.seed))
            found["success_rate_ci"] = None if interval is None else list(interval)
        return found

    def gate(self, cfg: BaseConfig, metrics: Mapping[str, Any]) -> str | None:
        """Whether enough prompts succeed; pictures have no gate."""
        if of_pictures(cfg.behaviour):
            return None
        from circuits.stats.answers import success_rate

        behaviour, n = cfg.behaviour, metrics["n"]
        rate = success_rate(metrics["normalised_diffs"], behaviour.min_logit_diff)
        if rate >= behaviour.success_threshold:
            return None
        return (
            f"{behaviour_and_model(cfg)}: {round(rate * n)} of {n} prompts ({100 * rate:.1f}%) have a difference above "
            f"behaviour.min_logit_diff={behaviour.min_logit_diff:g}, below behaviour.success_threshold="
            f"{behaviour.success_threshold:g} (mean {metrics['logit_diff']:.2f}, right {100 * metrics['pair_acc']:.1f}%); "
            "study another behaviour or model, or lower a threshold"
        )

    def question(self, cfg: BaseConfig) -> str:
        """What a baseline asks."""
        if of_pictures(cfg.behaviour):
            return f"What does {readable(cfg.model.id)} say of people in pictures"
        return f"How well does {readable(cfg.model.id)} tell the target from the foil"

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Score every prompt, and publish the table and its summary."""
        if of_pictures(context.run.cfg.behaviour):
            _baseline.make(context, *works.values())
            return
        from circuits.activations.scoring import score
        from circuits.data import prompts
        from circuits.stats.answers import summarise, units_of

        (work,), options, seed = works.values(), context.cfg.baseline, context.cfg.seed
        given = prompts.read(context.require("prompts").path)
        lm = context.open_model()

        keeper = context.keeper({"scores": work}, "scores", "scoring", "row")
        scores = score(lm, given, batch_size=options.batch_size, keeper=keeper)
        rows = table(given, scores, options.metric.value, lm)
        with context.phase("intervals"):
            metrics = summarise(rows, cluster=options.cluster.value, resamples=options.resamples, seed=_seed(seed))
        metrics |= {
            "metric": options.metric.value,
            "cluster": options.cluster.value,
            "normalised_diffs": rows["normalised_diff"].tolist(),
            "units": units_of(rows, options.cluster.value),
        }

        def write(out: Path) -> None:
            rows.to_parquet(out / "per_prompt.parquet", index=False)
            write_json(out / "metrics.json", metrics)

        artifact = work.commit(write)
        what = self.columns[0].title([metrics])
        context.say(f"{what} {metrics['logit_diff']:.3f}, right {metrics['pair_acc']:.3f}: {artifact.id}")

    def load(self, path: Path) -> Measurement:
        """The table of prompts, and its summary."""
        from circuits.stats.saved import Measurement

        return Measurement(path)


KIND = Baseline()
run = KIND.run


def _seed(seed: int) -> int:
    from circuits.data.seeds import derive_seed

    return derive_seed(seed, "baseline", "bootstrap")


def table(given: PromptSet, scores: Scores, metric: str, lm: LM) -> pd.DataFrame:
    """One row a prompt: its answers' scores, the difference that `metric` names, and what the model would say.

    Raises:
        UserError: ``first_token``, and target and foil of some prompts begin with the same token.
    """
    import numpy as np

    if metric == "first_token" and (same := [p.id for p in given if p.target_ids[0] == p.foil_ids[0]]):
        raise UserError(
            f"baseline.metric=first_token: target and foil of {len(same)} prompts ({' '.join(same[:5])}) begin with the same "
            "token; baseline.metric=full_target compares whole answers"
        )
    rows = given.table().assign(
        prompt=[p.prompt for p in given],
        target=[p.target for p in given],
        foil=[p.foil for p in given],
        target_tokens=[len(p.target_ids) for p in given],
        foil_tokens=[len(p.foil_ids) for p in given],
        **{name: getattr(scores, name) for name in ("logit_target", "logit_foil", "logp_target", "logp_foil")},
        logp_first_target=scores.logp_first_target,
        logp_first_foil=scores.logp_first_foil,
        top_token=[lm.tokenizer.decode([token]) for token in scores.top],
        top_probability=scores.top_probability,
        top1=[token == p.target_ids[0] for token, p in zip(scores.top, given, strict=True)],
    )
    rows["logit_diff"] = rows["logit_target"] - rows["logit_foil"]
    rows["seq_logprob_diff"] = rows["logp_target"] - rows["logp_foil"]
    whole = metric == "full_target"
    rows["diff"] = rows["seq_logprob_diff"] if whole else rows["logit_diff"]
    a_token = rows["logp_target"] / rows["target_tokens"] - rows["logp_foil"] / rows["foil_tokens"]
    rows["normalised_diff"] = a_token if whole else rows["logit_diff"]
    rows["pair_right"] = np.asarray(rows["diff"]) > 0
    return rows

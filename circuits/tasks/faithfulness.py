"""``task=faithfulness``: how well a circuit does the behaviour alone, judged on prompts that it was not chosen on.

The edges of ``task=attribution`` (or of somebody else's file, ``faithfulness.circuit=``) are ranked, and at each share of edges
the rest is ablated: ``curve.parquet``, beside random circuits of equal size. The chosen circuit is tested: equivalence,
independence, minimality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.attribution.settings import Ablation, Judging, check_judging
from circuits.errors import UserError
from circuits.schema import BaseConfig
from circuits.schema.fields import file, free
from circuits.schema.reading import When
from circuits.store.kinds import Column, Input, Kind, Layers, ModelDims
from circuits.store.labels import behaviour_and_model, readable
from circuits.tasks._shared import model_input

if TYPE_CHECKING:
    from circuits.attribution.pairs import Pairs
    from circuits.attribution.saved import Judged
    from circuits.data.prompts import PromptSet
    from circuits.run.context import Context, Work

SECTION = "faithfulness"


@dataclass
class Options(Judging):
    """Options of faithfulness, those with a role in keys."""

    batch_size: int = free(8)  # rows of a pass, all circuits of it together; results agree to 1e-5
    circuit: str | None = file(None, "bytes")  # a circuit of somebody else: MIB's JSON, or a graph of task=export


READ_WHEN = {f"{SECTION}.steps": (When(f"{SECTION}.ablation", ("optimal",)),)}


def _settings(cfg: BaseConfig) -> Judging:
    """The options as plain values."""
    given = getattr(cfg, SECTION)
    return Judging(**{f.name: getattr(given, f.name) for f in fields(Judging)})


class Faithfulness(Kind):
    """A judged circuit."""

    name = "faithfulness"
    sections = ("model", SECTION, "attribution", "precision", "seed")
    work = ("behaviour.n_test",)
    layers = "set"
    needs = ("tiny", "prompts", "attribution", "baseline")
    memory_keys = (f"{SECTION}.batch_size",)
    columns = (
        Column("cmd", "CMD", ".3f", "cmd_ci"),
        Column("random_cmd", "random", ".3f"),
        Column("cpr", "CPR", ".3f"),
        Column("faithfulness", "f(circuit)", ".3f", "faithfulness_ci"),
        Column("chosen_edges", "edges", ",.0f", exact=True),
        Column("completeness", "completeness", ".2f"),
        Column("n", "prompts", ",.0f", exact=True),
    )

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``ioi-smollm2-135m-eap_ig_inputs-counterfactual``."""
        s, given = _settings(cfg), getattr(cfg, SECTION)
        whose = Path(given.circuit).stem if given.circuit else cfg.attribution.method  # type: ignore[attr-defined]
        return "-".join((behaviour_and_model(cfg), readable(whose), s.ablation.value))

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The prompts, the model and the scored edges."""
        scored = [] if getattr(cfg, SECTION).circuit else [Input("attribution", layers, cfg)]
        return [Input("prompts", (), cfg), *model_input(cfg), *scored]

    def gates(self, cfg: BaseConfig) -> tuple[str, ...]:
        """A behaviour is worth taking apart where the model shows it."""
        return ("baseline",)

    def normal(self, cfg: BaseConfig) -> BaseConfig:
        """Shares in any order are one set; what nothing reads has one value."""
        given, s = getattr(cfg, SECTION), _settings(cfg)
        if not check_judging(s):
            given = replace(given, fractions=s.shares)
        if s.ablation is not Ablation.optimal:
            given = replace(given, steps=Judging().steps)
        return replace(cfg, **{SECTION: given})

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """What is wrong with the judgement."""
        found = check_judging(_settings(cfg))
        if cfg.attribution.split.value == "all" and not getattr(cfg, SECTION).circuit:  # type: ignore[attr-defined]
            found.append(
                "split: attribution.split=all chooses the circuit on all prompts; train or test leaves others to judge it on"
            )
        return [f"{SECTION}.{message}" for message in found]

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """Small tables."""
        s = _settings(cfg)
        circuits = len(s.shares) * (1 + 2 * s.random) + 2 * s.minimality
        prompts = s.samples or (cfg.behaviour.n_samples or 100) + (cfg.behaviour.n_test or 0)
        return 40 * circuits * prompts + (1 << 16), 8 * circuits * prompts

    def question(self, cfg: BaseConfig) -> str:
        """What a run asks."""
        behaviour = behaviour_and_model(cfg).split("-")[0]
        return f"Does the circuit do {behaviour} in {readable(cfg.model.id)} alone"

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Judge the circuit, and publish its tables."""
        _make(context, works[None])

    def load(self, path: Path) -> Judged:
        """The tables of a judgement."""
        from circuits.attribution.saved import Judged

        return Judged(path)


def _make(context: Context, work: Work) -> None:
    from circuits.attribution import judge, study
    from circuits.data import prompts as prompt_sets

    cfg = context.cfg
    settings, given = _settings(cfg), cfg.attribution  # type: ignore[attr-defined]
    options = study.Settings(**{f.name: getattr(given, f.name) for f in fields(study.Settings)})
    prompts = prompt_sets.read(context.require("prompts").path)
    ask = study.Ask(context.open_model(), prompts, options, cfg.seed)
    scores, chosen = _circuit(context, ask)
    judged, others = _sides(prompts, ask, settings)
    context.say(
        f"a circuit of {int(chosen.sum()):,} of {len(ask.nodes.edges):,} edges on {len(judged.prompts)} prompts"
    )

    def keeper(name: str) -> Any:
        doing, unit = {"means": ("averaging writes", "prompt"), "constants": ("fitting constants", "step")}.get(
            name, ("running circuits alone", "cell")
        )
        return context.keeper({"effects": work}, name, doing, unit)

    found = judge.judge(ask.anatomy, judged, others, scores, chosen, settings, keeper, cfg.seed)
    theirs = getattr(cfg, SECTION).circuit
    whose = {"circuit": Path(theirs).name} if theirs else {"method": options.method}
    found.metrics.update({**whose, "metric": options.metric.value, "direction": options.direction.value})
    artifact = work.commit(found.write)
    m = found.metrics
    area = f"CMD {m['cmd']:.3f} (random {m['random_cmd'] or float('nan'):.3f}); " if "cmd" in m else ""
    context.say(f"{area}f({m['chosen_edges']:,} edges) = {m['faithfulness']:.3f}: {artifact.id}")


def _sides(prompts: PromptSet, ask: Any, settings: Judging) -> tuple[Pairs, Pairs]:
    """The prompts that are judged on, and those that the circuit was chosen on."""
    from circuits.data.prompts import PromptSet

    chosen_on = ask.settings.split.value
    if chosen_on == "all":
        judged = others = prompts
    else:
        other = "train" if chosen_on == "test" else "test"
        if other not in prompts.splits:
            raise UserError(f"no prompt is left in {other}, on which the circuit is judged; raise behaviour.n_test")
        judged, others = prompts.only(other), prompts.only(chosen_on)
    if settings.samples is not None:
        if settings.samples > len(judged):
            raise UserError(f"samples={settings.samples}: there are {len(judged)} prompts to judge on")
        judged = PromptSet(judged.prompts[: settings.samples], prompts.meta)
    return ask.pairs(judged), ask.pairs(others)


def _circuit(context: Context, ask: Any) -> tuple[Any, Any]:
    """Scores and the chosen circuit, ``[writers, readers]``: ours, or somebody else's."""
    import numpy as np

    from circuits.attribution import formats, study
    from circuits.attribution.choose import choose

    given = getattr(context.cfg, SECTION).circuit
    if given is None:
        from circuits.attribution.saved import Circuit

        made = Circuit(context.require("attribution").path)
        mean = study.matrix(ask.nodes, made.scores.double().mean(0).numpy())
        return mean, choose(mean, ask.nodes, ask.settings)
    try:
        scores, kept = formats.read(Path(given), ask.nodes)
    except UserError as e:
        raise UserError(f"faithfulness.circuit={given}: {e}") from e
    mean, chosen = study.matrix(ask.nodes, scores), study.matrix(ask.nodes, kept).astype(bool)
    return mean, chosen if chosen.any() else np.asarray(choose(mean, ask.nodes, ask.settings))


KIND = Faithfulness()
run = KIND.run

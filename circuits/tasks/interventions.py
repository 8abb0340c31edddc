"""``task=interventions``: what a model does when some of its activations are changed, measured by running it.

One artifact over the chosen layers: effects of every unit on every prompt (``effects.parquet``), one row a unit and edit
(``summary.parquet``), synergy of groups, and the agreement of the edits. What a study is stands in ``conf/intervention/``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import read_json, write_json
from circuits.interventions.settings import CAPTIONS, CONTROLLED, Across, Settings, check
from circuits.schema import BaseConfig
from circuits.schema.behaviour import of_pictures
from circuits.schema.fields import added, free
from circuits.schema.reading import SET, When
from circuits.store.contents import Contents
from circuits.store.kinds import Column, Input, Kind, Layers, ModelDims, one_a_layer
from circuits.store.labels import behaviour_and_model, readable
from circuits.tasks import _captions
from circuits.tasks._shared import alone, model_input, run_shared, share_of, share_problems

if TYPE_CHECKING:
    import torch

    from circuits.data.keeper import Keeper
    from circuits.interventions.ask import Ask
    from circuits.interventions.saved import Intervention
    from circuits.models.load import LM
    from circuits.run.context import Context, Work
    from circuits.sae.modules import SAE

SECTION = "intervention"
UNREAD_STEPS = 6
"""What stands in keys for steps that no edit reads: the default of the time when the first of them were made."""
PRESET = "heads"
BYTES_A_ROW = 3  # of the long table, compressed
METRICS = 9  # of a unit on a prompt
SMALL_GB = 12  # with so little memory, streams are kept a layer at a time


@dataclass
class Options(Settings):
    """Options of interventions, those with a role in keys."""

    batch_size: Any = free(32)  # rows of a pass, or auto: as many as fit, found by trying; results agree to 1e-5 # noqa: RUF009
    low_memory: bool = free(False)  # keep the stream entering one layer at a time; says what it saves
    memory: float | None = free(
        None
    )  # GB that model and passes may take, such as 8, 12, 16 or 24: the batch is found within it
    shard: int = free(0)  # which share of the prompts this run measures: intervention.shard=range(0,4) …
    world_size: int = free(1)  # … of so many
    factors: Any = added(None)  # of captions: what features are multiplied by: 0 ablates, 2 amplifies  # noqa: RUF009
    across: Across = added(Across.each)  # of captions: layers edited in one pass: each, adjacent, all  # noqa: RUF009
    caption_controls: int = added(0)  # of captions: random sets under which captions are written, too


_STEER = (When("intervention.units", ("steer",)),)
_GROUPS = (When("intervention.units", ("head_groups",)),)
_FEATURES = (When("intervention.units", ("features", "steer")),)
_STEERED = When("intervention.features", (SET,), other=When("intervention.units", ("features", CAPTIONS)))
_SAES = (When("intervention.units", ("features", CAPTIONS, "steer")), _STEERED)
_CAPTIONS = (When("intervention.units", (CAPTIONS,)),)
_OF_SAE = ("features", CAPTIONS)
_ITEMS = (When("intervention.units", ("features", "neurons")),)
READ_WHEN = {
    "intervention.factors": _CAPTIONS,
    "intervention.across": _CAPTIONS,
    "intervention.caption_controls": _CAPTIONS,
    "intervention.scale": (When("intervention.edit", ("scale",)),),
    "intervention.mean": (When("intervention.edit", ("mean",)),),
    "intervention.steps": (When("intervention.edit", ("optimal",)),),
    "intervention.positions": (
        When("intervention.units", (), but=("positions",), hint="intervention.last_n says how many"),
    ),
    "intervention.verify_samples": (When("intervention.verify", (SET,)),),
    "intervention.sizes": _GROUPS,
    "intervention.shapley": _GROUPS,
    "intervention.strengths": _STEER,
    "intervention.shots": _STEER,
    "intervention.generate": (When("intervention.units", ("steer", CAPTIONS)),),
    "intervention.top_k": _GROUPS,
    "intervention.features": _FEATURES,
    "intervention.neurons": (When("intervention.units", ("neurons",)),),
    "intervention.n_groups": _ITEMS,
    "intervention.group_size": (When("intervention.units", ("features", "neurons", CAPTIONS)),),
    "intervention.last_n": (When("intervention.units", ("positions",)),),
    "intervention.site": (When("intervention.units", ("sites", "positions", "steer")),),
    "intervention.heads": (When("intervention.units", ("heads", "head_groups")),),
    "intervention.direct": (When("intervention.units", ("heads",)),),
    "intervention.controls": (When("intervention.units", CONTROLLED),),
}


def _settings(cfg: BaseConfig) -> Settings:
    """The options as plain values."""
    given = getattr(cfg, SECTION)
    found = Settings(**{f.name: getattr(given, f.name) for f in fields(Settings)})
    if given.memory is not None:
        found = replace(found, batch_size="auto", low_memory=found.low_memory or given.memory <= SMALL_GB)
    return replace(found, site=cfg.sae.site.value) if found.units in _OF_SAE else found


def _reads_saes(s: Settings) -> bool:
    """Whether features of the layers' SAEs are edited, or steered along."""
    return s.units == "features" or (s.units == "steer" and s.features is not None)


class Interventions(Kind):
    """Effects of edits on a behaviour."""

    name = "interventions"
    sections = ("model", SECTION, "precision", "seed", "sae.site")
    work = ("behaviour.n_test",)
    layers = "set"
    needs = ("tiny", "prompts", "sae", "baseline", "bias_stats")
    pictures = True
    when = {"sae": _SAES}
    memory_keys = (f"{SECTION}.batch_size",)
    columns = (
        Column("effect", "effect", ".2f", "effect_ci"),
        Column("flip_rate", "flips", ".1%"),
        Column("significant", "q < alpha", ",.0f"),
        Column("none", "none", ",.0f"),
        Column("open", "open", ",.0f"),
        Column("units", "units", ",.0f", exact=True),
        Column("n", "prompts", ",.0f", exact=True),
    )

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``ioi-gpt2-heads-zero``."""
        s = _settings(cfg)
        what = dict.fromkeys((readable(s.units), readable("+".join(s.edits))))
        return "-".join((behaviour_and_model(cfg), *what))

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The prompts, the model, and the SAE of each layer where features are edited."""
        if _settings(cfg).units == CAPTIONS:
            return _captions.inputs(cfg, layers)
        saes = one_a_layer("sae", layers, cfg) if _reads_saes(_settings(cfg)) else []
        return [Input("prompts", (), cfg), *model_input(cfg), *saes]

    def share(self, cfg: BaseConfig) -> str:
        """``shard-1-of-4``."""
        return share_of(getattr(cfg, SECTION))

    def gates(self, cfg: BaseConfig) -> tuple[str, ...]:
        """A behaviour is worth taking apart where the model shows it."""
        return () if of_pictures(cfg.behaviour) else ("baseline",)

    def normal(self, cfg: BaseConfig) -> BaseConfig:
        """One edit in a list is that edit; what no edit reads has one value."""
        given = getattr(cfg, SECTION)
        s = _settings(cfg)
        edits: Any = s.edits[0] if len(s.edits) == 1 else s.edits
        given = replace(given, edit=edits)
        if s.units == CAPTIONS:
            given = _captions.normal(given, s)
        if "scale" not in s.edits:
            given = replace(given, scale=Settings().scale)
        if "mean" not in s.edits:
            given = replace(given, mean=Settings().mean)
        if "optimal" not in s.edits:
            given = replace(given, steps=UNREAD_STEPS)
        return replace(cfg, **{SECTION: given})

    def extra(self, cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
        """How optimal constants are found (since then from their second-order ones); what makes an edit of captions significant."""
        s = _settings(cfg)
        found: dict[str, Any] = {"optimal": 2} if "optimal" in s.edits else {}
        return found | ({"significant": "paired q and controls"} if s.units == CAPTIONS else {})

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """What is wrong with the study for this model and these layers."""
        s, given = _settings(cfg), getattr(cfg, SECTION)
        if s.units == CAPTIONS:
            return [f"{SECTION}.{message}" for message in [*check(s, layers), *_captions.problems(cfg, s, layers)]]
        found = check(s, layers, dims.depth, dims.heads)
        if s.units == "steer" and _reads_saes(s) and s.site != cfg.sae.site.value:
            found.append(f"site={s.site}: features are directions of sae.site={cfg.sae.site.value}; give both the same")
        if of_pictures(cfg.behaviour):
            found.append(
                f"units={s.units}: reads prompts of text; pictures have units={CAPTIONS} (intervention=bias_ablate)"
            )
        found += share_problems(cfg, SECTION)
        if given.memory is not None and given.memory <= 0:
            found.append(f"memory={given.memory:g}: gigabytes, above 0 (8, 12, 16, 24 …)")
        if given.memory is not None and given.batch_size not in ("auto", Options().batch_size):
            found.append(f"memory={given.memory:g}: finds the batch by itself; leave batch_size={given.batch_size} out")
        return [f"{SECTION}.{message}" for message in found]

    def remarks(self, cfg: BaseConfig, layers: Layers) -> list[str]:
        """Too few controls for the p that is asked for."""
        s = _settings(cfg)
        if s.units not in CONTROLLED or not s.controls or 1 / (s.controls + 1) <= s.alpha:
            return []
        least = math.ceil(1 / s.alpha) - 1
        return [
            f"{SECTION}.controls={s.controls}: among so many controls no p is below {1 / (s.controls + 1):.3f}; "
            f"{SECTION}.controls={least} or more can reach alpha={s.alpha:g}"
        ]

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """The long table outweighs the rest."""
        s = _settings(cfg)
        prompts = s.samples or (cfg.behaviour.n_samples or 100) + (cfg.behaviour.n_test or 0)
        units = (dims.depth or 32) * (dims.heads or 16)
        return len(s.edits) * units * prompts * METRICS * BYTES_A_ROW, 0

    def question(self, cfg: BaseConfig) -> str:
        """What a study asks."""
        s = _settings(cfg)
        what = {
            "head_groups": "groups of heads",
            "sites": s.site,
            "positions": f"{s.site} token by token",
            "steer": f"directions of {s.site}",
        }.get(s.units, s.units)
        way = f" ({s.direction.value})" if s.pairs else ""
        return f"What do edits of {what}{way} change in {readable(cfg.model.id)} on {behaviour_and_model(cfg).split('-')[0]}"

    def run(self, context: Context) -> None:
        """Measure the study; a shard may end before the others have."""
        run_shared(context, _make)

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Measure the whole study, and publish its tables."""
        _make(context, works[None])

    def load(self, path: Path) -> Intervention:
        """The tables of a study."""
        from circuits.interventions.saved import Intervention

        return Intervention(path)


def _make(context: Context, work: Work) -> str | None:
    """Measure this run's share, and publish the tables when all shares are there; else why they are not yet."""
    from circuits.data import prompts as prompt_sets
    from circuits.interventions import study
    from circuits.interventions.ask import Ask

    settings, given = _settings(context.cfg), getattr(context.cfg, SECTION)
    if settings.units == CAPTIONS:
        _captions.make(context, work, settings)
        return None
    measured, others = study.sides(prompt_sets.read(context.require("prompts").path), settings)
    paths = {layer: context.require("sae", layer).path for layer in context.layers} if _reads_saes(settings) else {}
    lm = context.open_model()
    again = _again(context, settings, lm)

    def tell(what: str, done: int, total: int) -> None:
        context.progress(what, done, total, "unit")

    def keep(name: str) -> Keeper[str]:
        told = {
            "means": ("taking means", "prompt"),
            "directions prompt": ("reading directions", "prompt"),
            "directions corrupt": ("reading directions of corrupt prompts", "prompt"),
            "constants": ("fitting constants", "pass"),
            "prompted": ("prompting", "row"),
            "written": ("", "text"),  # it tells its own tokens
        }
        doing, unit = told.get(name, ("choosing strengths", "cell"))
        return context.keeper({"effects": work}, readable(name.replace("/", "-")), doing, unit)

    def keeper(name: str) -> Keeper[str]:
        worth = {"worth_s": 0.0} if given.world_size > 1 else {}
        return context.keeper({"effects": work}, name, f"measuring {name}", "cell", **worth)

    ask = Ask(
        lm, measured, others, context.layers, settings, _saes(context, paths, lm.device), context.cfg.seed, tell, keep
    )
    if settings.batch_size == "auto":
        ask = replace(ask, settings=replace(settings, batch_size=_batch_size(context, work, ask)))
    if given.world_size > 1:
        study.run(ask, keeper, context.say, shard=given.shard, world_size=given.world_size, whole=False)
    with alone(context, work) as needed:
        if not needed:
            return None
        kept = work.partial
        if given.world_size > 1 and (left := study.unfinished(ask, kept, given.world_size)):
            note = f"shard {given.shard + 1}/{given.world_size} done, waiting for the rest ({left} parts)"
            context.say(note)
            return note
        found = study.run(ask, keeper, context.say, world_size=given.world_size, again=again)
        if found is not None:
            artifact = work.commit(found.write)
            m = found.metrics
            strongest = (
                f"; strongest {m['strongest']} ({m['strongest_edit']}) {m['effect']:.3f}" if m["strongest"] else ""
            )
            context.say(
                f"{m['units']} units on {m['n']} prompts: {m['significant']} effects, {m['none']} equivalent to none, "
                f"{m['open']} open{strongest}: {artifact.id}"
            )
    return None


def _batch_size(context: Context, work: Work, ask: Ask) -> int:
    """The largest batch that fits, found once for the unfinished work: what is resumed must be batched alike."""
    from circuits.interventions import study

    kept = work.partial / "batch_size.json"
    if kept.exists():
        return int(read_json(kept)["batch_size"])
    with context.phase("finding the largest batch"):
        memory = getattr(context.cfg, SECTION).memory
        found = study.largest_batch(ask, None if memory is None else memory * 1e9)
    write_json(kept, {"batch_size": found})
    context.say(f"{SECTION}.batch_size=auto: {found} rows a pass")
    return found


def _again(context: Context, s: Settings, own: LM) -> Callable[[], tuple[LM, dict[str, str]]] | None:
    """How the model is opened on another device or at another precision, where a slice is to be verified."""
    given = s.verify
    if given is None:
        return None

    from circuits.interventions.settings import verify_with
    from circuits.models.load import DTYPES, load_model, pick_device

    device, dtype = verify_with(given)
    chosen = pick_device(device) if device else own.device  # an absent one is said before anything is measured
    name = dtype or context.cfg.precision.dtype.value

    def load() -> tuple[LM, dict[str, str]]:
        directory, revision = context.model_files()
        with context.phase("loading the model to verify with"):
            lm = load_model(directory, revision=revision, dtype=DTYPES[name], device=chosen)
        return lm, {"device": str(chosen), "dtype": name}

    return load


def _saes(context: Context, paths: Mapping[int, Path], device: torch.device) -> dict[int, SAE]:
    """The SAE of each layer, on the model's device."""
    from circuits.sae import formats

    if not paths:
        return {}
    with context.phase("loading the SAEs"):
        return {layer: formats.load(path).to(device) for layer, path in paths.items()}


KIND = Interventions()
run = KIND.run

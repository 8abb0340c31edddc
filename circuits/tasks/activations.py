"""``task=activations``: a site's activations on a behaviour's prompts or on the text stream, one artifact per layer and site.

One forward pass serves every layer and site of the run that is still missing. Unfinished work survives a kill; processes
that share the work (``activations.shard=range(0,4) activations.world_size=4``) are elements of one sweep, and whoever
finishes last puts the parts together.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import RunError, UserError
from circuits.files import write_json
from circuits.run import status
from circuits.schema import (
    ActivationsConfig,
    ActivationSource,
    BaseConfig,
    DataConfig,
    Reuse,
)
from circuits.schema.activations import SEQUENCES, Selected, asked_in, sites
from circuits.schema.behaviour import of_pictures
from circuits.schema.reading import When
from circuits.store.contents import Contents
from circuits.store.keys import Unit
from circuits.store.kinds import Column, Input, Kind, Layers, ModelDims
from circuits.store.labels import behaviour_name, readable
from circuits.tasks._shared import alone, context_problems, layer_name, mixture, model_input, text_input
from circuits.words import size

if TYPE_CHECKING:
    from circuits.activations.capture import Plan, Tally
    from circuits.activations.pieces import Pieces
    from circuits.activations.samples import Samples
    from circuits.activations.store import ActivationStore
    from circuits.models.load import LM
    from circuits.run.context import Context, Work

TOKENS_A_PROMPT = 64  # for the disk estimate of whole prompts, whose lengths nobody knows yet
ROW_INDEX_BYTES = 24  # of a row in rows.parquet and norms.npy, about


def of_data(cfg: BaseConfig) -> bool:
    """Whether the text stream is captured, and not a behaviour's prompts."""
    return cfg.activations.source is ActivationSource.data


def resolved(given: ActivationsConfig) -> ActivationsConfig:
    """The section with its defaults written out."""
    data = given.source is ActivationSource.data
    chosen = sites(given)
    return replace(
        given,
        site=chosen[0] if len(chosen) == 1 else list(chosen),
        skip_first=int(data) if given.skip_first is None else given.skip_first,
        n_sequences=SEQUENCES if data and given.n_sequences is None and given.tokens is None else given.n_sequences,
    )


def _lacking(cfg: BaseConfig, dims: ModelDims) -> list[str]:
    """Sites that the model does not have."""
    errors = []
    for site in sites(cfg.activations):
        try:
            dims.width_of(site)
        except UserError as e:
            errors += [f"activations.site={site}: {message.removeprefix(f'{site}: ')}" for message in e.messages]
    return errors


def _sequences(cfg: BaseConfig, given: ActivationsConfig) -> int:
    if of_data(cfg):
        return given.n_sequences or SEQUENCES
    return (cfg.behaviour.n_samples or 0) + (cfg.behaviour.n_test or 0)


class Activations(Kind):
    """A site's activations at a layer."""

    name = "activations"
    keep = "regenerable"
    pictures = True
    striped = True
    sections = ("model", "data", "activations", "precision", "seed")
    work = ("activations.n_sequences", "behaviour.n_samples")
    layers = "each"
    needs = ("tiny", "tokens", "prompts", "baseline")
    several = "activations.site"
    when = {"data": (When("activations.source", ("data",)),)}
    memory_keys = ("activations.batch_size",)
    columns = (
        Column("rows", "rows", ",.0f", exact=True),
        Column("gigabytes", "size", "size", exact=True),
        Column("rows_per_s", "rows/s", ",.0f"),
        Column("peak_gigabytes", "peak memory", "size"),
        Column("dropped", "samples dropped", ",.0f", exact=True),
    )

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The model; the text, or the prompts."""
        return [*model_input(cfg), *(text_input(cfg) if of_data(cfg) else [Input("prompts", (), cfg)])]

    def extra(self, cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
        """The embedded generator's identity, where it is the data."""
        return mixture(cfg, contents) if of_data(cfg) else {}

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``tiny-L3-mlp_out-grammar_agreement``."""
        what = "-".join(["data" if of_data(cfg) else behaviour_name(cfg), *asked_in(cfg)])
        return f"{readable(cfg.model.id)}-{layer_name(layers)}-{'+'.join(sites(cfg.activations))}-{readable(what)}"

    def normal(self, cfg: BaseConfig) -> BaseConfig:
        """Equal results, equal keys: defaults written out, and nothing of the source that is not captured."""
        given, asked = resolved(cfg.activations), asked_in(cfg)
        given = replace(given, language=asked[0] if len(asked) == 1 else (list(asked) or None))
        if not of_pictures(cfg.behaviour):
            given = replace(given, select=Selected.all)
        if of_data(cfg):
            return replace(cfg, activations=given)
        return replace(cfg, activations=replace(given, n_sequences=None, tokens=None), data=DataConfig())

    def variants(self, cfg: BaseConfig) -> Mapping[str, BaseConfig]:
        """Sites × languages: ``mlp_out``, ``english``, ``mlp_out-english``."""
        found, asked = sites(cfg.activations), asked_in(cfg)
        if len(found) * max(1, len(asked)) < 2:
            return {}
        named = {}
        for site in found:
            for language in asked or (None,):
                parts = [site] * (len(found) > 1) + [language] * (len(asked) > 1)
                own = replace(cfg.activations, site=site, language=language)
                named["-".join(map(str, parts))] = replace(cfg, activations=own)
        return named

    def share(self, cfg: BaseConfig) -> str:
        """``shard-1-of-4``."""
        given = cfg.activations
        return f"shard-{given.shard}-of-{given.world_size}" if given.world_size > 1 else ""

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """What does not fit the model, or leaves nothing to capture."""
        given, errors = resolved(cfg.activations), _lacking(cfg, dims)
        if given.world_size > 1 and cfg.reuse is Reuse.force:
            errors.append(
                "reuse=force: with activations.world_size=1 only (shards cannot tell old parts from one another's)"
            )
        if not of_data(cfg):
            return errors
        context, skip = cfg.data.context, given.skip_first or 0
        errors += context_problems(cfg, dims)
        if skip >= context:
            errors.append(f"activations.skip_first={skip}: leaves nothing of data.context={context} tokens")
        elif given.last_n is not None and given.last_n > context - skip:
            errors.append(
                f"activations.last_n={given.last_n}: longer than every sequence (data.context={context}, of which "
                f"activations.skip_first={skip} are left out)"
            )
        return errors

    def gates(self, cfg: BaseConfig) -> tuple[str, ...]:
        """A behaviour's prompts are worth capturing where the model shows it."""
        return () if of_data(cfg) or of_pictures(cfg.behaviour) else ("baseline",)

    def question(self, cfg: BaseConfig) -> str:
        """What a run of captures asks."""
        if of_data(cfg):
            what = Path(cfg.data.path).name if cfg.data.path else f"{cfg.data.source.value} text"
        else:
            what = f"the prompts of {Path(cfg.behaviour.path).stem if cfg.behaviour.path else cfg.behaviour.name}"
        where = ", ".join(sites(cfg.activations))
        return f"What are the activations of {Path(cfg.model.id).name} on {what}, {where}"

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """Values, norms and row index of one artifact; shards' parts stand beside them until they are put together."""
        given = resolved(cfg.activations)
        rows = given.tokens
        if rows is None:
            length = given.last_n or (cfg.data.context if of_data(cfg) else TOKENS_A_PROMPT)
            rows = length * _sequences(cfg, given)
        chosen = sites(given)
        width = sum(dims.width_of(site) or 0 for site in chosen) / len(chosen)
        size = int(rows * (width * (4 if given.dtype.value == "fp32" else 2) + ROW_INDEX_BYTES))
        return (2 * size if given.world_size > 1 else size), 0

    def run(self, context: Context) -> None:
        """Capture what is missing of the run's layers and sites, then show all of them; a shard may end before they are whole."""
        waiting, left = None, context.missing()
        while waiting is None and left:
            with context.making(left) as works:
                if works:
                    waiting = _make(context, works)
            before, left = left, context.missing()
            if works and waiting is None and left == before:
                raise RunError(
                    f"{context.key(left[0]).id}: captured, and not whole: its unfinished work was altered; run it again"
                )
        context.conclude(waiting)

    def load(self, path: Path) -> ActivationStore:
        """The rows and their index."""
        from circuits.activations.store import ActivationStore

        return ActivationStore(path)


KIND = Activations()
run = KIND.run


def _make(context: Context, works: Mapping[Unit, Work]) -> str | None:
    """Do this run's share of these artifacts; why they are not whole yet when others' shares are missing, or None."""
    languages: dict[str | None, dict[Unit, Work]] = {}
    for one, work in works.items():
        languages.setdefault(_asked(context, one).language, {})[one] = work
    return next(filter(None, [_make_of(context, mine, language) for language, mine in languages.items()]), None)


def _make_of(context: Context, works: Mapping[Unit, Work], language: str | None) -> str | None:
    """The same for the artifacts of one language (of text: all)."""
    from circuits.activations.capture import capture

    given = resolved(context.cfg.activations)
    made = _prepare(context, given, language)
    keys = {one: (_asked(context, one).site, layer_of(one)) for one in works}
    partials = {keys[one]: work.partial for one, work in works.items()}
    for work in works.values():
        made.plan = replace(made.plan, writer=work.own(made.plan.share).suffix[1:])

    def progress(done: int, total: int, tally: Tally) -> None:
        rate = tally.rows / tally.seconds if tally.seconds else 0.0
        context.show("capturing", done, total, "sample", rows_per_s=rate)

    tally = capture(
        made.lm, made.samples, partials, made.plan, progress=progress, stopping=lambda: context.stopping is not None
    )
    if tally.stopped:
        context.stop_here()
    peak, rate = (status.peak_gpu() or status.peak_rss()) / 1e9, tally.rows / max(tally.seconds, 1e-9)
    context.say(
        f"captured {tally.samples:,} samples, {tally.rows:,} rows at {len(works)} layers and sites in {tally.seconds:.1f} s "
        f"({rate:,.0f} rows/s); peak memory {size(1e9 * peak)}"
    )
    measured = {
        "rows_per_s": round(rate, 1) if tally.rows else None,  # None: all was captured before, by another shard or run
        "seconds": round(tally.seconds, 3),
        "peak_gigabytes": round(peak, 3),
    }
    left = _put_together(context, works, keys, made, measured)
    if not left or given.world_size == 1:
        return (
            None  # what is still missing then, because another process removed the work of this one, is captured anew
        )
    note = f"shard {given.shard + 1}/{given.world_size} done, waiting for the rest ({left:,} of {len(made.samples):,} samples)"
    context.say(note)
    return note


@dataclass
class Capture:
    """What is captured, and how."""

    lm: LM
    samples: Samples
    plan: Plan


def _prepare(context: Context, given: ActivationsConfig, language: str | None) -> Capture:
    """The model and the samples of this config. What is wrong with prompts is said before the model is loaded."""
    from circuits.activations.capture import Plan

    pictures = language is not None
    prompts = None if given.source is ActivationSource.data or pictures else _prompts(context, given)
    lm = context.open_model()
    if pictures:
        prompts = _pictures(context, given, lm, str(language))
    plan = Plan(
        batch_size=given.batch_size,
        last_n=given.last_n,
        skip_first=given.skip_first or 0,
        dtype=given.dtype.value,
        nonfinite=given.nonfinite.value,
        shard=given.shard,
        world_size=given.world_size,
        save_every=given.chunk,
        select=given.select.value,
    )
    return Capture(lm, _stream(context, given, lm) if prompts is None else prompts, plan)


def _prompts(context: Context, given: ActivationsConfig) -> Samples:
    """The behaviour's prompts, none longer than the model's context and one at least as long as what is kept of each."""
    from circuits.activations.samples import PromptSamples
    from circuits.data.prompts import read
    from circuits.models.identify import inspect_model

    prompts, skip = PromptSamples(read(context.require("prompts").path), "the prompts"), given.skip_first or 0
    if given.last_n is not None and given.last_n > prompts.longest - skip:
        raise UserError(
            f"activations.last_n={given.last_n}: longer than every prompt (the longest has {prompts.longest} tokens"
            + (f", of which activations.skip_first={skip} are left out)" if skip else ")")
        )
    prompts.prompts.check_lengths(inspect_model(*context.model_files()).dims.context, context.cfg.model.id)
    return prompts


def _pictures(context: Context, given: ActivationsConfig, lm: LM, language: str) -> Samples:
    """The behaviour's pictures with their prompts in one language."""
    from circuits.activations.pictures import PictureRows, PictureSamples
    from circuits.data.pictures.saved import read

    found = PictureSamples(PictureRows(read(context.require("prompts").path), lm), language)
    if given.last_n is not None and given.last_n > found.longest:
        raise UserError(
            f"activations.last_n={given.last_n}: longer than every prompt (the longest has {found.longest} tokens)"
        )
    return found


def _stream(context: Context, given: ActivationsConfig, lm: LM) -> Samples:
    """The first sequences of the training stream."""
    from circuits.activations.samples import StreamSamples, count_sequences

    source = context.token_source(lm)
    n = given.n_sequences
    if given.tokens is not None:
        with context.phase("counting tokens"):
            n = count_sequences(source, given.tokens, given.last_n, given.skip_first or 0)
    return StreamSamples(source, n or SEQUENCES)


def _put_together(
    context: Context, works: Mapping[Unit, Work], keys: Mapping[Unit, tuple[str, int]], made: Capture, measured: Any
) -> int:
    """Publish every artifact of which all samples are there; how many samples are still missing of the others."""
    from circuits.activations.capture import ON_DISK
    from circuits.activations.pieces import Pieces
    from circuits.models.sites import site_width

    left = 0
    with tempfile.TemporaryDirectory(dir=context.run.run_dir, prefix=".rows-") as folder:
        for one, work in works.items():
            with alone(context, work) as needed:
                if not needed:
                    shutil.rmtree(work.partial, ignore_errors=True)  # another shard put it together
                    continue
                pieces = Pieces(work.partial, ON_DISK[made.plan.dtype], site_width(made.lm.dims, keys[one][0]))
                if missing := pieces.missing(len(made.samples)):
                    left = max(left, missing)
                    lost = not (work.partial / made.plan.piece).exists() and context.run.store.find(work.key) is None
                    if lost:
                        raise RunError(f"{work.partial}: removed while it was written to; run the same command again")
                    continue
                _publish(context, work, keys[one], pieces, made, measured, Path(folder))
    return left


def _publish(
    context: Context,
    work: Work,
    key: tuple[str, int],
    pieces: Pieces,
    made: Capture,
    measured: Mapping[str, Any],
    folder: Path,
) -> None:
    """Write one artifact: values and norms in sample order, the row index, the facts, the metrics."""
    from circuits.activations import rows

    site, layer = key
    pictured = getattr(made.samples, "language", None)
    index = folder / f"{site}.parquet"  # the same for all layers of a site
    if not index.exists():
        with context.phase("writing the index of rows"):
            rows.write(index, made.samples, made.plan, set(pieces.dropped))
    _, revision = context.model_files()
    cfg = context.cfg
    facts = {
        "site": site,
        "layer": layer,
        "width": pieces.width,
        "dtype": made.plan.dtype,
        "n_rows": pieces.rows,
        "n_samples": len(made.samples) - len(pieces.dropped),
        "source": made.samples.name,
        "last_n": made.plan.last_n,
        "skip_first": made.plan.skip_first,
        "model": cfg.model.id,
        "revision": revision,
        "model_dtype": cfg.precision.dtype.value,
        "nonfinite": made.plan.nonfinite,
        **({"language": pictured, "select": made.plan.select} if pictured else {}),
        "dropped": [{"sample": n, "name": pieces.names[n], "layers": at} for n, at in sorted(pieces.dropped.items())],
    }
    found: dict[str, Any] = {}

    def write(out: Path) -> None:
        pieces.write(out, own=made.plan.piece)
        shutil.copyfile(index, out / rows.ROWS)
        write_json(out / "meta.json", facts)
        found.update(rows.summary(out, facts), **measured)
        write_json(out / "metrics.json", found)

    artifact = work.commit(write, measured=["metrics.json"], dropped=facts["dropped"])
    dropped = f", {len(pieces.dropped)} samples dropped as non-finite" if pieces.dropped else ""
    context.say(f"{site}, layer {layer}: {pieces.rows:,} rows of {pieces.width}{dropped}: {artifact.id}")


def layer_of(one: Unit) -> int:
    """The layer of one of a run's artifacts."""
    return int(one[0] if isinstance(one, tuple) else one or 0)


def _asked(context: Context, one: Unit) -> ActivationsConfig:
    """The section that one of a run's artifacts is made by."""
    variants = KIND.variants(context.run.cfg)
    cfg = variants[one[1]] if isinstance(one, tuple) else context.run.cfg
    found: ActivationsConfig = KIND.normal(cfg).activations
    return found

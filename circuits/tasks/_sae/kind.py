"""The kind of SAEs, and of what is trained as they are: identity, checks, memory, work."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from circuits.errors import UserError
from circuits.schema import BaseConfig, Dtype, NonFinitePolicy, SaeConfig, stored
from circuits.schema.sae import MEASURED, settled
from circuits.store.contents import Contents
from circuits.store.kinds import Column, Input, Kind, Layers, Memory, ModelDims, Need
from circuits.store.labels import readable
from circuits.tasks._sae.member import Member
from circuits.tasks._sae.training import make, make_together
from circuits.tasks._shared import context_problems, layer_name, mixture, model_input, text_input

if TYPE_CHECKING:
    from circuits.run.context import Context, Work
    from circuits.sae.modules import SAE


def size_problems(sae: SaeConfig, width: int) -> list[str]:
    """Options that do not fit the dictionary's size."""
    asked, sae = sae, settled(sae)
    d_sae = sae.expansion * width
    errors: list[str] = []
    made = f"d_sae={d_sae} (sae.expansion={sae.expansion} × width {width})"
    for name, most in (
        ("target_l0", asked.target_l0),
        ("k", None if asked.target_l0 else sae.k),
        ("target_l0", sae.target_l0),
    ):
        if most is not None and most > d_sae and not errors:
            errors.append(f"sae.{name}={most:g}: more than {made}")
    if sae.groups is not None and d_sae % 2 ** (sae.groups - 1):
        most = (d_sae & -d_sae).bit_length()
        errors.append(
            f"sae.groups={sae.groups}: {made} cannot be halved {sae.groups - 1} times; at most sae.groups={most}"
        )
    return errors


SHARED = ("site", "target_site", "source", "ram", "batch_size", "block_rows", "forward_batch", "skip_first", "heldout_sequences",
          "validation_sequences", "log_every", "checkpoint_every", "checkpoint_minutes")  # fmt: skip
"""What SAEs that are trained on one stream have in common, beside model, data, precision and seed."""


class Sae(Kind):
    """A sparse autoencoder, or a transcoder, of one layer."""

    name = "sae"
    keep = "archive"
    version = 2
    sections: ClassVar[tuple[str, ...]] = ("model", "data", "sae", "precision", "seed")
    work = ("sae.steps", "sae.batch_size")
    layers: ClassVar[Literal["each", "set"]] = "each"
    needs: ClassVar[tuple[str | Need, ...]] = (
        "tiny",
        "tokens",
        "prompts",
        Need("activations", of=("tiny", "tokens", "prompts")),
    )
    gated = ("sae.min_r2",)
    memory_keys = ("sae.block_rows", "sae.forward_batch", "sae.expansion")
    columns: ClassVar[tuple[Column, ...]] = (
        Column("explained_variance", "explained variance", ".3f", "explained_variance_ci"),
        Column("l0", "L0", ".1f"),
        Column("dead_fraction", "dead", ".1%"),
        Column("ce_score", "CE score", ".3f"),
    )

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The model and its text; the stored activations, for a transcoder of both sites."""
        found = [*model_input(cfg), *text_input(cfg)]
        if stored.read(cfg):
            found.append(Input("activations", layers, cfg))
            if (target := cfg.sae.target_site) is not None:
                of_target = replace(cfg, activations=stored.section(cfg, target))
                found.append(Input("activations", layers, of_target, "activations:target"))
        return found

    def extra(self, cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
        """The embedded generator's identity, where it is the data; of other models, that massive rows are left out.

        ``sae.massive`` came later and its default enters no key. The embedded models have no such rows, so theirs stay as they are;
        an SAE that a real one's massive rows were trained into and measured with is another.
        """
        out = {} if cfg.model.embedded is not None or cfg.sae.massive is None else {"sae.massive": cfg.sae.massive}
        return {**mixture(cfg, contents), **out}

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``tiny-L0-topk``."""
        name = "from" if cfg.sae.from_ else cfg.sae.architecture.value
        return f"{readable(cfg.model.id)}-{layer_name(layers)}-{name}" + (
            "" if cfg.sae.target_site is None else f"{'-skip' * cfg.sae.skip}-transcoder"
        )

    def normal(self, cfg: BaseConfig) -> BaseConfig:
        """Equal results, equal keys: a cap beyond the schedule is none, and an SAE that is taken over is not trained.

        An SAE from a store has that store as its input, whatever site and source the section ``activations`` names.
        """
        sae = settled(cfg.sae)
        if stored.read(cfg):
            cfg = replace(cfg, activations=stored.section(cfg))
        if sae.max_steps is not None and sae.max_steps >= sae.steps:
            sae = replace(sae, max_steps=None)
        if sae.from_ is not None:
            sae = settled(replace(SaeConfig(), **{name: getattr(sae, name) for name in MEASURED}))
        return replace(cfg, sae=sae)

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """Sizes that do not fit the model, an SAE that cannot be read, a store that it cannot be trained from."""
        errors = []
        width = dims.width_of(cfg.sae.site.value)
        if cfg.sae.from_ is not None:
            from circuits.sae.directory import problems

            target = cfg.sae.target_site
            widths = (width, None if target is None else dims.width_of(target.value))
            found = problems(Path(cfg.sae.from_), *widths, transcodes=target is not None, layers=layers)
            errors += [f"sae.from={cfg.sae.from_}: {problem}" for problem in found]
        elif width is not None:
            errors += size_problems(cfg.sae, width)
        errors += context_problems(cfg, dims)
        if cfg.sae.nonfinite is NonFinitePolicy.drop and len(layers) > 1:
            errors.append(
                "sae.nonfinite=drop: one layer a run (a row dropped for one would be missing in the others); sweep over layers"
            )
        if stored.read(cfg):  # how many rows it really has is seen when it is there
            beside = None if cfg.sae.target_site is None else dims.width_of(cfg.sae.target_site.value)
            errors += stored.problems(cfg, stored.section(cfg), width, beside or 0)
        return errors

    def remarks(self, cfg: BaseConfig, layers: Layers) -> list[str]:
        """An SAE from elsewhere that says it was made for another model or site."""
        if cfg.sae.from_ is None:
            return []
        from circuits.sae.origin import remarks as found

        model = "tiny" if cfg.model.embedded is not None else cfg.model.id
        target = None if cfg.sae.target_site is None else cfg.sae.target_site.value
        told = found(Path(cfg.sae.from_), model, cfg.sae.site.value, layers, target)
        return [f"sae.from={cfg.sae.from_}: {line}" for line in told]

    def gate(self, cfg: BaseConfig, metrics: Mapping[str, Any]) -> str | None:
        """``sae.min_r2``: held-out explained variance must exceed it."""
        bound, found = cfg.sae.min_r2, metrics["explained_variance"]
        if bound is None or found > bound:
            return None
        return (
            f"layer {metrics['layer']}: held-out explained variance {found:.3f} does not exceed sae.min_r2={bound}; "
            "raise sae.steps, sae.k or sae.expansion"
        )

    def question(self, cfg: BaseConfig) -> str:
        """What a sweep of SAEs asks; what is often swept (architecture, steps) stands in its tables."""
        data = Path(cfg.data.path).name if cfg.data.path else f"{cfg.data.source.value} text"
        site, target = cfg.sae.site.value, cfg.sae.target_site
        what, made = ("sparse autoencoders", site) if target is None else ("transcoders", f"{target.value} from {site}")
        how = "trained" if cfg.sae.from_ is None else "measured"
        return f"How well do {what}, {how} on {data}, reconstruct {made} of {Path(cfg.model.id).name}"

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """Float32 weights; checkpoints with two Adam moments each (and the best weights), one more than are kept."""
        width = dims.width_of(cfg.sae.site.value) or 0
        out = width if cfg.sae.target_site is None else dims.width_of(cfg.sae.target_site.value) or 0
        weights = 4 * ((width + out) * width * cfg.sae.expansion + cfg.sae.skip * width * out)
        copies = (3 if cfg.sae.patience is None else 4) + 4 * cfg.sae.baselines
        return weights, copies * weights * (cfg.sae.checkpoint_keep + 1)

    def memory(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> Memory | None:
        """The model, and each layer's SAE with its rows."""
        from circuits.models.identify import parameters
        from circuits.sae.memory import training

        sae, width = cfg.sae, dims.width_of(cfg.sae.site.value)
        if width is None or sae.from_ is not None:
            return None
        out = None if sae.target_site is None else dims.width_of(sae.target_site.value)
        wide = 4 if cfg.precision.dtype is Dtype.fp32 else 2
        model = None if cfg.model.embedded is not None else parameters(cfg.model.id, cfg.model.revision)
        rows = {"ram": 1e9 * sae.ram} if stored.read(cfg) else {"block_rows": sae.block_rows, "row_bytes": wide}
        need = training(
            width,
            sae.expansion * width,
            sae.batch_size,
            architecture=sae.architecture.value,
            d_out=out,
            skip=sae.skip,
            best=sae.patience is not None,
            parts=sae.accumulate,
            baselines=sae.baselines,
            count=len(layers),
            measured=sae.forward_batch * cfg.data.context,
            **rows,
        )
        what = f"SAE{'s' if len(layers) > 1 else ''} of {need.parameters / 1e6:.1f} M parameters"
        return Memory(need.fixed + wide * (model or 0), need.each, need.beside, need.beside_each, len(layers), what)

    def together(self, cfg: BaseConfig) -> str | None:
        """The stream that an SAE is trained on; whoever names the same one can be trained beside it."""
        sae = cfg.sae
        if (
            sae.from_ is not None or sae.nonfinite is NonFinitePolicy.drop
        ):  # what is dropped for one would be missing in the others
            return None
        store = stored.section(cfg) if stored.read(cfg) else None
        return repr((cfg.model, cfg.data, cfg.precision, cfg.seed, store, [getattr(sae, name) for name in SHARED]))

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Train these layers' SAEs on one stream, measure and publish them."""
        make(context, dict(works))

    def run_together(self, contexts: Sequence[Context]) -> dict[int, Exception]:
        """Train the SAEs of several elements on one stream; each element's own :func:`run` comes after it and finds them made.

        What somebody else is making now is left to that. The elements that failed, by their place, and why; the others go on.
        """
        with contextlib.ExitStack() as stack:
            members = {}
            for number, context in enumerate(contexts):
                with contextlib.suppress(UserError):  # reuse=readonly: the element itself will say so
                    if works := stack.enter_context(context.making(context.missing(), wait=False)):
                        members[number] = Member(context, works)
            return make_together(members) if len(members) > 1 else {}

    def load(self, path: Path) -> SAE:
        """The SAE, with its encoder and decoder."""
        from circuits.sae import formats

        return formats.load(path)

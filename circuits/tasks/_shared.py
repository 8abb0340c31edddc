"""What several tasks declare alike: the model and the text as inputs, and what fits them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from circuits.errors import GateError
from circuits.schema import BaseConfig, DataSource, Reuse
from circuits.store.contents import Contents
from circuits.store.kinds import Input, Layers, ModelDims

if TYPE_CHECKING:
    import pandas as pd

    from circuits.run.context import Context, Work


def model_input(cfg: BaseConfig) -> list[Input]:
    """The embedded model, where it is the model; any other one is read from its files."""
    return [Input("tiny", (), cfg)] if cfg.model.embedded is not None else []


def text_input(cfg: BaseConfig) -> list[Input]:
    """The tokenised corpus, or the pictures, where there are any; the embedded model's text is drawn as it is read."""
    if cfg.data.source is DataSource.pictures:
        return [Input("prompts", (), cfg, "pictures")]
    return [Input("tokens", (), cfg)] if cfg.data.source is not DataSource.embedded else []


def every_layer(cfg: BaseConfig) -> Layers:
    """All layers of the model: by its preset, or by its config.json."""
    depth = cfg.model.layers
    if cfg.model.embedded is not None:
        depth = cfg.model.embedded.layers
    elif depth is None:
        from circuits.models.identify import inspect_model

        depth = inspect_model(cfg.model.id, cfg.model.revision).dims.layers
    return tuple(range(depth))


def bias_input(cfg: BaseConfig) -> Input:
    """The group statistics over all layers, or over those that ``bias_stats.layers`` names."""
    from circuits.store.layers import parse_layers

    given = cfg.bias_stats.layers  # type: ignore[attr-defined]
    every = every_layer(cfg)
    layers = every if given is None else parse_layers(given, len(every), cfg.model.sets)
    return Input("bias_stats", layers, cfg)


def mixture(cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
    """For the key: the embedded generator's identity, where it is the data."""
    if cfg.data.source is not DataSource.embedded:
        return {}
    from circuits.tiny import mixture

    return {"mixture": contents.once("mixture", mixture.fingerprint)}


def context_problems(cfg: BaseConfig, dims: ModelDims) -> list[str]:
    """Sequences of text that are longer than the model reads."""
    if dims.context is None or cfg.data.context <= dims.context:
        return []
    return [f"data.context={cfg.data.context}: more than the model's {dims.context} positions"]


def layer_name(layers: Layers) -> str:
    """``L3``, in a label; ``L`` where no layer is known yet."""
    return f"L{layers[0] if layers else ''}"


def layers_name(layers: Layers) -> str:
    """``-L0-3`` of an artifact over several layers, ``-L3`` of one; nothing where none is known yet."""
    return f"-L{layers[0]}-{layers[-1]}" if len(layers) > 1 else f"-L{layers[0]}" if layers else ""


def run_shared(context: Context, make: Callable[[Context, Work], str | None]) -> None:
    """Make the one artifact of a run whose work several runs may share: `make` says why it is not yet whole, or None.

    Raises:
        GateError: a gate said no.
    """
    waiting = None
    while waiting is None and (missing := context.missing()):
        with context.making(missing) as works:
            if works:
                waiting = make(context, works[None])
    if refusals := context.conclude(waiting):
        raise GateError("; ".join(refusals))


def share_of(given: Any) -> str:
    """``shard-1-of-4``, of a section with ``shard`` and ``world_size``."""
    return f"shard-{given.shard}-of-{given.world_size}" if given.world_size > 1 else ""


def share_problems(cfg: BaseConfig, section: str) -> list[str]:
    """What is wrong with a section's ``shard`` and ``world_size``."""
    given, found = getattr(cfg, section), []
    if given.world_size < 1 or not 0 <= given.shard < given.world_size:
        found.append(f"shard={given.shard}: from 0 to world_size-1 ({given.world_size - 1})")
    if given.world_size > 1 and cfg.reuse is Reuse.force:
        found.append(f"world_size: reuse=force makes all anew in one run; {section}.world_size=1 goes with it")
    return found


@contextlib.contextmanager
def alone(context: Context, work: Work) -> Iterator[bool]:
    """The lease on the whole artifact; whether it is still to be made. Without shards we hold that lease already."""
    store = context.run.store
    if not work.key.share:
        yield True
        return
    lease = store.lease(replace(work.key, share=""), by=context.run.name)
    if not lease.wait(lambda holder: context.stop_here(), lambda: store.find(work.key) is not None):
        yield False
        return
    try:
        yield store.find(work.key) is None
    finally:
        lease.release()


def prompt_labels(table: pd.DataFrame, found: Any) -> pd.DataFrame:
    """What prompts are labelled by: their factors, the target, the group."""
    import pandas as pd

    factors = {str(n).removeprefix("factor."): table[n] for n in table if str(n).startswith("factor.")}
    others = {"target": [p.target for p in found], "group": table["group"]}
    return pd.DataFrame({**factors, **{name: column for name, column in others.items() if name not in factors}})

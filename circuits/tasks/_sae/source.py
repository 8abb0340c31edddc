"""What SAEs are trained on: activations straight from the model, or from stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.schema import stored
from circuits.tasks._sae.member import Member
from circuits.words import size

if TYPE_CHECKING:
    from circuits.activations.stored import StoredStream
    from circuits.activations.stream import Stream
    from circuits.data.tokens import TokenSource
    from circuits.models.load import LM
    from circuits.run.context import Context
    from circuits.store.store import Artifact


def open_stream(context: Context, layers: list[int]) -> Stream:
    """The model and the data of this config, as activations of `layers`."""
    from circuits.activations.stream import ActivationStream

    cfg = context.cfg
    if stored.read(cfg):  # a missing one is told before anything is loaded
        for layer in layers:
            _stores(context, layer)
    lm = context.open_model()
    source = context.token_source(lm)
    given: dict[str, Any] = {
        "site": cfg.sae.site.value,
        "layers": layers,
        "batch_size": cfg.sae.batch_size,
        "forward_batch": cfg.sae.forward_batch,
        "seed": cfg.seed,
        "skip_first": cfg.sae.skip_first,
        "nonfinite": cfg.sae.nonfinite.value,
        "target": None if cfg.sae.target_site is None else cfg.sae.target_site.value,
    }
    if stored.read(cfg):
        return _stored_stream(context, lm, source, given)
    return ActivationStream(lm, source, block_rows=cfg.sae.block_rows, **given)


def _stores(context: Context, layer: int) -> list[Artifact]:
    """The stored activations of a layer; for a transcoder those of both sites."""
    names = ["activations"] if context.cfg.sae.target_site is None else ["activations", "activations:target"]
    return [context.require(name, layer) for name in names]


def _stored_stream(context: Context, lm: LM, source: TokenSource, given: dict[str, Any]) -> StoredStream:
    """The stores of these layers, to train from; the model is for the measurement."""
    from circuits.activations.store import FILES, ActivationStore
    from circuits.activations.stored import StoredStream

    sae = context.cfg.sae
    artifacts = {layer: _stores(context, layer) for layer in given["layers"]}
    stores = {
        layer: tuple(ActivationStore(context.staged(one, FILES)) for one in found) for layer, found in artifacts.items()
    }
    contents = {layer: "+".join(one.content for one in found) for layer, found in artifacts.items()}
    model = (context.cfg.model.id, context.model_files()[1])
    stream = StoredStream(lm, source, stores, contents, model=model, ram_bytes=round(sae.ram * 1e9), **given)
    each = [store for found in stores.values() for store in found]
    context.say(
        f"training from {len(each)} stores of {stream.n_rows:,} rows, {size(sum(store.values.nbytes for store in each))}"
    )
    return stream


def too_few(members: Mapping[int, Member], stream: Stream) -> dict[int, Exception]:
    """The members that have too few distinct rows to train on and did not allow it: each says so itself."""
    from circuits.activations.stored import StoredStream
    from circuits.data.textstore import TextStore

    rows = None  # the embedded generator never ends
    if isinstance(stream, StoredStream):
        rows = stream.n_rows
    elif isinstance(stream.source, TextStore):
        rows = stream.source.facts["n_contexts_train"] * (stream.source.context - stream.skip_first)
    found = {number: stored.few(rows, stream.width, member.context.cfg.sae) for number, member in members.items()}
    return {number: UserError(problems) for number, problems in found.items() if problems}

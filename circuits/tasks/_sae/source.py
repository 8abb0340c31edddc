"""What SAEs are trained on: activations straight from the model, or from stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    cfg = context.cfg
    if stored.read(cfg):  # a missing one is told before anything is loaded
        for layer in layers:
            _stores(context, layer)
    lm = context.open_model()
    if stored.read(cfg):
        return _stored_stream(context, lm, context.token_source(lm), _reading(context, layers))
    return straight(context, lm, layers)


def straight(context: Context, lm: LM, layers: Sequence[int]) -> Stream:
    """Activations of `layers` straight from a model, on the text of this config."""
    from circuits.activations.stream import ActivationStream

    source = context.token_source(lm)
    return ActivationStream(lm, source, block_rows=context.cfg.sae.block_rows, **_reading(context, layers))


def _reading(context: Context, layers: Sequence[int]) -> dict[str, Any]:
    """What is read, and in which order."""
    sae = context.cfg.sae
    return {
        "site": sae.site.value,
        "layers": layers,
        "batch_size": sae.batch_size,
        "forward_batch": sae.forward_batch,
        "seed": context.cfg.seed,
        "skip_first": sae.skip_first,
        "nonfinite": sae.nonfinite.value,
        "target": None if sae.target_site is None else sae.target_site.value,
    }


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

"""What tasks that train on several layers' rows side by side have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuits.schema import NonFinitePolicy, SaeConfig, SaeSource

if TYPE_CHECKING:
    from circuits.activations.stream import Stream
    from circuits.data.keeper import State
    from circuits.run.context import Context, Work
    from circuits.sae.crosscoder import BlockSums


def problems(sae: SaeConfig) -> list[str]:
    """What rows side by side cannot be."""
    errors = []
    if sae.source is SaeSource.store:
        errors.append("sae.source=store: several layers are trained straight from the model; sae.source=stream")
    if sae.nonfinite is NonFinitePolicy.drop:
        errors.append("sae.nonfinite=drop: a row dropped for one layer would be missing in the others; use fail")
    return errors


def say_left_out(context: Context, metrics: Mapping[str, Any]) -> None:
    """That massive rows were left out, where they were."""
    from circuits.sae.massive import sentence

    if found := sentence(metrics):
        context.say(found)


def measure(
    context: Context, work: Work, stream: Stream, measured: Mapping[str, BlockSums], massive: float | None = None
) -> None:
    """Feed the held-out rows to each of `measured`; a stop is heard between sequences, and the pass goes on where it was.

    Args:
        context: the run's.
        work: whose unfinished part keeps the sums.
        stream: gives the held-out rows.
        measured: what is fed, by name.
        massive: of something that says nothing of massive rows, the first sequences settle what is left out.
    """
    from circuits.sae.evaluate import facts_of, part_of
    from circuits.sae.massive import find, parts

    wanted, (first,) = context.cfg.sae.heldout_sequences, stream.layers
    keeper = context.keeper({first: work}, "measured", "measuring", "sequence")
    facts = {first: {name: facts_of(stream, one.sae, wanted, stream.forward_batch) for name, one in measured.items()}}
    for tensors, _ in keeper.begin(facts).values():
        for name, one in measured.items():
            one.load(part_of(tensors, f"{name}."))

    def state(_: int) -> State:
        return {f"{name}.{key}": value for name, one in measured.items() for key, value in one.state().items()}, {}

    done = keeper.start
    for part in stream.heldout(wanted, first=done):
        for one in measured.values() if done == 0 and massive is not None else ():
            cfg = one.sae.cfg
            widths = parts(cfg.d_in, cfg.d_out, max(1, cfg.blocks))
            one.sae.massive = one.sae.massive or find(part.sites[first].cpu()[part.keep], widths, massive)
        for one in measured.values():
            one.add(part.sites[first], part.keep)
        done += len(part.tokens)
        keeper.step(done, wanted, state)
    keeper.end(done, state)

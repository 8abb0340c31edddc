"""Train SAEs of one element or of several on one stream: begin or resume, train, hand over."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import Damaged, NonFinite
from circuits.run import tracked
from circuits.schema.sae import READ_BY, settled
from circuits.tasks._sae.member import Member, Name
from circuits.tasks._sae.publish import publish
from circuits.tasks._sae.source import open_stream, too_few

if TYPE_CHECKING:
    from circuits.activations.stream import Position, Stream
    from circuits.run.context import Context, Work
    from circuits.sae.checkpoint import Writer
    from circuits.sae.loop import Hooks
    from circuits.sae.spec import TrainSpec
    from circuits.sae.training import Trainer


def make(context: Context, works: dict[int, Work]) -> None:
    """Train (or take over) the SAEs of these layers, measure and publish them."""
    member = Member(context, works)
    if context.cfg.sae.from_ is None:
        for failure in _train({0: member}).values():
            raise failure
        return
    from circuits.sae import foreign
    from circuits.sae.history import History

    stream = open_stream(context, sorted(works))
    member.histories = {layer: History(work.partial, context.cfg.sae.batch_size) for layer, work in works.items()}
    with context.phase("loading the SAE"):
        taken = {layer: foreign.load(Path(context.cfg.sae.from_), layer).to(stream.lm.device) for layer in works}
    publish(member, taken, {}, stream, dict.fromkeys(taken, (0, 0)))


def make_joined(member: Member) -> None:
    """Train, measure and publish what one member's own functions open and publish."""
    for failure in _train({0: member}).values():
        raise failure


def make_together(members: Mapping[int, Member]) -> dict[int, Exception]:
    """Train the SAEs of several elements on one stream; the members that failed, and why. The others are published."""
    names = " ".join(member.context.run.name.rsplit("/", 1)[-1].split("-")[0] for member in members.values())
    for member in members.values():
        member.context.say(f"trained on one stream with the other elements of its pack: {names}")
    return _train(members)


def _train(members: Mapping[int, Member]) -> dict[int, Exception]:
    """Train, measure and publish; what went wrong, by member. An SAE that diverges stops no other one."""
    from circuits.sae.checkpoint import Writer
    from circuits.sae.loop import train, validation_rows
    from circuits.sae.modules.scratch import release

    leading = next(iter(members.values()))
    first = leading.context
    stream = (leading.open or open_stream)(
        first, sorted({layer for member in members.values() for layer in member.works})
    )
    failures = too_few(members, stream)
    members = {number: member for number, member in members.items() if number not in failures}
    if not members:
        return failures
    specs: dict[Name, TrainSpec] = {}
    resumed: dict[Name, tuple[Trainer, Position]] = {}
    until: dict[Name, int] = {}
    for number, member in members.items():
        own = {layer: _spec(member, stream, layer) for layer in member.works}
        specs |= {(number, layer): spec for layer, spec in own.items()}
        until |= {(number, layer): member.steps for layer in own}
        resumed |= {(number, layer): found for layer, found in _begin(member, own, stream).items()}
    validation = {}
    if any(spec.patience is not None for spec in specs.values()):
        with first.phase("reading validation rows"):
            validation = validation_rows(stream, first.cfg.sae.heldout_sequences, first.cfg.sae.validation_sequences)
    for (
        number,
        member,
    ) in members.items():  # from here on: the filling of the first block is part of how long steps take
        begun = [resumed[number, layer][0].step if (number, layer) in resumed else 0 for layer in member.works]
        member.context.show("training", min(begun), member.steps, "step")
    diverged: dict[Name, NonFinite] = {}
    with Writer() as writer:
        trained = train(stream, specs, resumed, _hooks(members, stream, writer, diverged), until, validation)
    release()
    resumed.clear()  # else their weights would stay to the end
    if trained is None:
        first.stop_here()
        raise RuntimeError("the training ended without its SAEs")  # unreachable: a stop was asked for
    for number, member in members.items():
        lost = [str(error) for name, error in diverged.items() if name[0] == number]
        try:
            _finish(
                member,
                {layer: trained.pop((number, layer)) for layer in member.works if (number, layer) in trained},
                stream,
            )
        except Exception as e:  # of this member alone; its element explains it
            failures[number] = e
        if lost:
            failures[number] = NonFinite("; ".join(lost))
    return failures


def _begin(member: Member, specs: Mapping[int, TrainSpec], stream: Stream) -> dict[int, tuple[Trainer, Position]]:
    """Its training curves and W&B runs opened; what continues from its newest checkpoints."""
    from circuits.sae.history import History

    context = member.context
    member.histories = {
        layer: History(work.partial, context.cfg.sae.batch_size) for layer, work in member.works.items()
    }
    with context.phase("reading checkpoints"):
        resumed = {
            layer: found
            for layer, work in member.works.items()
            if (found := _resumed(context, work, specs[layer], stream)) is not None
        }
    for layer, work in member.works.items():
        try:
            member.histories[layer].resume(resumed[layer][0].step if layer in resumed else 0)
        except Damaged as e:
            context.say(f"damaged training curve: {e}")
        tracked.begin(context.run, context.kind, work.key, layer, context.cfg.sae.site.value)
    return resumed


def _finish(member: Member, trained: dict[int, Trainer], stream: Stream) -> None:
    """Measure and publish what was trained of one member's SAEs."""
    if not trained:
        return
    from circuits.sae.training import hand_over

    steps = {layer: (trainer.kept_step, trainer.step) for layer, trainer in sorted(trained.items())}
    for layer, trainer in sorted(trained.items()):
        if (best := trainer.best) is not None and best.loss is not None:
            ended = "stopped" if trainer.finished else "ended"
            member.context.say(
                f"layer {layer}: {ended} at step {trainer.step}; the weights of step {best.step} are kept "
                f"(unexplained {best.loss:.5f})"
            )
    del trainer  # `hand_over` lets each go
    with member.context.phase("exporting"):
        saes, controls = hand_over(trained)
    own = copy.copy(stream)
    own.layers = tuple(sorted(saes))  # the measurement reads no other layers
    (member.publish or publish)(member, saes, controls, own, steps)


def _spec(member: Member, stream: Stream, layer: int) -> TrainSpec:
    from circuits.sae.spec import GRADUAL, RISING, TrainSpec, rate

    context = member.context
    sae = settled(context.cfg.sae)
    assert sae.dead_after is not None  # settled
    given = {name: getattr(sae, name) for name in (*READ_BY, "patience", "target_l0")}
    for name in RISING:
        if given[name] is None and sae.architecture in READ_BY[name]:
            given[name] = round(GRADUAL * sae.steps)
    found = TrainSpec(
        architecture=sae.architecture.value,
        d_in=stream.width,
        d_sae=stream.block_width * sae.expansion,
        lr=rate(sae.architecture.value, stream.width) if sae.lr is None else sae.lr,
        batch_size=sae.batch_size,
        steps=sae.steps,
        warmup=sae.warmup,
        decay=sae.decay,
        clip=sae.clip,
        dead_after=sae.dead_after,
        seed=context.cfg.seed,
        layer=layer,
        d_out=stream.target_width,
        skip=sae.skip,
        normalize=sae.normalize.value,
        accumulate=sae.accumulate,
        min_delta=sae.min_delta,
        validate_every=sae.validate_every,
        compile=sae.compile,
        baselines=sae.baselines,
        massive=sae.massive,
        blocks=stream.blocks,
        **{name: value for name, value in given.items() if value is not None},
    )
    return found if member.adjust is None else member.adjust(found, stream)


def _resumed(context: Context, work: Work, spec: TrainSpec, stream: Stream) -> tuple[Trainer, Position] | None:
    """What the newest whole checkpoint continues, and its place in the stream; a damaged one is named, the one before it taken."""
    from circuits.activations.stream import Position
    from circuits.sae import checkpoint
    from circuits.sae.training import Trainer

    def damaged(path: Path, why: str) -> None:
        context.say(f"damaged checkpoint: {why}; the one before it is used")

    latest = checkpoint.latest(work.partial, damaged)
    if latest is None:
        return None
    if latest.meta["stream"] != stream.facts_of(spec.layer):
        context.say(f"{latest.path}: made from other rows; layer {spec.layer} starts anew")
        checkpoint.clear(work.partial)  # its own first ones would be the oldest, and go
        return None
    context.say(f"layer {spec.layer}: resumed at step {latest.meta['step']}")
    stream.dropped.update({int(block): record for block, record in latest.meta["dropped"].items()})
    trainer = Trainer.resume(spec, latest.tensors, latest.meta, stream.lm.device)
    return trainer, Position(**latest.meta["position"])


def _hooks(
    members: Mapping[int, Member], stream: Stream, writer: Writer, diverged: dict[Name, NonFinite]
) -> Hooks[Name]:
    """What the loop tells: to each member its own. SAEs whose loss is no number are put into `diverged`."""
    from circuits.sae import checkpoint
    from circuits.sae.loop import Hooks

    context = next(iter(members.values())).context
    sae, count = context.cfg.sae, sum(len(member.works) for member in members.values())

    def log(name: Name, step: int, metrics: dict[str, float]) -> None:
        member, layer = members[name[0]], name[1]
        member.histories[layer].add(step, metrics)
        member.context.run.tracker.log(step, metrics, layer)
        shown = {"EV": metrics["explained_variance"], "L0": metrics["l0"]}
        member.context.show("training", step, member.steps, "step", **shown)

    def save(name: Name, step: int, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
        member, layer = members[name[0]], name[1]
        directory = member.works[layer].partial
        dropped = {str(block): record for block, record in stream.dropped.items()}
        facts = {**meta, "stream": stream.facts_of(layer), "dropped": dropped}
        curve = member.histories[layer].snapshot()

        def write() -> None:
            curve()
            checkpoint.save(checkpoint.path_for(directory, step), tensors, facts)
            checkpoint.prune(directory, member.context.cfg.sae.checkpoint_keep)

        writer.submit(write, sum(tensor.nbytes for tensor in tensors.values()))

    def failed(name: Name, error: NonFinite) -> None:
        diverged[name] = error
        if count > len(diverged):
            members[name[0]].context.say(f"{error}; the others go on")

    return Hooks(
        log=log,
        save=save,
        stopping=lambda: context.stopping is not None,
        failed=failed,
        log_every=sae.log_every,
        save_every=sae.checkpoint_every,
        save_minutes=sae.checkpoint_minutes,
    )

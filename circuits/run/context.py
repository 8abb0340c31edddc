"""What a task is given: its scope of the config, its layers, its inputs, the store, and a place to report to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import Damaged, GateError, UserError
from circuits.files import disk_errors, read_json
from circuits.run import provenance, status, stripes, threads, tracked
from circuits.run.parts import Run
from circuits.run.status import entry, now
from circuits.schema import DataSource, Reuse
from circuits.store import absent, gates, inputs, registry
from circuits.store.keys import Key, Unit, key_of, key_of_unit, units
from circuits.store.kinds import Input, Kind, Layers
from circuits.store.leases import certainly_gone, is_me
from circuits.store.scope import Scope
from circuits.store.store import Artifact

if TYPE_CHECKING:
    from circuits.data.keeper import Keeper
    from circuits.data.tokens import TokenSource
    from circuits.models.load import LM

POLL_S = 0.5  # between looks at what another run is making


class Work:
    """The making of one artifact, under its lease: a place for unfinished work, and the commit."""

    def __init__(self, context: Context, key: Key) -> None:
        self._context, self.key = context, key
        self._began = status.worked()
        forced = context.run.cfg.reuse is Reuse.force and not context.kind.inline
        self._resumed = context.run.store.beside(key, "partial").exists()
        self.partial = context.run.store.partial(key, owner="reuse=force" if forced else None)
        self._stripe(self.partial)
        if not context.kind.inline:
            threads.note(self.partial, context.run.cfg.task.resources.cpus)

    def _stripe(self, directory: Path) -> None:
        """Lay out the large files that will be made in `directory` as ``cluster.stripe`` says."""
        count = self._context.run.cfg.cluster.stripe
        if count is not None and self._context.kind.striped:
            stripes.stripe(directory, count, self._context.say)

    def own(self, share: str) -> Path:
        """A directory of its unfinished work that no other process writes to: for files that grow.

        What a process that is gone left of the same `share` is in it; that of any other one is left alone.
        """
        from circuits.activations.pieces import take_over

        me = self._context.run.me
        directory = self.partial / f"{share}.{me['token'][:12]}"
        take_over(self.partial, share, directory.name, me, lambda facts: certainly_gone(facts) or is_me(facts))
        return directory

    def commit(self, write: Callable[[Path], None], **facts: Any) -> Artifact:
        """Publish what `write` puts into a fresh directory.

        Args:
            write: writes the artifact's files into the directory that it is given.
            facts: joined to the manifest (dropped rows, notes).
        """
        context = self._context
        store = context.run.store
        with store.writing(self.key) as directory, disk_errors(directory), context.phase(f"writing {self.key.id}"):
            self._stripe(directory)
            write(directory)
            context.write_config(directory / "config.yaml")
            manifest = {
                "version": context.kind.version,
                "created": now(),
                "by": context.run.name,
                "made_in_s": round(status.worked() - self._began, 3),
                "cost": {**context.run.status.cost(), "resumed": self._resumed},
                "inputs": context.input_facts(self.key),
                "payload": self.key.payload,
                "code": provenance.code(),
                "environment": provenance.environment(),
                **context.taint(),
                **facts,
            }
            forced = context.run.cfg.reuse is Reuse.force
            return store.publish(self.key, directory, manifest, replace=forced, whole=context.run.stop.whole)


class Context:
    """The view of a run that one kind's code has."""

    def __init__(self, run: Run, kind: Kind) -> None:
        self.run, self.kind = run, kind
        self.cfg: Any = Scope(run.cfg, kind)
        self.layers = run.layers
        self.units = units(kind, run.cfg, run.layers)  # one artifact each
        self._inputs: dict[tuple[str, int | None], Artifact] = {}
        self._used: dict[str, Artifact] = {}  # the same by the hash of their keys
        self._keys: dict[Unit, Key] = {}

    # -- reporting -----------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """One line into the log."""
        self.run.say(text)

    def show(self, phase: str, done: float, total: float | None, unit: str = "step", **metrics: float) -> None:
        """Where the work is; shown in the sweep's table and by task=status. No safe point: for work that is saved first."""
        self.run.status.progress(phase, done, total, unit, metrics)
        if self.run.profiler is not None:
            self.run.profiler.mark(phase, done, total, unit)

    def progress(self, phase: str, done: float, total: float | None, unit: str = "step", **metrics: float) -> None:
        """Where the work is, at a safe point: nothing is lost that is not done again in a moment.

        Raises:
            Stopped: a stop was asked for.
        """
        self.show(phase, done, total, unit, **metrics)
        self.stop_here()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """One long call that leaves nothing behind (a model is loaded, a file is hashed): a stop ends it where it stands."""
        self.show(name, 0, None)
        with self.run.stop.cutting():
            yield

    def keeper(
        self, works: Mapping[Any, Work], name: str, phase: str = "", unit: str = "step", **how: float
    ) -> Keeper[Any]:
        """Where a pass over batches keeps what it has: now and then, and at a stop, in the unfinished work of each of `works`.

        Its place is shown as `phase`, where one is named; `how` is the Keeper's (``worth_s=0`` keeps what others wait for).
        """
        from circuits.data.keeper import Keeper

        def tell(done: int, total: int) -> None:
            if phase:
                self.show(phase, done, total, unit)

        paths = {one: work.partial / f"{name}.safetensors" for one, work in works.items()}
        return Keeper(
            paths,
            stopping=lambda: self.stopping is not None,
            stop=self.stop_here,
            tell=tell,
            say=self.say,
            cutting=self.run.stop.cutting,
            **how,
        )

    @property
    def stopping(self) -> str | None:
        """Why the run was asked to stop, or None. A task that sees it saves its work and calls :meth:`stop_here`."""
        return self.run.stop.reason

    def stop_here(self) -> None:
        """A safe point: everything worth keeping has been saved.

        Raises:
            Stopped: a stop was asked for.
        """
        self.run.stop.check()

    # -- artifacts -----------------------------------------------------------------------------------------------

    def key(self, layer: Unit = None) -> Key:
        """The key of this kind's artifact at `layer` (with variants: at (layer, variant))."""
        if layer not in self._keys:  # what a run makes is fixed when it begins
            self._keys[layer] = key_of_unit(self.kind, self.run.cfg, layer, self.layers, self.run.contents)
        return self._keys[layer]

    def missing(self) -> list[Any]:
        """The layers whose artifact has to be made, by ``reuse``; ``[None]`` for a kind without layers.

        Raises:
            UserError: ``reuse=readonly`` and something is missing.
        """
        missing = [layer for layer in self.units if self._wanted(layer)]
        if missing and self.run.cfg.reuse is Reuse.readonly:
            raise UserError(
                f"reuse=readonly: {self.key(missing[0]).id} does not exist; leave reuse=readonly out to make it"
            )
        return missing

    def _wanted(self, layer: Unit) -> bool:
        """Whether the artifact of `layer` is still to be made; under ``reuse=force``: by this very run."""
        found = self.run.store.find(self.key(layer))
        return found is None or (self.run.cfg.reuse is Reuse.force and found.manifest.get("by") != self.run.name)

    @contextlib.contextmanager
    def making(self, layers: Sequence[Any], wait: bool = True) -> Iterator[dict[Any, Work]]:
        """Leases on as many of `layers` as are free now, at least one; the rest is for a later call.

        Waits while all are being made by others. Yields nothing to make when they finish meanwhile, or without `wait`.
        """
        leases = {layer: self.run.store.lease(self.key(layer), by=self.run.name) for layer in layers}
        if wait:  # what a lost node held is made together, not one after the other as each is found to be free
            self.run.store.settle(map(self.key, layers), self.stop_here, suffixes=("lease",))
        taken = [layer for layer in layers if leases[layer].acquire()]
        if not taken and layers and wait:
            first = layers[0]
            with status.waiting():
                free = leases[first].wait(
                    lambda holder: self._waiting(self.key(first), holder), lambda: not self._wanted(first)
                )
            taken = [first] if free else []
        try:
            yield {layer: Work(self, self.key(layer)) for layer in taken if self._wanted(layer)}
        finally:
            for layer in taken:
                leases[layer].release()

    def require(self, name: str, layer: int | None = None) -> Artifact:
        """The artifact of input `name` (of `layer`, where that kind has layers): found in the store, or made now when the kind
        is made by whoever needs it.

        `name` is that of an :class:`~circuits.store.kinds.Input` or its kind; with `layer`, of the input at that layer.

        Raises:
            UserError: it is missing and is a task's own work; the message names all that this run misses of it, and the command
                that makes them.
            LookupError: the kind declares no such input.
        """
        if (name, layer) not in self._inputs:
            found, key = self._require(self._input(name, layer))
            self._inputs[name, layer] = self._used[key.hash] = found
        return self._inputs[name, layer]

    def _input(self, name: str, layer: int | None) -> Input:
        """The declared input that `name` and `layer` mean."""
        layers = self.layers if self.kind.layers == "set" or layer is None else (layer,)
        declared = inputs.of(self.kind, self.run.cfg, layers)
        for one in declared:
            if name == one.name or (name == one.kind and layer is not None and layer in one.layers):
                return one
        known = " ".join(one.name for one in declared) or "none"
        raise LookupError(f"kind {self.kind.name} has no input {name} at layer {layer}; inputs: {known}")

    def gate_of(self, name: str) -> str | None:
        """Ask the gate of measurement `name` (``baseline``); None where it is passed.

        Under ``force=true`` a refusal is returned, said, and kept in the manifest of whatever this run makes.

        Raises:
            UserError: it was never measured; the message is the command that measures it.
            GateError: it said no.
        """
        asked = gates.verdict(name, self.run.cfg, self.run.store.find, self.run.contents)
        if asked.refusal is None:
            return None
        if not self.run.cfg.force:
            if asked.measured:
                raise GateError(f"{asked.refusal}; {gates.FORCE}")
            raise self._absent([Input(name, (), self.run.cfg)])
        reason = f"{asked.key.id}: {asked.refusal}"
        if reason not in self.run.tainted:
            self.run.tainted.append(reason)
            self.say(f"tainted, force=true goes on: {reason}")
        return reason

    def taint(self) -> dict[str, list[str]]:
        """For a manifest: the gates that were passed by force, here or where an input was made."""
        inherited = [reason for used in self._used.values() for reason in used.manifest.get("tainted", [])]
        found = list(dict.fromkeys([*self.run.tainted, *inherited]))
        return {"tainted": found} if found else {}

    def model_files(self) -> tuple[str, str | None]:
        """The model's directory or hub name, and the commit that is in the key (None for a directory)."""
        model = self.run.cfg.model
        if model.embedded is not None:
            return str(self.require("tiny").path), None
        return model.id, self.run.contents.model(model).facts.revision

    def open_model(self) -> LM:
        """The run's model in memory, at its precision and on its device; the one that this process has, where it is the same."""
        model, precision, files = self.cfg.model, self.cfg.precision, self.model_files()
        with self.phase("loading the model"):
            from circuits.models.load import asked_model

            return asked_model(
                *files,
                precision=precision.dtype.value,
                matmul=precision.matmul.value,
                device=model.device,
                allow_fallback=model.allow_fallback,
                say=self.say,
            )

    def token_source(self, lm: LM) -> TokenSource:
        """The text that the config names, as tokens of the model."""
        from circuits.data.textstore import TextStore
        from circuits.tiny.source import EmbeddedSource

        if self.cfg.data.source is DataSource.embedded:
            return EmbeddedSource(lm.tokenizer, self.cfg.seed, self.cfg.data.context)
        if self.cfg.data.source is DataSource.pictures:
            from circuits.activations.pictures import PictureRows, PictureSource
            from circuits.data.pictures import saved

            source = PictureSource(PictureRows(saved.read(self.require("pictures").path), lm), self.cfg.seed)
            self.say(f"data: {source.name}")
            return source
        store = TextStore(self.require("tokens").path, seed=self.cfg.seed)
        self.say(f"text: {self.cfg.data.path}: {store.summary(self.cfg.data.max_tokens)}")
        return store

    def staged(self, artifact: Artifact, files: Sequence[str]) -> Path:
        """A directory with these files of an artifact: its own, or with ``cluster.stage`` a copy on this machine's disk."""
        from circuits.store.staging import staged

        if (stage := self.run.cfg.cluster.stage) is None:
            return artifact.path
        self.progress(f"copying {artifact.id} to {stage}", 0, None)

        def waiting(holder: Mapping[str, Any]) -> None:
            self.progress(f"waiting for {artifact.id}, copied by pid {holder['pid']}", 0, None)

        hashes = {name: artifact.manifest["files"][name]["sha256"] for name in files}
        found = staged(artifact.path, artifact.content, hashes, stage, waiting, self.stop_here)
        self.say(f"{artifact.id} is read from {found}")
        return found

    def _require(self, given: Input) -> tuple[Artifact, Key]:
        kind, store = registry.kind(given.kind), self.run.store
        key = self._key_of(given)
        while (found := store.find(key)) is None:  # its maker published and somebody removed or damaged it: once more
            if not kind.inline or self.run.cfg.reuse is Reuse.readonly:
                if self._await(key):
                    continue
                raise self._absent(self._missing_beside(given))
            lease = store.lease(key, by=self.run.name)
            with status.waiting():
                mine = lease.wait(lambda holder: self._waiting(key, holder), lambda: store.find(key) is not None)
            if not mine:
                continue
            try:
                if store.find(key) is None:
                    other = Context(replace(self.run, cfg=given.cfg, layers=given.layers), kind)
                    kind.make(other, {None: Work(other, key)})
            finally:
                lease.release()
        return found, key

    def _await(self, key: Key) -> bool:
        """Wait for an input that somebody is making; whether there was somebody."""
        if self.run.cfg.reuse is Reuse.readonly or (holder := self.run.store.holder(key)) is None:
            return False
        with status.waiting():
            while (holder := self.run.store.holder(key)) is not None and self.run.store.find(key) is None:
                self._waiting(key, holder)
                time.sleep(POLL_S)
        return True

    def _absent(self, missing: Sequence[Input]) -> UserError:
        run = self.run
        asked = absent.Asked(run.cfg, run.layers, run.overrides, run.contents, run.store.root)
        return UserError(absent.told(self.kind, missing, asked))

    def _missing_beside(self, given: Input) -> list[Input]:
        """All of this run's inputs of the kind of `given` that do not exist."""
        one_by_one: list[Layers] = [(layer,) for layer in self.layers]
        layers = [self.layers] if self.kind.layers == "set" or not self.layers else one_by_one
        found = [one for at in layers for one in inputs.of(self.kind, self.run.cfg, at) if one.kind == given.kind]
        missing = {key.hash: one for one in found if self.run.store.find(key := self._key_of(one)) is None}
        return list(missing.values())

    def _key_of(self, one: Input) -> Key:
        return key_of(registry.kind(one.kind), one.cfg, one.layers, self.run.contents)

    def _waiting(self, key: Key, holder: Mapping[str, Any]) -> None:
        self.progress(f"waiting for {key.id}, made by {holder.get('by', 'pid ' + str(holder['pid']))}", 0, None)

    def conclude(self, waiting: str | None = None) -> list[str]:
        """List the run's artifacts in its status; what the gates say about them.

        Args:
            waiting: why an artifact may not be there yet although this run did its share; shown as the run's outcome.
        """
        refusals = []
        for one in self.units:
            layer = one[0] if isinstance(one, tuple) else one
            artifact = self.run.store.find(self.key(one))
            if artifact is None and waiting is not None:
                self.run.status.facts["note"] = waiting
                continue
            if artifact is None:
                raise Damaged(f"{self.key(one).id} went away while it was being read; run the same command again")
            metrics = read_json(artifact.path / "metrics.json")
            made = artifact.manifest.get("by") == self.run.name
            shown = {**metrics, **self.kind.derived(self.run.cfg, metrics)}
            self.run.status.facts["artifacts"].append(entry(self.kind, artifact, layer, shown, cached=not made))
            tracked.publish(self.run, self.kind, self.key(one), artifact, layer, shown)
            refusal = self.kind.gate(self.run.cfg, metrics)
            refusals += [refusal] if refusal else []
        return refusals

    def input_facts(self, key: Key) -> dict[str, Any]:
        """What the manifest says of the inputs: key and content of each one used."""
        facts: dict[str, Any] = {}
        for name, input_key in key.inputs.items():
            artifact = self._used.get(input_key.hash)
            used = (
                artifact.id if artifact else input_key.id
            )  # a renamed copy of a model has the same key and another name
            facts[name] = {"id": used, "key": input_key.hash, "content": artifact.content if artifact else None}
        return facts

    def write_config(self, path: Path) -> None:
        """The sections that this kind reads, resolved, as yaml."""
        from circuits.run import config

        config.save(self.run.cfg, path, {section.split(".")[0] for section in self.kind.sections})

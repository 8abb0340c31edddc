"""Preflight: every element of a sweep composed, converted and checked before any process exists. All errors at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from circuits import schema
from circuits.command import foreign, reading
from circuits.command.compose import Composer
from circuits.errors import CircuitsError, UserError
from circuits.files import REASONS
from circuits.launch.plan import Element
from circuits.run import config, machine, private
from circuits.schema import Backend, BaseConfig, Dtype, ModelConfig
from circuits.schema.model import scenes_of
from circuits.space import space
from circuits.store import inputs, registry
from circuits.store.contents import Contents
from circuits.store.keys import Key, Unit, key_of_unit, units
from circuits.store.kinds import Kind, ModelDims
from circuits.store.layers import LayerOutOfRange, parse_layers, ranges
from circuits.words import size

ONE_VALUE = (
    "outputs",
    "multirun",
    "cluster",
    "reuse",
    "name",
    "note",
    "pack",
    "task",
)  # of a whole sweep; task.resources.* may vary


def plan(
    compose: Callable[[Sequence[str]], Any],
    lists: Sequence[Sequence[str]],
    base: Path,
    stages: Sequence[str] | None = None,
) -> list[Element]:
    """The elements of a sweep, checked.

    Args:
        compose: overrides → composed config.
        lists: the overrides of each element.
        base: the directory that the command was typed in.
        stages: the name of each one's stage; then they may be of several tasks.

    Raises:
        UserError: with every finding of every element, equal ones once.
    """
    elements, errors = [], []
    varying = _swept(lists)
    swept = _swept_within(lists, stages or [""] * len(lists))
    composer = compose if isinstance(compose, Composer) else Composer(compose)
    hidden = cache(private.word)  # words are alike in most elements
    for index, overrides in enumerate(lists):
        try:
            cfg = config.absolute(composer(overrides), base)
        except UserError as e:
            errors += e.messages
            continue
        own = swept[stages[index] if stages else ""]
        mine = {key: value for key, _, value in (word.partition("=") for word in overrides) if key in own}
        private.declare(cfg.cluster.secrets)
        shown = {key: hidden(f"{key}={value}").partition("=")[2] for key, value in mine.items()}
        element = Element(index, [hidden(word) for word in overrides], cfg, shown)
        element.stage = stages[index] if stages else ""
        elements.append(element)
    for key in sorted(varying - ({"task", "pack"} if stages else set())):
        if not key.startswith("task.resources.") and key.split(".")[0] in ONE_VALUE:
            noun = "task" if key == "task" else "value of it"
            errors.append(f"{key}: one sweep is over one {noun}; start one after the other")
    for element in elements:
        errors += schema.check(element.cfg)
    for stage in dict.fromkeys(element.stage for element in elements):
        members = [element for element in elements if element.stage == stage]
        unread = reading.unread([element.overrides for element in members], [element.cfg for element in members])
        errors = reading.joined(errors, unread)
    if not errors:
        _cluster_caches(elements[0].cfg)
        checker = _Checker(len(lists), _written(lists), _named(lists))
        for element in elements:
            checker.check(element)
        errors += checker.findings()
    if errors:
        raise UserError(list(dict.fromkeys(errors)))
    return elements


def _cluster_caches(cfg: BaseConfig) -> None:
    """Look for hub models where the nodes will. Before the hub's client is imported: it reads this once."""
    if cfg.cluster.backend is Backend.slurm:
        from circuits.launch.slurm.request import cluster_environment

        place = cluster_environment(cfg).get("HF_HOME")
        if place:
            os.environ["HF_HOME"] = place


def _swept(lists: Sequence[Sequence[str]]) -> set[str]:
    """The keys whose value differs between elements."""
    values: dict[str, set[str]] = {}
    for overrides in lists:
        for word in overrides:
            key, _, value = word.partition("=")
            values.setdefault(key, set()).add(value)
    return {key for key, found in values.items() if len(found) > 1}


def _swept_within(lists: Sequence[Sequence[str]], stages: Sequence[str]) -> dict[str, set[str]]:
    """The same within each stage."""
    members: dict[str, list[Sequence[str]]] = {}
    for stage, words in zip(stages, lists, strict=True):
        members.setdefault(stage, []).append(words)
    return {stage: _swept(found) for stage, found in members.items()}


def _written(lists: Sequence[Sequence[str]]) -> str:
    """How the layers of a whole sweep are written in an error."""
    given = [word.partition("=")[2] for overrides in lists for word in overrides if word.startswith("layer=")]
    if given and all(value.isdigit() for value in given):
        return ranges([int(value) for value in given])
    return ",".join(dict.fromkeys(given)) or "all"


def _named(lists: Sequence[Sequence[str]]) -> bool:
    """Whether somebody chose the model."""
    return any(word.startswith(("model=", "model.id=")) for overrides in lists for word in overrides)


class _Checker:
    """Checks elements one by one, and says what is common once."""

    def __init__(self, count: int, written: str, named: bool) -> None:
        self.count, self.written, self.named = count, written, named
        self.errors: list[str] = []
        self.outside: dict[tuple[str, int], list[list[int]]] = {}
        self._contents: dict[str, Contents] = {}
        self._facts: dict[Any, Any] = {}
        self._absent: set[str | None] = set()  # what sae.from names in vain, asked for once
        self._writable = cache(_writable)

    def check(self, element: Element) -> None:
        name = element.cfg.sae.from_
        try:
            if name not in self._absent:
                foreign.locate(element.cfg)
        except UserError as e:
            self._absent.add(name)
            self.errors += e.messages
        kind: Kind | None = getattr(registry.modules().get(element.cfg.task.name), "KIND", None)
        if kind is None:
            return
        cfg = element.cfg
        dims = self._dims(cfg)
        if dims is None or name in self._absent:  # what can be told without it is told all the same
            self.errors += _without(kind, cfg, dims or UNKNOWN, located=name not in self._absent)
            return
        if dims.revision is not None:
            cfg.model.revision = dims.revision  # an element loads this commit, whatever the branch is by then
        try:
            if kind.layers != "none":
                element.layers = parse_layers(cfg.layer, dims.depth, cfg.model.sets)
        except LayerOutOfRange as e:
            self.outside.setdefault((cfg.model.id, e.depth), []).append(e.outside)
            return
        except UserError as e:
            self.errors += e.messages
            return
        family = list(inputs.walk(kind, cfg, element.layers))
        found = (
            []
            if cfg.model.allow_fallback or cfg.cluster.backend is not Backend.local
            else [machine.device_error(cfg.model.device)]
        )
        found += [
            self._writable("outputs", cfg.outputs, make=True),
            self._writable("multirun", cfg.multirun, make=False) if self.count > 1 else None,
            _precision(cfg, dims),
            reading.text_problem(cfg),
            *inputs.problems(family, dims),
        ]
        self.errors += [error for error in found if error]
        if self.errors:
            return
        try:
            contents = self._contents.setdefault(
                cfg.outputs, Contents(Path(cfg.outputs) / "artifacts" / ".hashes.json")
            )
            element.keys = keys_of(kind, cfg, element.layers, contents)
        except CircuitsError as e:
            self.errors.append(str(e))
            return
        element.bytes = kind.bytes(cfg, dims)
        element.memory = kind.memory(cfg, dims, element.layers)
        element.remarks = inputs.remarks(family)

    def _dims(self, cfg: BaseConfig) -> ModelDims | None:
        """The model's dimensions; of a preset that cannot be reached, what its yaml says; None when nothing is known."""
        model = cfg.model
        memo = (model.id, model.revision, str(model.embedded))
        if memo not in self._facts:
            try:
                self._facts[memo] = model_dims(cfg)
            except UserError as e:  # one of the findings; what the preset's yaml says still serves the other checks
                self.errors += e.messages
                self._facts[memo] = model.layers and ModelDims(
                    model.layers, lambda site: model.width if site.startswith("resid") else None, None, model.family
                )
        return self._facts[memo]

    def findings(self) -> list[str]:
        """All errors, the ones about layers joined."""
        lines = []
        for (model, depth), outside in self.outside.items():
            bad = sorted({layer for layers in outside for layer in layers})
            which = (
                f"{len(outside)} of {self.count} elements are out of range"
                if self.count > 1
                else f"{ranges(bad)} out of range"
            )
            lines.append(
                f"layer={self.written}: {which} for model={model}, which has {depth} layers (0-{depth - 1})"
                + (f": {_short(bad)}" if self.count > 1 else "")
                + ("" if self.named else NO_MODEL)
            )
        return lines + self.errors


UNKNOWN = ModelDims(None, lambda site: None)
"""A model that cannot be looked at."""
NO_MODEL = "; no model was named: add model=NAME or model=DIRECTORY, or set yours in conf/user/local.yaml (default: model: NAME)"


def _without(kind: Kind, cfg: BaseConfig, dims: ModelDims, located: bool) -> list[str]:
    """What is wrong with a config besides its model, or besides the SAE that ``sae.from`` names in vain."""
    if located:
        return inputs.problems(inputs.walk(kind, cfg, ()), dims)
    known = replace(cfg, sae=replace(cfg.sae, from_=None, k=None, groups=None))
    found = inputs.problems(inputs.walk(kind, known, ()), dims)
    return [line for line in found if not line.startswith("sae")]  # of what is trained, which is not asked


def model_dims(cfg: BaseConfig) -> ModelDims:
    """Depth, widths and context: of the embedded model by its config, of any other by its config.json.

    Raises:
        UserError: there is no such model, or it cannot be reached.
    """
    from circuits.models.sites import dims_of, site_width

    model, model_type, revision = cfg.model, None, None
    if model.embedded is not None:
        given = _embedded_config(model)
        dims, model_type = dims_of(given), given["model_type"]
    else:
        facts = Contents().model(model).facts
        dims, model_type, revision = facts.dims, facts.model_type, facts.revision
    return ModelDims(dims.layers, lambda site: site_width(dims, site), dims.context, model_type, revision, dims.heads)


def _embedded_config(model: ModelConfig) -> dict[str, Any]:
    """What config.json of the embedded model will say."""
    spec = {name: getattr(model.embedded, name) for name in ("layers", "width", "steps", "batch", "lr", "seed")}
    if scenes_of(model) is not None:
        from circuits.tiny.vision import spec as vision

        return {"model_type": "gemma3", **vision.hf_config(vision.VisionSpec(**spec))}
    from circuits.tiny.spec import TinySpec, hf_config, vocabulary

    return hf_config(TinySpec(**spec), len(vocabulary()))


def _precision(cfg: BaseConfig, dims: ModelDims) -> str | None:
    """Why the model cannot be computed in the number format asked for, or None."""
    from circuits.models.sites import fp16_problem

    problem = fp16_problem(dims.model_type) if cfg.precision.dtype is Dtype.fp16 else None
    return problem and f"precision=fp16: {problem}"


def keys_of(kind: Kind, cfg: BaseConfig, layers: tuple[int, ...], contents: Contents) -> dict[Unit, Key]:
    """The keys of all that one element makes, by unit."""
    return {one: key_of_unit(kind, cfg, one, layers, contents) for one in units(kind, cfg, layers)}


def _short(layers: list[int]) -> str:
    return " ".join(map(str, layers)) if len(layers) < 4 else f"{layers[0]} … {layers[-1]}"


def _writable(key: str, given: str, make: bool) -> str | None:
    """Why nothing can be written below the directory that `key` names, or None. Whether it is made (free space is asked of it)."""
    place, mend = Path(given), f"choose another place with {key}=DIR"
    try:
        if make:
            place.mkdir(parents=True, exist_ok=True)
        while not place.exists():  # raises where the name is too long
            place = place.parent
        if not place.is_dir():
            raise FileExistsError
    except FileExistsError:
        return f"{key}={given}: a file, no directory; {mend}"
    except OSError as e:
        return f"{key}={given}: cannot be made ({REASONS.get(e.errno or 0, e.strerror)}); {mend}"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{key}={given}: no permission to write; {mend}"
    return None


def room(elements: Sequence[Element], pool: int) -> None:
    """Refuse what does not fit: the artifacts of all `elements`, and the unfinished work of `pool` of them at a time.

    Raises:
        UserError: with what is needed and what is free.
    """
    if not elements:
        return
    outputs = Path(elements[0].cfg.outputs)
    work = sorted((element.bytes[1] * len(element.keys) for element in elements), reverse=True)
    sizes = {key.hash: element.bytes[0] for element in elements for key in element.keys.values()}  # shards share one
    needed = sum(sizes.values()) + sum(work[: max(1, pool)])
    there = space(outputs)
    if there.bytes < needed:
        told = f"about {size(needed)} are needed and there is {there}"
        raise UserError(f"outputs={outputs}: {told}; free some, or choose another place with outputs=DIR")

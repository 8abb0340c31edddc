"""The stages of a pipeline: what its yaml says, joined with what was typed, as one list of overrides for each element.

A word (an override) of a stage comes, from weakest to strongest, from a person's defaults, the pipeline's ``overrides``, the
stage's own, and the command line. A word that wins removes weaker ones of the same key; the choice of another model, data or
behaviour also values of the one before. What is not the stage's own goes only where it is read; ``layer=`` to stages that say which
layers they take.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from circuits.command import overrides, personal, reading
from circuits.errors import UserError, suggest
from circuits.schema import BaseConfig
from circuits.store import places, registry

KEYS = ("task", "overrides", "after")
FILE = ("about", "overrides", "sizes", "stages")
EACH = "layer=each"
THINGS = ("model", "data", "behaviour")  # a choice of another one leaves nothing of what was said of the one before
OWN = ("pipeline", "plan")  # sections of the study itself
PARALLEL = {"conservative": 4, "aggressive": None}

Compose = Callable[[Sequence[str]], BaseConfig]


@dataclass
class Stage:
    """One stage: a task, what its yaml says, whole stages before it."""

    name: str
    task: str
    own: list[str]
    after: tuple[str, ...] = ()
    lists: list[list[str]] = field(default_factory=list)
    """The overrides of each of its elements."""


@dataclass
class Study:
    """A pipeline as it was asked for."""

    name: str
    about: str
    stages: list[Stage]
    shared: list[str]
    sizes: dict[str, list[str]]
    parallelism: int | None
    canary: bool
    whole: bool = True
    """Whether all of its stages are asked for; else what is said of all may be for those that are left out."""


def typed(lists: Sequence[Sequence[str]]) -> list[str]:
    """What was typed, of which Hydra has made one list for each combination of swept values: ``layer=0,1`` again.

    Raises:
        UserError: more than one study.
    """
    words: dict[str, list[str]] = {}
    for word in itertools.chain.from_iterable(lists):
        key, _, value = word.partition("=")
        if value not in words.setdefault(key, []):
            words[key].append(value)
    for key in ("task", "pipeline"):
        if len(words.get(key, ())) > 1:
            raise UserError(f"{key}={','.join(words[key])}: one study at a time; start one after the other")
    return [f"{key}={','.join(values)}" for key, values in words.items()]


def from_file(path: Path, given: Any) -> Any:
    """`given`, a pipeline's section, with what the yaml at `path` says in it; what was typed beside it stays.

    Raises:
        UserError: it cannot be read, or is none.
    """
    import yaml  # type: ignore[import-untyped]

    where = f"pipeline={path.name}"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{where}: cannot be read ({e.strerror})") from e
    except (ValueError, yaml.YAMLError) as e:
        raise UserError(f"{where}: not readable as yaml ({' '.join(str(e).split())[:150]})") from e
    if not isinstance(tree, dict):
        raise UserError(f"{where}: a mapping is expected: about, overrides, stages")
    wrong = [
        f"{where}: {key}: no such key" + suggest(str(key), FILE, "keys of a pipeline")
        for key in tree
        if key not in FILE
    ]
    shapes = {
        "about": (str, "a text"),
        "overrides": (list, "a list of texts"),
        "stages": (dict, "a mapping of stages"),
        "sizes": (dict, "a mapping of choices to lists of texts"),
    }
    for key, (shape, told) in shapes.items():
        if key in tree and not isinstance(tree[key], shape):
            wrong.append(f"{where}: {key}: {told} is expected")
    if (
        "overrides" in tree
        and isinstance(tree["overrides"], list)
        and not all(isinstance(w, str) for w in tree["overrides"])
    ):
        wrong.append(f"{where}: overrides: a list of texts is expected, such as ['sae.k=32']")
    if wrong:
        raise UserError(wrong)
    for key, value in tree.items():
        setattr(given, key, value)
    return given


def read(name: str, given: Any) -> Study:
    """The study that a pipeline's section describes.

    Raises:
        UserError: with every finding.
    """
    errors: list[str] = []
    stages = [_stage(stage, facts, errors) for stage, facts in given.stages.items()]
    if not stages:
        errors.append(f"pipeline={name}: no stages; write stages: {{NAME: {{task: TASK}}}}")
    known = [stage.name for stage in stages]
    for stage in stages:
        for other in stage.after:
            if other not in known:
                errors.append(f"pipeline.stages.{stage.name}: after {other}" + _none(other, known))
    if not errors:
        errors += _cycles(stages)
    parallelism = _parallelism(given.parallelism, errors)
    chosen = _chosen(stages, given, errors)
    if errors:
        raise UserError(errors)
    sizes = {str(choice): list(words) for choice, words in given.sizes.items()}
    return Study(
        name, given.about, chosen, list(given.overrides), sizes, parallelism, given.canary, len(chosen) == len(stages)
    )


def single(task: str) -> Study:
    """One task as a study of one stage.

    Raises:
        UserError: it makes nothing.
    """
    errors: list[str] = []
    stage = _stage(task, {"task": task}, errors)
    if errors:
        raise UserError([error.replace(f"pipeline.stages.{task}: task=", "plan.task=") for error in errors])
    return Study(task, "", [stage], [], {}, None, False)


def _stage(name: str, facts: Any, errors: list[str]) -> Stage:
    where = f"pipeline.stages.{name}"
    if not isinstance(facts, Mapping):
        errors.append(f"{where}={facts}: a mapping is expected: {{task: TASK, overrides: [key=value]}}")
        return Stage(name, "", [])
    for key in sorted(set(map(str, facts)) - set(KEYS)):
        errors.append(f"{where}.{key}: no such key" + suggest(key, KEYS, "keys of a stage"))
    task, own, after = facts.get("task"), facts.get("overrides") or [], facts.get("after") or []
    tasks = [each for each in places.choices("task") if hasattr(registry.modules().get(each), "KIND")]
    if task not in places.choices("task"):
        errors.append(f"{where}: task={task}: no such task" + suggest(str(task), tasks, "tasks of a stage"))
    elif task not in tasks:
        errors.append(f"{where}: task={task} makes nothing that is kept, and runs here; stages are {' '.join(tasks)}")
    for key, value in (("overrides", own), ("after", after)):
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            errors.append(
                f"{where}.{key}: a list of texts is expected, such as [{'key=value' if key == 'overrides' else 'STAGE'}]"
            )
            return Stage(name, str(task), [])
    for word in own:
        if _of_study(word) or word.partition("=")[0] in ("cluster", "outputs", "multirun", "name"):
            errors.append(
                f"{where}: {word}: what a whole study has one of stands on the command line, the task under task:"
            )
    return Stage(name, str(task), list(own), tuple(after))


def _none(name: str, known: Sequence[str]) -> str:
    return ": no such stage" + suggest(name, known, "stages")


def _cycles(stages: Sequence[Stage]) -> list[str]:
    try:
        TopologicalSorter({stage.name: stage.after for stage in stages}).prepare()
    except CycleError as e:
        return [f"pipeline.stages: each would wait for the other: {' → '.join(reversed(e.args[1]))}"]
    return []


def _parallelism(value: Any, errors: list[str]) -> int | None:
    if value in PARALLEL:
        return PARALLEL[value]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    errors.append(f"pipeline.parallelism={value}: conservative, aggressive or a number from 1")
    return None


def _chosen(stages: list[Stage], given: Any, errors: list[str]) -> list[Stage]:
    """The stages between ``from`` and ``until``, or ``only`` some. What is left out is neither made nor waited for."""
    names = [stage.name for stage in stages]
    asked = [("from", [given.from_]), ("until", [given.until]), ("only", given.only)]
    wrong = [(key, name) for key, found in asked for name in found if name is not None and name not in names]
    errors += [f"pipeline.{key}={name}{_none(name, names)}" for key, name in wrong]
    if given.only and (given.from_ or given.until):
        errors.append("pipeline.only: beside pipeline.from or pipeline.until it says nothing; give one of them")
    if errors:
        return stages
    first = names.index(given.from_) if given.from_ else 0
    last = names.index(given.until) if given.until else len(names) - 1
    if first > last:
        errors.append(
            f"pipeline.from={given.from_} comes after pipeline.until={given.until}; the order is {' '.join(names)}"
        )
    kept = [stage for stage in stages[first : last + 1] if not given.only or stage.name in given.only]
    left = {stage.name for stage in kept}
    for stage in kept:
        stage.after = tuple(name for name in stage.after if name in left)
    return kept


def expand(study: Study, words: Sequence[str], compose: Compose) -> None:
    """Give every stage the overrides of each of its elements. `words` is what was typed, a person's defaults among it.

    Raises:
        UserError: with every finding of every stage; a typed word that no stage reads.
    """
    defaults = set(overrides.canonical(personal.beside(())))
    mine = [word for word in words if not _of_study(word)]
    weak, strong = [word for word in mine if word in defaults], [word for word in mine if word not in defaults]
    shared = _sized(study, weak, overrides.canonical(study.shared), strong)
    errors: list[str] = []
    unread: dict[str, list[str]] = {}
    for stage in study.stages:
        try:
            own = overrides.canonical(stage.own)
            joined = _stronger([weak, shared, own, [word for word in strong if not _elsewhere(word, stage, study)]])
            joined = _each_layer(joined, compose)
            _check(stage, joined)
            foreign = [word for word in joined if word not in own and not (EACH in own and word.startswith("layer="))]
            kept = _read_here(stage, joined, foreign, compose, unread)
            stage.lists = _combinations(kept, stage)
        except UserError as e:
            errors += [line if line.startswith("pipeline.") else f"stage {stage.name}: {line}" for line in e.messages]
    for word in [*strong, *(shared if study.whole else ())]:
        reasons = unread.get(word, [])
        if not errors and len(reasons) == len(study.stages) and word.partition("=")[0] not in ("cluster", "seed"):
            errors.append(f"{word}: no stage of pipeline={study.name} reads it{_who(word)}")
    if errors:
        raise UserError(list(dict.fromkeys(errors)))


def _sized(study: Study, weak: Sequence[str], shared: list[str], strong: Sequence[str]) -> list[str]:
    """The shared overrides with those of the sizes whose choice wins; a stage's own and what is typed stay stronger."""
    chosen = _stronger([weak, shared, strong])
    more = [words for choice, words in study.sizes.items() if overrides.canonical([choice])[-1] in chosen]
    return _stronger([shared, *(overrides.canonical(words) for words in more)])


def _each_layer(words: list[str], compose: Compose) -> list[str]:
    """``layer=each`` as a sweep over all layers of the model."""
    if EACH not in words:
        return words
    from circuits.launch.planning import model_dims

    cfg = compose([word for word in words if word.split("=")[0].split(".")[0] == "model"])
    known = None if cfg.model.embedded is not None else cfg.model.layers  # a preset says it without a network
    depth = model_dims(cfg).depth if known is None else known
    if depth is None:
        raise UserError(f"{EACH}: nobody knows yet how many layers the model has; write layer=range(0,N)")
    return [f"layer={','.join(map(str, range(depth)))}" if word == EACH else word for word in words]


def _who(word: str) -> str:
    key = word.partition("=")[0]
    path = reading.CHOICE_OF.get(key, key)
    tasks = [task for task in places.choices("task") if not registry.everything(task) and reading.may(path, task)]
    return f"; task={' or task='.join(tasks)} does" if tasks else ""


def _of_study(word: str) -> bool:
    """Whether a word is about the whole study: ``task=pipeline``, ``pipeline.until=saes``; not ``task.resources.time=…``."""
    key = word.partition("=")[0]
    return key == "task" or key.split(".")[0] in OWN


def _elsewhere(word: str, stage: Stage, study: Study) -> bool:
    """Whether a typed ``layer=`` is not for this stage: it is for those that say which layers they take, where some do."""
    chosen = [one.name for one in study.stages if any(own.startswith("layer=") for own in one.own)]
    return word.startswith("layer=") and bool(chosen) and stage.name not in chosen


def _stronger(layers: Iterable[Sequence[str]]) -> list[str]:
    """These layers of words as one list, later ones stronger."""
    found: list[str] = []
    for words in layers:
        keys = {word.partition("=")[0] for word in words}
        groups = keys & set(THINGS)
        found = [
            word for word in found if (key := word.partition("=")[0]) not in keys and key.split(".")[0] not in groups
        ]
        found += words
    return found


def _check(stage: Stage, words: Sequence[str]) -> None:
    """Keys, choices and types, as on a command line; what is not read here is no fault yet."""
    overrides.check(overrides.Arguments([], [f"task={stage.task}", *words], {word.partition("=")[0] for word in words}))


def _read_here(
    stage: Stage, words: list[str], foreign: Sequence[str], compose: Compose, unread: dict[str, list[str]]
) -> list[str]:
    """`words` without those of `foreign` that this stage does not read."""
    possible = []
    for word in words:
        key = word.partition("=")[0]
        path = reading.CHOICE_OF.get(key, key)
        if (
            word in foreign
            and key != "experiment"
            and not key.startswith("hydra")
            and not reading.may(path, stage.task)
        ):
            unread.setdefault(word, []).append(f"task={stage.task} does not")
        else:
            possible.append(word)
    every = _combinations(possible, stage)
    answers: dict[str, list[str | None]] = {}
    for mine in (every[number] for number in reading.distinct(every)):
        cfg = compose(mine)
        typed = {word.partition("=")[0]: word for word in mine}
        for word in (word for word in foreign if word in possible):
            answers.setdefault(word, []).append(reading.why(typed[word.partition("=")[0]], cfg, mine))
    for word, reasons in answers.items():
        if all(reasons):
            possible.remove(word)
            unread.setdefault(word, []).append(str(reasons[0]))
    return possible


def _combinations(words: Sequence[str], stage: Stage) -> list[list[str]]:
    """The overrides of each element, by Hydra's sweep grammar; a study's own sweep (``experiment=``) among them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = (personal.experiment(words).get("hydra") or {}).get("sweeper", {}).get("params", {})
    given = {word.partition("=")[0] for word in words}
    swept = [f"{key}={value}" for key, value in params.items() if key not in given]
    parsed = OverridesParser.create().parse_overrides([f"task={stage.task}", *swept, *words])
    (found,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    if not found:
        raise UserError(f"nothing to run: a sweep in {' '.join(words)} is empty (range(0,4) is 0, 1, 2, 3)")
    return [list(one) for one in found]

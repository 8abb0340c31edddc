"""From a legacy file to command lines: which file is a run, which a battery, what conditions share, how a line is written."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuits.errors import UserError
from circuits.store import places
from circuits.tasks._convert import batteries, commented, runs
from circuits.tasks._convert.batteries import Words
from circuits.tasks._convert.fields import Layer, Source, View

COMMENTS = ("_comment", "comment", "_note", "description")


@dataclass
class Converted:
    """A legacy run as command lines, and all that was not carried over."""

    file: Path
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    batteries: list[Path] = field(default_factory=list)


def converted(file: Path, asked: runs.Asked) -> Converted | None:
    """The lines of a file; None where it is a battery alone, which is read with the runs that name it.

    Raises:
        UserError: it is no JSON, or no config of the lab.
    """
    data = commented.load(file)
    if not isinstance(data, Mapping) or not set(data) & {"battery", "conditions", "type"}:
        raise UserError(f"{file}: no config of the lab (no battery, no conditions, no type)")
    if "type" in data and not set(data) & {"model", "dataset", "tag", "shared", "conditions"}:
        return None
    source, found = Source(file, data), Converted(file)
    sources = {file.resolve(): source}
    made: list[Words] = []
    whole = View(Layer(source), Layer(source, ("shared",)))
    conditions = View(Layer(source)).items("conditions") or [View(Layer(source))]
    name, note = whole.get("run_name"), next((whole.get(key) for key in COMMENTS if whole.has(key)), None)
    for condition in conditions:
        where = ".".join(condition.layers[-1].prefix)
        try:
            made.append(_words(View(*whole.layers, *condition.layers), file, sources, asked))
        except UserError as e:
            found.notes += [f"{file}: {where + ': ' if where else ''}no line: {message}" for message in e.messages]
    grouped = _grouped(made)
    for number, words in enumerate(grouped, 1):
        if name:
            words["name"] = f"{name}-{number}" if len(grouped) > 1 else str(name)
        if note:
            words["note"] = " ".join(str(note).split())
        found.lines.append(line(words))
    found.notes += [told for one in sources.values() for told in one.told(runs.UNREAD)]
    found.batteries = [path for path in sources if path != file.resolve()]
    return found


def _words(run: View, file: Path, sources: dict[Path, Source], asked: runs.Asked) -> Words:
    """The words of one condition."""
    words = batteries.words_of(_battery(run, file, sources))
    section = "geometry" if words["task"] == "geometry" else "intervention"
    first = {
        "task": words.pop("task"),
        **({"intervention": words.pop("intervention")} if section == "intervention" else {}),
    }
    return (
        first
        | runs.prompts(run, section, asked, file)
        | runs.model(run, asked)
        | words
        | runs.measuring(run, section, asked)
    )


def _battery(run: View, file: Path, sources: dict[Path, Source]) -> View:
    """The battery of a run: a file of its own, an object in the run, or the run itself; with its overrides above it.

    Raises:
        UserError: the file that is named is nowhere.
    """
    named = run.peek("battery")
    if isinstance(named, str):
        run.get("battery")
        places_ = [file.parent / Path(named).name, *(up / named for up in (Path.cwd(), *file.resolve().parents))]
        path = next((place.resolve() for place in places_ if place.is_file()), None)
        if path is None:
            raise UserError(f"battery {named}: no such file here, beside {file} or above it")
        if path not in sources:
            data = commented.load(path)
            if not isinstance(data, Mapping):
                raise UserError(f"{path}: no battery")
            sources[path] = Source(Path(_short(path)), data)
        layers = [Layer(sources[path])]
    elif named is not None:
        layers = [Layer(layer.source, (*layer.prefix, "battery")) for layer in run.layers]
    else:
        layers = list(run.layers)
    return View(*layers, *(Layer(layer.source, (*layer.prefix, "battery_overrides")) for layer in run.layers))


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _grouped(made: Sequence[Words]) -> list[Words]:
    """Conditions that differ in their behaviour alone as one sweep; equal ones once. A split file is one corpus's own."""
    found: list[tuple[Words, list[str]]] = []
    for words in made:
        rest = {key: value for key, value in words.items() if key != "behaviour"}
        alone = "behaviour.splits" in words
        for others, behaviours in found:
            if others == rest and (not alone or words["behaviour"] in behaviours):
                if words["behaviour"] not in behaviours:
                    behaviours.append(words["behaviour"])
                break
        else:
            found.append((rest, [words["behaviour"]]))
    order = ("task", "intervention", "behaviour")
    whole = [{**rest, "behaviour": ",".join(behaviours)} for rest, behaviours in found]
    return [{key: words[key] for key in (*order, *words) if key in words} for words in whole]


def line(words: Mapping[str, Any]) -> str:
    """``python launch.py task=… …``, for a shell; a task that this program does not have (yet) is a comment."""
    typed = " ".join(["python launch.py", *(shlex.quote(f"{key}={value}") for key, value in words.items())])
    return typed if words["task"] in places.choices("task") else f"# {typed}"


def script(found: Iterable[Converted]) -> str:
    """A shell script of all lines; what was not carried over stands above them as comments."""
    parts = [
        "#!/usr/bin/env bash",
        "# Converted from configs of the Tiny Ablation Lab; ends at the first line that fails.",
        "set -e",
    ]
    for one in found:
        parts += ["", f"# {one.file}", *(f"#   not carried over: {note}" for note in one.notes), *one.lines]
    return "\n".join(parts) + "\n"

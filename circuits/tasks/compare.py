"""``task=compare compare.of=[A,B,…]``: sweeps or runs side by side, from their saved files: what differs, what moved, how surely.

The first is the base. Artifacts are matched by layer and by the values of whatever any of the sweeps sweeps over, or of which a run
makes several artifacts a layer (sites); unlike data are refused, because a difference between them would say nothing about what was
changed. Written to ``outputs/compare/A,B/``. Effects of units (task=interventions) are compared one by one, and held to limits with
``compare.tolerance=device``: see :mod:`circuits.compare.units`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.files import disk_errors, write_atomic
from circuits.launch import sweep
from circuits.launch.keeping import moved
from circuits.launch.sweep import Sweep
from circuits.prose import put
from circuits.schema import BaseConfig
from circuits.schema.fields import named_file
from circuits.store import places
from circuits.store.kinds import Kind
from circuits.tasks import _compare
from circuits.tasks._compare import FREE, Tolerance
from circuits.words import number, visible

if TYPE_CHECKING:
    from circuits.compare.differences import Difference, Measure, One
    from circuits.compare.units import Joined
    from circuits.report.types import ArtifactRef, Element

SHOWN = 60  # rows in the terminal; the CSV has all


@dataclass
class Options:
    """Options of compare."""

    of: list[str] = field(default_factory=list)  # ids, names or directories; the first is the base
    force: bool = False  # also when data, model or number format differ
    tolerance: Tolerance | None = (
        None  # device: that and the number format may differ, and effects beyond limits exit 3
    )
    out: str | None = named_file(None)  # where to put page and CSV; null: outputs/compare/A,B


def run(cfg: BaseConfig) -> int:
    """Compare, show the table, write CSV and page."""
    from circuits.compare.differences import differences, unmatched, warnings
    from circuits.compare.terms import differing, unmeasured

    options: Options = getattr(cfg, "compare")  # noqa: B009 (joined to the schema at run time)
    sweeps = _sweeps(cfg, options.of)
    kind = sweep.kind_of(next(iter(sweeps.values())))
    elements = {label: moved.elements(found, Path(cfg.outputs) / "artifacts") for label, found in sweeps.items()}
    problems: list[str] = []
    ones = _ones(elements, problems)
    base, *others = ones
    units, unlike = _compare.units(elements, _value, problems)
    notes = _alike(ones, options.force, FREE.get(options.tolerance, ()) if options.tolerance else (), unlike)
    forced = len(notes)
    measures = _measures(kind, ones)
    found = [d for other in others for d in differences(ones[base], ones[other], measures)]
    effects = _compare.joined(units, options.tolerance, kind.name)
    if not found and not effects:
        raise UserError(_no_match(ones, base))
    notes += _compare.unmatched(effects, _shortened)
    for other in others if found else ():
        for mine, its in ((base, other), (other, base)):
            if left := unmatched(ones[mine], ones[its]):
                notes.append(f"Only in {mine}, not in {its}: {_shortened([str(one.place) for one in left])}.")
    notes += [note for other in others for note in unmeasured(ones[base], ones[other], measures)]
    configs = {label: [element.config for element in mine] for label, mine in elements.items()}
    at = {d.place for d in found}
    config = differing(
        {label: [one for one in mine if one.place in at or not found] for label, mine in ones.items()},
        configs,
        kind.asks,
    )
    warned = [*notes[:forced], *warnings(found)]
    notes = notes[forced:]
    out = Path(options.out) if options.out else Path(cfg.outputs) / "compare" / _folder(sweeps)
    page = _write(out, kind, sweeps, elements, ones, measures, found, config, warned, notes, effects, options.tolerance)
    _show(kind, sweeps, config, found, warned, [*notes, *problems], out, page, effects, options.tolerance)
    _compare.gate(effects, options.tolerance)
    return 0


# -- what is compared ------------------------------------------------------------------------------------------------


def _sweeps(cfg: BaseConfig, names: Sequence[str]) -> dict[str, Sweep]:
    """The named sweeps by a short label: the name where it is one sweep's only, else the id."""
    if len(names) < 2:
        raise UserError("compare.of: two or more sweeps or runs, compare.of=[A,B]; task=status lists them")
    found = [sweep.find(name, Path(cfg.outputs), Path(cfg.multirun), key="compare.of") for name in names]
    if len({one.path for one in found}) < len(found):
        raise UserError(f"compare.of=[{','.join(names)}]: the same sweep twice")
    tasks = [one.record["task"] for one in found]
    if len(set(tasks)) > 1:
        which = ", ".join(f"{one.id} is of task={task}" for one, task in zip(found, tasks, strict=True))
        raise UserError(f"compare.of: {which}; compare sweeps of one task")
    given = [one.record["name"] for one in found]
    return {name if name and given.count(name) == 1 else one.id: one for name, one in zip(given, found, strict=True)}


def _ones(elements: Mapping[str, Sequence[Element]], problems: list[str]) -> dict[str, list[One]]:
    """The artifacts of each sweep with what they are matched by; an artifact that two elements share counts once."""
    from circuits.compare.differences import One, Place
    from circuits.compare.terms import entered, variant_keys
    from circuits.report.saved import load_json

    everyone = [element for mine in elements.values() for element in mine]
    inner = dict.fromkeys(key for element in everyone for key in variant_keys(element.artifacts))
    whole = all(ref.layer is None for element in everyone for ref in element.artifacts)  # one artifact over all layers
    keys = list(dict.fromkeys([*(key for e in everyone for key in e.swept if whole or key != "layer"), *inner]))
    result: dict[str, list[One]] = {}
    for label, mine in elements.items():
        found: dict[Place, One] = {}
        for element in mine:
            for ref in element.artifacts:
                metrics = load_json(ref, "metrics.json", problems)
                if not metrics:
                    continue
                own = entered(ref) if inner else {}
                values = [own[key] if key in inner and key in own else _value(element, key) for key in keys]
                place = Place(ref.layer, tuple(zip(keys, values, strict=True)))
                one = found.setdefault(place, One(label, place, ref, {**_asked(element, ref), **metrics}))
                if one.ref.key != ref.key:
                    problems.append(f"{label}, {place}: {one.ref.label} is compared, {ref.label} is not")
        if not found:
            raise UserError(f"compare.of: {label} has nothing to compare; task=status of={label} says how it went")
        result[label] = list(found.values())
    return result


def _asked(element: Element, ref: ArtifactRef) -> Mapping[str, Any]:
    """The numbers that the element's status shows of an artifact, also those that depend on what was asked of it."""
    found = (a["metrics"] for a in element.status.get("artifacts") or [] if a.get("id") == ref.label)
    return next(found, {})


def _value(element: Element, key: str) -> str:
    """What `key` is in an element, swept or not: a value of the config, or the choice from a group."""
    value: Any = element.config
    for name in key.split("."):
        value = value.get(name, {}) if isinstance(value, Mapping) else {}
    if not isinstance(value, Mapping):
        return "null" if value is None else str(value)  # as resolved: 1e-3 and 0.001 are one
    return dict(word.split("=", 1) for word in element.overrides if "=" in word).get(key, places.default_choice(key))


def _measures(kind: Kind, ones: Mapping[str, Sequence[One]]) -> list[Measure]:
    """The columns of the kind's end table."""
    from circuits.compare.differences import Measure

    metrics = [one.metrics for mine in ones.values() for one in mine]
    return [
        Measure(c.metric, c.title(metrics), c.format, c.interval or f"{c.metric}_ci", c.exact) for c in kind.columns
    ]


def _alike(
    ones: Mapping[str, Sequence[One]], force: bool, besides: Sequence[str], unlike_prompts: Sequence[str]
) -> list[str]:
    """Refuse to compare unlike data, or say that it was forced. `besides`: keys that may differ.

    Raises:
        UserError: naming the keys that differ.
    """
    from circuits.compare.terms import unlike

    (base, mine), *others = ones.items()
    errors = [
        f"{base} and {label} are of unlike data or models: {', '.join(keys)}"
        for label, its in others
        if (keys := unlike(_without_layers(mine), _without_layers(its), besides))
    ]
    errors = errors or list(unlike_prompts)
    if errors and not force:
        raise UserError([f"compare.of: {error}; compare.force=true compares them nevertheless" for error in errors])
    return [f"Compared by force, although {error}: a difference may be that of the data." for error in errors]


def _without_layers(ones: Sequence[One]) -> list[One]:
    """Artifacts over sets of layers, to be matched whatever the sets."""
    places = [replace(one.place, swept=tuple(pair for pair in one.place.swept if pair[0] != "layer")) for one in ones]
    return [replace(one, place=place) for one, place in zip(ones, places, strict=True)]


def _no_match(ones: Mapping[str, Sequence[One]], base: str) -> str:
    """Why nothing could be compared."""
    shown = "; ".join(f"{label} has {_shortened([str(one.place) for one in mine])}" for label, mine in ones.items())
    return (
        f"compare.of: nothing of {base} matches, by layer and swept values, or no metric was measured in both: {shown}"
    )


# -- what is shown ---------------------------------------------------------------------------------------------------


def _write(
    out: Path,
    kind: Kind,
    sweeps: Mapping[str, Sweep],
    elements: Mapping[str, Sequence[Element]],
    ones: Mapping[str, Sequence[One]],
    measures: Sequence[Measure],
    found: Sequence[Difference],
    config: Mapping[str, Sequence[str]],
    warned: Sequence[str],
    notes: Sequence[str],
    effects: Sequence[Joined],
    tolerance: Tolerance | None,
) -> Path:
    """``compare.csv``, ``report.html`` and ``figures/``, of effects of units ``units.csv`` and ``ranks.csv``; the page's path."""
    from circuits.compare.differences import table
    from circuits.compare.page import build
    from circuits.report.types import ReportInput

    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(
        out / "compare.csv", table(found).to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
    )
    _compare.write(effects, out)
    labels = list(sweeps)
    command = f"python launch.py task=compare 'compare.of=[{','.join(one.id for one in sweeps.values())}]'"
    if warned and warned[0].startswith("Compared by force"):
        command += " compare.force=true"
    if tolerance is not None:
        command += f" compare.tolerance={tolerance.value}"
    sentence, blocks = _compare.page(effects, tolerance)
    members = [
        replace(element, index=number, name=f"{label}/{element.name}", swept={"sweep": label, **element.swept})
        for number, (label, element) in enumerate((label, e) for label, mine in elements.items() for e in mine)
    ]
    changed = f" that differ in {_shortened(list(config))}" if config else ", whose configs are equal"
    report = ReportInput(
        title=" against ".join([" and ".join(labels[1:]), labels[0]]),
        question=f"Which metrics moved between sweeps of task={kind.name}{changed}?",
        sweep_id=" ".join(one.id for one in sweeps.values()),
        command="\n".join(one.record["command"] for one in sweeps.values()),
        again=command,
        elements=members,
        created=max(one.record["created"] for one in sweeps.values()),
    )
    return build(
        report, out, sweeps=ones, measures=measures, found=found, config=config, warned=warned, notes=notes,
        verdict=sentence, units=blocks,
    )  # fmt: skip


def _show(
    kind: Kind,
    sweeps: Mapping[str, Sweep],
    config: Mapping[str, Sequence[str]],
    found: Sequence[Difference],
    warned: Iterable[str],
    notes: Iterable[str],
    out: Path,
    page: Path,
    effects: Sequence[Joined],
    tolerance: Tolerance | None,
) -> None:
    """What differs, the differences, and where the files are."""
    from circuits.compare.page import between, signed
    from circuits.console import Rows, console, relative

    terminal, (base, *others) = console(), list(sweeps)
    terminal.tell(f"compare · {kind.name} · {' and '.join(others)} against {base}")
    for warning in warned:
        terminal.tell(f"warning: {warning}")
    for key, values in config.items():
        shown = "   ".join(
            f"{label} {_shortened(value.split(', '))}" for label, value in zip(sweeps, values, strict=True)
        )
        terminal.tell(f"  {key}:  {shown}")
    swept = list(dict.fromkeys(key for d in found for key, _ in d.place.swept))
    several = len(others) > 1
    headings = ["layer", *swept, "metric", *(["sweep"] if several else []), base, "value" if several else others[0]]
    texts = [*range(1, len(headings) - 2), len(headings) + 2]
    table = Rows([*headings, "difference", "95% interval", "verdict"], texts)
    for d in found[:SHOWN]:
        place = [
            "–" if d.place.layer is None else str(d.place.layer),
            *(dict(d.place.swept).get(key, "–") for key in swept),
        ]
        values = [number(d.a, d.measure.format), number(d.b, d.measure.format)]
        moved = [signed(d.measure, d.value), between(d) or "–", d.verdict]
        table.add(*place, d.measure.heading, *([d.other.sweep] if several else []), *values, *moved)
    if found:
        terminal.table(table)
    if len(found) > SHOWN:
        terminal.tell(f"… and {len(found) - SHOWN} more, in the CSV and the report")
    _compare.show(effects, tolerance, terminal)
    for note in notes:
        put(f"note: {visible(note)}")
    terminal.tell(f"csv     {relative(out / 'compare.csv')}\nreport  {relative(page)}")


def _folder(sweeps: Mapping[str, Sweep]) -> str:
    """A directory's name from the sweeps' ids."""
    name = ",".join(found.id for found in sweeps.values())
    return re.sub(r"[^\w.,+-]+", "_", name)[:120]


def _shortened(names: Sequence[str], at_most: int = 6) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    between = "; " if any(", " in name for name in names) else ", "
    return between.join(names[:at_most]) + more

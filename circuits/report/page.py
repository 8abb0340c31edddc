"""The self-contained page of a sweep, and its figures as files.

`build` asks the section of every artifact kind for its part, puts the answer of the last kind in the data's way first,
and renders one HTML file that makes no request: styles, script, figures and data are inside. The figures are also
written to ``figures/`` as SVG, PNG and CSV. Equal input gives equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from circuits.drawing.style import Looks
from circuits.files import disk_errors, write_atomic
from circuits.report.checklist import checklist
from circuits.report.content import Cell, Column, Figure, Part, Table
from circuits.report.markdown import document
from circuits.report.provenance import provenance_blocks
from circuits.report.registry import Entry, View, sections
from circuits.report.resources import resources
from circuits.report.stages import stages
from circuits.report.types import ArtifactRef, Element, ReportInput
from circuits.report.words import plural, visible
from circuits.state import State, counts

TEMPLATES = Path(__file__).parent / "templates"
STATE_WORDS = {State.gate: "stopped at a gate"}
UNKNOWN_ORDER = 1000  # kinds without a section of their own come after all others


@dataclass(frozen=True)
class Failure:
    """An element that did not end well, as the first screen shows it."""

    index: int
    what: str
    state: str
    error: str
    log: str


def build(report: ReportInput, out: Path) -> Path:
    """Write ``out/report.html``, ``out/report.md`` and ``out/figures/*``; returns the page's path. Unreadable results are named."""
    looks = Looks(element.series for element in report.elements)
    entries, repeated = _entries(report.elements)
    first = stages(report.stages)
    parts = [*([first] if first is not None else []), *_parts(entries, looks), *_of_the_sweep(report)]
    refs = [e.ref for kind in entries.values() for e in kind]
    path = write(report, parts, out, refs, repeated)
    write_atomic(out / "report.md", document(report, parts, refs).encode())
    return path


def write(report: ReportInput, parts: list[Part], out: Path, refs: Sequence[ArtifactRef], repeated: int = 0) -> Path:
    """Write the page of these parts, whose numbers come from `refs`, and its figures; returns the page's path."""
    provenance, unread = provenance_blocks(report.elements, refs)
    problems = [problem for part in parts for problem in part.problems] + unread
    page = _render(report, parts, _first_screen(report, problems, repeated), provenance)
    figures = out / "figures"
    with disk_errors(figures):
        figures.mkdir(parents=True, exist_ok=True)
    for figure in (figure for part in parts for figure in part.figures):
        write_atomic(figures / f"{figure.name}.svg", figure.svg.encode())
        write_atomic(figures / f"{figure.name}.png", figure.png)
        write_atomic(figures / f"{figure.name}.csv", figure.csv.encode())
    path = out / "report.html"
    write_atomic(path, page.encode())
    return path


def _entries(elements: Sequence[Element]) -> tuple[dict[str, list[Entry]], int]:
    """Artifacts by kind, each once: two elements whose difference changes no result share an artifact."""
    asking: dict[str, tuple[ArtifactRef, list[Element]]] = {}
    for element in elements:
        for ref in element.artifacts:
            asking.setdefault(ref.key, (ref, []))[1].append(element)
    found: dict[str, list[Entry]] = {}
    for ref, (first, *others) in asking.values():
        found.setdefault(ref.kind, []).append(Entry(first, ref, tuple(others)))
    return found, sum(len(mine) - 1 for _, mine in asking.values())


def _parts(entries: dict[str, list[Entry]], looks: Looks) -> list[Part]:
    """One part per kind, in the order of the data's way."""
    known = sections(entries)
    order = sorted(entries, key=lambda kind: (known[kind].order if kind in known else UNKNOWN_ORDER, kind))
    return [
        known[kind].render(View(tuple(entries[kind]), looks)) if kind in known else _plain_part(kind, entries[kind])
        for kind in order
    ]


def _of_the_sweep(report: ReportInput) -> list[Part]:
    """What is told of the elements and not of an artifact."""
    found = (resources(report.costs, report.next_time), checklist(report.checks))
    return [part for part in found if part is not None]


def _plain_part(kind: str, entries: Sequence[Entry]) -> Part:
    """A kind that has no section is still listed."""
    columns = (Column("layer", True), Column("element"), Column("artifact"), Column("key"))
    rows = tuple(
        (
            Cell("–" if e.ref.layer is None else str(e.ref.layer), e.ref.layer),
            Cell(e.element.name, code=True),
            Cell(e.ref.label, code=True),
            Cell(e.ref.key, code=True),
        )
        for e in entries
    )
    return Part(f"Artifacts of kind {kind}", f"{plural(len(entries), 'artifact')}.", (Table(kind, columns, rows),))


def _first_screen(report: ReportInput, problems: list[str], repeated: int) -> dict[str, object]:
    """Everything on the first screen besides the answer."""
    failures = [
        Failure(e.index, _what(e), STATE_WORDS.get(e.state, e.state), _first_line(e.error), e.log)
        for e in report.elements
        if e.state.badly or e.state is State.gate
    ]
    return {
        "states": [(STATE_WORDS.get(state, state), n) for state, n in counts(e.state for e in report.elements).items()],
        "failures": failures,
        "again": any(e.state.badly for e in report.elements),  # a gate would say no again
        "unfinished": [(e.index, _what(e), e.state) for e in report.elements if e.state.live],
        "finished": sum(e.finished for e in report.elements),
        "problems": problems,
        "repeated": repeated,
        "notes": list(dict.fromkeys(str(e.config["note"]) for e in report.elements if e.config.get("note"))),
    }


def _what(element: Element) -> str:
    return ", ".join(f"{key}={value}" for key, value in element.swept.items()) or element.name


def _first_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[0] if lines else "no reason was recorded"


@lru_cache
def template() -> Template:
    """The page, compiled once in a process."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["svg"] = _svg
    environment.filters["visible"] = visible
    environment.filters["harmless"] = _harmless
    environment.filters["ours"] = Markup  # the marks of a legend: no text is in them
    return environment.from_string(_asset("page.html.j2"))


def _render(report: ReportInput, parts: Sequence[Part], first: dict[str, object], provenance: Sequence[object]) -> str:
    live = any(figure.live for part in parts for figure in part.figures)
    script, style = (_asset(f"page.{kind}") + (_asset(f"graph.{kind}") if live else "") for kind in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    answers = [part.answer for part in parts if part.answer]
    return template().render(
        report=report,
        parts=parts,
        provenance=provenance,
        answer=answers[-1] if answers else None,
        style=Markup(style),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        **first,
    )


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _harmless(data: str) -> Markup:
    """JSON as a script element holds it: nothing in it can end the element or begin another, and it reads back the same."""
    return Markup(data.translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}))


def _svg(figure: Figure) -> Markup:
    """Figures come from our own drawing, in which every text is escaped; nothing else enters the page unescaped."""
    return Markup(figure.inline)


def _data_uri(csv: str) -> str:
    return "data:text/csv;charset=utf-8," + quote(csv, safe=",;:=/.+-_()")

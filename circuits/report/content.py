"""What a section hands to the page: figures, tables and notes, in reading order, and perhaps the page's answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from circuits.report.cards import Cards


@dataclass(frozen=True)
class Figure:
    """A drawn figure in every form it is given out: a file, part of the page, and its data."""

    name: str
    title: str
    caption: str
    svg: str
    inline: str
    png: bytes
    csv: str
    legend: tuple[tuple[str, str], ...] = ()
    """Of more series than a drawing has room to name: each one's mark as SVG, and its name. The page folds it."""
    live: str = ""
    """JSON from which the page's script draws the figure anew, as one that answers to the reader; the drawing stays without it."""
    block = "figure"


@dataclass(frozen=True)
class Cell:
    """One table cell; `sort` orders it when its text would not."""

    text: str
    sort: float | str | None = None
    hint: str = ""
    code: bool = False


@dataclass(frozen=True)
class Column:
    """A column's heading; numbers are set to the right."""

    label: str
    numeric: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """A sortable table; `folded` puts it behind its title."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    folded: bool = False
    block = "table"


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str
    block = "note"


@dataclass(frozen=True)
class Listing:
    """Preformatted lines, folded behind their title."""

    title: str
    lines: tuple[str, ...]
    folded: bool = True
    block = "listing"


@dataclass(frozen=True)
class Drawing:
    """An SVG of boxes and arrows that we made ourselves, every text in it escaped."""

    svg: str
    block = "drawing"


@dataclass(frozen=True)
class Tile:
    """One picture of a gallery: its PNG as base64, a heading, and lines of text by language."""

    png: str
    heading: str
    lines: tuple[tuple[str, str], ...] = ()
    """(language code, text): ``ar`` is set from right to left."""


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side under a title."""

    title: str
    tiles: tuple[Tile, ...]
    caption: str = ""
    block = "gallery"


Block = Figure | Table | Note | Listing | Cards | Drawing | Gallery


@dataclass(frozen=True)
class Answer:
    """The first screen of the page: a sentence, one figure, one table."""

    sentence: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Part:
    """One section of the page. `problems` are the files that could not be read, one line each."""

    title: str
    lead: str
    blocks: tuple[Block, ...]
    answer: Answer | None = None
    problems: tuple[str, ...] = field(default=())

    def beside(self, other: Part) -> Part:
        """One part of both: this one's answer stands first, the other's is told after its blocks."""
        told: list[Block] = [Note(other.answer.sentence), *other.answer.blocks] if other.answer else []
        lead = " ".join(text for text in (self.lead, other.lead) if text)
        return replace(
            self,
            lead=lead,
            blocks=(*self.blocks, *told, *other.blocks),
            problems=(*self.problems, *other.problems),
        )

    @property
    def figures(self) -> list[Figure]:
        """All figures, those of the answer first."""
        first = self.answer.blocks if self.answer else ()
        return [block for block in (*first, *self.blocks) if isinstance(block, Figure)]

"""One figure being drawn: matplotlib without pyplot, margins in inches, a legend above, hover texts, the files.

Fixed margins instead of a layout engine: the same input gives the same bytes, and thirty panels take no longer to
arrange than one.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from circuits.drawing.style import INK, MUTED, PAPER, RC, Look, Looks
from circuits.drawing.svg import inline_svg, swatch
from circuits.report.content import Figure

WIDTH = 9.5
LEFT, RIGHT, TOP, BOTTOM = 0.62, 0.12, 0.08, 0.42
LEGEND_ROW = 0.165
LEGEND = 8  # entries at most; more are named beside the figure, behind a fold
Shown = Literal["both", "marks", "lines"]
PNG_DPI = 160


class Sheet:
    """A canvas `height` inches high (legend excluded) with a grid of panels below a legend for `series`.

    Beyond `LEGEND` series the drawing names none of them: the page does, behind a fold. `control` is what the control is called
    where one is drawn (or each of several), `plain` what is measured where nothing sets series apart. `own_x`, `own_y`: every
    panel has such an axis of its own.
    """

    def __init__(
        self,
        name: str,
        looks: Looks,
        series: Sequence[str],
        *,
        height: float,
        width: float = WIDTH,
        grid: tuple[int, int] = (1, 1),
        titled: bool = False,
        control: str | Sequence[str] = "",
        plain: str = "",
        shown: Shown = "both",
        bottom: float = BOTTOM,
        own_x: bool = False,
        own_y: bool = False,
    ) -> None:
        self.name = name
        self._legend: tuple[tuple[str, str], ...] = ()
        self._titles: dict[str, str | list[str]] = {}
        self._ids = count()
        self._controls = [control] * bool(control) if isinstance(control, str) else list(control)
        if len(series) > LEGEND:
            self._legend = tuple((swatch(looks[label], shown), label) for label in series)
            series = []
        handles = _handles(looks, series, self._controls, plain, shown)
        columns = _legend_columns(handles, width)
        legend = LEGEND_ROW * -(-len(handles) // columns) + 0.06 if handles else 0.0
        total = height + legend
        self.canvas = Canvas(figsize=(width, total))
        top = 1 - (TOP + legend + (0.08 if titled else 0.0)) / total
        rows, cols = grid
        self.panels: np.ndarray = self.canvas.subplots(
            rows,
            cols,
            squeeze=False,
            sharex=rows * cols > 1 and not own_x,
            sharey=rows * cols > 1 and not own_y,
            gridspec_kw={
                "left": LEFT / width,
                "right": 1 - RIGHT / width,
                "bottom": bottom / total,
                "top": top,
                "wspace": 0.26 if own_y else 0.15,
                "hspace": 0.62 if own_x else 0.34,
            },
        )
        if handles:
            self.canvas.legend(
                handles=handles,
                loc="upper left",
                bbox_to_anchor=((LEFT - 0.08) / width, 1 - 0.05 / total),
                ncols=columns,
                frameon=False,
                borderpad=0,
                borderaxespad=0,
                handlelength=2.2,
                columnspacing=1.6,
                labelspacing=0.3,
            )

    @property
    def axes(self) -> Axes:
        """The only panel of a figure that has one."""
        axes: Axes = self.panels[0, 0]
        return axes

    def control(
        self,
        axes: Axes,
        xs: ArrayLike,
        ys: ArrayLike,
        *,
        name: str = "",
        hover: Sequence[str] = (),
        joined: bool = False,
        small: bool = False,
        over_y: tuple[ArrayLike, ArrayLike] | None = None,
        over_x: tuple[ArrayLike, ArrayLike] | None = None,
        zorder: float = 2,
    ) -> None:
        """What a result is held against, in grey: the control called `name`, or the only one.

        `joined`: a line through the marks; `small`: each mark is one draw of many. `over_y`: a band between two curves over `xs`,
        `over_x`: a bar from left to right in each row.
        """
        style = control_marks(self._controls.index(name) if name else 0)
        if over_y is not None:
            axes.fill_between(xs, *over_y, color=MUTED, alpha=0.16, linewidth=0, zorder=zorder - 1)
        if over_x is not None:
            axes.hlines(ys, *over_x, color=MUTED, linewidth=5.0, alpha=0.3, zorder=zorder - 1)
        if not joined:
            style["linestyle"] = "none"
        if small:
            style |= {"markersize": 2.7, "markeredgewidth": 0.6, "alpha": 0.8}
        (artist,) = axes.plot(xs, ys, **style, zorder=zorder)
        if len(hover):
            self.tell(artist, list(hover))

    def tell(self, artist: Artist, text: str | list[str]) -> None:
        """Show `text` when a reader points at `artist`: one text, or one for each marker of a line."""
        gid = f"tell-{next(self._ids)}"
        artist.set_gid(gid)
        self._titles[gid] = text

    def finish(self, *, title: str, caption: str, alt: str, data: pd.DataFrame) -> Figure:
        """Write the drawing out in every form, with `data` as its CSV."""
        svg, png = io.StringIO(), io.BytesIO()
        with mpl.rc_context({**RC, "svg.hashsalt": self.name}):
            self.canvas.savefig(svg, format="svg", metadata={"Date": None})
            self.canvas.savefig(png, format="png", dpi=PNG_DPI)
        text = svg.getvalue()
        inline = inline_svg(text, self.name, self._titles, alt)
        table = data.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        return Figure(self.name, title, caption, text, inline, png.getvalue(), table, self._legend)


@contextmanager
def drawing() -> Iterator[None]:
    """The house style while a figure is drawn; matplotlib's own settings are back afterwards."""
    with mpl.rc_context(RC):
        yield


def _handles(looks: Looks, series: Sequence[str], controls: Sequence[str], plain: str, shown: Shown) -> list[Line2D]:
    """Nothing to tell apart, nothing to explain: a single unnamed series without a control has no legend."""
    if not controls and list(series) == [""]:
        return []
    styles = {"both": joined, "marks": marks, "lines": stroke}
    made = [Line2D([], [], label=label or plain, **styles[shown](looks[label])) for label in series]
    made += [Line2D([], [], label=f"{name} (control)", **control_marks(i)) for i, name in enumerate(controls)]
    return made


def marks(look: Look) -> dict[str, Any]:
    """Arguments of a series drawn as markers."""
    return {
        "linestyle": "none",
        "marker": look.marker,
        "markersize": 4.2,
        "markeredgecolor": PAPER,
        "markeredgewidth": 0.5,
        "color": look.color,
    }


def stroke(look: Look) -> dict[str, Any]:
    """Arguments of a series drawn as a line."""
    return {"color": look.color, "linestyle": look.dash, "linewidth": 1.2}


def joined(look: Look) -> dict[str, Any]:
    """Arguments of a series of markers joined by a line, thin because the markers carry the values."""
    return marks(look) | stroke(look) | {"linewidth": 0.9}


def control_marks(number: int = 0) -> dict[str, Any]:
    """Arguments of a control, the first or the second of a figure: hollow and grey, so that no result looks like one."""
    marker, dash = (("D", (0, (2, 2))), ("s", (0, (1, 1.2))))[number]
    return {
        "color": MUTED,
        "marker": marker,
        "markersize": 3.4,
        "markerfacecolor": PAPER,
        "markeredgecolor": MUTED,
        "markeredgewidth": 0.9,
        "linestyle": dash,
        "linewidth": 0.9,
    }


def reference(axes: Axes, *, x: float | None = None, y: float | None = None, dashed: bool = False) -> None:
    """A grey line where nothing has changed, or at another value to compare with, behind what is drawn."""
    style: dict[str, Any] = {"color": MUTED, "linewidth": 0.7, "zorder": 0.5}
    if dashed:
        style["linestyle"] = (0, (2, 2))
    if x is not None:
        axes.axvline(x, **style)
    if y is not None:
        axes.axhline(y, **style)


def identity(axes: Axes, low: float, high: float, *, dashed: bool = False) -> None:
    """The grey line on which both axes say the same."""
    axes.plot([low, high], [low, high], color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)) if dashed else "-", zorder=1)


def _legend_columns(handles: list[Line2D], width: float) -> int:
    """The most columns that fit, each as wide as its longest label (matplotlib fills columns from the top)."""
    for columns in range(len(handles), 1, -1):
        longest = [max(len(str(h.get_label())) for h in part) for part in _filled(handles, columns)]
        if sum(0.07 * n + 0.58 for n in longest) <= width - LEFT:
            return columns
    return 1


def _filled(handles: list[Line2D], columns: int) -> list[list[Line2D]]:
    """The handles of each column: those that are left over stand in the first ones."""
    rows, more = divmod(len(handles), columns)
    ends = [rows * i + min(i, more) for i in range(columns + 1)]
    return [handles[start:end] for start, end in itertools.pairwise(ends)]


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Axis labels in ink, without mathematics in them."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)

"""What is measured of both directions of bias against what was planted, where a sweep has several strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from circuits.drawing.style import Looks
from circuits.report.content import Figure
from circuits.report.registry import Entry
from circuits.report.sheet import Sheet, drawing, identity, joined, label_axes, reference
from circuits.report.words import decimal, plural

PLANTED = {
    "model.embedded.scenes.context_bias": "context_to_gender",
    "model.embedded.scenes.word_bias": "gender_to_words",
}
"""The key that plants each direction."""
TITLES = {"context_to_gender": "context → gender", "gender_to_words": "gender → words"}
LEAST = 3


def planted(measured: Sequence[tuple[Entry, Mapping[str, Any]]]) -> list[Figure]:
    """A figure for each swept strength: both directions with their intervals, the planted one rising, the other flat."""
    found = []
    for key, direction in PLANTED.items():
        rows = []
        for entry, metrics in measured:
            strength = _number(entry.element.swept.get(key))
            for name in TITLES:
                if strength is not None and metrics.get(name):
                    one = metrics[name]
                    rows.append((strength, name, one["value"], one["ci"][0], one["ci"][1], entry.ref.label))
        table = pd.DataFrame(rows, columns=["planted", "direction", "measured", "low", "high", "artifact"])
        if table["planted"].nunique() >= LEAST:
            found.append(_figure(f"planted-{direction}", direction, table.sort_values(["direction", "planted"])))
    return found


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _hover(title: str, row: Mapping[Any, Any]) -> str:
    return f"{title}: {decimal(row['measured'], 2)} [{decimal(row['low'], 2)}, {decimal(row['high'], 2)}] at {row['planted']:g}"


def _figure(name: str, direction: str, table: pd.DataFrame) -> Figure:
    looks = Looks(TITLES.values())
    with drawing():
        sheet = Sheet(name, looks, list(TITLES.values()), height=3.0)
        axes = sheet.axes
        identity(axes, table["planted"].min(), table["planted"].max(), dashed=True)
        for key, title in TITLES.items():
            mine = table[table["direction"] == key]
            axes.vlines(mine["planted"], mine["low"], mine["high"], color=looks[title].color, linewidth=1.1)
            (artist,) = axes.plot(mine["planted"], mine["measured"], **joined(looks[title]))
            sheet.tell(artist, [_hover(title, row) for row in mine.to_dict("records")])
        reference(axes, y=0)
        label_axes(axes, f"planted {TITLES[direction]}", "measured difference")
    other = next(title for key, title in TITLES.items() if key != direction)
    caption = (
        f"Both directions in models trained with {plural(table['planted'].nunique(), 'strength')} of {TITLES[direction]}; bars: "
        f"95% intervals over groups of pictures; dashed: measured as planted. {other} was not planted anew."
    )
    return sheet.finish(
        title=f"Planted {TITLES[direction]}, and what is measured", caption=caption,
        alt=f"Measured bias against planted {TITLES[direction]}", data=table,
    )  # fmt: skip

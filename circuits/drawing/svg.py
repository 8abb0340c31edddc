"""A drawn SVG file made fit to stand inside a page.

Several figures share one document there, so every id that is referred to gets the figure's name in front and every
other id goes; a style sheet would reach the whole page, so it becomes an attribute; colours become CSS variables (the
drawn colour as fallback), so that the page's dark scheme reaches them; titles are added, which browsers show on hover.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from circuits.drawing.style import CSS_NAMES, Look

LARGEST, SMALLEST = 1.56, 1.1  # CSS pixels per point of the drawing: text of 8 points is 12.5 and 8.8 pixels high

_MARKS = {  # of a legend, 8 units wide around the origin
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M-3.6-3.6h7.2v7.2h-7.2z",
    "^": "M0-4.2L4.2 3.8H-4.2z",
    "v": "M0 4.2L4.2-3.8H-4.2z",
    "D": "M0-4.8L4.8 0L0 4.8L-4.8 0z",
    "P": "M-1.4-4.2h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8v-2.8h2.8z",
    "X": "M-4.2-2.2L-2.2-4.2L0-2L2.2-4.2L4.2-2.2L2 0L4.2 2.2L2.2 4.2L0 2L-2.2 4.2L-4.2 2.2L-2 0z",
}
_HREF = "{http://www.w3.org/1999/xlink}href"
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_FONT = re.compile(r"font-family:[^;]*;?\s*")
_COLOR = re.compile("|".join(CSS_NAMES), re.IGNORECASE)
_URL = re.compile(r"url\(#([^)]+)\)")
_UNTURNED = re.compile(r"rotate\(-?0 [^)]*\)")


def inline_svg(svg: str, name: str, titles: Mapping[str, str | Sequence[str]], alt: str) -> str:
    """`svg` as an element of an HTML page. `titles` maps a gid to one hover text or to one for each of its markers."""
    root = ET.fromstring(svg)
    for parent in root.iter():
        parent.tag = parent.tag.rpartition("}")[2]
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    _add_titles(root, titles)
    _rename_ids(root, name)
    for element in root.iter():
        _tidy(element)
    view = root.attrib["viewBox"]
    points = float(view.split()[2])
    # Wide figures shrink with the page down to where their text can still be read, then scroll; small ones do not grow.
    size = f"max-width: {points * LARGEST:.0f}px; min-width: {points * SMALLEST:.0f}px"
    style = f"stroke-linejoin: round; stroke-linecap: butt; {size}"
    root.attrib.clear()
    root.attrib.update({"viewBox": view, "role": "img", "aria-label": alt, "style": style})
    return ET.tostring(root, encoding="unicode")


def _add_titles(root: ET.Element, titles: Mapping[str, str | Sequence[str]]) -> None:
    for element in root.iter("g"):
        wanted = titles.get(element.get("id", ""))
        if wanted is None:
            continue
        if isinstance(wanted, str):
            _title(element, wanted)
            continue
        markers = list(element.iter("use"))
        if len(markers) != len(wanted):
            raise ValueError(f"{element.get('id')}: {len(wanted)} hover texts for {len(markers)} markers")
        for marker, text in zip(markers, wanted, strict=True):
            _title(marker, text)


def _title(element: ET.Element, text: str) -> None:
    title = ET.Element("title")
    title.text = text
    element.insert(0, title)


def _rename_ids(root: ET.Element, name: str) -> None:
    used = set(_URL.findall(" ".join(value for e in root.iter() for value in e.attrib.values())))
    used |= {e.attrib[_HREF].removeprefix("#") for e in root.iter() if _HREF in e.attrib}
    for element in root.iter():
        if _HREF in element.attrib:
            element.set("href", f"#{name}-{element.attrib.pop(_HREF).removeprefix('#')}")
        for key, value in element.attrib.items():
            if "url(#" in value:
                element.set(key, _URL.sub(rf"url(#{name}-\1)", value))
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")


def _tidy(element: ET.Element) -> None:
    element.tail = None
    if element.text and not element.text.strip():
        element.text = None
    if style := element.get("style"):
        style = _FONT.sub("", style)
        style = _COLOR.sub(lambda found: f"var({CSS_NAMES[found[0].lower()]},{found[0]})", style)
        element.set("style", style.replace("; ", ";").replace(": ", ":").rstrip("; "))
    for key in ("d", "x", "y", "transform"):
        if value := element.get(key):
            value = _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
            element.set(key, " ".join(value.split()))
    if _UNTURNED.fullmatch(element.get("transform", "")):
        del element.attrib["transform"]


def swatch(look: Look, shown: str) -> str:
    """The mark of a series as a legend shows it: `shown` are its ``lines``, its ``marks`` or both."""
    colour = f"var({CSS_NAMES[look.color]},{look.color})"
    parts = []
    if shown != "marks":
        dash = "" if look.dash == "-" else f' stroke-dasharray="{" ".join(f"{1.5 * n:g}" for n in look.dash[1])}"'
        parts.append(f'<path d="M-14 0H14" style="stroke:{colour};stroke-width:1.5"{dash}/>')
    if shown != "lines":
        parts.append(f'<path d="{_MARKS[look.marker]}" style="fill:{colour}"/>')
    return f'<svg class="mark" viewBox="-15 -6 30 12" aria-hidden="true">{"".join(parts)}</svg>'

"""Numbers and texts as a person reads them: one form for each, in the terminal, in logs and in reports. Standard library only."""

from __future__ import annotations

import math
import re
import unicodedata

ABSENT = "–"


def decimal(value: float | None, digits: int = 3) -> str:
    """A fixed number of decimals; ``–`` when there is no value."""
    if value is None:
        return ABSENT
    return f"{value:.{digits}f}" if math.isfinite(value) else str(value)


def whole(value: float | None) -> str:
    """A count, exact, with separated thousands: ``1,500``, ``50,000,000``."""
    return ABSENT if value is None else f"{round(value):,}"


def half_width(value: float, interval: tuple[float, float]) -> float:
    """The larger arm of an interval, which is what ``±`` states."""
    return max(interval[1] - value, value - interval[0], 0.0)


def plus_minus(
    value: float | None, interval: tuple[float, float] | None, digits: int = 3, percent: bool = False
) -> str:
    """``0.942 ± 0.001``, ``94.2% ± 0.1%``; more decimals where the arm would be rounded to nothing."""
    times, sign = (100, "%") if percent else (1, "")
    if value is None or not math.isfinite(value) or interval is None or not all(map(math.isfinite, interval)):
        return ABSENT if value is None else f"{times * value:.{digits}f}{sign}"
    arm = times * half_width(value, interval)
    most = digits + 2
    while 0 < arm < 0.5 * 10**-digits and digits < most:
        digits += 1
    return f"{times * value:.{digits}f}{sign} ± {arm:.{digits}f}{sign}"


def number(value: float | None, form: str, interval: tuple[float, float] | None = None, sign: str = "") -> str:
    """A measured value as its column says, with its interval where it has one: ``0.942 ± 0.001`` (``.3f``), ``61.2%`` (``.1%``),
    ``1.3 GB`` (``size``, of a value in units of 10⁹ bytes). `sign`: ``+`` for differences."""
    if value is None:
        return ABSENT
    if form == "size":
        return f"{sign if value >= 0 else ''}{size(1e9 * value)}"
    fixed = re.fullmatch(r"\.(\d+)([f%])", form)
    if interval is not None and fixed and not sign:
        return plus_minus(value, interval, int(fixed[1]), fixed[2] == "%")
    return format(value, f"{sign}{form}")


def size(count: float | None) -> str:
    """Bytes in the unit that suits them, of 1000: ``812 B``, ``369 kB``, ``1.5 GB``, ``15.2 TB``; at least two digits are shown."""
    if count is None:
        return ABSENT
    if abs(count) < 999.5:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if abs(count) < 999.5 or unit == "TB":
            break
    return f"{count:.1f} {unit}" if abs(count) < 99.95 else f"{count:.0f} {unit}"


def duration(seconds: float | None) -> str:
    """``1.5 s``, ``41 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds is None:
        return ABSENT
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def left(seconds: float) -> str:
    """A time that is still to come, no finer than it is known: ``8 s``, ``2 min 10 s``, ``35 min``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    step = 10 if seconds < 600 else 60 if seconds < 3600 else 300
    total = round(seconds / step) * step
    if total < 600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 60} min" if total < 3600 else f"{total // 3600} h {total % 3600 // 60:02d} min"


#: Signs for what cannot be seen, or would move a terminal's cursor.
_SIGNS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\x7f": "␡"}


def visible(text: str) -> str:
    """`text` on one line: line ends, tabs and other control characters as signs (``⏎``, ``⇥``, ``␛``), halves of surrogate pairs
    as their code. A prompt's text can then neither break a table nor command a terminal."""
    if text.isprintable():
        return text
    return "".join(_sign(character) for character in text)


def _sign(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if 0x80 <= code < 0xA0:
        return f"\\x{code:02x}"
    if 0xD800 <= code < 0xE000:
        return f"\\u{code:04x}"
    hidden = unicodedata.category(character) in ("Zl", "Zp") or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return (
        f"\\u{code:04x}" if hidden else character
    )  # line ends of Unicode, and what turns the direction of what follows


def reason(error: BaseException, most: int = 120) -> str:
    """What an error of a library says, for one of our lines: its first line, cut between words where it is long."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= most else f"{line[:most].rpartition(' ')[0] or line[:most]} …"


def one_line(text: str) -> str:
    """A message of several lines as one: ``; `` between them."""
    return visible("; ".join(line.strip() for line in text.splitlines() if line.strip()))


def markdown(text: str) -> str:
    """`text` on one line, with nothing in it that Markdown or HTML would read."""
    return re.sub(r"([\\`*<>|\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def markdown_code(text: str) -> str:
    """`text` on one line as code, whatever backticks it has."""
    plain = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    pad = " " if "`" in plain else ""
    return f"{fence}{pad}{plain}{pad}{fence}"

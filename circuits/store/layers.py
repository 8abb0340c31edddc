"""The `layer` grammar: one key, one function.

==================  =====================================================
``15``              one layer
``[10,12]``         a list; its members may be ranges: ``[0-8,14]``
``10-24``           a range, both ends included
``all``             every layer of the model
``key9``            a named set of the model (``model.sets``)
==================  =====================================================

A *set* is served inside one run. A *sweep* is Hydra's (``layer=range(10,25)``, ``layer=0-8,9-16``): it makes one element
per value, and each element's value follows this grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from circuits.errors import UserError, suggest

_NUMBER = re.compile(r"0|[1-9][0-9]*")
_RANGE = re.compile(r"(0|[1-9][0-9]*)-(0|[1-9][0-9]*)")
MOST = 10_000  # layers: a slip of the finger must not fill the memory
_FORMS = "15, [10,12], [0-8,14], 10-24 or all"


class LayerOutOfRange(UserError):
    """Some of the layers asked for are not in the model."""

    def __init__(self, value: Any, outside: list[int], depth: int) -> None:
        self.outside, self.depth = outside, depth
        super().__init__(f"layer={_show(value)}: {ranges(outside)} out of range: {depth} layers (0-{depth - 1})")


def parse_layers(value: Any, depth: int | None, sets: Mapping[str, Sequence[int]] | None = None) -> tuple[int, ...]:
    """The canonical layers that `value` names: sorted, distinct. `10`, `[10]` and `10-10` are one.

    Args:
        value: what was given for `layer=`.
        depth: the model's number of layers; None when it cannot be known, then bounds are not checked.
        sets: the model's named sets.

    Raises:
        UserError: not in the grammar, empty, or out of range (the message names the depth).
    """
    layers = sorted(set(_members(value, value, depth, sets or {})))
    if not layers:
        raise UserError(f"layer={_show(value)}: no layer named; write {_FORMS}")
    if depth is not None and layers[-1] >= depth:
        raise LayerOutOfRange(value, [layer for layer in layers if layer >= depth], depth)
    return tuple(layers)


def _members(value: Any, whole: Any, depth: int | None, sets: Mapping[str, Sequence[int]]) -> Iterable[int]:
    if isinstance(value, (bool, float)) or value is None:
        raise UserError(f"layer={_show(whole)}: {_show(value)} is no layer; write {_FORMS}")
    if isinstance(value, int):
        if value < 0:
            raise UserError(f"layer={_show(whole)}: {value} is negative; layers count from 0")
        return [value]
    if isinstance(value, (list, tuple)):
        return [layer for member in value for layer in _members(member, whole, depth, sets)]
    text = str(value).strip()
    if text == "all":
        if depth is None:
            raise UserError("layer=all needs a model whose depth is known")
        return range(depth)
    if text in sets:
        return list(sets[text])
    if _NUMBER.fullmatch(text):
        return [int(text)]
    if match := _RANGE.fullmatch(text):
        first, last = int(match[1]), int(match[2])
        if first > last:
            raise UserError(f"layer={_show(whole)}: {text} runs backwards; write {last}-{first}")
        if last >= MOST:
            raise UserError(f"layer={_show(whole)}: {text}: no model has {last + 1} layers")
        return range(first, last + 1)
    if re.search(r"[‐-―−]", text):
        raise UserError(
            f"layer={_show(whole)}: {text} has a dash that is no hyphen; write {re.sub('[‐-―−]', '-', text)}"
        )
    if re.fullmatch(r"0[0-9]+", text):
        raise UserError(f"layer={_show(whole)}: {text} has a leading zero; write {int(text)}")
    named = suggest(text, [*sets, "all"], "named sets") if sets else ""
    raise UserError(f"layer={_show(whole)}: {text or 'nothing'} is no layer; write {_FORMS}{named}")


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_show(member) for member in value) + "]"
    return str(value)


def ranges(layers: Sequence[int]) -> str:
    """``0-3,7`` for (0, 1, 2, 3, 7): the short way to write layers, itself in the grammar for one range."""
    parts: list[list[int]] = []
    for layer in sorted(set(layers)):
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)

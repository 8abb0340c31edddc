"""Passes that are cut at chosen steps, and go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuits.data.keeper import Keeper


class Stop(BaseException):
    """What ends a pass here."""


def stopping_after(steps: int, paths: dict[Any, Path]) -> Keeper[Any]:
    """A keeper that is asked to stop at its `steps`-th step; what is said is in ``said``."""
    told: list[int] = []

    def stop() -> None:
        raise Stop

    return Keeper(paths, stopping=lambda: len(told) >= steps - 1, stop=stop, tell=lambda done, total: told.append(done))


def in_pieces(paths: dict[Any, Path], work: Callable[[Keeper[Any]], Any], cuts: tuple[int, ...]) -> Any:
    """What `work` gives when it is stopped at each of these steps, and then let through."""
    for cut in cuts:
        with pytest.raises(Stop):
            work(stopping_after(cut, paths))
    said: list[str] = []
    found = work(Keeper(paths, say=said.append))
    assert len(said) == 1 and said[0].startswith("goes on at "), said
    return found

"""What can go wrong, as one line: the value, the limit, the choices or the command that mends it.

Every error a person is meant to act on is a :class:`CircuitsError`. It is shown as ``error: <message>`` without a
traceback (that goes to the log, but for wrong input whose line says it all) and its class decides the exit code:

====  =====================================================
0     done
1     failed while running (:class:`RunError`)
2     wrong input, nothing was started (:class:`UserError`)
3     a gate said no (:class:`GateError`)
====  =====================================================

This module is standard library only, so that every room of the house may raise these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class CircuitsError(Exception):
    """Base of all errors whose message is written for the person at the terminal."""

    exit_code = 1


class UserError(CircuitsError):
    """Wrong input, found before anything started. Several findings are kept apart in ``messages``, each once."""

    exit_code = 2

    def __init__(self, messages: str | Sequence[str]) -> None:
        self.messages = [messages] if isinstance(messages, str) else list(dict.fromkeys(messages))
        super().__init__("\n".join(self.messages))


class RunError(CircuitsError):
    """A run that started and could not finish; the last checkpoint is kept."""

    exit_code = 1


class NonFinite(RunError):
    """A NaN or infinity in an activation or a loss; the message names the site, the layer and the sample or step."""


class OutOfMemory(RunError):
    """Device or host memory ran out; the message names the key to lower."""


class DiskFull(RunError):
    """A write failed for want of space or permission; the message names the place."""


class Damaged(RunError):
    """A file of ours is truncated or altered; the message names it. Whoever asked rebuilds it."""


class GateError(CircuitsError):
    """A measurement stayed below its gate. What was measured is committed; the run exits 3."""

    exit_code = 3


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice a person most likely meant by `word`, or None when nothing is close."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def suggest(word: str, choices: Iterable[str], noun: str = "choices") -> str:
    """``"; did you mean x? choices: a b x"`` for the end of an error line."""
    choices = sorted(choices)
    near = nearest(word, choices)
    hint = f"; did you mean {near}?" if near else ";"
    return f"{hint} {noun}: {' '.join(choices)}"

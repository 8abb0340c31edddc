"""Signals of a running element, handled the same here and on a cluster. Installed before anything heavy is imported.

========  ===========================================================================================
USR2      time is nearly up or the node is wanted: checkpoint at the next safe point (a cluster requeues)
TERM INT  checkpoint at the next safe point and exit; never requeued
EOF       the launcher is gone (its end of our standard input closed): as TERM
========  ===========================================================================================

Handlers only set a flag; the task looks at it between steps. A second TERM (not the same one, which a scheduler sends to the
whole group and its shell passes on), or `grace_s` seconds without reaching a safe point after the launcher has gone, ends the
process at once: periodic checkpoints are what is relied on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

#: Set by a launcher that holds the other end of our standard input.
PARENT_PIPE = "CIRCUITS_PARENT_PIPE"
SAME_SIGNAL_S = 1.0  # a TERM that comes within this is the first one again


class Stopped(BaseException):
    """Raised at a safe point after a stop was asked for. Not an Exception: no handler of errors may swallow it."""


class StopFlag:
    """Whether, and why, this element was asked to stop."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._first = 0.0  # when the first signal came

    def install(self, grace_s: float = 30.0) -> StopFlag:
        """Install the handlers; watch the launcher when it holds our standard input."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._handle)
        if os.environ.get(PARENT_PIPE):
            threading.Thread(target=self._watch_parent, args=(grace_s,), name="parent-watch", daemon=True).start()
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            self.reason = self.reason or "SIGUSR2"  # repeated until we end; whoever was cancelled stays cancelled
            return
        if self.reason in ("SIGTERM", "SIGINT") and time.monotonic() - self._first > SAME_SIGNAL_S:
            os._exit(128 + number)
        if self.reason not in ("SIGTERM", "SIGINT"):
            self._first = time.monotonic()
        self.reason = signal.Signals(number).name

    def _watch_parent(self, grace_s: float) -> None:
        try:
            while os.read(sys.stdin.fileno(), 1):
                pass
        except OSError:
            pass
        if self.reason is None:
            self.reason = "the launcher is gone"
        timer = threading.Timer(grace_s, os._exit, args=(128 + signal.SIGTERM,))
        timer.daemon = True
        timer.start()

    def check(self) -> None:
        """A safe point without anything to save.

        Raises:
            Stopped: a stop was asked for.
        """
        if self.reason is not None:
            raise Stopped(self.reason)

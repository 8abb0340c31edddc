"""Signals of a running element, handled the same here and on a cluster. Installed before anything heavy is imported.

========  ===========================================================================================
USR2      time is nearly up or the node is wanted: checkpoint at the next safe point (a cluster requeues)
TERM INT  checkpoint at the next safe point and exit; never requeued
EOF       the launcher is gone (its end of our standard input closed): as TERM
========  ===========================================================================================

A handler sets a flag, and the task looks at it at its safe points. Where nothing is worth saving (:meth:`StopFlag.cutting`: a model
is loaded, a file is hashed), the handler ends the work where it stands. A second TERM (not the same one, which a scheduler sends to
the whole group and its shell passes on), or `grace_s` seconds without reaching a safe point after the launcher has gone, ends the
process at once, with a last word: periodic checkpoints are what is relied on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

#: Set by a launcher that holds the other end of our standard input.
PARENT_PIPE = "CIRCUITS_PARENT_PIPE"
#: Set by a script that was sent USR2 before it began us.
ASKED = "CIRCUITS_ASKED"
SAME_SIGNAL_S = 1.0  # a TERM that comes within this is the first one again
ENDING = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Raised at a safe point after a stop was asked for. Not an Exception: no handler of errors may swallow it."""


class StopFlag:
    """Whether, and why, this element was asked to stop."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.last_words: list[Callable[[str], None]] = []
        """Told why, when the process has to end without reaching a safe point."""
        self._first: float | None = None  # when the first TERM or INT came
        self._cutting, self._cut = False, False

    def install(
        self, grace_s: float = 30.0, numbers: Sequence[int] = (*ENDING, signal.SIGUSR2), watch: bool = True
    ) -> StopFlag:
        """Install the handlers; `watch` the launcher when it holds our standard input."""
        for number in numbers:
            signal.signal(number, self._handle)
        if os.environ.pop(ASKED, "") and signal.SIGUSR2 in numbers:
            self.reason = self.reason or signal.SIGUSR2.name
        if watch and os.environ.get(PARENT_PIPE):
            threading.Thread(target=self._watch_parent, args=(grace_s,), name="parent-watch", daemon=True).start()
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGUSR2:  # repeated until we end; whoever was cancelled stays cancelled
            self.reason = self.reason or name
        elif self._first is None:
            self._first, self.reason = time.monotonic(), name
            self.first(name)
        elif time.monotonic() - self._first > SAME_SIGNAL_S:
            self.second(name, number)
            return
        if self._cutting and not self._cut:
            self._cut = True  # once: what cleans up behind it is left alone
            raise Stopped(self.reason)

    def first(self, name: str) -> None:
        """What is said at the first TERM or INT."""

    def second(self, name: str, number: int) -> None:
        """A second one: no safe point is waited for."""
        self._leave(f"ended at once by a second {name}", 128 + number)

    def _watch_parent(self, grace_s: float) -> None:
        try:
            while os.read(sys.stdin.fileno(), 1):
                pass
        except OSError:
            pass
        if self.reason is None:
            self.reason = "the launcher is gone"
        os.kill(os.getpid(), signal.SIGUSR2)  # the main thread's handler, for what may be cut; the reason stays
        why = f"the launcher is gone, and no safe point came within cluster.grace_s={grace_s:g} s"
        timer = threading.Timer(grace_s, self._leave, args=(why, 128 + signal.SIGTERM))
        timer.daemon = True
        timer.start()

    def _leave(self, why: str, code: int) -> None:
        for word in self.last_words:
            with contextlib.suppress(Exception):  # it must end, whatever the disk says
                word(why)
        os._exit(code)

    def check(self) -> None:
        """A safe point without anything to save.

        Raises:
            Stopped: a stop was asked for.
        """
        if self.reason is not None:
            raise Stopped(self.reason)

    @contextlib.contextmanager
    def cutting(self) -> Iterator[None]:
        """Inside, a stop ends the work where it stands: nothing there is worth saving."""
        before = self._cutting
        try:
            self.check()
            self._cutting = True
            yield
        finally:
            self._cutting = before
        self.check()  # a handler that ran inside somebody's destructor could not raise

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside of :meth:`cutting`: this is done whole or not at all."""
        before, self._cutting = self._cutting, False
        try:
            yield
        finally:
            self._cutting = before

    def over(self) -> None:
        """The last word is spoken: no signal may turn it into another one.

        While the interpreter ends it gives every signal back its default, and USR2's would kill the process: a run that is done
        would be told as failed. An ignored signal it leaves alone.
        """
        self.last_words.clear()
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

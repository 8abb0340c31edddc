"""Signs of life across hosts: one thread a process touches the files by which others know that it lives.

A process on another host cannot be seen, and its clock cannot be compared with ours. So whoever holds something (a lease, a claim,
a running element's status) touches its file every `HEARTBEAT_S` seconds, and whoever watches goes by the changes that it sees and
by its own clock: a file that changed since the last look is of the living, one that did not change for `STALE_S` seconds of
looking is of the dead, and of anything else nobody can say yet. That needs two looks: :class:`Watch` remembers the first.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Hashable

HEARTBEAT_S = 5.0
STALE_S = 30.0


class Watch:
    """What a watcher has seen of one file."""

    def __init__(self) -> None:
        self._seen: Hashable = None
        self._since = 0.0  # by our clock: when it was first seen as it is
        self._beaten = False

    def look(self, beat: Hashable) -> bool | None:
        """Whether the owner lives, now that the file shows `beat`; None when this look and those before do not tell."""
        moment = time.monotonic()
        if self._seen is None:
            self._seen, self._since = beat, moment
        elif self._seen != beat:
            self._seen, self._since, self._beaten = beat, moment, True
        if moment - self._since >= STALE_S:
            self._beaten = False
            return False
        return True if self._beaten else None


class Pulse:
    """The beats of this process, in a thread of its own while there are any."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Hold nothing; a process that was forked has none of its parent's beats, and no thread of it."""
        self._beats: dict[Callable[[], None], None] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, beat: Callable[[], None]) -> None:
        """Call `beat` every `HEARTBEAT_S` seconds from now on."""
        with self._changed:
            self._beats[beat] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, beat: Callable[[], None]) -> None:
        """No more of `beat`."""
        with self._changed:
            self._beats.pop(beat, None)

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            with self._changed:
                if (left := last + HEARTBEAT_S - time.monotonic()) > 0:
                    self._changed.wait(left)
                if not self._beats:
                    self._thread = None
                    return
                if time.monotonic() < last + HEARTBEAT_S:
                    continue  # another file joined
                beats = list(self._beats)
            last = time.monotonic()
            for beat in beats:
                with contextlib.suppress(OSError):  # a file system that is away for a moment must not end the heartbeat
                    beat()


PULSE = Pulse()
os.register_at_fork(after_in_child=PULSE.forget)

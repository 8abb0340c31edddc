"""How fast a phase of a run goes. The recent past counts most, so that a slow start is soon forgotten, and enough of it counts that
one slow block does not double the time that is left. Standard library only."""

from __future__ import annotations

import math

SHORT_S = 30.0  # what lies this far back counts for a third; later: a quarter of the phase's time


class Pace:
    """The rate of one phase, told by where it is from time to time."""

    def __init__(self, moment: float, done: float) -> None:
        self._began, self._moment, self._done = moment, moment, done
        self._seconds = self._steps = 0.0

    def at(self, moment: float, done: float) -> float | None:
        """Steps a second at `moment` (seconds), `done` steps being done; None while nothing is known."""
        if done < self._done or moment < self._moment:  # another round
            self.__init__(moment, done)  # type: ignore[misc]
            return None
        passed = moment - self._moment
        kept = math.exp(-passed / max(SHORT_S, (moment - self._began) / 4))
        self._seconds = kept * self._seconds + passed
        self._steps = kept * self._steps + done - self._done
        self._moment, self._done = moment, done
        return self._steps / self._seconds if self._steps > 0 and self._seconds > 0 else None

"""Times in which this process did not run, or its event loop did not: they count for no limit.

A virtual machine is suspended, a process is stopped, a callback blocks. Nobody could be heard
meanwhile, so nobody is to blame for having been silent: every limit is put off by as long. A task
looks at the clock all the time; where one look comes much later than it was due, the time between
was a pause. Whoever judges a deadline looks first, so that it does not matter who wakes first.

Neighbours: `core.reaper`, `core.deadlines`, `core.admission` and `core.session` judge by it;
`core.manager` runs it.
"""

import logging
import math
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, NamedTuple

import anyio

logger = logging.getLogger(__name__)

BEAT: Final = 0.25
"""Seconds between two looks at the clock: of each pause so much counts all the same, and a limit
shorter than this may be met so much too late."""

LATE: Final = 0.25
"""Seconds that a look may be late: a loop that is busy for less has not paused."""

WORTH_TELLING: Final = 5.0
"""Seconds of a pause that an operator should know of."""

MAX_KEPT: Final = 64
"""Pauses that are kept; the two oldest become one, which matters to what is older than both."""


class Pause(NamedTuple):
    """On the event loop's clock."""

    begun: float
    ended: float


class Pauses:
    """The pauses of one event loop, as far as they were noticed."""

    def __init__(self) -> None:
        self._due = math.inf
        self._pauses: deque[Pause] = deque()
        self._limits: dict[anyio.CancelScope, tuple[float, float]] = {}
        """When each began, and its seconds."""

    @property
    def kept(self) -> int:
        return len(self._pauses)

    async def run(self) -> None:
        """Look for ever. Before and after that, no pause is noticed."""
        try:
            while True:
                now = self.look()
                self._due = now + BEAT
                await anyio.sleep_until(min(self._due, self._ran_out(now)))
        finally:
            self._due = math.inf

    def look(self) -> float:
        """Note a pause that has just ended, if there was one; return the time it is now."""
        now = anyio.current_time()
        if now > self._due + LATE:
            self._note(Pause(self._due, now))
            self._due = now + BEAT
        return now

    def _note(self, pause: Pause) -> None:
        length = pause.ended - pause.begun
        self._pauses.append(pause)
        if len(self._pauses) > MAX_KEPT:
            first, second = self._pauses.popleft(), self._pauses.popleft()
            both = Pause(second.begun - (first.ended - first.begun), second.ended)
            self._pauses.appendleft(both)
        level = logging.WARNING if length >= WORTH_TELLING else logging.DEBUG
        logger.log(level, "nothing ran for %.1f s; all time limits are put off by as much", length)

    def within(self, begun: float, ended: float) -> float:
        """Return how many of the seconds between two times were pauses."""
        return sum(
            max(0.0, min(ended, pause.ended) - max(begun, pause.begun)) for pause in self._pauses
        )

    def lasted(self, seconds: float, now: float) -> float:
        """Return how many of the last `seconds` before `now` were none."""
        return seconds - self.within(now - seconds, now)

    @contextmanager
    def move_on_after(self, seconds: float) -> Generator[anyio.CancelScope]:
        """As anyio's, but pauses do not count. Needs `run`.

        A deadline of anyio's own would be over before anybody could put it off.
        """
        with anyio.CancelScope() as scope:
            self._limits[scope] = (anyio.current_time(), seconds)
            try:
                yield scope
            finally:
                del self._limits[scope]

    def _ran_out(self, now: float) -> float:
        """Cancel what has lasted too long; return when the next one will have."""
        nearest = math.inf
        for scope, (begun, seconds) in self._limits.items():
            deadline = begun + seconds + self.within(begun, now)
            if now >= deadline:
                scope.cancel()
            else:
                nearest = min(nearest, deadline)
        return nearest

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
from bisect import bisect_right
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, NamedTuple

import anyio

logger: Final = logging.getLogger(__name__)

BEAT: Final = 0.25
"""Seconds between two looks at the clock: of each pause so much counts all the same, and a limit
shorter than this may be met so much too late."""

LATE: Final = 0.25
"""Seconds that a look may be late: a loop that is busy for less has not paused."""

WORTH_TELLING: Final = 5.0
"""Seconds of a pause that an operator should know of."""

MAX_KEPT: Final = 256
"""Pauses that are kept apart. With so many, even a loop that has stalled all the time for a year
gives no limit more than a sixth of the time since it began in addition to its due."""


class Pause(NamedTuple):
    """One pause, or several that are kept as one. Times are on the event loop's clock."""

    begun: float
    """The first of them."""
    ended: float
    """The last of them."""
    length: float
    """Seconds of all of them together, taken to be the last ones before `ended`."""
    before: float
    """Seconds of all the pauses before."""


class Record:
    """Pauses in their order. Who asks is given no less than there were since some time.

    What began between pauses that are kept as one is given more than its due. So those become one
    between which there was little time, measured by how long they are ago: it is a small part of
    what any such limit has lasted. A long pause takes no place between shorter ones: it is merged
    once its neighbour is much nearer than the present.
    """

    def __init__(self) -> None:
        self._pauses: list[Pause] = []

    def __len__(self) -> int:
        return len(self._pauses)

    def add(self, begun: float, ended: float) -> None:
        """Add a pause that has ended just now."""
        last = self._pauses[-1] if self._pauses else Pause(0.0, 0.0, 0.0, 0.0)
        self._pauses.append(Pause(begun, ended, ended - begun, last.before + last.length))
        if len(self._pauses) > MAX_KEPT:
            self._merge(ended)

    def _merge(self, now: float) -> None:
        def harm(at: int) -> float:
            first, second = self._pauses[at : at + 2]
            between = second.ended - first.begun - first.length - second.length
            return between / (now - second.ended)

        at = min(range(len(self._pauses) - 2), key=harm)  # the last one has no age yet
        first, second = self._pauses[at : at + 2]
        length = first.length + second.length
        self._pauses[at : at + 2] = [Pause(first.begun, second.ended, length, first.before)]

    def within(self, begun: float, ended: float) -> float:
        """Return how many of the seconds between two times were pauses, `ended` being later than
        all of them."""
        return self._until(ended) - self._until(begun)

    def _until(self, time: float) -> float:
        at = bisect_right(self._pauses, time, key=lambda pause: pause.begun) - 1
        if at < 0:
            return 0.0
        pause = self._pauses[at]
        return pause.before + max(0.0, pause.length - max(0.0, pause.ended - time))


class Pauses:
    """The pauses of one event loop, as far as they were noticed."""

    def __init__(self) -> None:
        self._due = math.inf
        self._record = Record()
        self._limits: dict[anyio.CancelScope, tuple[float, float]] = {}
        """When each began, and its seconds."""

    @property
    def kept(self) -> int:
        return len(self._record)

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
            self._note(self._due, now)
            self._due = now + BEAT
        return now

    def _note(self, begun: float, ended: float) -> None:
        self._record.add(begun, ended)
        length = ended - begun
        level = logging.WARNING if length >= WORTH_TELLING else logging.DEBUG
        logger.log(level, "nothing ran for %.1f s; all time limits are put off by as much", length)

    def within(self, begun: float, now: float) -> float:
        """Return how many of the seconds since `begun` were pauses."""
        return self._record.within(begun, now)

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

"""How many backends may run, and how many may start at once: a queue in front of two limits.

Synchronous where it decides: a place is given or not in one step. Whoever waits holds a ticket
and leaves the queue when it is cancelled. Neighbours: `core.session` takes a place for the life
of each backend.
"""

import random
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from ..errors import AtCapacity
from .latch import Latch
from .pauses import Pauses

RETRY_SPREAD: Final = (1.0, 5.0)
"""Seconds between which `Retry-After` is drawn, so that refused clients do not return at once."""


def retry_after() -> float:
    return random.uniform(*RETRY_SPREAD)


class Place:
    """The right to run one backend. `started` gives back the right to be starting."""

    __slots__ = ("_admission", "_starting", "granted", "owner")

    def __init__(self, admission: "Admission", owner: str) -> None:
        self._admission = admission
        self._starting = True
        self.owner: str = owner
        self.granted: Latch = Latch()

    def started(self) -> None:
        """The backend has started, or failed to: another one may start. Idempotent."""
        if self._starting:
            self._starting = False
            self._admission.start_ended()


class Admission:
    """A FIFO queue of at most `queue_length` in front of the limits.

    `max_sessions` bounds the backends that run, counted until they are reaped;
    `max_per_owner` (None: no limit) those of one owner; `starts_at_once` those that are starting.
    An owner at its own limit does not hold up those behind it, and has as many places in the queue
    as it may have backends: the rest of the queue is for others.
    """

    def __init__(
        self,
        pauses: Pauses,
        *,
        max_sessions: int,
        starts_at_once: int,
        queue_length: int,
        queue_timeout: float,
        max_per_owner: int | None = None,
    ) -> None:
        self.pauses: Pauses = pauses
        self._max_sessions = max_sessions
        self._max_per_owner = max_per_owner
        self._starts_at_once = starts_at_once
        self._queue_length = queue_length
        self._queue_timeout = queue_timeout
        # Changes with every backend.
        self._running = 0
        self._starting = 0
        self._by_owner: Counter[str] = Counter()
        self._queue: deque[Place] = deque()

    def __repr__(self) -> str:
        return (
            f"<Admission running={self._running}/{self._max_sessions} "
            f"starting={self._starting}/{self._starts_at_once} queued={len(self._queue)}>"
        )

    @property
    def running(self) -> int:
        return self._running

    @property
    def starting(self) -> int:
        return self._starting

    @property
    def queued(self) -> int:
        return len(self._queue)

    @asynccontextmanager
    async def place(self, owner: str) -> AsyncGenerator[Place]:
        """Hold a place, waiting in the queue for it at most `queue_timeout` seconds.

        Raises: AtCapacity: the queue is full, or the owner's share of it, or the wait was too
            long; nothing was started.
        """
        place = Place(self, owner)
        if not self._take(place):
            await self._wait(place)
        try:
            yield place
        finally:
            self._give_back(place)

    async def _wait(self, place: Place) -> None:
        self._check_queue(place.owner)
        self._queue.append(place)
        try:
            with self.pauses.move_on_after(self._queue_timeout):
                await place.granted.wait()
                return
        except BaseException:
            self._leave(place)
            raise
        self._leave(place)
        message = f"no place in {self._queue_timeout:g} s: {self._crowd}"
        raise AtCapacity(message, retry_after=retry_after())

    def _check_queue(self, owner: str) -> None:
        """Raises: AtCapacity: the owner's share of the queue is full, or all of it."""
        share = self._max_per_owner
        if share is not None and sum(place.owner == owner for place in self._queue) >= share:
            message = f"the owner's share of the queue is full: {self._crowd}"
            raise AtCapacity(message, retry_after=retry_after())
        if len(self._queue) >= self._queue_length:
            message = f"the queue is full: {self._crowd}"
            raise AtCapacity(message, retry_after=retry_after())

    @property
    def _crowd(self) -> str:
        return (
            f"{self._running} of {self._max_sessions} backends run, "
            f"{len(self._queue)} sessions wait"
        )

    def _leave(self, place: Place) -> None:
        """Give up waiting; a place that was granted in the same moment goes to the next one."""
        if place.granted.is_set():
            self._give_back(place)
        else:
            self._queue.remove(place)

    def _give_back(self, place: Place) -> None:
        place.started()
        self._running -= 1
        self._by_owner[place.owner] -= 1
        if not self._by_owner[place.owner]:
            del self._by_owner[place.owner]
        self._admit_waiting()

    def start_ended(self) -> None:
        """One of those starting has ended its start. Called by `Place.started` alone."""
        self._starting -= 1
        self._admit_waiting()

    def _take(self, place: Place) -> bool:
        """Grant `place` if there is room; then nobody who fits waits, or it would have been let in
        when the room was made."""
        if not self._fits(place):
            return False
        self._grant(place)
        return True

    def _fits(self, place: Place) -> bool:
        return (
            self._running < self._max_sessions
            and self._starting < self._starts_at_once
            and (self._max_per_owner is None or self._by_owner[place.owner] < self._max_per_owner)
        )

    def _grant(self, place: Place) -> None:
        self._running += 1
        self._starting += 1
        self._by_owner[place.owner] += 1
        place.granted.set()

    def _admit_waiting(self) -> None:
        for place in tuple(self._queue):
            if self._fits(place):
                self._queue.remove(place)
                self._grant(place)

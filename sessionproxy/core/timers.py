"""Calls something later, from one task for all of them.

What waits has no task of its own: a parked request or a round that gathers costs an entry here.
Neighbours: `eras` sets timers; whoever owns them runs them.
"""

import heapq
import itertools
import logging
from collections.abc import Callable
from math import inf
from typing import Final, NamedTuple

import anyio

from .pauses import Pauses

logger: Final = logging.getLogger(__name__)

MAX_IDLE: Final = 64
"""Entries of cancelled timers that may stay until they are due, as long as they are fewer than the
others: most timers are cancelled long before."""


class Timer:
    """Something that is to be called once, unless it is cancelled before."""

    __slots__ = ("_call", "_on_cancel")

    def __init__(self, call: Callable[[], None], on_cancel: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call
        self._on_cancel = on_cancel

    @property
    def waits(self) -> bool:
        return self._call is not None

    def cancel(self) -> None:
        """Never call it. Idempotent; too late once it was called."""
        if self._call is not None:
            self._call = None
            self._on_cancel()

    def fire(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


class _Entry(NamedTuple):
    at: float
    order: int
    begun: float
    seconds: float
    timer: Timer


class Timers:
    """All timers of one owner; `run` must be running for them to fire. Pauses put them off."""

    def __init__(self, pauses: Pauses) -> None:
        self.pauses: Pauses = pauses
        self._entries: list[_Entry] = []
        self._idle = 0
        """Entries whose timer was cancelled."""
        self._order = itertools.count()
        self._earlier = anyio.Event()

    def __len__(self) -> int:
        """Return how many timers wait."""
        return len(self._entries) - self._idle

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Have `call` called in so many seconds. It must not block, nor raise."""
        timer = Timer(call, self._cancelled)
        now = anyio.current_time()
        entry = _Entry(now + seconds, next(self._order), now, seconds, timer)
        heapq.heappush(self._entries, entry)
        if self._entries[0] is entry:
            self._earlier.set()
        return timer

    def _cancelled(self) -> None:
        self._idle += 1
        if self._idle > MAX_IDLE and self._idle * 2 > len(self._entries):
            self._entries = [entry for entry in self._entries if entry.timer.waits]
            heapq.heapify(self._entries)
            self._idle = 0

    async def run(self) -> None:
        """Fire what is due, for ever."""
        while True:
            now = self.pauses.look()
            while self._entries and self._entries[0].at <= now:
                self._take(heapq.heappop(self._entries), now)
            until = self._entries[0].at if self._entries else inf
            self._earlier = anyio.Event()
            with anyio.CancelScope(deadline=until):
                await self._earlier.wait()

    def _take(self, entry: _Entry, now: float) -> None:
        """Fire what is due, or put it off by the pauses since it was set."""
        due = entry.begun + entry.seconds + self.pauses.within(entry.begun, now)
        if not entry.timer.waits:
            self._idle -= 1
        elif due > now:
            heapq.heappush(self._entries, entry._replace(at=due))
        else:
            _fire(entry.timer)


def _fire(timer: Timer) -> None:
    try:
        timer.fire()
    except Exception:  # one must not keep the others from firing
        logger.exception("a timer failed")

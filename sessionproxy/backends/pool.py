"""Warm spares: children started in advance, so that a first call does not wait for a runtime.

A spare has been spawned and not spoken to: which session it will serve, and so what `initialize`
says, is not known yet. Spares do not count against `max_sessions`. Neighbours:
`backends.launcher` takes from it; `assembly` enters it for the life of the process.
"""

import logging
import math
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Self

import anyio
import anyio.lowlevel

from ..errors import BackendStartFailed, Shortage
from .launcher import StdioLauncher
from .stdio import Child

logger: Final = logging.getLogger(__name__)

PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds before a failed start is tried again; doubled each time, up to the longest. Twice the
longest without a failure, and the next one is the first again."""

LOOK: Final = 1.0
"""Seconds between two looks for spares that ended by themselves."""


class Pool(anyio.AsyncContextManagerMixin):
    """Keeps up to `size` spares. Those not taken are stopped on exit."""

    def __init__(self, launcher: StdioLauncher, size: int) -> None:
        self._launcher = launcher
        self._size = size
        self._spares: deque[Child] = deque()
        self._dead: list[Child] = []
        self._taken = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        try:
            async with anyio.create_task_group() as tasks:
                if self._size:
                    tasks.start_soon(self._fill)
                try:
                    yield self
                finally:
                    self._size = 0
                    tasks.cancel_scope.cancel()
        finally:  # what was being started is a spare by now, and what was being stopped is none
            with anyio.CancelScope(shield=True):  # bounded by what `stop` is bounded by
                await self._stop_all()

    async def _stop_all(self) -> None:
        left = (*self._spares, *self._dead)
        self._spares.clear()
        self._dead.clear()
        async with anyio.create_task_group() as stopping:
            for child in left:
                stopping.start_soon(self._launcher.stop, child)

    def __len__(self) -> int:
        return len(self._spares)

    def take(self) -> Child | None:
        """Return the oldest spare that still runs; None where there is none."""
        while self._spares:
            child = self._spares.popleft()
            self._taken.set()
            if not child.has_exited:
                return child
            self._dead.append(child)
        return None

    async def _fill(self) -> None:
        pause, failed_at = PAUSE, -math.inf
        while True:
            started = await self._start_missing()
            if started:
                await self._look()
            if await self._bury() and started:
                continue
            now = anyio.current_time()
            pause = PAUSE if now - failed_at > 2 * LONGEST_PAUSE else min(pause * 2, LONGEST_PAUSE)
            failed_at = now
            await anyio.sleep(pause)

    async def _start_missing(self) -> bool:
        """Start as many as there are too few; return whether that worked."""
        try:
            while len(self._spares) < self._size:
                self._spares.append(await self._launcher.spawn())
                await anyio.lowlevel.checkpoint()
        except (BackendStartFailed, Shortage) as error:
            logger.warning("no warm spare: %s", error)
            return False
        return True

    async def _look(self) -> None:
        """Wait until one is taken, or until it is time to see who is still there."""
        self._taken = anyio.Event()
        with anyio.move_on_after(LOOK):
            await self._taken.wait()

    async def _bury(self) -> bool:
        """Stop those that ended by themselves, and their descendants; return whether none had.

        A command that cannot work mostly starts all the same: one that ends unused has failed.
        """
        self._dead.extend(child for child in self._spares if child.has_exited)
        self._spares = deque(child for child in self._spares if not child.has_exited)
        all_live = not self._dead
        while self._dead and self._size:
            child = self._dead.pop()  # who takes it out stops it
            logger.warning("a warm spare ended unused: %r", child)
            await self._launcher.stop(child)
        return all_live

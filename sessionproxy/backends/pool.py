"""Warm spares: children started in advance, so that a first call does not wait for a runtime.

A spare has been spawned and not spoken to: which session it will serve, and so what `initialize`
says, is not known yet. Spares do not count against `max_sessions`. Neighbours:
`backends.launcher` takes from it; `serve` enters it for the life of the process.
"""

import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Self

import anyio
import anyio.lowlevel

from ..errors import BackendStartFailed, Shortage
from .launcher import StdioLauncher
from .stdio import Child

logger = logging.getLogger(__name__)

PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds before a failed start is tried again; doubled each time, up to the longest."""

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
        async with anyio.create_task_group() as tasks:
            if self._size:
                tasks.start_soon(self._fill)
            try:
                yield self
            finally:
                tasks.cancel_scope.cancel()
                left, self._size = (*self._spares, *self._dead), 0
                self._spares.clear()
                with anyio.CancelScope(shield=True):  # bounded by what `stop` is bounded by
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
        pause = PAUSE
        while True:
            try:
                while len(self._spares) < self._size:
                    self._spares.append(await self._launcher.spawn())
                    await anyio.lowlevel.checkpoint()
                pause = PAUSE
            except (BackendStartFailed, Shortage) as error:
                logger.warning("no warm spare: %s", error)
                await anyio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            self._taken = anyio.Event()
            with anyio.move_on_after(LOOK):
                await self._taken.wait()
            await self._bury()

    async def _bury(self) -> None:
        """Stop the spares that ended by themselves, and their descendants."""
        self._dead.extend(child for child in self._spares if child.has_exited)
        self._spares = deque(child for child in self._spares if not child.has_exited)
        for child in tuple(self._dead):
            await self._launcher.stop(child)
            self._dead.remove(child)

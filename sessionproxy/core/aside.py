"""Backends that are looked at and let go of: they are stopped behind the back of whoever used them.

Before a client needs a backend, the proxy asks one of its own what it offers and which era it
speaks. The answer is there long before that backend has ended, which takes some of them the whole
of `stop_grace`. Neighbours: `core.catalogue` and `eras` use it; `assembly` runs it.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Self

import anyio

from ..errors import BackendStartFailed
from .background import Background
from .latch import Latch
from .ports import Backend

logger: Final = logging.getLogger(__name__)

MAX_LEFT: Final = 4
"""Backends that are being stopped behind somebody's back; of one more the end is waited for."""


class _Use:
    """One use of a backend."""

    def __init__(self) -> None:
        self.begun = Latch()
        """It has a backend, or a failure."""
        self.backend: Backend | None = None
        self.failure: Exception | None = None
        self.over = Latch()
        self.ended = Latch()
        """The backend is gone."""


class Aside(anyio.AsyncContextManagerMixin):
    """Has a task for each backend that it lends. On exit all are gone."""

    def __init__(self) -> None:
        self._background = Background()
        self._left = 0

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._background:
            yield self

    @asynccontextmanager
    async def lend(
        self, launching: AbstractAsyncContextManager[Backend]
    ) -> AsyncGenerator[Backend]:
        """Enter `launching`; on exit it is left, but not waited for.

        Raises: as `launching` does on entering; BackendStartFailed: all is being ended.
        """
        use = _Use()
        context = self._background.callers_context()
        self._background.start(self._keep, use, launching, context=context)
        try:
            await use.begun.wait()
            if use.failure is not None:
                raise use.failure
            if use.backend is None:
                raise BackendStartFailed("The start was cut off.")
            yield use.backend
        finally:
            use.over.set()
            if self._left >= MAX_LEFT:
                await use.ended.wait()

    async def _keep(self, use: _Use, launching: AbstractAsyncContextManager[Backend]) -> None:
        """Own the backend of one use. Its stop is shielded by who started it."""
        stopping = False
        try:
            async with launching as use.backend:
                use.begun.set()
                await use.over.wait()
                stopping = True
                self._left += 1
        except Exception as error:  # whoever waits for it is to have it
            if use.begun.is_set():
                logger.exception("a backend that was no longer needed could not be stopped")
            use.failure = error
        finally:
            if stopping:
                self._left -= 1
            use.begun.set()
            use.ended.set()

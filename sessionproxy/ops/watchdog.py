"""Sees when the event loop stands still, and says what it stands at. For our own process alone.

Nothing in the loop can tell while the loop is blocked, so a thread watches: the loop counts, and
where the count has not moved for several looks in a row, the loop thread's stack goes to the log,
once. The thread counts its looks and not seconds: where the whole process is stopped it does not
look, and there is nothing to tell. Neighbours: `serve` runs it; `core.pauses` sees to it that no
limit runs out meanwhile.
"""

import logging
import sys
import threading
import traceback
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import anyio

logger: Final = logging.getLogger(__name__)

LOOK: Final = 0.25
"""Seconds between two looks, and between two counts of the loop."""

LOOKS: Final = 4
"""In a row without a count between them: then the loop stands still, for about a second."""


class Watchdog:
    """Watches the event loop in whose thread `running` is entered."""

    def __init__(self) -> None:
        self.stalls: int = 0
        """Times that the loop stood still."""
        self._counts = 0
        self._done = threading.Event()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        thread = threading.Thread(
            target=self._watch, args=(threading.get_ident(),), name="watchdog", daemon=True
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._count)
            thread.start()
            try:
                yield
            finally:
                self._done.set()
                tasks.cancel_scope.cancel()
        thread.join()

    async def _count(self) -> None:
        while True:
            self._counts += 1
            await anyio.sleep(LOOK)

    def _watch(self, loop_thread: int) -> None:
        seen, looks = 0, 0
        while not self._done.wait(LOOK):
            if self._counts != seen:
                seen, looks = self._counts, 0
                continue
            looks += 1
            if looks == LOOKS:
                self.stalls += 1
                logger.error("the event loop stands still, at:\n%s", _stack_of(loop_thread))


def _stack_of(thread: int) -> str:
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage] # documented
    return "".join(traceback.format_stack(frame)) if frame is not None else "nothing of ours"

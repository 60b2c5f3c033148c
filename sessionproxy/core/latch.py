"""An event that is set once, and takes next to no memory until somebody waits for it.

An `anyio.Event` on asyncio has a queue for those who wait from the start, and every session has
several that nobody waits for while it is idle. Neighbours: everything that waits for a backend.
"""

import anyio
import anyio.lowlevel


class Latch:
    """Starts unset; `set` wakes all who wait, for good."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._set = False
        self._event: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<Latch {'set' if self._set else 'unset'}>"

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        """Wake all who wait. Idempotent."""
        self._set = True
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def wait(self) -> None:
        """Return once it is set, at the earliest after a checkpoint."""
        if self._set:
            await anyio.lowlevel.checkpoint()
            return
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()

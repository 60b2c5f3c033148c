"""Lifespans that several runs of one server have in common.

A server of the official SDK enters its lifespan in every run. FastMCP's has one for all its runs,
and the run that came first would take it away from the others when it ends; so none of them holds
it, but a task of its own. Neighbours: `backends.memory` has them, `backends.hosted` is a run.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeAlias

from ..core.background import Background, of_the_users
from ..core.latch import Latch

MANAGER: Final = "_lifespan_manager"
"""What FastMCP's server has: returns a context manager that counts who is within."""

Enter: TypeAlias = "Callable[[], AbstractAsyncContextManager[object]]"


class Lifespans:
    """By server. A lifespan begins with the first run."""

    def __init__(self, background: Background, *, lasting: bool) -> None:
        """`lasting`: it ends with `background`; otherwise with the last run."""
        self._background = background
        self._lasting = lasting
        self._held: dict[int, _Held] = {}

    @asynccontextmanager
    async def of(self, server: object) -> AsyncGenerator[None]:
        """Be within the lifespan of a server, if that is one which its runs have in common.

        Raises: whatever entering it raises; so it does for whoever waits for it too.
        """
        enter: Enter | None = getattr(server, MANAGER, None)
        if enter is None:
            yield
            return
        held = self._hold(server, enter)
        try:
            await held.begun.wait()
            if held.failure is not None:
                raise held.failure
            yield
        finally:
            self._let_go(held)

    def _hold(self, server: object, enter: Enter) -> "_Held":
        held = self._held.get(id(server))
        if held is None:
            held = self._held[id(server)] = _Held(server, enter)
            self._background.start(held.run)
        held.runs += 1
        return held

    def _let_go(self, held: "_Held") -> None:
        held.runs -= 1
        if held.failure is not None or (not held.runs and not self._lasting):
            if self._held.get(id(held.server)) is held:
                del self._held[id(held.server)]
            held.over.set()


class _Held:
    """One lifespan, held by its task. It keeps the server too: so its `id` is nobody else's."""

    def __init__(self, server: object, enter: Enter) -> None:
        self.server = server
        self.runs = 0
        self.begun = Latch()
        self.over = Latch()
        self.failure: Exception | None = None
        self._enter = enter

    async def run(self) -> None:
        try:
            with of_the_users():
                async with self._enter():
                    self.begun.set()
                    await self.over.wait()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self.failure = error
        finally:
            self.begun.set()

"""Tasks that belong to no request, though one needs them first.

A task inherits the ContextVars of whoever starts it: its user, its trace. What outlives a request
must have nothing of that one, but for the credential it may be started with. Neighbours:
`core.manager` has its sessions' tasks here, `core.aside` and the launchers of `backends` theirs.
"""

import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context, copy_context
from typing import Any, Final, Self, TypeVarTuple

import anyio
from anyio.abc import TaskGroup

from .callbacks import current_library, know_library
from .context import caller_authorization, inside
from .latch import Latch

logger: Final = logging.getLogger(__name__)

Args = TypeVarTuple("Args")

CUT_OFF_WITHIN: Final = 60.0
"""Seconds for what is cancelled to clean up: it may have a server to stop, which takes half."""


class StrayCancellation(Exception):
    """Code of the user's was cancelled by what it waited for: a task of its own that was."""


@contextmanager
def of_the_users() -> Generator[None]:
    """Run code of the user's. A cancellation that nobody here has asked for is a failure like any
    other: let through, it would be taken for the end of all that run beside it.

    Raises: StrayCancellation: in place of such a one.
    """
    try:
        yield
    except anyio.get_cancelled_exc_class() as error:
        if anyio.current_effective_deadline() == -math.inf:
            raise
        raise StrayCancellation("What it waited for was cancelled.") from error


async def cut_off(works: Iterable["Work"]) -> None:
    """Cancel them, and wait until each is over. Shielded, and bounded: one that heeds nothing goes
    on."""
    cancelled = tuple(works)
    for work in cancelled:
        work.cancel()
    with anyio.move_on_after(CUT_OFF_WITHIN, shield=True) as scope:
        for work in cancelled:
            await work.over.wait()
    if scope.cancelled_caught:
        logger.error("code of the user's does not heed its cancellation")


class Background(anyio.AsyncContextManagerMixin):
    """Enter it where the tasks may take their ContextVars from; on exit all are cancelled."""

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self._context = copy_context()
        async with anyio.create_task_group() as tasks:
            self._tasks: TaskGroup = tasks
            self._inside = inside.get()
            self._library = current_library()
            try:
                yield self
            finally:
                tasks.cancel_scope.cancel()

    def context(self) -> Context:
        """Return a context with nothing of a request."""
        return self._context.copy()

    def callers_context(self) -> Context:
        """Return one with the credential of the present request, and nothing else of it."""
        context = self.context()
        context.run(caller_authorization.set, caller_authorization.get())
        return context

    def start(
        self,
        function: Callable[[*Args], Coroutine[Any, Any, object]],
        *args: *Args,
        context: Context | None = None,
    ) -> None:
        """Begin a task. `context`: its own, which is not used elsewhere; None: a fresh one."""
        context = self.context() if context is None else context
        context.run(self._start, function, *args)

    def _start(
        self, function: Callable[[*Args], Coroutine[Any, Any, object]], *args: *Args
    ) -> None:
        """Begin it here. Tasks are begun by callbacks of the event loop, too."""
        inside.set(self._inside)
        know_library(self._library)
        self._tasks.start_soon(self._alone, function, *args)

    async def _alone(
        self, function: Callable[[*Args], Coroutine[Any, Any, object]], *args: *Args
    ) -> None:
        """Be a task whose cancellation is its own matter: a task group ends all that it has where
        one ends by a cancellation that the group knows nothing of. So do all at the end of the
        event loop."""
        try:
            with of_the_users():
                await function(*args)
        except StrayCancellation as error:
            logger.debug("%s: %s", function, error)


class Work:
    """What a task does that may be cancelled, also before it has begun, and from where no task
    is: a callback of the event loop."""

    __slots__ = ("_cancelled", "_scope", "over")

    def __init__(self) -> None:
        self._cancelled = False
        self._scope: anyio.CancelScope | None = None
        self.over: Latch = Latch()
        """It is done, or cancelled and cleaned up."""

    async def run(self, function: Callable[[], Awaitable[None]]) -> None:
        """Do it; returns when it is done or cancelled."""
        try:
            with anyio.CancelScope() as self._scope:
                if not self._cancelled:
                    await function()
        finally:
            self.over.set()

    def cancel(self) -> None:
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()

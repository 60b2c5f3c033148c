"""Tasks that belong to no request, though one needs them first.

A task inherits the ContextVars of whoever starts it: its user, its trace. What outlives a request
must have nothing of that one, but for the credential it may be started with. Neighbours:
`core.manager` has its sessions' tasks here, `core.aside` and the launchers of `backends` theirs.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from typing import Any, Self, TypeVarTuple

import anyio
from anyio.abc import TaskGroup

from .context import caller_authorization

Args = TypeVarTuple("Args")


class Background(anyio.AsyncContextManagerMixin):
    """Enter it where the tasks may take their ContextVars from; on exit all are cancelled."""

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self._context = copy_context()
        async with anyio.create_task_group() as tasks:
            self._tasks: TaskGroup = tasks
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
        context.run(self._tasks.start_soon, function, *args)

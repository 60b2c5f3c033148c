"""Backends that are code of this process, and nothing that has to be started or stopped.

Neighbours: `client.local`, `client.provider` and `client.relayed` have such backends.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, Self

import anyio

from ..core.background import Background
from ..core.hooks import Sender
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Upstream
from ..core.reach import Scope


class Given(NamedTuple):
    """What such a backend is given by the session that it is of."""

    identity: Identity
    sender: Sender
    upstream: Upstream
    opening: Opening
    scope: Scope
    """What is kept for the session: it ends after the backend."""
    background: Background
    """Where the backend has its tasks."""


Begin = Callable[[Given], AbstractAsyncContextManager[Backend]]
"""Returns a session's backend, for as long as the session has it."""


class HereLauncher(anyio.AsyncContextManagerMixin):
    """A `Launcher`. Entered before the first launch, left after the last backend."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._background = Background()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._background:
            yield self

    def hurry(self) -> None:
        """Nothing is stopped here."""

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        async with Scope() as scope:
            sender = Sender.of(identity, label, upstream)
            given = Given(identity, sender, upstream, opening, scope, self._background)
            async with self._begin(given) as backend:
                yield backend

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False

"""Launches backends that are servers of the official SDK in this very process.

What is served is a server object, which is run once for every session, or a function that returns
one, which is called for every session. Neighbours: `core.session` launches and leaves; `assembly`
enters it for the life of the process; `backends.hosted` is one run.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Self, TypeAlias

import anyio

from ..config import ConfigError
from ..core.background import Background
from ..core.exchange import Hook
from ..core.latch import Latch
from ..core.memory import Opening
from ..core.ports import Identity, Upstream
from ..core.relay import Relay
from .hosted import Factory, Hosted, SdkServer, is_server
from .lifespans import Lifespans

InProcess: TypeAlias = "SdkServer | Factory"
"""A server of the SDK, or a function that returns one, at once or when awaited."""


class MemoryLauncher(anyio.AsyncContextManagerMixin):
    """A `Launcher`. Entered before the first launch, left after the last backend."""

    def __init__(
        self,
        served: InProcess,
        *,
        stop_grace: float,
        max_line: int,
        hooks: Sequence[Hook] = (),
        tally: Counter[str] | None = None,
    ) -> None:
        """`stop_grace`: seconds to end by itself; `max_line`: bytes of one message.

        Raises: ConfigError: it is no server, and cannot be called for one.
        """
        self._factory = factory_of(served)
        self._stop_grace = stop_grace
        self._max_line = max_line
        self._hooks = hooks
        self._tally = tally if tally is not None else Counter[str]()
        self._background = Background()
        self._lifespans = Lifespans(self._background, lasting=is_server(served))
        self._hurry = Latch()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._background:
            yield self

    def hurry(self) -> None:
        """From now on backends that are being stopped are cancelled without waiting."""
        self._hurry.set()

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Relay]:
        context = self._background.context()
        hosted = Hosted(
            self._factory,
            identity,
            label,
            upstream,
            max_line=self._max_line,
            context=context,
            lifespans=self._lifespans,
        )
        async with hosted.scope:
            try:
                relay = Relay(hosted, upstream, hooks=self._hooks, tally=self._tally, label=label)
                hosted.attach(relay)
                self._background.start(hosted.run)
                yield relay
            finally:
                await hosted.close(self._stop_grace, self._hurry)

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False


def factory_of(served: InProcess) -> Factory:
    """Return what gives a session its server.

    Raises: ConfigError: it is no server, and cannot be called for one.
    """
    if is_server(served):
        server: SdkServer = served  # type: ignore[assignment] # it has been looked at
        return lambda: server
    if callable(served):
        return served
    raise ConfigError(
        "command: a list of words, a server of the SDK, or a function that returns one; "
        f"this is of type {type(served).__name__}"
    )

"""Launches backends that are servers elsewhere: connects, and says goodbye.

Which transport a server speaks is found out with the first `initialize`, by the specification's
rule (2026-07-28 basic/transports/streamable-http#http+sse-transport-2024-11-05), and remembered.
Neighbours: `core.session` launches and leaves; `assembly` enters it for the life of the process.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

import anyio

from ... import descriptors
from ...config import Carrier
from ...core.admission import retry_after
from ...core.background import Background
from ...core.exchange import Exchange, Hook
from ...core.latch import Latch
from ...core.memory import Opening
from ...core.ports import Identity, Upstream
from ...core.relay import Relay
from ...errors import Shortage
from ...wire import Kind
from .http import StreamableHttp
from .legacy import LegacySse
from .target import Target
from .web import Web

logger: Final = logging.getLogger(__name__)

DESCRIPTORS: Final = 4
"""Connections that a session opens at once."""

Known = Callable[[], Mapping[str, bytes]]


class RemoteLauncher(anyio.AsyncContextManagerMixin):
    """A `Launcher`. Entered before the first launch, left after the last backend."""

    def __init__(
        self,
        target: Target,
        *,
        max_line: int,
        hooks: Sequence[Hook] = (),
        tally: Counter[str] | None = None,
        schemas: Known = dict,
    ) -> None:
        """`max_line`: bytes of one message. `schemas`: returns those of tools that ask for headers,
        as far as known."""
        self._target = target
        self._max_line = max_line
        self._hooks = hooks
        self._tally = tally if tally is not None else Counter[str]()
        self._schemas = schemas
        self._background = Background()
        self._hurry = Latch()
        self.carrier: Carrier = target.carrier
        """Which transport the server speaks, as far as known."""

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._background:
            yield self

    def hurry(self) -> None:
        """From now on upstreams get next to no time to hear that a session is over."""
        self._hurry.set()

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Relay]:
        try:
            descriptors.check_room(DESCRIPTORS)
        except OSError as error:
            raise Shortage(f"No connection: {error.strerror}", retry_after=retry_after()) from None
        web = Web(self._target, self._background, label)
        transport = Carried(self, web, label)
        try:
            relay = Relay(transport, upstream, hooks=self._hooks, tally=self._tally, label=label)
            transport.attach(relay)
            yield relay
        finally:
            await transport.close(hurry=self._hurry.is_set())

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False

    def http(self, web: Web, label: str, legacy: "Carried") -> StreamableHttp:
        undecided = self.carrier is Carrier.AUTO
        return StreamableHttp(
            web,
            self._target.url,
            label,
            max_line=self._max_line,
            forwards=self._target.forwards,
            schemas=self._schemas(),
            otherwise=legacy.take_over if undecided else None,
            proven=self._prove,
        )

    def _prove(self) -> None:
        """It speaks streamable HTTP: what it refuses is no reason to look for the older one."""
        if self.carrier is Carrier.AUTO:
            self.carrier = Carrier.HTTP

    def sse(self, web: Web, label: str) -> LegacySse:
        return LegacySse(
            web, self._target.url, label, max_line=self._max_line, forwards=self._target.forwards
        )


class Carried:
    """The `Transport` of one backend: one of the two, which may come out only as it is used."""

    def __init__(self, launcher: RemoteLauncher, web: Web, label: str) -> None:
        self._launcher = launcher
        self._web = web
        self._label = label
        self._relay: Relay
        self._by: StreamableHttp | LegacySse
        if launcher.carrier is Carrier.SSE:
            self._by = launcher.sse(web, label)
        else:
            self._by = launcher.http(web, label, self)

    def attach(self, relay: Relay) -> None:
        self._relay = relay
        self._by.attach(relay)

    def send(self, message: bytes, kind: Kind, exchange: Exchange | None = None) -> None:
        self._by.send(message, kind, exchange)

    def cancel(self, exchange: Exchange) -> bool:
        return self._by.cancel(exchange)

    def kill(self) -> None:
        self._by.kill()

    async def close(self, *, hurry: bool) -> None:
        await self._by.close(hurry=hurry)

    async def take_over(self, message: bytes, exchange: Exchange) -> bool:
        """Go on with the older transport, if the server speaks it; return whether it does."""
        legacy = self._launcher.sse(self._web, self._label)
        legacy.attach(self._relay)
        if not await legacy.connect():
            return False
        logger.info("the backend speaks HTTP with SSE, the transport of 2024-11-05")
        self._launcher.carrier = Carrier.SSE
        self._by = legacy
        legacy.send(message, Kind.REQUEST, exchange)
        return True

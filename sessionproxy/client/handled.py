"""Handlers of a client between sessions and its server, where a proxy is made of the client.

What is passed on by default stays as it was written; what has a handler of the user's own goes
there; what is switched off, no server is told of. Neighbours: `client.targets` puts it around a
server's backends.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Self

import anyio
import msgspec
from msgspec import Raw

from .. import wire
from ..backends.questions import undeclared
from ..core.background import Background
from ..core.between import Between, outer_of
from ..core.exchange import Ask, Exchange, Outcome
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Launcher, Upstream
from ..core.reach import REACH, Reach, Scope
from ..wire import Bytes
from ..wire.envelope import CAPABILITIES_KEY, progress_token
from .handlers import LOG, PROGRESS, Handlers
from .link import Desk
from .relayed import without_token

ASKED = {
    "roots/list": "roots",
    "sampling/createMessage": "sampling",
    "elicitation/create": "elicitation",
}
"""By method: the capability that a client declares."""


class HandlingLauncher(anyio.AsyncContextManagerMixin):
    """A `Launcher` around one. Entered before the first launch, left after the last backend."""

    def __init__(self, launcher: Launcher, handlers: Handlers) -> None:
        self._launcher = launcher
        self._background = Background()
        self._desk = Desk(handlers, self._background)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._background:
            yield self

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        scope = Scope()
        handled = Handled(upstream, self._desk, scope)
        try:
            async with self._launcher.launch(identity, label, handled, opening) as backend:
                yield handled.before(backend)
        finally:
            await scope.close()

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return await self._launcher.refused(identity, opening)


class Handled(Between):
    """A backend whose questions may be answered here."""

    def __init__(self, upstream: Upstream, desk: Desk, scope: Scope) -> None:
        super().__init__(upstream)
        self._desk = desk
        self._scope = scope
        self._tokens: dict[Exchange, bytes | None] = {}

    def request(self, exchange: Exchange) -> None:
        params, handlers = exchange.params, self._desk.handlers
        self._tokens[exchange] = progress_token(params)
        if handlers.is_off(PROGRESS):
            params = without_token(params)
        if exchange.method == "initialize" and params is not None:
            params = self._declaring(params, "capabilities")
        elif wire.member(wire.member(params, "_meta"), CAPABILITIES_KEY) is not None:
            meta = wire.member(params, "_meta")
            if params is not None and meta is not None:
                declared = bytes(self._declaring(meta, CAPABILITIES_KEY))
                params = wire.with_member(params, "_meta", declared) or params

        def answered(outcome: Outcome) -> None:
            self._tokens.pop(exchange, None)
            exchange.settle(outcome)

        self.send_for(exchange, exchange.method, params, answered)

    def _declaring(self, fields: Bytes, key: str) -> Bytes:
        """Return an object with the capabilities at `key` as the handlers have them."""
        declared = wire.members(wire.member(fields, key))
        own = self._desk.handlers.capabilities
        for method, name in ASKED.items():
            if self._desk.handlers.is_off(method):
                declared.pop(name, None)
            elif not self._desk.handlers.passes_on(method) and name not in declared:
                declared[name] = Raw(msgspec.json.encode(own[name]))
        return wire.with_member(fields, key, wire.rebuilt(declared)) or fields

    # -- from the backend --------------------------------------------------------------------------

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        handlers, outer = self._desk.handlers, outer_of(exchange)
        if handlers.is_off(ask.method):
            ask.decline(undeclared(ask.method))
        elif handlers.passes_on(ask.method):
            self.upstream.ask(ask, outer)
        else:
            self._desk.ask(ask, outer, self._context_of(outer))

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        outer = outer_of(exchange)
        if method not in (LOG, PROGRESS) or self._desk.handlers.passes_on(method):
            self.upstream.notification(method, params, encoded, outer)
        else:
            self._desk.tell(method, params, self._context_of(outer))

    def _context_of(self, exchange: Exchange | None) -> Context:
        """Return the context of a request, in which its client can be reached."""
        if exchange is None or exchange.outcome is not None:
            return Context()
        context = exchange.context.copy()
        token = self._tokens.get(exchange)
        context.run(REACH.set, Reach(self.upstream, exchange, self._scope, token))
        return context

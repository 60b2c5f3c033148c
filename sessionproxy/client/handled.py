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
from ..core.between import Around, Between, instead_of, outer_of
from ..core.exchange import Ask, Exchange, Outcome
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Launcher, Upstream
from ..core.reach import Scope, reaching
from ..wire import Bytes
from ..wire.envelope import CAPABILITIES_KEY, progress_token
from .handlers import LOG, PROGRESS, Handlers
from .link import Desk

ASKED = {
    "roots/list": "roots",
    "sampling/createMessage": "sampling",
    "elicitation/create": "elicitation",
}
"""By method: the capability that a client declares."""

WITH_PROGRESS = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Requests whose progress a handler of the user's own hears of, whether the client wants to or
not."""

NOT_DECLARED = Outcome(
    error=b'{"code":-32603,"message":"The server asked for what the client does not support"}'
)


class HandlingLauncher(Around, anyio.AsyncContextManagerMixin):
    """A `Launcher` around one. Entered before the first launch, left after the last backend."""

    def __init__(self, launcher: Launcher, handlers: Handlers) -> None:
        super().__init__(launcher)
        self._desk = Desk(handlers)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._desk:
            yield self

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        async with Scope() as scope:
            handled = Handled(upstream, self._desk, scope)
            declared = opening._replace(params=handled.declaring(opening.method, opening.params))
            async with self.launcher.launch(identity, label, handled, declared) as backend:
                yield handled.before(backend)


class Handled(Between):
    """A backend whose questions may be answered here."""

    def __init__(self, upstream: Upstream, desk: Desk, scope: Scope) -> None:
        super().__init__(upstream)
        self._desk = desk
        self.scope: Scope = scope
        """What is kept for the session."""
        self._tokens: dict[Exchange, bytes | None] = {}

    def request(self, exchange: Exchange) -> None:
        method, params, envelope = exchange.method, exchange.params, exchange.envelope
        self._tokens[exchange] = progress_token(params)
        if params is not None:
            params = self.declaring(method, self._with_token(method, params))

        def settle(outcome: Outcome) -> None:
            self._inner.pop(exchange, None)
            self._tokens.pop(exchange, None)
            exchange.settle(outcome)

        def answered(outcome: Outcome) -> None:
            if envelope is not None and self._asks_what_is_off(outcome.result):
                outcome = NOT_DECLARED
            # What came before the answer is handled first: a handler may pass it on.
            self._desk.once_told(exchange, lambda: settle(outcome))

        inner = self._inner[exchange] = instead_of(exchange, method, params, answered)
        if envelope is not None:
            declared = self._declared(wire.members(envelope.capabilities))
            if declared is not None:
                meta = wire.member(params, "_meta")
                inner.envelope = envelope._replace(
                    capabilities=declared, meta=None if meta is None else bytes(meta)
                )
        self.backend.request(inner)
        inner.params = None  # they may be large, and the answer may be a long time coming

    def _asks_what_is_off(self, result: Bytes | None) -> bool:
        """Return whether a server of the modern era asks for something that it was not told of."""
        if result is None or b'"inputRequests"' not in bytes(result):
            return False
        requests = wire.members(wire.member(result, "inputRequests")).values()
        methods = (wire.text_member(request, "method") for request in requests)
        return any(method in ASKED and self._desk.handlers.is_off(method) for method in methods)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        self._tokens.pop(exchange, None)
        super().cancel(exchange, params)

    def _with_token(self, method: str, params: Bytes) -> Bytes:
        """Return the parameters of a request with a token for progress if it is to be heard of, and
        without one if it is not."""
        handlers = self._desk.handlers
        if handlers.is_off(PROGRESS):
            return without_token(params)
        if handlers.passes_on(PROGRESS) or method not in WITH_PROGRESS:
            return params
        meta = wire.member(params, "_meta")
        if progress_token(params) is not None:
            return params
        told = wire.with_member(b"{}" if meta is None else meta, "progressToken", b"0")
        return params if told is None else wire.with_member(params, "_meta", told) or params

    def declaring(self, method: str, params: Bytes) -> bytes:
        """Return the parameters of a request with the capabilities that the handlers make of those
        of the client; as they are, where there is nothing to change."""
        if method == "initialize":
            declared = self._declared(wire.members(wire.member(params, "capabilities")))
            changed = None if declared is None else (params, "capabilities", declared)
        else:
            meta = wire.member(params, "_meta")
            found = wire.member(meta, CAPABILITIES_KEY)
            declared = None if found is None else self._declared(wire.members(found))
            if meta is None or declared is None:
                return bytes(params)
            told = wire.with_member(meta, CAPABILITIES_KEY, declared)
            changed = None if told is None else (params, "_meta", told)
        return bytes(params) if changed is None else wire.with_member(*changed) or bytes(params)

    def _declared(self, declared: dict[str, Raw]) -> bytes | None:
        """Return capabilities of a client as the handlers have them; None: as they are."""
        before = dict(declared)
        own = self._desk.handlers.capabilities
        for method, name in ASKED.items():
            if self._desk.handlers.is_off(method):
                declared.pop(name, None)
            elif not self._desk.handlers.passes_on(method):
                declared[name] = Raw(msgspec.json.encode(own[name]))
        return None if declared == before else wire.rebuilt(declared)

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
            about = self if outer is None else outer
            self._desk.tell(method, params, self._context_of(outer), about=about)

    def _context_of(self, exchange: Exchange | None) -> Context:
        """Return the context of a request, in which its client can be reached."""
        if exchange is None or exchange.outcome is not None:
            return Context()
        token = self._tokens.get(exchange)
        context = exchange.context.copy()
        return reaching(context, self.upstream, exchange, self.scope, token)


def without_token(params: Bytes) -> Bytes:
    """Return the parameters of a request of whose progress nobody is to hear."""
    if progress_token(params) is None:
        return params
    meta = wire.member(params, "_meta")
    cut = None if meta is None else wire.without_member(meta, "progressToken")
    return params if cut is None else wire.with_member(params, "_meta", cut) or params

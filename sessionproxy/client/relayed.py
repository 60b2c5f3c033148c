"""Sessions of a proxy that share the one session of a client that is connected already.

To each of them the client's session is a backend. What the server sends goes to the session whose
request it belongs to; on a pipe that is a guess where several have requests in flight, so then it
is refused. Neighbours: `client.runtime` puts the tap behind a client's session.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Reversible
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Final

from .. import wire
from ..backends.attribution import Attribution
from ..core.background import Background
from ..core.between import Instead, instead_of
from ..core.exchange import Ask, Exchange, Outcome
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Launcher, Upstream
from ..core.reach import REACH, Reach, Scope
from ..core.session import Session
from ..core.state import SessionState
from ..errors import BackendGone, Exit, ProxyError
from ..wire import Bytes
from ..wire.envelope import progress_token
from .handlers import LOG, PROGRESS
from .link import Desk

METHOD_NOT_FOUND: Final = b'{"code":-32601,"message":"Method not found"}'


class Party:
    """One session of a proxy, with its part in a client's. A `Backend`."""

    def __init__(self, tap: "Tap", user: str, upstream: Upstream, scope: Scope) -> None:
        self.user = user
        self.mark: object = object()
        self.upstream = upstream
        self.scope = scope
        self._tap = tap
        self._inner: dict[Exchange, Exchange] = {}
        self._tokens: dict[Exchange, bytes | None] = {}

    def context_of(self, exchange: Exchange) -> Context:
        """Return the context of a request, in which its client can be reached."""
        context = exchange.context.copy()
        reach = Reach(self.upstream, exchange, self.scope, self._tokens.get(exchange))
        context.run(REACH.set, reach)
        return context

    def request(self, exchange: Exchange) -> None:
        method = exchange.method
        if method == "initialize":
            exchange.settle(Outcome(result=self._tap.welcome()))
        elif method == "server/discover":
            exchange.settle(Outcome(error=METHOD_NOT_FOUND))
        else:
            self._relay(exchange)

    def _relay(self, exchange: Exchange) -> None:
        def answered(outcome: Outcome) -> None:
            self._inner.pop(exchange, None)
            self._tokens.pop(exchange, None)
            exchange.settle(outcome)

        params = exchange.params
        if self._tap.desk.handlers.is_off(PROGRESS):
            params = without_token(params)
        inner = instead_of(exchange, exchange.method, params, answered)
        inner.origin = self
        self._inner[exchange] = inner
        self._tokens[exchange] = progress_token(exchange.params)
        session = self._tap.session()
        if session is not None and session.state is not SessionState.READY:
            self._tap.background.start(self._send_once_awake, exchange, inner)
        else:
            self._send(session, inner)

    def _send(self, session: Session | None, inner: Exchange) -> None:
        try:
            if session is None:
                raise BackendGone("The client is not connected.")
            session.request(inner)
        except ProxyError as error:
            inner.settle(Outcome(failure=error.with_traceback(None)))

    async def _send_once_awake(self, exchange: Exchange, inner: Exchange) -> None:
        """The client's backend has stopped: have it started again, then send what is still wanted.
        What was lost, the client is told with its own next call."""
        try:
            session = await self._tap.wake()
        except ProxyError as error:
            inner.settle(Outcome(failure=error.with_traceback(None)))
            return
        if self._inner.get(exchange) is inner:
            self._send(session, inner)

    def notify(self, method: str, params: Bytes | None) -> None:
        session = self._tap.session()
        if session is not None and method != "notifications/initialized":
            session.notify(method, params)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        inner, session = self._inner.pop(exchange, None), self._tap.session()
        self._tokens.pop(exchange, None)
        if inner is not None and session is not None:
            session.cancel(inner, params)

    def in_flight(self) -> tuple[Exchange, ...]:
        return tuple(self._inner)

    def leave(self) -> None:
        """Give it back: what it has in flight is cancelled."""
        for exchange in self.in_flight():
            self.cancel(exchange, None)
        self._tap.parties.discard(self)


class Tap:
    """The `Upstream` of a client's backend, and a `Switchboard`: what belongs to a session of a
    proxy goes there, the rest to the client's own session."""

    def __init__(
        self,
        desk: Desk,
        background: Background,
        *,
        session: Callable[[], Session | None],
        wake: Callable[[], Awaitable[Session]],
        welcome: Callable[[], bytes],
    ) -> None:
        """`session`: the client's; None: it is not connected. `wake` has it get a backend again, or
        raises a ProxyError."""
        self.desk = desk
        self.background = background
        self.wake = wake
        self.session = session
        self.welcome = welcome
        self.parties: set[Party] = set()
        self.own: Upstream
        """The client's session, once it is being opened."""
        self._attribution = Attribution(modern=False)

    # -- whose a message is ------------------------------------------------------------------------

    def candidates(self, method: str, in_flight: Iterable[Exchange]) -> Reversible[Exchange]:
        found = tuple(in_flight)
        if len(self.parties) < 2:
            return found
        return self._attribution.candidates(method, [(e, _party_of(e) or _OWN) for e in found])

    def late(self, backend_id: int) -> None:
        self._attribution.late(backend_id)

    # -- from the server ---------------------------------------------------------------------------

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        party = None if exchange is None else _party_of(exchange)
        if party is None or exchange is None:
            self.own.ask(ask, exchange)
            return
        outer = _outer_of(exchange)
        if self.desk.handlers.passes_on(ask.method):
            party.upstream.ask(ask, outer)
        else:
            self.desk.ask(ask, outer, party.context_of(outer))

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        for party in self.parties:
            party.upstream.withdraw(ask, params)
        self.own.withdraw(ask, params)

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        party = None if exchange is None else _party_of(exchange)
        if party is not None and exchange is not None:
            outer = _outer_of(exchange)
            if self.desk.handlers.passes_on(method):
                party.upstream.notification(method, params, encoded, outer)
            else:
                self.desk.tell(method, params, party.context_of(outer))
            return
        if exchange is None and wire.method_of(method).unrelated:
            for party in tuple(self.parties):
                party.upstream.notification(method, params, encoded, None)
        if method != LOG or exchange is not None or not self.parties:
            self.own.notification(method, params, encoded, exchange)

    def hold(self, exchange: Exchange) -> None:
        self.own.hold(exchange)

    def ended(self, how: Exit) -> None:
        for party in tuple(self.parties):
            party.upstream.ended(how)
        self.own.ended(how)


class _Own:
    """The client itself, as one who has requests in flight."""

    user = "own"
    mark = object()


_OWN: Final = _Own()


class TapLauncher:
    """A `Launcher` around one, for the one session of a client."""

    def __init__(self, launcher: Launcher, tap: Tap) -> None:
        self._launcher = launcher
        self._tap = tap

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        self._tap.own = upstream
        async with self._launcher.launch(identity, label, self._tap, opening) as backend:
            yield backend

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return await self._launcher.refused(identity, opening)


class PartyLauncher:
    """A `Launcher` of parts in a client's session."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def hurry(self) -> None:
        """Nothing is being stopped: the client's server is the client's."""

    async def __aenter__(self) -> "PartyLauncher":
        return self

    async def __aexit__(self, *why: object) -> None: ...

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        scope = Scope()
        party = Party(self._tap, identity.owner, upstream, scope)
        self._tap.parties.add(party)
        try:
            yield party
        finally:
            party.leave()
            await scope.close()

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False


def _party_of(exchange: Exchange) -> Party | None:
    return exchange.origin if isinstance(exchange.origin, Party) else None


def _outer_of(exchange: Exchange) -> Exchange:
    sink = exchange.sink
    return sink.outer if isinstance(sink, Instead) else exchange


def without_token(params: Bytes | None) -> Bytes | None:
    """Return the parameters of a request of whose progress nobody is to hear."""
    meta = wire.member(params, "_meta")
    cut = None if meta is None else wire.without_member(meta, "progressToken")
    if params is None or cut is None:
        return params
    changed = wire.with_member(params, "_meta", cut)
    return params if changed is None else changed

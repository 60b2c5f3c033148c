"""A backend of its own for every request: nothing is kept from one to the next.

To the session it is one backend that is always there. Each request starts a server, introduces the
client, has its answer, and ends it again; where the answer is a question (2026-07-28
basic/patterns/mrtr), once that was answered. Neighbours: `route` puts this around `eras`.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Self

import anyio

from .. import wire
from ..core.admission import Admission, Place
from ..core.background import Background, Work
from ..core.between import Around, Between, instead_of
from ..core.caller import ask
from ..core.exchange import Exchange, Holder, Outcome
from ..core.latch import Latch
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Launcher, Upstream
from ..core.reach import SCOPE
from ..core.start import introduced
from ..errors import BackendGone, BackendStartFailed, Exit, InitializeRefused, ProxyError
from ..wire import Bytes
from ..wire.envelope import LOG_LEVELS, text

logger: Final = logging.getLogger(__name__)

OPENINGS: Final = frozenset({"initialize", "server/discover"})

SUBSCRIPTIONS: Final = frozenset({"resources/subscribe", "resources/unsubscribe"})

_DONE: Final = Outcome(result=b"{}")
_NO_LEVEL: Final = Outcome(error=b'{"code":-32602,"message":"level is a log level"}')
_NO_SUBSCRIPTIONS: Final = Outcome(
    error=b'{"code":-32601,"message":"with a backend for each request, none is left to tell of '
    b'changes"}'
)


class FreshLauncher(Around, anyio.AsyncContextManagerMixin):
    """A `Launcher` around one. Entered before the first launch, left after the last backend."""

    def __init__(self, launcher: Launcher, admission: Admission, *, start_timeout: float) -> None:
        """`admission`: lets each request's backend in. `start_timeout`: seconds from the launch of
        a server until it has introduced itself."""
        super().__init__(launcher)
        self.admission = admission
        self.start_timeout = start_timeout
        self._background = Background()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._background:
            yield self

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        fresh = Fresh(self, identity, label, upstream, opening)
        try:
            yield fresh
        finally:
            with anyio.CancelScope(shield=True):  # bounded by what stopping is bounded by
                await fresh.close()

    def begin(self, work: "_Work") -> None:
        self._background.start(work.run, context=self._background.callers_context())


class Fresh:
    """A `Backend` that is another one with each request."""

    def __init__(
        self,
        launcher: FreshLauncher,
        identity: Identity,
        label: str,
        upstream: Upstream,
        opening: Opening,
    ) -> None:
        self.launcher = launcher
        self.identity = identity
        self.label = label
        self.upstream = upstream
        self.opening = opening
        self.level: Bytes | None = None
        """The parameters of the last `logging/setLevel`."""
        self._works: dict[_Work, None] = {}
        """All whose server is not gone yet."""
        self._by_exchange: dict[Exchange, _Work] = {}
        """Of those in flight."""
        self._by_state: dict[str, _Work] = {}
        """By the `requestState` with which its client may go on."""

    def request(self, exchange: Exchange) -> None:
        if exchange.method in SUBSCRIPTIONS:
            exchange.settle(_NO_SUBSCRIPTIONS)
        elif exchange.method == "logging/setLevel":
            exchange.settle(self._set_level(exchange.params))
        elif exchange.method == "ping":
            exchange.settle(_DONE)
        else:
            self._serve(exchange)

    def _serve(self, exchange: Exchange) -> None:
        state = None if exchange.envelope is None else exchange.envelope.state
        work = None if state is None else self._by_state.get(state)
        if work is not None:
            self._by_exchange[exchange] = work
            work.go_on(exchange)
        else:
            work = self._by_exchange[exchange] = _Work(self, exchange)
            self._works[work] = None
            self.launcher.begin(work)

    def _set_level(self, params: Bytes | None) -> Outcome:
        if text(wire.member(params, "level")) not in LOG_LEVELS:
            return _NO_LEVEL
        self.level = params
        return _DONE

    def notify(self, method: str, params: Bytes | None) -> None:
        if method != "notifications/initialized":
            for work in self._works:
                work.notify(method, params)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        work = self._by_exchange.pop(exchange, None)
        if work is not None:
            work.cancel(exchange, params)

    def in_flight(self) -> tuple[Exchange, ...]:
        return tuple(self._by_exchange)

    # -- what works on requests --------------------------------------------------------------------

    def settle(self, exchange: Exchange, outcome: Outcome) -> None:
        """Answer a request."""
        self._by_exchange.pop(exchange, None)
        exchange.settle(outcome)

    def waits(self, work: "_Work", state: str) -> None:
        """A server waits for its client to come back with a `requestState`."""
        self._by_state[state] = work

    def gone(self, work: "_Work") -> None:
        """A server is."""
        self._works.pop(work, None)
        for state in [state for state, found in self._by_state.items() if found is work]:
            del self._by_state[state]

    async def close(self) -> None:
        """Wait until the servers of all requests are gone."""
        works = tuple(self._works)
        for work in works:
            work.end()
        for work in works:
            await work.over.wait()


class _Work:
    """One request, those that go on with it, and the server that is started for them."""

    def __init__(self, fresh: Fresh, exchange: Exchange) -> None:
        self._fresh = fresh
        self._exchange = exchange
        self._params = exchange.params  # the session lets go of them
        self._work = Work()
        self._done = Latch()
        self._backend: Backend | None = None
        self._asked: dict[Exchange, Exchange | None] = {exchange: None}
        """By those of the client that wait: what the server works on."""
        self._stays: dict[Exchange, None] = {}
        """Why the server is kept though nobody waits: it waits for its client."""
        self.over: Latch = Latch()
        """Nothing of it is left."""

    async def run(self) -> None:
        outcome = Outcome(failure=BackendGone("The backend was stopped."))
        try:
            await self._work.run(self._serve)
        except InitializeRefused as error:
            outcome = Outcome(failure=error.with_traceback(None))
            if self._exchange.method in OPENINGS:
                outcome = Outcome(error=error.error)
        except ProxyError as error:
            outcome = Outcome(failure=error.with_traceback(None))
        except Exception:  # a fault of ours with one request must not end all sessions
            logger.exception("%r failed", self._exchange)
        finally:
            for exchange in tuple(self._asked):
                self._fresh.settle(exchange, outcome)
            self._fresh.gone(self)
            self.over.set()

    async def _serve(self) -> None:
        """Raises: AtCapacity, BackendStartFailed, InitializeRefused, Shortage."""
        fresh = self._fresh
        async with fresh.launcher.admission.place(fresh.identity.owner) as place:
            try:
                await self._with_server(place)
            except InitializeRefused:
                if not await fresh.launcher.refused(fresh.identity, fresh.opening):
                    raise
                await self._with_server(place)

    async def _with_server(self, place: Place) -> None:
        """Raises: BackendStartFailed, InitializeRefused, Shortage: nothing stays."""
        fresh = self._fresh
        launching = fresh.launcher.launcher.launch(
            fresh.identity, fresh.label, _Tap(self, fresh.upstream), fresh.opening
        )
        async with launching as backend:
            welcome = await self._introduced(backend)
            place.started()
            if self._exchange.method in OPENINGS:
                self._settled(self._exchange, Outcome(result=welcome))
            else:
                await self._begin(backend)
            await self._done.wait()

    async def _introduced(self, backend: Backend) -> bytes:
        launcher, opening = self._fresh.launcher, self._fresh.opening
        seconds = launcher.start_timeout
        with launcher.admission.pauses.move_on_after(seconds):
            return bytes(await introduced(backend, opening))
        raise BackendStartFailed(f"The backend did not answer {opening.method} in {seconds:g} s.")

    async def _begin(self, backend: Backend) -> None:
        """Have the server answer the request."""
        if self._fresh.level is not None and self._exchange.envelope is None:
            await ask(backend, "logging/setLevel", self._fresh.level)
        self._backend = backend
        if self._exchange in self._asked:
            self._send(self._exchange, self._params)
        self._params = None

    def go_on(self, exchange: Exchange) -> None:
        """Take a request with the answers to what the server has asked."""
        self._asked[exchange] = None
        self._send(exchange, exchange.params)

    def _send(self, exchange: Exchange, params: Bytes | None) -> None:
        assert self._backend is not None
        inner = instead_of(exchange, exchange.method, params, partial(self._settled, exchange))
        self._asked[exchange] = inner
        inner.context.run(SCOPE.set, None)  # nothing is kept for longer than this request
        self._backend.request(inner)

    def _settled(self, exchange: Exchange, outcome: Outcome) -> None:
        if self._asked.pop(exchange, self) is self:
            return  # it was cancelled
        state = text(wire.member(outcome.result, "requestState")) if self._stays else None
        if state is not None:
            self._fresh.waits(self, state)
        self._fresh.settle(exchange, outcome)
        self._end_if_done()

    def held(self, stay: Exchange) -> None:
        """The server is kept until this is settled."""
        self._stays[stay] = None
        stay.share = _Returns(stay.share, self)

    def returned(self, stay: Exchange) -> None:
        self._stays.pop(stay, None)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if not self._asked and not self._stays:
            self._done.set()

    def notify(self, method: str, params: Bytes | None) -> None:
        if self._backend is not None:
            self._backend.notify(method, params)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        """Tell the server, if there is one; end it, if nobody else waits."""
        inner = self._asked.pop(exchange, None)
        if self._backend is not None and inner is not None:
            self._backend.cancel(inner, params)
        if not self._asked and not self._stays:
            self.end()

    def end(self) -> None:
        self._work.cancel()


class _Returns:
    """A `Holder`, and what was there before it."""

    def __init__(self, before: Holder | None, work: _Work) -> None:
        self._before = before
        self._work = work

    def returned(self, exchange: Exchange) -> None:
        if self._before is not None:
            self._before.returned(exchange)
        self._work.returned(exchange)


class _Tap(Between):
    """The `Upstream` of the server of one request, whose end is not the session's."""

    def __init__(self, work: _Work, upstream: Upstream) -> None:
        super().__init__(upstream)
        self._work = work

    def hold(self, exchange: Exchange) -> None:
        super().hold(exchange)
        self._work.held(exchange)

    def ended(self, how: Exit) -> None:
        """What it had in flight is settled, which is all there was."""

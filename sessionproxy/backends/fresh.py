"""A backend of its own for every request: nothing is kept from one to the next.

To the session it is one backend that is always there. Each request starts a server, introduces the
client, has its answer, and ends it again. Neighbours: `route` puts this around `eras`.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Self

import anyio

from .. import wire
from ..core.admission import Admission, Place
from ..core.background import Background, Work
from ..core.between import Between, instead_of
from ..core.caller import ask
from ..core.exchange import Exchange, Outcome
from ..core.latch import Latch
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Launcher, Upstream
from ..core.start import not_started
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


class FreshLauncher(anyio.AsyncContextManagerMixin):
    """A `Launcher` around one. Entered before the first launch, left after the last backend."""

    def __init__(self, launcher: Launcher, admission: Admission, *, start_timeout: float) -> None:
        """`admission`: lets each request's backend in. `start_timeout`: seconds from the launch of
        a server until it has introduced itself."""
        self.launcher = launcher
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

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return await self.launcher.refused(identity, opening)

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
        self._works: dict[Exchange, _Work] = {}

    def request(self, exchange: Exchange) -> None:
        if exchange.method in SUBSCRIPTIONS:
            exchange.settle(_NO_SUBSCRIPTIONS)
        elif exchange.method == "logging/setLevel":
            exchange.settle(self._set_level(exchange.params))
        elif exchange.method == "ping":
            exchange.settle(_DONE)
        else:
            work = self._works[exchange] = _Work(self, exchange)
            self.launcher.begin(work)

    def _set_level(self, params: Bytes | None) -> Outcome:
        if text(wire.member(params, "level")) not in LOG_LEVELS:
            return _NO_LEVEL
        self.level = params
        return _DONE

    def notify(self, method: str, params: Bytes | None) -> None:
        if method != "notifications/initialized":
            for work in self._works.values():
                work.notify(method, params)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        work = self._works.get(exchange)
        if work is not None:
            work.cancel(params)

    def in_flight(self) -> tuple[Exchange, ...]:
        return tuple(exchange for exchange in self._works if exchange.outcome is None)

    def gone(self, exchange: Exchange) -> None:
        """The backend of a request is."""
        self._works.pop(exchange, None)

    async def close(self) -> None:
        """Wait until the backends of all requests are gone."""
        works = tuple(self._works.values())
        for work in works:
            work.cancel(None)
        for work in works:
            await work.over.wait()


class _Work:
    """One request, and the server that is started for it."""

    def __init__(self, fresh: Fresh, exchange: Exchange) -> None:
        self._fresh = fresh
        self._exchange = exchange
        self._params = exchange.params  # the session lets go of them
        self._work = Work()
        self._answered = Latch()
        self._backend: Backend | None = None
        self._inner: Exchange | None = None
        self.over: Latch = Latch()
        """Nothing of it is left."""

    async def run(self) -> None:
        try:
            await self._work.run(self._serve)
        except ProxyError as error:
            self._exchange.settle(Outcome(failure=error.with_traceback(None)))
        except Exception:  # a fault of ours with one request must not end all sessions
            logger.exception("%r failed", self._exchange)
        finally:
            self._exchange.settle(Outcome(failure=BackendGone("The backend was stopped.")))
            self._fresh.gone(self._exchange)
            self.over.set()

    async def _serve(self) -> None:
        """Raises: AtCapacity, BackendStartFailed, InitializeRefused, Shortage."""
        fresh = self._fresh
        async with fresh.launcher.admission.place(fresh.identity.owner) as place:
            try:
                await self._with_server(place)
            except InitializeRefused as error:
                if not await fresh.launcher.refused(fresh.identity, fresh.opening):
                    self._exchange.settle(Outcome(error=error.error))
                    return
                await self._with_server(place)

    async def _with_server(self, place: Place) -> None:
        """Raises: BackendStartFailed, InitializeRefused, Shortage: nothing stays."""
        fresh = self._fresh
        launching = fresh.launcher.launcher.launch(
            fresh.identity, fresh.label, _Tap(fresh.upstream), fresh.opening
        )
        async with launching as backend:
            welcome = await self._introduced(backend)
            place.started()
            if self._exchange.method in OPENINGS:
                self._exchange.settle(Outcome(result=welcome))
            else:
                await self._asked(backend)

    async def _introduced(self, backend: Backend) -> bytes:
        opening, seconds = self._fresh.opening, self._fresh.launcher.start_timeout
        with anyio.move_on_after(seconds):
            outcome = await ask(backend, opening.method, opening.params)
            if outcome.failure is not None:
                raise not_started(outcome.failure)
            if outcome.result is None:
                error = bytes(outcome.error or b"{}")
                raise InitializeRefused(f"The backend refused {opening.method}.", error)
            if not opening.modern:
                backend.notify("notifications/initialized", None)
            return bytes(outcome.result)
        raise BackendStartFailed(f"The backend did not answer {opening.method} in {seconds:g} s.")

    async def _asked(self, backend: Backend) -> None:
        """Have the server answer the request."""
        if self._fresh.level is not None and self._exchange.envelope is None:
            await ask(backend, "logging/setLevel", self._fresh.level)
        if self._exchange.outcome is not None:
            return
        self._backend = backend
        method, params = self._exchange.method, self._params
        self._inner = instead_of(self._exchange, method, params, self._settled)
        backend.request(self._inner)
        await self._answered.wait()

    def _settled(self, outcome: Outcome) -> None:
        self._exchange.settle(outcome)
        self._answered.set()

    def notify(self, method: str, params: Bytes | None) -> None:
        if self._backend is not None:
            self._backend.notify(method, params)

    def cancel(self, params: Bytes | None) -> None:
        """Tell the server, if there is one, and end it."""
        if self._backend is not None and self._inner is not None:
            self._backend.cancel(self._inner, params)
        self._work.cancel()


class _Tap(Between):
    """The `Upstream` of the server of one request, whose end is not the session's."""

    def ended(self, how: Exit) -> None:
        """What it had in flight is settled, which is all there was."""

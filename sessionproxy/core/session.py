"""One conversation, and the backend that it owns while it is awake.

A session is opened and found by `core.manager`, lent to requests as leases, and moved by four
verbs. `begin` takes what a backend needs and `finish` gives it back, each in a task of its own:
while a session is ready it has none, which is most of what it would weigh. Everyone else asks,
with `stop` (the backend ends, the session sleeps) or `end` (both are over).

Neighbours: `core.relay` hands it what the backend sends; the frontend's exchanges and client port
take it from there.
"""

import logging
import math
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import Context
from time import perf_counter
from typing import Final, TypeVar

import anyio

from .. import wire
from ..errors import (
    BackendGone,
    BackendStartFailed,
    Exit,
    InitializeRefused,
    ProxyError,
    RequestCancelled,
    SessionEnded,
    SessionNotFound,
)
from ..wire import Bytes, Remembers
from .admission import Admission
from .asks import Asks
from .binding import label_of
from .context import SessionName
from .counts import Counts
from .deadlines import CALL_LIMIT, CallLimit
from .exchange import FAULTY, NOT_BEGUN, Ask, ClientPort, Exchange, Outbound, Outcome, ReplySink
from .latch import Latch
from .memory import Loss, Memory, Opening
from .pauses import Pauses
from .ports import Backend, Composed, Identity, Launcher, Losing
from .start import Start, resume, shake_hands
from .state import EndReason, SessionState, StopReason, advance

logger: Final = logging.getLogger(__name__)

T = TypeVar("T")

SILENT_CALLS: Final = 3
"""Calls in a row that run into the call limit, after which the backend is stopped."""


class Session:
    """A conversation of one client. Its states are in `core.state`."""

    __slots__ = (
        "__weakref__",
        "_asks",
        "_backend",
        "_call_limit",
        "_closing",
        "_context",
        "_counts",
        "_ended",
        "_held",
        "_leases",
        "_lists_changed",
        "_opener",
        "_parts",
        "_scope",
        "_silent_calls",
        "_was_ready",
        "client",
        "end_reason",
        "identity",
        "idle_since",
        "keeps_id",
        "label",
        "loss",
        "memory",
        "opened_at",
        "opening",
        "shared",
        "slept_at",
        "start",
        "state",
        "stateless",
        "stop_reason",
        "stopped",
        "version",
        "welcome",
    )

    def __init__(
        self,
        identity: Identity,
        opening: Opening,
        client: ClientPort,
        *,
        opener: ReplySink | None = None,
        context: Context | None = None,
        keeps_id: bool = True,
        shared: bool = False,
        stateless: bool = False,
        call_limit: CallLimit | None = None,
        counts: Counts | None = None,
        closing: Callable[["Session"], None],
        lists_changed: Callable[[str], None] = lambda method: None,
    ) -> None:
        """`opener` takes what the backend sends before it has answered `initialize`; `context` is
        that of the request, for hooks.

        `keeps_id`: whether the session outlives its backend, asleep. `closing` is called when a
        session that was ready is to be finished: it must see to it that `finish` is run. `shared`:
        several clients may have a share in it. `stateless`: it builds up nothing in its backend
        that ends with its hold on it. `lists_changed` is told the method when the backend says that
        a list has changed. `counts`: the route's.
        """
        # Fixed for life.
        self.identity: Identity = identity
        self.label: str = label_of(identity)
        self.opening: Opening = opening
        self.client: ClientPort = client
        self.keeps_id: bool = keeps_id
        self.opened_at: float = anyio.current_time()
        self._call_limit = call_limit
        self._counts = Counts() if counts is None else counts
        self._closing = closing
        self._lists_changed = lists_changed
        self.shared: bool = shared
        self.stateless: bool = stateless
        self.welcome: bytes | None = None
        """How the backend introduced itself, where clients may come who have not heard it."""
        # Moves with each life of a backend.
        self.state: SessionState = SessionState.STARTING
        self.start: Start = Start()
        self.stopped: Latch = self.start.settled  # replaced with every stop, or end that stops
        self.stop_reason: StopReason | None = None
        self.end_reason: EndReason | None = None
        self.loss: Loss | None = None
        self.slept_at: float = math.inf
        self.version: str | None = None
        """The revision that was negotiated; None until a backend has answered `initialize`."""
        self._opener = opener
        self._context = context
        self._scope: anyio.CancelScope | None = None
        self._held: list[AbstractAsyncContextManager[object]] = []
        self._backend: Backend | None = None
        self._parts: Composed | None = None
        """The backend, where it has parts that may lose their state without it."""
        self._ended: Exit | None = None
        self._was_ready = False
        """This life of a backend has got as far as `READY`: its end is `finish`."""
        # Changes with every request.
        self.memory: Memory = Memory()
        self.idle_since: float = self.opened_at
        self._leases = 0
        self._silent_calls = 0
        self._asks = Asks(client)

    def __repr__(self) -> str:
        return f"<Session {self.label} {self.state.value} leases={self._leases}>"

    @property
    def name(self) -> SessionName:
        return SessionName(self.label, self.identity.route)

    # -- its life --------------------------------------------------------------------------------

    async def begin(
        self, admission: Admission, launcher: Launcher, pauses: Pauses, *, start_timeout: float
    ) -> None:
        """Take a place, launch a backend and shake hands.

        Returns with the session ready; or asleep or closed, and nothing left running. Never
        raises a `ProxyError`: those who wait for the start are given it. `start_timeout`: seconds
        from the launch to the answer, `pauses` not counted.
        """
        failure: ProxyError | None = None
        try:
            with anyio.CancelScope() as self._scope:
                if self.state is SessionState.STARTING:  # else it was ended before it began
                    await self._begin(admission, launcher, pauses, start_timeout)
        except ProxyError as error:
            failure = error
        finally:
            self._scope = None
            if not self._was_ready:
                await self._close()
                self._settle(failure)
            elif self._ended is not None:
                self.stop(StopReason.BACKEND_EXIT, self._ended)

    async def _begin(
        self, admission: Admission, launcher: Launcher, pauses: Pauses, patience: float
    ) -> None:
        place = await self._hold(admission.place(self.identity.owner))
        before = len(self._held)
        self.start.queued = False
        try:
            try:
                result = await self._launch(launcher, pauses, patience)
            except InitializeRefused:
                if not await launcher.refused(self.identity, self.opening):
                    raise
                await self._leave_down_to(before)
                result = await self._launch(launcher, pauses, patience)
        finally:
            place.started()  # stopping one that failed holds nobody up
        if self._backend is not None and (self.version is not None or self.shared):
            resume(self._backend, self.opening, self.memory, self.client)
        self.version = wire.text_member(result, "protocolVersion") or ""
        if self.shared:
            self.welcome = bytes(result)
        self._became_ready()

    async def _launch(self, launcher: Launcher, pauses: Pauses, patience: float) -> Bytes:
        """Launch a backend and shake hands, in `patience` seconds; return its welcome."""
        with pauses.move_on_after(patience):
            backend = await self._hold(
                launcher.launch(self.identity, self.label, self, self.opening)
            )
            self._backend = backend
            self._parts = backend if isinstance(backend, Composed) else None
            opening, opener = self.opening, self._opener
            return await shake_hands(
                backend, opening, self.start, opener, self.client, self._context
            )
        raise BackendStartFailed(f"The backend did not answer initialize in {patience:g} s.")

    async def _hold(self, what: AbstractAsyncContextManager[T]) -> T:
        """Enter `what`, until `_close`, which another task may call."""
        value = await what.__aenter__()
        self._held.append(what)
        return value

    async def _leave_down_to(self, count: int) -> None:
        """Give back what is held beyond the first `count`: a backend that was no good, if it was
        not given back on its own entry."""
        with anyio.CancelScope(shield=True):
            while len(self._held) > count:
                await self._held.pop().__aexit__(None, None, None)
        self._backend = self._parts = self._ended = None  # its end is not that of the next one

    async def finish(self) -> None:
        """Stop the backend of a session that was ready, and give back its place."""
        await self._close()
        self._settle(None)

    async def _close(self) -> None:
        """Leave what is held, last first. Shielded; bounded by what is left."""
        with anyio.CancelScope(shield=True):
            while self._held:
                try:
                    await self._held.pop().__aexit__(None, None, None)
                except Exception:  # the rest must be given back all the same
                    logger.exception("%r: not all could be given back", self)
        self._backend = None
        self._parts = None
        self._ended = None
        self._was_ready = False

    def _became_ready(self) -> None:
        self.state = advance(self.state, SessionState.READY)
        self._was_ready = True
        self.stop_reason = None
        self.idle_since = anyio.current_time()
        self._silent_calls = 0
        self._asks.moved()
        self._opener = self._context = None
        self.start.settled.set()

    def _settle(self, failure: ProxyError | None) -> None:
        """Move on once the backend is gone. Every life of a backend ends here."""
        if self.state is SessionState.STARTING:
            failure = failure or BackendStartFailed("The start was cut off.")
            if self.version is None:
                self.end(EndReason.START_FAILED)
            else:
                self.stop(StopReason.START_FAILED)
        lossless = self.stateless and self.loss is None
        if self.state is SessionState.STOPPING and not self.keeps_id and not lossless:
            self.end(EndReason.BACKEND_LOST)
        # Its traceback would keep the backend that failed, for as long as the session sleeps.
        self.start.failure = None if failure is None else failure.with_traceback(None)
        if self.state is SessionState.STOPPING:
            self.state = advance(self.state, SessionState.ASLEEP)
            self.slept_at = anyio.current_time()
            self.client.asleep()
        else:
            self.state = advance(self.state, SessionState.CLOSED)
        self.start.settled.set()
        self.stopped.set()

    def wake(self) -> Start:
        """Leave `ASLEEP` for a new start, which the caller runs with `begin`."""
        self.state = advance(self.state, SessionState.STARTING)
        self.start = Start()
        return self.start

    def stop(self, reason: StopReason, how: Exit | None = None) -> None:
        """Ask its backend to stop; the session goes to sleep. Idempotent: the first reason counts.

        `how`: how the backend ended, where it did so by itself.
        """
        was = self.state
        if was not in (SessionState.STARTING, SessionState.READY):
            return
        if was is SessionState.READY and (not self.stateless or reason is StopReason.BACKEND_EXIT):
            now = anyio.current_time()
            self.loss = Loss(now, reason, max(0.0, now - self.idle_since), how)
        self.stop_reason = reason
        self.stopped = Latch()
        self.state = advance(self.state, SessionState.STOPPING)
        self._fail_in_flight(BackendGone(f"The backend was stopped: {reason}.", how))
        self._leave(was)

    def end(self, reason: EndReason) -> None:
        """Ask it to be over. Idempotent: the first reason given is the one kept."""
        if self.end_reason is not None:
            return
        self.end_reason = reason
        was = self.state
        if was is SessionState.READY:
            self.stopped = Latch()
        self.state = advance(was, SessionState.ENDING)
        self._fail_in_flight(SessionEnded(f"The session ended: {reason}."))
        self.client.close()
        if was is SessionState.ASLEEP:  # nothing is left to stop
            self.state = advance(self.state, SessionState.CLOSED)
        else:
            self._leave(was)

    def _leave(self, was: SessionState) -> None:
        """Have the backend stopped: by the task that starts it, or by one that `closing` starts."""
        if was is SessionState.READY:
            self._closing(self)
        elif self._scope is not None:
            self._scope.cancel()

    def ended(self, how: Exit) -> None:
        """Take note that the backend ended by itself, with all it had in flight."""
        self._ended = how
        if self.state is SessionState.READY:
            self.stop(StopReason.BACKEND_EXIT, how)

    def _fail_in_flight(self, failure: ProxyError) -> None:
        if self._backend is not None:
            for exchange in self._backend.in_flight():
                exchange.settle(Outcome(failure=failure))
        self._asks.withdraw_all()

    # -- what the client sends -------------------------------------------------------------------

    @contextmanager
    def lease(self) -> Generator[Backend]:
        """Hold the session for a moment; while any lease is held it is not idle.

        Raises:
            SessionNotFound: it grants no leases.
        """
        if self.state is not SessionState.READY or self._backend is None:
            raise SessionNotFound(f"{self!r} grants no leases")
        self._leases += 1
        try:
            yield self._backend
        finally:
            self._give_back()

    def request(self, exchange: Exchange) -> None:
        """Pass a request on. It holds a lease until it is settled, whoever still waits for it.

        Raises: SessionNotFound: the session grants no leases.
        """
        backend = self._backend
        if self.state is not SessionState.READY or backend is None:
            raise SessionNotFound(f"{self!r} grants no leases")
        if exchange.outcome is not None:
            return  # it was cancelled, or failed, before it got here
        if exchange.treatment.remembers is Remembers.UNSUBSCRIBE and self.memory.others_want(
            exchange.params, exchange.origin
        ):
            exchange.settle(Outcome(result=b"{}"))
            return
        self._leases += 1
        exchange.holder = self
        exchange.began_at = perf_counter()
        self.client.heard()
        self._asks.absent_since = None
        if self._call_limit is not None:
            self._call_limit.watch(exchange, self.ran_out)
        try:
            backend.request(exchange)
        except ProxyError:
            raise
        except Exception:  # a fault of ours fails the one request, which gives back its lease
            logger.exception("%r could not pass on a request: %s", self, exchange.method)
            exchange.settle(FAULTY)
        if exchange.treatment.remembers is None:
            exchange.params = None  # they may be large, and the answer may be a long time coming

    def hold(self, exchange: Exchange) -> None:
        """Give a lease to an exchange of a backend's own making, until it is settled."""
        self._leases += 1
        exchange.holder = self

    def cancel(self, exchange: Exchange, params: Bytes | None = None) -> None:
        """Cancel a request whose client hung up, where that means so (2026-07-28
        basic/transports/streamable-http#cancellation). `params`: of a client's own cancellation."""
        if exchange.outcome is None:
            if self._backend is not None and exchange.holder is self:
                self._backend.cancel(exchange, params)
            exchange.settle(Outcome(failure=RequestCancelled("The request was cancelled.")))

    def returned(self, exchange: Exchange) -> None:
        """Take back the lease of an exchange that was settled."""
        if self._call_limit is not None:
            self._call_limit.forget(exchange)
        if self._asks.waiting:
            self._move_asks(exchange.sink)
        outcome = exchange.outcome
        if outcome is not None and outcome.failure is None:
            self._silent_calls = 0
            if exchange.treatment.remembers is not None and outcome.result is not None:
                self.memory.note(exchange.treatment.remembers, exchange.params, exchange.origin)
        self._give_back()
        if outcome is not None and exchange.began_at is not NOT_BEGUN:
            self._counts.over(exchange.method, outcome, perf_counter() - exchange.began_at)

    def _move_asks(self, sink: ReplySink) -> None:
        """Nothing more goes out on `sink`, unless another request of a batch is still open: what
        was asked there is from now on the matter of another stream that is read."""
        open_ones = [exchange.sink for exchange in self._theirs()]
        if sink not in open_ones:
            self._asks.moved(sink, next((s for s in reversed(open_ones) if s.attached), None))

    def _theirs(self) -> list[Exchange]:
        """Return the client's requests in flight: what is replayed on waking is not."""
        in_flight = () if self._backend is None else self._backend.in_flight()
        return [exchange for exchange in in_flight if exchange.holder is self]

    def _give_back(self) -> None:
        self._leases -= 1
        self.idle_since = anyio.current_time()

    def ran_out(self, exchange: Exchange, failure: ProxyError) -> None:
        """Fail a call that took longer than the call limit; stop a backend that makes a habit."""
        if self._backend is not None:
            self._backend.cancel(exchange, CALL_LIMIT)
        exchange.settle(Outcome(failure=failure))
        self._silent_calls += 1
        if self._silent_calls >= SILENT_CALLS:
            self.stop(StopReason.SILENT)

    def notify(self, method: str, params: Bytes | None, origin: object = None) -> None:
        """Pass a notification on; without a backend that listens it is dropped.

        `origin`: of the client's exchanges, the only ones that it can cancel.
        """
        if self.state is not SessionState.READY:
            return
        self._heard()
        with self.lease() as backend:
            if method == "notifications/cancelled":
                self._cancel(backend, params, origin)
            else:
                backend.notify(method, params)

    def _cancel(self, backend: Backend, params: Bytes | None, origin: object) -> None:
        """Cancel the exchange that the client's id names; an id that names two cancels none.

        Only exchanges that hold a lease are the client's: what is replayed on waking is not.
        """
        named = wire.cancelled_request_id(params)
        if named is None:
            return
        key = wire.id_value(named)
        found = [
            e for e in self._theirs() if e.origin is origin and wire.id_value(e.client_id) == key
        ]
        if len(found) == 1 and not found[0].treatment.uncancellable:
            backend.cancel(found[0], params)
            found[0].settle(Outcome(failure=RequestCancelled("The request was cancelled.")))

    def answer(self, client_id: bytes, outcome: Outcome) -> bool:
        """Hand the client's answer to the request it answers; False where there is none such.

        Raises: BackendBusy: the backend cannot take it now.
        """
        if not self._asks.answer(client_id, outcome):
            return False
        self.idle_since = anyio.current_time()
        self._heard()
        return True

    def _heard(self) -> None:
        self.client.heard()
        self._asks.absent_since = None

    # -- what the backend sends ------------------------------------------------------------------

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        if self.state not in (SessionState.STARTING, SessionState.READY):
            ask.withdraw()  # its backend is being stopped; code of the user's may wait all the same
            return
        self._counts.asked(ask.method)
        self._asks.send(ask, self._sink(exchange))

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        self._asks.withdraw(ask, params)

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        treatment = wire.method_of(method)
        if treatment.lists:
            self._lists_changed(method)
        sink = self._sink(None if treatment.unrelated and self.client.listening else exchange)
        (sink or self.client).message(Outbound(encoded, droppable=treatment.droppable))

    def _sink(self, exchange: Exchange | None) -> ReplySink | None:
        """Return the stream a message goes out on: one only, and one that is read if possible.

        None: the client's standalone one.
        """
        if exchange is None or (not exchange.sink.attached and self.client.listening):
            return None
        return exchange.sink

    # -- what was lost ---------------------------------------------------------------------------

    @property
    def bereaved(self) -> bool:
        """Whether a loss of state is to be told, of all or of a part. Looked at with every request,
        so without a call where there are no parts."""
        return self.loss is not None or (self._parts is not None and self._parts.bereaved)

    def bereft(self, exchange: Exchange) -> Losing | None:
        """Return what has lost the state that a request relies on: the session, or the part of its
        backend that the request is for."""
        if not exchange.treatment.uses_state:
            return None
        if self.loss is not None:
            return self
        return None if self._parts is None else self._parts.bereft(exchange)

    # -- what the reaper looks at ----------------------------------------------------------------

    @property
    def leases(self) -> int:
        return self._leases

    def works_for(self, origin: object) -> bool:
        """Return whether a request of this client is in flight (`Exchange.origin`)."""
        return any(exchange.origin is origin for exchange in self._theirs())

    def idle_for(self, now: float) -> float:
        """Seconds since the last lease was returned; `-inf` while one is held."""
        return -math.inf if self._leases else now - self.idle_since

    def deserted_for(self, now: float) -> float:
        """Seconds since its client closed its stream, or since its last call ended if that was
        later, where it has sent nothing since; `-inf` where it has, or closed none."""
        left_at = self.client.left_at
        if left_at is None or self._leases:
            return -math.inf
        return now - max(left_at, self.idle_since)

    def unheard_for(self, now: float) -> float:
        """Seconds for which what was asked has waited for a client that has no stream open and
        sends nothing; `-inf` where nothing does. Counts from the first look that finds it so."""
        if not self._asks.nobody_reads() or any(e.sink.attached for e in self._theirs()):
            self._asks.absent_since = None
            return -math.inf
        if self._asks.absent_since is None:
            self._asks.absent_since = now
        return now - self._asks.absent_since

    def give_up_asking(self) -> None:
        """Answer what the backend asked with an error, so that its call can end."""
        self._asks.give_up()

    @property
    def size(self) -> int:
        """Bytes it keeps in memory while it is asleep, about."""
        return self.opening.size + self.memory.size + self.client.size

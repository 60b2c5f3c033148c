"""A client's connection: one session of a server, used from this process.

A call is a request like any client's, by the same session, to the same backend; what the backend
asks and tells before it answers goes to the handlers, in the context of the call. Neighbours:
`client.calls` puts types around it; `client.runtime` and `client.proxy` open it.
"""

import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Final, Protocol, Self
from weakref import WeakKeyDictionary

import anyio
import msgspec

from .. import wire
from ..backends.questions import undeclared
from ..core.background import Background, Work, of_the_users
from ..core.exchange import FAULTY, Ask, Exchange, Outbound, Outcome
from ..core.latch import Latch
from ..core.manager import SessionManager
from ..core.memory import Memory, Opening
from ..core.reach import SCOPE
from ..core.session import Session
from ..core.start import resume
from ..core.state import EndReason, SessionState
from ..errors import BackendGone, SessionNotFound, StateLost
from ..frontend.loss import told
from ..wire import Bytes
from .handlers import LOG, PROGRESS, Handlers, ProgressHandler

logger: Final = logging.getLogger(__name__)

_NUMBERS: Final = itertools.count(1)

Listener = Callable[[str, Bytes | None], None]
"""Told method and parameters of a notification that belongs to no request."""


class KeepsLists(Protocol):
    """Forgets lists that it keeps once the server says that they have changed."""

    def changed(self, method: str, keys: tuple[int, ...]) -> None:
        """Take note of a notification of a server whose lists are kept under these keys."""
        ...


MAX_UNTOLD: Final = 10_000
"""Log messages and progress of one call that wait for a handler which does not keep up; what comes
after that is dropped."""


MAX_UNTOLD_BYTES: Final = 32 * 1024 * 1024
"""Likewise, as much as may wait for a backend; one message may be larger."""


class _Telling:
    """What was told about one call and has not been handled yet."""

    def __init__(self) -> None:
        self.notes: deque[tuple[Handlers, str, Bytes | None]] = deque()
        self.size = 0
        """Bytes of them, about."""
        self.then: list[Callable[[], None]] = []
        """What waits until all was handled."""

    def take(self, handlers: Handlers, method: str, params: Bytes | None) -> None:
        """Have it wait for its turn; drop it where too much does."""
        size = _size_of(params)
        if not self.notes or (
            len(self.notes) < MAX_UNTOLD and self.size + size <= MAX_UNTOLD_BYTES
        ):
            self.notes.append((handlers, method, params))
            self.size += size

    def next(self) -> tuple[Handlers, str, Bytes | None]:
        """Return the one whose turn it is."""
        found = self.notes.popleft()
        self.size -= _size_of(found[2])
        return found


def _size_of(params: Bytes | None) -> int:
    return 0 if params is None else memoryview(params).nbytes


class Desk(anyio.AsyncContextManagerMixin):
    """Has handlers run for what a server sends: for questions at once, for what belongs to one call
    in the order in which it came. Left when nobody sends any more: what still runs is cancelled."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers
        self._background = Background()
        self._tellings: dict[object, _Telling] = {}
        """By what it is about, while a handler runs."""

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        try:
            async with self._background:
                yield self
        finally:
            self._close()

    def ask(self, ask: Ask, exchange: Exchange | None, context: Context) -> None:
        """Have a question answered. `context`: in which, which is not used elsewhere."""
        if self.handlers.is_off(ask.method):
            ask.decline(undeclared(ask.method))
            return
        work, then = Work(), ask.on_over

        def over(ask: Ask) -> None:
            if then is not None:
                then(ask)
            work.cancel()

        ask.on_over = over
        self._background.start(self._answer, ask, exchange, work, context=context)

    async def _answer(self, ask: Ask, exchange: Exchange | None, work: Work) -> None:
        async def answer() -> None:
            try:
                with of_the_users():
                    outcome = await self.handlers.answer(ask.method, ask.params, exchange)
            except Exception:  # a handler is not ours: it fails the one question
                logger.exception("the handler for %s failed", ask.method)
                outcome = FAULTY
            ask.decline(outcome)

        await work.run(answer)

    def tell(
        self,
        method: str,
        params: Bytes | None,
        context: Context,
        *,
        about: object,
        progress: ProgressHandler | None = None,
    ) -> None:
        """Have a log message or progress handled, after all that was told before about the same.

        `progress`: a call's own handler. `context`: in which, where no handler runs already.
        """
        handlers = self.handlers if progress is None else Handlers(progress=progress)
        if method not in (LOG, PROGRESS) or handlers.is_off(method):
            return
        telling = self._tellings.get(about)
        if telling is None:
            telling = self._tellings[about] = _Telling()
            self._background.start(self._handle, about, telling, context=context)
        telling.take(handlers, method, params)

    async def _handle(self, about: object, telling: _Telling) -> None:
        try:
            while telling.notes:
                handlers, method, params = telling.next()
                try:
                    with of_the_users():
                        await handlers.tell(method, params)
                except Exception:  # likewise
                    logger.exception("the handler for %s failed", method)
        finally:
            self._tellings.pop(about, None)
            for then in telling.then:
                then()

    def once_told(self, about: object, then: Callable[[], None]) -> None:
        """Call `then` once all that was told about something has been handled; now, if it was."""
        telling = self._tellings.get(about)
        if telling is None:
            then()
        else:
            telling.then.append(then)

    def _close(self) -> None:
        """Have nobody wait for handlers: those that ran were cancelled."""
        tellings, self._tellings = self._tellings, {}
        for telling in tellings.values():
            for then in telling.then:
                then()


class Call:
    """The answer to a call, and what comes before it. A `ReplySink`."""

    def __init__(self, desk: Desk, progress: ProgressHandler | None) -> None:
        self._desk = desk
        self._progress = progress
        self._came = Latch()
        self.exchange: Exchange | None = None
        self._result = Outcome(failure=BackendGone("The backend gave no answer."))

    @property
    def attached(self) -> bool:
        return not self._came.is_set()

    def takes(self, method: str) -> int:
        return 0 if self._desk.handlers.is_off(method) else 2

    def message(self, message: Outbound) -> None:
        context = self._context()
        if message.ask is not None:
            self._desk.ask(message.ask, self.exchange, context)
            return
        note = wire.decode(message.data)
        method = str(note.method)
        own = self._progress if method == PROGRESS else None
        self._desk.tell(method, note.object_params(), context, about=self, progress=own)

    def _context(self) -> Context:
        settled = self.exchange is None or self.exchange.outcome is not None
        return Context() if settled or self.exchange is None else self.exchange.context.copy()

    def settled(self, exchange: Exchange) -> None:
        self._result = exchange.outcome or self._result
        self._desk.once_told(self, self._came.set)

    async def outcome(self) -> Outcome:
        """Wait for the answer, and until all that came before it has been handled."""
        await self._came.wait()
        return self._result


class Port:
    """What hears for a client of ours when no request is concerned. A `ClientPort`."""

    listening = True
    left_at: float | None = None
    size = 0

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.listeners: list[Listener] = []
        self.lists: WeakKeyDictionary[KeepsLists, tuple[int, ...]] = WeakKeyDictionary()
        """Who keeps lists of the server's, for as long as they are there; and under which keys."""

    def message(self, message: Outbound) -> None:
        if message.ask is not None:
            self._desk.ask(message.ask, None, Context())
            return
        note = wire.decode(message.data)
        method, params = str(note.method), note.object_params()
        self._desk.tell(method, params, Context(), about=self)
        for keeper, keys in tuple(self.lists.items()):
            keeper.changed(method, keys)
        for listener in tuple(self.listeners):
            try:
                listener(method, params)
            except Exception:  # it is not ours: it must not keep the message from all others
                logger.exception("a listener failed on %s", method)

    def heard(self) -> None: ...

    def asleep(self) -> None: ...

    def close(self) -> None: ...


class Link:
    """A session that is held open: one that is over, though it was not left, begins anew."""

    def __init__(self, manager: SessionManager, owner: str, opening: Opening, desk: Desk) -> None:
        self._manager = manager
        self._owner = owner
        self._opening = opening
        self._desk = desk
        self._opens = anyio.Lock()
        self.number: int = next(_NUMBERS)
        """Tells it from every other one, also from those that are over."""
        self.port: Port = Port(desk)
        self.session: Session | None = None
        self.welcome: bytes = b"{}"
        """The result of the opening."""

    async def open(self) -> None:
        """Raises: ProxyError: it could not be opened; nothing stays."""
        self.session = await self._opened(Memory())

    async def _opened(self, memory: Memory) -> Session:
        """Return a session of its own, in which all is set up that is in memory.

        Raises: ProxyError: it could not be opened; nothing stays.
        """
        call = Call(self._desk, None)
        session = self._manager.create(self._owner, self._opening, self.port, call)
        await self._manager.opened(session)
        answer = session.start.answer
        if answer is not None and answer.result is not None:
            self.welcome = bytes(answer.result)
        session.start.answer = None
        session.memory = memory
        if session.state is SessionState.READY:  # else it is set up when it wakes
            with session.lease() as backend:
                resume(backend, session.opening, memory, session.client)
        return session

    async def ready(self) -> Session:
        """Return its session, with a backend.

        Raises: ProxyError: it cannot be had.
        """
        session = self._current()
        if session.state is not SessionState.READY:
            try:
                await self._manager.ready(session)
            except SessionNotFound:
                session = await self._anew(session)
                await self._manager.ready(session)
        return session

    def _current(self) -> Session:
        """Raises: BackendGone: it was left."""
        if self.session is None:
            raise BackendGone("The client is not connected.")
        return self.session

    async def _anew(self, over: Session) -> Session:
        """Return the session that takes the place of one that is over: the same for all who ask."""
        async with self._opens:
            if self._current() is over:
                session = await self._opened(over.memory)
                if self.session is None:  # it was left meanwhile
                    self._manager.end(session, EndReason.CLIENT_DELETE)
                else:
                    session.loss = over.loss or self._manager.lost_with(over)
                    self.session = session
            return self._current()

    async def request(
        self, method: str, params: Bytes | None, *, progress: ProgressHandler | None = None
    ) -> Outcome:
        """Send a request, and return how it ended. Cancelled, it is cancelled at the server.

        Raises: StateLost: it relies on what was built up, and that is lost; this is told once.
            ProxyError: as `ready`.
        """
        session = await self.ready()
        call = Call(self._desk, progress)
        exchange = call.exchange = Exchange(method, params, client_id=b"0", sink=call)
        exchange.context.run(SCOPE.set, None)  # of the session that is served here, not of this one
        losing = session.bereft(exchange)
        if losing is not None and losing.loss is not None:
            loss, losing.loss = losing.loss, None
            raise told(loss, anyio.current_time())
        session.request(exchange)
        try:
            outcome = await call.outcome()
        except BaseException:
            session.cancel(exchange)
            raise
        if isinstance(outcome.failure, StateLost) and outcome.failure.on_told is not None:
            outcome.failure.on_told()
        return outcome

    def notify(self, method: str, params: Bytes | None) -> None:
        if self.session is not None:
            self.session.notify(method, params)

    async def close(self) -> None:
        """End the session, and wait until its backend is gone."""
        session, self.session = self.session, None
        if session is not None:
            self._manager.end(session, EndReason.CLIENT_DELETE)
            with anyio.CancelScope(shield=True):  # bounded by what stopping is bounded by
                await session.stopped.wait()


def opening_params(handlers: Handlers, name: str, version: str) -> bytes:
    """Return what a client of ours begins its session with."""
    return msgspec.json.encode(
        {
            "protocolVersion": wire.HANDSHAKE_VERSIONS[-1],
            "capabilities": handlers.capabilities,
            "clientInfo": {"name": name, "version": version},
        }
    )

"""The core's neighbours, small and obedient; what goes wrong with them are arguments."""

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Literal

import anyio
import msgspec

from sessionproxy.core.binding import SessionIds
from sessionproxy.core.exchange import Ask, Exchange, Outbound, Outcome
from sessionproxy.core.manager import Limits, SessionManager
from sessionproxy.core.memory import Opening
from sessionproxy.core.pauses import Pauses
from sessionproxy.core.ports import Identity, Upstream
from sessionproxy.core.session import Session
from sessionproxy.core.state import SessionState
from sessionproxy.errors import BackendBusy, BackendGone, BackendStartFailed, Exit
from sessionproxy.wire import Bytes, Kind

USER = ContextVar("USER", default="nobody")
"""Stands for whatever a server keeps about the request it is answering."""

OPENING = Opening(b'{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{}}')
WELCOME = b'{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{}}'
KEY = b"k" * 32


class Steady(Pauses):
    """Of a process that never stands still. Needs no `run`."""

    @contextmanager
    def move_on_after(self, seconds: float) -> Generator[anyio.CancelScope]:
        with anyio.move_on_after(seconds) as scope:
            yield scope


class FakeSink:
    """Keeps what an exchange is given."""

    def __init__(self, *, attached: bool = True) -> None:
        self.attached = attached
        self.messages: list[Outbound] = []
        self.exchange: Exchange | None = None
        self.times_settled = 0

    def takes(self, method: str) -> int:
        return 2 if self.attached else 1

    def message(self, message: Outbound) -> None:
        self.messages.append(message)

    def settled(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.times_settled += 1

    @property
    def outcome(self) -> Outcome | None:
        return None if self.exchange is None else self.exchange.outcome

    def said(self) -> list[object]:
        return [msgspec.json.decode(message.data) for message in self.messages]


class FakeClient:
    """A client without a stream of its own, unless it is `listening`."""

    def __init__(self, *, listening: bool = False, left_at: float | None = None) -> None:
        self.listening = listening
        self.left_at = left_at
        self.messages: list[Outbound] = []
        self.size = 0
        self.closed = False

    def message(self, message: Outbound) -> None:
        self.messages.append(message)

    def heard(self) -> None:
        self.left_at = None

    def asleep(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def said(self) -> list[object]:
        return [msgspec.json.decode(message.data) for message in self.messages]


Initialize = Literal["answers", "silent", "refuses", "answers_and_dies"]


class FakeBackend:
    """Answers its first request as told and, where it `echoes`, every other one with `{}`."""

    def __init__(self, upstream: Upstream, *, initialize: Initialize, echoes: bool) -> None:
        self.upstream = upstream
        self.echoes = echoes
        self.requests: list[Exchange] = []
        self.notes: list[tuple[str, object]] = []
        self.cancelled: list[Exchange] = []
        self._initialize = initialize
        self._in_flight: list[Exchange] = []

    def request(self, exchange: Exchange) -> None:
        self.requests.append(exchange)
        self._in_flight.append(exchange)
        if len(self.requests) > 1:
            if self.echoes:
                self.reply(exchange)
        elif self._initialize == "refuses":
            self.reply(exchange, Outcome(error=b'{"code":-32602,"message":"too old"}'))
        elif self._initialize != "silent":
            self.reply(exchange, Outcome(result=WELCOME))
            if self._initialize == "answers_and_dies":
                self.exit(Exit(code=7))

    def reply(self, exchange: Exchange, outcome: Outcome | None = None) -> None:
        self._in_flight.remove(exchange)
        exchange.settle(outcome or Outcome(result=b"{}"))

    def notify(self, method: str, params: Bytes | None) -> None:
        self.notes.append((method, None if params is None else msgspec.json.decode(params)))

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        self._in_flight.remove(exchange)
        self.cancelled.append(exchange)

    def in_flight(self) -> tuple[Exchange, ...]:
        return tuple(self._in_flight)

    def exit(self, how: Exit) -> None:
        """End by itself: what was in flight fails, and upstream is told."""
        for exchange in self.in_flight():
            self.reply(exchange, Outcome(failure=BackendGone(f"The backend ended: {how}.", how)))
        self.upstream.ended(how)

    def methods(self) -> list[str]:
        """What it was asked, without `initialize`."""
        return [exchange.method for exchange in self.requests[1:]]


class FakeLauncher:
    """Hands out `FakeBackend`s.

    `fails`: the launch raises. `launch_takes` and `stop_takes`: seconds. `shields`: it stops its
    backends also where it is cancelled. `initialize` and `echoes`: of its backends.
    """

    def __init__(
        self,
        *,
        fails: bool = False,
        launch_takes: float = 0.0,
        stop_takes: float = 1.0,
        shields: bool = True,
        initialize: Initialize = "answers",
        echoes: bool = False,
    ) -> None:
        self.fails = fails
        self.launch_takes = launch_takes
        self.stop_takes = stop_takes
        self.shields = shields
        self.initialize: Initialize = initialize
        self.echoes = echoes
        self.launches = 0
        self.launching = 0
        self.most_launching = 0
        self.running: list[FakeBackend] = []
        self.users: list[str] = []
        self.owners: list[str] = []

    @property
    def backend(self) -> FakeBackend:
        """The newest that runs."""
        return self.running[-1]

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[FakeBackend]:
        self.launches += 1
        self.users.append(USER.get())
        self.owners.append(identity.owner)
        if self.fails:
            raise BackendStartFailed("no such command")
        self.launching += 1
        self.most_launching = max(self.most_launching, self.launching)
        try:
            await anyio.sleep(self.launch_takes)
        finally:
            self.launching -= 1
        backend = FakeBackend(upstream, initialize=self.initialize, echoes=self.echoes)
        self.running.append(backend)
        try:
            yield backend
        finally:
            with anyio.CancelScope(shield=self.shields):
                await anyio.sleep(self.stop_takes)
            self.running.remove(backend)


class FakeTransport:
    """Keeps the lines that a backend is sent; `busy`: it takes none. `carries_cancels`: a backend
    hears of a cancellation from the transport itself."""

    def __init__(self, *, busy: bool = False, carries_cancels: bool = False) -> None:
        self.busy = busy
        self.carries_cancels = carries_cancels
        self.cancelled: list[Exchange] = []
        self.lines: list[bytes] = []
        self.kills = 0

    def kill(self) -> None:
        self.kills += 1

    def cancel(self, exchange: Exchange) -> bool:
        self.cancelled.append(exchange)
        return self.carries_cancels

    def send(self, message: bytes, kind: Kind, exchange: Exchange | None = None) -> None:
        if self.busy:
            raise BackendBusy("It does not read.")
        self.lines.append(message)

    def sent(self) -> list[dict[str, object]]:
        return [msgspec.json.decode(line, type=dict[str, object]) for line in self.lines]


class FakeUpstream:
    """Keeps what a relay hands on."""

    def __init__(self) -> None:
        self.asks: list[tuple[Ask, Exchange | None]] = []
        self.withdrawn: list[Ask] = []
        self.notes: list[tuple[str, bytes, Exchange | None]] = []
        self.exits: list[Exit] = []

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        self.asks.append((ask, exchange))

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        ask.withdraw()
        self.withdrawn.append(ask)

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        self.notes.append((method, encoded, exchange))

    def hold(self, exchange: Exchange) -> None:
        pass

    def ended(self, how: Exit) -> None:
        self.exits.append(how)


# -- what the tests say often ----------------------------------------------------------------------


def manager_of(
    launcher: FakeLauncher, limits: Limits | None = None, *, keeps_ids: bool = True
) -> SessionManager:
    return SessionManager(
        "fake", launcher, limits or Limits(), SessionIds(KEY), keeps_ids=keeps_ids
    )


def create(
    manager: SessionManager, owner: str = "alice", *, client: FakeClient | None = None
) -> Session:
    return manager.create(owner, OPENING, client or FakeClient(), FakeSink())


async def opened(
    manager: SessionManager, owner: str = "alice", *, client: FakeClient | None = None
) -> Session:
    session = create(manager, owner, client=client)
    await manager.opened(session)
    return session


def session_of(
    key: str = "k",
    *,
    owner: str = "alice",
    state: SessionState = SessionState.STARTING,
    size: int = 0,
    client: FakeClient | None = None,
) -> Session:
    """Return a session without a manager; nobody finishes it."""
    identity, opening = Identity("fake", owner, key), Opening(b"x" * size)
    session = Session(identity, opening, client or FakeClient(), closing=lambda session: None)
    session.state = state
    return session


def call(
    session: Session,
    method: str = "tools/call",
    params: bytes | None = b"{}",
    *,
    client_id: bytes = b"1",
) -> FakeSink:
    """Send a request; return where its answer goes."""
    sink = FakeSink()
    session.request(Exchange(method, params, client_id=client_id, sink=sink))
    return sink


async def until(seen: Callable[[], object]) -> None:
    """Return once `seen` is true: let others run, and time pass, in small steps."""
    with anyio.fail_after(3600):
        while not seen():  # noqa: ASYNC110 - what is waited for has no event
            await anyio.sleep(0.01)


def results(sinks: Sequence[FakeSink]) -> list[str]:
    """How each ended, in a word."""
    return [_word(sink.outcome) for sink in sinks]


def _word(outcome: Outcome | None) -> str:
    if outcome is None:
        return "in flight"
    if outcome.failure is not None:
        return outcome.failure.reason
    return "result" if outcome.result is not None else "error"

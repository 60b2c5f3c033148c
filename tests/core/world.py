"""A session manager, its clients and its backends, on a clock that a test moves by hand.

The loop runs only while a step is taken, so that a test that is not async, such as a state machine
of Hypothesis, can take one after the other: each returns once every task waits. Neighbours:
`tests.core.test_machine` takes the steps; `tests.core.fakes` has what is around a session.
"""

import gc
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import anyio
import outcome
import trio
import trio.testing
from trio.testing import MockClock

from sessionproxy.core.admission import Admission
from sessionproxy.core.exchange import Exchange, Outcome
from sessionproxy.core.manager import Limits, SessionManager
from sessionproxy.core.memory import Opening
from sessionproxy.core.ports import Identity, Upstream
from sessionproxy.core.session import Session
from sessionproxy.core.state import EndReason, SessionState, StopReason
from sessionproxy.errors import BackendStartFailed, Exit, ProxyError, SessionNotFound

from .fakes import KEY, OPENING, FakeBackend, FakeClient, FakeSink, SessionIds, results

MANY_TICKS: Final = 100_000
"""Ticks of a loop in which everything that was cancelled has ended."""

CLOSING: Final = 60.0
"""Virtual seconds in which everything must have ended once the manager is left."""

HAIR: Final = 1e-6
"""Seconds by which two times may differ that should be the same."""


class Loop:
    """A trio loop whose clock stands still until it is moved, and that runs only when it is told.

    It is the guest of a host that takes its ticks one by one, here (trio, "Using guest mode").
    Between two steps its driver stays runnable, so it never waits for anything in a thread.
    """

    def __init__(self) -> None:
        self._clock = MockClock()
        self.turn = 0
        """How many steps were taken, the present one included."""
        self._ticks: deque[Callable[[], object]] = deque()
        self._step: Callable[[], Awaitable[None]] | None = None
        self._failure: Exception | None = None
        self._open = True
        self._ended: list[outcome.Outcome[None]] = []
        trio.lowlevel.start_guest_run(
            self._drive,
            run_sync_soon_threadsafe=self._ticks.append,
            done_callback=self._ended.append,
            host_uses_signal_set_wakeup_fd=True,
            clock=self._clock,
        )

    @property
    def now(self) -> float:
        return self._clock.current_time()

    async def _drive(self) -> None:
        async with trio.open_nursery() as self.tasks:
            while self._open:
                if self._step is not None:
                    try:
                        await self._step()
                    except Exception as error:  # noqa: BLE001 - raised where the step was taken
                        self._failure = error
                    self._step = None
                await trio.lowlevel.checkpoint()
            self.tasks.cancel_scope.cancel()

    def run(self, step: Callable[[], Awaitable[None]]) -> None:
        """Take a step; return once it is done. Raises: what it raises."""
        self.turn += 1
        self._step = step
        while self._step is not None:
            assert not self._ended, self._ended
            self._ticks.popleft()()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def do(self, step: Callable[[], object]) -> None:
        """Do something on the loop; return once every task waits."""

        async def done() -> None:
            step()
            await trio.testing.wait_all_tasks_blocked()

        self.run(done)

    def tick(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let virtual time pass, from one deadline to the next; no longer than `until` is true."""

        async def passed() -> None:
            end = trio.current_time() + seconds
            while not until() and (left := end - trio.current_time()) > HAIR:
                deadline = trio.lowlevel.current_statistics().seconds_to_next_deadline
                self._clock.jump(max(0.0, min(deadline, left)))
                await trio.testing.wait_all_tasks_blocked()

        self.run(passed)

    def close(self) -> None:
        """Cancel all that still runs, and end the loop. Raises: what ended it before."""
        self._open = False
        self._clock.autojump_threshold = 0
        for _ in range(MANY_TICKS):
            if self._ended:
                self._ended[0].unwrap()
                return
            self._ticks.popleft()()
        self._ticks.clear()  # something hangs, and nothing will end it
        gc.collect()


# -- backends --------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How the next backend of a session starts and stops. Durations in seconds."""

    start: Literal["answers", "silent", "refuses", "answers_and_dies", "fails"] = "answers"
    launch_takes: float = 0.0
    stop_takes: float = 1.0


class Backend(FakeBackend):
    """One that knows what it was started for, and how it went."""

    def __init__(self, session: Upstream, plan: Plan) -> None:
        assert isinstance(session, Session)
        assert plan.start != "fails"
        super().__init__(session, initialize=plan.start, echoes=False)
        self.session = session
        self.answers_well = plan.start == "answers"
        self.made_at = trio.current_time()
        self.exited = False
        self.left_at: float | None = None
        """When it began to be stopped, or to be swept away."""
        self.gone = False
        """It was stopped, and is reaped."""
        self.was_ready = False
        """Known from then on: it had got as far as to serve requests."""
        self.stop_reason: StopReason | None = None

    def exit(self, how: Exit) -> None:
        self.exited = True
        super().exit(how)

    def leave(self) -> None:
        self.left_at = trio.current_time()
        self.was_ready = self.session.start.settled.is_set()
        self.stop_reason = self.session.stop_reason


class Most(NamedTuple):
    """The most backends there ever were at once."""

    alive: int = 0
    of_one_session: int = 0
    of_one_owner: int = 0
    starting: int = 0


class Backends:
    """Launches as planned for each session, and counts what is alive. A `Launcher`."""

    def __init__(self) -> None:
        self.plans: dict[str, Plan] = {}
        """By the key of the session."""
        self.alive: Counter[Identity] = Counter()
        """From the launch to the end of the stop."""
        self.launched: list[str] = []
        """Keys of sessions, in order."""
        self.all: list[Backend] = []
        self.most = Most()
        self._launched: set[Session] = set()
        """Those whose backend is not being stopped yet."""

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[FakeBackend]:
        assert isinstance(upstream, Session)
        plan = self.plans.get(identity.key, Plan())
        self.launched.append(identity.key)
        self.alive[identity] += 1
        self._launched.add(upstream)
        self._note_most(identity)
        backend: Backend | None = None
        try:
            await anyio.sleep(plan.launch_takes)
            if plan.start == "fails":
                raise BackendStartFailed("no such command")
            backend = Backend(upstream, plan)
            self.all.append(backend)
            yield backend
        finally:
            self._launched.discard(upstream)
            if backend is not None:
                backend.leave()
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(plan.stop_takes)
                backend.gone = True
            self.alive -= Counter([identity])

    def _note_most(self, identity: Identity) -> None:
        of_owner = sum(n for of, n in self.alive.items() if of.owner == identity.owner)
        starting = sum(s.state is SessionState.STARTING for s in self._launched)
        now = Most(self.alive.total(), self.alive[identity], of_owner, starting)
        self.most = Most(*map(max, zip(self.most, now, strict=True)))

    def lost(self, session: Session) -> int:
        """Return how many backends with a state of this session are gone."""
        return sum(b.session is session and b.was_ready for b in self.all)

    def of(self, session: Session) -> Backend | None:
        """Return the one that serves `session`, or shakes hands with it, or is being stopped."""
        alive = (b for b in self.all if b.session is session and not b.gone)
        return next(alive, None)


# -- clients ---------------------------------------------------------------------------------------


class Sink(FakeSink):
    """Keeps when it was settled, too."""

    settled_at: float | None = None

    def settled(self, exchange: Exchange) -> None:
        super().settled(exchange)
        self.settled_at = trio.current_time()


@dataclass(eq=False)
class Waiting:
    """A client that waits for a start. It may hang up."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    waits: bool = True
    failure: ProxyError | None = None


@dataclass(eq=False)
class Call(Waiting):
    """A request of a client, from before its session is ready."""

    client_id: bytes = b"1"
    sink: Sink = field(default_factory=Sink)
    backend: Backend | None = None
    """The one it was executed by."""
    sent_at: float = 0.0
    sent_in: int = 0
    """In which turn of the world."""
    told: int = 0
    """It was not executed: so many backends had been lost by then, the last of them untold."""
    behind: bool = False
    """It was executed, and a loss before that had not been told."""
    must: str | None = None
    """How it has to end, where its end is decided."""

    @property
    def word(self) -> str:
        return results([self.sink])[0]

    @property
    def unanswered(self) -> bool:
        """Whether a backend has it and could answer, in time or not."""
        backend = self.backend
        return backend is not None and any(e.sink is self.sink for e in backend.in_flight())

    @property
    def pending(self) -> bool:
        """Whether a backend that still serves has it and has not answered."""
        backend = self.backend
        return (
            backend is not None
            and backend.session.state is SessionState.READY
            and backend.left_at is None
            and self.sink.exchange is None
        )


class Clients:
    """What the frontend does with a manager, without HTTP."""

    def __init__(self, loop: Loop, manager: SessionManager, backends: Backends) -> None:
        self._loop = loop
        self._manager = manager
        self._backends = backends
        self.told: Counter[Session] = Counter()
        """How many lost backends the client of a session was told of."""

    async def open(self, session: Session, waiting: Waiting) -> None:
        await self._wait(waiting, lambda: self._manager.opened(session))

    async def call(self, owner: str, key: str, call: Call) -> None:
        async def begin() -> None:
            session = self._manager.find(owner, key)
            await self._manager.ready(session)
            if session.loss is not None:
                session.loss = None
                call.told = self.told[session] = self._backends.lost(session)
                return
            self._request(session, call)

        await self._wait(call, begin)

    def _request(self, session: Session, call: Call) -> None:
        call.backend = self._backends.of(session)
        call.sent_at, call.sent_in = self._loop.now, self._loop.turn
        call.behind = self.told[session] != self._backends.lost(session)
        sent = Exchange("tools/call", b"{}", client_id=call.client_id, sink=call.sink)
        session.request(sent)

    async def _wait(self, waiting: Waiting, begin: Callable[[], Awaitable[None]]) -> None:
        try:
            with waiting.scope:
                await begin()
        except ProxyError as error:
            waiting.failure = error
        finally:
            waiting.waits = False


# -- all of it -------------------------------------------------------------------------------------


class World:
    """A manager that serves, and everything around it. Steps are taken from outside the loop."""

    def __init__(self, limits: Limits, *, keeps_ids: bool) -> None:
        self.limits = limits
        self.backends = Backends()
        self.drained: bool | None = None
        """What a drain has returned."""
        self._loop = Loop()
        numbers = iter(range(1, 1 << 30))
        ids = SessionIds(KEY, random=lambda size: next(numbers).to_bytes(size, "big"))
        self.manager = SessionManager("fake", self.backends, limits, ids, keeps_ids=keeps_ids)
        self.clients = Clients(self._loop, self.manager, self.backends)
        self._left = False
        self._loop.do(lambda: self._loop.tasks.start_soon(self._live))

    async def _live(self) -> None:
        self._over = anyio.Event()
        async with self.manager, anyio.create_task_group() as self._tasks:
            await self._over.wait()
        self._left = True

    def close(self) -> None:
        """Leave the manager. Raises: AssertionError: something holds it up for ever."""
        try:
            self._loop.do(self._over.set)
            self._loop.tick(CLOSING, until=lambda: self._left)
            assert self._left, f"{self.manager!r} could not be left"
        finally:
            self._loop.close()

    @property
    def now(self) -> float:
        return self._loop.now

    @property
    def turn(self) -> int:
        return self._loop.turn

    @property
    def admission(self) -> Admission:
        return self.manager.admission

    def tick(self, seconds: float) -> None:
        self._loop.tick(seconds)

    def plan(self, key: str, plan: Plan) -> None:
        """Say how the next backend of a session is to behave."""
        self.backends.plans[key] = plan

    def open(self, owner: str, plan: Plan) -> tuple[Session, Waiting]:
        """Have a client open a session. Raises: ProxyError: nothing was started."""
        found: list[Session] = []
        refused: list[ProxyError] = []
        waiting = Waiting()

        def begin() -> None:
            try:
                session = self.manager.create(owner, OPENING, FakeClient(), FakeSink())
            except ProxyError as error:
                refused.append(error)
                return
            found.append(session)
            self.plan(session.identity.key, plan)
            self._tasks.start_soon(self.clients.open, session, waiting)

        self._loop.do(begin)
        if refused:
            raise refused[0]
        return found[0], waiting

    def call(self, owner: str, key: str, *calls: Call) -> None:
        """Have clients make calls at once."""

        def begin() -> None:
            for call in calls:
                self._tasks.start_soon(self.clients.call, owner, key, call)

        self._loop.do(begin)

    def do(self, step: Callable[[], object]) -> None:
        self._loop.do(step)

    def start(self, task: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Have a task go on beside the steps."""
        self._loop.do(lambda: self._tasks.start_soon(task, *args))

    def reply(self, call: Call, outcome: Outcome) -> None:
        """Let the backend answer, also one that comes too late."""
        backend, exchange = call.backend, None
        if backend is not None:
            mine = (e for e in backend.in_flight() if e.sink is call.sink)
            exchange = next(mine, None)
        if backend is not None and exchange is not None:
            self._loop.do(lambda: backend.reply(exchange, outcome))

    def delete(self, owner: str, key: str) -> bool:
        """Return whether a DELETE found its session."""
        found: list[bool] = []

        def begin() -> None:
            try:
                self.manager.end(self.manager.find(owner, key), EndReason.CLIENT_DELETE)
            except SessionNotFound:
                return
            found.append(True)

        self._loop.do(begin)
        return bool(found)

    def drain(self, patience: float, *, hurried: bool) -> None:
        async def drain() -> None:
            self.drained = await self.manager.drain(patience)

        def begin() -> None:
            self._tasks.start_soon(drain)
            if hurried:
                self.manager.hurry()

        self._loop.do(begin)

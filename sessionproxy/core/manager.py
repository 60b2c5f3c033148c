"""Opens sessions, finds them, wakes them, and outlives them all.

The one task group every session runs in. Neighbours: the frontend calls `create`, `opened`, `find`,
`ready` and `end`; `assembly` enters the manager for the life of the process.
"""

import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

import anyio

from ..errors import (
    BackendGone,
    BackendStartFailed,
    Draining,
    ProxyError,
    SessionNotFound,
    Shortage,
)
from ..wire import Bytes
from .admission import Admission, retry_after
from .attachments import Attachment, Attachments
from .background import Background
from .binding import CONVERSATION, SessionIds
from .byowner import ByOwner
from .circuit import Circuit
from .context import current_session
from .counts import Counts
from .deadlines import CallLimit
from .exchange import ClientPort, ReplySink
from .memory import Loss, Opening
from .pauses import Pauses
from .ports import Identity, Launcher
from .reaper import PERIOD, SLEEPERS_EVERY, Ages, due, lost, unheard
from .registry import LocalRegistry, Registry
from .session import Session
from .start import Start
from .state import EndReason, SessionState, StopReason
from .timers import Timers

logger: Final = logging.getLogger(__name__)

DRAIN_POLL: Final = 0.05
"""Seconds between two looks at what is still in flight while draining."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every duration is in seconds; None: no such limit."""

    max_sessions: int = 64
    """Backends that run at once, each counted until its last process is gone."""
    max_sessions_per_owner: int | None = None
    starts_at_once: int = 4
    queue_length: int = 256
    queue_timeout: float = 30.0
    start_timeout: float = 60.0
    call_timeout: float | None = None
    max_asleep: int = 10_000
    ages: Ages = field(default_factory=Ages)

    def admission(self, pauses: Pauses) -> Admission:
        """Return what lets backends in, by these limits."""
        return Admission(
            pauses,
            max_sessions=self.max_sessions,
            max_per_owner=self.max_sessions_per_owner,
            starts_at_once=self.starts_at_once,
            queue_length=self.queue_length,
            queue_timeout=self.queue_timeout,
        )


class Attached(NamedTuple):
    """A client that shares a session."""

    session: Session
    attachment: Attachment


class SessionManager(anyio.AsyncContextManagerMixin):
    """Enter once, for the life of the process; on exit every session has ended."""

    def __init__(
        self,
        route: str,
        launcher: Launcher,
        limits: Limits,
        ids: SessionIds,
        *,
        keeps_ids: bool = True,
        stateless: bool = False,
        registry: Registry | None = None,
        admission: Admission | None = None,
        pauses: Pauses | None = None,
        timers: Timers | None = None,
        circuit: Circuit | None = None,
    ) -> None:
        """`keeps_ids`: whether sessions outlive their backends, asleep. `stateless`: they build up
        nothing in them, so that one that gives its backend back loses nothing. `admission`: where
        several routes have their places in common. `pauses` and `timers`: what others use too, and
        somebody else runs. `circuit`: the route's, which others heed too."""
        self.counts: Counts = Counts()
        self.route = route
        self.limits = limits
        self._launcher = launcher
        self._ids = ids
        self._keeps_ids = keeps_ids
        self._stateless = stateless
        self.registry: Registry = registry or LocalRegistry(limits.max_asleep)
        self.pauses: Pauses = pauses or Pauses()
        self.timers: Timers = Timers(self.pauses) if timers is None else timers
        self._runs = [own.run for own in (self.pauses, self.timers) if own not in (pauses, timers)]
        self._background = Background()
        self.admission: Admission = admission or limits.admission(self.pauses)
        self.circuit: Circuit = Circuit() if circuit is None else circuit
        self.lists_changed: Callable[[str], None] = lambda method: None
        """Told when a backend says that a list has changed; set before the first session."""
        self._attached: dict[Identity, Attached] = {}
        self._ended: ByOwner[Loss] = ByOwner()
        self.draining: bool = False
        self._hurried = False
        self._call_limit: CallLimit | None = None

    def __repr__(self) -> str:
        return f"<SessionManager {self.route} sessions={len(self.registry)} {self.admission!r}>"

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self._began_at = anyio.current_time()
        async with self._background:
            for run in (*self._runs, self._reap):
                self._background.start(run)
            if self.limits.call_timeout is not None:
                self._call_limit = CallLimit(self.limits.call_timeout, self.pauses)
                self._background.start(self._call_limit.run)
            try:
                yield self
            finally:
                self.draining = True
                self.end_all(EndReason.SHUTDOWN)
                with anyio.CancelScope(shield=True):  # bounded by what stopping is bounded by
                    await self._all_gone()

    # -- opening and finding -----------------------------------------------------------------------

    def create(
        self,
        owner: str,
        opening: Opening,
        client: ClientPort,
        opener: ReplySink,
        context: Context | None = None,
    ) -> Session:
        """Mint an id and start a backend for it; `opened` waits for it.

        `opener` and `context` are of the request that opens it.

        Raises: Draining, RouteResting: nothing was started.
        """
        identity = Identity(self.route, owner, self._ids.mint(self.route, owner))
        return self._create(identity, opening, client, opener, context, keeps_id=self._keeps_ids)

    def part(self, owner: str, key: str, opening: Opening, client: ClientPort) -> Session:
        """Open a session that is a part of another one, with the same key; `ready` waits for it.

        Raises: Draining, RouteResting: nothing was started.
        """
        identity = Identity(self.route, owner, key)
        return self._create(identity, opening, client, None, None, keeps_id=True, shared=True)

    def _create(
        self,
        identity: Identity,
        opening: Opening,
        client: ClientPort,
        opener: ReplySink | None,
        context: Context | None,
        *,
        keeps_id: bool,
        shared: bool = False,
    ) -> Session:
        self._check_open()
        session = Session(
            identity,
            opening,
            client,
            opener=opener,
            context=context,
            keeps_id=keeps_id,
            shared=shared,
            stateless=self._stateless,
            call_limit=self._call_limit,
            counts=self.counts,
            closing=self._finish_soon,
            lists_changed=self.lists_changed,
        )
        self.registry.add(session)
        self.counts.opened += 1
        logger.info("session %s starts", session.label, extra=session.name._asdict())
        self._spawn(session)
        return session

    # -- conversations: sessions that their clients name, and may share ----------------------------

    def conversation(self, owner: str, key: str) -> Session | None:
        """Return the session of a conversation; None: there is none, or it is over."""
        try:
            session = self.registry.get(Identity(self.route, owner, key))
        except SessionNotFound:
            return None
        return None if _is_over(session) else session

    def converse(
        self,
        owner: str,
        key: str,
        opening: Opening,
        modern: ClientPort,
        context: Context | None = None,
    ) -> Session:
        """Open the session of a conversation that has none; `ready` waits for it.

        `modern`: hears for clients of the modern era. Where there was one before it, the first
        call is told of its end.

        Raises: Draining, RouteResting: nothing was started.
        """
        identity = Identity(self.route, owner, key)
        before = self.ended(owner, key) or self._ended_with_the_last_process(identity)
        session = self._create(
            identity, opening, Attachments(modern), None, context, keeps_id=True, shared=True
        )
        session.loss = self._of_state(before)
        self._ended.pop(identity)
        return session

    def lost_with(self, session: Session) -> Loss | None:
        """Return what was lost with a session that has ended, for the one that takes its place."""
        return self._of_state(_loss_of(session))

    def _of_state(self, loss: Loss | None) -> Loss | None:
        """Return a loss if it is one of state: with the end of a session that shares its backend,
        none is lost."""
        if loss is None or (self._stateless and isinstance(loss.reason, EndReason)):
            return None
        return loss

    def ended(self, owner: str, key: str) -> Loss | None:
        """Return how a conversation ended, if it did and that is still known."""
        identity = Identity(self.route, owner, key)
        with suppress(SessionNotFound):
            return _loss_of(self.registry.get(identity))  # its backend is being stopped still
        return self._ended.get(identity)

    def _ended_with_the_last_process(self, identity: Identity) -> Loss | None:
        """Return how a conversation ended that has a name of our making from before this process
        began. Of names that clients have made nobody knows."""
        name = identity.key.removeprefix(CONVERSATION)
        if not self._ids.minted_before(identity.route, identity.owner, name):
            return None
        return Loss(self._began_at, EndReason.SHUTDOWN, 0.0, None)

    def attach(self, session: Session, client: ClientPort, capabilities: Bytes | None) -> str:
        """Let one more client have a share in a session; return the id it is known by."""
        attachments = session.client
        assert isinstance(attachments, Attachments)
        owner = session.identity.owner
        identity = Identity(self.route, owner, self._ids.mint(self.route, owner))
        attachment = Attachment(identity, client, capabilities)
        self._attached[identity] = Attached(session, attachment)
        leaves = attachments.attach(attachment)
        if leaves is not None:
            self.detach(Attached(session, leaves))
        return identity.key

    def detach(self, attached: "Attached") -> None:
        """End one client's share; the session goes on."""
        attachments = attached.session.client
        assert isinstance(attachments, Attachments)
        attachments.detach(attached.attachment)
        attached.session.memory.left(attached.attachment.client)
        self._attached.pop(attached.attachment.identity, None)

    def attached(self, owner: str, key: str) -> "Attached | None":
        """Return the session and the client that an id of `owner` stands for, if it is of one
        that is attached."""
        identity = Identity(self.route, owner, key)
        found = self._attached.get(identity)
        if found is None or not self._ids.authentic(identity) or _is_over(found.session):
            return None
        found.attachment.heard_at = anyio.current_time()
        return found

    # -- waiting -----------------------------------------------------------------------------------

    async def opened(self, session: Session) -> None:
        """Wait until a session that was just created is ready.

        Cancelled while it waits, it leaves nothing running.

        Raises:
            AtCapacity: nothing was started.
            BackendStartFailed, InitializeRefused: it was started and is gone again.
            Shortage: it could not be started, through no fault of its own.
            Draining, SessionNotFound: it was ended meanwhile.
        """
        start = session.start
        try:
            with self._waiting(session, start):
                await start.settled.wait()
        except BaseException:
            self.end(session, EndReason.ABANDONED)
            raise
        if start.failure is not None:
            raise start.failure.fresh()
        if _is_over(session):
            raise self._gone(session)
        self.circuit.succeeded()  # its backend may have ended since; then it sleeps

    def find(self, owner: str, key: str) -> Session:
        """Return the session of `owner` with this id.

        Raises: SessionNotFound: never issued, ended, forged, or another owner's.
        """
        identity = Identity(self.route, owner, key)
        if not self._ids.authentic(identity):
            raise SessionNotFound("not authentic")
        session = self.registry.get(identity)
        if _is_over(session):
            raise SessionNotFound(f"{session!r}")
        return session

    async def ready(self, session: Session) -> None:
        """Wait until `session` is ready, waking it if it sleeps. One start serves all who wait.

        Raises:
            Draining, SessionNotFound: it ended.
            AtCapacity, Draining, RouteResting, Shortage: it sleeps on; nothing was started.
            BackendStartFailed, InitializeRefused: it sleeps on.
            BackendGone: its backend started, and ended at once.
        """
        while session.state is not SessionState.READY:
            if _is_over(session):
                raise self._gone(session)
            if session.state is SessionState.STOPPING:
                await session.stopped.wait()
                continue
            if session.state is SessionState.ASLEEP:
                self._wake(session)
            start = session.start
            with self._waiting(session, start):
                await start.settled.wait()
            if start.failure is not None:
                raise start.failure.fresh()
            start.answer = None  # the client has had one, at its opening
            if _is_ready(session):
                self.circuit.succeeded()
            elif not _is_over(session):  # not again for this request: it might go on for ever
                if not start.fell_over:  # one failure, however many waited
                    start.fell_over = True
                    self.circuit.failed(anyio.current_time())
                how = None if session.loss is None else session.loss.exit
                raise BackendGone("The backend ended as soon as it had started.", how)

    def _gone(self, session: Session) -> ProxyError:
        """Return why nobody need wait for a session that is over."""
        if session.end_reason is EndReason.SHUTDOWN:
            return Draining("the proxy is shutting down", retry_after=retry_after())
        return SessionNotFound(f"The session is over: {session.end_reason}.")

    @contextmanager
    def _waiting(self, session: Session, start: Start) -> Generator[None]:
        """Count who waits; a start that is still queued is given up with the last of them."""
        start.waiters += 1
        try:
            yield
        finally:
            start.waiters -= 1
            if not start.waiters and start.queued and not start.settled.is_set():
                session.stop(StopReason.ABANDONED)

    def _wake(self, session: Session) -> None:
        self._check_open()
        session.wake()
        self.registry.moved(session)
        self._spawn(session)

    def _check_open(self) -> None:
        """Raises: Draining, RouteResting."""
        if self.draining:
            raise Draining("the proxy is shutting down", retry_after=retry_after())
        self.circuit.check(anyio.current_time())

    # -- ending ------------------------------------------------------------------------------------

    def end(self, session: Session, reason: EndReason) -> None:
        """End a session. Its place frees when its backend is gone."""
        asleep = session.state is SessionState.ASLEEP
        session.end(reason)
        if asleep:
            self._file(session)

    def end_all(self, reason: EndReason) -> None:
        """End every session, those asleep too."""
        for session in (*self.registry.awake(), *self.registry.asleep()):
            self.end(session, reason)

    async def drain(self, patience: float) -> bool:
        """Take nothing new, give what is in flight `patience` seconds, then end every session.

        Returns whether all in flight had ended by itself.
        """
        self.draining = True
        with self.pauses.move_on_after(patience):
            while self._busy() and not self._hurried:  # noqa: ASYNC110 - an event would cost every call
                await anyio.sleep(DRAIN_POLL)
        cut_off = self._busy()
        self.end_all(EndReason.SHUTDOWN)
        await self._all_gone()
        return not cut_off

    async def _all_gone(self) -> None:
        while self.registry.awake():  # noqa: ASYNC110 - an event would cost every session
            await anyio.sleep(DRAIN_POLL)

    def hurry(self) -> None:
        """Cut a drain short: what is in flight gets no more time."""
        self._hurried = True

    def _busy(self) -> bool:
        return any(session.leases for session in self.registry.awake())

    # -- running -----------------------------------------------------------------------------------

    def _spawn(self, session: Session) -> None:
        self.counts.starts += 1
        context = self._background.callers_context()
        context.run(current_session.set, session.name)
        self._background.start(self._begin, session, context=context)

    def _finish_soon(self, session: Session) -> None:
        context = self._background.context()
        context.run(current_session.set, session.name)
        self._background.start(self._finish, session, context=context)

    async def _finish(self, session: Session) -> None:
        try:
            await session.finish()
        finally:
            self._file(session)

    async def _begin(self, session: Session) -> None:
        """Start a session's backend. No failure of one session may reach the others."""
        start = session.start
        try:
            await session.begin(
                self.admission,
                self._launcher,
                self.pauses,
                start_timeout=self.limits.start_timeout,
            )
        except Exception:
            logger.exception("%r failed", session)
        finally:
            if start.failure is not None:
                self.counts.start_failures[start.failure.reason] += 1
            if isinstance(start.failure, BackendStartFailed | Shortage):
                logger.warning("session %s did not start: %s", session.label, start.failure)
            # A shortage is no fault of the route's.
            if isinstance(start.failure, BackendStartFailed) and not start.failure.counted:
                self.circuit.failed(anyio.current_time())
            self._file(session)

    def _file(self, session: Session) -> None:
        """File a session whose state has changed, and let the oldest sleepers make room."""
        for sleeper in self.registry.moved(session):
            self.end(sleeper, EndReason.EVICTED)
        if session.state is SessionState.ASLEEP:
            if session.stop_reason is not None:
                self.counts.stops[session.stop_reason] += 1
            text, reason = "session %s sleeps: %s", session.stop_reason
            logger.info(text, session.label, reason, extra=session.name._asdict())
        elif session.state is SessionState.CLOSED:
            if session.end_reason is not None:
                self.counts.ends[session.end_reason] += 1
            text, reason = "session %s ended: %s", session.end_reason
            logger.info(text, session.label, reason, extra=session.name._asdict())
            if session.shared and session.end_reason is not EndReason.WHOLE_ENDED:
                self._remember(session)

    def _remember(self, session: Session) -> None:
        """Keep how a conversation ended: whoever comes back to it is told."""
        for attachment in session.client if isinstance(session.client, Attachments) else ():
            self._attached.pop(attachment.identity, None)
        loss = _loss_of(session)
        again = self.conversation(session.identity.owner, session.identity.key)
        if loss is None or again is not None:
            return  # it never began, or has begun anew
        self._ended.put(session.identity, loss)
        while len(self._ended) > self.limits.max_asleep:
            self._ended.pop(self._ended.first_to_go())

    async def _reap(self) -> None:
        for turn in itertools.count(1):
            await anyio.sleep(PERIOD)
            sessions = self.registry.awake()
            now = self.pauses.look()
            ages = self.limits.ages
            for session in unheard(sessions, now=now, ages=ages, pauses=self.pauses):
                session.give_up_asking()
            for left in lost(sessions, now=now, ages=ages, pauses=self.pauses):
                self.detach(Attached(*left))
            if turn % SLEEPERS_EVERY == 0:
                sessions += tuple(self.registry.asleep())
            found = due(sessions, now=now, ages=ages, pauses=self.pauses)
            for session, reason in found:
                try:
                    self._ask(session, reason)
                except Exception:  # a fault of one session's must not keep the others alive
                    logger.exception("%r could not be asked to go", session)

    def _ask(self, session: Session, reason: StopReason | EndReason) -> None:
        if isinstance(reason, StopReason):
            session.stop(reason)
        else:
            self.end(session, reason)


def _loss_of(session: Session) -> Loss | None:
    """Return what was lost with a session that has ended; None: nothing, or it goes on.

    One that never began passes on what its clients had not been told yet; so does one with which
    nothing ends, since its backend is all the others' too.
    """
    if session.end_reason is None:
        return None
    if session.version is None or (session.stateless and session.loss is not None):
        return session.loss
    return Loss(anyio.current_time(), session.end_reason, 0.0, None)


def _is_ready(session: Session) -> bool:
    return session.state is SessionState.READY


def _is_over(session: Session) -> bool:
    return session.state in (SessionState.ENDING, SessionState.CLOSED)

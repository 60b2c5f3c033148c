"""FAULTS, method (a): the manager against a dict, step by step, on virtual time.

Hypothesis thinks up what clients, backends and the clock do; `Sessions` keeps a model of what the
sessions should be, and compares after every step. The model is told what clients and backends did.
What the clock did it takes from the manager, and checks that it was due.
"""

from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sessionproxy.core.circuit import FAILURES
from sessionproxy.core.exchange import Outcome
from sessionproxy.core.manager import Limits
from sessionproxy.core.reaper import PERIOD, SLEEPERS_EVERY, Ages
from sessionproxy.core.session import SILENT_CALLS, Session
from sessionproxy.core.state import EndReason, SessionState, StopReason
from sessionproxy.errors import (
    AtCapacity,
    BackendGone,
    BackendStartFailed,
    Draining,
    Exit,
    InitializeRefused,
    ProxyError,
    RouteResting,
    SessionNotFound,
)

from .fakes import FakeClient
from .world import HAIR, Backend, Call, Plan, Waiting, World

OWNERS = ("alice", "bob")
IDLE, LINGER, TTL, MAX_AGE = 3.0, 1.5, 6.0, 12.0
QUEUE_TIMEOUT, START_TIMEOUT, CALL_TIMEOUT = 4.0, 2.5, 3.5
LATE = PERIOD + HAIR
LATE_FOR_SLEEPERS = SLEEPERS_EVERY * PERIOD + HAIR
"""Seconds by which the reaper may be late."""

DELAYS = (0.25, PERIOD, 1.0, LINGER, IDLE, QUEUE_TIMEOUT, TTL + SLEEPERS_EVERY * PERIOD)
SETTLED_BY_TIME = 2 * (QUEUE_TIMEOUT + START_TIMEOUT) + CALL_TIMEOUT
"""Seconds after which nobody may be waiting any more."""

CROWD = 4
"""Sessions that are open at once, so that something happens to each."""

plans = st.builds(
    Plan,
    start=st.sampled_from(("answers",) * 12 + ("silent", "refuses", "answers_and_dies", "fails")),
    launch_takes=st.sampled_from((0.0, 0.0, 0.0, 1.0)),
    stop_takes=st.sampled_from((0.0, 0.5, 2.0)),
)
owners = st.sampled_from(OWNERS)
client_ids = st.sampled_from((b"1", b"2"))
limits = st.builds(
    Limits,
    max_sessions=st.sampled_from((20, 3, 1)),
    max_sessions_per_owner=st.sampled_from((None, None, 1)),
    starts_at_once=st.sampled_from((4, 4, 1)),
    queue_length=st.sampled_from((20, 2, 0)),
    queue_timeout=st.just(QUEUE_TIMEOUT),
    start_timeout=st.just(START_TIMEOUT),
    call_timeout=st.sampled_from((None, CALL_TIMEOUT, CALL_TIMEOUT)),
    max_asleep=st.sampled_from((20, 1)),
    ages=st.builds(
        Ages,
        idle=st.sampled_from((IDLE, None)),
        linger=st.sampled_from((LINGER, None)),
        max_age=st.sampled_from((None, MAX_AGE)),
        session_ttl=st.just(TTL),
    ),
)


class Known:
    """What the model knows of one session."""

    def __init__(self, session: Session, owner: str, opening: Waiting, now: float) -> None:
        self.session = session
        self.owner = owner
        self.opening = opening
        self.opened_at = now
        self.over: EndReason | None = None
        """Set by the rule that ends it, or once an end that was due was seen."""
        self.calls: list[Call] = []
        self.backends: list[Backend] = []
        self.judged: set[Backend] = set()
        """Those whose stop was seen to be due."""
        self.left_at: float | None = None
        """When the client closed its stream, having sent nothing since."""
        self.left_in = 0
        """In which turn of the world: time may stand still."""
        self.notified_at = now
        self.awake_at = now
        """When it was last seen awake."""
        self.asleep_at: float | None = None
        """When it was first seen asleep, if nothing has woken it since."""

    @property
    def key(self) -> str:
        return self.session.identity.key

    @property
    def state(self) -> SessionState:
        return self.session.state

    @property
    def pending(self) -> list[Call]:
        return [call for call in self.calls if call.pending]

    @property
    def was_ready(self) -> bool:
        ready = self.state is SessionState.READY
        return ready or any(backend.was_ready for backend in self.backends)

    def active_at(self, backend: Backend) -> float:
        """Return when a request was last begun or settled at `backend`."""
        mine = [call for call in self.calls if call.backend is backend]
        times = [call.sent_at for call in mine]
        times += [at for call in mine if (at := call.sink.settled_at) is not None]
        return max((backend.made_at, self.notified_at, *times))

    def deserted_at(self, backend: Backend) -> float | None:
        """Return when its client was seen the last time, where it closed its stream."""
        return None if self.left_at is None else max(self.left_at, self.active_at(backend))


def one_of(which: str) -> st.SearchStrategy[int]:
    """Draw the number of one of those that the machine has there."""
    return st.runner().flatmap(lambda machine: st.sampled_from(getattr(machine, which)()))


class Sessions(RuleBasedStateMachine):
    """What clients, backends and time do, and what must hold after each of it."""

    @initialize(limits=limits, keeps_ids=st.sampled_from((True, True, False)))
    def begins(self, limits: Limits, keeps_ids: bool) -> None:
        self.limits, self.keeps_ids = limits, keeps_ids
        self.world = World(limits, keeps_ids=keeps_ids)
        self.model: dict[int, Known] = {}
        self.calls: dict[int, Call] = {}
        self.steps = 0
        self.live_before = 0
        """How many sessions there were before the clock did anything."""
        self.draining = False
        self.launched_before_drain = 0
        self.starting_at_drain: set[str] = set()
        for owner in OWNERS:
            self._init(owner, Plan(stop_takes=0.0))
        self._crash(self.model[0], Exit(code=7))

    # -- what rules choose from --------------------------------------------------------------------

    def live(self) -> list[int]:
        return [number for number, known in self.model.items() if known.over is None]

    def opening(self) -> list[int]:
        return [number for number, known in self.model.items() if known.opening.waits]

    def waiting(self) -> list[int]:
        return [number for number, call in self.calls.items() if call.waits]

    def unanswered(self) -> list[int]:
        return [number for number, call in self.calls.items() if call.unanswered]

    # -- what clients do ---------------------------------------------------------------------------

    @precondition(lambda self: len(self.live()) < CROWD)
    @rule(owner=owners, plan=plans)
    def init(self, owner: str, plan: Plan) -> None:
        self._init(owner, plan)

    @precondition(lambda self: 0 < len(self.live()) < CROWD)
    @rule(owner=owners, plan=plans)
    def start_cancelled(self, owner: str, plan: Plan) -> None:
        """The client hangs up while its session is opening, unless it is open at once."""
        known = self._init(owner, plan)
        if known is not None and known.opening.waits:
            self._hang_up(known)

    @precondition(lambda self: self.opening())
    @rule(session=one_of("opening"))
    def hang_up_opening(self, session: int) -> None:
        self._hang_up(self.model[session])

    def _init(self, owner: str, plan: Plan) -> Known | None:
        try:
            session, opening = self.world.open(owner, plan)
        except Draining:
            assert self.draining
            return None
        except RouteResting:
            self._rests()
            return None
        assert not self.draining
        self.model[len(self.model)] = known = Known(session, owner, opening, self.world.now)
        return known

    def _hang_up(self, known: Known) -> None:
        known.over = known.over or EndReason.ABANDONED
        self.world.do(known.opening.scope.cancel)

    @precondition(lambda self: self.live())
    @rule(session=one_of("live"), client_id=client_ids, answered=st.booleans())
    def call(self, session: int, client_id: bytes, answered: bool) -> None:
        """`answered`: at once, if it can be."""
        call = Call(client_id=client_id)
        self._call(self.model[session], Plan(), call)
        if answered and call.pending:
            self._answer(call, Outcome(result=b"{}"))

    @precondition(lambda self: self.live())
    @rule(session=one_of("live"), plan=plans, count=st.integers(1, SILENT_CALLS + 1))
    def wake(self, session: int, plan: Plan, count: int) -> None:
        """Several requests at once start one backend at most, which behaves as planned."""
        before = len(self.world.backends.launched)
        self._call(self.model[session], plan, *(Call() for _ in range(count)))
        assert len(self.world.backends.launched) - before <= 1

    def _call(self, known: Known, plan: Plan, *calls: Call) -> None:
        if known.state in (SessionState.ASLEEP, SessionState.STOPPING):
            self.world.plan(known.key, plan)
        known.asleep_at = None
        known.calls.extend(calls)
        self.calls.update(enumerate(calls, len(self.calls)))
        self.world.call(known.owner, known.key, *calls)

    @precondition(lambda self: self.waiting())
    @rule(call=one_of("waiting"))
    def hang_up(self, call: int) -> None:
        """The client leaves while it waits for its session to be ready."""
        self.world.do(self.calls[call].scope.cancel)

    @precondition(lambda self: self.live())
    @rule(session=one_of("live"), client_id=client_ids)
    def cancel(self, session: int, client_id: bytes) -> None:
        """2025-11-25 basic/utilities/cancellation; an id that names two requests cancels none."""
        known = self.model[session]
        named = [call for call in known.pending if call.client_id == client_id]
        if len(named) == 1:
            _must(named, "request_cancelled")
        if known.state is SessionState.READY:
            known.notified_at, known.left_at = self.world.now, None
        params = b'{"requestId":%b}' % client_id
        self.world.do(lambda: known.session.notify("notifications/cancelled", params))

    @precondition(lambda self: self.live())
    @rule(session=one_of("live"))
    def delete(self, session: int) -> None:
        """Final. (Another owner's finds nothing: see the invariant of ids.)"""
        known = self.model[session]
        _must(known.pending, "session_ended")
        known.over = EndReason.CLIENT_DELETE
        assert self.world.delete(known.owner, known.key)

    @precondition(lambda self: self.live())
    @rule(session=one_of("live"))
    def disconnect(self, session: int) -> None:
        """The client's own stream closes."""
        known = self.model[session]
        client = known.session.client
        assert isinstance(client, FakeClient)
        client.left_at = known.left_at = self.world.now
        known.left_in = self.world.turn

    # -- what backends do --------------------------------------------------------------------------

    @precondition(lambda self: self.unanswered())
    @rule(call=one_of("unanswered"), good=st.booleans())
    def answer(self, call: int, good: bool) -> None:
        """Also too late: then it changes nothing."""
        outcome = Outcome(result=b"{}") if good else Outcome(error=b"{}")
        self._answer(self.calls[call], outcome)

    def _answer(self, call: Call, outcome: Outcome) -> None:
        if call.pending:
            _must([call], "result" if outcome.result is not None else "error")
        self.world.reply(call, outcome)

    @precondition(lambda self: self.live())
    @rule(session=one_of("live"), how=st.sampled_from((Exit(code=7), Exit(signal="SIGKILL"))))
    def crash(self, session: int, how: Exit) -> None:
        """The backend ends by itself, whatever it was doing."""
        self._crash(self.model[session], how)

    def _crash(self, known: Known, how: Exit) -> None:
        backend = self.world.backends.of(known.session)
        if backend is not None and not backend.exited:
            _must(known.pending, "backend_gone")
            self.world.do(lambda: backend.exit(how))

    # -- what the clock and the operator do --------------------------------------------------------

    @rule(seconds=st.sampled_from(DELAYS))
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @precondition(lambda self: self.steps > 10 and not self.draining)
    @rule(patience=st.sampled_from((2.0, 2.0, 0.0)), hurried=st.sampled_from((False, False, True)))
    def drain(self, patience: float, hurried: bool) -> None:
        self.draining = True
        starting = (k for k in self.model.values() if k.state is SessionState.STARTING)
        self.starting_at_drain = {known.key for known in starting}
        self.launched_before_drain = len(self.world.backends.launched)
        self.world.drain(patience, hurried=hurried)

    def teardown(self) -> None:
        """Nobody waits for ever, and nothing outlives the manager."""
        if not hasattr(self, "world"):
            return
        try:
            self.world.tick(SETTLED_BY_TIME)
            self.the_clock_did_only_what_was_due()
            waiting = [w for k in self.model.values() for w in (k.opening, *k.calls) if w.waits]
            assert waiting == []
            self.draining = True
        finally:
            self.world.close()
        self.the_clock_did_only_what_was_due()
        self.every_request_ends_once_and_as_it_must()
        assert all(known.state is SessionState.CLOSED for known in self.model.values())
        assert [known.pending for known in self.model.values() if known.pending] == []
        self.places_are_backends_alive()
        assert (self.world.admission.running, self.world.admission.queued) == (0, 0)
        assert len(self.world.manager.registry) == 0

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        self.steps += 1
        self.the_clock_did_only_what_was_due()
        self.an_id_is_found_by_its_owner_until_it_is_over_and_by_nobody_else()
        self.no_session_is_in_two_states()
        self.places_are_backends_alive()
        self.the_limits_hold()
        self.every_request_ends_once_and_as_it_must()
        self.a_loss_is_told_once_and_before_anything_is_executed()
        self.a_drained_manager_opens_nothing()

    # -- the model follows the clock ---------------------------------------------------------------

    def the_clock_did_only_what_was_due(self) -> None:
        """It brings the model up to date, so it comes first."""
        self.live_before = len(self.live())
        for known in self.model.values():
            known.backends = [b for b in self.world.backends.all if b.session is known.session]
            if any(call.sent_in > known.left_in for call in known.calls):
                known.left_at = None
            for backend in known.backends:
                if backend.left_at is not None and backend not in known.judged:
                    known.judged.add(backend)
                    self._check_stop(known, backend, backend.left_at)
            if known.over is None and known.session.end_reason is not None:
                self._check_end(known, known.session.end_reason)
                known.over = known.session.end_reason
        for known in self.model.values():
            self._check_nothing_is_overdue(known)

    def _check_stop(self, known: Known, backend: Backend, left_at: float) -> None:
        """DESIGN 7: why a backend was stopped."""
        if not backend.was_ready or known.session.end_reason is not None:
            return
        ages, since = self.limits.ages, left_at + HAIR - known.active_at(backend)
        unanswered = [c for c in known.calls if c.backend is backend and c.word == "backend_gone"]
        match backend.stop_reason:
            case StopReason.BACKEND_EXIT:
                assert backend.exited
            case StopReason.IDLE:
                assert ages.idle is not None
                assert since >= ages.idle
                assert not unanswered
            case StopReason.DISCONNECTED:
                assert ages.linger is not None
                assert known.left_at is not None
                assert since >= ages.linger
                assert not unanswered
            case StopReason.SILENT:
                mine = [call for call in known.calls if call.backend is backend]
                assert sum(call.word == "backend_silent" for call in mine) >= SILENT_CALLS
            case _:
                raise AssertionError(f"{backend.stop_reason} of one that was ready")

    def _check_end(self, known: Known, reason: EndReason) -> None:
        """DESIGN 7: why a session ended, where no client's doing ended it."""
        now = self.world.now + HAIR
        match reason:
            case EndReason.MAX_AGE:
                assert self.limits.ages.max_age is not None
                assert now - known.opened_at >= self.limits.ages.max_age
            case EndReason.START_FAILED:
                assert not known.was_ready
                assert known.opening.failure is not None
            case EndReason.BACKEND_LOST:
                assert not self.keeps_ids
            case EndReason.EXPIRED:
                assert now - known.awake_at >= TTL
            case EndReason.EVICTED:
                left = list(self.world.manager.registry.asleep())
                assert all(known.session.slept_at <= sleeper.slept_at for sleeper in left)
                assert self.live_before > self.limits.max_asleep
            case EndReason.SHUTDOWN:
                assert self.draining
            case _:
                raise AssertionError(f"nobody did what ends a session as {reason}")

    def _check_nothing_is_overdue(self, known: Known) -> None:
        now, ages = self.world.now, self.limits.ages
        if known.state is SessionState.ASLEEP:
            known.asleep_at = now if known.asleep_at is None else known.asleep_at
            assert now - known.asleep_at <= TTL + LATE_FOR_SLEEPERS
        else:
            known.awake_at, known.asleep_at = now, None
        if ages.max_age is not None and known.over is None:
            assert now - known.opened_at <= ages.max_age + LATE_FOR_SLEEPERS
        if known.state is SessionState.READY and not known.pending:
            backend = known.backends[-1]
            assert not backend.exited
            deserted_at = known.deserted_at(backend)
            if ages.idle is not None:
                assert now - known.active_at(backend) <= ages.idle + LATE
            if ages.linger is not None and deserted_at is not None:
                assert now - deserted_at <= ages.linger + LATE

    # -- what must always hold ---------------------------------------------------------------------

    def an_id_is_found_by_its_owner_until_it_is_over_and_by_nobody_else(self) -> None:
        """DESIGN 5.8; FAULTS F37, I7."""
        manager = self.world.manager
        for known in self.model.values():
            for owner in OWNERS:
                if owner == known.owner and known.over is None:
                    assert manager.find(owner, known.key) is known.session
                else:
                    with pytest.raises(SessionNotFound):
                        manager.find(owner, known.key)

    def no_session_is_in_two_states(self) -> None:
        """DESIGN 7, and what `core.registry` says of itself."""
        awake, asleep = self.world.manager.registry.awake(), [*self.world.manager.registry.asleep()]
        assert all(session.state is SessionState.ASLEEP for session in asleep)
        assert not any(session.state is SessionState.ASLEEP for session in awake)
        filed = [session.identity.key for session in (*awake, *asleep)]
        there = [k.key for k in self.model.values() if k.state is not SessionState.CLOSED]
        assert sorted(filed) == sorted(there)
        for known in self.model.values():
            over = known.state in (SessionState.ENDING, SessionState.CLOSED)
            assert over is (known.over is not None)

    def places_are_backends_alive(self) -> None:
        """DESIGN 7: a place is counted until its backend is reaped, and nobody queues for a client
        that left; 5.2: one for each session."""
        backends = self.world.backends
        assert self.world.admission.running == backends.alive.total()
        for known in self.model.values():
            asleep = known.state in (SessionState.ASLEEP, SessionState.CLOSED)
            awake = known.state is SessionState.READY
            assert backends.alive[known.session.identity] in ({0} if asleep else {awake, 1})
            if known.state is SessionState.STARTING and known.session.start.queued:
                assert any(waiting.waits for waiting in (known.opening, *known.calls))

    def the_limits_hold(self) -> None:
        """DESIGN 7, limits; also in the middle of a step."""
        most, limits = self.world.backends.most, self.limits
        assert most.of_one_session <= 1
        assert most.alive <= limits.max_sessions
        assert most.starting <= limits.starts_at_once
        assert self.world.admission.queued <= limits.queue_length
        assert len([*self.world.manager.registry.asleep()]) <= limits.max_asleep
        if limits.max_sessions_per_owner is not None:
            assert most.of_one_owner <= limits.max_sessions_per_owner

    def every_request_ends_once_and_as_it_must(self) -> None:
        """DESIGN 5.3; FAULTS I3."""
        for known in self.model.values():
            assert known.session.leases == len(known.pending)
            for call in known.calls:
                self._check_call(known, call)
            if known.opening.failure is not None:
                self._check_failure(known, known.opening.failure)

    def _check_call(self, known: Known, call: Call) -> None:
        ways = (call.waits, bool(call.told), call.failure is not None, call.backend is not None)
        assert sum(ways) == (0 if call.scope.cancelled_caught else 1)
        assert call.sink.times_settled == (call.backend is not None and not call.pending)
        if call.failure is not None:
            self._check_failure(known, call.failure)
        if call.must is not None:
            assert call.word == call.must
        elif call.sink.times_settled:
            self._check_cut_off(known, call)

    def _check_cut_off(self, known: Known, call: Call) -> None:
        """Nobody's doing has settled it."""
        assert call.backend is not None
        match call.word:
            case "backend_silent":
                assert self.limits.call_timeout is not None
                assert call.sink.settled_at is not None
                assert abs(call.sink.settled_at - call.sent_at - CALL_TIMEOUT) < HAIR
            case "backend_gone":
                assert call.backend.stop_reason is StopReason.SILENT
            case "session_ended":
                assert known.over in (EndReason.MAX_AGE, EndReason.SHUTDOWN)
            case word:
                raise AssertionError(f"a call ended as {word} by itself")

    def _check_failure(self, known: Known, failure: ProxyError) -> None:
        """It was not executed, for a reason that was there."""
        match failure:
            case SessionNotFound():
                assert known.over is not None
            case Draining():
                assert self.draining
            case RouteResting():
                self._rests()
            case AtCapacity() | BackendStartFailed() | InitializeRefused() | BackendGone():
                pass
            case _:
                raise AssertionError(repr(failure))

    def _rests(self) -> None:
        """A route rests only after so many starts that came to nothing."""
        backends = self.world.backends
        sound = sum(b.was_ready and b.answers_well for b in backends.all)
        assert len(backends.launched) - sound >= FAILURES

    def a_loss_is_told_once_and_before_anything_is_executed(self) -> None:
        """DESIGN 5.12; FAULTS I6, F50."""
        for known in self.model.values():
            told = [call.told for call in known.calls if call.told]
            assert len(told) == len(set(told))
            assert not any(call.behind for call in known.calls)
            if known.over is None:
                owed = self.world.backends.lost(known.session) > max(told, default=0)
                stopping = known.state is SessionState.STOPPING
                assert (known.session.loss is not None) is owed or stopping

    def a_drained_manager_opens_nothing(self) -> None:
        """DESIGN 7, SIGTERM; FAULTS F23."""
        if not self.draining:
            return
        launched = self.world.backends.launched[self.launched_before_drain :]
        assert set(launched) <= self.starting_at_drain
        if self.world.drained is not None:
            assert not self.world.backends.alive
            assert len(self.world.manager.registry) == 0


def _must(calls: Iterable[Call], word: str) -> None:
    for call in calls:
        call.must = call.must or word


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, print_blob=True
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_so_it_is_however_long_one_looks() -> None:
    """The same, ten times as long and each time anew."""
    longer = settings(TestSessions.settings, max_examples=2000, derandomize=False)
    run_state_machine_as_test(Sessions, settings=longer)

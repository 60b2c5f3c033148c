"""FAULTS F42, F43: a process that did not run for a while gives everybody as much more time.

A virtual clock that is moved by hand, with nobody running meanwhile, is such a pause.
"""

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionproxy.core.catalogue import Catalogue
from sessionproxy.core.manager import Limits, SessionManager
from sessionproxy.core.pauses import BEAT, LATE, MAX_KEPT, WORTH_TELLING, Pauses, Record
from sessionproxy.core.reaper import PERIOD, Ages
from sessionproxy.core.session import SILENT_CALLS, Session
from sessionproxy.core.state import EndReason, SessionState, StopReason
from sessionproxy.errors import AtCapacity, BackendStartFailed, ProxyError
from sessionproxy.wire import Envelope

from .fakes import FakeClient, FakeLauncher, call, create, manager_of, opened, until


def pause(seconds: float) -> None:
    """Let time pass in which nothing runs."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    clock.jump(seconds)


@asynccontextmanager
async def running() -> AsyncGenerator[Pauses]:
    async with anyio.create_task_group() as tasks:
        pauses = Pauses()
        tasks.start_soon(pauses.run)
        await anyio.wait_all_tasks_blocked()
        yield pauses
        tasks.cancel_scope.cancel()


async def test_time_in_which_nothing_ran_was_a_pause() -> None:
    async with running() as pauses:
        begun = anyio.current_time()
        pause(60)
        now = pauses.look()
        assert now - begun == 60
        assert pauses.within(begun, now) == 60 - BEAT
        await anyio.sleep(100)
        assert pauses.lasted(160, pauses.look()) == 100 + BEAT


async def test_it_is_the_same_whoever_looks_first() -> None:
    """A deadline may be judged before the task that looks has had its turn."""
    async with running() as pauses:
        begun = anyio.current_time()
        pause(60)
        await anyio.sleep(BEAT)  # the task looks
        first = pauses.within(begun, pauses.look())
        assert first == 60 - BEAT
        begun = anyio.current_time()
        pause(60)
        assert pauses.within(begun, pauses.look()) == pytest.approx(first, abs=BEAT)


async def test_a_loop_that_is_a_little_late_has_not_paused() -> None:
    async with running() as pauses:
        begun = anyio.current_time()
        for _ in range(100):
            pause(LATE)
            await anyio.sleep(BEAT)
        assert pauses.within(begun, pauses.look()) == 0


async def test_nobody_has_paused_who_does_not_look() -> None:
    """Before `run` and after it there is nothing that could have been late."""
    pauses = Pauses()
    begun = anyio.current_time()
    pauses.look()
    pause(60)
    assert pauses.within(begun, pauses.look()) == 0
    async with running() as pauses:
        pass
    pause(60)
    assert pauses.within(begun, pauses.look()) == 0


async def test_only_what_lies_within_counts() -> None:
    async with running() as pauses:
        begun = anyio.current_time()
        pause(60)
        await anyio.sleep(10)
        middle = pauses.look()
        pause(60)
        await anyio.sleep(10)
        ended = pauses.look()
        each = pytest.approx(60 - BEAT, abs=BEAT)
        assert pauses.within(begun, middle) == each
        assert pauses.within(middle, ended) == each
        assert pauses.within(begun, ended) == pytest.approx(120 - 2 * BEAT, abs=2 * BEAT)
        assert pauses.within(begun, begun + 30) == 30 - BEAT
        assert pauses.within(ended, ended + 1000) == 0


async def test_old_pauses_are_kept_in_sum() -> None:
    """Every buffer is bounded; what is older than all of them still gets all its time."""
    async with running() as pauses:
        begun = anyio.current_time()
        for _ in range(2 * MAX_KEPT):
            pause(10)
            await anyio.sleep(1)
        assert pauses.kept == MAX_KEPT
        paused = pauses.within(begun, pauses.look())
        assert paused == pytest.approx(2 * MAX_KEPT * 10, abs=2 * MAX_KEPT * BEAT)


DAY = 24 * 3600.0
LENGTHS = st.floats(LATE, 10) | st.floats(LATE, DAY / 10)
GAPS = st.floats(BEAT, 2 * BEAT) | st.floats(BEAT, 10) | st.floats(BEAT, DAY / 10)


def record_of(times: Iterable[tuple[float, float]]) -> tuple[Record, list[tuple[float, float]]]:
    """Return the record of pauses that each come so long after the last one and last so long, and
    when each begun and ended."""
    record, exact, now = Record(), list[tuple[float, float]](), 0.0
    for gap, length in times:
        begun, now = now + gap, now + gap + length
        record.add(begun, now)
        exact.append((begun, now))
    return record, exact


def check(times: Iterable[tuple[float, float]], most: float) -> None:
    """Compare what is counted with the truth, whenever a limit began: never less of it, and more
    at `most` by such a part of the time that it has lasted."""
    record, exact = record_of(times)
    now, later = exact[-1][1] + BEAT, 0.0
    for begun, ended in reversed(exact):
        truths = {
            ended + BEAT / 2: later,
            ended: later,
            (begun + ended) / 2: later + (ended - begun) / 2,
            begun: later + ended - begun,
            begun - BEAT / 2: later + ended - begun,
        }
        later += ended - begun
        for time, true in truths.items():
            counted = record.within(time, now)
            assert true - 1e-3 <= counted <= true + most * (now - time) + 1e-3
    assert record.within(0.0, now) == pytest.approx(later)
    assert len(record) == min(len(exact), MAX_KEPT)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(GAPS, LENGTHS), max_size=40),
    st.lists(st.tuples(GAPS, LENGTHS), min_size=1, max_size=40),
    st.sampled_from([1, MAX_KEPT, 4 * MAX_KEPT]),
)
def test_a_limit_gets_all_pauses_since_it_began_and_hardly_more(
    once: list[tuple[float, float]], often: list[tuple[float, float]], repeated: int
) -> None:
    """FAULTS F42, F43: against all pauses there were, of which only some are kept apart."""
    check([*once, *often * (repeated // len(often) + 1)], 1 / 6)


@pytest.mark.parametrize("stalls", [64, 1000, 5000])
def test_a_long_pause_is_not_given_to_what_began_after_it(stalls: int) -> None:
    """FAULTS F42: a night's suspension, ten quiet minutes, and a loop that stalls all the time."""
    record, exact = record_of([(1.0, 8 * 3600.0), (600.0, 1.0), *[(1.0, 1.0)] * (stalls - 1)])
    begun, now = exact[0][1] + 100, exact[-1][1]
    assert stalls - 0.001 <= record.within(begun, now) <= stalls + (now - begun) / 16
    check([(1.0, 8 * 3600.0), (600.0, 1.0), *[(1.0, 1.0)] * stalls], 1 / 16)


async def test_a_scope_gets_as_much_more_time() -> None:
    async with running() as pauses:
        begun = anyio.current_time()
        with pauses.move_on_after(10) as scope:
            await anyio.sleep(5)
            pause(60)
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert anyio.current_time() - begun == pytest.approx(70, abs=BEAT)
        with pauses.move_on_after(10) as scope:
            await anyio.sleep(9)
        await anyio.sleep(10)
        assert not scope.cancel_called  # it is forgotten once it is left


async def test_a_scope_without_a_pause_ends_when_it_should() -> None:
    async with running() as pauses:
        for seconds in (0.3, 1, 10, 3600):
            begun = anyio.current_time()
            with pauses.move_on_after(seconds) as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert anyio.current_time() - begun == pytest.approx(seconds)


async def test_a_long_pause_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as pauses:
        pause(WORTH_TELLING)
        pauses.look()
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
        pause(60)
        pauses.look()
    (record,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
    assert "all time limits are put off" in record.getMessage()


# -- what is judged by it --------------------------------------------------------------------------


async def survives(manager: SessionManager, session: Session, limit: float) -> bool:
    """Pause for ten times `limit`; return whether the session is as it was, with half as much time
    left as it had."""
    state = session.state
    await anyio.sleep(limit / 2)
    pause(limit * 10)
    await anyio.sleep(limit / 2 - 2 * PERIOD)
    return session.state is state


async def test_no_backend_is_idle_because_nothing_ran() -> None:
    """FAULTS F42: no mass reap."""
    async with manager_of(
        FakeLauncher(), limits=Limits(ages=Ages(idle=300, linger=None))
    ) as manager:
        sessions = [await opened(manager) for _ in range(3)]
        assert await survives(manager, sessions[0], 300)
        assert [s.state for s in sessions] == [SessionState.READY] * 3
        await anyio.sleep(3 * PERIOD)  # but the time it had had before was not given back
        assert {s.stop_reason for s in sessions} == {StopReason.IDLE}


async def test_no_client_has_left_for_good_because_nothing_ran() -> None:
    async with manager_of(
        FakeLauncher(), limits=Limits(ages=Ages(idle=None, linger=60))
    ) as manager:
        client = FakeClient()
        session = await opened(manager, client=client)
        client.left_at = anyio.current_time()
        assert await survives(manager, session, 60)
        await anyio.sleep(3 * PERIOD)
        assert session.stop_reason is StopReason.DISCONNECTED


async def test_no_sleeper_and_no_elder_ends_because_nothing_ran() -> None:
    ages = Ages(idle=None, linger=None, max_age=3600, session_ttl=1000)
    async with manager_of(FakeLauncher(), limits=Limits(ages=ages)) as manager:
        elder, sleeper = await opened(manager), await opened(manager)
        sleeper.stop(StopReason.IDLE)
        await until(lambda: sleeper.state is SessionState.ASLEEP)
        assert await survives(manager, sleeper, 1000)
        await anyio.sleep(100)
        assert sleeper.end_reason is EndReason.EXPIRED
        await anyio.sleep(3600 - 1000 - 100 + 2)
        assert elder.end_reason is EndReason.MAX_AGE


async def test_no_backend_is_silent_because_nothing_ran() -> None:
    """FAULTS F43: no false timeout kills."""
    async with manager_of(
        FakeLauncher(), limits=Limits(call_timeout=10, ages=Ages(idle=None))
    ) as manager:
        session = await opened(manager)
        calls = [call(session) for _ in range(SILENT_CALLS)]
        assert await survives(manager, session, 10)
        assert [sink.outcome for sink in calls] == [None] * SILENT_CALLS
        await anyio.sleep(3)
        assert session.stop_reason is StopReason.SILENT


async def test_no_start_is_given_up_because_nothing_ran() -> None:
    launcher = FakeLauncher(initialize="silent")
    async with manager_of(launcher, limits=Limits(start_timeout=60)) as manager:
        session = create(manager)
        assert await survives(manager, session, 60)
        await until(lambda: session.start.settled.is_set())
        assert isinstance(session.start.failure, BackendStartFailed)


async def test_nobody_leaves_the_queue_because_nothing_ran() -> None:
    limits = Limits(max_sessions=1, queue_timeout=30, ages=Ages(idle=None))
    async with manager_of(FakeLauncher(), limits=limits) as manager:
        await opened(manager)
        waits = create(manager)
        assert await survives(manager, waits, 30)
        await until(lambda: waits.start.settled.is_set())
        assert isinstance(waits.start.failure, AtCapacity)


async def test_a_drain_goes_on_where_it_was() -> None:
    """DESIGN 7: what is in flight gets `drain_timeout` seconds."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager, anyio.create_task_group() as tasks:
        session = await opened(manager)
        sink = call(session)
        tasks.start_soon(manager.drain, 30)
        await anyio.sleep(10)
        pause(100)
        await anyio.sleep(10)
        assert sink.outcome is None
        await until(lambda: sink.outcome is not None)


async def test_no_catalogue_is_given_up_because_nothing_ran() -> None:
    """Of neither its start nor its lists: `Catalogue` gives each so many seconds."""
    async with running() as pauses, anyio.create_task_group() as tasks:
        launcher = FakeLauncher(initialize="silent")
        envelope = Envelope("2026-07-28", b"{}")
        catalogue = Catalogue("r", launcher, envelope, ttl=60, timeout=60, pauses=pauses)
        failures: list[ProxyError] = []

        async def fetch() -> None:
            try:
                await catalogue.offer()
            except ProxyError as error:
                failures.append(error)

        tasks.start_soon(fetch)
        await anyio.sleep(30)
        pause(1000)
        await anyio.sleep(29)
        assert failures == []
        await until(lambda: len(failures) == 1)
        assert isinstance(failures[0], BackendStartFailed)

import gc
import logging
import weakref
from collections.abc import Awaitable, Callable

import anyio
import pytest

from sessionproxy.core.binding import SessionIds
from sessionproxy.core.circuit import FAILURES
from sessionproxy.core.exchange import Outcome
from sessionproxy.core.manager import DRAIN_POLL, Limits, SessionManager
from sessionproxy.core.reaper import PERIOD, SLEEPERS_EVERY, Ages
from sessionproxy.core.session import Session
from sessionproxy.core.state import EndReason, SessionState, StopReason
from sessionproxy.errors import (
    AtCapacity,
    BackendGone,
    BackendStartFailed,
    Draining,
    Exit,
    ProxyError,
    RouteResting,
    SessionNotFound,
)

from .fakes import (
    KEY,
    USER,
    FakeClient,
    FakeLauncher,
    call,
    create,
    manager_of,
    opened,
    results,
    session_of,
    until,
)

NEVER = Ages(idle=None, linger=None)


async def asleep(manager: SessionManager, session: Session) -> Session:
    session.stop(StopReason.IDLE)
    await until(lambda: session.state is SessionState.ASLEEP)
    return session


async def raised_by(waits: Callable[[], Awaitable[object]]) -> ProxyError | None:
    try:
        await waits()
    except ProxyError as error:
        return error
    return None


# -- opening ---------------------------------------------------------------------------------------


async def test_a_session_that_was_opened_is_ready_and_found_by_its_id() -> None:
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        session = await opened(manager)
        assert session.state is SessionState.READY
        assert manager.find("alice", session.identity.key) is session
        assert (launcher.launches, len(launcher.running)) == (1, 1)
        assert repr(manager).startswith("<SessionManager fake sessions=1 <Admission running=1/64")


async def test_leaving_the_manager_ends_every_session_and_stops_every_backend() -> None:
    """CONVENTIONS: who opens, closes."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        ready = await opened(manager)
        sleeper = await asleep(manager, await opened(manager))
        launcher.initialize = "silent"
        starting = create(manager)
        await until(lambda: len(launcher.running) == 2)
    assert launcher.running == []
    assert [s.end_reason for s in (ready, sleeper, starting)] == [EndReason.SHUTDOWN] * 3
    assert [s.state for s in (ready, sleeper, starting)] == [SessionState.CLOSED] * 3
    assert len(manager.registry) == 0


async def test_a_proxy_that_is_cancelled_stops_every_backend_all_the_same() -> None:
    """CONVENTIONS: cleanup that awaits is shielded; DESIGN 5.6. A launcher may forget to."""
    launcher = FakeLauncher(shields=False)
    sessions: list[Session] = []

    async def serve() -> None:
        async with manager_of(launcher) as manager:
            sessions.append(await opened(manager))
            launcher.initialize = "silent"
            sessions.append(create(manager))
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await until(lambda: len(launcher.running) == 2)
        tasks.cancel_scope.cancel()
    assert launcher.running == []
    assert [session.state for session in sessions] == [SessionState.CLOSED] * 2


async def test_a_session_does_not_inherit_the_context_of_the_request_that_opens_or_wakes_it() -> (
    None
):
    """DESIGN 8: started in a copy of the server's context, never the opening request's."""
    launcher = FakeLauncher()
    USER.set("server")
    async with manager_of(launcher) as manager:
        USER.set("alice")
        session = await opened(manager)
        await asleep(manager, session)
        USER.set("bob")
        await manager.ready(session)
        assert launcher.users == ["server", "server"]


async def test_a_backend_that_cannot_start_fails_only_its_own_session() -> None:
    """DESIGN 5.2 and 11: nothing stays."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        session = await opened(manager)
        launcher.fails = True
        with pytest.raises(BackendStartFailed):
            await opened(manager, "bob")
        assert session.state is SessionState.READY
        assert (len(manager.registry), manager.admission.running) == (1, 1)


async def test_the_opening_clients_cancellation_leaves_nothing() -> None:
    """DESIGN 5.2: a start that is cancelled leaves nothing running."""
    launcher = FakeLauncher(initialize="silent")
    async with manager_of(launcher) as manager:
        with anyio.move_on_after(5):
            await opened(manager)
        assert len(launcher.running) == 1
        await until(lambda: not launcher.running)
        assert (len(manager.registry), manager.admission.running) == (0, 0)


async def test_a_client_that_hangs_up_while_its_backend_is_launched_leaves_nothing() -> None:
    """DESIGN 5.2, one step earlier."""
    launcher = FakeLauncher(launch_takes=10)
    async with manager_of(launcher) as manager:
        with anyio.move_on_after(5):
            await opened(manager)
        await until(lambda: not launcher.launching)
        await anyio.sleep(20)
        assert (launcher.running, len(manager.registry), manager.admission.running) == ([], 0, 0)


async def test_a_client_that_hangs_up_in_the_queue_leaves_it_and_nothing_is_started() -> None:
    """DESIGN 7: the waiting client leaving the queue when it hangs up."""
    launcher = FakeLauncher()
    async with manager_of(launcher, Limits(max_sessions=1, ages=NEVER)) as manager:
        await opened(manager)
        with anyio.move_on_after(5):
            await opened(manager, "bob")
        await anyio.wait_all_tasks_blocked()
        assert (manager.admission.queued, launcher.launches, len(manager.registry)) == (0, 1, 1)


async def test_a_client_that_hangs_up_in_the_moment_it_is_ready_leaves_nothing() -> None:
    """It never learns its session's id."""
    launcher = FakeLauncher(launch_takes=10)
    async with manager_of(launcher) as manager:
        session = create(manager)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.opened, session)
            await until(lambda: session.state is SessionState.READY)
            tasks.cancel_scope.cancel()
        if session.state is SessionState.READY:  # it was told in time
            manager.end(session, EndReason.ABANDONED)
        await until(lambda: not launcher.running)
        assert len(manager.registry) == 0


async def test_hanging_up_and_deleting_are_no_failed_starts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """DESIGN 7: the route rests for a backend that fails to start, not for impatient clients."""
    launcher = FakeLauncher(initialize="silent")
    async with manager_of(launcher) as manager:
        for _ in range(FAILURES):
            with anyio.move_on_after(1):
                await opened(manager)
            session = create(manager)
            await anyio.sleep(1)
            manager.end(session, EndReason.KILLED)
        await until(lambda: not launcher.running)
        launcher.initialize = "answers"
        assert (await opened(manager)).state is SessionState.READY
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("answered_first", [True, False])
async def test_an_end_that_comes_together_with_the_answer_closes_cleanly(
    answered_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The race between the backend's answer to `initialize` and a kill, in both orders."""
    launcher = FakeLauncher(initialize="silent")
    async with manager_of(launcher) as manager:
        session = create(manager)
        await until(lambda: launcher.running)
        initialize = launcher.backend.requests[0]
        if answered_first:
            launcher.backend.reply(initialize)
        manager.end(session, EndReason.KILLED)
        if not answered_first:
            initialize.settle(Outcome(result=b"{}"))
        with pytest.raises(SessionNotFound):
            await manager.opened(session)
        await until(lambda: not launcher.running)
        assert (session.state, session.end_reason) == (SessionState.CLOSED, EndReason.KILLED)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_backend_that_dies_right_after_its_answer_leaves_a_session_that_sleeps() -> None:
    """FAULTS F04: crash after reply: session asleep; the next call wakes it."""
    launcher = FakeLauncher(initialize="answers_and_dies")
    async with manager_of(launcher) as manager:
        session = await opened(manager)
        for _ in range(10):  # trio's order within one tick is random
            session = await opened(manager)
            assert session.start.answer is not None
            await until(lambda session=session: session.state is SessionState.ASLEEP)
        launcher.initialize = "answers"
        await manager.ready(session)
        assert session.state is SessionState.READY
        assert session.loss is not None
        assert session.loss.exit == Exit(code=7)


# -- finding ---------------------------------------------------------------------------------------


async def test_another_owners_session_answers_as_unknown() -> None:
    """DESIGN 5.8."""
    async with manager_of(FakeLauncher()) as manager:
        key = (await opened(manager)).identity.key
        with pytest.raises(SessionNotFound):
            manager.find("mallory", key)


async def test_an_id_that_is_not_authentic_is_not_looked_up() -> None:
    """DESIGN 6; the registry would have it."""
    async with manager_of(FakeLauncher()) as manager:
        forged = session_of("forged")
        manager.registry.add(forged)
        assert manager.registry.get(forged.identity) is forged
        try:
            with pytest.raises(SessionNotFound):
                manager.find("alice", "forged")
        finally:
            forged.state = SessionState.CLOSED
            manager.registry.moved(forged)


@pytest.mark.parametrize("cut", [0, 1, 27, 54])
async def test_a_truncated_id_is_unknown(cut: int) -> None:
    """FAULTS F37."""
    async with manager_of(FakeLauncher()) as manager:
        key = (await opened(manager)).identity.key
        with pytest.raises(SessionNotFound):
            manager.find("alice", key[:cut])


async def test_an_authentic_id_that_is_not_known_here_is_unknown() -> None:
    """FAULTS F25: a proxy that was restarted, without `persist_sessions`."""
    async with manager_of(FakeLauncher()) as manager:
        with pytest.raises(SessionNotFound):
            manager.find("alice", SessionIds(KEY).mint("fake", "alice"))


async def test_a_session_that_ends_is_unknown_from_that_moment() -> None:
    """FAULTS F44: DELETE twice: 404."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        session = await opened(manager)
        manager.end(session, EndReason.CLIENT_DELETE)
        with pytest.raises(SessionNotFound):
            manager.find("alice", session.identity.key)
        await until(lambda: not launcher.running)
        with pytest.raises(SessionNotFound):
            manager.find("alice", session.identity.key)


# -- limits ----------------------------------------------------------------------------------------


async def test_a_place_is_held_until_the_backend_is_reaped() -> None:
    """DESIGN 7: `max_sessions` counts backends until they are reaped."""
    launcher = FakeLauncher(stop_takes=10)
    async with manager_of(launcher, Limits(max_sessions=1)) as manager:
        first = await opened(manager)
        before = anyio.current_time()
        manager.end(first, EndReason.CLIENT_DELETE)
        second = await opened(manager, "bob")
        assert anyio.current_time() - before == 10
        assert first.state is SessionState.CLOSED
        assert launcher.running == [launcher.backend]
        assert second.state is SessionState.READY


async def test_a_sleeping_session_holds_no_place() -> None:
    async with manager_of(FakeLauncher(), Limits(max_sessions=1, ages=NEVER)) as manager:
        sleeper = await asleep(manager, await opened(manager))
        await opened(manager, "bob")
        assert sleeper.state is SessionState.ASLEEP


async def test_sessions_that_wait_come_in_in_the_order_they_came() -> None:
    """DESIGN 7: FIFO."""
    launcher = FakeLauncher()
    async with manager_of(launcher, Limits(max_sessions=1, ages=NEVER)) as manager:
        waiting = [await opened(manager, "first")]
        for owner in ("second", "third", "fourth"):
            waiting.append(create(manager, owner))
            await anyio.wait_all_tasks_blocked()
        for session in waiting:
            await until(lambda session=session: session.state is SessionState.READY)
            manager.end(session, EndReason.CLIENT_DELETE)
        assert launcher.owners == ["first", "second", "third", "fourth"]


async def test_a_full_queue_refuses_at_once() -> None:
    """DESIGN 11: 503; nothing was started."""
    launcher = FakeLauncher()
    async with manager_of(launcher, Limits(max_sessions=1, queue_length=1)) as manager:
        await opened(manager)
        create(manager)
        await anyio.wait_all_tasks_blocked()
        before = anyio.current_time()
        with pytest.raises(AtCapacity):
            await opened(manager)
        assert anyio.current_time() == before
        assert (launcher.launches, len(manager.registry)) == (1, 2)


async def test_a_wait_in_the_queue_ends_at_its_timeout_and_nothing_was_started() -> None:
    launcher = FakeLauncher()
    async with manager_of(launcher, Limits(max_sessions=1, queue_timeout=30)) as manager:
        await opened(manager)
        before = anyio.current_time()
        with pytest.raises(AtCapacity):
            await opened(manager, "bob")
        assert anyio.current_time() - before == 30
        assert (launcher.launches, len(manager.registry)) == (1, 1)
        assert not manager.circuit.rests(anyio.current_time())


async def test_a_full_house_is_no_failed_start() -> None:
    """DESIGN 7: the route rests for a backend that fails to start."""
    limits = Limits(max_sessions=1, queue_timeout=5, ages=NEVER)
    async with manager_of(FakeLauncher(), limits) as manager:
        first = await opened(manager)
        for _ in range(FAILURES):
            with pytest.raises(AtCapacity):
                await opened(manager)
        manager.end(first, EndReason.CLIENT_DELETE)
        assert (await opened(manager)).state is SessionState.READY


async def test_one_owner_at_its_limit_leaves_the_rest_to_others() -> None:
    """DESIGN 7: limits per owner."""
    limits = Limits(max_sessions=10, max_sessions_per_owner=1, queue_timeout=5)
    async with manager_of(FakeLauncher(), limits) as manager:
        await opened(manager)
        with pytest.raises(AtCapacity):
            await opened(manager)
        await opened(manager, "bob")


async def test_a_storm_of_openings_starts_only_so_many_at_once() -> None:
    """FAULTS F38."""
    launcher = FakeLauncher(launch_takes=1)
    limits = Limits(max_sessions=64, starts_at_once=4, queue_length=256)
    async with manager_of(launcher, limits) as manager:
        sessions = [create(manager, f"owner{number}") for number in range(50)]
        await until(lambda: all(s.state is SessionState.READY for s in sessions))
        assert (launcher.most_launching, launcher.launches) == (4, 50)


async def test_a_start_counts_as_one_until_initialize_is_answered() -> None:
    """DESIGN 7: starts at once."""
    launcher = FakeLauncher(initialize="silent")
    limits = Limits(starts_at_once=1, start_timeout=20, queue_timeout=60)
    async with manager_of(launcher, limits) as manager:
        create(manager)
        create(manager, "bob")
        await anyio.sleep(19)
        assert launcher.launches == 1
        await anyio.sleep(5)
        assert launcher.launches == 2


# -- sleeping and waking ---------------------------------------------------------------------------


async def test_an_idle_backend_stops_and_the_next_request_gets_a_fresh_one() -> None:
    """DESIGN 7, idle and hibernation."""
    launcher = FakeLauncher()
    async with manager_of(launcher, Limits(ages=Ages(idle=300))) as manager:
        session = await opened(manager)
        first = launcher.backend
        await anyio.sleep(300 - PERIOD)
        assert session.state is SessionState.READY
        await anyio.sleep(2 * PERIOD)
        assert (session.state, session.stop_reason) == (SessionState.STOPPING, StopReason.IDLE)
        await anyio.sleep(launcher.stop_takes)
        assert (session.state, launcher.running) == (SessionState.ASLEEP, [])

        assert manager.find("alice", session.identity.key) is session
        await manager.ready(session)
        assert launcher.running == [launcher.backend]
        assert launcher.backend is not first
        assert session.loss is not None
        assert session.loss.reason is StopReason.IDLE
        assert session.stop_reason is None


async def test_a_long_call_keeps_its_backend() -> None:
    """DESIGN 7: a call longer than the limit is never cut by it; FAULTS F46."""
    launcher = FakeLauncher()
    async with manager_of(launcher, Limits(ages=Ages(idle=60, linger=60))) as manager:
        session = await opened(manager, client=FakeClient(left_at=0.0))
        sink = call(session)
        await anyio.sleep(7200)
        assert (session.state, results([sink])) == (SessionState.READY, ["in flight"])
        launcher.backend.reply(launcher.backend.requests[1])
        await anyio.sleep(60 + 2 * PERIOD)
        assert session.state is not SessionState.READY
        assert results([sink]) == ["result"]


async def test_a_client_that_left_is_disconnected_after_linger() -> None:
    """DESIGN 7, disconnected: the backend stops, the id sleeps."""
    async with manager_of(FakeLauncher(), Limits(ages=Ages(idle=None, linger=60))) as manager:
        client = FakeClient(listening=True)
        session = await opened(manager, client=client)
        await anyio.sleep(7200)
        assert session.state is SessionState.READY
        client.listening, client.left_at = False, anyio.current_time()
        await anyio.sleep(60 - PERIOD)
        assert session.state is SessionState.READY
        await anyio.sleep(2 * PERIOD)
        assert session.stop_reason is StopReason.DISCONNECTED


async def test_two_first_calls_at_once_start_one_backend() -> None:
    """DESIGN 5.2."""
    launcher = FakeLauncher(launch_takes=5)
    async with manager_of(launcher) as manager:
        session = await asleep(manager, await opened(manager))
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(manager.ready, session)
        assert (launcher.launches, len(launcher.running)) == (2, 1)
        assert session.state is SessionState.READY


async def test_a_request_while_the_backend_stops_waits_and_gets_the_next_one() -> None:
    """DESIGN 7: a request during STOPPING waits; 5.2: never two backends of one session."""
    launcher = FakeLauncher(stop_takes=10)
    async with manager_of(launcher) as manager:
        session = await opened(manager)
        session.stop(StopReason.IDLE)
        before = anyio.current_time()
        await manager.ready(session)
        assert anyio.current_time() - before == 10
        assert (launcher.launches, len(launcher.running)) == (2, 1)


async def test_a_request_in_the_tick_of_the_idle_limit_is_served_or_waits_for_a_fresh_one() -> None:
    """FAULTS F45: either served or told, never both or neither."""
    served = told = 0
    for _ in range(20):
        launcher = FakeLauncher(echoes=True)
        async with manager_of(launcher, Limits(ages=Ages(idle=10))) as manager:
            session = await opened(manager)
            first = launcher.backend
            await anyio.sleep_until(session.opened_at + 10)
            await manager.ready(session)
            assert results([call(session)]) == ["result"]
            asked_first = "tools/call" in first.methods()
            assert asked_first is (session.loss is None)
            assert ["tools/call"] == [m for b in {first, launcher.backend} for m in b.methods()]
            served, told = served + asked_first, told + (not asked_first)
    assert served + told == 20


async def test_a_start_that_fails_on_waking_is_told_and_the_session_sleeps_on() -> None:
    """DESIGN 11: backend cannot start: error to the first call."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        session = await asleep(manager, await opened(manager))
        launcher.fails = True
        failures: list[ProxyError | None] = []

        async def wait() -> None:
            failures.append(await raised_by(lambda: manager.ready(session)))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
        assert [type(failure) for failure in failures] == [BackendStartFailed] * 3
        assert launcher.launches == 2
        assert (session.state, session.stop_reason) == (
            SessionState.ASLEEP,
            StopReason.START_FAILED,
        )
        assert session.loss is not None
        assert session.loss.reason is StopReason.IDLE
        launcher.fails = False
        await manager.ready(session)
        assert session.state is SessionState.READY


async def test_a_sleeper_without_a_place_sleeps_on() -> None:
    async with manager_of(FakeLauncher(), Limits(max_sessions=1, ages=NEVER)) as manager:
        sleeper = await asleep(manager, await opened(manager))
        await opened(manager, "bob")
        with pytest.raises(AtCapacity):
            await manager.ready(sleeper)
        assert sleeper.state is SessionState.ASLEEP
        assert manager.find("alice", sleeper.identity.key) is sleeper


async def test_a_queued_waking_is_given_up_with_the_last_who_waits_for_it() -> None:
    """DESIGN 7: the waiting client leaving the queue when it hangs up."""
    launcher = FakeLauncher()
    async with manager_of(launcher, Limits(max_sessions=1, ages=NEVER)) as manager:
        sleeper = await asleep(manager, await opened(manager))
        await opened(manager, "bob")
        async with anyio.create_task_group() as tasks:
            scopes = [anyio.CancelScope(), anyio.CancelScope()]

            async def wait(scope: anyio.CancelScope) -> None:
                with scope:
                    await manager.ready(sleeper)

            for scope in scopes:
                tasks.start_soon(wait, scope)
            await anyio.wait_all_tasks_blocked()
            scopes[0].cancel()
            await anyio.wait_all_tasks_blocked()
            assert manager.admission.queued == 1
            scopes[1].cancel()
        await anyio.wait_all_tasks_blocked()
        assert manager.admission.queued == 0
        assert (sleeper.state, sleeper.stop_reason) == (SessionState.ASLEEP, StopReason.ABANDONED)
        assert launcher.launches == 2


async def test_a_waking_that_has_its_place_goes_on_without_those_who_waited() -> None:
    """The client will most likely ask again; the idle limit ends it otherwise."""
    launcher = FakeLauncher(launch_takes=10)
    async with manager_of(launcher, Limits(ages=Ages(idle=60))) as manager:
        session = await asleep(manager, await opened(manager))
        with anyio.move_on_after(5):
            await manager.ready(session)
        await anyio.sleep(6)
        assert session.state is SessionState.READY
        await anyio.sleep(60 + 2)
        assert (session.state, launcher.running) == (SessionState.ASLEEP, [])


async def test_another_who_waits_for_a_queued_opening_and_leaves_does_not_give_it_up() -> None:
    """The opener still waits, and it owns the session."""
    launcher = FakeLauncher()
    async with manager_of(launcher, Limits(max_sessions=1, ages=NEVER)) as manager:
        first = await opened(manager)
        session = create(manager, "bob")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.opened, session)
            await anyio.wait_all_tasks_blocked()
            with anyio.move_on_after(1):
                await manager.ready(session)
            manager.end(first, EndReason.CLIENT_DELETE)
        assert session.state is SessionState.READY


async def test_a_session_that_is_ended_while_it_wakes_is_gone_for_those_who_wait() -> None:
    launcher = FakeLauncher(launch_takes=10)
    async with manager_of(launcher) as manager:
        session = await asleep(manager, await opened(manager))
        failures: list[ProxyError | None] = []
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                failures.append(await raised_by(lambda: manager.ready(session)))

            tasks.start_soon(wait)
            await anyio.sleep(5)
            manager.end(session, EndReason.CLIENT_DELETE)
        assert [type(failure) for failure in failures] == [SessionNotFound]
        assert (session.state, launcher.running, len(manager.registry)) == (
            SessionState.CLOSED,
            [],
            0,
        )


async def test_a_waking_that_is_cut_off_by_its_end_is_no_success_for_the_circuit() -> None:
    """A route that fails to start must not be taken for a sound one because of a DELETE."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        session = await asleep(manager, await opened(manager))
        launcher.fails = True
        for _ in range(FAILURES - 1):
            assert isinstance(await raised_by(lambda: opened(manager)), BackendStartFailed)
        launcher.fails, launcher.initialize = False, "silent"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(raised_by, lambda: manager.ready(session))
            await anyio.sleep(1)
            manager.end(session, EndReason.CLIENT_DELETE)
        launcher.fails = True
        assert isinstance(await raised_by(lambda: opened(manager)), BackendStartFailed)
        with pytest.raises(RouteResting):
            create(manager)


async def test_a_sleeper_expires_at_its_time_to_live() -> None:
    """DESIGN 7: `session_ttl`."""
    ages = Ages(idle=None, session_ttl=3600)
    async with manager_of(FakeLauncher(), Limits(ages=ages)) as manager:
        session = await asleep(manager, await opened(manager))
        await anyio.sleep(3600 - 5)
        assert manager.find("alice", session.identity.key) is session
        await anyio.sleep(5 + PERIOD * (SLEEPERS_EVERY + 1))
        assert (session.state, session.end_reason) == (SessionState.CLOSED, EndReason.EXPIRED)
        with pytest.raises(SessionNotFound):
            manager.find("alice", session.identity.key)
        assert len(manager.registry) == 0


async def test_of_too_many_sleepers_the_oldest_is_evicted() -> None:
    """DESIGN 7: `max_asleep`, oldest evicted."""
    async with manager_of(FakeLauncher(), Limits(max_asleep=2, ages=NEVER)) as manager:
        sleepers = [await asleep(manager, await opened(manager)) for _ in range(3)]
        assert [s.end_reason for s in sleepers] == [EndReason.EVICTED, None, None]
        assert len(manager.registry) == 2
        with pytest.raises(SessionNotFound):
            manager.find("alice", sleepers[0].identity.key)


@pytest.mark.parametrize("how", ["idle", "exit"])
async def test_where_ids_are_not_kept_a_session_ends_with_its_backend(how: str) -> None:
    """DESIGN 7: `on_loss` `not-found`."""
    launcher = FakeLauncher()
    async with manager_of(launcher, keeps_ids=False) as manager:
        session = await opened(manager)
        if how == "idle":
            session.stop(StopReason.IDLE)
        else:
            launcher.backend.exit(Exit(code=1))
        await until(lambda: not launcher.running)
        await anyio.wait_all_tasks_blocked()
        assert (session.state, session.end_reason) == (SessionState.CLOSED, EndReason.BACKEND_LOST)
        assert len(manager.registry) == 0
        with pytest.raises(SessionNotFound):
            manager.find("alice", session.identity.key)
        with pytest.raises(SessionNotFound):
            await manager.ready(session)


async def test_a_request_that_waited_for_a_backend_whose_id_is_not_kept_is_told() -> None:
    async with manager_of(FakeLauncher(), keeps_ids=False) as manager:
        session = await opened(manager)
        session.stop(StopReason.IDLE)
        with anyio.fail_after(5), pytest.raises(SessionNotFound):
            await manager.ready(session)


@pytest.mark.parametrize("sleeps", [False, True])
async def test_a_session_that_is_too_old_ends_awake_or_asleep(sleeps: bool) -> None:
    """DESIGN 7: max age is final: 404."""
    launcher = FakeLauncher()
    async with manager_of(launcher, Limits(ages=Ages(idle=None, max_age=600))) as manager:
        session = await opened(manager)
        sink = call(session)
        if sleeps:
            await asleep(manager, session)
        await anyio.sleep(600 + PERIOD * (SLEEPERS_EVERY + 1))
        assert (session.state, session.end_reason) == (SessionState.CLOSED, EndReason.MAX_AGE)
        assert results([sink]) == ["backend_gone" if sleeps else "session_ended"]
        assert (launcher.running, len(manager.registry)) == ([], 0)


# -- a backend that fails to start -----------------------------------------------------------------


async def test_after_too_many_failed_starts_the_route_rests_and_recovers() -> None:
    """DESIGN 7: 5 times in 60 s; 503 with `Retry-After`."""
    launcher = FakeLauncher(fails=True)
    async with manager_of(launcher) as manager:
        for _ in range(FAILURES):
            with pytest.raises(BackendStartFailed):
                await opened(manager)
        with pytest.raises(RouteResting) as resting:
            create(manager)
        assert launcher.launches == FAILURES
        assert len(manager.registry) == 0
        await anyio.sleep(resting.value.retry_after)
        launcher.fails = False
        await opened(manager)
        launcher.fails = True
        with pytest.raises(BackendStartFailed):
            await opened(manager)
        with pytest.raises(BackendStartFailed):
            await opened(manager)


async def test_a_start_that_fails_at_once_counts_once_however_many_waited() -> None:
    """DESIGN 7: a route rests after 5 failed starts, not after 5 disappointed clients."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        session = await asleep(manager, await opened(manager))
        launcher.initialize = "answers_and_dies"
        failures: list[ProxyError | None] = []

        async def wait() -> None:
            failures.append(await raised_by(lambda: manager.ready(session)))

        async with anyio.create_task_group() as tasks:
            for _ in range(FAILURES):
                tasks.start_soon(wait)
        assert [type(failure) for failure in failures] == [BackendGone] * FAILURES
        assert launcher.launches == 2
        launcher.initialize = "answers"
        await opened(manager)


async def test_a_failed_start_keeps_nothing_of_those_who_waited_for_it() -> None:
    """FAULTS I5: a failure that is kept and raised for each would keep their frames, and so their
    requests, for as long as the session sleeps."""

    class Body:
        """Of a request."""

    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        session = await asleep(manager, await opened(manager))
        launcher.fails = True

        async def ask() -> "weakref.ref[Body]":
            body = Body()
            with pytest.raises(BackendStartFailed):
                await manager.ready(session)
            return weakref.ref(body)

        kept = await ask()
        gc.collect()
        assert kept() is None


async def test_a_resting_route_wakes_nobody() -> None:
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        sleeper = await asleep(manager, await opened(manager))
        launcher.fails = True
        for _ in range(FAILURES):
            with pytest.raises(BackendStartFailed):
                await opened(manager)
        with pytest.raises(RouteResting):
            await manager.ready(sleeper)
        assert sleeper.state is SessionState.ASLEEP


async def test_a_failure_that_nobody_foresaw_ends_its_session_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """CONVENTIONS: a session's task is one of the three edges."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        session = await opened(manager)
        launcher.launch_takes = float("nan")  # the launcher trips over it
        with pytest.raises(BackendStartFailed):
            await opened(manager, "bob")
        assert session.state is SessionState.READY
        assert (len(manager.registry), manager.admission.running) == (1, 1)
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= 40] == [
        True
    ]


# -- draining --------------------------------------------------------------------------------------


async def test_draining_takes_nothing_new_and_lets_what_is_in_flight_end() -> None:
    """DESIGN 7: SIGTERM drains."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager, anyio.create_task_group() as tasks:
        busy, sleeper = await opened(manager), await asleep(manager, await opened(manager))
        sink = call(busy)
        verdicts: list[bool] = []

        async def drain() -> None:
            verdicts.append(await manager.drain(30))

        tasks.start_soon(drain)
        await anyio.sleep(10)
        with pytest.raises(Draining):
            create(manager)
        with pytest.raises(Draining):
            await manager.ready(sleeper)
        assert (busy.state, verdicts) == (SessionState.READY, [])

        ended = anyio.current_time()
        launcher.backend.reply(launcher.backend.requests[1])
        await until(lambda: verdicts)
        assert anyio.current_time() - ended <= launcher.stop_takes + 3 * DRAIN_POLL
        assert (verdicts, results([sink])) == ([True], ["result"])
        assert [busy.end_reason, sleeper.end_reason] == [EndReason.SHUTDOWN] * 2
        assert (launcher.running, len(manager.registry)) == ([], 0)


async def test_what_is_in_flight_when_the_drain_is_over_is_cut_off() -> None:
    """DESIGN 7: exchanges in flight get `drain_timeout` seconds, then all end."""
    launcher = FakeLauncher(stop_takes=10)
    async with manager_of(launcher) as manager:
        sink = call(await opened(manager))
        before = anyio.current_time()
        assert await manager.drain(30) is False
        assert 40 <= anyio.current_time() - before <= 40 + 2 * DRAIN_POLL
        assert results([sink]) == ["session_ended"]
        assert launcher.running == []


async def test_a_second_signal_cuts_the_drain_short() -> None:
    """DESIGN 7: a second signal ends at once."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager, anyio.create_task_group() as tasks:
        sink = call(await opened(manager))
        verdicts: list[bool] = []

        async def drain() -> None:
            verdicts.append(await manager.drain(3600))

        tasks.start_soon(drain)
        await anyio.sleep(5)
        before = anyio.current_time()
        manager.hurry()
        await until(lambda: verdicts)
        assert anyio.current_time() - before <= launcher.stop_takes + 3 * DRAIN_POLL
        assert (verdicts, results([sink])) == ([False], ["session_ended"])


async def test_who_waits_for_a_start_that_a_drain_cuts_off_is_told_to_come_back() -> None:
    """DESIGN 11: draining: 503 with `Retry-After`; 404 would say that an id was wrong."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager, anyio.create_task_group() as tasks:
        sleeper = await asleep(manager, await opened(manager))
        launcher.initialize = "silent"
        failures: list[ProxyError | None] = []

        async def wait(waits: Callable[[], Awaitable[object]]) -> None:
            failures.append(await raised_by(waits))

        tasks.start_soon(wait, lambda: manager.ready(sleeper))
        tasks.start_soon(wait, lambda: opened(manager))
        await anyio.sleep(1)
        await manager.drain(30)
        await anyio.wait_all_tasks_blocked()
        assert [type(failure) for failure in failures] == [Draining, Draining]
        assert launcher.running == []

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from sessionproxy.core.exchange import FAULTY, Ask, Exchange, Outcome
from sessionproxy.core.manager import Limits, SessionManager
from sessionproxy.core.memory import Memory, Opening
from sessionproxy.core.ports import Identity, Upstream
from sessionproxy.core.reaper import Ages
from sessionproxy.core.session import SILENT_CALLS, Session
from sessionproxy.core.start import AT_ONCE
from sessionproxy.core.state import EndReason, SessionState, StopReason
from sessionproxy.errors import (
    AtCapacity,
    BackendGone,
    BackendStartFailed,
    Exit,
    InitializeRefused,
    SessionNotFound,
)
from sessionproxy.wire import Remembers

from .fakes import (
    OPENING,
    FakeBackend,
    FakeClient,
    FakeLauncher,
    FakeSink,
    call,
    manager_of,
    opened,
    results,
    until,
)


@asynccontextmanager
async def ready(
    *, client: FakeClient | None = None, echoes: bool = False, call_timeout: float | None = None
) -> AsyncGenerator[tuple[Session, FakeBackend, FakeLauncher, SessionManager]]:
    launcher = FakeLauncher(echoes=echoes)
    limits = Limits(call_timeout=call_timeout, ages=Ages(idle=None))
    async with manager_of(launcher, limits) as manager:
        session = await opened(manager, client=client)
        yield session, launcher.backend, launcher, manager


def asked(
    session: Session, method: str = "roots/list", of: FakeSink | None = None
) -> list[Outcome]:
    """Let the backend ask, on behalf of the exchange whose sink is `of`; return its answers."""
    answers: list[Outcome] = []
    exchange = Exchange("tools/call", None, client_id=b"1", sink=of) if of is not None else None
    session.ask(Ask(method, b'{"a":1}', answers.append), exchange)
    return answers


async def napped(session: Session, manager: SessionManager, launcher: FakeLauncher) -> FakeBackend:
    """Let the session sleep, wake it, and return its new backend."""
    session.stop(StopReason.IDLE)
    await until(lambda: session.state is SessionState.ASLEEP)
    await manager.ready(session)
    return launcher.backend


# -- its start -------------------------------------------------------------------------------------


async def test_a_backend_gets_initialize_as_the_client_wrote_it() -> None:
    """DESIGN 5.4."""
    async with ready() as (session, backend, _, _):
        assert backend.requests[0].method == "initialize"
        assert backend.requests[0].params == OPENING.params
        assert session.version == "2025-11-25"
        assert session.start.answer is not None
        assert session.start.answer.result is not None


async def test_on_the_first_start_the_client_itself_says_that_it_is_initialized() -> None:
    """2025-11-25 basic/lifecycle#initialization: the notification is the client's."""
    async with ready() as (_, backend, _, _):
        assert backend.notes == []


async def test_a_backend_that_never_answers_fails_the_start_at_the_start_timeout() -> None:
    """DESIGN 11: backend silent past the start limit; nothing stays."""
    launcher = FakeLauncher(initialize="silent")
    async with manager_of(launcher, Limits(start_timeout=60)) as manager:
        before = anyio.current_time()
        with pytest.raises(BackendStartFailed, match="did not answer initialize in 60 s"):
            await opened(manager)
        assert anyio.current_time() - before == 60 + launcher.stop_takes
        assert (launcher.running, len(manager.registry)) == ([], 0)


async def test_a_refusal_of_initialize_is_handed_on_as_it_is() -> None:
    """DESIGN 5.4: error code and data."""
    launcher = FakeLauncher(initialize="refuses")
    async with manager_of(launcher) as manager:
        with pytest.raises(InitializeRefused) as refused:
            await opened(manager)
        assert refused.value.error == b'{"code":-32602,"message":"too old"}'
        assert (launcher.running, len(manager.registry)) == ([], 0)


@pytest.mark.parametrize("on_entry", [True, False])
async def test_one_that_is_launched_again_after_a_refusal_keeps_its_place(on_entry: bool) -> None:
    """DESIGN 7: the limits count every backend, whenever the one before it refused."""

    class Twice(FakeLauncher):
        async def refused(self, identity: Identity, opening: Opening) -> bool:
            self.initialize = "answers"
            return True

        @asynccontextmanager
        async def launch(
            self, identity: Identity, label: str, upstream: Upstream, opening: Opening
        ) -> AsyncGenerator[FakeBackend]:
            if on_entry and self.initialize == "refuses":
                raise InitializeRefused("The backend refused initialize.", b"{}")
            async with super().launch(identity, label, upstream, opening) as backend:
                yield backend

    launcher = Twice(initialize="refuses")
    async with manager_of(launcher, Limits(max_sessions=1, queue_timeout=1)) as manager:
        session = await opened(manager)
        assert (manager.admission.running, len(launcher.running)) == (1, 1)
        with pytest.raises(AtCapacity):
            await opened(manager)
        manager.end(session, EndReason.KILLED)
        await until(lambda: session.state is SessionState.CLOSED)
        assert (manager.admission.running, manager.admission.starting) == (0, 0)


async def test_the_end_of_one_that_refused_is_not_the_end_of_the_next() -> None:
    """DESIGN 9: a server of the other era exits when it is left, and the session goes on."""

    class Leaving(FakeLauncher):
        async def refused(self, identity: Identity, opening: Opening) -> bool:
            self.initialize = "answers"
            return True

        @asynccontextmanager
        async def launch(
            self, identity: Identity, label: str, upstream: Upstream, opening: Opening
        ) -> AsyncGenerator[FakeBackend]:
            async with super().launch(identity, label, upstream, opening) as backend:
                yield backend
                backend.exit(Exit(code=0))

    launcher = Leaving(initialize="refuses")
    async with manager_of(launcher) as manager:
        session = await opened(manager)
        await anyio.sleep(10)
        assert (launcher.launches, session.state, session.loss) == (2, SessionState.READY, None)


async def test_how_a_backend_ended_that_died_at_the_start_is_told() -> None:
    """DESIGN 11: backend cannot start: reason and exit status."""
    launcher = FakeLauncher(initialize="silent")
    async with manager_of(launcher) as manager, anyio.create_task_group() as tasks:

        async def die() -> None:
            await until(lambda: launcher.running)
            backend = launcher.backend
            gone = BackendGone("The backend ended: exit status 3.", Exit(code=3))
            backend.reply(backend.requests[0], Outcome(failure=gone))

        tasks.start_soon(die)
        with pytest.raises(BackendStartFailed, match="exit status 3") as failed:
            await opened(manager)
        assert failed.value.exit == Exit(code=3)


async def test_what_a_backend_says_before_it_answers_initialize_goes_to_the_opener() -> None:
    """DESIGN 4: anything before the result goes out on the stream of the request."""
    launcher = FakeLauncher(initialize="silent")
    async with manager_of(launcher) as manager:
        opener, client = FakeSink(), FakeClient()
        session = manager.create("alice", OPENING, client, opener)
        await until(lambda: launcher.running)
        initialize = launcher.backend.requests[0]
        session.notification("notifications/message", None, b'{"n":1}', initialize)
        assert opener.said() == [{"n": 1}]
        assert client.said() == []


# -- leases ----------------------------------------------------------------------------------------


async def test_a_request_holds_a_lease_until_it_is_settled() -> None:
    """DESIGN 2: lease."""
    async with ready() as (session, backend, _, _):
        call(session)
        call(session)
        assert session.leases == 2
        await anyio.sleep(100)
        backend.reply(backend.requests[1])
        assert session.leases == 1
        assert session.idle_for(anyio.current_time()) < 0
        backend.reply(backend.requests[2])
        assert session.leases == 0
        assert session.idle_for(anyio.current_time() + 5) == 5


async def test_a_fault_of_ours_on_the_way_to_the_backend_fails_its_request_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5: one outcome, and its lease comes back; the session goes on."""
    async with ready(echoes=True) as (session, backend, _, _):
        sound = backend.request

        def broken(exchange: Exchange) -> None:
            raise KeyError("broken")

        monkeypatch.setattr(backend, "request", broken)
        exchange = call(session)
        assert exchange.outcome == FAULTY
        assert session.leases == 0
        assert "KeyError" in caplog.text
        monkeypatch.setattr(backend, "request", sound)
        assert call(session).outcome != FAULTY


@pytest.mark.parametrize(
    "state", [s for s in SessionState if s not in (SessionState.READY, SessionState.CLOSED)]
)
async def test_only_a_session_that_is_ready_grants_leases(state: SessionState) -> None:
    """DESIGN 7: a request during STOPPING waits; it is not sent to a backend that is going."""
    async with ready() as (session, backend, _, _):
        session.state = state
        with pytest.raises(SessionNotFound), session.lease():
            pass
        with pytest.raises(SessionNotFound):
            call(session)
        session.notify("notifications/x", None)
        assert (session.leases, backend.notes, len(backend.requests)) == (0, [], 1)
        session.state = SessionState.READY


async def test_a_notification_counts_as_a_sign_of_life() -> None:
    async with ready() as (session, backend, _, _):
        await anyio.sleep(100)
        session.notify("notifications/roots/list_changed", b"{}")
        assert backend.notes == [("notifications/roots/list_changed", {})]
        assert session.idle_for(anyio.current_time()) == 0
        assert session.leases == 0


async def test_an_answer_of_the_client_counts_as_a_sign_of_life() -> None:
    async with ready() as (session, _, _, _):
        asked(session)
        await anyio.sleep(100)
        assert session.answer(b"1", Outcome(result=b"{}"))
        assert session.idle_for(anyio.current_time()) == 0


# -- stop and end ----------------------------------------------------------------------------------


async def test_what_is_in_flight_when_the_backend_stops_fails_and_its_loss_is_noted() -> None:
    """DESIGN 11: backend dies; 5.12: lost state is never silent."""
    async with ready() as (session, backend, _, _):
        sinks = [call(session), call(session)]
        await anyio.sleep(50)
        now = anyio.current_time()
        backend.exit(Exit(signal="SIGKILL"))
        await until(lambda: session.state is SessionState.ASLEEP)
        assert results(sinks) == ["backend_gone", "backend_gone"]
        failure = sinks[0].outcome and sinks[0].outcome.failure
        assert isinstance(failure, BackendGone)
        assert failure.exit == Exit(signal="SIGKILL")
        assert session.loss is not None
        assert (session.loss.reason, session.loss.exit) == (
            StopReason.BACKEND_EXIT,
            Exit(signal="SIGKILL"),
        )
        assert session.loss.at == pytest.approx(now)
        assert session.leases == 0


async def test_a_loss_tells_how_long_it_was_idle() -> None:
    """FAULTS F50: "idle 31 min"."""
    async with ready() as (session, _, _, _):
        await anyio.sleep(1860)
        session.stop(StopReason.IDLE)
        assert session.loss is not None
        assert session.loss.idle_for == 1860
        assert session.loss.at == anyio.current_time()


async def test_of_several_reasons_to_stop_the_first_counts() -> None:
    """DESIGN 5.5."""
    async with ready() as (session, _, _, _):
        session.stop(StopReason.IDLE)
        session.stop(StopReason.DISCONNECTED)
        assert session.stop_reason is StopReason.IDLE
        await until(lambda: session.state is SessionState.ASLEEP)
        session.stop(StopReason.DISCONNECTED)
        assert (session.state, session.stop_reason) == (SessionState.ASLEEP, StopReason.IDLE)


async def test_what_is_in_flight_when_the_session_ends_gets_an_error() -> None:
    """FAULTS F44: DELETE mid-call."""
    client = FakeClient()
    async with ready(client=client) as (session, _, launcher, manager):
        sink = call(session)
        manager.end(session, EndReason.CLIENT_DELETE)
        assert results([sink]) == ["session_ended"]
        assert client.closed
        assert (session.state, session.leases) == (SessionState.ENDING, 0)
        await until(lambda: session.state is SessionState.CLOSED)
        assert (launcher.running, len(manager.registry)) == ([], 0)


async def test_of_several_reasons_to_end_the_first_counts() -> None:
    """DESIGN 5.5; FAULTS F44: DELETE twice."""
    async with ready() as (session, _, _, manager):
        manager.end(session, EndReason.CLIENT_DELETE)
        manager.end(session, EndReason.MAX_AGE)
        await until(lambda: session.state is SessionState.CLOSED)
        manager.end(session, EndReason.KILLED)
        assert session.end_reason is EndReason.CLIENT_DELETE


async def test_a_session_whose_backend_is_being_stopped_can_be_ended() -> None:
    """DESIGN 7: ENDING from any of them."""
    async with ready() as (session, _, launcher, manager):
        session.stop(StopReason.IDLE)
        manager.end(session, EndReason.CLIENT_DELETE)
        assert session.state is SessionState.ENDING
        await until(lambda: session.state is SessionState.CLOSED)
        assert (launcher.running, len(manager.registry)) == ([], 0)


async def test_a_sleeper_that_is_ended_is_closed_at_once() -> None:
    async with ready() as (session, _, _, manager):
        session.stop(StopReason.IDLE)
        await until(lambda: session.state is SessionState.ASLEEP)
        manager.end(session, EndReason.CLIENT_DELETE)
        assert (session.state, len(manager.registry)) == (SessionState.CLOSED, 0)


async def test_its_repr_shows_state_and_leases_and_no_id() -> None:
    """CONVENTIONS; DESIGN 5.8."""
    async with ready() as (session, _, _, _):
        call(session)
        assert repr(session) == f"<Session {session.label} ready leases=1>"
        assert session.identity.key not in repr(session)


# -- cancelling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "named", "cancelled"),
    [
        ((b"1", b"2"), b"2", [1]),
        ((b"1", b'"1"'), b"1", [0]),
        ((b"1", b'"1"'), b'"1"', [1]),
        ((b'"a"', b'"b"'), b'"\\u0061"', [0]),
        ((b"1", b"1"), b"1", []),
        ((b"1", b"2"), b"3", []),
        ((b"1", b"2"), b"null", []),
        ((b"1", b"2"), b"1.0", []),
        ((b"1", b"2"), b"[1]", []),
    ],
)
async def test_a_cancellation_hits_the_one_request_it_names_or_none(
    ids: tuple[bytes, bytes], named: bytes, cancelled: list[int]
) -> None:
    """FAULTS F32: an ambiguous id cancels none; DESIGN 5.9: it is forwarded."""
    async with ready() as (session, backend, _, _):
        sinks = [call(session, client_id=client_id) for client_id in ids]
        session.notify("notifications/cancelled", b'{"requestId":%b,"reason":"r"}' % named)
        assert backend.cancelled == [backend.requests[1 + place] for place in cancelled]
        assert [place for place, sink in enumerate(sinks) if sink.outcome] == cancelled
        assert backend.notes == []
        assert session.leases == 2 - len(cancelled)


async def test_a_request_that_was_cancelled_is_settled_as_that() -> None:
    async with ready() as (session, _, _, _):
        sink = call(session)
        session.notify("notifications/cancelled", b'{"requestId":1}')
        session.notify("notifications/cancelled", b'{"requestId":1}')
        assert results([sink]) == ["request_cancelled"]
        assert sink.times_settled == 1


async def test_a_cancellation_that_names_nothing_does_nothing() -> None:
    async with ready() as (session, backend, _, _):
        sink = call(session)
        for params in (None, b"{}", b"[]"):
            session.notify("notifications/cancelled", params)
        assert (results([sink]), backend.cancelled) == (["in flight"], [])


async def test_initialize_cannot_be_cancelled() -> None:
    """2025-11-25 basic/utilities/cancellation: must not be cancelled by clients."""
    async with ready() as (session, backend, _, _):
        sink = call(session, "initialize")
        session.notify("notifications/cancelled", b'{"requestId":1}')
        assert (results([sink]), backend.cancelled) == (["in flight"], [])


async def test_what_is_replayed_on_waking_cannot_be_cancelled_nor_hide_a_clients_request() -> None:
    """SDK clients count from 0; the replays are the proxy's own and have no client's id."""
    async with ready() as (session, backend, launcher, manager):
        call(session, "logging/setLevel", b'{"level":"debug"}')
        backend.reply(backend.requests[-1])
        backend = await napped(session, manager, launcher)
        assert backend.methods() == ["logging/setLevel"]
        session.notify("notifications/cancelled", b'{"requestId":0}')
        assert backend.cancelled == []
        sink = call(session, client_id=b"0")
        session.notify("notifications/cancelled", b'{"requestId":0}')
        assert results([sink]) == ["request_cancelled"]


# -- what a session remembers ----------------------------------------------------------------------


async def test_on_waking_log_level_and_subscriptions_are_replayed_after_initialized() -> None:
    """DESIGN 7: log level and subscriptions are replayed on waking."""
    async with ready(echoes=True) as (session, _, launcher, manager):
        call(session, "logging/setLevel", b'{"level":"debug"}')
        call(session, "resources/subscribe", b'{"uri":"a://1"}')
        call(session, "resources/subscribe", b'{"uri":"a://2"}')
        call(session, "logging/setLevel", b'{"level":"error"}')
        call(session, "resources/unsubscribe", b'{"uri":"a://1"}')
        for _ in range(2):
            backend = await napped(session, manager, launcher)
            assert backend.notes == [("notifications/initialized", None)]
            assert [
                (e.method, msgspec.json.decode(e.params or b"")) for e in backend.requests[1:]
            ] == [
                ("logging/setLevel", {"level": "error"}),
                ("resources/subscribe", {"uri": "a://2"}),
            ]
            assert backend.requests[0].params == OPENING.params


async def test_a_replay_goes_out_before_the_request_that_woke_the_session() -> None:
    """A call may rely on what was set up before it."""
    async with ready(echoes=True) as (session, _, launcher, manager):
        call(session, "resources/subscribe", b'{"uri":"a://1"}')
        backend = await napped(session, manager, launcher)
        call(session)
        assert backend.methods() == ["resources/subscribe", "tools/call"]


@pytest.mark.parametrize(
    "outcome",
    [Outcome(error=b'{"code":1,"message":"m"}'), Outcome(failure=BackendGone("gone"))],
    ids=["error", "failure"],
)
async def test_what_did_not_succeed_is_not_remembered(outcome: Outcome) -> None:
    async with ready() as (session, backend, _, _):
        call(session, "resources/subscribe", b'{"uri":"a://1"}')
        backend.reply(backend.requests[-1], outcome)
        assert session.memory == Memory()


async def test_answers_to_replays_go_nowhere_and_hold_no_lease() -> None:
    async with ready(echoes=True) as (session, _, launcher, manager):
        call(session, "logging/setLevel", b'{"level":"debug"}')
        launcher.echoes = False
        backend = await napped(session, manager, launcher)
        assert session.leases == 0
        backend.reply(backend.requests[-1])
        assert session.leases == 0


# -- what the backend asks -------------------------------------------------------------------------


async def test_an_ask_goes_out_under_an_id_of_ours_and_its_answer_comes_back() -> None:
    """DESIGN 4, server to client request."""
    client = FakeClient()
    async with ready(client=client) as (session, _, _, _):
        first, second = asked(session), asked(session, "sampling/createMessage")
        assert client.said() == [
            {"jsonrpc": "2.0", "id": 1, "method": "roots/list", "params": {"a": 1}},
            {"jsonrpc": "2.0", "id": 2, "method": "sampling/createMessage", "params": {"a": 1}},
        ]
        assert session.answer(b"2", Outcome(result=b"[2]"))
        assert session.answer(b"1", Outcome(error=b"{}"))
        assert (first, second) == ([Outcome(error=b"{}")], [Outcome(result=b"[2]")])


@pytest.mark.parametrize(
    "client_id", [b"2", b'"1"', b"-1", b"null", b"1.0", b"9" * 1024], ids=lambda i: repr(i[:8])
)
async def test_an_answer_that_nobody_waits_for_is_told_apart(client_id: bytes) -> None:
    """FAULTS F33, the other way round; `1` is not `"1"`."""
    async with ready() as (session, _, _, _):
        answers = asked(session)
        assert not session.answer(client_id, Outcome(result=b"{}"))
        assert answers == []


async def test_a_second_answer_to_one_ask_is_dropped() -> None:
    async with ready() as (session, _, _, _):
        answers = asked(session)
        assert session.answer(b"1", Outcome(result=b"1"))
        assert not session.answer(b"1", Outcome(result=b"2"))
        assert answers == [Outcome(result=b"1")]


async def test_an_ask_goes_out_on_the_stream_of_its_exchange() -> None:
    """DESIGN 8."""
    client = FakeClient(listening=True)
    async with ready(client=client) as (session, _, _, _):
        sink = FakeSink()
        asked(session, of=sink)
        assert (len(sink.messages), client.messages) == (1, [])


@pytest.mark.parametrize("listening", [True, False])
async def test_where_nobody_reads_its_exchanges_stream_it_goes_to_the_client_if_that_listens(
    listening: bool,
) -> None:
    """FAULTS F35; DESIGN 4: a message goes out on one stream only."""
    client = FakeClient(listening=listening)
    async with ready(client=client) as (session, _, _, _):
        sink = FakeSink(attached=False)
        asked(session, of=sink)
        assert (len(sink.messages), len(client.messages)) == ((0, 1) if listening else (1, 0))


async def test_an_ask_that_is_withdrawn_is_taken_back_where_it_went_out() -> None:
    """DESIGN 5.9, from the backend: the client's id and the backend's reason."""
    async with ready() as (session, _, _, _):
        sink, answers = FakeSink(), list[Outcome]()
        ask = Ask("roots/list", None, answers.append)
        session.ask(ask, Exchange("tools/call", None, client_id=b"1", sink=sink))
        session.withdraw(ask, b'{"requestId":"theirs","reason":"late","x":1}')
        assert sink.said()[1] == {
            "jsonrpc": "2.0",
            "method": "notifications/cancelled",
            "params": {"requestId": 1, "reason": "late", "x": 1},
        }
        assert not session.answer(b"1", Outcome(result=b"{}"))
        session.withdraw(ask, None)
        assert (len(sink.messages), answers) == (2, [])


async def test_asks_are_withdrawn_when_the_backend_is_stopped() -> None:
    client = FakeClient()
    async with ready(client=client) as (session, _, _, _):
        answers = asked(session)
        session.stop(StopReason.IDLE)
        assert client.said()[1] == {
            "jsonrpc": "2.0",
            "method": "notifications/cancelled",
            "params": {"requestId": 1, "reason": "the backend is gone"},
        }
        assert not session.answer(b"1", Outcome(result=b"{}"))
        assert answers == []


async def test_what_a_backend_asks_while_it_is_being_stopped_is_not_put_to_the_client() -> None:
    """Its answer could not be used, and would be waited for in the next life of the backend. Code
    in this process that asks is told that it is over."""
    client = FakeClient()
    over: list[Ask] = []
    async with ready(client=client) as (session, _, _, _):
        session.stop(StopReason.IDLE)
        asked(session)
        ask = Ask("roots/list", None, lambda outcome: None)
        ask.on_over = over.append
        session.ask(ask, None)
        assert client.messages == []
        assert over == [ask]
        await until(lambda: session.state is SessionState.ASLEEP)
        assert not session.answer(b"1", Outcome(result=b"{}"))


async def test_ids_of_asks_are_not_used_again_after_waking() -> None:
    """DESIGN 5.1: a late answer to the backend that is gone must not reach the new one."""
    client = FakeClient()
    async with ready(client=client, echoes=True) as (session, _, launcher, manager):
        asked(session)
        await napped(session, manager, launcher)
        answers = asked(session)
        assert not session.answer(b"1", Outcome(result=b"late"))
        assert session.answer(b"2", Outcome(result=b"{}"))
        assert answers == [Outcome(result=b"{}")]


# -- what the backend tells ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "listening", "attached", "on_exchange"),
    [
        ("notifications/message", True, True, True),
        ("notifications/message", False, True, True),
        ("notifications/message", True, False, False),
        ("notifications/message", False, False, True),
        ("notifications/tools/list_changed", True, True, False),
        ("notifications/tools/list_changed", False, True, True),
        ("x/y", True, True, True),
    ],
)
async def test_a_notification_goes_out_on_one_stream_and_one_that_is_read_if_possible(
    method: str, listening: bool, attached: bool, on_exchange: bool
) -> None:
    """DESIGN 4 and 8; 2025-11-25 basic/transports#listening-for-messages-from-the-server."""
    client = FakeClient(listening=listening)
    async with ready(client=client) as (session, _, _, _):
        sink = FakeSink(attached=attached)
        exchange = Exchange("tools/call", None, client_id=b"1", sink=sink)
        session.notification(method, None, b"{}", exchange)
        assert (len(sink.messages), len(client.messages)) == ((1, 0) if on_exchange else (0, 1))


async def test_what_belongs_to_no_exchange_is_given_to_the_client() -> None:
    client = FakeClient()
    async with ready(client=client) as (session, _, _, _):
        session.notification("notifications/message", None, b'{"n":1}', None)
        session.notification("notifications/resources/updated", None, b'{"n":2}', None)
        assert client.said() == [{"n": 1}, {"n": 2}]
        assert [message.droppable for message in client.messages] == [True, False]


# -- the call limit --------------------------------------------------------------------------------


async def test_a_call_past_the_limit_fails_and_is_cancelled_at_the_backend() -> None:
    """DESIGN 11: backend silent past the call limit."""
    async with ready(call_timeout=10) as (session, backend, _, _):
        sink = call(session)
        await anyio.sleep(9.9)
        assert results([sink]) == ["in flight"]
        await anyio.sleep(0.2)
        assert results([sink]) == ["backend_silent"]
        assert backend.cancelled == [backend.requests[1]]
        assert (session.leases, session.state) == (0, SessionState.READY)


async def test_a_backend_that_leaves_three_calls_in_a_row_unanswered_is_stopped() -> None:
    """Our choice: `StopReason.SILENT`."""
    assert SILENT_CALLS == 3
    async with ready(call_timeout=10) as (session, _, _, _):
        for turn in range(SILENT_CALLS):
            assert session.state is SessionState.READY, turn
            call(session)
            await anyio.sleep(10.1)
        assert session.stop_reason is StopReason.SILENT
        assert session.loss is not None


async def test_an_answer_in_between_makes_the_count_begin_anew() -> None:
    async with ready(call_timeout=10) as (session, backend, launcher, manager):
        for _ in range(2 * SILENT_CALLS):
            call(session)
            await anyio.sleep(10.1)
            call(session)
            backend.reply(backend.requests[-1], Outcome(error=b"{}"))
        assert session.state is SessionState.READY

        call(session)
        call(session)
        await anyio.sleep(10.1)
        await napped(session, manager, launcher)
        call(session)
        await anyio.sleep(10.1)
        assert session.state is SessionState.READY


async def test_calls_that_were_answered_in_time_are_not_cut_later() -> None:
    async with ready(call_timeout=10, echoes=True) as (session, backend, _, _):
        sinks = [call(session) for _ in range(5)]
        await anyio.sleep(100)
        assert results(sinks) == ["result"] * 5
        assert backend.cancelled == []


# -- what it keeps in memory -----------------------------------------------------------------------


async def test_what_a_call_was_sent_with_is_not_kept_while_it_runs() -> None:
    """FAULTS F16: a client that hangs up leaves little; what is replayed on waking is kept."""
    async with ready() as (session, _, _, _):
        call_, subscribe = (
            Exchange(method, b'{"uri":"x"}', client_id=b"1", sink=FakeSink())
            for method in ("tools/call", "resources/subscribe")
        )
        session.request(call_)
        session.request(subscribe)
        assert call_.params is None
        assert subscribe.params is not None


async def test_a_failure_that_is_kept_keeps_no_backend() -> None:
    async with ready() as (session, _, launcher, manager):
        session.stop(StopReason.IDLE)
        await until(lambda: session.state is SessionState.ASLEEP)
        launcher.initialize = "refuses"
        with pytest.raises(InitializeRefused):
            await manager.ready(session)
        assert session.start.failure is not None
        assert session.start.failure.__traceback__ is None


async def test_what_waits_for_its_client_counts_for_a_sleeper() -> None:
    client = FakeClient()
    async with ready(client=client) as (session, _, _, _):
        before = session.size
        client.size = 5000
        assert session.size == before + 5000


async def test_a_question_whose_stream_ended_is_the_matter_of_another_that_is_read() -> None:
    """DESIGN 5.3: its withdrawal finds the client, and it is not given up while that reads."""
    async with ready() as (session, backend, _, _):
        first, second = FakeSink(), FakeSink()
        slow, quick = (
            Exchange("tools/call", None, client_id=b"1", sink=sink) for sink in (first, second)
        )
        session.request(slow)
        session.request(quick)
        ask = Ask("elicitation/create", None, lambda outcome: None)
        session.ask(ask, quick)
        backend.reply(quick)
        assert session.unheard_for(10**9) == -math.inf
        session.withdraw(ask, None)
        assert len(first.messages) == 1
        backend.reply(slow)


async def test_a_stream_that_a_batch_still_uses_keeps_its_questions() -> None:
    """2025-03-26 basic/transports: one stream for all of a batch."""
    async with ready() as (session, backend, _, _):
        sink = FakeSink()
        both = [Exchange("tools/call", None, client_id=b"1", sink=sink) for _ in range(2)]
        for exchange in both:
            session.request(exchange)
        ask = Ask("roots/list", None, lambda outcome: None)
        session.ask(ask, both[0])
        backend.reply(both[0])
        assert ask.sink is sink
        backend.reply(both[1])
        assert ask.sink is None


async def test_replays_leave_room_for_the_clients_own_requests() -> None:
    """DESIGN 7: waking with hundreds of subscriptions neither loses one nor refuses a call."""
    async with ready() as (session, _, launcher, manager):
        for n in range(100):
            params = msgspec.json.encode({"uri": f"x://{n}"})
            session.memory.note(Remembers.SUBSCRIBE, params)
        backend = await napped(session, manager, launcher)
        while backend.in_flight():
            assert len(backend.in_flight()) <= AT_ONCE
            backend.reply(backend.in_flight()[0])
        assert backend.methods().count("resources/subscribe") == 100


async def test_a_replay_that_is_never_answered_is_no_stream_that_somebody_reads() -> None:
    """DESIGN 7: what is asked meanwhile is given up like anything else."""
    async with ready() as (session, _, launcher, manager):
        session.memory.note(Remembers.SUBSCRIBE, b'{"uri":"x"}')
        backend = await napped(session, manager, launcher)
        (replay,) = backend.in_flight()
        session.ask(Ask("roots/list", None, lambda outcome: None), replay)
        assert session.unheard_for(1.0) == 0.0
        assert session.unheard_for(5.0) == 4.0

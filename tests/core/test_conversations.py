"""Conversations that end and begin anew, on virtual time (DESIGN 5.12, 6 and 7)."""

import anyio
import pytest

from sessionproxy.core.binding import SessionIds
from sessionproxy.core.exchange import Exchange, Outcome
from sessionproxy.core.manager import Limits, SessionManager
from sessionproxy.core.reaper import Ages
from sessionproxy.core.session import Session
from sessionproxy.core.state import EndReason, SessionState
from sessionproxy.errors import BackendStartFailed, Exit

from .fakes import KEY, OPENING, FakeClient, FakeLauncher, FakeSink, manager_of, until


async def conversed(manager: SessionManager, key: str = "c:k") -> Session:
    session = manager.converse("alice", key, OPENING, FakeClient())
    await manager.ready(session)
    return session


async def test_a_conversation_that_begins_anew_while_the_last_one_stops_is_the_one_that_stays() -> (
    None
):
    """DESIGN 5.2: the end of the old one must not make the new one unknown."""
    launcher = FakeLauncher(stop_takes=30)
    async with manager_of(launcher, Limits()) as manager:
        old = await conversed(manager)
        manager.end(old, EndReason.MAX_AGE)
        assert manager.conversation("alice", "c:k") is None
        new = await conversed(manager)
        assert (len(launcher.running), new.state) == (2, SessionState.READY)
        await until(lambda: old.state is SessionState.CLOSED)
        assert manager.conversation("alice", "c:k") is new
        assert manager.registry.awake() == (new,)
        assert manager.ended("alice", "c:k") is None


async def test_who_comes_while_the_last_one_stops_is_told_of_its_end() -> None:
    """DESIGN 5.12: lost state is never silent."""
    async with manager_of(FakeLauncher(stop_takes=30)) as manager:
        old = await conversed(manager)
        manager.end(old, EndReason.MAX_AGE)
        loss = manager.ended("alice", "c:k")
        assert loss is not None
        assert loss.reason is EndReason.MAX_AGE
        new = await conversed(manager)
        assert new.loss is not None
        assert new.loss.reason is EndReason.MAX_AGE


async def test_how_a_conversation_ended_is_known_until_it_begins_anew() -> None:
    """DESIGN 6: a handle whose session ended is told when and why."""
    async with manager_of(FakeLauncher()) as manager:
        old = await conversed(manager)
        assert manager.ended("alice", "c:k") is None
        manager.end(old, EndReason.CLIENT_DELETE)
        await until(lambda: old.state is SessionState.CLOSED)
        loss = manager.ended("alice", "c:k")
        assert loss is not None
        assert loss.reason is EndReason.CLIENT_DELETE
        assert manager.ended("bob", "c:k") is None
        new = await conversed(manager)
        assert new.loss == loss
        assert manager.ended("alice", "c:k") is None


async def test_a_conversation_that_never_began_has_not_ended() -> None:
    """Nothing was lost with it."""
    async with manager_of(FakeLauncher(launch_takes=30)) as manager:
        session = manager.converse("alice", "c:k", OPENING, FakeClient())
        manager.end(session, EndReason.ABANDONED)
        assert manager.ended("alice", "c:k") is None
        await until(lambda: session.state is SessionState.CLOSED)
        assert manager.ended("alice", "c:k") is None


async def test_a_loss_that_was_not_told_yet_outlives_a_start_that_fails() -> None:
    """DESIGN 5.12: lost state is never silent, however often it takes to begin anew."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        old = await conversed(manager)
        manager.end(old, EndReason.MAX_AGE)
        await until(lambda: old.state is SessionState.CLOSED)
        launcher.fails = True
        for _ in range(2):
            with pytest.raises(BackendStartFailed):
                await conversed(manager)
        launcher.fails = False
        new = await conversed(manager)
        assert new.loss is not None
        assert new.loss.reason is EndReason.MAX_AGE


async def test_a_loss_that_was_not_told_yet_outlives_a_client_that_gives_up_waiting() -> None:
    """DESIGN 5.12. Its session ends while its backend is being started."""
    launcher = FakeLauncher()
    async with manager_of(launcher) as manager:
        old = await conversed(manager)
        manager.end(old, EndReason.KILLED)
        await until(lambda: old.state is SessionState.CLOSED)
        launcher.launch_takes = 30
        manager.end(manager.converse("alice", "c:k", OPENING, FakeClient()), EndReason.ABANDONED)
        new = await conversed(manager)  # which may come before the other one is gone
        assert new.loss is not None
        assert new.loss.reason is EndReason.KILLED


async def test_how_one_owners_conversations_ended_is_not_forgotten_for_anothers() -> None:
    """DESIGN 5.12 and 5.3: what is kept of an end is bounded, and each owner pays for its own."""
    async with manager_of(FakeLauncher(), Limits(max_asleep=3)) as manager:
        hers = await conversed(manager, "c:hers")
        manager.end(hers, EndReason.MAX_AGE)
        for number in range(6):
            his = manager.converse("bob", f"c:{number}", OPENING, FakeClient())
            await manager.ready(his)
            manager.end(his, EndReason.MAX_AGE)
            await until(lambda his=his: his.state is SessionState.CLOSED)
        assert manager.ended("alice", "c:hers") is not None
        known = [manager.ended("bob", f"c:{number}") is not None for number in range(6)]
        assert known == [False] * 4 + [True] * 2


async def test_with_a_session_that_only_shared_its_backend_no_state_was_lost() -> None:
    """The backend is all the others' too, and goes on."""
    manager = SessionManager("fake", FakeLauncher(), Limits(), SessionIds(KEY), stateless=True)
    async with manager:
        old = await conversed(manager)
        manager.end(old, EndReason.MAX_AGE)
        await until(lambda: old.state is SessionState.CLOSED)
        loss = manager.ended("alice", "c:k")
        assert loss is not None  # a handle that has ended says so
        assert (await conversed(manager)).loss is None


async def test_the_end_of_a_backend_that_was_shared_is_told_although_the_session_ended() -> None:
    """DESIGN 5.12: that backend's state is lost to all."""
    launcher = FakeLauncher()
    manager = SessionManager("fake", launcher, Limits(), SessionIds(KEY), stateless=True)
    async with manager:
        old = await conversed(manager)
        launcher.backend.exit(Exit(code=7))
        await until(lambda: old.state is SessionState.ASLEEP)
        manager.end(old, EndReason.EVICTED)
        new = await conversed(manager)
        assert new.loss is not None
        assert new.loss.exit == Exit(code=7)


async def test_a_client_whose_stream_is_lost_loses_its_share_and_nothing_else_ends() -> None:
    """DESIGN 6 and 7: after `linger` seconds without a request of its own; its id gets 404."""
    launcher = FakeLauncher()
    async with manager_of(launcher, Limits(ages=Ages(idle=None, linger=60))) as manager:
        session = await conversed(manager)
        now = anyio.current_time()
        lost, busy, heard = (FakeClient(left_at=now) for _ in range(3))
        listens = FakeClient(listening=True)
        keys = [manager.attach(session, client, None) for client in (lost, busy, heard, listens)]
        call = Exchange("tools/call", None, client_id=b"1", sink=FakeSink(), origin=busy)
        session.request(call)
        await anyio.sleep(59)
        assert manager.attached("alice", keys[2]) is not None  # it is heard of
        await anyio.sleep(2)
        assert [client.closed for client in (lost, busy, heard, listens)] == [True, *[False] * 3]
        assert manager.attached("alice", keys[0]) is None
        assert session.state is SessionState.READY
        launcher.backend.reply(call)
        await anyio.sleep(59)
        assert not busy.closed
        await anyio.sleep(2)
        assert busy.closed


async def test_what_one_client_wants_to_hear_no_more_of_goes_on_for_the_others() -> None:
    """DESIGN 5.3, 6: the backend knows one client, and drops what that one subscribed to."""
    launcher = FakeLauncher(echoes=True)
    async with manager_of(launcher) as manager:
        session = await conversed(manager)
        clients = [FakeClient(), FakeClient(), FakeClient()]
        keys = [manager.attach(session, client, None) for client in clients]

        def ask(what: str, client: FakeClient, uri: bytes = b"u") -> Outcome | None:
            params = b'{"uri":"%b"}' % uri
            call = Exchange(what, params, client_id=b"1", sink=FakeSink(), origin=client)
            session.request(call)
            return call.outcome

        on, off = "resources/subscribe", "resources/unsubscribe"
        for client in clients:
            ask(on, client)
        assert ask(off, clients[0]) == Outcome(result=b"{}")
        left = manager.attached("alice", keys[1])
        assert left is not None
        manager.detach(left)
        assert ask(off, clients[0], b"v") == Outcome(result=b"{}")  # it never subscribed to that
        assert launcher.backend.methods() == [on, on, on, off]
        assert list(session.memory.subscriptions) == [b'"u"']  # for waking
        ask(off, clients[2])
        assert launcher.backend.methods() == [on, on, on, off, off]
        assert not session.memory.subscriptions


async def test_a_conversation_whose_name_we_gave_before_a_restart_has_ended_with_it() -> None:
    """DESIGN 5.12: a cookie outlives the proxy; what was behind it does not."""
    name = SessionIds(KEY).mint("fake", "alice")  # of another boot
    async with manager_of(FakeLauncher()) as manager:
        await anyio.sleep(5)  # virtual
        session = await conversed(manager, f"c:{name}")
        assert session.loss is not None
        assert session.loss.reason is EndReason.SHUTDOWN
        assert anyio.current_time() - session.loss.at == 5
        foreign = manager.converse("bob", f"c:{name}", OPENING, FakeClient())
        assert foreign.loss is None


async def test_a_conversation_whose_name_is_new_has_lost_nothing() -> None:
    """Whoever has made it."""
    ids = SessionIds(KEY)
    manager = SessionManager("fake", FakeLauncher(), Limits(), ids)
    async with manager:
        for name in (ids.mint("fake", "alice"), "mine", "", "A" * 60):
            assert (await conversed(manager, f"c:{name}")).loss is None

import pytest

from sessionproxy.core.ports import Identity
from sessionproxy.core.registry import SLEEPER_SIZE, LocalRegistry
from sessionproxy.core.session import Session
from sessionproxy.core.state import EndReason, SessionState
from sessionproxy.errors import SessionNotFound

from .fakes import FakeClient, session_of


async def asleep_in(registry: LocalRegistry, *keys: str, size: int = 0) -> list[Session]:
    """File sleepers in this order, and let go those that must."""
    sleepers = [session_of(key, state=SessionState.ASLEEP, size=size) for key in keys]
    for sleeper in sleepers:
        let_go(registry, registry.moved(sleeper))
    return sleepers


def let_go(registry: LocalRegistry, overdue: tuple[Session, ...]) -> None:
    for session in overdue:
        session.end(EndReason.EVICTED)
        registry.moved(session)


async def test_a_session_is_found_by_its_whole_identity_only() -> None:
    """DESIGN 6: keys are only ever looked up together with route and owner."""
    registry = LocalRegistry(10)
    session = session_of("k")
    registry.add(session)
    assert registry.get(Identity("fake", "alice", "k")) is session
    for stranger in (
        Identity("fake", "bob", "k"),
        Identity("other", "alice", "k"),
        Identity("fake", "alice", "K"),
    ):
        with pytest.raises(SessionNotFound):
            registry.get(stranger)


async def test_the_same_key_of_two_owners_names_two_sessions() -> None:
    """DESIGN 6: keys count only inside their owner."""
    registry = LocalRegistry(10)
    hers, his = session_of("k"), session_of("k", owner="bob")
    registry.add(hers)
    registry.add(his)
    assert registry.get(hers.identity) is hers
    assert registry.get(his.identity) is his


async def test_a_session_moves_between_those_awake_and_those_asleep() -> None:
    registry = LocalRegistry(10)
    session = session_of("k")
    registry.add(session)
    assert (registry.awake(), list(registry.asleep())) == ((session,), [])

    session.state = SessionState.ASLEEP
    assert registry.moved(session) == ()
    assert (registry.awake(), list(registry.asleep())) == ((), [session])
    assert registry.get(session.identity) is session

    session.state = SessionState.STARTING
    assert registry.moved(session) == ()
    assert (registry.awake(), list(registry.asleep())) == ((session,), [])
    assert len(registry) == 1


@pytest.mark.parametrize("before", [SessionState.READY, SessionState.ASLEEP])
async def test_a_session_that_is_closed_is_forgotten(before: SessionState) -> None:
    registry = LocalRegistry(10)
    session = session_of("k", state=before)
    registry.moved(session)
    session.state = SessionState.CLOSED
    assert registry.moved(session) == ()
    assert len(registry) == 0
    with pytest.raises(SessionNotFound):
        registry.get(session.identity)


async def test_of_too_many_sleepers_those_asleep_longest_must_go() -> None:
    """DESIGN 7: `max_asleep`, oldest evicted."""
    registry = LocalRegistry(2)
    a, b, c = await asleep_in(registry, "a", "b", "c")
    assert list(registry.asleep()) == [b, c]
    assert a.end_reason is EndReason.EVICTED


async def test_an_owner_with_very_many_sleepers_evicts_none_of_anothers() -> None:
    """DESIGN 5.3: who does not keep within bounds harms nobody else."""
    registry = LocalRegistry(4)
    hers = session_of("hers", owner="alice", state=SessionState.ASLEEP)
    let_go(registry, registry.moved(hers))
    his = [session_of(f"his{n}", owner="bob", state=SessionState.ASLEEP) for n in range(20)]
    for session in his:
        let_go(registry, registry.moved(session))
    assert list(registry.asleep()) == [hers, *his[-3:]]
    assert [session.end_reason for session in his[:-3]] == [EndReason.EVICTED] * 17


async def test_an_owner_with_large_sleepers_evicts_no_large_one_of_anothers() -> None:
    """As above, where it is the memory that is too much."""
    registry = LocalRegistry(10)
    hers = session_of("hers", owner="alice", state=SessionState.ASLEEP, size=2 * SLEEPER_SIZE)
    let_go(registry, registry.moved(hers))
    for number in range(20):
        his = session_of(
            f"his{number}", owner="bob", state=SessionState.ASLEEP, size=5 * SLEEPER_SIZE
        )
        let_go(registry, registry.moved(his))
    assert hers in list(registry.asleep())
    assert sum(session.size for session in registry.asleep()) <= 10 * SLEEPER_SIZE


async def test_one_that_slept_again_counts_from_then() -> None:
    registry = LocalRegistry(2)
    a, b = await asleep_in(registry, "a", "b")
    a.state = SessionState.STARTING
    registry.moved(a)
    a.state = SessionState.ASLEEP
    registry.moved(a)
    (c,) = await asleep_in(registry, "c")
    assert list(registry.asleep()) == [a, c]
    assert b.end_reason is EndReason.EVICTED


async def test_of_sleepers_that_are_large_together_the_large_ones_must_go() -> None:
    """DESIGN 7: at most 4 KiB each, here on average; who keeps to that pays for nobody else."""
    registry = LocalRegistry(10)
    assert SLEEPER_SIZE == 4096
    small = await asleep_in(registry, *"abcd", size=SLEEPER_SIZE)
    first, second, third = await asleep_in(registry, "x", "y", "z", size=3 * SLEEPER_SIZE)
    assert list(registry.asleep()) == [*small, second, third]
    assert first.end_reason is EndReason.EVICTED
    await asleep_in(registry, "huge", size=1000 * SLEEPER_SIZE)
    assert list(registry.asleep()) == small


async def test_large_sleepers_go_first_and_then_the_oldest_of_too_many() -> None:
    registry = LocalRegistry(4)
    a, large, b, c = [
        *await asleep_in(registry, "a"),
        *await asleep_in(registry, "large", size=4 * SLEEPER_SIZE),
        *await asleep_in(registry, *"bc"),
    ]
    (d,) = await asleep_in(registry, "d", size=SLEEPER_SIZE)
    assert large.end_reason is EndReason.EVICTED
    assert list(registry.asleep()) == [a, b, c, d]
    (e,) = await asleep_in(registry, "e")
    assert list(registry.asleep()) == [b, c, d, e]


async def test_a_large_sleeper_that_woke_is_no_sleeper() -> None:
    registry = LocalRegistry(4)
    (large,) = await asleep_in(registry, "large", size=4 * SLEEPER_SIZE)
    large.state = SessionState.STARTING
    registry.moved(large)
    await asleep_in(registry, "a", size=4 * SLEEPER_SIZE)
    assert large.end_reason is None
    await asleep_in(registry, "b", size=4 * SLEEPER_SIZE)
    assert large.end_reason is None
    assert [s.identity.key for s in registry.asleep()] == ["b"]


async def test_a_sleeper_whose_size_changes_is_counted_as_it_fell_asleep() -> None:
    """What is kept for its client is forgotten after a while."""
    registry = LocalRegistry(2)
    client = FakeClient()
    for turn in range(10):
        session = session_of(str(turn), state=SessionState.ASLEEP, client=client)
        client.size = 2 * SLEEPER_SIZE
        let_go(registry, registry.moved(session))
        assert session.end_reason is None
        client.size = 0
        session.state = SessionState.CLOSED
        registry.moved(session)
    await asleep_in(registry, "y", "z", size=SLEEPER_SIZE)
    assert len(tuple(registry.asleep())) == 2


async def test_sizes_are_given_back_when_sleepers_wake_or_go() -> None:
    registry = LocalRegistry(2)
    for turn in range(10):
        (session,) = await asleep_in(registry, str(turn), size=2 * SLEEPER_SIZE)
        assert session.end_reason is None
        session.state = SessionState.STARTING if turn % 2 else SessionState.CLOSED
        registry.moved(session)
    await asleep_in(registry, "y", "z", size=SLEEPER_SIZE)
    assert len(tuple(registry.asleep())) == 2


async def test_the_lists_can_be_gone_through_while_sessions_move() -> None:
    """Ending one session files it anew, in the middle of the reaper's pass."""
    registry = LocalRegistry(10)
    sleepers = await asleep_in(registry, *"abc")
    for session in registry.asleep():
        session.state = SessionState.CLOSED
        registry.moved(session)
    assert len(registry) == 0
    assert len(sleepers) == 3

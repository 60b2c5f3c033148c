import anyio
import pytest

from sessionproxy.core.exchange import Ask, Exchange, Outcome
from sessionproxy.core.pauses import Pauses
from sessionproxy.core.reaper import Ages, due, unheard
from sessionproxy.core.session import Session
from sessionproxy.core.state import EndReason, SessionState, StopReason

from .fakes import FakeBackend, FakeClient, FakeSink, session_of

AGES = Ages(idle=300, linger=60, max_age=None, session_ttl=86400)


async def ready_session(client: FakeClient | None = None) -> tuple[Session, FakeBackend]:
    """A session as it is after `begin` has got it ready, with its backend."""
    session = session_of(state=SessionState.READY, client=client)
    backend = FakeBackend(session, initialize="silent", echoes=False)
    session._backend = backend  # pyright: ignore[reportPrivateUsage]
    return session, backend


def verdict(session: Session, after: float, ages: Ages = AGES) -> StopReason | EndReason | None:
    """Return what becomes of `session` when `after` seconds have passed."""
    now = anyio.current_time() + after
    found = list(due([session], now=now, ages=ages, pauses=Pauses()))
    assert all(whose is session for whose, _ in found)
    return found[0][1] if found else None


async def test_a_backend_without_requests_stops_at_the_idle_limit() -> None:
    """DESIGN 7, idle."""
    session, _ = await ready_session()
    assert verdict(session, 299.9) is None
    assert verdict(session, 300) is StopReason.IDLE
    assert verdict(session, 10**9, Ages(idle=None)) is None


async def test_a_call_longer_than_the_limit_is_never_cut_by_it() -> None:
    """DESIGN 7; FAULTS F46. Idle counts from the end of the call."""
    session, backend = await ready_session()
    exchange = Exchange("tools/call", None, client_id=b"1", sink=FakeSink())
    session.request(exchange)
    assert verdict(session, 10**9) is None
    await anyio.sleep(1000)
    backend.reply(exchange)
    assert verdict(session, 299.9) is None
    assert verdict(session, 300) is StopReason.IDLE


async def test_an_open_stream_is_no_lease() -> None:
    """DESIGN 7; FAULTS F46: a GET alone holds nothing."""
    session, _ = await ready_session(FakeClient(listening=True))
    assert verdict(session, 300) is StopReason.IDLE


async def test_a_client_that_closed_its_stream_and_says_nothing_more_is_gone_after_linger() -> None:
    """DESIGN 7, disconnected."""
    session, _ = await ready_session(FakeClient(left_at=anyio.current_time() + 30))
    assert verdict(session, 89.9) is None
    assert verdict(session, 90) is StopReason.DISCONNECTED
    assert verdict(session, 90, Ages(linger=None)) is None


async def test_a_request_after_the_stream_closed_shows_that_the_client_is_there() -> None:
    """DESIGN 7: `linger` seconds passed without a new request; from then on `idle` counts."""
    client = FakeClient(left_at=anyio.current_time())
    session, backend = await ready_session(client)
    await anyio.sleep(50)
    exchange = Exchange("tools/call", None, client_id=b"1", sink=FakeSink())
    session.request(exchange)
    assert verdict(session, 10**6) is None
    backend.reply(exchange)
    assert verdict(session, 299.9) is None
    assert verdict(session, 300) is StopReason.IDLE


async def test_a_call_that_ends_after_its_client_has_left_does_not_make_it_look_alive() -> None:
    """DESIGN 5.9: a lost connection does not cancel a call; `linger` counts from its end."""
    client = FakeClient()
    session, backend = await ready_session(client)
    exchange = Exchange("tools/call", None, client_id=b"1", sink=FakeSink())
    session.request(exchange)
    client.left_at = anyio.current_time()
    await anyio.sleep(1000)
    backend.reply(exchange)
    assert verdict(session, 59.9) is None
    assert verdict(session, 60) is StopReason.DISCONNECTED


@pytest.mark.parametrize("state", [s for s in SessionState if s is not SessionState.CLOSED])
async def test_a_session_that_is_too_old_ends_whatever_it_does(state: SessionState) -> None:
    """DESIGN 7, max age: final."""
    session, _ = await ready_session()
    session.request(Exchange("tools/call", None, client_id=b"1", sink=FakeSink()))
    session.state = state
    ages = Ages(max_age=3600)
    assert verdict(session, 3599.9, ages) is None
    assert verdict(session, 3600, ages) is EndReason.MAX_AGE


async def test_a_sleeper_ends_when_its_time_to_live_is_over() -> None:
    """DESIGN 7, hibernation: an id outlives its backend by `session_ttl`."""
    session, _ = await ready_session()
    session.state = SessionState.ASLEEP
    session.slept_at = anyio.current_time() + 1000
    assert verdict(session, 1000 + 86399.9) is None
    assert verdict(session, 1000 + 86400) is EndReason.EXPIRED


@pytest.mark.parametrize(
    "state", [SessionState.STARTING, SessionState.STOPPING, SessionState.ENDING]
)
async def test_one_that_starts_or_stops_is_left_alone(state: SessionState) -> None:
    session, _ = await ready_session(FakeClient(left_at=anyio.current_time()))
    session.state = state
    assert verdict(session, 10**9) is None


async def test_several_sessions_are_judged_each_for_itself() -> None:
    idle, _ = await ready_session()
    await anyio.sleep(299)
    fresh, _ = await ready_session()
    now = anyio.current_time() + 1
    found = list(due([idle, fresh], now=now, ages=AGES, pauses=Pauses()))
    assert found == [(idle, StopReason.IDLE)]


async def test_what_was_asked_of_a_client_that_is_away_is_given_up_at_the_idle_limit() -> None:
    """DESIGN 5.3, 7: else its call, and the session with it, would never end."""
    client = FakeClient()
    session, backend = await ready_session(client)
    sink = FakeSink()
    exchange = Exchange("tools/call", None, client_id=b"1", sink=sink)
    session.request(exchange)
    answers: list[Outcome] = []
    session.ask(Ask("elicitation/create", None, answers.append), exchange)
    start = anyio.current_time()

    def away(after: float, ages: Ages = AGES) -> bool:
        return list(unheard([session], now=start + after, ages=ages, pauses=Pauses())) == [session]

    assert not away(10**6)  # its stream is open
    sink.attached = False
    assert not away(10**6)  # that is when it was first found to be away
    assert not away(10**6 + 299)
    assert not away(10**6 + 10**6, Ages(idle=None))
    session.notify("notifications/x", None)  # it is there after all
    assert not away(10**6 + 301)
    assert away(10**6 + 602)
    session.give_up_asking()
    assert [outcome.failure is not None for outcome in answers] == [True]
    assert not away(10**9)
    backend.reply(exchange)

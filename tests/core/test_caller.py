"""A client of our own: it gets its answer, and answers for nobody."""

import anyio
import pytest

from sessionproxy.core.caller import UNHEARD, Nobody, ask, decline, send
from sessionproxy.core.exchange import Ask, Exchange, Outbound, Outcome
from sessionproxy.core.relay import Relay
from sessionproxy.errors import BackendBusy, Exit

from .fakes import FakeBackend, FakeTransport, FakeUpstream


def backend(*, echoes: bool = False) -> FakeBackend:
    return FakeBackend(FakeUpstream(), initialize="silent", echoes=echoes)


async def test_an_answer_is_waited_for() -> None:
    found = backend()
    outcomes: list[Outcome] = []

    async def caller() -> None:
        outcomes.append(await ask(found, "tools/list", b"{}"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller)
        await anyio.sleep(1)
        assert outcomes == []
        assert found.requests[0].sink.attached
        found.reply(found.requests[0], Outcome(result=b'{"tools":[]}'))
    assert outcomes == [Outcome(result=b'{"tools":[]}')]
    assert not found.requests[0].sink.attached


async def test_an_answer_that_comes_at_once_is_one() -> None:
    found = backend(echoes=True)
    send(found, "initialize", None)
    assert (await ask(found, "ping", None)).result == b"{}"


async def test_requests_are_sent_in_their_order_before_anything_is_waited_for() -> None:
    found = backend()
    answers = [send(found, method, None) for method in ("server/discover", "ping")]
    assert [exchange.method for exchange in found.requests] == ["server/discover", "ping"]
    for exchange in found.in_flight():
        found.reply(exchange, Outcome(result=b'"%b"' % exchange.method.encode()))
    assert (await answers[1].outcome()).result == b'"ping"'
    assert (await answers[0].outcome()).result == b'"server/discover"'


async def test_the_end_of_the_backend_is_an_answer() -> None:
    found = backend()
    answer = send(found, "tools/list", None)
    found.exit(Exit(code=1))
    assert isinstance((await answer.outcome()).failure, Exception)


def question(method: str, given: list[Outcome]) -> Ask:
    return Ask(method, b"{}", given.append)


@pytest.mark.parametrize("method", ["sampling/createMessage", "elicitation/create", "made/up"])
def test_nobody_is_asked(method: str) -> None:
    given: list[Outcome] = []
    Nobody().ask(question(method, given), None)
    assert given[0].error is not None


def test_nobody_has_roots() -> None:
    """DESIGN 9: with nothing in flight roots gets an empty list."""
    given: list[Outcome] = []
    Nobody().ask(question("roots/list", given), None)
    assert given == [Outcome(result=b'{"roots":[]}')]


def test_what_is_asked_on_the_stream_of_our_own_request_is_declined() -> None:
    """Nobody reads it, and the backend is not to wait for ever."""
    given: list[Outcome] = []
    answer = send(backend(), "tools/list", None)
    for sink in (answer, UNHEARD):
        assert sink.takes("elicitation/create") == 0
        sink.message(Outbound(b"", ask=question("elicitation/create", given)))
        sink.message(Outbound(b"a notification"))
    assert len(given) == 2
    UNHEARD.settled(Exchange("ping", None, client_id=b"", sink=UNHEARD))
    assert not UNHEARD.attached


def test_declining_needs_no_room_at_the_backend() -> None:
    """FAULTS F16: it does not read, and neither waits nor is waited for."""
    transport, upstream = FakeTransport(), Nobody()
    relay = Relay(transport, upstream)
    transport.busy = True
    relay.receive(b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}')
    relay.receive(b'{"jsonrpc":"2.0","id":2,"method":"elicitation/create"}')
    transport.busy = False
    relay.receive(b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}')
    assert [message["id"] for message in transport.sent()] == [1]


def test_a_question_is_declined_once() -> None:
    given: list[Outcome] = []
    asked = question("roots/list", given)
    assert asked.waits
    decline(asked)
    decline(asked)
    assert not asked.waits
    assert len(given) == 1


def test_where_the_answer_cannot_be_taken_the_backend_is_told_so_if_that_can_be() -> None:
    given: list[Outcome] = []

    def busy(outcome: Outcome) -> None:
        if outcome.failure is None:
            raise BackendBusy("It does not read.")
        given.append(outcome)

    asked = Ask("roots/list", b"{}", busy)
    decline(asked)
    assert not asked.waits
    assert [type(outcome.failure) for outcome in given] == [BackendBusy]


def test_nobody_hears_what_is_told_but_who_wants_to_know() -> None:
    heard: list[str] = []
    for nobody in (Nobody(), Nobody(heard.append)):
        nobody.notification("notifications/tools/list_changed", None, b"", None)
        asked = question("roots/list", [])
        nobody.withdraw(asked, None)
        assert not asked.waits
        nobody.hold(Exchange("ping", None, client_id=b"", sink=UNHEARD))
        nobody.ended(Exit(code=0))
    assert heard == ["notifications/tools/list_changed"]

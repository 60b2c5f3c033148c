"""What stands between a session and its backend, on virtual time."""

import pytest

from sessionproxy.core.between import Between, client_of, instead_of, is_nobodys, outer_of
from sessionproxy.core.caller import Nobody
from sessionproxy.core.exchange import Ask, Exchange, Outbound, Outcome
from sessionproxy.core.relay import Relay
from sessionproxy.errors import Exit
from tests.core.fakes import FakeSink, FakeTransport, FakeUpstream


def exchange(sink: FakeSink | None = None) -> Exchange:
    return Exchange("tools/call", b'{"x":1}', client_id=b"7", sink=sink or FakeSink())


def stack(depth: int) -> tuple[Between, Relay, FakeTransport, FakeUpstream]:
    """So many of them, before a relay."""
    upstream = FakeUpstream()
    transport = FakeTransport()
    outer = found = Between(upstream)
    stacked = [found]
    for _ in range(depth - 1):
        found = Between(found)
        stacked.append(found)
    relay = Relay(transport, found)
    for above, below in zip(stacked, [*stacked[1:], relay], strict=True):
        above.before(below)
    return outer, relay, transport, upstream


async def test_an_answer_finds_its_way_through_however_many() -> None:
    """DESIGN 5.3: answered exactly once, and nothing of it is kept."""
    outer, relay, transport, _ = stack(3)
    asked = exchange(sink := FakeSink())
    outer.request(asked)
    assert outer.in_flight() == (asked,)
    assert transport.sent()[0]["params"] == {"x": 1}
    relay.receive(b'{"jsonrpc":"2.0","id":1,"result":{"y":2}}')
    assert sink.times_settled == 1
    assert asked.outcome is not None
    assert bytes(asked.outcome.result or b"") == b'{"y":2}'
    assert outer.in_flight() == relay.in_flight() == ()


async def test_what_a_backend_says_belongs_to_the_clients_own_request() -> None:
    """DESIGN 8: by the request that was sent for it."""
    outer, relay, _, upstream = stack(2)
    asked = exchange()
    outer.request(asked)
    relay.receive(b'{"jsonrpc":"2.0","method":"notifications/message","params":{}}')
    relay.receive(b'{"jsonrpc":"2.0","id":"a","method":"roots/list"}')
    assert upstream.notes[0][2] is upstream.asks[0][1] is asked
    relay.receive(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    relay.receive(b'{"jsonrpc":"2.0","method":"notifications/message","params":{}}')
    assert upstream.notes[1][2] is None
    relay.ended(Exit(code=1))
    assert upstream.exits == [Exit(code=1)]
    assert upstream.withdrawn == [upstream.asks[0][0]]


async def test_a_cancellation_goes_down_and_the_late_answer_is_dropped() -> None:
    """DESIGN 5.9."""
    outer, relay, transport, _ = stack(2)
    asked = exchange(sink := FakeSink())
    outer.request(asked)
    outer.cancel(asked, b'{"reason":"r"}')
    assert transport.sent()[1]["params"] == {"requestId": 1, "reason": "r"}
    assert outer.in_flight() == ()
    relay.receive(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    assert sink.times_settled == 0


async def test_it_is_known_who_is_behind_it() -> None:
    """The catalogue's requests are nobody's, through however many stand between."""
    assert is_nobodys(Between(Between(Nobody())))
    assert not is_nobodys(Between(FakeUpstream()))


async def test_a_request_knows_whom_it_is_for() -> None:
    """Hooks, names and several servers: each sends one of its own for that of the client."""
    theirs = exchange(sink := FakeSink())
    found: list[Outcome] = []
    first = instead_of(theirs, "tools/list", None, found.append)
    second = instead_of(first, "tools/list", None, first.settle)
    assert (outer_of(second), client_of(second), client_of(theirs)) == (first, theirs, theirs)
    assert second.client_id == theirs.client_id
    second.sink.message(Outbound(b"x"))
    assert sink.messages == [Outbound(b"x")]
    assert (second.sink.attached, second.sink.takes("roots/list")) == (True, 2)
    second.settle(Outcome(result=b"1"))
    assert found == [Outcome(result=b"1")]
    assert theirs.outcome is None


async def test_questions_are_held_and_taken_back_through_it() -> None:
    """`Upstream`: nothing of it is its own."""
    upstream = FakeUpstream()
    between = Between(upstream)
    ask = Ask("roots/list", None, lambda outcome: None)
    between.ask(ask, None)
    between.withdraw(ask, None)
    assert upstream.asks == [(ask, None)]
    assert upstream.withdrawn == [ask]


class Faulty(Between):
    """One that has a fault: it can pass on neither an answer nor a question."""

    def request(self, exchange: Exchange) -> None:
        def answered(outcome: Outcome) -> None:
            raise RuntimeError("a fault of ours")

        self.send_for(exchange, exchange.method, exchange.params, answered)

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        raise RuntimeError("a fault of ours")


@pytest.mark.parametrize("above", [0, 2])
async def test_a_fault_of_ours_with_an_answer_fails_that_request(above: int) -> None:
    """DESIGN 5.3: answered exactly once; who read the line hears of the fault, and logs it."""
    upstream, transport = FakeUpstream(), FakeTransport()
    stacked = [Between(upstream)]
    for _ in range(above):
        stacked.append(Between(stacked[-1]))
    faulty = Faulty(stacked[-1])
    relay = Relay(transport, faulty)
    for one, below in zip([*stacked, faulty], [*stacked[1:], faulty, relay], strict=True):
        one.before(below)
    asked = exchange(sink := FakeSink())
    stacked[0].request(asked)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        relay.receive(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    assert sink.times_settled == 1
    assert asked.outcome is not None
    assert b"-32603" in bytes(asked.outcome.error or b"")
    assert stacked[0].in_flight() == faulty.in_flight() == relay.in_flight() == ()


async def test_a_fault_of_ours_with_a_question_answers_the_backend() -> None:
    """DESIGN 5.3: it would wait for ever."""
    transport = FakeTransport()
    faulty = Faulty(FakeUpstream())
    relay = Relay(transport, faulty)
    faulty.before(relay)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        relay.receive(b'{"jsonrpc":"2.0","id":"a","method":"roots/list"}')
    (answer,) = transport.sent()
    assert answer["id"] == "a"
    assert "-32603" in str(answer["error"])

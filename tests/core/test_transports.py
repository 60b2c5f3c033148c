"""What the relay needs of a transport that has an answer of its own for every request: HTTP."""

import pytest

from sessionproxy.core.exchange import Exchange, Outcome
from sessionproxy.core.relay import Relay
from sessionproxy.errors import BackendFailed

from .fakes import FakeSink, FakeTransport, FakeUpstream


def request(relay: Relay, method: str = "tools/call") -> Exchange:
    exchange = Exchange(method, b"{}", client_id=b"7", sink=FakeSink())
    relay.request(exchange)
    return exchange


@pytest.mark.parametrize("carries", [True, False])
async def test_a_cancellation_is_a_message_only_where_the_transport_does_not_carry_it(
    carries: bool,
) -> None:
    """2026-07-28 basic/transports/streamable-http#cancellation: closing the stream says it."""
    transport = FakeTransport(carries_cancels=carries)
    relay = Relay(transport, FakeUpstream())
    exchange = request(relay)
    relay.cancel(exchange, None)
    assert transport.cancelled == [exchange]
    methods = [line["method"] for line in transport.sent()]
    assert methods == ["tools/call", *([] if carries else ["notifications/cancelled"])]


async def test_an_answer_without_an_id_is_that_of_the_request_on_whose_response_it_came() -> None:
    """JSON-RPC 2.0, section 5: null where it could not be detected. On a pipe it is nobody's."""
    relay = Relay(FakeTransport(), FakeUpstream())
    one, two = request(relay), request(relay)
    line = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"what?"}}'
    relay.receive(line)
    assert (one.outcome, two.outcome) == (None, None)
    relay.receive(line, one)
    assert one.outcome == Outcome(error=b'{"code":-32700,"message":"what?"}')
    assert two.outcome is None


async def test_an_answer_with_an_id_is_that_of_its_request_whatever_response_it_came_on() -> None:
    """DESIGN 5.11: by the id first."""
    relay = Relay(FakeTransport(), FakeUpstream())
    one, two = request(relay), request(relay)
    relay.receive(b'{"jsonrpc":"2.0","id":%d,"result":{}}' % two.backend_id, one)
    assert one.outcome is None
    assert two.outcome is not None


async def test_what_the_transport_finds_out_ends_a_request_once() -> None:
    """DESIGN 5.3: exactly once, whoever comes first."""
    relay = Relay(FakeTransport(), FakeUpstream())
    exchange = request(relay)
    failure = BackendFailed("broke")
    relay.settle(exchange, Outcome(failure=failure))
    relay.settle(exchange, Outcome(result=b"{}"))
    relay.receive(b'{"jsonrpc":"2.0","id":%d,"result":{}}' % exchange.backend_id)
    assert exchange.outcome == Outcome(failure=failure)
    assert relay.in_flight() == ()

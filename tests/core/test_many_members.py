"""FAULTS I8: a message of a million members costs its sender more than it costs everybody else.

What is looked for in it is found without taking it apart; seen in what is allocated meanwhile.
"""

import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from sessionproxy.core.exchange import Exchange, Outcome
from sessionproxy.core.relay import Relay
from sessionproxy.core.state import SessionState
from sessionproxy.wire.params import MANY

from .fakes import (
    WELCOME,
    FakeLauncher,
    FakeSink,
    FakeTransport,
    FakeUpstream,
    call,
    create,
    manager_of,
    opened,
    results,
    until,
)

MILLION: Final = b",".join(b'"k%07d":1' % number for number in range(4 * MANY))
"""Of members, or near enough."""


def allocated(act: Callable[[], object]) -> int:
    """Return how many bytes were allocated at most, as a multiple of those of `MILLION`."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1] // len(MILLION)
    finally:
        tracemalloc.stop()


class Talk(NamedTuple):
    """A relay with one call in flight, and its neighbours."""

    relay: Relay
    transport: FakeTransport
    upstream: FakeUpstream
    exchange: Exchange
    tally: Counter[str]


def talk() -> Talk:
    transport, upstream, tally = FakeTransport(), FakeUpstream(), Counter[str]()
    relay = Relay(transport, upstream, tally=tally)
    params = b'{"_meta":{"progressToken":"p"}}'
    exchange = Exchange("tools/call", params, client_id=b"5", sink=FakeSink())
    relay.request(exchange)
    return Talk(relay, transport, upstream, exchange, tally)


async def test_a_call_is_cancelled_by_what_its_client_sends() -> None:
    """FAULTS F08: only the id it names goes on to the backend."""
    async with manager_of(FakeLauncher()) as manager:
        session = await opened(manager)
        sink = call(session, client_id=b"5")
        params = b'{"requestId":5,%b}' % MILLION
        assert allocated(lambda: session.notify("notifications/cancelled", params)) == 0
        assert results([sink]) == ["request_cancelled"]
        assert session.state is SessionState.READY

    one = talk()
    assert allocated(lambda: one.relay.cancel(one.exchange, params)) == 0
    assert one.transport.sent()[-1] == {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": 1},
    }


def test_a_request_of_the_backend_is_withdrawn_by_what_it_sends() -> None:
    one = talk()
    one.relay.receive(b'{"jsonrpc":"2.0","id":"a","method":"roots/list"}')
    message = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{%b,"requestId":"a"}}'
    line = message % MILLION
    assert allocated(lambda: one.relay.receive(line)) == 0
    assert [ask.method for ask in one.upstream.withdrawn] == ["roots/list"]


def test_progress_that_would_have_to_be_taken_apart_is_dropped_and_counted() -> None:
    """FAULTS F34: the client's own token would have to be put in."""
    one = talk()
    message = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{%b}}'
    progress = b'"progressToken":1,"progress":%d'
    line = message % (progress % 1 + b"," + MILLION)
    assert allocated(lambda: one.relay.receive(line)) <= 1  # a copy, to count
    assert one.upstream.notes == []
    assert dict(one.tally) == {"progress_without_token": 1}
    one.relay.receive(message % (progress % 2))
    assert len(one.upstream.notes) == 1


async def test_a_backend_is_welcomed_whatever_else_it_says() -> None:
    """DESIGN 10: a backend that floods costs its own session at most."""
    launcher = FakeLauncher(initialize="silent")
    async with manager_of(launcher) as manager:
        session = create(manager)
        await until(lambda: launcher.running and launcher.backend.requests)
        welcome = Outcome(result=b"{%b,%b" % (MILLION, WELCOME[1:]))
        tracemalloc.start()
        try:
            launcher.backend.reply(launcher.backend.requests[0], welcome)
            await until(session.start.settled.is_set)
            assert tracemalloc.get_traced_memory()[1] < len(MILLION)
        finally:
            tracemalloc.stop()
        assert session.version == "2025-11-25"

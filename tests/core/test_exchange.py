import gc
import weakref

from sessionproxy.core.context import current_exchange
from sessionproxy.core.exchange import Ask, Exchange, Forwarded, Outbound, Outcome
from sessionproxy.errors import BackendGone

from .fakes import USER, FakeSink


class FakeHolder:
    """Notes what comes back to it, and whether its sink had been told by then."""

    def __init__(self, sink: FakeSink) -> None:
        self._sink = sink
        self.returns: list[tuple[Exchange, int]] = []

    def returned(self, exchange: Exchange) -> None:
        self.returns.append((exchange, self._sink.times_settled))


def test_the_first_outcome_is_the_one_kept() -> None:
    """DESIGN 5.3: every request is answered exactly once."""
    sink = FakeSink()
    exchange = Exchange("tools/call", None, client_id=b"1", sink=sink)
    exchange.settle(Outcome(result=b"1"))
    exchange.settle(Outcome(result=b"2"))
    exchange.settle(Outcome(failure=BackendGone("gone")))
    assert exchange.outcome == Outcome(result=b"1")
    assert sink.times_settled == 1


def test_its_lease_is_returned_once_and_before_the_client_is_told() -> None:
    """What a client does on the answer must find the session as it is after it."""
    sink = FakeSink()
    exchange = Exchange("tools/call", None, client_id=b"1", sink=sink)
    exchange.holder = holder = FakeHolder(sink)
    exchange.settle(Outcome(result=b"1"))
    exchange.settle(Outcome(result=b"2"))
    assert holder.returns == [(exchange, 0)]


def test_who_watches_it_is_told_once_in_its_context_and_before_the_client() -> None:
    """What it makes of the outcome, a span for instance, belongs to the request."""
    sink, seen = FakeSink(), list[object]()

    class Watcher(FakeHolder):
        def returned(self, exchange: Exchange) -> None:
            super().returned(exchange)
            seen.append((exchange.outcome, exchange.context.run(current_exchange.get)))

    exchange = Exchange("tools/call", None, client_id=b"1", sink=sink)
    exchange.watchers = one, other = Watcher(sink), Watcher(sink)
    exchange.settle(Outcome(result=b"1"))
    exchange.settle(Outcome(result=b"2"))
    assert one.returns == other.returns == [(exchange, 0)]
    assert seen == [(Outcome(result=b"1"), exchange)] * 2


async def test_it_keeps_the_context_it_arrived_in() -> None:
    """DESIGN 2 and 8."""
    USER.set("alice")
    exchange = Exchange("tools/call", None, client_id=b"1", sink=FakeSink())
    USER.set("bob")
    assert exchange.context.run(USER.get) == "alice"


def test_in_its_context_it_is_the_current_exchange_and_elsewhere_not() -> None:
    """CONVENTIONS, ContextVars: the public current exchange that hooks read."""
    first = Exchange("tools/call", None, client_id=b"1", sink=FakeSink())
    second = Exchange("tools/call", None, client_id=b"1", sink=FakeSink())
    assert first.context.run(current_exchange.get) is first
    assert second.context.run(current_exchange.get) is second
    assert current_exchange.get() is None


def test_only_the_first_answer_to_an_ask_counts() -> None:
    """DESIGN 5.3, towards the backend."""
    answers: list[Outcome] = []
    ask = Ask("roots/list", None, answers.append)
    ask.answer(Outcome(result=b"1"))
    ask.answer(Outcome(result=b"2"))
    assert answers == [Outcome(result=b"1")]


def test_an_answer_to_an_ask_that_was_withdrawn_is_dropped() -> None:
    answers: list[Outcome] = []
    ask = Ask("roots/list", None, answers.append)
    ask.withdraw()
    ask.answer(Outcome(result=b"1"))
    assert answers == []


def test_a_hook_is_shown_an_answer_as_what_it_is() -> None:
    result = Forwarded.answer(to_backend=False, method="x", outcome=Outcome(result=b"{}"), of=None)
    error = Forwarded.answer(to_backend=True, method="x", outcome=Outcome(error=b"{}"), of=None)
    assert (result.kind, result.body, result.to_backend) == ("result", b"{}", False)
    assert (error.kind, error.body, error.to_backend) == ("error", b"{}", True)


def test_its_repr_says_whether_it_is_in_flight() -> None:
    exchange = Exchange("tools/call", None, client_id=b"1", sink=FakeSink())
    assert repr(exchange) == "<Exchange tools/call in flight>"
    exchange.settle(Outcome(result=b"{}"))
    assert repr(exchange) == "<Exchange tools/call settled>"


def test_a_settled_exchange_is_freed_at_once() -> None:
    """Results may have many MiB, and the cyclic collector is in no hurry."""

    class Sink:
        attached = True

        def takes(self, method: str) -> int:
            return 2

        def message(self, message: Outbound) -> None: ...

        def settled(self, exchange: Exchange) -> None: ...

    sink = Sink()
    kept = weakref.ref(sink)
    gc.disable()
    try:
        exchange = Exchange("tools/call", None, client_id=b"1", sink=sink)
        exchange.settle(Outcome(result=b"{}"))
        del exchange, sink
        assert kept() is None
    finally:
        gc.enable()

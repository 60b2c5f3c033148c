"""`eras.subscription`: what a session hears of its modern backend's changes."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import msgspec
from msgspec import Raw

from sessionproxy.core.exchange import Exchange, Outcome
from sessionproxy.core.pauses import Pauses
from sessionproxy.core.timers import Timers
from sessionproxy.eras.subscription import AGAIN, MAX_URIS, Subscription
from sessionproxy.wire import Bytes
from sessionproxy.wire.welcome import envelope_of_initialize
from tests.core.fakes import FakeSink

Json = dict[str, object]

LISTS = {"tools": Raw(b'{"listChanged":true}'), "prompts": Raw(b"{}")}
"""Capabilities of a server that tells when its tools change, and not when its prompts do."""


class Listened:
    """A backend that is listened to, and the bridge that does so."""

    def __init__(self) -> None:
        self.timers = Timers(Pauses())
        self.envelope = envelope_of_initialize(None)
        self.asked: list[Exchange] = []
        self.cancelled: list[Exchange] = []
        self.told: list[tuple[str, object]] = []
        self.subscription = Subscription(self)

    @property
    def backend(self) -> "Listened":
        return self

    # -- as a backend ------------------------------------------------------------------------------

    def request(self, exchange: Exchange) -> None:
        self.asked.append(exchange)
        exchange.backend_id = len(self.asked)

    def notify(self, method: str, params: Bytes | None) -> None:
        raise AssertionError(method)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        self.cancelled.append(exchange)

    def in_flight(self) -> tuple[Exchange, ...]:
        return ()

    # -- as a bridge -------------------------------------------------------------------------------

    def changed(self, method: str, params: Bytes | None) -> None:
        self.told.append((method, None if params is None else msgspec.json.decode(params)))

    # -- what a test does --------------------------------------------------------------------------

    @property
    def filters(self) -> list[Json]:
        """What each `subscriptions/listen` asked for."""
        sent = [msgspec.json.decode(exchange.params or b"", type=Json) for exchange in self.asked]
        return [msgspec.convert(params["notifications"], Json) for params in sent]

    async def acknowledge(self, number: int, **honoured: object) -> None:
        """Acknowledge the request of that number, from 1; all that it asked for unless told."""
        await soon()
        kept = {"notifications": honoured or self.filters[number - 1]}
        self.subscription.acknowledged(b"%d" % number, msgspec.json.encode(kept))
        await soon()

    def subscribe(self, uri: str | None, *, un: bool = False) -> FakeSink:
        sink = FakeSink()
        method = "resources/unsubscribe" if un else "resources/subscribe"
        params = msgspec.json.encode({} if uri is None else {"uri": uri})
        self.subscription.request(Exchange(method, params, client_id=b"1", sink=sink))
        return sink


DONE = Outcome(result=b"{}")


async def soon() -> None:
    """Let what is due now happen."""
    await anyio.sleep(0.01)  # virtual


@asynccontextmanager
async def listened() -> AsyncGenerator[Listened]:
    backend = Listened()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.timers.run)
        yield backend
        tasks.cancel_scope.cancel()


async def test_only_lists_that_the_backend_tells_of_are_listened_for() -> None:
    """2026-07-28 basic/patterns/subscriptions#notification-filter."""
    async with listened() as backend:
        backend.subscription.hear_lists(LISTS)
        await soon()
        assert backend.filters == [{"toolsListChanged": True}]


async def test_a_backend_that_tells_of_no_list_is_not_listened_to() -> None:
    """Our choice: a stream that can carry nothing is not opened."""
    async with listened() as backend:
        backend.subscription.hear_lists({"tools": Raw(b"{}")})
        await soon()
        assert backend.asked == []


async def test_a_subscription_is_answered_once_the_backend_has_acknowledged_it() -> None:
    """DESIGN 9. Else the client would miss a change that comes between."""
    async with listened() as backend:
        sink = backend.subscribe("a://1")
        await soon()
        assert sink.outcome is None
        assert len(backend.subscription.in_flight()) == 1
        await backend.acknowledge(1)
        assert sink.outcome == DONE
        assert backend.subscription.in_flight() == ()
        assert backend.subscription.is_open(b"1")


async def test_what_was_heard_by_before_ends_only_after_the_next_is_acknowledged() -> None:
    """Our choice: nothing is missed in between, and nothing is told twice thereafter."""
    async with listened() as backend:
        backend.subscription.hear_lists(LISTS)
        await backend.acknowledge(1)
        backend.subscribe("a://1")
        await soon()
        assert len(backend.asked) == 2
        assert backend.subscription.is_open(b"1")
        assert not backend.subscription.is_open(b"2")
        assert backend.cancelled == []
        await backend.acknowledge(2)
        assert not backend.subscription.is_open(b"1")
        assert backend.subscription.is_open(b"2")
        assert backend.cancelled == backend.asked[:1]


async def test_what_is_subscribed_to_at_the_same_time_travels_together() -> None:
    """Our choice: a thousand that are replayed on waking are one request, not a thousand."""
    async with listened() as backend:
        backend.subscription.hear_lists(LISTS)
        sinks = [backend.subscribe(f"a://{n}") for n in range(MAX_URIS)]
        await backend.acknowledge(1)
        assert [sink.outcome for sink in sinks] == [DONE] * MAX_URIS
        uris = [f"a://{n}" for n in range(MAX_URIS)]
        assert backend.filters == [{"toolsListChanged": True, "resourceSubscriptions": uris}]


async def test_what_comes_while_a_request_is_on_its_way_travels_with_the_next_one() -> None:
    """Our choice: as above, for a backend that takes its time."""
    async with listened() as backend:
        first = backend.subscribe("a://1")
        await soon()
        others: list[FakeSink] = []
        for n in (2, 3, 4):
            others.append(backend.subscribe(f"a://{n}"))
            await soon()
        assert len(backend.asked) == 1
        await backend.acknowledge(1)
        assert first.outcome == DONE
        assert [sink.outcome for sink in others] == [None] * 3
        await backend.acknowledge(2)
        assert [sink.outcome for sink in others] == [DONE] * 3
        assert len(backend.asked) == 2


async def test_before_a_request_that_may_change_something_the_backend_is_asked_at_once() -> None:
    """DESIGN 5, rule 3: what a call changes right after a subscription is to be heard of."""
    async with listened() as backend:
        first = backend.subscribe("a://1")
        backend.subscription.hurry()
        assert len(backend.asked) == 1
        second = backend.subscribe("a://2")
        backend.subscription.hurry()
        backend.subscription.hurry()
        assert len(backend.asked) == 2
        await backend.acknowledge(2)
        assert (first.outcome, second.outcome) == (DONE, DONE)
        assert backend.cancelled == backend.asked[:1]
        await backend.acknowledge(1)
        assert not backend.subscription.is_open(b"1")


async def test_one_subscription_more_than_are_kept_is_refused_and_the_others_go_on() -> None:
    """DESIGN 5, rule 3: bounded."""
    async with listened() as backend:
        for n in range(MAX_URIS):
            backend.subscribe(f"a://{n}")
        more = backend.subscribe("a://more")
        assert more.outcome is not None
        assert more.outcome.error is not None
        again = backend.subscribe("a://0")
        await backend.acknowledge(1)
        assert again.outcome == DONE


async def test_the_last_to_unsubscribe_ends_the_stream() -> None:
    """DESIGN 9."""
    async with listened() as backend:
        backend.subscribe("a://1")
        await backend.acknowledge(1)
        sink = backend.subscribe("a://1", un=True)
        await soon()
        assert sink.outcome == DONE
        assert backend.cancelled == backend.asked
        assert not backend.subscription.is_open(b"1")


async def test_a_subscription_without_a_uri_is_refused() -> None:
    """2025-11-25 server/resources#subscriptions."""
    async with listened() as backend:
        sink = backend.subscribe(None)
        await soon()
        assert sink.outcome is not None
        assert sink.outcome.error is not None
        assert backend.asked == []


async def test_a_backend_that_refuses_to_be_listened_to_refuses_the_subscription() -> None:
    """Rule 4 of DESIGN 5: the client gets the backend's error. What was heard before goes on."""
    async with listened() as backend:
        backend.subscription.hear_lists(LISTS)
        await backend.acknowledge(1)
        sink = backend.subscribe("a://1")
        await soon()
        error = b'{"code":-32603,"message":"limit reached"}'
        backend.asked[1].settle(Outcome(error=error))
        assert sink.outcome == Outcome(error=error)
        assert backend.subscription.is_open(b"1")
        other = backend.subscribe("a://2")
        await soon()
        assert backend.filters[2]["resourceSubscriptions"] == ["a://2"]
        await backend.acknowledge(3)
        assert other.outcome == DONE


async def test_a_backend_that_tells_of_no_resource_refuses_the_subscription() -> None:
    """2026-07-28 basic/patterns/subscriptions#acknowledgment: the subset that it honours."""
    async with listened() as backend:
        backend.subscription.hear_lists(LISTS)
        await backend.acknowledge(1)
        sink = backend.subscribe("a://1")
        await backend.acknowledge(2, toolsListChanged=True)
        assert sink.outcome is not None
        assert sink.outcome.error is not None
        assert backend.filters[2] == {"toolsListChanged": True}


async def test_a_stream_that_the_backend_ends_is_opened_again_and_what_was_missed_is_told() -> None:
    """2026-07-28 basic/patterns/subscriptions#graceful-closure; DESIGN 5, rule 12."""
    async with listened() as backend:
        backend.subscription.hear_lists(LISTS)
        await backend.acknowledge(1)
        backend.subscribe("a://1")
        await backend.acknowledge(2)
        backend.asked[1].settle(Outcome(result=b'{"resultType":"complete"}'))
        await soon()
        assert len(backend.asked) == 2
        await anyio.sleep(AGAIN + 0.1)  # virtual
        assert len(backend.asked) == 3
        assert backend.told == []
        await backend.acknowledge(3)
        assert backend.told == [
            ("notifications/tools/list_changed", None),
            ("notifications/resources/updated", {"uri": "a://1"}),
        ]


async def test_a_backend_that_is_gone_is_not_listened_to_again() -> None:
    """DESIGN 7: its session sleeps, and another life begins anew."""
    async with listened() as backend:
        backend.subscription.hear_lists(LISTS)
        await backend.acknowledge(1)
        backend.asked[0].settle(Outcome(result=b'{"resultType":"complete"}'))
        backend.subscription.end()
        await anyio.sleep(10 * AGAIN)  # virtual
        assert len(backend.asked) == 1


async def test_a_subscription_that_was_cancelled_gets_no_answer() -> None:
    """2025-11-25 basic/utilities/cancellation."""
    async with listened() as backend:
        first, second = backend.subscribe("a://1"), backend.subscribe("a://2")
        waiting = backend.subscription.in_flight()
        assert [backend.subscription.cancel(exchange) for exchange in waiting] == [True, True]
        assert not backend.subscription.cancel(waiting[0])
        backend.subscription.hurry()
        third = backend.subscribe("a://3")
        backend.subscription.hurry()
        assert backend.subscription.cancel(backend.subscription.in_flight()[0])
        await backend.acknowledge(2)
        await backend.acknowledge(1)
        assert (first.outcome, second.outcome, third.outcome) == (None, None, None)

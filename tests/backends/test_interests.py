"""DESIGN 10: what sessions set up at a shared backend, put together."""

import msgspec
import pytest

from sessionproxy.backends.interests import MAX_URIS, Levels, Subscriptions
from sessionproxy.core.exchange import Exchange, Outcome
from sessionproxy.errors import BackendBusy
from tests.core.fakes import FakeSink

REFUSED = Outcome(error=b'{"code":-32601,"message":"no"}')
BUSY = Outcome(failure=BackendBusy("It does not read."))


class Backend:
    """Keeps what it is asked; a test answers it."""

    def __init__(self) -> None:
        self.asked: list[Exchange] = []

    def send(self, exchange: Exchange) -> None:
        self.asked.append(exchange)

    def said(self) -> list[tuple[str, object]]:
        return [(e.method.rpartition("/")[2], *_values(e.params)) for e in self.asked]

    def answer(self, outcome: Outcome | None = None) -> None:
        """Answer the newest."""
        self.asked[-1].settle(outcome or Outcome(result=b'{"x":1}'))


def _values(params: object) -> tuple[object]:
    assert isinstance(params, bytes)
    (value,) = msgspec.json.decode(params, type=dict[str, object]).values()
    return (value,)


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def subscriptions(backend: Backend) -> Subscriptions[str]:
    return Subscriptions(backend.send)


@pytest.fixture
def levels(backend: Backend) -> Levels[str]:
    return Levels(backend.send)


def asking(method: str, **params: object) -> Exchange:
    encoded = msgspec.json.encode(params)
    return Exchange(method, encoded, client_id=b"1", sink=FakeSink())


def on(subscriptions: Subscriptions[str], who: str, uri: str = "x://a") -> Exchange:
    exchange = asking("resources/subscribe", uri=uri)
    subscriptions.request(who, exchange)
    return exchange


def off(subscriptions: Subscriptions[str], who: str, uri: str = "x://a") -> Exchange:
    exchange = asking("resources/unsubscribe", uri=uri)
    subscriptions.request(who, exchange)
    return exchange


def test_those_who_want_the_same_wait_for_the_same_answer(
    backend: Backend, subscriptions: Subscriptions[str]
) -> None:
    """One `subscribe`; nobody is told that it hears before the backend has said so."""
    found = [on(subscriptions, who) for who in ("one", "two")]
    assert [exchange.outcome for exchange in found] == [None, None]
    backend.answer()
    assert [exchange.outcome for exchange in found] == [Outcome(result=b'{"x":1}')] * 2
    assert on(subscriptions, "three").outcome == Outcome(result=b"{}")
    assert backend.said() == [("subscribe", "x://a")]
    assert subscriptions.those_who_hear("x://a") == ["one", "two", "three"]


def test_a_refusal_is_everybodys_and_the_next_may_try_again(
    backend: Backend, subscriptions: Subscriptions[str]
) -> None:
    """DESIGN 5.4: the backend's own error."""
    found = [on(subscriptions, who) for who in ("one", "two")]
    backend.answer(REFUSED)
    assert [exchange.outcome for exchange in found] == [REFUSED] * 2
    assert subscriptions.those_who_hear("x://a") == []
    on(subscriptions, "two")
    backend.answer()
    assert subscriptions.those_who_hear("x://a") == ["two"]


def test_who_subscribes_while_the_last_one_unsubscribes_is_subscribed_in_the_end(
    backend: Backend, subscriptions: Subscriptions[str]
) -> None:
    """`Setting`: a server may carry out two requests in any order, so they are not sent at once."""
    on(subscriptions, "one")
    backend.answer()
    leaving, coming = off(subscriptions, "one"), on(subscriptions, "two")
    assert [what for what, _ in backend.said()] == ["subscribe", "unsubscribe"]
    backend.answer()
    assert (leaving.outcome, coming.outcome) == (None, None)
    assert [what for what, _ in backend.said()] == ["subscribe", "unsubscribe", "subscribe"]
    backend.answer()
    assert leaving.outcome == coming.outcome == Outcome(result=b'{"x":1}')
    assert subscriptions.those_who_hear("x://a") == ["two"]


def test_a_backend_that_will_not_unsubscribe_is_asked_again_by_who_comes(
    backend: Backend, subscriptions: Subscriptions[str]
) -> None:
    """It may go on telling; nobody listens. Who comes meanwhile is not told of that refusal."""
    on(subscriptions, "one")
    backend.answer()
    leaving, coming = off(subscriptions, "one"), on(subscriptions, "two")
    backend.answer(REFUSED)
    backend.answer()
    assert coming.outcome is not None
    assert coming.outcome.result is not None
    assert leaving.outcome is not None
    assert subscriptions.those_who_hear("x://a") == ["two"]


@pytest.mark.parametrize("leaves", [True, False])
def test_what_the_backend_could_not_take_fails_and_is_tried_again(
    backend: Backend, subscriptions: Subscriptions[str], leaves: bool
) -> None:
    """FAULTS F16."""
    first = on(subscriptions, "one")
    if leaves:
        backend.answer()
        first = off(subscriptions, "one")
    backend.answer(BUSY)
    assert first.outcome == BUSY
    again = on(subscriptions, "one")
    if not leaves:  # else it is subscribed still
        backend.answer()
    assert again.outcome is not None
    assert again.outcome.result is not None
    assert subscriptions.those_who_hear("x://a") == ["one"]


def test_a_session_that_is_over_leaves_what_it_had(
    backend: Backend, subscriptions: Subscriptions[str]
) -> None:
    """DESIGN 10: the last one unsubscribes, also by its end."""
    for who, uri in (("one", "x://a"), ("one", "x://b"), ("two", "x://b")):
        on(subscriptions, who, uri)
        backend.answer()
    subscriptions.forget("one")
    assert backend.said()[-1] == ("unsubscribe", "x://a")
    backend.answer()
    assert subscriptions.those_who_hear("x://b") == ["two"]
    assert subscriptions.those_who_hear("x://a") == []
    subscriptions.forget("one")
    assert len(backend.asked) == 3


def test_updates_of_what_is_below_are_heard_and_of_what_looks_alike_are_not(
    backend: Backend, subscriptions: Subscriptions[str]
) -> None:
    """2025-11-25 server/resources#subscriptions: a sub-resource of the one subscribed to."""
    for who, uri in (("one", "x://a"), ("two", "x://a/"), ("three", "x://a/b")):
        on(subscriptions, who, uri)
        backend.answer()
    assert sorted(subscriptions.those_who_hear("x://a/b/c")) == ["one", "three", "two"]
    assert subscriptions.those_who_hear("x://ab") == []
    assert subscriptions.those_who_hear("x://a") == ["one"]


def test_the_subscriptions_of_one_session_are_bounded(
    backend: Backend, subscriptions: Subscriptions[str]
) -> None:
    """DESIGN 5.3: memory."""
    for number in range(MAX_URIS):
        on(subscriptions, "one", f"x://{number}")
    refused = on(subscriptions, "one", "x://more")
    assert refused.outcome is not None
    assert refused.outcome.error is not None
    off(subscriptions, "one", "x://0")
    assert on(subscriptions, "one", "x://more").outcome is None
    assert on(subscriptions, "two").outcome is None


def test_without_a_uri_it_is_an_error(backend: Backend, subscriptions: Subscriptions[str]) -> None:
    """2025-11-25 server/resources: the parameter is required."""
    exchange = asking("resources/subscribe", url="x://a")
    subscriptions.request("one", exchange)
    assert exchange.outcome is not None
    assert exchange.outcome.error is not None
    assert backend.asked == []


def ask_for(levels: Levels[str], who: str, level: str) -> Exchange:
    exchange = asking("logging/setLevel", level=level)
    levels.request(who, exchange)
    return exchange


def test_the_lowest_level_asked_for_wins_and_each_hears_its_own(
    backend: Backend, levels: Levels[str]
) -> None:
    """DESIGN 9, 10."""
    assert levels.hears("three", "debug")
    for who, level in (("one", "error"), ("two", "debug"), ("one", "warning")):
        ask_for(levels, who, level)
        if who == "two" or level == "error":
            backend.answer()
    assert backend.said() == [("setLevel", "error"), ("setLevel", "debug")]
    heard = {who: levels.hears(who, "notice") for who in ("one", "two", "three")}
    assert heard == {"one": False, "two": True, "three": True}
    assert not levels.hears("three", "debug")
    levels.forget("two")
    backend.answer()
    levels.forget("one")
    assert backend.said()[2:] == [("setLevel", "warning"), ("setLevel", "info")]


def test_a_refused_level_is_nobodys(backend: Backend, levels: Levels[str]) -> None:
    """DESIGN 5.4: who asked is told, and all is as it was."""
    kept = ask_for(levels, "one", "warning")
    backend.answer()
    refused = ask_for(levels, "two", "debug")
    backend.answer(REFUSED)
    assert (kept.outcome is not None, refused.outcome) == (True, REFUSED)
    assert not levels.hears("one", "info")
    assert not levels.hears("two", "debug")
    assert ask_for(levels, "two", "warning").outcome == Outcome(result=b"{}")


def test_a_level_that_is_none_never_gets_to_the_backend(
    backend: Backend, levels: Levels[str]
) -> None:
    """RFC 5424's eight alone: what the backend makes of another would be everybody's."""
    exchange = ask_for(levels, "one", "everything")
    assert exchange.outcome is not None
    assert exchange.outcome.error is not None
    assert backend.asked == []

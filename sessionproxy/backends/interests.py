"""What the sessions of a shared backend have set up at it, put together.

The backend knows one client. It is subscribed to what any session wants to hear of, and writes log
messages down to the lowest level that any asked for. Neighbours: `backends.share`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Final, Generic, TypeVar

import msgspec

from .. import wire
from ..core.exchange import Exchange, Outbound, Outcome
from ..wire.envelope import LOG_LEVELS, severity, text

S = TypeVar("S")
T = TypeVar("T")

Send = Callable[[Exchange], None]

MAX_URIS: Final = 1000
"""Resources that one session may be subscribed to; one more is refused."""

DEFAULT_LEVEL: Final = "info"
"""Log level of a session that has set none, once another one has."""

_DONE: Final = Outcome(result=b"{}")
_NO_URI: Final = Outcome(error=b'{"code":-32602,"message":"uri is missing"}')
_TOO_MANY: Final = Outcome(error=b'{"code":-32602,"message":"too many subscriptions"}')
_NO_LEVEL: Final = Outcome(error=b'{"code":-32602,"message":"no such log level"}')


class _Asking:
    """Takes the answer to a request of the proxy's own. A `ReplySink`."""

    attached = False

    def __init__(self, then: Callable[[Outcome], None]) -> None:
        self._then = then

    def takes(self, method: str) -> int:
        return 0

    def message(self, message: Outbound) -> None:
        """Not used: nothing that comes before the answer is given to it."""

    def settled(self, exchange: Exchange) -> None:
        self._then(exchange.outcome or Outcome())


class Setting(Generic[T]):
    """One thing that the backend is told by requests, of which one is under way at a time.

    Servers work on several requests at once, in any order: a `subscribe` sent behind an
    `unsubscribe` may be carried out before it.
    """

    def __init__(
        self,
        send: Send,
        present: T,
        *,
        wanted: Callable[[], T],
        request_for: Callable[[T], tuple[str, bytes]],
        refused: Callable[[T], bool],
        rested: Callable[[], None] = lambda: None,
    ) -> None:
        """`present`: how it is. `wanted` says how it should be; `request_for` returns method and
        parameters of the request that makes it so; `refused` hears that the backend would not, and
        returns whether that is all the same. `rested` is called when nothing is under way any more.
        """
        self.present: T = present
        self._send = send
        self._wanted = wanted
        self._request_for = request_for
        self._refused = refused
        self._rested = rested
        self._under_way = False
        self._waiting: list[Exchange] = []

    def update(self, exchange: Exchange | None = None) -> None:
        """Have it become as it should be, and answer `exchange` once it is."""
        if exchange is not None:
            self._waiting.append(exchange)
        if self._under_way:
            return
        wanted = self._wanted()
        if wanted == self.present:
            self._settle(_DONE)
            return
        self._under_way = True
        method, params = self._request_for(wanted)
        sink = _Asking(lambda outcome: self._answered(wanted, outcome))
        self._send(Exchange(method, params, client_id=b"", sink=sink, context=Context()))

    def _answered(self, asked: T, outcome: Outcome) -> None:
        self._under_way = False
        if outcome.result is None and (not self._refused(asked) or outcome.failure is not None):
            self._settle(outcome)
            return
        self.present = asked
        if self._wanted() == asked:
            self._settle(_DONE if outcome.result is None else outcome)
        else:
            self.update()

    def _settle(self, outcome: Outcome) -> None:
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            exchange.settle(outcome)
        self._rested()


class _Subscription(Generic[S]):
    """Who hears of one resource."""

    def __init__(self, uri: str, send: Send, over: Callable[[str], None]) -> None:
        self.wanted_by: dict[S, None] = {}
        params = msgspec.json.encode({"uri": uri})
        self.setting = Setting(
            send,
            False,
            wanted=lambda: bool(self.wanted_by),
            request_for=lambda on: (f"resources/{'' if on else 'un'}subscribe", params),
            refused=self._refused,
            rested=lambda: None if self.wanted_by or self.setting.present else over(uri),
        )

    def _refused(self, on: bool) -> bool:
        if on:
            self.wanted_by.clear()
        return not on  # it may go on telling; nobody listens


class Subscriptions(Generic[S]):
    """Of all sessions, to resources. The first to want one subscribes, the last unsubscribes."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._by_uri: dict[str, _Subscription[S]] = {}
        self._uris: dict[S, dict[str, None]] = {}
        """By session: what it asked for, though it may have been refused since."""

    def request(self, session: S, exchange: Exchange) -> None:
        """Take a `resources/subscribe` or `resources/unsubscribe` of a session."""
        uri = text(wire.members(exchange.params).get("uri"))
        uris = self._uris.setdefault(session, {})
        if uri is None:
            exchange.settle(_NO_URI)
        elif exchange.method == "resources/unsubscribe":
            uris.pop(uri, None)
            self._leave(session, uri, exchange)
        elif uri not in uris and len(uris) >= MAX_URIS:
            exchange.settle(_TOO_MANY)
        else:
            uris[uri] = None
            found = self._by_uri.get(uri)
            if found is None:
                found = self._by_uri[uri] = _Subscription(uri, self._send, self._over)
            found.wanted_by[session] = None
            found.setting.update(exchange)

    def _leave(self, session: S, uri: str, exchange: Exchange | None = None) -> None:
        found = self._by_uri.get(uri)
        if found is not None and session in found.wanted_by:
            del found.wanted_by[session]
            found.setting.update(exchange)
        elif exchange is not None:  # it had none, and others' are not its to end
            exchange.settle(_DONE)

    def forget(self, session: S) -> None:
        """A session is over."""
        for uri in self._uris.pop(session, {}):
            self._leave(session, uri)

    def those_who_hear(self, uri: str) -> list[S]:
        """Return the sessions that asked to hear of `uri`, or of something above it (2025-11-25
        server/resources#subscriptions)."""
        found: dict[S, None] = {}
        for above in _with_those_above(uri):
            subscription = self._by_uri.get(above)
            if subscription is not None:
                found |= subscription.wanted_by
        return list(found)

    def _over(self, uri: str) -> None:
        del self._by_uri[uri]


def _with_those_above(uri: str) -> Iterator[str]:
    yield uri
    for at, character in enumerate(uri):
        if character == "/":
            yield uri[:at]
            yield uri[: at + 1]


class Levels(Generic[S]):
    """Log levels of all sessions. The backend's is the lowest that any of them asked for."""

    def __init__(self, send: Send) -> None:
        self._asked: dict[S, str] = {}
        self._counts: Counter[str] = Counter()
        self._setting = Setting(
            send, "", wanted=self._lowest, request_for=_set_level, refused=self._refused
        )

    def request(self, session: S, exchange: Exchange) -> None:
        """Take a `logging/setLevel` of a session."""
        level = text(wire.members(exchange.params).get("level"))
        if level not in LOG_LEVELS:
            exchange.settle(_NO_LEVEL)
            return
        self._drop(session)
        self._asked[session] = level
        self._counts[level] += 1
        self._setting.update(exchange)

    def _drop(self, session: S) -> None:
        before = self._asked.pop(session, None)
        if before is not None:
            self._counts[before] -= 1

    def forget(self, session: S) -> None:
        """A session is over."""
        if session in self._asked:
            self._drop(session)
            self._setting.update()

    def hears(self, session: S, level: str) -> bool:
        """Return whether a message of this level is for a session: as it asked; where it has not,
        as the backend has it, as long as no other has."""
        if not self._setting.present:
            return True
        return severity(level) >= severity(self._asked.get(session, DEFAULT_LEVEL))

    def _lowest(self) -> str:
        asked = (level for level in LOG_LEVELS if self._counts[level])
        return next(asked, DEFAULT_LEVEL if self._setting.present else "")

    def _refused(self, level: str) -> bool:
        """Who has asked for less than there is now has not got it, and is told so."""
        there_is = self._setting.present
        for session, asked in tuple(self._asked.items()):
            if not there_is or severity(asked) < severity(there_is):
                self._drop(session)
        return False


def _set_level(level: str) -> tuple[str, bytes]:
    return "logging/setLevel", msgspec.json.encode({"level": level})

"""A backend of the modern era for clients of either.

Stands between a session and its backend. What a modern client sends goes through; a handshake
client's `initialize` becomes `server/discover`, its requests get the envelope of its `initialize`,
what the backend asks in its results is asked on the client's stream, and changes are listened for
on the client's behalf (`eras.subscription`). Neighbours: `eras.launcher` puts it around a backend.
"""

from collections.abc import Callable
from typing import Final

from msgspec import Raw

from .. import wire
from ..core.between import is_nobodys
from ..core.exchange import Ask, Exchange, Outcome
from ..core.ports import Backend, Upstream
from ..core.timers import Timers
from ..errors import Exit
from ..wire import Bytes, Envelope
from ..wire.envelope import LOG_LEVELS, SUBSCRIPTION_KEY, text
from ..wire.methods import METHODS
from ..wire.welcome import discover_params, envelope_of_initialize, initialize_result
from .driven import Driven, Own
from .subscription import DONE, Listening, Subscription, subscription_of

DEFAULT_LEVEL: Final = "info"
"""Log level for a client that has set none: the handshake era leaves it to the server."""

MAX_LEVELS: Final = 256
"""Clients of one session whose log levels are kept; the oldest goes first."""

ASKED: Final = {
    method: treatment.capability
    for method, treatment in METHODS.items()
    if treatment.capability is not None
}
"""What clients are asked, and the capability that it needs."""

_NO_LEVEL: Final = Outcome(error=b'{"code":-32602,"message":"level is a log level"}')
_NO_LOGS: Final = Outcome(error=b'{"code":-32601,"message":"the backend logs nothing"}')
_ASKS_IN_RESULTS: Final = Outcome(
    error=b'{"code":-32601,"message":"requests of the server travel in results"}'
)


class ToModern:
    """A `Backend` and an `Upstream`. `backend` is set once there is one."""

    backend: Backend

    def __init__(self, upstream: Upstream, timers: Timers) -> None:
        self.timers = timers
        self.upstream = upstream
        self._driven: dict[Exchange, Driven] = {}
        self._client = envelope_of_initialize(None)
        """The handshake client that opened the session, if one did."""
        self._levels: dict[object, str] = {}
        """Log levels, by the client that set each (`Exchange.origin`)."""
        self._logs = False
        self._capabilities: dict[str, Raw] = {}
        self._subscription = Subscription(self)

    @property
    def envelope(self) -> Envelope:
        """Of the handshake client that opened the session."""
        return self._client._replace(log_level=self._levels.get(None, DEFAULT_LEVEL))

    def envelope_of(self, exchange: Exchange) -> Envelope:
        """Return that of the client of a request: with its log level, and without what the opening
        client could be asked and this one cannot."""
        level = self._levels.get(exchange.origin, self._levels.get(None, DEFAULT_LEVEL))
        capabilities = self._client.capabilities
        cannot = [name for method, name in ASKED.items() if not exchange.sink.takes(method)]
        if cannot:
            kept = {k: v for k, v in wire.members(capabilities).items() if k not in cannot}
            capabilities = wire.rebuilt(kept)
        return self._client._replace(capabilities=capabilities, log_level=level)

    # -- towards the backend -----------------------------------------------------------------------

    def request(self, exchange: Exchange) -> None:
        if exchange.method == "server/discover":
            self._discover(exchange)
        elif exchange.envelope is not None:
            self._subscription.hurry()
            self.backend.request(exchange)
        elif exchange.method == "initialize":
            self._open(exchange)
        elif exchange.method == "ping":
            exchange.settle(DONE)
        elif exchange.method == "logging/setLevel":
            exchange.settle(self._set_level(exchange))
        elif exchange.method in ("resources/subscribe", "resources/unsubscribe"):
            self._subscription.request(exchange)
        else:
            self._subscription.hurry()
            driven = self._driven[exchange] = Driven(self, exchange)
            driven.send()

    def _set_level(self, exchange: Exchange) -> Outcome:
        """Take a log level, which goes with every request from now on."""
        level = text(wire.member(exchange.params, "level"))
        if not self._logs:
            return _NO_LOGS
        if level not in LOG_LEVELS:
            return _NO_LEVEL
        self._levels[exchange.origin] = level
        while len(self._levels) > MAX_LEVELS:
            del self._levels[next(iter(self._levels))]
        return DONE

    def _discover(self, exchange: Exchange) -> None:
        """Open a modern client's session; from then on hear of what its backend's clients may be
        listening for, unless it has none."""

        def answered(outcome: Outcome) -> None:
            exchange.settle(outcome)
            if outcome.result is not None and not is_nobodys(self.upstream):
                capabilities = _capabilities_of(outcome.result)
                self._logs = "logging" in capabilities
                self._subscription.hear_lists(capabilities)

        self._ask_first(exchange, exchange.params, answered)

    def _open(self, exchange: Exchange) -> None:
        self._client = envelope_of_initialize(exchange.params)
        requested = text(wire.members(exchange.params).get("protocolVersion"))

        def answered(outcome: Outcome) -> None:
            if outcome.result is not None:
                self._capabilities = _capabilities_of(outcome.result)
                self._logs = "logging" in self._capabilities
                outcome = Outcome(result=initialize_result(outcome.result, requested))
            exchange.settle(outcome)

        self._ask_first(exchange, discover_params(self._client), answered)

    def _ask_first(
        self, exchange: Exchange, params: Bytes | None, answered: Callable[[Outcome], None]
    ) -> None:
        sink = Own(exchange, answered)
        self.backend.request(
            Exchange("server/discover", params, client_id=b"0", sink=sink, context=exchange.context)
        )

    def notify(self, method: str, params: Bytes | None) -> None:
        """After the first notification of a handshake client it hears of changes. The others of
        that era mean nothing to a modern backend; what no era knows goes on."""
        if method == "notifications/initialized" and self._capabilities:
            capabilities, self._capabilities = self._capabilities, {}
            self._subscription.hear_lists(capabilities)
        elif method not in METHODS:
            self.backend.notify(method, params)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        driven = self._driven.pop(exchange, None)
        if driven is not None:
            driven.cancel(params)
        elif not self._subscription.cancel(exchange):
            self.backend.cancel(exchange, params)

    def in_flight(self) -> tuple[Exchange, ...]:
        ours = (Own, Listening)
        others = (e for e in self.backend.in_flight() if not isinstance(e.sink, ours))
        return (*self._driven, *self._subscription.in_flight(), *others)

    # -- what a driven request needs (`Wheel`) -----------------------------------------------------

    def finished(self, outer: Exchange, outcome: Outcome) -> None:
        self._driven.pop(outer, None)
        outer.settle(outcome)

    def put(self, ask: Ask, outer: Exchange) -> None:
        self.upstream.ask(ask, outer)

    def take_back(self, ask: Ask, params: Bytes | None) -> None:
        self.upstream.withdraw(ask, params)

    # -- from the backend --------------------------------------------------------------------------

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        """A modern backend asks in its results alone (2026-07-28 basic/transports/stdio)."""
        ask.decline(_ASKS_IN_RESULTS)

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        ask.withdraw()

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        subscription = subscription_of(params)
        if subscription is not None:
            if method == "notifications/subscriptions/acknowledged":
                self._subscription.acknowledged(subscription, params)
            elif self._subscription.is_open(subscription):
                self.changed(method, params)
            return
        if method == "notifications/message" and exchange is not None:
            exchange = self._hearing(params, exchange)
            if exchange is None:
                return
        if exchange is not None and isinstance(exchange.sink, Own):
            exchange = exchange.sink.outer
        elif wire.method_of(method).unrelated:  # modern clients hear of it where they listen
            exchange = None
        self.upstream.notification(method, params, encoded, exchange)

    def _hearing(self, params: Bytes | None, likely: Exchange) -> Exchange | None:
        """Return a request that asked for a log message: the likeliest, else the newest. None: it
        is for nobody (2026-07-28 server/utilities/logging#per-request-log-level)."""
        level = text(wire.member(params, "level")) or ""
        for exchange in (likely, *reversed(self.backend.in_flight())):
            if exchange.envelope is not None and exchange.envelope.hears(level):
                return exchange
        return None

    def changed(self, method: str, params: Bytes | None) -> None:
        """Pass on what came by listening, as a handshake backend would have sent it."""
        fields = wire.members(params)
        meta = wire.members(fields.get("_meta"))
        meta.pop(SUBSCRIPTION_KEY, None)
        if meta:
            fields["_meta"] = Raw(wire.rebuilt(meta))
        else:
            fields.pop("_meta", None)
        lasting = wire.rebuilt(fields) if fields else None
        encoded = wire.encode_notification(method, lasting)
        self.upstream.notification(method, lasting, encoded, None)

    def hold(self, exchange: Exchange) -> None:
        self.upstream.hold(exchange)

    # -- the end -----------------------------------------------------------------------------------

    def ended(self, how: Exit) -> None:
        for driven in tuple(self._driven.values()):
            driven.lost(how)
        self.close()
        self.upstream.ended(how)

    def close(self) -> None:
        """Do nothing more: the backend is being stopped."""
        self._subscription.end()
        for driven in self._driven.values():
            driven.drop()


def _capabilities_of(result: Bytes) -> dict[str, Raw]:
    return wire.members(wire.members(result).get("capabilities"))

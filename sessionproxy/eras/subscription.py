"""What a session hears of its modern backend's changes.

A modern backend tells of changes only those who listen (2026-07-28 basic/patterns/subscriptions),
so one `subscriptions/listen` is kept open for as long as the session is to hear of anything. When
what it is to hear changes, another is opened, and the one before it ends once the backend has
acknowledged that, so that nothing is missed in between. What changes at the same time travels
together: a thousand subscriptions that are replayed are one request. Neighbours: `eras.to_modern`.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec
from msgspec import Raw

from .. import wire
from ..core.exchange import Exchange, Outbound, Outcome
from ..core.ports import Backend
from ..core.timers import Timer, Timers
from ..errors import BackendGone
from ..wire import Bytes, Envelope
from ..wire.envelope import SUBSCRIPTION_KEY, text, with_envelope

logger: Final = logging.getLogger(__name__)

MAX_URIS: Final = 1000
"""Resources that one session may be subscribed to; one more is refused."""

AGAIN: Final = 1.0
"""Seconds after which a backend that has ended a subscription is asked for it again."""

LISTS: Final = ("tools", "prompts", "resources")

DONE: Final = Outcome(result=b"{}")
_NO_URI: Final = Outcome(error=b'{"code":-32602,"message":"uri is missing"}')
_TOO_MANY: Final = Outcome(error=b'{"code":-32602,"message":"too many subscriptions"}')
_NOT_HONOURED: Final = Outcome(
    error=b'{"code":-32602,"message":"the backend does not tell of changes of resources"}'
)


class Host(Protocol):
    """What a subscription needs of the bridge that it belongs to."""

    timers: Timers

    @property
    def backend(self) -> Backend: ...

    @property
    def envelope(self) -> Envelope:
        """Of the client on whose behalf the backend is listened to."""
        ...

    def changed(self, method: str, params: Bytes | None) -> None:
        """Tell the client of a change."""
        ...


class Listening:
    """One `subscriptions/listen`. A `ReplySink`."""

    attached = False

    def __init__(
        self,
        wanted: bytes,
        waiting: list[Exchange],
        envelope: Envelope,
        over: Callable[["Listening"], None],
    ) -> None:
        """`waiting`: the client's requests that are answered once it is acknowledged."""
        self.wanted = wanted
        self.waiting = waiting
        self._over = over
        self.exchange: Exchange = Exchange(
            "subscriptions/listen",
            with_envelope(wanted, envelope),
            client_id=b"",
            sink=self,
            envelope=envelope,
        )

    def takes(self, method: str) -> int:
        return 0

    def message(self, message: Outbound) -> None:
        """Not used: what comes on it comes through the bridge."""

    def settled(self, exchange: Exchange) -> None:
        self._over(self)

    def is_of(self, subscription: Bytes) -> bool:
        """Return whether messages that carry this id are part of it."""
        return bytes(subscription) == b"%d" % self.exchange.backend_id


class Subscription:
    """All that one session hears of its backend's changes."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._lists: tuple[str, ...] = ()
        self._uris: dict[str, None] = {}
        self._waiting: list[Exchange] = []
        """Of the client, not yet part of what the backend was asked."""
        self._changed = False
        """The backend is to be asked for something else."""
        self._soon: Timer | None = None
        self._coming: list[Listening] = []
        """Not acknowledged yet, in the order in which they were sent."""
        self._open: Listening | None = None
        self._missed = False
        """For a while nothing was heard."""

    # -- what is to be heard -----------------------------------------------------------------------

    def hear_lists(self, capabilities: Mapping[str, Raw]) -> None:
        """From now on hear of changes of those lists that the backend tells of."""
        self._lists = tuple(kind for kind in LISTS if _announces(capabilities.get(kind)))
        self._change()

    def request(self, exchange: Exchange) -> None:
        """Take a `resources/subscribe` or `resources/unsubscribe` of the handshake era; it is
        answered once it has come into effect."""
        uri = _uri_of(exchange)
        if uri is None:
            exchange.settle(_NO_URI)
            return
        if exchange.method == "resources/unsubscribe":
            self._uris.pop(uri, None)
        elif uri not in self._uris and len(self._uris) >= MAX_URIS:
            exchange.settle(_TOO_MANY)
            return
        else:
            self._uris[uri] = None
        self._waiting.append(exchange)
        self._change()

    def cancel(self, exchange: Exchange) -> bool:
        """Forget a request that is not answered yet; False where there is none such."""
        for waiting in (self._waiting, *(listening.waiting for listening in self._coming)):
            if exchange in waiting:
                waiting.remove(exchange)
                return True
        return False

    def in_flight(self) -> tuple[Exchange, ...]:
        """Return the client's requests that are not answered yet."""
        sent = [exchange for listening in self._coming for exchange in listening.waiting]
        return (*sent, *self._waiting)

    def _wanted(self) -> bytes:
        """Return the parameters to listen with; empty where there is nothing to hear."""
        wanted: dict[str, object] = {f"{kind}ListChanged": True for kind in self._lists}
        if self._uris:
            wanted["resourceSubscriptions"] = list(self._uris)
        return msgspec.json.encode({"notifications": wanted}) if wanted else b""

    # -- listening ---------------------------------------------------------------------------------

    def _change(self, after: float = 0.0) -> None:
        """Ask the backend soon, for all that is wanted by then; while one request waits for its
        acknowledgment, once that has come."""
        self._changed = True
        if not self._coming and self._soon is None:
            self._soon = self._host.timers.after(after, self._listen)

    def hurry(self) -> None:
        """Ask at once, if there is anything to ask: the backend is about to be sent what may change
        what is to be heard."""
        if self._changed:
            self._listen()

    def _listen(self) -> None:
        """See to it that what is heard is what is wanted."""
        self._calm()
        self._changed = False
        wanted = self._wanted()
        waiting, self._waiting = self._waiting, []
        last = self._coming[-1] if self._coming else self._open
        if not wanted:
            self._close()
            _settle(waiting, DONE)
        elif last is None or last.wanted != wanted:
            listening = Listening(wanted, waiting, self._host.envelope, self._over)
            self._coming.append(listening)
            self._host.backend.request(listening.exchange)
        elif last is self._open:
            _settle(waiting, DONE)
        else:
            last.waiting += waiting

    def _calm(self) -> None:
        timer, self._soon = self._soon, None
        if timer is not None:
            timer.cancel()

    def _close(self) -> None:
        """Hear nothing more, and answer those who waited for what was wanted before."""
        before = [*self._coming, *([] if self._open is None else [self._open])]
        self._coming, self._open = [], None
        for listening in before:
            if listening.exchange.outcome is None:
                self._host.backend.cancel(listening.exchange, None)
            _settle(listening.waiting, DONE)

    def acknowledged(self, subscription: Bytes, params: Bytes | None) -> None:
        """The backend says what it will tell of."""
        found = next((n for n, c in enumerate(self._coming) if c.is_of(subscription)), None)
        if found is None:
            return
        listening, later = self._coming[found], self._coming[found + 1 :]
        self._coming = self._coming[:found]  # what was asked before it is part of it
        self._close()
        self._open, self._coming = listening, later
        self._answer(listening, wire.members(wire.members(params).get("notifications")))
        if self._missed:
            self._missed = False
            self._tell_all()
        if self._changed:
            self._change()

    def _answer(self, listening: Listening, honoured: Mapping[str, Raw]) -> None:
        waiting, listening.waiting = listening.waiting, []
        if b"resourceSubscriptions" not in listening.wanted or "resourceSubscriptions" in honoured:
            _settle(waiting, DONE)
        else:
            self._undo(waiting)
            self._changed = True
            _settle(waiting, _NOT_HONOURED)

    def _tell_all(self) -> None:
        """Tell of everything that may have changed while nothing was heard."""
        for kind in self._lists:
            self._host.changed(f"notifications/{kind}/list_changed", None)
        for uri in self._uris:
            params = msgspec.json.encode({"uri": uri})
            self._host.changed("notifications/resources/updated", params)

    def is_open(self, subscription: Bytes) -> bool:
        """Return whether a notification with this id is to be passed on."""
        return self._open is not None and self._open.is_of(subscription)

    # -- the end -----------------------------------------------------------------------------------

    def end(self) -> None:
        """The backend is gone."""
        self._calm()

    def _over(self, listening: Listening) -> None:
        """The backend has ended one, or refused it, or is gone."""
        outcome = listening.exchange.outcome or Outcome()
        if listening in self._coming:
            self._coming.remove(listening)
            self._refused(listening, outcome)
        elif listening is self._open:
            self._open = None
            if outcome.failure is None:
                self._missed = True
                self._change(AGAIN)

    def _refused(self, listening: Listening, outcome: Outcome) -> None:
        if outcome.error is not None:
            told = bytes(outcome.error).decode(errors="replace")[:200]
            logger.warning("the backend does not tell of changes: %s", told)
        self._undo(listening.waiting)
        gone = Outcome(failure=BackendGone("The backend told of no changes."))
        _settle(listening.waiting, outcome if outcome.result is None else gone)
        if self._changed and outcome.failure is None:
            self._change()

    def _undo(self, waiting: list[Exchange]) -> None:
        """Want no more what those who waited subscribed to."""
        for exchange in waiting:
            self._uris.pop(_uri_of(exchange) or "", None)


def _settle(waiting: list[Exchange], outcome: Outcome) -> None:
    for exchange in waiting:
        exchange.settle(outcome)


def _uri_of(exchange: Exchange) -> str | None:
    return text(wire.member(exchange.params, "uri"))


def _announces(declared: Bytes | None) -> bool:
    return bytes(wire.members(declared).get("listChanged", b"")) == b"true"


def subscription_of(params: Bytes | None) -> Raw | None:
    """Return the id of the subscription that a notification is part of, encoded."""
    return wire.members(wire.members(params).get("_meta")).get(SUBSCRIPTION_KEY)

"""What a session keeps while it has no backend: enough to open it again, and to say what was lost.

Neighbours: `core.session` writes and replays it; the frontend tells clients of a loss.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from msgspec import Raw

from .. import wire
from ..errors import Exit
from ..wire import Bytes, Remembers
from .state import EndReason, StopReason

MAX_SUBSCRIPTIONS: Final = 1000
"""Subscriptions remembered for waking; the oldest is forgotten first."""

MAX_REMEMBERED: Final = 64 * 1024
"""Bytes remembered for waking, likewise: what a thousand ordinary URIs need."""


class Opening(NamedTuple):
    """What the client opened its session with; enough to open it again."""

    params: bytes
    """Of the first request, as the client wrote them."""
    method: str = "initialize"
    """`server/discover` for a client of the modern era, which has no request of its own for it."""

    @property
    def modern(self) -> bool:
        return self.method != "initialize"

    @property
    def size(self) -> int:
        """Bytes it keeps in memory, about."""
        return len(self.params)


class Loss(NamedTuple):
    """That the state a client built up is gone, and why."""

    at: float
    """On the event loop's clock, seconds."""
    reason: StopReason | EndReason
    idle_for: float
    """Seconds without a request before it."""
    exit: Exit | None
    server: str = ""
    """The one of several whose state it was; empty: all there was."""


@dataclass(slots=True)
class Memory:
    """What was set up by requests, to be replayed when the session wakes."""

    log_level: Bytes | None = None
    subscriptions: dict[bytes, Bytes] = field(default_factory=dict[bytes, Bytes])
    subscribers: dict[bytes, set[object]] = field(default_factory=dict[bytes, set[object]])
    """Who of several clients wants to hear of a resource (`Exchange.origin`)."""

    def note(self, kind: Remembers, params: Bytes | None, origin: object = None) -> None:
        """Keep `params` but for their `_meta`: its progress token was good for one request.

        Of such as are too large to be taken apart, what the method is about.
        """
        fields = _lasting(params)
        kept, uri = wire.rebuilt(fields), bytes(fields.get("uri", b""))
        keeps = len(uri) + len(kept) <= MAX_REMEMBERED
        if kind is Remembers.LOG_LEVEL:
            self.log_level = kept if keeps else None
        elif kind is Remembers.UNSUBSCRIBE:
            self._forget(uri)
        elif keeps:
            self.subscriptions[uri] = kept
            if origin is not None:
                self.subscribers.setdefault(uri, set()).add(origin)
            while len(self.subscriptions) > MAX_SUBSCRIPTIONS or self._subscribed > MAX_REMEMBERED:
                self._forget(next(iter(self.subscriptions)))

    def _forget(self, uri: bytes) -> None:
        self.subscriptions.pop(uri, None)
        self.subscribers.pop(uri, None)

    def others_want(self, params: Bytes | None, origin: object) -> bool:
        """One of several clients wants to hear no more of a resource: return whether another one
        still does, so that the backend must not be told."""
        found = self.subscribers.get(bytes(_lasting(params).get("uri", b"")), set())
        found.discard(origin)
        return bool(found)

    def left(self, origin: object) -> None:
        """A client wants to hear of nothing any more."""
        for found in self.subscribers.values():
            found.discard(origin)

    @property
    def _subscribed(self) -> int:
        return sum(len(uri) + len(bytes(params)) for uri, params in self.subscriptions.items())

    @property
    def size(self) -> int:
        """Bytes it keeps in memory, about."""
        return self._subscribed + len(bytes(self.log_level or b""))


def _lasting(params: Bytes | None) -> dict[str, Raw]:
    fields = wire.members(params)
    if not fields:
        looked = {name: wire.member(params, name) for name in ("uri", "level")}
        return {name: found for name, found in looked.items() if found is not None}
    fields.pop("_meta", None)
    return fields

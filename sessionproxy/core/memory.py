"""What a session keeps while it has no backend: enough to open it again, and to say what was lost.

Neighbours: `core.session` writes and replays it; the frontend tells clients of a loss.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from msgspec import Raw

from .. import wire
from ..errors import Exit
from ..wire import Bytes, Remembers
from .state import StopReason

MAX_SUBSCRIPTIONS: Final = 1000
"""Subscriptions remembered for waking; the oldest is forgotten first."""

MAX_REMEMBERED: Final = 64 * 1024
"""Bytes remembered for waking, likewise: what a thousand ordinary URIs need."""


class Opening(NamedTuple):
    """What the client opened its session with; enough to open it again."""

    params: bytes
    """Of `initialize`, as the client wrote them."""

    @property
    def size(self) -> int:
        """Bytes it keeps in memory, about."""
        return len(self.params)


class Loss(NamedTuple):
    """That the state a client built up is gone, and why."""

    at: float
    """On the event loop's clock, seconds."""
    reason: StopReason
    idle_for: float
    """Seconds without a request before it."""
    exit: Exit | None


@dataclass(slots=True)
class Memory:
    """What was set up by requests, to be replayed when the session wakes."""

    log_level: Bytes | None = None
    subscriptions: dict[bytes, Bytes] = field(default_factory=dict[bytes, Bytes])

    def note(self, kind: Remembers, params: Bytes | None) -> None:
        """Keep `params` but for their `_meta`: its progress token was good for one request.

        Of such as are too large to be taken apart, what the method is about.
        """
        fields = _lasting(params)
        kept, uri = wire.rebuilt(fields), bytes(fields.get("uri", b""))
        keeps = len(uri) + len(kept) <= MAX_REMEMBERED
        if kind is Remembers.LOG_LEVEL:
            self.log_level = kept if keeps else None
        elif kind is Remembers.UNSUBSCRIBE:
            self.subscriptions.pop(uri, None)
        elif keeps:
            self.subscriptions[uri] = kept
            while len(self.subscriptions) > MAX_SUBSCRIPTIONS or self._subscribed > MAX_REMEMBERED:
                del self.subscriptions[next(iter(self.subscriptions))]

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

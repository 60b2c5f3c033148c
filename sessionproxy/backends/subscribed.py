"""Under which URIs the client of several servers hears of their resources.

A resource may have more than one in front: that of a copy, and its own. The server knows of one
subscription, which stays for as long as any of them is subscribed to. Neighbours:
`backends.composite` sends what clients ask, and tells them what servers do.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec

from .. import wire
from ..core.exchange import Exchange, Outcome
from ..wire import Bytes
from ..wire.envelope import text
from .names import RESOURCES
from .parts import Part

MAX_URIS: Final = 1024
"""That are remembered; the oldest goes first. Some more than what is replayed on waking."""


class Subscribed:
    """Of one session."""

    def __init__(self) -> None:
        self._by_uri: OrderedDict[str, tuple[Part, str]] = OrderedDict()
        """Whose it is, and what that calls it."""
        self._new: dict[Exchange, str] = {}
        """By request that is not answered yet: what was not subscribed to before it."""

    def add(self, exchange: Exchange, uri: str, part: Part, original: str) -> None:
        """A client subscribes to what it calls `uri`, until `answered` says that it was refused."""
        if uri not in self._by_uri:
            self._new[exchange] = uri
        self._by_uri[uri] = part, original
        if len(self._by_uri) > MAX_URIS:
            self._by_uri.popitem(last=False)

    def answered(self, exchange: Exchange, outcome: Outcome) -> None:
        uri = self._new.pop(exchange, None)
        if uri is not None and outcome.result is None:
            self._by_uri.pop(uri, None)

    def drop(self, uri: str, part: Part, original: str) -> bool:
        """No client is subscribed to `uri` any more. Return whether one still hears of the same
        resource under another one, so that its server must not be told."""
        self._by_uri.pop(uri, None)
        return (part, original) in self._by_uri.values()

    def told(self, part: Part, original: str, public: str) -> list[str]:
        """Return under which URIs clients are told of a resource, or of one beneath what they
        subscribed to (2025-11-25 server/resources#subscriptions), which has no name of its own
        under a copy. `public`: its own in front, which is also for those that nobody subscribed to.
        """
        found: dict[str, None] = {}
        for uri, (of, subscribed) in self._by_uri.items():
            if of is part and f"{original}/".startswith(f"{subscribed.rstrip('/')}/"):
                own = uri == part.names.public(RESOURCES, subscribed)
                found[public if own else uri] = None
        return list(found) or [public]

    def updated(self, part: Part, params: Bytes | None) -> Sequence[Bytes | None]:
        """Return the parameters of a notification about a resource, once for each URI that clients
        have subscribed to."""
        named = part.names.updated(params)
        original, public = (text(wire.member(each, "uri")) for each in (params, named))
        if named is None or original is None or public is None:
            return [named]
        uris = self.told(part, original, public)
        return [
            named if uri == public else wire.with_member(named, "uri", msgspec.json.encode(uri))
            for uri in uris
        ]

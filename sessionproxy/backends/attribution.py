"""Which session a message of a shared backend belongs to that names no request.

On a pipe, and on the GET stream of HTTP, only what is in flight can tell; where that leaves a
choice between sessions, it is nobody's. Neighbours: `backends.share` asks, and says what it sends.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from ..core.exchange import Exchange

MAX_CANCELLED: Final = 1024
"""Requests that are remembered since the backend may still work on them; the oldest goes first."""

LOG: Final = "notifications/message"
LISTEN: Final = "subscriptions/listen"

IMPERSONAL: Final = frozenset(
    {"ping", "tools/list", "prompts/list", "resources/list", "resources/templates/list"}
)
"""Requests with nothing of a user's in them that a backend could log, or ask about."""


class Party(Protocol):
    """A session, as far as this goes."""

    @property
    def user(self) -> str:
        """Whose it is."""
        ...

    @property
    def mark(self) -> object:
        """Tells it from every other one, also from those that are over."""
        ...


class Attribution:
    """For one backend, while it runs."""

    def __init__(self, *, modern: bool) -> None:
        """`modern`: the era that it is spoken to in."""
        self._modern = modern
        self._users: set[str] = set()
        """The first two who have used it: all that counts is whether there is another."""
        self._cancelled: OrderedDict[int, object] = OrderedDict()
        """Requests that it was told to leave off, which it need not do, by id: the mark of each."""

    @property
    def unsure(self) -> bool:
        """Whether it may work on something that nobody waits for."""
        return bool(self._cancelled)

    def sent(self, method: str, party: Party) -> None:
        """It works on something of a user's."""
        if method not in IMPERSONAL and len(self._users) < 2:
            self._users.add(party.user)

    def cancelled(self, exchange: Exchange, party: Party) -> None:
        """Nobody waits for a request any more that it may work on still."""
        if exchange.method not in IMPERSONAL and exchange.method != LISTEN:
            self._cancelled[exchange.backend_id] = party.mark
            if len(self._cancelled) > MAX_CANCELLED:
                self._cancelled.popitem(last=False)

    def late(self, backend_id: int) -> None:
        """It has answered all the same."""
        self._cancelled.pop(backend_id, None)

    def candidates(
        self, method: str, in_flight: Iterable[tuple[Exchange, Party]]
    ) -> Sequence[Exchange]:
        """Return those in flight, if all are of one session, and no other session has cancelled
        one that the backend may still work on.

        A log message names no request and may come long after its own was answered. So on a pipe
        it belongs to nobody any more once two users have used the backend; but for the modern era,
        where it must come before the answer and only for requests that asked for such.
        """
        found = [(exchange, party) for exchange, party in in_flight if exchange.method != LISTEN]
        if method == LOG and self._modern:
            found = [(exchange, party) for exchange, party in found if _wants_logs(exchange)]
        elif method.startswith("notifications/") and len(self._users) > 1:
            return ()
        marks = {party.mark for _, party in found}
        if len(marks) != 1 or not marks.issuperset(self._cancelled.values()):
            return ()
        return [exchange for exchange, _ in found]


def _wants_logs(exchange: Exchange) -> bool:
    return exchange.envelope is not None and exchange.envelope.log_level is not None

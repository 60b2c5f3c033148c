"""How much of one session's may wait before its backend is sent anything of it.

Where requests are posted one by one, or their client does not read, nothing else holds it up.
Neighbours: `backends.composite` and `backends.hooked` have requests wait for servers and for hooks,
`client.provider` for clients, `frontend.handshake_channel` for the session itself.
"""

from typing import Final

from ..errors import BackendBusy
from .exchange import Exchange, Outcome

MAX_WAITING: Final = 256
"""Messages: more than any client has open at once that is not at fault."""

MAX_WAITING_BYTES: Final = 32 * 1024 * 1024
"""Of their parameters, as much as may wait for a backend that does not read; one message may be
larger."""


class WaitingRoom:
    """The requests of one session that wait."""

    def __init__(self) -> None:
        self._sizes: dict[Exchange, int] = {}
        self._size = 0

    def enter(self, exchange: Exchange) -> bool:
        """Let a request wait, until it leaves. False: there is no room, and it has failed."""
        size = 0 if exchange.params is None else memoryview(exchange.params).nbytes
        large = self._sizes and self._size + size > MAX_WAITING_BYTES
        if large or len(self._sizes) >= MAX_WAITING:
            text = "The backend is not ready yet; too much waits for it already."
            exchange.settle(Outcome(failure=BackendBusy(text)))
            return False
        self._sizes[exchange] = size
        self._size += size
        return True

    def leave(self, exchange: Exchange) -> None:
        """It waits no longer. Idempotent."""
        self._size -= self._sizes.pop(exchange, 0)

"""Where the answer to a request goes that is sent to the backend for one of the client's.

Neighbours: `eras.to_handshake` and `eras.to_modern` send such requests.
"""

from collections.abc import Callable

from ..core.exchange import Exchange, Outbound, Outcome


class Instead:
    """A `ReplySink` before that of the client's own exchange."""

    def __init__(self, outer: Exchange, then: Callable[[Outcome], None]) -> None:
        """`then` is given the answer; what comes before it goes to the client."""
        self.outer = outer
        self._then = then

    @property
    def attached(self) -> bool:
        return self.outer.sink.attached

    def takes(self, method: str) -> int:
        return self.outer.sink.takes(method)

    def message(self, message: Outbound) -> None:
        self.outer.sink.message(message)

    def settled(self, exchange: Exchange) -> None:
        self._then(exchange.outcome or Outcome())

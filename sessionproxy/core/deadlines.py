"""The call limit: one task for all calls, nothing on the way of a call but a dict entry.

All calls have the same limit, so the first to run out is the oldest one. Neighbours:
`core.session` registers its exchanges; `core.manager` runs the task.
"""

import logging
from collections.abc import Callable
from typing import Final

import anyio

from ..errors import BackendSilent, ProxyError
from .exchange import Exchange
from .pauses import Pauses

logger: Final = logging.getLogger(__name__)

CALL_LIMIT: Final = b'{"reason":"call limit"}'
"""Parameters of the cancellation of a call that ran into the limit. A backend that serves several
sessions knows by them that it was silent; whoever stands before it passes them on."""

RanOut = Callable[[Exchange, ProxyError], None]


class CallLimit:
    """Tells when an exchange has been in flight for `seconds`, pauses not counted."""

    def __init__(self, seconds: float, pauses: Pauses) -> None:
        self.seconds = seconds
        self._pauses = pauses
        self._watched: dict[Exchange, tuple[float, RanOut]] = {}
        self._added = anyio.Event()

    def watch(self, exchange: Exchange, ran_out: RanOut) -> None:
        if not self._watched:
            self._added.set()
        self._watched[exchange] = (anyio.current_time(), ran_out)

    def forget(self, exchange: Exchange) -> None:
        self._watched.pop(exchange, None)

    async def run(self) -> None:
        """Watch for ever. The limit is met to the event loop's precision."""
        while True:
            if not self._watched:
                self._added = anyio.Event()
                await self._added.wait()
                continue
            exchange, (begun, ran_out) = next(iter(self._watched.items()))
            now = self._pauses.look()
            deadline = begun + self.seconds + self._pauses.within(begun, now)
            if now < deadline:
                await anyio.sleep_until(deadline)
                continue
            del self._watched[exchange]
            failure = BackendSilent(f"The backend did not answer in {self.seconds:g} s.")
            try:
                ran_out(exchange, failure)
            except Exception:  # a fault of one session's must not end the watch over all
                logger.exception("%r could not be failed", exchange)

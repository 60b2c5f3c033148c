"""A client of our own: asks a backend something on nobody's behalf, and declines what it is asked.

Neighbours: `core.catalogue` and `eras` look at backends with it before a client needs them; so does
`doctor`.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from ..errors import BackendGone, Exit
from ..wire import Bytes, Envelope
from .exchange import Ask, Exchange, Outbound, Outcome, ReplySink
from .latch import Latch
from .ports import Backend

NO_ROOTS: Final = Outcome(result=b'{"roots":[]}')
DECLINED: Final = Outcome(
    error=msgspec.json.encode({"code": -32603, "message": "no client is connected"})
)


def decline(ask: Ask) -> None:
    """Answer what a backend asks of nobody: there are no roots, and there is no user or model."""
    ask.decline(NO_ROOTS if ask.method == "roots/list" else DECLINED)


class Answer:
    """The answer to a request of our own. A `ReplySink`."""

    def __init__(self) -> None:
        self._came = Latch()
        self._outcome = Outcome(failure=BackendGone("The backend gave no answer."))

    async def outcome(self) -> Outcome:
        """Wait for it."""
        await self._came.wait()
        return self._outcome

    @property
    def attached(self) -> bool:
        return not self._came.is_set()

    def takes(self, method: str) -> int:
        return 0

    def message(self, message: Outbound) -> None:
        """What comes before the answer is of no interest."""
        if message.ask is not None:
            decline(message.ask)

    def settled(self, exchange: Exchange) -> None:
        self._outcome = exchange.outcome or self._outcome
        self._came.set()


class Unheard:
    """Where answers go that nobody reads. A `ReplySink`."""

    attached = False

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        """`then` is told that it came."""
        self._then = then

    def takes(self, method: str) -> int:
        return 0

    def message(self, message: Outbound) -> None:
        if message.ask is not None:
            decline(message.ask)

    def settled(self, exchange: Exchange) -> None:
        if self._then is not None:
            self._then()


UNHEARD: Final[ReplySink] = Unheard()


def send(
    backend: Backend, method: str, params: Bytes | None, envelope: Envelope | None = None
) -> Answer:
    """Send a request, and return what its answer can be waited for with."""
    answer = Answer()
    backend.request(Exchange(method, params, client_id=b"0", sink=answer, envelope=envelope))
    return answer


async def ask(
    backend: Backend, method: str, params: Bytes | None, envelope: Envelope | None = None
) -> Outcome:
    """Send a request, and return how it ended."""
    return await send(backend, method, params, envelope).outcome()


class Nobody:
    """An `Upstream` without a client behind it."""

    def __init__(
        self,
        on_notification: Callable[[str], None] = lambda method: None,
        *,
        owner: str | None = None,
    ) -> None:
        """`on_notification` is told the method of each. `owner`: for whom something is asked; None:
        for nobody in particular."""
        self._on_notification = on_notification
        self.owner: str | None = owner

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        decline(ask)

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        ask.withdraw()

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        self._on_notification(method)

    def hold(self, exchange: Exchange) -> None: ...

    def ended(self, how: Exit) -> None: ...

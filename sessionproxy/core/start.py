"""Starting a backend's conversation: `initialize`, and what a woken session says after it.

Neighbours: `core.session` calls it; those who wait for a start share its `Start`.
"""

from contextvars import Context

from anyio.lowlevel import checkpoint_if_cancelled

from ..errors import BackendGone, BackendStartFailed, InitializeRefused, ProxyError
from ..wire import Bytes
from .exchange import ClientPort, Exchange, Outbound, Outcome, ReplySink
from .latch import Latch
from .memory import Memory, Opening
from .ports import Backend


class Start:
    """One attempt to get a backend running; all who wait for it share it."""

    __slots__ = ("answer", "failure", "fell_over", "queued", "settled", "waiters")

    def __init__(self) -> None:
        self.settled = Latch()
        self.failure: ProxyError | None = None
        self.fell_over = False
        """It succeeded, and its backend ended before anybody who waited had used it."""
        self.answer: Outcome | None = None
        """Of `initialize`, once the backend gave one."""
        self.queued = True
        self.waiters = 0


class _Answer:
    """Where the answer to a request of ours goes; what comes before it is for the client."""

    def __init__(self, to: ReplySink | ClientPort) -> None:
        self._to = to
        self.came = Latch()

    @property
    def attached(self) -> bool:
        return not self.came.is_set()

    def message(self, message: Outbound) -> None:
        self._to.message(message)

    def settled(self, exchange: Exchange) -> None:
        self.came.set()


async def shake_hands(
    backend: Backend,
    opening: Opening,
    start: Start,
    to: ReplySink | ClientPort,
    context: Context | None,
) -> Bytes:
    """Send the client's `initialize`, and return the result once it has come.

    What the backend sends before that goes `to` the client. `context`: of the request that opens
    the session; None where it is woken.

    Raises:
        BackendStartFailed: the backend ended.
        InitializeRefused: it answered with an error.
    """
    answer = _Answer(to)
    exchange = Exchange("initialize", opening.params, client_id=b"0", sink=answer, context=context)
    backend.request(exchange)
    await answer.came.wait()
    await checkpoint_if_cancelled()  # `stop` or `end` may have come together with the answer
    start.answer = outcome = exchange.outcome or Outcome()
    if outcome.failure is not None:
        how = outcome.failure.exit if isinstance(outcome.failure, BackendGone) else None
        raise BackendStartFailed(f"The backend did not start: {outcome.failure}", how)
    if outcome.result is None:
        raise InitializeRefused("The backend refused initialize.", bytes(outcome.error or b"{}"))
    return outcome.result


def resume(backend: Backend, memory: Memory, client: ClientPort) -> None:
    """Bring a fresh backend to where the client believes it is."""
    backend.notify("notifications/initialized", None)
    if memory.log_level is not None:
        _replay(backend, "logging/setLevel", memory.log_level, client)
    for params in tuple(memory.subscriptions.values()):
        _replay(backend, "resources/subscribe", params, client)


def _replay(backend: Backend, method: str, params: Bytes, client: ClientPort) -> None:
    answer = _Answer(client)  # which is of no interest
    backend.request(Exchange(method, params, client_id=b"0", sink=answer))

"""Starting a backend's conversation: `initialize`, and what a woken session says after it.

Neighbours: `core.session` calls it; those who wait for a start share its `Start`.
"""

import logging
from collections import deque
from contextvars import Context
from typing import Final

from anyio.lowlevel import checkpoint_if_cancelled

from .. import wire
from ..errors import (
    BackendGone,
    BackendStartFailed,
    InitializeRefused,
    ProxyError,
    TryLater,
)
from ..wire import Bytes
from ..wire.envelope import text
from .caller import ask
from .exchange import ClientPort, Exchange, Outbound, Outcome, ReplySink
from .latch import Latch
from .memory import Memory, Opening
from .ports import Backend

logger: Final = logging.getLogger(__name__)


MAX_WHY: Final = 500
"""Characters of what a backend says that are passed on as part of a text of ours."""

AT_ONCE: Final = 16
"""Requests that are replayed at once."""


class Start:
    """One attempt to get a backend running; all who wait for it share it."""

    __slots__ = ("answer", "failure", "fell_over", "queued", "settled", "waiters")

    def __init__(self) -> None:
        self.settled: Latch = Latch()
        self.failure: ProxyError | None = None
        self.fell_over: bool = False
        """It succeeded, and its backend ended before anybody who waited had used it."""
        self.answer: Outcome | None = None
        """Of `initialize`, once the backend gave one."""
        self.queued: bool = True
        self.waiters: int = 0


class _Answer:
    """Where the answer to a request of ours goes; what comes before it is for the client."""

    def __init__(self, sink: ReplySink | None, client: ClientPort) -> None:
        self._sink = sink
        self._client = client
        self.came = Latch()

    @property
    def attached(self) -> bool:
        if self.came.is_set():
            return False
        return self._client.listening if self._sink is None else self._sink.attached

    def takes(self, method: str) -> int:
        return 2 if self.attached else 0

    def message(self, message: Outbound) -> None:
        (self._sink or self._client).message(message)

    def settled(self, exchange: Exchange) -> None:
        self.came.set()


async def shake_hands(
    backend: Backend,
    opening: Opening,
    start: Start,
    opener: ReplySink | None,
    client: ClientPort,
    context: Context | None,
) -> Bytes:
    """Send what the client opened its session with, and return the result once it has come.

    What the backend sends before that goes to `opener`, else to the client. `context`: of the
    request that opens the session; None where it is woken.

    Raises:
        BackendStartFailed: the backend ended.
        InitializeRefused: it answered with an error.
        TryLater: what is behind it has no room, or rests.
    """
    answer = _Answer(opener, client)
    exchange = Exchange(
        opening.method, opening.params, client_id=b"0", sink=answer, context=context
    )
    backend.request(exchange)
    await answer.came.wait()
    await checkpoint_if_cancelled()  # `stop` or `end` may have come together with the answer
    start.answer = outcome = exchange.outcome or Outcome()
    return _introduction(opening, outcome)


async def introduced(backend: Backend, opening: Opening) -> Bytes:
    """Begin a conversation that is of no client's session.

    Return how the backend introduces itself.

    Raises: BackendStartFailed, InitializeRefused, TryLater: as `shake_hands`.
    """
    found = _introduction(opening, await ask(backend, opening.method, opening.params))
    if not opening.modern:
        backend.notify("notifications/initialized", None)
    return found


def _introduction(opening: Opening, outcome: Outcome) -> Bytes:
    """Raises: BackendStartFailed, InitializeRefused, TryLater."""
    if outcome.failure is not None:
        raise not_started(outcome.failure)
    if outcome.result is None:
        error = bytes(outcome.error or b"{}")
        why = (text(wire.member(error, "message")) or "it did not say why")[:MAX_WHY]
        raise InitializeRefused(f"The backend refused {opening.method}: {why}", error)
    return outcome.result


def not_started(why: ProxyError, text: str = "The backend did not start") -> ProxyError:
    """Return what to tell of a backend that failed over its first request: that it may come later,
    where nothing else is wrong, else that it failed, of which the route takes note."""
    if isinstance(why, TryLater):
        return why.fresh()
    if isinstance(why, BackendStartFailed):
        failure = why.fresh()
    else:
        how = why.exit if isinstance(why, BackendGone) else None
        failure = BackendStartFailed(f"{text}: {why}", how)
    # The route must not rest for everybody because of one caller.
    failure.counted = why.of_caller
    return failure


def resume(backend: Backend, opening: Opening, memory: Memory, client: ClientPort) -> None:
    """Bring a fresh backend to where the client believes it is."""
    if not opening.modern:
        backend.notify("notifications/initialized", None)
    requests = [("resources/subscribe", params) for params in memory.subscriptions.values()]
    if memory.log_level is not None:
        requests.insert(0, ("logging/setLevel", memory.log_level))
    replay = _Replay(backend, requests, client)
    for _ in range(AT_ONCE):
        replay.go_on()


class _Replay:
    """Repeats what a client has set up, so slowly that its own requests find room beside."""

    def __init__(
        self, backend: Backend, requests: list[tuple[str, Bytes]], client: ClientPort
    ) -> None:
        self._backend = backend
        self._requests = deque(requests)
        self._client = client

    def go_on(self) -> None:
        """Send the next one; its answer, which is of no interest, brings the one after it."""
        if self._requests:
            method, params = self._requests.popleft()
            sink = _Replayed(self, self._client)
            self._backend.request(Exchange(method, params, client_id=b"0", sink=sink))

    def give_up(self, failure: ProxyError) -> None:
        if self._requests:
            logger.warning("%d subscriptions are not replayed: %s", len(self._requests), failure)
            self._requests.clear()


class _Replayed(_Answer):
    """The answer to one of them."""

    def __init__(self, replay: _Replay, client: ClientPort) -> None:
        super().__init__(None, client)
        self._replay = replay

    def settled(self, exchange: Exchange) -> None:
        super().settled(exchange)
        outcome = exchange.outcome or Outcome()
        if outcome.failure is None:
            self._replay.go_on()
        else:
            self._replay.give_up(outcome.failure)

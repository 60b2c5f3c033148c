"""One client request in flight, and one backend request in flight.

An exchange is settled once, by whoever comes first: the backend's answer, its end, a limit, a
cancellation. It outlives the connection that brought it. Neighbours: the frontend makes an
`Exchange` and is told through its sink; `core.relay` settles it; `core.session` counts it.
"""

import math
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Final, NamedTuple, Protocol, Self

from ..errors import BackendBusy, ProxyError
from ..wire import Bytes, Envelope, Method, method_of
from .context import current_exchange


class Outcome(NamedTuple):
    """How a request ended: exactly one of the three is not None."""

    result: Bytes | None = None
    error: Bytes | None = None
    """The JSON-RPC error object that the other side answered, as it was written."""
    failure: ProxyError | None = None
    """The proxy's own finding, where the other side gave no answer."""


FAULTY: Final = Outcome(error=b'{"code":-32603,"message":"The request could not be served."}')
"""Of a request that code of the user's has failed."""


class Outbound(NamedTuple):
    """One message on its way to the client."""

    data: bytes
    droppable: bool = False
    ask: "Ask | None" = None


class ReplySink(Protocol):
    """Where the answer to an exchange goes, and what comes before it."""

    @property
    def attached(self) -> bool:
        """Whether a client reads it now. Without one, it keeps what it is given, bounded."""
        ...

    def takes(self, method: str) -> int:
        """Return how well a request of the backend is placed here: 2: it reaches the client now;
        1: later, or perhaps; 0: its client cannot be asked this."""
        ...

    def message(self, message: Outbound) -> None:
        """Take a message that precedes the answer."""
        ...

    def settled(self, exchange: "Exchange") -> None:
        """Take the answer: `exchange.outcome`. Called once."""
        ...


class Holder(Protocol):
    """What holds exchanges in flight; told when one no longer is."""

    def returned(self, exchange: "Exchange") -> None: ...


NONE_YET: Final = -math.inf
"""The progress of an exchange that has told none."""

NOT_BEGUN: Final = math.inf
"""When an exchange began that has not been passed on, or is not a request of a client's."""

SETTLED: Final = Context()
"""What an exchange that is settled has for a context: nothing belongs to it any more."""


class Exchange:
    """A client's request, from its arrival until it is settled."""

    __slots__ = (
        "backend_id",
        "began_at",
        "client_id",
        "client_token",
        "context",
        "envelope",
        "holder",
        "is_task",
        "method",
        "origin",
        "outcome",
        "params",
        "progress",
        "share",
        "sink",
        "treatment",
        "watchers",
    )

    def __init__(
        self,
        method: str,
        params: Bytes | None,
        *,
        client_id: bytes,
        sink: ReplySink,
        context: Context | None = None,
        envelope: Envelope | None = None,
        origin: object = None,
    ) -> None:
        """`context`: of another exchange, on whose behalf this one is; else the present one. A
        copy of it is kept, in which this is the current exchange. `envelope`: of a modern client.
        `origin`: tells the clients of one session apart."""
        # As it arrived.
        self.method: str = method
        """Of the request."""
        self.params: Bytes | None = params
        """Of the request, encoded; None where it has none."""
        self.client_id: bytes = client_id
        """The request's id, as the client wrote it."""
        self.treatment: Method = method_of(method)
        self.sink: ReplySink = sink
        self.envelope: Envelope | None = envelope
        self.origin: object = origin
        self.context: Context = copy_context() if context is None else context.copy()
        """A copy of the context that it arrived in."""
        self.context.run(current_exchange.set, self)
        # Set by the session.
        self.began_at: float = NOT_BEGUN
        """When it was passed on: seconds of `time.perf_counter`, for statistics alone. The event
        loop's clock may be as coarse as a millisecond, and takes ten times as long to read."""
        # Set by the relay.
        self.backend_id: int = 0
        self.client_token: bytes | None = None
        self.is_task: bool = False
        self.progress: float = NONE_YET
        # Moves once.
        self.holder: Holder | None = None
        self.share: Holder | None = None
        """Of its session in a backend that serves several; told as the holder is."""
        self.watchers: tuple[Holder, ...] = ()
        """Who else is told, for having looked on."""
        self.outcome: Outcome | None = None

    def __repr__(self) -> str:
        state = "in flight" if self.outcome is None else "settled"
        return f"<Exchange {self.method} {state}>"

    def settle(self, outcome: Outcome) -> None:
        """End it with `outcome`. Idempotent: the first outcome is the one kept."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        if self.holder is not None:
            self.holder.returned(self)
        if self.share is not None:
            self.share.returned(self)
        for watcher in self.watchers:
            watcher.returned(self)
        self.sink.settled(self)
        # The context holds the exchange as its current one: without this, every result would stay
        # in memory until the cyclic collector comes by.
        self.context = SETTLED


class Ask:
    """A backend's request to the client, from its arrival until it is answered or withdrawn."""

    __slots__ = ("_answer", "client_id", "method", "on_over", "params", "sink")

    def __init__(
        self, method: str, params: Bytes | None, answer: Callable[[Outcome], None]
    ) -> None:
        self.method: str = method
        self.params: Bytes | None = params
        self._answer: Callable[[Outcome], None] | None = answer
        # Set when it goes out.
        self.client_id: int = 0
        self.sink: ReplySink | None = None
        """None: the client's standalone stream."""
        self.on_over: Callable[[Ask], None] | None = None
        """Told once it needs no answer any more."""

    def answer(self, outcome: Outcome) -> None:
        """Hand the client's answer to the backend. Only the first one counts.

        Raises: BackendBusy: the backend cannot take it now, and waits on.
        """
        if self._answer is not None:
            self._answer(outcome)
            self.withdraw()

    def decline(self, outcome: Outcome) -> None:
        """Answer it on nobody's behalf. Where the backend cannot take that now, it is lost, like
        anything that nobody waits for; the backend is not asked to wait on."""
        try:
            self.answer(outcome)
        except BackendBusy as error:
            self.answer(Outcome(failure=error.with_traceback(None)))

    @property
    def waits(self) -> bool:
        """Whether it was neither answered nor withdrawn."""
        return self._answer is not None

    def withdraw(self) -> None:
        """Forget it: it was answered, or the backend cancelled it or is gone. A late answer is
        dropped."""
        self._answer = None
        over, self.on_over = self.on_over, None
        if over is not None:
            over(self)


class ClientPort(Protocol):
    """What faces the client when a message belongs to none of its requests."""

    @property
    def listening(self) -> bool:
        """Whether the client has a stream open for such messages."""
        ...

    @property
    def left_at(self) -> float | None:
        """When the last such stream closed, on the event loop's clock in seconds.

        None while one is open, where none has ever been, and once the client was heard again.
        """
        ...

    def message(self, message: Outbound) -> None: ...

    def heard(self) -> None:
        """The client has sent something: it is there, though it may have no stream open."""
        ...

    def asleep(self) -> None:
        """Let go of what only resumption needs: the session has no backend for now."""
        ...

    @property
    def size(self) -> int:
        """Bytes it keeps in memory, about."""
        ...

    def close(self) -> None:
        """End its streams: the session is over."""
        ...


class Forwarded(NamedTuple):
    """What a hook is shown of a message that is being passed on."""

    to_backend: bool
    """Whether it goes to the backend; else it goes to the client."""
    kind: str
    """`request`, `notification`, `result` or `error`."""
    method: str
    """Of an answer: the method of the request that it answers."""
    body: Bytes | None
    """`params`, `result` or `error`, encoded."""
    exchange: Exchange | None
    """The client's request that it belongs to; None where it belongs to none."""

    @classmethod
    def answer(
        cls, *, to_backend: bool, method: str, outcome: Outcome, of: Exchange | None
    ) -> Self:
        if outcome.result is not None:
            return cls(to_backend, "result", method, outcome.result, of)
        return cls(to_backend, "error", method, outcome.error, of)


Hook = Callable[[Forwarded], None]
"""An observer: is called for every message that is passed on, in the context of the exchange it
belongs to.

It is a plain function, no coroutine function, and must not block. What it raises is logged and
changes nothing.
"""

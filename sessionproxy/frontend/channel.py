"""A client with one channel for everything, and the answers that go out on it.

Neighbours: `core.session` has a `Channel` for its client port and a `ChannelReply` for the sink of
an exchange; `frontend.handshake_channel` and `frontend.modern_channel` take what the client sends.
"""

from collections.abc import Callable

from .. import wire
from ..core.exchange import Exchange, Outbound, Outcome
from ..errors import ProxyError, RequestCancelled, SessionEnded
from . import problems
from .loss import Telling, telling_too
from .notes import Note, noted
from .outbox import Outbox


class Channel:
    """What faces the client. A `ClientPort`."""

    __slots__ = ("on_over", "outbox")

    left_at: float | None = None
    """It is there as long as its channel is."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox: Outbox = outbox
        self.on_over: Callable[[], None] = lambda: None
        """Called when the session is over."""

    @property
    def listening(self) -> bool:
        return not self.outbox.ended

    def message(self, message: Outbound) -> None:
        if message.ask is not None and self.outbox.ended:
            message.ask.decline(Outcome(failure=SessionEnded("The client has gone.")))
        else:
            self.outbox.put(message)

    def refuse(self, request_id: bytes, error: ProxyError, *, expose_stderr: bool = False) -> None:
        """Answer a request that got no further."""
        problem = problems.modern_problem(error, request_id, expose_stderr=expose_stderr)
        self.outbox.answer(problem.body)

    def heard(self) -> None: ...

    def asleep(self) -> None: ...

    @property
    def size(self) -> int:
        return self.outbox.size

    def close(self) -> None:
        self.on_over()


class ChannelReply:
    """The answer to one request, or to a batch of them. A `ReplySink`.

    A request that its client has cancelled gets none (2025-11-25 basic/utilities/cancellation,
    2026-07-28 basic/transports/stdio#cancellation).
    """

    __slots__ = (
        "_answers",
        "_batch",
        "_channel",
        "_declares",
        "_expose_stderr",
        "_note",
        "_open",
        "on_over",
        "telling",
    )

    def __init__(
        self,
        channel: Channel,
        *,
        expose_stderr: bool,
        requests: int = 1,
        batch: bool = False,
        note: Note | None = None,
        declares: Callable[[str], bool] = lambda method: True,
    ) -> None:
        """`note`: what its result is to say of its session. `declares`: whether its client said
        that it can be asked a method, where others that say otherwise share its session."""
        self._channel = channel
        self._declares = declares
        self._expose_stderr = expose_stderr
        self._open = requests
        self._batch = batch
        self._note = note
        self._answers: list[bytes] = []
        self.telling: Telling | None = None
        """A loss of state that it tells of."""
        self.on_over: Callable[[], None] = lambda: None
        """Called once nothing more is to come."""

    @property
    def attached(self) -> bool:
        return self._channel.listening

    def takes(self, method: str) -> int:
        if not self._declares(method):
            return 0
        return 2 if self.attached else 1

    def message(self, message: Outbound) -> None:
        self._channel.message(message)

    def settled(self, exchange: Exchange) -> None:
        outcome = exchange.outcome or Outcome()
        if not isinstance(outcome.failure, RequestCancelled):
            if self.telling is not None:
                outcome = self.telling.noted(exchange, outcome)
            if outcome.failure is not None:
                self.telling = telling_too(self.telling, outcome.failure)
            self._answers.append(self._encoded(exchange, outcome))
        self._open -= 1
        if not self._open:
            self._write()
            self.on_over()

    def _encoded(self, exchange: Exchange, outcome: Outcome) -> bytes:
        expose = self._expose_stderr
        if self._note is not None and outcome.result is not None:
            tool = exchange.treatment.tool
            outcome = Outcome(result=noted(outcome.result, self._note, tool=tool))
        if exchange.envelope is not None:
            return problems.modern_answer(exchange, outcome, expose_stderr=expose)[0]
        return problems.rpc_answer(exchange, outcome, expose_stderr=expose)

    def _write(self) -> None:
        answers, self._answers = self._answers, []
        if answers:
            whole = wire.encode_batch(answers) if self._batch else answers[0]
            telling = self.telling
            self._channel.outbox.answer(whole, None if telling is None else telling.written)

    def fail(self, exchange: Exchange, error: ProxyError) -> None:
        """Answer a request that never got to a backend."""
        exchange.settle(Outcome(failure=error))

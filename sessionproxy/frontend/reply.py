"""What one POST is answered with: JSON, or a stream if anything comes before the answer.

Which of the two is decided as late as possible. Neighbours: `core` settles the exchanges whose
sink this is; `frontend.handshake` and `frontend.modern` wait for it and
write.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from .. import wire
from ..core.exchange import Exchange, Outbound, Outcome
from ..errors import ProxyError
from . import problems
from .loss import Telling, telling_too
from .notes import Note, noted
from .stream import EventStream, Replies, Unkept


class Reply:
    """The answer to a POST with one request, or a batch of them. A `ReplySink`."""

    __slots__ = (
        "_answers",
        "_batch",
        "_decided",
        "_declares",
        "_expose_stderr",
        "_loop",
        "_lost",
        "_open",
        "_streams",
        "problem",
        "status",
        "stream",
        "telling",
    )  # fmt: skip

    def __init__(
        self,
        streams: Replies,
        *,
        expose_stderr: bool,
        requests: int = 1,
        batch: bool = False,
        declares: Callable[[str], bool] = lambda method: True,
    ) -> None:
        """`declares`: whether its client said that it can be asked a method, where others that say
        otherwise share its session."""
        self._streams = streams
        self._declares = declares
        self._expose_stderr = expose_stderr
        self._loop = asyncio.get_running_loop()
        self._open = requests
        self._batch = batch
        self._answers: list[bytes] = []
        self._lost = False
        self._decided: Callable[[], None] | None = None
        self.stream: EventStream | None = None
        """Where it goes on, once it is decided to be a stream."""
        self.problem: ProxyError | None = None
        """What is answered by HTTP status instead."""
        self.telling: Telling | None = None
        """A loss of state that it tells of."""
        self.status: int = 200
        """Of a JSON answer."""

    @property
    def attached(self) -> bool:
        return not self._lost if self.stream is None else self.stream.attached

    def takes(self, method: str) -> int:
        if not self._declares(method):
            return 0
        return 2 if self.attached else 1

    # -- what comes --------------------------------------------------------------------------------

    def message(self, message: Outbound) -> None:
        stream = self.commit()
        if stream is not None:
            stream.put(message)

    def settled(self, exchange: Exchange) -> None:
        outcome = exchange.outcome or Outcome()
        if self.telling is not None:
            outcome = self.telling.noted(exchange, outcome)
        if outcome.failure is not None:
            self.telling = telling_too(self.telling, outcome.failure)
        self._answered(self._encoded(exchange, outcome))

    def _encoded(self, exchange: Exchange, outcome: Outcome) -> bytes:
        return problems.rpc_answer(exchange, outcome, expose_stderr=self._expose_stderr)

    def fail(self, exchange: Exchange, error: ProxyError) -> None:
        """Answer a request that never got to a backend."""
        if self.stream is None and not problems.in_band(error) and not self._batch:
            self.problem = error
            self._wake()
        else:
            exchange.settle(Outcome(failure=error))

    def _answered(self, answer: bytes) -> None:
        self._open -= 1
        if self.stream is None:
            self._answers.append(answer)
            if not self._open:
                self._wake()
        elif self._open:
            self.stream.put(Outbound(answer))
        else:
            self.stream.end(Outbound(answer))
            self._streams.ended(self.stream)

    def lost(self) -> None:
        """The client hung up before it read anything: nobody reads this, unless it resumes."""
        self._lost = True
        if self.stream is not None:
            self.stream.lost(self._loop.time())

    def commit(self) -> EventStream | None:
        """Decide for a stream, if nothing is decided; the answer can no more be JSON.

        None: everything is answered already, in JSON, and whatever comes now comes too late.
        """
        if self.stream is None and self._open:
            self.stream = self._streams.open_reply(expected=not self._lost)
            for answer in self._answers:
                self.stream.put(Outbound(answer))
            self._wake()
        return self.stream

    # -- what is written ---------------------------------------------------------------------------

    def when_decided(self, call: Callable[[], None]) -> None:
        """Call `call` once it is known what this is to be, or at once if it is known."""
        self._decided = call
        if not self._open or self.stream is not None or self.problem is not None:
            self._wake()

    def _wake(self) -> None:
        call, self._decided = self._decided, None
        if call is not None:
            call()

    @property
    def body(self) -> bytes | None:
        """The body of a JSON answer; None where it is a stream, a problem, or nothing yet."""
        if self._open or self.stream is not None or self.problem is not None:
            return None
        return wire.encode_batch(self._answers) if self._batch else self._answers[0]

    async def decided(self, keepalive: float) -> bytes | None:
        """Wait until it is known what this is to be; return the body if it is JSON.

        After `keepalive` seconds without an answer it becomes a stream, so that the client sees
        signs of life.
        """
        known: asyncio.Future[None] = self._loop.create_future()
        self.when_decided(lambda: None if known.done() else known.set_result(None))
        if not known.done():
            timer = self._loop.call_later(keepalive, self.commit)
            try:
                await known
            finally:
                timer.cancel()
        return self.body

    def release(self) -> None:
        """Wake whoever waits although nothing came: the client is gone."""
        self._wake()


_UNKEPT: Final = Unkept()


class ModernReply(Reply):
    """The answer to a request of the modern era, whose errors have HTTP statuses."""

    __slots__ = ("_cancel", "_note", "said")

    def __init__(self, *, expose_stderr: bool, note: Note | None = None) -> None:
        """`note`: what its result is to say of its session."""
        super().__init__(_UNKEPT, expose_stderr=expose_stderr)
        self._note = note
        self.said: bool = False
        """The note is on a result; an error has no place for it."""
        self._cancel: Callable[[], None] | None = None

    def when_lost(self, cancel: Callable[[], None]) -> None:
        """Call `cancel` if the client hangs up before it has its answer."""
        self._cancel = cancel

    def settled(self, exchange: Exchange) -> None:
        self._cancel = None  # which knows the exchange: a cycle
        super().settled(exchange)

    def lost(self) -> None:
        super().lost()
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def _encoded(self, exchange: Exchange, outcome: Outcome) -> bytes:
        if outcome.result is not None:
            result = outcome.result
            if self._note is not None:
                self.said = True
                result = noted(result, self._note, tool=exchange.treatment.tool)
            return wire.encode_result(exchange.client_id, result)
        answer, status = problems.modern_answer(
            exchange, outcome, expose_stderr=self._expose_stderr
        )
        self.status: int = status
        return answer

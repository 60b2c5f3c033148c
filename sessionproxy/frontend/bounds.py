"""What a connection may cost before it has asked for anything, in our own server alone.

Heads and bodies that do not end, heads without measure, and connections without number cost a
client next to nothing and the proxy descriptors and memory. A whole request in one read meets none
of this: what is unfinished is put on a list, which is looked at once a second. Time is counted in
these looks, so that a pause of the process makes nobody late.

It stands on uvicorn's protocol class. Neighbours: `frontend.fastlane` is built on it; `serve` works
out how many connections there may be. An application that embeds the proxy is served by a server
of its own, with that one's bounds.
"""

import asyncio
import enum
import logging
from collections import Counter
from dataclasses import dataclass
from math import ceil, inf
from typing import ClassVar, Final, Protocol, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from .. import descriptors
from ..core.admission import retry_after
from ..errors import BodyTimeout, HeadTimeout, HeadTooLarge, ProxyError, TooManyConnections
from . import problems

logger: Final = logging.getLogger(__name__)

REFUSALS_AT_ONCE: Final = 32
"""Connections above the limit that are told why; any more are closed unheard."""

FILES_PER_BACKEND: Final = 6
FILES_OF_OUR_OWN: Final = 32
"""Descriptors: pipes and a pidfd, and some while it starts; the log, the state, looks at /proc."""

TOLD_AGAIN: Final = 60.0
"""Seconds before the log says again that there are too many connections."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """Durations are seconds, sizes bytes."""

    head: float = 10.0
    """For a head to arrive, from its first byte on; the first one of a connection has to begin
    within it, too, and so has one behind blank lines, or behind what was answered early."""
    body: float = 30.0
    """For a body to arrive, from the end of its head on, or from when it is read on."""
    head_size: int = 64 * 1024
    """Of a whole head. One that does not end is noticed within two reads after so many."""
    ahead: int = 64 * 1024
    """Of what a client sends before it has its answer. Behind that it is not read any more, so that
    its hanging up is noticed only by the next write."""
    linger: float = 2.0
    """For which a refused client is listened to, so that it can read why before it is cut off."""
    look: float = 1.0
    """Between two looks at what is unfinished: every deadline is met up to two of them late."""


class Owing(Protocol):
    """A connection with something unfinished."""

    def overdue(self) -> None: ...


class Patience:
    """Which connections have something unfinished, and until when. One for all of a server."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._looks = 0
        self._timer_runs = False
        self._until: dict[Owing, int] = {}
        """The look at which each is overdue."""

    @property
    def waiting(self) -> int:
        return len(self._until)

    def expect(self, connection: Owing, seconds: float) -> None:
        """Call `connection.overdue` unless `forget` is called within so many seconds."""
        self._until[connection] = self._looks + 1 + ceil(seconds / self._bounds.look)
        self._look_later()

    def forget(self, connection: Owing) -> None:
        self._until.pop(connection, None)

    def _look_later(self) -> None:
        if not self._timer_runs:
            self._timer_runs = True
            asyncio.get_running_loop().call_later(self._bounds.look, self._look)

    def _look(self) -> None:
        self._timer_runs = False
        self._looks += 1
        for connection in [c for c, until in self._until.items() if until <= self._looks]:
            del self._until[connection]
            try:
                connection.overdue()
            except Exception:  # a fault with one connection must not keep the others alive
                logger.exception("a connection could not be closed")
        if self._until:
            self._look_later()


class Crowd:
    """How many connections there may be, and what is counted and told of those refused."""

    def __init__(self, limit: int | None, tally: Counter[str]) -> None:
        """`limit`: None for no limit."""
        self.limit = limit
        self.tally = tally
        self._told_at = -TOLD_AGAIN

    def over(self, count: int, newest: asyncio.Transport) -> float:
        """Return how many connections of `count` there are too many, the newest among them."""
        sock = newest.get_extra_info("socket")
        if sock is not None and descriptors.is_reserved(sock.fileno()):
            return inf
        return 0 if self.limit is None else max(0, count - self.limit)

    def refused(self, now: float) -> None:
        self.tally["connections"] += 1
        if now - self._told_at >= TOLD_AGAIN:
            self._told_at = now
            logger.warning("too many connections; the newest are refused")


def connections_beside(backends: int, *, open_files: int) -> int:
    """Return how many connections leave descriptors for so many backends.

    A quarter of all is left to them even where that is too little for the backends: those that find
    none are refused, and say so.
    """
    ours = FILES_OF_OUR_OWN + REFUSALS_AT_ONCE + descriptors.RESERVE
    return max(open_files - ours - backends * FILES_PER_BACKEND, open_files // 4)


class Phase(enum.IntEnum):
    """How far the request is that is being received."""

    NONE = 0
    HEAD = 1
    BODY = 2


class BoundedHttp(HttpToolsProtocol):
    """An HTTP connection that is refused when it costs too much."""

    bounds: ClassVar[Bounds] = Bounds()
    patience: ClassVar[Patience]
    crowd: ClassVar[Crowd]

    # Of the request that is being received, and of the connection: set before `connection_made`.
    _phase: Phase = Phase.NONE
    _owed: Phase | None = None
    """What `patience` waits for the end of, HEAD where none has begun, too; None: not for what has
    begun or ended since, or is not read any further."""
    _fed: int = 0
    """Bytes since, and with, the read in which the head began."""
    _first: int = 0
    """Bytes of that read."""
    _chunk: int = 0
    """Bytes of the read that is being parsed."""
    _crowded: bool = False
    _refused: bool = False
    _ahead: int = 0
    """Bytes since there were requests that wait for the answer to another."""
    _answered: RequestResponseCycle | None = None
    """The one that is being answered, or was last."""

    # -- what arrives ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # as uvicorn has it
        super().connection_made(transport)
        over = self.crowd.over(len(self.connections), transport)
        if over:
            self.crowd.refused(self.loop.time())
            if over > REFUSALS_AT_ONCE:
                self._refused = True
                transport.abort()
                return
            self._crowded = True
        self._owed = Phase.HEAD
        self.patience.expect(self, self.bounds.linger if self._crowded else self.bounds.head)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return  # until it has read why
        if self._crowded:
            self.refuse(TooManyConnections("too many connections", retry_after=retry_after()))
            return
        self._chunk = len(data)
        self._fed += self._chunk
        super().data_received(data)
        self._expect()
        self._read_on(len(data))

    def _expect(self) -> None:
        """See to it that what has begun will end."""
        if self._refused:
            return
        if self._phase is Phase.HEAD and self._fed - self._first > self.bounds.head_size:
            self.refuse(HeadTooLarge(f"the head has more than {self.bounds.head_size} bytes"))
        elif self._phase is not Phase.NONE:
            if self._phase is not self._owed:
                self._wait_for(self._phase)
        elif self._answering():
            if self._owed is not Phase.NONE:
                self._owed = Phase.NONE
                self.patience.forget(self)
        elif self._owed is not Phase.HEAD:
            # Idle, but what came has stopped uvicorn's timer: blank lines, of which the parser does
            # not tell, or the rest of a request that was answered early.
            self._wait_for(Phase.HEAD)

    def _wait_for(self, phase: Phase) -> None:
        self._owed = phase
        self.patience.expect(self, self.bounds.head if phase is Phase.HEAD else self.bounds.body)

    def _answering(self) -> bool:
        """Return whether a request that was parsed is not answered yet."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        return bool(self.pipeline) or (cycle is not None and not cycle.response_complete)

    def _read_on(self, size: int) -> None:
        """Read behind requests that wait, which uvicorn does not: else nobody sees a hang-up.

        What is not read any further until another request is answered is nobody's fault.
        """
        if not self.pipeline:
            self._ahead = 0
            return
        self._ahead += size
        if self._ahead <= self.bounds.ahead and len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()
        elif self._phase and self.flow.read_paused:
            self._owed = None
            self.patience.forget(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # reads on
        if self._phase:
            self._expect()

    def on_message_begin(self) -> None:
        self._phase = Phase.HEAD
        self._owed = None
        self._fed = self._first = self._chunk
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._fed > self.bounds.head_size:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.bounds.head_size:
                # Raised out of the parser, which must not go on; `send_400_response` catches it.
                raise HeadTooLarge(f"the head has more than {self.bounds.head_size} bytes")
        self._phase = Phase.BODY
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._phase = Phase.NONE
        self._owed = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._phase is Phase.HEAD and self._fed > self.bounds.head_size:
            self.refuse(HeadTooLarge(f"the head has more than {self.bounds.head_size} bytes"))
        else:
            super().send_400_response(msg)

    # -- refusing ----------------------------------------------------------------------------------

    def overdue(self) -> None:
        """Called by `patience`: what it was to wait for has not come."""
        if self._refused or self._crowded:
            self.transport.abort()
        elif self._phase is Phase.HEAD:
            self.refuse(HeadTimeout(f"the head did not arrive in {self.bounds.head:g} s"))
        elif self._phase is Phase.BODY:
            self.refuse(BodyTimeout(f"the body did not arrive in {self.bounds.body:g} s"))
        else:  # no request has begun
            self.transport.close()

    def refuse(self, error: ProxyError) -> None:
        """Answer what will not be read any further, and close once the client can have seen it."""
        logger.info("refused: %s (%s)", error.reason, error)
        self.crowd.tally[error.reason] += 1
        silent = self._has_no_room()
        self._refused = True
        self._hang_up()
        if silent:  # in the middle of another answer, or after it: there is no room for this one
            self.transport.close()
            return
        self.transport.write(self._encoded(problems.http_problem(error)))
        if self.transport.can_write_eof():  # TLS has no half-closed connections
            self.transport.write_eof()
        self._unset_keepalive_if_required()
        self.patience.expect(self, self.bounds.linger)

    def _has_no_room(self) -> bool:
        """Return whether an answer is due or on its way that would have to come first."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        if self.pipeline:
            return True
        if cycle is None or cycle.response_complete:
            return self._phase is Phase.BODY  # of a request that was answered early
        return cycle.response_started or self._phase is not Phase.BODY

    def _hang_up(self) -> None:
        """Tell the application that nobody reads its answers; uvicorn tells the newest alone."""
        newest = cast("RequestResponseCycle | None", self.cycle)
        for cycle in (self._answered, newest, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _encoded(self, problem: problems.HttpProblem) -> bytes:
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(problem.body)),
            *(pair for pair in problem.headers if pair[0] != b"connection"),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        return b"%b%b\r\n%b" % (STATUS_LINE[problem.status], lines, problem.body)

    # -- the end -----------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        self.patience.forget(self)
        self._hang_up()
        super().connection_lost(exc)

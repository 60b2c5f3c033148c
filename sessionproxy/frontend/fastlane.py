"""The short way for the request that is nearly every request, in our own server alone.

A client sends the same head with every call, but for the length. So the first request with a head
takes the ordinary way through ASGI, where everything about it is checked, and is vouched for; the
next ones with the same head go straight to the endpoint, and a JSON answer straight to the socket:
no task, no second parse, one write. Whatever is not that simple takes the ordinary way.
`docs/decisions.md` has the figures.

It stands on `frontend.bounds`, and so on uvicorn's protocol class, whose parser, flow control and
shutdown it keeps. Neighbours: `serve` installs it; `frontend.handshake` and `frontend.modern` do
the work.
"""

import asyncio
import re
from collections import Counter
from typing import Any, ClassVar, Final, NamedTuple
from weakref import ref

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from ..core.session import Session
from ..errors import BodyTimeout
from ..http import Credential
from ..http.request import Receive, Scope, Send
from .bounds import BoundedHttp, Crowd, Patience
from .connection import Connection
from .reply import Reply
from .shortcut import VOUCH, Shortcut

MAX_HEADS: Final = 4096
"""Heads that are remembered, some hundred bytes each; the oldest goes first."""

MAX_HEAD: Final = 4096
"""Bytes of a head that is remembered."""

MAX_PLACES: Final = 4
"""Places of the length that are remembered for a connection: each costs a look."""

MAX_JOINED: Final = 65536
"""Bytes of an answer that are copied to be written together with its head."""

_LENGTH: Final = re.compile(rb"\r\ncontent-length: ?(\d{1,9})\r\n", re.IGNORECASE)
_SPECIAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"origin"})
"""Headers that make a request too special, whatever they say."""


class Head(NamedTuple):
    """A head that was vouched for, without the digits of its length."""

    digits_at: int
    session: "ref[Session]"
    """Weak: a session that is over must not be kept for its heads."""
    credential: Credential
    """What the head was let in with: once that is revoked, the head is worth nothing."""
    shortcut: Shortcut
    """Takes the bodies."""


class Heads:
    """The heads that were vouched for, of all connections of one server."""

    def __init__(
        self,
        *,
        keepalive: float,
        max_body: int,
        max_connections: int | None = None,
        tally: Counter[str] | None = None,
    ) -> None:
        """`keepalive`: seconds after which a reply that is still open becomes a stream.

        `max_body`: bytes. `max_connections`: None for no limit; those refused are counted in
        `tally`.
        """
        self.crowd: Crowd = Crowd(max_connections, Counter() if tally is None else tally)
        self.max_body = max_body
        self.keepalive = keepalive
        self._heads: dict[bytes, Head] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def add(
        self, key: bytes, at: int, session: Session, credential: Credential, shortcut: Shortcut
    ) -> None:
        """Remember a head for as long as its session exists. `at`: where its length stands."""
        if len(self._heads) >= MAX_HEADS:
            del self._heads[next(iter(self._heads))]

        def forget(over: "ref[Session]") -> None:
            head = self._heads.get(key)
            if head is not None and head.session is over:
                del self._heads[key]

        self._heads[key] = Head(at, ref(session, forget), credential, shortcut)

    def get(self, key: bytes) -> Head | None:
        return self._heads.get(key)


class FastLane(BoundedHttp):
    """An HTTP connection of our own server. `with_heads` makes the class to serve with."""

    _heads: ClassVar[Heads]

    @classmethod
    def with_heads(cls, heads: Heads) -> type["FastLane"]:
        """Return the class whose connections share `heads`."""
        shared = {"_heads": heads, "crowd": heads.crowd, "patience": Patience(cls.bounds)}
        return type(cls.__name__, (cls,), shared)

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Of the request that takes the ordinary way.
        self._data = b""
        self._digits_at: tuple[int, ...] = ()
        """Where the digits of the length are in this client's heads, the newest first. Those of the
        modern era differ by the tool that is called."""
        # Of the request that takes the short way.
        self._reply: Reply | None = None
        self._session: Session | None = None
        self._credential: Credential | None = None
        self._shortcut: Shortcut | None = None
        self._parts: list[bytes] = []
        self._awaited = 0
        """Bytes of its body that are still to come; `_parts` has its head and what there is.

        `patience` waits for them.
        """
        self._since = 0.0
        self._timer_runs = False
        self._held = b""
        self._last = False
        """The connection closes after the answer."""
        self._prefix_of: object = None
        self._prefix = b""

    # -- in ----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._reply is not None:  # the client did not wait for its answer
            self._held += data
            if len(self._held) > self.bounds.ahead:
                self.flow.pause_reading()
        elif self._awaited:
            self._parts.append(data)
            self._awaited -= len(data)
            if self._awaited <= 0:
                self._arrived()
        elif not self._take(data):
            self._take_slowly(data)

    def _take_slowly(self, data: bytes) -> None:
        # Only what begins with a head can be vouched for, not the tail of a body before it.
        self._data = b"" if self._phase else data
        super().data_received(data)
        self._data = b""

    def _arrived(self) -> None:
        """The rest of a body is there."""
        self.patience.forget(self)
        parts, self._parts = self._parts, []
        awaited, self._awaited = self._awaited, 0
        body = b"".join(parts[1:])
        session = self._session
        if awaited or session is None or self._revoked or not self._begin(session, body):
            self._take_slowly(parts[0] + body)

    @property
    def _revoked(self) -> bool:
        return self._credential is not None and self._credential.revoked

    def _take(self, data: bytes) -> bool:
        """Begin with `data` if it is one request with a head that was vouched for, so far."""
        places = self._digits_at
        if not places or self._phase or self._owed or self._refused:  # or `patience` would wait on
            return False
        if self.flow.write_paused or self._answering():
            return False
        head, digits, end = None, b"", 0
        for at in places:
            end_of_digits = data.find(b"\r\n", at, at + 12)
            digits = data[at:end_of_digits]
            end = data.find(b"\r\n\r\n", end_of_digits - 2) + 4
            if end_of_digits < 0 or end < 4 or not digits.isdigit():
                continue
            head = self._heads.get(data[:at] + data[end_of_digits:end])
            if head is not None and head.digits_at == at:
                break
        else:
            return False
        session = head.session()
        if session is None or head.credential.revoked:
            return False
        length = int(digits)
        missing = end + length - len(data)
        if missing < 0 or length > self._heads.max_body:
            return False
        self._credential = head.credential
        self._shortcut = head.shortcut
        if missing == 0:
            return self._begin(session, data[end:])
        self._session = session
        self._parts, self._awaited = [data[:end], data[end:]], missing
        self.patience.expect(self, self.bounds.body)
        return True

    def _begin(self, session: Session, body: bytes) -> bool:
        reply = None if self._shortcut is None else self._shortcut.begin_fast(session, body)
        if reply is None:
            return False
        self._session, self._reply = session, reply
        if self._credential is not None:
            self._credential.watch(reply.lost)
        self._arm()
        reply.when_decided(self._decided)
        return True

    def _arm(self) -> None:
        """Have `_tick` called `keepalive` seconds from now, by one timer for all requests."""
        self._since = self.loop.time()
        if not self._timer_runs:
            self._timer_runs = True
            self.loop.call_at(self._since + self._heads.keepalive, self._tick)

    def _tick(self) -> None:
        """Make the reply a stream when it has been open for long."""
        self._timer_runs = False
        if self._reply is None:
            return
        due = self._since + self._heads.keepalive
        if self.loop.time() < due:
            self._timer_runs = True
            self.loop.call_at(due, self._tick)
        else:
            self._reply.commit()

    def overdue(self) -> None:
        if self._awaited:
            self._parts, self._awaited = [], 0
            self.refuse(BodyTimeout(f"the body did not arrive in {self.bounds.body:g} s"))
        else:
            super().overdue()

    # -- out ---------------------------------------------------------------------------------------

    def _decided(self) -> None:
        reply, self._reply = self._reply, None
        if reply is None:
            return
        if self._credential is not None:
            self._credential.forget(reply.lost)
        if self.transport.is_closing():  # `connection_lost` does not find the reply any more
            reply.lost()
            return
        body = reply.body
        if body is None or reply.status != 200 or self._revoked or reply.telling is not None:
            self._go_on(reply)
            return
        self._session = None
        self._write(body)
        self.server_state.total_requests += 1
        if self._last:
            self.transport.close()
        self._release()

    def _release(self) -> None:
        """Go on with what the client sent before it had its answer, ahead of anything newer."""
        if self._held:
            held, self._held = self._held, b""
            self.data_received(held)
            if not self._held:
                self.flow.resume_reading()

    def _write(self, body: bytes) -> None:
        if self._prefix_of is not self.server_state.default_headers:
            self._prefix_of = self.server_state.default_headers
            lines = [b"%b: %b\r\n" % pair for pair in self.server_state.default_headers]
            self._prefix = b"HTTP/1.1 200 OK\r\n%bcontent-type: application/json\r\n" % b"".join(
                lines
            )
        if len(body) <= MAX_JOINED:
            self.transport.write(
                b"%bcontent-length: %d\r\n\r\n%b" % (self._prefix, len(body), body)
            )
        else:
            self.transport.write(b"%bcontent-length: %d\r\n\r\n" % (self._prefix, len(body)))
            self.transport.write(body)

    def _go_on(self, reply: Reply) -> None:
        """Answer with a stream of events, which needs a task, as the ordinary way has one.

        Or refuse it: what the request was let in with was revoked meanwhile.
        """
        shortcut, session, credential = self._shortcut, self._session, self._credential
        assert shortcut is not None
        self._session = None

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            connection = Connection(receive, send)
            if credential is not None:
                connection.admit(credential)
            await shortcut.answer_late(reply, session, connection)

        self.cycle: RequestResponseCycle = RequestResponseCycle(
            scope={"type": "http", "method": "POST"},  # type: ignore[arg-type] # all that is read
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=not self._last,
            on_response=self.on_response_complete,
        )
        self.cycle.more_body = False
        self._start_asgi_task(self.cycle, app)  # type: ignore[arg-type]
        if self._held:  # before anything newer: uvicorn queues what follows an open answer
            held, self._held = self._held, b""
            self._take_slowly(held)

    # -- the ordinary way --------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        data, names = self._data, [name for name, _ in self.headers]
        if (
            not _SPECIAL.intersection(names)
            and names.count(b"content-length") == 1
            and self.parser is not None
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        ):

            def vouch(session: Session, credential: Credential, shortcut: Shortcut) -> None:
                self._vouch(data, session, credential, shortcut)

            self.scope["extensions"] = {VOUCH: vouch}  # type: ignore[typeddict-item] # as ASGI says
        super().on_headers_complete()

    def _vouch(
        self, data: bytes, session: Session, credential: Credential, shortcut: Shortcut
    ) -> None:
        """Remember the head of `data`: requests that begin with it belong to `session`."""
        end = data.find(b"\r\n\r\n") + 4
        found = _LENGTH.search(data, 0, end)
        if not 4 <= end <= MAX_HEAD or found is None or data.find(b"\r\n\r\n", end) >= 0:
            return  # it came in pieces, or with another one
        at, digits_end = found.span(1)
        self._digits_at = (at, *(place for place in self._digits_at if place != at))[:MAX_PLACES]
        self._heads.add(data[:at] + data[digits_end:end], at, session, credential, shortcut)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._release()

    # -- the end -----------------------------------------------------------------------------------

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was not used; requests of the short way do not stop the timer."""
        left = self._since + self.timeout_keep_alive - self.loop.time()
        if self._reply is not None or self._awaited or self._answering() or left > 0:
            pause = max(left, 1.0)
            self.timeout_keep_alive_task: asyncio.TimerHandle | None = self.loop.call_later(
                pause, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reply is not None:
            self._reply.lost()
        self._parts, self._awaited, self._held = [], 0, b""
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._reply is not None:
            self._last = True
        else:
            super().shutdown()

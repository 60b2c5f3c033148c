"""One session's connections to its upstream, and the tasks that use them.

A connection pool, cookies and tasks are one session's, so what an upstream does to one of them
reaches no other. Tasks run in the launcher's group, which outlives every session; here they are
counted, ended and waited for. Nothing that the library raises leaves this module.
Neighbours: `http` and `legacy` speak the protocol over it; `launcher` makes it; `raised` words
what went wrong.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import Context
from io import BytesIO
from typing import TYPE_CHECKING, Final

import aiohttp
import anyio
from aiohttp import StreamReader
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from ...core.background import Background
from ...core.exchange import Exchange
from ...core.latch import Latch
from ...errors import BackendBusy, BackendError
from ...wire import Kind
from .cookies import Cookies
from .raised import RAISED, of_answer, of_request
from .target import Headers, Target

if TYPE_CHECKING:
    from asyncio import Future  # noqa: TID251 - the library's

logger: Final = logging.getLogger(__name__)

POST_HEADERS: Final[Headers] = (
    ("accept", "application/json, text/event-stream"),
    ("content-type", "application/json"),
)
GET_HEADERS: Final[Headers] = (("accept", "text/event-stream"), ("cache-control", "no-store"))

MAX_UNSENT: Final = 32 * 1024 * 1024
MAX_UNSENT_MESSAGES: Final = 1024
MAX_UNSENT_REPLIES: Final = 4096
"""What may wait for an upstream that takes none of it, as with `backends.stdio`. Upstreams that
answer with JSON take a call only with its answer, so here as many may be on their way as a relay
has in flight. That leaves room for replies: an upstream whose ping has none ends the session."""

MAX_AT_ONCE: Final = 256 * 1024
"""Bytes of a message that are written in one go; more is copied by parts, as it is taken."""

CLOSE_GRACE: Final = 2.0
"""Seconds for a pool to close."""


class Letter:
    """One message on its way."""

    __slots__ = ("authorization", "exchange", "message", "waits")

    def __init__(
        self, message: bytes, exchange: Exchange | None, authorization: bytes | None
    ) -> None:
        """`exchange`: of a request. `authorization`: of the caller, where that goes along; empty:
        it has none."""
        self.message: bytes = message
        self.exchange: Exchange | None = exchange
        self.authorization: bytes | None = authorization
        self.waits: bool = False
        """The upstream has not taken it yet."""


class Web:
    """Made for one session by the launcher, among whose tasks are its own."""

    def __init__(self, target: Target, background: Background, label: str) -> None:
        self._target = target
        self._client = target.client()
        self._cookies = Cookies()
        self._open: dict[Future[None], StreamReader | None] = {}
        """By what tells that a connection is closed: what is being read from it."""
        self._background = background
        self._label = label
        self._scopes: set[anyio.CancelScope] = set()
        self._idle = Latch()
        self.closing: bool = False
        """No task is started any more."""
        self._unsent = 0
        self._unsent_bytes = 0

    # -- tasks -------------------------------------------------------------------------------------

    def start(
        self, work: Callable[[], Awaitable[None]], context: Context | None = None
    ) -> anyio.CancelScope:
        """Run `work` in a task, in a copy of `context`, or as no request's; return what cancels
        it."""
        scope = anyio.CancelScope()
        if not self.closing:
            self._scopes.add(scope)
            copied = None if context is None else context.copy()
            self._background.start(self._run, work, scope, context=copied)
        return scope

    async def _run(self, work: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await work()
        except Exception:  # a fault of ours in one task must not end those of all sessions
            logger.exception("session %s: a task failed", self._label)
        finally:
            self._scopes.discard(scope)
            if self.closing and not self._scopes:
                self._idle.set()

    def cancel(self) -> None:
        """Cancel every task, and start none any more."""
        self.closing = True
        for scope in tuple(self._scopes):
            scope.cancel()

    async def wait(self) -> None:
        """Return once no task is left of those that were cancelled."""
        if self._scopes:
            await self._idle.wait()

    async def close(self) -> None:
        """Close all connections. Bounded."""
        with anyio.move_on_after(CLOSE_GRACE, shield=True), suppress(*RAISED):
            await self._client.close()

    # -- bounds ------------------------------------------------------------------------------------

    def hold(self, letter: Letter, kind: Kind) -> None:
        """Count a message that is to be sent.

        Raises: BackendBusy: too much waits already.
        """
        large = self._unsent and self._unsent_bytes + len(letter.message) > MAX_UNSENT
        most = MAX_UNSENT_REPLIES if kind is Kind.RESPONSE else MAX_UNSENT_MESSAGES
        if large or self._unsent >= most:
            raise BackendBusy("The backend does not take its input; too much waits for it already.")
        letter.waits = True
        self._unsent += 1
        self._unsent_bytes += len(letter.message)

    def taken(self, letter: Letter) -> None:
        """The upstream has taken a message, or never will. Idempotent."""
        if letter.waits:
            letter.waits = False
            self._unsent -= 1
            self._unsent_bytes -= len(letter.message)

    # -- requests ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def request(
        self, method: str, url: URL, headers: Headers, content: bytes | None = None
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send a request, and yield the response, of which only the head was read.

        Raises:
            BackendUnreachable: nothing of it has left.
            BackendFailed: the connection broke; nobody knows how much of it has arrived.
        """
        found: aiohttp.ClientResponse | BackendError
        try:
            found = await self._client.request(
                method,
                url,
                headers=[*self._headers(url), *headers],
                data=content if content is None or len(content) <= MAX_AT_ONCE else _Parts(content),
                allow_redirects=False,
                proxy_headers=self._target.proxy_headers,
            )
        except RAISED as error:
            found = of_request(error)
        if isinstance(found, BackendError):
            raise found
        response = found
        closed = self._watch(response)
        try:
            if "set-cookie" in response.headers and not self._target.sets_cookies:
                self._cookies.learn(url, response.headers.getall("set-cookie"))
            yield response
        finally:
            if closed in self._open:
                self._open[closed] = None
            response.release()  # where it was not read to its end, the connection is closed

    def _headers(self, url: URL) -> Headers:
        cookie = self._cookies.of(url)
        own = self._target.headers
        return own if cookie is None else (*own, ("cookie", cookie))

    def _watch(self, response: aiohttp.ClientResponse) -> "Future[None] | None":
        """Have whoever reads a response hear that its connection is closed. Of what is no HTTP in
        the middle of it the library tells its own reader alone."""
        connection = response.connection
        protocol = None if connection is None else connection.protocol
        closed = None if protocol is None else protocol.closed
        if closed is not None:
            if closed not in self._open:
                closed.add_done_callback(self._closed)
            self._open[closed] = response.content
        return closed

    def _closed(self, closed: "Future[None]") -> None:
        content = self._open.pop(closed, None)
        if not closed.cancelled():
            closed.exception()  # the event loop tells of those that nobody looks at
        if content is not None and not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError())


class _Parts(aiohttp.BytesIOPayload):
    """A large message, written in parts: others have their turn between. What is left of one that
    is given up the system does not write, either."""

    def __init__(self, content: bytes) -> None:
        super().__init__(BytesIO(content))

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        transport = writer.transport
        try:
            await super().write_with_length(writer, content_length)
        except BaseException:
            if transport is not None:
                transport.abort()
            raise


def as_header(authorization: bytes) -> tuple[str, str]:
    """Return the header that a caller's credential goes along in."""
    return "authorization", authorization.decode(errors="replace")


def succeeded(response: aiohttp.ClientResponse) -> bool:
    """Return whether the status is one of success."""
    return 200 <= response.status < 300


async def chunks(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """Yield what comes, as it was sent.

    Raises: BackendFailed: the connection broke before the end.
    """
    content, failure = response.content, None
    while failure is None:
        try:
            part = await content.readany()
        except RAISED as error:
            failure = of_answer(error)
        else:
            if not part:
                return
            yield part
    # What has come, but was not asked for before the connection broke, the library keeps back.
    while part := content._read_nowait(-1):  # pyright: ignore[reportPrivateUsage]
        yield part
    raise failure


async def whole(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """Return the body; None where it is longer than `limit` bytes.

    Raises: BackendFailed: as `chunks`.
    """
    parts: list[bytes] = []
    size = 0
    async with aclosing(chunks(response)) as incoming:
        async for part in incoming:
            parts.append(part)
            size += len(part)
            if size > limit:
                return None
    return b"".join(parts)


def media_type(response: aiohttp.ClientResponse) -> str:
    """Return what a response is of; what is encoded is of nothing that we read."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return f"{response.headers['content-encoding']}-encoded"
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()

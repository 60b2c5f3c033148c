"""A backend behind streamable HTTP: every message a POST of its own, both eras.

What comes on the response of a POST belongs to the request that was posted, so attribution is
exact. In the handshake era the upstream gives us a session, and a GET stream is held open; in the
modern one a request carries its own headers, and is cancelled by closing its stream. One task for
every POST, all of them the session's own. Neighbours: `core.relay` sends and receives; `launcher`
makes and closes it; `session`, `incoming`, `mirror` and `refusal` each know one part of it.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

import anyio
import anyio.lowlevel
from yarl import URL

from ... import wire
from ...core.exchange import Exchange, Outcome
from ...core.relay import Relay
from ...errors import BackendError, BackendFailed, BackendRefused, BackendUnreachable, Exit
from ...wire import Bytes, Kind
from ...wire.envelope import with_envelope
from .incoming import Incoming
from .mirror import Schemas, is_modern, mirrored, name_of
from .refusal import HEADER_MISMATCH, Refusal, refusal_of
from .session import UpstreamSession
from .sse import EventReader
from .web import POST_HEADERS, Letter, Web, as_header, succeeded

logger: Final = logging.getLogger(__name__)

NOTE_TIMEOUT: Final = 30.0
"""Seconds for a notification to be taken: what follows waits for it, so that order is kept."""

DELETE_TIMEOUT: Final = 5.0
DELETE_IN_HURRY: Final = 0.5
"""Seconds for the upstream to hear that its session is over."""

MAX_PAGES: Final = 20
"""Pages of `tools/list` that are looked through for the tool that a call is for."""

INITIALIZED: Final = wire.encode_notification("notifications/initialized", None)[:-1]

Otherwise = Callable[[bytes, Exchange], Awaitable[bool]]


class StreamableHttp:
    """A `Transport`. `attach` it to its relay before anything is sent."""

    def __init__(
        self,
        web: Web,
        url: URL,
        label: str,
        *,
        max_line: int,
        forwards: bool = False,
        schemas: Mapping[str, bytes] | None = None,
        otherwise: Otherwise | None = None,
        proven: Callable[[], None] = lambda: None,
    ) -> None:
        """`max_line`: bytes of one message. `forwards`: the callers' credentials go along.
        `schemas`: of tools that ask for headers, as far as known. `otherwise`: offered an
        `initialize` that was refused as a server of another transport may refuse it; says whether
        it has taken it over. `proven` is told that the server speaks this one."""
        self._web = web
        self._label = label
        self._schemas = Schemas(schemas or {})
        self._otherwise = otherwise
        self._proven = proven
        self._session = UpstreamSession(
            web, url, label, max_line=max_line, forwards=forwards, lost=self._lost
        )
        self._incoming = Incoming(web, self._session, self._schemas, label, max_line=max_line)
        self._relay: Relay
        # Changes with every message.
        self._posts: dict[Exchange, anyio.CancelScope | None] = {}
        """None: it is queued."""
        self._queue: deque[Letter] = deque()
        self._pumping = False
        self._listens = False
        self._over = False

    def attach(self, relay: Relay) -> None:
        self._relay = self._incoming.relay = relay

    # -- in order ----------------------------------------------------------------------------------

    def send(self, message: bytes, kind: Kind, exchange: Exchange | None = None) -> None:
        if self._over:
            return  # who waits for an answer is told by `fail_all`
        if exchange is not None and exchange.method == "ping" and self._session.opening is None:
            return  # of one who probes an unknown server: here the other request is answered anyhow
        context = None if exchange is None else exchange.context
        letter = Letter(message, exchange, self._session.credential(context))
        self._web.hold(letter, kind)
        if kind is Kind.RESPONSE:  # the upstream waits for it, whatever else it is to hear
            self._web.start(partial(self._tell, letter))
        elif exchange is not None and not self._pumping:
            self._begin(letter, exchange)
        else:
            self._queue.append(letter)
            if exchange is not None:
                self._posts[exchange] = None
            if not self._pumping:
                self._pumping = True
                self._web.start(self._pump)

    async def _pump(self) -> None:
        """Deliver what is queued, in order: nothing overtakes a notification."""
        try:
            while self._queue:
                letter = self._queue.popleft()
                if letter.exchange is None:
                    await self._tell(letter)
                    # Some servers close after an answer; that has to be heard of before the next.
                    await anyio.lowlevel.checkpoint()
                elif letter.exchange in self._posts:
                    self._begin(letter, letter.exchange)
                else:  # cancelled meanwhile
                    self._web.taken(letter)
        finally:
            self._pumping = False

    async def _tell(self, letter: Letter) -> None:
        """Deliver a notification, or an answer of the client's."""
        used = self._session.id
        try:
            with anyio.fail_after(NOTE_TIMEOUT):
                refusal = await self._session.post(letter)
        except (BackendError, TimeoutError) as error:
            logger.warning("session %s: a message was not delivered: %s", self._label, error)
            return
        finally:
            self._web.taken(letter)
            if letter.message.startswith(INITIALIZED):
                self._initialized(letter)
        if refusal is not None:
            logger.warning("session %s: a message: %s", self._label, refusal.failure())
            if used is not None and refusal.names_no_session:
                await self._session.renew(used)

    def _initialized(self, letter: Letter) -> None:
        """The client has said so; the upstream, if it has not heard it, has a session all the same,
        and perhaps something to say."""
        self._session.initialized = letter.message
        if not self._listens:
            self._listens = True
            self._web.start(self._incoming.listen)

    # -- one request -------------------------------------------------------------------------------

    def _begin(self, letter: Letter, exchange: Exchange) -> None:
        if exchange.method == "initialize":
            self._session.opens(letter)
        work = partial(self._converse, letter, exchange)
        self._posts[exchange] = self._web.start(work, exchange.context)

    async def _converse(self, letter: Letter, exchange: Exchange) -> None:
        """Post a request, and see that it is answered."""
        failure: BackendError = BackendFailed("The backend gave no answer to the request.")
        try:
            if await self._post(letter, exchange):
                return
            if exchange.method == "server/discover" and (exchange.outcome or Outcome()).result:
                self._proven()
        except BackendError as error:
            failure = error.with_traceback(None)
        except Exception:
            logger.exception("session %s: a request failed", self._label)
        finally:
            self._posts.pop(exchange, None)
            self._web.taken(letter)
        self._relay.settle(exchange, Outcome(failure=failure))

    async def _post(self, letter: Letter, exchange: Exchange) -> bool:
        """Return whether another transport has taken it over."""
        while True:
            used = self._session.id
            found = await self._post_once(letter, exchange)
            if isinstance(found, EventReader):
                await self._incoming.take_up(exchange, found)
                return False
            if found is None:
                return False
            if not await self._mended(found, letter, exchange, used):
                return await self._refused(found, letter, exchange)

    async def _post_once(self, letter: Letter, exchange: Exchange) -> Refusal | EventReader | None:
        """Return why it was refused, or the stream that broke off; None: all is done."""
        headers = (*POST_HEADERS, *self._headers(letter, exchange))
        self._session.sends(exchange.method)
        try:
            url = self._session.url
            async with self._web.request("POST", url, headers, letter.message) as response:
                self._web.taken(letter)
                if not succeeded(response):
                    refusal = await refusal_of(response)
                    if not refusal.is_failure:
                        self._session.not_executed(exchange.method)
                    return refusal
                if exchange.method == "initialize":
                    self._session.opened(response)
                return await self._incoming.answer(response, exchange)
        except BackendUnreachable:
            self._session.not_executed(exchange.method)
            raise

    def _headers(self, letter: Letter, exchange: Exchange) -> list[tuple[str, str]]:
        if not is_modern(exchange):
            return self._session.headers(letter.authorization)
        params = _params_of(letter)
        called = name_of("tools/call", params) if exchange.method == "tools/call" else None
        schema = None if called is None else self._schemas[called]
        return _modern_headers(exchange.method, params, letter, schema)

    def cancel(self, exchange: Exchange) -> bool:
        scope = self._posts.pop(exchange, None)
        if scope is not None:
            scope.cancel()
        return is_modern(exchange)

    # -- what was refused, and so not executed -----------------------------------------------------

    async def _mended(
        self, refusal: Refusal, letter: Letter, exchange: Exchange, used: str | None
    ) -> bool:
        """Return whether another try will fare better: something is different, then."""
        if is_modern(exchange):
            mismatch = refusal.code == HEADER_MISMATCH and exchange.method == "tools/call"
            return mismatch and await self._relearn(letter, exchange)
        if used is None or not refusal.names_no_session:
            return False
        return await self._session.renew(used, exchange)

    async def _refused(self, refusal: Refusal, letter: Letter, exchange: Exchange) -> bool:
        """End a request that was refused; return whether another transport has taken it over."""
        if exchange.method == "initialize" and refusal.is_of_another_transport:
            if self._otherwise is not None and await self._otherwise(letter.message, exchange):
                return True
        if exchange.method == "initialize":  # later on, what it says may contain an id
            text = "session %s: the backend refused initialize (HTTP %d): %.200r"
            logger.warning(text, self._label, refusal.status, refusal.text)
        self._relay.settle(exchange, refusal.outcome(exchange))
        return False

    async def _relearn(self, letter: Letter, exchange: Exchange) -> bool:
        """List the tools, since the one that was called wants other headers; return whether it
        does (2026-07-28 basic/transports/streamable-http#client-behavior)."""
        called = name_of("tools/call", _params_of(letter))
        if called is None or exchange.envelope is None:
            return False
        before = self._schemas[called]
        cursor: Bytes | None = None
        for page in range(MAX_PAGES):
            fields = {} if cursor is None else {"cursor": cursor}
            params = with_envelope(wire.rebuilt(fields), exchange.envelope)
            message = wire.encode_request(b'"list-%d"' % page, "tools/list", params)
            headers = _modern_headers("tools/list", params, letter)
            listed = await self._session.ask(message, (*POST_HEADERS, *headers))
            self._schemas.learn(listed or b"")
            cursor = wire.member(listed, "nextCursor")
            if cursor is None or bytes(cursor) == b"null":
                break
        return self._schemas[called] != before

    # -- the end -----------------------------------------------------------------------------------

    def kill(self) -> None:
        self._end("it was cut off")

    def _lost(self, refused: Exchange | None) -> None:
        """The upstream has forgotten its session, and all that was done in it."""
        if refused is not None:
            failure = BackendRefused("The backend has forgotten its session; nothing was executed.")
            self._relay.settle(refused, Outcome(failure=failure))
        self._end("it has forgotten its session")

    def _end(self, detail: str) -> None:
        """The upstream is of no use any more: end everything, and say so."""
        if not self._over:
            self._over = True
            self._web.cancel()
            self._relay.ended(Exit(detail=detail))

    async def close(self, *, hurry: bool) -> None:
        """End all that goes on, and tell the upstream. Shielded, and bounded."""
        self._over = True
        self._web.cancel()
        try:
            with anyio.move_on_after(DELETE_IN_HURRY if hurry else DELETE_TIMEOUT, shield=True):
                await self._web.wait()
                await self._session.delete()
        finally:
            await self._web.close()


def _params_of(letter: Letter) -> Bytes | None:
    return wire.decode(letter.message).object_params()


def _modern_headers(
    method: str, params: Bytes | None, letter: Letter, schema: Bytes | None = None
) -> list[tuple[str, str]]:
    headers = mirrored(method, params, schema)
    if letter.authorization:
        headers.append(as_header(letter.authorization))
    return headers

"""A backend behind HTTP with SSE, the transport of 2024-11-05: one stream for all that it says.

The stream begins with an event that names where messages are to be posted; what is posted is
answered on the stream. With the stream the upstream's session ends. All of it is of the handshake
era, and attribution is that of a pipe. Neighbours: as those of `http`.
"""

import logging
from collections import deque
from contextlib import aclosing
from functools import partial
from typing import Final

import aiohttp
import anyio
import anyio.lowlevel
from yarl import URL

from ... import wire
from ...core.context import caller_authorization
from ...core.exchange import Exchange, Outcome
from ...core.latch import Latch
from ...core.relay import Relay
from ...errors import BackendError, BackendFailed, Exit, ProxyError
from ...wire import Kind, Oversize
from .refusal import METHOD_NOT_FOUND, refusal_of
from .sse import EVENTS, Event, EventReader
from .target import as_written
from .web import (
    GET_HEADERS,
    POST_HEADERS,
    Letter,
    Web,
    as_header,
    chunks,
    media_type,
    succeeded,
)

logger: Final = logging.getLogger(__name__)

POST_TIMEOUT: Final = 30.0
"""Seconds for a message to be taken, which says nothing about its answer."""

CONNECT_TIMEOUT: Final = 10.0
"""Seconds for the stream to name its endpoint: it is the first that it says."""

CLOSE_TIMEOUT: Final = 5.0

FAIR: Final = 100
"""Messages of one read that are handed on at a time."""

_NOT_MODERN: Final = Outcome(
    error=b'{"code":%d,"message":"HTTP with SSE belongs to the handshake era"}' % METHOD_NOT_FOUND
)


class LegacySse:
    """A `Transport`. `attach` it to its relay before anything is sent."""

    def __init__(
        self, web: Web, url: URL, label: str, *, max_line: int, forwards: bool = False
    ) -> None:
        """`max_line`: bytes of one message. `forwards`: the callers' credentials go along."""
        self._web = web
        self._url = url
        self._label = label
        self._max_line = max_line
        self._forwards = forwards
        self._authorization: bytes | None = None
        self._relay: Relay
        self._queue: deque[Letter] = deque()
        self._reading: anyio.CancelScope | None = None
        self._posting = False
        self._over = False
        self._endpoint: URL | None = None
        self._failure: ProxyError = BackendFailed("The backend named no endpoint on its stream.")
        self._decided = Latch()
        """It has named its endpoint, or never will."""

    def attach(self, relay: Relay) -> None:
        self._relay = relay

    # -- the stream --------------------------------------------------------------------------------

    async def connect(self) -> bool:
        """Open the stream, on behalf of whoever has this done; return whether it is one of this
        transport."""
        if self._reading is None:
            self._caller(None)
            self._reading = self._web.start(self._listen)
        with anyio.move_on_after(CONNECT_TIMEOUT):
            await self._decided.wait()
        if self._endpoint is None:
            self._reading.cancel()
        return self._endpoint is not None

    async def _listen(self) -> None:
        """Read the stream to its end, which is the end of the backend."""
        headers = [*GET_HEADERS, *self._credential(self._authorization)]
        why = "it closed its event stream"
        try:
            async with self._web.request("GET", self._url, headers) as response:
                if succeeded(response) and media_type(response) == EVENTS:
                    await self._read(response)
                elif succeeded(response):
                    self._failure = BackendFailed("The backend answered with no event stream.")
                else:
                    self._failure = (await refusal_of(response)).failure()
        except BackendError as error:
            self._failure, why = error, str(error)
        self._decided.set()
        if self._endpoint is not None:
            self._end(why)

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        reader = EventReader(self._max_line)
        async with aclosing(chunks(response)) as incoming:
            async for chunk in incoming:
                for n, event in enumerate(reader.feed(chunk), 1):
                    if self._over:
                        return
                    if self._endpoint is None:
                        if not self._is_named(event):
                            return
                    elif event.name == b"message":
                        self._hand_on(event.data)
                    if n % FAIR == 0:
                        await anyio.lowlevel.checkpoint()

    def _is_named(self, event: Event) -> bool:
        """Take the place to post to from the first event; return whether it has one. It must be of
        the same origin, since credentials go there."""
        if event.name != b"endpoint" or not isinstance(event.data, bytes):
            return False
        try:
            there = self._url.join(as_written(event.data.decode())).with_user(None)
        except ValueError:
            return False
        if _origin(there) != _origin(self._url):
            self._failure = BackendFailed("The backend named an endpoint of another origin.")
            return False
        self._endpoint = there
        self._decided.set()
        return True

    def _hand_on(self, line: bytes | Oversize) -> None:
        try:
            if isinstance(line, Oversize):
                self._relay.receive_oversize(line, self._max_line)
            else:
                self._relay.receive(bytes(wire.on_one_line(line)))
        except Exception:  # a fault of ours with one message must not lose the others
            logger.exception("session %s: a message was lost", self._label)

    # -- towards the upstream ----------------------------------------------------------------------

    def send(self, message: bytes, kind: Kind, exchange: Exchange | None = None) -> None:
        if self._over:
            return
        if exchange is not None and exchange.method == "server/discover":
            self._relay.settle(exchange, _NOT_MODERN)
            return
        letter = Letter(message, exchange, self._caller(exchange))
        self._web.hold(letter, kind)
        if kind is Kind.RESPONSE and self._endpoint is not None:
            self._web.start(partial(self._deliver, letter))
            return
        self._queue.append(letter)
        if not self._posting:
            self._posting = True
            self._web.start(self._post_all)

    def _caller(self, exchange: Exchange | None) -> bytes | None:
        if not self._forwards:
            return None
        get = caller_authorization.get
        found = get() if exchange is None else exchange.context.get(caller_authorization)
        self._authorization = found or self._authorization
        return self._authorization if found is None else found

    def _credential(self, value: bytes | None) -> list[tuple[str, str]]:
        return [as_header(value)] if value else []

    async def _post_all(self) -> None:
        """Deliver what is queued, in order."""
        try:
            if not await self.connect():
                self._give_up()
                return
            while self._queue:
                await self._deliver(self._queue.popleft())
        finally:
            self._posting = False

    def _give_up(self) -> None:
        for letter in self._queue:
            if letter.exchange is not None:
                self._relay.settle(letter.exchange, Outcome(failure=self._failure.fresh()))
        self._queue.clear()
        self._end("it has no event stream")

    async def _deliver(self, letter: Letter) -> None:
        failure: ProxyError | None = None
        try:
            with anyio.fail_after(POST_TIMEOUT):
                failure = await self._post(letter)
        except TimeoutError:
            failure = BackendFailed(f"The backend did not take it in {POST_TIMEOUT:g} s.")
        except BackendError as error:
            failure = error.with_traceback(None)
        finally:
            self._web.taken(letter)
        if failure is None:
            return
        if letter.exchange is not None:
            self._relay.settle(letter.exchange, Outcome(failure=failure))
        else:
            logger.warning("session %s: a message was not delivered: %s", self._label, failure)

    async def _post(self, letter: Letter) -> ProxyError | None:
        assert self._endpoint is not None
        headers = (*POST_HEADERS, *self._credential(letter.authorization))
        async with self._web.request("POST", self._endpoint, headers, letter.message) as response:
            return None if succeeded(response) else (await refusal_of(response)).failure()

    def cancel(self, exchange: Exchange) -> bool:
        return False

    # -- the end -----------------------------------------------------------------------------------

    def kill(self) -> None:
        self._end("it was cut off")

    def _end(self, detail: str) -> None:
        if not self._over:
            self._over = True
            self._web.cancel()
            self._relay.ended(Exit(detail=detail))

    async def close(self, *, hurry: bool) -> None:
        """End all that goes on; that ends the upstream's session. Shielded, and bounded."""
        self._over = True
        self._web.cancel()
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await self._web.wait()
        await self._web.close()


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    return url.scheme, url.host, url.port

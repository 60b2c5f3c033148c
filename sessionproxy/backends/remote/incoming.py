"""What an upstream says over streamable HTTP: answers as JSON or as events, and the GET stream.

All of it is handed to the relay, together with the exchange on whose response it came. A stream of
the handshake era that breaks off is taken up again where its events had ids. Neighbours: `http`
posts what is answered here.
"""

import logging
from contextlib import aclosing
from typing import Final

import aiohttp
import anyio
import anyio.lowlevel

from ... import wire
from ...core.exchange import Exchange, Outcome
from ...core.relay import Relay
from ...errors import BackendError, BackendFailed, ResultTooLarge
from ...wire import Oversize
from .mirror import Schemas, is_modern
from .refusal import PASSING
from .session import UpstreamSession, result_of
from .sse import EVENTS, EventReader
from .web import GET_HEADERS, Web, chunks, media_type, succeeded, whole

logger: Final = logging.getLogger(__name__)

FAIR: Final = 100
"""Messages of one read that are handed on at a time: all other sessions wait meanwhile."""

AFTER_ANSWER: Final = 1.0
"""Seconds for a stream to end once its answer has come; then its connection can be used again."""

RETRY: Final = 1.0
LEAST_RETRY: Final = 0.1
"""Seconds before a stream is taken up again, where the server does not say; and at least."""

FRUITLESS: Final = 5
"""Attempts in a row to take a stream up again that bring nothing."""

LONGEST_PAUSE: Final = 30.0
"""Seconds between attempts to open the GET stream; doubled from `RETRY` on up to this."""


class Incoming:
    """Reads for one session. `relay` is set before anything is read."""

    relay: Relay

    def __init__(
        self, web: Web, session: UpstreamSession, schemas: Schemas, label: str, *, max_line: int
    ) -> None:
        self._web = web
        self._session = session
        self._schemas = schemas
        self._label = label
        self._max_line = max_line
        self._offered = False
        """The upstream has had a stream to be read by GET."""

    # -- the answer to a POST ----------------------------------------------------------------------

    async def answer(
        self, response: aiohttp.ClientResponse, exchange: Exchange
    ) -> EventReader | None:
        """Read an answer; return what it was read with, where it is a stream that broke off.

        Raises: BackendFailed: it is none, or was broken off for good.
        """
        kind = media_type(response)
        if kind == EVENTS:
            reader = EventReader(self._max_line)
            try:
                await self.read(response, reader, exchange)
            except BackendFailed as error:
                if not _resumable(reader, exchange):
                    raise
                logger.debug("session %s: %s", self._label, error)
            return None if exchange.outcome is not None else reader
        if kind != "application/json":
            what = f"with {kind}" if kind else f"nothing (HTTP {response.status})"
            raise BackendFailed(f"The backend answered {what} where the result was due.")
        body = await whole(response, self._max_line)
        if body is None:
            text = f"The result was larger than {self._max_line} bytes and was discarded."
            self.relay.settle(exchange, Outcome(failure=ResultTooLarge(text)))
        elif body.strip():
            self._hand_on(body.strip(), exchange)
        return None

    async def read(
        self, response: aiohttp.ClientResponse, reader: EventReader, exchange: Exchange | None
    ) -> None:
        """Hand on what a stream says, to its end; of a request's, until shortly after its answer.

        Raises: BackendFailed: the connection broke.
        """
        with anyio.CancelScope() as scope:
            async with aclosing(chunks(response)) as incoming:
                async for chunk in incoming:
                    for n, event in enumerate(reader.feed(chunk), 1):
                        if event.name == b"message":
                            self._hand_on(event.data, exchange)
                        if n % FAIR == 0:
                            await anyio.lowlevel.checkpoint()
                    if exchange is not None and exchange.outcome is not None:
                        until = anyio.current_time() + AFTER_ANSWER
                        scope.deadline = min(scope.deadline, until)

    def _hand_on(self, line: bytes | Oversize, exchange: Exchange | None) -> None:
        if self._web.closing:  # it was cut off by what came before
            return
        try:
            if isinstance(line, Oversize):
                self.relay.receive_oversize(line, self._max_line)
                return
            line = bytes(wire.on_one_line(line))
            if exchange is not None and exchange.outcome is None:
                self._look(line, exchange)
            self.relay.receive(line, exchange)
        except Exception:  # a fault of ours with one message must not lose the others
            logger.exception("session %s: a message was lost", self._label)

    def _look(self, line: bytes, exchange: Exchange) -> None:
        """Take from an answer what later requests need."""
        if exchange.method == "initialize":
            self._session.welcomed(line)
        elif exchange.method == "tools/list" and is_modern(exchange):
            self._schemas.learn(result_of(line) or b"")

    # -- taking up a stream that broke off ---------------------------------------------------------

    async def take_up(self, exchange: Exchange, reader: EventReader) -> None:
        """Go on with the answer to a request where its stream broke off (2025-11-25
        basic/transports#resumability-and-redelivery).

        Raises: BackendFailed: it cannot be done.
        """
        fruitless = 0
        while exchange.outcome is None:
            if fruitless >= FRUITLESS or not _resumable(reader, exchange):
                raise BackendFailed("The backend broke its answer off.")
            await anyio.sleep(_pause(reader))
            reader, used = reader.successor(), self._session.id
            status = await self._take_up_once(exchange, reader)
            if status == 404 and used is not None:
                await self._session.renew(used)
            if status is not None and status not in PASSING:
                text = f"The backend broke its answer off, and has no more of it (HTTP {status})."
                raise BackendFailed(text)
            fruitless = 0 if reader.events else fruitless + 1

    async def _take_up_once(self, exchange: Exchange | None, reader: EventReader) -> int | None:
        """Read a stream by GET. Return the status where that is refused; None: it was read to its
        end, or could not be tried."""
        try:
            headers = self._get(exchange, reader)
            async with self._web.request("GET", self._session.url, headers) as response:
                if not succeeded(response) or media_type(response) != EVENTS:
                    return response.status
                self._offered = True
                await self.read(response, reader, exchange)
        except BackendError as error:
            logger.debug("session %s: a stream broke off: %s", self._label, error)
        return None

    def _get(self, exchange: Exchange | None, reader: EventReader) -> list[tuple[str, str]]:
        authorization = None if exchange is None else self._session.own(exchange.context)
        headers = [*GET_HEADERS, *self._session.headers(authorization)]
        if reader.last_id:
            headers.append(("last-event-id", reader.last_id.decode(errors="replace")))
        return headers

    # -- the GET stream ----------------------------------------------------------------------------

    async def listen(self) -> None:
        """Hold a stream open for what belongs to no request (2025-11-25
        basic/transports#listening-for-messages-from-the-server), for ever."""
        reader, pause = EventReader(self._max_line), RETRY
        used = self._session.id
        while True:
            began = anyio.current_time()
            # An event of another session is nothing to go on from.
            same, used = used == self._session.id, self._session.id
            reader = reader.successor() if same else EventReader(self._max_line)
            status = await self._take_up_once(None, reader)
            if status is not None and not self._offered and status not in PASSING:
                return  # 405 by specification; others say it otherwise
            if status == 404 and used is not None and not await self._session.renew(used):
                return
            if status is not None:  # perhaps for the event that it was to go on from
                reader.last_id = b""
            if reader.events or anyio.current_time() - began > LONGEST_PAUSE:
                pause = RETRY
                await anyio.sleep(_pause(reader))
            else:
                await anyio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)


def _resumable(reader: EventReader, exchange: Exchange) -> bool:
    return bool(reader.last_id) and not is_modern(exchange)


def _pause(reader: EventReader) -> float:
    return RETRY if reader.retry is None else max(LEAST_RETRY, reader.retry)

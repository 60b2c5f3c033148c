"""The session that an upstream of the handshake era has given us, and what goes along with it.

Its id and revision are in the headers of every request (2025-11-25
basic/transports#session-management). An upstream may forget it at any time: where nothing can have
been lost by that, another one is begun, once; else the backend has ended. Neighbours: `http` posts
in it; `incoming` reads in it.
"""

import logging
import re
from collections.abc import Callable
from contextlib import aclosing
from contextvars import Context
from typing import Final

import aiohttp
import anyio
import msgspec
from yarl import URL

from ... import wire
from ...core.context import caller_authorization
from ...core.exchange import Exchange
from ...errors import BackendError
from ...wire import Oversize
from .refusal import Refusal, refusal_of
from .sse import EVENTS, EventReader
from .web import (
    POST_HEADERS,
    Headers,
    Letter,
    Web,
    as_header,
    chunks,
    media_type,
    succeeded,
    whole,
)

logger: Final = logging.getLogger(__name__)

MAX_ID: Final = 4096
"""Bytes of a session id that are accepted."""

_VISIBLE: Final = re.compile("[!-~]+")
"""What an upstream has said and goes back to it in a header."""

RENEWAL_TIMEOUT: Final = 60.0
"""Seconds for another session to be begun; those who were refused wait meanwhile."""

STATELESS: Final = frozenset(
    {
        "initialize",
        "ping",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "completion/complete",
    }
)
"""Requests that change nothing: an upstream session that had no others can be begun anew."""


class UpstreamSession:
    """Shared by all that is sent to one upstream for one session of ours."""

    def __init__(
        self,
        web: Web,
        url: URL,
        label: str,
        *,
        max_line: int,
        forwards: bool,
        lost: Callable[[Exchange | None], None],
    ) -> None:
        """`forwards`: the callers' credentials go along. `lost` is called once the upstream's
        session is gone for good, with the request that was refused for it."""
        self._web = web
        self.url = url
        self._label = label
        self._max_line = max_line
        self._forwards = forwards
        self._lost = lost
        self._authorization: bytes | None = None
        """The latest of a caller: for what is sent on nobody's behalf."""
        # Moves with the upstream's session.
        self.id: str | None = None
        self.opening: Letter | None = None
        self.initialized: bytes | None = None
        self._version: str | None = None
        self._sent = 0
        """Requests that may have changed something: all but those that were certainly refused."""
        self._renewing = anyio.Lock()
        self._renewed = False

    def credential(self, context: Context | None) -> bytes | None:
        """Return the credential that a new message goes with: a caller's own, as `own` has it; on
        nobody's behalf, the latest."""
        found = self.own(context)
        self._authorization = found or self._authorization
        return self._authorization if found is None else found

    def own(self, context: Context | None) -> bytes | None:
        """Return the credential of the request with this context, else of the present one; empty
        where it has none. None: it is no caller's, or credentials stay here."""
        if not self._forwards:
            return None
        get = caller_authorization.get
        return get() if context is None else context.get(caller_authorization)

    def headers(self, authorization: bytes | None = None) -> list[tuple[str, str]]:
        """Return what every request of the handshake era has."""
        headers: list[tuple[str, str]] = []
        if self.id is not None:
            headers.append(("mcp-session-id", self.id))
        if self._version is not None:
            headers.append(("mcp-protocol-version", self._version))
        authorization = self._authorization if authorization is None else authorization
        if authorization:
            headers.append(as_header(authorization))
        return headers

    # -- its life ----------------------------------------------------------------------------------

    def opens(self, letter: Letter) -> None:
        """An `initialize` is about to be sent."""
        self.opening = letter
        self.id = self._version = None

    def opened(self, response: aiohttp.ClientResponse) -> None:
        """It was taken."""
        self.id = _id_of(response)

    def welcomed(self, line: bytes) -> None:
        """It was answered."""
        result = result_of(line)
        version = None if result is None else wire.text_member(result, "protocolVersion")
        if version is not None and _VISIBLE.fullmatch(version):
            self._version = version

    def sends(self, method: str) -> None:
        """A request is about to be sent. Whatever becomes of it, it may have been executed."""
        self._sent += method not in STATELESS

    def not_executed(self, method: str) -> None:
        """It was certainly refused."""
        self._sent -= method not in STATELESS

    async def renew(self, used: str, refused: Exchange | None = None) -> bool:
        """The upstream does not know the session `used` any more: return whether there is another
        now. `refused`: the request by which that came out, if it was one."""
        async with self._renewing:
            if self.id != used:
                return self.id is not None
            self.id = None
            if not self._sent and not self._renewed and self.opening is not None:
                self._renewed = True
                with anyio.move_on_after(RENEWAL_TIMEOUT):
                    if await self._begin_anew(self.opening):
                        logger.info("session %s: the upstream lost its own unused", self._label)
                        return True
            self._lost(refused)
            return False

    async def _begin_anew(self, opening: Letter) -> bool:
        version, self._version = self._version, None
        headers = (*POST_HEADERS, *self.headers())  # the opening's own may be out of date
        try:
            async with self._web.request("POST", self.url, headers, opening.message) as response:
                found = _id_of(response) if succeeded(response) else None
                result = await result_in(response, self._max_line)
            self._version = version
            if result is None or found is None:
                return False
            self.id = found
            agreed = wire.text_member(result, "protocolVersion")
            if version is None or agreed != version:  # the client would have to be told
                await self.delete()
                return False
            if self.initialized is not None:
                await self.post(Letter(self.initialized, None, None))
        except BackendError as error:
            logger.info("session %s: not begun anew: %s", self._label, error)
            return False
        return True

    async def post(self, letter: Letter) -> Refusal | None:
        """Post what has no answer. Raises: BackendError: it was not delivered."""
        headers = (*POST_HEADERS, *self.headers(letter.authorization))
        async with self._web.request("POST", self.url, headers, letter.message) as response:
            return None if succeeded(response) else await refusal_of(response)

    async def delete(self) -> None:
        """Tell the upstream that its session is over. One that does not care says 405."""
        if self.id is None:
            return
        headers, self.id = self.headers(), None
        try:
            async with self._web.request("DELETE", self.url, headers):
                pass
        except BackendError as error:
            logger.debug("session %s: no DELETE: %s", self._label, error)

    async def ask(self, message: bytes, headers: Headers) -> wire.Bytes | None:
        """Post a request of our own; return its result, None where there is none."""
        async with self._web.request("POST", self.url, headers, message) as response:
            return await result_in(response, self._max_line)


def _id_of(response: aiohttp.ClientResponse) -> str | None:
    """Return the session id that a response carries; None: none, or none that is allowed."""
    found = response.headers.get("mcp-session-id")
    if not found or len(found) > MAX_ID:
        return None
    return found if _VISIBLE.fullmatch(found) else None


class _Answered(msgspec.Struct):
    result: msgspec.Raw


def result_of(line: bytes) -> msgspec.Raw | None:
    """Return the result in a response; None where there is none."""
    try:
        return msgspec.json.decode(line, type=_Answered).result
    except (msgspec.DecodeError, RecursionError):
        return None


async def result_in(response: aiohttp.ClientResponse, max_line: int) -> wire.Bytes | None:
    """Return the first result in what answers a request of our own; None where there is none.

    Raises: BackendFailed: the connection broke.
    """
    if not succeeded(response):
        return None
    if media_type(response) != EVENTS:
        return result_of(await whole(response, max_line) or b"")
    reader = EventReader(max_line)
    async with aclosing(chunks(response)) as incoming:
        async for chunk in incoming:
            for event in reader.feed(chunk):
                result = None if isinstance(event.data, Oversize) else result_of(event.data)
                if result is not None:
                    return result
    return None

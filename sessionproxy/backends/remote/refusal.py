"""What an upstream means by an HTTP status that is no success.

Neighbours: `http` and `legacy` ask.
"""

import logging
from typing import Final, NamedTuple

import aiohttp
import anyio
import msgspec
from msgspec import Raw
from yarl import URL

from ...core.exchange import Exchange, Outcome
from ...errors import BackendFailed, BackendRefused, ProxyError
from .mirror import is_modern
from .web import whole

logger: Final = logging.getLogger(__name__)

MAX_BODY: Final = 64 * 1024
"""Bytes of a refusal that are read; a JSON-RPC error has a few hundred."""

PATIENCE: Final = 5.0
"""Seconds for them to come."""

HEADER_MISMATCH: Final = -32020
MODERN_ERRORS: Final = frozenset({HEADER_MISMATCH, -32021, -32022})
"""Codes that only a modern server answers with (2026-07-28 basic#error-codes)."""

METHOD_NOT_FOUND: Final = -32601
INTERNAL_ERROR: Final = -32603

NO_ENDPOINT: Final = frozenset({400, 404, 405})
"""With these a server may be of another transport (2026-07-28
basic/transports/streamable-http#http+sse-transport-2024-11-05)."""

UNAUTHORIZED: Final = frozenset({401, 403, 407})

PASSING: Final = UNAUTHORIZED | {408, 421, 425, 429, 502, 503, 504}
"""With these nothing is said about what the server can do."""


class _Error(msgspec.Struct):
    code: int
    message: str


class _Body(msgspec.Struct):
    error: Raw


class Refusal(NamedTuple):
    """An answer whose status is no success."""

    status: int
    error: bytes | None
    """The JSON-RPC error that it carries, as it was written."""
    code: int = 0
    text: str = ""

    @property
    def is_redirect(self) -> bool:
        return 300 <= self.status < 400

    @property
    def is_failure(self) -> bool:
        """Return whether nobody knows what has become of the request."""
        return self.status >= 500

    @property
    def is_of_another_transport(self) -> bool:
        return self.status in NO_ENDPOINT and self.code not in MODERN_ERRORS

    @property
    def names_no_session(self) -> bool:
        """Return whether it says, to a request with a session id, that there is no such session.

        By specification with 404. Servers after the TypeScript SDK's example say 400, and
        `No valid session ID provided`.
        """
        return self.status == 404 or (self.status == 400 and "session" in self.text.lower())

    def outcome(self, exchange: Exchange) -> Outcome:
        """Return how a request ends that was refused so."""
        if exchange.method == "server/discover" and self.status in UNAUTHORIZED:
            return Outcome(failure=self.failure())  # which says nothing of what it speaks
        if self.error is not None:
            return Outcome(error=self.error)
        opens = exchange.method == "initialize"
        if exchange.method == "server/discover" and not self.is_redirect:
            if self.status not in PASSING:  # it has never heard of the method
                return Outcome(error=_error(METHOD_NOT_FOUND, str(self.failure())))
        elif opens and self.status in UNAUTHORIZED:
            # Perhaps this caller's fault: the route must not rest for everybody.
            return Outcome(error=_error(INTERNAL_ERROR, str(self.failure())))
        elif is_modern(exchange) and self.status == 404:
            return Outcome(error=_error(METHOD_NOT_FOUND, str(self.failure())))
        return Outcome(failure=self.failure())

    def failure(self) -> ProxyError:
        if self.is_redirect:
            return BackendRefused(
                f"The backend answered with a redirect (HTTP {self.status}), which is not followed."
            )
        if not self.is_failure:
            what = "credential" if self.status in (401, 407) else "request"
            error = BackendRefused(f"The backend refused the {what} (HTTP {self.status}).")
            error.of_caller = self.status in UNAUTHORIZED
            return error
        return BackendFailed(f"The backend failed (HTTP {self.status}).")


def _error(code: int, message: str) -> bytes:
    return msgspec.json.encode({"code": code, "message": message})


async def refusal_of(response: aiohttp.ClientResponse) -> Refusal:
    """Read what a response without success says. Bounded."""
    status = response.status
    if 300 <= status < 400:
        _log_redirect(response)
        return Refusal(status, None)
    body: bytes | None = None
    try:
        with anyio.move_on_after(PATIENCE):
            body = await whole(response, MAX_BODY)
    except BackendFailed:
        pass  # its status is enough
    try:
        error = bytes(msgspec.json.decode(body or b"", type=_Body).error)
        found = msgspec.json.decode(error, type=_Error)
    except (msgspec.DecodeError, RecursionError):
        return Refusal(status, None, text=(body or b"")[:500].decode(errors="replace"))
    return Refusal(status, error, found.code, found.message)


def _log_redirect(response: aiohttp.ClientResponse) -> None:
    """Tell the operator where it wanted us to go, without what may be secret of it."""
    try:
        there = response.url.join(URL(response.headers.get("location", "")))
        shown = str(there.with_query(None).with_fragment(None).with_user(None))
    except ValueError:
        shown = "somewhere that is no URL"
    logger.warning(
        "the backend redirects to %s, which is not followed; if that is right, give it as --url",
        shown,
    )

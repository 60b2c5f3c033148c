"""The headers of the MCP endpoint: what a client accepts and speaks, and what a page may read.

Neighbours: `frontend.endpoint`.
"""

import re
from functools import lru_cache
from typing import Final

from ..core.session import Session
from ..errors import UnsupportedMediaType, UnsupportedVersion
from ..http import Headers, header_of, media_type
from ..wire import HANDSHAKE_VERSIONS, MODERN_VERSIONS
from ..wire.envelope import VERSION_KEY
from .connection import Header

IDLE_HEADER: Final = b"sessionproxy-idle-timeout"
"""On the answer to `initialize`: seconds without a request after which the backend stops."""

EXPOSED: Final = (
    b"mcp-session-id, mcp-protocol-version, retry-after, www-authenticate, " + IDLE_HEADER
)
ACCEPTED: Final = (
    b"content-type, accept, authorization, mcp-session-id, mcp-protocol-version, last-event-id, "
    b"mcp-method, mcp-name"
)

_PARAM: Final = re.compile(rb"mcp-param-[!#$%&'*+.^_`|~0-9a-z-]+")


def preflight(headers: Headers) -> tuple[Header, ...]:
    """Return what a page of an allowed origin may send (Fetch, CORS protocol). Of the headers that
    mirror arguments those that are asked for: each tool has its own."""
    asked = headers.get(b"access-control-request-headers", b"").lower().split(b",")
    params = [name for name in map(bytes.strip, asked) if _PARAM.fullmatch(name)]
    return (
        (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
        (b"access-control-allow-headers", b", ".join((ACCEPTED, *params))),
        (b"access-control-max-age", b"600"),
    )


def cors(origin: bytes) -> tuple[Header, ...]:
    """Return what a page of an allowed origin needs to read the answer (Fetch, CORS protocol)."""
    return (
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", EXPOSED),
        (b"vary", b"origin"),
    )


def accepted(headers: Headers) -> tuple[bool, bool]:
    """Return whether the client takes JSON, and whether it takes event streams.

    Without an Accept header it takes anything (RFC 9110, section 12.5.1).
    """
    return _accepted(headers.get(b"accept", b"*/*"))


@lru_cache(maxsize=256)
def _accepted(accept: bytes) -> tuple[bool, bool]:
    types = {media_type(part) for part in accept.split(b",")}
    json = bool(types & {b"*/*", b"application/*", b"application/json"})
    events = bool(types & {b"*/*", b"text/*", b"text/event-stream"})
    return json, events


def is_modern(headers: Headers, body: bytes = b"") -> bool:
    """Return whether a request is to be judged by the rules of the modern era: it names a revision
    of that; or it carries what only modern requests carry, and names one that nobody knows, or has
    nothing that a request of the other era needs."""
    version = header_of(headers, b"mcp-protocol-version")
    if version in MODERN_VERSIONS:
        return True
    if version is None or version in HANDSHAKE_VERSIONS:
        if b"mcp-session-id" in headers or b'"initialize"' in body:
            return False
    return VERSION_KEY.encode() in body


def check_version(headers: Headers, session: Session | None) -> None:
    """Raises: UnsupportedVersion: (2025-11-25 basic/transports#protocol-version-header)."""
    version = header_of(headers, b"mcp-protocol-version")
    if version is None or version in HANDSHAKE_VERSIONS:
        return
    if session is None or version != session.version:
        raise UnsupportedVersion(version)


def check_body(headers: Headers) -> None:
    """Raises: UnsupportedMediaType: the body is not JSON, or not as it is."""
    if media_type(headers.get(b"content-type", b"")) != b"application/json":
        raise UnsupportedMediaType("Content-Type must be application/json")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Content-Encoding must be identity")
    if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
        raise UnsupportedMediaType("Transfer-Encoding must be chunked")

"""The headers of the MCP endpoint: what a client accepts and speaks, and what a page may read.

Neighbours: `frontend.endpoint`.
"""

from functools import lru_cache
from typing import Final

from ..core.session import Session
from ..errors import UnsupportedVersion
from ..http import Headers, header_of, media_type
from ..wire import HANDSHAKE_VERSIONS
from .connection import Header

IDLE_HEADER: Final = b"sessionproxy-idle-timeout"
"""On the answer to `initialize`: seconds without a request after which the backend stops."""

EXPOSED: Final = b"mcp-session-id, mcp-protocol-version, retry-after, " + IDLE_HEADER
ACCEPTED: Final = (
    b"content-type, accept, authorization, mcp-session-id, mcp-protocol-version, last-event-id"
)

PREFLIGHT: Final[tuple[Header, ...]] = (
    (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
    (b"access-control-allow-headers", ACCEPTED),
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


def check_version(headers: Headers, session: Session | None) -> None:
    """Raises: UnsupportedVersion: (2025-11-25 basic/transports#protocol-version-header)."""
    version = header_of(headers, b"mcp-protocol-version")
    if version is None or version in HANDSHAKE_VERSIONS:
        return
    if session is None or version != session.version:
        raise UnsupportedVersion(version)

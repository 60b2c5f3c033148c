"""Reading an ASGI request: headers, path and body, each with its bounds.

Neighbours: `frontend` calls it; failures are `FrontendError`s that it turns into answers.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from ..core.pauses import Pauses
from ..errors import BodyTimeout, BodyTooLarge, ConflictingHeaders

Scope = MutableMapping[str, Any]
ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
"""As ASGI has them; the values are of many types."""

Headers = Mapping[bytes, bytes]
"""By lower-case name."""

BODY_DEADLINE: Final = 30.0
"""Seconds for a whole body to arrive."""

SINGLE: Final = frozenset(
    {
        b"host",
        b"origin",
        b"content-type",
        b"content-encoding",
        b"authorization",
        b"mcp-session-id",
        b"last-event-id",
    }
)
"""Headers that decide where a request goes or who it is from: never taken from two. The revision is
not among them: two of it are no revision, and each era has its own answer to that."""


def read_headers(scope: Scope) -> Headers:
    """Return the headers by name.

    Raises: ConflictingHeaders: one of `SINGLE` is there twice.
    """
    pairs: list[tuple[bytes, bytes]] = scope["headers"]
    headers = dict(pairs)
    return headers if len(headers) == len(pairs) else _combined(pairs)


def _combined(pairs: list[tuple[bytes, bytes]]) -> Headers:
    """Return each header's lines as the one list that they are (RFC 9110 section 5.3)."""
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        if name not in headers:
            headers[name] = value
        elif name in SINGLE:
            raise ConflictingHeaders(f"{name.decode()} was sent more than once")
        else:
            headers[name] += b", " + value
    return headers


def header_of(headers: Headers, name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1").strip()


def media_type(value: bytes) -> bytes:
    """Return the media type of a Content-Type, lower-case and without parameters."""
    return value.partition(b";")[0].strip().lower()


def path_within(scope: Scope) -> str:
    """Return the path below where the application is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


async def read_body(receive: Receive, headers: Headers, limit: int, pauses: Pauses) -> bytes:
    """Return the whole body, of at most `limit` bytes.

    Raises:
        BodyTooLarge: it is longer, or says that it will be; the rest is not read.
        BodyTimeout: it did not arrive within `BODY_DEADLINE` seconds, `pauses` not counted, or the
            client left.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLarge(f"the body has more than {limit} bytes")
    with pauses.move_on_after(BODY_DEADLINE):
        message = await receive()
        body: bytes = message.get("body", b"")
        if message["type"] == "http.request" and not message.get("more_body", False):
            if len(body) > limit:
                raise BodyTooLarge(f"the body has more than {limit} bytes")
            return body
        return await _read_rest(receive, message, limit)
    raise BodyTimeout(f"the body did not arrive in {BODY_DEADLINE:g} s")


async def _read_rest(receive: Receive, message: ASGIMessage, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while message["type"] == "http.request":
        part: bytes = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > limit:
            raise BodyTooLarge(f"the body has more than {limit} bytes")
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
    raise BodyTimeout("the client left before its body had arrived")

"""Results and errors of the handshake era as a modern client expects them.

What the backend wrote stays as it is; the members that 2026-07-28 adds are put in front of it, so a
large result is not taken apart. Neighbours: `eras.to_handshake`.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import Raw

from .. import wire
from ..wire import Bytes
from ..wire.envelope import SERVER_KEY

CACHEABLE: Final = frozenset(
    {
        "server/discover",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
    }
)
"""Methods whose results carry caching hints (2026-07-28 server/utilities/caching)."""

INVALID_PARAMS: Final = -32602
RESOURCE_NOT_FOUND: Final = -32002
"""Of 2025-11-25 and before; 2026-07-28 says INVALID_PARAMS."""

URL_ELICITATION_REQUIRED: Final = -32042
"""Of 2025-11-25 alone: repeat the request once the user has been to the URLs of `data`."""

INTERNAL_ERROR: Final = -32603

MISSING_CAPABILITY: Final = -32021
"""2026-07-28 basic#error-codes."""


def modern_result(result: Bytes, method: str, server: bytes | None) -> bytes:
    """Return `result` with what 2026-07-28 requires of a complete one.

    `server`: the backend's `serverInfo`, encoded, where it is known.
    """
    data = bytes(result)
    if data[:2] == b'{"' and method not in CACHEABLE and _is_plain(data):
        return _front(server) + data[1:]
    data = data.lstrip()
    if data[:1] != b"{":
        return data
    wanted: dict[str, bytes] = {"resultType": b'"complete"'}
    if method in CACHEABLE:
        wanted |= {"ttlMs": b"0", "cacheScope": b'"private"'}
    if server is not None:
        wanted["_meta"] = b'{"%b":%b}' % (SERVER_KEY.encode(), server)
    added: dict[str, bytes] = {}
    escaped = b"\\u00" in data  # names too, perhaps: those of letters all begin so
    for name, value in wanted.items():
        # The same may stand deeper in it: this is a cheap look, and the other one is not.
        may = escaped or b'"%b"' % name.encode() in data
        found = wire.member(data, name) if may else None
        if found is None:
            added[name] = value
        elif name == "_meta":
            data = _exchanged(data, name, _with_server(found, value, server))
        elif name == "resultType":
            data = _exchanged(data, name, value)
    return _in_front(data, added)


def _is_plain(data: bytes) -> bool:
    """Return whether no name in it could be one of those that are added; a cheap look."""
    return b'"resultType"' not in data and b'"_meta"' not in data and b"\\u00" not in data


@lru_cache(64)
def _front(server: bytes | None) -> bytes:
    """Return what a plain result begins with instead of its brace."""
    meta = b"" if server is None else b'"_meta":{"%b":%b},' % (SERVER_KEY.encode(), server)
    return b'{"resultType":"complete",' + meta


def _exchanged(data: bytes, name: str, value: bytes) -> bytes:
    return wire.with_member(data, name, value) or data


def _with_server(meta: Bytes, alone: bytes, server: bytes | None) -> bytes:
    """Return `_meta` with who the server is; what it says of itself there goes before."""
    if not bytes(meta).startswith(b"{"):
        return alone
    if server is None or wire.member(meta, SERVER_KEY) is not None:
        return bytes(meta)
    return wire.with_member(meta, SERVER_KEY, server) or bytes(meta)


def _in_front(data: bytes, added: Mapping[str, bytes]) -> bytes:
    """Return an object with some more members, which it does not have."""
    if not added:
        return data
    head = b",".join(b'"%b":%b' % (name.encode(), value) for name, value in added.items())
    rest = data[1:].lstrip()
    return b"{" + head + (b"}" if rest[:1] == b"}" else b"," + rest)


def input_required(requests: Mapping[str, Raw], state: str, server: bytes | None) -> bytes:
    """Return the result that asks a client for these, to be brought back with `state`
    (2026-07-28 basic/patterns/mrtr)."""
    fields: dict[str, Bytes] = {
        "resultType": b'"input_required"',
        "inputRequests": wire.rebuilt(requests),
        "requestState": msgspec.json.encode(state),
    }
    if server is not None:
        fields["_meta"] = wire.rebuilt({SERVER_KEY: server})
    return wire.rebuilt(fields)


class _Error(msgspec.Struct):
    code: int
    data: Raw | msgspec.UnsetType = msgspec.UNSET


def modern_error(error: Bytes, method: str, *, visits: bool) -> bytes:
    """Return the error that a request of `method` was answered with, under a code that 2026-07-28
    has: two of the handshake era must not be emitted any more (basic#error-codes).

    `visits`: the client can send its user to a URL. All but the code stays, as far as it can.
    """
    code = wire.code_of(error)
    if code == RESOURCE_NOT_FOUND:
        return _under(INVALID_PARAMS if method == "resources/read" else INTERNAL_ERROR, error)
    if code != URL_ELICITATION_REQUIRED:
        return bytes(error)
    return _under(INTERNAL_ERROR, error) if visits else _missing_urls(error)


def _under(code: int, error: Bytes) -> bytes:
    return wire.with_member(error, "code", b"%d" % code) or bytes(error)


def _missing_urls(error: Bytes) -> bytes:
    """Return the error that says what a client has to declare, to be sent to a URL."""
    required = b'{"elicitation":{"url":{}}}'
    data = wire.member(error, "data") or b"{}"
    data = wire.with_member(data, "requiredCapabilities", required)
    data = data or b'{"requiredCapabilities":%b}' % required
    return _under(MISSING_CAPABILITY, wire.with_member(error, "data", data) or error)


class _Urls(msgspec.Struct):
    elicitations: list[Raw]


def urls_of(error: Bytes) -> list[Raw]:
    """Return the elicitations that an error of `URL_ELICITATION_REQUIRED` names, encoded."""
    try:
        found = msgspec.json.decode(error, type=_Error)
        if found.code != URL_ELICITATION_REQUIRED or found.data is msgspec.UNSET:
            return []
        urls = msgspec.json.decode(found.data, type=_Urls).elicitations
    except (msgspec.DecodeError, RecursionError):
        return []
    return urls if all(bytes(url).startswith(b"{") for url in urls) else []

"""What a modern request must say of itself, checked in the specification's order.

First the envelope in the body, then the headers that mirror it, then the revision
(2026-07-28 basic/transports/streamable-http#server-validation). The headers' own syntax is the
SDK's. Neighbours: `frontend.modern`.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from .. import wire
from ..errors import HeaderMismatch, InvalidEnvelope, UnsupportedVersion
from ..http import Headers, header_of
from ..wire import MODERN_VERSIONS, Bytes, Envelope, Message
from ..wire.envelope import (
    CAPABILITIES_KEY,
    INFO_LIMIT,
    KNOWN,
    KNOWN_SIZE,
    LOG_LEVELS,
    VERSION_KEY,
    read_meta,
    read_request,
    text,
)

NAMED: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Methods whose `params.name` or `params.uri` is mirrored in `Mcp-Name`."""

ROUTING: Final = frozenset({b"mcp-protocol-version", b"mcp-method", b"mcp-name"})
"""Headers of which there may be one each."""

PARAM_PREFIX: Final = b"mcp-param-"

MALFORMED: Final = "=?base64?!?="
"""Stands for the value of a header that no client may send."""


def check_duplicates(pairs: list[tuple[bytes, bytes]]) -> None:
    """Raises: HeaderMismatch: a header that requests are routed by is there twice."""
    names = [name for name, _ in pairs if name in ROUTING or name.startswith(PARAM_PREFIX)]
    if len(names) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise HeaderMismatch(f"{twice.decode()} header appears more than once")


class Mirror(NamedTuple):
    """What the headers of a request say of its body; None: nothing."""

    version: str | None
    method: str | None
    name: str | None


def mirror_of(headers: Headers) -> Mirror:
    method = header_of(headers, b"mcp-method")
    name = header_of(headers, b"mcp-name")
    if name is not None and method in NAMED:
        from mcp.shared.inbound import decode_header_value  # takes most of a second to load

        name = decode_header_value(name) if name.isascii() else None
    return Mirror(header_of(headers, b"mcp-protocol-version"), method, name)


def envelope_of(message: Message, mirror: Mirror | None) -> Envelope:
    """Return what a request says of itself. `mirror`: None: its transport has no headers.

    Raises:
        InvalidEnvelope: something is missing, or of the wrong kind.
        HeaderMismatch: the headers say something else.
        UnsupportedVersion: it is of a revision that is not served.
    """
    found = read_request(message.object_params())
    if found.meta is None:
        raise InvalidEnvelope("params._meta is an object with the members that every request has")
    name = found.uri if message.method == "resources/read" else found.name
    stated = _known(found.meta) if len(found.meta) <= KNOWN_SIZE else None
    version = _version_of(found.meta) if stated is None else stated.version
    if mirror is not None:
        _check_mirror(mirror, str(message.method), version, name)
    if stated is None:
        stated = _stated(found.meta)
    state = text(found.state)
    if found.state is not None and state is None:
        raise InvalidEnvelope("params.requestState is a string")
    responses = None if found.responses is None else bytes(found.responses)
    return Envelope(*stated[:4], name, state, responses, found.meta)


def _version_of(meta: bytes) -> str | None:
    """Return the revision that is stated, which is compared with the headers' first.

    Raises: InvalidEnvelope: not all is there that has to be.
    """
    found = read_meta(meta)
    missing = [
        key
        for key, value in ((VERSION_KEY, found.version), (CAPABILITIES_KEY, found.capabilities))
        if value is None
    ]
    if missing:
        raise InvalidEnvelope(f"params._meta lacks {' and '.join(missing)}")
    return text(found.version)


def _stated(meta: bytes) -> Envelope:
    """Return what a `_meta` states. Raises: InvalidEnvelope, UnsupportedVersion."""
    found, version = read_meta(meta), _version_of(meta)
    if version is None:
        raise InvalidEnvelope(f"{VERSION_KEY} is a string")
    if version not in MODERN_VERSIONS:
        raise UnsupportedVersion(version)
    level = text(found.log_level)
    if found.log_level is not None and level not in LOG_LEVELS:
        raise InvalidEnvelope("io.modelcontextprotocol/logLevel is a log level")
    return Envelope(
        version,
        _object(found.capabilities, CAPABILITIES_KEY) or b"{}",
        _object(found.client, "io.modelcontextprotocol/clientInfo"),
        level,
    )


@lru_cache(KNOWN)
def _known(meta: bytes) -> Envelope | None:
    """As `_stated`; None: something is wrong with it."""
    try:
        return _stated(meta)
    except (InvalidEnvelope, UnsupportedVersion):
        return None


def _object(value: Bytes | None, name: str) -> bytes | None:
    if value is None:
        return None
    if not bytes(value).startswith(b"{") or len(value) > INFO_LIMIT:
        raise InvalidEnvelope(f"{name} is an object of at most {INFO_LIMIT} bytes")
    return bytes(value)


def _check_mirror(mirror: Mirror, method: str, version: str | None, name: str | None) -> None:
    if mirror.version != version:
        raise HeaderMismatch("MCP-Protocol-Version is not the envelope's protocol version")
    if mirror.method != method:
        raise HeaderMismatch("Mcp-Method is not the method of the body")
    if method in NAMED and name is not None and mirror.name != name:
        raise HeaderMismatch("Mcp-Name is not the name or URI in the body")


def check_cursor(params: Bytes | None) -> None:
    """Raises: InvalidEnvelope: a list is to go on where none was broken off: each is one page
    (2026-07-28 server/utilities/pagination#error-handling)."""
    if text(wire.member(params, "cursor")):
        raise InvalidEnvelope("there is no such cursor: every list is one page")


def check_params(schema: Bytes, params: Bytes | None, headers: Headers) -> None:
    """Check the headers that mirror arguments of a tool with this input schema.

    Raises: HeaderMismatch.
    """
    from mcp.shared.inbound import validate_mcp_param_headers  # see above

    given: Mapping[str, object] = {}
    raw = wire.member(params, "arguments")
    if raw is not None:
        with suppress(msgspec.DecodeError):  # no object: the backend is to say so
            given = msgspec.json.decode(raw, type=dict[str, object])
    # What is not ASCII is encoded, and equals nothing as it stands (#value-encoding).
    texts = {
        name.decode("latin-1"): value.decode("latin-1") if value.isascii() else MALFORMED
        for name, value in headers.items()
    }
    rejection = validate_mcp_param_headers(msgspec.json.decode(schema), given, texts)
    if rejection is not None:
        raise HeaderMismatch(rejection.message)

"""What a modern request says of itself and its client, in `params` and `params._meta`.

A client of 2026-07-28 opens no session: every request carries protocol version, client and
capabilities (2026-07-28 basic#_meta). They are read here without building what nobody asks for, and
taken off for a backend of the handshake era. Neighbours: `frontend.modern` reads, `eras` rewrites.
"""

from functools import lru_cache
from typing import Final, NamedTuple

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ..errors import InvalidMessage
from .message import Bytes
from .params import member, members, rebuilt, with_member

PREFIX: Final = "io.modelcontextprotocol/"
VERSION_KEY: Final = PREFIX + "protocolVersion"
CLIENT_KEY: Final = PREFIX + "clientInfo"
CAPABILITIES_KEY: Final = PREFIX + "clientCapabilities"
LOG_LEVEL_KEY: Final = PREFIX + "logLevel"
SERVER_KEY: Final = PREFIX + "serverInfo"
SUBSCRIPTION_KEY: Final = PREFIX + "subscriptionId"

ENVELOPE_KEYS: Final = frozenset({VERSION_KEY, CLIENT_KEY, CAPABILITIES_KEY, LOG_LEVEL_KEY})
"""Members of `_meta` that belong to the revision, not to the request."""

RETRY_KEYS: Final = frozenset({"inputResponses", "requestState"})
"""Members of `params` that answer an `input_required` (2026-07-28 basic/patterns/mrtr)."""

LOG_LEVELS: Final = (
    "debug",
    "info",
    "notice",
    "warning",
    "error",
    "critical",
    "alert",
    "emergency",
)
"""RFC 5424 severities, the least important first."""

INFO_LIMIT: Final = 64 * 1024
"""Bytes of client information, and of capabilities, that are accepted in one request."""


class _Params(msgspec.Struct, gc=False):
    meta: Raw | UnsetType = msgspec.field(name="_meta", default=UNSET)
    name: Raw | UnsetType = UNSET
    uri: Raw | UnsetType = UNSET
    state: Raw | UnsetType = msgspec.field(name="requestState", default=UNSET)
    responses: Raw | UnsetType = msgspec.field(name="inputResponses", default=UNSET)


class _Meta(msgspec.Struct, gc=False):
    version: Raw | UnsetType = msgspec.field(name=VERSION_KEY, default=UNSET)
    client: Raw | UnsetType = msgspec.field(name=CLIENT_KEY, default=UNSET)
    capabilities: Raw | UnsetType = msgspec.field(name=CAPABILITIES_KEY, default=UNSET)
    log_level: Raw | UnsetType = msgspec.field(name=LOG_LEVEL_KEY, default=UNSET)


_PARAMS: Final = msgspec.json.Decoder(_Params)
_META: Final = msgspec.json.Decoder(_Meta)
_TEXT: Final = msgspec.json.Decoder(str)

KNOWN: Final = 1024
"""How many different `_meta` are remembered with what they say: a client sends the same one with
nearly every request."""

KNOWN_SIZE: Final = 2048
"""Bytes of one that is remembered."""


class Envelope(NamedTuple):
    """Of one modern request. Values are encoded JSON unless said otherwise; None: absent."""

    version: str
    capabilities: bytes
    client: bytes | None = None
    log_level: str | None = None
    name: str | None = None
    """`params.name`, of `resources/read` `params.uri`; None also where it is no string."""
    state: str | None = None
    """`params.requestState`: the request takes up one that was left for want of an answer."""
    responses: bytes | None = None
    meta: bytes | None = None
    """All of `params._meta`."""

    def declares(self, capability: str, *parts: str) -> bool:
        """Return whether the client declared `capability`, with each of `parts` within it."""
        value: Bytes | None = members(self.capabilities).get(capability)
        for part in parts:
            value = members(value).get(part)
        return value is not None and bytes(value) != b"null"

    def hears(self, level: str) -> bool:
        """Return whether a log message of `level` is to reach the client with this request."""
        return self.log_level is not None and severity(level) >= severity(self.log_level)


def severity(level: str) -> int:
    """Return how important a log level is; one that is unknown counts as the most."""
    return LOG_LEVELS.index(level) if level in LOG_LEVELS else len(LOG_LEVELS)


class Meta(NamedTuple):
    """What is found in `_meta`, before anything is required of it. Encoded; None: absent."""

    version: Raw | None
    capabilities: Raw | None
    client: Raw | None
    log_level: Raw | None


def read_meta(meta: Bytes | None) -> Meta:
    """`meta`: an object, or None for an empty one. Raises: InvalidMessage: nested too deep."""
    try:
        found = _Meta() if meta is None else _META.decode(meta)
    except RecursionError:
        raise InvalidMessage("_meta is nested too deep") from None
    return Meta(
        _present(found.version),
        _present(found.capabilities),
        _present(found.client),
        _present(found.log_level),
    )


class Request(NamedTuple):
    """What is found in `params` that the revision gives a meaning. None: absent, or of a kind that
    has none."""

    meta: bytes | None
    name: str | None
    uri: str | None
    state: Raw | None
    """Encoded."""
    responses: Raw | None


def read_request(params: Bytes | None) -> Request:
    """Raises: InvalidMessage: nested too deep."""
    found = _decoded(params)
    return Request(
        _object(found.meta),
        text(found.name),
        text(found.uri),
        _present(found.state),
        _present(found.responses),
    )


class Likeness:
    """Tells requests that say the same as an earlier one, whatever their arguments."""

    __slots__ = ("_meta", "_name", "_uri")

    def __init__(self, params: Bytes | None) -> None:
        """`params`: of a request that answers nothing."""
        found = _decoded(params)
        # Copies: the whole request would stay in memory with them.
        self._meta = _copied(found.meta)
        self._name = _copied(found.name)
        self._uri = _copied(found.uri)

    def holds(self, params: Bytes | None) -> bool:
        """Return whether they have the same `_meta` and name, to the byte, and answer nothing."""
        found = _decoded(params)
        return (
            found.meta == self._meta
            and found.name == self._name
            and found.uri == self._uri
            and found.state is UNSET
            and found.responses is UNSET
        )


def _copied(value: Raw | UnsetType) -> Raw | UnsetType:
    return value if isinstance(value, UnsetType) else value.copy()


def _decoded(params: Bytes | None) -> _Params:
    if params is None:
        return _Params()
    try:
        return _PARAMS.decode(params)
    except msgspec.DecodeError:
        return _Params()
    except RecursionError:
        raise InvalidMessage("params is nested too deep") from None


def _present(value: Raw | UnsetType) -> Raw | None:
    return None if isinstance(value, UnsetType) else value


def _object(value: Raw | UnsetType) -> bytes | None:
    if isinstance(value, UnsetType):
        return None
    found = bytes(value)
    return found if found.startswith(b"{") else None


def text(value: Bytes | UnsetType | None) -> str | None:
    """Return an encoded string decoded; None where it is no string."""
    if value is None or isinstance(value, UnsetType):
        return None
    try:
        return _TEXT.decode(value)
    except msgspec.DecodeError:
        return None


def progress_token(params: Bytes | None, meta: bytes | None = None) -> bytes | None:
    """Return the progress token that a request is to be told of under, encoded; None: none.

    `meta`: its `_meta`, where that is known.
    """
    if meta is not None:
        return _own_parts(meta).token
    found = member(member(params, "_meta"), "progressToken")
    return None if found is None else bytes(found)


def without_envelope(params: Bytes | None, meta: bytes | None = None) -> bytes | None:
    """Return `params` as a client of the handshake era would send them.

    `meta`: their `_meta`, where it is known, and known that they have none of `RETRY_KEYS`. Of such
    as are too large to be taken apart, the members of `RETRY_KEYS` stay.
    """
    if params is None:
        return None
    cut = None if meta is None else _cut_out(bytes(params), meta)
    if cut is not None:
        return cut
    fields = members(params)
    if not fields:
        return _without_envelope_in_place(params)
    for key in RETRY_KEYS & fields.keys():
        del fields[key]
    own = _own(fields.get("_meta"))
    if own:
        fields["_meta"] = Raw(rebuilt(own))
    else:
        fields.pop("_meta", None)
    return rebuilt(fields)


class _Parts(NamedTuple):
    """What there is to know of a `_meta` when a request goes on without the envelope."""

    first: bytes
    """What params begin with in which it is the first member, and not the only one."""
    last: bytes
    """What they end with where it is the last one, and not the first."""
    instead_first: bytes
    instead_last: bytes
    token: bytes | None
    """For progress."""


def _cut_out(params: bytes, meta: bytes) -> bytes | None:
    """Return `params` without the envelope where it stands at either end of them, as it nearly
    always does; None where it does not.

    Valid JSON that begins, or ends, with these bytes has just this member there.
    """
    parts = _own_parts(meta)
    if params.startswith(parts.first):
        return parts.instead_first + params[len(parts.first) :]
    if params.endswith(parts.last):
        return params[: -len(parts.last)] + parts.instead_last
    return None


def _own_parts(meta: bytes) -> _Parts:
    return _known_parts(meta) if len(meta) <= KNOWN_SIZE else _parts(meta)


def _parts(meta: bytes) -> _Parts:
    fields = _own(meta)
    own = b'"_meta":' + rebuilt(fields) if fields else b""
    token = fields.get("progressToken")
    return _Parts(
        b'{"_meta":' + meta + b",",
        b',"_meta":' + meta + b"}",
        b"{" + own + b"," if own else b"{",
        b"," + own + b"}" if own else b"}",
        None if token is None else bytes(token),
    )


_known_parts = lru_cache(KNOWN)(_parts)


def _own(meta: Bytes | None) -> dict[str, Raw]:
    """Return the members of `_meta` that are not the revision's."""
    return {key: value for key, value in members(meta).items() if key not in ENVELOPE_KEYS}


def _without_envelope_in_place(params: Bytes) -> bytes:
    meta = member(params, "_meta")
    changed = None if meta is None else with_member(params, "_meta", rebuilt(_own(meta)))
    return bytes(params) if changed is None else changed


def with_envelope(params: Bytes | None, envelope: Envelope) -> bytes:
    """Return `params` as a modern client of this envelope would send them.

    Raises: InvalidMessage: they are no object, or nested too deep to write into.
    """
    params = b"{}" if params is None else params
    meta: dict[str, Bytes] = {**members(member(params, "_meta"))}
    meta[VERSION_KEY] = msgspec.json.encode(envelope.version)
    meta[CAPABILITIES_KEY] = envelope.capabilities
    if envelope.client is not None:
        meta[CLIENT_KEY] = envelope.client
    if envelope.log_level is not None:
        meta[LOG_LEVEL_KEY] = msgspec.json.encode(envelope.log_level)
    changed = with_member(params, "_meta", rebuilt(meta))
    if changed is None:
        raise InvalidMessage("params is no object, or nested too deep")
    return changed

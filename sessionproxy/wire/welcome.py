"""How a server introduces itself: `initialize` in one era, `server/discover` in the other.

Neighbours: `eras` translates with it; `frontend` answers clients that attach to a running backend.
"""

from typing import Final

import msgspec
from msgspec import Raw

from .envelope import CAPABILITIES_KEY, CLIENT_KEY, SERVER_KEY, VERSION_KEY, Envelope
from .message import Bytes
from .params import members, rebuilt
from .versions import HANDSHAKE_VERSIONS, MODERN_VERSIONS, SERVED_VERSIONS

NOT_MODERN: Final = frozenset({"tasks"})
"""Capabilities of 2025-11-25 that 2026-07-28 has not, or not as such."""

NAMELESS: Final = Raw(b'{"name":"","version":""}')
"""Stands for a peer that does not say who it is: the handshake era requires it to."""


def initialize_params(envelope: Envelope) -> bytes:
    """Return what a client of this envelope would begin a session of the handshake era with."""
    fields: dict[str, Bytes] = {
        "protocolVersion": msgspec.json.encode(HANDSHAKE_VERSIONS[-1]),
        "capabilities": envelope.capabilities,
        "clientInfo": envelope.client or NAMELESS,
    }
    return rebuilt(fields)


def discover_params(envelope: Envelope) -> bytes:
    """Return the parameters of a `server/discover` from a client of this envelope."""
    meta: dict[str, Bytes] = {
        VERSION_KEY: msgspec.json.encode(envelope.version),
        CAPABILITIES_KEY: envelope.capabilities,
    }
    if envelope.client is not None:
        meta[CLIENT_KEY] = envelope.client
    return rebuilt({"_meta": rebuilt(meta)})


def envelope_of_initialize(params: Bytes | None) -> Envelope:
    """Return the envelope of a client that began its session with these parameters."""
    fields = members(params)
    return Envelope(
        MODERN_VERSIONS[-1],
        _object(fields.get("capabilities")) or b"{}",
        _object(fields.get("clientInfo")),
    )


def _object(value: Bytes | None) -> bytes | None:
    """Return an encoded object; None for anything else: the next one is not to stumble over it."""
    return bytes(value) if value is not None and bytes(value).startswith(b"{") else None


def discover_result(initialized: Bytes) -> bytes:
    """Return what a server that answered `initialize` so would answer to `server/discover`."""
    fields = members(initialized)
    kept = members(fields.get("capabilities"))
    capabilities = {key: value for key, value in kept.items() if key not in NOT_MODERN}
    found: dict[str, Bytes] = {
        "supportedVersions": msgspec.json.encode(SERVED_VERSIONS),
        "capabilities": rebuilt(capabilities),
    }
    if "instructions" in fields:
        found["instructions"] = fields["instructions"]
    meta = {**members(fields.get("_meta"))}
    if "serverInfo" in fields:
        meta[SERVER_KEY] = fields["serverInfo"]
    if meta:
        found["_meta"] = rebuilt(meta)
    return rebuilt(found)


def initialize_result(discovered: Bytes, requested: str | None) -> bytes:
    """Return what a server that answered `server/discover` so would answer to `initialize`.

    `requested`: the revision that the client asked for.
    """
    fields = members(discovered)
    meta = members(fields.get("_meta"))
    version = requested if requested in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[-1]
    found: dict[str, Bytes] = {
        "protocolVersion": msgspec.json.encode(version),
        "capabilities": fields.get("capabilities", Raw(b"{}")),
        "serverInfo": meta.pop(SERVER_KEY, NAMELESS),
    }
    if "instructions" in fields:
        found["instructions"] = fields["instructions"]
    if meta:
        found["_meta"] = rebuilt(meta)
    return rebuilt(found)

"""The protocol revisions of both eras, and what changed between them on the wire.

Spelled out here, not taken from `mcp_types`: that import builds hundreds of pydantic models, and
`wire` needs five strings. A test compares them with the SDK's.
"""

from typing import Final

HANDSHAKE_VERSIONS: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
"""Revisions that begin with `initialize`, oldest first."""

MODERN_VERSIONS: Final = ("2026-07-28",)
"""Revisions without a handshake and without sessions, oldest first."""

SERVED_VERSIONS: Final = (*MODERN_VERSIONS, *reversed(HANDSHAKE_VERSIONS))
"""All revisions, newest first: what the endpoint serves, whatever its backend speaks."""

BATCHING_VERSIONS: Final = frozenset({"2025-03-26"})
"""Revisions in which a POST body or a stdio line may be an array of messages
(2025-03-26 basic/transports#sending-messages-to-the-server; removed in 2025-06-18)."""

PRIMED_VERSIONS: Final = frozenset({"2025-11-25"})
"""Revisions whose SSE streams begin with an event that has an id and empty data
(2025-11-25 basic/transports#sending-messages-to-the-server, item 6)."""

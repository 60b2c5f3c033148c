from mcp_types import version

from sessionproxy.wire import BATCHING_VERSIONS, HANDSHAKE_VERSIONS, PRIMED_VERSIONS


def test_the_handshake_revisions_are_those_of_the_sdk_in_its_order() -> None:
    """`wire.versions` spells them out to spare an import; the SDK is the source."""
    assert HANDSHAKE_VERSIONS == version.HANDSHAKE_PROTOCOL_VERSIONS


def test_only_the_revision_that_has_batches_takes_them() -> None:
    """2025-03-26 basic#batching; added in that revision, removed in 2025-06-18."""
    assert [v for v in HANDSHAKE_VERSIONS if v in BATCHING_VERSIONS] == ["2025-03-26"]


def test_streams_are_primed_from_the_newest_handshake_revision_on() -> None:
    """2025-11-25 basic/transports#sending-messages-to-the-server, item 6."""
    assert [v for v in HANDSHAKE_VERSIONS if v in PRIMED_VERSIONS] == ["2025-11-25"]
    assert version.LATEST_HANDSHAKE_VERSION in PRIMED_VERSIONS

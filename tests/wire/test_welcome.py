"""Introductions of both eras, and each as the other has it."""

import msgspec
import pytest

from sessionproxy.wire import HANDSHAKE_VERSIONS, SERVED_VERSIONS, Envelope
from sessionproxy.wire.envelope import CAPABILITIES_KEY, CLIENT_KEY, SERVER_KEY, VERSION_KEY
from sessionproxy.wire.welcome import (
    discover_params,
    discover_result,
    envelope_of_initialize,
    initialize_params,
    initialize_result,
)

Json = dict[str, object]

ENVELOPE = Envelope("2026-07-28", b'{"roots":{"listChanged":true}}', b'{"name":"c","version":"1"}')


def decoded(value: bytes) -> Json:
    return msgspec.json.decode(value, type=Json)


def test_a_modern_client_begins_a_handshake_with_the_newest_revision_of_it() -> None:
    """2025-11-25 basic/lifecycle#initialization."""
    assert decoded(initialize_params(ENVELOPE)) == {
        "protocolVersion": "2025-11-25",
        "capabilities": {"roots": {"listChanged": True}},
        "clientInfo": {"name": "c", "version": "1"},
    }


def test_a_client_that_does_not_say_who_it_is_begins_one_too() -> None:
    """The handshake era requires a name; 2026-07-28 basic#_meta does not."""
    info = decoded(initialize_params(ENVELOPE._replace(client=None)))["clientInfo"]
    assert info == {"name": "", "version": ""}


def test_a_handshake_client_asks_what_there_is_with_all_that_a_request_has() -> None:
    """2026-07-28 server/discover#request; basic#_meta."""
    assert decoded(discover_params(ENVELOPE)) == {
        "_meta": {
            VERSION_KEY: "2026-07-28",
            CAPABILITIES_KEY: {"roots": {"listChanged": True}},
            CLIENT_KEY: {"name": "c", "version": "1"},
        }
    }
    assert CLIENT_KEY not in decoded(discover_params(ENVELOPE._replace(client=None)))["_meta"]  # pyright: ignore[reportOperatorIssue]


def test_the_envelope_of_a_client_is_what_it_said_at_its_opening() -> None:
    params = (
        b'{"protocolVersion":"2025-06-18","capabilities":{"roots":{}},"clientInfo":{"name":"h"}}'
    )
    found = envelope_of_initialize(params)
    assert found == Envelope("2026-07-28", b'{"roots":{}}', b'{"name":"h"}')
    assert envelope_of_initialize(None) == Envelope("2026-07-28", b"{}")


@pytest.mark.parametrize("wrong", [b"7", b'"x"', b"[]", b"null"])
def test_what_is_no_object_in_an_opening_is_not_passed_on_in_every_request(wrong: bytes) -> None:
    params = b'{"capabilities":%b,"clientInfo":%b}' % (wrong, wrong)
    assert envelope_of_initialize(params) == Envelope("2026-07-28", b"{}")


WELCOME = b"""{"protocolVersion":"2025-06-18","instructions":"be kind","_meta":{"a":1},
"capabilities":{"tools":{"listChanged":true},"tasks":{},"made-up":{"x":1}},
"serverInfo":{"name":"s","version":"2","title":"S"}}"""


def test_a_welcome_is_a_discovery_of_the_same_server() -> None:
    """2026-07-28 server/discover#response; tasks are no capability of that revision."""
    assert decoded(discover_result(WELCOME)) == {
        "supportedVersions": list(SERVED_VERSIONS),
        "capabilities": {"tools": {"listChanged": True}, "made-up": {"x": 1}},
        "instructions": "be kind",
        "_meta": {"a": 1, SERVER_KEY: {"name": "s", "version": "2", "title": "S"}},
    }


def test_a_welcome_that_says_next_to_nothing_is_one() -> None:
    assert decoded(discover_result(b"{}")) == {
        "supportedVersions": list(SERVED_VERSIONS),
        "capabilities": {},
    }


DISCOVERED = b"""{"resultType":"complete","supportedVersions":["2026-07-28"],
"instructions":"be kind","capabilities":{"tools":{},"extensions":{}},"ttlMs":5,
"cacheScope":"private",
"_meta":{"a":1,"io.modelcontextprotocol/serverInfo":{"name":"s","version":"2"}}}"""


@pytest.mark.parametrize(
    ("requested", "negotiated"),
    [
        *((version, version) for version in HANDSHAKE_VERSIONS),
        ("2026-07-28", "2025-11-25"),
        ("1999-01-01", "2025-11-25"),
        (None, "2025-11-25"),
    ],
)
def test_a_discovery_is_a_welcome_of_the_same_server(
    requested: str | None, negotiated: str
) -> None:
    """2025-11-25 basic/lifecycle#version-negotiation: the client's revision if it is served."""
    assert decoded(initialize_result(DISCOVERED, requested)) == {
        "protocolVersion": negotiated,
        "capabilities": {"tools": {}, "extensions": {}},
        "serverInfo": {"name": "s", "version": "2"},
        "instructions": "be kind",
        "_meta": {"a": 1},
    }


def test_a_discovery_that_says_next_to_nothing_is_one() -> None:
    assert decoded(initialize_result(b"{}", None)) == {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "serverInfo": {"name": "", "version": ""},
    }

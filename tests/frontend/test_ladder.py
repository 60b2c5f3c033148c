"""What a modern request has to say of itself (2026-07-28 basic/transports/streamable-http).

The conformance suite looks after the plain cases (`tests.clients`); here are those in which an
intermediary that reads headers and a server that reads the body could be told different things.
"""

import msgspec
import pytest

from sessionproxy.errors import HeaderMismatch
from sessionproxy.frontend.ladder import check_params, envelope_of, mirror_of
from sessionproxy.wire import Envelope, decode
from tests.rig.http import Json
from tests.rig.modern import VERSION, envelope

REGION = b'{"type":"object","properties":{"r":{"type":"string","x-mcp-header":"Region"}}}'
"""Schema of a tool whose argument is mirrored."""


def judged(method: str, params: Json, name: str) -> Envelope:
    """Have a request judged that says `name` in its head."""
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": method,
        "params": {**params, "_meta": envelope()},
    }
    headers = {
        b"mcp-protocol-version": VERSION.encode(),
        b"mcp-method": method.encode(),
        b"mcp-name": name.encode("latin-1"),
    }
    return envelope_of(decode(msgspec.json.encode(message)), mirror_of(headers))


BOTH: Json = {"name": "public", "uri": "file:///secret"}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("resources/read", "file:///secret"),
        ("tools/call", "public"),
        ("prompts/get", "public"),
    ],
)
def test_the_member_that_a_method_goes_by_is_the_one_that_its_head_names(
    method: str, name: str
) -> None:
    """#standard-request-headers: a resource has no name here, and nothing else has a URI."""
    assert judged(method, BOTH, name).name == name
    other = next(value for value in BOTH.values() if value != name)
    with pytest.raises(HeaderMismatch):
        judged(method, BOTH, str(other))


@pytest.mark.parametrize("sent", ["é", "=?base64?é?=", "=?base64?w6k?=", "=?BASE64?w6k=?="])
def test_a_name_beyond_ascii_is_good_in_its_encoding_alone(sent: str) -> None:
    """#value-encoding. As it stands, who reads it takes it for one encoding or another."""
    assert judged("tools/call", {"name": "é"}, "=?base64?w6k=?=").name == "é"
    with pytest.raises(HeaderMismatch):
        judged("tools/call", {"name": "é"}, sent)


@pytest.mark.parametrize("arguments", [{"r": "é"}, {}])
@pytest.mark.parametrize("sent", ["é", "=?base64?é?="])
def test_an_argument_beyond_ascii_is_good_in_its_encoding_alone(sent: str, arguments: Json) -> None:
    """#server-behavior-for-custom-headers: invalid characters are refused."""
    params = msgspec.json.encode({"name": "t", "arguments": arguments})
    with pytest.raises(HeaderMismatch):
        check_params(REGION, params, {b"mcp-param-region": sent.encode("latin-1")})


def test_headers_that_no_tool_asks_for_may_have_any_bytes() -> None:
    """#server-behavior-for-custom-headers: what is not recognised is ignored."""
    params = b'{"name":"t","arguments":{"r":"x"}}'
    check_params(REGION, params, {b"mcp-param-region": b"x", b"mcp-param-other": b"\xe9"})

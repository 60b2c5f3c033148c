"""The headers of a modern request, which say again what its body says.

(2026-07-28 basic/transports/streamable-http#request-metadata.) How they are written is the SDK's.
Neighbours: `http`.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import Raw

from ... import wire
from ...core.exchange import Exchange
from ...wire import Bytes
from ...wire.envelope import read_meta, read_request, text

NAMED: Final[Mapping[str, str]] = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
}
"""By method: the member of `params` that is mirrored in `Mcp-Name`."""

MARK: Final = b"x-mcp-header"

MAX_SCHEMAS: Final = 1000
MAX_SCHEMA_BYTES: Final = 1024 * 1024
"""What is kept of the tools that ask for headers."""


def is_modern(exchange: Exchange) -> bool:
    """Return whether a request is of the modern era."""
    return exchange.envelope is not None or exchange.method == "server/discover"


def name_of(method: str, params: Bytes | None) -> str | None:
    """Return the name or URI of what a request is about, where that is mirrored."""
    member = NAMED.get(method)
    return text(wire.member(params, member)) if member is not None else None


def mirrored(
    method: str, params: Bytes | None, schema: Bytes | None = None
) -> list[tuple[str, str]]:
    """Return the headers for a modern request. `schema`: input schema of the tool it calls."""
    from mcp.shared.inbound import encode_header_value  # the SDK takes long to import

    version = text(read_meta(read_request(params).meta).version) or wire.MODERN_VERSIONS[-1]
    headers = [
        ("mcp-protocol-version", version),
        ("mcp-method", method),
    ]
    name = name_of(method, params)
    if name is not None:
        headers.append(("mcp-name", encode_header_value(name)))
    if schema is not None:
        headers += _of_arguments(bytes(schema), wire.member(params, "arguments"))
    return headers


def _of_arguments(schema: bytes, arguments: Bytes | None) -> list[tuple[str, str]]:
    from mcp.shared.inbound import mcp_param_headers

    wanted = _header_map(schema)
    if not wanted or arguments is None:
        return []
    try:
        given = msgspec.json.decode(arguments, type=dict[str, object])
    except msgspec.DecodeError:  # no object: the upstream is to say so
        return []
    found = mcp_param_headers(wanted, given)
    return [(name.lower(), value) for name, value in found.items()]


@lru_cache(maxsize=256)
def _header_map(schema: bytes) -> dict[tuple[str, ...], str]:
    """Return what a schema asks for; nothing where it asks wrongly."""
    from mcp.shared.inbound import find_invalid_x_mcp_header, x_mcp_header_map

    decoded: object = msgspec.json.decode(schema)
    return {} if find_invalid_x_mcp_header(decoded) else x_mcp_header_map(decoded)


class _Tool(msgspec.Struct):
    name: str
    schema: Raw = msgspec.field(name="inputSchema", default=Raw(b""))


class _Tools(msgspec.Struct):
    tools: list[_Tool]


class Schemas:
    """Input schemas of the tools that ask for headers, as far as the upstream has listed them."""

    def __init__(self, known: Mapping[str, bytes]) -> None:
        """`known`: what others have heard of them."""
        self._known = known
        self._heard: dict[str, bytes] = {}
        self._size = 0

    def __getitem__(self, tool: str) -> bytes | None:
        return self._heard.get(tool) or self._known.get(tool)

    def learn(self, listed: Bytes) -> None:
        """Take note of the result of a `tools/list`."""
        if MARK not in bytes(listed):
            return
        try:
            tools = msgspec.json.decode(listed, type=_Tools).tools
        except (msgspec.DecodeError, RecursionError):
            return
        for tool in tools:
            schema = bytes(tool.schema)
            if MARK in schema:
                self._keep(tool.name, schema)

    def _keep(self, name: str, schema: bytes) -> None:
        size = len(schema) - len(self._heard.get(name, b""))
        if len(self._heard) < MAX_SCHEMAS and self._size + size <= MAX_SCHEMA_BYTES:
            self._heard[name] = schema
            self._size += size

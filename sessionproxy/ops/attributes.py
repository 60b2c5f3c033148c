"""Names and values of what spans say, and whence a request's are known. No OpenTelemetry needed.

Those of the field are the semantic conventions' for MCP (open-telemetry/semantic-conventions-genai,
docs/gen-ai/mcp.md); what begins with `sessionproxy.` is ours. What is called, and a resource's URI,
are told; arguments and results never. Neighbours: `ops.tracing`.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, cast

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ..wire import Bytes

METHOD: Final = "mcp.method.name"
SESSION: Final = "mcp.session.id"
"""The session's label, as in the log: never the id, which is a secret of its client's."""
VERSION: Final = "mcp.protocol.version"
URI: Final = "mcp.resource.uri"
TOOL: Final = "gen_ai.tool.name"
PROMPT: Final = "gen_ai.prompt.name"
OPERATION: Final = "gen_ai.operation.name"
REQUEST_ID: Final = "jsonrpc.request.id"
ERROR: Final = "error.type"
STATUS: Final = "rpc.response.status_code"
TRANSPORT: Final = "network.transport"

SERVER: Final = "sessionproxy.server"
"""Name of the configured backend."""
PROVIDER: Final = "sessionproxy.provider.type"
BACKEND_NAME: Final = "sessionproxy.backend.name"
BACKEND_URI: Final = "sessionproxy.backend.uri"
BACKEND_TEMPLATE: Final = "sessionproxy.backend.uri_template"
"""What the backend calls it, whatever name the client knows it by."""

TOOL_ERROR: Final = "tool_error"
"""The `error.type` of a result with `isError`."""

CARRIED: Final = ("traceparent", "tracestate", "baggage")
"""What carries a trace, as headers and as members of `_meta` (SEP-414)."""

LONGEST: Final = 256
"""Characters of a name or URI that are told: clients may send any."""

Attributes = dict[str, str]


class Target(NamedTuple):
    """What a request is about; None: not that."""

    tool: str | None = None
    prompt: str | None = None
    uri: str | None = None
    template: str | None = None

    @property
    def attributes(self) -> Attributes:
        """As the field names it."""
        found = {
            TOOL: self.tool,
            OPERATION: None if self.tool is None else "execute_tool",
            PROMPT: self.prompt,
            URI: self.uri,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def at_backend(self) -> Attributes:
        """As we name it, of a request that the backend gets."""
        return backend_attributes(
            name=self.tool or self.prompt, uri=self.uri, uri_template=self.template
        )


def backend_attributes(
    *, name: str | None = None, uri: str | None = None, uri_template: str | None = None
) -> Attributes:
    """Return what tells where something came from, by the name that it has there."""
    found = {BACKEND_NAME: name, BACKEND_URI: uri, BACKEND_TEMPLATE: uri_template}
    return {name: value for name, value in found.items() if value is not None}


class _Params(msgspec.Struct):
    """Of any request: members may be of any kind."""

    name: Raw | UnsetType = UNSET
    uri: Raw | UnsetType = UNSET
    ref: Raw | UnsetType = UNSET
    meta: Raw | UnsetType = msgspec.field(default=UNSET, name="_meta")


class Said(NamedTuple):
    """What the parameters of a request say."""

    target: Target
    carrier: dict[str, str]
    """The trace that their `_meta` carries."""


def said_by(method: str, params: Bytes | None) -> Said:
    """Return what is said; parameters that make no sense say nothing."""
    try:
        found = _Params() if params is None else msgspec.json.decode(params, type=_Params)
    except (msgspec.DecodeError, RecursionError):
        found = _Params()
    return Said(_target(method, found), _strings(found.meta, CARRIED))


def _target(method: str, params: _Params) -> Target:
    if method == "tools/call":
        return Target(tool=_text(params.name))
    if method == "prompts/get":
        return Target(prompt=_text(params.name))
    if method in ("resources/read", "resources/subscribe", "resources/unsubscribe"):
        return Target(uri=_text(params.uri))
    if method == "completion/complete":
        ref = _strings(params.ref, ("type", "name", "uri"))
        if ref.get("type") == "ref/resource":
            return Target(template=_cut(ref.get("uri")))
        return Target(prompt=_cut(ref.get("name")))
    return Target()


def _text(value: Raw | UnsetType) -> str | None:
    found = None if value is UNSET else _decoded(value)
    return _cut(found) if isinstance(found, str) else None


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:LONGEST]


def _strings(value: Raw | UnsetType, wanted: Sequence[str]) -> dict[str, str]:
    """Return those members of an object that are wanted, and are strings."""
    found = None if value is UNSET else _decoded(value)
    members = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    chosen = ((name, members.get(name)) for name in wanted)
    return {name: value for name, value in chosen if isinstance(value, str)}


def _decoded(value: Raw) -> object:
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return None


def request_id(encoded: bytes) -> str:
    """Return an id as spans have it: as text, whether it is a number or a string."""
    found = _decoded(Raw(encoded))
    return found[:LONGEST] if isinstance(found, str) else encoded.decode(errors="replace")

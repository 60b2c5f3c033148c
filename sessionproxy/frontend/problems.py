"""Where an exception becomes an answer: the only such place.

Neighbours: `frontend.endpoint` and `frontend.reply` call it; nobody below knows HTTP.
"""

from collections.abc import Mapping
from math import ceil
from typing import Final, NamedTuple

import msgspec

from .. import errors, wire
from ..core.exchange import Exchange, Outcome
from ..core.relay import INTERNAL_ERROR
from ..errors import BackendError, Exit, ProxyError
from ..wire import HANDSHAKE_VERSIONS

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
"""JSON-RPC 2.0, section 5.1."""

UNSUPPORTED_PROTOCOL_VERSION: Final = -32022
"""2026-07-28 basic: lists the revisions that are spoken, so that a client can choose again."""

REQUEST_CANCELLED: Final = -32800
"""Of the Language Server Protocol; MCP has no code for it, and its Python SDK uses this one."""

SERVER_ERROR: Final = -32000
"""The first of the range that JSON-RPC leaves to implementations."""

FAULT_KEY: Final = "sessionproxy/fault"
LOSS_KEY: Final = "sessionproxy/loss"
"""Members of `_meta` that the proxy adds."""


class Answer(NamedTuple):
    http_status: int
    """200: in the response to the request itself. Else the body has `id: null`."""
    jsonrpc_code: int


ANSWERS: Final[Mapping[type[ProxyError], Answer]] = {
    errors.MalformedMessage: Answer(400, PARSE_ERROR),
    errors.InvalidMessage: Answer(400, INVALID_REQUEST),
    errors.BodyTooLarge: Answer(413, INVALID_REQUEST),
    errors.BodyTimeout: Answer(408, INVALID_REQUEST),
    errors.HeadTooLarge: Answer(431, INVALID_REQUEST),
    errors.HeadTimeout: Answer(408, INVALID_REQUEST),
    errors.UnsupportedMediaType: Answer(415, INVALID_REQUEST),
    errors.NotAcceptable: Answer(406, INVALID_REQUEST),
    errors.MethodNotAllowed: Answer(405, INVALID_REQUEST),
    errors.UnknownPath: Answer(404, INVALID_REQUEST),
    errors.ConflictingHeaders: Answer(400, INVALID_REQUEST),
    errors.HostRefused: Answer(403, INVALID_REQUEST),
    errors.OriginRefused: Answer(403, INVALID_REQUEST),
    errors.ForwardedRefused: Answer(403, INVALID_REQUEST),
    errors.UnsupportedVersion: Answer(400, UNSUPPORTED_PROTOCOL_VERSION),
    errors.MissingSessionId: Answer(400, INVALID_REQUEST),
    errors.AlreadyInitialized: Answer(400, INVALID_REQUEST),
    errors.StreamNotKept: Answer(400, INVALID_REQUEST),
    errors.SessionNotFound: Answer(404, INVALID_REQUEST),  # 404: transports#session-management
    errors.SessionEnded: Answer(200, SERVER_ERROR),
    errors.RequestCancelled: Answer(200, REQUEST_CANCELLED),
    errors.AtCapacity: Answer(503, INTERNAL_ERROR),
    errors.TooManyConnections: Answer(503, INTERNAL_ERROR),
    errors.Shortage: Answer(503, INTERNAL_ERROR),
    errors.AnswerNotTaken: Answer(503, INTERNAL_ERROR),
    errors.Draining: Answer(503, INTERNAL_ERROR),
    errors.RouteResting: Answer(503, INTERNAL_ERROR),
    # What the backend did is told with 200: SDK clients drop the text of a 5xx.
    errors.BackendStartFailed: Answer(200, INTERNAL_ERROR),
    errors.InitializeRefused: Answer(200, INTERNAL_ERROR),
    errors.BackendGone: Answer(200, INTERNAL_ERROR),
    errors.BackendSilent: Answer(200, INTERNAL_ERROR),
    errors.BackendBusy: Answer(200, INTERNAL_ERROR),
    errors.ResultTooLarge: Answer(200, INTERNAL_ERROR),
    errors.StateLost: Answer(200, INTERNAL_ERROR),
}

_SAID: Final[Mapping[type[ProxyError], str]] = {
    # One text for all cases, whatever the log says: ids cannot be probed.
    errors.SessionNotFound: "Session not found",
    errors.AtCapacity: "Too many sessions; try again later",
    errors.TooManyConnections: "Too many connections; try again later",
    errors.Shortage: "This machine has no room for another backend; try again later",
    errors.Draining: "The proxy is shutting down",
    errors.RouteResting: "The backend does not start; try again later",
}


class HttpProblem(NamedTuple):
    """A whole HTTP answer."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def in_band(error: ProxyError) -> bool:
    """Return whether the error is told in the response to the request, not by HTTP status."""
    return ANSWERS[type(error)].http_status == 200


def http_problem(error: ProxyError) -> HttpProblem:
    """Return the answer to a request that got no further; its body has `id: null`."""
    answer = ANSWERS[type(error)]
    headers: list[tuple[bytes, bytes]] = []
    data = None
    if isinstance(error, errors.TryLater):
        headers.append((b"retry-after", b"%d" % ceil(error.retry_after)))
    elif isinstance(error, errors.MethodNotAllowed):
        headers.append((b"allow", b"GET, POST, DELETE, OPTIONS"))
    elif isinstance(error, errors.BodyTooLarge | errors.BodyTimeout):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    elif isinstance(error, errors.UnsupportedVersion):
        data = {"supported": list(HANDSHAKE_VERSIONS), "requested": str(error)}
    body = wire.encode_error(answer.jsonrpc_code, _said(error), data)
    return HttpProblem(answer.http_status, tuple(headers), body)


def _said(error: ProxyError) -> str:
    if isinstance(error, errors.UnsupportedVersion):
        return "Unsupported protocol version"
    return _SAID.get(type(error)) or str(error) or error.reason.replace("_", " ")


def rpc_answer(exchange: Exchange, outcome: Outcome, *, expose_stderr: bool) -> bytes:
    """Return the JSON-RPC response to an exchange, under the client's own id."""
    if outcome.failure is None:
        return wire.encode_answer(exchange.client_id, result=outcome.result, error=outcome.error)
    error = outcome.failure
    if isinstance(error, errors.InitializeRefused) and exchange.method == "initialize":
        return wire.encode_answer(exchange.client_id, result=None, error=error.error)
    fault = _fault(error, expose_stderr=expose_stderr) if isinstance(error, BackendError) else None
    if fault is not None and exchange.treatment.tool:
        result = {
            "content": [{"type": "text", "text": _said(error)}],
            "isError": True,
            "_meta": {FAULT_KEY: fault},
        }
        return wire.encode_result(exchange.client_id, msgspec.json.encode(result))
    data = None if fault is None else {FAULT_KEY: fault}
    code = ANSWERS[type(error)].jsonrpc_code
    return wire.encode_error(code, _said(error), data, request_id=exchange.client_id)


def _fault(error: BackendError, *, expose_stderr: bool) -> dict[str, object]:
    """Return what a program can read of a backend's failure."""
    fault: dict[str, object] = {
        "kind": error.reason,
        "outcome": "not_executed" if error.executed is False else "unknown",
    }
    how: Exit | None = getattr(error, "exit", None)
    if how is not None:
        if how.code is not None:
            fault["exitCode"] = how.code
        if how.signal is not None:
            fault["signal"] = how.signal
        if expose_stderr and how.stderr:
            fault["stderr"] = list(how.stderr)
    return fault

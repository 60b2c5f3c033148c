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
from ..wire import SERVED_VERSIONS

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
"""JSON-RPC 2.0, section 5.1."""

UNSUPPORTED_PROTOCOL_VERSION: Final = -32022
"""2026-07-28 basic: lists the revisions that are spoken, so that a client can choose again."""

REQUEST_CANCELLED: Final = -32800
"""Of the Language Server Protocol; MCP has no code for it, and its Python SDK uses this one."""

INVALID_PARAMS: Final = -32602
METHOD_NOT_FOUND: Final = -32601
"""JSON-RPC 2.0, section 5.1."""

HEADER_MISMATCH: Final = -32020
MISSING_CAPABILITY: Final = -32021
"""2026-07-28 basic#error-codes."""

STATUSES: Final[Mapping[int, int]] = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    METHOD_NOT_FOUND: 404,
    HEADER_MISMATCH: 400,
    MISSING_CAPABILITY: 400,
    UNSUPPORTED_PROTOCOL_VERSION: 400,
}
"""HTTP statuses of JSON-RPC errors in the modern era (2026-07-28
basic/transports/streamable-http); 200 for others."""

SERVER_ERROR: Final = -32000
"""The first of the range that JSON-RPC leaves to implementations."""

FAULT_KEY: Final = "sessionproxy/fault"
LOSS_KEY: Final = "sessionproxy/loss"
SESSION_KEY: Final = "sessionproxy/session"
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
    errors.NotInitialized: Answer(400, INVALID_REQUEST),
    errors.StreamNotKept: Answer(400, INVALID_REQUEST),
    errors.InvalidEnvelope: Answer(400, INVALID_PARAMS),
    errors.HeaderMismatch: Answer(400, HEADER_MISMATCH),
    errors.MethodNotFound: Answer(404, METHOD_NOT_FOUND),
    errors.InvalidRequestState: Answer(400, INVALID_PARAMS),
    errors.ConflictingKeys: Answer(400, INVALID_PARAMS),
    errors.MissingKey: Answer(400, INVALID_PARAMS),
    errors.UnknownHandle: Answer(200, INVALID_PARAMS),
    errors.HandleEnded: Answer(200, INVALID_PARAMS),
    errors.HandleMissing: Answer(200, INVALID_PARAMS),
    errors.Unauthorized: Answer(401, INVALID_REQUEST),
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
    errors.BackendUnreachable: Answer(200, INTERNAL_ERROR),
    errors.BackendRefused: Answer(200, INTERNAL_ERROR),
    errors.BackendFailed: Answer(200, INTERNAL_ERROR),
    errors.StateLost: Answer(200, INTERNAL_ERROR),
    errors.NoLongerWaiting: Answer(200, INTERNAL_ERROR),
    errors.BackendAsksOn: Answer(200, INTERNAL_ERROR),
}

_SAID: Final[Mapping[type[ProxyError], str]] = {
    # One text for all cases, whatever the log says: ids cannot be probed.
    errors.SessionNotFound: "Session not found",
    errors.InvalidRequestState: "Invalid or expired requestState",
    errors.AtCapacity: "Too many sessions; try again later",
    errors.TooManyConnections: "Too many connections; try again later",
    errors.Unauthorized: "Unauthorized",
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
    elif isinstance(error, errors.Unauthorized):  # RFC 6750 section 3
        why = b'Bearer error="invalid_token"' if error.presented else b"Bearer"
        headers.append((b"www-authenticate", why))
    elif isinstance(error, errors.BodyTooLarge | errors.BodyTimeout):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    elif isinstance(error, errors.UnsupportedVersion):
        data = _versions(error)
    body = wire.encode_error(answer.jsonrpc_code, _said(error), data)
    return HttpProblem(answer.http_status, tuple(headers), body)


def _versions(error: errors.UnsupportedVersion) -> dict[str, object]:
    return {"supported": list(SERVED_VERSIONS), "requested": str(error)}


def _said(error: ProxyError) -> str:
    if isinstance(error, errors.UnsupportedVersion):
        return "Unsupported protocol version"
    said = _SAID.get(type(error))
    if said is not None:
        return error.of_server(said)
    return str(error) or error.reason.replace("_", " ")


def modern_only(message: wire.Message) -> bytes:
    """Return the answer to an `initialize` on a connection that goes on as it began."""
    params = message.object_params()
    requested = None if params is None else wire.text_member(params, "protocolVersion")
    data: dict[str, object] = {"supported": list(wire.MODERN_VERSIONS)}
    if requested is not None:
        data["requested"] = requested
    text = "This connection has begun without initialize, and goes on so"
    return wire.encode_error(
        UNSUPPORTED_PROTOCOL_VERSION, text, data, request_id=message.request_id()
    )


def modern_problem(
    error: ProxyError, request_id: bytes, *, expose_stderr: bool = False
) -> HttpProblem:
    """Return the answer to a modern request that got no further, under its own id."""
    if isinstance(error, errors.HandleRefused):
        fault = {"kind": error.reason, "outcome": "not_executed"}
        return HttpProblem(200, (), _tool_error(request_id, error, fault, modern=True))
    if isinstance(error, errors.UnsupportedVersion):
        data: object = _versions(error)
    elif isinstance(error, errors.InvalidRequestState):
        data = {"reason": error.reason}
    elif isinstance(error, BackendError):
        data = {FAULT_KEY: _fault(error, expose_stderr=expose_stderr)}
    else:
        data = None
    whole = http_problem(error)
    code = ANSWERS[type(error)].jsonrpc_code
    body = wire.encode_error(code, _said(error), data, request_id=request_id)
    return whole._replace(body=body)


def modern_answer(
    exchange: Exchange, outcome: Outcome, *, expose_stderr: bool
) -> tuple[bytes, int]:
    """Return the JSON-RPC response to a modern exchange, and its HTTP status where it is JSON."""
    error = outcome.failure
    if error is not None and not in_band(error):
        whole = modern_problem(error, exchange.client_id)
        return whole.body, whole.status
    answer = rpc_answer(exchange, outcome, expose_stderr=expose_stderr)
    if outcome.error is None:
        return answer, 200
    code = wire.code_of(outcome.error)
    return answer, 200 if code is None else STATUSES.get(code, 200)


def result_answer(request_id: bytes, result: wire.Bytes) -> bytes:
    return wire.encode_result(request_id, result)


def rpc_answer(exchange: Exchange, outcome: Outcome, *, expose_stderr: bool) -> bytes:
    """Return the JSON-RPC response to an exchange, under the client's own id."""
    if outcome.failure is None:
        return wire.encode_answer(exchange.client_id, result=outcome.result, error=outcome.error)
    error = outcome.failure
    if isinstance(error, errors.InitializeRefused) and exchange.method == "initialize":
        return wire.encode_answer(exchange.client_id, result=None, error=error.error)
    fault = _fault(error, expose_stderr=expose_stderr) if isinstance(error, BackendError) else None
    if fault is not None and exchange.treatment.tool:
        modern = exchange.envelope is not None
        return _tool_error(exchange.client_id, error, fault, modern=modern)
    data = None if fault is None else {FAULT_KEY: fault}
    code = ANSWERS[type(error)].jsonrpc_code
    return wire.encode_error(code, _said(error), data, request_id=exchange.client_id)


def _tool_error(
    request_id: bytes, error: ProxyError, fault: Mapping[str, object], *, modern: bool
) -> bytes:
    """Return a response with a tool's result that says what went wrong, for a model to act on."""
    result: dict[str, object] = {
        "content": [{"type": "text", "text": _said(error)}],
        "isError": True,
        "_meta": {FAULT_KEY: fault},
    }
    if modern:
        result["resultType"] = "complete"
    return wire.encode_result(request_id, msgspec.json.encode(result))


def _fault(error: BackendError, *, expose_stderr: bool) -> dict[str, object]:
    """Return what a program can read of a backend's failure."""
    fault: dict[str, object] = {
        "kind": error.reason,
        "outcome": "not_executed" if error.executed is False else "unknown",
    }
    if error.server:
        fault["server"] = error.server
    how: Exit | None = getattr(error, "exit", None)
    if how is not None:
        if how.code is not None:
            fault["exitCode"] = how.code
        if how.signal is not None:
            fault["signal"] = how.signal
        if expose_stderr and how.stderr:
            fault["stderr"] = list(how.stderr)
    return fault

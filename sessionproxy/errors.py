"""Every failure the proxy raises on purpose, sorted by who must act on it.

Neighbours: raised by `wire`, `core`, `http` and `backends`; given a status and a JSON-RPC code
only in `frontend.problems`; counted under `reason`. Imports nothing of ours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self, cast


class ProxyError(Exception):
    """Raise a leaf class: its type decides the answer, its message is one plain sentence."""

    reason: ClassVar[str]
    """Metric label, log field and `kind` of a fault, lower_snake. Part of the public surface."""

    server: str = ""
    """Of several servers, the one that it was."""

    of_caller: bool = False
    """It came of who has asked, and others may fare better."""

    def __str__(self) -> str:
        return self.of_server(super().__str__())

    def of_server(self, text: str) -> str:
        """Return a text about this failure that names the server, where there are several."""
        return f"Server {self.server!r}: {text}" if self.server else text

    def fresh(self) -> Self:
        """Return the same failure, never raised: one that is kept, and raised for everybody who
        asks, would keep all their frames alive in its traceback."""
        copy = type(self).__new__(type(self), *self.args)
        copy.__dict__.update(self.__dict__)
        return copy


class FrontendError(ProxyError):
    """The caller must act. Logged at INFO, without a traceback."""


class BackendError(ProxyError):
    """The operator must act. Logged at WARNING, with how the backend ended."""

    executed: bool | None = None
    """Whether the request ran: False where it certainly did not, None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a backend ended. `code` and `signal` are None where the end has no such number."""

    code: int | None = None
    signal: str | None = None
    detail: str = ""
    """Why, where neither code nor signal tells: `closed its output`; then it is what is said."""
    stderr: tuple[str, ...] = ()
    """Its last lines on stderr, oldest first."""

    def __str__(self) -> str:
        if self.detail:
            return self.detail
        if self.signal is not None:
            return f"killed by {self.signal}"
        return "ended" if self.code is None else f"exit status {self.code}"


# -- what the caller sent ----------------------------------------------------------------------


class MalformedMessage(FrontendError):
    """Not JSON, not UTF-8, or nested too deep."""

    reason = "malformed_message"


class InvalidMessage(FrontendError):
    """JSON, but not a JSON-RPC message that the revision allows here."""

    reason = "invalid_message"


class BodyTooLarge(FrontendError):
    reason = "body_too_large"


class BodyTimeout(FrontendError):
    """The body did not arrive within the read deadline."""

    reason = "body_timeout"


class HeadTooLarge(FrontendError):
    reason = "head_too_large"


class HeadTimeout(FrontendError):
    """The head of a request did not arrive within the read deadline."""

    reason = "head_timeout"


class UnsupportedMediaType(FrontendError):
    """The Content-Type is not `application/json`, or the Content-Encoding not `identity`."""

    reason = "unsupported_media_type"


class NotAcceptable(FrontendError):
    """The Accept header excludes what the endpoint has to answer with."""

    reason = "not_acceptable"


class MethodNotAllowed(FrontendError):
    reason = "method_not_allowed"


class UnknownPath(FrontendError):
    reason = "unknown_path"


class ConflictingHeaders(FrontendError):
    """A header that decides where a request goes was sent twice."""

    reason = "conflicting_headers"


class HostRefused(FrontendError):
    """The Host header names no host this proxy answers for (DNS rebinding)."""

    reason = "host_refused"


class OriginRefused(FrontendError):
    """The Origin header is not allowed."""

    reason = "origin_refused"


class ForwardedRefused(FrontendError):
    """It came through another proxy, which would make everybody the local owner."""

    reason = "forwarded_refused"


class UnsupportedVersion(FrontendError):
    """The MCP-Protocol-Version header names a revision that is not spoken here."""

    reason = "unsupported_version"


class MissingSessionId(FrontendError):
    reason = "missing_session_id"


class NotInitialized(FrontendError):
    """A request of the handshake era before `initialize`, on a channel without session ids."""

    reason = "not_initialized"


class InvalidEnvelope(FrontendError):
    """A modern request lacks what every one has to say of itself, or says it wrongly."""

    reason = "invalid_envelope"


class HeaderMismatch(FrontendError):
    """A header does not say what the body says, or is missing, or there twice."""

    reason = "header_mismatch"


class MethodNotFound(FrontendError):
    """The method does not exist in the revision that the request is of."""

    reason = "method_not_found"


class InvalidRequestState(FrontendError):
    """A `requestState` that was not given out for this request; why is for the log alone."""

    reason = "invalid_request_state"


class ConflictingKeys(FrontendError):
    """A request says in two places which conversation it belongs to, and not the same."""

    reason = "conflicting_keys"


class MissingKey(FrontendError):
    """A request says nowhere which conversation it belongs to, and there is no default one."""

    reason = "missing_key"


class HandleRefused(FrontendError):
    """A tool's call whose handle is no good; told as the tool's result, for a model to act on."""


class UnknownHandle(HandleRefused):
    """Made up, or another owner's: one answer, so handles cannot be probed."""

    reason = "unknown_handle"


class HandleEnded(HandleRefused):
    """The session that it stood for has ended."""

    reason = "handle_ended"


class HandleMissing(HandleRefused):
    """A handle is required, and none was given."""

    reason = "handle_missing"


class Unauthorized(FrontendError):
    """No credential, or one that is not good here."""

    reason = "unauthorized"

    def __init__(self, message: str, *, presented: bool = False) -> None:
        """`presented`: there was one."""
        super().__init__(message)
        self.presented = presented


class AlreadyInitialized(FrontendError):
    """`initialize` on a session that has been initialised."""

    reason = "already_initialized"


class StreamNotKept(FrontendError):
    """`Last-Event-ID` names a stream that ended too long ago to be replayed."""

    reason = "stream_not_kept"


# -- which session ------------------------------------------------------------------------------


class SessionNotFound(FrontendError):
    """Unknown, ended, or another caller's: one answer, so ids cannot be probed."""

    reason = "session_not_found"


class SessionEnded(FrontendError):
    """The session was ended while the request was in flight."""

    reason = "session_ended"


class RequestCancelled(FrontendError):
    """The caller cancelled the request itself."""

    reason = "request_cancelled"


class TryLater(FrontendError):
    """Nothing is wrong with the request; the answer says when to repeat it."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        """`retry_after`: seconds after which another try makes sense."""
        super().__init__(message)
        self.retry_after = retry_after


class AtCapacity(TryLater):
    """A limit is full and the queue too, or it took too long; nothing was started."""

    reason = "at_capacity"


class TooManyConnections(TryLater):
    """As many connections are open as the limit on open files allows beside the backends."""

    reason = "too_many_connections"


class Shortage(TryLater):
    """This machine has no descriptor, process, memory or disk space left for one more backend."""

    reason = "shortage"


class AnswerNotTaken(TryLater):
    """The backend does not read its input, and there is no room for one more answer to it."""

    reason = "answer_not_taken"


class Draining(TryLater):
    """The proxy is shutting down and takes nothing new."""

    reason = "draining"


class RouteResting(TryLater):
    """The backend failed to start several times; it rests before the next try."""

    reason = "route_resting"


# -- the backend ---------------------------------------------------------------------------------


class _Ended(BackendError):
    def __init__(self, message: str, exit: Exit | None = None) -> None:
        """`exit`: how the backend ended, where it did."""
        super().__init__(message)
        self.exit = exit


class BackendStartFailed(_Ended):
    """It could not be launched, or did not answer `initialize` in time."""

    reason = "backend_start_failed"
    executed: bool | None = False
    counted = False
    """It does not count for the route: somebody else who waited for the same start was given it
    too, or it was one caller's fault."""


class InitializeRefused(BackendError):
    """It answered `initialize` with a JSON-RPC error, which goes to the client as it is."""

    reason = "initialize_refused"
    executed: bool | None = False

    def __init__(self, message: str, error: bytes) -> None:
        super().__init__(message)
        self.error = error


class BackendGone(_Ended):
    """It ended while requests were waiting on it."""

    reason = "backend_gone"


class BackendSilent(BackendError):
    """It did not answer within the call limit."""

    reason = "backend_silent"


class BackendBusy(BackendError):
    """It does not read its input, and the buffer in front of it is full."""

    reason = "backend_busy"
    executed: bool | None = False


class ResultTooLarge(BackendError):
    """Its answer was longer than `max_line` and was discarded."""

    reason = "result_too_large"


class BackendUnreachable(BackendError):
    """No connection to it could be made, so it has not even seen the request."""

    reason = "backend_unreachable"
    executed: bool | None = False


class BackendRefused(BackendError):
    """It sent the request back by an HTTP status that says so."""

    reason = "backend_refused"
    executed: bool | None = False


class BackendFailed(BackendError):
    """It failed over the request, or broke its answer off."""

    reason = "backend_failed"


class BackendAsksOn(BackendError):
    """It went on asking for input, round after round."""

    reason = "backend_asks_on"


class NoLongerWaiting(BackendError):
    """The request that these answers belong to has ended, somehow: it may have run."""

    reason = "no_longer_waiting"


class StateLost(BackendError):
    """The backend that held the session's state is gone; a fresh one is ready."""

    reason = "state_lost"
    executed: bool | None = False
    on_told: Callable[[], None] | None = None
    """To be called once the client has this: only then does the loss count as told."""


class IllegalTransition(RuntimeError):
    """A bug of ours. No `except` names it."""


def alone(error: BaseException, *kinds: type[BaseException]) -> BaseException:
    """Return what the task groups that an error came through have wrapped up; of several the first
    one of these kinds."""
    while isinstance(error, BaseExceptionGroup):
        several = cast("BaseExceptionGroup[BaseException]", error)
        found = several.subgroup(kinds)
        if found is None and len(several.exceptions) != 1:
            return several
        error = (found or several).exceptions[0]
    return error

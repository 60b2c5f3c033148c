"""What a client does with what its server asks and tells: five handlers, each to be replaced or
switched off.

The default ones pass everything on to the client of the proxy that the present code works for.
Neighbours: `client.link` calls handlers; users write them.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from inspect import (
    isasyncgenfunction,
    isawaitable,
    iscoroutinefunction,
    isfunction,
    isgeneratorfunction,
)
from typing import Any, Final, TypeAlias, TypeVar

import mcp_types as types
import msgspec
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, TypeAdapter

from .. import wire
from ..config import ConfigError
from ..core.exchange import Exchange, Outcome
from ..core.reach import REACH, ask_client
from ..wire import Bytes
from .written import encoded

M = TypeVar("M")

ROOTS: Final = "roots/list"
SAMPLING: Final = "sampling/createMessage"
ELICITATION: Final = "elicitation/create"
LOG: Final = "notifications/message"
PROGRESS: Final = "notifications/progress"


@dataclass(frozen=True, slots=True)
class HandlerContext:
    """What a handler is told of the occasion. It runs in the context of the request that the server
    works on, so ContextVars are those of that request."""

    exchange: Exchange | None
    """That request; None: the server asks for none."""
    meta: Mapping[str, Any]
    """`_meta` of what the server asks."""


Sampled: TypeAlias = types.CreateMessageResult | types.CreateMessageResultWithTools

RootsHandler = Callable[[HandlerContext], Awaitable[types.ListRootsResult | types.ErrorData]]
"""Returns the roots, when a server asks for them."""

SamplingHandler = Callable[
    [HandlerContext, types.CreateMessageRequestParams], Awaitable[Sampled | types.ErrorData]
]
"""Samples a message, when a server asks for one."""

ElicitationHandler = Callable[
    [HandlerContext, types.ElicitRequestParams], Awaitable[types.ElicitResult | types.ErrorData]
]
"""Returns what the user says, when a server asks."""

LogHandler = Callable[[types.LoggingMessageNotificationParams], Awaitable[None]]
"""Takes a log message of a server."""

ProgressHandler = Callable[[float, float | None, str | None], Awaitable[None]]
"""Takes what a server tells of its progress: how much, of how much in all, and a message."""

_PARAMS: Final[TypeAdapter[types.ElicitRequestParams]] = TypeAdapter(types.ElicitRequestParams)
_SAMPLED: Final[TypeAdapter[Sampled]] = TypeAdapter(
    types.CreateMessageResultWithTools | types.CreateMessageResult
)


async def default_proxy_roots_handler(
    context: HandlerContext,
) -> types.ListRootsResult | types.ErrorData:
    """Return the roots of the client that the present code works for; an error where it has none
    to ask."""
    return _answered(await ask_client(ROOTS, None), types.ListRootsResult.model_validate_json)


async def default_proxy_sampling_handler(
    context: HandlerContext, params: types.CreateMessageRequestParams
) -> Sampled | types.ErrorData:
    """Have the client that the present code works for sample a message."""
    return _answered(await ask_client(SAMPLING, encoded(params)), _SAMPLED.validate_json)


async def default_proxy_elicitation_handler(
    context: HandlerContext, params: types.ElicitRequestParams
) -> types.ElicitResult | types.ErrorData:
    """Have the client that the present code works for ask its user."""
    outcome = await ask_client(ELICITATION, encoded(params))
    return _answered(outcome, types.ElicitResult.model_validate_json)


async def default_proxy_log_handler(params: types.LoggingMessageNotificationParams) -> None:
    """Pass a log message on to the client that the present code works for."""
    reach = REACH.get()
    if reach is not None:
        reach.tell(LOG, encoded(params))


async def default_proxy_progress_handler(
    progress: float, total: float | None, message: str | None
) -> None:
    """Tell the client that the present code works for how far it has got, if it wants to know."""
    reach = REACH.get()
    token = None if reach is None else reach.token
    if reach is None or token is None:
        return
    fields: dict[str, Bytes] = {
        "progressToken": token,
        "progress": msgspec.json.encode(progress),
    }
    if total is not None:
        fields["total"] = msgspec.json.encode(total)
    if message is not None:
        fields["message"] = msgspec.json.encode(message)
    reach.tell(PROGRESS, wire.rebuilt(fields))


@dataclass(frozen=True, kw_only=True)
class Handlers:
    """None: switched off. A server is told of no capability without its handler."""

    roots: RootsHandler | None = default_proxy_roots_handler
    sampling: SamplingHandler | None = default_proxy_sampling_handler
    elicitation: ElicitationHandler | None = default_proxy_elicitation_handler
    log: LogHandler | None = default_proxy_log_handler
    progress: ProgressHandler | None = default_proxy_progress_handler

    def check(self) -> None:
        """Raises: ConfigError: one of them is certainly no coroutine function. Of other callables
        it shows when they are called."""
        for each in fields(self):
            handler: object = getattr(self, each.name)
            if handler is not None and (not callable(handler) or _returns_at_once(handler)):
                raise ConfigError(f"{each.name}_handler: expected a coroutine function (async def)")

    @property
    def capabilities(self) -> dict[str, object]:
        """What a server may ask, as the client declares it."""
        found: dict[str, object] = {}
        if self.roots is not None:
            found["roots"] = {"listChanged": True}
        if self.sampling is not None:
            found["sampling"] = {}
        if self.elicitation is not None:
            found["elicitation"] = {"form": {}, "url": {}}
        return found

    @property
    def has_own(self) -> bool:
        """Whether one of them is the user's."""
        methods = (ROOTS, SAMPLING, ELICITATION, LOG, PROGRESS)
        return not all(self.passes_on(method) or self.is_off(method) for method in methods)

    def passes_on(self, method: str) -> bool:
        """Return whether what the server sends by this method goes on as it was written."""
        return {
            ROOTS: self.roots is default_proxy_roots_handler,
            SAMPLING: self.sampling is default_proxy_sampling_handler,
            ELICITATION: self.elicitation is default_proxy_elicitation_handler,
            LOG: self.log is default_proxy_log_handler,
            PROGRESS: self.progress is default_proxy_progress_handler,
        }.get(method, True)

    def is_off(self, method: str) -> bool:
        """Return whether a handler is switched off."""
        return {
            ROOTS: self.roots,
            SAMPLING: self.sampling,
            ELICITATION: self.elicitation,
            LOG: self.log,
            PROGRESS: self.progress,
        }.get(method, True) is None

    async def answer(self, method: str, params: Bytes | None, exchange: Exchange | None) -> Outcome:
        """Have a question answered by the handler for it.

        Raises: whatever the handler raises.
        """
        raw = b"{}" if params is None else bytes(params)
        context = HandlerContext(exchange, _meta_of(raw))
        result: BaseModel | None = None
        if method == ROOTS and self.roots is not None:
            result = await _awaited("roots", self.roots(context))
        elif method == SAMPLING and self.sampling is not None:
            found = types.CreateMessageRequestParams.model_validate_json(raw)
            result = await _awaited("sampling", self.sampling(context, found))
        elif method == ELICITATION and self.elicitation is not None:
            asked = _PARAMS.validate_json(raw)
            result = await _awaited("elicitation", self.elicitation(context, asked))
        if result is None:
            return Outcome(error=msgspec.json.encode({"code": -32601, "message": "not supported"}))
        if isinstance(result, types.ErrorData):
            return Outcome(error=encoded(result))
        return Outcome(result=encoded(result))

    async def tell(self, method: str, params: Bytes | None) -> None:
        """Have a log message or progress handled.

        Raises: whatever the handler raises.
        """
        raw = b"{}" if params is None else bytes(params)
        if method == LOG and self.log is not None:
            said = types.LoggingMessageNotificationParams.model_validate_json(raw)
            await _awaited("log", self.log(said))
        elif method == PROGRESS and self.progress is not None:
            told = types.ProgressNotificationParams.model_validate_json(raw)
            found = self.progress(told.progress, told.total, told.message)
            await _awaited("progress", found)


def _returns_at_once(handler: object) -> bool:
    """Return whether a function is certain to return nothing that can be awaited: it says so, or
    is a generator. One that says nothing may return what a coroutine function returns."""
    function = getattr(handler, "__func__", handler)  # of a bound method
    if isgeneratorfunction(function) or isasyncgenfunction(function):
        return True
    if not isfunction(function) or iscoroutinefunction(function):
        return False
    try:
        hints: dict[str, object] = function.__annotations__
    except NameError:  # something there is known to type checkers alone
        return False
    return "return" in hints and hints["return"] in (None, "None", type(None))


async def _awaited(handler: str, returned: Awaitable[M]) -> M:
    """Raises: TypeError: a handler returned something else, which types alone cannot prevent."""
    if not isawaitable(returned):
        kind = type(returned).__name__
        raise TypeError(f"{handler}_handler must be a coroutine function; it returned a {kind}")
    return await returned


def _meta_of(raw: bytes) -> Mapping[str, Any]:
    meta = wire.member(raw, "_meta")
    return {} if meta is None else msgspec.json.decode(meta, type=dict[str, Any])


def _answered(outcome: Outcome, read: Callable[[bytes], M]) -> M | types.ErrorData:
    if outcome.result is not None:
        return read(bytes(outcome.result))
    if outcome.error is not None:
        return types.ErrorData.model_validate_json(bytes(outcome.error))
    return types.ErrorData(code=types.INTERNAL_ERROR, message=str(outcome.failure))


def error_of(raw: Bytes) -> MCPError:
    """Return the exception for an encoded JSON-RPC error."""
    data = types.ErrorData.model_validate_json(bytes(raw))
    return MCPError(code=data.code, message=data.message, data=data.data)

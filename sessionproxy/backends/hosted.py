"""A backend that is a server of the official SDK in this very process: one run of it.

Between the relay and the server are two streams, as the SDK has them between any server and its
transport. The server reads in a task of its own, in which also its lifespan is entered and left;
its first message decides its era. What it says names the request that it belongs to, so
attribution is exact. Neighbours: `backends.memory` starts and stops it.
"""

import asyncio  # noqa: TID251 - only it knows whether a task is being cancelled behind a shield
import logging
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context, copy_context
from inspect import isawaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias, cast

import anyio
import anyio.lowlevel
import msgspec

from .. import wire
from ..core.background import of_the_users
from ..core.context import inside
from ..core.exchange import Exchange, Outcome
from ..core.hooks import Sender, current_request
from ..core.latch import Latch
from ..core.ports import Identity, Upstream
from ..core.reach import Scope, reaching
from ..core.relay import Relay
from ..errors import BackendBusy, Exit
from ..wire import Kind, Oversize
from .lifespans import Lifespans

if TYPE_CHECKING:  # it takes most of a second to load, and who has a server has loaded it
    from mcp.server.lowlevel import Server
    from mcp.server.mcpserver import MCPServer
    from mcp.shared.message import SessionMessage

logger: Final = logging.getLogger(__name__)

SdkServer: TypeAlias = "Server[Any] | MCPServer[Any]"
Factory: TypeAlias = "Callable[[], SdkServer | Awaitable[SdkServer]]"

INVALID_REQUEST: Final = -32600
INTERNAL_ERROR: Final = -32603
"""JSON-RPC 2.0, section 5.1."""

CONNECTION_CLOSED: Final = -32000
"""What the SDK answers for a server that is being cancelled."""

MAX_UNREAD: Final = 32 * 1024 * 1024
MAX_UNREAD_MESSAGES: Final = 1024
MAX_UNREAD_REPLIES: Final = 4096
"""What may wait for a server that does not read, as with `backends.stdio`, where the pipe itself
holds the first hundreds of messages."""

CANCEL_GRACE: Final = 5.0
"""Seconds for a server that is cancelled to clean up."""

BUILT_AROUND: Final = ("_lowlevel_server", "_mcp_server")
"""Where the SDK's `MCPServer`, and FastMCP's server, have the one that they are built around."""

KEPT: Final = 4096
"""Bytes of either end of a message that is too long."""

KEPT_LINES: Final = 20
"""Lines of a traceback, from its end, that say why a server failed."""

NAMED: Final = frozenset({"notifications/cancelled", "notifications/progress"})
"""Notifications that say themselves what they are about, also when a request is over."""


class NoServer(TypeError):
    """A function that should return a server did not. Its text may be shown to clients."""


class Letter(NamedTuple):
    """One message on its way to the server."""

    message: bytes
    kind: Kind
    exchange: Exchange | None
    context: Context
    """What it is handled in: that of its exchange, or of who sent it."""


class Hosted:
    """One run of a server. A `Transport`. `attach` it to its relay, then let `run` be a task."""

    def __init__(
        self,
        factory: Factory,
        identity: Identity,
        label: str,
        upstream: Upstream,
        *,
        max_line: int,
        context: Context,
        lifespans: Lifespans,
    ) -> None:
        """`upstream`: whom code of the server reaches as its client. `max_line`: bytes of one
        message. `context`: in which what it says is handed on. `lifespans`: those that it has in
        common with other runs."""
        self._factory = factory
        self._lifespans = lifespans
        self._sender = Sender.of(identity, label, upstream)
        self._label = label
        self._upstream = upstream
        self.scope: Scope = Scope()
        """What code of the server keeps for the session."""
        self._max_line = max_line
        self._context = context
        self._relay: Relay
        self._scope = anyio.CancelScope()
        # Changes with every message.
        self._letters: deque[Letter] = deque()
        self._came = Latch()
        """There is one, or there will be none."""
        self._unread_bytes = 0
        self._asked: dict[int, Exchange] = {}
        # Moves once.
        self._closing = False
        self._unheard = False
        """It was killed: what it still says is of no interest."""
        self._over = Latch()

    def attach(self, relay: Relay) -> None:
        self._relay = relay

    # -- towards the server ------------------------------------------------------------------------

    def send(self, message: bytes, kind: Kind, exchange: Exchange | None = None) -> None:
        """Give it one message to read.

        Raises: BackendBusy: it does not read, and too much waits already.
        """
        if self._closing or self._over.is_set():
            return  # who waits for an answer is told by `ended`
        limit = MAX_UNREAD_REPLIES if kind is Kind.RESPONSE else MAX_UNREAD_MESSAGES
        large = self._letters and self._unread_bytes + len(message) > MAX_UNREAD
        if large or len(self._letters) >= limit:
            raise BackendBusy("The backend does not read its input; too much waits for it already.")
        context = copy_context() if exchange is None else exchange.context.copy()
        if exchange is not None:
            self._asked[exchange.backend_id] = exchange
            reaching(context, self._upstream, exchange, self.scope, exchange.client_token)
            context.run(current_request.set, self._sender.request(exchange))
        self._unread_bytes += len(message)
        context.run(inside.set, self._context.get(inside, ()))
        self._letters.append(Letter(message, kind, exchange, context))
        self._came.set()

    async def next_letter(self) -> Letter:
        """Return the next one, at the earliest after a checkpoint. Raises: anyio.EndOfStream: there
        will be none."""
        await self._came.wait()
        while not self._letters:
            if self._closing or self._over.is_set():
                raise anyio.EndOfStream
            await self._came.wait()
        letter = self._letters.popleft()
        if not self._letters and not self._closing and not self._over.is_set():
            self._came = Latch()
        self._unread_bytes -= len(letter.message)
        return letter

    def cancel(self, exchange: Exchange) -> bool:
        self._asked.pop(exchange.backend_id, None)
        return False

    def unreadable(self, letter: Letter) -> bytes | None:
        """The server's library cannot read a message: have nobody wait for it. Return what the
        server is told in its place, if anything."""
        text = "The server's library cannot read this message."
        if letter.exchange is not None:
            self._asked.pop(letter.exchange.backend_id, None)
            error = msgspec.json.encode({"code": INVALID_REQUEST, "message": text})
            self._context.run(self._relay.settle, letter.exchange, Outcome(error=error))
        if letter.kind is not Kind.RESPONSE:
            logger.warning("session %s: a message cannot be read by the server", self._label)
            return None
        key = wire.decode(letter.message).request_id()
        return wire.encode_error(INTERNAL_ERROR, text, request_id=key)

    # -- from the server ---------------------------------------------------------------------------

    def hand_on(self, said: "SessionMessage") -> None:
        """Take what the server says."""
        if self._unheard or _is_farewell(said):
            return
        line = said.message.model_dump_json(by_alias=True, exclude_unset=True).encode()
        related: object = getattr(said.metadata, "related_request_id", None)
        via = self._asked.get(related) if isinstance(related, int) else None
        number: object = getattr(said.message, "id", None)
        method: object = getattr(said.message, "method", None)
        if related is not None and via is None and method not in NAMED:
            self._late(number)
            return
        try:  # not in the context of the handler, which is one request's
            self._context.run(self._receive, line, via)
        except Exception:  # a fault of ours with one message must not become the server's
            logger.exception("session %s: a message was lost", self._label)
        if isinstance(number, int) and method is None:
            self._asked.pop(number, None)

    def _receive(self, line: bytes, via: Exchange | None) -> None:
        if len(line) > self._max_line:
            self._relay.receive_oversize(Oversize(line[:KEPT], line[-KEPT:]), self._max_line)
        else:
            self._relay.receive(line, via)

    def _late(self, number: object) -> None:
        """Refuse what belongs to a request that is over: whose the next one is, nobody knows."""
        if number is None:
            logger.info("session %s: dropped a message of a request that is over", self._label)
            return
        text = "the request that it belongs to is over"
        key = msgspec.json.encode(number)
        with suppress(BackendBusy):  # it does not read: then it does not wait for this either
            self.send(wire.encode_error(INTERNAL_ERROR, text, request_id=key), Kind.RESPONSE)

    # -- its life ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Be the server's task, until it ends or is ended."""
        how = Exit(detail="its server returned")
        try:
            with self._scope, of_the_users():
                await self._serve()
        except (Exception, SystemExit) as error:  # whatever it is, it ends this one session
            how = _exit_of(error)
            logger.error("session %s: its backend failed: %s", self._label, how, exc_info=error)
        finally:
            self._letters.clear()
            self._over.set()
            self._came.set()
            self._asked.clear()
            if not self._closing:
                self._tell(how)

    def _tell(self, how: Exit) -> None:
        """It ended by itself."""
        try:
            self._context.run(self._relay.ended, how)
        except Exception:  # a fault of ours with one session must not end all of them
            logger.exception("session %s: the end of its backend was not noted", self._label)

    async def _serve(self) -> None:
        made = self._factory()
        server = await made if isawaitable(made) else made
        async with self._lifespans.of(server):
            inner = lowlevel(server)
            await inner.run(Incoming(self), Outgoing(self), inner.create_initialization_options())

    def kill(self) -> None:
        """Cancel it, and hand on no more of it; its end is then noticed as any other."""
        self._unheard = True
        self._scope.cancel()

    async def close(self, grace: float, hurry: Latch) -> None:
        """End it: nothing more is to be read; what does not heed that in time is cancelled.
        Shielded, and bounded.

        `grace`: seconds to end by itself; `hurry` cuts them short. A server that shields itself
        from its cancellation as well goes on: nothing within a process could end it.
        """
        self._closing = True
        self._came.set()
        with anyio.move_on_after(grace + CANCEL_GRACE, shield=True) as scope:
            await self._ends_within(grace, hurry)
            self._scope.cancel()
            await self._over.wait()
        self._letters.clear()
        if scope.cancelled_caught:
            logger.error("session %s: its backend does not heed its cancellation", self._label)

    async def _ends_within(self, seconds: float, hurry: Latch) -> None:
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:

                async def until(event: Latch) -> None:
                    await event.wait()
                    tasks.cancel_scope.cancel()

                tasks.start_soon(until, self._over)
                tasks.start_soon(until, hurry)


class Stream:
    """What the SDK's two kinds of stream have in common."""

    async def aclose(self) -> None:
        """The server uses it no more."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.aclose()


class Incoming(Stream):
    """What a server reads. A `ReadStream` of the SDK's."""

    def __init__(self, hosted: Hosted) -> None:
        from mcp.shared.message import SessionMessage
        from mcp_types import jsonrpc_message_adapter

        self._hosted = hosted
        self._wrap = SessionMessage
        self._read = jsonrpc_message_adapter.validate_json
        self.last_context: Context | None = None
        """In a copy of this the SDK handles the message that was read last."""

    async def receive(self) -> "SessionMessage":
        """Raises: anyio.EndOfStream: the session is over."""
        while True:
            letter = await self._hosted.next_letter()
            message: bytes | None = letter.message
            try:
                found = self._read(message, by_name=False)
            except ValueError:  # half a surrogate pair, a number with thousands of digits
                message = self._hosted.unreadable(letter)
                if message is None:
                    continue
                found = self._read(message, by_name=False)
            self.last_context = letter.context
            return self._wrap(found)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> "SessionMessage":
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


class Outgoing(Stream):
    """What a server writes to. A `WriteStream` of the SDK's."""

    def __init__(self, hosted: Hosted) -> None:
        self._hosted = hosted
        self._open = True

    async def send(self, item: "SessionMessage", /) -> None:
        """Raises: anyio.ClosedResourceError."""
        await anyio.lowlevel.checkpoint()  # one that never waits would stop all other sessions
        if not self._open:
            raise anyio.ClosedResourceError
        self._hosted.hand_on(item)

    async def aclose(self) -> None:
        self._open = False


def lowlevel(server: object) -> "Server[Any]":
    """Return the server that an SDK's server object is, or is built around.

    Raises: NoServer: it is none.
    """
    inner = _inner(server)
    if not is_server(server):
        raise NoServer(
            f"its function returned a {type(server).__name__}, which is no server of the SDK; one "
            "that returns clients is given as ProxyProvider(function)"
        )
    return inner  # type: ignore[return-value] # what it has is what is used of it


def is_server(found: object) -> bool:
    """Return whether something is a server of the SDK, or one built around such as FastMCP's is,
    told by what is used of it."""
    if isinstance(found, type):  # it makes them
        return False
    inner = _inner(found)
    return hasattr(inner, "create_initialization_options") and hasattr(inner, "run")


def _inner(server: object) -> object:
    for name in BUILT_AROUND:
        inner: object = getattr(server, name, None)
        if inner is not None:
            return inner
    return server


def _is_farewell(said: "SessionMessage") -> bool:
    """Return whether it is the answer for a request that the end of its server has cut short. Who
    waits for that is told why it ended."""
    code: object = getattr(getattr(said.message, "error", None), "code", None)
    if code != CONNECTION_CLOSED:
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _exit_of(error: BaseException) -> Exit:
    """Return how a server ended that raised this. Its text may be a secret of the server's, so it
    stands where the last lines of stderr would stand."""
    if isinstance(error, BaseExceptionGroup):
        several = cast("BaseExceptionGroup[BaseException]", error)
        if len(several.exceptions) == 1:
            return _exit_of(several.exceptions[0])
        error = several
    told = "".join(traceback.format_exception(error)).splitlines()[-KEPT_LINES:]
    if isinstance(error, NoServer):
        return Exit(detail=str(error), stderr=tuple(told))
    return Exit(detail=f"its server raised {type(error).__name__}", stderr=tuple(told))

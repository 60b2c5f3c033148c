"""The MCP endpoint: streamable HTTP of the four handshake revisions, as an ASGI application.

A request goes: guard, headers, body, envelope, session, relay; and its answer comes back through
a `Reply`. A session that is ready is called directly; one that has to be opened or woken gets a
task beside the answer, which ends when the client hangs up. Neighbours: `core.manager` has the
sessions; `frontend.problems` turns what is raised into answers.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass

from ..config import OnLoss
from ..core.exchange import Exchange, Outcome
from ..core.manager import SessionManager
from ..core.memory import Loss, Opening
from ..core.session import Session
from ..core.state import EndReason, SessionState
from ..errors import (
    AlreadyInitialized,
    AnswerNotTaken,
    BackendBusy,
    Draining,
    InvalidMessage,
    MethodNotAllowed,
    MissingSessionId,
    NotAcceptable,
    ProxyError,
    UnsupportedMediaType,
    UnsupportedVersion,
)
from ..http import Guard, Headers, header_of, media_type, read_body, read_headers
from ..http.request import Receive, Scope, Send
from ..wire import (
    BATCHING_VERSIONS,
    PRIMED_VERSIONS,
    Kind,
    Message,
    decode,
    split_batch,
    text_member,
)
from . import problems
from .connection import Connection, Header
from .headers import IDLE_HEADER, PREFLIGHT, accepted, check_version, cors
from .loss import told
from .reply import Reply
from .stream import Streams

logger = logging.getLogger(__name__)

Owner = str


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """How requests are served. Durations in seconds, sizes in bytes."""

    owner: Owner
    max_body: int
    keepalive: float
    on_loss: OnLoss
    idle: float | None
    expose_stderr: bool


class Endpoint:
    """One route, one path, all methods."""

    def __init__(self, manager: SessionManager, guard: Guard, serving: Serving) -> None:
        self._manager = manager
        self._guard = guard
        self._serving = serving
        self._idle_header: tuple[Header, ...] = ()
        self._beginning: set[asyncio.Task[None]] = set()
        if serving.idle is not None:
            self._idle_header = ((IDLE_HEADER, b"%.15g" % serving.idle),)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection(receive, send, scope.get("extensions"))
        try:
            headers = read_headers(scope)
            self._guard.check(headers)
            origin = headers.get(b"origin")
            if origin is not None:
                connection.extra = cors(origin)
            method: str = scope["method"]
            if method == "POST":
                await self._post(headers, receive, connection)
            elif method == "GET":
                await self._get(headers, connection)
            elif method == "DELETE":
                await self._delete(headers, connection)
            elif method == "OPTIONS" and origin is not None:
                await connection.empty(204, PREFLIGHT)
            else:
                raise MethodNotAllowed(f"{method} is not served here")
        except ProxyError as error:
            # A modern client asks first, and goes on with `initialize`: nothing is wrong.
            level = logging.DEBUG if isinstance(error, UnsupportedVersion) else logging.INFO
            logger.log(level, "refused: %s (%s)", error.reason, error)
            await connection.problem(problems.http_problem(error))
        finally:
            connection.unwatch()

    # -- POST --------------------------------------------------------------------------------------

    async def _post(self, headers: Headers, receive: Receive, connection: Connection) -> None:
        if media_type(headers.get(b"content-type", b"")) != b"application/json":
            raise UnsupportedMediaType("Content-Type must be application/json")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedMediaType("Content-Encoding must be identity")
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise UnsupportedMediaType("Transfer-Encoding must be chunked")
        if accepted(headers) != (True, True):
            raise NotAcceptable("Accept must list application/json and text/event-stream")
        body = await read_body(receive, headers, self._serving.max_body, self._manager.pauses)
        if body.lstrip()[:1] == b"[":
            await self._post_batch(headers, body, connection)
            return
        message = decode(body)
        kind = message.kind
        if kind is Kind.REQUEST and message.method == "initialize":
            await self._initialize(headers, message, connection)
            return
        session = self._session(headers)
        if kind is Kind.REQUEST:
            await self._request(session, message, connection)
        else:
            await self._take(session, message, kind)
            await connection.empty(202)

    async def _request(self, session: Session, message: Message, connection: Connection) -> None:
        reply = self._reply(session)
        exchange = _exchange(message, reply)
        if self.begin(session, exchange):
            connection.vouch(session)
            connection.watch(reply.lost)
            await self.answer(reply, session, connection)
        else:
            await self._request_slowly(session, [exchange], reply, connection)

    def begin(self, session: Session, exchange: Exchange) -> bool:
        """Pass a request on, if there is nothing to wait for and nothing to tell first."""
        if (
            session.state is not SessionState.READY
            or session.loss is not None
            or self._manager.draining
        ):
            return False
        session.request(exchange)
        return True

    def begin_fast(self, session: Session, body: bytes) -> Reply | None:
        """Begin with the body of a POST whose head was vouched for, if it is a plain request.

        None: it is not, or something is to be waited for; nothing was done.
        """
        try:
            message = decode(body)
            if message.kind is not Kind.REQUEST or message.method == "initialize":
                return None
            reply = self._reply(session)
            exchange = _exchange(message, reply)
        except ProxyError:
            return None
        return reply if self.begin(session, exchange) else None

    async def _request_slowly(
        self,
        session: Session,
        exchanges: Sequence[Exchange],
        reply: Reply,
        connection: Connection,
    ) -> None:
        """Wake the session first, or tell of a loss; a client that hangs up waits no more."""
        telling: list[Loss] = []
        tells = self._serving.on_loss is OnLoss.TELL

        async def begin() -> None:
            try:
                self._check_draining()
                await self._manager.ready(session)
            except ProxyError as error:
                for exchange in exchanges:
                    reply.fail(exchange, error)
                return
            for exchange in exchanges:
                self._begin_or_tell(session, exchange, reply, telling)

        beginning = _beside(reply, begin())

        def hung_up() -> None:
            reply.lost()
            if not beginning.done() and reply.stream is None:
                beginning.cancel()
                reply.release()

        connection.watch(hung_up)
        try:
            await self.answer(reply, session, connection)
            _raise_crash(beginning)
        finally:
            self._leave(beginning, reply)
        told_now = telling and not connection.gone and (tells or reply.noted)
        if told_now and session.loss is telling[0]:
            session.loss = None

    def _leave(self, beginning: asyncio.Task[None], reply: Reply) -> None:
        """Stop what waits beside an answer, unless the client can resume and find its answer."""
        if reply.stream is None:
            beginning.cancel()
        else:
            self._beginning.add(beginning)
            beginning.add_done_callback(self._beginning.discard)

    def _begin_or_tell(
        self, session: Session, exchange: Exchange, reply: Reply, telling: list[Loss]
    ) -> None:
        """Pass a request on, or tell instead that the state it relies on was lost."""
        loss = session.loss if exchange.treatment.uses_state else None
        if loss is not None:
            telling.append(loss)
            if self._serving.on_loss is OnLoss.TELL:
                now = asyncio.get_running_loop().time()
                exchange.settle(Outcome(failure=told(loss, now)))
                return
        reply.loss = reply.loss or loss
        try:
            session.request(exchange)
        except ProxyError as error:
            reply.fail(exchange, error)

    async def answer(
        self,
        reply: Reply,
        session: Session | None,
        connection: Connection,
        headers: Sequence[Header] = (),
    ) -> None:
        """Write what `reply` turns out to be."""
        body = await reply.decided(self._serving.keepalive)
        if body is not None:
            await connection.json(body, headers)
        elif reply.problem is not None:
            raise reply.problem
        elif reply.stream is not None:
            await connection.events(
                reply.stream,
                headers=headers,
                primed=session is not None and session.version in PRIMED_VERSIONS,
                keepalive=self._serving.keepalive,
            )

    async def _take(self, session: Session, message: Message, kind: Kind) -> None:
        """Take a notification, or the answer to a request of the backend."""
        if kind is Kind.NOTIFICATION:
            if session.state is SessionState.STARTING:
                await session.start.settled.wait()
            session.notify(str(message.method), message.object_params())
        else:
            self._take_answer(session, message)

    def _take_answer(self, session: Session, message: Message) -> None:
        """Raises: AnswerNotTaken: the backend waits on for it."""
        try:
            taken = session.answer(message.request_id(), Outcome(*message.outcome()))
        except BackendBusy as error:
            raise AnswerNotTaken(str(error), retry_after=1) from None
        if not taken:
            logger.debug("%r: an answer that nobody waits for", session)

    # -- initialize --------------------------------------------------------------------------------

    async def _initialize(self, headers: Headers, message: Message, connection: Connection) -> None:
        if b"mcp-session-id" in headers:
            raise AlreadyInitialized(f"{self._session(headers)!r} is initialised")
        check_version(headers, None)
        params = message.object_params()
        opening = Opening(bytes(params) if params is not None else b"{}")
        streams = Streams()
        reply = Reply(streams, expose_stderr=self._serving.expose_stderr)
        exchange = _exchange(message, reply)
        session = self._manager.create(
            self._serving.owner, opening, streams, reply, exchange.context
        )

        async def begin() -> None:
            try:
                await self._manager.opened(session)
                answer, session.start.answer = session.start.answer, None  # it may be large
                exchange.settle(answer or Outcome())
            except ProxyError as error:
                reply.fail(exchange, error)

        beginning = _beside(reply, begin())

        def hung_up() -> None:
            if reply.stream is None:
                beginning.cancel()
                reply.release()

        connection.watch(hung_up)
        try:
            await self._answer_initialize(session, opening, reply, connection)
            _raise_crash(beginning)
        finally:
            self._leave(beginning, reply)
            if connection.gone and reply.stream is None:  # it never learnt its session's id
                self._manager.end(session, EndReason.ABANDONED)
            elif connection.gone:  # it may come back and resume, or it may never
                streams.left()

    async def _answer_initialize(
        self, session: Session, opening: Opening, reply: Reply, connection: Connection
    ) -> None:
        body = await reply.decided(self._serving.keepalive)
        if connection.gone:
            return
        named = ((b"mcp-session-id", session.identity.key.encode()), *self._idle_header)
        if body is not None:
            # Its backend may have ended meanwhile: then it sleeps, and the id is good.
            opened = session.version is not None and session.end_reason is None
            await connection.json(body, named if opened else ())
        elif reply.problem is not None:
            raise reply.problem
        elif reply.stream is not None:
            requested = text_member(opening.params, "protocolVersion")
            await connection.events(
                reply.stream,
                headers=named,
                primed=requested in PRIMED_VERSIONS,
                keepalive=self._serving.keepalive,
            )

    # -- batches -----------------------------------------------------------------------------------

    async def _post_batch(self, headers: Headers, body: bytes, connection: Connection) -> None:
        """Serve a batch, where its revision has them (2025-03-26 basic/transports)."""
        messages = [decode(item) for item in split_batch(body)]
        kinds = [message.kind for message in messages]
        session = self._session(headers)
        if session.version not in BATCHING_VERSIONS:
            raise InvalidMessage("the body of a POST is a single message, not a batch")
        if any(message.method == "initialize" for message in messages):
            raise InvalidMessage("initialize must not be part of a batch")
        reply = Reply(
            _streams(session),
            expose_stderr=self._serving.expose_stderr,
            requests=kinds.count(Kind.REQUEST),
            batch=True,
        )
        exchanges: list[Exchange] = []
        for message, kind in zip(messages, kinds, strict=True):
            if kind is Kind.REQUEST:
                exchanges.append(_exchange(message, reply))
            else:
                await self._take(session, message, kind)
        if exchanges:
            await self._request_slowly(session, exchanges, reply, connection)
        else:
            await connection.empty(202)

    # -- GET and DELETE ----------------------------------------------------------------------------

    async def _get(self, headers: Headers, connection: Connection) -> None:
        if not accepted(headers)[1]:
            raise NotAcceptable("Accept must list text/event-stream")
        session = self._session(headers)
        self._check_draining()
        streams = _streams(session)
        last = header_of(headers, b"last-event-id")
        stream, after = streams.resumed(last) if last else (streams.standalone(), None)
        await connection.events(
            stream,
            after=after,
            primed=session.version in PRIMED_VERSIONS,
            keepalive=self._serving.keepalive,
        )

    async def _delete(self, headers: Headers, connection: Connection) -> None:
        session = self._session(headers)
        self._manager.end(session, EndReason.CLIENT_DELETE)
        await connection.empty(204)

    # -- what they share ---------------------------------------------------------------------------

    def _reply(self, session: Session) -> Reply:
        return Reply(_streams(session), expose_stderr=self._serving.expose_stderr)

    def _session(self, headers: Headers) -> Session:
        """Raises: UnsupportedVersion, MissingSessionId, SessionNotFound."""
        key = header_of(headers, b"mcp-session-id")
        if not key:
            check_version(headers, None)
            raise MissingSessionId("the Mcp-Session-Id header is missing; begin with initialize")
        session = self._manager.find(self._serving.owner, key)
        check_version(headers, session)
        return session

    def _check_draining(self) -> None:
        if self._manager.draining:
            raise Draining("the proxy is shutting down", retry_after=1)


def _beside(reply: Reply, begin: Coroutine[None, None, None]) -> asyncio.Task[None]:
    """Run `begin` beside the answer; should it crash, who waits for `reply` is woken."""
    task = asyncio.ensure_future(begin)

    def done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            reply.release()

    task.add_done_callback(done)
    return task


def _raise_crash(task: asyncio.Task[None]) -> None:
    if task.done() and not task.cancelled():
        task.result()


def _exchange(message: Message, reply: Reply) -> Exchange:
    return Exchange(
        str(message.method), message.object_params(), client_id=message.request_id(), sink=reply
    )


def _streams(session: Session) -> Streams:
    """Return the session's streams: it was opened here, so its client port is one of ours."""
    assert isinstance(session.client, Streams)
    return session.client

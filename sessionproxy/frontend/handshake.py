"""Requests of the handshake era: a session by its id, its streams, and what is sent in it.

The way of one: envelope, session, relay; and its answer comes back through a `Reply`. A session
that is ready is called directly; one that has to be opened or woken gets a task beside the answer,
which ends when the client hangs up. Neighbours: `frontend.endpoint` has let the request in;
`core.manager` has the sessions; `frontend.modern` is the same for the other era.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ..core.exchange import ClientPort, Exchange, Outcome
from ..core.manager import Attached, SessionManager
from ..core.memory import Opening
from ..core.session import Session
from ..core.state import EndReason, SessionState
from ..errors import (
    AlreadyInitialized,
    AnswerNotTaken,
    BackendBusy,
    Draining,
    MissingSessionId,
    NotAcceptable,
    ProxyError,
)
from ..http import (
    Headers,
    header_of,
)
from ..wire import (
    PRIMED_VERSIONS,
    Kind,
    Message,
    decode,
    members,
    text_member,
)
from ..wire.envelope import read_request
from . import problems
from .batches import Batch
from .beside import beside, raise_crash
from .connection import Connection, Header
from .headers import (
    IDLE_HEADER,
    accepted,
    check_version,
)
from .keys import KeyFinder, log_names
from .loss import begin_or_tell
from .modern import Modern, welcome_of
from .reply import Reply
from .serving import Serving
from .shortcut import vouch
from .stream import Streams

logger: Final = logging.getLogger(__name__)


class Found(NamedTuple):
    """What a session id stands for."""

    session: Session
    streams: Streams
    attached: Attached | None = None
    """The client's share in the session, where others may have one too."""

    @property
    def origin(self) -> object:
        """Of the client's exchanges, where others have some too."""
        return None if self.attached is None else self.streams

    def declares(self, method: str) -> bool:
        """Return whether the client may be asked `method`; one that is alone judges for itself."""
        return self.attached is None or self.attached.attachment.declares(method)


class Handshake:
    """One route's endpoint, for handshake clients. A `Shortcut` for those with a session."""

    def __init__(
        self,
        manager: SessionManager,
        serving: Serving,
        modern: Modern,
        keys: KeyFinder | None = None,
    ) -> None:
        """`modern` has the conversations. `keys`: how handshake clients find the one they have a
        share in; None: each has a session of its own."""
        self._manager = manager
        self._serving = serving
        self._modern = modern
        self._keys = keys
        self._idle_header: tuple[Header, ...] = ()
        self._beginning: set[asyncio.Task[None]] = set()
        if serving.idle is not None:
            self._idle_header = ((IDLE_HEADER, b"%.15g" % serving.idle),)

    # -- POST --------------------------------------------------------------------------------------

    async def post(
        self, headers: Headers, body: bytes, connection: Connection, path_key: str | None
    ) -> None:
        """Answer one POST whose body has been read."""
        if body.lstrip()[:1] == b"[":
            await self._post_batch(headers, body, connection)
            return
        message = decode(body)
        kind = message.kind
        log_names(message, headers)
        if kind is Kind.REQUEST and message.method == "initialize":
            if self._keys is not None:
                await self._attach(self._keys, headers, path_key, message, connection)
            else:
                await self._initialize(headers, message, connection)
            return
        found = self._found(headers, connection.owner)
        if kind is Kind.REQUEST:
            await self._request(found, message, connection)
        else:
            await self._take(found, message, kind)
            await connection.empty(202)

    async def _request(self, found: Found, message: Message, connection: Connection) -> None:
        session = found.session
        reply = self._reply(found.streams, found.declares)
        exchange = _exchange(message, reply, found.origin)
        if self.begin(session, exchange):
            if found.attached is None:
                vouch(connection, session, self)
            connection.watch(reply.lost)
            await self.answer(reply, session, connection)
        else:
            await self._request_slowly(session, [exchange], reply, connection)

    def begin(self, session: Session, exchange: Exchange) -> bool:
        """Pass a request on, if there is nothing to wait for and nothing to tell first."""
        if session.state is not SessionState.READY or session.bereaved or self._manager.draining:
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
            reply = self._reply(_streams(session.client))
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

        async def begin() -> None:
            try:
                self._check_draining()
                await self._manager.ready(session)
            except ProxyError as error:
                for exchange in exchanges:
                    reply.fail(exchange, error)
                return
            for exchange in exchanges:
                begin_or_tell(reply, session, exchange, self._serving.on_loss)

        beginning = beside(reply, begin())

        def hung_up() -> None:
            reply.lost()
            if not beginning.done() and reply.stream is None:
                beginning.cancel()
                reply.release()

        connection.watch(hung_up)
        try:
            await self.answer(reply, session, connection)
            raise_crash(beginning)
        finally:
            self._leave(beginning, reply)

    def _leave(self, beginning: asyncio.Task[None], reply: Reply) -> None:
        """Stop what waits beside an answer, unless the client can resume and find its answer."""
        if reply.stream is None:
            beginning.cancel()
        else:
            self._beginning.add(beginning)
            beginning.add_done_callback(self._beginning.discard)

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
        if reply.telling is not None and not connection.gone:
            reply.telling.written()

    async def answer_late(
        self, reply: Reply, session: Session | None, connection: Connection
    ) -> None:
        """As `answer`, for a request that did not come in here, and all that belongs to it."""
        try:
            await self.answer(reply, session, connection)
        except ProxyError as error:
            self._serving.refused(error)
            await connection.problem(problems.http_problem(error))
        finally:
            connection.unwatch()

    async def _take(self, found: Found, message: Message, kind: Kind) -> None:
        """Take a notification, or the answer to a request of the backend."""
        session = found.session
        if kind is Kind.NOTIFICATION:
            if session.state is SessionState.STARTING:
                await session.start.settled.wait()
            session.notify(str(message.method), message.object_params(), found.origin)
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
        self._check_new(headers, connection.owner)
        params = message.object_params()
        opening = Opening(bytes(params) if params is not None else b"{}")
        streams = Streams()
        reply = Reply(streams, expose_stderr=self._serving.expose_stderr)
        exchange = _exchange(message, reply)
        session = self._manager.create(connection.owner, opening, streams, reply, exchange.context)

        async def begin() -> None:
            try:
                await self._manager.opened(session)
                answer, session.start.answer = session.start.answer, None  # it may be large
                exchange.settle(answer or Outcome())
            except ProxyError as error:
                reply.fail(exchange, error)

        beginning = beside(reply, begin())

        def hung_up() -> None:
            if reply.stream is None:
                beginning.cancel()
                reply.release()

        connection.watch(hung_up)
        try:
            await self._answer_initialize(session, opening, reply, connection)
            raise_crash(beginning)
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

    # -- initialize, where sessions are shared -----------------------------------------------------

    async def _attach(
        self,
        keys: KeyFinder,
        headers: Headers,
        path_key: str | None,
        message: Message,
        connection: Connection,
    ) -> None:
        """Let one more client have a share in a conversation, whose backend is initialised once."""
        owner = connection.owner
        self._check_new(headers, owner)
        params = message.object_params()
        bound = keys.bind(owner, keys.given(owner, headers, path_key), read_request(params).meta)
        connection.give(bound.cookie)
        streams = Streams()
        reply = self._reply(streams)
        exchange = _exchange(message, reply, origin=streams)
        opening = Opening(bytes(params) if params is not None else b"{}")
        ids: list[str] = []

        async def begin() -> None:
            try:
                session = await self._modern.conversation(
                    owner, bound.key, opening, exchange.context
                )
                declared = members(opening.params).get("capabilities")
                ids.append(self._manager.attach(session, streams, declared))
                exchange.settle(Outcome(result=welcome_of(session, opening)))
            except ProxyError as error:
                reply.fail(exchange, error)

        beginning = beside(reply, begin())

        def hung_up() -> None:
            beginning.cancel()
            reply.release()

        connection.watch(hung_up)
        try:
            body = await reply.decided(self._serving.start_timeout)
            raise_crash(beginning)
            if reply.problem is not None:
                raise reply.problem
            if body is not None and not connection.gone:
                named = [(b"mcp-session-id", name.encode()) for name in ids]
                await connection.json(body, (*named, *self._idle_header) if named else ())
        finally:
            beginning.cancel()

    # -- batches -----------------------------------------------------------------------------------

    async def _post_batch(self, headers: Headers, body: bytes, connection: Connection) -> None:
        """Serve a batch, where its revision has them (2025-03-26 basic/transports)."""
        batch = Batch.of(body)
        found = self._found(headers, connection.owner)
        batch.check(found.session.version)
        reply = Reply(
            found.streams,
            expose_stderr=self._serving.expose_stderr,
            requests=len(batch.requests),
            batch=True,
            declares=found.declares,
        )
        exchanges = [_exchange(message, reply, found.origin) for message in batch.requests]
        for message, kind in batch.others:
            await self._take(found, message, kind)
        if exchanges:
            await self._request_slowly(found.session, exchanges, reply, connection)
        else:
            await connection.empty(202)

    # -- GET and DELETE ----------------------------------------------------------------------------

    async def get(self, headers: Headers, connection: Connection) -> None:
        if not accepted(headers)[1]:
            raise NotAcceptable("Accept must list text/event-stream")
        session, streams, _ = self._found(headers, connection.owner)
        self._check_draining()
        last = header_of(headers, b"last-event-id")
        stream, after = streams.resumed(last) if last else (streams.standalone(), None)
        await connection.events(
            stream,
            after=after,
            primed=session.version in PRIMED_VERSIONS,
            keepalive=self._serving.keepalive,
        )

    async def delete(self, headers: Headers, connection: Connection) -> None:
        found = self._found(headers, connection.owner)
        if found.attached is not None:
            self._manager.detach(found.attached)
        else:
            self._manager.end(found.session, EndReason.CLIENT_DELETE)
        await connection.empty(204)

    # -- what they share ---------------------------------------------------------------------------

    def _reply(
        self, streams: Streams, declares: Callable[[str], bool] = lambda method: True
    ) -> Reply:
        return Reply(streams, expose_stderr=self._serving.expose_stderr, declares=declares)

    def _check_new(self, headers: Headers, owner: str) -> None:
        """Raises: AlreadyInitialized, UnsupportedVersion, SessionNotFound."""
        if b"mcp-session-id" in headers:
            raise AlreadyInitialized(f"{self._found(headers, owner).session!r} is initialised")
        check_version(headers, None)

    def _found(self, headers: Headers, owner: str) -> Found:
        """Raises: UnsupportedVersion, MissingSessionId, SessionNotFound."""
        key = header_of(headers, b"mcp-session-id")
        if not key:
            check_version(headers, None)
            raise MissingSessionId("the Mcp-Session-Id header is missing; begin with initialize")
        attached = self._manager.attached(owner, key)
        if attached is not None:
            check_version(headers, attached.session)
            return Found(attached.session, _streams(attached.attachment.client), attached)
        session = self._manager.find(owner, key)
        check_version(headers, session)
        return Found(session, _streams(session.client))

    def _check_draining(self) -> None:
        if self._manager.draining:
            raise Draining("the proxy is shutting down", retry_after=1)


def _exchange(message: Message, reply: Reply, origin: object = None) -> Exchange:
    return Exchange(
        str(message.method),
        message.object_params(),
        client_id=message.request_id(),
        sink=reply,
        origin=origin,
    )


def _streams(client: ClientPort) -> Streams:
    """Return a client's streams: it came in here, so its port is one of ours."""
    assert isinstance(client, Streams)
    return client

"""Requests of the modern era: one POST each, no session of the protocol's (2026-07-28).

A request says itself who sends it and what its client can do; which conversation it belongs to is
ours to find out (`frontend.keys`). Discovery and lists are answered from the catalogue, everything
else goes to the conversation's backend, which is started for the first of them. A client that hangs
up has cancelled. Neighbours: `frontend.endpoint` decides the era; `eras` translates where the
backend is of the other one.
"""

from contextvars import Context
from typing import Final

from ..core.admission import retry_after
from ..core.catalogue import LISTS, Catalogue, Offer
from ..core.context import caller_owner
from ..core.exchange import Exchange
from ..core.manager import SessionManager
from ..core.memory import Opening
from ..core.session import Session
from ..core.state import EndReason, SessionState
from ..errors import (
    Draining,
    InvalidMessage,
    MethodNotFound,
    NotAcceptable,
    ProxyError,
)
from ..http import Headers
from ..wire import (
    Bytes,
    Envelope,
    Kind,
    Message,
    decode,
    text_member,
)
from ..wire.welcome import discover_params, initialize_result
from . import problems
from .beside import beside, raise_crash
from .connection import Connection
from .conversations import Asker, Conversations, RoundReader, Understood
from .handles import Handles
from .headers import accepted
from .keys import Bound, Given, KeyFinder, Way, log_names
from .ladder import (
    check_cursor,
    check_duplicates,
    envelope_of,
    mirror_of,
)
from .listening import Listeners, names_resources
from .loss import begin_or_tell
from .modern_shortcut import ModernShortcut
from .reply import ModernReply, Reply
from .serving import Serving
from .shortcut import vouch

GONE: Final = frozenset(
    {
        "initialize",
        "ping",
        "logging/setLevel",
        "resources/subscribe",
        "resources/unsubscribe",
        "tasks/list",
        "tasks/result",
    }
)
"""Methods of the handshake era that 2026-07-28 does not have."""


class Modern:
    """One route's endpoint, for modern clients."""

    def __init__(
        self,
        manager: SessionManager,
        catalogue: Catalogue,
        keys: KeyFinder,
        rounds: RoundReader,
        listeners: Listeners,
        serving: Serving,
        handles: Handles | None = None,
    ) -> None:
        """`handles`: of tools; None: they have none."""
        self._manager = manager
        self._catalogue = catalogue
        self._keys = keys
        self._rounds = rounds
        self._listeners = listeners
        self._serving = serving
        self._handles = handles
        self._conversations = Conversations(
            manager.route, catalogue, keys, rounds, handles, idle=serving.idle
        )

    async def post(
        self,
        headers: Headers,
        pairs: list[tuple[bytes, bytes]],
        path_key: str | None,
        body: bytes,
        connection: Connection,
    ) -> None:
        """Answer one POST whose body has been read.

        Raises: ProxyError: not even its id is known.
        """
        message = decode(body)
        kind = message.kind
        if kind is Kind.RESPONSE:
            raise InvalidMessage("a client of this revision sends no responses")
        if kind is Kind.NOTIFICATION:
            check_duplicates(pairs)
            await connection.empty(202)  # there is none that means anything on this transport
            return
        request_id = message.request_id()
        log_names(message, headers)
        try:
            await self._request(headers, pairs, path_key, message, connection)
        except ProxyError as error:
            self._serving.refused(error)
            expose = self._serving.expose_stderr
            problem = problems.modern_problem(error, request_id, expose_stderr=expose)
            await connection.problem(problem)

    async def _request(
        self,
        headers: Headers,
        pairs: list[tuple[bytes, bytes]],
        path_key: str | None,
        message: Message,
        connection: Connection,
    ) -> None:
        await self._rounds.prepare()
        caller_owner.set(connection.owner)  # who may have a catalogue of its own
        method = str(message.method)
        check_duplicates(pairs)
        mirror = mirror_of(headers)
        envelope = envelope_of(message, mirror)
        if method in GONE:
            raise MethodNotFound(f"{method} is not part of this revision")
        if not self._takes(envelope):
            raise Draining("the proxy is shutting down", retry_after=retry_after())
        if method == "server/discover" or method in LISTS:
            await self._answer_from_catalogue(method, message, connection)
        elif method == "subscriptions/listen":
            if not accepted(headers)[1]:
                raise NotAcceptable("Accept must list text/event-stream")
            given = self._keys.given(connection.owner, headers, path_key)
            await self._listen(given, envelope, message, connection)
        else:
            given = self._keys.given(connection.owner, headers, path_key)
            asker = Asker(connection.owner, headers, mirror, given)
            await self._pass_on(asker, envelope, message, connection)

    async def _listen(
        self, given: Given, envelope: Envelope, message: Message, connection: Connection
    ) -> None:
        owner, stateless = connection.owner, not names_resources(message)
        bound = self._keys.bind(owner, given, envelope.meta, stateless=stateless)
        connection.give(bound.cookie)
        await self._listeners.listen(
            owner,
            bound.key,
            message,
            self._catalogue.known or await self._catalogue.offer(),
            connection,
            keepalive=self._serving.keepalive,
        )

    # -- the catalogue -----------------------------------------------------------------------------

    async def _offer(self) -> Offer:
        """Return what there is, as clients see it."""
        offer = await self._catalogue.offer()
        return offer if self._handles is None else self._handles.shown(offer).offer

    async def _answer_from_catalogue(
        self, method: str, message: Message, connection: Connection
    ) -> None:
        check_cursor(message.object_params())
        result = self._catalogue.answer(await self._offer(), method)
        if result is None:
            raise MethodNotFound(f"the backend has no {method}")
        await connection.json(problems.result_answer(message.request_id(), result))

    # -- calls -------------------------------------------------------------------------------------

    async def _pass_on(
        self, asker: Asker, envelope: Envelope, message: Message, connection: Connection
    ) -> None:
        is_tool = message.method == "tools/call"
        if is_tool and self._catalogue.known is None:
            await self._catalogue.offer()
        asked = self._conversations.asked(asker, envelope, message)
        if self._handles is not None and asked.closes:
            result = self._handles.close(asker.owner, asked)
            await connection.json(problems.result_answer(message.request_id(), result))
            return
        bound = self._conversations.bound(asker, envelope, asked)
        params, envelope = self._conversations.unpacked(asked.params, envelope)
        note = self._conversations.note(asker.owner, bound, asked)
        reply = ModernReply(expose_stderr=self._serving.expose_stderr, note=note)
        exchange = _exchange(message, params, envelope, reply)
        connection.give(bound.cookie)
        session = self._manager.conversation(asker.owner, bound.key)
        if session is None or not self._begin(session, exchange, reply):
            await self._pass_on_slowly(bound, session, exchange, reply, connection)
            return
        if is_tool and self._handles is None:  # of other heads there are too many
            vouch(connection, session, ModernShortcut(self, self._conversations, asker))
        connection.watch(reply.lost)
        await self._answer(reply, connection)

    def begin_fast(
        self, asker: Asker, understood: Understood, session: Session, message: Message
    ) -> ModernReply | None:
        """Begin with a call; `session`: likely its own. None: something is to be waited for."""
        _, envelope, bound, note = understood
        key = bound.key
        found: Session | None = session
        if session.identity.key != key or session.state is not SessionState.READY:
            found = self._manager.conversation(asker.owner, key)
        if found is None:
            return None
        reply = ModernReply(expose_stderr=self._serving.expose_stderr, note=note)
        exchange = _exchange(message, message.object_params(), envelope, reply)
        return reply if self._begin(found, exchange, reply) else None

    async def answer_late(self, reply: Reply, connection: Connection) -> None:
        """Write an answer that `begin_fast` began, and that turned out to be more than a body."""
        connection.watch(reply.lost)
        try:
            await self._answer(reply, connection)
        except ProxyError as error:
            self._serving.refused(error)
            await connection.problem(problems.http_problem(error))
        finally:
            connection.unwatch()

    def _begin(self, session: Session, exchange: Exchange, reply: ModernReply) -> bool:
        """Pass a request on, if there is nothing to wait for and nothing to tell first."""
        if (
            session.state is not SessionState.READY
            or session.bereaved
            or not self._takes(exchange.envelope)
        ):
            return False
        reply.when_lost(lambda: session.cancel(exchange))
        session.request(exchange)
        return True

    def _takes(self, envelope: Envelope | None) -> bool:
        """Return whether requests are taken: while draining, those alone that go on with one that
        waits for them."""
        if not self._manager.draining:
            return True
        return envelope is not None and self._conversations.identity(envelope) is not None

    async def _pass_on_slowly(
        self,
        bound: Bound,
        session: Session | None,
        exchange: Exchange,
        reply: ModernReply,
        connection: Connection,
    ) -> None:
        """Open or wake the session first, or tell of a loss."""
        found = session
        owner, envelope = connection.owner, exchange.envelope
        assert envelope is not None

        async def begin() -> None:
            nonlocal found
            try:
                if self._manager.draining:
                    raise Draining("the proxy is shutting down", retry_after=retry_after())
                opening = Opening(discover_params(envelope), "server/discover")
                found = await self.conversation(owner, bound.key, opening, exchange.context)
                begin_or_tell(reply, found, exchange, self._serving.on_loss)
            except ProxyError as error:
                reply.fail(exchange, error)

        beginning = beside(reply, begin())

        def hung_up() -> None:
            reply.lost()
            beginning.cancel()
            if found is not None:
                found.cancel(exchange)
            if bound.way is Way.OPENED and (bound.cookie is None or reply.stream is None):
                self._abandon(owner, bound)
            reply.release()

        connection.watch(hung_up)
        try:
            await self._answer(reply, connection)
            raise_crash(beginning)
        finally:
            beginning.cancel()
        if bound.way is Way.OPENED and bound.cookie is None and not reply.said:
            self._abandon(owner, bound)

    def _abandon(self, owner: str, bound: Bound) -> None:
        """End a conversation that its client never learnt the name of."""
        session = self._manager.conversation(owner, bound.key)
        if session is not None:
            self._manager.end(session, EndReason.ABANDONED)

    async def conversation(
        self, owner: str, key: str, opening: Opening, context: Context
    ) -> Session:
        """Return the session of a conversation, ready; it is opened where there is none.

        Raises: as `SessionManager.ready`, and `Draining`, `RouteResting`.
        """
        session = self._manager.conversation(owner, key)
        if session is None:
            hearing = self._listeners.client(owner, key)
            session = self._manager.converse(owner, key, opening, hearing, context)
            self._listeners.opened(session)
        await self._manager.ready(session)
        return session

    async def _answer(self, reply: Reply, connection: Connection) -> None:
        body = await reply.decided(self._serving.keepalive)
        if connection.gone:
            return
        if body is not None:
            await connection.json(body, status=reply.status)
        elif reply.problem is not None:
            raise reply.problem
        elif reply.stream is not None:
            reply.stream.on_cut = connection.lose
            await connection.events(reply.stream, primed=False, keepalive=self._serving.keepalive)
        if reply.telling is not None and not connection.gone:
            reply.telling.written()


def _exchange(
    message: Message, params: Bytes | None, envelope: Envelope, reply: ModernReply
) -> Exchange:
    return Exchange(
        str(message.method),
        params,
        client_id=message.request_id(),
        sink=reply,
        envelope=envelope,
    )


def welcome_of(session: Session, opening: Opening) -> bytes:
    """Return the answer to `initialize` of a client that attaches to a running backend."""
    welcome = session.welcome or b"{}"
    if session.opening.modern:
        return initialize_result(welcome, text_member(opening.params, "protocolVersion"))
    return welcome

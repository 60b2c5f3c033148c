"""A client of the modern era that has one channel for everything: stdio.

Every request says itself what it is, as on HTTP, but in its body alone: there are no headers. All
of them belong to one conversation: the process is this client's. Neighbours: `frontend.stdio` hands
in messages; `frontend.modern` does the same for HTTP.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskGroup

from .. import wire
from ..core.binding import CONVERSATION
from ..core.catalogue import LISTS, Catalogue
from ..core.exchange import Exchange, Outbound, Outcome
from ..core.manager import SessionManager
from ..core.memory import Opening
from ..core.session import Session
from ..core.state import EndReason, SessionState
from ..errors import (
    Draining,
    InvalidMessage,
    MethodNotFound,
    ProxyError,
    RequestCancelled,
)
from ..wire import Envelope, Kind, Message
from ..wire.welcome import discover_params
from . import problems
from .channel import Channel, ChannelReply
from .ladder import check_cursor, envelope_of
from .listening import Listeners
from .loss import begin_or_tell
from .modern import GONE, Modern, RoundReader
from .notes import Note, about
from .serving import Serving

KEY: Final = CONVERSATION
"""Of the one conversation: the default one of the owner's, who has this process alone."""


class _Request:
    """One that is not answered."""

    __slots__ = ("id", "scope", "undo")

    def __init__(self, request_id: bytes) -> None:
        self.id = request_id
        self.scope = anyio.CancelScope()
        self.undo: Callable[[], None] = lambda: None
        """Ends what was begun for it, and is not waited for here."""

    @property
    def cancelled(self) -> bool:
        return self.scope.cancel_called

    def cancel(self) -> None:
        self.scope.cancel()
        self.undo()


class ModernChannel:
    """One client, one conversation."""

    def __init__(
        self,
        manager: SessionManager,
        catalogue: Catalogue,
        modern: Modern,
        rounds: RoundReader,
        listeners: Listeners,
        serving: Serving,
        owner: str,
        channel: Channel,
        tasks: TaskGroup,
    ) -> None:
        """`tasks`: for what is waited for; they are to end with the channel."""
        self._manager = manager
        self._catalogue = catalogue
        self._modern = modern
        self._rounds = rounds
        self._listeners = listeners
        self._serving = serving
        self._owner = owner
        self._channel = channel
        self._tasks = tasks
        self._note = Note(about(idle=serving.idle))
        self._requests: dict[_Request, None] = {}
        self.begun: bool = False
        """The client has asked for more than what there is."""

    def take(self, message: Message) -> None:
        """Take one message. What is wrong with a request is its answer.

        Raises: InvalidMessage: it is none, or one that no client of this revision sends.
        """
        kind = message.kind
        if kind is Kind.RESPONSE:
            raise InvalidMessage("a client of this revision sends no responses")
        if kind is Kind.NOTIFICATION:
            if message.method == "notifications/cancelled":
                self._cancelled(message)
            return
        request = _Request(message.request_id())
        if message.method == "initialize":
            self._channel.outbox.answer(problems.modern_only(message))
            return
        self._requests[request] = None
        try:
            self._begin(request, message)
        except ProxyError as error:
            self._refuse(request, error)

    def leave(self) -> None:
        """The channel has closed: so has the conversation."""
        for request in tuple(self._requests):
            request.cancel()
        session = self._conversation()
        if self.begun and session is not None:
            self._manager.end(session, EndReason.DISCONNECTED)

    def _cancelled(self, message: Message) -> None:
        """Cancel the request that is named; an id that names two cancels none."""
        named = wire.cancelled_request_id(message.object_params())
        key = None if named is None else wire.id_value(named)
        found = [request for request in self._requests if wire.id_value(request.id) == key]
        if key is not None and len(found) == 1:
            self._over(found[0])
            found[0].cancel()

    # -- requests ----------------------------------------------------------------------------------

    def _begin(self, request: _Request, message: Message) -> None:
        envelope = envelope_of(message, None)
        method = str(message.method)
        if method in GONE:
            raise MethodNotFound(f"{method} is not part of this revision")
        if self._manager.draining and envelope.state is None:
            raise Draining("the proxy is shutting down", retry_after=1)
        if method == "server/discover" or method in LISTS:
            check_cursor(message.object_params())
            work = partial(self._tell_what_there_is, request, method)
        elif method == "subscriptions/listen":
            self.begun = True
            work = partial(self._listen, request, message)
        else:
            self.begun = True
            work = partial(self._call, request, message, envelope)
        self._tasks.start_soon(self._run, request, work)

    async def _run(self, request: _Request, work: Callable[[], Awaitable[None]]) -> None:
        try:
            with request.scope:
                await work()
        except ProxyError as error:
            self._refuse(request, error)

    def _refuse(self, request: _Request, error: ProxyError) -> None:
        self._serving.refused(error)
        if not request.cancelled:
            expose = self._serving.expose_stderr
            self._channel.refuse(request.id, error, expose_stderr=expose)
        self._over(request)

    def _over(self, request: _Request) -> None:
        self._requests.pop(request, None)

    async def _tell_what_there_is(self, request: _Request, method: str) -> None:
        result = self._catalogue.answer(await self._catalogue.offer(), method)
        if result is None:
            raise MethodNotFound(f"the backend has no {method}")
        if not request.cancelled:
            self._channel.outbox.answer(problems.result_answer(request.id, result))
        self._over(request)

    async def _call(self, request: _Request, message: Message, envelope: Envelope) -> None:
        reply = ChannelReply(
            self._channel, expose_stderr=self._serving.expose_stderr, note=self._note
        )
        reply.on_over = lambda: self._over(request)
        exchange = Exchange(
            str(message.method),
            message.object_params(),
            client_id=request.id,
            sink=reply,
            envelope=envelope,
        )
        request.undo = lambda: self._give_up(exchange)
        await self._rounds.prepare()
        session = self._conversation()
        if session is None or session.state is not SessionState.READY or not self._takes(envelope):
            session = await self._opened(exchange, envelope)
        if not request.cancelled:
            begin_or_tell(reply, session, exchange, self._serving.on_loss)

    def _takes(self, envelope: Envelope) -> bool:
        """Return whether a call is taken: while draining, one alone that goes on with another."""
        if not self._manager.draining:
            return True
        return envelope.state is not None and self._rounds.identity_of(envelope.state) is not None

    def _conversation(self) -> Session | None:
        return self._manager.conversation(self._owner, KEY)

    async def _opened(self, exchange: Exchange, envelope: Envelope) -> Session:
        """Return the session of the conversation, opened or woken."""
        if self._manager.draining:
            raise Draining("the proxy is shutting down", retry_after=1)
        opening = Opening(discover_params(envelope), "server/discover")
        return await self._modern.conversation(self._owner, KEY, opening, exchange.context)

    def _give_up(self, exchange: Exchange) -> None:
        session = self._conversation()
        if session is None:
            exchange.settle(Outcome(failure=RequestCancelled("The request was cancelled.")))
        else:
            session.cancel(exchange)

    # -- listening ---------------------------------------------------------------------------------

    async def _listen(self, request: _Request, message: Message) -> None:
        offer = self._catalogue.known or await self._catalogue.offer()
        if not request.cancelled:
            share = _Share(self._channel, lambda: self._over(request))
            listener = self._listeners.begin(self._owner, KEY, message, offer, share)
            share.leave = request.undo = lambda: self._listeners.leave(listener)


class _Share:
    """What a listener has of the channel: it says itself to which request its messages belong.

    A `frontend.listening.Stream`.
    """

    def __init__(self, channel: Channel, over: Callable[[], None]) -> None:
        self._channel = channel
        self._over = over
        self.leave: Callable[[], None] = lambda: None

    def put(self, message: Outbound) -> None:
        self._channel.outbox.put(message)

    def end(self, message: Outbound | None = None) -> None:
        if message is not None:
            self._channel.outbox.answer(message.data)
        self.leave()
        self._over()

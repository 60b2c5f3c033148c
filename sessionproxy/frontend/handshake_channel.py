"""A client of the handshake era that has one channel for everything: stdio, or HTTP+SSE.

The channel is the session: `initialize` opens it, and it ends with the channel. While its backend
starts or wakes, what the client sends waits in order. Neighbours: `frontend.stdio` and
`frontend.sse` hand in messages; `core.manager` has the session.
"""

import logging
from typing import Final, NamedTuple

import anyio
from anyio.abc import TaskGroup

from .. import wire
from ..core.exchange import Exchange, Outcome
from ..core.manager import Attached, SessionManager
from ..core.memory import Opening
from ..core.session import Session
from ..core.state import EndReason, SessionState
from ..core.waiting import MAX_WAITING, MAX_WAITING_BYTES
from ..errors import (
    AlreadyInitialized,
    AnswerNotTaken,
    BackendBusy,
    Draining,
    InvalidMessage,
    NotInitialized,
    ProxyError,
    RequestCancelled,
)
from ..http import Headers
from ..wire import Bytes, Kind, Message
from ..wire.envelope import VERSION_KEY, read_meta, read_request
from .batches import Batch
from .channel import Channel, ChannelReply
from .keys import KeyFinder
from .loss import begin_or_tell
from .modern import Modern, welcome_of
from .serving import Serving

logger: Final = logging.getLogger(__name__)


class Share(NamedTuple):
    """How a client finds the conversation that it has a share in, where sessions are shared."""

    modern: Modern
    keys: KeyFinder
    headers: Headers
    """Of the request that opened the channel."""


class _Request(NamedTuple):
    exchange: Exchange
    reply: ChannelReply


class _Notification(NamedTuple):
    method: str
    params: Bytes | None


class HandshakeChannel:
    """One client, one session."""

    def __init__(
        self,
        manager: SessionManager,
        serving: Serving,
        owner: str,
        channel: Channel,
        tasks: TaskGroup,
        share: Share | None = None,
    ) -> None:
        """`tasks`: for what is waited for; they are to end with the channel. `share`: None: it has
        a session of its own."""
        self._manager = manager
        self._serving = serving
        self._owner = owner
        self._channel = channel
        self._tasks = tasks
        self._share = share
        channel.on_over = self._over
        self._session: Session | None = None
        self._attached: Attached | None = None
        self._initialized = False
        self._busy = False
        """A task opens or wakes the session; what comes now waits for it."""
        self._waiting: list[_Request | _Notification] = []
        self._waiting_size = 0

    @property
    def begun(self) -> bool:
        """Whether the client has asked for a session."""
        return self._session is not None or self._busy

    # -- what the client sends ---------------------------------------------------------------------

    def take(self, message: Message) -> None:
        """Take one message. What is wrong with a request is its answer.

        Raises:
            InvalidMessage: it is none, or one whose id nobody can read.
            AnswerNotTaken: the backend waits on for this answer to a question of its.
        """
        kind = message.kind
        if kind is Kind.NOTIFICATION:
            self._notified(str(message.method), message.object_params())
        elif kind is Kind.RESPONSE:
            self._answered(message)
        else:
            request_id = message.request_id()
            try:
                self._requested(message)
            except ProxyError as error:
                # A modern client asks first, and goes on with `initialize`: nothing is wrong.
                level = logging.DEBUG if isinstance(error, NotInitialized) else logging.INFO
                logger.log(level, "refused: %s (%s)", error.reason, error)
                self._channel.refuse(request_id, error)

    def take_batch(self, data: bytes) -> None:
        """Take a batch, where the revision has them (2025-03-26 basic/transports#stdio).

        Raises: as `take`; nothing of it was taken then, but for the answers in it.
        """
        batch = Batch.of(data)
        batch.check(None if self._session is None else self._session.version)
        reply = self._reply(requests=len(batch.requests), batch=True)
        requests = [_Request(self._exchange(message, reply), reply) for message in batch.requests]
        for message, _ in batch.others:
            self.take(message)
        for request in requests:
            self._pass_on(request)

    def leave(self) -> None:
        """The channel has closed: so has the session."""
        attached, self._attached = self._attached, None
        session, self._session = self._session, None
        if attached is not None:
            self._manager.detach(attached)
        elif session is not None and self._share is None:
            reason = EndReason.DISCONNECTED if self._initialized else EndReason.ABANDONED
            self._manager.end(session, reason)

    # -- requests ----------------------------------------------------------------------------------

    def _requested(self, message: Message) -> None:
        method = str(message.method)
        if method == "initialize":
            self._initialize(message)
        elif self._session is not None or self._busy:
            if says_modern(message):
                raise InvalidMessage("this connection has begun with initialize, and goes on so")
            reply = self._reply()
            self._pass_on(_Request(self._exchange(message, reply), reply))
        elif method == "ping":
            self._channel.outbox.answer(wire.encode_result(message.request_id(), b"{}"))
        else:
            raise NotInitialized(f"{method} before initialize")

    def _pass_on(self, request: _Request) -> None:
        """Pass a request on, or let it wait, if there is something to wait for or to tell first."""
        session = self._session
        if self._busy or session is None:
            self._wait(request, request.exchange.params)
        elif (
            session.state is SessionState.READY
            and not session.bereaved
            and not self._manager.draining
        ):
            session.request(request.exchange)
        else:
            self._wait(request, request.exchange.params)
            self._busy = True
            self._tasks.start_soon(self._wake, session)

    def _wait(self, item: _Request | _Notification, params: Bytes | None) -> None:
        """Let a message wait. Beyond what may, a request fails, and a notification is lost."""
        size = len(params or b"")
        large = self._waiting and self._waiting_size + size > MAX_WAITING_BYTES
        if not large and len(self._waiting) < MAX_WAITING:
            self._waiting.append(item)
            self._waiting_size += size
        elif isinstance(item, _Request):
            text = "The backend is not ready yet; too much waits for it already."
            item.exchange.settle(Outcome(failure=BackendBusy(text)))

    def _no_longer_waiting(self) -> list[_Request | _Notification]:
        waiting, self._waiting = self._waiting, []
        self._waiting_size = 0
        return waiting

    async def _wake(self, session: Session) -> None:
        """Wake the session, then pass on what waits for it, in order."""
        try:
            if self._manager.draining:
                raise Draining("the proxy is shutting down", retry_after=1)
            await self._manager.ready(session)
        except ProxyError as error:
            self._fail_waiting(error)
        else:
            self._deliver(session)

    def _deliver(self, session: Session) -> None:
        self._busy = False
        for item in self._no_longer_waiting():
            if isinstance(item, _Notification):
                session.notify(item.method, item.params, self._origin)
            else:
                begin_or_tell(item.reply, session, item.exchange, self._serving.on_loss)

    def _fail_waiting(self, error: ProxyError) -> None:
        self._busy = False
        for item in self._no_longer_waiting():
            if isinstance(item, _Request):
                item.exchange.settle(Outcome(failure=error.fresh()))

    # -- initialize --------------------------------------------------------------------------------

    def _initialize(self, message: Message) -> None:
        if self.begun:
            raise AlreadyInitialized("the session is initialised")
        params = message.object_params()
        opening = Opening(bytes(params) if params is not None else b"{}")
        reply = self._reply()
        exchange = self._exchange(message, reply)
        if self._share is None:
            session = self._manager.create(
                self._owner, opening, self._channel, reply, exchange.context
            )
            self._session = session
            self._tasks.start_soon(self._open, session, exchange)
        else:
            keys = self._share.keys
            given = keys.given(self._owner, self._share.headers, None)
            bound = keys.bind(self._owner, given, read_request(params).meta)
            modern = self._share.modern
            self._tasks.start_soon(self._attach, modern, bound.key, opening, exchange)
        self._busy = True

    async def _open(self, session: Session, exchange: Exchange) -> None:
        try:
            await self._manager.opened(session)
        except ProxyError as error:
            self._not_opened(exchange, error)
            return
        answer, session.start.answer = session.start.answer, None  # it may be large
        self._opened(session, exchange, answer or Outcome())

    async def _attach(self, modern: Modern, key: str, opening: Opening, exchange: Exchange) -> None:
        """Have a share in a conversation, whose backend is initialised once."""
        try:
            session = await modern.conversation(self._owner, key, opening, exchange.context)
        except ProxyError as error:
            self._not_opened(exchange, error)
            return
        if not self._channel.listening:  # it left in this very moment
            return
        declared = wire.members(opening.params).get("capabilities")
        attached_as = self._manager.attach(session, self._channel, declared)
        self._attached = self._manager.attached(self._owner, attached_as)
        self._session = session
        self._opened(session, exchange, Outcome(result=welcome_of(session, opening)))

    def _opened(self, session: Session, exchange: Exchange, answer: Outcome) -> None:
        self._initialized = True
        exchange.settle(answer)
        self._deliver(session)
        if session.end_reason is not None:  # together with its opening
            self._over()

    def _not_opened(self, exchange: Exchange, error: ProxyError) -> None:
        """The client may try again."""
        self._session = None
        exchange.settle(Outcome(failure=error))
        self._fail_waiting(NotInitialized("initialize has failed"))

    def _over(self) -> None:
        """The session is over. One that never began is told by the answer to `initialize`."""
        if self._initialized:
            self._channel.outbox.end()

    # -- notifications and answers -----------------------------------------------------------------

    def _notified(self, method: str, params: Bytes | None) -> None:
        if method == "notifications/cancelled" and self._cancelled_waiting(params):
            return
        if self._busy:
            self._wait(_Notification(method, params), params)
        elif self._session is not None:
            self._session.notify(method, params, self._origin)

    def _cancelled_waiting(self, params: Bytes | None) -> bool:
        """Cancel the request that is named, if it waits; an id that names two cancels none."""
        named = wire.cancelled_request_id(params)
        key = None if named is None else wire.id_value(named)
        found = [
            item.exchange
            for item in self._waiting
            if isinstance(item, _Request) and wire.id_value(item.exchange.client_id) == key
        ]
        if key is not None and len(found) == 1:
            found[0].settle(Outcome(failure=RequestCancelled("The request was cancelled.")))
        return bool(found)

    def _answered(self, message: Message) -> None:
        outcome = Outcome(*message.outcome())
        try:
            taken = self._session is not None and self._session.answer(
                message.request_id(), outcome
            )
        except BackendBusy as error:
            raise AnswerNotTaken(str(error), retry_after=1) from None
        if not taken:
            logger.debug("an answer that nobody waits for")

    # -- what they share ---------------------------------------------------------------------------

    @property
    def _origin(self) -> object:
        """Of the client's exchanges, where others of its session have some too."""
        return None if self._share is None else self._channel

    def _reply(self, *, requests: int = 1, batch: bool = False) -> ChannelReply:
        if self._attached is not None:
            self._attached.attachment.heard_at = anyio.current_time()
        return ChannelReply(
            self._channel,
            expose_stderr=self._serving.expose_stderr,
            requests=requests,
            batch=batch,
            declares=self._declares,
        )

    def _declares(self, method: str) -> bool:
        """Return whether the client may be asked `method`; one that is alone judges for itself."""
        return self._attached is None or self._attached.attachment.declares(method)

    def _exchange(self, message: Message, reply: ChannelReply) -> Exchange:
        return Exchange(
            str(message.method),
            message.object_params(),
            client_id=message.request_id(),
            sink=reply,
            origin=self._origin,
        )


def says_modern(message: Message) -> bool:
    """Return whether a message carries what only requests of the modern era carry."""
    params = message.object_params()
    if params is None or VERSION_KEY.encode() not in bytes(params):
        return False
    return read_meta(read_request(params).meta).version is not None

"""Streams on which modern clients hear of changes (2026-07-28 basic/patterns/subscriptions).

A stream belongs to its request alone: it starts nothing, holds no lease, and goes on while its
conversation sleeps. Changes of lists come by the catalogue, changes of resources from the
conversation's own backend, which is subscribed to what its listeners want while it runs.
Neighbours: `frontend.modern` opens streams; `core.session` has a `Hearing` for its client port.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
from msgspec import Raw

from .. import wire
from ..core.caller import UNHEARD, Unheard
from ..core.catalogue import CHANGES, Catalogue, Offer
from ..core.exchange import Exchange, Outbound, Outcome, ReplySink
from ..core.manager import SessionManager
from ..core.ports import Identity
from ..core.session import Session
from ..core.state import SessionState
from ..errors import InvalidEnvelope, SessionEnded
from ..wire import Bytes, Message, Remembers
from ..wire.envelope import SUBSCRIPTION_KEY, text
from .connection import Connection
from .stream import EventStream

logger: Final = logging.getLogger(__name__)

CAPABILITY: Final = {
    "toolsListChanged": "tools",
    "promptsListChanged": "prompts",
    "resourcesListChanged": "resources",
}

MAX_URIS: Final = 1000
"""Resources of one listener."""

PATIENCE: Final = 2.0
"""Seconds for a backend to answer what it is subscribed with before the client is told so all the
same: what changes from then on is to be heard of."""

MAX_HELD: Final = 100
"""Notifications that wait for that meanwhile."""


Sinks = Callable[[], ReplySink]


class Filter(msgspec.Struct, rename="camel", omit_defaults=True):
    """What a client wants to hear of."""

    tools_list_changed: bool = False
    prompts_list_changed: bool = False
    resources_list_changed: bool = False
    resource_subscriptions: list[str] = msgspec.field(default_factory=list[str])


class Stream(Protocol):
    """Takes what a listener is told: an `EventStream`, or a share in a channel."""

    def put(self, message: Outbound) -> None: ...

    def end(self, message: Outbound | None = None) -> None:
        """Take the last message."""
        ...


class Listener:
    """One stream."""

    def __init__(self, listen_id: bytes, wanted: Filter, stream: Stream) -> None:
        self.listen_id = listen_id
        self.wanted = wanted
        self.uris: frozenset[str] = frozenset(wanted.resource_subscriptions)
        self.stream = stream
        self._pending = 0
        """Subscriptions that the backend has not answered yet."""
        self._held: list[Outbound] | None = []
        """What comes behind the acknowledgment. None: that has been sent."""
        self._timer: asyncio.TimerHandle | None = None

    # -- beginning ---------------------------------------------------------------------------------

    def asks(self) -> Unheard:
        """Return where the answer to a subscription goes that is made for this stream."""
        self._pending += 1
        return Unheard(self._answered)

    def _answered(self) -> None:
        self._pending -= 1
        if not self._pending and self._timer is not None:
            self._acknowledge()

    def begin(self) -> None:
        """Acknowledge what it hears of, once it does; all subscriptions have been sent."""
        if self._pending:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._acknowledge)
        else:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Say what was agreed on, before anything else (#acknowledgment)."""
        held, self._held = self._held, None
        self.leave()
        if held is None:
            return
        told = {key: value for key, value in msgspec.to_builtins(self.wanted).items() if value}
        self.tell(
            "notifications/subscriptions/acknowledged", msgspec.json.encode({"notifications": told})
        )
        for note in held:
            self.stream.put(note)

    def leave(self) -> None:
        """Nobody reads the stream any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- telling -----------------------------------------------------------------------------------

    def tell(self, method: str, params: Bytes | None = None) -> None:
        fields: dict[str, Bytes] = {**wire.members(params)}
        meta: dict[str, Bytes] = {**wire.members(fields.get("_meta"))}
        meta[SUBSCRIPTION_KEY] = self.listen_id
        fields["_meta"] = wire.rebuilt(meta)
        note = Outbound(wire.encode_notification(method, wire.rebuilt(fields)))
        if self._held is None:
            self.stream.put(note)
            return
        self._held.append(note)
        if len(self._held) == MAX_HELD:
            self._acknowledge()

    def wants_list(self, method: str) -> bool:
        return bool(msgspec.to_builtins(self.wanted).get(CHANGES.get(method, "")))

    def wants_resource(self, uri: str) -> bool:
        """Return whether it asked to hear of `uri`, or of something above it."""
        return uri in self.uris or any(
            uri.startswith(above.rstrip("/") + "/") for above in self.uris
        )

    def end(self) -> None:
        """End the stream as the specification has it (#graceful-closure)."""
        self._acknowledge()
        result = b'{"resultType":"complete","_meta":{"%b":%b}}' % (
            SUBSCRIPTION_KEY.encode(),
            self.listen_id,
        )
        self.stream.end(Outbound(wire.encode_result(self.listen_id, result)))


class Hearing:
    """Hears a session's backend for its modern clients. A `ClientPort`."""

    def __init__(self, listeners: "Listeners", identity: Identity) -> None:
        self._listeners = listeners
        self._identity = identity

    listening = False
    left_at: float | None = None
    size = 0

    def message(self, message: Outbound) -> None:
        if message.ask is not None:
            failure = SessionEnded("No client is there that can be asked this.")
            message.ask.decline(Outcome(failure=failure))
            return
        note = wire.decode(message.data)
        if note.method == "notifications/resources/updated":
            self._listeners.updated(self._identity, note.object_params())

    def heard(self) -> None: ...

    def asleep(self) -> None: ...

    def close(self) -> None: ...


class Listeners:
    """All listeners of one route."""

    def __init__(self, manager: SessionManager, catalogue: Catalogue) -> None:
        self._manager = manager
        self._catalogue = catalogue
        self._all: dict[Listener, Identity] = {}

    def __len__(self) -> int:
        return len(self._all)

    def client(self, owner: str, key: str) -> Hearing:
        """Return the client port of a new session."""
        return Hearing(self, Identity(self._manager.route, owner, key))

    async def listen(
        self,
        owner: str,
        key: str,
        message: Message,
        offer: Offer,
        connection: Connection,
        *,
        keepalive: float,
    ) -> None:
        """Serve one stream until its client hangs up, or `end_all`."""
        stream = EventStream(0, expected=True, numbered=False)
        listener = self.begin(owner, key, message, offer, stream)
        stream.on_cut = lambda: self.leave(listener)
        connection.watch(stream.on_cut)
        try:
            await connection.events(stream, primed=False, keepalive=keepalive)
        finally:
            self.leave(listener)

    def begin(
        self, owner: str, key: str, message: Message, offer: Offer, stream: Stream
    ) -> Listener:
        """Have `stream` told what the request in `message` wants to hear of, until `leave`.

        Raises: InvalidEnvelope: nobody can tell what it wants.
        """
        wanted = honoured(_filter_of(message), offer)
        listener = Listener(message.request_id(), wanted, stream)
        identity = Identity(self._manager.route, owner, key)
        self._all[listener] = identity
        self._catalogue.listen(self._list_changed)
        self._subscribe(identity, listener.uris, listener.asks)
        listener.begin()
        return listener

    def leave(self, listener: Listener) -> None:
        """Tell it nothing more. No effect for one that has left."""
        identity = self._all.pop(listener, None)
        if identity is not None:
            listener.leave()
            if not self._all:
                self._catalogue.unlisten(self._list_changed)
            self._unsubscribe(identity, listener.uris)

    def end_all(self) -> None:
        """End every stream: nothing more will be told."""
        for listener in tuple(self._all):
            listener.end()

    # -- telling -----------------------------------------------------------------------------------

    def _list_changed(self, method: str) -> None:
        for listener in self._all:
            if listener.wants_list(method):
                listener.tell(method)

    def updated(self, identity: Identity, params: Bytes | None) -> None:
        """A resource has changed at the backend of a conversation."""
        uri = text(wire.members(params).get("uri"))
        for listener, of in self._all.items():
            if of == identity and uri is not None and listener.wants_resource(uri):
                listener.tell("notifications/resources/updated", params)

    # -- subscribing at the backend ----------------------------------------------------------------

    def _subscribe(
        self, identity: Identity, uris: frozenset[str], asks: Sinks = lambda: UNHEARD
    ) -> None:
        for uri in uris:
            self._tell_backend(identity, "resources/subscribe", uri, asks)

    def _unsubscribe(self, identity: Identity, uris: frozenset[str]) -> None:
        others = [listener.uris for listener, of in self._all.items() if of == identity]
        for uri in uris - frozenset[str]().union(*others):
            self._tell_backend(identity, "resources/unsubscribe", uri)

    def opened(self, session: Session) -> None:
        """A conversation begins: its backend is to tell what its listeners wait for."""
        for listener, of in self._all.items():
            if of == session.identity:
                self._subscribe(of, listener.uris)

    def _tell_backend(
        self, identity: Identity, method: str, uri: str, asks: Sinks = lambda: UNHEARD
    ) -> None:
        """`asks`: returns where the answer goes, if something is asked."""
        session = self._manager.conversation(identity.owner, identity.key)
        params = msgspec.json.encode({"uri": uri})
        remembers = wire.method_of(method).remembers
        if session is None or remembers is None:
            return
        if remembers is Remembers.UNSUBSCRIBE and session.memory.others_want(params, self):
            return  # of those who attached to the same conversation
        if session.state is SessionState.READY:
            # A lease until it is answered would be one for ever, if it never is.
            with session.lease() as backend:
                backend.request(Exchange(method, params, client_id=b"", sink=asks()))
        session.memory.note(remembers, params, self)


def names_resources(message: Message) -> bool:
    """Return whether a client wants to hear of resources, which are a conversation's own."""
    return bool(_filter_of(message).resource_subscriptions)


def _filter_of(message: Message) -> Filter:
    raw = wire.members(message.object_params()).get("notifications", Raw(b"null"))
    try:
        return msgspec.json.decode(raw, type=Filter)
    except msgspec.DecodeError as error:
        raise InvalidEnvelope(f"params.notifications: {error}") from None


def honoured(wanted: Filter, offer: Offer) -> Filter:
    """Return what of a filter the route's backends can be heard of (#acknowledgment)."""
    resources = wire.members(offer.capabilities.get("resources"))
    subscribes = bytes(resources.get("subscribe", b"")) == b"true"
    return Filter(
        tools_list_changed=wanted.tools_list_changed and offer.announces("tools"),
        prompts_list_changed=wanted.prompts_list_changed and offer.announces("prompts"),
        resources_list_changed=wanted.resources_list_changed and offer.announces("resources"),
        resource_subscriptions=wanted.resource_subscriptions[:MAX_URIS] if subscribes else [],
    )

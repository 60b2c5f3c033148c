"""What a modern request says of its conversation, and what its answer says of that.

By its head, its `_meta`, an argument of a tool (`frontend.handles`), or the `requestState` with
which it goes on. Neighbours: `frontend.keys` has the keys of heads and `_meta`; `frontend.modern`
passes the requests on.
"""

from typing import NamedTuple, Protocol

import msgspec

from ..core.catalogue import Catalogue, Offer
from ..core.ports import Identity
from ..errors import ConflictingKeys, InvalidMessage
from ..http import Headers
from ..wire import Bytes, Envelope, Message, with_member, without_member
from .handles import Asked, Handles
from .keys import Bound, Given, KeyFinder, Way
from .ladder import Mirror, check_params, envelope_of
from .notes import Note, about


class RoundReader(Protocol):
    """Says which session a `requestState` belongs to; None: it is not one of ours, or no good."""

    async def prepare(self) -> None: ...

    def identity_of(self, note: str) -> Identity | None: ...

    def carry(self, identity: Identity, state: str | None) -> str:
        """Return a note that is a backend's own state, and says which session it belongs to."""
        ...

    def carried(self, note: str) -> str | None:
        """Return the state that `carry` was given; of any other note the note itself."""
        ...


class Asker(NamedTuple):
    """Who sends a request, and what its head says."""

    owner: str
    headers: Headers
    mirror: Mirror
    keys: Given


class Understood(NamedTuple):
    """What a call says besides its arguments, and what follows from that."""

    offer: Offer
    """What there was when it came."""
    envelope: Envelope
    bound: Bound
    note: Note


class Conversations:
    """Of one route, as requests name them."""

    def __init__(
        self,
        route: str,
        catalogue: Catalogue,
        keys: KeyFinder,
        rounds: RoundReader,
        handles: Handles | None,
        *,
        idle: float | None,
    ) -> None:
        """`handles`: of tools; None: they have none. `idle`: seconds that a session may be; None:
        no limit."""
        self._route = route
        self._catalogue = catalogue
        self._keys = keys
        self._rounds = rounds
        self._handles = handles
        self._idle = idle
        self._of_default = Note(about(idle=idle, default=True))
        self._of_others = Note(about(idle=idle))

    def asked(self, asker: Asker, envelope: Envelope, message: Message) -> Asked:
        """Return a call as the backend is to see it, and the handle that it came with.

        Raises: HeaderMismatch, UnknownHandle, InvalidMessage.
        """
        params = message.object_params()
        offer = self._catalogue.known
        if message.method != "tools/call" or offer is None:
            return Asked(params, "")
        shown = None if self._handles is None else self._handles.shown(offer)
        schemas = offer.schemas if shown is None else shown.offer.schemas
        schema = schemas.get(envelope.name or "")
        if schema is not None:
            check_params(schema, params, asker.headers)
        if self._handles is None or shown is None:
            return Asked(params, "")
        return self._handles.asked(shown, envelope.name, params)

    def bound(self, asker: Asker, envelope: Envelope, asked: Asked) -> Bound:
        """Raises: as `KeyFinder.bind`, and HandleRefused."""
        retry = self.identity(envelope)
        bound = self._keys.bind(
            asker.owner,
            asker.keys,
            envelope.meta,
            handle=asked.handle or None,
            opens=bool(asked.argument),
            retry=retry,
        )
        if asked.new and bound.way is Way.NAMED:
            raise ConflictingKeys("a new session is asked for, and another one is named")
        if self._handles is not None and asked.argument and (asked.handle or retry is None):
            self._handles.check(asker.owner, asked)
        return bound

    def identity(self, envelope: Envelope) -> Identity | None:
        """Return the session that a retry belongs to, by what it carries; None: it does not say,
        or the state is the backend's own to judge."""
        return None if envelope.state is None else self._rounds.identity_of(envelope.state)

    def unpacked(self, params: Bytes | None, envelope: Envelope) -> tuple[Bytes | None, Envelope]:
        """Return a request with the backend's own state, where it carries one of ours around it."""
        if params is None or envelope.state is None:
            return params, envelope
        state = self._rounds.carried(envelope.state)
        if state == envelope.state:
            return params, envelope
        if state is None:
            changed = without_member(params, "requestState")
        else:
            changed = with_member(params, "requestState", msgspec.json.encode(state))
        if changed is None:
            raise InvalidMessage("the requestState is not to be found")
        return changed, envelope._replace(state=state)

    def note(self, owner: str, bound: Bound, asked: Asked) -> Note:
        """Return what the result is to say of its session."""
        if bound.way is Way.DEFAULT:
            return self._of_default
        if bound.way not in (Way.OPENED, Way.RETRY):
            return self._of_others
        identity = Identity(self._route, owner, bound.key)

        def carry(state: str | None) -> str:
            if state is not None and self._rounds.identity_of(state) is not None:
                return state
            return self._rounds.carry(identity, state)

        known = self._of_others if bound.name else self._of_default  # a retry goes on with either
        note = known._replace(carry=carry)
        tells = self._handles is not None and asked.argument and not asked.handle
        if self._handles is None or not tells or not self._handles.names(owner, bound.name):
            return note
        meta = about(idle=self._idle, handle=bound.name)
        return note._replace(meta=meta, text=self._handles.told(asked.argument, bound.name))

    def understood(self, asker: Asker, message: Message) -> Understood | None:
        """Return what a call says, as far as the next one with that head says the same.

        None: its conversation is named by an argument, or begins with it; it goes on with another
        request, or its arguments are mirrored in the head.

        Raises: ProxyError: it is to be refused.
        """
        offer = self._catalogue.known
        envelope = envelope_of(message, asker.mirror)
        retries = envelope.state is not None or envelope.responses is not None
        if offer is None or retries or self._handles is not None or envelope.name in offer.schemas:
            return None
        asked = Asked(message.object_params(), "")
        bound = self.bound(asker, envelope, asked)
        if bound.cookie is not None:
            return None
        return Understood(offer, envelope, bound, self.note(asker.owner, bound, asked))

    def still(self, understood: Understood) -> bool:
        """Return whether what is offered is the same as then."""
        return self._catalogue.known is understood.offer

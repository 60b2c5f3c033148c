"""The short way of calls of the modern era: what the last one said is not found out again.

One head stands for many calls there: which conversation a call belongs to may be in its `_meta`.
Neighbours: `frontend.modern` vouches for heads and begins calls; `frontend.fastlane` has the
bodies.
"""

from typing import Protocol

from ..core.session import Session
from ..errors import ProxyError
from ..wire import Kind, Message, decode
from ..wire.envelope import KNOWN_SIZE, Likeness
from .connection import Connection
from .conversations import Asker, Conversations, Understood
from .reply import Reply


class Calls(Protocol):
    """Begins and ends the calls."""

    def begin_fast(
        self, asker: Asker, understood: Understood, session: Session, message: Message
    ) -> Reply | None: ...

    async def answer_late(self, reply: Reply, connection: Connection) -> None: ...


class ModernShortcut:
    """For the requests of one head, which are all one asker's. A `Shortcut`."""

    __slots__ = ("_asker", "_calls", "_conversations", "_last")

    def __init__(self, calls: Calls, conversations: Conversations, asker: Asker) -> None:
        self._calls = calls
        self._conversations = conversations
        self._asker = asker
        self._last: tuple[Likeness, Understood] | None = None
        """What the last call said: nearly always, the next one says the same."""

    def begin_fast(self, session: Session, body: bytes) -> Reply | None:
        try:
            message = decode(body)
            if message.method != "tools/call" or message.kind is not Kind.REQUEST:
                return None
            understood = self._understood(message)
            if understood is None:
                return None
            return self._calls.begin_fast(self._asker, understood, session, message)
        except ProxyError:  # the ordinary way tells it
            return None

    def _understood(self, message: Message) -> Understood | None:
        """Raises: ProxyError: it is to be refused."""
        params = message.object_params()
        if self._last is not None:
            likeness, understood = self._last
            if likeness.holds(params) and self._conversations.still(understood):
                return understood
        found = self._conversations.understood(self._asker, message)
        small = found is not None and len(found.envelope.meta or b"") <= KNOWN_SIZE
        self._last = (Likeness(params), found) if found is not None and small else None
        return found

    async def answer_late(
        self, reply: Reply, session: Session | None, connection: Connection
    ) -> None:
        await self._calls.answer_late(reply, connection)

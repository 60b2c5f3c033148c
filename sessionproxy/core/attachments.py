"""The clients of a session that several may share, each with a stream of its own.

Under the affinities `conversation` and `principal` a new `initialize` attaches to the backend that
runs. The session sees one client, this; what the backend sends on nobody's behalf goes to all, and
what it asks to one that said it can be asked. Neighbours: `core.manager` attaches and detaches;
`core.session` has it for its client port.
"""

from collections.abc import Iterator
from math import inf
from typing import Final

import anyio

from .. import wire
from ..errors import SessionEnded
from ..wire import Bytes
from .caller import NO_ROOTS
from .exchange import Ask, ClientPort, Exchange, Outbound, Outcome
from .ports import Identity

MAX_ATTACHED: Final = 256
"""Clients of one session: those that open one for every call never say goodbye. The one that was
heard of the longest ago goes first."""


class Attachment:
    """One client of a shared session, known by an id of its own. A `ReplySink` for what it is asked
    on nobody's behalf."""

    __slots__ = ("capabilities", "client", "heard_at", "identity")

    def __init__(self, identity: Identity, client: ClientPort, capabilities: Bytes | None) -> None:
        """`capabilities`: as the client declared them in `initialize`."""
        self.identity: Identity = identity
        self.client: ClientPort = client
        self.capabilities: bytes = b"{}" if capabilities is None else bytes(capabilities)
        self.heard_at: float = anyio.current_time()

    def declares(self, method: str) -> bool:
        """Return whether the client said that it can be asked `method`."""
        capability = wire.method_of(method).capability
        return capability is None or wire.member(self.capabilities, capability) is not None

    def deserted_for(self, now: float) -> float:
        """Seconds since it closed its stream, or was heard of if that was later; `-inf` where it
        has one open, or never had one."""
        left_at = self.client.left_at
        return -inf if left_at is None else now - max(left_at, self.heard_at)

    @property
    def attached(self) -> bool:
        return self.client.listening

    def takes(self, method: str) -> int:
        if not self.declares(method):
            return 0
        return 2 if self.attached else 1

    def message(self, message: Outbound) -> None:
        self.client.message(message)

    def settled(self, exchange: Exchange) -> None:
        """Not used: it is given no exchange."""


class Attachments:
    """All clients of one session. A `ClientPort`."""

    __slots__ = ("_asked", "_attached", "_modern")

    listening = False
    """There is no one stream that could stand in for that of a request: each client has its own."""

    left_at: float | None = None
    """A lost stream ends an attachment, not the session (DESIGN 6): see `core.reaper.lost`."""

    def __init__(self, modern: ClientPort) -> None:
        """`modern`: hears for clients of the modern era, which do not attach."""
        self._modern = modern
        self._attached: dict[Identity, Attachment] = {}
        self._asked: dict[Ask, Outbound] = {}
        """What clients were asked here, as it went out."""

    def __iter__(self) -> Iterator[Attachment]:
        return iter(tuple(self._attached.values()))

    def __len__(self) -> int:
        return len(self._attached)

    def attach(self, attachment: Attachment) -> Attachment | None:
        """Add a client; return the one that has to go for it, if any."""
        others = tuple(self._attached.values())
        self._attached[attachment.identity] = attachment
        if len(self._attached) <= MAX_ATTACHED:
            return None
        return min(others, key=_newest)

    def detach(self, attachment: Attachment) -> None:
        """Let a client go. What it was asked and has not answered, another one is asked."""
        if self._attached.pop(attachment.identity, None) is None:
            return
        attachment.client.close()
        for ask, message in tuple(self._asked.items()):
            if ask.waits and ask.sink is attachment:
                self._ask(ask, message)

    # -- as the session's client -------------------------------------------------------------------

    def message(self, message: Outbound) -> None:
        if message.ask is not None:
            self._ask(message.ask, message)
            return
        self._modern.message(message)
        for attachment in self:
            attachment.message(message)

    def _ask(self, ask: Ask, message: Outbound) -> None:
        """Ask one that can be asked: one that listens, best the one heard of last."""
        self._asked = {asked: sent for asked, sent in self._asked.items() if asked.waits}
        able = [attachment for attachment in self if attachment.takes(ask.method)]
        if able:
            ask.sink = best = max(able, key=_newest)
            self._asked[ask] = message
            best.message(message)
        elif ask.method == "roots/list":
            ask.decline(NO_ROOTS)
        else:
            ask.decline(Outcome(failure=SessionEnded("No client is there that can be asked this.")))

    def heard(self) -> None: ...

    def asleep(self) -> None:
        for attachment in self:
            attachment.client.asleep()

    @property
    def size(self) -> int:
        return sum(attachment.client.size for attachment in self)

    def close(self) -> None:
        for attachment in self:
            attachment.client.close()
        self._modern.close()


def _newest(attachment: Attachment) -> tuple[bool, float]:
    return attachment.client.listening, attachment.heard_at

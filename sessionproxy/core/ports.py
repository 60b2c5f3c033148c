"""What the core asks of the world outside, as Protocols.

Neighbours: `backends` implement these; `assembly` hands them in; `core.relay` implements `Backend`
for everything that speaks in lines.
"""

from collections.abc import Iterable, Reversible
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, Protocol, runtime_checkable

from ..errors import Exit
from ..wire import Bytes
from .exchange import Ask, Exchange
from .memory import Loss, Opening

PART: Final = "/part"
"""Ends the name of the route of sessions that are a server's part in others."""


class Identity(NamedTuple):
    """What a session is known by. Fixed for its life."""

    route: str
    owner: str
    key: str
    """Tells two conversations of one owner apart; for handshake clients the `Mcp-Session-Id`."""

    @property
    def server(self) -> str:
        """The name of the server, or servers, that it is a session of."""
        return self.route.removesuffix(PART)


class Backend(Protocol):
    """A running MCP server that serves one session."""

    def request(self, exchange: Exchange) -> None:
        """Send its request; the answer comes through `exchange.settle`, perhaps at once."""
        ...

    def notify(self, method: str, params: Bytes | None) -> None: ...

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        """Tell the backend that `exchange` is cancelled; `params` are the client's, if any."""
        ...

    def in_flight(self) -> tuple[Exchange, ...]:
        """Return the exchanges it has not answered, oldest first."""
        ...


class Losing(Protocol):
    """What can lose the state that a client has built up."""

    @property
    def loss(self) -> Loss | None:
        """That it has, until the client was told."""
        ...

    @loss.setter
    def loss(self, loss: Loss | None) -> None: ...


@runtime_checkable
class Composed(Protocol):
    """A `Backend` with parts, each of which may lose its state while the others go on."""

    @property
    def bereaved(self) -> bool:
        """Whether one of them has."""
        ...

    def bereft(self, exchange: Exchange) -> Losing | None:
        """Return the part that a request is for, if it has lost its state."""
        ...


class Upstream(Protocol):
    """Where a backend hands what its server sends on its own account."""

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        """Take a request of the server that belongs to `exchange`, if to any."""
        ...

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        """Take back a request: the server cancelled it, with `params`."""
        ...

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        """Take a notification; `encoded` is the whole message as it may go to the client."""
        ...

    def hold(self, exchange: Exchange) -> None:
        """Keep the session from being idle until `exchange` is settled, whoever waits for it."""
        ...

    def ended(self, how: Exit) -> None:
        """Take note that the backend ended by itself. All that it said before was handed on, and
        what was in flight is settled."""
        ...


@runtime_checkable
class Switchboard(Upstream, Protocol):
    """An `Upstream` with several sessions behind it, which says itself what may be whose."""

    def candidates(self, method: str, in_flight: Iterable[Exchange]) -> Reversible[Exchange]:
        """Return those in flight, oldest first, to one of which a message of the backend belongs
        that names none; empty where that would be a guess between sessions."""
        ...

    def late(self, backend_id: int) -> None:
        """Take note of an answer to a request that is not in flight any more, if it ever was."""
        ...


class Launcher(Protocol):
    def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AbstractAsyncContextManager[Backend]:
        """Start a backend on entry; on exit stop it, bounded and shielded.

        The two may happen in different tasks, so no cancel scope may be open between them.
        `label` names the session in logs; `opening` is what the backend will be asked first.
        Raises: BackendStartFailed, Shortage: on entry.
        """
        ...

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        """A backend has refused its opening: return whether another launch may fare better."""
        ...

"""What it takes to answer a request by its head alone: the port between endpoints and our server.

An endpoint vouches for a head once it has checked it; `frontend.fastlane` then gives it the bodies
of the next requests with that very head. Neighbours: `frontend.handshake` and `frontend.modern`
have the shortcuts.
"""

from collections.abc import Callable
from typing import Final, Protocol, cast

from ..core.session import Session
from ..http import Credential
from .connection import Connection
from .reply import Reply


class Shortcut(Protocol):
    """Takes requests whose head was vouched for."""

    def begin_fast(self, session: Session, body: bytes) -> Reply | None:
        """Begin with a request, if it is a plain one; `session`: of the request vouched for.

        None: it is not, or something is to be waited for; nothing was done.
        """
        ...

    async def answer_late(
        self, reply: Reply, session: Session | None, connection: Connection
    ) -> None:
        """Write an answer that turned out to be more than a body, and all that belongs to it."""
        ...


VOUCH: Final = "sessionproxy.vouch"
"""The ASGI extension by which our own server learns of it."""

Vouch = Callable[[Session, Credential, Shortcut], None]


def vouch(connection: Connection, session: Session, shortcut: Shortcut) -> None:
    """Tell our own server that `shortcut` can take requests with this very head; they belong to
    `session`, and are forgotten with it."""
    found = connection.extension(VOUCH)
    if found is not None:
        cast("Vouch", found)(session, connection.credential, shortcut)

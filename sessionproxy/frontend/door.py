"""Where a connection shakes hands, before it is one that speaks HTTP over TLS.

A handshake that does not end costs its client as little as a head that does not, so it is bounded
and counted in the same way. A server of asyncio's tells nobody of a connection before its handshake
is over; so this takes the connection as it comes, and begins the handshake itself. Neighbours:
`frontend.bounds` has the bounds; `frontend.fastlane` serves what comes after; `serve` installs it.
"""

import asyncio
import logging
import os
import socket
import ssl
from typing import Any, ClassVar, Final

from uvicorn import Config
from uvicorn.server import ServerState

from .bounds import REFUSALS_AT_ONCE, BoundedHttp

logger: Final = logging.getLogger(__name__)


class _Inside(asyncio.Protocol):
    """Is told that the handshake is over, and gives way to what speaks HTTP."""

    def __init__(self, door: "Door", http: BoundedHttp) -> None:
        self._door = door
        self._http = http

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        self._door.leave()
        transport.set_protocol(self._http)
        self._http.connection_made(transport)


class Door(asyncio.Protocol):
    """A connection until its handshake is over. `opening` makes the class to serve with."""

    _http: ClassVar[type[BoundedHttp]]
    _context: ClassVar[ssl.SSLContext]

    @classmethod
    def opening(cls, http: type[BoundedHttp], context: ssl.SSLContext) -> type[asyncio.Protocol]:
        """Return the class whose connections go on as `http`."""
        return type(cls.__name__, (cls,), {"_http": http, "_context": context})

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._inner = self._http(config, server_state, app_state, _loop)
        self._state = server_state
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        crowd, loop = self._inner.crowd, self._inner.loop
        try:
            if crowd.over(len(self._state.connections) + 1, transport) > REFUSALS_AT_ONCE:
                crowd.refused(loop.time())
                return
            # A descriptor of its own: what came as plain TCP is let go before anything is read.
            taken = os.dup(transport.get_extra_info("socket").fileno())
        except OSError as error:
            logger.info("refused: %s", error)
            return
        finally:
            transport.abort()
        self._state.connections.add(self)  # type: ignore[arg-type] # has `shutdown`, all they need
        self._handshake = loop.create_task(self._shake_hands(socket.socket(fileno=taken)))
        self._state.tasks.add(self._handshake)
        self._handshake.add_done_callback(self._over)

    async def _shake_hands(self, sock: socket.socket) -> None:
        bounds = self._inner.bounds
        try:
            await self._inner.loop.connect_accepted_socket(
                lambda: _Inside(self, self._inner),
                sock,
                ssl=self._context,
                ssl_handshake_timeout=bounds.head,
                ssl_shutdown_timeout=bounds.linger,
            )
        except OSError as error:  # of TLS, too; or it took too long, or the client left
            logger.debug("no TLS handshake: %s", error)

    def _over(self, handshake: asyncio.Task[None]) -> None:
        self._state.tasks.discard(handshake)
        self.leave()

    def leave(self) -> None:
        """Count no longer: there is no connection any more, or another one counts for it."""
        self._state.connections.discard(self)

    def shutdown(self) -> None:
        """Called by the server when it ends."""
        if self._handshake is not None:
            self._handshake.cancel()

"""The MCP endpoint: streamable HTTP of both eras, as an ASGI application.

It lets requests in, reads their bodies, and decides the era of each by the revision that its header
names. Neighbours: `frontend.handshake` and `frontend.modern` answer; `frontend.problems` turns what
is raised into answers.
"""

import logging

from ..core.manager import SessionManager
from ..errors import (
    MethodNotAllowed,
    NotAcceptable,
    ProxyError,
    UnsupportedVersion,
)
from ..http import (
    Authenticator,
    Guard,
    Headers,
    read_body,
    read_headers,
)
from ..http.request import Receive, Scope, Send
from . import problems
from .connection import Connection
from .handshake import Handshake
from .headers import (
    accepted,
    check_body,
    cors,
    is_modern,
    preflight,
)
from .modern import Modern
from .serving import Serving


class Endpoint:
    """One route, one path, all methods."""

    def __init__(
        self,
        manager: SessionManager,
        guard: Guard,
        authenticator: Authenticator,
        serving: Serving,
        handshake: Handshake,
        modern: Modern,
    ) -> None:
        self._manager = manager
        self._guard = guard
        self._authenticator = authenticator
        self._serving = serving
        self._handshake = handshake
        self._modern = modern

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, path_key: str | None = None
    ) -> None:
        """`path_key`: names a conversation."""
        connection = Connection(receive, send, scope.get("extensions"))
        try:
            headers = read_headers(scope)
            self._guard.check(headers)
            origin = headers.get(b"origin")
            if origin is not None:
                connection.extra = cors(origin)
            method: str = scope["method"]
            if method != "OPTIONS":  # which browsers send without a credential
                connection.admit(self._authenticator.admit(headers))
            if method == "POST":
                body = await self._body(headers, receive)
                connection.check()
                if is_modern(headers, body):
                    pairs = scope["headers"]
                    await self._modern.post(headers, pairs, path_key, body, connection)
                else:
                    await self._handshake.post(headers, body, connection, path_key)
            elif method in ("GET", "DELETE") and is_modern(headers):
                raise MethodNotAllowed(f"{method} is not part of this revision")
            elif method == "GET":
                await self._handshake.get(headers, connection)
            elif method == "DELETE":
                await self._handshake.delete(headers, connection)
            elif method == "OPTIONS" and origin is not None:
                await connection.empty(204, preflight(headers))
            else:
                raise MethodNotAllowed(f"{method} is not served here")
            connection.check()
        except ProxyError as error:
            # A modern client asks first, and goes on with `initialize`: nothing is wrong.
            level = logging.DEBUG if isinstance(error, UnsupportedVersion) else logging.INFO
            self._serving.refused(error, level)
            await connection.problem(problems.http_problem(error))
        finally:
            connection.unwatch()

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        check_body(headers)
        if accepted(headers) != (True, True):
            raise NotAcceptable("Accept must list application/json and text/event-stream")
        return await read_body(receive, headers, self._serving.max_body, self._manager.pauses)

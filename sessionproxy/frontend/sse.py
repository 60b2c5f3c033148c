"""HTTP+SSE, the transport of 2024-11-05: everything for the client goes out on one GET stream.

The stream is the session. Its first event says where the client is to POST, under an id that
nobody can guess and that is worth nothing to another owner; all that is answered there is 202. When
the stream closes, the session ends, and its backend with it: there is no way back to it
(2024-11-05 basic/transports#http-with-sse). Neighbours: `assembly` puts it beside the endpoint;
`frontend.handshake_channel` takes the messages.
"""

from typing import Final
from urllib.parse import parse_qs, quote

import anyio

from ..core.binding import SessionIds
from ..core.manager import SessionManager
from ..core.ports import Identity
from ..errors import (
    Draining,
    MethodNotAllowed,
    MissingSessionId,
    NotAcceptable,
    ProxyError,
    SessionNotFound,
)
from ..http import Authenticator, Guard, Headers, read_body, read_headers
from ..http.request import Receive, Scope, Send
from ..wire import decode
from . import problems
from .channel import Channel
from .connection import Connection
from .handshake_channel import HandshakeChannel, Share
from .headers import accepted, check_body, cors, preflight
from .keys import KeyFinder
from .modern import Modern
from .outbox import Outbox
from .serving import Serving

STREAM: Final = "/sse"
MESSAGES: Final = "/messages"
"""Paths beside the endpoint's: where servers of this transport have had them from the first."""

PARAMETER: Final = "session_id"


class LegacySse:
    """Both paths of one route."""

    def __init__(
        self,
        manager: SessionManager,
        guard: Guard,
        authenticator: Authenticator,
        serving: Serving,
        modern: Modern,
        ids: SessionIds,
        *,
        messages_path: str,
        max_unread: int,
        keys: KeyFinder | None = None,
    ) -> None:
        """`messages_path`: the path to POST to. `max_unread`: bytes of answers that may wait for a
        client that does not read. `keys`: how clients find the conversation they have a share in;
        None: each has a session of its own."""
        self._manager = manager
        self._guard = guard
        self._authenticator = authenticator
        self._serving = serving
        self._modern = modern
        self._ids = ids
        self._messages = messages_path
        self._max_unread = max_unread
        self._keys = keys
        self._open: dict[Identity, tuple[HandshakeChannel, Outbox]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def end_all(self) -> None:
        """End every stream, those too on which no session was opened."""
        for _, outbox in self._open.values():
            outbox.end()

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what comes for the path of the stream."""
        connection = Connection(receive, send)
        try:
            headers = read_headers(scope)
            if await self._lets_in(scope, headers, connection, "GET"):
                await self._stream(scope, headers, connection)
        except ProxyError as error:
            await self._refuse(error, connection)
        finally:
            connection.unwatch()

    async def messages(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what comes for the path of the messages."""
        connection = Connection(receive, send)
        try:
            headers = read_headers(scope)
            if await self._lets_in(scope, headers, connection, "POST"):
                await self._post(scope, headers, receive, connection)
        except ProxyError as error:
            await self._refuse(error, connection)
        finally:
            connection.unwatch()

    async def _lets_in(
        self, scope: Scope, headers: Headers, connection: Connection, method: str
    ) -> bool:
        """Return whether a request is to be served; False: it is answered already.

        Raises: as `Guard.check` and `Authenticator.admit`, and MethodNotAllowed.
        """
        self._guard.check(headers)
        origin = headers.get(b"origin")
        if origin is not None:
            connection.extra = cors(origin)
            if scope["method"] == "OPTIONS":  # which browsers send without a credential
                await connection.empty(204, preflight(headers))
                return False
        connection.admit(self._authenticator.admit(headers))
        if scope["method"] != method:
            raise MethodNotAllowed(f"{scope['method']} is not served here")
        return True

    # -- the stream --------------------------------------------------------------------------------

    async def _stream(self, scope: Scope, headers: Headers, connection: Connection) -> None:
        if not accepted(headers)[1]:
            raise NotAcceptable("Accept must list text/event-stream")
        if self._manager.draining:
            raise Draining("the proxy is shutting down", retry_after=1)
        route, owner = self._manager.route, connection.owner
        identity = Identity(route, owner, self._ids.mint(route, owner))
        outbox = Outbox(
            _event,
            answers=self._max_unread,
            first=b"event: endpoint\ndata: %b\n\n" % self._uri(scope, identity.key).encode(),
        )
        async with anyio.create_task_group() as tasks:
            share = None if self._keys is None else Share(self._modern, self._keys, headers)
            client = HandshakeChannel(
                self._manager, self._serving, owner, Channel(outbox), tasks, share
            )
            outbox.on_cut = client.leave
            self._open[identity] = client, outbox
            try:
                await connection.events(outbox, primed=True, keepalive=self._serving.keepalive)
            finally:
                del self._open[identity]
                client.leave()
            tasks.cancel_scope.cancel()

    def _uri(self, scope: Scope, key: str) -> str:
        """Return where the client is to POST: of the same origin, whatever that is called."""
        mounted: str = scope.get("root_path", "")
        return f"{quote(mounted.rstrip('/') + self._messages)}?{PARAMETER}={key}"

    # -- messages ----------------------------------------------------------------------------------

    async def _post(
        self, scope: Scope, headers: Headers, receive: Receive, connection: Connection
    ) -> None:
        identity = Identity(self._manager.route, connection.owner, _key(scope))
        self._found(identity)  # before a body is read that nobody would take
        check_body(headers)
        body = await read_body(receive, headers, self._serving.max_body, self._manager.pauses)
        connection.check()
        client = self._found(identity)
        if body.lstrip()[:1] == b"[":
            client.take_batch(body)
        else:
            client.take(decode(body))
        await connection.empty(202)

    def _found(self, identity: Identity) -> HandshakeChannel:
        """Raises: SessionNotFound: never issued, over, forged, or another owner's."""
        found = self._open.get(identity) if self._ids.authentic(identity) else None
        if found is None or found[1].ended:
            raise SessionNotFound("no such stream is open")
        return found[0]

    async def _refuse(self, error: ProxyError, connection: Connection) -> None:
        self._serving.refused(error)
        await connection.problem(problems.http_problem(error))


def _key(scope: Scope) -> str:
    query: bytes = scope.get("query_string", b"")
    found = parse_qs(query.decode("latin-1")).get(PARAMETER)
    if found is None:
        raise MissingSessionId(f"{PARAMETER} is missing: POST to what the endpoint event says")
    return found[0]


def _event(message: bytes) -> bytes:
    return b"event: message\ndata: %b\n\n" % message

"""One HTTP exchange with a client: what it is answered, and whether it is still there.

Neighbours: `frontend.endpoint` makes one per request and answers through it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from ..errors import Unauthorized
from ..http import Anybody, Credential
from ..http.request import Receive, Send
from .problems import HttpProblem

Header = tuple[bytes, bytes]

_NOBODY: Final = Anybody("").admit({})
"""Who a request is from that was not let in."""

_JSON: Final = (b"content-type", b"application/json")
_SSE: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
)
_FRESH: Final = (b"cache-control", b"no-store")
_COMMENT: Final = b": \n\n"


class Readable(Protocol):
    """What a connection reads events from: an `EventStream`, or an `Outbox`."""

    @property
    def ended(self) -> bool: ...

    def attach(self, after: int | None = None) -> int:
        """Become its reader. Returns a ticket."""
        ...

    def detach(self, ticket: int, now: float) -> None: ...
    def priming(self) -> bytes: ...
    def take(self, ticket: int) -> bytes: ...
    def over(self, ticket: int) -> bool: ...
    async def wait(self, ticket: int) -> None: ...
    def poke(self) -> None: ...


class Connection:
    """Writes one answer. The `extra` headers go on it, whatever it is."""

    __slots__ = (
        "_answered",
        "_extensions",
        "_gone_hooks",
        "_receive",
        "_send",
        "_started",
        "_watcher",
        "credential",
        "extra",
        "gone",
    )

    def __init__(
        self, receive: Receive, send: Send, extensions: Mapping[str, object] | None = None
    ) -> None:
        """`extensions`: the ASGI scope's."""
        self._extensions = extensions
        self._receive = receive
        self._send = send
        self.extra: Sequence[Header] = ()
        self._watcher: asyncio.Task[None] | None = None
        self._gone_hooks: list[Callable[[], None]] = []
        self._started = False
        self._answered = False
        self.credential: Credential = _NOBODY
        """What the request was let in with."""
        self.gone: bool = False
        """The client hung up before it had its whole answer, or has no right to it any more; known
        only while it is watched."""

    # -- who it is from ----------------------------------------------------------------------------

    @property
    def owner(self) -> str:
        return self.credential.owner

    def admit(self, credential: Credential) -> None:
        """Let the request in; once the credential is revoked, it is as if its client had left."""
        self.credential = credential
        credential.watch(self._left)

    def give(self, cookie: bytes | None) -> None:
        """Put a cookie on the answer, if there is one to give."""
        if cookie is not None:
            self.extra = (*self.extra, (b"set-cookie", cookie))

    def check(self) -> None:
        """Raises: Unauthorized: nothing was answered, and what it was let in with is revoked."""
        if self.credential.revoked and not self._started:
            raise Unauthorized("the credential was revoked meanwhile", presented=True)

    def extension(self, name: str) -> object:
        """Return what the server has under this name; None: nothing."""
        return None if self._extensions is None else self._extensions.get(name)

    # -- hanging up --------------------------------------------------------------------------------

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` when the client hangs up. The request's body must have been read."""
        self._gone_hooks.append(on_gone)
        if self._watcher is None:
            self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._answered:  # servers say so, too, once an answer is complete
            self._left()

    def _left(self) -> None:
        self.gone = True
        for hook in self._gone_hooks:
            hook()

    def lose(self) -> None:
        """Take its client for gone, which does not read; no effect once it is answered."""
        if not self._answered:
            self._left()

    def unwatch(self) -> None:
        self.credential.forget(self._left)
        if self._watcher is not None:
            self._watcher.cancel()

    # -- answering ---------------------------------------------------------------------------------

    async def json(self, body: bytes, headers: Sequence[Header] = (), *, status: int = 200) -> None:
        """Raises: Unauthorized: as `check`."""
        self.check()
        await self.whole(status, body, (_JSON, *headers))

    async def empty(self, status: int, headers: Sequence[Header] = ()) -> None:
        """Raises: Unauthorized: as `check`."""
        self.check()
        await self.whole(status, b"", headers)

    async def page(self, status: int, body: bytes) -> None:
        await self.whole(status, body, (_JSON, _FRESH))

    async def text(self, content_type: bytes, body: bytes) -> None:
        await self.whole(200, body, ((b"content-type", content_type), _FRESH))

    async def problem(self, problem: HttpProblem) -> None:
        await self.whole(problem.status, problem.body, (_JSON, *problem.headers))

    async def whole(self, status: int, body: bytes, headers: Sequence[Header]) -> None:
        length = (b"content-length", b"%d" % len(body))
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, length, *self.extra],
        }
        self._started = True
        await self._send(start)
        self._answered = True
        await self._send({"type": "http.response.body", "body": body})

    async def events(
        self,
        stream: Readable,
        *,
        after: int | None = None,
        headers: Sequence[Header] = (),
        primed: bool,
        keepalive: float,
    ) -> bool:
        """Read `stream` to its end, or until the client hangs up; return whether all was written.

        `keepalive`: seconds without an event after which a comment is sent.

        Raises: Unauthorized: as `check`.
        """
        self.check()
        loop = asyncio.get_running_loop()
        ticket = stream.attach(after)
        self.watch(stream.poke)
        try:
            start = {
                "type": "http.response.start",
                "status": 200,
                "headers": [*_SSE, *headers, *self.extra],
            }
            self._started = True
            await self._send(start)
            await self._write(stream.priming() if primed else _COMMENT)
            while not self.gone:
                chunk = stream.take(ticket)
                if chunk:
                    await self._write(chunk)
                elif stream.over(ticket):
                    self._answered = True
                    await self._send({"type": "http.response.body", "body": b""})
                    return stream.ended
                else:
                    timer = loop.call_later(keepalive, stream.poke)
                    await stream.wait(ticket)
                    timer.cancel()
                    if loop.time() >= timer.when() and not self.gone:
                        await self._write(_COMMENT)
            if self.credential.revoked:
                await self._send({"type": "http.response.body", "body": b""})
            return False
        finally:
            stream.detach(ticket, loop.time())

    async def _write(self, chunk: bytes) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

"""One HTTP exchange with a client: what it is answered, and whether it is still there.

Neighbours: `frontend.endpoint` makes one per request and answers through it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, cast

from ..core.session import Session
from ..http.request import Receive, Send
from .problems import HttpProblem
from .stream import EventStream

Header = tuple[bytes, bytes]

VOUCH: Final = "sessionproxy.vouch"
"""ASGI extension of `frontend.fastlane`: a function that takes the session a request is for."""

_JSON: Final = (b"content-type", b"application/json")
_SSE: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
)
_COMMENT: Final = b": \n\n"


class Connection:
    """Writes one answer. The `extra` headers go on it, whatever it is."""

    __slots__ = (
        "_answered",
        "_extensions",
        "_gone_hooks",
        "_receive",
        "_send",
        "_watcher",
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
        self._answered = False
        self.gone = False
        """The client hung up before it had its whole answer; known only while it is watched."""

    def vouch(self, session: Session) -> None:
        """Tell our own server that requests with this very head belong to `session`."""
        if self._extensions is not None:
            vouch = self._extensions.get(VOUCH)
            if vouch is not None:
                cast("Callable[[Session], None]", vouch)(session)

    # -- hanging up --------------------------------------------------------------------------------

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` when the client hangs up. The request's body must have been read."""
        self._gone_hooks.append(on_gone)
        if self._watcher is None:
            self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._answered:  # servers say so, too, once an answer is complete
            return
        self.gone = True
        for hook in self._gone_hooks:
            hook()

    def unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    # -- answering ---------------------------------------------------------------------------------

    async def json(self, body: bytes, headers: Sequence[Header] = ()) -> None:
        await self.whole(200, body, (_JSON, *headers))

    async def empty(self, status: int, headers: Sequence[Header] = ()) -> None:
        await self.whole(status, b"", headers)

    async def page(self, status: int, body: bytes) -> None:
        await self.whole(status, body, (_JSON, (b"cache-control", b"no-store")))

    async def problem(self, problem: HttpProblem) -> None:
        await self.whole(problem.status, problem.body, (_JSON, *problem.headers))

    async def whole(self, status: int, body: bytes, headers: Sequence[Header]) -> None:
        length = (b"content-length", b"%d" % len(body))
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, length, *self.extra],
        }
        await self._send(start)
        self._answered = True
        await self._send({"type": "http.response.body", "body": body})

    async def events(
        self,
        stream: EventStream,
        *,
        after: int | None = None,
        headers: Sequence[Header] = (),
        primed: bool,
        keepalive: float,
    ) -> bool:
        """Read `stream` to its end, or until the client hangs up; return whether all was written.

        `keepalive`: seconds without an event after which a comment is sent.
        """
        loop = asyncio.get_running_loop()
        ticket = stream.attach(after)
        self.watch(stream.poke)
        try:
            start = {
                "type": "http.response.start",
                "status": 200,
                "headers": [*_SSE, *headers, *self.extra],
            }
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
            return False
        finally:
            stream.detach(ticket, loop.time())

    async def _write(self, chunk: bytes) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

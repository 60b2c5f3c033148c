"""An MCP server over HTTP that does what a test tells it to, well or badly.

It serves streamable HTTP of both eras on a real socket. What it does with a message is a function
of the test's, by method; everything else it does as it should. A handler is given what was asked
and answers on the connection itself, so that it can break off anywhere:

    async def drop(asked: Asked) -> None:
        await asked.events(Said(id="e1"))
        asked.drop()

    async with upstream({"tools/call": drop}) as server: ...

Neighbours: `tests.backends.test_http` and its like.
"""

import asyncio  # noqa: TID251 - its streams let a server write what no library would
import contextlib
import json
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

from sessionproxy.core.exchange import Hook

from .embedded import Embedded, bare, embedded, until

Json = dict[str, Any]
Handler = Callable[["Asked"], Awaitable[None]]

CAPABILITIES: Final[Json] = {"tools": {"listChanged": True}, "logging": {}}


@dataclass(frozen=True)
class Said:
    """One server-sent event. `data`: a message, or text as it is."""

    data: Json | str = ""
    id: str | None = None
    retry: int | None = None
    event: str | None = None

    def encode(self) -> bytes:
        lines: list[str] = []
        if self.event is not None:
            lines.append(f"event: {self.event}")
        if self.id is not None:
            lines.append(f"id: {self.id}")
        if self.retry is not None:
            lines.append(f"retry: {self.retry}")
        text = self.data if isinstance(self.data, str) else json.dumps(self.data)
        lines += [f"data: {line}" for line in text.split("\n")]
        return "\n".join(lines).encode() + b"\n\n"


@dataclass
class Asked:
    """One HTTP request, and the way to answer it."""

    server: "Upstream"
    verb: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    begun: bool = False
    """It is being answered with events."""

    @property
    def message(self) -> Json:
        found: Json = json.loads(self.body) if self.body else {}
        return found

    @property
    def method(self) -> str:
        """The method of the message; `answer` for a response, the verb where there is none."""
        if not self.body:
            return self.verb
        return str(self.message.get("method", "answer"))

    @property
    def params(self) -> Json:
        found: Json = self.message.get("params") or {}
        return found

    def response(self, result: object) -> Json:
        return {"jsonrpc": "2.0", "id": self.message.get("id"), "result": result}

    def error(self, code: int, message: str = "no", *, number: object = ...) -> Json:
        number = self.message.get("id") if number is ... else number
        return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}}

    # -- answering ---------------------------------------------------------------------------------

    async def say(
        self, status: int, body: object = b"", *, kind: str | None = None, **headers: str
    ) -> None:
        """Answer as a whole: bytes as they are, else as JSON."""
        given = isinstance(body, bytes)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = kind or ("text/plain" if given else "application/json")
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        if content:
            lines.append(f"content-type: {kind}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines.append(f"content-length: {len(content)}")
        await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + content)

    async def result(self, result: object, **headers: str) -> None:
        await self.say(200, self.response(result), **headers)

    async def events(self, *events: Said, **headers: str) -> None:
        """Send events; the first time, begin the stream."""
        if not self.begun:
            self.begun = True
            lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "connection: close"]
            lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
            await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n")
        for event in events:
            await self.raw(event.encode())

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def end(self) -> None:
        """End the connection properly."""
        self.writer.close()

    def drop(self) -> None:
        """End the connection without a word."""
        self.writer.transport.abort()

    async def hung_up(self) -> None:
        """Wait until the client has closed the connection."""
        await self.server.readers[self.writer].read(1)


@dataclass
class Upstream:
    """A running server."""

    on: Mapping[str, Handler]
    modern: bool = False
    handshake: bool = True
    port: int = 0
    tls: ssl.SSLContext | None = None
    asked: list[Asked] = field(default_factory=list["Asked"])
    sessions: dict[str, int] = field(default_factory=dict[str, int])
    """Session ids that are good, with the calls that were made in each."""
    listening: dict[str, Asked] = field(default_factory=dict[str, "Asked"])
    """GET streams by session id."""
    readers: dict[asyncio.StreamWriter, asyncio.StreamReader] = field(
        default_factory=dict[asyncio.StreamWriter, asyncio.StreamReader]
    )
    connections: int = 0
    issued: int = 0

    @property
    def url(self) -> str:
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/mcp"

    @property
    def methods(self) -> Counter[str]:
        return Counter(asked.method for asked in self.asked)

    def all(self, method: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == method]

    async def heard(self, method: str, times: int = 1) -> Asked:
        """Wait until a method was asked so many times, and return the last of them."""
        await until(lambda: len(self.all(method)) >= times)
        return self.all(method)[times - 1]

    async def heard_answer(self, number: object) -> Json:
        """Wait for the client's answer to a request of ours."""

        def found() -> list[Json]:
            return [a.message for a in self.all("answer") if a.message["id"] == number]

        await until(lambda: bool(found()))
        return found()[0]

    async def listened(self) -> Asked:
        """Wait for a GET stream, and return it."""
        await until(lambda: bool(self.listening))
        return next(iter(self.listening.values()))

    async def start(self) -> None:
        """Listen, on the port that it has if it has one."""
        self._server = await asyncio.start_server(
            self.serve, "127.0.0.1", self.port, limit=128 * 1024 * 1024, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut every connection, and listen no more."""
        self._server.close()
        for writer in tuple(self.readers):
            with contextlib.suppress(OSError):
                writer.transport.abort()
        await until(lambda: not self.readers)

    # -- what it does as it should -----------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.readers[writer] = reader
        try:
            while (asked := await self._read(reader, writer)) is not None:
                self.asked.append(asked)
                handler = self.on.get(asked.method, self.on.get("*", self.behave))
                await handler(asked)
                if writer.is_closing() or asked.begun:
                    break
        except (OSError, EOFError):
            pass
        finally:
            del self.readers[writer]
            writer.close()

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Asked | None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        verb, path, _ = first.split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Asked(self, verb, path, headers, body, writer)

    async def behave(self, asked: Asked) -> None:
        """Do what the specification says."""
        session = asked.headers.get("mcp-session-id")
        method = asked.method
        if asked.headers.get("mcp-protocol-version") == "2026-07-28" and self.modern:
            await self._behave_modern(asked)
        elif method == "initialize" and self.handshake:
            await self._open(asked)
        elif method == "server/discover" or not self.handshake:
            await asked.say(400, asked.error(-32600, "Bad Request: not initialized", number=None))
        elif session not in self.sessions:
            await asked.say(404, asked.error(-32600, "Session not found", number=None))
        elif method == "DELETE":
            self.sessions.pop(session, None)
            await asked.say(204)
        elif method == "GET":
            self.listening[session] = asked
            await asked.events()
            await asked.hung_up()
        elif "id" not in asked.message or method == "answer":
            await asked.say(202)
        else:
            await asked.result(self._result(asked, session))

    async def _open(self, asked: Asked) -> None:
        self.issued += 1
        name = f"upstream-{self.issued}"
        self.sessions[name] = 0
        result = {
            "protocolVersion": asked.params["protocolVersion"],
            "capabilities": CAPABILITIES,
            "serverInfo": {"name": "upstream", "version": "1"},
        }
        await asked.result(result, mcp_session_id=name)

    def _result(self, asked: Asked, session: str | None) -> Json:
        if asked.method == "tools/list":
            return {"tools": [TOOL]}
        if asked.method == "tools/call" and session is not None:
            self.sessions[session] += 1
        count = 0 if session is None else self.sessions[session]
        said = {"session": session, "count": count, "name": asked.params.get("name")}
        return {"content": [], "structuredContent": said}

    async def _behave_modern(self, asked: Asked) -> None:
        if asked.method == "server/discover":
            result: Json = {"supportedVersions": ["2026-07-28"], "capabilities": CAPABILITIES}
        else:
            result = self._result(asked, None)
        await asked.result({"resultType": "complete", "ttlMs": 0, **result})


TOOL: Final[Json] = {"name": "do", "inputSchema": {"type": "object"}}


@asynccontextmanager
async def upstream(
    on: Mapping[str, Handler] | None = None,
    *,
    modern: bool = False,
    handshake: bool = True,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[Upstream]:
    """Serve; on exit every connection is cut. `modern`, `handshake`: the eras that it speaks."""
    running = Upstream(on if on is not None else {}, modern, handshake, tls=tls)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


@asynccontextmanager
async def fronting(
    url: str,
    settings: Mapping[str, object] = MappingProxyType({}),
    *,
    observers: Sequence[Hook] = (),
) -> AsyncGenerator[Embedded]:
    """A proxy in front of the server at `url`."""
    running = embedded(
        (),
        hooks=(),
        observers=observers,
        local=True,
        around=bare,
        listening=None,
        certificate=None,
        **{"url": url, **settings},
    )
    async with running as proxy:
        yield proxy

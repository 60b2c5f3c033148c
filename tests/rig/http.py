"""A thin client for streamable HTTP, for tests: it hides nothing and mends nothing.

`connect` opens a session the way a handshake client does. Every wait is bounded by `PATIENCE`,
unless a test says how patient its client is.
Neighbours: `tests.rig.scripted` takes the steps that `Client.do` sends.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import anyio
import httpx2

Json = dict[str, Any]

PATIENCE: Final = 10.0
"""Seconds for anything that should happen at once."""

VERSION: Final = "2025-11-25"
ACCEPT: Final = "application/json, text/event-stream"
CAPABILITIES: Final[Json] = {
    "elicitation": {"form": {}, "url": {}},
    "sampling": {},
    "roots": {"listChanged": True},
}


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    id: str | None
    data: bytes

    @property
    def message(self) -> Json:
        return json.loads(self.data)


class Incoming:
    """An answer while it arrives: JSON or events, both read as messages."""

    def __init__(self, response: httpx2.Response, *, patience: float | None = None) -> None:
        """`patience`: seconds that the next of it may take; else `PATIENCE`."""
        self.response = response
        self.patience = PATIENCE if patience is None else patience
        self.events: list[Event] = []
        """Those read so far, also the empty ones."""
        self.comments = 0
        self.heard: Callable[[Json], None] = lambda message: None
        """Called for every message that is read."""
        self._chunks = response.aiter_bytes()
        self._buffer = b""

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def is_stream(self) -> bool:
        return self.response.headers["content-type"] == "text/event-stream"

    @property
    def last_id(self) -> str:
        """The id of the last event read."""
        return next(event.id for event in reversed(self.events) if event.id is not None)

    async def event(self) -> Event:
        """Return the next event. Raises: EndOfStream."""
        with anyio.fail_after(self.patience):
            while True:
                block = await self._block()
                fields = dict(_field(line) for line in block.split(b"\n"))
                if b"data" in fields:
                    found = fields.get(b"id")
                    event = Event(found.decode() if found else None, fields[b"data"])
                    self.events.append(event)
                    return event
                self.comments += 1

    async def _block(self) -> bytes:
        while b"\n\n" not in self._buffer:
            try:
                self._buffer += await anext(self._chunks)
            except StopAsyncIteration:
                raise EndOfStream from None
        block, self._buffer = self._buffer.split(b"\n\n", 1)
        return block

    async def message(self) -> Json:
        """Return the next message. Raises: EndOfStream."""
        if not self.is_stream:
            with anyio.fail_after(self.patience):
                message = json.loads(await self.response.aread())
        else:
            while not (event := await self.event()).data:
                pass
            message = event.message
        self.heard(message)
        return message

    async def until(self, method: str) -> Json:
        """Return the next message with this method, passing over others."""
        while (message := await self.message()).get("method") != method:
            pass
        return message

    async def answer(self) -> Json:
        """Return the response, passing over what comes before it."""
        while "method" in (message := await self.message()):
            pass
        return message

    async def rest(self) -> list[Json]:
        """Return all messages up to the end."""
        if not self.is_stream:
            return [await self.message()]
        return [message async for message in self]

    async def __aiter__(self) -> AsyncIterator[Json]:
        while True:
            try:
                yield await self.message()
            except EndOfStream:
                return

    async def comment(self) -> None:
        """Wait for one more comment. Raises: EndOfStream."""
        with anyio.fail_after(self.patience):
            while b"data" in dict(_field(line) for line in (await self._block()).split(b"\n")):
                pass
        self.comments += 1


class EndOfStream(Exception):
    """The server has ended the stream."""


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value.removeprefix(b" ")


class Client:
    """One session of the handshake era, once `initialize` was answered."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        url: str,
        *,
        version: str = VERSION,
        headers: Mapping[str, str] | None = None,
        patience: float | None = None,
    ) -> None:
        """`headers` are sent along with every request. `patience`: seconds for each answer, and for
        each piece of one that is a stream; else `PATIENCE`."""
        self.http = http
        self.url = url
        self.version = version
        self.more = headers or {}
        self.patience = PATIENCE if patience is None else patience
        self.id = ""
        self.opened: Json = {}
        """The answer to `initialize`."""

    @property
    def headers(self) -> dict[str, str]:
        headers = {"accept": ACCEPT, "content-type": "application/json", **self.more}
        if self.id:
            headers |= {"mcp-session-id": self.id, "mcp-protocol-version": self.version}
        return headers

    def also(self, **headers: str) -> Self:
        """Return the same session with more headers; underscores in their names become dashes."""
        client = type(self)(
            self.http,
            self.url,
            version=self.version,
            headers={**self.more, **_dashed(headers)},
            patience=self.patience,
        )
        client.id = self.id
        return client

    # -- whole answers -----------------------------------------------------------------------------

    async def send(self, method: str, body: object = b"", **headers: str) -> httpx2.Response:
        """Send one HTTP request; underscores in the names of `headers` become dashes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with anyio.fail_after(self.patience):
            return await self.http.request(
                method, self.url, content=content, headers={**self.headers, **_dashed(headers)}
            )

    async def post(self, body: object, **headers: str) -> httpx2.Response:
        return await self.send("POST", body, **headers)

    async def initialize(
        self, *, capabilities: Json | None = None, client: Json | None = None, **more: object
    ) -> httpx2.Response:
        """Open the session, without the notification that follows."""
        params = {
            "protocolVersion": self.version,
            "capabilities": CAPABILITIES if capabilities is None else capabilities,
            "clientInfo": client or {"name": "tests", "version": "1"},
            **more,
        }
        response = await self.post(request("initialize", params))
        self.id = response.headers.get("mcp-session-id", "")
        if response.headers["content-type"] == "application/json":
            self.opened = response.json()
        return response

    async def notify(self, method: str, params: object = None) -> httpx2.Response:
        return await self.post(notification(method, params))

    async def respond(self, number: object, **outcome: object) -> httpx2.Response:
        """Answer a request of the backend with `result` or `error`."""
        return await self.post({"jsonrpc": "2.0", "id": number, **outcome})

    async def delete(self) -> httpx2.Response:
        return await self.send("DELETE")

    async def request(self, method: str, params: object = None, *, number: object = 1) -> Json:
        """Return the whole response to a request, however it comes."""
        async with self.open(method, params, number=number) as incoming:
            return await incoming.answer()

    async def do(self, *steps: Json, number: object = 1, **more: object) -> Json:
        """Have the scripted backend take `steps` in a call; return what it found out.

        `more`: further members of `params`.
        """
        answer = await self.request("tools/call", calling(*steps, **more), number=number)
        result: Json = answer["result"]
        assert not result.get("isError"), result
        return result["structuredContent"]

    # -- answers while they arrive -----------------------------------------------------------------

    @asynccontextmanager
    async def open(
        self, method: str, params: object = None, *, number: object = 1
    ) -> AsyncGenerator[Incoming]:
        """Send a request and read its answer as it comes. Leaving hangs up."""
        async with self._reading("POST", request(method, params, number)) as incoming:
            yield incoming

    @asynccontextmanager
    async def doing(
        self, *steps: Json, number: object = 1, **more: object
    ) -> AsyncGenerator[Incoming]:
        """As `do`, read as it comes."""
        async with self.open("tools/call", calling(*steps, **more), number=number) as incoming:
            yield incoming

    @asynccontextmanager
    async def listen(self, last_event_id: str | None = None) -> AsyncGenerator[Incoming]:
        """Open the standalone stream, or resume one. It is open when this is entered."""
        more = {} if last_event_id is None else {"last-event-id": last_event_id}
        async with self._reading("GET", None, more) as incoming:
            yield incoming

    @asynccontextmanager
    async def _reading(
        self, method: str, body: Json | None, more: dict[str, str] | None = None
    ) -> AsyncGenerator[Incoming]:
        content = None if body is None else json.dumps(body).encode()
        sent = self.http.build_request(
            method, self.url, content=content, headers={**self.headers, **(more or {})}
        )
        with anyio.fail_after(self.patience):
            response = await self.http.send(sent, stream=True)
        try:
            yield Incoming(response, patience=self.patience)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()


def _dashed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


# -- messages --------------------------------------------------------------------------------------


def request(method: str, params: object = None, number: object = 1) -> Json:
    fields = {} if params is None else {"params": params}
    return {"jsonrpc": "2.0", "id": number, "method": method, **fields}


def notification(method: str, params: object = None) -> Json:
    fields = {} if params is None else {"params": params}
    return {"jsonrpc": "2.0", "method": method, **fields}


def calling(*steps: Json, **more: object) -> Json:
    """The params of a `tools/call` that takes `steps`."""
    arguments = {"steps": list(steps), "echo": more.pop("echo", None)}
    return {"name": "do", "arguments": arguments, **more}


# -- connections -----------------------------------------------------------------------------------


@asynccontextmanager
async def http() -> AsyncGenerator[httpx2.AsyncClient]:
    """A client with any number of connections and no time limit of its own."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        timeout=None, limits=limits, trust_env=False, verify=False
    ) as client:
        yield client


@asynccontextmanager
async def connect(
    url: str,
    *,
    version: str = VERSION,
    capabilities: Json | None = None,
    patience: float | None = None,
) -> AsyncGenerator[Client]:
    """Open a session; on exit the connections close, and the session is left to itself."""
    async with http() as pool:
        client = Client(pool, url, version=version, patience=patience)
        response = await client.initialize(capabilities=capabilities)
        assert response.status_code == 200, response.text
        assert client.id, response.text
        await client.notify("notifications/initialized")
        yield client


async def exchange(port: int, sent: bytes, *, close: bool = False) -> bytes:
    """Send bytes on a connection of their own and return all that comes back until it closes.

    `close`: say first that nothing more will be sent.
    """
    with anyio.fail_after(PATIENCE):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(sent)
            if close:
                await stream.send_eof()
            received = b""
            async for chunk in stream:
                received += chunk
            return received

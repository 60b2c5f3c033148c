"""A client of HTTP+SSE, for tests: it hides nothing and mends nothing, as `tests.rig.http`."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urljoin

import anyio
import httpx2

from tests.rig.http import (
    CAPABILITIES,
    PATIENCE,
    VERSION,
    EndOfStream,
    Json,
    calling,
    notification,
    request,
)
from tests.rig.reading import Reading

JSON: Final = {"content-type": "application/json"}


class Stream(Reading):
    """An open stream, and where to POST to it."""

    def __init__(
        self, http: httpx2.AsyncClient, response: httpx2.Response, headers: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.http = http
        self.response = response
        self.headers = {**JSON, **headers}
        self.endpoint = ""
        """As the first event says."""
        self.comments = 0
        self._chunks = response.aiter_bytes()
        self._buffer = b""
        self._last_id = 0

    # -- reading -----------------------------------------------------------------------------------

    async def event(self) -> tuple[str, str]:
        """Return name and data of the next event. Raises: EndOfStream: it has ended, and whole."""
        with anyio.fail_after(PATIENCE):
            while True:
                while b"\n\n" not in self._buffer:
                    try:
                        self._buffer += await anext(self._chunks)
                    except StopAsyncIteration:
                        raise EndOfStream from None
                block, self._buffer = self._buffer.split(b"\n\n", 1)
                if not block.startswith(b":"):
                    break
                self.comments += 1
        fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
        return fields["event"], fields["data"]

    async def receive(self) -> Json:
        """Return the next message."""
        name, data = await self.event()
        assert name == "message"
        return json.loads(data)

    # -- sending -----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return urljoin(str(self.response.url), self.endpoint)

    async def post(self, body: object, **headers: str) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        with anyio.fail_after(PATIENCE):
            return await self.http.post(self.url, content=content, headers={**self.headers, **more})

    async def send(self, body: object) -> None:
        """POST what is to be accepted."""
        response = await self.post(body)
        assert (response.status_code, response.content) == (202, b"")

    async def initialize(self, *, number: object = "init") -> Json:
        """Open the session, the notification that follows included; return the answer."""
        params = {
            "protocolVersion": VERSION,
            "capabilities": CAPABILITIES,
            "clientInfo": {"name": "tests", "version": "1"},
        }
        await self.send(request("initialize", params, number))
        answer = await self.answer(number)
        if "result" in answer:
            await self.send(notification("notifications/initialized"))
        return answer

    async def request(self, method: str, params: object = None) -> Json:
        """Return the whole response to a request."""
        self._last_id += 1
        number = self._last_id
        await self.send(request(method, params, number))
        return await self.answer(number)

    async def do(self, *steps: Json) -> Json:
        """Have the scripted backend take `steps` in a call; return what it found out."""
        answer = await self.request("tools/call", calling(*steps))
        result: Json = answer["result"]
        assert not result.get("isError"), result
        return result["structuredContent"]

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self.response.aclose()


@asynccontextmanager
async def sse(base: str, path: str = "/sse", **headers: str) -> AsyncGenerator[Stream]:
    """Open a stream, and read its first event. Leaving closes it."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=None, limits=limits, trust_env=False) as http:
        sent = http.build_request("GET", base + path, headers=headers)
        with anyio.fail_after(PATIENCE):
            response = await http.send(sent, stream=True)
        stream = Stream(http, response, headers)
        try:
            assert response.status_code == 200, response.status_code
            assert response.headers["content-type"] == "text/event-stream"
            name, stream.endpoint = await stream.event()
            assert name == "endpoint"
            yield stream
        finally:
            await stream.close()

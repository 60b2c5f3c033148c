"""A thin client of the modern era, for tests: it hides nothing and mends nothing.

Neighbours: `tests.rig.http` is the one of the handshake era; `tests.rig.scripted` takes the steps.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import anyio
import httpx2

from .http import ACCEPT, CAPABILITIES, PATIENCE, Incoming, Json, calling

VERSION: Final = "2026-07-28"
PREFIX: Final = "io.modelcontextprotocol/"


def envelope(capabilities: Json | None = None) -> Json:
    """The members of `_meta` that every request has."""
    return {
        f"{PREFIX}protocolVersion": VERSION,
        f"{PREFIX}clientCapabilities": CAPABILITIES if capabilities is None else capabilities,
        f"{PREFIX}clientInfo": {"name": "tests", "version": "1"},
    }


def naming(tool: str, schema: Json) -> Json:
    """A tool as a backend lists it."""
    return {"name": tool, "inputSchema": schema}


def listing(*tools: Json) -> Json:
    """The script of a scripted backend that has these tools."""
    return {"on": {"tools/list": [{"replies": {"result": {"tools": list(tools)}}}]}}


def on_the_wire(request: httpx2.Request, *more: tuple[str, str]) -> bytes:
    """Return a request as it is sent, with `more` headers."""
    pairs = (*request.headers.items(), *more)
    head = [f"POST {request.url.path} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs)]
    return "\r\n".join((*head, "", "")).encode() + request.content


class Modern:
    """A client without a session."""

    def __init__(
        self, http: httpx2.AsyncClient, url: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """`headers` are sent along with every request."""
        self.http = http
        self.url = url
        self.more = dict(headers or {})

    def build(
        self,
        method: str,
        params: Json | None = None,
        *,
        meta: Json | None = None,
        handle: str | None = None,
        **headers: str,
    ) -> httpx2.Request:
        """Return a request; underscores in the names of `headers` become dashes.

        `handle`: only its header; None: none.
        """
        fields = dict(params or {})
        fields["_meta"] = {**envelope(), **(fields.get("_meta") or {}), **(meta or {})}
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": fields}
        named = fields.get("name") or fields.get("uri")
        routing = {"mcp-protocol-version": VERSION, "mcp-method": method}
        if isinstance(named, str):
            routing["mcp-name"] = named
        if handle is not None:
            routing["mcp-param-session"] = handle
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.build_request(
            "POST",
            self.url,
            content=json.dumps(body).encode(),
            headers={
                "accept": ACCEPT,
                "content-type": "application/json",
                **routing,
                **self.more,
                **more,
            },
        )

    async def post(
        self,
        method: str,
        params: Json | None = None,
        *,
        meta: Json | None = None,
        handle: str | None = None,
        **headers: str,
    ) -> httpx2.Response:
        with anyio.fail_after(PATIENCE):
            request = self.build(method, params, meta=meta, handle=handle, **headers)
            return await self.http.send(request)

    async def call(
        self, *steps: Json, meta: Json | None = None, session: str | None = None, **more: object
    ) -> Json:
        """Call the tool `do` of the scripted backend; return the result.

        `session`: a handle, also in its header. `more`: further members of `params`.
        """
        params = calling(*steps, **more)
        if session is not None:
            params["arguments"]["session"] = session
        async with self.open("tools/call", params, meta=meta, handle=session) as incoming:
            answer = await incoming.answer()
        assert "result" in answer, answer
        return answer["result"]

    @asynccontextmanager
    async def open(
        self,
        method: str,
        params: Json | None = None,
        *,
        meta: Json | None = None,
        handle: str | None = None,
    ) -> AsyncGenerator[Incoming]:
        """Send a request and read its answer as it comes. Leaving hangs up."""
        with anyio.fail_after(PATIENCE):
            request = self.build(method, params, meta=meta, handle=handle)
            response = await self.http.send(request, stream=True)
        try:
            yield Incoming(response)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

"""Serves the everything server over the SDK's own HTTP transports, as a server elsewhere.

Neighbours: `everything` is the server, and has the options that start it so.
"""

import socket
import sys
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.sse import SseServerTransport
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


def serve_http(server: Server[Any], port: int, *, modern: bool) -> None:
    """Serve over streamable HTTP; `modern`: also clients of that era."""
    app = server.streamable_http_app(host="127.0.0.1")
    listen(app if modern else refusing_modern(app), port, "/mcp")


def refusing_modern(app: ASGIApp) -> ASGIApp:
    """What a server of the handshake era does with a revision that it has never heard of."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        version = dict(scope.get("headers", ())).get(b"mcp-protocol-version", b"").decode()
        if version not in MODERN_PROTOCOL_VERSIONS:
            await app(scope, receive, send)
            return
        error = {"code": types.INVALID_REQUEST, "message": f"Unsupported version: {version}"}
        body = {"jsonrpc": "2.0", "id": "server-error", "error": error}
        await JSONResponse(body, 400)(scope, receive, send)

    return refuse


def serve_sse(server: Server[Any], port: int) -> None:
    """Serve over HTTP with SSE, the transport of 2024-11-05."""
    transport = SseServerTransport("/messages/")

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        async with transport.connect_sse(scope, receive, send) as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        posted = scope["method"] == "POST"
        await (transport.handle_post_message if posted else stream)(scope, receive, send)

    listen(route, port, "/sse")


def listen(app: ASGIApp, port: int, path: str) -> None:
    """Serve on a port, on a free one if it is 0; the first line on stdout says where."""
    with socket.create_server(("127.0.0.1", port)) as sock:
        sys.stdout.write(f"http://127.0.0.1:{sock.getsockname()[1]}{path}\n")
        sys.stdout.flush()
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[sock])

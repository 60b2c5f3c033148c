"""A server over HTTP that takes next to no time of its own, so that what is between is measured.

Uvicorn, and beneath it what the handshake era needs and one tool; answers are JSON.

Usage: elsewhere.py PORT
"""

import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

Message = MutableMapping[str, Any]

WELCOME: Message = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "elsewhere", "version": "1"},
}
RESULT: Message = {"content": [{"type": "text", "text": "1"}]}


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Answer one HTTP request."""
    body, more = b"", True
    while more:
        part = await receive()
        body, more = body + part.get("body", b""), part.get("more_body", False)
    status, answer = {"GET": 405, "DELETE": 200}.get(scope["method"], 202), b""
    asked: Message = json.loads(body) if body else {}
    if "id" in asked:
        result = WELCOME if asked["method"] == "initialize" else RESULT
        status, answer = 200, json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result})
        answer = answer.encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(answer)).encode()),
        (b"mcp-session-id", b"one"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", lifespan="off")

"""The stdio MCP server behind every target of the benchmark. Standard library only.

It is written to cost next to nothing: one read, `json.loads`, one formatted line, one write.
Neighbours: started by every target with `--tag TOKEN`, which it ignores; the token tells the
processes of one run and target apart from all others on the machine.

Tools: `echo(text)`, `size(text)`, `blob(size)`, `notes(n)` (n progress notifications, then the
result), `counter(nonce)` (answers `nonce:count`, so that a wrong, lost or doubled call shows).
"""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

READ_SIZE: Final = 65536  # a pipe's size; more would make malloc map and unmap at every read
TOOLS: Final = {
    "echo": {"text": {"type": "string"}},
    "size": {"text": {"type": "string"}},
    "blob": {"size": {"type": "integer"}},
    "notes": {"n": {"type": "integer"}},
    "counter": {"nonce": {"type": "string"}},
}

count = 0


def write(data: bytes) -> None:
    """All of `data` is in the pipe."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def lines() -> Iterator[bytes]:
    """Every line of stdin, without its newline, in time linear in its size."""
    parts: list[bytes] = []
    while chunk := os.read(0, READ_SIZE):
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            parts.append(line)
            yield b"".join(parts) if len(parts) > 1 else line
            parts.clear()
        if rest:
            parts.append(rest)


def echo(arguments: dict[str, Any], _: object) -> str:
    return arguments["text"]


def size(arguments: dict[str, Any], _: object) -> str:
    return str(len(arguments["text"]))


def blob(arguments: dict[str, Any], _: object) -> str:
    return "x" * int(arguments["size"])


def notes(arguments: dict[str, Any], token: object) -> str:
    """Each note is made and written by itself, as servers do."""
    n = int(arguments["n"])
    for i in range(1, n + 1) if token is not None else ():
        params = {"progressToken": token, "progress": i, "total": n, "message": f"step {i} of {n}"}
        note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}
        write(json.dumps(note).encode() + b"\n")
    return "sent"


def counter(arguments: dict[str, Any], _: object) -> str:
    global count
    count += 1
    return f"{arguments['nonce']}:{count}"


CALLS: Final[dict[str, Callable[[dict[str, Any], object], str]]] = {
    "echo": echo,
    "size": size,
    "blob": blob,
    "notes": notes,
    "counter": counter,
}


def call(params: dict[str, Any]) -> bytes:
    """The `result` of a `tools/call`."""
    meta: dict[str, Any] = params.get("_meta") or {}
    token: object = meta.get("progressToken")
    arguments: dict[str, Any] = params.get("arguments") or {}
    text = CALLS[params["name"]](arguments, token)
    return b'{"content":[{"type":"text","text":%s}]}' % json.dumps(text).encode()


def initialize(params: dict[str, Any]) -> bytes:
    return json.dumps(
        {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "bench", "version": "1"},
        }
    ).encode()


def list_tools(_: dict[str, Any]) -> bytes:
    tools = [
        {"name": name, "inputSchema": {"type": "object", "properties": properties}}
        for name, properties in TOOLS.items()
    ]
    return json.dumps({"tools": tools}).encode()


METHODS: Final[dict[str, Callable[[dict[str, Any]], bytes]]] = {
    "tools/call": call,
    "initialize": initialize,
    "tools/list": list_tools,
    "ping": lambda _: b"{}",
}


def serve() -> None:
    """Answer every request until stdin ends."""
    for line in lines():
        message: dict[str, Any] = json.loads(line)
        if "id" not in message or "method" not in message:
            continue
        request_id = json.dumps(message["id"]).encode()
        method = METHODS.get(message["method"])
        if method is None:
            tail = b'"error":{"code":-32601,"message":"Method not found"}'
        else:
            tail = b'"result":' + method(message.get("params") or {})
        write(b'{"jsonrpc":"2.0","id":%s,%s}\n' % (request_id, tail))


if __name__ == "__main__":
    serve()

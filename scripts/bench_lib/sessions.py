"""MCP sessions over a channel: open, call, end. Of the handshake era, but for `open_modern`.

Every request goes out with `id: 1`, as many real clients do.
Neighbours: `channels` below; `measures` and `load` above.
"""

import contextlib
import json
import secrets
from typing import Final

from .channels import CallFailed, HttpChannel, ModernChannel, StdioChannel

INITIALIZE: Final = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18",'
    b'"capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}'
)
INITIALIZED: Final = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


def call(tool: str, arguments: bytes, meta: bytes = b"") -> bytes:
    """A `tools/call`; `arguments` and `meta` are JSON objects."""
    extra = b',"_meta":' + meta if meta else b""
    return (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"%s","arguments":%s%s}}'
    ) % (tool.encode(), arguments, extra)


def answer_of(messages: list[bytes]) -> bytes:
    """The last message, a good result. Raises: CallFailed."""
    if not messages:
        raise CallFailed("the answer is empty")
    answer = messages[-1]
    if b'"result"' not in answer or b'"isError":true' in answer[-200:].replace(b" ", b""):
        raise CallFailed(answer[:160].decode(errors="replace"))
    return answer


def text_of(messages: list[bytes]) -> str:
    """The text of a tool's answer. Raises: CallFailed."""
    answer = answer_of(messages)
    try:
        return str(json.loads(answer)["result"]["content"][0]["text"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CallFailed(f"not a tool's answer: {answer[:120]!r}") from error


def open_http(port: int, channel: HttpChannel | None = None) -> HttpChannel:
    """A channel with a session of its own, ready for calls. Raises: CallFailed, OSError."""
    channel = channel or HttpChannel(port)
    channel.set_session(None)
    answer_of(channel.request(INITIALIZE))
    channel.set_session(channel.header("mcp-session-id"))
    channel.request(INITIALIZED)
    return channel


def open_modern(port: int) -> ModernChannel:
    """A channel with a conversation of its own, which its first call begins. Raises: OSError."""
    return ModernChannel(port, secrets.token_hex(12))


def end_http(channel: HttpChannel) -> None:
    """The target has answered a DELETE of the session, whatever it said; the channel is closed.

    The conversations of modern clients end by themselves, when they are idle.
    """
    if isinstance(channel, ModernChannel):
        channel.close()
        return
    with contextlib.suppress(CallFailed, OSError):
        channel.send_bare("DELETE")
        while not channel.receive():
            pass
    channel.close()


def open_stdio(command: list[str]) -> StdioChannel:
    """A backend of our own, ready for calls."""
    channel = StdioChannel(command)
    exchange(channel, INITIALIZE)
    channel.send(INITIALIZED)
    return channel


def exchange(channel: HttpChannel | StdioChannel, message: bytes) -> list[bytes]:
    """What the target sent for this request. Raises: CallFailed."""
    if isinstance(channel, HttpChannel):
        return channel.request(message)
    channel.send(message)
    while not channel.receive():
        pass
    return channel.messages

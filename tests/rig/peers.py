"""Clients that behave badly on the wire, by hand: nothing of HTTP is done for them.

Neighbours: `tests.rig.shim` makes good clients look bad; tests of what clients do use both.
"""

import json
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import anyio
import anyio.to_thread

from .http import PATIENCE, Client, Json

SMALL_BUFFER: Final = 4096
"""Bytes that a stalled reader takes from the wire (the kernel may double it)."""


def head(client: Client, method: str = "POST", *, length: int | None = None, **more: str) -> bytes:
    """Return the head of a request of this client's session, with `more` headers, or others."""
    headers = {"host": "127.0.0.1", **client.headers, **_dashed(more)}
    if length is not None:
        headers["content-length"] = str(length)
    lines = [f"{method} /mcp HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def _dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def posted(client: Client, message: Json, **more: str) -> bytes:
    """Return a whole POST of this client's session."""
    body = json.dumps(message).encode()
    return head(client, length=len(body), **more) + body


@contextmanager
def connected(port: int, *, receives: int | None = None) -> Generator[socket.socket]:
    """A TCP connection. `receives`: bytes of its receive buffer. On exit it is closed."""
    with socket.socket() as sock:
        if receives is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", port))
        yield sock


@contextmanager
def stalled(port: int, sent: bytes) -> Generator[socket.socket]:
    """Send a request and never read an answer."""
    with connected(port, receives=SMALL_BUFFER) as sock:
        sock.sendall(sent)
        yield sock


@asynccontextmanager
async def trickling(port: int, sent: bytes, *, every: float) -> AsyncGenerator[socket.socket]:
    """Send one byte every so many seconds, and from the beginning again after the last: slowloris.

    The server's answer can be read from the socket meanwhile.
    """
    with connected(port) as sock:
        async with anyio.create_task_group() as tasks:

            async def trickle() -> None:
                at = 0
                while True:
                    try:
                        sock.send(sent[at : at + 1])
                    except OSError:  # the server has closed it
                        return
                    at = (at + 1) % len(sent)
                    await anyio.sleep(every)

            tasks.start_soon(trickle)
            try:
                yield sock
            finally:
                tasks.cancel_scope.cancel()


async def received(sock: socket.socket) -> bytes:
    """Return all that comes until the server closes."""

    def read() -> bytes:
        found = b""
        try:
            while data := sock.recv(65536):
                found += data
        except ConnectionResetError:
            pass
        return found

    return await anyio.to_thread.run_sync(read)


async def ends(sock: socket.socket) -> bool:
    """Return whether the server closes the connection, or resets it, in `PATIENCE`."""
    try:
        await received(sock)
    except TimeoutError:
        return False
    return True

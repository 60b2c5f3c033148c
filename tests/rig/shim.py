"""A bad line between a client and a server: delay, pieces, bandwidth, resets, silence, cuts.

    async with shimmed(proxy.port, Line(latency=0.05, piece=1)) as shim:
        ... Client(pool, shim.url("/mcp")) ...
        await shim.reset()

How a line behaves is a `Line`, one for each direction; what happens to it at a moment is a method.
Neighbours: tests of what clients and networks do; `tests.rig.peers` has ends that misbehave.
"""

import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream

BLOCK: Final = 65536
"""Bytes that are taken from one side at once."""

GONE: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


@dataclass(frozen=True, kw_only=True)
class Line:
    """How one direction behaves."""

    latency: float = 0.0
    """Seconds before each piece."""
    piece: int = BLOCK
    """Bytes that are passed on at once."""
    bandwidth: float | None = None
    """Bytes per second; None: as many as there are."""
    cut_after: int | None = None
    """Bytes on one connection, after which both directions of it are closed."""


PLAIN: Final = Line()


class Connection:
    """One client, and the connection to the server that was opened for it."""

    def __init__(self, client: SocketStream, server: SocketStream) -> None:
        self.client = client
        self.server = server
        self.passed = {"up": 0, "down": 0}
        """Bytes, towards the server and towards the client."""

    def reset(self) -> None:
        """Close both sides with RST, whatever is still in the buffers."""
        for side in (self.client, self.server):
            sock: socket.socket = side.extra(SocketAttribute.raw_socket)
            linger = struct.pack("ii", 1, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


class Shim:
    """Listens on `port` and passes on to a server."""

    def __init__(self, to: int, up: Line, down: Line) -> None:
        self.port = 0
        self.connections: list[Connection] = []
        """Those that are open."""
        self._to = to
        self._lines = {"up": up, "down": down}
        self._running = anyio.Event()
        self._running.set()

    def url(self, path: str = "/mcp") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    # -- what happens to all connections -----------------------------------------------------------

    def stall(self) -> None:
        """Pass nothing on, and no end either: half open, for both sides."""
        self._running = anyio.Event()

    def resume(self) -> None:
        """Pass on again, with what came meanwhile."""
        self._running.set()

    async def reset(self) -> None:
        """Close with RST."""
        for connection in tuple(self.connections):
            connection.reset()
        await self.cut()

    async def cut(self) -> None:
        """Close with FIN."""
        for connection in tuple(self.connections):
            for side in (connection.client, connection.server):
                with suppress(*GONE):
                    await side.aclose()

    # -- passing on --------------------------------------------------------------------------------

    async def serve(self, client: SocketStream) -> None:
        async with client, await anyio.connect_tcp("127.0.0.1", self._to) as server:
            connection = Connection(client, server)
            self.connections.append(connection)
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._pass, connection, "up", client, server)
                    tasks.start_soon(self._pass, connection, "down", server, client)
            finally:
                self.connections.remove(connection)

    async def _pass(
        self, connection: Connection, way: str, source: ByteStream, target: ByteStream
    ) -> None:
        """Pass on until the source has ended, and then its end; close both if that cannot be."""
        line = self._lines[way]
        with suppress(*GONE):
            try:
                while True:
                    data = await source.receive(BLOCK)
                    for at in range(0, len(data), line.piece):
                        await self._send(connection, way, target, data[at : at + line.piece])
            except anyio.EndOfStream:
                await self._running.wait()
                await target.send_eof()
                return
        for side in (source, target):
            with suppress(*GONE):
                await side.aclose()

    async def _send(
        self, connection: Connection, way: str, target: ByteStream, piece: bytes
    ) -> None:
        line = self._lines[way]
        pause = line.latency + (len(piece) / line.bandwidth if line.bandwidth else 0.0)
        if pause:
            await anyio.sleep(pause)
        await self._running.wait()
        left = len(piece)
        if line.cut_after is not None:
            left = max(0, line.cut_after - connection.passed[way])
        if left:
            await target.send(piece[:left])
            connection.passed[way] += len(piece[:left])
        if left < len(piece) or connection.passed[way] == line.cut_after:
            raise anyio.ClosedResourceError


@asynccontextmanager
async def shimmed(to: int, down: Line = PLAIN, *, up: Line = PLAIN) -> AsyncGenerator[Shim]:
    """Put a shim in front of the server at port `to`; on exit its connections are closed.

    `down`: towards the client; `up`: towards the server.
    """
    shim = Shim(to, up, down)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        shim.port = listener.extra(SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, shim.serve)
            try:
                yield shim
            finally:
                tasks.cancel_scope.cancel()

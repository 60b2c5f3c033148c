"""What the shim does to a line, seen by an echo server and its client."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute

from .embedded import until
from .http import PATIENCE
from .shim import Line, Shim, shimmed

DATA = bytes(range(256)) * 40


class Echo:
    """A server that sends back what it gets, and remembers in which pieces it came."""

    def __init__(self) -> None:
        self.port = 0
        self.pieces: list[bytes] = []
        self.ended = anyio.Event()
        self.reset = anyio.Event()

    async def serve(self, stream: ByteStream) -> None:
        async with stream:
            try:
                async for data in stream:
                    self.pieces.append(data)
                    await stream.send(data)
                self.ended.set()
            except anyio.BrokenResourceError:
                self.reset.set()


@asynccontextmanager
async def echoing(
    down: Line | None = None, *, up: Line | None = None
) -> AsyncGenerator[tuple[Echo, Shim, ByteStream]]:
    """A client, a shim and an echo server in a row."""
    echo = Echo()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        echo.port = listener.extra(SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo.serve)
            async with shimmed(echo.port, down or Line(), up=up or Line()) as shim:
                with anyio.fail_after(PATIENCE):
                    async with await anyio.connect_tcp("127.0.0.1", shim.port) as client:
                        yield echo, shim, client
            tasks.cancel_scope.cancel()


async def read(client: ByteStream, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += await client.receive()
    return found


async def to_the_end(client: ByteStream) -> bytes:
    found = b""
    async for data in client:
        found += data
    return found


async def test_a_plain_line_passes_everything_both_ways_and_the_end() -> None:
    async with echoing() as (echo, _, client):
        await client.send(DATA)
        assert await read(client, len(DATA)) == DATA
        await client.send_eof()
        assert await to_the_end(client) == b""
        await echo.ended.wait()


async def test_a_sliced_line_passes_all_in_pieces() -> None:
    async with echoing(up=Line(piece=7, latency=0.001)) as (echo, _, client):
        await client.send(DATA[:70])
        assert await read(client, 70) == DATA[:70]
    assert len(echo.pieces) == 10


async def test_a_line_with_latency_or_a_bandwidth_is_late_and_whole() -> None:
    async with echoing(Line(latency=0.05), up=Line(bandwidth=1000, piece=10)) as (_, _, client):
        began = anyio.current_time()
        await client.send(DATA[:100])
        assert await read(client, 100) == DATA[:100]
        assert anyio.current_time() - began >= 0.15  # it cannot be earlier


async def test_a_line_that_is_cut_passes_so_many_bytes_and_ends() -> None:
    async with echoing(Line(cut_after=10)) as (_, _, client):
        await client.send(DATA)
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await read(client, 11)
    async with echoing(Line(cut_after=10)) as (_, _, client):
        await client.send(DATA[:10])
        assert await to_the_end(client) == DATA[:10]


async def test_a_stalled_line_passes_nothing_and_no_end_until_it_is_resumed() -> None:
    async with echoing() as (echo, shim, client):
        await client.send(b"1")
        assert await read(client, 1) == b"1"
        shim.stall()
        await client.send(b"2")
        await client.send_eof()
        with anyio.move_on_after(0.1):
            await client.receive()
            raise AssertionError("something was passed on")
        assert (echo.pieces, echo.ended.is_set()) == ([b"1"], False)
        shim.resume()
        assert await to_the_end(client) == b"2"
        await echo.ended.wait()


async def test_a_line_that_is_cut_by_hand_ends_for_both_sides() -> None:
    async with echoing() as (echo, shim, client):
        await client.send(b"1")
        await read(client, 1)
        await shim.cut()
        assert await to_the_end(client) == b""
        await echo.ended.wait()
        await until(lambda: not shim.connections)


async def test_a_reset_line_is_reset_for_both_sides() -> None:
    async with echoing() as (echo, shim, client):
        await client.send(b"1")
        await read(client, 1)
        await shim.reset()
        with pytest.raises(anyio.BrokenResourceError):
            await client.receive()
        await echo.reset.wait()

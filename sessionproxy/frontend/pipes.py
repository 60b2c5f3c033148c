"""Lines on our own stdin and stdout, without blocking the event loop.

Neighbours: `frontend.stdio` reads and writes messages with it.
"""

import os
import select
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from typing import Final, NamedTuple

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from ..config import ConfigError
from ..wire import LineSplitter, Oversize

READ_SIZE: Final = 64 * 1024
"""Bytes read at once, as many as a Linux pipe holds."""

WRITE_SIZE: Final = 1024 * 1024
"""Bytes written at once, where they are taken: then others have their turn."""


class Pipes(NamedTuple):
    """The two descriptors that messages go over."""

    stdin: int
    stdout: int


@contextmanager
def claimed() -> Generator[Pipes]:
    """Have stdin and stdout for messages alone: whatever else is printed goes to stderr.

    Raises: ConfigError: one of them is closed.
    """
    try:
        pipes = Pipes(os.dup(0), os.dup(1))
    except OSError:
        raise ConfigError("stdin and stdout: both must be open") from None
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2 if _is_open(2) else nothing, 1)
    os.close(nothing)
    was_blocking = os.get_blocking(pipes.stdout)
    # A terminal is shared with whoever writes to it too, our log for one.
    os.set_blocking(pipes.stdout, was_blocking and os.isatty(pipes.stdout))
    try:
        yield pipes
    finally:
        os.set_blocking(pipes.stdout, was_blocking)
        os.dup2(pipes.stdin, 0)
        os.dup2(pipes.stdout, 1)
        os.close(pipes.stdin)
        os.close(pipes.stdout)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


async def lines_of(fd: int, max_line: int) -> AsyncGenerator[bytes | Oversize]:
    """Yield the lines that come in on `fd`, to its end. What has no line end is no line."""
    splitter = LineSplitter(max_line)
    while chunk := await _read(fd):
        for line in splitter.feed(chunk):
            yield line


def hung_up(fd: int) -> bool:
    """Return whether nobody can write to `fd` any more, although something is left to read."""
    watching = select.poll()
    watching.register(fd, getattr(select, "POLLRDHUP", 0))
    return bool(watching.poll(0))


async def _read(fd: int) -> bytes:
    """Return the next bytes; none at the end."""
    while True:
        try:
            await anyio.wait_readable(fd)
        except PermissionError:  # a file, which cannot be waited for (epoll_ctl(2), EPERM)
            return await anyio.to_thread.run_sync(os.read, fd, READ_SIZE, abandon_on_cancel=True)
        try:
            return os.read(fd, READ_SIZE)
        except BlockingIOError:  # somebody has made it so, and was faster
            continue
        except OSError:  # the other side is gone, not politely
            return b""


async def write_all(fd: int, data: bytes) -> None:
    """Write it all, however slowly it is read.

    Raises: OSError: nobody reads it any more.
    """
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left[:WRITE_SIZE]) :]
        except BlockingIOError:
            await anyio.wait_writable(fd)
        else:
            await checkpoint()

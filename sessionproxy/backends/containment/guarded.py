"""Starts backends through a guardian, a process beside the proxy that outlives it for a moment.

Backends are the guardian's children, so a proxy within somebody else's process changes nothing
there, and what backends orphan has one place to go. The guardian is started with the first backend,
and anew after it has died. Neighbours: `containment.guardian` is the program at the other end.
"""

import json
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from ..statedir import Record, SessionDir
from ..template import Expanded
from .groups import end_recorded
from .ports import Contained, Enclosure, Ending, Pipes, close_all

logger = logging.getLogger(__name__)

PROGRAM: Final = Path(__file__).with_name("guardian.py")

READ_SIZE: Final = 64 * 1024

START_PATIENCE: Final = 20.0
"""Seconds a guardian has to start a process; one that takes longer is taken for broken."""

END_PATIENCE: Final = 15.0
"""Seconds a guardian has to end once the proxy let go of it."""

POLL: Final = 0.005
"""Seconds between two looks whether a guardian has died."""

LOST: Final = Ending(detail="the guardian of its processes was killed")


class Guarded:
    """A `Containment` whose backends are started by a guardian."""

    def __init__(self, enclosure: Enclosure) -> None:
        self.name = enclosure.name
        self.orphans = 0
        self._enclosure = enclosure
        self._guardian: _Guardian | None = None
        self._instance: Path | None = None
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def running(self, instance: Path) -> AsyncGenerator[None]:
        self._instance = instance
        try:
            async with anyio.create_task_group() as self._tasks:
                try:
                    yield
                finally:
                    self._tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            guardian, self._guardian = self._guardian, None
            if guardian is not None:
                await guardian.end()

    async def start(self, what: Expanded, directory: SessionDir) -> Contained:
        argv = self._enclosure.command(what.argv, directory)
        try:
            pipes = Pipes.opened()
        except OSError:
            self._enclosure.discard(directory)
            raise
        try:
            leader = await self._at_hand().start(argv, what, pipes.theirs)
        except BaseException:
            close_all(pipes.ours)
            self._enclosure.discard(directory)
            raise
        finally:
            close_all(pipes.theirs)
        leader.translate = self._enclosure.ending
        return Contained(leader, self._enclosure.tree(leader.pid, directory), *pipes.ours)

    def _at_hand(self) -> "_Guardian":
        """Return the guardian, started anew where there is none that lives.

        Raises: OSError: it cannot be started.
        """
        if self._guardian is None or self._guardian.is_gone:
            assert self._tasks is not None, "not running"
            assert self._instance is not None
            self._guardian = _Guardian(self._instance, self._tasks, self._count_orphans)
        return self._guardian

    def _count_orphans(self, count: int) -> None:
        logger.warning("killed %d orphans of backends", count)
        self.orphans += count

    def end_left_over(self, record: Record) -> None:
        end_recorded(record)


class _Guardian:
    """One guardian as the proxy sees it."""

    def __init__(
        self, instance: Path, tasks: TaskGroup, count_orphans: Callable[[int], None]
    ) -> None:
        """`count_orphans`: told how many it has killed. Raises: OSError: it cannot be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(PROGRAM), str(theirs.fileno()), str(instance)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        self._socket = ours
        self._received = b""
        self._last = 0
        self._starts: dict[int, _Start] = {}
        self._leaders: dict[int, _Led] = {}
        self._sending = anyio.Lock()
        self.is_gone = False
        self._tasks = tasks
        self._count_orphans = count_orphans
        self._start_soon(self._listen)

    def _start_soon(
        self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: object
    ) -> None:
        """Start a task in a context of its own, not in that of the request it comes from."""
        Context().run(self._tasks.start_soon, function, *arguments)

    async def _listen(self) -> None:
        with suppress(anyio.ClosedResourceError):
            while not self.is_gone:
                await anyio.wait_readable(self._socket)
                self._receive()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        if not data:
            self._lost()

    def _take(self, message: dict[str, Any]) -> None:
        if "orphans" in message:
            self._count_orphans(message["orphans"])
            return
        if "start" not in message:
            leader = self._leaders.get(message["pid"])
            if leader is not None:
                leader.end(Ending(message.get("code"), message.get("signal")))
            return
        start = self._starts.pop(message["start"], None)
        if start is not None:
            if "pid" in message:
                start.leader = self._leaders[message["pid"]] = _Led(message["pid"], self)
            else:
                what = message["errno"], message["strerror"], message.get("filename")
                start.error = OSError(*what)
            start.done.set()

    def _lost(self) -> None:
        """It was killed, or it failed: nobody can tell any more how its children end."""
        if self.is_gone:
            return
        self._close()
        self._start_soon(self._bury)
        for start in self._starts.values():
            start.error = OSError(0, "the guardian is gone")
            start.done.set()
        for leader in tuple(self._leaders.values()):
            leader.end(LOST)

    async def _bury(self) -> None:
        """Reap it, once it has died: its socket closes a moment before."""
        while self._process.poll() is None:  # noqa: ASYNC110 - a process has no event here
            await anyio.sleep(POLL)
        logger.error("the guardian is gone (status %d)", self._process.returncode)

    def _close(self) -> None:
        self.is_gone = True
        if self._socket.fileno() != -1:
            anyio.notify_closing(self._socket)
            self._socket.close()

    async def start(self, argv: Sequence[str], what: Expanded, pipes: tuple[int, ...]) -> "_Led":
        """Have it start a process. Not interrupted by cancellation.

        Raises: OSError: that failed.
        """
        self._last += 1
        start = self._starts[self._last] = _Start()
        asked = {"start": self._last, "argv": list(argv), "env": dict(what.env), "cwd": what.cwd}
        with anyio.move_on_after(START_PATIENCE, shield=True):
            await self._send(json.dumps(asked).encode() + b"\n", pipes)
            await start.done.wait()
        if start.leader is not None:
            return start.leader
        if start.error is None:  # who knows what it starts later: it must go, with all it has
            logger.error("the guardian did not answer within %g s", START_PATIENCE)
            self._process.kill()
            self._lost()
        raise start.error or OSError(0, "the guardian did not answer")

    async def _send(self, data: bytes, descriptors: tuple[int, ...] = ()) -> None:
        async with self._sending:
            while data and not self.is_gone:
                try:
                    await anyio.wait_writable(self._socket)
                    sent = socket.send_fds(self._socket, [data], descriptors)
                except BlockingIOError:
                    continue
                except (OSError, anyio.ClosedResourceError):
                    self._lost()
                else:
                    data, descriptors = data[sent:], ()

    def release(self, leader: "_Led") -> None:
        if self._leaders.pop(leader.pid, None) is not None and not self.is_gone:
            self._start_soon(self._send, b'{"release": %d}\n' % leader.pid)

    async def end(self) -> None:
        """Let go of it, and wait until it has ended with all it has. Bounded."""
        self._close()
        with anyio.move_on_after(END_PATIENCE, shield=True) as scope:
            while self._process.poll() is None:  # noqa: ASYNC110 - a process has no event here
                await anyio.sleep(POLL)
        if scope.cancelled_caught:
            logger.error("the guardian did not end within %g s", END_PATIENCE)
            self._process.kill()
            self._process.wait()


class _Start:
    """A process that is being started."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.leader: _Led | None = None
        self.error: OSError | None = None


class _Led:
    """A `Leader` that is a guardian's child."""

    def __init__(self, pid: int, guardian: _Guardian) -> None:
        self._pid = pid
        self._guardian = guardian
        self._how: Ending | None = None
        self._ended: Callable[[Ending], None] | None = None
        self.translate: Callable[[Ending], Ending] = lambda ending: ending

    @property
    def pid(self) -> int:
        return self._pid

    def end(self, how: Ending) -> None:
        if self._how is None:
            self._how = how
            self._tell()

    def watch(self, ended: Callable[[Ending], None]) -> None:
        self._ended = ended
        self._tell()

    def _tell(self) -> None:
        if self._how is not None and self._ended is not None:
            ended, self._ended = self._ended, None
            ended(self.translate(self._how))

    def release(self) -> None:
        self._ended = None
        self._guardian.release(self)

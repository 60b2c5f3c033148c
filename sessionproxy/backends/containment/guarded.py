"""Starts backends through a guardian, a process beside the proxy that outlives it for a moment.

Backends are the guardian's children, so a proxy within somebody else's process changes nothing
there, and what backends orphan has one place to go. The guardian is started with the first backend,
and anew after it has died; another one helps out where one is held up by a start. Neighbours:
`containment.guardian` is the program at the other end.
"""

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ..processes import children_of, in_thread
from ..statedir import Record, SessionDir
from ..template import Expanded
from .groups import end_recorded
from .ports import Contained, Enclosure, Ending, Pipes, close_all, contained, end_unwanted
from .signals import kill_group

logger: Final = logging.getLogger(__name__)

PROGRAM: Final = Path(__file__).with_name("guardian.py")

READ_SIZE: Final = 64 * 1024

START_PATIENCE: Final = 20.0
"""Seconds a guardian has to start a process. It does nothing else meanwhile, so one that takes
longer is asked to start no more until it has answered."""

END_PATIENCE: Final = 15.0
"""Seconds a guardian has to end once the proxy let go of it."""

UNTOLD_PATIENCE: Final = 5.0
"""Seconds for what a guardian may have started and did not live to tell to be found and ended."""

POLL: Final = 0.005
"""Seconds between two looks whether a guardian has died."""

LOST: Final = Ending(detail="the guardian of its processes was killed")


class Untold(OSError):
    """Nobody can tell any more whether the process was started."""


class Guarded:
    """A `Containment` whose backends are started by a guardian."""

    def __init__(self, enclosure: Enclosure) -> None:
        self.name: str = enclosure.name
        self.orphans: int = 0
        self._enclosure = enclosure
        self._guardians: list[_Guardian] = []
        self._instance: Path | None = None
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def running(self, instance: Path) -> AsyncGenerator[None]:
        self._instance = instance
        try:
            async with anyio.create_task_group() as around:
                tasks = self._tasks = await around.start(self._host)
                try:
                    yield
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            with anyio.CancelScope(shield=True):  # bounded by what `end` is bounded by
                async with anyio.create_task_group() as ending:
                    for guardian in self._guardians:
                        ending.start_soon(guardian.end)
            self._guardians.clear()

    async def _host(self, *, task_status: TaskStatus[TaskGroup]) -> None:
        """Run what listens to guardians, also while all around is cancelled: sessions end then, and
        have to hear of it."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                task_status.started(tasks)
                await anyio.sleep_forever()

    async def start(self, what: Expanded, directory: SessionDir) -> Contained:
        argv = self._enclosure.command(what, directory)
        try:
            pipes = Pipes.opened()
        except OSError:
            self._enclosure.discard(directory)
            raise
        try:
            leader = await self._at_hand(pipes).start(argv, what, pipes.theirs)
        except BaseException as error:
            if isinstance(error, Untold):
                await _end_untold(directory, pipes.ours[1])
            close_all(pipes.ours)
            self._enclosure.discard(directory)
            raise
        leader.translate = self._enclosure.ending
        return contained(leader, self._enclosure, directory, pipes)

    def _at_hand(self, pipes: Pipes) -> "_Guardian":
        """Return a guardian that answers, started anew where there is none.

        Raises: OSError: it cannot be started; `pipes.theirs` are closed.
        """
        assert self._tasks is not None, "not running"
        assert self._instance is not None
        self._guardians = [each for each in self._guardians if not each.is_reaped]
        for guardian in self._guardians:
            if guardian.answers:
                return guardian
        try:
            guardian = _Guardian(self._instance, self._tasks, self._count_orphans)
        except BaseException:
            close_all(pipes.theirs)
            raise
        self._guardians.append(guardian)
        return guardian

    def _count_orphans(self, count: int) -> None:
        logger.warning("killed %d orphans of backends", count)
        self.orphans += count

    def end_left_over(self, record: Record) -> None:
        end_recorded(record)


async def _end_untold(directory: SessionDir, stdout: int) -> None:
    """End what was started, if it was: until nobody is left to write to our end of its stdout.

    It is looked for as long, since what is being executed just then bears no mark of its directory.
    """
    record = _untold(directory)
    with anyio.move_on_after(UNTOLD_PATIENCE, shield=True):
        while True:
            with suppress(OSError):  # nobody can look: then again
                await in_thread(lambda: end_recorded(record), abandon=True)
            if _is_hung_up(stdout):
                return
            await anyio.sleep(POLL)
    logger.error("what a guardian started before it was killed may live on")


def _untold(directory: SessionDir) -> Record:
    """Return what is on record of a backend of which nobody knows the leader."""
    facts = json.loads(directory.path.with_suffix(".json").read_text())
    return Record(directory.path, None, None, facts["boot"], facts.get("cgroup"))


def _is_hung_up(pipe: int) -> bool:
    """Return whether nobody has the other end of a pipe that we read (poll(2))."""
    waiting = select.poll()
    waiting.register(pipe, 0)
    return any(event & select.POLLHUP for _, event in waiting.poll(0))


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
        if start is None:
            return
        if "pid" in message:
            start.leader = self._leaders[message["pid"]] = _Led(message["pid"], self)
            if start.is_overdue:  # nobody waits for it any more
                end_unwanted(start.leader)
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
            start.error = Untold(0, "the guardian is gone")
            start.done.set()
        self._starts.clear()
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

    @property
    def is_reaped(self) -> bool:
        return self._process.returncode is not None

    @property
    def answers(self) -> bool:
        """Whether it can be asked to start something, and is not held up by a start."""
        return not self.is_gone and not any(each.is_overdue for each in self._starts.values())

    def holds(self, pid: int) -> bool:
        """Whether it has a child with this pid, which it has not reaped."""
        return not self.is_gone and pid in self._leaders

    async def start(self, argv: Sequence[str], what: Expanded, pipes: tuple[int, ...]) -> "_Led":
        """Have it start a process; `pipes` are closed. Not interrupted by cancellation.

        Raises: OSError: that failed. Untold: it may have been started all the same.
        """
        self._last += 1
        start = self._starts[self._last] = _Start()
        asked = {"start": self._last, "argv": list(argv), "env": dict(what.env), "cwd": what.cwd}
        self._start_soon(self._send, json.dumps(asked).encode(), pipes)
        with anyio.move_on_after(START_PATIENCE, shield=True):
            await start.done.wait()
        if start.leader is not None:
            return start.leader
        if start.error is not None:
            raise start.error
        start.is_overdue = True
        logger.error("the guardian did not answer within %g s", START_PATIENCE)
        self._end_if_useless()
        raise start.error or OSError(0, "the guardian did not answer")

    def _end_if_useless(self) -> None:
        """Kill it where it is held up by a start, and no backend would be lost with it."""
        if self.is_gone or self.answers or self._leaders:
            return
        with suppress(OSError):  # it reaps none meanwhile: these are what it starts, and orphans
            for pid in children_of(self._process.pid):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._lost()

    async def _send(self, message: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Send a message, and close its descriptors, which go with its newline.

        So they belong to the message that this completes: a receive ends behind them, and gets no
        others before (unix(7)).
        """
        try:
            async with self._sending:
                await self._send_piece(message)
                await self._send_piece(b"\n", descriptors)
        finally:
            close_all(descriptors)

    async def _send_piece(self, data: bytes, descriptors: tuple[int, ...] = ()) -> None:
        while data and not self.is_gone:
            try:
                data = data[socket.send_fds(self._socket, [data], descriptors) :]
            except BlockingIOError:
                with suppress(anyio.ClosedResourceError):
                    await anyio.wait_writable(self._socket)
            except OSError:
                self._lost()

    def release(self, leader: "_Led") -> None:
        if self._leaders.pop(leader.pid, None) is not None and not self.is_gone:
            self._start_soon(self._send, b'{"release": %d}' % leader.pid)
            self._end_if_useless()

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
        for leader in tuple(self._leaders.values()):  # it took them along, and cannot tell any more
            leader.end(LOST)


class _Start:
    """A process that is being started."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.leader: _Led | None = None
        self.error: OSError | None = None
        self.is_overdue = False
        """Whoever wanted it has given up."""


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

    def kill_group(self) -> None:
        if self._guardian.holds(self._pid):
            kill_group(self._pid)

    def release(self) -> None:
        self._ended = None
        self._guardian.release(self)

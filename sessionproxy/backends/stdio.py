"""A backend that is a child process: its pipes, and the ladder that ends it.

The pipes are read and written by the event loop's own readers and writers: no stream object, task
or thread per child. What is on the pipes is `core.relay`'s business. Neighbours:
`backends.launcher` starts and stops it; `backends.containment` signals.
"""

import asyncio
import fcntl
import logging
import os
import signal
import subprocess
import sys
import termios
from collections import deque
from contextlib import suppress
from contextvars import copy_context
from typing import Final, Protocol

import anyio
import anyio.to_thread

from ..core.latch import Latch
from ..errors import BackendBusy, Exit
from ..wire import LineSplitter, Oversize
from .containment import Containment
from .statedir import SessionDir
from .stderr import StderrLog

try:
    import sniffio
except ImportError:
    sniffio = None

logger = logging.getLogger(__name__)

READ_SIZE: Final = 256 * 1024
"""Bytes read at once: a Linux pipe holds 64 KiB, unless its other end made it larger."""

MAX_UNSENT: Final = 32 * 1024 * 1024
MAX_UNSENT_MESSAGES: Final = 64
"""What may wait for a backend that does not read; the next request then fails alone."""

TERM_GRACE: Final = 5.0
KILL_GRACE: Final = 1.0
"""Seconds between SIGTERM and SIGKILL, and for the kernel to carry out the latter."""

LEFT_BEHIND_GRACE: Final = 0.5
"""Seconds for what a leader left behind when it ended politely, before SIGKILL."""

MUTE_GRACE: Final = 1.0
"""Seconds for a process that closed its stdout to end as well."""

POLL: Final = 0.02
"""Seconds between two looks at processes that are not our children, or without a pidfd."""


class Speaker(Protocol):
    """What takes the lines of a backend: a relay."""

    def receive(self, line: bytes) -> None: ...
    def receive_oversize(self, line: Oversize, limit: int) -> None: ...
    def ended(self, how: Exit) -> None: ...


class Child:
    """One child process and its pipes. Made by `spawn`, ended by `stop`."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        containment: Containment,
        directory: SessionDir,
        *,
        max_line: int,
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._directory = directory
        self._tree = containment.hold(process.pid, directory.tmp)
        self._loop = asyncio.get_running_loop()
        self._max_line = max_line
        # Its pipes.
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._stderr = process.stderr
        self._in = process.stdin.fileno()
        self._out = process.stdout.fileno()
        self._err = process.stderr.fileno()
        self._lines = LineSplitter(max_line)
        self._log = StderrLog()
        self._speaker: Speaker | None = None
        self._early: list[bytes | Oversize] = []
        self._unsent: deque[memoryview] | None = None
        self._unsent_size = 0
        # Moves once.
        self._writable = True
        self._over = False
        """It has exited, and all it wrote was delivered; or it went mute."""
        self._exited = Latch()
        self._exit = Exit()
        self._pidfd = _pidfd(process.pid)
        for fd in (self._in, self._out, self._err):
            os.set_blocking(fd, False)
        self._context = copy_context()
        self._context.run(self._watch)

    def _watch(self) -> None:
        """Have the loop call back, in a context in which anyio knows its event loop.

        Outside of tasks it asks sniffio, where that is installed, which looks for this variable.
        """
        if sniffio is not None:
            sniffio.current_async_library_cvar.set("asyncio")
        self._loop.add_reader(self._out, self._read_stdout)
        self._loop.add_reader(self._err, self._read_stderr)
        if self._pidfd is not None:
            self._loop.add_reader(self._pidfd, self._notice_exit)
        else:
            self._loop.call_later(POLL, self._poll_exit)

    def __repr__(self) -> str:
        return f"<Child {self._process.pid} {self._exit if self._exited.is_set() else 'running'}>"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_exited(self) -> bool:
        return self._exited.is_set()

    def attach(self, speaker: Speaker, label: str) -> None:
        """From now on give what it says to `speaker`; what it said before comes first."""
        self._speaker = speaker
        self._log.label = label
        early, self._early = self._early, []
        for line in early:
            self._hand_on(line)

    # -- stdin -----------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Write one message. What the pipe does not take now is kept, bounded.

        Raises: BackendBusy: too much is kept already.
        """
        if not self._writable:
            return  # it is ending; who waits for an answer is told by `fail_all`
        line = message + b"\n"
        if not self._unsent:
            written = self._write(line)
            if written == len(line) or not self._writable:
                return
            self._loop.add_writer(self._in, self._write_more)
            line = memoryview(line)[written:]
            self._unsent = deque()
        elif self._unsent_size + len(line) > MAX_UNSENT or len(self._unsent) >= MAX_UNSENT_MESSAGES:
            raise BackendBusy("The backend does not read its input; too much waits for it already.")
        self._unsent.append(memoryview(line))
        self._unsent_size += len(line)

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self._in, data)
        except BlockingIOError:
            return 0
        except OSError:  # it closed its stdin, or is gone: the latter is noticed by itself
            self._close_stdin()
            self._expect_exit("closed its input")
            return 0

    def _write_more(self) -> None:
        while self._unsent and self._writable:
            head = self._unsent.popleft()
            written = self._write(head)
            self._unsent_size -= written
            if written < len(head):
                if self._writable:
                    self._unsent.appendleft(head[written:])
                return
        if self._writable:
            self._loop.remove_writer(self._in)
            self._unsent = None

    def _close_stdin(self) -> None:
        if self._writable:
            self._writable = False
            self._loop.remove_writer(self._in)
            self._unsent = None
            self._unsent_size = 0
            with suppress(OSError):
                self._stdin.close()

    # -- stdout and stderr -------------------------------------------------------------------------

    def _read_stdout(self) -> None:
        if not self._read_once():
            self._loop.remove_reader(self._out)
            self._expect_exit("closed its output")

    def _read_once(self, size: int = READ_SIZE) -> bool:
        """Read and hand on at most `size` bytes; return whether the pipe is still open."""
        try:
            chunk = os.read(self._out, size)
        except BlockingIOError:
            return True
        for line in self._lines.feed(chunk):
            try:
                self._hand_on(line)
            except Exception:  # a fault of ours with one line must not lose the others
                logger.exception("%r: a line was lost", self)
        return bool(chunk)

    def _hand_on(self, line: bytes | Oversize) -> None:
        if self._speaker is None:
            if len(self._early) < MAX_UNSENT_MESSAGES:
                self._early.append(line)
        elif isinstance(line, Oversize):
            self._speaker.receive_oversize(line, self._max_line)
        else:
            self._speaker.receive(line)

    def _read_stderr(self) -> None:
        try:
            chunk = os.read(self._err, READ_SIZE)
        except BlockingIOError:
            return
        if chunk:
            self._log.feed(chunk, self._loop.time())
        else:
            self._loop.remove_reader(self._err)

    # -- its end -----------------------------------------------------------------------------------

    def _poll_exit(self) -> None:
        if not self._exited.is_set():
            self._notice_exit()
            self._loop.call_later(POLL, self._poll_exit)

    def _notice_exit(self) -> None:
        """It exited: read what is still in its pipes, and tell how it ended. It stays unreaped."""
        if self._exited.is_set():
            return
        try:
            facts = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # somebody else in this process reaped it
            self._watch_no_more()
            self._exited.set()
            self._went_mute("ended, and nobody can say how")
            return
        if facts is None:
            return
        self._watch_no_more()
        self._drain()
        stderr = self._log.last_lines()
        if facts.si_code == os.CLD_EXITED:
            self._exit = Exit(code=facts.si_status, stderr=stderr)
        else:
            self._exit = Exit(signal=_name_of(facts.si_status), stderr=stderr)
        self._exited.set()
        self._end()

    def _watch_no_more(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)

    def _drain(self) -> None:
        """Deliver what the dead process left in its pipes, and read them no more.

        Only what is in them now: a descendant may hold them too, and go on writing.
        """
        left = 0 if self._stdout.closed else _unread(self._out)
        while left > 0:
            before = self._lines.taken
            self._read_once(min(left, READ_SIZE))
            taken = self._lines.taken - before
            left = left - taken if taken else 0
        self._loop.remove_reader(self._out)
        if not self._stderr.closed:
            self._read_stderr()

    def _expect_exit(self, detail: str) -> None:
        """It closed a pipe: give it a moment to exit, so that its status is known."""
        self._loop.call_later(MUTE_GRACE, self._went_mute, detail, context=self._context)

    def _went_mute(self, detail: str) -> None:
        if not self._over:
            self._exit = Exit(detail=detail, stderr=self._log.last_lines())
            self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            if self._speaker is not None:
                self._speaker.ended(self._exit)

    async def stop(self, grace: float, hurry: Latch) -> None:
        """End the whole tree and remove its directory. Shielded, and bounded.

        `grace`: seconds to end by itself once its stdin is closed. `hurry` cuts all waiting short.
        """
        bound = grace + TERM_GRACE + KILL_GRACE + 5
        with anyio.move_on_after(bound, shield=True) as scope:
            await self._tree.remember()
            self._close_stdin()
            await self._descend(grace, hurry)
            await self._sweep(hurry)
        if scope.cancelled_caught:
            logger.error("%r: not all of it was gone after %g s", self, bound)
            self._tree.kill()
        self._close()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._directory.remove)

    async def _descend(self, grace: float, hurry: Latch) -> None:
        """Close stdin, SIGTERM, SIGKILL: each for as long as the leader lives."""
        if await self._exits_within(grace, hurry):
            return
        await self._tree.signal(signal.SIGTERM)
        if await self._exits_within(TERM_GRACE, hurry):
            return
        await self._tree.signal(signal.SIGKILL)
        with anyio.move_on_after(KILL_GRACE):
            await self._exited.wait()

    async def _exits_within(self, seconds: float, hurry: Latch) -> bool:
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:

                async def until(event: Latch) -> None:
                    await event.wait()
                    tasks.cancel_scope.cancel()

                tasks.start_soon(until, self._exited)
                tasks.start_soon(until, hurry)
        return self._exited.is_set()

    async def _sweep(self, hurry: Latch) -> None:
        """End what the leader left behind. The tree is always swept, also after a polite end."""
        number: int = signal.SIGTERM
        deadline = anyio.current_time() + LEFT_BEHIND_GRACE
        while await self._tree.signal(number):
            if number == signal.SIGTERM:
                logger.info("session %s: ending what its backend left behind", self._log.label)
            late = hurry.is_set() or anyio.current_time() >= deadline
            number = signal.SIGKILL if late else 0
            await anyio.sleep(POLL)

    def _close(self) -> None:
        """Reap the leader and close the pipes. After this its pid may be anybody's."""
        self._watch_no_more()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self._loop.remove_reader(self._out)
        self._loop.remove_reader(self._err)
        self._stdout.close()
        self._stderr.close()
        self._process.poll()
        self._tree.release()
        self._over = True
        self._exited.set()


def _unread(fd: int) -> int:
    """Return how many bytes wait in a pipe (ioctl_tty(2), FIONREAD)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4), sys.byteorder)


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a realtime signal without a name
        return f"signal {number}"


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or an old kernel
        return None

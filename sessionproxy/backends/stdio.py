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
import sys
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Final, Protocol

import anyio

from ..core.callbacks import current_library, know_library
from ..core.exchange import Exchange
from ..core.latch import Latch
from ..errors import BackendBusy, Exit
from ..wire import Kind, LineSplitter, Oversize
from .containment import Contained, Ending
from .processes import in_thread
from .statedir import SessionDir
from .stderr import StderrLog

logger: Final = logging.getLogger(__name__)

READ_SIZE: Final = 64 * 1024
"""Bytes read at once, as many as a Linux pipe holds. From 128 KiB on, glibc maps memory for every
read and unmaps it again, which takes ten times as long as the read (mallopt(3), M_MMAP_THRESHOLD).
"""

LEAST_READ: Final = 4 * 1024
MANY_LINES: Final = 500
"""Of a backend that writes more lines than this at once, half as much is read the next time, down
to the least: all other sessions wait while one's lines are handed on."""

MAX_EARLY: Final = 1024 * 1024
MAX_EARLY_LINES: Final = 64
"""What is kept of a spare that talks before it is spoken to; beyond, it is not read until then."""

MAX_UNSENT: Final = 32 * 1024 * 1024
MAX_UNSENT_MESSAGES: Final = 64
MAX_UNSENT_REPLIES: Final = 4096
"""What may wait for a backend that does not read; the next request then fails alone."""

TERM_GRACE: Final = 5.0
KILL_GRACE: Final = 1.0
"""Seconds between SIGTERM and SIGKILL, and for the kernel to carry out the latter."""

LEFT_BEHIND_GRACE: Final = 0.3
"""Seconds for what a leader left behind when it ended by itself, between the same two."""

LOOK_GRACE: Final = 5.0
"""Seconds for looks that are held up, and for those to come that nobody can take just now."""

REMOVE_PATIENCE: Final = 10.0
"""Seconds to remove a private directory; what takes longer goes on by itself."""

MUTE_GRACE: Final = 1.0
"""Seconds for a process that closed its stdout to end as well."""

POLL: Final = 0.02
LONGEST_POLL: Final = 0.2
"""Seconds between two looks at processes that are not our children; doubled each time, up to the
longest."""


class Speaker(Protocol):
    """What takes the lines of a backend: a relay."""

    def receive(self, line: bytes) -> None: ...
    def receive_oversize(self, line: Oversize, limit: int) -> None: ...
    def ended(self, how: Exit) -> None: ...


class Child:
    """One child process and its pipes. Made by `spawn`, ended by `stop`."""

    def __init__(
        self,
        contained: Contained,
        directory: SessionDir,
        *,
        max_line: int,
    ) -> None:
        self._leader = contained.leader
        self._tree = contained.tree
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._max_line = max_line
        # Its pipes.
        self._in = contained.stdin
        self._out = contained.stdout
        self._err = contained.stderr
        self._lines = LineSplitter(max_line)
        self._read_size = READ_SIZE
        self._log = StderrLog()
        self._speaker: Speaker | None = None
        self._early: list[bytes | Oversize] = []
        self._early_size = 0
        self._unsent: deque[memoryview] | None = None
        self._unsent_size = 0
        # Moves once.
        self._writable = True
        self._unheard = False
        """It was killed: what it still says is of no interest."""
        self._over = False
        """It has exited, and all it wrote was delivered; or it went mute."""
        self._exited = Latch()
        self._exit = Exit()
        for fd in (self._in, self._out, self._err):
            os.set_blocking(fd, False)
        self._context = copy_context()
        self._context.run(self._watch)

    def _watch(self) -> None:
        """Have the loop call back."""
        know_library(current_library())
        self._loop.add_reader(self._out, self._read_stdout)
        self._loop.add_reader(self._err, self._read_stderr)
        self._leader.watch(self._note_exit)

    def __repr__(self) -> str:
        return f"<Child {self.pid} {self._exit if self._exited.is_set() else 'running'}>"

    @property
    def pid(self) -> int:
        return self._leader.pid

    @property
    def has_exited(self) -> bool:
        """Whether nothing more is to be expected of it: it has exited, or gone mute."""
        return self._over or self._exited.is_set()

    def attach(self, speaker: Speaker, label: str) -> None:
        """From now on give what it says to `speaker`; what it said before comes first."""
        self._speaker = speaker
        self._log.label = label
        early, self._early = self._early, []
        for line in early:
            self._hand_on(line)
        if not self._exited.is_set():  # reading it may have been paused
            self._context.run(self._loop.add_reader, self._out, self._read_stdout)

    # -- stdin -----------------------------------------------------------------------------------

    def send(self, message: bytes, kind: Kind, exchange: Exchange | None = None) -> None:
        """Write one message. What the pipe does not take now is kept, bounded.

        Of answers to the backend's own requests more may be kept at once.

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
        elif self._unsent_size + len(line) > MAX_UNSENT or len(self._unsent) >= (
            MAX_UNSENT_REPLIES if kind is Kind.RESPONSE else MAX_UNSENT_MESSAGES
        ):
            raise BackendBusy("The backend does not read its input; too much waits for it already.")
        self._unsent.append(memoryview(line))
        self._unsent_size += len(line)

    def cancel(self, exchange: Exchange) -> bool:
        return False

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
            os.close(self._in)

    def kill(self) -> None:
        """Kill it at once, and hand on no more of it; its end is then noticed as any other."""
        self._unheard = True
        self._loop.remove_reader(self._out)
        self._kill_known()
        self._expect_exit("was killed, and did not end")

    def _kill_known(self) -> None:
        self._leader.kill_group()
        with suppress(OSError):  # nobody can look who is who
            self._tree.kill()

    # -- stdout and stderr -------------------------------------------------------------------------

    def _read_stdout(self) -> None:
        if not self._read_once(self._read_size):
            self._loop.remove_reader(self._out)
            self._expect_exit("closed its output")

    def _read_once(self, size: int) -> bool:
        """Read and hand on at most `size` bytes; return whether the pipe is still open."""
        try:
            chunk = os.read(self._out, size)
        except BlockingIOError:
            return True
        for line in self._lines.feed(chunk):
            if self._unheard:
                break
            try:
                self._hand_on(line)
            except Exception:  # a fault of ours with one line must not lose the others
                logger.exception("%r: a line was lost", self)
        self._adapt(size, len(chunk))
        return bool(chunk)

    def _adapt(self, size: int, taken: int) -> None:
        """Read less at once where it came in many lines, more again where all was taken."""
        if self._lines.ends > MANY_LINES:
            self._read_size = max(LEAST_READ, size // 2)
        elif taken == size:
            self._read_size = min(READ_SIZE, size * 2)

    def _hand_on(self, line: bytes | Oversize) -> None:
        if self._speaker is None:
            self._keep_early(line)
        elif isinstance(line, Oversize):
            self._speaker.receive_oversize(line, self._max_line)
        else:
            self._speaker.receive(line)

    def _keep_early(self, line: bytes | Oversize) -> None:
        """Keep what it says before it is spoken to, as far as that is little."""
        self._early_size += len(line) if isinstance(line, bytes) else 0
        if len(self._early) < MAX_EARLY_LINES and self._early_size <= MAX_EARLY:
            self._early.append(line)
        else:
            self._loop.remove_reader(self._out)

    def _read_stderr(self) -> None:
        try:
            chunk = os.read(self._err, READ_SIZE)
        except BlockingIOError:
            return
        pause = self._log.feed(chunk, self._loop.time())
        if pause or not chunk:
            self._loop.remove_reader(self._err)
        if pause:
            self._loop.call_later(pause, self._resume_stderr, context=self._context)

    def _resume_stderr(self) -> None:
        if not self._over:
            self._loop.add_reader(self._err, self._read_stderr)

    # -- its end -----------------------------------------------------------------------------------

    def _note_exit(self, how: Ending) -> None:
        """Heed it at the loop's next turn, in our context: it may be told while we are made."""
        self._loop.call_soon(self._notice_exit, how, context=self._context)

    def _notice_exit(self, how: Ending) -> None:
        """It exited: read what is still in its pipes, and tell how it ended. It stays unreaped."""
        if self._exited.is_set():
            return
        self._drain()
        name = None if how.signal is None else _name_of(how.signal)
        self._exit = Exit(how.code, name, how.detail, self._log.last_lines())
        self._exited.set()
        self._end()

    def _drain(self) -> None:
        """Deliver what the dead process left in its pipes, and read them no more.

        Only what is in them now: a descendant may hold them too, and go on writing.
        """
        left = _unread(self._out)
        while left > 0:
            before = self._lines.taken
            self._read_once(min(left, READ_SIZE))
            taken = self._lines.taken - before
            left = left - taken if taken else 0
        self._loop.remove_reader(self._out)
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
        Where it cannot be told that nothing is left, its record stays.
        """
        bound = grace + TERM_GRACE + KILL_GRACE + LOOK_GRACE
        with anyio.move_on_after(bound, shield=True) as scope:
            await self._remember()
            self._close_stdin()
            by_itself = await self._exits_within(grace, hurry)
            await self._end_tree(LEFT_BEHIND_GRACE if by_itself else TERM_GRACE, hurry)
        self._kill_known()  # what cannot be counted
        if scope.cancelled_caught:
            logger.error("%r: nobody saw all of it end within %g s", self, bound)
            with anyio.move_on_after(KILL_GRACE, shield=True):
                await self._exited.wait()
        self._close()
        await self._remove(self._tree.close)
        if not scope.cancelled_caught:
            await self._remove(self._directory.remove)

    async def _remember(self) -> None:
        try:
            await self._tree.remember()
        except OSError as error:
            logger.warning("%r: cannot look for its processes: %s", self, error.strerror)

    async def _end_tree(self, grace: float, hurry: Latch) -> None:
        """SIGTERM once to all of it, SIGKILL to what still lives after `grace` seconds.

        The tree is always swept, also when its leader left by itself.
        """
        deadline = anyio.current_time() + grace
        left = await self._signal(signal.SIGTERM)
        if self._exited.is_set():
            if not left:
                return
            logger.info("session %s: ending what its backend left behind", self._log.label)
        await self._exits_within(grace, hurry)
        pause = POLL
        while await self._signal(signal.SIGKILL if _is_over(deadline, hurry) else 0):
            await anyio.sleep(pause)
            pause = min(pause * 2, LONGEST_POLL)
        with anyio.move_on_after(KILL_GRACE):
            await self._exited.wait()

    async def _signal(self, number: int) -> bool:
        """Signal all of it, with 0 none; return whether something lives, or nobody can look."""
        if number == signal.SIGKILL:
            self._leader.kill_group()
        try:
            return await self._tree.signal(number) > 0
        except OSError:
            return True

    async def _exits_within(self, seconds: float, hurry: Latch) -> bool:
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:

                async def until(event: Latch) -> None:
                    await event.wait()
                    tasks.cancel_scope.cancel()

                tasks.start_soon(until, self._exited)
                tasks.start_soon(until, hurry)
        return self._exited.is_set()

    async def _remove(self, remove: Callable[[], None]) -> None:
        """Remove something of the session's that is on record. Bounded."""
        with anyio.move_on_after(REMOVE_PATIENCE, shield=True) as scope:
            await in_thread(remove, abandon=True)
        if scope.cancelled_caught:
            path = self._directory.path
            logger.error("not all of %s is removed after %g s", path, REMOVE_PATIENCE)

    def _close(self) -> None:
        """Reap the leader and close the pipes. After this its pid may be anybody's."""
        self._close_stdin()
        self._loop.remove_reader(self._out)
        self._loop.remove_reader(self._err)
        os.close(self._out)
        os.close(self._err)
        self._leader.release()
        self._over = True
        self._exited.set()


def _is_over(deadline: float, hurry: Latch) -> bool:
    return hurry.is_set() or anyio.current_time() >= deadline


def _unread(fd: int) -> int:
    """Return how many bytes wait in a pipe (ioctl_tty(2), FIONREAD)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4), sys.byteorder)


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a realtime signal without a name
        return f"signal {number}"

"""Starts backends as children of the proxy itself: the first rung.

In a process of our own the proxy is the subreaper of what backends orphan. Neighbours: `guarded`
does it through a process beside the proxy.
"""

import asyncio
import ctypes
import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio

from ..processes import own_children, read_one
from ..statedir import Record, SessionDir
from ..template import Expanded
from .groups import end_recorded
from .ports import Contained, Enclosure, Ending, Pipes, close_all, contained
from .signals import kill_group, pidfd_of, send

logger: Final = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER: Final = 36
"""From `linux/prctl.h`."""

REAP_ORPHANS: Final = 1.0
"""Seconds between two looks for orphans of backends that have died: zombies until then."""

POLL: Final = 0.02
"""Seconds between two looks at a child for which there is no pidfd."""


def become_subreaper() -> bool:
    """Have orphaned descendants become our children (Linux; prctl(2)). For our own CLI only.

    Returns whether it worked. In somebody else's process it would change who reaps their orphans.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


class Direct:
    """A `Containment` whose backends are our own children."""

    def __init__(self, enclosure: Enclosure, *, own_process: bool) -> None:
        """`own_process`: nobody else has children in this process."""
        self.name: str = enclosure.name
        self._enclosure = enclosure
        self.orphans: int = 0
        self._own_process = own_process
        self._leaders: set[int] = set()

    @asynccontextmanager
    async def running(self, instance: Path) -> AsyncGenerator[None]:
        if not self._own_process or not become_subreaper():
            yield
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._reap_orphans)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
                with suppress(OSError):
                    self._kill_orphans()

    async def _reap_orphans(self) -> None:
        while True:
            await anyio.sleep(REAP_ORPHANS)
            with suppress(OSError):  # nobody can look, for want of descriptors: then the next time
                self._look_for_orphans()

    def _look_for_orphans(self) -> None:
        # In the event loop's thread, as starting is: a child just started is a leader.
        for pid in own_children():
            if pid not in self._leaders:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        if not self._leaders:
            self._kill_orphans()

    def _kill_orphans(self) -> None:
        """Kill what was orphaned to us and nobody could attribute: every backend is gone."""
        left = [p for pid in own_children() if (p := read_one(pid)) is not None and not p.zombie]
        for process in left:
            send(process, signal.SIGKILL)
        if left:
            logger.warning("killed %d orphans of backends", len(left))
            self.orphans += len(left)

    async def start(self, what: Expanded, directory: SessionDir) -> Contained:
        argv = self._enclosure.command(what, directory)
        try:
            pipes = Pipes.opened()
        except OSError:
            self._enclosure.discard(directory)
            raise
        try:
            process = _started(argv, what, pipes)
        except BaseException:
            close_all(pipes.ours)
            self._enclosure.discard(directory)
            raise
        finally:
            close_all(pipes.theirs)
        self._leaders.add(process.pid)
        leader = _Child(process, self._enclosure.ending, released=self._leaders.discard)
        return contained(leader, self._enclosure, directory, pipes)

    def end_left_over(self, record: Record) -> None:
        end_recorded(record)


def _started(argv: Sequence[str], what: Expanded, pipes: Pipes) -> "subprocess.Popen[bytes]":
    """Returns as soon as the command is executed, which takes milliseconds.

    Raises: OSError: it could not be.
    """
    try:
        return subprocess.Popen(
            argv,
            stdin=pipes.theirs[0],
            stdout=pipes.theirs[1],
            stderr=pipes.theirs[2],
            cwd=what.cwd,
            env=dict(what.env),
            start_new_session=True,
        )
    except ValueError as error:  # a NUL in a word
        raise OSError(errno.EINVAL, str(error)) from None


class _Child:
    """A `Leader` that is our child. Noticed by its pidfd (pidfd_open(2)), else by looking."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        ending: Callable[[Ending], Ending],
        *,
        released: Callable[[int], None],
    ) -> None:
        self._process = process
        self._ending = ending
        self._released = released
        self._ended: Callable[[Ending], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._pidfd = pidfd_of(process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def watch(self, ended: Callable[[Ending], None]) -> None:
        self._ended = ended
        if self._pidfd is not None:
            self._loop.add_reader(self._pidfd, self._look)
        else:
            self._poll()

    def _poll(self) -> None:
        self._look()
        if self._ended is not None:
            self._loop.call_later(POLL, self._poll)

    def _look(self) -> None:
        if self._ended is None or (ending := self._how()) is None:
            return
        self._watch_no_more()
        ended, self._ended = self._ended, None
        ended(self._ending(ending))

    def _how(self) -> Ending | None:
        """Return how it ended, and leave it unreaped where the system can tell without."""
        if not hasattr(os, "waitid"):
            return _ending_of(self._process.poll())
        try:
            facts = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # somebody else in this process reaped it
            return Ending(detail="ended, and nobody can say how")
        if facts is None:
            return None
        if facts.si_code == os.CLD_EXITED:
            return Ending(code=facts.si_status)
        return Ending(signal=facts.si_status)

    def _watch_no_more(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)

    def kill_group(self) -> None:
        if hasattr(os, "waitid"):
            with suppress(ChildProcessError):  # somebody else in this process reaped it
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                kill_group(self.pid)
        elif self._process.poll() is None:
            kill_group(self.pid)

    def release(self) -> None:
        self._ended = None
        self._watch_no_more()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self._process.poll()
        self._released(self.pid)


def _ending_of(status: int | None) -> Ending | None:
    """Return what `subprocess.Popen.returncode` tells."""
    if status is None:
        return None
    return Ending(code=status) if status >= 0 else Ending(signal=-status)

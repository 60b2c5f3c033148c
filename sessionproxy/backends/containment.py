"""Keeps hold of a backend's processes. The only module that signals one.

`Containment` is a ladder; this is its first rung: a session and process group of their own, the
proxy as subreaper of what detaches itself, and descendants known by ancestry, by session and by
the private `TMPDIR` in their environment. Neighbours: `backends.stdio` starts processes under it
and runs the stop ladder; `serve` chooses the rung.
"""

import ctypes
import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import psutil

from .statedir import Record, this_boot

logger = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER: Final = 36
"""From `linux/prctl.h`."""

_SAME_PROCESS: Final = 0.02
"""Seconds by which two readings of one process's start time may differ: clock ticks."""


class Tree(Protocol):
    """All processes of one backend."""

    def remember(self) -> None:
        """Take note of the descendants there are now. Blocks for a few milliseconds."""
        ...

    def signal(self, number: signal.Signals) -> int:
        """Signal every process of the tree; return how many there were. Blocks likewise."""
        ...


class Containment(Protocol):
    """One rung of the ladder."""

    name: str
    """As shown by the banner, `/readyz` and `doctor`."""

    def command(self, argv: Sequence[str]) -> Sequence[str]:
        """Return the command that starts `argv` contained."""
        ...

    def hold(self, pid: int, tmp: Path) -> Tree:
        """Take hold of a process just started as leader of its own session.

        It must stay unreaped for as long as the tree is in use: until then its pid, and so its
        group, cannot be anybody else's. `tmp` is its TMPDIR, which no other backend has.
        """
        ...

    def end_left_over(self, record: Record) -> None:
        """End what an earlier proxy started and did not live to end."""
        ...


def become_subreaper() -> bool:
    """Have orphaned descendants become our children (Linux; prctl(2)). For our own CLI only.

    Returns whether it worked. In somebody else's process it would change who reaps their orphans.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


class ProcessGroups:
    """Rung (a): groups, descendants, and the subreaper where the process is ours."""

    name = "process-group"

    def __init__(self, *, subreaper: bool = False) -> None:
        self._subreaper = subreaper

    def command(self, argv: Sequence[str]) -> Sequence[str]:
        return argv

    def hold(self, pid: int, tmp: Path) -> "GroupTree":
        return GroupTree(pid, tmp, collects_zombies=self._subreaper)

    def end_left_over(self, record: Record) -> None:
        leader = None
        if record.pid is not None and this_boot(record) and _is(record.pid, record.started):
            leader = record.pid
        tree = GroupTree(leader, record.directory / "tmp", collects_zombies=False)
        if tree.signal(signal.SIGKILL):
            logger.warning("ended what was left of %s", record.directory.name)


class GroupTree:
    """The processes of one backend, found anew at each look and remembered from then on."""

    def __init__(self, leader: int | None, tmp: Path, *, collects_zombies: bool) -> None:
        self._leader = leader
        self._tmp = str(tmp)
        self._collects_zombies = collects_zombies
        self._since = _start_of(leader)
        self._known: dict[int, psutil.Process] = {}

    def remember(self) -> None:
        parents: dict[int, int] = {}
        mine: set[int] = set(self._known)
        if self._leader is not None:
            mine.add(self._leader)
        seen: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                parents[process.pid] = process.ppid()
                seen[process.pid] = process
                if process.pid not in mine and self._marked(process):
                    mine.add(process.pid)
            except psutil.Error:
                continue
        mine |= _descendants(mine, parents)
        for pid in mine - self._known.keys() - {self._leader}:
            if pid in seen:
                self._known[pid] = seen[pid]

    def _marked(self, process: psutil.Process) -> bool:
        """Return whether it is in the leader's session, or has the private TMPDIR."""
        if process.create_time() < self._since - _SAME_PROCESS:
            return False
        try:
            if self._leader is not None and os.getsid(process.pid) == self._leader:
                return True
            return process.environ().get("TMPDIR") == self._tmp
        except (OSError, psutil.Error):
            return False

    def signal(self, number: signal.Signals) -> int:
        self.remember()
        count = 0
        if self._leader is not None:
            try:
                os.killpg(self._leader, number)
            except (ProcessLookupError, PermissionError):
                pass  # the group is empty, or all that is left of it are zombies
        for pid, process in tuple(self._known.items()):
            if _signal(process, number):
                count += 1
            else:
                self._forget(pid)
        return count

    def _forget(self, pid: int) -> None:
        """Drop a process that is dead; a zombie that was orphaned to us is reaped."""
        del self._known[pid]
        if self._collects_zombies:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass  # somebody else's child, or nobody's any more


def _descendants(of: set[int], parents: dict[int, int]) -> set[int]:
    """Return every pid with an ancestor in `of`."""
    found: set[int] = set()
    grown = True
    while grown:
        new = {p for p, parent in parents.items() if parent in of or parent in found} - found - of
        found |= new
        grown = bool(new)
    return found


def _start_of(pid: int | None) -> float:
    if pid is None:
        return 0.0
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def _is(pid: int, started: float | None) -> bool:
    """Return whether `pid` is still the process that was started then."""
    return started is not None and abs(_start_of(pid) - started) < _SAME_PROCESS


def _signal(process: psutil.Process, number: signal.Signals) -> bool:
    """Signal that very process, never a later one with its pid; return whether it was alive."""
    if not sys.platform.startswith("linux"):
        try:
            process.send_signal(number)
        except psutil.Error:
            return False
        return process.status() != psutil.STATUS_ZOMBIE
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:  # the descriptor is of one process for good: look who that is, then signal
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        signal.pidfd_send_signal(fd, number)
    except (psutil.Error, ProcessLookupError):
        return False
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        logger.warning("may not signal process %d", process.pid)
    finally:
        os.close(fd)
    return True

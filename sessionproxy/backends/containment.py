"""Keeps hold of a backend's processes. The only module that signals one.

`Containment` is a ladder; this is its first rung: a session and process group of their own, the
proxy as subreaper of what detaches itself, and descendants known by ancestry, by session and by
the private `TMPDIR` in their environment. Neighbours: `backends.stdio` starts processes under it
and runs the stop ladder; `serve` chooses the rung.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from .processes import Process, ProcessTable, Snapshot, own_children, read_all, read_one
from .statedir import Record, this_boot

logger = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER: Final = 36
"""From `linux/prctl.h`."""


class Tree(Protocol):
    """All processes of one backend."""

    async def remember(self) -> None:
        """Take note of the descendants there are now."""
        ...

    async def signal(self, number: int) -> int:
        """Signal every process, with 0 none; return how many live besides the leader."""
        ...

    def kill(self) -> None:
        """Kill what is known of the tree, at once: the last resort of one that cannot wait."""
        ...

    def release(self) -> None:
        """Let go: the leader has been reaped, and its pid may be anybody's."""
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
        """End what an earlier proxy started and did not live to end. Blocks."""
        ...

    def reap_orphans(self) -> None:
        """Reap descendants of backends that were orphaned to us and have died."""
        ...

    def close(self) -> None:
        """Kill what was orphaned to us and nobody could attribute: every backend is gone."""
        ...


def become_subreaper() -> bool:
    """Have orphaned descendants become our children (Linux; prctl(2)). For our own CLI only.

    Returns whether it worked. In somebody else's process it would change who reaps their orphans.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def start_of(pid: int) -> int | None:
    """Return when a process started, as `Process.started`; None where it is gone."""
    process = read_one(pid)
    return None if process is None else process.started


class ProcessGroups:
    """Rung (a): groups, descendants, and the subreaper where the process is ours."""

    name = "process-group"

    def __init__(self, *, subreaper: bool = False) -> None:
        self._subreaper = subreaper
        self._table = ProcessTable()
        self._leaders: set[int] = set()

    def command(self, argv: Sequence[str]) -> Sequence[str]:
        return argv

    def hold(self, pid: int, tmp: Path) -> "GroupTree":
        self._leaders.add(pid)
        return GroupTree(self._table, pid, str(tmp), released=self._leaders.discard)

    def reap_orphans(self) -> None:
        if not self._subreaper:
            return  # then our children are not all ours to reap
        # In the event loop's thread, as spawning is: between a spawn and `hold` nobody looks.
        for pid in own_children():
            if pid not in self._leaders:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def close(self) -> None:
        if not self._subreaper:
            return
        left = [p for pid in own_children() if (p := read_one(pid)) is not None and not p.zombie]
        for process in left:
            _signal(process, signal.SIGKILL)
        if left:
            logger.warning("killed %d orphans of backends", len(left))

    def end_left_over(self, record: Record) -> None:
        leader = record.pid
        if leader is None or not this_boot(record) or start_of(leader) != record.started:
            leader = None
        mark = str(record.directory / "tmp")
        found = read_all().tree(leader=leader, mark=mark, known=())
        if leader is not None and (process := read_one(leader)) is not None:
            found.add(process)
        count = sum(_signal(process, signal.SIGKILL) for process in found)
        if count:
            logger.warning("killed %d processes that an earlier proxy left", count)


class GroupTree:
    """The processes of one backend, found anew at each look and remembered from then on."""

    __slots__ = ("_known", "_leader", "_mark", "_released", "_table")

    def __init__(
        self, table: ProcessTable, leader: int, mark: str, *, released: Callable[[int], None]
    ) -> None:
        """`released` is called with the leader once it has been reaped."""
        self._table = table
        self._leader = leader
        self._mark = mark
        self._released = released
        self._known: frozenset[Process] = frozenset()

    async def remember(self) -> None:
        self._update(await self._table.look())

    def _update(self, snapshot: Snapshot) -> None:
        found = snapshot.tree(leader=self._leader, mark=self._mark, known=self._known)
        self._known = frozenset(process for process in found if not process.zombie)

    async def signal(self, number: int) -> int:
        await self.remember()
        if number:
            # The group first: a process that forks meanwhile leaves no child behind in it.
            with suppress(ProcessLookupError, PermissionError):  # none left but zombies
                os.killpg(self._leader, number)
        return sum(_signal(process, number) for process in self._known)

    def release(self) -> None:
        self._released(self._leader)

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._leader, signal.SIGKILL)
        for process in self._known:
            _signal(process, signal.SIGKILL)


def _signal(process: Process, number: int) -> bool:
    """Signal that very process, never a later one with its pid; return whether it was alive."""
    if not hasattr(os, "pidfd_open"):
        now = read_one(process.pid)
        if now is None or now.started != process.started or now.zombie:
            return False
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)
        return True
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:  # the descriptor is of one process for good: look who that is, then signal
        now = read_one(process.pid)
        if now is None or now.started != process.started or now.zombie:
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        logger.warning("may not signal process %d", process.pid)
    finally:
        os.close(fd)
    return True

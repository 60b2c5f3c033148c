"""Encloses a backend in a session and process group of its own, and remembers its descendants.

Neighbours: `backends.processes` reads the process table; every rung can fall back on this one.
"""

import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..processes import Process, ProcessTable, Snapshot, read_all, read_one
from ..statedir import Record, SessionDir, this_boot
from .cgroups import end_group
from .ports import Ending
from .signals import send, send_group, start_of

logger = logging.getLogger(__name__)

_GONE: Final = -1
"""No process started then."""


class Groups:
    """An `Enclosure` that needs nothing of the machine."""

    name = "process-group"

    def __init__(self) -> None:
        self._table = ProcessTable()

    def command(self, argv: Sequence[str], directory: SessionDir) -> Sequence[str]:
        return argv

    def tree(self, pid: int, directory: SessionDir) -> "GroupTree":
        return GroupTree(self._table, pid, str(directory.tmp))

    def discard(self, directory: SessionDir) -> None:
        pass

    def ending(self, leader: Ending) -> Ending:
        return leader


class GroupTree:
    """The processes of one backend, found anew at each look and remembered from then on."""

    __slots__ = ("_known", "_leader", "_mark", "_table")

    def __init__(self, table: ProcessTable, leader: int, mark: str) -> None:
        """`mark`: its TMPDIR, which no other backend has."""
        self._table = table
        self._leader = read_one(leader) or Process(leader, _GONE, 0, leader, True, "")
        self._mark = mark
        self._known: frozenset[Process] = frozenset()

    async def remember(self) -> None:
        try:
            self._update(await self._table.look())
        except OSError as error:  # what is known can be ended all the same
            logger.warning("cannot look for a backend's processes: %s", error.strerror)

    def _update(self, snapshot: Snapshot) -> None:
        found = snapshot.tree(leader=self._leader.pid, mark=self._mark, known=self._known)
        self._known = frozenset(process for process in found if not process.zombie)

    async def signal(self, number: int) -> int:
        await self.remember()
        if number:
            # The group first: a process that forks meanwhile leaves no child behind in it.
            send_group(self._leader, number)
        return sum(send(process, number) for process in self._known)

    def kill(self) -> None:
        send_group(self._leader, signal.SIGKILL)
        for process in self._known:
            send(process, signal.SIGKILL)

    def close(self) -> None:
        pass


def end_recorded(record: Record) -> None:
    """Kill the processes that a record tells of. Blocks."""
    if record.cgroup is not None and this_boot(record):
        end_group(Path(record.cgroup))
    leader = record.pid
    if leader is None or not this_boot(record) or start_of(leader) != record.started:
        leader = None
    mark = str(record.directory / "tmp")
    found = read_all().tree(leader=leader, mark=mark, known=())
    if leader is not None and (process := read_one(leader)) is not None:
        found.add(process)
    count = sum(send(process, signal.SIGKILL) for process in found)
    if count:
        logger.warning("killed %d processes that an earlier proxy left", count)

"""Encloses a backend in a session and process group of its own, and remembers its descendants.

Neighbours: `backends.processes` reads the process table; every rung can fall back on this one.
"""

import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..processes import Process, ProcessTable, read_all, read_one
from ..statedir import Record, SessionDir, this_boot
from ..template import Expanded
from .cgroups import end_group
from .ports import Ending
from .signals import send, send_group

logger: Final = logging.getLogger(__name__)

_GONE: Final = -1
"""No process started then."""

LOOKS: Final = 100
POLL: Final = 0.01
"""How often, and after how many seconds, it is looked again for what is on record."""


class Groups:
    """An `Enclosure` that needs nothing of the machine."""

    name = "process-group"

    def __init__(self) -> None:
        self._table = ProcessTable()

    def command(self, what: Expanded, directory: SessionDir) -> Sequence[str]:
        return what.argv

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
        self._leader = read_one(leader) or Process(leader, _GONE, 0, leader, zombie=True)
        self._mark = mark
        self._known: Sequence[Process] = (self._leader,)

    async def remember(self) -> None:
        found = (await self._table.look()).tree(
            leader=self._leader, mark=self._mark, known=self._known
        )
        # Parents before their children: who looks after others is told first.
        living = (process for process in found if not process.zombie)
        self._known = sorted(living, key=lambda process: process.started)

    async def signal(self, number: int) -> int:
        if number == signal.SIGKILL:  # at once: a look may take its time
            self.kill()
        try:
            await self.remember()
        except OSError:
            self._send(number)
            raise
        return self._send(number)

    def _send(self, number: int) -> int:
        return sum([send(process, number) for process in self._known])

    def kill(self) -> None:
        # The group first: a process that forks meanwhile leaves no child behind in it.
        send_group(self._leader, signal.SIGKILL)
        self._send(signal.SIGKILL)

    def close(self) -> None:
        pass


def end_recorded(record: Record) -> None:
    """Kill the processes that a record tells of, and wait until they are dead. Blocks, bounded.

    Looks again until there are none: one that is being executed just then has no mark to see.

    Raises: OSError: nobody can look for them.
    """
    if record.cgroup is not None and this_boot(record):
        end_group(Path(record.cgroup))
    leader = _leader_of(record)
    mark = str(record.directory / "tmp")
    found: set[Process] = set()
    ended: set[tuple[int, int]] = set()
    for _ in range(LOOKS):
        tree = read_all().tree(leader=leader, mark=mark, known=found)
        found = {process for process in tree if send(process, signal.SIGKILL)}
        if not found:
            break
        ended.update((process.pid, process.started) for process in found)
        time.sleep(POLL)
    if ended:
        logger.warning("killed %d processes that were left behind", len(ended))


def _leader_of(record: Record) -> Process | None:
    """Return the leader as it was; None where nobody knows who that was."""
    if record.pid is None or record.started is None or not this_boot(record):
        return None
    return Process(record.pid, record.started, 0, record.pid, zombie=False)

"""The process table, read once for all who ask at the same time.

Many backends are stopped together when a proxy ends, and each wants to know its descendants; a
look of its own for each would take time with the square of their number. Linux's table is read
from `/proc` directly: through psutil a look takes three times as long (`scripts/bench_look`).
Neighbours: `backends.containment`.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import psutil

T = TypeVar("T")

_PROC: Final = Path("/proc")
_MARK: Final = b"TMPDIR="


class Process(NamedTuple):
    pid: int
    started: int
    """Clock ticks since boot on Linux, else hundredths of a second since the epoch; with the pid
    it names one process for good."""
    parent: int
    session: int
    zombie: bool
    mark: str
    """Its TMPDIR; empty where it has none, or is not ours to read."""


class Snapshot:
    """All processes at one moment."""

    def __init__(self, processes: Iterable[Process]) -> None:
        self.processes: Mapping[int, Process] = {p.pid: p for p in processes}
        self._children: defaultdict[int, list[Process]] = defaultdict(list)
        self._sessions: defaultdict[int, list[Process]] = defaultdict(list)
        self._marks: defaultdict[str, list[Process]] = defaultdict(list)
        for process in self.processes.values():
            self._children[process.parent].append(process)
            self._sessions[process.session].append(process)
            if process.mark:
                self._marks[process.mark].append(process)

    def tree(self, *, leader: int | None, mark: str, known: Iterable[Process]) -> set[Process]:
        """Return who is in the session of `leader`, has `mark`, or is known; and all descendants.

        `leader` itself is left out.
        """
        found: set[Process] = set(self._marks.get(mark, ()))
        if leader is not None:
            found.update(self._sessions.get(leader, ()))
            found.update(self._children.get(leader, ()))
        found.update(p for old in known if (p := self.same(old)) is not None)
        waiting = list(found)
        while waiting:
            for child in self._children.get(waiting.pop().pid, ()):
                if child not in found:
                    found.add(child)
                    waiting.append(child)
        return {process for process in found if process.pid != leader}

    def same(self, process: Process) -> Process | None:
        """Return what has become of a process; None where it is gone."""
        now = self.processes.get(process.pid)
        return now if now is not None and now.started == process.started else None


def read_one(pid: int) -> Process | None:
    """Return one process; None where there is none such (proc(5), /proc/pid/stat)."""
    if not sys.platform.startswith("linux"):
        return _by_psutil(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name, in parentheses, may hold anything; what follows the last one is plain.
    fields = stat[stat.rindex(b")") + 2 :].split()
    state, parent, session, started = fields[0], fields[1], fields[3], fields[19]
    zombie = state in (b"Z", b"X")
    mark = "" if zombie else _mark(pid)
    return Process(pid, int(started), int(parent), int(session), zombie, mark)


def _mark(pid: int) -> str:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    if environ.startswith(_MARK):
        at = len(_MARK)
    else:
        at = environ.find(b"\0" + _MARK) + 1 + len(_MARK)
        if at == len(_MARK):
            return ""
    return os.fsdecode(environ[at : environ.find(b"\0", at)])


def _by_psutil(pid: int) -> Process | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            zombie = process.status() == psutil.STATUS_ZOMBIE
            started = round(process.create_time() * 100)
            parent = process.ppid()
        session = os.getsid(pid)
        mark = "" if zombie else process.environ().get("TMPDIR", "")
    except (psutil.Error, OSError):
        return None
    return Process(pid, started, parent, session, zombie, mark)


def read_all() -> Snapshot:
    """Return the process table as it is now. Blocks."""
    return Snapshot(p for pid in psutil.pids() if (p := read_one(pid)) is not None)


def children_of(pid: int) -> Sequence[int]:
    """Return the pids of a process's children, zombies too (proc(5), /proc/pid/task)."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        lists = [(task / "children").read_text() for task in tasks.iterdir()]
    except OSError:  # a kernel without it, or not Linux
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []
    return [int(child) for children in lists for child in children.split()]


def own_children() -> Sequence[int]:
    """Return the pids of this process's children, zombies too."""
    return children_of(os.getpid())


async def in_thread(function: Callable[[], T]) -> T:
    """Return what `function` does, done in a thread; in this one where none can be started."""
    try:
        return await anyio.to_thread.run_sync(function)
    except RuntimeError:  # of `threading`: no process is left for one (setrlimit(2), RLIMIT_NPROC)
        return function()


class _Look:
    __slots__ = ("done", "failure", "snapshot")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.snapshot: Snapshot | None = None
        self.failure: OSError | None = None


class ProcessTable:
    """Looks at the table in a thread; those who ask while one looks share the next look."""

    def __init__(self) -> None:
        self._lock = anyio.Lock()
        self._next: _Look | None = None

    async def look(self) -> Snapshot:
        """Return a snapshot taken after this was called. Raises: OSError: there is none."""
        look = self._next
        if look is None:
            look = self._next = _Look()
            with anyio.CancelScope(shield=True):  # others wait for it; it takes milliseconds
                async with self._lock:
                    self._next = None
                    try:
                        look.snapshot = await in_thread(read_all)
                    except OSError as error:
                        look.failure = error
                    look.done.set()
        await look.done.wait()
        if look.snapshot is None:
            raise look.failure or OSError("nobody looked")
        return look.snapshot

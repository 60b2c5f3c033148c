"""The process table, read once for all who ask at the same time.

Many backends are stopped together when a proxy ends, and each wants to know its descendants; a
look of its own for each would take time with the square of their number. Linux's table is read
from `/proc` directly: through psutil a look takes three times as long (`scripts/bench_look`).
Neighbours: `backends.containment`.
"""

import errno
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import psutil

T = TypeVar("T")

LOOK_PATIENCE: Final = 3.0
"""Seconds that a look may take: they are milliseconds, unless a process holds it up."""

_MARK: Final = b"TMPDIR="

_OUT_OF_SIGHT: Final = (FileNotFoundError, ProcessLookupError, PermissionError)
"""A process is gone, or hidden from us (proc(5), hidepid=). What else may go wrong, as that there
are no descriptors left, tells nothing about it."""


class Process(NamedTuple):
    pid: int
    started: int
    """Clock ticks since boot on Linux, else hundredths of a second since the epoch; with the pid
    it names one process for good."""
    parent: int
    session: int
    zombie: bool
    mark: str = ""
    """Its TMPDIR; empty where it has none, is not ours to read, or was not read."""


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

    def tree(self, *, leader: Process | None, mark: str, known: Iterable[Process]) -> set[Process]:
        """Return `leader`, who is in its session, has `mark`, or is known; and all descendants.

        Of a leader that is gone only these last two are: its pid may be somebody else's.
        """
        found: set[Process] = set(self._marks.get(mark, ()))
        if leader is not None and (now := self.same(leader)) is not None:
            found.add(now)
            found.update(self._sessions.get(now.pid, ()))
        found.update(p for old in known if (p := self.same(old)) is not None)
        waiting = list(found)
        while waiting:
            for child in self._children.get(waiting.pop().pid, ()):
                if child not in found:
                    found.add(child)
                    waiting.append(child)
        return found

    def same(self, process: Process) -> Process | None:
        """Return what has become of a process; None where it is gone."""
        now = self.processes.get(process.pid)
        return now if now is not None and now.started == process.started else None


def read_one(pid: int, *, mark: bool = False) -> Process | None:
    """Return one process; None where we see none such (proc(5), /proc/pid/stat).

    `mark`: with its mark. Reading that takes the lock of the process's memory, so it may last as
    long as the process hangs in the kernel: for ever, with a file server that is gone.

    Raises: OSError: nobody can look, for want of descriptors.
    """
    if not sys.platform.startswith("linux"):
        return _by_psutil(pid, mark=mark)
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except _OUT_OF_SIGHT:
        return None
    # The name, in parentheses, may hold anything; what follows the last one is plain.
    fields = stat[stat.rindex(b")") + 2 :].split()
    state, parent, session, started = fields[0], fields[1], fields[3], fields[19]
    zombie = state in (b"Z", b"X")
    text = mark_of(pid) if mark and not zombie else ""
    return Process(pid, int(started), int(parent), int(session), zombie, text)


def mark_of(pid: int) -> str:
    """Return a process's `Process.mark` (proc(5), /proc/pid/environ)."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except _OUT_OF_SIGHT:
        return ""
    if environ.startswith(_MARK):
        at = len(_MARK)
    else:
        at = environ.find(b"\0" + _MARK) + 1 + len(_MARK)
        if at == len(_MARK):
            return ""
    return os.fsdecode(environ[at : environ.find(b"\0", at)])


def _by_psutil(pid: int, *, mark: bool) -> Process | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            zombie = process.status() == psutil.STATUS_ZOMBIE
            started = round(process.create_time() * 100)
            parent = process.ppid()
        session = os.getsid(pid)
        text = process.environ().get("TMPDIR", "") if mark and not zombie else ""
    except (psutil.Error, *_OUT_OF_SIGHT):
        return None
    return Process(pid, started, parent, session, zombie, text)


class Walk:
    """How far somebody is who reads the whole table."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at: int | None = None
        """The process that is being read, which may hold him up for good."""


def read_all(walk: Walk | None = None, held_up: Iterable[Walk] = ()) -> Snapshot:
    """Return the process table as it is now. Blocks.

    The marks at which other walks are held up are not read. Raises: OSError: nobody can look.
    """
    walk = walk or Walk()
    try:
        return Snapshot(_each(walk, {other.at for other in held_up}))
    finally:
        walk.at = None


def _each(walk: Walk, unreadable: set[int | None]) -> Iterator[Process]:
    for pid in psutil.pids():
        walk.at = pid
        process = read_one(pid, mark=pid not in unreadable)
        if process is not None:
            yield process


def children_of(pid: int) -> Sequence[int]:
    """Return the pids of a process's children, zombies too (proc(5), /proc/pid/task).

    Raises: OSError: nobody can look.
    """
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


async def in_thread(function: Callable[[], T], *, abandon: bool = False) -> T:
    """Return what `function` does, done in a thread; in this one where none can be started.

    `abandon`: whoever is cancelled does not wait for its end.
    """
    try:
        return await anyio.to_thread.run_sync(function, abandon_on_cancel=abandon)
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
        self._held_up: list[Walk] = []
        """Those that were given up and go on. A thread cannot be ended."""

    async def look(self) -> Snapshot:
        """Return a snapshot taken after this was called. Raises: OSError: there is none."""
        while True:
            look = self._next
            if look is None:
                look = self._next = _Look()
                await self._run(look)
            await look.done.wait()
            if look.failure is not None:
                raise look.failure
            if look.snapshot is not None:
                return look.snapshot
            # Whoever looked for us was cancelled.

    async def _run(self, look: _Look) -> None:
        try:
            async with self._lock:
                self._next = None
                look.snapshot = await self._read()
        except OSError as error:
            look.failure = error
        finally:
            if self._next is look:
                self._next = None
            look.done.set()

    async def _read(self) -> Snapshot:
        """Raises: OSError: nobody can look; TimeoutError: a process holds us up, whose mark is
        read no more until it lets go."""
        walk = Walk()
        held_up = self._held_up = [other for other in self._held_up if other.at is not None]
        try:
            with anyio.move_on_after(LOOK_PATIENCE):
                return await in_thread(partial(read_all, walk, tuple(held_up)), abandon=True)
            raise TimeoutError(errno.ETIMEDOUT, f"process {walk.at} lets nobody look at it")
        finally:
            if walk.at is not None:
                held_up.append(walk)

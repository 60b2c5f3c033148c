"""Which processes and directories the sessions of a proxy have, as the machine itself tells it.

A process is of a session if its TMPDIR or its working directory is the session's, if it is in the
session's control group, if its parent is of that session, or if it was at an earlier look: Chromium
writes over its own environment, and what detaches itself loses its ancestors. So look while a
session lives, and again when it should be gone. PID namespaces hide nothing: this looks from
outside of them.
Neighbours: tests that ask whether a backend's whole tree is gone; `tests.rig.endings`.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Final, Self

import anyio
import psutil

POLL: Final = 0.02
"""Seconds between two looks: the process table has no events."""

INIT: Final = 1

_PR_SET_CHILD_SUBREAPER: Final = 36
"""From `linux/prctl.h`."""


class Orphans:
    """As a context manager: has what loses its parents below this process become its child (Linux;
    prctl(2)). So nothing gets away unseen, whatever it does to its environment."""

    def __init__(self) -> None:
        self._ours: set[psutil.Process] = set()
        """Our children that are no orphans."""

    def __enter__(self) -> Self:
        self._ours.update(psutil.Process().children())
        _be_subreaper(True)
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        _be_subreaper(False)

    def started(self, pid: int) -> None:
        """This child is one that we have started ourselves."""
        self._ours.add(psutil.Process(pid))

    def look(self) -> list[psutil.Process]:
        """Return those that live, and reap the dead."""
        adopted = [child for child in psutil.Process().children() if child not in self._ours]
        return [child for child in adopted if not _is_reaped(child)]


def _be_subreaper(on: bool) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


def _is_reaped(child: psutil.Process) -> bool:
    with suppress(ChildProcessError):
        return os.waitpid(child.pid, os.WNOHANG)[0] != 0
    return True


class Census:
    """What `look` has found so far, for a proxy with this state directory."""

    def __init__(self, state_dir: Path, orphans: Orphans | None = None) -> None:
        self._run = state_dir / "run"
        self._orphans = orphans
        self._known: dict[psutil.Process, Path] = {}
        """The session directory of every process ever seen; a reused pid is another process. Those
        of the proxy itself have `run`."""
        self._instances: set[str] = set()
        """The proxies that there were, by the names of their directories in `run`."""

    def follow(self, proxy: int) -> None:
        """From now on this process, a proxy, counts as well, and what it has beside sessions."""
        self._known[psutil.Process(proxy)] = self._run

    def look(self) -> dict[Path, list[psutil.Process]]:
        """Return the processes that exist, by session directory. Zombies exist."""
        if self._run.exists():
            self._instances.update(path.name for path in self._run.iterdir())
        parents = {
            process: parent for process in psutil.process_iter() if (parent := _parent(process))
        }
        grouped = dict(self._grouped())
        for process in parents:
            if self._known.get(process, self._run) == self._run:
                directory = grouped.get(process.pid) or self._marked(process)
                if directory is not None:
                    self._known[process] = directory
        self._adopt(parents)
        for orphan in self._orphans.look() if self._orphans else ():
            self._known.setdefault(orphan, self._run)
        found: dict[Path, list[psutil.Process]] = {}
        self._known = {p: directory for p, directory in self._known.items() if p.is_running()}
        for process, directory in self._known.items():
            if not _is_inits_zombie(process):
                found.setdefault(directory, []).append(process)
        return found

    def _adopt(self, parents: dict[psutil.Process, int]) -> None:
        grown = True
        while grown:
            by_pid = {process.pid: directory for process, directory in self._known.items()}
            children = {p: by_pid[ppid] for p, ppid in parents.items() if ppid in by_pid}
            grown = not children.keys() <= self._known.keys()
            self._known = children | self._known

    def _marked(self, process: psutil.Process) -> Path | None:
        try:
            tmp = process.environ().get("TMPDIR", "")
            return self._session_of(tmp) or self._session_of(process.cwd())
        except (psutil.Error, OSError):
            return None

    def _session_of(self, path: str) -> Path | None:
        if not path.startswith(f"{self._run}/"):
            return None
        parts = Path(path).relative_to(self._run).parts
        return self._run.joinpath(*parts[:2]) if len(parts) > 1 else None

    def _grouped(self) -> Iterator[tuple[int, Path]]:
        for group, directory in self.groups().items():
            with suppress(OSError):
                pids = (group / "cgroup.procs").read_text().split()
                yield from ((int(pid), directory) for pid in pids)

    def groups(self) -> dict[Path, Path]:
        """Return the control groups that exist, each with the session directory it belongs to."""
        found = [group for mount in _group_mounts() for group in _groups_below(mount)]
        parts = [(group, *group.name.split("-")[1:]) for group in found]
        return {
            group: self._run / instance / name
            for group, instance, name in parts
            if instance in self._instances
        }

    def directories(self) -> list[Path]:
        """Return the private directories of sessions that exist, whoever uses them."""
        return sorted(path for path in self._run.glob("*/*") if path.is_dir())

    def lives(self, *directories: Path) -> bool:
        """Return whether one of the processes found so far runs. Costs less than a look."""
        return any(
            process.is_running() and not is_zombie(process)
            for process, directory in self._known.items()
            if not directories or directory in directories
        )

    def left(self, *directories: Path, zombies: bool = True) -> list[str]:
        """Return what there still is of these sessions, of all where none is named."""
        processes = self.look()
        places = [(path, path) for path in self.directories()] + [*self.groups().items()]
        left = [str(path) for path, of in places if not directories or of in directories]
        for directory in directories or processes:
            here = processes.get(directory, [])
            left += [told(process) for process in here if zombies or not is_zombie(process)]
        return left

    async def gone(self, *directories: Path, within: float, zombies: bool = True) -> None:
        """Return once nothing is left of these sessions, of all where none is named.

        `zombies`: wait until they are reaped, too.

        Raises: AssertionError: something still is after `within` seconds; it is named.
        """
        with anyio.move_on_after(within):
            while self.lives(*directories) or self.left(*directories, zombies=zombies):  # noqa: ASYNC110
                await anyio.sleep(POLL)
        left = self.left(*directories, zombies=zombies)
        assert not left, "still there: " + "; ".join(left)

    def kill(self) -> None:
        """End what is left, so that the next test does not find it."""
        for processes in self.look().values():
            for process in processes:
                with suppress(psutil.Error):
                    process.kill()  # psutil looks first whether it is that very process
        for group in self.groups():
            with suppress(OSError):  # they have not all died yet
                group.rmdir()


def _group_mounts() -> list[Path]:
    """Return where control groups of version 2 are mounted."""
    with suppress(OSError):
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        return [Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2"]
    return []


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _is_inits_zombie(process: psutil.Process) -> bool:
    """Return whether it is dead and has only to be reaped by init, which is none of ours."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE and process.ppid() == INIT
    except psutil.Error:
        return True  # it went in this moment


def is_zombie(process: psutil.Process) -> bool:
    """Return whether it is dead, or was reaped in this moment."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def told(process: psutil.Process) -> str:
    """Return its pid and what it is."""
    try:
        return f"{process.pid} {process.status()} {' '.join(process.cmdline())[:80]}"
    except psutil.Error:
        return f"{process.pid} going"


def _groups_below(mount: Path) -> list[Path]:
    """Return the control groups of backends; those of other proxies come and go meanwhile."""
    return [
        Path(place, name)
        for place, names, _ in os.walk(mount)
        for name in names
        if fnmatch(name, "sessionproxy-*-*")
    ]

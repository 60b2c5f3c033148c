"""Which processes and directories the sessions of a proxy have, as the machine itself tells it.

A process is of a session if its TMPDIR is the session's, if its parent is of that session, or if
it was at an earlier look: Chromium writes over its own environment, and what detaches itself
loses its ancestors. So look while a session lives, and again when it should be gone.
Neighbours: tests that ask whether a backend's whole tree is gone.
"""

from pathlib import Path
from typing import Final

import anyio
import psutil

POLL: Final = 0.02
"""Seconds between two looks: the process table has no events."""

INIT: Final = 1


class Census:
    """What `look` has found so far, for a proxy with this state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._run = state_dir / "run"
        self._known: dict[psutil.Process, Path] = {}
        """The session directory of every process ever seen; a reused pid is another process."""

    def look(self) -> dict[Path, list[psutil.Process]]:
        """Return the processes that exist, by session directory. Zombies exist."""
        parents = {
            process: parent for process in psutil.process_iter() if (parent := _parent(process))
        }
        for process in parents:
            directory = None if process in self._known else self._marked(process)
            if directory is not None:
                self._known[process] = directory
        self._adopt(parents)
        found: dict[Path, list[psutil.Process]] = {}
        for process, directory in self._known.items():
            if process.is_running() and not _is_inits_zombie(process):
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
        except (psutil.Error, OSError):
            return None
        return Path(tmp).parent if Path(tmp).is_relative_to(self._run) else None

    def directories(self) -> list[Path]:
        """Return the private directories of sessions that exist, whoever uses them."""
        return sorted(path for path in self._run.glob("*/*") if path.is_dir())

    def left(self, *directories: Path) -> list[str]:
        """Return what there still is of these sessions, of all where none is named."""
        processes = self.look()
        left = [str(path) for path in self.directories() if not directories or path in directories]
        for directory in directories or processes:
            left += [told(process) for process in processes.get(directory, [])]
        return left

    async def gone(self, *directories: Path, within: float) -> None:
        """Return once nothing is left of these sessions, of all where none is named.

        Raises: AssertionError: something still is after `within` seconds; it is named.
        """
        with anyio.move_on_after(within):
            while self.left(*directories):  # noqa: ASYNC110 - see POLL
                await anyio.sleep(POLL)
        left = self.left(*directories)
        assert not left, "still there: " + "; ".join(left)


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


def told(process: psutil.Process) -> str:
    """Return its pid and what it is."""
    try:
        return f"{process.pid} {process.status()} {' '.join(process.cmdline())[:80]}"
    except psutil.Error:
        return f"{process.pid} going"

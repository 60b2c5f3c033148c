"""Encloses a backend in a control group of its own (cgroups(7), version 2), which ends as one.

`cgroup.kill` (Linux 5.14) kills all of it at once, whatever it forks meanwhile; `memory.max` and
`pids.max` bound it where these controllers are ours to use. It is put around another enclosure,
whose way to ask a backend to end is kept. Neighbours: `ladder` chooses it.
"""

import errno
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..statedir import SessionDir
from ..template import Expanded
from .ports import Enclosure, Ending, Tree
from .shells import SHELL, kept_from_shells, path_of

logger: Final = logging.getLogger(__name__)

ENTER: Final = 'echo 0 >"$0/cgroup.procs" || exit 126\nexec "$@"'
"""A process that joins before it becomes the command, so nothing of it is ever outside."""

PREFIX: Final = "sessionproxy-"

TRIES: Final = 300
POLL: Final = 0.01
"""How often it is tried to remove a group, and the seconds between two tries."""

MOUNTS: Final = Path("/proc/self/mountinfo")
OWN: Final = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one backend, all its processes together. None: not bounded."""

    memory: int | None = None
    """Bytes."""
    pids: int | None = None
    """Processes and threads."""


class Cgroups:
    """An `Enclosure` of Linux's, around another one."""

    name = "cgroup"

    def __init__(self, base: Path, inner: Enclosure, bounds: Bounds) -> None:
        self._base = base
        self._inner = inner
        self._bounds = bounds

    def _group(self, directory: SessionDir) -> Path:
        return group_of(self._base, directory.path)

    def command(self, what: Expanded, directory: SessionDir) -> Sequence[str]:
        group = self._group(directory)
        directory.note(cgroup=str(group))  # before it is there, or nobody would find it after us
        group.mkdir()
        try:
            if self._bounds.memory is not None:
                (group / "memory.max").write_text(str(self._bounds.memory))
            if self._bounds.pids is not None:
                (group / "pids.max").write_text(str(self._bounds.pids))
            kept = kept_from_shells(what.env)
            env = (path_of("env"), *kept) if kept else ()
            return (SHELL, "-c", ENTER, str(group), *env, *self._inner.command(what, directory))
        except OSError:
            group.rmdir()
            raise

    def tree(self, pid: int, directory: SessionDir) -> "GroupedTree":
        return GroupedTree(self._group(directory), pid, self._inner.tree(pid, directory))

    def discard(self, directory: SessionDir) -> None:
        self._inner.discard(directory)
        group = self._group(directory)
        if not _removed(group):  # not waited for: nothing has been in it for long
            logger.warning("%s is not removed", group)

    def ending(self, leader: Ending) -> Ending:
        return self._inner.ending(leader)


def group_of(base: Path, directory: Path) -> Path:
    """Return the group of the backend with this private directory; no other has its name."""
    return base / f"{PREFIX}{directory.parent.name}-{directory.name}"


class GroupedTree:
    """The processes in a control group; each is asked to end as the inner enclosure does it."""

    __slots__ = ("_group", "_inner", "_leader")

    def __init__(self, group: Path, leader: int, inner: Tree) -> None:
        self._group = group
        self._leader = leader
        self._inner = inner

    async def remember(self) -> None:
        await self._inner.remember()

    async def signal(self, number: int) -> int:
        if number == signal.SIGKILL:
            kill(self._group)
        known = await self._inner.signal(number)
        return max(known, len(members(self._group) - {self._leader}))

    def kill(self) -> None:
        kill(self._group)
        self._inner.kill()

    def close(self) -> None:
        self._inner.close()
        remove(self._group)


def members(group: Path) -> set[int]:
    """Return the processes in a group; a zombie is in none, and none is in a group that is gone.

    Raises: OSError: it cannot be looked at.
    """
    try:
        return {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return set()
        raise


def kill(group: Path) -> None:
    with suppress(OSError):  # it is gone
        (group / "cgroup.kill").write_text("1")


def end_group(group: Path) -> None:
    """Kill and remove a group that an earlier proxy made. Blocks, for some seconds at most."""
    if group.name.startswith(PREFIX):
        kill(group)
        remove(group)


def remove(group: Path) -> None:
    """Remove a group in which nothing lives, and what a backend made in it. Blocks likewise.

    A process that is dead for everybody else may hold its group for as long as the kernel takes to
    free its memory.
    """
    for _ in range(TRIES):
        if _removed(group):
            return
        time.sleep(POLL)
    logger.warning("%s is not removed after %g s", group, TRIES * POLL)


def _removed(group: Path) -> bool:
    for below, names, _ in os.walk(group, topdown=False):
        for name in names:
            with suppress(OSError):
                Path(below, name).rmdir()
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


# -- what is delegated to us -----------------------------------------------------------------------


def base_group() -> Path | None:
    """Return the group to make groups in; None where version 2 is not mounted.

    It is the one that we are in, unless the one above it was handed to us: a service manager that
    puts the service into a group below (DelegateSubgroup=) leaves that one without processes, and
    only such a one can bound its groups.
    """
    own = _own_group()
    if own is not None and is_delegated(own.parent) and not is_delegated(own):
        return own.parent
    return own


def _own_group() -> Path | None:
    try:
        mounts = [line.split() for line in MOUNTS.read_text().splitlines()]
        paths = [line[3:] for line in OWN.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        return None
    for fields in mounts:
        # mountinfo(5): ... root mount-point options [tags] - type source options
        if fields[fields.index("-") + 1] == "cgroup2" and paths:
            return Path(fields[4]) / os.path.relpath(paths[0], fields[3])
    return None


def is_delegated(group: Path) -> bool:
    """Return whether somebody handed this group to us, as a service manager marks it: by owner,
    or by an attribute (systemd.resource-control(5), Delegate=)."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return os.geteuid() != 0 and group.stat().st_uid == os.geteuid()


def usable(group: Path, bounds: Bounds) -> str:
    """Return what speaks against making groups for backends in `group`; nothing where it works."""
    wanted = [
        name
        for name, bound in (("memory", bounds.memory), ("pids", bounds.pids))
        if bound is not None
    ]
    trial = group / f"{PREFIX}{os.getpid()}"
    control = group / "cgroup.subtree_control"
    try:
        enabled = control.read_text().split()
        for name in wanted:
            if name not in enabled:
                try:
                    control.write_text(f"+{name}")
                except OSError as error:  # which names no file where it is the write that fails
                    return f"{control}: no {name} controller ({error.strerror})"
        trial.mkdir()
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    try:
        if not (trial / "cgroup.kill").exists():
            return "the kernel has no cgroup.kill (Linux 5.14)"
    finally:
        trial.rmdir()
    return ""

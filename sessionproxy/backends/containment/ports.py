"""What containment offers, and what its rungs are made of.

Neighbours: `groups`, `namespaces` and `cgroups` enclose; `direct` and `guarded` start.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from ..statedir import Record, SessionDir
from ..template import Expanded


class Ending(NamedTuple):
    """How a process ended: one of the three tells."""

    code: int | None = None
    signal: int | None = None
    detail: str = ""


class Leader(Protocol):
    """The process that a backend was started as.

    It stays unreaped until `release`, as far as that is in our hands: until then its pid, and so
    its group, cannot be anybody else's.
    """

    @property
    def pid(self) -> int: ...

    def watch(self, ended: Callable[[Ending], None]) -> None:
        """Have `ended` called once it has exited, soon where it already has."""
        ...

    def kill_group(self) -> None:
        """Kill its process group, if it is unreaped for certain. Needs no descriptor to look."""
        ...

    def release(self) -> None:
        """Reap it and watch no more."""
        ...


class Tree(Protocol):
    """All processes of one backend.

    Each is known by its pid and the time it started. Raises: OSError: nobody can look who lives.
    """

    async def remember(self) -> None:
        """Take note of the descendants there are now."""
        ...

    async def signal(self, number: int) -> int:
        """Signal every process, once, with 0 none; return how many were found to live.

        SIGKILL goes to the leader's process group as well.
        """
        ...

    def kill(self) -> None:
        """Kill what is known of the tree, at once: the last resort of one that cannot wait."""
        ...

    def close(self) -> None:
        """Let go of what the tree was held by. Nothing of it is left, or can be ended.

        May block for some seconds, so it is not for the event loop.
        """
        ...


@dataclass(frozen=True, slots=True)
class Contained:
    """A backend that was started. Its descriptors are the taker's to close."""

    leader: Leader
    tree: Tree
    stdin: int
    stdout: int
    stderr: int


class Containment(Protocol):
    """One rung of the ladder."""

    name: str
    """As shown by the banner, `/readyz` and `doctor`."""

    orphans: int
    """Processes killed when all backends had gone, since nobody could say whose they were."""

    def running(self, instance: Path) -> AbstractAsyncContextManager[None]:
        """Be ready to start backends, whose private directories lie in `instance`.

        On exit nothing of any backend lives.
        """
        ...

    async def start(self, what: Expanded, directory: SessionDir) -> Contained:
        """Start a backend as leader of a session of its own. Not interrupted by cancellation.

        Raises: OSError: it could not be started; nothing of it stays.
        """
        ...

    def end_left_over(self, record: Record) -> None:
        """End what an earlier proxy started and did not live to end. Blocks."""
        ...


class Enclosure(Protocol):
    """What is put around a command so that its processes can be found and ended."""

    name: str

    def command(self, what: Expanded, directory: SessionDir) -> Sequence[str]:
        """Return the command that starts `what` enclosed.

        Raises: OSError: what it needs cannot be made.
        """
        ...

    def tree(self, pid: int, directory: SessionDir) -> Tree:
        """Take hold of what was started so: `pid` is the leader of its own session."""
        ...

    def discard(self, directory: SessionDir) -> None:
        """Undo `command`: nothing was started."""
        ...

    def ending(self, leader: Ending) -> Ending:
        """Return how the command ended, from how the leader did."""
        ...


@dataclass(frozen=True, slots=True)
class Pipes:
    """Three pipes: our ends, and those for a child."""

    ours: tuple[int, int, int]
    theirs: tuple[int, int, int]

    @classmethod
    def opened(cls) -> Self:
        """Raises: OSError: no descriptors left."""
        made: list[int] = []
        try:
            for _ in range(3):
                made.extend(os.pipe())
        except OSError:
            close_all(made)
            raise
        stdin, to_stdin, from_stdout, stdout, from_stderr, stderr = made
        return cls((to_stdin, from_stdout, from_stderr), (stdin, stdout, stderr))


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def end_unwanted(leader: Leader) -> None:
    """Kill what has just been started, and reap it once it is dead."""
    leader.kill_group()
    leader.watch(lambda _: leader.release())


def contained(
    leader: Leader, enclosure: Enclosure, directory: SessionDir, pipes: Pipes
) -> Contained:
    """Take hold of what has just been started.

    Raises: OSError: that failed; nothing of it stays.
    """
    try:
        return Contained(leader, enclosure.tree(leader.pid, directory), *pipes.ours)
    except OSError:  # nobody could tell its processes from others later
        end_unwanted(leader)
        close_all(pipes.ours)
        enclosure.discard(directory)
        raise

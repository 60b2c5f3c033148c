"""How many files this process may still open, and a reserve for ending what it has begun.

A process without a descriptor left can neither look for a backend's processes nor signal them, and
nobody can reach it. So connections and backends are refused while there are still a few. It costs
next to nothing to tell: the kernel gives out the lowest free number, so a high one means that all
below it are taken. Neighbours: `frontend.bounds` and `backends.launcher` ask. Imports nothing of
ours.
"""

import errno
import os
import resource
from typing import Final

RESERVE: Final = 32
"""Descriptors that neither connections nor backends are given."""


def open_files() -> int | None:
    """Return how many files may be open at once; None: any number (getrlimit(2))."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def is_reserved(descriptor: int) -> bool:
    """Return whether a descriptor that was just opened is one of the last."""
    limit = open_files()
    return limit is not None and descriptor >= limit - RESERVE


def check_room(count: int) -> None:
    """Raises: OSError: EMFILE: fewer than `count` could be opened without one of the last."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            if is_reserved(opened[-1]):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    finally:
        for descriptor in opened:
            os.close(descriptor)

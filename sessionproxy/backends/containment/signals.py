"""Signals a process for certain, or none: never a later one that has its pid.

Neighbours: the trees of this room.
"""

import logging
import os
import signal
from contextlib import suppress
from typing import Final

from ..processes import Process, read_one

logger: Final = logging.getLogger(__name__)


def start_of(pid: int) -> int | None:
    """Return when a process started, as `Process.started`; None where it is gone.

    Raises: OSError: nobody can look.
    """
    process = read_one(pid)
    return None if process is None else process.started


def send(process: Process, number: int) -> bool:
    """Signal that very process, with 0 not at all; return whether it was alive.

    Raises: OSError: nobody can look whether it is that one.
    """
    fd = pidfd_of(process.pid)
    try:
        if not lives(process):
            return False
        if fd is None:
            os.kill(process.pid, number)
        else:  # the descriptor is of one process for good, and we have just seen of which
            signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        logger.warning("may not signal process %d", process.pid)
    finally:
        if fd is not None:
            os.close(fd)
    return True


def send_group(leader: Process, number: int) -> None:
    """Signal the process group of a leader, a zombie too, unless its pid is another's by now.

    Raises: OSError: nobody can look whose it is.
    """
    now = read_one(leader.pid)
    if now is not None and now.started == leader.started:
        with suppress(ProcessLookupError, PermissionError):  # none left but zombies
            os.killpg(leader.pid, number)


def kill_group(leader: int) -> None:
    """Kill the process group of a leader of whom it is known that nobody has reaped it."""
    with suppress(ProcessLookupError, PermissionError):  # none left but zombies
        os.killpg(leader, signal.SIGKILL)


def lives(process: Process) -> bool:
    """Return whether that very process runs; a zombie is dead. Raises: OSError: as `read_one`."""
    now = read_one(process.pid)
    return now is not None and now.started == process.started and not now.zombie


def pidfd_of(pid: int) -> int | None:
    """Return a descriptor of a process (pidfd_open(2)); None where none is to be had."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, an old kernel, no descriptor, no such process
        return None

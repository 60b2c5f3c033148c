"""Signals a process for certain, or none: never a later one that has its pid.

Neighbours: the trees of this room.
"""

import logging
import os
import signal
from contextlib import suppress

from ..processes import Process, read_one

logger = logging.getLogger(__name__)


def start_of(pid: int) -> int | None:
    """Return when a process started, as `Process.started`; None where it is gone."""
    process = read_one(pid)
    return None if process is None else process.started


def send(process: Process, number: int) -> bool:
    """Signal that very process, with 0 not at all; return whether it was alive."""
    if not hasattr(os, "pidfd_open"):
        if not lives(process):
            return False
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)
        return True
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:  # the descriptor is of one process for good: look who that is, then signal
        if not lives(process):
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        logger.warning("may not signal process %d", process.pid)
    finally:
        os.close(fd)
    return True


def send_group(leader: Process, number: int) -> None:
    """Signal the process group of a leader, a zombie too, unless its pid is another's by now."""
    now = read_one(leader.pid)
    if now is not None and now.started == leader.started:
        with suppress(ProcessLookupError, PermissionError):  # none left but zombies
            os.killpg(leader.pid, number)


def lives(process: Process) -> bool:
    """Return whether that very process runs; a zombie is dead."""
    now = read_one(process.pid)
    return now is not None and now.started == process.started and not now.zombie

"""The guardian: a program that starts backends for a proxy, and kills all when the proxy is gone.

Run as `python -I -S guardian.py SOCKET INSTANCE`: the number of a stream socket to the proxy, which
is our parent, and the directory that holds the backends' private ones. The standard library alone,
since there is one beside each proxy. It ends with the proxy, however that ends: then it kills every
backend and removes the directory, and the control groups that the records in it tell of.

Messages are JSON objects, one a line. From the proxy:

    {"start": N, "argv": [...], "env": {...}, "cwd": ...}    its newline with three descriptors
    {"release": PID}                                         reap it: its group is gone

and to the proxy:

    {"start": N, "pid": PID}
    {"start": N, "errno": 2, "strerror": ..., "filename": ...}
    {"pid": PID, "code": 0} or {"pid": PID, "signal": 9}     it ended; it stays a zombie
    {"orphans": COUNT}                                       killed, of backends that are gone

A receive ends behind descriptors (SCM_RIGHTS, unix(7)), so they belong to the start that is whole
then. Orphans of backends become our children (Linux), so whatever a backend leaves is found here.
Neighbours: `containment.guarded` is the other end. Imports nothing of ours.
"""

import ctypes
import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any, Final

Json = dict[str, Any]

_PR_SET_CHILD_SUBREAPER: Final = 36
"""From `linux/prctl.h`."""

READ_SIZE: Final = 64 * 1024
DESCRIPTORS: Final = 3

PATIENCE: Final = 10.0
"""Seconds for which killing goes on, should the kernel not let a process die."""

POLL: Final = 0.01

IS_SUBREAPER: Final = sys.platform.startswith("linux")
"""Whether orphans of backends become our children."""


class Guardian:
    """Serves one proxy, until it is gone."""

    def __init__(self, proxy: socket.socket) -> None:
        self._proxy = proxy
        self._received = b""
        self._descriptors: list[int] = []
        self._leaders: dict[int, subprocess.Popen[bytes]] = {}
        self._unreported: set[int] = set()
        self._selector = selectors.DefaultSelector()

    def serve(self, parent: int) -> None:
        """Return once the proxy is gone: its socket closed, or its process `parent` ended."""
        woken = _wake_on_child_exit()
        self._selector.register(self._proxy, selectors.EVENT_READ)
        self._selector.register(woken, selectors.EVENT_READ)
        end = _watched(parent)
        if end is not None:
            self._selector.register(end, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in self._selector.select()}
            if end in ready:
                return
            if woken.fileno() in ready:
                with suppress(BlockingIOError):
                    woken.recv(READ_SIZE)
                self._look()
            if self._proxy.fileno() in ready and not self._receive():
                return

    # -- the proxy ---------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Take what the proxy says; return False where it is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._proxy, READ_SIZE, 4 * DESCRIPTORS)
        except OSError:
            return False
        self._descriptors.extend(descriptors)
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            message: Json = json.loads(line)
            if "start" in message:
                self._send(self._start(message))
                self._look()  # it may be over already, before it was a leader
            else:
                self._release(message["release"])
        return bool(data)

    def _send(self, message: Json) -> None:
        with suppress(OSError):  # the proxy is gone, as the next read will tell
            self._proxy.sendall(json.dumps(message).encode() + b"\n")

    def _start(self, message: Json) -> Json:
        pipes, self._descriptors = self._descriptors, []
        try:
            if len(pipes) != DESCRIPTORS:  # the kernel drops what we have no room for
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            process = subprocess.Popen(
                message["argv"],
                stdin=pipes[0],
                stdout=pipes[1],
                stderr=pipes[2],
                cwd=message["cwd"],
                env=message["env"],
                start_new_session=True,
            )
        except OSError as error:
            told = {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
            return {"start": message["start"], **told}
        except ValueError as error:  # a NUL in a word
            return {"start": message["start"], "errno": errno.EINVAL, "strerror": str(error)}
        finally:
            for descriptor in pipes:
                os.close(descriptor)
        self._leaders[process.pid] = process
        self._unreported.add(process.pid)
        return {"start": message["start"], "pid": process.pid}

    def _release(self, pid: int) -> None:
        process = self._leaders.pop(pid, None)
        self._unreported.discard(pid)
        if process is not None:
            process.poll()  # one that lives on is an orphan from now on
        if not self._leaders and (orphans := self._left()):
            self.end_all()  # no backend is left that they could belong to
            self._send({"orphans": len(orphans)})

    # -- children ----------------------------------------------------------------------------------

    def _look(self) -> None:
        """Report leaders that ended, and reap orphans that did."""
        for pid in tuple(self._unreported):
            ending = _ending_of(self._leaders[pid])
            if ending is not None:
                self._unreported.discard(pid)
                self._send({"pid": pid, **ending})
        for pid in children_of(os.getpid()):
            if pid not in self._leaders:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def end_all(self) -> None:
        """Kill all that descends from us, until there is nothing more."""
        deadline = time.monotonic() + PATIENCE  # noqa: TID251 - a program without anyio
        while (left := self._left()) and time.monotonic() < deadline:  # noqa: TID251
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    if pid in self._leaders:  # unreaped, so the group is still its own
                        os.killpg(pid, signal.SIGKILL)
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL)

    def _left(self) -> set[int]:
        """Return what lives of the backends, as far as we can see; reap children that do not."""
        for process in self._leaders.values():
            process.poll()
        if not IS_SUBREAPER:
            return descendants_of(set(self._leaders) | {os.getpid()}) - {os.getpid()}
        for pid in children_of(os.getpid()):
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return set(children_of(os.getpid()))  # theirs become ours when they die


def _wake_on_child_exit() -> socket.socket:
    """Return a socket that can be read once a child has exited. The signals of a terminal or a
    service manager are the proxy's to heed; with handlers, not ignored, since a child inherits
    what is ignored."""
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _pass)
    return woken


def _pass(number: int, frame: object) -> None:
    """Only the waking matters."""


def _watched(parent: int) -> int | None:
    """Return a descriptor that can be read once the proxy has ended: a child of it that it forked
    might hold its end of the socket. None where the system has no such thing."""
    try:
        return os.pidfd_open(parent)
    except (AttributeError, OSError):
        return None


def _ending_of(process: "subprocess.Popen[bytes]") -> Json | None:
    """Return how it ended, leaving it a zombie where the system can; None while it runs."""
    if not hasattr(os, "waitid"):
        status = process.poll()
        if status is None:
            return None
        return {"code": status} if status >= 0 else {"signal": -status}
    facts = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if facts is None:
        return None
    if facts.si_code == os.CLD_EXITED:
        return {"code": facts.si_status}
    return {"signal": facts.si_status}


def children_of(pid: int) -> list[int]:
    """Return the children of a process with one thread, zombies too (proc(5)); [] without /proc."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def descendants_of(ancestors: set[int]) -> set[int]:
    """Return who lives and descends from these, or is in a group of theirs, as ps(1) tells it."""
    line = ["ps", "-A", "-o", "pid=,ppid=,pgid=,stat="]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as ps:
        rows = [row.split() for row in ps.communicate()[0].splitlines()]
    living = [
        (int(pid), int(parent), int(group))
        for pid, parent, group, state in rows
        if not state.startswith("Z") and int(pid) != ps.pid
    ]
    found = {pid for pid, _, group in living if pid in ancestors or group in ancestors}
    while grown := {pid for pid, parent, _ in living if parent in found} - found:
        found |= grown
    return found


def groups_in(instance: str) -> list[str]:
    """Return the control groups of the backends that are on record (`backends.statedir`)."""
    found: list[str | None] = []
    with suppress(OSError):  # the proxy has ended in good order, and removed it
        for name in os.listdir(instance):
            if name.endswith(".json"):
                with suppress(OSError, ValueError), open(os.path.join(instance, name)) as file:
                    found.append(json.load(file).get("cgroup"))
    return [group for group in found if group]


def remove_group(group: str) -> None:
    """Remove a control group in which nothing lives, and what a backend made in it."""
    for below, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):
            os.rmdir(below)


def main() -> None:
    proxy = socket.socket(fileno=int(sys.argv[1]))
    parent = os.getppid()
    if IS_SUBREAPER:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guardian = Guardian(proxy)
    guardian.serve(parent)
    guardian.end_all()
    for group in groups_in(sys.argv[2]):
        remove_group(group)
    import shutil

    shutil.rmtree(sys.argv[2], ignore_errors=True)


if __name__ == "__main__":
    main()

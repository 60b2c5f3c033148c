"""A client's machine at the end of a cable that can be pulled: a network namespace and a veth pair.

Needs iproute2 and root (mark `netns`). Names are this process's own, and what was made is removed.
Neighbours: tests of networks; `tests.rig.shim` does what needs no kernel.
"""

import ctypes
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final

CLONE_NEWNET: Final = 0x40000000
"""setns(2)."""

_count = itertools.count(1)


class Cable:
    """From here, at the address `here`, to a namespace of its own, at the address `there`."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.inner = f"{name}i"
        # 198.18.0.0/15 is for tests of networks (RFC 2544) and routed nowhere.
        net = f"198.18.{number % 256}"
        self.here, self.there = f"{net}.1", f"{net}.2"

    def lay(self) -> None:
        _ip("netns", "add", self.name)
        _ip("link", "add", self.name, "type", "veth", "peer", self.inner, "netns", self.name)
        _ip("address", "add", f"{self.here}/30", "dev", self.name)
        _ip("link", "set", self.name, "up")
        _ip("-n", self.name, "address", "add", f"{self.there}/30", "dev", self.inner)
        self.plug()

    def plug(self) -> None:
        _ip("-n", self.name, "link", "set", self.inner, "up")

    def pull(self) -> None:
        """From now on nothing arrives, and nobody is told: no FIN, no RST."""
        _ip("-n", self.name, "link", "set", self.inner, "down")

    def remove(self) -> None:
        """Also where not all of it was laid."""
        for what in (("link", "delete", self.name), ("netns", "delete", self.name)):
            with suppress(AssertionError):
                _ip(*what)

    @contextmanager
    def connected(self, port: int, *, seconds: float) -> Generator[socket.socket]:
        """A TCP connection from there to a port here, whose every wait is so long at most."""
        with self._socket() as sock:
            sock.settimeout(seconds)
            sock.connect((self.here, port))
            yield sock

    def _socket(self) -> socket.socket:
        """Return a socket that was made there; a thread of its own, for its namespace stays so."""
        made: list[socket.socket] = []
        failed: list[OSError] = []

        def make() -> None:
            try:
                with open(f"/run/netns/{self.name}") as namespace:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(socket.socket())
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0]


@contextmanager
def cable() -> Generator[Cable]:
    number = next(_count)
    laid = Cable(f"sp{os.getpid()}x{number}", os.getpid() + number)
    try:
        laid.lay()
        yield laid
    finally:
        laid.remove()


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

"""A machine that runs out of things, stands still, or has its clock set: around one proxy process.

Each is put on a process of its own, at the moment a test wants it, and nothing else on this machine
notices. Neighbours: `tests.rig.proxy` and `tests.rig.invariants` start the process, with the
`environment` or `prefix` that some of these need.
"""

import os
import resource
import shutil
import signal
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio

from .proxy import Proxy

# -- limits ----------------------------------------------------------------------------------------


@contextmanager
def lowered(pid: int, what: int, to: int) -> Generator[None]:
    """Lower a limit (getrlimit(2), `resource.RLIMIT_*`) of a running process for a while."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (to, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


@contextmanager
def no_descriptors() -> Generator[None]:
    """Have this process open no file for a while."""
    lowest = os.dup(0)
    os.close(lowest)
    with lowered(os.getpid(), resource.RLIMIT_NOFILE, lowest):
        yield


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def next_file(pid: int) -> int:
    """Return the number that the next file gets which a process opens: the lowest that is free."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return min(set(range(len(taken) + 1)) - taken)


# -- disks -----------------------------------------------------------------------------------------

MOUNT: Final = (
    'mkdir -p -m 700 "$0/run" && '
    'mount -t tmpfs -o "size=$1,mode=700" tmpfs "$0/run" && shift && exec "$@"'
)


class SmallDisk:
    """What a proxy keeps of its backends lies on a disk of its own. Needs the mark `mounts`."""

    def __init__(self, state_dir: Path, *, size: int) -> None:
        """`size`: bytes."""
        state_dir.mkdir(mode=0o700)
        self.state_dir = state_dir
        user = () if os.geteuid() == 0 else ("--map-root-user",)
        self.prefix: Sequence[str] = (
            "unshare", "--mount", *user, "--", "sh", "-c", MOUNT, str(state_dir), str(size),
        )  # fmt: skip

    def _seen_from(self, pid: int) -> Path:
        """The disk's directory, in the namespace of the process (proc(5), /proc/pid/root)."""
        return Path(f"/proc/{pid}/root{self.state_dir}/run")

    @contextmanager
    def full(self, pid: int) -> Generator[None]:
        """Leave not a byte on the disk for a while."""
        filler = self._seen_from(pid) / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        try:
            yield
        finally:
            filler.unlink()

    def left_by(self, pid: int) -> list[str]:
        """What sessions have left on it."""
        return sorted(path.name for path in self._seen_from(pid).glob("*/*") if path.name != "lock")


# -- time ------------------------------------------------------------------------------------------


class WallClock:
    """A wall clock that can be set, while the monotonic one runs on. Needs the mark `faketime`."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "faketime"
        self.set("+0")
        self.environment = {
            "LD_PRELOAD": _libfaketime(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }

    def set(self, by: str) -> None:
        """Put it forward or back, `by` as faketime(1) writes it: `+1h`, `-10y`."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{by}\n")
        new.replace(self._file)


def _libfaketime() -> str:
    program = shutil.which("faketime")
    assert program is not None, "missing: faketime"
    found = Path(program).parents[1].glob("lib/**/libfaketime.so.1")
    return str(next(found))


@asynccontextmanager
async def stopped(proxy: Proxy, seconds: float) -> AsyncGenerator[None]:
    """Stop a process, run what is inside, and let it go on after so many seconds, and no fewer."""
    proxy.signal(signal.SIGSTOP)
    began = anyio.current_time()
    try:
        yield
        await anyio.sleep_until(began + seconds)
    finally:
        proxy.signal(signal.SIGCONT)


STALLING: Final = """
import signal, time

def stand_still(number, frame):
    time.sleep({seconds})

signal.signal(signal.SIGUSR1, stand_still)
"""


class Stalls:
    """Has the event loop of a proxy stand still for some seconds, whenever it is told to."""

    def __init__(self, directory: Path, *, seconds: float) -> None:
        (directory / "sitecustomize.py").write_text(STALLING.format(seconds=seconds))
        self.environment = {"PYTHONPATH": str(directory)}

    def stall(self, proxy: Proxy) -> None:
        proxy.signal(signal.SIGUSR1)


def cpu_of(pid: int) -> float:
    """Seconds of processor that a process has used (proc(5), /proc/pid/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

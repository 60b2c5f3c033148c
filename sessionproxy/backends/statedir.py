"""The directory with what must outlive a process: the MAC key, and a journal of what runs.

Each proxy that runs has an instance directory, held by a lock that the kernel drops when the
process dies, however it dies. In it, every backend has a private directory and a record, written
before the backend is spawned; so the next start finds what a killed proxy left, ends it and
removes it. Neighbours: `backends.launcher` asks for session directories; `serve` opens it.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from ..config import ConfigError

logger = logging.getLogger(__name__)

KEY_SIZE: Final = 32
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Record:
    """What the journal knows of one backend."""

    directory: Path
    pid: int | None
    started: int | None
    """When the process started, as `processes.Process` has it."""
    boot: str
    cgroup: str | None = None
    """Its control group, where it was given one."""


def default_state_dir() -> Path:
    """Return where state is kept if nothing is said (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "sessionproxy"


class SessionDir:
    """The private directory of one backend, and its record. `tmp` inside is its TMPDIR."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = str(path)  # a `Path` weighs several times as much

    @property
    def path(self) -> Path:
        return Path(self._path)

    @property
    def tmp(self) -> Path:
        return self.path / "tmp"

    @property
    def _record(self) -> Path:
        return self.path.with_suffix(".json")

    def write(self) -> None:
        """Write the record, before anything is started."""
        facts = {"dir": self.path.name, "pid": None, "started": None, "boot": _boot_id()}
        self._record.write_text(json.dumps(facts))

    def note(self, **facts: object) -> None:
        """Add to the record. Raises: OSError: it stays as it was."""
        known = json.loads(self._record.read_text())
        new = self._record.with_suffix(".new")
        try:
            new.write_text(json.dumps({**known, **facts}))
            new.replace(self._record)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Remove the directory with all that is in it, then the record."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._record.unlink(missing_ok=True)


class StateDir:
    """An open state directory. Close it when the proxy ends."""

    def __init__(self, root: Path, instance: Path, lock: int) -> None:
        self.root = root
        self._instance = instance
        self._lock = lock
        self._count = 0

    @classmethod
    def open(cls, root: Path) -> Self:
        """Make the directory where there is none, and an instance directory of our own in it.

        Raises: ConfigError: it cannot be made, or others could write to it.
        """
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = root.stat()
            if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
                raise ConfigError(f"--state-dir {root}: must belong to this user alone (mode 0700)")
            run = root / "run"
            run.mkdir(mode=0o700, exist_ok=True)
            instance, lock = _new_instance(run)
        except OSError as error:
            raise ConfigError(f"--state-dir {root}: {error.strerror}") from None
        return cls(root, instance, lock)

    @property
    def instance(self) -> Path:
        """The directory that holds the private ones of our backends."""
        return self._instance

    def close(self) -> None:
        shutil.rmtree(self._instance, ignore_errors=True)
        os.close(self._lock)

    def key(self) -> bytes:
        """Return the MAC key, made at the first start."""
        path = self.root / "key"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            key = path.read_bytes()
            if len(key) != KEY_SIZE:
                raise ConfigError(f"{path}: not a key; remove it to have a new one made") from None
            return key
        key = secrets.token_bytes(KEY_SIZE)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(key)
        except OSError as error:
            path.unlink()
            raise ConfigError(f"--state-dir {self.root}: {error.strerror}") from None
        return key

    def new_session(self) -> SessionDir:
        """Make a private directory for a backend, on record before anything is started in it.

        Raises: OSError: nothing of it stays.
        """
        self._count += 1
        name = f"{self._count:x}"
        session = SessionDir(self._instance / name)
        try:
            session.write()
            session.tmp.mkdir(mode=0o700, parents=True)
            session.path.chmod(0o700)
        except OSError:
            session.remove()
            raise
        return session

    def sweep(self, end: Callable[[Record], None]) -> int:
        """End and remove what proxies left that are no longer there; return how many backends.

        `end` ends what a record tells of, if it still runs. Instances that live are left alone.
        """
        count = 0
        for instance in (self.root / "run").iterdir():
            if instance == self._instance:
                continue
            with _taken_over(instance) as dead:
                if not dead:
                    continue
                for record in _records(instance):
                    end(record)
                    count += 1
                shutil.rmtree(instance, ignore_errors=True)
        return count


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


def this_boot(record: Record) -> bool:
    """Return whether the record is of this boot: else its pid means nothing."""
    return record.boot == _boot_id()


def _new_instance(run: Path) -> tuple[Path, int]:
    """Make an instance directory and lock it.

    Between the two, a proxy that sweeps at the same time may take it for a dead one's: then again.

    Raises: OSError: it cannot be made.
    """
    for _ in range(100):
        instance = run / secrets.token_hex(4)
        instance.mkdir(mode=0o700)
        try:
            lock = _locked(instance)
            if lock is None:
                continue
            if os.fstat(lock).st_ino == (instance / "lock").stat().st_ino:
                return instance, lock
            os.close(lock)
        except FileNotFoundError:
            continue
    raise OSError(errno.EBUSY, "other proxies keep sweeping it away")


def _locked(instance: Path) -> int | None:
    """Return a descriptor that holds the lock of an instance; None where another one does."""
    fd = os.open(instance / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


@contextmanager
def _taken_over(instance: Path) -> Generator[bool]:
    try:
        fd = _locked(instance)
    except OSError:  # it was removed under our eyes, or is no directory
        fd = None
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def _records(instance: Path) -> Iterator[Record]:
    for path in instance.glob("*.json"):
        try:
            facts = json.loads(path.read_text())
            directory = instance / str(facts["dir"])
            yield Record(
                directory, facts["pid"], facts["started"], str(facts["boot"]), facts.get("cgroup")
            )
        except (OSError, ValueError, KeyError, TypeError):  # torn: its name still tells whose it is
            logger.warning("%s is no record; what runs in its directory is ended", path.name)
            yield Record(path.with_suffix(""), None, None, "")

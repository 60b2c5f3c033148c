"""The directory with what must outlive a process: the MAC key, and a journal of what runs.

Each proxy that runs has an instance directory, held by a lock that the kernel drops when the
process dies, however it dies. In it, every backend has a private directory and a record, written
before the backend is spawned; so the next start finds what a killed proxy left, ends it and
removes it. Neighbours: `backends.launcher` asks for session directories; `app` opens it.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from ..config import ConfigError

logger: Final = logging.getLogger(__name__)

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
        """Remove the directory with all that is in it, then the record. Never raises.

        What cannot be removed is logged, and tried again when the proxy ends and at the next start.
        """
        _remove(self.path)
        try:
            self._record.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", self._record, error.strerror)


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
        given = root
        try:
            root = Path(os.path.realpath(root))  # backends stand elsewhere, and are known by it
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = root.stat()
            if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
                raise ConfigError(
                    f"--state-dir {given}: must belong to this user alone (mode 0700)"
                )
            run = root / "run"
            run.mkdir(mode=0o700, exist_ok=True)
            instance, lock = _new_instance(run)
        except OSError as error:
            raise ConfigError(f"--state-dir {given}: {error.strerror}") from None
        return cls(root, instance, lock)

    @property
    def instance(self) -> Path:
        """The directory that holds the private ones of our backends."""
        return self._instance

    def close(self) -> None:
        _remove(self._instance)
        os.close(self._lock)

    def key(self) -> bytes:
        """Return the MAC key, made at the first start.

        Raises: ConfigError: it cannot be read or made, or is none.
        """
        path = self.root / "key"
        try:
            if not path.exists():
                self._make_key(path)
            key = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"--state-dir {self.root}: key: {error.strerror}") from None
        if len(key) != KEY_SIZE:
            raise ConfigError(f"{path}: not a key; remove it to have a new one made")
        return key

    def _make_key(self, path: Path) -> None:
        """Have a whole key there at once: nobody may read half of one, or be left with it.

        It gets its name only once it is written. Raises: OSError: there is none.
        """
        new = self._unfinished_key(self._instance)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(secrets.token_bytes(KEY_SIZE))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another proxy was faster: its key is everybody's
                os.link(new, path)
        finally:
            new.unlink()

    def _unfinished_key(self, instance: Path) -> Path:
        """Return what a proxy with this instance calls the key until it is written: beside it,
        since the instances may lie on a file system of their own."""
        return self.root / f"key.{instance.name}"

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
                with suppress(OSError):
                    self._unfinished_key(instance).unlink(missing_ok=True)
                _remove(instance)
        return count


def _remove(directory: Path) -> None:
    """Remove a directory with all that is in it. What stays is logged.

    A backend may have made directories that cannot be written to, as module caches are.
    """
    shutil.rmtree(directory, ignore_errors=True)
    if not os.path.lexists(directory):
        return
    with suppress(OSError):
        directory.chmod(0o700)
    for below, names, _ in os.walk(directory):
        for name in names:
            path = os.path.join(below, name)
            if not os.path.islink(path):  # it may lead out of here
                with suppress(OSError):
                    os.chmod(path, 0o700)
    shutil.rmtree(directory, ignore_errors=True)
    if os.path.lexists(directory):
        logger.warning("%s cannot be removed", directory)


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
        except FileNotFoundError:
            continue
        except OSError:
            _remove(instance)
            raise
        if lock is None:
            continue
        if _is_lock_of(instance, lock):
            return instance, lock
        os.close(lock)
    raise OSError(errno.EBUSY, "other proxies keep sweeping it away")


def _is_lock_of(instance: Path, lock: int) -> bool:
    """Return whether a descriptor is of the lock that is there now."""
    try:
        return os.fstat(lock).st_ino == (instance / "lock").stat().st_ino
    except FileNotFoundError:
        return False


def _locked(instance: Path) -> int | None:
    """Return a descriptor that holds the lock of an instance; None where another one does.

    Raises: OSError: it cannot be told, as on a file system without locks.
    """
    fd = os.open(instance / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd


@contextmanager
def _taken_over(instance: Path) -> Generator[bool]:
    try:
        fd = _locked(instance)
    except OSError:  # removed under our eyes, no directory, or on a file system without locks
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

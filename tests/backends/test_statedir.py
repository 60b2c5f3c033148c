"""DESIGN 10: what must outlive a process: the key, the journal, the private directories."""

import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from sessionproxy.backends import StateDir
from sessionproxy.backends.statedir import Record, SessionDir, default_state_dir, this_boot
from sessionproxy.config import ConfigError


@contextmanager
def opened(root: Path) -> Generator[StateDir]:
    state = StateDir.open(root)
    try:
        yield state
    finally:
        state.close()


NOBODY: Final = 65534


@contextmanager
def ordinary_user() -> Generator[Path]:
    """A directory of a user who has no right but by a file's mode, which root has; be that one."""
    with tempfile.TemporaryDirectory(prefix="sp-") as name:
        was = os.geteuid()
        if was == 0:
            os.chown(name, NOBODY, -1)
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(was)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def abandoned(root: Path, *records: object, lock: bool = True) -> Path:
    """Lay out what a proxy that was killed leaves: an instance nobody holds."""
    instance = root / "run" / "dead"
    instance.mkdir(parents=True)
    root.chmod(0o700)
    if lock:
        (instance / "lock").touch()
    for number, record in enumerate(records):
        (instance / str(number) / "tmp").mkdir(parents=True)
        text = record if isinstance(record, str) else json.dumps(record)
        (instance / f"{number}.json").write_text(text)
    return instance


def swept(state: StateDir) -> list[Record]:
    found: list[Record] = []
    assert state.sweep(found.append) == len(found)
    return found


# -- the directory ---------------------------------------------------------------------------------


def test_it_is_made_for_its_user_alone(tmp_path: Path) -> None:
    """DESIGN 10: 0700."""
    root = tmp_path / "a" / "b"
    with opened(root):
        assert [mode_of(path) for path in (root, root / "run")] == [0o700, 0o700]
        assert [mode_of(path) for path in (root / "run").iterdir()] == [0o700]


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_one_that_others_can_enter_is_a_wrong_setting(tmp_path: Path, mode: int) -> None:
    """DESIGN 10: it holds the MAC key."""
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match=r"--state-dir .*0700"):
        StateDir.open(tmp_path)


def test_one_that_is_a_file_is_a_wrong_setting(tmp_path: Path) -> None:
    """DESIGN 11."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="--state-dir"):
            StateDir.open(path)


def test_by_default_it_is_below_the_users_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG Base Directory Specification."""
    monkeypatch.setenv("XDG_STATE_HOME", "/there")
    assert default_state_dir() == Path("/there/sessionproxy")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert default_state_dir() == Path("/home/x/.local/state/sessionproxy")


def test_closing_leaves_the_key_alone_behind(tmp_path: Path) -> None:
    """DESIGN 10."""
    root = tmp_path / "s"
    with opened(root) as state:
        key = state.key()
        state.new_session()
    assert list((root / "run").iterdir()) == []
    assert (root / "key").read_bytes() == key


def test_it_is_the_same_wherever_who_asks_for_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 10: a backend's TMPDIR lies in it, and a later sweep knows processes by that."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("s")
    for name in ("s", "link"):
        with opened(Path(name)) as state:
            assert state.root == tmp_path.resolve() / "s"
            assert state.new_session().tmp.is_relative_to(state.root)


def test_on_a_file_system_without_locks_it_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 11: flock(2), ENOLCK; not that others hold the lock. Nothing is left."""

    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = set(os.listdir("/dev/fd"))
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"--state-dir .*No locks available"):
        StateDir.open(tmp_path / "s")
    assert list((tmp_path / "s" / "run").iterdir()) == []
    assert set(os.listdir("/dev/fd")) <= before


def test_an_instance_that_is_swept_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making it and locking it, it looks like a dead one's. No descriptor is lost."""
    lock, swept = fcntl.flock, list[Path]()

    def locked_too_late(fd: int, operation: int) -> None:
        lock(fd, operation)
        if not swept:
            swept.extend((tmp_path / "s" / "run").iterdir())
            shutil.rmtree(swept[0])

    before = set(os.listdir("/dev/fd"))
    monkeypatch.setattr(fcntl, "flock", locked_too_late)
    with opened(tmp_path / "s") as state:
        assert swept != [state.instance]
        assert state.new_session().tmp.exists()
    assert set(os.listdir("/dev/fd")) <= before


# -- the key ---------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_readable_to_its_user_alone(tmp_path: Path) -> None:
    """DESIGN 6: ids outlive a restart; 256 bits."""
    root = tmp_path / "s"
    with opened(root) as state:
        key = state.key()
    with opened(root) as state:
        assert state.key() == key
    assert len(key) == 32
    assert mode_of(root / "key") == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_key_of_another_size_is_a_wrong_setting(tmp_path: Path, content: bytes) -> None:
    """DESIGN 11: a torn file is no key."""
    with opened(tmp_path / "s") as state:
        (tmp_path / "s" / "key").write_bytes(content)
        with pytest.raises(ConfigError, match="not a key"):
            state.key()


def test_a_proxy_killed_while_it_makes_the_key_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 11: half a key would have to be removed by hand."""

    class Killed(BaseException):
        pass

    def die(size: int) -> bytes:
        raise Killed

    with opened(tmp_path / "s") as state, monkeypatch.context() as patched:
        patched.setattr(secrets, "token_bytes", die)
        with pytest.raises(Killed):
            state.key()
    with opened(tmp_path / "s") as state:
        assert len(state.key()) == 32


def test_of_two_proxies_that_make_the_key_at_once_both_have_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 10: they may share a state directory; the first one's key is everybody's."""
    make, others = secrets.token_bytes, list[bytes]()

    with opened(tmp_path / "s") as state, opened(tmp_path / "s") as other:

        def meanwhile(size: int) -> bytes:
            monkeypatch.setattr(secrets, "token_bytes", make)
            others.append(other.key())
            return make(size)

        monkeypatch.setattr(secrets, "token_bytes", meanwhile)
        assert [state.key()] == others
        assert {path.name for path in state.root.iterdir()} == {"key", "run"}


def test_a_key_that_cannot_be_read_or_made_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 11: one line that names the directory."""

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with opened(tmp_path / "s") as state:
        with monkeypatch.context() as patched:
            patched.setattr(os, "link", refuse)  # a file system that has no links
            with pytest.raises(ConfigError, match=r"--state-dir .*not permitted"):
                state.key()
        (tmp_path / "s" / "key").mkdir()
        with pytest.raises(ConfigError, match=r"--state-dir .*s: key: Is a directory"):
            state.key()


# -- session directories ---------------------------------------------------------------------------


def test_a_session_directory_is_private_and_on_record_before_anything_runs(tmp_path: Path) -> None:
    """DESIGN 10: journalled before the spawn, removed after the sweep."""
    with opened(tmp_path / "s") as state:
        one, two = state.new_session(), state.new_session()
        assert one.path != two.path
        for session in (one, two):
            assert [mode_of(path) for path in (session.path, session.tmp)] == [0o700, 0o700]
            assert session.tmp.parent == session.path
            record = json.loads(session.path.with_suffix(".json").read_text())
            assert record["dir"] == session.path.name
            assert record["pid"] is None
        one.note(pid=123, started=456)
        record = json.loads(one.path.with_suffix(".json").read_text())
        assert (record["pid"], record["started"]) == (123, 456)


def test_removing_it_removes_whatever_a_backend_left_there(tmp_path: Path) -> None:
    """DESIGN 10: profiles, snapshots; links are not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with opened(tmp_path / "s") as state:
        session = state.new_session()
        (session.tmp / "deep" / "er").mkdir(parents=True)
        (session.path / "link").symlink_to(outside)
        (session.path / "dangling").symlink_to("/nowhere")
        os.mkfifo(session.path / "pipe")
        session.remove()
        session.remove()  # idempotent
        assert not session.path.exists()
        assert not session.path.with_suffix(".json").exists()
    assert outside.exists()


def shut(directory: Path) -> None:
    """Have in it what module caches are like: nothing can be removed, or even be listed."""
    for name, mode in (("cache/module", 0o500), ("secret/deep", 0o000)):
        (directory / name).mkdir(parents=True)
        (directory / name / "file").touch()
        (directory / name).chmod(mode)
        (directory / name).parent.chmod(mode)


def test_what_a_backend_made_unwritable_is_removed_too() -> None:
    """DESIGN 10: at the end of its session, of the proxy, or by a later one; links stay alone."""
    with ordinary_user() as home:
        dead = abandoned(home / "s", {"dir": "0", "pid": None, "started": None, "boot": ""})
        outside = home / "outside"
        outside.mkdir(mode=0o500)
        with opened(home / "s") as state:
            first, second = state.new_session(), state.new_session()
            for directory in (first.path, second.path, dead / "0"):
                shut(directory)
                (directory / "link").symlink_to(outside)
            first.remove()
            assert not first.path.exists()
            swept(state)
            assert not dead.exists()
        assert list((home / "s" / "run").iterdir()) == []
        assert mode_of(outside) == 0o500


def test_what_cannot_be_removed_is_told_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """DESIGN 10: on a disk that fails, or was made read-only; whoever ends a backend goes on."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def do_nothing(*_: object, **__: object) -> None: ...

    caplog.set_level(logging.WARNING)
    with opened(tmp_path / "s") as state:
        session = state.new_session()
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", do_nothing)
            patched.setattr(Path, "unlink", refuse)
            session.remove()
        told = [record.getMessage() for record in caplog.records]
        assert told == [
            f"{session.path} cannot be removed",
            f"{session.path}.json cannot be removed: Read-only file system",
        ]


# -- the sweep -------------------------------------------------------------------------------------


def test_what_a_killed_proxy_left_is_told_and_removed(tmp_path: Path) -> None:
    """DESIGN 5.6, 10: a journal swept at the next start."""
    root = tmp_path / "s"
    instance = abandoned(
        root,
        {"dir": "0", "pid": 12, "started": 34, "boot": "b"},
        {"dir": "1", "pid": None, "started": None, "boot": ""},
    )
    with opened(root) as state:
        found = sorted(swept(state), key=lambda record: record.directory)
    assert found == [
        Record(instance / "0", 12, 34, "b"),
        Record(instance / "1", None, None, ""),
    ]
    assert not instance.exists()


def test_a_key_that_a_killed_proxy_did_not_finish_is_removed(tmp_path: Path) -> None:
    """Every moment is a moment to be killed in; that of a proxy that lives is left alone."""
    instance = abandoned(tmp_path / "s")
    with opened(tmp_path / "s") as other, opened(tmp_path / "s") as state:
        for name in (instance.name, other.instance.name):
            (tmp_path / "s" / f"key.{name}").touch()
        swept(state)
        left = {path.name for path in state.root.iterdir()}
        assert left == {"run", f"key.{other.instance.name}"}


def test_an_instance_that_lives_is_left_alone(tmp_path: Path) -> None:
    """DESIGN 10: two proxies may share a state directory."""
    root = tmp_path / "s"
    with opened(root) as first:
        session = first.new_session()
        with opened(root) as second:
            assert swept(second) == []
        assert session.tmp.exists()


@pytest.mark.parametrize(
    "record", ["", "{", "[]", "null", "{}", '{"dir": "0"}', '"x"', '{"dir":"0","pid":1}']
)
def test_a_torn_record_tells_by_its_name_whose_directory_it_is(tmp_path: Path, record: str) -> None:
    """It may have been killed while it wrote, or its disk was full; its backend may run."""
    whole = {"dir": "1", "pid": None, "started": None, "boot": ""}
    instance = abandoned(tmp_path / "s", record, whole)
    with opened(tmp_path / "s") as state:
        found = sorted(swept(state), key=lambda record: record.directory)
    assert found == [Record(instance / name, None, None, "") for name in ("0", "1")]
    assert not instance.exists()


@pytest.mark.parametrize("name", ["..", "../..", "/etc", "a/../..", "."])
def test_a_record_never_leads_out_of_its_instance(tmp_path: Path, name: str) -> None:
    """Our choice: the directory is removed as a whole; a record only names processes."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "precious").touch()
    record = {"dir": name, "pid": None, "started": None, "boot": ""}
    abandoned(tmp_path / "s", record)
    with opened(tmp_path / "s") as state:
        swept(state)
    assert (tmp_path / "s" / "precious").exists()


def test_an_instance_killed_before_its_lock_was_made_is_removed(tmp_path: Path) -> None:
    """Every moment is a moment to be killed in."""
    instance = abandoned(tmp_path / "s", lock=False)
    with opened(tmp_path / "s") as state:
        assert swept(state) == []
    assert not instance.exists()


def test_a_stray_file_does_not_stop_a_start(tmp_path: Path) -> None:
    """DESIGN 11: nor is it ours to remove."""
    with opened(tmp_path / "s") as state:
        (tmp_path / "s" / "run" / "stray").touch()
        assert swept(state) == []


def test_a_record_is_of_this_boot_or_its_pid_means_nothing(tmp_path: Path) -> None:
    """DESIGN 10: pid, start time and boot id are checked before any signal."""
    with opened(tmp_path / "s") as state:
        session: SessionDir = state.new_session()
        boot = json.loads(session.path.with_suffix(".json").read_text())["boot"]
    assert this_boot(Record(tmp_path, 1, 1, boot))
    assert not this_boot(Record(tmp_path, 1, 1, "another"))

"""DESIGN 10: what must outlive a process: the key, the journal, the private directories."""

import json
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

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

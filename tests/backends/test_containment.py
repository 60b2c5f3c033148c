"""DESIGN 10, rung (a): who belongs to a backend, and that nobody else is ever signalled.

Neighbours: `test_rungs` has what each rung of the ladder holds.
"""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from sessionproxy.backends import processes
from sessionproxy.backends.containment import cgroups, direct, groups, start_of
from sessionproxy.backends.containment.groups import Groups, GroupTree, end_recorded
from sessionproxy.backends.containment.signals import send, send_group
from sessionproxy.backends.processes import ProcessTable, Snapshot, read_all, read_one
from sessionproxy.backends.statedir import Record
from tests.rig.embedded import gone, lives, until
from tests.rig.limits import no_descriptors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX alone")

TREE = """
import os, subprocess, sys, time
def child(**more):
    return subprocess.Popen(["sleep", "600"], **more).pid
def daemon():  # forks twice, so that it is nobody's child
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            os.execvp("sleep", ["sleep", "600"])
        os.write(write, b"%d" % pid)
        os._exit(0)
    os.wait()
    return int(os.read(read, 20))
print(child(), child(process_group=0), child(start_new_session=True), daemon(), flush=True)
sys.stdin.read()
"""
"""A leader with a child in its group, one in its session, one in a session of its own, a daemon."""


def started(*arguments: str, **env: str) -> "subprocess.Popen[str]":
    """Start Python as leader of a session of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **env},
    )


@contextmanager
def tree(
    tmp: Path, *, ignores_term: bool = False
) -> Generator[tuple["subprocess.Popen[str]", list[int]]]:
    """Start it; yield the leader and the others. What lives on is killed by pid."""
    script = "import signal; signal.signal(15, signal.SIG_IGN)\n" * ignores_term + TREE
    pids: list[int] = []
    with started("-I", "-S", "-c", script, TMPDIR=str(tmp)) as leader:
        try:
            assert leader.stdout is not None
            pids = [int(pid) for pid in leader.stdout.readline().split()]
            yield leader, pids
        finally:
            for pid in (*pids, leader.pid):
                if lives(pid):
                    os.kill(pid, signal.SIGKILL)


async def test_a_tree_is_all_that_the_leader_started_however_it_detached(tmp_path: Path) -> None:
    """DESIGN 5.6, F19, F20: by group, session, ancestry and private TMPDIR."""
    with tree(tmp_path) as (leader, pids):
        held = GroupTree(ProcessTable(), leader.pid, str(tmp_path))
        assert await held.signal(0) == len((leader.pid, *pids)) == 5
        await held.signal(signal.SIGKILL)
        await gone(leader.pid, *pids)
        assert await held.signal(0) == 0


async def test_what_outlives_the_leader_is_still_found(tmp_path: Path) -> None:
    """DESIGN 10: the tree is swept also when the leader left politely; it stays unreaped."""
    with tree(tmp_path) as (leader, pids):
        held = GroupTree(ProcessTable(), leader.pid, str(tmp_path))
        leader.kill()
        await gone(leader.pid)
        assert await held.signal(0) == 4
        await held.signal(signal.SIGKILL)
        await gone(*pids)


async def test_a_descendant_that_hides_is_known_from_an_earlier_look(tmp_path: Path) -> None:
    """DESIGN 10: descendants remembered by pid and start time."""
    env = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    code = (
        "import subprocess, sys\n"
        f"p = subprocess.Popen(['sleep', '600'], start_new_session=True, env={env!r})\n"
        "print(p.pid, flush=True); sys.stdin.read()"
    )
    with started("-I", "-S", "-c", code) as leader:
        assert leader.stdout is not None
        hidden = int(leader.stdout.readline())
        try:
            held = GroupTree(ProcessTable(), leader.pid, str(tmp_path))
            await held.remember()
            leader.kill()
            await gone(leader.pid)
            assert await held.signal(signal.SIGTERM) == 1
            await gone(hidden)
        finally:
            if lives(hidden):
                os.kill(hidden, signal.SIGKILL)


async def test_two_trees_do_not_touch_each_other(tmp_path: Path) -> None:
    """DESIGN 5.2."""
    with tree(tmp_path / "a") as (one, ones), tree(tmp_path / "b") as (two, twos):
        table = ProcessTable()
        held = GroupTree(table, one.pid, str(tmp_path / "a"))
        await held.signal(signal.SIGKILL)
        await gone(one.pid, *ones)
        assert all(map(lives, (two.pid, *twos)))
        assert await GroupTree(table, two.pid, str(tmp_path / "b")).signal(0) == 5


async def test_the_last_resort_kills_what_is_known_at_once(tmp_path: Path) -> None:
    """`Tree.kill`: for one that cannot wait."""
    with tree(tmp_path, ignores_term=True) as (leader, pids):
        held = GroupTree(ProcessTable(), leader.pid, str(tmp_path))
        await held.remember()
        held.kill()
        await gone(leader.pid, *pids)


class Stuck(ProcessTable):
    """Nobody can look."""

    async def look(self) -> Snapshot:
        await anyio.sleep_forever()
        raise AssertionError


async def test_what_is_to_be_killed_is_killed_before_anybody_looks(tmp_path: Path) -> None:
    """DESIGN 5.6: a look may be held up, and the group is there without one."""
    with tree(tmp_path, ignores_term=True) as (leader, pids):
        held = GroupTree(Stuck(), leader.pid, str(tmp_path))
        with anyio.move_on_after(0.01):
            await held.signal(signal.SIGKILL)
        await gone(leader.pid, pids[0])


async def test_what_is_known_is_signalled_although_nobody_can_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F40, I4."""

    def fail(*_: object) -> Snapshot:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with tree(tmp_path) as (leader, pids):
        held = GroupTree(ProcessTable(), leader.pid, str(tmp_path))
        await held.remember()
        monkeypatch.setattr(processes, "read_all", fail)
        with pytest.raises(OSError, match="Too many open files"):
            await held.signal(signal.SIGTERM)
        await gone(leader.pid, *pids)


async def test_without_descriptors_a_process_is_not_taken_for_gone() -> None:
    """FAULTS F40, I4."""
    me = read_one(os.getpid())
    assert me is not None
    with no_descriptors():
        for look in (lambda: read_one(me.pid), lambda: send(me, 0), lambda: send_group(me, 0)):
            with pytest.raises(OSError, match="Too many open files"):
                look()
    assert send(me, 0)


def test_a_process_that_is_hidden_from_us_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """proc(5), hidepid=1: else no look would ever end well."""

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert read_one(os.getpid()) is None
    assert read_all().processes == {}


async def test_orphans_are_looked_for_again_after_nobody_could_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F40: the proxy goes on, and reaps once it can."""
    looked = anyio.Event()
    looks: list[None] = []

    def children() -> list[int]:
        looks.append(None)
        if len(looks) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        looked.set()
        return []

    monkeypatch.setattr(direct, "become_subreaper", lambda: True)
    monkeypatch.setattr(direct, "REAP_ORPHANS", 0.01)
    monkeypatch.setattr(direct, "own_children", children)
    async with direct.Direct(Groups(), own_process=True).running(Path()):
        with anyio.fail_after(10):
            await looked.wait()


async def test_a_process_with_a_reused_pid_is_never_signalled(tmp_path: Path) -> None:
    """FAULTS F22: pid and start time together name a process."""
    with tree(tmp_path) as (leader, pids):
        started = start_of(leader.pid)
        assert started is not None
        later = Record(tmp_path / "gone", leader.pid, started - 1, _boot())
        end_recorded(later)
        other_boot = Record(tmp_path / "gone", leader.pid, started, "another boot")
        end_recorded(other_boot)
        assert all(map(lives, (leader.pid, *pids)))


async def test_a_record_that_does_not_know_when_its_process_started_means_nobody(
    tmp_path: Path,
) -> None:
    """FAULTS F22: nor is it that of a process that is gone, which has not started either."""
    code = "import subprocess as s; print(s.Popen(['sleep', '600'], stdout=s.DEVNULL).pid)"
    with started("-I", "-S", "-c", code) as leader:
        assert leader.stdout is not None
        bystander = int(leader.stdout.readline())
    try:
        end_recorded(Record(tmp_path / "gone", leader.pid, None, _boot()))
        assert lives(bystander)
    finally:
        os.kill(bystander, signal.SIGKILL)


async def test_what_an_earlier_proxy_left_is_ended_by_its_record(tmp_path: Path) -> None:
    """DESIGN 5.6: swept at the next start, detached descendants too."""
    with tree(tmp_path / "tmp") as (leader, pids):
        record = Record(tmp_path, leader.pid, start_of(leader.pid), _boot())
        end_recorded(record)
        await gone(leader.pid, *pids)


async def test_what_is_left_is_looked_for_until_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.6: a process has no environment in the moment in which it is executed."""
    with tree(tmp_path / "tmp") as (leader, pids):
        late = pids[-1]

        def look() -> Snapshot:
            found = read_all()
            monkeypatch.setattr(groups, "read_all", read_all)
            return Snapshot(p for p in found.processes.values() if p.pid != late)

        monkeypatch.setattr(groups, "read_all", look)
        end_recorded(Record(tmp_path, None, None, _boot()))
        assert not any(map(lives, (leader.pid, *pids)))


async def test_what_was_spawned_but_not_yet_on_record_is_known_by_its_directory(
    tmp_path: Path,
) -> None:
    """DESIGN 10: journalled before the spawn, so without a pid at first."""
    with tree(tmp_path / "tmp") as (leader, pids):
        end_recorded(Record(tmp_path, None, None, _boot()))
        await gone(leader.pid, *pids)


async def test_a_record_of_nothing_that_runs_signals_nobody(tmp_path: Path) -> None:
    """DESIGN 10: the next proxy may start much later."""
    with started("-c", "input()") as bystander:
        end_recorded(Record(tmp_path, 2**22 + 1, 1, _boot()))
        end_recorded(Record(tmp_path, None, None, ""))
        assert lives(bystander.pid)
        bystander.kill()
    await until(lambda: not lives(bystander.pid))


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_group_is_removed_once_the_kernel_lets_go_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.6: a process that is dead for everybody else may hold its group for a while."""
    group = tmp_path / "sessionproxy-a-1"
    (group / "below").mkdir(parents=True)
    rmdir, tries = Path.rmdir, list[Path]()

    def held(self: Path) -> None:
        tries.append(self)
        if len(tries) < 5:
            raise OSError(errno.EBUSY, "busy")
        rmdir(self)

    monkeypatch.setattr(Path, "rmdir", held)
    cgroups.remove(group)
    assert not group.exists()
    assert len(tries) > 5


def test_a_group_that_cannot_be_removed_is_told_of_and_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """DESIGN 10: stopping is bounded."""
    group = tmp_path / "sessionproxy-a-1"
    group.mkdir()
    (group / "held").touch()
    monkeypatch.setattr(cgroups, "TRIES", 3)
    cgroups.remove(group)
    assert f"{group} is not removed" in caplog.text

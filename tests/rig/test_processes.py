"""What a census finds, since every test that asks whether something is left depends on it."""

import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from sessionproxy.backends.containment import available
from sessionproxy.backends.containment.namespaces import enclosed
from tests.rig.embedded import until
from tests.rig.processes import Census, Orphans

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SLEEP: Final = ("sleep", "600")

HERE: Final = [rung for rung, against in available().items() if not against]


@pytest.fixture
def census(tmp_path: Path) -> Census:
    """A census for a proxy with one session, whose directory is `run/p/1`."""
    (tmp_path / "run/p/1/tmp").mkdir(parents=True)
    return Census(tmp_path)


@contextmanager
def child(command: Sequence[str], env: Mapping[str, str], cwd: Path = Path("/")) -> Generator[int]:
    with subprocess.Popen(command, env={"PATH": os.environ["PATH"], **env}, cwd=cwd) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def found(census: Census, directory: Path) -> list[str]:
    return [" ".join(process.cmdline()) for process in census.look().get(directory, [])]


def test_a_process_is_known_by_its_tmpdir(census: Census, tmp_path: Path) -> None:
    """DESIGN 10: TMPDIR points into the private directory."""
    session = tmp_path / "run/p/1"
    with child(SLEEP, {"TMPDIR": str(session / "tmp")}):
        assert found(census, session) == ["sleep 600"]
    assert census.left(session) == [str(session)]


def test_a_process_is_known_by_its_working_directory(census: Census, tmp_path: Path) -> None:
    """Chromium writes over its own environment."""
    session = tmp_path / "run/p/1"
    with child(SLEEP, {}, cwd=session / "tmp"):
        assert found(census, session) == ["sleep 600"]


@pytest.mark.skipif("pid-namespace" not in HERE, reason="none on this machine")
async def test_a_process_in_a_pid_namespace_is_known(census: Census, tmp_path: Path) -> None:
    """From outside, a namespace hides nothing."""
    session = tmp_path / "run/p/1"
    command = enclosed(SLEEP, user_namespace=os.geteuid() != 0)
    with child(command, {"TMPDIR": str(session / "tmp")}):
        await until(lambda: "sleep 600" in found(census, session))


@pytest.mark.skipif("cgroup" not in HERE or os.geteuid() != 0, reason="no group to make one in")
def test_a_process_is_known_by_its_control_group(census: Census, tmp_path: Path) -> None:
    """DESIGN 10, rung d; the group itself counts as left."""
    (mount,) = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()
                if line.split()[2] == "cgroup2"]  # fmt: skip
    session = tmp_path / f"run/{os.getpid()}/1"
    session.mkdir(parents=True)
    group = Path(mount, f"sessionproxy-{os.getpid()}-1")
    group.mkdir()
    try:
        with child(SLEEP, {}) as pid:
            (group / "cgroup.procs").write_text(str(pid))
            assert found(census, session) == ["sleep 600"]
        assert census.left(session) == [str(session), str(group)]
    finally:
        group.rmdir()


async def test_a_process_that_hid_before_the_first_look_is_found(tmp_path: Path) -> None:
    """Detached, with nothing in its environment, and its parent is gone: it became our child."""
    with Orphans() as orphans:
        census = Census(tmp_path, orphans)
        try:
            with child(("sh", "-c", "env -i setsid sleep 600 &"), {}) as pid:
                orphans.started(pid)
                await until(lambda: found(census, tmp_path / "run") == ["sleep 600"])
            census.kill()
            await until(lambda: census.look() == {})
        finally:
            census.kill()

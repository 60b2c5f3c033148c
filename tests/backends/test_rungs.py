"""DESIGN 10: what each rung of the containment ladder ends, and what it takes to be on it.

Each rung that this machine has is tried with a backend that heeds nothing and leaves all kinds of
descendants. Neighbours: `test_containment` has the first rung's search, `tests.clients` browsers.
"""

import ast
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import psutil
import pytest

from sessionproxy.backends.containment import RUNGS, available, chosen, guarded
from sessionproxy.backends.containment.cgroups import (
    Bounds,
    Cgroups,
    base_group,
    group_of,
    remove,
)
from sessionproxy.backends.containment.groups import Groups
from sessionproxy.backends.containment.guarded import Guarded
from sessionproxy.backends.containment.namespaces import enclosed
from sessionproxy.backends.statedir import StateDir
from sessionproxy.backends.template import Expanded
from sessionproxy.config import ConfigError
from tests.rig.embedded import (
    PYTHON,
    SCRIPTED,
    Json,
    embedded,
    lives,
    processes_of,
    scripted,
    session,
    until,
)
from tests.rig.http import Client, connect
from tests.rig.proxy import ROOT, Proxy, proxy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

HERE: Final = [rung for rung, against in available().items() if not against]
"""The rungs of this machine."""

SURE: Final = [rung for rung in HERE if rung in ("pid-namespace", "cgroup")]
"""Those on which nothing escapes."""

OUTLIVING: Final = [rung for rung in HERE if rung != "process-group"]
"""Those on which something outlives the proxy."""

STUBBORN: Final[Json] = {"eof": [{"wait": "never"}], "ignores": ["SIGTERM", "SIGHUP", "SIGINT"]}


def test_this_machine_has_every_rung() -> None:
    """Where CI runs, none of the tests below is empty."""
    if os.environ.get("CI"):
        assert HERE == list(RUNGS)
    assert "process-group" in HERE


class Family:
    """A backend's descendants of every kind, found on the host by how long they sleep."""

    def __init__(self) -> None:
        self._tag = f"600.{secrets.randbelow(10**9):09}"

    def steps(self, *, stray: bool) -> list[Json]:
        steps: list[Json] = [{"spawn": []}, {"spawn": ["session"]}, {"spawn": ["daemon"]}]
        return [*steps, {"stray": self._tag}] if stray else steps

    def strays(self) -> list[int]:
        return [p.pid for p in psutil.process_iter() if self._tag in _words(p) and lives(p.pid)]


def _words(process: psutil.Process) -> Sequence[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ()


def left(state_dir: Path, family: Family) -> list[int]:
    return [*processes_of(state_dir), *family.strays()]


async def none_left(state_dir: Path, family: Family, *, within: float) -> None:
    await until(lambda: not left(state_dir, family), seconds=within)


@pytest.mark.parametrize("rung", HERE)
async def test_a_deleted_session_leaves_no_process(rung: str) -> None:
    """DESIGN 5.6, F17-F20: detached ones too; one that hid from the start on the sure rungs."""
    family = Family()
    async with session(scripted(**STUBBORN), containment=rung, stop_grace=0.1) as (proxy, client):
        await client.do(*family.steps(stray=rung in SURE))
        assert len(left(proxy.state_dir, family)) >= 4
        await client.delete()
        await none_left(proxy.state_dir, family, within=5 * (0.1 + 5 + 1))
        await until(lambda: proxy.session_dirs() == [])


@pytest.mark.parametrize("rung", HERE)
async def test_a_leader_that_is_killed_takes_all_along(rung: str) -> None:
    """DESIGN 5.6, F06, F21: a crash is an end as any other."""
    family = Family()
    async with session(scripted(**STUBBORN), containment=rung) as (proxy, client):
        await client.do(*family.steps(stray=rung in SURE))
        async with client.doing({"kill": "SIGKILL"}) as incoming:
            fault = (await incoming.answer())["result"]["_meta"]["sessionproxy/fault"]
        assert fault["signal"] == "SIGKILL"
        await none_left(proxy.state_dir, family, within=5)


@pytest.mark.parametrize("rung", HERE)
@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"exit": 7}, {"exitCode": 7}),
        ({"kill": "SIGSEGV"}, {"signal": "SIGSEGV"}),
        ({"kill": "SIGTERM"}, {"signal": "SIGTERM"}),
    ],
)
async def test_how_a_backend_ended_is_told(rung: str, step: Json, told: Json) -> None:
    """DESIGN 11, F06: exit code or signal, whatever stands between it and the proxy."""
    async with session(containment=rung) as (_, client), client.doing(step) as incoming:
        fault = (await incoming.answer())["result"]["_meta"]["sessionproxy/fault"]
    assert {name: fault[name] for name in told} == told


@pytest.mark.parametrize("rung", HERE)
async def test_a_backend_that_closes_a_pipe_is_noticed(rung: str) -> None:
    """DESIGN 5.3: nothing between it and the proxy holds the other end."""
    async with session(stop_grace=0.1, containment=rung) as (_, client):
        answer = await client.request("x/y", {"_meta": {"steps": [{"close": "stdout"}]}})
        assert "closed its output" in answer["error"]["message"]


@pytest.mark.parametrize("rung", HERE)
async def test_the_backend_is_asked_to_end_before_it_is_killed(rung: str, tmp_path: Path) -> None:
    """DESIGN 10: SIGTERM goes to the tree."""
    note = tmp_path / "termed"
    code = f"trap 'echo $? >{note}; exit 0' TERM; while :; do sleep 0.05; done"
    async with embedded(("sh", "-c", code), containment=rung, stop_grace=0, start_timeout=1) as one:
        async with connect_refused(one.url):
            await until(note.exists)


class connect_refused:
    """A client whose `initialize` is never answered."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> None:
        with pytest.raises(AssertionError, match="-32603"):
            async with connect(self._url):
                raise RuntimeError("it did start")

    async def __aexit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("rung", HERE)
async def test_a_backend_gets_the_environment_and_the_signals_it_would_have(rung: str) -> None:
    """DESIGN 10: what stands between adds no variable and ignores no signal for it."""
    code = (
        "import os, signal, sys\n"
        "sys.stderr.write(repr(sorted(os.environ)) + '\\n')\n"
        "held = [s.name for s in signal.valid_signals() if isinstance(s, signal.Signals)"
        " and signal.getsignal(s) is signal.SIG_IGN]\n"
        "sys.stderr.write(repr(sorted(held)) + '\\n')\n"
    )
    command = (PYTHON, "-I", "-S", "-c", code)
    async with embedded(command, containment=rung) as one:
        with pytest.raises(AssertionError) as caught:
            async with connect(one.url):
                pass
    names = sorted({*("HOME", "LANG", "PATH", "USER", "TMPDIR")} & {*os.environ, "TMPDIR"})
    proxies = [n for n in os.environ if n.lower().endswith("_proxy")]
    told = str(caught.value)
    assert repr(sorted([*names, *proxies])) in told
    ignored_anyway = set(ast.literal_eval(_said_to_stderr(command).splitlines()[1]))
    found = re.search(r"\['SIG.*?\]", told)
    assert found is not None
    # Python's own, and perhaps what whoever runs the tests has had ignored.
    assert {"SIGPIPE"} <= set(ast.literal_eval(found[0])) <= ignored_anyway


def _said_to_stderr(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


@pytest.mark.parametrize("rung", HERE)
async def test_a_command_that_cannot_be_executed_is_told(rung: str, tmp_path: Path) -> None:
    """F01: also where a shell would have to find out."""
    broken = tmp_path / "broken"
    broken.write_text("#!/nosuch/interpreter\n")
    broken.chmod(0o755)
    async with embedded((str(broken),), containment=rung) as one:
        with pytest.raises(AssertionError, match=r"-32603.*No such file"):
            async with connect(one.url):
                pass
        await until(lambda: one.session_dirs() == [])


# -- the proxy is killed ---------------------------------------------------------------------------


async def crowd(client: Client, family: Family) -> None:
    await client.do(*family.steps(stray=True))


def guardian_of(running: Proxy) -> int:
    children = psutil.Process(running.process.pid).children()
    (found,) = [p.pid for p in children if any("guardian.py" in word for word in _words(p))]
    return found


@pytest.mark.parametrize("rung", OUTLIVING)
async def test_a_killed_proxy_takes_all_along(rung: str) -> None:
    """DESIGN 5.6, F24: processes of all kinds and private directories, without a restart."""
    family = Family()
    async with proxy(scripted(**STUBBORN), "--containment", rung) as running:
        async with connect(running.url) as client:
            await crowd(client, family)
            guardian = guardian_of(running)
            running.signal(signal.SIGKILL)
            await running.wait(10)
        await none_left(running.state_dir, family, within=5 * 2)
        await until(lambda: not lives(guardian) and not list(running.state_dir.glob("run/*")))


@pytest.mark.parametrize("rung", HERE)
async def test_a_restart_sweeps_what_a_killed_proxy_and_guardian_left(
    rung: str, tmp_path: Path
) -> None:
    """DESIGN 5.6, F24: the journal tells; on the sure rungs only directories are left to it."""
    family = Family()
    state = tmp_path / "s"
    options = ("--containment", rung)
    async with proxy(scripted(**STUBBORN), *options, state_dir=state) as running:
        async with connect(running.url) as client:
            await client.do(*family.steps(stray=rung == "pid-namespace"))
            victims = [running.process.pid]
            if rung != "process-group":
                victims.insert(0, guardian_of(running))
            for victim in victims:
                os.kill(victim, signal.SIGSTOP)  # neither sees the other go
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            await running.wait(10)
        assert list(state.glob("run/*/1/tmp"))
        if rung == "pid-namespace":
            await none_left(state, family, within=5 * 2)
    async with proxy(SCRIPTED, *options, state_dir=state) as second:
        await none_left(state, family, within=5 * 5)
        assert list(state.glob("run/*/1")) == []
        await until(lambda: any("swept" in line for line in second.log))


@pytest.mark.parametrize("rung", OUTLIVING)
async def test_a_guardian_that_is_killed_ends_its_backends_and_is_replaced(rung: str) -> None:
    """DESIGN 5.12: the loss is told, and the next call has a fresh backend."""
    async with proxy(SCRIPTED, "--containment", rung) as running:
        async with connect(running.url) as client:
            before = await client.do({"spawn": ["session"]})
            async with client.doing({"log": ""}, {"wait": "never"}) as incoming:
                await incoming.message()
                first = guardian_of(running)
                os.kill(first, signal.SIGKILL)
                result = (await incoming.answer())["result"]
            assert result["_meta"]["sessionproxy/fault"]["outcome"] == "unknown"
            await until(lambda: processes_of(running.state_dir) == [])
            told = (await client.request("tools/call", {"name": "do"}))["result"]
            assert told["_meta"]["sessionproxy/fault"]["outcome"] == "not_executed"
            after = await client.do()
            assert after["nonce"] != before["nonce"]
            assert guardian_of(running) != first


async def test_the_guardian_reaps_what_is_orphaned() -> None:
    """DESIGN 10: it is the subreaper, so that no zombie stays and nothing is lost to init."""
    async with session(containment="guardian") as (_, client):
        (daemon,) = (await client.do({"spawn": ["daemon"]}))["children"]
        await until(lambda: _parent_is_guardian(daemon))
        os.kill(daemon, signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(daemon))


def _parent_is_guardian(pid: int) -> bool:
    return any("guardian.py" in word for word in psutil.Process(pid).parent().cmdline())  # type: ignore[union-attr]


async def test_without_subreaper_pidfd_and_proc_the_guardian_still_ends_what_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 10: what macOS gets: groups, descendants and the guardian. Its way, tried on Linux."""
    program = tmp_path / "guardian.py"
    program.write_text(
        f"import os, sys\nsys.path.insert(0, {str(guarded.PROGRAM.parent)!r})\n"
        "import guardian\n"
        "del os.waitid, os.pidfd_open\n"
        "guardian.IS_SUBREAPER = False\n"
        "guardian.children_of = lambda pid: []\n"
        "guardian.main()\n"
    )
    monkeypatch.setattr(guarded, "PROGRAM", program)
    async with session(scripted(**STUBBORN), containment="guardian") as (proxy, client):
        found = await client.do({"spawn": []}, {"spawn": ["session"]})
        (guardian,) = [p for p in psutil.Process().children() if str(program) in _words(p)]
        async with client.doing({"exit": 7}) as incoming:
            fault = (await incoming.answer())["result"]["_meta"]["sessionproxy/fault"]
        assert fault["exitCode"] == 7
        await until(lambda: not any(map(lives, found["children"])))
        await client.request("tools/call", {"name": "do"})  # is told of the loss
        found = await client.do({"spawn": []}, {"spawn": ["session"]})
        # As if the proxy were gone: its end of the socket closes.
        proxy.app.containment._guardian._close()  # type: ignore[attr-defined]
        await until(lambda: not any(map(lives, (found["pid"], *found["children"]))))
        await until(lambda: not lives(guardian.pid))


@pytest.mark.parametrize("rung", ["process-group", "guardian"])
async def test_a_stray_is_killed_and_counted_when_no_backend_is_left(rung: str) -> None:
    """F20: on the lower rungs one that was never seen is found by being nobody's."""
    family = Family()
    async with proxy(SCRIPTED, "--containment", rung, "--stop-grace", "0.1") as running:
        async with connect(running.url) as client:
            await client.do(family.steps(stray=True)[-1])
            assert len(family.strays()) == 1
            await client.delete()
            await none_left(running.state_dir, family, within=5 * 2)

            async def counted() -> int:
                return (await client.http.get(f"{running.base}/readyz")).json()["orphans"]

            with anyio.fail_after(10):
                while await counted() != 1:  # noqa: ASYNC110 - another process
                    await anyio.sleep(0.02)


# -- namespaces ------------------------------------------------------------------------------------

NOBODY: Final = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")

needs_namespaces = pytest.mark.skipif("pid-namespace" not in HERE, reason="none on this machine")


@needs_namespaces
@pytest.mark.parametrize("user", ["root", "nobody"])
async def test_a_namespace_ends_with_whoever_started_it(user: str) -> None:
    """DESIGN 10: for root and for an ordinary user, `setsid` escapees too."""
    if os.geteuid() != 0 and user == "root":
        pytest.skip("not root")
    as_user = NOBODY if os.geteuid() == 0 and user == "nobody" else ()
    family = Family()
    tag = family.steps(stray=True)[-1]["stray"]
    inside = f"env -i setsid --fork sleep {tag}; exec sleep {tag}"
    starter = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [
            *as_user,
            "sh",
            "-c",
            '"$@" & wait',
            "x",
            *enclosed(("sh", "-c", inside), user_namespace=user != "root"),
        ],
        start_new_session=True,
    )
    try:
        await until(lambda: len(family.strays()) == 2)
        starter.kill()
        await until(lambda: family.strays() == [], seconds=5 * 2)
    finally:
        starter.kill()
        starter.wait()


@needs_namespaces
async def test_init_reaps_what_is_orphaned() -> None:
    """DESIGN 10: a small init inside, so that zombies behave."""
    async with session(containment="pid-namespace") as (proxy, client):
        found = await client.do({"spawn": ["daemon"]}, {"spawn": ["daemon"]})
        inside = {_in_namespace(pid): pid for pid in processes_of(proxy.state_dir)}
        for daemon in found["children"]:
            os.kill(inside[daemon], signal.SIGKILL)
        await until(lambda: not any(psutil.pid_exists(inside[pid]) for pid in found["children"]))


def _in_namespace(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("NSpid:"))
    return int(line.split()[-1])


# -- pid reuse -------------------------------------------------------------------------------------

REUSE: Final = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
import anyio
from sessionproxy.backends.containment.groups import GroupTree
from sessionproxy.backends.processes import ProcessTable
open("/proc/sys/kernel/pid_max", "w").write("400")

def sleeper():
    return subprocess.Popen(["sleep", "600"], start_new_session=True)

def reused(pid):
    for _ in range(3000):
        process = sleeper()
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    raise SystemExit("not reused")

async def main():
    while (early := sleeper()).pid < 320:  # the kernel gives out pids below 300 only once
        early.kill()
        early.wait()
    leader = early
    child = subprocess.Popen(["sleep", "600"], start_new_session=True, env={"TMPDIR": "/nowhere"})
    tree = GroupTree(ProcessTable(), leader.pid, "/nowhere")
    await tree.remember()
    assert len(tree._known) == 1
    for process in (leader, child):
        process.kill()
        process.wait()
    bystanders = [reused(pid) for pid in sorted((leader.pid, child.pid))]
    tree.kill()
    await tree.signal(9)
    await anyio.sleep(0.1)
    print([process.poll() for process in bystanders])
    for process in bystanders:
        process.kill()
        process.wait()

anyio.run(main)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a pid_max of its own")
def test_no_foreign_process_is_signalled_after_its_pid_was_reused() -> None:
    """F22: 400 pids in a namespace of their own, churned until the dead ones' are somebody's."""
    line = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*line, PYTHON, "-c", REUSE, str(ROOT)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[None, None]", done.stderr


# -- choosing --------------------------------------------------------------------------------------


async def test_the_rung_is_named_in_banner_and_readiness() -> None:
    """DESIGN 10: shown, so that nobody has to guess."""
    for rung in HERE:
        async with proxy(SCRIPTED, "--containment", rung) as running:
            async with connect(running.url) as client:
                ready = (await client.http.get(f"{running.base}/readyz")).json()
            assert ready["containment"] == rung
            assert f"containment: {rung}" in await running.more_banner()


def test_a_rung_that_cannot_be_had_is_an_error_at_start() -> None:
    """Issue: pinned, and nothing else will do; with the reason."""
    done = subprocess.run(
        [PYTHON, "-m", "sessionproxy", "run", "--containment", "pid-namespace", "--", *SCRIPTED],
        cwd=ROOT,
        env={**os.environ, "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--containment pid-namespace: not to be had here: setpriv: No such file" in done.stderr


async def test_without_namespaces_the_guardian_is_the_best() -> None:
    """DESIGN 10: the best available rung is chosen at start."""
    async with proxy(SCRIPTED, env={"PATH": "/nowhere"}) as running:
        async with connect(running.url) as client:
            ready = (await client.http.get(f"{running.base}/readyz")).json()
    assert ready["containment"] == "guardian"


@needs_namespaces
def test_a_control_group_that_nobody_handed_over_is_not_taken() -> None:
    """Root can make one everywhere, but the group it is in is its service manager's."""
    if os.geteuid() == 0 and "cgroup" in HERE:
        assert chosen(own_process=False).name == "pid-namespace"


@pytest.mark.parametrize("rung", ["process-group", "guardian", "pid-namespace"])
def test_limits_need_control_groups(rung: str) -> None:
    """A limit that would not hold is refused."""
    with pytest.raises(ConfigError, match="need cgroup"):
        chosen(rung, Bounds(memory=10**9), own_process=False)


def test_limits_are_written_before_anything_is_started(tmp_path: Path) -> None:
    """DESIGN 10, rung d. The directory stands for a cgroup file system whose controllers are
    ours, which is not to be had where another version of it is mounted."""
    state = StateDir.open(tmp_path / "s")
    directory = state.new_session()
    base = tmp_path / "cgroup"
    base.mkdir()
    bounds = Bounds(memory=500_000_000, pids=200)
    command = Cgroups(base, Groups(), bounds).command(["x", "y"], directory)
    group = group_of(base, directory.path)
    assert (group / "memory.max").read_text() == "500000000"
    assert (group / "pids.max").read_text() == "200"
    assert command[-3:] == (str(group), "x", "y")
    state.close()


@pytest.mark.skipif("cgroup" not in HERE, reason="none on this machine")
async def test_control_groups_are_removed() -> None:
    """DESIGN 5.6: nothing is left, no empty group either."""
    async with session(containment="cgroup", stop_grace=0.1) as (proxy, client):
        groups = [Path(p) for p in _groups_of(proxy.state_dir)]
        assert len(groups) == 1
        (groups[0] / "below").mkdir()  # a backend may make its own
        await client.delete()
        await until(lambda: not groups[0].exists())


@pytest.mark.skipif("cgroup" not in HERE, reason="none on this machine")
async def test_a_control_group_holds_by_itself(tmp_path: Path) -> None:
    """DESIGN 10, rung d: `cgroup.kill` finds what nothing else links to the backend."""
    base = base_group()
    assert base is not None
    state = StateDir.open(tmp_path / "s")
    family = Family()
    tag = family.steps(stray=True)[-1]["stray"]
    what = Expanded(
        ("sh", "-c", f"env -i setsid --fork sleep {tag}; exec sleep 600"), None, dict(os.environ)
    )
    containment = Guarded(Cgroups(base, Groups(), Bounds()))
    async with containment.running(state.instance):
        contained = await containment.start(what, state.new_session())
        await until(lambda: len(family.strays()) == 1)
        await contained.tree.signal(signal.SIGKILL)
        await until(lambda: family.strays() == [])
        contained.leader.release()
        contained.tree.close()
    for descriptor in (contained.stdin, contained.stdout, contained.stderr):
        os.close(descriptor)
    state.close()


def _groups_of(state_dir: Path) -> set[str]:
    base = Path(next(line for line in Path("/proc/mounts").read_text().splitlines()
                     if " cgroup2 " in line).split()[1])  # fmt: skip
    names = {p.name for p in state_dir.glob("run/*")}
    return {str(p) for p in base.rglob("sessionproxy-*") if p.name.split("-")[1] in names}


def test_removing_a_group_that_is_gone_does_nothing(tmp_path: Path) -> None:
    """A restart may find that the machine has removed it."""
    remove(tmp_path / "sessionproxy-gone")
    assert shutil.which("sh")


async def test_a_guardian_that_does_not_answer_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.2: a start that fails leaves nothing running."""
    monkeypatch.setattr(guarded, "START_PATIENCE", 0.2)
    async with session(containment="guardian") as (one, client):
        (guardian,) = [
            p for p in psutil.Process().children() if any("guardian.py" in w for w in _words(p))
        ]
        guardian.suspend()
        try:
            with pytest.raises(AssertionError, match="-32603"):
                async with connect(one.url):
                    pass
        finally:
            if guardian.is_running():
                guardian.resume()
        await until(lambda: not psutil.pid_exists(guardian.pid))  # reaped
        monkeypatch.setattr(guarded, "START_PATIENCE", 20)
        await until(lambda: one.processes() == [])
        with anyio.fail_after(10):
            await client.request("tools/call", {"name": "do"})
            assert (await client.do())["count"] == 1

"""DESIGN 10: what each rung of the containment ladder ends, and what it takes to be on it.

Each rung that this machine has is tried with a backend that heeds nothing and leaves all kinds of
descendants. Neighbours: `test_containment` has the first rung's search, `tests.clients` browsers.
"""

import ast
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import psutil
import pytest

from sessionproxy.backends import stdio
from sessionproxy.backends.containment import RUNGS, available, chosen, guarded, namespaces
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
async def test_a_deleted_session_leaves_no_process(
    rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.6, F17-F20: detached ones too; one that hid from the start on the sure rungs."""
    monkeypatch.setattr(stdio, "TERM_GRACE", 0.2)
    family = Family()
    async with session(scripted(**STUBBORN), containment=rung, stop_grace=0.1) as (proxy, client):
        await client.do(*family.steps(stray=rung in SURE))
        assert len(left(proxy.state_dir, family)) >= 4
        await client.delete()
        await none_left(proxy.state_dir, family, within=5 * (0.1 + 0.2 + 1))
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


@pytest.mark.parametrize("rung", HERE)
async def test_a_word_that_no_process_can_be_given_is_told(rung: str) -> None:
    """F01: execve(2) ends words at a NUL."""
    async with embedded((*SCRIPTED, "{}", "a\0b"), containment=rung) as one:
        with pytest.raises(AssertionError, match=r"-32603.*null byte"):
            async with connect(one.url):
                pass
        await until(lambda: one.session_dirs() == [])


def program(path: Path) -> Path:
    """A program that becomes the scripted backend."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {" ".join(SCRIPTED)} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("rung", HERE)
@pytest.mark.parametrize(
    ("command", "cwd", "expected"),
    [("sub/mine", None, ""), ("./mine", "sub", "sub"), ("./mine", "./sub/../sub", "sub")],
)
async def test_relative_paths_are_read_where_the_proxy_was_started(
    rung: str,
    command: str,
    cwd: str | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 10, F01: command, working directory and state directory, whoever starts it."""
    program(tmp_path / "sub" / "mine")
    monkeypatch.chdir(tmp_path)
    async with session((command,), containment=rung, cwd=cwd, state_dir="s") as (_, client):
        about = (await client.do({"tells": "about"}))["about"]
        assert about["cwd"] == str(tmp_path / expected)
        await until(lambda: os.path.isdir(about["env"]["TMPDIR"]))
        assert len(processes_of(tmp_path / "s")) >= 1
        await client.delete()
        await until(lambda: processes_of(tmp_path / "s") == [])
    await until(lambda: list(tmp_path.glob("s/run/*")) == [])


@pytest.mark.parametrize("rung", HERE)
async def test_a_backend_may_have_a_path_of_its_own(rung: str, tmp_path: Path) -> None:
    """DESIGN 10: `--env PATH=...` is for what the backend looks for, not for what encloses it."""
    async with session(containment=rung, env=[f"PATH={tmp_path}"]) as (_, client):
        assert (await client.do({"tells": "about"}))["about"]["env"]["PATH"] == str(tmp_path)


@pytest.mark.parametrize("rung", HERE)
async def test_variables_that_shells_set_can_be_given_to_a_backend(rung: str) -> None:
    """DESIGN 10: `--env`, whatever stands between."""
    given = {"PWD": "/there", "OLDPWD": "/before", "SHLVL": "7", "_": "x"}
    assignments = [f"{name}={text}" for name, text in given.items()]
    async with session(containment=rung, env=assignments) as (_, client):
        env = (await client.do({"tells": "about"}))["about"]["env"]
    assert {name: env[name] for name in given} == given


@pytest.mark.parametrize("rung", HERE)
@pytest.mark.parametrize("name", ["a=b/mine", "a=b", "-u"])
async def test_a_command_may_have_any_name(rung: str, name: str, tmp_path: Path) -> None:
    """F01: `env` takes some for assignments, or for options of its own."""
    mine = program(tmp_path / "bin" / name)
    command = str(mine) if "/" in name else name
    path = f"PATH={tmp_path / 'bin'}"
    async with session((command, "{}", "x=y"), containment=rung, env=[path]) as (_, client):
        assert (await client.do({"tells": "about"}))["about"]["argv"] == ["{}", "x=y"]


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


@pytest.mark.parametrize("steps", [[], [{"spawn": ["session"]}]], ids=["alone", "with a child"])
@pytest.mark.parametrize("rung", OUTLIVING)
async def test_a_guardian_that_is_killed_ends_its_backends_and_is_replaced(
    rung: str, steps: list[Json]
) -> None:
    """DESIGN 5.6, 5.12: whatever they heed; the loss is told, and the next call has a fresh one."""
    async with proxy(scripted(**STUBBORN), "--containment", rung) as running:
        async with connect(running.url) as client:
            before = await client.do(*steps)
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
        proxy.app.containment._guardians[0]._close()  # type: ignore[attr-defined]
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


@needs_namespaces
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_no_shell_adds_a_variable(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 10: on many a machine `sh` is bash, which sets more of them than others."""
    if not os.path.exists(shell):
        pytest.skip("missing: bash")
    monkeypatch.setattr(namespaces, "SHELL", shell)
    env = {"PATH": os.environ["PATH"], "PWD": "/there"}
    line = enclosed(("env",), user_namespace=os.geteuid() != 0, env=env)
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=True)
    assert dict(said.split("=", 1) for said in done.stdout.splitlines()) == env


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user who has no processes")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_shell_that_cannot_fork_says_no_more_than_that(processes: int) -> None:
    """F40: its words are the backend's last lines of stderr, and may be shown to the client."""
    user = str(40_000 + secrets.randbelow(10_000))
    limited = ("prlimit", f"--nproc={processes}", "--", *enclosed(("env",), user_namespace=True))
    line = ("setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--", *limited)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode not in (0, 126, 127)
    assert done.stdout == ""
    assert done.stderr
    for said in done.stderr.splitlines():
        assert re.fullmatch(r"sessionproxy: [\w ]+(: [\w ]+)*", said)


# -- pid reuse -------------------------------------------------------------------------------------

REUSE: Final = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
import anyio
import psutil
from sessionproxy.backends.containment.groups import GroupTree
from sessionproxy.backends.processes import ProcessTable
open("/proc/sys/kernel/pid_max", "w").write("400")

def sleeper():
    code = "read go; sleep 600 & echo $!; wait"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["sh", "-c", code], stdin=pipe, stdout=pipe, text=True, start_new_session=True
    )

def reused(pid):
    for _ in range(3000):
        process = sleeper()
        if process.pid == pid:
            return process
        with process:
            process.kill()
    raise SystemExit("not reused")

def child_of(process):
    print("go", file=process.stdin, flush=True)
    return psutil.Process(int(process.stdout.readline()))

async def main():
    while (early := sleeper()).pid < 320:  # the kernel gives out pids below 300 only once
        early.kill()
        early.wait()
    leader = early
    child = subprocess.Popen(["sleep", "600"], start_new_session=True, env={"TMPDIR": "/nowhere"})
    tree = GroupTree(ProcessTable(), leader.pid, "/nowhere")
    await tree.remember()
    assert len(tree._known) == 2
    for process in (leader, child):
        process.kill()
        process.wait()
    bystanders = [reused(pid) for pid in sorted((leader.pid, child.pid))]
    theirs = [child_of(process) for process in bystanders]  # in the session of that pid
    tree.kill()
    await tree.signal(9)
    await anyio.sleep(0.1)
    print([process.poll() for process in bystanders], [child.status() for child in theirs])
    for process in (*theirs, *bystanders):
        process.kill()
    for process in bystanders:
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
    assert done.stdout.strip() == "[None, None] ['sleeping', 'sleeping']", done.stderr


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
    command = Cgroups(base, Groups(), bounds).command(Expanded(("x", "y"), None, {}), directory)
    group = group_of(base, directory.path)
    assert (group / "memory.max").read_text() == "500000000"
    assert (group / "pids.max").read_text() == "200"
    assert command[-3:] == (str(group), "x", "y")
    state.close()


def test_a_control_group_is_on_record_before_it_is_made(tmp_path: Path) -> None:
    """DESIGN 10: a proxy killed between the two leaves none that nobody knows of."""
    state = StateDir.open(tmp_path / "s")
    directory = state.new_session()
    base = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError):
        Cgroups(base, Groups(), Bounds()).command(Expanded(("x",), None, {}), directory)
    record = json.loads(directory.path.with_suffix(".json").read_text())
    assert record["cgroup"] == str(group_of(base, directory.path))
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
    # Unlike `rglob`, this passes over groups of other tests that go while it looks.
    below = (Path(at, name) for at, groups, _ in os.walk(base) for name in groups)
    groups = (path for path in below if path.name.startswith("sessionproxy-"))
    return {str(path) for path in groups if path.name.split("-")[1] in names}


def test_a_group_is_removed_with_those_in_it_and_one_that_is_gone_is_no_matter(
    tmp_path: Path,
) -> None:
    """A backend may have made some below; a restart may find that the machine has removed all."""
    group = tmp_path / "sessionproxy-x"
    (group / "a" / "b").mkdir(parents=True)
    (group / "c").mkdir()
    for _ in range(2):
        remove(group)
        assert list(tmp_path.iterdir()) == []


async def test_a_start_that_holds_up_the_guardian_costs_no_other_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 10, F05: it costs its own session at most, and leaves nothing running."""
    async with session(containment="guardian") as (one, client):
        before = await client.do()
        (guardian,) = [
            p for p in psutil.Process().children() if any("guardian.py" in w for w in _words(p))
        ]
        guardian.suspend()
        try:
            monkeypatch.setattr(guarded, "START_PATIENCE", 0.2)
            with pytest.raises(AssertionError, match="-32603"):
                async with connect(one.url):
                    pass
            monkeypatch.setattr(guarded, "START_PATIENCE", 20)
            async with connect(one.url) as other:
                assert (await other.do())["count"] == 1
                await other.delete()
        finally:
            guardian.resume()
        after = await client.do()
        assert (after["nonce"], after["count"]) == (before["nonce"], 2)
        await until(lambda: one.processes() == [before["pid"]])

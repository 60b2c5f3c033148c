"""DESIGN 10: a backend that is a child process, from its spawn to the last rung of the stop ladder.

Behind a whole proxy, since what counts is what its client and the machine see.
"""

import logging
import os
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import anyio
import psutil
import pytest

from sessionproxy.backends import StateDir, StdioLauncher, Template, processes, stdio
from sessionproxy.backends.containment import RUNGS, Contained, available, chosen
from sessionproxy.backends.containment.direct import Direct
from sessionproxy.backends.containment.groups import Groups
from sessionproxy.backends.statedir import SessionDir
from sessionproxy.backends.stdio import Child
from sessionproxy.backends.template import Expanded
from sessionproxy.core.exchange import Ask, Exchange
from sessionproxy.core.memory import Opening
from sessionproxy.core.ports import Identity
from sessionproxy.errors import BackendStartFailed, Exit
from sessionproxy.wire import Bytes
from tests.rig.embedded import (
    PYTHON,
    SCRIPTED,
    embedded,
    gone,
    lives,
    processes_of,
    scripted,
    session,
    until,
)
from tests.rig.http import Client, connect, http
from tests.rig.limits import no_descriptors

NEVER: Final = 1000.0
"""Seconds of a limit that is not to run out in a test."""

ON_EOF = {"eof": [{"stderr": ["end of input"]}, {"wait": "never"}]}


@pytest.fixture
def stderr(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What backends write to stderr, as it is logged."""
    caplog.set_level(logging.INFO, logger="sessionproxy.backend")
    return caplog


async def test_a_backend_that_heeds_the_end_of_its_input_is_not_signalled(
    stderr: pytest.LogCaptureFixture,
) -> None:
    """DESIGN 5.6, 10: close stdin first."""
    command = scripted(eof=[{"sleep": 0.2}, {"stderr": ["ended by itself"]}, {"exit": 0}])
    async with session(command, stop_grace=NEVER) as (proxy, client):
        await client.delete()
        await until(lambda: len(proxy.manager.registry) == 0)
    assert "ended by itself" in stderr.text


async def test_one_that_ignores_it_gets_sigterm_after_the_grace(
    stderr: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F17: to the tree, never to the leader alone."""
    monkeypatch.setattr(stdio, "TERM_GRACE", NEVER)
    async with session(scripted(**ON_EOF), stop_grace=0.2) as (proxy, client):
        found = await client.do({"spawn": []}, {"spawn": ["session"]})
        await client.delete()
        await gone(found["pid"], *found["children"])
        await until(lambda: len(proxy.manager.registry) == 0)
    assert "end of input" in stderr.text


async def test_one_that_ignores_sigterm_too_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS F18."""
    monkeypatch.setattr(stdio, "TERM_GRACE", 0.2)
    command = scripted(ignores=["SIGTERM"], **ON_EOF)
    async with session(command, stop_grace=0.1) as (_, client):
        pid = (await client.do())["pid"]
        await client.delete()
        await gone(pid)


async def test_a_child_that_ignores_sigterm_is_killed_after_its_leader_left_politely() -> None:
    """FAULTS F19: the tree is always swept."""
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    command = ("/bin/sh", "-c", f'"$1" -c "{stubborn}" >&2 & exec "$@"', "sh", *SCRIPTED)
    async with session(command) as (proxy, client):
        await until(lambda: len(proxy.processes()) == 2)
        pids = proxy.processes()
        await client.delete()
        await gone(*pids)


TAKES_ITS_TIME = """
import signal, sys, time
log = open(sys.argv[1], "ab", buffering=0)
termed = []
def term(*_):
    log.write(b"T")
    termed.append(1)
signal.signal(signal.SIGTERM, term)
log.write(b"begun ")
while not termed:
    time.sleep(0.01)
time.sleep(0.3)
log.write(b" ended")
"""


@pytest.mark.parametrize("rung", ["process-group", "guardian"])
async def test_each_process_gets_sigterm_once_and_the_tree_as_much_time_as_its_leader(
    rung: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 10, FAULTS F17, F19: SIGTERM to the tree, and SIGKILL seconds later."""
    monkeypatch.setattr(stdio, "TERM_GRACE", NEVER)
    monkeypatch.setattr(stdio, "LEFT_BEHIND_GRACE", 0.05)
    log = tmp_path / "log"
    both = '"$1" -I -S -c "$2" "$3" </dev/null >&2 & shift 3; exec "$@"'
    child = (PYTHON, TAKES_ITS_TIME, str(log))
    command = ("/bin/sh", "-c", both, "sh", *child, *scripted(**ON_EOF))
    async with session(command, containment=rung, stop_grace=0.1) as (proxy, client):
        await until(lambda: log.exists() and log.read_bytes() == b"begun ")
        await client.delete()
        await until(lambda: len(proxy.manager.registry) == 0)
        await until(lambda: proxy.processes() == [])
    assert log.read_bytes() == b"begun T ended"


async def test_a_place_is_held_until_the_backend_is_gone() -> None:
    """DESIGN 7, 10: `max_sessions` counts backends until they are reaped."""
    async with session(scripted(**ON_EOF), stop_grace=NEVER, max_sessions=1) as (proxy, client):
        await client.delete()
        assert proxy.manager.admission.running == 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Client(client.http, proxy.url).initialize)
            await until(lambda: proxy.manager.admission.queued == 1)
            tasks.cancel_scope.cancel()
        assert proxy.manager.admission.running == 1


async def test_hurry_cuts_all_waiting_short() -> None:
    """DESIGN 7: a second signal ends at once."""
    async with session(scripted(ignores=["SIGTERM"], **ON_EOF), stop_grace=NEVER) as (
        proxy,
        client,
    ):
        pid = (await client.do())["pid"]
        await client.delete()
        proxy.app.running.launcher.hurry()
        await gone(pid)


async def test_a_backend_runs_in_its_private_directory_as_the_operator_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 5.7, 10: `{session.dir}`, TMPDIR, and no variable that nobody named."""
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PASSED", "y")
    async with session(
        (*SCRIPTED, "{}", "{session.dir}"), cwd="{session.dir}", env=["A=b"], pass_env=["PASSED"]
    ) as (proxy, client):
        about = (await client.do({"tells": "about"}))["about"]
        (directory,) = proxy.session_dirs()
        assert about["cwd"] == about["argv"][1] == str(directory)
        assert about["env"]["TMPDIR"] == str(directory / "tmp")
        assert directory.stat().st_mode & 0o777 == 0o700
        (directory / "tmp" / "left").write_text("behind")
        await client.delete()
        await until(lambda: proxy.session_dirs() == [])
    assert (about["env"]["A"], about["env"]["PASSED"]) == ("b", "y")
    assert not {"SECRET", "PYTEST_CURRENT_TEST"} & about["env"].keys()


async def test_nothing_a_client_sends_reaches_the_command_or_its_environment() -> None:
    """DESIGN 5.7."""
    evil = "$(touch /tmp/evil); {session.dir}"
    async with embedded() as proxy, http() as pool:
        client = Client(pool, proxy.url)
        await client.initialize(client={"name": evil, "version": evil})
        about = (await client.also(x_evil=evil).do({"tells": "about"}))["about"]
        assert about["argv"] == []
        assert not any(evil in value for value in about["env"].values())


async def test_descriptors_are_back_at_the_start_after_sessions_of_every_fate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS I5."""
    monkeypatch.setattr(stdio, "MUTE_GRACE", 0.05)
    async with embedded(stop_grace=0.1) as proxy:
        counts: list[int] = []
        for _ in range(3):
            for fate in ({"exit": 1}, {"close": "stdout"}, {"close": "stdin"}, {"log": ""}):
                async with connect(proxy.url) as client:
                    await client.request("x", {"_meta": {"steps": [fate]}})
                    await client.delete()
            await until(lambda: len(proxy.manager.registry) == 0)
            await until(lambda: proxy.manager.admission.running == 0)
            await anyio.sleep(0.05)  # the server's ends of the clients' connections close
            counts.append(psutil.Process().num_fds())
    assert counts[1] == counts[2]


async def test_a_backend_that_closes_its_input_is_a_death() -> None:
    """DESIGN 10: it can never be asked again."""
    async with session(scripted(reads=3), stop_grace=0.1) as (proxy, client):
        await client.do({"close": "stdin"})
        answer = await client.request("x/y", {"_meta": {"steps": [{"wait": "never"}]}})
        assert "closed its input" in answer["error"]["message"]
        await until(lambda: proxy.processes() == [])


# -- the launcher alone ----------------------------------------------------------------------------


def launcher(state: StateDir, *command: str, cwd: str | None = None) -> StdioLauncher:
    template = Template(command or SCRIPTED, cwd=cwd)
    return StdioLauncher(
        template, state, Direct(Groups(), own_process=False), stop_grace=NEVER, max_line=10**6
    )


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir.open(tmp_path / "s")


async def test_a_spawn_that_fails_leaves_no_directory(state: StateDir) -> None:
    """FAULTS F01."""
    with pytest.raises(BackendStartFailed, match=r"could not be started: .*/nowhere: No such file"):
        await launcher(state, "/bin/sh", cwd="{session.dir}/nowhere").spawn()
    assert [path.name for path in state.root.glob("run/*/*")] == ["lock"]
    state.close()


async def test_no_room_for_a_directory_is_a_failed_start(state: StateDir) -> None:
    """FAULTS F40."""
    state.close()
    with pytest.raises(BackendStartFailed, match="No directory for the backend"):
        await launcher(state).spawn()


async def test_a_launch_cancelled_in_use_stops_its_backend(state: StateDir) -> None:
    """CONVENTIONS: cancelled while used."""
    starts = launcher(state)
    pid = 0
    with anyio.CancelScope() as scope:
        async with starts.launch(Identity("r", "o", "k"), "label", NoUpstream(), Opening(b"{}")):
            (pid,) = (p.pid for p in psutil.Process().children())
            scope.cancel()
            await anyio.sleep_forever()
    assert not lives(pid)
    assert not psutil.pid_exists(pid)  # reaped
    state.close()
    assert os.listdir(state.root / "run") == []


# -- when nobody can look --------------------------------------------------------------------------


@asynccontextmanager
async def launching(
    state: StateDir, rung: str, *command: str, stop_grace: float = 0.1
) -> AsyncGenerator[StdioLauncher]:
    containment = chosen(rung, own_process=False)
    async with containment.running(state.instance):
        yield StdioLauncher(
            Template(command, cwd=None), state, containment, stop_grace=stop_grace, max_line=10**6
        )


async def spawned(starts: StdioLauncher) -> Child:
    """Start a backend that says a line once it is ready."""
    child = await starts.spawn()
    await until(lambda: bool(child._early))  # pyright: ignore[reportPrivateUsage]
    return child


def on_record(state: StateDir) -> list[str]:
    return sorted(path.name for path in state.instance.glob("*.json"))


HERE: Final = [rung for rung in RUNGS if not available()[rung]]

STUBBORN: Final = scripted(
    ignores=["SIGTERM"], start=[{"spawn": ["session"]}, {"log": "ready"}], **ON_EOF
)


@pytest.mark.parametrize("rung", HERE)
async def test_without_a_descriptor_a_backend_is_killed_and_stays_on_record(
    rung: str, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F40, I4: who embeds the proxy keeps none in reserve. What nobody could look for may
    be there yet."""
    monkeypatch.setattr(stdio, "TERM_GRACE", 0.1)
    monkeypatch.setattr(stdio, "LOOK_GRACE", 0.1)
    async with launching(
        state, rung, *scripted(ignores=["SIGTERM"], start=[{"log": ""}], **ON_EOF)
    ) as starts:
        other, child = await spawned(starts), await spawned(starts)
        with no_descriptors():
            await starts.stop(child)
        await until(lambda: processes_of(state.instance / "2") == [])
        assert on_record(state) == ["1.json", "2.json"]
        await starts.stop(other)
        assert on_record(state) == ["2.json"]
    state.close()


@pytest.mark.parametrize("rung", HERE)
async def test_a_tree_is_ended_as_soon_as_somebody_can_look(
    rung: str, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F40, I4: what detached itself, too."""
    monkeypatch.setattr(stdio, "TERM_GRACE", 0.1)
    monkeypatch.setattr(stdio, "LOOK_GRACE", NEVER)
    async with launching(state, rung, *STUBBORN) as starts:
        other, child = await spawned(starts), await spawned(starts)
        async with anyio.create_task_group() as tasks:
            with no_descriptors():
                tasks.start_soon(starts.stop, child)
                await until(lambda: child.has_exited)
        assert processes_of(state.instance / "2") == []
        assert on_record(state) == ["1.json"]
        await starts.stop(other)
    state.close()


@pytest.fixture
def hold() -> Generator[threading.Event]:
    """What holds up a thread, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_process_that_lets_nobody_look_at_it_holds_up_one_look(
    state: StateDir, hold: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS I4: reading the environment of one that hangs in the kernel does not return."""
    read = processes.mark_of
    held_up: list[int] = []

    def mark(pid: int) -> str:
        if pid == os.getpid():
            held_up.append(pid)
            hold.wait()
        return read(pid)

    monkeypatch.setattr(processes, "mark_of", mark)
    monkeypatch.setattr(processes, "LOOK_PATIENCE", 0.2)
    async with launching(state, "process-group", *STUBBORN) as starts:
        for _ in range(2):
            child = await spawned(starts)
            monkeypatch.setattr(stdio, "TERM_GRACE", 0.1)
            await starts.stop(child)
            assert processes_of(state.root) == []
            assert on_record(state) == []
    assert len(held_up) == 1
    state.close()


async def test_a_directory_that_cannot_be_removed_in_time_holds_up_nobody(
    state: StateDir, hold: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 10: a stop is bounded, also where a file server is gone."""
    monkeypatch.setattr(stdio, "REMOVE_PATIENCE", 0.1)

    def remove(directory: SessionDir) -> None:
        hold.wait()

    monkeypatch.setattr(SessionDir, "remove", remove)
    async with launching(state, "process-group", *SCRIPTED, stop_grace=NEVER) as starts:
        child = await starts.spawn()
        await starts.stop(child)
        assert not lives(child.pid)
    state.close()


class Blind:
    """A `Tree` of which nobody ever hears."""

    async def remember(self) -> None:
        await anyio.sleep_forever()

    async def signal(self, number: int) -> int:
        raise AssertionError

    def kill(self) -> None: ...

    def close(self) -> None: ...


class Blindly(Direct):
    """Starts what can be told of by its leader alone."""

    async def start(self, what: Expanded, directory: SessionDir) -> Contained:
        return replace(await super().start(what, directory), tree=Blind())


async def test_a_stop_that_comes_to_its_bound_holds_nothing(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS I5."""
    for grace in ("TERM_GRACE", "KILL_GRACE", "LOOK_GRACE"):
        monkeypatch.setattr(stdio, grace, 0.05)
    containment = Blindly(Groups(), own_process=False)
    starts = StdioLauncher(
        Template(SCRIPTED, cwd=None), state, containment, stop_grace=0, max_line=10**6
    )
    before = psutil.Process().num_fds()
    child = await starts.spawn()
    await starts.stop(child)
    assert psutil.Process().num_fds() == before
    await gone(child.pid)
    assert on_record(state) == ["1.json"]
    state.close()


async def test_a_spare_that_has_gone_mute_is_of_no_use(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 10: it can never answer, and would not tell that it has ended."""
    monkeypatch.setattr(stdio, "MUTE_GRACE", 0.05)
    command = scripted(start=[{"close": "stdout"}])
    async with launching(state, "process-group", *command) as starts:
        child = await starts.spawn()
        await until(lambda: child.has_exited)
        assert lives(child.pid)
        await starts.stop(child)
    state.close()


class NoUpstream:
    """An `Upstream` that takes everything and does nothing."""

    def ask(self, ask: Ask, exchange: Exchange | None) -> None: ...

    def withdraw(self, ask: Ask, params: Bytes | None) -> None: ...

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None: ...

    def hold(self, exchange: Exchange) -> None: ...

    def ended(self, how: Exit) -> None: ...

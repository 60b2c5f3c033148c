"""DESIGN 10: warm spares, spawned and not yet initialised."""

import logging
import os
import signal
from collections.abc import Generator, Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from sessionproxy.backends import Pool, StateDir, StdioLauncher, Template, pool
from sessionproxy.backends.containment.direct import Direct
from sessionproxy.backends.containment.groups import Groups
from sessionproxy.backends.stdio import Child
from tests.rig.embedded import (
    PYTHON,
    SCRIPTED,
    embedded,
    gone,
    lives,
    processes_of,
    scripted,
    until,
)
from tests.rig.http import connect


async def test_a_spare_that_died_is_replaced_and_never_given_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 10."""
    monkeypatch.setattr(pool, "LOOK", 0.05)
    monkeypatch.setattr(pool, "PAUSE", 0.05)
    async with embedded(warm=2) as proxy:
        await until(lambda: len(proxy.processes()) == 2)
        victims = proxy.processes()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(set(proxy.processes()) - set(victims)) == 2)
        await gone(*victims)
        async with connect(proxy.url) as client:
            assert (await client.do())["pid"] not in victims


async def test_a_spare_that_died_unseen_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 10: the next one is given out instead, and the client notices nothing."""
    monkeypatch.setattr(pool, "LOOK", 1000.0)
    async with embedded(warm=2) as proxy:
        await until(lambda: len(proxy.processes()) == 2)
        victim = min(proxy.processes())  # the oldest, which would be taken first
        os.kill(victim, signal.SIGKILL)
        await gone(victim)
        async with connect(proxy.url) as client:
            assert (await client.do())["pid"] != victim


async def test_what_a_spare_said_before_it_was_taken_is_not_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """DESIGN 5.3: early lines wait for their session."""
    caplog.set_level(logging.INFO, logger="sessionproxy.backend")
    command = scripted(start=[{"log": "early"}, {"stderr": ["said it"]}])
    async with embedded(command, warm=1) as proxy:
        await until(lambda: "said it" in caplog.text)
        async with connect(proxy.url) as client, client.listen() as stream:
            assert (await stream.message())["params"]["data"] == "early"


async def test_sessions_do_not_wait_for_spares() -> None:
    """DESIGN 10: where there is none, one is started."""
    async with embedded(warm=1) as proxy:
        async with (
            connect(proxy.url) as one,
            connect(proxy.url) as two,
            connect(proxy.url) as three,
        ):
            pids = {(await client.do())["pid"] for client in (one, two, three)}
        assert len(pids) == 3


async def test_spares_do_not_take_places() -> None:
    """`Pool`: they do not count against `max_sessions`."""
    async with embedded(warm=3, max_sessions=1) as proxy:
        await until(lambda: len(proxy.processes()) == 3)
        async with connect(proxy.url) as client:
            assert (await client.do())["count"] == 1


# -- a pool by itself ------------------------------------------------------------------------------

TURNS = 20
"""Of the event loop, during which a launcher that dawdles can be left."""


async def dawdle() -> None:
    with anyio.CancelScope(shield=True):
        for _ in range(TURNS):
            await anyio.lowlevel.checkpoint()


class Dawdling(StdioLauncher):
    """A launcher that takes its time, and tells what it has begun."""

    def __init__(self, command: Sequence[str], state: StateDir, *, cwd: str | None = None) -> None:
        containment = Direct(Groups(), own_process=False)
        template = Template(command, cwd=cwd)
        super().__init__(template, state, containment, stop_grace=1000, max_line=10**6)
        self.spawning = anyio.Event()
        self.stopping = anyio.Event()
        self.spawned = 0
        self.stopped: list[Child] = []

    async def spawn(self) -> Child:
        self.spawning.set()
        await dawdle()
        child = await super().spawn()
        self.spawned += 1
        return child

    async def stop(self, child: Child) -> None:
        self.stopped.append(child)
        self.stopping.set()
        await dawdle()
        await super().stop(child)


@pytest.fixture
def state(tmp_path: Path) -> Generator[StateDir]:
    opened = StateDir.open(tmp_path / "s")
    yield opened
    assert processes_of(tmp_path) == []
    assert list(opened.instance.iterdir()) == [opened.instance / "lock"]
    opened.close()


async def test_leaving_the_pool_stops_the_spares_that_were_not_taken(
    tmp_path: Path, state: StateDir
) -> None:
    """DESIGN 5.6."""
    launcher = Dawdling(SCRIPTED, state)
    async with Pool(launcher, 3) as spares:
        await until(lambda: len(spares) == 3)
        taken = spares.take()
        assert taken is not None
        pids = processes_of(tmp_path)
    assert [pid for pid in pids if lives(pid)] == [taken.pid]
    await launcher.stop(taken)


async def test_a_spare_that_is_being_stopped_when_the_pool_is_left_is_stopped_once(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.6: a service manager's SIGTERM goes to the spares, too. Twice would close pipes
    that are somebody else's by then."""
    monkeypatch.setattr(pool, "LOOK", 0.01)
    launcher = Dawdling(SCRIPTED, state)
    with anyio.fail_after(10):
        async with Pool(launcher, 2) as spares:
            await until(lambda: len(spares) == 2)
            for pid in processes_of(state.root):
                os.kill(pid, signal.SIGTERM)
            await launcher.stopping.wait()
    assert len(launcher.stopped) == len(set(map(id, launcher.stopped))) == launcher.spawned


async def test_a_spare_that_is_being_started_when_the_pool_is_left_is_stopped(
    state: StateDir,
) -> None:
    """DESIGN 5.2: a start is not interrupted, so its child is there afterwards."""
    launcher = Dawdling(SCRIPTED, state)
    with anyio.fail_after(10):
        async with Pool(launcher, 2):
            await launcher.spawning.wait()
    assert launcher.spawned == len(launcher.stopped) == 1


async def test_a_start_that_fails_is_tried_again_and_the_pool_lives_on(
    tmp_path: Path,
    state: StateDir,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """DESIGN 10: with a growing pause."""
    monkeypatch.setattr(pool, "PAUSE", 0.01)
    later = tmp_path / "later"
    command = [PYTHON, *SCRIPTED[1:]]
    launcher = Dawdling(command, state, cwd="{session.dir}/../../../../later")
    async with Pool(launcher, 1) as spares:
        await until(lambda: caplog.text.count("no warm spare") >= 2)
        assert len(spares) == 0
        assert spares.take() is None
        later.mkdir()
        await until(lambda: len(spares) == 1)


@pytest.mark.parametrize(
    ("longest", "expected"), [(20_000, [5_000, 10_000, 20_000, 20_000]), (0, [5_000] * 4)]
)
async def test_a_command_whose_spares_end_at_once_is_tried_again_ever_more_seldom(
    longest: float,
    expected: list[float],
    state: StateDir,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """DESIGN 10: it starts, where a namespace's shells stand between, and ends; the log says how.
    After a time without a failure, here none, the pause is the first again."""
    pauses: list[float] = []
    sleep = anyio.sleep

    async def note(seconds: float) -> None:
        if seconds < 5_000:
            return await sleep(seconds)
        pauses.append(seconds)
        if len(pauses) == len(expected):
            await anyio.sleep_forever()

    monkeypatch.setattr(anyio, "sleep", note)
    monkeypatch.setattr(pool, "LOOK", 0.01)
    monkeypatch.setattr(pool, "PAUSE", 5_000)
    monkeypatch.setattr(pool, "LONGEST_PAUSE", longest)
    async with Pool(Dawdling(["sh", "-c", "exit 7"], state), 2):
        await until(lambda: len(pauses) == len(expected))
    assert pauses == expected
    assert "a warm spare ended unused: <Child" in caplog.text
    assert "exit status 7>" in caplog.text

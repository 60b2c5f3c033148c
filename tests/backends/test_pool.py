"""DESIGN 10: warm spares, spawned and not yet initialised."""

import logging
import os
import signal
from pathlib import Path

import pytest

from sessionproxy.backends import Pool, StateDir, StdioLauncher, Template, pool
from sessionproxy.backends.containment.direct import Direct
from sessionproxy.backends.containment.groups import Groups
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


async def test_leaving_the_pool_stops_the_spares_that_were_not_taken(tmp_path: Path) -> None:
    """DESIGN 5.6."""
    state = StateDir.open(tmp_path / "s")
    launcher = StdioLauncher(
        Template(SCRIPTED),
        state,
        Direct(Groups(), own_process=False),
        stop_grace=1000,
        max_line=10**6,
    )
    async with Pool(launcher, 3) as spares:
        await until(lambda: len(spares) == 3)
        taken = spares.take()
        assert taken is not None
        pids = processes_of(tmp_path)
    assert [pid for pid in pids if lives(pid)] == [taken.pid]
    await launcher.stop(taken)
    assert processes_of(tmp_path) == []
    state.close()


async def test_a_start_that_fails_is_tried_again_and_the_pool_lives_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 10: with a growing pause."""
    monkeypatch.setattr(pool, "PAUSE", 0.05)
    later = tmp_path / "later"
    state = StateDir.open(tmp_path / "s")
    template = Template([PYTHON, *SCRIPTED[1:]], cwd="{session.dir}/../../../../later")
    launcher = StdioLauncher(
        template, state, Direct(Groups(), own_process=False), stop_grace=1000, max_line=10**6
    )
    async with Pool(launcher, 1) as spares:
        await until(lambda: not len(spares))
        assert spares.take() is None
        later.mkdir()
        await until(lambda: len(spares) == 1)
    assert processes_of(tmp_path) == []
    state.close()

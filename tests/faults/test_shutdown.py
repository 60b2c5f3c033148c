"""FAULTS F23, F24 and F25: a proxy that is told to end, is killed, or comes back.

Neighbours: `tests.test_serve` has signals without watch; `tests.backends.test_rungs` shows what
becomes of the processes of a killed proxy on every rung.
"""

import json
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import httpx2
import pytest

from tests.rig.embedded import SCRIPTED, gone, lives, processes_of, scripted, until
from tests.rig.http import PATIENCE, Client, Json, connect, http, request
from tests.rig.invariants import Watch, forged, watched_process
from tests.rig.proxy import Proxy, proxy

STUBBORN: Final = scripted(
    start=[{"stderr": ["up"]}], eof=[{"stderr": ["stays"]}, {"wait": "never"}], ignores=["SIGTERM"]
)
"""Heeds neither the end of its stdin nor SIGTERM, and says how far it is."""

SILENT: Final = scripted(eof=[{"wait": "never"}], ignores=["SIGTERM"])
"""Likewise, but says nothing: what writes to a stderr that nobody reads any more is ended by it."""


async def until_draining(watch: Watch[Proxy], pool: httpx2.AsyncClient) -> None:
    with anyio.fail_after(PATIENCE):
        while (await pool.get(f"{watch.proxy.base}/readyz")).status_code != 503:  # noqa: ASYNC110 - another process
            await anyio.sleep(0.01)


async def until_said(watch: Watch[Proxy], word: str, *, times: int) -> None:
    """Wait until backends have written a line to stderr so often."""
    await until(lambda: sum(line.endswith(f" {word}") for line in watch.proxy.log) >= times)


@asynccontextmanager
async def ending(command: tuple[str, ...], *options: str) -> AsyncGenerator[Watch[Proxy]]:
    """A proxy that has ended with status 0 when this is left, and left nothing."""
    async with watched_process(command, *options, bystander=False) as watch:
        yield watch
        assert await watch.proxy.wait(PATIENCE) == 0
        assert processes_of(watch.proxy.state_dir) == []
        assert list(watch.proxy.state_dir.glob("run/*")) == []


# -- draining --------------------------------------------------------------------------------------


async def test_a_drain_lets_what_runs_finish_and_takes_nothing_new() -> None:
    """FAULTS F23: idle and busy sessions. Readiness goes at once, and no stream is cut off."""
    found: list[Json] = []
    command = scripted(on={"notifications/go": [{"release": "go"}]})
    async with ending(command, "--drain-timeout", "1000") as watch, http() as pool:
        async with watch.client("one") as one, watch.client("two") as two:
            async with watch.client("idle") as idle, watch.client("new", opens=False) as new:
                async with two.listen() as stream, idle.listen() as idle_stream:

                    async def call() -> None:
                        found.append(await one.do({"wait": "go"}, echo="in JSON"))

                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(call)
                        steps = ({"log": ""}, {"ask": {"method": "roots/list"}})
                        async with two.doing(*steps, echo="in a stream") as incoming:
                            ask = await incoming.until("roots/list")
                            watch.proxy.signal(signal.SIGTERM)
                            await until_draining(watch, pool)
                            assert (await new.initialize()).status_code == 503
                            assert (await idle.post(request("x/y"))).status_code == 503
                            # What runs is still heard, and answered.
                            await two.respond(ask["id"], result={"roots": []})
                            answer = await incoming.answer()
                            found.append(answer["result"]["structuredContent"])
                            assert await incoming.rest() == []
                        await one.notify("notifications/go")
                    # A connection that is cut off, and not ended by a final chunk, raises.
                    assert await stream.rest() == []
                    assert await idle_stream.rest() == []
    assert {answer["echo"] for answer in found} == {"in JSON", "in a stream"}


PATIENT: Final = ("--drain-timeout", "1000", "--stop-grace", "1000")


async def test_a_second_signal_cuts_short_what_is_in_flight() -> None:
    """FAULTS F23: a second SIGTERM is now."""
    async with ending(STUBBORN, *PATIENT) as watch, http() as pool:
        async with watch.client("alice") as alice:
            async with alice.doing({"log": ""}, {"wait": "never"}) as incoming:
                await incoming.message()
                watch.proxy.signal(signal.SIGTERM)
                await until_draining(watch, pool)
                watch.proxy.signal(signal.SIGTERM)
                assert "error" in await incoming.answer()


async def test_a_second_signal_cuts_short_the_stopping_of_backends() -> None:
    """FAULTS F23: those that heed nothing are killed, with all they have started."""
    async with ending(STUBBORN, *PATIENT) as watch, watch.client("alice") as alice:
        await alice.do({"spawn": []}, {"spawn": ["session"]})
        watch.proxy.signal(signal.SIGTERM)
        await until_said(watch, "stays", times=1)
        watch.proxy.signal(signal.SIGTERM)


async def test_a_second_signal_cuts_short_the_stopping_of_warm_spares() -> None:
    """FAULTS F23: they are stopped last, when every session is gone."""
    async with ending(STUBBORN, *PATIENT, "--warm", "2") as watch:
        await until_said(watch, "up", times=2)
        watch.proxy.signal(signal.SIGTERM)
        await until_said(watch, "stays", times=2)
        watch.proxy.signal(signal.SIGTERM)


# -- coming back -----------------------------------------------------------------------------------


async def test_a_restart_sweeps_what_the_journal_tells_of(tmp_path: Path) -> None:
    """FAULTS F24: within 5 s, what a killed proxy left on the lowest rung; and that alone."""
    state, lowest = tmp_path / "s", ("--containment", "process-group")
    async with AsyncExitStack() as before:
        lasting = await before.enter_async_context(proxy(SCRIPTED, *lowest, state_dir=state))
        carol = await before.enter_async_context(connect(lasting.url))
        kept = await carol.do()
        async with proxy(SILENT, *lowest, state_dir=state) as killed:
            async with connect(killed.url) as alice, connect(killed.url) as bob:
                left = [await client.do({"spawn": ["session"]}) for client in (alice, bob)]
            killed.signal(signal.SIGKILL)
            await killed.wait(PATIENCE)
        pids = [pid for found in left for pid in (found["pid"], *found["children"])]
        assert all(map(lives, pids))
        tear_record(state, left[1]["pid"])
        async with watched_process(SCRIPTED, *lowest, state_dir=state) as watch:
            with anyio.fail_after(5 * 5):
                await gone(*pids)
                await until(lambda: any("swept" in line for line in watch.proxy.log))
            assert len(list(state.glob("run/*"))) == 2
            assert (await carol.do())["pid"] == kept["pid"]
            await before.aclose()


def tear_record(state: Path, pid: int) -> None:
    """Leave half a record of a backend, as a full disk or a power cut may."""
    (record,) = (p for p in state.glob("run/*/*.json") if json.loads(p.read_text())["pid"] == pid)
    record.write_text(record.read_text()[:20])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_an_id_from_before_a_restart_is_unknown(
    number: signal.Signals, tmp_path: Path
) -> None:
    """FAULTS F25: 404, as of any id that never was; the client re-initialises.

    That sessions outlive a restart (`persist_sessions`) is for later.
    """
    state = tmp_path / "s"
    async with watched_process(bystander=False, state_dir=state) as watch:
        async with watch.client("alice") as alice:
            await alice.do()
        watch.proxy.signal(number)
        await watch.proxy.wait(PATIENCE)
    async with watched_process(bystander=False, state_dir=state) as watch, http() as pool:
        answers: set[tuple[int, bytes]] = set()
        for key in (alice.id, forged(alice.id)):
            client = Client(pool, watch.proxy.url)
            client.id = key
            with anyio.fail_after(5 * 1):
                for response in (
                    await client.post(request("x/y")),
                    await client.delete(),
                    await client.send("GET"),
                ):
                    answers.add((response.status_code, response.content))
        assert len(answers) == 1
        assert next(iter(answers))[0] == 404
        async with watch.client("alice") as alice:
            assert (await alice.do())["count"] == 1

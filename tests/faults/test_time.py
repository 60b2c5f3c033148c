"""FAULTS F41, F42 and F43: clocks that are set, and times in which nothing runs.

Each on a proxy in a process of its own. Limits are turned down to a second or two, and what is
awaited are answers. Neighbours: `tests.core.test_pauses` shows every limit on virtual time.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import anyio
import pytest

from tests.rig.embedded import SCRIPTED, until
from tests.rig.history import FAULT
from tests.rig.http import Json, calling
from tests.rig.invariants import Watch, watched_process
from tests.rig.limits import Stalls, WallClock, stopped
from tests.rig.proxy import Proxy
from tests.rig.recorded import Recorded
from tests.rig.recorded_modern import FORM, RecordedModern, retry

LIMIT: Final = 2.0
"""Seconds of the limits that are turned down."""

PAUSE: Final = LIMIT + 1.5
"""Seconds in which nothing runs."""

LIMITS: Final = ("--idle", str(LIMIT), "--linger", str(LIMIT), "--call-timeout", str(LIMIT))


async def fault_of_a_call(client: Recorded) -> str:
    """Return what kind of fault a call gets; empty where it gets none."""
    answer = await client.request("tools/call", calling())
    fault: Json = answer["result"].get("_meta", {}).get(FAULT, {})
    return fault.get("kind", "")


async def until_its_backend_was_idle(client: Recorded) -> None:
    """Leave a session alone, for longer each time, until its client is told of the loss."""
    pause = LIMIT
    with anyio.fail_after(5 * 2 * LIMIT):
        while await fault_of_a_call(client) != "state_lost":
            await anyio.sleep(pause)
            pause += LIMIT / 2


# -- the wall clock --------------------------------------------------------------------------------

SETTINGS: Final = {
    "+1h": timedelta(hours=1),
    "-1h": timedelta(hours=-1),
    "+10y": timedelta(days=3650),
    "-10y": timedelta(days=-3650),
}


@pytest.mark.faketime
async def test_a_wall_clock_that_is_set_changes_nothing(tmp_path: Path) -> None:
    """FAULTS F41: no session is reaped by it, and none is immortal: all timers are monotonic."""
    clock = WallClock(tmp_path)
    running = watched_process(SCRIPTED, *LIMITS, environment=clock.environment)
    async with running as watch, watch.client("alice") as alice:
        for by in SETTINGS:
            clock.set(by)
            await until_its_answers_are_dated(watch, alice, SETTINGS[by])
            assert await fault_of_a_call(alice) == ""
        await until_its_backend_was_idle(alice)


@pytest.mark.faketime
async def test_a_state_is_good_by_the_wall_clock(tmp_path: Path) -> None:
    """FAULTS F41: `requestState` obeys it, since it may outlive the proxy; what waits for it does
    not, so the call goes on when the clock is right again."""
    clock = WallClock(tmp_path)
    running = watched_process(
        SCRIPTED, "--idle", str(LIMIT), environment=clock.environment, bystander=False
    )
    async with running as watch, watch.modern("alice") as alice:
        entry, params, asked = await alice.parked({"ask": FORM})
        for by in ("+1h", "+10y"):
            clock.set(by)
            await until_its_answers_are_dated(watch, alice, SETTINGS[by])
            response = await alice.post("tools/call", retry(params, asked))
            assert (response.status_code, response.json()["error"]["code"]) == (400, -32602)
        clock.set("+0h")
        await until_its_answers_are_dated(watch, alice, timedelta())
        _, message = await alice.once(entry, retry(params, asked))
        assert message["result"]["structuredContent"]["count"] == 1


async def until_its_answers_are_dated(
    watch: Watch[Proxy], client: Recorded | RecordedModern, shift: timedelta
) -> None:
    """Wait until the proxy takes the time for what it was set to: else nothing was injected."""
    with anyio.fail_after(5 * 1):
        while True:
            answer = await client.http.get(f"{watch.proxy.base}/healthz")
            seen = parsedate_to_datetime(answer.headers["date"]) - datetime.now(UTC)
            if abs(seen - shift) <= max(abs(shift) / 10, timedelta(seconds=5)):
                return
            await anyio.sleep(0.1)


# -- a process that does not run -------------------------------------------------------------------


async def test_after_a_pause_no_session_is_reaped_and_no_call_has_timed_out() -> None:
    """FAULTS F42: on resume no mass reap: the grace is as long as the pause."""
    async with watched_process(SCRIPTED, *LIMITS) as watch, watch.client("alice") as alice:
        async with watch.client("bob") as bob, watch.client("carol") as carol:
            await bob.do()
            async with carol.listen():
                await carol.do()  # and leaves her stream: `linger` runs
            async with alice.doing({"log": ""}, {"wait": "go"}, echo="held") as held:
                await held.message()
                async with stopped(watch.proxy, PAUSE):
                    pass
                await alice.do({"release": "go"})
                answer = await held.answer()
                assert answer["result"]["structuredContent"]["echo"] == "held"
            assert await fault_of_a_call(bob) == ""
            assert await fault_of_a_call(carol) == ""
        assert await stalls(watch) == 0  # it was stopped: there is nothing to be found


async def stalls(watch: Watch[Proxy]) -> int:
    """As `/readyz` shows it."""
    async with watch.client("monitor", opens=False) as client:
        return (await client.http.get(f"{watch.proxy.base}/readyz")).json()["stalls"]


async def test_an_event_loop_that_stands_still_is_told_and_times_nobody_out(tmp_path: Path) -> None:
    """FAULTS F43: a metric and a stack dump; deadlines are extended by the stall."""
    still = Stalls(tmp_path, seconds=PAUSE)
    running = watched_process(SCRIPTED, *LIMITS, environment=still.environment)
    async with running as watch, watch.client("alice") as alice, watch.client("bob") as bob:
        await bob.do()
        assert await stalls(watch) == 0
        async with alice.doing({"log": ""}, {"wait": "go"}, echo="held") as held:
            await held.message()
            still.stall(watch.proxy)
            await until(lambda: any("stand_still" in line for line in watch.proxy.log))
            await alice.do({"release": "go"})
            answer = await held.answer()
            assert answer["result"]["structuredContent"]["echo"] == "held"
        assert await fault_of_a_call(bob) == ""
        assert await stalls(watch) == 1
        told = [line for line in watch.proxy.log if "the event loop stands still" in line]
        assert len(told) == 1

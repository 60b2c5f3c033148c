"""What is held by several: opened once, closed with the last, whatever happens in between."""

import asyncio  # noqa: TID251 - event loops are what some of these are about
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import msgspec
import pytest

from sessionproxy import (
    ConfigError,
    HandlerContext,
    ProxyClient,
    StatefulProxyClient,
)
from sessionproxy.client.runtime import GROUNDS, Held, common_ground
from sessionproxy.config import settings_from
from sessionproxy.core.background import Background
from sessionproxy.core.reach import REACH, Reach, Scope
from sessionproxy.errors import BackendGone, ProxyError
from sessionproxy.ground import Ground
from tests.rig.embedded import gone, processes_of, scripted, until


class Opened:
    """Counts how often it was opened and closed; may wait, and fail."""

    def __init__(self) -> None:
        self.opened = self.closed = 0
        self.go = anyio.Event()
        self.failure: Exception | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[str]:
        self.opened += 1
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        try:
            yield f"life {self.opened}"
        finally:
            await asyncio.sleep(0)
            self.closed += 1


async def test_all_who_enter_at_once_share_one_opening_and_the_last_closes_it() -> None:
    """PARITY 65."""
    what = Opened()
    held = Held(what.open)
    values: list[str] = []

    async def use() -> None:
        values.append(await held.enter())
        await held.leave()

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(use)
        await anyio.wait_all_tasks_blocked()
        what.go.set()
    assert set(values) == {"life 1"}
    assert (what.opened, what.closed, held.holds, held.value) == (1, 1, 0, None)


async def test_a_failed_opening_fails_all_who_wait_and_the_next_tries_again() -> None:
    """PARITY 65: failing opens."""
    what = Opened()
    what.failure = BackendGone("no")
    what.go.set()
    held = Held(what.open)
    for _ in range(2):
        with pytest.raises(BackendGone):
            await held.enter()
    what.failure = None
    assert await held.enter() == "life 3"
    await held.leave()
    assert held.holds == 0


async def test_an_opening_that_is_cancelled_is_cut_off_unless_another_waits_for_it() -> None:
    """PARITY 65: cancelled while opening."""
    what = Opened()
    held = Held(what.open)
    with anyio.move_on_after(0.05):
        await held.enter()
    assert held.holds == 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(held.enter)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.05):
            await held.enter()
        what.go.set()
    assert (what.opened, held.value) == (2, "life 2")
    await held.leave()
    assert held.value is None


async def test_what_is_ended_under_its_holders_is_opened_anew_by_the_next() -> None:
    """PARITY 62: holders leave as they would have."""
    what = Opened()
    what.go.set()
    held = Held(what.open)
    await held.enter()
    await held.end()
    assert held.value is None
    assert await held.enter() == "life 2"
    await held.leave()
    assert held.value == "life 2"
    await held.leave()
    assert held.value is None
    with pytest.raises(RuntimeError, match="more often"):
        await held.leave()


async def test_it_may_be_left_in_another_task_than_entered(tmp_path: Path) -> None:
    """PARITY 65: exit in another task than entry; use after exit."""
    state = tmp_path / "s"
    client = ProxyClient(scripted(), state_dir=str(state), containment="guardian")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.__aenter__)
    pid = (await client.call_tool("do")).structured_content
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.__aexit__)
    assert pid is not None
    await gone(pid["pid"])
    with pytest.raises(BackendGone):
        await client.call_tool("do")


async def test_a_client_that_cannot_connect_leaves_nothing_and_can_be_entered_again(
    tmp_path: Path,
) -> None:
    """PARITY 65: a server that dies at once, one that never answers."""
    state = tmp_path / "s"
    dies = scripted(start=[{"exit": 3}])
    client = ProxyClient(dies, state_dir=str(state), containment="guardian")
    for _ in range(2):
        with pytest.raises(ProxyError):
            await client.__aenter__()
    silent = scripted(initialize=[{"wait": "ever"}])
    client = ProxyClient(silent, state_dir=str(state), containment="guardian")
    with anyio.fail_after(10):
        with anyio.move_on_after(1):
            await client.__aenter__()
    assert not client.is_connected
    await until(lambda: processes_of(state) == [])
    assert [task.get_name() for task in asyncio.all_tasks() if "Life" in repr(task)] == []


def test_one_client_is_used_in_one_event_loop_after_the_other(tmp_path: Path) -> None:
    """PARITY 65: what was opened in a loop that has ended is not used in the next."""
    state = tmp_path / "s"
    client = ProxyClient(scripted(), state_dir=str(state), containment="guardian")

    async def use() -> int:
        async with client:
            return (await client.call_tool("do")).structured_content["count"]

    assert asyncio.run(use()) == 1
    assert asyncio.run(use()) == 1
    assert processes_of(state) == []


async def test_a_handler_that_disconnects_its_own_client_is_cancelled_by_that(
    tmp_path: Path,
) -> None:
    """DESIGN 5.3: it belongs to what it waits for the end of."""
    came: list[str] = []

    async def roots(context: HandlerContext) -> types.ListRootsResult:
        came.append("asked")
        try:
            await stateful.clear()
        finally:
            came.append("over")
        return types.ListRootsResult(roots=[])

    settings: dict[str, Any] = {"state_dir": str(tmp_path / "s"), "containment": "guardian"}
    stateful = StatefulProxyClient(scripted(), roots_handler=roots, **settings)
    with anyio.fail_after(30):
        async with Scope() as scope:
            client = scope.kept("it", lambda: _bound(stateful, scope))
            async with client:
                with pytest.raises(ProxyError):
                    await client.call_tool("do", {"steps": [{"ask": {"method": "roots/list"}}]})
                async with client:
                    assert (await client.call_tool("do")).structured_content is not None
            assert came == ["asked", "over"]
    await until(lambda: processes_of(tmp_path / "s") == [])


def _bound(client: StatefulProxyClient, scope: Scope) -> Any:  # noqa: ANN401 - it has no public name
    exchange: Any = None
    upstream: Any = None
    context = copy_context()
    context.run(REACH.set, Reach(upstream, exchange, scope))
    return context.run(client.new_stateful)


async def test_who_belongs_to_what_it_is_the_last_to_leave_does_not_wait_for_ever() -> None:
    """DESIGN 5.3: a handler that uses its own client, whose user has gone meanwhile."""

    @asynccontextmanager
    async def open_() -> AsyncGenerator[Background]:
        async with Background() as background:
            yield background

    held = Held(open_)
    entered, go_on = anyio.Event(), anyio.Event()

    async def handle() -> None:
        await held.enter()
        entered.set()
        await go_on.wait()
        await held.leave()

    background = await held.enter()
    background.start(handle)
    await entered.wait()
    await held.leave()
    assert held.value is background
    go_on.set()
    await until(lambda: held.value is None)


async def test_a_task_that_is_cancelled_by_what_it_waits_for_ends_alone() -> None:
    """DESIGN 5.1: a task group would end with it, and with that all sessions."""
    ended: list[str] = []

    async def waits() -> None:
        never = asyncio.get_running_loop().create_future()
        never.cancel()
        try:
            await never
        finally:
            ended.append("alone")

    async def goes_on() -> None:
        try:
            await anyio.sleep(3600)
        except asyncio.CancelledError:
            ended.append("with the group")
            raise

    async with Background() as background:
        background.start(goes_on)
        background.start(waits)
        await until(lambda: "alone" in ended)
        await anyio.wait_all_tasks_blocked()
        ended.append("nothing else")
    assert ended == ["alone", "nothing else", "with the group"]


async def test_one_who_comes_while_it_is_closed_holds_what_others_find(tmp_path: Path) -> None:
    """DESIGN 5.1: one ground for all clients of a process, whatever closes and opens at once."""
    settings = settings_from(
        {"state_dir": str(tmp_path / "s"), "containment": "guardian"}, named="{}"
    )
    before = set(GROUNDS)
    found: list[Ground] = []
    first, last = common_ground(settings), anyio.Event()

    async def stand() -> None:
        async with common_ground(settings) as ground:
            found.append(ground)
            await last.wait()

    await first.__aenter__()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.__aexit__, None, None, None)
        await asyncio.sleep(0)  # it is being closed
        tasks.start_soon(stand)
        await until(lambda: len(found) == 1)
        tasks.start_soon(stand)
        await until(lambda: len(found) == 2)
        last.set()
    assert found[0] is found[1]
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    with pytest.raises(ConfigError):
        async with common_ground(msgspec.structs.replace(settings, state_dir=str(loose))):
            pytest.fail("it cannot be had")
    assert set(GROUNDS) == before


async def test_a_copy_that_is_made_after_its_session_lasts_while_it_is_used(tmp_path: Path) -> None:
    """DESIGN 5.6: by a task that a hook has left behind; nobody would ever disconnect it."""
    stateful = StatefulProxyClient(scripted(), state_dir=str(tmp_path / "s"))
    async with Scope() as scope:
        before = _bound(stateful, scope)
    assert _bound(stateful, scope) is not before
    async with _bound(stateful, scope) as late:
        await late.ping()
    assert not late.is_connected

"""The server that the proxy was made for: Playwright's, with a real browser for every user.

Neighbours: `tests.rig.browsers` starts it as users do; `test_bindings` has what tells conversations
apart that have no session.
"""

import base64
import re
import signal
import struct
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import mcp_types as types
import pytest
from anyio.streams.text import TextReceiveStream
from mcp import Client

from tests.rig.browsers import ALL_KINDS, PATIENCE, Machine, browsers, kinds, pages, profiles
from tests.rig.proxy import ROOT, Proxy

pytestmark = [pytest.mark.browser, pytest.mark.timeout(150)]

VANISHING_CLIENT: Final = ROOT / "tests/clients/vanishing_client.py"


@pytest.fixture
def site() -> Generator[str]:
    """The URL under which the pages are served."""
    with pages() as url:
        yield url


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


class User:
    """Somebody with a client and a name, who reads pages as a model does."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self._client = client

    async def call(self, tool: str, **arguments: object) -> types.CallToolResult:
        with anyio.fail_after(PATIENCE):
            result = await self._client.call_tool(tool, arguments)
        assert not result.is_error, result
        return result

    async def snapshot(self) -> str:
        result = await self.call("browser_snapshot")
        (block,) = result.content
        assert isinstance(block, types.TextContent)
        return block.text

    async def element(self, described: str) -> str:
        """Return the reference of the element that the snapshot describes so."""
        snapshot = await self.snapshot()
        found = re.search(rf"{re.escape(described)}.*\[ref=(\w+)\]", snapshot)
        assert found is not None, snapshot
        return found[1]

    async def open(self, site: str) -> None:
        await self.call("browser_navigate", url=f"{site}/{self.name}")

    async def screenshot(self) -> bytes:
        result = await self.call("browser_take_screenshot", type="png", scale="css")
        (image,) = (block for block in result.content if isinstance(block, types.ImageContent))
        assert image.mime_type == "image/png"
        return base64.b64decode(image.data, validate=True)


@asynccontextmanager
async def user(running: Proxy, name: str) -> AsyncGenerator[User]:
    async with Client(running.url, mode="legacy") as client:
        yield User(name, client)


# -- two users -------------------------------------------------------------------------------------


async def test_two_users_at_once_have_a_browser_each(site: str, machine: Machine) -> None:
    """FastMCP's recipe showed user B the page of user A (DESIGN section 1). Here B begins with a
    blank page, both work at once on one origin, and neither sees what the other typed."""
    shots: dict[str, bytes] = {}
    async with browsers(machine) as (running, _), user(running, "alice") as alice:
        await alice.open(site)
        assert "Page of alice" in await alice.snapshot()
        async with user(running, "bob") as bob:
            first = await bob.snapshot()
            assert "Page URL: about:blank" in first
            assert "alice" not in first

            async def work(one: User) -> None:
                await one.open(site)
                assert "cookies: . stored: ." in await one.snapshot()
                box = await one.element('textbox "Name"')
                await one.call("browser_type", target=box, text=one.name)
                await one.call("browser_click", target=await one.element('button "Greet"'))
                shots[one.name] = await one.screenshot()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work, alice)
                tasks.start_soon(work, bob)

            for one in (alice, bob):
                snapshot = await one.snapshot()
                assert f"Page Title: Page of {one.name}" in snapshot
                assert f"Hello, {one.name}! Click 1." in snapshot
                assert f"cookies: {one.name}=cookie. stored: {one.name}=stored." in snapshot
    for shot in shots.values():
        assert shot.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", shot[16:24])
        assert width >= 100
        assert height >= 100
        assert shot.endswith(b"IEND\xaeB`\x82")
    assert shots["alice"] != shots["bob"]


async def test_a_page_keeps_its_state_over_ten_calls(site: str, machine: Machine) -> None:
    """Every call reaches the browser that the one before left."""
    async with browsers(machine) as (running, _), user(running, "alice") as alice:
        await alice.open(site)
        box = await alice.element('textbox "Name"')
        await alice.call("browser_type", target=box, text="alice")
        button = await alice.element('button "Greet"')
        for n in range(1, 11):
            await alice.call("browser_click", target=button)
            assert f"Hello, alice! Click {n}." in await alice.snapshot()


# -- when it is over -------------------------------------------------------------------------------


async def test_nothing_is_left_of_a_user_who_leaves_and_the_other_goes_on(
    site: str, machine: Machine
) -> None:
    """DESIGN section 5, 6, after DELETE: which the client sends when it closes."""
    async with browsers(machine) as (running, census), user(running, "alice") as alice:
        await alice.open(site)
        (of_alice,) = census.look()
        async with user(running, "bob") as bob:
            await bob.open(site)
            (of_bob,) = census.look().keys() - {of_alice}
            assert kinds(census.look()[of_bob]) == ALL_KINDS
        await census.gone(of_bob, within=30)
        assert census.directories() == [of_alice]
        assert kinds(census.look()[of_alice]) == ALL_KINDS
        assert "Page of alice" in await alice.snapshot()
    await census.gone(within=30)
    assert machine.profiles() == []


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(("--idle", "5"), id="idle"),
        pytest.param(("--idle", "0", "--linger", "5"), id="linger"),
    ],
)
async def test_nothing_is_left_of_a_client_that_vanishes(
    site: str, machine: Machine, limits: tuple[str, ...]
) -> None:
    """DESIGN section 5, 6, after idle and after disconnect: the client is killed, no DELETE."""
    async with browsers(machine, *limits) as (running, census):
        command = [sys.executable, str(VANISHING_CLIENT), running.url, f"{site}/alice"]
        async with await anyio.open_process(command, stderr=None) as client:
            try:
                assert client.stdout is not None
                with anyio.fail_after(PATIENCE):
                    assert await TextReceiveStream(client.stdout).receive() == "there\n"
                (its_own,) = census.look()
                assert kinds(census.look()[its_own]) == ALL_KINDS
                assert len(profiles(its_own)) == 1
            finally:
                client.kill()
        await census.gone(its_own, within=60)
        assert running.process.poll() is None
    assert machine.profiles() == []


async def test_nothing_is_left_when_the_proxy_is_told_to_end(site: str, machine: Machine) -> None:
    """DESIGN section 5, 6, after SIGTERM of the proxy: with two users who have a page open."""
    async with (
        browsers(machine) as (running, census),
        user(running, "alice") as alice,
        user(running, "bob") as bob,
    ):
        await alice.open(site)
        await bob.open(site)
        found = census.look()
        assert [kinds(processes) for processes in found.values()] == [ALL_KINDS, ALL_KINDS]
        assert [len(profiles(directory)) for directory in found] == [1, 1]
        running.signal(signal.SIGTERM)
        assert await running.wait(PATIENCE) == 0
        await census.gone(within=5)  # seconds for init to reap what had lost its parents
    assert machine.profiles() == []
    assert list(machine.tmp.iterdir()) == []

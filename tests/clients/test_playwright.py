"""The server that the proxy was made for: Playwright's, with a real browser for every user.

`npx` starts it as users do, from the packages of `tests/node`, in front of Debian's Chromium;
nothing is fetched and no page is asked for but the ones served here on loopback.
"""

import base64
import os
import re
import shutil
import signal
import struct
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import anyio
import mcp_types as types
import psutil
import pytest
from anyio.streams.text import TextReceiveStream
from mcp import Client

from tests.rig.processes import Census
from tests.rig.proxy import ROOT, Proxy, proxy

pytestmark = [pytest.mark.browser, pytest.mark.timeout(150)]

PATIENCE: Final = 60.0
"""Seconds for anything that a browser does, its start included, on a busy machine too."""

VANISHING_CLIENT: Final = ROOT / "tests/clients/vanishing_client.py"

PAGE: Final = """<!doctype html>
<title>Page of {user}</title>
<h1>Page of {user}</h1>
<form onsubmit="greet(); return false">
  <label>Name <input id="name"></label>
  <button>Greet</button>
</form>
<p role="status" id="said"></p>
<p id="kept"></p>
<script>
  let clicks = 0
  const element = (id) => document.getElementById(id)
  const show = () => {{
    const stored = Object.entries(localStorage).map((pair) => pair.join("=")).join("; ")
    element("kept").textContent = `cookies: ${{document.cookie}}. stored: ${{stored}}.`
  }}
  const greet = () => {{
    const name = element("name").value
    document.cookie = `${{name}}=cookie; max-age=600`
    localStorage.setItem(name, "stored")
    clicks += 1
    element("said").textContent = `Hello, ${{name}}! Click ${{clicks}}.`
    show()
  }}
  show()
</script>
"""
"""A form, and what the browser keeps for its origin: the same one for all users."""


# -- what stands around ----------------------------------------------------------------------------


class Pages(BaseHTTPRequestHandler):
    """`/alice` is the page of alice."""

    def do_GET(self) -> None:
        found = re.fullmatch(r"/([a-z]+)", self.path)
        body = PAGE.format(user=found[1]).encode() if found else b""
        self.send_response(200 if found else 404)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Generator[str]:
    """The URL under which the pages are served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class Machine:
    """What a test may look at beside the proxy: its own temporary directory and home."""

    def __init__(self, root: Path) -> None:
        self.tmp = root / "tmp"
        self.home = root / "home"
        self.tmp.mkdir()
        self.home.mkdir()

    def profiles(self) -> list[Path]:
        return profiles(self.tmp, self.home)


def profiles(*places: Path) -> list[Path]:
    """Return what looks like a browser's profile anywhere below: each has a `Local State`."""
    return [path.parent for place in places for path in place.rglob("Local State")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@asynccontextmanager
async def browsers(machine: Machine, *options: str) -> AsyncGenerator[tuple[Proxy, Census]]:
    """A proxy in front of Playwright's server, as its users start it, and a census of its sessions.

    `--prefix` is where npx finds the package, and with `npm_config_offline` the only place. Under
    `--prefix` it knows the command's name only (`npx -y @playwright/mcp` ends with 127, not found);
    the processes are the same. Chromium's sandbox does not work for root.
    """
    chromium = shutil.which("chromium")
    assert chromium is not None
    command = ["npx", "--prefix", str(ROOT / "tests/node"), "-y", "playwright-mcp"]
    command += ["--headless", "--isolated", "--executable-path", chromium]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    options = ("--cwd", "{session.dir}", "--env", "npm_config_offline=true", *options)
    env = {"TMPDIR": str(machine.tmp), "HOME": str(machine.home)}
    async with proxy(command, *options, env=env) as running:
        yield running, Census(running.state_dir)


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


def kinds(processes: list[psutil.Process]) -> set[str]:
    """Return which of the pieces of a running Playwright are among them."""
    told = [" ".join(process.cmdline()) for process in processes]
    marks = {
        "npx": r"npm exec playwright-mcp",
        "shell": r"(\S*/)?sh -c ",
        "server": r"(\S*/)?node \S*playwright-mcp",
        "browser": r"\S*/chromium (?!.*--type=)",
        "renderer": r"\S*/chromium .*--type=renderer",
    }
    return {kind for kind, mark in marks.items() if any(re.match(mark, line) for line in told)}


ALL_KINDS: Final = {"npx", "shell", "server", "browser", "renderer"}


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

"""Playwright's server in its own HTTP mode, behind `sessionproxy run --url`.

It pings every session every three seconds, over the GET stream, and ends one that has not answered
after five; a page ends with its session. Neighbours: `tests.rig.browsers`.
"""

import os
import re
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import anyio
import mcp_types as types
import psutil
import pytest
from mcp import Client

from tests.rig.browsers import PATIENCE, Machine, pages, playwright
from tests.rig.proxy import proxy

pytestmark = [pytest.mark.browser, pytest.mark.timeout(150)]

PING_LIMIT: Final = 5.0
PING_EVERY: Final = 3.0
"""Seconds, as in version 0.0.83: a session that answers none is gone after their sum."""

ENDING: Final = 10.0
"""Seconds for the server's processes to end once they are told to."""


@pytest.fixture
def machine() -> Generator[Machine]:
    """Below a short path: the browser has sockets there."""
    with TemporaryDirectory(prefix="sp-") as root:
        yield Machine(Path(root))


class Elsewhere:
    """A running server, and what it says of itself."""

    def __init__(self, said: Path) -> None:
        self._said = said

    async def url(self) -> str:
        """Return its endpoint, once it listens."""
        await self._until(lambda: '/mcp"' in self._said.read_text())
        (url,) = re.findall(r'"(http://localhost:\d+/mcp)"', self._said.read_text())
        return url

    @property
    def sessions(self) -> int:
        """How many it has."""
        said = self._said.read_text()
        return said.count("create http session") - said.count("delete http session")

    async def has(self, sessions: int) -> None:
        """Wait until it has so many."""
        await self._until(lambda: self.sessions == sessions)

    async def _until(self, true: Callable[[], bool]) -> None:
        with anyio.fail_after(PATIENCE):
            while not true():  # noqa: ASYNC110 - a file tells nobody
                await anyio.sleep(0.05)


@asynccontextmanager
async def elsewhere(machine: Machine) -> AsyncGenerator[Elsewhere]:
    own = {"npm_config_offline": "true", "TMPDIR": str(machine.tmp), "HOME": str(machine.home)}
    said = machine.home / "said"
    with said.open("w") as output:
        process = psutil.Popen(
            [*playwright(), "--port", "0"],
            env={**os.environ, **own, "DEBUG": "pw:mcp:test"},
            cwd=machine.home,
            stdout=output,
            stderr=output,
        )
    try:
        yield Elsewhere(said)
    finally:
        tree = [process, *process.children(recursive=True)]
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(tree, timeout=ENDING)[1]:
            one.kill()


async def text_of(client: Client, tool: str, **arguments: object) -> str:
    with anyio.fail_after(PATIENCE):
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    return "".join(block.text for block in result.content if isinstance(block, types.TextContent))


async def test_an_idle_page_is_kept_and_gone_with_its_session(machine: Machine) -> None:
    """DESIGN 10: a GET stream is held and pings are answered; the upstream is told of the end, and
    of that session's alone. Clients of both eras have a page each."""
    async with elsewhere(machine) as server:
        with pages() as site:
            async with proxy((), "--url", await server.url()) as running:
                async with Client(running.url, mode="auto") as bob:
                    await text_of(bob, "browser_navigate", url=f"{site}/bob")
                    async with Client(running.url, mode="legacy") as alice:
                        await text_of(alice, "browser_navigate", url=f"{site}/alice")
                        await anyio.sleep(PING_LIMIT + PING_EVERY + 1)  # which is the subject
                        assert "Page of alice" in await text_of(alice, "browser_snapshot")
                        assert "Page of bob" in await text_of(bob, "browser_snapshot")
                        await server.has(2)  # not those that were only asked what there is
                    await server.has(1)
                    assert "Page of bob" in await text_of(bob, "browser_snapshot")
            await server.has(0)

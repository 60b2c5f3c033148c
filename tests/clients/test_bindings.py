"""Conversations without a session of the protocol's, each with a real browser of its own.

Playwright knows only the handshake, so every modern client is bridged to it here. Two conversations
are held at once, told apart by each of the ways of DESIGN 6. Of each, clients of several kinds come
one after the other: the SDK's, unmodified, as a user leaves it and told to speak 2026-07-28; and
where the way is open to it, one of the handshake era that opens a new session for every call.
Neighbours: `tests.frontend.test_binding` and `test_handles` have the ways one by one, without a
browser; `test_playwright` has clients with sessions.
"""

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import anyio
import httpx2
import mcp_types as types
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.rig.browsers import PATIENCE, Machine, browsers, kinds, pages
from tests.rig.tls import Pem, issue

pytestmark = [pytest.mark.browser, pytest.mark.timeout(150)]

HANDSHAKE: Final = "legacy"
AUTO: Final = "auto"
PINNED: Final = "2026-07-28"

NAMES: Final = ("alice", "bob")
CALLS: Final = 10
"""Of each client."""

META: Final = "vscode.conversationId"


@dataclass(frozen=True)
class Way:
    """One way to tell conversations apart."""

    modes: tuple[str, ...]
    """Of the clients that come one after the other: it differs who is the first."""
    path: bool = False
    meta: bool = False
    handles: bool = False
    cookies: bool = False
    tokens: bool = False

    def options(self, root: Path) -> tuple[str, ...]:
        """Return those of the proxy, which may name files below `root`."""
        chosen = ["--affinity", "conversation"] if HANDSHAKE in self.modes else []
        if self.handles:
            chosen += ["--handles", "optional"]
        if self.cookies:
            pem = issue(root)
            chosen += ["--key-cookie", "on", "--tls-cert", str(pem.cert), "--tls-key", str(pem.key)]
        if self.tokens:
            hashes = [f"{name} {sha256(token_of(name).encode()).hexdigest()}\n" for name in NAMES]
            (root / "tokens").write_text("".join(hashes))
            chosen += ["--token-file", str(root / "tokens")]
        return tuple(chosen)


def token_of(name: str) -> str:
    return f"the-token-of-{name}"


WAYS: Final = {
    "path": Way((HANDSHAKE, AUTO, PINNED), path=True),
    "meta": Way((AUTO, PINNED), meta=True),
    "handle": Way((PINNED, AUTO), handles=True),
    "cookie": Way((AUTO, PINNED, HANDSHAKE), cookies=True),
    "token": Way((PINNED, HANDSHAKE, AUTO), tokens=True),
}


class Conversation:
    """Clients that come and go, and all name it alike."""

    def __init__(self, way: Way, name: str, url: str, site: str) -> None:
        """`url`: of the proxy; `site`: where the pages are."""
        self._way = way
        self._name = name
        self._url = f"{url}/s/{name}" if way.path else url
        self._page = f"{site}/{name}"
        self._handle: str | None = None
        self._calls = 0
        self._pressed = ""

    async def hold(self, root: Path) -> None:
        """Have all its clients call, one after the other, as one user's machine does it."""
        headers = {"authorization": f"Bearer {token_of(self._name)}"} if self._way.tokens else {}
        verify = (
            Pem(root / "server.pem", root / "server.key").client() if self._way.cookies else True
        )
        async with httpx2.AsyncClient(
            headers=headers, verify=verify, timeout=PATIENCE, trust_env=False
        ) as pool:
            for mode in self._way.modes:
                await self._talk(mode, pool)

    def _trusted(self, root: Path) -> ssl.SSLContext | bool:
        pem = Pem(root / "server.pem", root / "server.key")
        return pem.client() if self._way.cookies else True

    async def _talk(self, mode: str, pool: httpx2.AsyncClient) -> None:
        """Call `CALLS` times; in the handshake era with a session for each."""
        sessions, calls = (CALLS, 1) if mode == HANDSHAKE else (1, CALLS)
        for _ in range(sessions):
            async with self._client(mode, pool) as client:
                for _ in range(calls):
                    await self._step(client)

    @asynccontextmanager
    async def _client(self, mode: str, pool: httpx2.AsyncClient) -> AsyncGenerator[Client]:
        transport = streamable_http_client(self._url, http_client=pool)
        async with Client(transport, mode=mode) as client:
            assert (client.protocol_version == PINNED) is (mode != HANDSHAKE)
            yield client

    async def _step(self, client: Client) -> None:
        """Open the page, and from then on look at it and press a key in turns: it shows all that
        were ever pressed."""
        key = self._name[0]
        if self._calls == 0:
            said = await self._call(client, "browser_navigate", url=self._page)
            assert f"Page Title: Page of {self._name}" in said
        elif self._calls % 2:
            await self._call(client, "browser_press_key", key=key)
            self._pressed += key
        else:
            said = await self._call(client, "browser_snapshot")
            assert f"Page Title: Page of {self._name}" in said
            assert f"pressed: {self._pressed}." in said
        self._calls += 1

    async def _call(self, client: Client, tool: str, **arguments: object) -> str:
        meta: types.RequestParamsMeta = {}
        if self._way.meta:
            meta = {META: self._name}  # VS Code's own
        if self._handle is not None:
            arguments["session"] = self._handle
        with anyio.fail_after(PATIENCE):
            result = await client.call_tool(tool, arguments, meta=meta)
        assert not result.is_error, result
        if self._way.handles and self._handle is None:
            assert result.meta is not None
            self._handle = str(result.meta["sessionproxy/session"]["handle"])
        assert isinstance(result.content[0], types.TextContent)
        return result.content[0].text


@pytest.mark.parametrize("way", list(WAYS))
async def test_two_conversations_at_once_keep_a_browser_each(way: str, tmp_path: Path) -> None:
    """DESIGN 6: ten calls of each client, and whoever comes next goes on where the last one was."""
    chosen = WAYS[way]
    starting = browsers(Machine(tmp_path), *chosen.options(tmp_path))
    with pages() as site:
        async with starting as (running, census):
            async with anyio.create_task_group() as tasks:
                for name in NAMES:
                    tasks.start_soon(Conversation(chosen, name, running.url, site).hold, tmp_path)
            found = [kinds(processes) for processes in census.look().values()]
            assert sum("browser" in pieces for pieces in found) == len(NAMES)

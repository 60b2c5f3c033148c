"""The ways in which a session with a real server ends, and that nothing is left of it.

Each ending is a line of ENDINGS: what is done, and within how many seconds all must be gone (F21,
F24). Each server is a line of SERVERS. A `Stage` is what one rung is tried on: a home, a temporary
and a state directory of its own, and a proxy whenever one is asked for. Neighbours: a test goes
through all of it once (`tests.clients.test_endings`), `scripts/endings` as often as wanted.
"""

import json
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import anyio
import httpx2
import psutil

from .http import VERSION, Client, Json, http, notification, request
from .processes import POLL, Census, Orphans
from .proxy import ROOT, Proxy, proxy

PATIENCE: Final = 60.0
"""Seconds for anything that a browser does, its start included, on a busy machine too."""

IDLE: Final = 2.0
STOP_GRACE: Final = 1.0
"""Seconds: the proxy's limits turned down. Playwright leaves by itself in a third of the latter."""


# -- the servers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """An MCP server from npm, as `npx` starts it, and what makes it hard to end."""

    name: str
    options: tuple[str, ...]
    tool: str
    """Called once, with these arguments; {page} is the URL of a page."""
    arguments: Json
    pieces: Mapping[str, str]
    """Processes that must be there then, by their command lines. `node` is the server itself."""

    def command(self) -> list[str]:
        """Return how it is started: `--prefix` is where npx finds it, and with `npm_config_offline`
        the only place."""
        return ["npx", "--prefix", str(ROOT / "tests/node"), "-y", self.name, *self.options]


def _browser_options() -> tuple[str, ...]:
    chromium = ("--executable-path", shutil.which("chromium") or "chromium")
    # Chromium's sandbox does not work for root.
    return ("--headless", "--isolated", *chromium, *(["--no-sandbox"] * (os.geteuid() == 0)))


SERVERS: Final = {
    # A browser, started detached, with a page open.
    "playwright": Server(
        "playwright-mcp", _browser_options(), "browser_navigate", {"url": "{page}"},
        {
            "npx": r"npm exec ", "node": r"(\S*/)?node \S*/playwright-mcp",
            "browser": r"\S*/chromium (?!.*--type=)", "renderer": r"\S*/chromium .*--type=renderer",
        },
    ),
    # Does not heed the end of its stdin while it sends updates to subscribers, if there were any.
    "everything": Server(
        "mcp-server-everything", (), "toggle-subscriber-updates", {},
        {"npx": r"npm exec ", "node": r"(\S*/)?node \S*/mcp-server-everything"},
    ),
}  # fmt: skip


# -- the endings -----------------------------------------------------------------------------------


async def _deleted(stage: "Stage", session: "Session") -> float:
    began = anyio.current_time()
    assert (await session.client.delete()).status_code == 204
    return began


async def _idle(stage: "Stage", session: "Session") -> float:
    return session.last_heard + IDLE


async def _node_killed(stage: "Stage", session: "Session") -> float:
    began = anyio.current_time()
    session.pieces["node"].kill()
    return began


async def _proxy_terminated(stage: "Stage", session: "Session") -> float:
    began = anyio.current_time()
    await stage.end_proxy(signal.SIGTERM)
    return began


async def _proxy_killed(stage: "Stage", session: "Session") -> float:
    began = anyio.current_time()
    await stage.end_proxy(signal.SIGKILL)
    return began


async def _both_killed(stage: "Stage", session: "Session") -> float:
    await stage.end_proxy(signal.SIGSTOP, signal.SIGKILL, guardian=True)
    began = anyio.current_time()
    await stage.proxy()
    return began


CLOSE: Final = 5.0
"""Seconds for a close beyond `stop_grace`: 25 with its default of 20."""


@dataclass(frozen=True)
class Ending:
    """One way to end. `bring_about` returns the moment from which the bound counts."""

    name: str
    bring_about: "Callable[[Stage, Session], Awaitable[float]]"
    bound: float
    """Seconds until nothing is left."""
    needs_guardian: bool = False
    """Nothing is promised where nothing outlives the proxy."""


ENDINGS: Final = (
    Ending("delete", _deleted, STOP_GRACE + CLOSE),
    Ending("node-killed", _node_killed, 1),
    Ending("idle", _idle, STOP_GRACE + CLOSE),
    Ending("both-killed", _both_killed, 5),
    Ending("proxy-killed", _proxy_killed, 2, needs_guardian=True),
    Ending("proxy-terminated", _proxy_terminated, STOP_GRACE + CLOSE),
)


def endings_of(rung: str) -> list[Ending]:
    """Return the endings that leave nothing on this rung."""
    return [e for e in ENDINGS if rung != "process-group" or not e.needs_guardian]


# -- what they are tried on ------------------------------------------------------------------------


class Session:
    """One session with a server that has done something. `pieces`: its processes by what they are,
    one of each."""

    def __init__(self, client: Client, directory: Path, pieces: dict[str, psutil.Process]) -> None:
        self.client = client
        self.directory = directory
        self.pieces = pieces
        self.last_heard = anyio.current_time()


class Stage:
    """A proxy on one rung in front of one server, started whenever there is none."""

    def __init__(self, rung: str, server: Server, root: Path, orphans: Orphans, page: str) -> None:
        self._rung = rung
        self._server = server
        self._page = page
        self._tmp = root / "tmp"
        self._home = root / "home"
        self._state = root / "s"
        for directory in (self._tmp, self._home):
            directory.mkdir()
        self._orphans = orphans
        self.census = Census(self._state, orphans)
        self._running: Proxy | None = None
        self._stack = AsyncExitStack()

    async def proxy(self) -> Proxy:
        """Return the proxy that runs, or a new one with the same state directory."""
        if self._running is None:
            self._running = await self._stack.enter_async_context(
                proxy(
                    self._server.command(),
                    *("--containment", self._rung, "--idle", str(IDLE)),
                    *("--stop-grace", str(STOP_GRACE), "--cwd", "{session.dir}"),
                    *("--env", "npm_config_offline=true"),
                    env={"TMPDIR": str(self._tmp), "HOME": str(self._home)},
                    state_dir=self._state,
                )
            )
            self._orphans.started(self._running.process.pid)
            self.census.follow(self._running.process.pid)
        return self._running

    async def end_proxy(self, *signals: signal.Signals, guardian: bool = False) -> None:
        """Send the proxy these signals, each to its guardian first, and wait until it is gone."""
        running = await self.proxy()
        beside = psutil.Process(running.process.pid).children() if guardian else []
        guardians = [child for child in beside if "guardian.py" in _line(child)]
        assert len(guardians) == int(guardian and self._rung != "process-group")
        for number in signals:
            for process in (*guardians, running.process):
                process.send_signal(number)
        await running.wait(PATIENCE)
        self._running = None
        await self._stack.aclose()

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[Session]:
        """Open a session and have its server work, as far as all its processes are there."""
        running = await self.proxy()
        before = self.census.look().keys()
        async with http() as pool:
            client = Client(pool, running.url)
            params = {
                "protocolVersion": VERSION,
                "capabilities": {},
                "clientInfo": {"name": "tests", "version": "1"},
            }
            opened = await _posted(client, request("initialize", params))
            client.id = opened.headers["mcp-session-id"]
            await _posted(client, notification("notifications/initialized"))
            arguments = {k: v.format(page=self._page) for k, v in self._server.arguments.items()}
            params = {"name": self._server.tool, "arguments": arguments}
            answer = await _posted(client, request("tools/call", params))
            assert answer.status_code == 200, answer.text
            assert '"result"' in answer.text, answer.text
            assert '"isError":true' not in answer.text, answer.text
            found = self.census.look()
            (directory,) = found.keys() - before
            yield Session(client, directory, self._pieces(found[directory]))

    def _pieces(self, processes: list[psutil.Process]) -> dict[str, psutil.Process]:
        lines = {process: _line(process) for process in processes}
        found = {
            kind: process
            for kind, mark in self._server.pieces.items()
            for process, line in lines.items()
            if re.match(mark, line)
        }
        assert found.keys() == self._server.pieces.keys(), lines.values()
        return found

    async def gone(self, session: Session, *, within: float) -> None:
        """Return once nothing is left of a session, and of the proxy where that is to be gone too.

        Raises: AssertionError: something still is after `within` seconds; it is named.
        """
        directories = [session.directory] if self._running is not None else []
        with anyio.move_on_after(within):
            while self.census.lives(*directories) or self._left(*directories):  # noqa: ASYNC110 - see POLL
                await anyio.sleep(POLL)
        left = self._left(*directories)
        assert not left, "left: " + "; ".join(left)

    def _left(self, *directories: Path) -> list[str]:
        places = [*self._state.glob("run/*")][int(self._running is not None) :]
        places += [*self._tmp.iterdir(), *self._home.rglob("Local State")]
        return self.census.left(*directories, zombies=False) + [str(place) for place in places]

    async def close(self) -> None:
        """End the proxy. Raises: AssertionError: something is left, if only zombies."""
        try:
            if self._running is not None:
                await self.end_proxy(signal.SIGTERM, signal.SIGTERM)
            await self.census.gone(within=5)
        finally:
            self.census.kill()


async def _posted(client: Client, body: Json) -> httpx2.Response:
    with anyio.fail_after(PATIENCE):
        return await client.http.post(client.url, content=json.dumps(body), headers=client.headers)


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@asynccontextmanager
async def stage(rung: str, server: str) -> AsyncGenerator[Stage]:
    """What to try endings on. On exit nothing may be left of any session, no zombie either."""
    with tempfile.TemporaryDirectory(prefix="sp-") as root, Orphans() as orphans, page() as url:
        made = Stage(rung, SERVERS[server], Path(root), orphans, url)
        try:
            yield made
        finally:
            with anyio.CancelScope(shield=True):
                await made.close()


async def ended(stage: Stage, ending: Ending, *, within: float) -> float:
    """Open a session and end it so; return the seconds until nothing of it was left.

    Raises: AssertionError: something still is after `within` seconds; it is named.
    """
    async with stage.session() as session:
        began = await ending.bring_about(stage, session)
        await stage.gone(session, within=began + within - anyio.current_time())
        return anyio.current_time() - began


# -- a page ----------------------------------------------------------------------------------------


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<!doctype html><title>A page</title><h1>A page</h1>"
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def page() -> Generator[str]:
    """Serve a page on loopback; the URL of it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()

"""A browser in its own sandbox, for an ordinary user, within a PID namespace.

Chromium makes a user namespace for its sandbox, and the enclosure has made one already, to be
allowed a PID namespace: one must not spoil the other. Neighbours: `tests.backends.test_rungs` has
namespaces without a browser, `test_endings` browsers without their sandbox where root runs them.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio
import psutil
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from sessionproxy.backends.containment import available
from sessionproxy.backends.containment.namespaces import enclosed
from tests.rig.embedded import until
from tests.rig.endings import PATIENCE, page
from tests.rig.http import VERSION, Json, notification, request
from tests.rig.processes import Census, Orphans
from tests.rig.proxy import ROOT

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(150),
    pytest.mark.skipif(
        sys.platform != "linux" or bool(available()["pid-namespace"]), reason="no PID namespaces"
    ),
]

USER: Final = 65534
"""Who root becomes: nobody."""

AS_USER: Final = (
    ("setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--")
    if os.geteuid() == 0
    else ()
)

STARTER: Final = 'exec 3<&0; "$@" <&3 3<&- & exec 3<&- </dev/null >/dev/null; wait'
"""A shell that starts a command and does nothing more: it stands for the guardian."""

PACKAGES: Final = ("@playwright/mcp", "playwright", "playwright-core")

MAX_LINE: Final = 1024 * 1024


class Place:
    """What the user may read and write: node and the packages, a home, and a session's directory
    where a census looks for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.session = root / "run/user/1"
        self._node = root / "node"
        self._packages = root / "node_modules"

    def furnish(self) -> None:
        # Copies, since the originals may be below a directory that only root can enter.
        node = shutil.which("node")
        assert node is not None
        shutil.copy(Path(node).resolve(), self._node)
        for name in PACKAGES:
            shutil.copytree(ROOT / "tests/node/node_modules" / name, self._packages / name)
        for directory in (self.home, self.session / "tmp"):
            directory.mkdir(parents=True)
        if os.geteuid() == 0:
            for directory in (self.home, self.session, self.session / "tmp"):
                os.chown(directory, USER, USER)
        self.root.chmod(0o755)

    def command(self) -> list[str]:
        chromium = shutil.which("chromium")
        assert chromium is not None
        server = [str(self._node), str(self._packages / "@playwright/mcp/cli.js")]
        return [*server, "--headless", "--isolated", "--executable-path", chromium]

    def environment(self) -> dict[str, str]:
        tmp = str(self.session / "tmp")
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "TMPDIR": tmp}


@contextmanager
def place() -> Generator[Place]:
    with tempfile.TemporaryDirectory(prefix="sp-") as root:
        made = Place(Path(root))
        made.furnish()
        yield made


class Talk:
    """MCP with a server on its pipes."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        self._lines = BufferedByteReceiveStream(process.stdout)
        self._last = 0

    async def ask(self, method: str, params: Json) -> Json:
        """Return the result of a request, passing over what comes before it."""
        self._last += 1
        with anyio.fail_after(PATIENCE):
            await self._send(request(method, params, self._last))
            while True:
                line = await self._lines.receive_until(b"\n", MAX_LINE)
                message: Json = json.loads(line)
                if message.get("id") == self._last and "method" not in message:
                    return message["result"]

    async def call(self, tool: str, **arguments: str) -> str:
        """Return the text that a tool answers with."""
        result = await self.ask("tools/call", {"name": tool, "arguments": arguments})
        assert not result.get("isError"), result
        return result["content"][0]["text"]

    async def begin(self) -> None:
        client = {"name": "tests", "version": "1"}
        params: Json = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": client}
        await self.ask("initialize", params)
        await self._send(notification("notifications/initialized"))

    async def _send(self, message: Json) -> None:
        await self._stdin.send(json.dumps(message).encode() + b"\n")


@asynccontextmanager
async def enclosed_server(here: Place) -> AsyncGenerator[Process]:
    """Playwright's server in a PID namespace, as the user; what is yielded is its starter."""
    inside = enclosed(here.command(), user_namespace=True)
    command = [*AS_USER, "sh", "-c", STARTER, "starter", *inside]
    process = await anyio.open_process(
        command,
        stderr=subprocess.DEVNULL,
        env=here.environment(),
        cwd=here.session,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()


async def test_an_ordinary_users_browser_has_its_sandbox_and_ends_with_its_starter() -> None:
    """DESIGN 10: `-c`, not `-r`, so that Chromium's sandbox works for an ordinary user; the whole
    tree is dead after SIGKILL of who started it, while nobody closes its stdin."""
    with Orphans() as orphans, place() as here, page() as url:
        census = Census(here.root, orphans)
        try:
            async with enclosed_server(here) as starter:
                orphans.started(starter.pid)
                talk = Talk(starter)
                await talk.begin()
                assert "A page" in await talk.call("browser_navigate", url=url)
                assert "A page" in await talk.call("browser_snapshot")
                (found,) = census.look().values()
                renderers = [p for p in found if "--type=renderer" in p.cmdline()]
                assert renderers
                outside = _filters(psutil.Process(starter.pid))
                assert all(_filters(renderer) > outside for renderer in renderers)
                assert all("--no-sandbox" not in p.cmdline() for p in found)
                starter.kill()
                await starter.wait()
                await until(lambda: census.look() == {}, seconds=5 * 2)
        finally:
            census.kill()


def _filters(process: psutil.Process) -> int:
    """Return how many filters of system calls it is under (proc_pid_status(5)): a sandbox of its
    own adds to those of whoever started it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("Seccomp_filters:"))
    return int(line.split()[1])

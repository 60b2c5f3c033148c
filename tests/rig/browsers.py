"""Playwright's server behind a proxy, as its users start it, and the pages that are asked for.

`npx` starts it from the packages of `tests/node`, in front of Debian's Chromium; nothing is fetched
and no page is asked for but the ones served here on loopback. Neighbours: `tests.clients` works in
the browsers; `tests.rig.endings` ends them in every way.
"""

import os
import re
import shutil
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import psutil

from .processes import Census
from .proxy import ROOT, Proxy, proxy

PATIENCE: Final = 60.0
"""Seconds for anything that a browser does, its start included, on a busy machine too."""

PAGE: Final = """<!doctype html>
<title>Page of {user}</title>
<h1>Page of {user}</h1>
<form onsubmit="greet(); return false">
  <label>Name <input id="name"></label>
  <button>Greet</button>
</form>
<p role="status" id="said"></p>
<p id="kept"></p>
<p id="pressed">pressed: .</p>
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
  let pressed = ""
  onkeydown = (event) => {{
    pressed += event.key
    element("pressed").textContent = `pressed: ${{pressed}}.`
  }}
  show()
</script>
"""
"""A form, what the browser keeps for its origin, which is the same one for all users, and all the
keys that were pressed."""


class _Pages(BaseHTTPRequestHandler):
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


@contextmanager
def pages() -> Generator[str]:
    """The URL under which the pages are served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
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


def playwright() -> list[str]:
    """What starts Playwright's server.

    `--prefix` is where npx finds the package, and with `npm_config_offline` the only place. Under
    `--prefix` it knows the command's name only (`npx -y @playwright/mcp` ends with 127, not found);
    the processes are the same. Chromium's sandbox does not work for root.
    """
    chromium = shutil.which("chromium")
    assert chromium is not None
    command = ["npx", "--prefix", str(ROOT / "tests/node"), "-y", "playwright-mcp"]
    command += ["--headless", "--isolated", "--executable-path", chromium]
    return command + (["--no-sandbox"] if os.geteuid() == 0 else [])


@asynccontextmanager
async def browsers(machine: Machine, *options: str) -> AsyncGenerator[tuple[Proxy, Census]]:
    """A proxy in front of Playwright's server, as its users start it, and a census of its
    sessions."""
    options = ("--cwd", "{session.dir}", "--env", "npm_config_offline=true", *options)
    env = {"TMPDIR": str(machine.tmp), "HOME": str(machine.home)}
    async with proxy(playwright(), *options, env=env) as running:
        yield running, Census(running.state_dir)


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

"""What is measured: the two halves of the limit, sessionproxy in its forms, and the peers.

Neighbours: `peers` knows theirs, `processes` starts them all, `measures` measures them.
"""

import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .channels import CallFailed
from .peers import PEERS, NotInstalled, Peer
from .processes import Server, StartFailed, backend_command, free_port, start
from .sessions import end_http, open_http

STDIO: Final = "bare stdio"
STARLETTE: Final = "bare Starlette"
PROXY: Final = "sessionproxy"
MODERN: Final = "sessionproxy, 2026-07-28 clients"
URL: Final = "sessionproxy --url"
WARM: Final = "sessionproxy --warm 4"
IDLE: Final = "sessionproxy --idle 2"
UPSTREAM: Final = "the server behind "
"""Begins the name of what runs behind a target of `--url`: sessionproxy with the backend, since it
is the cheapest. What it costs is not counted; that calls go through it is."""
OURS: Final = (PROXY, MODERN, URL, WARM, IDLE)
WARM_SPARES: Final = 4
IDLE_LIMIT: Final = 2  # seconds
ANSWER: Final = Path(__file__).with_name("starlette_answer.py")


@dataclass
class Targets:
    """What runs, and what does not and why."""

    root: Path
    scratch: Path
    max_sessions: int
    servers: dict[str, Server] = field(default_factory=dict[str, Server])
    missing: dict[str, str] = field(default_factory=dict[str, str])
    versions: dict[str, str] = field(default_factory=dict[str, str])

    def start_starlette(self) -> None:
        port = free_port()
        self._start(STARLETTE, [sys.executable, str(ANSWER), "--port", str(port)], port, "none")

    def start_proxies(self) -> None:
        """The one that is measured; and others for other clients, backends and options."""
        self.start_proxy()
        self.start_proxy(MODERN)
        self.start_before_url(URL, lambda port, url: [*self._run(port), "--url", url])
        for name, options in (
            (WARM, ("--warm", str(WARM_SPARES))),
            (IDLE, ("--idle", str(IDLE_LIMIT))),
        ):
            if PROXY in self.missing:
                self.missing[name] = "not tried, since sessionproxy does not run"
            else:
                self.start_proxy(name, *options)

    def start_proxy(self, name: str = PROXY, *options: str) -> None:
        port, tag = free_port(), secrets.token_hex(8)
        self._start(name, [*self._run(port, *options), "--", *backend_command(tag)], port, tag)

    def _run(self, port: int, *options: str) -> list[str]:
        return [
            *(sys.executable, "-m", "sessionproxy", "run", "--port", str(port)),
            *("--max-sessions", str(self.max_sessions)),
            *(options if "--idle" in options else ("--idle", "3600", *options)),
        ]

    def start_before_url(self, name: str, command: Callable[[int, str], list[str]]) -> None:
        """Start a target whose backends are elsewhere. `command`: of its port and their URL."""
        upstream, behind, tag = UPSTREAM + name, free_port(), secrets.token_hex(8)
        self._start(upstream, [*self._run(behind), "--", *backend_command(tag)], behind, tag)
        if upstream in self.missing:
            self.missing[name] = f"{upstream} does not run: {self.missing.pop(upstream)}"
            return
        port = free_port()
        self._start(name, command(port, f"http://127.0.0.1:{behind}/mcp"), port, tag)

    def start_peers(self, wanted: str, cache: Path) -> None:
        """`wanted`: all, installed, none, or names with commas."""
        names = {name.strip() for name in wanted.split(",")}
        for peer in PEERS:
            if wanted not in ("all", "installed") and peer.name not in names:
                self.missing[peer.name] = "left out by --peers"
                continue
            if not peer.is_installed(cache):
                if wanted == "installed":
                    self.missing[peer.name] = "not installed; --peers all installs it"
                    continue
                print(f"installing {peer.package} {peer.version} ({peer.kind})", file=sys.stderr)
                try:
                    peer.install(cache)
                except NotInstalled as error:
                    self.missing[peer.name] = str(error)
                    continue
            self.versions[peer.name] = peer.installed_version(cache)
            self._start_peer(peer, peer.directory(cache))

    def _start_peer(self, peer: Peer, directory: Path) -> None:
        if peer.before_url:
            self.start_before_url(
                peer.name, lambda port, url: peer.command(directory, port, ["--url", url])
            )
            return
        port, tag = free_port(), secrets.token_hex(8)
        self._start(peer.name, peer.command(directory, port, backend_command(tag)), port, tag)

    def _start(self, name: str, command: list[str], port: int, tag: str) -> None:
        """It runs and has answered a call, or `missing` says why not."""
        label = "".join(letter if letter.isalnum() else "-" for letter in name)
        log = self.scratch / f"{label}.log"
        tag = tag if tag != "none" else secrets.token_hex(8)
        environment: dict[str, str] = {}
        if (
            name.removeprefix(UPSTREAM) != name or name in OURS
        ):  # of this tree, and away from the user's own state
            state = str(self.scratch / f"{log.stem}-state")
            environment = {"PYTHONPATH": str(self.root), "XDG_STATE_HOME": state}
        try:
            server = start(name, command, tag=tag, port=port, log=log, env=environment)
        except StartFailed as error:
            self.missing[name] = str(error)
            return
        self.servers[name] = server
        if name == STARLETTE:
            return
        try:
            end_http(open_http(port))
        except (CallFailed, OSError) as error:
            self.missing[name] = f"does not serve: {error}; its log: {server.last_words()}"
            self.servers.pop(name).stop()

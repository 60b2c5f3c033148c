"""What is shown once the proxy listens: where, how to connect, and what is limited.

Neighbours: `cli`.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from . import __version__
from .app import SERVERS
from .backends import shown
from .config import Affinity, HandleUse, Mode, Settings, Switch
from .front import beside
from .http import is_loopback
from .plan import knows_users
from .servers import Configuration

Row = tuple[str, str]

BEARER: Final = "Bearer TOKEN"
"""What a user puts the own token into."""

COPIED: Final = frozenset({"Claude Code", "mcp.json"})
"""Rows that a person copies."""


Fronted = Sequence[str] | Configuration


def show(
    console: Console, settings: Settings, command: Fronted, *, url: str, containment: str
) -> None:
    """Print the banner: a panel on a terminal, plain lines elsewhere."""
    rows = list(_rows(settings, command, url=url, containment=containment))
    title = f"sessionproxy {__version__}"
    if not console.is_terminal:
        console.print(title, highlight=False)
        for name, value in rows:
            console.print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        if name not in COPIED:
            table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    console.print(Panel(table, title=title, expand=False))
    for name, value in rows:
        if name in COPIED:  # on lines of their own, whole
            console.print(Text(name, style="bold"))
            console.print(value, highlight=False, markup=False, soft_wrap=True)


def _rows(settings: Settings, command: Fronted, *, url: str, containment: str) -> Iterator[Row]:
    yield "endpoint", url
    if isinstance(command, Configuration):
        yield from _servers(settings, command, url)
    else:
        yield "backend", _backend(settings, command)
    server: dict[str, object] = {"type": "http", "url": url}
    header = ""
    if settings.token_file:
        header = f' --header "Authorization: {BEARER}"'
        server["headers"] = {"Authorization": BEARER}
    yield "Claude Code", f"claude mcp add --transport http sessionproxy {url}{header}"
    yield "mcp.json", json.dumps({"mcpServers": {"sessionproxy": server}})
    yield "sessions", _sessions(settings)
    yield "conversations", _conversations(settings)
    if settings.url is None:
        yield "containment", containment
    if settings.insecure:
        yield "INSECURE", "anybody who can reach this address is served; nobody is authenticated"


def _servers(settings: Settings, configuration: Configuration, url: str) -> Iterator[Row]:
    base = url.removesuffix(settings.path)
    for server in configuration.servers:
        what = shown(server.url) if server.url is not None else server.command[0]
        yield (
            f"server {server.name}",
            f"{what}, alone at {base}{beside(settings, SERVERS)}" + (f"{server.name}/mcp"),
        )


def _backend(settings: Settings, command: Sequence[str]) -> str:
    if settings.url is not None:
        return shown(settings.url)
    return shlex.join(command) or "the demo server (python -m sessionproxy.demo)"


def _conversations(settings: Settings) -> str:
    """Say how clients of 2026-07-28, which have no sessions, are told apart."""
    if settings.affinity is Affinity.PRINCIPAL:
        return "one for each user"
    if settings.handles is not HandleUse.OFF:
        return "clients of 2026-07-28 name theirs in the session argument of a tool"
    if settings.key_cookie is Switch.ON:
        return "clients of 2026-07-28 have one each, by cookie"
    named = f"that do not name theirs ({settings.path}/s/NAME)"
    known = knows_users(settings, local=is_loopback(settings.host))
    if settings.default_session is Switch.OFF or not known:
        return f"clients of 2026-07-28 {named} are refused"
    return f"clients of 2026-07-28 {named} share the default one of their user"


def _sessions(settings: Settings) -> str:
    idle = f"a backend idle for {settings.idle:g} s stops" if settings.idle else "no idle limit"
    if settings.mode is Mode.SHARED:
        return f"all share one backend, which stops {settings.shared_linger:g} s after the last"
    warm = f", {settings.warm} warm" if settings.warm else ""
    return f"at most {settings.max_sessions} backends{warm}; {idle}"

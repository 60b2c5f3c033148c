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
from .config import Settings

Row = tuple[str, str]

COPIED: Final = frozenset({"Claude Code", "mcp.json"})
"""Rows that a person copies."""


def show(
    console: Console, settings: Settings, command: Sequence[str], *, url: str, containment: str
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


def _rows(
    settings: Settings, command: Sequence[str], *, url: str, containment: str
) -> Iterator[Row]:
    yield "endpoint", url
    yield (
        "backend",
        shlex.join(command) or "the demo server (python -m sessionproxy.demo)",
    )
    yield "Claude Code", f"claude mcp add --transport http sessionproxy {url}"
    yield "mcp.json", json.dumps({"mcpServers": {"sessionproxy": {"type": "http", "url": url}}})
    yield "sessions", _sessions(settings)
    yield "containment", containment
    if settings.insecure:
        yield "INSECURE", "anybody who can reach this address is served; nobody is authenticated"


def _sessions(settings: Settings) -> str:
    idle = f"a backend idle for {settings.idle:g} s stops" if settings.idle else "no idle limit"
    warm = f", {settings.warm} warm" if settings.warm else ""
    return f"at most {settings.max_sessions} backends{warm}; {idle}"

"""`sessionproxy doctor`: what this machine offers, and whether a backend works.

Neighbours: `cli`. It starts a backend the way the proxy does, through the same launcher.
"""

import importlib.util
import platform
import resource
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import anyio
import msgspec

from .app import ProxyApp
from .backends import RUNGS, available, chosen
from .config import ConfigError, Settings
from .core.caller import Nobody, ask
from .core.exchange import Outcome
from .core.memory import Opening
from .core.ports import Identity
from .errors import BackendStartFailed, ProxyError
from .plan import Fronted
from .route import Route
from .wire import HANDSHAKE_VERSIONS, Bytes, members

Request = Callable[[str, bytes], Awaitable[Bytes]]
"""Sends a request and returns its result. Raises: BackendStartFailed: it gave none."""

ENOUGH_DESCRIPTORS: Final = 1024
"""A session uses six, and a client two."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `good` None: neither good nor bad."""

    what: str
    how: str
    good: bool | None = True


def machine() -> Iterator[Finding]:
    """Yield what this machine offers."""
    yield Finding("python", f"{platform.python_version()} on {sys.platform}", None)
    best = chosen(own_process=True).name
    yield Finding("containment", best, best not in RUNGS[:2] or None)
    for rung, against in available().items():
        if against:
            yield Finding(rung, f"not to be had: {against}", None)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = soft == resource.RLIM_INFINITY
    yield Finding(
        "descriptors", "unlimited" if endless else str(soft), endless or soft >= ENOUGH_DESCRIPTORS
    )
    for module in ("uvloop", "httptools"):
        found = importlib.util.find_spec(module) is not None
        yield Finding(module, "present" if found else "missing: every call costs more", found)


async def backends(settings: Settings, command: Fronted) -> AsyncGenerator[Finding]:
    """Start a backend of each server, shake hands, list its tools, stop it; yield each with its
    time.

    Raises: ConfigError: they cannot be tried at all.
    """
    app = ProxyApp(settings, command, local=True)
    async with app.lifespan():
        routes = app.running.routes
        for route in routes:
            async for finding in _tried(route):
                named = f"{route.name}: {finding.what}"
                yield finding if len(routes) == 1 else replace(finding, what=named)


async def _tried(route: Route) -> AsyncGenerator[Finding]:
    clock = anyio.current_time
    began = clock()
    try:
        async with _launched(route) as request:
            yield Finding("start", _took(clock() - began))
            began = clock()
            result = await request("initialize", _initialize_params())
            server = _text(members(result).get("serverInfo"))
            yield Finding("initialize", f"{_took(clock() - began)}: {server}")
            began = clock()
            listed = await request("tools/list", b"{}")
            took = _took(clock() - began)
            yield Finding("tools/list", f"{took}: {_listed(route, listed)}")
            began = clock()
        yield Finding("stop", _took(clock() - began))
    except (ProxyError, ConfigError) as error:
        yield Finding("backend", str(error), good=False)
        how = error.exit if isinstance(error, BackendStartFailed) else None
        for line in how.stderr if how else ():
            yield Finding("stderr", line, None)


@asynccontextmanager
async def _launched(route: Route) -> AsyncGenerator[Request]:
    identity = Identity(route.name, "doctor", "doctor")
    opening = Opening(_initialize_params())
    async with route.transport.launch(identity, "doctor", Nobody(), opening) as backend:

        async def request(method: str, params: bytes) -> Bytes:
            outcome = None
            with anyio.move_on_after(route.settings.start_timeout):
                outcome = await ask(backend, method, params)
            return _result(method, outcome)

        yield request


def _result(method: str, outcome: Outcome | None) -> Bytes:
    if outcome is None:
        raise BackendStartFailed(f"no answer to {method}")
    if outcome.failure is not None:
        how = getattr(outcome.failure, "exit", None)
        raise BackendStartFailed(f"{method}: {outcome.failure}", how)
    if outcome.result is None:
        raise BackendStartFailed(f"{method}: {bytes(outcome.error or b'').decode()}")
    return outcome.result


class _Tool(msgspec.Struct):
    name: str


class _Tools(msgspec.Struct):
    tools: list[_Tool]


def _listed(route: Route, result: Bytes) -> str:
    """Return how many tools there are, and the names that clients see."""
    all_of_them = _tools(result)
    tools = _tools(route.names.result("tools/list", result))
    hidden = len(all_of_them) - len(tools)
    count = f"{len(tools)} ({hidden} more not shown)" if hidden else str(len(tools))
    return f"{count}: {', '.join(tool.name for tool in tools)}"


def _tools(result: Bytes) -> list[_Tool]:
    try:
        return msgspec.json.decode(result, type=_Tools).tools
    except msgspec.DecodeError as error:
        raise BackendStartFailed(f"tools/list: {error}") from None


def _initialize_params() -> bytes:
    return msgspec.json.encode(
        {
            "protocolVersion": HANDSHAKE_VERSIONS[-1],
            "capabilities": {},
            "clientInfo": {"name": "sessionproxy doctor", "version": "1"},
        }
    )


def _text(raw: Bytes | None) -> str:
    return "" if raw is None else bytes(raw).decode()


def _took(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"

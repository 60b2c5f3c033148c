"""`sessionproxy doctor`: what this machine offers, and whether a backend works.

Neighbours: `cli`. It starts a backend the way the proxy does, through the same launcher.
"""

import importlib.util
import platform
import resource
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import msgspec

from .backends import RUNGS, available, chosen
from .config import ConfigError, Settings
from .core.exchange import Ask, Exchange, Outbound, Outcome
from .core.ports import Identity
from .core.relay import INTERNAL_ERROR
from .errors import BackendStartFailed, Exit, ProxyError
from .serve import DEMO, ROUTE, ProxyApp
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


class _Waiter:
    """Waits for one answer; a doctor has no client to ask."""

    def __init__(self) -> None:
        self.attached = True
        self.answered = anyio.Event()

    def message(self, message: Outbound) -> None: ...

    def settled(self, exchange: Exchange) -> None:
        self.answered.set()


class _NoClient:
    """An `Upstream` without a client behind it: it declines what the backend asks."""

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        error = {"code": INTERNAL_ERROR, "message": "no client is connected"}
        ask.answer(Outcome(error=msgspec.json.encode(error)))

    def withdraw(self, ask: Ask, params: Bytes | None) -> None: ...

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None: ...

    def ended(self, how: Exit) -> None: ...


async def backend(settings: Settings, command: Sequence[str]) -> AsyncGenerator[Finding]:
    """Start a backend, shake hands, list its tools, stop it; yield each with its time.

    Raises: ConfigError: it cannot be tried at all.
    """
    app = ProxyApp(settings, command or DEMO, local=True)
    async with app.lifespan():
        clock = anyio.current_time
        began = clock()
        try:
            async with _launched(app) as request:
                yield Finding("start", _took(clock() - began))
                began = clock()
                result = await request("initialize", _initialize_params())
                server = _text(members(result).get("serverInfo"))
                yield Finding("initialize", f"{_took(clock() - began)}: {server}")
                began = clock()
                tools = _tools(await request("tools/list", b"{}"))
                names = ", ".join(tool.name for tool in tools)
                yield Finding("tools/list", f"{_took(clock() - began)}: {len(tools)}: {names}")
                began = clock()
            yield Finding("stop", _took(clock() - began))
        except (ProxyError, ConfigError) as error:
            yield Finding("backend", str(error), good=False)
            how = error.exit if isinstance(error, BackendStartFailed) else None
            for line in how.stderr if how else ():
                yield Finding("stderr", line, None)


@asynccontextmanager
async def _launched(app: ProxyApp) -> AsyncGenerator[Request]:
    identity = Identity(ROUTE, "doctor", "doctor")
    async with app.running.launcher.launch(identity, "doctor", _NoClient()) as relay:

        async def request(method: str, params: bytes) -> Bytes:
            waiter = _Waiter()
            exchange = Exchange(method, params, client_id=b"0", sink=waiter)
            relay.request(exchange)
            with anyio.move_on_after(app.settings.start_timeout):
                await waiter.answered.wait()
            return _result(exchange)

        yield request


def _result(exchange: Exchange) -> Bytes:
    outcome = exchange.outcome
    if outcome is None:
        raise BackendStartFailed(f"no answer to {exchange.method}")
    if outcome.failure is not None:
        how = getattr(outcome.failure, "exit", None)
        raise BackendStartFailed(f"{exchange.method}: {outcome.failure}", how)
    if outcome.result is None:
        raise BackendStartFailed(f"{exchange.method}: {bytes(outcome.error or b'').decode()}")
    return outcome.result


class _Tool(msgspec.Struct):
    name: str


class _Tools(msgspec.Struct):
    tools: list[_Tool]


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

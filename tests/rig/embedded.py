"""A proxy inside the test's own event loop: real sockets and real backends, but hooks can be seen.

Neighbours: most tests of the frontend; `tests.rig.proxy` starts one as a process instead.
"""

import asyncio  # noqa: TID251 - the protocol class is one of its own
import json
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import anyio
import psutil
import uvicorn

from sessionproxy.app import ProxyApp, http_app
from sessionproxy.core.exchange import Hook
from sessionproxy.core.hooks import RequestHook
from sessionproxy.core.manager import SessionManager
from sessionproxy.core.state import EndReason
from sessionproxy.http import Certificate
from sessionproxy.http.request import Receive, Scope, Send
from sessionproxy.keywords import AppSettings
from sessionproxy.plan import Fronted
from sessionproxy.serve import protocol_of

from .http import Client, Json, connect

PYTHON: Final = sys.executable
SHORT_WAY = True
"""Whether the server has `frontend.fastlane`; what embeds the proxy has not. A fixture turns it."""

SCRIPTED: Final = (PYTHON, "-I", "-S", str(Path(__file__).with_name("scripted.py")))


Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def scripted(**script: object) -> tuple[str, ...]:
    """The command of a scripted backend that behaves as `script` says."""
    return (*SCRIPTED, json.dumps(script))


def bare(app: Application) -> Application:
    """No middleware."""
    return app


@dataclass(frozen=True)
class Embedded:
    """A proxy that serves at `url`."""

    app: ProxyApp
    url: str
    state_dir: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].split("/")[0])

    @property
    def base(self) -> str:
        return self.url.rsplit("/", 1)[0]

    @property
    def manager(self) -> SessionManager:
        return self.app.running.manager

    def session_dirs(self) -> list[Path]:
        return [path for path in self.state_dir.glob("run/*/*") if path.is_dir()]

    def processes(self) -> list[int]:
        return processes_of(self.state_dir)


@asynccontextmanager
async def embedded(
    command: Fronted = SCRIPTED,
    *,
    hooks: Sequence[RequestHook] = (),
    observers: Sequence[Hook] = (),
    local: bool = True,
    around: Callable[[Application], Application] = bare,
    listening: socket.socket | None = None,
    certificate: Certificate | None = None,
    **settings: object,
) -> AsyncGenerator[Embedded]:
    """Serve `command`. On exit no process and no directory of a session may be left.

    Contained by the guardian where a test says nothing: there the pids that a backend tells are
    the machine's own. `tests.backends.test_rungs` is about the others.

    `around`: middleware. Without it, it is served as the command line does it, the short way
    included. `listening`: the socket to serve on; it is closed on exit. `certificate`: serve TLS.
    """
    with tempfile.TemporaryDirectory(prefix="sp-") as state:
        state_dir = Path(state) / "s"
        with_defaults = {"containment": "guardian", "state_dir": str(state_dir), **settings}
        given = cast("AppSettings", with_defaults)  # or what no type checker likes
        app = http_app(command, hooks=hooks, observers=observers, local=local, **given)
        failed: Exception | None = None
        async with app.lifespan():
            ours = (SHORT_WAY and around is bare) or certificate is not None
            protocol = protocol_of(app, certificate) if ours else None
            serving = served(
                around(app),
                protocol=protocol,
                listening=listening,
                before_end=lambda: _end_all(app),
            )
            async with serving as base:
                if certificate is not None:
                    base = base.replace("http:", "https:")
                try:
                    yield Embedded(app, f"{base}/mcp", state_dir)
                except Exception as error:  # noqa: BLE001 - raised again outside of all groups
                    failed = error
            # The manager would look only twenty times a second.
            fronts = app.running.fronts
            await until(lambda: not any(front.manager.registry.awake() for front in fronts))
        if failed is not None:
            raise failed
        assert processes_of(state_dir) == []
        assert list(state_dir.glob("run/*")) == []


def _end_all(app: ProxyApp) -> None:
    app.running.hurry()
    app.running.end_all(EndReason.SHUTDOWN)


@asynccontextmanager
async def served(
    app: Application,
    *,
    lifespan: bool = False,
    protocol: type[asyncio.Protocol] | None = None,
    listening: socket.socket | None = None,
    before_end: Callable[[], None] = lambda: None,
) -> AsyncGenerator[str]:
    """Serve an ASGI application on a free port; yield its URL. `before_end` lets its streams go.

    `lifespan`: its lifespan is run too. `protocol`: instead of uvicorn's own. `listening`: instead
    of a socket on loopback; it is closed on exit.
    """
    with listening or socket.create_server(("127.0.0.1", 0)) as sock:
        config = uvicorn.Config(
            app,
            lifespan="on" if lifespan else "off",
            log_config=None,
            access_log=False,
            http=protocol or "httptools",
            ws="none",
        )
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[sock])
        try:
            host, port = sock.getsockname()[:2]
            yield f"http://{host}:{port}"
        finally:
            before_end()
            with anyio.CancelScope(shield=True):
                await _shut_down(server)


async def _shut_down(server: uvicorn.Server) -> None:
    """As `uvicorn.Server.shutdown`, which sleeps for a tenth of a second in any case."""
    for listener in server.servers:
        listener.close()
    state = server.server_state
    for connection in tuple(state.connections):
        connection.shutdown()
    await until(lambda: not state.connections and not state.tasks)
    await server.lifespan.shutdown()


def plain(
    command: Fronted = SCRIPTED,
    *,
    observers: Sequence[Hook] = (),
    local: bool = True,
    certificate: Certificate | None = None,
    **settings: object,
) -> AbstractAsyncContextManager[Embedded]:
    """As `embedded`, for settings whose names a type checker does not see."""
    return embedded(
        command,
        hooks=(),
        observers=observers,
        local=local,
        around=bare,
        listening=None,
        certificate=certificate,
        **settings,
    )


@asynccontextmanager
async def session(
    command: Fronted = SCRIPTED, *, observers: Sequence[Hook] = (), **settings: object
) -> AsyncGenerator[tuple[Embedded, Client]]:
    """A proxy with one session."""
    running = plain(command, observers=observers, local=True, certificate=None, **settings)
    async with running as proxy, connect(proxy.url) as client:
        yield proxy, client


# -- what is left ----------------------------------------------------------------------------------


def processes_of(state_dir: Path) -> list[int]:
    """The processes, zombies apart, whose private directory is below `state_dir`."""
    return [process.pid for process in psutil.process_iter() if _is_of(process, state_dir)]


def _is_of(process: psutil.Process, state_dir: Path) -> bool:
    try:
        return process.environ().get("TMPDIR", "").startswith(f"{state_dir}/")
    except psutil.Error:
        return False


def lives(pid: int) -> bool:
    """Whether a process runs; a zombie is dead."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


async def until(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    """Wait for what has no event to wait for: processes, directories, a state of the proxy."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - see above
            await anyio.sleep(0.01)


async def gone(*pids: int, seconds: float = 10) -> None:
    await until(lambda: not any(map(lives, pids)), seconds=seconds)


__all__ = [
    "SCRIPTED", "Client", "Embedded", "Json", "embedded", "gone", "lives", "plain", "processes_of",
    "scripted", "served", "session", "until",
]  # fmt: skip

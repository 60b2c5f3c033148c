"""Puts the pieces together: an ASGI application, and a server that runs it.

Neighbours: `cli` calls `serve`; other applications call `http_app` and mount what they get.
"""

import contextlib
import logging
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import uvicorn

from . import descriptors
from .backends import Limits as TreeLimits
from .backends import (
    Pool,
    StateDir,
    StdioLauncher,
    Template,
    chosen,
)
from .backends.statedir import default_state_dir
from .backends.stdio import Child
from .config import ConfigError, OnLoss, Settings, settings_from
from .core.binding import SessionIds
from .core.exchange import Hook
from .core.manager import Limits, SessionManager
from .core.reaper import Ages
from .errors import UnknownPath
from .frontend import Endpoint, Health
from .frontend.bounds import connections_beside
from .frontend.connection import Connection
from .frontend.endpoint import Serving
from .frontend.fastlane import FastLane, Heads
from .frontend.problems import http_problem
from .http import Guard, is_loopback, path_within
from .http.request import Receive, Scope, Send
from .ops import Watchdog

logger = logging.getLogger(__name__)

DEMO: Final = (sys.executable, "-m", "sessionproxy.demo")
"""What is fronted where no command is given."""

ROUTE: Final = "default"
"""Name of the one configured backend."""

USER_TIMEOUT: Final = 30.0
"""Seconds after which a client that acknowledges nothing counts as gone (tcp(7),
TCP_USER_TIMEOUT)."""


@dataclass(frozen=True, slots=True)
class Running:
    """The pieces of a proxy that serves."""

    manager: SessionManager
    launcher: StdioLauncher
    pool: Pool
    endpoint: Endpoint
    health: Health


class ProxyApp:
    """The proxy as an ASGI application.

    Served on its own it runs by itself. Mounted in another application it needs that one to run
    its `lifespan`, since backends live as long as it does:

        app = Starlette(routes=[Mount("/tools", app=proxy)], lifespan=proxy.lifespan)
    """

    def __init__(
        self,
        settings: Settings,
        command: Sequence[str],
        *,
        local: bool,
        hooks: Sequence[Hook] = (),
        own_process: bool = False,
    ) -> None:
        """`local`: it serves this machine alone. `own_process`: nothing else runs beside it.

        Raises: ConfigError: the command or a setting is wrong.
        """
        self.settings = settings
        self._owner = "local" if local else "anonymous"
        self._local = local
        self._hooks = tuple(hooks)
        self._template = Template(
            command or DEMO, cwd=settings.cwd, env=settings.env, pass_env=settings.pass_env
        )
        self._guard = Guard(local=local, hosts=settings.allow_host, origins=settings.allow_origin)
        limits = TreeLimits(settings.memory_max or None, settings.pids_max or None)
        self.containment = chosen(settings.containment.value, limits, own_process=own_process)
        self.tally: Counter[str] = Counter()
        """What was dropped or refused below the level of a request, by name."""
        self.watchdog = Watchdog()
        """Run by our own server alone: in others the event loop is not ours."""
        self._running: Running | None = None
        root = self.settings.state_dir
        self._state_root = default_state_dir() if root is None else Path(root).expanduser()

    @property
    def running(self) -> Running:
        """Raises: RuntimeError: the application's lifespan has not been entered."""
        if self._running is None:
            raise RuntimeError(
                "the proxy is not running: serve it with its lifespan, or pass "
                "lifespan=app.lifespan to the application it is mounted in"
            )
        return self._running

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:
        """Run the proxy: on exit every session has ended and every backend is gone.

        Raises: ConfigError: the state directory cannot be used.
        """
        state = StateDir.open(self._state_root)
        try:
            key = state.key()  # what is wrong is told before anything runs
            swept = await anyio.to_thread.run_sync(state.sweep, self.containment.end_left_over)
            if swept:
                logger.warning("%d backends of an earlier proxy were swept away", swept)
            async with self.containment.running(state.instance), self._run(state, key) as running:
                self._running = running
                try:
                    yield
                finally:
                    self._running = None
        finally:
            state.close()

    @asynccontextmanager
    async def _run(self, state: StateDir, key: bytes) -> AsyncGenerator[Running]:
        launcher = self._launcher(state, lambda: pool.take())
        pool = Pool(launcher, self.settings.warm)
        manager = SessionManager(
            ROUTE,
            launcher,
            limits_from(self.settings),
            SessionIds(key),
            keeps_ids=self.settings.on_loss is not OnLoss.NOT_FOUND,
        )
        async with pool, manager:
            yield Running(
                manager,
                launcher,
                pool,
                Endpoint(manager, self._guard, self._serving()),
                Health(manager, self._guard, self.facts),
            )

    def _launcher(self, state: StateDir, take_spare: Callable[[], Child | None]) -> StdioLauncher:
        return StdioLauncher(
            self._template,
            state,
            self.containment,
            stop_grace=self.settings.stop_grace,
            max_line=self.settings.max_line,
            hooks=self._hooks,
            tally=self.tally,
            take_spare=take_spare,
        )

    def _serving(self) -> Serving:
        expose = self.settings.expose_stderr
        return Serving(
            owner=self._owner,
            max_body=self.settings.max_body,
            keepalive=self.settings.keepalive,
            on_loss=self.settings.on_loss,
            idle=self.settings.idle or None,
            expose_stderr=self._local if expose is None else expose,
        )

    def facts(self) -> dict[str, object]:
        """Return what `/readyz` shows besides the counts."""
        return {
            "containment": self.containment.name,
            "orphans": self.containment.orphans,
            "dropped": dict(self.tally),
            "stalls": self.watchdog.stalls,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan_protocol(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the proxy does not serve {scope['type']}")
        path = path_within(scope)
        if path in (self.settings.path, self.settings.path + "/"):
            await self.running.endpoint(scope, receive, send)
        elif path in ("/healthz", "/readyz"):
            await self.running.health(scope, receive, send)
        else:
            logger.info("refused: unknown_path (%s)", path)
            error = UnknownPath(f"not found; the endpoint is {self.settings.path}")
            await Connection(receive, send).problem(http_problem(error))

    async def _lifespan_protocol(self, receive: Receive, send: Send) -> None:
        """ASGI specification, lifespan protocol."""
        await receive()
        started = False
        try:
            async with self.lifespan():
                started = True
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
        except BaseException as error:
            what = "shutdown" if started else "startup"
            await send({"type": f"lifespan.{what}.failed", "message": str(error)})
            raise


def limits_from(settings: Settings) -> Limits:
    return Limits(
        max_sessions=settings.max_sessions,
        max_sessions_per_owner=settings.max_sessions_per_owner or None,
        starts_at_once=settings.cores_at_once,
        queue_timeout=settings.queue_timeout,
        start_timeout=settings.start_timeout,
        call_timeout=settings.call_timeout or None,
        max_asleep=settings.max_asleep,
        ages=Ages(
            idle=settings.idle or None,
            linger=settings.linger or None,
            max_age=settings.max_age or None,
            session_ttl=settings.session_ttl,
        ),
    )


def http_app(
    command: Sequence[str] = (),
    *,
    hooks: Sequence[Hook] = (),
    local: bool = True,
    **settings: object,
) -> ProxyApp:
    """Return an ASGI application that gives every session a backend of its own.

    `command`: what to start, with its arguments; the demo server where it is empty. `settings`:
    any of the command line's, with underscores (`idle=60, max_sessions=8`). `hooks` are called for
    every message that is passed on. `local`: only this machine asks; where other machines do,
    say `local=False` and who may ask by `allow_host`.

    Mounted in another application, pass `lifespan=app.lifespan` to that one. The server that runs
    it bounds connections, heads and slow bodies; `max_connections` is for our own.

    Raises: ConfigError: the command or a setting is wrong.
    """
    if isinstance(command, str):
        raise ConfigError("command: a list of words, not one string")
    values: Mapping[str, object] = settings
    return ProxyApp(settings_from(values, named="{}"), command, local=local, hooks=hooks)


# -- a server of our own ---------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: a signal drains first."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[override] # the base class is typed as generator
        yield


def listen(settings: Settings) -> socket.socket:
    """Return the socket to serve on.

    Raises: ConfigError: the address is taken, unknown, or not loopback without `insecure`.
    """
    if not is_loopback(settings.host) and not settings.insecure:
        raise ConfigError(
            f"--host {settings.host}: not a loopback address, and nobody is authenticated; "
            "--insecure serves everybody who can reach it"
        )
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"--host {settings.host}: {error.strerror}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(USER_TIMEOUT * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"--port {settings.port}: cannot listen on {where}: {error.strerror}"
        ) from None
    return sock


def serve(
    settings: Settings,
    command: Sequence[str],
    *,
    on_ready: Callable[[ProxyApp, str], None] = lambda app, url: None,
) -> None:
    """Serve until a signal says to stop. For a process of our own.

    `on_ready` is called with the application and the endpoint's URL once it listens.

    Raises: ConfigError: nothing was started.
    """
    app = ProxyApp(settings, command, local=is_loopback(settings.host), own_process=True)
    sock = listen(settings)
    with contextlib.closing(sock):
        anyio.run(_serve, app, sock, on_ready, backend_options={"use_uvloop": True})


async def _serve(
    app: ProxyApp, sock: socket.socket, on_ready: Callable[[ProxyApp, str], None]
) -> None:
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # not addresses to connect to
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    shown = f"[{host}]" if ":" in host else host
    refused: ConfigError | None = None
    try:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            # Outside of the lifespan: a signal while it ends must not kill us half-way.
            async with anyio.create_task_group() as hurrying:
                async with (
                    app.lifespan(),
                    app.watchdog.running(),
                    anyio.create_task_group() as tasks,
                ):
                    running = app.running
                    server = _Server(_uvicorn_config(app))

                    async def run() -> None:
                        await server.serve(sockets=[sock])
                        tasks.cancel_scope.cancel()

                    tasks.start_soon(run)
                    on_ready(app, f"http://{shown}:{port}{app.settings.path}")
                    async for number in signals:
                        name = signal.Signals(number).name
                        patience = app.settings.drain_timeout
                        logger.info(
                            "%s: draining for up to %g s; a second one ends at once", name, patience
                        )
                        break
                    hurrying.start_soon(_cut_short, running, signals)
                    if not await running.manager.drain(app.settings.drain_timeout):
                        logger.warning("requests in flight were cut off")
                    server.should_exit = True
                hurrying.cancel_scope.cancel()
    except* ConfigError as group:  # what is wrong is one thing, and no fault of a task's
        refused = _innermost(group)
    if refused is not None:
        raise refused


def _innermost(group: BaseExceptionGroup[ConfigError]) -> ConfigError:
    """Return the first error of a group, and of the groups in it."""
    error: ConfigError | BaseExceptionGroup[ConfigError] = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def max_connections(settings: Settings) -> int | None:
    """Return how many connections there may be; None: no limit."""
    open_files = descriptors.open_files()
    if settings.max_connections or open_files is None:
        return settings.max_connections or None
    backends = settings.max_sessions + settings.warm
    connections = connections_beside(backends, open_files=open_files)
    if connections < backends:
        logger.warning(
            "at most %d open files (ulimit -n) are few for %d backends and their clients; "
            "raise that limit, or lower --max-sessions",
            open_files,
            backends,
        )
    return connections


def heads_of(app: ProxyApp) -> Heads:
    """Return what the connections of a server of our own share."""
    return Heads(
        app.running.endpoint,
        keepalive=app.settings.keepalive,
        max_body=app.settings.max_body,
        max_connections=max_connections(app.settings),
        tally=app.tally,
    )


def _uvicorn_config(app: ProxyApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        http=FastLane.with_heads(heads_of(app)),
        timeout_keep_alive=75,
        ws="none",
        timeout_graceful_shutdown=5,
    )


async def _cut_short(running: Running, signals: AsyncIterator[signal.Signals]) -> None:
    """End at once at another signal, whatever is being waited for."""
    async for number in signals:
        logger.info("%s again: ending at once", signal.Signals(number).name)
        running.launcher.hurry()
        running.manager.hurry()

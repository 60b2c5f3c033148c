"""A server of our own that runs the proxy, from its first signal to its last.

Neighbours: `cli` calls `serve`; `app` has what is served.
"""

import asyncio  # noqa: TID251 - to say what a class of connections is
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import anyio
import uvicorn

from . import descriptors
from .app import ProxyApp, reread
from .config import (
    ConfigError,
    Mode,
    Settings,
    Switch,
)
from .core.callbacks import current_library, know_library
from .core.exchange import Hook
from .core.hooks import RequestHook
from .frontend.bounds import connections_beside
from .frontend.door import Door
from .frontend.fastlane import FastLane, Heads
from .http import Certificate, is_loopback
from .plan import Fronted
from .stopping import Orders, until_cancelled, until_signalled

logger: Final = logging.getLogger(__name__)

USER_TIMEOUT: Final = 30.0
"""Seconds after which a client that acknowledges nothing counts as gone (tcp(7),
TCP_USER_TIMEOUT)."""


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: a signal drains first."""

    @contextlib.contextmanager
    def capture_signals(self):  # the base class is typed as generator
        yield

    def let_go(self) -> None:
        """Have the event loop listen for nothing more, also where it was cancelled."""
        for server in getattr(self, "servers", ()):
            server.close()
        for connection in tuple(self.server_state.connections):
            connection.shutdown()


def listen(settings: Settings) -> socket.socket:
    """Return the socket to serve on.

    Raises: ConfigError: the address is taken or unknown; or it is not loopback, and nobody would
        be authenticated, or cookies not be kept.
    """
    if not is_loopback(settings.host):
        _check_beyond_loopback(settings)
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


def _check_beyond_loopback(settings: Settings) -> None:
    """Raises: ConfigError."""
    if not settings.insecure and not settings.token_file:
        raise ConfigError(
            f"--host {settings.host}: not a loopback address, and nobody is authenticated; "
            "--token-file says who may connect, --insecure serves everybody who can reach it"
        )
    if settings.key_cookie is Switch.ON and settings.tls_cert is None:
        raise ConfigError(
            "--key-cookie: clients keep it over HTTPS alone; give --tls-cert and --tls-key, or "
            "listen on loopback behind a server that speaks HTTPS"
        )


def certificate_from(settings: Settings) -> Certificate | None:
    """Raises: ConfigError: a file is missing, or the two do not belong together."""
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    if settings.tls_cert is None:
        raise ConfigError("--tls-cert: --tls-key needs it")
    if settings.tls_key is None:
        raise ConfigError("--tls-key: --tls-cert needs it")
    return Certificate(settings.tls_cert, settings.tls_key)


def serve(
    settings: Settings,
    command: Fronted,
    *,
    hooks: Sequence[RequestHook] = (),
    observers: Sequence[Hook] = (),
    on_ready: Callable[[ProxyApp, str], None] = lambda app, url: None,
) -> None:
    """Serve until a signal says to stop. For a process of our own.

    `hooks` and `observers`: as of `http_app`. `on_ready` is called with the application and the
    endpoint's URL once it listens.

    Raises: ConfigError: nothing was started.
    """
    app = ProxyApp(
        settings,
        command,
        local=is_loopback(settings.host),
        hooks=hooks,
        observers=observers,
        own_process=True,
    )
    certificate = certificate_from(settings)
    sock = listen(settings)
    with contextlib.closing(sock):
        anyio.run(
            _serve_heeding, app, sock, certificate, on_ready, backend_options={"use_uvloop": True}
        )


async def serve_async(
    settings: Settings,
    command: Fronted,
    *,
    hooks: Sequence[RequestHook] = (),
    observers: Sequence[Hook] = (),
    on_ready: Callable[[ProxyApp, str], None] = lambda app, url: None,
) -> None:
    """Serve in an event loop that runs already, until it is cancelled. Then it takes nothing new,
    and what is in flight has `drain_timeout` seconds. Signals are for whoever runs the loop.

    Raises: ConfigError: nothing was started.
    """
    local = is_loopback(settings.host)
    app = ProxyApp(settings, command, local=local, hooks=hooks, observers=observers)
    certificate = certificate_from(settings)
    with contextlib.closing(listen(settings)) as sock:
        await until_cancelled(partial(_serve, app, sock, certificate, on_ready))


async def _serve_heeding(
    app: ProxyApp,
    sock: socket.socket,
    certificate: Certificate | None,
    on_ready: Callable[[ProxyApp, str], None],
) -> None:
    """Serve until a signal says to stop; another one ends at once."""
    heeded = [signal.SIGTERM, signal.SIGINT]
    if certificate is not None or app.settings.token_file is not None:
        heeded.append(signal.SIGHUP)

    def heed(number: signal.Signals, orders: Orders) -> None:
        if number == signal.SIGHUP:
            if not orders.stop.is_set():
                _reread_all(app, certificate)
        elif orders.stop.is_set():
            logger.info("%s again: ending at once", number.name)
            orders.at_once()
        else:
            patience = app.settings.drain_timeout
            logger.info(
                "%s: draining for up to %g s; a second one ends at once", number.name, patience
            )
            orders.stop.set()

    await until_signalled(partial(_serve, app, sock, certificate, on_ready), heeded, heed)


async def _serve(
    app: ProxyApp,
    sock: socket.socket,
    certificate: Certificate | None,
    on_ready: Callable[[ProxyApp, str], None],
    orders: Orders,
) -> None:
    """Serve until that is ordered to stop."""
    failed: Exception | None = None
    try:
        async with app.lifespan(), app.watchdog.running(), anyio.create_task_group() as tasks:
            orders.are_for(app.running)
            server = _Server(_uvicorn_config(app, certificate))
            tasks.start_soon(_run, server, sock, tasks.cancel_scope)
            try:
                on_ready(app, _url_of(app, sock, certificate))
            except Exception as error:  # noqa: BLE001 - raised again, outside of all groups
                failed = error
            else:
                await orders.stop.wait()
                await _drain(app)
            server.should_exit = True
    except* ConfigError as group:  # what is wrong is one thing, and no fault of a task's
        failed = _innermost(group)
    if failed is not None:
        raise failed


async def _run(server: _Server, sock: socket.socket, around: anyio.CancelScope) -> None:
    know_library(current_library())  # for what is read, which a callback begins with at once
    try:
        await server.serve(sockets=[sock])
    finally:
        server.let_go()
    around.cancel()


async def _drain(app: ProxyApp) -> None:
    running = app.running
    running.end_streams()  # who comes back is told that this one drains
    if not await running.drain(app.settings.drain_timeout):
        logger.warning("requests in flight were cut off")
    running.sse.end_all()


def _url_of(app: ProxyApp, sock: socket.socket, certificate: Certificate | None) -> str:
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # not addresses to connect to
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    shown = f"[{host}]" if ":" in host else host
    scheme = "http" if certificate is None else "https"
    return f"{scheme}://{shown}:{port}{app.settings.path}"


def _reread_all(app: ProxyApp, certificate: Certificate | None) -> None:
    app.reread()
    if certificate is not None:
        reread("--tls-cert", certificate.reread)


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
    backends = (1 if settings.mode is Mode.SHARED else settings.max_sessions) + settings.warm
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
        keepalive=app.settings.keepalive,
        max_body=app.settings.max_body,
        max_connections=max_connections(app.settings),
        tally=app.tally,
    )


def protocol_of(app: ProxyApp, certificate: Certificate | None = None) -> type[asyncio.Protocol]:
    """Return the class of the connections to a server of our own."""
    http = FastLane.with_heads(heads_of(app))
    return http if certificate is None else Door.opening(http, certificate.context)


def _uvicorn_config(app: ProxyApp, certificate: Certificate | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        http=protocol_of(app, certificate),
        timeout_keep_alive=75,
        ws="none",
        timeout_graceful_shutdown=5,
    )

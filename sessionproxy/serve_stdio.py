"""Serves one client on stdin and stdout: `sessionproxy stdio`.

The process is the client's: it ends with it, and the backend with the process. Neighbours: `serve`
puts the pieces together; `cli` calls this.
"""

import logging
import signal
from collections.abc import Sequence
from functools import partial
from typing import Final

import anyio

from .app import ProxyApp
from .config import ConfigError, Settings
from .core.exchange import Hook
from .core.hooks import RequestHook
from .core.state import EndReason
from .frontend.pipes import Pipes, claimed
from .frontend.stdio import Stdio
from .plan import Fronted
from .stopping import Orders, until_cancelled, until_signalled

logger: Final = logging.getLogger(__name__)


def serve_stdio(
    settings: Settings,
    command: Fronted,
    *,
    hooks: Sequence[RequestHook] = (),
    observers: Sequence[Hook] = (),
) -> int:
    """Serve until stdin ends, or a signal says to stop; then no backend is left.

    Returns the exit status: 1 where neither of the two was why it ended.

    Raises: ConfigError: nothing was started.
    """
    app = ProxyApp(
        settings, command, local=True, hooks=hooks, observers=observers, own_process=True
    )
    with claimed() as pipes:
        return anyio.run(_serve_heeding, app, pipes, backend_options={"use_uvloop": True})


async def serve_stdio_async(
    settings: Settings,
    command: Fronted,
    *,
    hooks: Sequence[RequestHook] = (),
    observers: Sequence[Hook] = (),
) -> int:
    """As `serve_stdio`, in an event loop that runs already, until it is cancelled: that is as a
    signal is, and signals are for whoever runs the loop."""
    app = ProxyApp(settings, command, local=True, hooks=hooks, observers=observers)
    with claimed() as pipes:
        return await until_cancelled(partial(_serve, app, pipes))


async def _serve_heeding(app: ProxyApp, pipes: Pipes) -> int:
    """Serve until stdin ends or a signal says to stop; another one ends at once."""
    heeded = (signal.SIGTERM, signal.SIGINT)
    return await until_signalled(partial(_serve, app, pipes), heeded, _heed)


def _heed(number: signal.Signals, orders: Orders) -> None:
    """Have it end with a signal; with another one, or if it is ending already, at once."""
    if orders.stop.is_set():
        logger.info("%s: ending at once", number.name)
        orders.at_once()
    else:
        logger.info("%s: a second one ends at once", number.name)
        orders.stop.set()


async def _serve(app: ProxyApp, pipes: Pipes, orders: Orders) -> int:
    refused: ConfigError | None = None
    status = 1
    try:
        async with app.lifespan(), app.watchdog.running():
            orders.are_for(app.running)
            status = await _until_over(app, app.running.stdio(pipes), orders.stop)
            orders.stop.set()
            app.running.end_all(EndReason.DISCONNECTED)
    except* ConfigError as group:  # what is wrong is one thing, and no fault of a task's
        refused = next(error for error in group.exceptions if isinstance(error, ConfigError))
    if refused is not None:
        raise refused
    return status


async def _until_over(app: ProxyApp, client: Stdio, over: anyio.Event) -> int:
    """Serve until the client has gone, its session is over, or `over` is set; return the status."""
    left = False

    async def drain() -> None:
        await over.wait()
        logger.info("draining for up to %g s", app.settings.drain_timeout)
        app.running.end_streams()
        if not await app.running.drain(app.settings.drain_timeout):
            logger.warning("requests in flight were cut off")
        await client.finish()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain)
        left = await client.run()
        tasks.cancel_scope.cancel()
    return 0 if left or over.is_set() else 1

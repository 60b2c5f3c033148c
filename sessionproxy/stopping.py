"""How what serves is told to stop: by signals where the process is ours, else by being cancelled.

Neighbours: `serve` and `serve_stdio` have both ways.
"""

import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from .assembly import Running

T = TypeVar("T")


class Orders:
    """To stop, and then to do so at once."""

    def __init__(self) -> None:
        self.stop: anyio.Event = anyio.Event()
        """What is in flight may end first."""
        self._at_once = False
        self._running: Running | None = None

    def at_once(self) -> None:
        """From now on nothing is waited for."""
        self._at_once = True
        if self._running is not None:
            self._running.hurry()

    def are_for(self, running: Running) -> None:
        """Have it heed them, also those that came before it ran."""
        self._running = running
        if self._at_once:
            running.hurry()


async def until_signalled(
    serve: Callable[[Orders], Awaitable[T]],
    numbers: Sequence[signal.Signals],
    heed: Callable[[signal.Signals, Orders], None],
) -> T:
    """Return what `serve` comes to. `heed` is told each of these signals as it comes, and gives the
    orders; none of them kills us half-way, while it ends."""
    orders = Orders()
    results: list[T] = []
    failed: Exception | None = None
    with anyio.open_signal_receiver(*numbers) as signals:

        async def listen() -> None:
            async for number in signals:
                heed(signal.Signals(number), orders)

        async with anyio.create_task_group() as listening:
            listening.start_soon(listen)
            try:
                results.append(await serve(orders))
            except Exception as error:  # noqa: BLE001 - raised again, outside of the group
                failed = error
            listening.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return results[0]


async def until_cancelled(serve: Callable[[Orders], Awaitable[T]]) -> T:
    """Return what `serve` comes to. Being cancelled orders it to stop; being cancelled again while
    that lasts, which only a task of asyncio's can be, orders it to do so at once.

    Nothing within is cancelled: what is in flight needs all that runs.
    """
    orders, over = Orders(), anyio.Event()
    results: list[T] = []
    failed: Exception | None = None

    async def run() -> None:
        nonlocal failed
        try:
            with anyio.CancelScope(shield=True):
                results.append(await serve(orders))
        except Exception as error:  # noqa: BLE001 - raised again, outside of the group
            failed = error
        finally:
            over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            await over.wait()
        finally:
            orders.stop.set()
            try:
                with anyio.CancelScope(shield=True):
                    await over.wait()
            finally:
                orders.at_once()
    if failed is not None:
        raise failed
    return results[0]

"""Work that goes on beside an answer that is being waited for.

Neighbours: `frontend.handshake` and `frontend.modern` open and wake sessions so.
"""

import asyncio
from collections.abc import Coroutine

from .reply import Reply


def beside(reply: Reply, begin: Coroutine[None, None, None]) -> asyncio.Task[None]:
    """Run `begin` beside the answer; should it crash, who waits for `reply` is woken."""
    task = asyncio.ensure_future(begin)

    def done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            reply.release()

    task.add_done_callback(done)
    return task


def raise_crash(task: asyncio.Task[None]) -> None:
    """Raise what `task` crashed with, if it did."""
    if task.done() and not task.cancelled():
        task.result()

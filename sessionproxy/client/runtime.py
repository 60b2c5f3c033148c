"""What runs for as long as a client is connected: in a task of its own, so that whoever connects
and whoever disconnects last may be two.

Neighbours: `client.client` and `client.proxy` hold one each; all clients of a process stand on the
same ground.
"""

import asyncio  # noqa: TID251 - a task that outlives whoever began it, and no task group is there
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import Context
from typing import Final, Generic, TypeVar, cast

import anyio

from ..config import Settings
from ..ground import Ground, containment_from

logger: Final = logging.getLogger(__name__)

T = TypeVar("T")


class Held(Generic[T]):
    """Holds what a context manager gives, for as long as anybody needs it.

    The first who enters opens it and the last who leaves closes it; those between share it. It is
    opened and closed in one task, in a context of its own.
    """

    def __init__(self, open_: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._open = open_
        self._holds = 0
        self._value: T | None = None
        self._failure: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = anyio.Event()
        self._over = anyio.Event()

    @property
    def value(self) -> T | None:
        """None: nobody holds it."""
        return self._value

    @property
    def holds(self) -> int:
        return self._holds

    async def enter(self) -> T:
        """Hold it. Raises: what opening it raises; whoever waits for the same opening too."""
        if self._holds == 0 and self._task is not None:
            await self._gone(self._task)  # the last one is still being closed
        self._holds += 1
        if self._task is None:
            self._ready, self._over, self._failure = anyio.Event(), anyio.Event(), None
            self._task = asyncio.create_task(self._run(), context=Context())
        try:
            await self._ready.wait()
            if self._failure is not None:
                raise self._failure
        except BaseException:
            await self.leave()
            raise
        assert self._value is not None
        return self._value

    async def leave(self) -> None:
        """Hold it no more; the last one waits until it is closed."""
        self._holds -= 1
        task = self._task
        if self._holds == 0 and task is not None:
            self._over.set()
            with anyio.CancelScope(shield=True):  # bounded by what stopping is bounded by
                await self._gone(task)

    async def _gone(self, task: asyncio.Task[None]) -> None:
        await asyncio.wait([task])
        if self._task is task:
            self._task = None

    async def _run(self) -> None:
        try:
            async with self._open() as self._value:
                self._ready.set()
                await self._over.wait()
        except Exception as error:  # whoever waits for it is to have it
            if self._ready.is_set():
                logger.exception("a connection could not be closed")
            self._failure = _alone(error)
        finally:
            self._value = None
            self._ready.set()


def _alone(error: BaseException) -> BaseException:
    """Return what the task groups that it came through have wrapped up."""
    while isinstance(error, BaseExceptionGroup):
        several = cast("BaseExceptionGroup[BaseException]", error)
        if len(several.exceptions) != 1:
            return several
        error = several.exceptions[0]
    return error


_GROUNDS: dict[tuple[object, ...], Held[Ground]] = {}
"""By event loop and settings."""


@asynccontextmanager
async def common_ground(settings: Settings) -> AsyncGenerator[Ground]:
    """Stand on the ground that all clients of this process have in common.

    Raises: ConfigError: the state directory cannot be used.
    """
    key = (
        id(asyncio.get_running_loop()),
        settings.state_dir,
        settings.containment,
        settings.memory_max,
        settings.pids_max,
    )
    held = _GROUNDS.get(key)
    if held is None:
        held = _GROUNDS[key] = Held(lambda: _ground(settings))
    try:
        yield await held.enter()
    finally:
        await held.leave()
        if held.holds == 0:
            _GROUNDS.pop(key, None)


@asynccontextmanager
async def _ground(settings: Settings) -> AsyncGenerator[Ground]:
    containment = containment_from(settings, own_process=False)
    async with Ground.open(settings, containment, Counter()) as ground:
        yield ground

"""What runs for as long as a client is connected: in a task of its own, so that whoever connects
and whoever disconnects last may be two.

Neighbours: `client.client` and `client.proxy` hold such, one of their own and one for each session
in front that they work for; all clients of a process stand on the same ground.
"""

import asyncio  # noqa: TID251 - a task that outlives whoever began it, and no task group is there
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import Context
from typing import Final, Generic, TypeVar

import anyio

from ..config import ConfigError, Settings
from ..core.context import caller_authorization, inside
from ..core.reach import Scope
from ..errors import BackendGone, ProxyError, alone
from ..ground import Ground, containment_from

logger: Final = logging.getLogger(__name__)

T = TypeVar("T")


class _Life(Generic[T]):
    """From its opening until it is closed."""

    def __init__(
        self,
        open_: Callable[[], AbstractAsyncContextManager[T]],
        context: Context,
        *,
        cancels: bool,
    ) -> None:
        """`context`: in which it is opened and closed, and which is not used elsewhere."""
        self._open = open_
        self._cancels = cancels
        self._scope = anyio.CancelScope()
        self.ready = anyio.Event()
        """It is open, or could not be opened."""
        self.over = anyio.Event()
        """It is to be closed, or is closed already."""
        self.value: T | None = None
        self.failure: BaseException | None = None
        context.run(inside.set, (*inside.get(), self))
        self.task = asyncio.create_task(self._run(), context=context)

    async def _run(self) -> None:
        try:
            with self._scope:
                async with self._open() as self.value:
                    self.ready.set()
                    await self.over.wait()
        except Exception as error:  # whoever waits for it is to have it
            if self.ready.is_set():
                logger.exception("a connection could not be closed")
            self.failure = alone(error, ProxyError, ConfigError)
        finally:
            self.value = None
            self.over.set()
            self.ready.set()

    async def end(self) -> None:
        """Close it, and wait until it is. Idempotent. Who belongs to it is cancelled meanwhile."""
        self.over.set()
        if not self.ready.is_set() and self._cancels:
            self._scope.cancel()  # nobody waits for what is being opened
        if not self.is_stranded:
            # Bounded by what stopping is bounded by, unless it waits for this very task.
            with anyio.CancelScope(shield=self not in inside.get()):
                await asyncio.wait([self.task])

    @property
    def is_stranded(self) -> bool:
        """Whether its event loop has gone from under it."""
        return self.task.done() or self.task.get_loop().is_closed()


class Held(Generic[T]):
    """Holds what a context manager gives, for as long as anybody needs it.

    The first who enters opens it and the last who leaves closes it; those between share it. It is
    opened and closed in one task, in a context of its own.
    """

    def __init__(
        self, open_: Callable[[], AbstractAsyncContextManager[T]], *, cancels: bool = True
    ) -> None:
        """`cancels`: what nobody waits for any more while it is being opened is cut off; else it is
        opened, which takes no time, and closed."""
        self._open = open_
        self._cancels = cancels
        self._holds = 0
        self._passing = 0
        self._life: _Life[T] | None = None

    @property
    def value(self) -> T | None:
        """None: it is not open."""
        return None if self._life is None else self._life.value

    @property
    def holds(self) -> int:
        return self._holds

    @property
    def lasts(self) -> bool:
        """Whether anybody holds it for longer than in passing."""
        return self._holds > self._passing

    async def enter(self, *, in_passing: bool = False) -> T:
        """Hold it. `in_passing`: for no longer than a moment.

        Raises: what opening it raises, as does everyone who waits for the same opening;
            RuntimeError: it is held in another event loop.
        """
        self._look_around()
        self._holds += 1
        self._passing += in_passing
        try:
            return await self._opened()
        except BaseException:
            if self._holds:  # what it was held in has not gone meanwhile
                await self.leave(in_passing=in_passing)
            raise

    async def _opened(self) -> T:
        while self._life is not None and self._life.over.is_set():
            await self._gone(self._life)
        if self._life is None:
            self._life = _Life(self._open, self._context(), cancels=self._cancels)
        life = self._life
        await life.ready.wait()
        if life.failure is not None:
            raise life.failure
        if life.value is None:
            raise BackendGone("It was closed while it was being opened.")
        return life.value

    def _context(self) -> Context:
        """Return one with nothing of whoever is the first to come."""
        return Context()

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[T]:
        """Hold it. Raises: as `enter`."""
        found = await self.enter()
        try:
            yield found
        finally:
            with anyio.CancelScope(shield=True):  # the last one waits until it is closed
                await self.leave()

    def hold(self) -> None:
        """Hold once more what is held already."""
        self._holds += 1

    async def leave(self, *, in_passing: bool = False) -> None:
        """Hold it no more; the last one waits until it is closed.

        Raises: RuntimeError: nobody holds it.
        """
        if self._holds == 0:
            raise RuntimeError("it was left more often than it was entered")
        self._holds -= 1
        self._passing -= in_passing
        if self._holds == 0:
            await self.end()

    async def end(self) -> None:
        """Close it, whoever holds it; who enters then opens it anew."""
        life = self._life
        if life is not None:
            await life.end()
            await self._gone(life)

    async def _gone(self, life: _Life[T]) -> None:
        await life.end()
        if self._life is life:
            self._life = None

    def _look_around(self) -> None:
        """Forget one whose event loop was closed while it was held. Raises: RuntimeError."""
        life = self._life
        if life is None or life.task.get_loop() is asyncio.get_running_loop():
            return
        if not life.is_stranded:
            raise RuntimeError("it is held in another event loop")
        self._life, self._holds, self._passing = None, 0, 0


class Kept(Held[T]):
    """Stays open once it was, for as long as a session in front has its backend."""

    def __init__(
        self, open_: Callable[[], AbstractAsyncContextManager[T]], *, scope: Scope
    ) -> None:
        """`scope`: of the session. Where it is over, nobody would let go: then it stays open only
        while it is used."""
        super().__init__(open_)
        self._stays = False
        self._let_go = scope.is_over
        if not scope.is_over:
            scope.on_end(self.let_go)

    async def enter(self, *, in_passing: bool = False) -> T:
        found = await super().enter(in_passing=in_passing)
        if not self._stays and not self._let_go:
            self._stays = True
            self.hold()
        return found

    def _context(self) -> Context:
        """Return one with the credential of the caller: all who come are of one session."""
        context = super()._context()
        context.run(caller_authorization.set, caller_authorization.get())
        return context

    async def let_go(self) -> None:
        """Close it, once nobody uses it."""
        self._let_go = True
        if self._stays:
            self._stays = False
            await self.leave()

    def _look_around(self) -> None:
        super()._look_around()
        if self._holds == 0:  # what it was held in has gone
            self._stays = False


GROUNDS: dict[tuple[object, ...], Held[Ground]] = {}
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
    held = GROUNDS.get(key)
    if held is None:
        held = GROUNDS[key] = Held(lambda: _ground(settings), cancels=False)
    try:
        ground = await held.enter()
        try:
            yield ground
        finally:
            await held.leave()
    finally:
        if held.holds == 0 and GROUNDS.get(key) is held:
            del GROUNDS[key]


@asynccontextmanager
async def _ground(settings: Settings) -> AsyncGenerator[Ground]:
    containment = containment_from(settings, own_process=False)
    async with Ground.open(settings, containment, Counter()) as ground:
        yield ground

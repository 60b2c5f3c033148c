"""Shared mode: one backend for all sessions of a route, for servers that keep no state.

It is started when the first session needs it, introduces itself once, and is stopped when none has
had a share in it for a while. It lives in a task of its own, so that neither the session that came
first nor one that goes takes it along. Neighbours: `assembly` puts this around the launcher of a
transport, and `eras` around this; `backends.share` is what a session sees of the backend.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Self

import anyio

from ..core.admission import retry_after
from ..core.background import Background
from ..core.latch import Latch
from ..core.memory import Opening
from ..core.pauses import Pauses
from ..core.ports import Identity, Launcher, Upstream
from ..core.reach import Scope
from ..core.start import introduced
from ..core.timers import Timer, Timers
from ..errors import (
    BackendStartFailed,
    Draining,
    Exit,
    ProxyError,
)
from .share import Share, SharedBackend

logger: Final = logging.getLogger(__name__)

SHARED: Final = "shared"
"""Owner, key and label of the one backend: it is no session's."""


class _Life:
    """One life of the backend, from its launch until it is gone."""

    def __init__(self, opening: Opening, tally: Counter[str]) -> None:
        self.opening = opening
        self.shared = SharedBackend(
            modern=opening.modern, tally=tally, over=self._ended, useless=self._useless
        )
        self.settled = Latch()
        """It has started, or has failed to."""
        self.failure: ProxyError | None = None
        self._failure_told = False
        self.over = Latch()
        """It is to be stopped, and takes no more sessions."""
        self.gone = Latch()
        self.how: Exit | None = None
        """How the backend ended, where it did so by itself."""
        self.given_up: Exit | None = None
        """Why it is to be ended though it runs."""
        self.holds = 0
        """Sessions that have a share in it, or wait for one."""
        self.expiry: Timer | None = None

    @property
    def is_open(self) -> bool:
        return self.settled.is_set() and self.failure is None and not self.over.is_set()

    def end(self, why: str) -> None:
        """Have it stopped. Idempotent."""
        if not self.over.is_set():
            logger.info("the shared backend stops: %s", why)
            self.over.set()

    def _ended(self, how: Exit) -> None:
        self.how = how
        self.end(f"the backend ended: {how}")

    def _useless(self, how: Exit) -> None:
        self.given_up = how
        self.end(str(how))

    def fresh_failure(self) -> ProxyError:
        """Return why it cannot be had; it counts for the first who hears of it alone."""
        if self.failure is None:
            text = f"The backend ended as soon as it had started: {self.how}."
            self.failure = BackendStartFailed(text, self.how)
        failure = self.failure.fresh()
        if isinstance(failure, BackendStartFailed):
            failure.counted, self._failure_told = self._failure_told, True
        return failure


class SharedLauncher(anyio.AsyncContextManagerMixin):
    """A `Launcher` that gives all sessions a `Share` of one backend. Enter it for as long as there
    are sessions; on exit the backend is gone."""

    def __init__(
        self,
        launcher: Launcher,
        route: str,
        timers: Timers,
        pauses: Pauses,
        *,
        linger: float,
        start_timeout: float,
        user_of: Callable[[Identity], str] = lambda identity: identity.owner,
        tally: Counter[str] | None = None,
    ) -> None:
        """`linger`: seconds for which the backend outlives its last session. `start_timeout`:
        seconds from its launch until it has introduced itself. `user_of` returns whose a session
        is: what may be another user's goes to none."""
        self._launcher = launcher
        self._identity = Identity(route, SHARED, SHARED)
        self._timers = timers
        self._pauses = pauses
        self._linger = linger
        self._start_timeout = start_timeout
        self._user_of = user_of
        self._tally = tally if tally is not None else Counter[str]()
        self._background = Background()
        self._life: _Life | None = None
        self._closing = False

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._background:  # what stops the backend is shielded, and bounded
            try:
                yield self
            finally:
                self._closing = True

    @property
    def backends(self) -> int:
        """How many run: one or none."""
        return 0 if self._life is None else 1

    # -- for sessions ------------------------------------------------------------------------------

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Share]:
        """Give a session a share. The first one's `opening` is what the backend is asked first, and
        is of the same era for all.

        Raises: BackendStartFailed, InitializeRefused, Shortage, Draining: on entry.
        """
        life = await self._join(opening)
        async with Scope() as scope:
            share = life.shared.admit(self._user_of(identity), upstream)
            share.scope = scope
            try:
                yield share
            finally:
                share.close()
                self._give_back(life)

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False

    async def _join(self, opening: Opening) -> _Life:
        """Hold a life of the backend that is open; one at a time."""
        while True:
            life = self._life or self._begin(opening)
            if life.opening.modern != opening.modern or life.over.is_set():
                await life.gone.wait()
                continue
            self._hold(life)
            try:
                await life.settled.wait()
                if not life.is_open:
                    raise life.fresh_failure()
            except BaseException:
                self._give_back(life)
                raise
            return life

    def _hold(self, life: _Life) -> None:
        life.holds += 1
        if life.expiry is not None:
            life.expiry.cancel()
            life.expiry = None

    def _give_back(self, life: _Life) -> None:
        life.holds -= 1
        self._look(life)

    def _look(self, life: _Life) -> None:
        """Have a backend stopped, after a while, that nobody holds."""
        if life.holds or not life.is_open:
            return
        if self._linger:
            life.expiry = self._timers.after(self._linger, lambda: life.end("nobody needs it"))
        else:
            life.end("nobody needs it")

    # -- the backend -------------------------------------------------------------------------------

    def _begin(self, opening: Opening) -> _Life:
        """Raises: Draining."""
        if self._closing:
            raise Draining("the proxy is shutting down", retry_after=retry_after())
        life = self._life = _Life(opening, self._tally)
        self._background.start(self._run, life)
        return life

    async def _run(self, life: _Life) -> None:
        try:
            await self._live(life)
        except ProxyError as error:
            life.failure = error.with_traceback(None)
        except Exception:  # as in a session's task: it must not take the others along
            logger.exception("the shared backend failed")
            life.failure = BackendStartFailed("The backend could not be started.")
        finally:
            life.over.set()
            if life.expiry is not None:
                life.expiry.cancel()
            self._life = None
            life.gone.set()
            life.settled.set()

    async def _live(self, life: _Life) -> None:
        async with AsyncExitStack() as held:
            await self._start(life, held)
            logger.info("the shared backend has started")
            if not life.over.is_set():
                life.settled.set()
            self._look(life)
            await life.over.wait()
            if life.given_up is not None and life.how is None:
                life.shared.end(life.given_up)

    async def _start(self, life: _Life, held: AsyncExitStack) -> None:
        """Launch the backend, to be stopped by `held`, and have it introduce itself."""
        shared, opening = life.shared, life.opening
        with self._pauses.move_on_after(self._start_timeout):
            launching = self._launcher.launch(self._identity, SHARED, shared, opening)
            backend = await held.enter_async_context(launching)
            shared.started(backend, await introduced(backend, opening))
            return
        limit = f"{self._start_timeout:g} s"
        raise BackendStartFailed(f"The backend did not answer {opening.method} in {limit}.")

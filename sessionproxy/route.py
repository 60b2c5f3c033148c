"""One server behind the proxy: what launches its backends, and what finds out about it.

Neighbours: `plan` says what it is made of; `assembly` puts frontends before routes, and several
routes together; `ground` is what all routes have in common.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import accumulate
from typing import Self

import anyio

from .backends import (
    MemoryLauncher,
    Pool,
    RemoteLauncher,
    SharedLauncher,
    StdioLauncher,
    Target,
    Template,
)
from .backends.fresh import FreshLauncher
from .backends.names import Names
from .backends.observed import ObservedLauncher
from .backends.parts import Stand
from .backends.renamed import RenamingLauncher
from .config import Mode, Settings
from .core.admission import Admission
from .core.aside import Aside
from .core.catalogue import Catalogue
from .core.circuit import Circuit
from .core.exchange import Hook
from .core.ports import Launcher
from .eras import EraLauncher
from .ground import Ground
from .plan import Custom, Planned, StandsIn, Starts


class Route(anyio.AsyncContextManagerMixin):
    """Enter it for as long as anything may be launched; on exit its backends are gone."""

    def __init__(
        self,
        ground: Ground,
        planned: Planned,
        admission: Admission,
        *,
        shared_sessions: bool,
        knows_users: bool,
        hooks: Sequence[Hook] = (),
    ) -> None:
        """`admission`: lets backends in that are no session's. `shared_sessions`: clients of both
        eras may meet in one session. `knows_users`: an owner is one user."""
        self.name: str = planned.name
        self.settings: Settings = planned.settings
        self.takes_place: bool = planned.takes_place
        self.names: Names = Names(planned.prefix, planned.rules)
        self.circuit: Circuit = Circuit()
        self._ground = ground
        self._hooks = hooks
        self._catalogue: Catalogue | None = None
        self._aside = Aside()
        self.pool: Pool | None = None
        self.transport: Starts
        """Launches its backends, whatever stands around them."""
        self.transport, self._running = self._transport(planned)
        self.shared: SharedLauncher = SharedLauncher(
            self.transport,
            self.name,
            ground.timers,
            ground.pauses,
            linger=self.settings.shared_linger,
            start_timeout=self.settings.start_timeout,
            user_of=lambda found: found.owner if knows_users else found.key,
            tally=ground.tally,
        )
        """Used in shared mode alone."""
        mode = self.settings.mode
        self.eras: EraLauncher = EraLauncher(
            self.transport,
            ground.timers,
            ground.rounds,
            shared_sessions=shared_sessions,
            probe_timeout=self.settings.start_timeout / 2,  # the rest is for the start itself
            handshake_first=isinstance(planned.source, Target),
            shared=self.shared if mode is Mode.SHARED else None,
            aside=self._aside,
            circuit=self.circuit,
        )
        patience = self.settings.start_timeout
        self._fresh = FreshLauncher(self.eras, admission, start_timeout=patience)
        plain: Launcher = self._fresh if mode is Mode.REQUEST else self.eras
        if hooks and isinstance(planned.source, Custom):
            plain = ObservedLauncher(plain, hooks)
        self._around = list(accumulate(planned.around, _put_around, initial=plain))
        self.backends: Launcher = self._around[-1]
        """Launches what a session has."""
        source = planned.source
        self.stand: Stand | None = source if isinstance(source, StandsIn) else None
        self.within: tuple[object, ...] = planned.within
        self.about: Mapping[str, str] = planned.about

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._running)
            for each in (self.shared, self._aside, self._fresh):
                await held.enter_async_context(each)
            for each in self._around[1:]:
                if isinstance(each, AbstractAsyncContextManager):
                    await held.enter_async_context(each)
            yield self

    @property
    def alone(self) -> Launcher:
        """Launches what a session has of this server alone: under the names of the operator's."""
        names = Names(rules=self.names.rules)
        return self.backends if names.changes_nothing else RenamingLauncher(self.backends, names)

    def knows(self, catalogue: Catalogue) -> None:
        """Have the catalogue of this server alone tell what is known of its tools, too."""
        if Names(rules=self.names.rules).changes_nothing:
            self._catalogue = catalogue

    def _transport(self, planned: Planned) -> tuple[Starts, AbstractAsyncContextManager[object]]:
        """Return what launches backends, and what has to run meanwhile."""
        source, settings, ground = planned.source, self.settings, self._ground
        if isinstance(source, Target):
            remote = RemoteLauncher(
                source,
                max_line=settings.max_line,
                hooks=self._hooks,
                tally=ground.tally,
                schemas=self._schemas,
            )
            return remote, remote
        if isinstance(source, Template):
            launcher = StdioLauncher(
                source,
                ground.state,
                ground.containment,
                stop_grace=settings.stop_grace,
                max_line=settings.max_line,
                hooks=self._hooks,
                tally=ground.tally,
                take_spare=lambda: pool.take(),
            )
            pool = self.pool = Pool(launcher, settings.warm)
            return launcher, pool
        if isinstance(source, Custom):
            made = source.starts()
            return made, made
        memory = MemoryLauncher(
            source,
            stop_grace=settings.stop_grace,
            max_line=settings.max_line,
            hooks=self._hooks,
            tally=ground.tally,
        )
        return memory, memory

    def _schemas(self) -> Mapping[str, bytes]:
        """Return the input schemas of tools that ask for headers, as far as known."""
        known = None if self._catalogue is None else self._catalogue.known
        return {} if known is None else known.schemas


def _put_around(launcher: Launcher, around: Callable[[Launcher], Launcher]) -> Launcher:
    return around(launcher)

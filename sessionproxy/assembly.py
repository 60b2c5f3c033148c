"""Puts the pieces of one proxy together, for as long as it runs.

Neighbours: `app` says what was decided before anything runs, and serves what this yields.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import anyio

from .backends import (
    MemoryLauncher,
    Pool,
    RemoteLauncher,
    SharedLauncher,
    StateDir,
    StdioLauncher,
    Target,
    Template,
)
from .backends.containment.ports import Containment
from .config import (
    Affinity,
    HandleUse,
    Mode,
    OnLoss,
    Settings,
    Switch,
)
from .core.aside import Aside
from .core.binding import SessionIds
from .core.catalogue import Catalogue
from .core.circuit import Circuit
from .core.exchange import Hook
from .core.manager import SessionManager
from .core.pauses import Pauses
from .core.timers import Timers
from .eras import OURSELVES, EraLauncher, Rounds
from .frontend import Endpoint, Health
from .frontend.handles import Handles
from .frontend.handshake import Handshake
from .frontend.handshake_channel import HandshakeChannel
from .frontend.keys import KeyFinder, Places
from .frontend.listening import Listeners
from .frontend.modern import Modern
from .frontend.modern_channel import ModernChannel
from .frontend.pipes import Pipes
from .frontend.serving import Serving
from .frontend.sse import MESSAGES, LegacySse
from .frontend.stdio import Stdio
from .http import Authenticator, Guard
from .plan import Source, limits_from

ROUTE: Final = "default"
"""Name of the one configured backend."""

LOCAL: Final = "local"
"""The owner of what comes from this machine alone."""


@dataclass(frozen=True, slots=True)
class Running:
    """The pieces of a proxy that serves."""

    manager: SessionManager
    launcher: StdioLauncher | RemoteLauncher | MemoryLauncher
    pool: Pool | None
    shared: SharedLauncher
    """Used in shared mode alone."""
    endpoint: Endpoint
    health: Health
    listeners: Listeners
    sse: LegacySse
    stdio: Callable[[Pipes], Stdio]
    """Makes the frontend of a process with one client."""


class _Behind(NamedTuple):
    """What stands behind the sessions."""

    launcher: StdioLauncher | RemoteLauncher | MemoryLauncher
    pool: Pool | None
    launching: AbstractAsyncContextManager[object]
    """Has to run meanwhile."""
    shared: SharedLauncher
    eras: EraLauncher
    aside: Aside
    circuit: Circuit
    pauses: Pauses
    timers: Timers


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembly:
    """What the pieces are made of."""

    settings: Settings
    fronted: Source
    state: StateDir
    containment: Containment
    guard: Guard
    authenticator: Authenticator
    serving: Serving
    knows_users: bool
    """An owner is one user."""
    hooks: Sequence[Hook]
    tally: Counter[str]
    facts: Callable[[], dict[str, object]]
    """What `/readyz` shows besides the counts."""

    @asynccontextmanager
    async def running(self, key: bytes) -> AsyncGenerator[Running]:
        """Run them. `key`: the secret of ids and rounds."""
        ids, rounds = SessionIds(key), Rounds(key)
        behind = self._behind(rounds, lambda: known_schemas(catalogue))
        manager = self._manager(behind, ids)
        catalogue = self._catalogue(behind)
        manager.lists_changed = catalogue.changed
        running = self._in_front(behind, manager, catalogue, ids, rounds)
        async with (
            behind.launching,
            behind.shared,
            behind.aside,
            manager,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(catalogue.run)
            yield running
            running.listeners.end_all()
            tasks.cancel_scope.cancel()

    # -- behind the sessions -----------------------------------------------------------------------

    def _behind(self, rounds: Rounds, schemas: Callable[[], Mapping[str, bytes]]) -> _Behind:
        launcher, pool, launching = self._launcher(schemas)
        pauses, aside, circuit = Pauses(), Aside(), Circuit()
        timers = Timers(pauses)
        shared = SharedLauncher(
            launcher,
            ROUTE,
            timers,
            pauses,
            linger=self.settings.shared_linger,
            start_timeout=self.settings.start_timeout,
            user_of=lambda found: found.owner if self.knows_users else found.key,
            tally=self.tally,
        )
        eras = EraLauncher(
            launcher,
            timers,
            rounds,
            shared_sessions=self._shares,
            probe_timeout=self.settings.start_timeout / 2,  # the rest is for the start itself
            shared=shared if self.settings.mode is Mode.SHARED else None,
            aside=aside,
            circuit=circuit,
        )
        return _Behind(launcher, pool, launching, shared, eras, aside, circuit, pauses, timers)

    def _launcher(
        self, schemas: Callable[[], Mapping[str, bytes]]
    ) -> tuple[
        StdioLauncher | RemoteLauncher | MemoryLauncher,
        Pool | None,
        AbstractAsyncContextManager[object],
    ]:
        """Return what launches backends, the pool of spares, where there can be such, and what has
        to run meanwhile."""
        if isinstance(self.fronted, Target):
            remote = RemoteLauncher(
                self.fronted,
                max_line=self.settings.max_line,
                hooks=self.hooks,
                tally=self.tally,
                schemas=schemas,
            )
            return remote, None, remote
        if not isinstance(self.fronted, Template):
            memory = MemoryLauncher(
                self.fronted,
                stop_grace=self.settings.stop_grace,
                max_line=self.settings.max_line,
                hooks=self.hooks,
                tally=self.tally,
            )
            return memory, None, memory
        launcher = StdioLauncher(
            self.fronted,
            self.state,
            self.containment,
            stop_grace=self.settings.stop_grace,
            max_line=self.settings.max_line,
            hooks=self.hooks,
            tally=self.tally,
            take_spare=lambda: pool.take(),
        )
        pool = Pool(launcher, self.settings.warm)
        return launcher, pool, pool

    # -- the sessions ------------------------------------------------------------------------------

    def _manager(self, behind: _Behind, ids: SessionIds) -> SessionManager:
        return SessionManager(
            ROUTE,
            behind.eras,
            limits_from(self.settings),
            ids,
            keeps_ids=self.settings.on_loss is not OnLoss.NOT_FOUND,
            stateless=self.settings.mode is Mode.SHARED,
            pauses=behind.pauses,
            timers=behind.timers,
            circuit=behind.circuit,
        )

    def _catalogue(self, behind: _Behind) -> Catalogue:
        return Catalogue(
            ROUTE,
            behind.eras,
            OURSELVES,
            ttl=self.settings.catalogue_ttl,
            timeout=self.settings.start_timeout,
            public=self.settings.catalogue_public,
            aside=behind.aside,
            circuit=behind.circuit,
        )

    # -- in front of them --------------------------------------------------------------------------

    def _in_front(
        self,
        behind: _Behind,
        manager: SessionManager,
        catalogue: Catalogue,
        ids: SessionIds,
        rounds: Rounds,
    ) -> Running:
        listeners = Listeners(manager, catalogue)
        minted = partial(ids.minted, ROUTE)
        keys = KeyFinder(self._places(), minted, lambda owner: ids.mint(ROUTE, owner))
        shared_keys = keys if self._shares else None
        handles = self._handles(manager, minted)
        modern = Modern(manager, catalogue, keys, rounds, listeners, self.serving, handles)
        handshake = Handshake(manager, self.serving, modern, shared_keys)
        one_client = (manager, catalogue, modern, rounds, listeners, self.serving, LOCAL)
        return Running(
            manager,
            behind.launcher,
            behind.pool,
            behind.shared,
            Endpoint(manager, self.guard, self.authenticator, self.serving, handshake, modern),
            Health(manager, self.guard, self.facts),
            listeners,
            self._sse(manager, modern, ids, shared_keys),
            lambda pipes: Stdio(
                pipes,
                partial(HandshakeChannel, manager, self.serving, LOCAL),
                partial(ModernChannel, *one_client),
                max_line=self.settings.max_body,
                max_unread=self.settings.max_line,
            ),
        )

    def _handles(
        self, manager: SessionManager, minted: Callable[[str, str], bool]
    ) -> Handles | None:
        if self.settings.handles is HandleUse.OFF:
            return None
        return Handles(
            manager,
            minted,
            required=self.settings.handles is HandleUse.REQUIRED,
            idle=self.settings.idle or None,
        )

    @property
    def _shares(self) -> bool:
        """Whether handshake clients may share sessions."""
        return self.settings.affinity not in (None, Affinity.SESSION)

    def _places(self) -> Places:
        affinity = self.settings.affinity
        return Places(
            affinity=Affinity.CONVERSATION if affinity in (None, Affinity.SESSION) else affinity,
            header=self.settings.key_header,
            meta=self.settings.key_meta,
            cookie=self.settings.key_cookie is Switch.ON,
            default=self.settings.default_session is Switch.ON and self.knows_users,
            unguessable=not self.knows_users,
            handles=self.settings.handles is not HandleUse.OFF,
            path=self.settings.path,
        )

    def _sse(
        self, manager: SessionManager, modern: Modern, ids: SessionIds, keys: KeyFinder | None
    ) -> LegacySse:
        return LegacySse(
            manager,
            self.guard,
            self.authenticator,
            self.serving,
            modern,
            ids,
            messages_path=beside(self.settings, MESSAGES),
            max_unread=self.settings.max_line,
            keys=keys,
        )


def beside(settings: Settings, path: str) -> str:
    """Return a path beside the endpoint's."""
    return settings.path.rpartition("/")[0] + path


def known_schemas(catalogue: Catalogue) -> Mapping[str, bytes]:
    """Return the input schemas of tools that ask for headers, as far as known."""
    return {} if catalogue.known is None else catalogue.known.schemas

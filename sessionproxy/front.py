"""What clients of one route meet: its sessions, what it offers, and the frontends before them.

Neighbours: `assembly` has one for the endpoint, and one for each of several servers.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import anyio

from .config import (
    Affinity,
    HandleUse,
    OnLoss,
    Settings,
    Switch,
)
from .core.admission import Admission
from .core.aside import Aside
from .core.catalogue import Catalogue
from .core.circuit import Circuit
from .core.manager import Limits, SessionManager
from .core.ports import Launcher
from .eras import OURSELVES
from .frontend import Endpoint
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
from .ground import Ground
from .http import Authenticator, Guard

LOCAL: Final = "local"
"""The owner of what comes from this machine alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Made by `Fronts.open`."""

    manager: SessionManager
    catalogue: Catalogue
    endpoint: Endpoint
    listeners: Listeners
    sse: LegacySse
    stdio: Callable[[Pipes], Stdio]
    """Makes the frontend of a process with one client."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fronts:
    """What all of them have in common."""

    settings: Settings
    ground: Ground
    guard: Guard
    authenticator: Authenticator
    serving: Serving
    knows_users: bool
    """An owner is one user."""

    @asynccontextmanager
    async def open(
        self,
        name: str,
        launcher: Launcher,
        limits: Limits,
        circuit: Circuit,
        admission: Admission | None,
        *,
        stateless: bool,
        by_owner: bool = False,
    ) -> AsyncGenerator[Front]:
        """Serve sessions of what `launcher` launches. `name`, `circuit`: of their route.
        `admission`: None for one of their own. `stateless`: nothing of a client's is in its
        backend. `by_owner`: what there is may be another thing for each user."""
        manager = SessionManager(
            name,
            launcher,
            limits,
            self.ground.ids,
            keeps_ids=self.settings.on_loss is not OnLoss.NOT_FOUND,
            stateless=stateless,
            admission=admission,
            pauses=self.ground.pauses,
            timers=self.ground.timers,
            circuit=circuit,
        )
        async with AsyncExitStack() as held:
            aside = await held.enter_async_context(Aside())
            catalogue = Catalogue(
                name,
                launcher,
                OURSELVES,
                ttl=self.settings.catalogue_ttl,
                timeout=limits.start_timeout,
                public=self.settings.catalogue_public,
                by_owner=by_owner and self._tells_users_apart,
                aside=aside,
                circuit=circuit,
                pauses=self.ground.pauses,
            )
            manager.lists_changed = catalogue.changed
            await held.enter_async_context(manager)
            tasks = await held.enter_async_context(anyio.create_task_group())
            tasks.start_soon(catalogue.run)
            yield self._in_front(manager, catalogue)
            tasks.cancel_scope.cancel()

    @property
    def _tells_users_apart(self) -> bool:
        """Whether an owner is a user, and what there is may not be the same for all."""
        return self.settings.token_file is not None and not self.settings.catalogue_public

    def _in_front(self, manager: SessionManager, catalogue: Catalogue) -> Front:
        ids, rounds = self.ground.ids, self.ground.rounds
        listeners = Listeners(manager, catalogue)
        minted = partial(ids.minted, manager.route)
        keys = KeyFinder(self._places(), minted, lambda owner: ids.mint(manager.route, owner))
        shared_keys = keys if shares_sessions(self.settings) else None
        handles = self._handles(manager, minted)
        modern = Modern(manager, catalogue, keys, rounds, listeners, self.serving, handles)
        handshake = Handshake(manager, self.serving, modern, shared_keys)
        one_client = (manager, catalogue, modern, rounds, listeners, self.serving, LOCAL)
        return Front(
            manager=manager,
            catalogue=catalogue,
            endpoint=Endpoint(
                manager, self.guard, self.authenticator, self.serving, handshake, modern
            ),
            listeners=listeners,
            sse=self._sse(manager, modern, shared_keys),
            stdio=lambda pipes: Stdio(
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

    def _sse(self, manager: SessionManager, modern: Modern, keys: KeyFinder | None) -> LegacySse:
        return LegacySse(
            manager,
            self.guard,
            self.authenticator,
            self.serving,
            modern,
            self.ground.ids,
            messages_path=beside(self.settings, MESSAGES),
            max_unread=self.settings.max_line,
            keys=keys,
        )


def shares_sessions(settings: Settings) -> bool:
    """Return whether handshake clients may share sessions."""
    return settings.affinity not in (None, Affinity.SESSION)


def beside(settings: Settings, path: str) -> str:
    """Return a path beside the endpoint's."""
    return settings.path.rpartition("/")[0] + path

"""A client of one server, or several: typed calls, and handlers for what the server asks.

Neighbours: `client.connection` connects it, `client.calls` has the calls, `client.handlers` the
handlers; `client.provider` and `client.proxy` make proxies of it.
"""

import copy as copies
import itertools
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, Self, Unpack
from weakref import WeakSet

import anyio
import mcp_types as types

from ..config import ConfigError, Settings
from ..core.exchange import Outcome
from ..core.reach import REACH, Scope
from ..errors import BackendGone
from ..keywords import ProxySettings
from ..plan import OF_FRONTS, OF_SERVERS, OF_THE_PROCESS, Planned
from ..servers import NO_RULES, Rules
from ..wire import Bytes
from .calls import Calls
from .connection import Connection, connected
from .handled import WITH_PROGRESS, HandlingLauncher
from .handlers import (
    PROGRESS,
    ElicitationHandler,
    Handlers,
    LogHandler,
    ProgressHandler,
    RootsHandler,
    SamplingHandler,
    default_proxy_elicitation_handler,
    default_proxy_log_handler,
    default_proxy_progress_handler,
    default_proxy_roots_handler,
    default_proxy_sampling_handler,
)
from .link import Listener
from .runtime import Held, Kept
from .shared import ConnectedSource
from .targets import (
    ProxyTarget,
    check_heeded,
    check_taken,
    keeping,
    plan_of,
    read,
    said_in,
    servers_of,
    settings_over,
    under,
)

_FAMILIES: Final = itertools.count(1)

CLIENT_SETTINGS = {"idle": 0.0, "linger": 0.0}
"""Unless said otherwise: a client says itself how long it needs its server."""


KEPT: Final = ("start_timeout", "call_timeout", "stop_grace", "max_line", *OF_THE_PROCESS)
"""Settings that are about its server, and are not in what it is started with."""

_TO_A_PROXY: Final = "is for clients on the network, and nobody connects to a client"

OF_PROXIES: Final = {
    "config": "give the file as the target",
    "url": "give it as the target",
    "mode": "a client has one session",
    "log_level": 'set that of the logger "sessionproxy"',
    "on_loss": "a call raises StateLost",
    **dict.fromkeys(OF_FRONTS, _TO_A_PROXY),
    **dict.fromkeys(
        ("catalogue_ttl", "drain_timeout", "expose_stderr", "log_json", "max_body", "tracing"),
        _TO_A_PROXY,
    ),
}
"""Settings that mean nothing here."""


class ProxyClient(Calls):
    """A client. `async with` connects it, on first need; the last one who leaves disconnects it.

    It may be entered again while it is connected, also by others at the same time: all share one
    session. What a server asks (roots, sampling, elicitation) and tells (log messages, progress)
    goes to the five handlers. The default ones pass it on to the client of the proxy that the
    present code works for, as it was written; None switches one off, and the server is not told of
    the capability.
    """

    def __init__(
        self,
        target: ProxyTarget,
        *,
        name: str = "sessionproxy",
        roots_handler: RootsHandler | None = default_proxy_roots_handler,
        sampling_handler: SamplingHandler | None = default_proxy_sampling_handler,
        elicitation_handler: ElicitationHandler | None = default_proxy_elicitation_handler,
        log_handler: LogHandler | None = default_proxy_log_handler,
        progress_handler: ProgressHandler | None = default_proxy_progress_handler,
        rules: Rules | Mapping[str, Any] = NO_RULES,
        **settings: Unpack[ProxySettings],
    ) -> None:
        """`target`, `rules`: as of `create_proxy`. `name`: by which it introduces itself.
        `settings`: those of the command line, with underscores, but for those that are about
        clients on the network; a configuration's own count where they are about servers.

        Raises: ConfigError: the target, a handler or a setting is wrong.
        """
        self.target = target
        self.name = name
        self.family: int = next(_FAMILIES)
        """The same for all its copies: what one of them is shown, all are."""
        self.handlers: Handlers = Handlers(
            roots=roots_handler,
            sampling=sampling_handler,
            elicitation=elicitation_handler,
            log=log_handler,
            progress=progress_handler,
        )
        self.handlers.check()
        for name, instead in OF_PROXIES.items():
            if name in settings:
                raise ConfigError(f"{name}: {instead}")
        given = read(target)
        self.settings: Settings = settings_over(
            given, settings, defaults=CLIENT_SETTINGS, only=OF_SERVERS
        )
        self._servers = servers_of(given, self.settings, rules)
        said = said_in(settings, self.settings)
        check_taken(said, given, self._servers)
        check_heeded(said, self._servers)
        self._own = {name: getattr(self.settings, name) for name in said if name in KEPT}
        """What was said of its server, which a proxy of it heeds too."""
        self._held = Held(self._opens())
        self._bound: WeakSet[ProxyClient] = WeakSet()
        """Its copies of frontend sessions."""

    def _opens(self) -> "Callable[[], AbstractAsyncContextManager[Connection]]":
        plan = plan_of(self._servers, name=None, instructions=None)
        return partial(connected, self.settings, plan, self.handlers, self.name)

    def __repr__(self) -> str:
        state = "connected" if self.is_connected else "disconnected"
        return f"<{type(self).__name__} {self.name} {state}>"

    # -- its connection ----------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether it is connected now."""
        return self._held.value is not None

    async def __aenter__(self) -> Self:
        """Raises: ProxyError: the server cannot be had; nothing stays."""
        await self._held.enter()
        return self

    async def __aexit__(self, *why: object) -> None:
        await self._held.leave()

    @asynccontextmanager
    async def in_passing(self) -> AsyncGenerator[Self]:
        """Hold it for a request that somebody else has, and for nothing longer.

        Raises: ProxyError: the server cannot be had; nothing stays.
        """
        await self._held.enter(in_passing=True)
        try:
            yield self
        finally:
            await self._held.leave(in_passing=True)

    @property
    def is_last(self) -> bool:
        """Whether it is disconnected with the next one who leaves."""
        return self._held.holds == 1

    @property
    def lasts(self) -> bool:
        """Whether anybody holds it for longer than a request."""
        return self._held.lasts

    @property
    def connection(self) -> Connection:
        """Raises: BackendGone: it is not connected."""
        found = self._held.value
        if found is None:
            raise BackendGone("The client is not connected: use it within `async with`.")
        return found

    def new(self) -> Self:
        """Return a client like this one, of its class, with a connection of its own, not connected
        yet."""
        return self._copied(Held(self._opens()))

    def _copied(self, held: Held[Connection]) -> Self:
        """Return a copy with this connection. It is not made anew: what a class of the user's wants
        to be given is known to the user alone."""
        made = copies.copy(self)
        made._held = held
        made._bound = WeakSet()
        return made

    async def outcome_of(
        self, method: str, params: Bytes | None, progress_handler: ProgressHandler | None
    ) -> Outcome:
        return await self.connection.link.request(method, params, progress=progress_handler)

    def hears_progress(self, method: str) -> bool:
        if method not in WITH_PROGRESS or self.handlers.is_off(PROGRESS):
            return False
        if not self.handlers.passes_on(PROGRESS):
            return True
        reach = REACH.get()
        return reach is not None and reach.token is not None

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` told method and encoded parameters of notifications that belong to no
        request, while it is connected; call what is returned to end that."""
        listeners = self.connection.link.port.listeners
        listeners.append(listener)
        return partial(listeners.remove, listener)

    # -- who its server is -------------------------------------------------------------------------

    @property
    def initialize_result(self) -> types.InitializeResult:
        """How the server introduced itself. Raises: BackendGone: it is not connected."""
        return types.InitializeResult.model_validate_json(self.connection.link.welcome)

    @property
    def server_info(self) -> types.Implementation:
        """Raises: BackendGone: it is not connected."""
        return self.initialize_result.server_info

    @property
    def server_capabilities(self) -> types.ServerCapabilities:
        """Raises: BackendGone: it is not connected."""
        return self.initialize_result.capabilities

    @property
    def instructions(self) -> str | None:
        """Raises: BackendGone: it is not connected."""
        return self.initialize_result.instructions

    # -- as a target -------------------------------------------------------------------------------

    def planned(self, settings: Settings) -> Sequence[Planned]:
        """Return what a proxy of this client has: its session, where it is connected; else backends
        of their own, with its handlers between."""
        if self.is_connected:
            return [Planned(name="default", source=ConnectedSource(self), settings=settings)]
        if self.handlers.has_own:
            # They are the client's, so it has a session itself, one for each session of the proxy.
            from .provider import ProxyProvider

            return ProxyProvider(self._of_session).planned(settings)
        servers = under(settings, keeping(self._own, self._servers, settings))
        if self.handlers == Handlers():
            return servers
        around = partial(HandlingLauncher, handlers=self.handlers)
        return [replace(server, around=(*server.around, around)) for server in servers]

    def _of_session(self) -> Self:
        """Return the copy of the frontend session that is being served; made now, if it has none.
        It stays connected once it was, until the session is over.

        Raises: RuntimeError: none is.
        """
        reach = REACH.get()
        if reach is None:
            raise RuntimeError(
                "no frontend session is being served here; this is for providers, and for tools "
                "and hooks of a proxy"
            )
        return reach.scope.kept(self, partial(self._bind, reach.scope))

    def _bind(self, scope: Scope) -> Self:
        copy = self._copied(Kept(self._opens(), scope=scope))
        self._bound.add(copy)
        return copy


class StatefulProxyClient(ProxyClient):
    """A client whose copies last as long as the frontend sessions that they were made for.

    `new_stateful` is a factory for a `ProxyProvider`: each session of the proxy has one copy, so
    one backend, which is gone when the session is.
    """

    def new_stateful(self) -> Self:
        """Return the copy of the frontend session that is being served; made now, if it has none.

        Raises: RuntimeError: none is.
        """
        return self._of_session()

    async def clear(self) -> None:
        """Disconnect all copies: every backend is gone. The next call of a session has a fresh
        one."""
        async with anyio.create_task_group() as tasks:
            for copy in tuple(self._bound):
                tasks.start_soon(copy._held.end)

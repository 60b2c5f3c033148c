"""Puts the pieces together: the proxy as an ASGI application.

Neighbours: `serve` runs it on a server of our own, `serve_stdio` for one client on stdin and
stdout; other applications call `http_app` and mount what they get.
"""

import logging
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, cast

import anyio

from .backends import Limits as TreeLimits
from .backends import (
    MemoryLauncher,
    Pool,
    RemoteLauncher,
    SharedLauncher,
    StateDir,
    StdioLauncher,
    Template,
    chosen,
)
from .backends.statedir import default_state_dir
from .backends.stdio import Child
from .config import (
    Affinity,
    ConfigError,
    HandleUse,
    Mode,
    OnLoss,
    Settings,
    Switch,
    settings_from,
)
from .core.aside import Aside
from .core.binding import SessionIds
from .core.catalogue import Catalogue
from .core.circuit import Circuit
from .core.context import caller_authorization
from .core.exchange import Hook
from .core.manager import SessionManager
from .core.pauses import Pauses
from .core.timers import Timers
from .eras import OURSELVES, EraLauncher, Rounds
from .errors import UnknownPath
from .frontend import Endpoint, Health
from .frontend.connection import Connection
from .frontend.handles import Handles
from .frontend.handshake_channel import HandshakeChannel
from .frontend.keys import PATH_KEY, KeyFinder, Places
from .frontend.listening import Listeners
from .frontend.modern import Modern
from .frontend.modern_channel import ModernChannel
from .frontend.pipes import Pipes
from .frontend.problems import http_problem
from .frontend.serving import Serving
from .frontend.sse import MESSAGES, STREAM, LegacySse
from .frontend.stdio import Stdio
from .http import Anybody, Guard, TokenFile, path_within
from .http.request import Receive, Scope, Send
from .ops import Watchdog
from .plan import (
    Fronted,
    check_together,
    knows_users,
    limits_from,
    served_from,
    target_from,
)

logger = logging.getLogger(__name__)

DEMO: Final = (sys.executable, "-m", "sessionproxy.demo")
"""What is fronted where no command is given."""

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


class ProxyApp:
    """The proxy as an ASGI application.

    Served on its own it runs by itself. Mounted in another application it needs that one to run
    its `lifespan`, since backends live as long as it does:

        app = Starlette(routes=[Mount("/tools", app=proxy)], lifespan=proxy.lifespan)
    """

    def __init__(
        self,
        settings: Settings,
        command: Fronted,
        *,
        local: bool,
        hooks: Sequence[Hook] = (),
        own_process: bool = False,
    ) -> None:
        """`local`: it serves this machine alone. `own_process`: nothing else runs beside it.

        Raises: ConfigError: the command or a setting is wrong.
        """
        check_together(settings)
        self.settings = settings
        self._tokens = TokenFile(settings.token_file) if settings.token_file else None
        self._authenticator = self._tokens or Anybody(LOCAL if local else "anonymous")
        self._local = local
        self._knows_users = knows_users(settings, local=local)
        """An owner is one user."""
        if settings.affinity is Affinity.PRINCIPAL and not self._knows_users:
            raise ConfigError(
                "--affinity principal: without users all who connect would share one session; "
                "give --token-file"
            )
        self._hooks = tuple(hooks)
        self._template = self._target = self._served = None
        if settings.url is not None:
            self._target = target_from(settings, command)
        elif not isinstance(command, Sequence):
            self._served = served_from(settings, command)
        else:
            words = cast("Sequence[str]", command) or DEMO
            self._template = Template(
                words, cwd=settings.cwd, env=settings.env, pass_env=settings.pass_env
            )
        self._guard = Guard(
            local=local,
            authenticated=self._tokens is not None,
            hosts=settings.allow_host,
            origins=settings.allow_origin,
        )
        limits = TreeLimits(settings.memory_max or None, settings.pids_max or None)
        self.containment = chosen(settings.containment.value, limits, own_process=own_process)
        self.tally: Counter[str] = Counter()
        """What was dropped or refused below the level of a request, by name."""
        self.watchdog = Watchdog()
        """Run by our own server alone: in others the event loop is not ours."""
        self._running: Running | None = None
        root = self.settings.state_dir
        self._state_root = default_state_dir() if root is None else Path(root).expanduser()

    @property
    def running(self) -> Running:
        """Raises: RuntimeError: the application's lifespan has not been entered."""
        if self._running is None:
            raise RuntimeError(
                "the proxy is not running: serve it with its lifespan, or pass "
                "lifespan=app.lifespan to the application it is mounted in"
            )
        return self._running

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:
        """Run the proxy: on exit every session has ended and every backend is gone.

        Raises: ConfigError: the state directory cannot be used.
        """
        state = StateDir.open(self._state_root)
        try:
            key = state.key()  # what is wrong is told before anything runs
            swept = await anyio.to_thread.run_sync(state.sweep, self.containment.end_left_over)
            if swept:
                logger.warning("%d backends of an earlier proxy were swept away", swept)
            async with self.containment.running(state.instance), self._run(state, key) as running:
                self._running = running
                try:
                    yield
                finally:
                    self._running = None
        finally:
            state.close()

    @asynccontextmanager
    async def _run(self, state: StateDir, key: bytes) -> AsyncGenerator[Running]:
        launcher, pool, launching = self._launcher(state, lambda: known_schemas(catalogue))
        pauses = Pauses()
        timers = Timers(pauses)
        rounds = Rounds(key)
        aside = Aside()
        circuit = Circuit()
        is_shared = self.settings.mode is Mode.SHARED
        shared = SharedLauncher(
            launcher,
            ROUTE,
            timers,
            pauses,
            linger=self.settings.shared_linger,
            start_timeout=self.settings.start_timeout,
            user_of=lambda found: found.owner if self._knows_users else found.key,
            tally=self.tally,
        )
        eras = EraLauncher(
            launcher,
            timers,
            rounds,
            shared_sessions=self._shares,
            probe_timeout=self.settings.start_timeout / 2,  # the rest is for the start itself
            shared=shared if is_shared else None,
            aside=aside,
            circuit=circuit,
        )
        ids = SessionIds(key)
        manager = SessionManager(
            ROUTE,
            eras,
            limits_from(self.settings),
            ids,
            keeps_ids=self.settings.on_loss is not OnLoss.NOT_FOUND,
            stateless=is_shared,
            pauses=pauses,
            timers=timers,
            circuit=circuit,
        )
        catalogue = Catalogue(
            ROUTE,
            eras,
            OURSELVES,
            ttl=self.settings.catalogue_ttl,
            timeout=self.settings.start_timeout,
            public=self.settings.catalogue_public,
            aside=aside,
            circuit=circuit,
        )
        manager.lists_changed = catalogue.changed
        listeners = Listeners(manager, catalogue)
        keys = KeyFinder(
            self._places(), partial(ids.minted, ROUTE), lambda owner: ids.mint(ROUTE, owner)
        )
        handles = None
        if self.settings.handles is not HandleUse.OFF:
            handles = Handles(
                manager,
                partial(ids.minted, ROUTE),
                required=self.settings.handles is HandleUse.REQUIRED,
                idle=self.settings.idle or None,
            )
        modern = Modern(manager, catalogue, keys, rounds, listeners, self._serving(), handles)
        async with launching, shared, aside, manager, anyio.create_task_group() as tasks:
            tasks.start_soon(catalogue.run)
            yield Running(
                manager,
                launcher,
                pool,
                shared,
                Endpoint(
                    manager,
                    self._guard,
                    self._authenticator,
                    self._serving(),
                    modern,
                    keys if self._shares else None,
                ),
                Health(manager, self._guard, self.facts),
                listeners,
                self._sse(manager, modern, ids, keys if self._shares else None),
                lambda pipes: Stdio(
                    pipes,
                    partial(HandshakeChannel, manager, self._serving(), LOCAL),
                    partial(
                        ModernChannel,
                        *(manager, catalogue, modern, rounds, listeners, self._serving(), LOCAL),
                    ),
                    max_line=self.settings.max_body,
                    max_unread=self.settings.max_line,
                ),
            )
            listeners.end_all()
            tasks.cancel_scope.cancel()

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
            default=self.settings.default_session is Switch.ON and self._knows_users,
            unguessable=not self._knows_users,
            handles=self.settings.handles is not HandleUse.OFF,
            path=self.settings.path,
        )

    def _launcher(
        self, state: StateDir, schemas: Callable[[], Mapping[str, bytes]]
    ) -> tuple[
        StdioLauncher | RemoteLauncher | MemoryLauncher,
        Pool | None,
        AbstractAsyncContextManager[object],
    ]:
        """Return what launches backends, the pool of spares, where there can be such, and what has
        to run meanwhile."""
        if self._target is not None:
            remote = RemoteLauncher(
                self._target,
                max_line=self.settings.max_line,
                hooks=self._hooks,
                tally=self.tally,
                schemas=schemas,
            )
            return remote, None, remote
        if self._served is not None:
            memory = MemoryLauncher(
                self._served,
                stop_grace=self.settings.stop_grace,
                max_line=self.settings.max_line,
                hooks=self._hooks,
                tally=self.tally,
            )
            return memory, None, memory
        launcher = self._stdio_launcher(state, lambda: pool.take())
        pool = Pool(launcher, self.settings.warm)
        return launcher, pool, pool

    def _stdio_launcher(
        self, state: StateDir, take_spare: Callable[[], Child | None]
    ) -> StdioLauncher:
        assert self._template is not None
        return StdioLauncher(
            self._template,
            state,
            self.containment,
            stop_grace=self.settings.stop_grace,
            max_line=self.settings.max_line,
            hooks=self._hooks,
            tally=self.tally,
            take_spare=take_spare,
        )

    def _sse(
        self, manager: SessionManager, modern: Modern, ids: SessionIds, keys: KeyFinder | None
    ) -> LegacySse:
        return LegacySse(
            manager,
            self._guard,
            self._authenticator,
            self._serving(),
            modern,
            ids,
            messages_path=self._beside(MESSAGES),
            max_unread=self.settings.max_line,
            keys=keys,
        )

    def _beside(self, path: str) -> str:
        """Return a path beside the endpoint's."""
        return self.settings.path.rpartition("/")[0] + path

    def _serving(self) -> Serving:
        expose = self.settings.expose_stderr
        alone = self._local and self._tokens is None
        return Serving(
            max_body=self.settings.max_body,
            keepalive=self.settings.keepalive,
            on_loss=self.settings.on_loss,
            idle=self.settings.idle or None,
            start_timeout=self.settings.start_timeout,
            expose_stderr=alone if expose is None else expose,
        )

    def reread(self) -> None:
        """Read the token file again. One that is wrong changes nothing, and the log says so."""
        if self._tokens is not None:
            reread("--token-file", self._tokens.reread)

    def facts(self) -> dict[str, object]:
        """Return what `/readyz` shows besides the counts."""
        shared = self.settings.mode is Mode.SHARED
        return {
            **({"backends": self.running.shared.backends} if shared else {}),
            "containment": self.containment.name,
            "orphans": self.containment.orphans,
            "dropped": dict(self.tally),
            "stalls": self.watchdog.stalls,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan_protocol(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the proxy does not serve {scope['type']}")
        if self.settings.forward_authorization:
            # Without the extension by which later requests would take the short way.
            scope = {**scope, "extensions": {}}
            caller_authorization.set(dict(scope["headers"]).get(b"authorization", b""))
        path = path_within(scope)
        if path in (self.settings.path, self.settings.path + "/"):
            await self.running.endpoint(scope, receive, send)
        elif (key := self._path_key(path)) is not None:
            await self.running.endpoint(scope, receive, send, key)
        elif path in ("/healthz", "/readyz"):
            await self.running.health(scope, receive, send)
        elif self.settings.sse is Switch.ON and path.rstrip("/") == self._beside(STREAM):
            await self.running.sse.stream(scope, receive, send)
        elif self.settings.sse is Switch.ON and path.rstrip("/") == self._beside(MESSAGES):
            await self.running.sse.messages(scope, receive, send)
        else:
            logger.info("refused: unknown_path (%s)", _redacted(path))
            error = UnknownPath(self._not_found(path))
            await Connection(receive, send).problem(http_problem(error))

    def _not_found(self, path: str) -> str:
        if path.startswith(self.settings.path + "/s/"):
            return "not found: a name in the path has 1 to 256 letters, digits, and . _ ~ -"
        return f"not found; the endpoint is {self.settings.path}"

    def _path_key(self, path: str) -> str | None:
        """Return the name of the conversation that stands in a path, if one does."""
        before = self.settings.path + "/s/"
        key = path.removeprefix(before)
        return key if path.startswith(before) and PATH_KEY.fullmatch(key) else None

    async def _lifespan_protocol(self, receive: Receive, send: Send) -> None:
        """ASGI specification, lifespan protocol."""
        await receive()
        started = False
        try:
            async with self.lifespan():
                started = True
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
        except BaseException as error:
            what = "shutdown" if started else "startup"
            await send({"type": f"lifespan.{what}.failed", "message": str(error)})
            raise


def _redacted(path: str) -> str:
    """Return a path without what may be the name of a conversation."""
    before, slash, key = path.partition("/s/")
    return f"{before}{slash}..." if key else path


def known_schemas(catalogue: Catalogue) -> Mapping[str, bytes]:
    """Return the input schemas of tools that ask for headers, as far as known."""
    return {} if catalogue.known is None else catalogue.known.schemas


def reread(option: str, reread: Callable[[], None]) -> None:
    try:
        reread()
    except ConfigError as error:
        logger.error("%s; the old one stays in use", error)
    else:
        logger.info("%s: read again", option)


def http_app(
    command: Fronted = (),
    *,
    hooks: Sequence[Hook] = (),
    local: bool = True,
    **settings: object,
) -> ProxyApp:
    """Return an ASGI application that gives every session a backend of its own.

    `command`: what to start, with its arguments; the demo server where it is empty. Or a server of
    the SDK (`MCPServer`, or `Server` of `mcp.server.lowlevel`), which is run in this process, once
    for every session and with a lifespan of its own; or a function that returns one, at once or
    when awaited, which is called for every session.

    `settings`: any of the command line's, with underscores (`idle=60, max_sessions=8`). `hooks` are
    called for every message that is passed on. `local`: only this machine asks; where other
    machines do, say `local=False` and who may ask by `allow_host`.

    Mounted in another application, pass `lifespan=app.lifespan` to that one. The server that runs
    it bounds connections, heads and slow bodies; `max_connections` is for our own.

    Raises: ConfigError: the command or a setting is wrong.
    """
    if isinstance(command, str):
        raise ConfigError("command: a list of words, not one string")
    values: Mapping[str, object] = settings
    return ProxyApp(settings_from(values, named="{}"), command, local=local, hooks=hooks)

"""Puts the pieces together: the proxy as an ASGI application.

Neighbours: `serve` runs it on a server of our own, `serve_stdio` for one client on stdin and
stdout; other applications call `http_app` and mount what they get.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Unpack

from .assembly import Assembly, Running
from .backends.containment.ports import Containment
from .config import (
    Affinity,
    ConfigError,
    Mode,
    Settings,
    Switch,
)
from .core.context import caller_authorization
from .core.exchange import Hook
from .core.hooks import RequestHook
from .errors import UnknownPath
from .front import LOCAL, Front, Fronts, beside
from .frontend import Health
from .frontend.connection import Connection
from .frontend.keys import PATH_KEY
from .frontend.problems import http_problem
from .frontend.serving import Serving
from .frontend.sse import MESSAGES, STREAM
from .ground import Ground, containment_from
from .http import Anybody, Guard, TokenFile, path_within
from .http.request import Receive, Scope, Send
from .keywords import AppSettings
from .ops import Numbers, Scrape, Watchdog
from .plan import (
    Fronted,
    Growing,
    Plan,
    check_hooks,
    check_together,
    knows_users,
    plan_from,
    told,
)
from .servers import Configuration
from .version import VERSION

if TYPE_CHECKING:
    from .ops.tracing import Tracing

logger: Final = logging.getLogger(__name__)

SERVERS: Final = "/servers/"
"""Below this, beside the endpoint, each server has an endpoint of its own: `NAME/mcp`."""


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
        hooks: Sequence[RequestHook] = (),
        observers: Sequence[Hook] = (),
        own_process: bool = False,
    ) -> None:
        """`local`: it serves this machine alone. `hooks` are run around every request, those that
        there are when it starts; `observers` are shown every message. `own_process`: nothing else
        runs beside it.

        Raises: ConfigError: the command, a setting, a hook or an observer is wrong.
        """
        check_together(settings, several=isinstance(command, Configuration | Plan | Growing))
        _check_path(settings)
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
        self._hooks = hooks
        self._observers = tuple(observers)
        check_hooks(self._hooks, self._observers)
        self._fronted = command if isinstance(command, Growing) else plan_from(settings, command)
        self._guard = Guard(
            local=local,
            authenticated=self._tokens is not None,
            hosts=settings.allow_host,
            origins=settings.allow_origin,
        )
        self.containment: Containment = containment_from(settings, own_process=own_process)
        self.tally: Counter[str] = Counter()
        """What was dropped or refused below the level of a request, by name."""
        self.watchdog: Watchdog = Watchdog()
        """Run by our own server alone: in others the event loop is not ours."""
        self._refusals: Counter[str] = Counter()
        self._tracing = tracing_from(settings)
        self._scrape = Scrape(self._numbers, own_process=own_process)
        self._is_entered = False
        self._running: Running | None = None
        self._health: Health

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
        """Run the proxy: on exit every session has ended and every backend is gone. It may be run
        again then, with what was added meanwhile.

        Raises: ConfigError: the state directory cannot be used; RuntimeError: it runs already.
        """
        if self._is_entered:
            raise RuntimeError("the proxy runs already: its lifespan is entered once at a time")
        self._is_entered = True
        try:
            async with self._run():
                yield
        finally:
            self._is_entered = False

    @asynccontextmanager
    async def _run(self) -> AsyncGenerator[None]:
        grounded = Ground.open(self.settings, self.containment, self.tally)
        async with grounded as ground, self._assembly(ground).running() as running:
            self._health = Health(
                running.manager, self._guard, self.facts, running.admission, self._scrape.page
            )
            self._running = running
            try:
                yield
            finally:
                self._running = None

    def _assembly(self, ground: Ground) -> Assembly:
        fronts = Fronts(
            settings=self.settings,
            ground=ground,
            guard=self._guard,
            authenticator=self._authenticator,
            serving=self._serving(),
            knows_users=self._knows_users,
        )
        return Assembly(
            settings=self.settings,
            plan=plan_from(self.settings, self._fronted),
            version=VERSION,
            ground=ground,
            fronts=fronts,
            hooks=tuple(self._hooks),
            observers=self._observers,
            tracing=self._tracing,
        )

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
            refusals=self._refusals,
        )

    def reread(self) -> None:
        """Read the token file again. One that is wrong changes nothing, and the log says so."""
        if self._tokens is not None:
            reread("--token-file", self._tokens.reread)

    def facts(self) -> dict[str, object]:
        """Return what `/readyz` shows besides the counts."""
        running, shared = self.running, self.settings.mode is Mode.SHARED
        backends = sum(route.shared.backends for route in running.routes)
        servers = {member.name: member.facts() for member in running.members}
        return {
            **({"backends": backends} if shared else {}),
            **({"servers": servers} if servers else running.routes[0].about),
            "containment": self.containment.name,
            "orphans": self.containment.orphans,
            "dropped": dict(self.tally),
            "stalls": self.watchdog.stalls,
        }

    def _numbers(self) -> Numbers:
        """Return what `/metrics` shows."""
        running, shared = self.running, self.settings.mode is Mode.SHARED
        backends = sum(route.shared.backends for route in running.routes)
        return Numbers(
            running.managers,
            backends=backends if shared else running.admission.running,
            queued=running.admission.queued,
            refusals=self._refusals,
            dropped=self.tally,
            orphans=self.containment.orphans,
            stalls=self.watchdog.stalls,
            containment=self.containment.name,
            version=VERSION,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan_protocol(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the proxy does not serve {scope['type']}")
        if self._tracing is not None:
            scope = self._tracing.arrived(scope)
        if self.settings.forward_authorization:
            # Without the extension by which later requests would take the short way.
            scope = {**scope, "extensions": {}}
            caller_authorization.set(dict(scope["headers"]).get(b"authorization", b""))
        path = path_within(scope)
        front, rest = self._front_at(path)
        if rest in ("", "/"):
            await front.endpoint(scope, receive, send)
        elif rest is not None and (key := _path_key(rest)) is not None:
            await front.endpoint(scope, receive, send, key)
        elif path in ("/healthz", "/readyz", "/metrics"):
            await self._health(scope, receive, send)
        elif self.settings.sse is Switch.ON and path.rstrip("/") == beside(self.settings, STREAM):
            await self.running.sse.stream(scope, receive, send)
        elif self.settings.sse is Switch.ON and path.rstrip("/") == beside(self.settings, MESSAGES):
            await self.running.sse.messages(scope, receive, send)
        else:
            logger.info("refused: unknown_path (%s)", _redacted(path))
            self._refusals[UnknownPath.reason] += 1
            error = UnknownPath(self._not_found(path, scope.get("root_path", "")))
            await Connection(receive, send).problem(http_problem(error))

    def _front_at(self, path: str) -> tuple[Front, str | None]:
        """Return whose endpoint a path is at, and what follows it; None: it is at none."""
        running = self.running
        rest = _below(path, self.settings.path)
        if rest is not None:
            return running.front, rest
        name, slash, at = path.removeprefix(beside(self.settings, SERVERS)).partition("/")
        front = running.servers.get(name) if running.each else None
        if front is None or not path.startswith(beside(self.settings, SERVERS)):
            return running.front, None
        return front, _below(slash + at, "/mcp")

    def _not_found(self, path: str, root: str) -> str:
        """`root`: where the application that serves us has put us."""
        if path.startswith(self.settings.path + "/s/"):
            return "not found: a name in the path has 1 to 256 letters, digits, and . _ ~ -"
        each = beside(self.settings, SERVERS)
        if path.startswith(each) and self.running.each and len(self.running.servers) > 1:
            return f"not found; the endpoint of a server is {root}{each}NAME/mcp"
        return f"not found; the endpoint is {root}{self.settings.path}"

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


def _check_path(settings: Settings) -> None:
    """Raises: ConfigError: the endpoint is where clients of HTTP+SSE are served."""
    taken = (beside(settings, STREAM), beside(settings, MESSAGES))
    if settings.sse is Switch.ON and settings.path in taken:
        raise ConfigError(
            f"--path {settings.path}: there clients of HTTP+SSE are served; give another one, or "
            "--sse off"
        )


def tracing_from(settings: Settings) -> "Tracing | None":
    """Return what makes spans, where that is wanted; else nothing of it is even imported."""
    if settings.tracing is Switch.OFF:
        return None
    from .ops.tracing import Tracing

    return Tracing(VERSION)


def _below(path: str, above: str) -> str | None:
    """Return what follows `above` in a path; None: it is not below it."""
    rest = path.removeprefix(above)
    return rest if path.startswith(above) and rest[:1] in ("", "/") else None


def _path_key(rest: str) -> str | None:
    """Return the name of the conversation that stands behind an endpoint's path, if one does."""
    key = rest.removeprefix("/s/")
    return key if rest.startswith("/s/") and PATH_KEY.fullmatch(key) else None


def _redacted(path: str) -> str:
    """Return a path without what may be the name of a conversation."""
    before, slash, key = path.partition("/s/")
    return f"{before}{slash}..." if key else path


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
    hooks: Sequence[RequestHook] = (),
    observers: Sequence[Hook] = (),
    local: bool = True,
    **settings: Unpack[AppSettings],
) -> ProxyApp:
    """Return an ASGI application that gives every session a backend of its own.

    `command`: what to start, with its arguments; the demo server where it is empty. Or a server of
    the SDK (`MCPServer`, or `Server` of `mcp.server.lowlevel`), which is run in this process, once
    for every session and with a lifespan of its own; or a function that returns one, at once or
    when awaited, which is called for every session. Or a `Configuration` of several servers, which
    the setting `config` reads from a file.

    `settings`: any of the command line's, with underscores (`idle=60, max_sessions=8`). `hooks` are
    run around every request, the first one outermost; `observers` are shown every message that is
    passed on. `local`: only this machine asks; where other machines do, say `local=False` and
    who may ask by `allow_host`.

    Mounted in another application, pass `lifespan=app.lifespan` to that one. The server that runs
    it bounds connections, heads and slow bodies; `max_connections` is for our own.

    Raises: ConfigError: the command, a setting, a hook or an observer is wrong.
    """
    if isinstance(command, str):
        raise ConfigError("command: a list of words, not one string")
    found, configuration = told(settings, named="{}")
    if configuration is not None and command:
        raise ConfigError("config: there is a command too; give one of them")
    return ProxyApp(
        found,
        configuration or command,
        local=local,
        hooks=tuple(hooks),
        observers=observers,
    )

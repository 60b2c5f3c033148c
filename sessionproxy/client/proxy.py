"""A proxy as an object: made of a target, extended with components of one's own, run or used.

Neighbours: `client.targets` says what the target comes to; `serve`, `serve_stdio` and `app` run it
for others, `client.connection` for this process.
"""

import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, Self, Unpack, cast

import msgspec

from .. import logs
from ..app import ProxyApp
from ..assembly import Running
from ..backends.hooked import HookedLauncher
from ..backends.observed import ObservedLauncher
from ..config import ConfigError, Mode, Settings, Switch
from ..core.exchange import Hook, Outcome
from ..core.hooks import RequestHook
from ..core.ports import Launcher
from ..core.reach import REACH, Scope
from ..front import beside
from ..frontend.sse import STREAM
from ..keywords import FrontSettings, ProxySettings
from ..plan import (
    OF_COMMANDS,
    OF_RUNNING,
    OF_URLS,
    Growing,
    Plan,
    Planned,
    Source,
    check_hooks,
    check_together,
    told,
)
from ..serve import serve, serve_async
from ..serve_stdio import serve_stdio, serve_stdio_async
from ..servers import NO_RULES, Rules
from ..servers.wording import SERVER_NAME, SERVER_NAMES
from ..wire import Bytes
from .calls import Calls
from .components import ClientFactory, ProxyPrompt, ProxyResource, ProxyTemplate, ProxyTool
from .connection import linked, running
from .extended import Extended
from .handlers import Handlers, ProgressHandler
from .link import Desk, Link
from .provider import ProxyProvider
from .runtime import Held, Kept
from .targets import (
    ProxyTarget,
    check_heeded,
    check_taken,
    keeping,
    read,
    said_in,
    servers_of,
    settings_over,
    under,
)

Sessions = Literal["frontend", "request", "shared"]
"""Who has a backend: each session in front, each request, or all together one."""

Transport = Literal["stdio", "http", "sse"]
"""What a proxy that runs speaks to its clients."""

OF_TARGETS: Final = {
    "config": "give the file as the target",
    "url": "give it as the target",
    "mode": "say it by sessions=",
}
"""Settings of the command line that are something else here."""

ENDPOINT: Final = "/mcp"
"""Where Streamable HTTP is, beside a path of HTTP with SSE that is said."""

MODES: Final = {"frontend": Mode.SESSION, "request": Mode.REQUEST, "shared": Mode.SHARED}


def create_proxy(
    target: ProxyTarget,
    *,
    name: str | None = None,
    sessions: Sessions | None = None,
    hooks: Sequence[RequestHook] = (),
    observers: Sequence[Hook] = (),
    rules: Rules | Mapping[str, Any] = NO_RULES,
    instructions: str | None = None,
    **settings: Unpack[ProxySettings],
) -> "Proxy":
    """Return a proxy of a target. Nothing is started or contacted before a client needs it.

    `target`: a URL (one with a path segment `/sse` speaks HTTP with SSE); a script that ends in
    `.py` or `.js`; a command as a list of words; the SDK's `StdioServerParameters`; a configuration
    with `mcpServers`, as a mapping or a `.json` or `.toml` file; a server of the SDK, or a function
    that returns one; a `ProxyClient` (one that is connected now shares its session with all), a
    `ProxyProvider`, or another `Proxy`.

    `sessions`: a backend for each session in front (`frontend`), for each request (`request`), or
    one for all (`shared`); unless it is said, as a configuration's `mode` says, else `frontend`.
    `hooks` are run around every request, the first one outermost;
    `observers` are shown every message. `rules` rename and hide components of the only server:
    `Rules`, or a mapping of the fields that a configuration has for it.
    `name` and `instructions`: how it introduces itself where it puts several servers together.
    `settings`: any of the command line's but `mode`, `url` and `config`, with underscores
    (`idle=60, max_sessions=8`); they win over those that a configuration has in its part
    `sessionproxy`.

    Raises: ConfigError: the target, a setting, a hook or an observer is wrong.
    """
    if sessions is not None and sessions not in MODES:
        raise ConfigError("sessions: expected frontend, request or shared")
    for setting, instead in OF_TARGETS.items():
        if settings.get(setting) is not None:
            raise ConfigError(f"{setting}: {instead}")
    mode = {} if sessions is None else {"mode": MODES[sessions].value}
    given = read(target)
    found = settings_over(given, {**settings, **mode})
    check_together(found, several=True)
    servers = servers_of(given, found, rules)
    said = said_in({**settings, **mode}, found)
    check_taken(said, given, servers)
    return Proxy(
        servers,
        found,
        name=name,
        instructions=instructions,
        hooks=hooks,
        observers=observers,
        said=said,
    )


class Proxy(Extended, Calls):
    """A proxy. Made by `create_proxy`; extended before it runs.

    `async with` runs it in this process without a port, for its own typed calls; they share one
    session, which is opened with the first and ends with the last exit. Calls that are made for a
    session in front (by a tool, a hook, a copy of a component) share one of that session's instead,
    which ends with it. A call without either has a session of its own.
    """

    def __init__(
        self,
        servers: Sequence[Planned],
        settings: Settings,
        *,
        name: str | None = None,
        instructions: str | None = None,
        hooks: Sequence[RequestHook] = (),
        observers: Sequence[Hook] = (),
        said: Sequence[str] = (),
    ) -> None:
        """`servers`: as `create_proxy` has made them of its target. `said`: settings that were said
        of it: they are kept in a proxy that has it, and where they are about servers, one of those
        that it starts with, or what is mounted by then, has to heed them.

        Raises: ConfigError: a hook or an observer is wrong.
        """
        super().__init__(name or "sessionproxy", cast("ClientFactory", lambda: self))
        self.instructions = instructions
        self.settings = settings
        self._servers = tuple(servers)
        self._hooks = list(hooks)
        self._observers = tuple(observers)
        check_hooks(self._hooks, self._observers)
        self._mounted: list[tuple[str, Proxy | Sequence[Planned]]] = []
        self._said = [setting for setting in said if setting in OF_RUNNING]
        self._own = {setting: getattr(settings, setting) for setting in said}
        self._runs = Held(self._running)
        self._used: Held[Scope] = Held(self._in_use)
        """By `async with`: what its typed calls have their session for, which serve nobody."""

    def __repr__(self) -> str:
        return f"<Proxy {self.name}>"

    # -- extending it ------------------------------------------------------------------------------

    def add_hook(self, hook: RequestHook) -> None:
        """Have `hook` run around every request, within those that there are.

        Raises: ConfigError: it is no coroutine function.
        """
        check_hooks([hook], ())
        self._hooks.append(hook)

    def mount(self, other: ProxyTarget, prefix: str = "") -> None:
        """Have what `other` has here too: tools and prompts as `{prefix}_{name}`, resources and
        templates as `scheme://{prefix}/rest`. It is asked live, session by session; while the proxy
        runs, from its next start. What a configuration says of the proxy counts only where that is
        made of it.

        Raises: ConfigError: it is no target, or has this very proxy, or the prefix is no name.
        """
        if prefix and not SERVER_NAME.fullmatch(prefix):
            raise ConfigError(f"mount: expected a prefix of {SERVER_NAMES}, or none")
        if isinstance(other, Proxy):
            if self in other.mounted():
                raise ConfigError("mount: a proxy cannot be mounted in itself")
            self._mounted.append((prefix, other))
        else:
            self._mounted.append((prefix, servers_of(other, self.settings)))

    def mounted(self) -> "Iterator[Proxy]":
        """Return this proxy and all that are mounted in it, and in those."""
        yield self
        for _, other in self._mounted:
            if isinstance(other, Proxy):
                yield from other.mounted()

    def add_provider(self, provider: ProxyProvider, *, namespace: str = "") -> None:
        """Have what a provider has here too, under a namespace, where one is given."""
        self.mount(provider, prefix=namespace)

    # -- what it comes to --------------------------------------------------------------------------

    def plan(self, settings: Settings | None = None) -> Plan:
        """Return all that it fronts. `settings`: in place of its own.

        Raises: ConfigError: none of that heeds what was said of it.
        """
        own = self.settings if settings is None else settings
        servers: list[Planned] = []
        if self._components:
            servers.append(_here("added", self._components, own))
        if self._local is not None:
            servers.append(_here("local", self._local, own))
        servers += under(own, self._servers)
        for prefix, other in self._mounted:
            found = other.planned(own) if isinstance(other, Proxy) else under(own, other)
            servers += [
                replace(each, prefix="/".join(filter(None, (prefix, each.prefix))))
                for each in found
            ]
        check_heeded(self._said, servers)
        this = object()
        named = [replace(each, within=(*each.within, this)) for each in _named_apart(servers)]
        together = len(named) > 1 or any(server.prefix for server in named)
        return Plan(
            servers=tuple(named),
            together=together,
            each=len(named) == len(self._servers) and not self._hooks and not _any_here(named),
            name=self.name,
            instructions=self.instructions,
        )

    def planned(self, settings: Settings) -> Sequence[Planned]:
        """Return its servers, for a proxy that this one is mounted in; its hooks and observers
        go along. `settings`: that proxy's.

        Raises: ConfigError: a setting of its own cannot hold there.
        """
        around: list[Callable[[Launcher], Launcher]] = []
        if self._observers:
            around.append(partial(ObservedLauncher, hooks=self._observers))
        if self._hooks:
            around.append(partial(HookedLauncher, hooks=tuple(self._hooks)))
        return [
            replace(server, around=(*server.around, *around))
            for server in keeping(self._own, self.plan().servers, settings)
        ]

    # -- running it --------------------------------------------------------------------------------

    def http_app(self, *, local: bool = True, **settings: Unpack[FrontSettings]) -> ProxyApp:
        """Return it as an ASGI application, as `sessionproxy.http_app` does. What is added to the
        proxy afterwards is there from the application's next start.

        Servers of a configuration have endpoints of their own at `/servers/NAME/mcp` where the
        proxy adds nothing to them: no hook, no component, nothing mounted.

        `local`: only this machine asks. `settings` are put over the proxy's own, but for those that
        are about its servers.

        Raises: ConfigError: a setting is wrong, or comes too late.
        """
        for setting in (*OF_COMMANDS, *OF_URLS, *OF_TARGETS):
            if setting in settings:
                raise ConfigError(f"{setting}: say this where the proxy is made")
        own = self._with(settings)
        return ProxyApp(
            own,
            Growing(partial(self.plan, own)),
            local=local,
            hooks=self._hooks,
            observers=self._observers,
        )

    def run(
        self,
        transport: Transport = "stdio",
        *,
        host: str | None = None,
        port: int | None = None,
        path: str | None = None,
    ) -> None:
        """Serve until stdin ends, or SIGTERM or SIGINT says to stop; another one ends at once. With
        a `token_file`, SIGHUP has it read again. For a process of its own.

        `stdio`: one client, on stdin and stdout. `http`: Streamable HTTP at `path`, and the older
        HTTP with SSE beside it at `/sse`. `sse` serves the same, and `path`, which ends in `/sse`,
        is where the older one is: the URL that is told.

        The log goes to stderr, as `log_level` and `log_json` say, unless the program has set up
        logging itself.

        Raises: ConfigError: nothing was started.
        """
        if transport == "stdio":
            self._set_log_up()
            serve_stdio(self.settings, self.plan(), hooks=self._hooks, observers=self._observers)
            return
        own = self._listening(transport, host, port, path)
        self._set_log_up()
        serve(
            own,
            self.plan(own),
            hooks=self._hooks,
            observers=self._observers,
            on_ready=lambda app, url: self._say_where(_told(url, own, transport)),
        )

    async def run_async(
        self,
        transport: Transport = "stdio",
        *,
        host: str | None = None,
        port: int | None = None,
        path: str | None = None,
        on_ready: Callable[[str], None] | None = None,
    ) -> None:
        """As `run`, in an event loop that runs already, until it is cancelled. Then nothing new is
        taken, what is in flight has `drain_timeout` seconds, and all backends are gone when this
        raises; a task of asyncio's that is cancelled again has it end at once.

        Signals are the program's own: none is heeded here.

        `on_ready` is told the endpoint's URL once it listens; without it, it is written to stderr.
        """
        if transport == "stdio":
            await serve_stdio_async(
                self.settings, self.plan(), hooks=self._hooks, observers=self._observers
            )
            return
        own = self._listening(transport, host, port, path)
        await serve_async(
            own,
            self.plan(own),
            hooks=self._hooks,
            observers=self._observers,
            on_ready=lambda app, url: (on_ready or self._say_where)(_told(url, own, transport)),
        )

    def _set_log_up(self) -> None:
        if not logs.is_set_up():
            logs.set_up(level=self.settings.log_level.value, as_json=self.settings.log_json)

    def _say_where(self, url: str) -> None:
        sys.stderr.write(f"{self.name}: {url}\n")
        sys.stderr.flush()

    def _listening(
        self, transport: Transport, host: str | None, port: int | None, path: str | None
    ) -> Settings:
        if transport not in ("http", "sse"):
            raise ConfigError("transport: expected stdio, http or sse")
        if transport == "sse" and path is not None:
            path = _endpoint_beside(path)
        said = {"host": host, "port": port, "path": path}
        given: dict[str, object] = {
            name: value for name, value in said.items() if value is not None
        }
        if transport == "sse":
            given["sse"] = Switch.ON.value
        return self._with(given)

    def _with(self, settings: Mapping[str, object]) -> Settings:
        if not settings:
            return self.settings
        values = {**msgspec.structs.asdict(self.settings), **settings}
        changed, _ = told(values, named="{}")
        check_together(changed, several=True)
        return changed

    # -- using it ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._used.enter()
        return self

    async def __aexit__(self, *why: object) -> None:
        await self._used.leave()

    async def outcome_of(
        self, method: str, params: Bytes | None, progress_handler: ProgressHandler | None
    ) -> Outcome:
        async with self._scope() as scope:
            kept = scope.kept(self, lambda: Kept(self._linked, scope=scope))
            async with kept.held() as link:
                return await link.request(method, params, progress=progress_handler)

    @asynccontextmanager
    async def _scope(self) -> AsyncGenerator[Scope]:
        """Have what a call has its session for: the session in front that it is made for; where it
        is made for none, all calls while somebody uses the proxy; else this call."""
        reach = REACH.get()
        scope = self._used.value if reach is None else reach.scope
        if scope is None or scope.is_over:
            async with Scope() as scope:
                yield scope
        else:
            yield scope

    @asynccontextmanager
    async def _in_use(self) -> AsyncGenerator[Scope]:
        async with self._runs.held(), Scope() as scope:
            yield scope

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[Running]:
        proxy = running(
            self.settings, self.plan(), hooks=tuple(self._hooks), observers=self._observers
        )
        async with proxy as found:
            yield found

    @asynccontextmanager
    async def _linked(self) -> AsyncGenerator[Link]:
        async with (
            self._runs.held() as found,
            Desk(Handlers()) as desk,
            linked(found, desk, self.name) as link,
        ):
            yield link

    # -- its components ----------------------------------------------------------------------------

    async def get_tool(self, name: str) -> ProxyTool | None:
        """Return the mirror of a tool; None: there is none of this name."""
        found = {tool.name: tool for tool in await self.list_tools()}.get(name)
        if found is None:
            return None
        return self._components.mirrored(ProxyTool.from_mcp_tool(self._factory, found))

    async def get_resource(self, uri: str) -> ProxyResource | None:
        """Return the mirror of a resource; None: there is none with this URI."""
        found = {str(each.uri): each for each in await self.list_resources()}.get(uri)
        if found is None:
            return None
        return self._components.mirrored(ProxyResource.from_mcp_resource(self._factory, found))

    async def get_resource_template(self, uri_template: str) -> ProxyTemplate | None:
        """Return the mirror of a template; None: there is none that is written so."""
        listed = await self.list_resource_templates()
        found = {each.uri_template: each for each in listed}.get(uri_template)
        if found is None:
            return None
        return self._components.mirrored(ProxyTemplate.from_mcp_template(self._factory, found))

    async def get_prompt_component(self, name: str) -> ProxyPrompt | None:
        """Return the mirror of a prompt; None: there is none of this name. (`get_prompt` renders
        one.)"""
        found = {each.name: each for each in await self.list_prompts()}.get(name)
        if found is None:
            return None
        return self._components.mirrored(ProxyPrompt.from_mcp_prompt(self._factory, found))


def _endpoint_beside(stream: str) -> str:
    """Return the path of the endpoint that has HTTP with SSE beside it at this one.

    Raises: ConfigError: it is not served there.
    """
    if not stream.endswith(STREAM):
        raise ConfigError(f"path {stream}: HTTP with SSE is at a path that ends in {STREAM}")
    return stream.removesuffix(STREAM) + ENDPOINT


def _told(url: str, settings: Settings, transport: Transport) -> str:
    """Return the URL for clients of a transport, of that of the endpoint."""
    if transport != "sse":
        return url
    return url.removesuffix(settings.path) + beside(settings, STREAM)


def _here(name: str, source: Source, settings: Settings) -> Planned:
    """Return what is code of the proxy's own: it takes up nobody's place."""
    return Planned(name=name, source=source, settings=settings, takes_place=False)


def _any_here(servers: Sequence[Planned]) -> bool:
    """Return whether a proxy among the targets has components, which stand before its servers."""
    return not all(server.takes_place for server in servers)


def _named_apart(servers: Sequence[Planned]) -> list[Planned]:
    """Return them with names that tell them apart: by what they are prefixed with, where that is
    not their name, and by a number."""
    taken: set[str] = set()
    named: list[Planned] = []
    for server in servers:
        wanted = server.prefix.replace("/", ".") or server.name
        name, number = wanted, 2
        while name in taken:
            name, number = f"{wanted}-{number}", number + 1
        taken.add(name)
        named.append(replace(server, name=name))
    return named

"""What the settings come to: limits, and what is fronted. Checked here where they must go together.

Neighbours: `app` builds the proxy from it.
"""

import inspect
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias, cast, runtime_checkable

import msgspec

from .backends import (
    InProcess,
    Target,
    Template,
    factory_of,
)
from .backends.parts import Stand
from .config import (
    Affinity,
    Carrier,
    ConfigError,
    HandleUse,
    Mode,
    Settings,
    flag_of,
    settings_from,
)
from .core.exchange import Hook
from .core.hooks import RequestHook
from .core.manager import Limits
from .core.ports import Launcher
from .core.reaper import Ages
from .servers import NO_RULES, Configuration, Rules, Server, carrier_of, read_configuration

Fronted: TypeAlias = "Sequence[str] | InProcess | Configuration | Plan | Growing"
"""What a session's backend is made of: a command with its arguments, a server of the SDK that runs
in this process, or several of all kinds."""


class Starts(Launcher, Protocol):
    """Launches backends by some transport, or several."""

    def hurry(self) -> None:
        """From now on backends that are being stopped are ended without waiting."""
        ...


class Running(Starts, AbstractAsyncContextManager[object], Protocol):
    """Entered before the first launch, left after the last backend."""


@runtime_checkable
class Custom(Protocol):
    """Backends of some other kind."""

    @property
    def kind(self) -> str:
        """Which, as traces tell it."""
        ...

    def starts(self) -> Running:
        """Return what launches them."""
        ...


@runtime_checkable
class StandsIn(Custom, Stand, Protocol):
    """Backends that are such."""


Source: TypeAlias = "Template | Target | InProcess | Custom"
"""What is fronted, judged: where backends come from."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One server."""

    name: str
    source: Source
    settings: Settings
    prefix: str = ""
    """Of the names of its components, where there are several servers."""
    rules: Rules = NO_RULES
    around: tuple[Callable[[Launcher], Launcher], ...] = ()
    """Each puts something between sessions and its backends; the first one is next to them."""
    takes_place: bool = True
    """Its backends count for `max_sessions`."""
    within: tuple[object, ...] = ()
    """The proxies that have it, the innermost first: an object for each of them, and another one
    each time that it is mounted."""
    own: Mapping[str, object] = field(default_factory=dict[str, object])
    """Settings that were said of it alone, whatever those of the proxy are that has it."""
    description: str | None = None
    """What a configuration says that it is, for people and models."""
    icon: str | None = None
    """Where a configuration says that its icon is, for people."""

    @property
    def sees_users(self) -> bool:
        """Whether code of the user's is asked what there is, and may see for whom."""
        return bool(self.around) or not isinstance(self.source, Template | Target)

    @property
    def about(self) -> Mapping[str, str]:
        """What a configuration tells of it, as `/readyz` shows it."""
        told = {"description": self.description, "icon": self.icon}
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is fronted."""

    servers: tuple[Planned, ...]
    together: bool = False
    """They are put together as one, though there be just one of them."""
    each: bool = True
    """Each has an endpoint of its own besides."""
    name: str | None = None
    """How the proxy introduces itself for several; None: by its own."""
    instructions: str | None = None
    """What it says of them; None: what they say."""

    @property
    def is_several(self) -> bool:
        return self.together or len(self.servers) != 1


@dataclass(frozen=True)
class Growing:
    """Something that is added to: each start has what there is then."""

    plan: Callable[[], Plan]
    """Returns it."""


DEMO: Final = (sys.executable, "-m", "sessionproxy.demo")
"""What is fronted where no command is given."""

ONLY: Final = "default"
"""Name of the one server that has none."""

OF_COMMANDS: Final = ("env", "pass_env", "cwd", "warm", "memory_max", "pids_max")
OF_URLS: Final = ("transport", "header", "upstream_ca", "forward_authorization")
"""Settings that are about a backend started here, and about one elsewhere."""

OF_RUNNING: Final = ("warm", "memory_max", "pids_max", "forward_authorization")
"""Those of them that are heeded while the proxy runs, for all its servers; the others are, where a
server is made of what is given."""

OF_THE_PROCESS: Final = ("memory_max", "pids_max")
"""Those that hold for all backends that are started here."""

OF_FRONTS: Final = (
    *("host", "port", "path", "sse", "allow_host", "allow_origin", "tls_cert", "tls_key"),
    *("token_file", "insecure", "affinity", "key_header", "key_meta", "key_cookie", "handles"),
    *("default_session", "catalogue_public", "max_sessions_per_owner", "max_connections"),
    "keepalive",
)
"""Settings that are about clients on the network: where they connect, who may, and what tells them
apart."""

OF_SERVERS: Final = (
    *("env", "pass_env", "cwd", "memory_max", "pids_max", *OF_URLS),
    *("start_timeout", "call_timeout", "stop_grace", "max_line", "state_dir", "containment"),
)
"""Settings that are about a server, whoever uses it: not about sessions in front, nor where and by
whom they are opened."""

LADDER: Final = 15.0
"""Seconds, at most, from the end of `stop_grace` until a backend is gone."""


def told(
    values: Mapping[str, object],
    *,
    defaults: Mapping[str, object] = MappingProxyType({}),
    named: str = "--{}",
) -> tuple[Settings, Configuration | None]:
    """Return the settings with these values, and the configuration that they name, if they do.

    `named` tells how a setting is called where the values come from.

    Raises: ConfigError: a value or the configuration is wrong.
    """
    path = values.get("config")
    configuration = None if path is None else read_configuration(str(path))
    return told_over(configuration, values, defaults=defaults, named=named), configuration


def told_over(
    configuration: Configuration | None,
    values: Mapping[str, object],
    *,
    defaults: Mapping[str, object] = MappingProxyType({}),
    only: Container[str] | None = None,
    named: str = "--{}",
) -> Settings:
    """Return the settings with these values. What a configuration says of the proxy stands back
    behind them, and before `defaults`; `only`: just these are heeded there.

    Raises: ConfigError: a value or the configuration is wrong.
    """
    said: dict[str, object] = {}
    if configuration is not None:
        said |= configuration.settings
        source = configuration.source.replace("{", "{{").replace("}", "}}")
        settings_from(said, named=source + ": sessionproxy.{}")
        if "config" in said:
            raise ConfigError(f"{configuration.source}: sessionproxy.config: this is the file")
    heeded = {name: value for name, value in said.items() if only is None or name in only}
    return settings_from({**defaults, **heeded, **values}, named=named)


def plan_from(settings: Settings, fronted: Fronted) -> Plan:
    """Return what there is to front.

    Raises: ConfigError: there is something wrong with it.
    """
    if isinstance(fronted, Growing):
        return fronted.plan()
    if isinstance(fronted, Plan):
        return fronted
    if isinstance(fronted, Configuration):
        return configured_from(settings, fronted)
    source = source_from(settings, fronted)
    return Plan(servers=(Planned(name=ONLY, source=source, settings=settings),))


def source_from(settings: Settings, command: "Sequence[str] | InProcess") -> Source:
    """Return what the backends of one server are made of.

    Raises: ConfigError: there is something wrong with it.
    """
    if settings.url is not None:
        return target_from(settings, command)
    if not isinstance(command, Sequence):
        return served_from(settings, command)
    words = cast("Sequence[str]", command) or DEMO
    return Template(words, cwd=settings.cwd, env=settings.env, pass_env=settings.pass_env)


def configured_from(settings: Settings, configuration: Configuration) -> Plan:
    """Return what a configuration comes to.

    Raises: ConfigError: there is something wrong with it.
    """
    several = len(configuration.servers) > 1
    _check_configured(settings, several=several)
    servers = [
        planned_from(settings, server, prefix=server.name if several else "")
        for server in configuration.servers
    ]
    return Plan(servers=tuple(servers))


def _check_configured(settings: Settings, *, several: bool) -> None:
    """Raises: ConfigError: a setting belongs to one server, and the configuration names them."""
    for name in ("url", "transport", "header"):
        if getattr(settings, name) not in ((), None, Carrier.AUTO):
            raise ConfigError(f"{flag_of(name)}: say this of a server in the configuration")
    if several and settings.forward_authorization:
        raise ConfigError(
            "--forward-authorization: with several servers each would get the others' credentials"
        )


def planned_from(settings: Settings, server: Server, *, prefix: str) -> Planned:
    """Return what one server of a configuration comes to.

    Raises: ConfigError: there is something wrong with it; the text says where.
    """
    own = {} if server.call_timeout is None else {"call_timeout": server.call_timeout}
    try:
        source = _configured_source(settings, server)
    except ConfigError as error:
        raise ConfigError(f"{server.where}: {error}") from None
    return Planned(
        name=server.name,
        source=source,
        settings=msgspec.structs.replace(settings, **own),
        own=own,
        prefix=prefix,
        rules=server.rules,
        description=server.description,
        icon=server.icon,
    )


def _configured_source(settings: Settings, server: Server) -> Source:
    if server.url is not None:
        return Target(
            server.url,
            carrier=server.carrier,
            headers=server.headers,
            ca=settings.upstream_ca if server.url.startswith("https:") else None,
            forwards=settings.forward_authorization,
        )
    return Template(
        server.command,
        cwd=settings.cwd if server.cwd is None else server.cwd,
        env=(*settings.env, *server.env),
        pass_env=settings.pass_env,
    )


def target_from(settings: Settings, command: "Sequence[str] | InProcess") -> Target:
    """Return the server elsewhere that the settings name.

    Raises: ConfigError: something is wrong with it, or is said of a command that there is not.
    """
    if command:
        raise ConfigError("--url: there is a COMMAND too; give one of them")
    _check_no_command(settings, "--url names a running server")
    url = settings.url or ""
    return Target(
        url,
        carrier=carrier_of(url) if settings.transport is Carrier.AUTO else settings.transport,
        headers=settings.header,
        ca=settings.upstream_ca,
        forwards=settings.forward_authorization,
    )


def served_from(settings: Settings, server: InProcess) -> InProcess:
    """Return what runs in this process.

    Raises: ConfigError: it is no server; or something is said of a command that there is not.
    """
    factory_of(server)
    _check_no_command(settings, "the server runs in this process")
    return server


def _check_no_command(settings: Settings, instead: str) -> None:
    """Raises: ConfigError: a setting is about a command."""
    for name in OF_COMMANDS:
        if getattr(settings, name):
            raise ConfigError(f"{flag_of(name)}: is for a COMMAND; {instead}")


def check_together(settings: Settings, *, several: bool = False) -> None:
    """`several`: a configuration names the servers. Raises: ConfigError: settings that do not go
    together."""
    for name in OF_URLS:
        if (
            settings.url is None
            and not several
            and getattr(settings, name) not in ((), None, False, Carrier.AUTO)
        ):
            raise ConfigError(f"{flag_of(name)}: is for a running server; give its --url")
    if settings.forward_authorization and settings.mode is Mode.SHARED:
        raise ConfigError("--forward-authorization: with --mode shared all have one session there")
    if settings.insecure and settings.token_file:
        raise ConfigError("--insecure: --token-file says who may connect; give one of them")
    if settings.handles is not HandleUse.OFF and settings.affinity is Affinity.PRINCIPAL:
        raise ConfigError("--handles: with --affinity principal a user has just one session")


def check_hooks(hooks: Sequence[RequestHook], observers: Sequence[Hook]) -> None:
    """Find what was given as one but written as the other: a hook that refuses would not be awaited
    among observers, and refuse nothing. What cannot be told, as of builtins, is taken as it is.

    Raises: ConfigError: one is.
    """
    for hook in hooks:
        if _is_awaited(hook) is False and not _takes_two(hook):
            raise ConfigError(
                f"hooks: {_name_of(hook)} is no coroutine function; what only watches is given as "
                "observers, what stands around requests is an async def"
            )
    for observer in observers:
        if _is_awaited(observer):
            raise ConfigError(
                f"observers: {_name_of(observer)} is a coroutine function, which nobody would "
                "await; what stands around requests is given as hooks, what watches is a plain def"
            )


def _is_awaited(given: Callable[..., object]) -> bool | None:
    """Return whether a call of it is awaited. None: that cannot be told."""
    call = type(given).__call__
    if inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(call):
        return True
    plain = inspect.isfunction(given) or inspect.ismethod(given) or inspect.isfunction(call)
    return False if plain else None


def _takes_two(given: Callable[..., object]) -> bool:
    """Return whether it can be called with a request and what comes next: such may well return
    something to be awaited."""
    try:
        inspect.signature(given).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


def _name_of(given: Callable[..., object]) -> str:
    return getattr(given, "__name__", type(given).__name__)


def knows_users(settings: Settings, *, local: bool) -> bool:
    """Return whether an owner is one user. `local`: this machine alone is served.

    Where credentials are forwarded there are several, and only the server behind tells them apart.
    """
    return settings.token_file is not None or (local and not settings.forward_authorization)


def limits_from(settings: Settings, *, take_places: bool = True) -> Limits:
    """Return the limits of sessions. `take_places`: their backends count for `max_sessions`."""
    if settings.mode is Mode.SHARED:
        return _shared_limits(settings)
    limits = backend_limits_from(settings)
    counted = take_places and settings.mode is Mode.SESSION
    return limits if counted else _costless(limits, settings)


def whole_limits_from(settings: Settings) -> Limits:
    """Return the limits of sessions that have several servers, each of which has its own."""
    limits = _costless(backend_limits_from(settings), settings)
    # Of the catalogue's: its servers wait for a place, start, and list, each for so long at most.
    patience = settings.queue_timeout + 2 * settings.start_timeout + settings.stop_grace + LADDER
    return replace(limits, call_timeout=None, start_timeout=patience)


def part_limits_from(settings: Settings, *, take_places: bool = True) -> Limits:
    """Return the limits of parts of such sessions, which say how long they are needed."""
    ages = Ages(idle=None, linger=None, max_age=None, session_ttl=settings.session_ttl)
    return replace(limits_from(settings, take_places=take_places), ages=ages)


def _costless(limits: Limits, settings: Settings) -> Limits:
    """Return the limits of sessions that are no backends themselves: one that is awake costs
    memory, about as one asleep does."""
    most = settings.max_asleep
    return replace(limits, max_sessions=most, max_sessions_per_owner=None, starts_at_once=most)


def backend_limits_from(settings: Settings) -> Limits:
    """Return the limits of sessions with a backend each."""
    return Limits(
        max_sessions=settings.max_sessions,
        max_sessions_per_owner=settings.sessions_of_one_owner,
        starts_at_once=settings.cores_at_once,
        queue_timeout=settings.queue_timeout,
        start_timeout=settings.start_timeout,
        call_timeout=settings.call_timeout or None,
        max_asleep=settings.max_asleep,
        ages=Ages(
            idle=settings.idle or None,
            linger=settings.linger or None,
            max_age=settings.max_age or None,
            session_ttl=settings.session_ttl,
        ),
    )


def _shared_limits(settings: Settings) -> Limits:
    """Return the limits of sessions that share one backend.

    What bounds the backend's start is `SharedLauncher`. A session may have to wait for up to three,
    and for the end of each: one that refuses the handshake, the probe of its era, one in that era.
    """
    patience = 3 * (settings.start_timeout + settings.stop_grace + LADDER)
    return replace(_costless(backend_limits_from(settings), settings), start_timeout=patience)

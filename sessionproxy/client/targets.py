"""What a proxy or a client can be made of.

Neighbours: `plan` says what it comes to; `client.client` and `client.proxy` take targets.
"""

import json
import re
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from os.path import abspath
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast, runtime_checkable

import msgspec

from ..backends import InProcess, Target, Template, factory_of
from ..backends.hosted import is_server
from ..config import IN_PYTHON, Carrier, ConfigError, Settings
from ..plan import (
    OF_COMMANDS,
    OF_RUNNING,
    OF_THE_PROCESS,
    OF_URLS,
    ONLY,
    Plan,
    Planned,
    configured_from,
    planned_from,
    told_over,
)
from ..servers import (
    NO_RULES,
    Configuration,
    Rules,
    Server,
    carrier_of,
    configuration_from,
    read_configuration,
    rules_from,
)
from .described import (
    CommandParameters,
    ServersModel,
    UrlParameters,
    carrier_named_by,
    check_no_connection,
    headers_of,
    served_by,
)

RUNTIMES: Final[Mapping[str, str]] = {".py": sys.executable, ".js": "node"}
"""What runs a script, by its suffix."""

FILES: Final = frozenset({".json", ".toml"})
"""Suffixes of configurations."""

_URL: Final = re.compile(r"https?://", re.IGNORECASE)


@runtime_checkable
class Plannable(Protocol):
    """Something that knows itself what it comes to: a client, a provider, another proxy."""

    def planned(self, settings: Settings) -> Sequence[Planned]:
        """Return the servers behind it."""
        ...


if TYPE_CHECKING:
    ProxyTarget: TypeAlias = (
        str
        | PathLike[str]
        | Sequence[str]
        | Mapping[str, Any]
        | Configuration
        | Server
        | CommandParameters
        | UrlParameters
        | ServersModel
        | InProcess
        | Plannable
    )
else:  # one of these is known to type checkers alone
    ProxyTarget = object
"""A URL; a script (`.py`, `.js`); a command with its arguments; a configuration, as a mapping or a
file (`.json`, `.toml`), or a server in it; the SDK's `StdioServerParameters` and its like, or a
transport of FastMCP's; a server of the SDK or FastMCP's, or a function that returns one; a
`ProxyClient`, a `ProxyProvider`, or another `Proxy`."""


def read(target: ProxyTarget) -> ProxyTarget:
    """Return the configuration that a target is, or names; any other target, as it is.

    Raises: ConfigError: it cannot be read, or something in it is wrong.
    """
    if isinstance(target, Plannable | Server):
        return target
    if isinstance(target, Configuration | Mapping | ServersModel) or _is_file(target):
        return _configuration(cast("object", target))
    return target


def servers_of(
    target: ProxyTarget, settings: Settings, rules: Rules | Mapping[str, Any] = NO_RULES
) -> tuple[Planned, ...]:
    """Return the servers that a target comes to. `rules`: of the only one.

    Raises: ConfigError: it is none, or something is wrong with it or with a rule.
    """
    ruled = rules_from(rules, where="rules")
    target = read(target)
    if isinstance(target, Plannable):
        planned = tuple(target.planned(settings))
    elif isinstance(target, Server):
        planned = (planned_from(settings, target, prefix=""),)
    elif isinstance(target, Configuration):
        planned = configured_from(settings, target).servers
    else:
        source = _source(target, settings)
        planned = (Planned(name=ONLY, source=source, settings=settings),)
    if ruled.is_empty:
        return planned
    if len(planned) != 1:
        raise ConfigError("rules: there are several servers; each has its own in a configuration")
    return (replace(planned[0], rules=ruled),)


def settings_over(
    target: ProxyTarget,
    values: Mapping[str, object],
    *,
    defaults: Mapping[str, object] = MappingProxyType({}),
    only: Container[str] | None = None,
) -> Settings:
    """Return the settings with these values, over what the configuration says that a target is.

    Raises: ConfigError: a value is wrong.
    """
    configuration = target if isinstance(target, Configuration) else None
    return told_over(configuration, values, defaults=defaults, only=only, named=IN_PYTHON)


def check_taken(said: Iterable[str], target: ProxyTarget, servers: Sequence[Planned]) -> None:
    """Find what was said of a target of another kind. `said`: names of settings; `servers`: what
    the target comes to.

    Raises: ConfigError: it would be taken and mean nothing.
    """
    for name in said:
        if name not in (*OF_COMMANDS, *OF_URLS) or name in OF_RUNNING:
            continue
        if isinstance(target, Plannable):
            raise ConfigError(f"{name}: say this where the {type(target).__name__} is made")
        if isinstance(target, Server) and name in ("transport", "header"):
            raise ConfigError(f"{name}: say this of the server in its configuration")
        check_heeded([name], servers)


def check_heeded(said: Iterable[str], servers: Sequence[Planned]) -> None:
    """Find what none of these servers heeds.

    Raises: ConfigError: so it is.
    """
    for name in said:
        if name in OF_COMMANDS and not _has(servers, Template):
            raise ConfigError(f"{name}: is for a command, and no server here is started by one")
        if name == "forward_authorization" and not _all_are(servers, Template):
            continue  # code in this process may have clients of its own, for whoever calls
        if name in OF_URLS and not _has(servers, Target):
            raise ConfigError(f"{name}: is for a server at a URL, and none here is")


def _has(servers: Sequence[Planned], kind: type[object]) -> bool:
    return any(isinstance(server.source, kind) for server in servers)


def _all_are(servers: Sequence[Planned], kind: type[object]) -> bool:
    return all(isinstance(server.source, kind) for server in servers)


def said_in(values: Mapping[str, object], settings: Settings) -> list[str]:
    """Return the names of settings that were given, and not as they are by default."""
    return [name for name in values if getattr(settings, name) != getattr(Settings(), name)]


def under(settings: Settings, servers: Sequence[Planned]) -> list[Planned]:
    """Return servers under these settings, but for what was said of one of them alone."""
    return [
        replace(server, settings=msgspec.structs.replace(settings, **server.own))
        for server in servers
    ]


def keeping(
    own: Mapping[str, object], servers: Sequence[Planned], settings: Settings
) -> list[Planned]:
    """Return servers that keep these settings in whatever proxy is made of them. `settings`: of one
    that has them.

    Raises: ConfigError: one of them holds for all servers of that proxy, and is another one there.
    """
    for name in OF_THE_PROCESS:
        if name in own and own[name] != getattr(settings, name):
            raise ConfigError(f"{name}: say this where the proxy is made; it holds for all there")
    kept = {name: value for name, value in own.items() if name not in OF_THE_PROCESS}
    return [replace(each, own={**kept, **each.own}) for each in servers]


def _is_file(target: object) -> bool:
    if not isinstance(target, str | PathLike):
        return False
    path = cast("str", target)
    return not _is_url(path) and Path(path).suffix in FILES


def _is_url(target: object) -> bool:
    return isinstance(target, str) and _URL.match(target) is not None


def _configuration(target: object) -> Configuration:
    if isinstance(target, Configuration):
        return target
    if isinstance(target, ServersModel):
        return configuration_from(target.model_dump(mode="json", exclude_none=True))
    if isinstance(target, Mapping):
        return configuration_from(cast("Mapping[str, object]", target))
    return read_configuration(cast("str", target))


def _source(target: object, settings: Settings) -> "Template | Target | InProcess":
    if _is_url(target):
        return _url(cast("str", target), settings)
    if isinstance(target, str | PathLike):
        return _template(_script(fspath(cast("str", target))), settings)
    target = served_by(target)
    if is_server(target):
        return cast("InProcess", target)
    if isinstance(target, UrlParameters):
        return _url(target.url, settings, carrier_named_by(target), headers_of(target))
    if isinstance(target, CommandParameters):
        env = tuple(f"{name}={value}" for name, value in (target.env or {}).items())
        words = (target.command, *target.args)
        cwd = None if target.cwd is None else str(target.cwd)
        return _template(words, settings, env=env, cwd=cwd)
    if isinstance(target, Sequence):
        return _template(_words(cast("Sequence[object]", target)), settings)
    check_no_connection(target)
    if isinstance(getattr(target, "__self__", None), Plannable):
        raise ConfigError("target: it returns clients, not servers; give it as ProxyProvider(...)")
    if callable(target):
        return factory_of(cast("Callable[[], Any]", target))
    raise ConfigError(
        f"target: a URL, a script, a command, a configuration, a server or a client; this is of "
        f"type {type(target).__name__}"
    )


def _url(
    url: str,
    settings: Settings,
    carrier: Carrier = Carrier.AUTO,
    headers: Sequence[str] = (),
) -> Target:
    """`carrier`, `headers`: its own, before those of the settings."""
    if carrier is Carrier.AUTO:
        carrier = settings.transport
    if carrier is Carrier.AUTO:
        carrier = carrier_of(url)
    return Target(
        url,
        carrier=carrier,
        headers=(*settings.header, *headers),
        ca=settings.upstream_ca,
        forwards=settings.forward_authorization,
    )


def _script(path: str) -> tuple[str, ...]:
    runtime = RUNTIMES.get(Path(path).suffix)
    if runtime is None:
        raise ConfigError(
            f"target {json.dumps(path)}: expected a URL, or a file that ends in .py, .js, .json or "
            ".toml; give a command as a list of words"
        )
    if not Path(path).is_file():
        hint = "; give a command as a list of words" if " " in path else ""
        raise ConfigError(f"target {json.dumps(path)}: no such file{hint}")
    return runtime, abspath(path)  # the backend may stand elsewhere


def _words(target: Sequence[object]) -> tuple[str, ...]:
    """Return the words of a command. Raises: ConfigError: there is none, or one that is no text."""
    if not target or not all(isinstance(word, str) for word in target):
        raise ConfigError("target: expected a command as a list of words, the program first")
    return cast("tuple[str, ...]", tuple(target))


def _template(
    words: Sequence[str],
    settings: Settings,
    *,
    env: Sequence[str] = (),
    cwd: str | None = None,
) -> Template:
    return Template(
        words,
        cwd=settings.cwd if cwd is None else cwd,
        env=(*settings.env, *env),
        pass_env=settings.pass_env,
    )


def plan_of(servers: Sequence[Planned], *, name: str | None, instructions: str | None) -> Plan:
    """Return the plan of these servers."""
    together = any(server.prefix for server in servers)
    return Plan(servers=tuple(servers), together=together, name=name, instructions=instructions)

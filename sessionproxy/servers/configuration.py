"""The configuration of several servers, and of the proxy itself, read and checked.

Nothing is started yet, and no command or directory is looked for. Neighbours: `files` reads,
`server` checks each server; whoever has the command line too checks the settings.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

from ..config import ConfigError, Settings, near
from . import files
from .server import Server, server_from
from .wording import SERVER_NAME, SERVER_NAMES, shown

SERVERS: Final = ("mcpServers", "servers")
"""Where servers stand: as Claude Desktop and most others have it, and as VS Code has it."""

SETTINGS: Final = "sessionproxy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """What a file says. `repr` shows nothing that may be secret."""

    source: str
    """What it is called in messages: the path as it was given."""
    servers: tuple[Server, ...]
    """At least one, as they stand in the file; no two have one name."""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    """By their names in `config.Settings`. Their values are not checked."""
    left_out: tuple[str, ...] = ()
    """Names of the servers that are disabled."""

    def __repr__(self) -> str:
        settings = ", ".join(self.settings)
        return f"<Configuration {self.source}: {list(self.servers)}; settings: {settings}>"


def read_configuration(
    path: str | os.PathLike[str], *, environ: Mapping[str, str] | None = None
) -> Configuration:
    """Return what a file says: TOML where its name ends so, else JSON. `environ`: instead of the
    process's own.

    Raises: ConfigError: it cannot be read, or something in it is wrong.
    """
    return configuration_from(files.read(path), source=os.fspath(path), environ=environ)


def configuration_from(
    mapping: Mapping[str, object],
    *,
    source: str = "configuration",
    environ: Mapping[str, str] | None = None,
) -> Configuration:
    """Return what a mapping says: `mcpServers` or `servers`, or servers and nothing around them;
    and `sessionproxy`. What else there is at its root is other programs'.

    Raises: ConfigError: something in it is wrong.
    """
    environ = os.environ if environ is None else environ
    servers: list[Server] = []
    left_out: list[str] = []
    for entry in _entries(mapping, source):
        if entry.is_disabled:
            left_out.append(entry.name)
            continue
        members = entry.members
        servers.append(server_from(entry.name, members, where=entry.where, environ=environ))
    if not servers:
        disabled = "; all there are are disabled" if left_out else ""
        raise ConfigError(f"{source}: expected at least one server in mcpServers{disabled}")
    return Configuration(
        source=source,
        servers=tuple(servers),
        settings=_settings(mapping.get(SETTINGS, {}), f"{source}: {SETTINGS}"),
        left_out=tuple(left_out),
    )


class _Entry(NamedTuple):
    """What stands under a server's name."""

    name: str
    members: Mapping[str, object]
    where: str

    @property
    def is_disabled(self) -> bool:
        return self.members.get("disabled") is True or self.members.get("enabled") is False


def _entries(mapping: Mapping[str, object], source: str) -> Iterator[_Entry]:
    """Yield the servers, wherever they stand."""
    parts = [name for name in SERVERS if name in mapping]
    if len(parts) > 1:
        raise ConfigError(f"{source}: {' and '.join(parts)}: expected one of them")
    if not parts:
        for name, members in mapping.items():
            if name != SETTINGS and _is_server(members):
                yield _entry(str(name), members, f"{source}: ")
        return
    part = mapping[parts[0]]
    where = f"{source}: {parts[0]}"
    if not isinstance(part, Mapping):
        raise ConfigError(f"{where}: expected an object with a server under each name")
    for name, members in cast("Mapping[str, object]", part).items():
        yield _entry(str(name), members, f"{where}.")


def _is_server(members: object) -> bool:
    return isinstance(members, Mapping) and ("command" in members or "url" in members)


def _entry(name: str, members: object, part: str) -> _Entry:
    """Raises: ConfigError: the name cannot stand in names and paths, or it is no server's."""
    where = f"{part}{shown(name)}"
    if not SERVER_NAME.fullmatch(name):
        raise ConfigError(f"{where}: expected a name of {SERVER_NAMES}")
    if not isinstance(members, Mapping):
        raise ConfigError(f"{where}: expected an object with a command or a url")
    return _Entry(name, cast("Mapping[str, object]", members), where)


def _settings(part: object, where: str) -> Mapping[str, object]:
    """Return settings by their names, which may be written with hyphens."""
    if not isinstance(part, Mapping):
        raise ConfigError(f"{where}: expected an object with settings")
    values: dict[str, object] = {}
    for key, value in cast("Mapping[str, object]", part).items():
        name = str(key).replace("-", "_")
        if name not in Settings.__struct_fields__:
            raise ConfigError(f"{where}.{shown(str(key))}: no such setting{near(name)}")
        if name in values:
            raise ConfigError(f"{where}.{shown(str(key))}: stands there twice")
        values[name] = value
    return values

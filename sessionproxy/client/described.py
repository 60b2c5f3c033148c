"""Objects of other libraries that say how a server is had, told by their shape.

The SDK's parameters (`StdioServerParameters`, `StreamableHttpParameters`, `SseServerParameters`)
are such, and the transports and the `MCPConfig` of FastMCP; neither library is needed for it.
Neighbours: `client.targets` makes backends of what they say.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from ..backends.hosted import is_server
from ..config import Carrier, ConfigError


@runtime_checkable
class CommandParameters(Protocol):
    """How a server is started, as the SDK's `StdioServerParameters` says it."""

    @property
    def command(self) -> str: ...
    @property
    def args(self) -> Sequence[str]: ...
    @property
    def env(self) -> Mapping[str, str] | None: ...
    @property
    def cwd(self) -> str | Path | None: ...


@runtime_checkable
class UrlParameters(Protocol):
    """Where a server is, as the SDK's `StreamableHttpParameters` says it."""

    @property
    def url(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, Any] | None: ...


@runtime_checkable
class ServersModel(Protocol):
    """A configuration with `mcpServers`, as a model."""

    @property
    def mcpServers(self) -> Mapping[str, object]: ...

    def model_dump(self, *, mode: str, exclude_none: bool) -> dict[str, Any]: ...


CONNECTS_ONCE: Final = (
    "connects for itself; give what it connects to: a URL, a command, a server, or the SDK's "
    "StdioServerParameters, StreamableHttpParameters or SseServerParameters"
)


def carrier_named_by(target: UrlParameters) -> Carrier:
    """Return what a server is spoken to by; AUTO: its URL says it."""
    name = type(target).__name__.lower()
    if name.startswith("sse"):
        return Carrier.SSE
    return Carrier.HTTP if name.startswith("streamable") else Carrier.AUTO


def headers_of(target: UrlParameters) -> tuple[str, ...]:
    """Return its headers, as `NAME=VALUE` each.

    Raises: ConfigError: it has a credential that is no header.
    """
    if getattr(target, "auth", None) is not None:
        raise ConfigError("target: its auth cannot be taken over; give it as a header")
    return tuple(f"{name}={value}" for name, value in (target.headers or {}).items())


def served_by(target: object) -> object:
    """Return the server that a transport in process goes to; what is none, as it is."""
    server: object = getattr(target, "server", None)
    return server if hasattr(target, "connect_session") and is_server(server) else target


def check_no_connection(target: object) -> None:
    """Raises: ConfigError: it is a client, or a transport, of another library."""
    if hasattr(target, "__aenter__") or hasattr(target, "connect_session"):
        raise ConfigError(f"target: a {type(target).__name__} {CONNECTS_ONCE}")

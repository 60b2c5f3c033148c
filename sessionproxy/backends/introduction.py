"""How several servers introduce themselves as one.

Nothing is started to find out: of a server that has not been met yet anything is possible, so all
is declared, and what it turns out not to have is empty. Neighbours: `backends.composite`.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol, Self

import msgspec
from msgspec import Raw

from .. import wire
from ..wire import Bytes
from ..wire.envelope import SERVER_KEY, text

ANYTHING: Final[Mapping[str, Raw]] = {
    "tools": Raw(b'{"listChanged":true}'),
    "prompts": Raw(b'{"listChanged":true}'),
    "resources": Raw(b'{"listChanged":true,"subscribe":true}'),
    "logging": Raw(b"{}"),
    "completions": Raw(b"{}"),
}


class Welcome(NamedTuple):
    """What a server said when it was met last."""

    capabilities: Mapping[str, Raw]
    instructions: str | None

    @classmethod
    def of(cls, result: Bytes) -> Self:
        """Return that of a result of `initialize` or `server/discover`."""
        fields = wire.members(result)
        return cls(wire.members(fields.get("capabilities")), text(fields.get("instructions")))


class Introduced(Protocol):
    """One of the servers."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str | None:
        """What the operator says that it is."""
        ...

    @property
    def welcome(self) -> Welcome | None:
        """None: it was not met yet."""
        ...


class Introduction:
    """Of all of them."""

    def __init__(self, name: str, version: str, instructions: str | None = None) -> None:
        """`instructions`: instead of what the servers say, and what is said of them."""
        self._server = msgspec.json.encode({"name": name, "version": version})
        self._instructions = instructions

    def initialized(self, servers: Sequence[Introduced], requested: str | None) -> bytes:
        """Return the answer to `initialize` of a client that asks for the revision `requested`
        (2025-11-25 basic/lifecycle#version-negotiation)."""
        known = requested in wire.HANDSHAKE_VERSIONS
        version = requested if known else wire.HANDSHAKE_VERSIONS[-1]
        fields: dict[str, Bytes] = {
            "protocolVersion": msgspec.json.encode(version),
            "capabilities": self._capabilities(servers),
            "serverInfo": self._server,
        }
        return wire.rebuilt(self._with_instructions(fields, servers))

    def discovered(self, servers: Sequence[Introduced]) -> bytes:
        """Return the answer to `server/discover`."""
        fields: dict[str, Bytes] = {
            "resultType": b'"complete"',
            "supportedVersions": msgspec.json.encode(wire.SERVED_VERSIONS),
            "capabilities": self._capabilities(servers),
            "_meta": wire.rebuilt({SERVER_KEY: self._server}),
        }
        return wire.rebuilt(self._with_instructions(fields, servers))

    def _with_instructions(
        self, fields: dict[str, Bytes], servers: Sequence[Introduced]
    ) -> dict[str, Bytes]:
        told = self._instructions or "\n\n".join(filter(None, map(_told_of, servers)))
        return {**fields, "instructions": msgspec.json.encode(told)} if told else fields

    def _capabilities(self, servers: Sequence[Introduced]) -> bytes:
        """Return what one of them or another can do."""
        found: dict[str, Raw] = {}
        for server in servers:
            declared = ANYTHING if server.welcome is None else server.welcome.capabilities
            for name, value in declared.items():
                found[name] = _either(found[name], value) if name in found else value
        return wire.rebuilt(found)


def _told_of(server: Introduced) -> str | None:
    """Return what there is to be told of a server; None: nothing."""
    own = None if server.welcome is None else server.welcome.instructions
    told = [said for said in (server.description, own) if said]
    return "\n\n".join([f"# {server.name}", *told]) if told else None


def _either(one: Raw, other: Raw) -> Raw:
    """Return what is declared by one or the other; a part that is not `false` wins."""
    parts = wire.members(one)
    for name, value in wire.members(other).items():
        if bytes(parts.get(name, b"false")) == b"false":
            parts[name] = value
    return Raw(wire.rebuilt(parts))

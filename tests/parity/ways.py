"""The ways in which a proxy can have a client of ours behind it, and people in front of it.

Neighbours: the tests of this room.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import mcp_types as types
from mcp import Client
from mcp.client.session import ClientRequestContext
from pydantic import FileUrl

from sessionproxy import (
    Proxy,
    ProxyClient,
    ProxyProvider,
    StatefulProxyClient,
    create_proxy,
)
from sessionproxy.client import ProxyTarget

from .rig import fronted

Json = dict[str, Any]
State = dict[str, Any]

ERAS: Final = ("legacy", "2026-07-28")
"""What a client of the SDK is told: of the handshake era, of the modern one."""

DIRECT, CLIENT, CONNECTED, STATEFUL = "target", "client", "connected client", "stateful client"
WAYS: Final = (DIRECT, CLIENT, CONNECTED, STATEFUL)
CLIENTS: Final = WAYS[1:]


@asynccontextmanager
async def made(
    way: str,
    target: ProxyTarget,
    state: State,
    **handlers: Any,  # noqa: ANN401 - those of `ProxyClient`
) -> AsyncGenerator[Proxy]:
    """A proxy of `target`, itself or through a client of ours with these handlers."""
    async with AsyncExitStack() as held:
        if way == DIRECT:
            yield create_proxy(target, **state)
        elif way == STATEFUL:
            stateful = StatefulProxyClient(target, **handlers, **state)
            proxy = create_proxy(ProxyProvider(stateful.new_stateful), **state)
            yield proxy
        else:
            client = ProxyClient(target, **handlers, **state)
            if way == CONNECTED:
                await held.enter_async_context(client)
            yield create_proxy(client, **state)


@asynccontextmanager
async def through(
    way: str,
    target: ProxyTarget,
    state: State,
    **handlers: Any,  # noqa: ANN401 - those of `ProxyClient`
) -> AsyncGenerator[str]:
    """Serve such a proxy; yield its URL."""
    async with made(way, target, state, **handlers) as proxy, fronted(proxy) as url:
        yield url


@dataclass
class Person:
    """Who sits in front of an SDK client: what came to them, and how they answer."""

    name: str = "Ann"
    action: Any = "accept"
    asked: list[Any] = field(default_factory=list[Any])
    sampled: list[types.CreateMessageRequestParams] = field(
        default_factory=list[types.CreateMessageRequestParams]
    )
    logged: list[object] = field(default_factory=list[object])
    reported: list[float] = field(default_factory=list[float])
    roots_asked: int = 0
    waits: anyio.Event | None = None
    """Answers forms only then."""

    async def elicited(
        self, context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        self.asked.append(params)
        if self.waits is not None:
            await self.waits.wait()
        filled: Any = {"username": self.name, "email": "a@x.org", "name": self.name}
        accepted = self.action == "accept" and isinstance(params, types.ElicitRequestFormParams)
        return types.ElicitResult(action=self.action, content=filled if accepted else None)

    async def samples(
        self, context: ClientRequestContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult:
        self.sampled.append(params)
        said = types.TextContent(type="text", text=f"{self.name} says so")
        return types.CreateMessageResult(
            role="assistant", content=said, model="a-model", stop_reason="endTurn"
        )

    async def rooted(self, context: ClientRequestContext) -> types.ListRootsResult:
        self.roots_asked += 1
        return types.ListRootsResult(
            roots=[types.Root(uri=FileUrl(f"file:///{self.name}"), name=self.name)]
        )

    async def log(self, params: types.LoggingMessageNotificationParams) -> None:
        self.logged.append(params.data)

    async def report(self, progress: float, total: float | None, message: str | None) -> None:
        self.reported.append(progress)

    def client(self, url: str, mode: str = "legacy") -> Client:
        """An unmodified client of the SDK that has all that a server may ask."""
        return Client(
            url,
            mode=mode,
            elicitation_callback=self.elicited,
            sampling_callback=self.samples,
            list_roots_callback=self.rooted,
            logging_callback=self.log,
            log_level=None if mode == "legacy" else "info",
        )


def text_of(result: types.CallToolResult) -> str:
    assert not result.is_error, result
    return "\n".join(block.text for block in result.content if block.type == "text")


def found(result: types.CallToolResult) -> Json:
    """What the scripted backend found out in a call."""
    assert not result.is_error, result
    assert result.structured_content is not None
    return result.structured_content


def do(*steps: Json) -> Json:
    """The arguments with which the scripted backend takes steps."""
    return {"steps": list(steps)}


def form(message: str = "Who?") -> Json:
    schema = {"type": "object", "properties": {"name": {"type": "string", "default": "Zoe"}}}
    return {
        "method": "elicitation/create",
        "params": {"message": message, "requestedSchema": schema},
    }


def capabilities_seen(seen: Sequence[Json]) -> Json:
    """What a client declared in the `initialize` that a scripted backend has seen."""
    return next(m for m in seen if m.get("method") == "initialize")["params"]["capabilities"]

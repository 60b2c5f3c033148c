"""The Python SDK's own client and server, both unmodified, with a proxy between them over HTTP.

Every test runs with clients of both eras. The server speaks both, over its own Streamable HTTP.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.client.session import ClientRequestContext, IncomingMessage
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from pydantic import FileUrl

from tests.rig.embedded import served
from tests.rig.upstream import fronting
from tests.servers.everything import build

pytestmark = [
    # 2026-07-28 has dropped methods that servers and clients of the handshake era live by.
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

PATIENCE: Final = 20.0
"""Seconds for anything that should happen at once, on a busy machine too."""

HANDSHAKE: Final = "legacy"
MODERN: Final = "auto"
"""Asks for the newest revision first, which the proxy serves."""


@pytest.fixture(params=[HANDSHAKE, MODERN])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def elsewhere(
    *,
    json_response: bool = False,
    stateless_http: bool = False,
    event_store: EventStore | None = None,
    retry_interval: int | None = None,
) -> AsyncGenerator[str]:
    """Yield the URL of a proxy in front of the server, which has these options."""
    app = build().streamable_http_app(
        host="127.0.0.1",
        json_response=json_response,
        stateless_http=stateless_http,
        event_store=event_store,
        retry_interval=retry_interval,
    )
    async with served(app, lifespan=True) as base:
        async with fronting(f"{base}/mcp") as proxy:
            yield proxy.url


class KeptEvents(EventStore):
    """Keeps the events of all streams, for a client that comes back."""

    def __init__(self) -> None:
        self._events: list[tuple[str, types.JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: types.JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(
        self, last_event_id: str, send_callback: EventCallback
    ) -> str | None:
        at = int(last_event_id)
        stream = self._events[at - 1][0]
        for number, (of, message) in enumerate(self._events[at:], at + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


async def call(client: Client, tool: str, **arguments: object) -> str:
    """Return the text that the tool answered."""
    with anyio.fail_after(PATIENCE):
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text


@pytest.mark.parametrize("how", ["events", "json", "stateless"])
async def test_tools_prompts_and_resources_are_the_servers(mode: str, how: str) -> None:
    """DESIGN 5.4: what a session sees is what the server sent, however it answers."""
    running = elsewhere(json_response=how == "json", stateless_http=how == "stateless")
    async with running as url, Client(url, mode=mode) as client:
        assert (client.protocol_version == "2026-07-28") is (mode == MODERN)
        assert client.server_info is not None
        assert client.server_info.name == "sessionproxy-everything"
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert {"test_simple_text", "test_sampling"} <= tools
        assert (await call(client, "test_simple_text")).startswith("This is a simple text")
        (contents,) = (await client.read_resource("test://static-text")).contents
        assert isinstance(contents, types.TextResourceContents)
        prompt = await client.get_prompt("test_simple_prompt")
        assert prompt.messages


async def test_a_tools_own_error_arrives_as_the_result_that_it_is(mode: str) -> None:
    """DESIGN 5.4: `isError` is the backend's; a JSON-RPC error keeps code and text."""
    async with elsewhere() as url, Client(url, mode=mode) as client:
        result = await client.call_tool("test_error_handling")
        assert result.is_error
        with pytest.raises(MCPError) as raised:
            await client.call_tool("no_such_tool")
        assert raised.value.error.code == types.INVALID_PARAMS
        assert raised.value.error.message == "Unknown tool: no_such_tool"


async def test_two_overlapping_calls_of_one_client_are_both_asked(mode: str) -> None:
    """DESIGN 8: never one slot for the current request."""
    both = anyio.Event()
    asked: list[str] = []

    async def elicited(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        asked.append(params.message)
        if len(asked) == 2:
            both.set()
        await both.wait()
        return types.ElicitResult(
            action="accept", content={"username": params.message, "email": "a@example.com"}
        )

    tool = "test_elicitation" if mode == HANDSHAKE else "test_input_required_result_elicitation"
    async with elsewhere() as url, Client(url, mode=mode, elicitation_callback=elicited) as client:

        async def ask(message: str) -> None:
            answers.append(await call(client, tool, message=message))

        answers: list[str] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "first")
            tasks.start_soon(ask, "second")
    assert len(asked) == len(answers) == 2
    if mode == HANDSHAKE:
        assert sorted(asked) == ["first", "second"]


async def test_the_server_gets_the_clients_sampling_and_roots() -> None:
    """2025-11-25 client/sampling and client/roots, each on the stream of the call that asks."""

    async def sampled(
        context: ClientRequestContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult:
        content = types.TextContent(type="text", text="forty-two")
        return types.CreateMessageResult(role="assistant", content=content, model="a-model")

    async def roots(context: ClientRequestContext) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri=FileUrl("file:///work"), name="work")])

    async with (
        elsewhere() as url,
        Client(url, mode=HANDSHAKE, sampling_callback=sampled, list_roots_callback=roots) as client,
    ):
        assert await call(client, "test_sampling", prompt="What?") == "LLM response: forty-two"
        listed = json.loads(await call(client, "test_list_roots"))
        assert [(root["uri"], root["name"]) for root in listed] == [("file:///work", "work")]


async def test_progress_of_a_call_comes_in_order_and_before_its_result(mode: str) -> None:
    """2025-11-25 basic/utilities/progress."""
    told: list[float] = []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    async with elsewhere() as url, Client(url, mode=mode) as client:
        with anyio.fail_after(PATIENCE):
            await client.call_tool("test_tool_with_progress", progress_callback=progressed)
        assert told == sorted(told)
        assert len(told) == 3


async def test_a_change_of_a_list_is_heard_of_on_the_get_stream() -> None:
    """2025-11-25 basic/transports#listening-for-messages-from-the-server, held all the way."""
    changed = anyio.Event()

    async def heard(message: IncomingMessage) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            changed.set()

    async with elsewhere() as url, Client(url, mode=HANDSHAKE, message_handler=heard) as client:
        await call(client, "test_trigger_tool_change")
        with anyio.fail_after(PATIENCE):
            await changed.wait()


async def test_a_stream_that_the_server_closes_is_taken_up_again() -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery: the tool closes its own stream, and
    the SDK's server keeps its events where it is given a store for them."""
    async with elsewhere(event_store=KeptEvents(), retry_interval=50) as url:
        async with Client(url, mode=HANDSHAKE) as client:
            said = await call(client, "test_reconnection")
            assert said == "Answered after the stream was closed."

"""Proxies of the Python API on a real socket, and what stands behind them.

Neighbours: the tests of this room.
"""

import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import mcp_types as types
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp import Client
from mcp.client.session import ElicitationFnT

from sessionproxy import Proxy
from sessionproxy.core.state import EndReason
from sessionproxy.serve import protocol_of
from tests.rig.embedded import Application, bare, scripted, served
from tests.rig.proxy import EVERYTHING, ROOT

PATIENCE: Final = 30.0
"""Seconds: a bound for what a real process takes part in."""

TOOLS: Final = [
    {"name": "do", "title": "Do", "description": "Does.", "inputSchema": {"type": "object"}},
    {"name": "undo", "inputSchema": {"type": "object"}},
]
RESULTS: Final[dict[str, dict[str, Any]]] = {
    "tools/list": {"tools": TOOLS},
    "resources/list": {"resources": [{"uri": "note://one", "name": "one"}]},
    "resources/templates/list": {
        "resourceTemplates": [{"uriTemplate": "note://{name}/{?page}", "name": "note"}]
    },
    "resources/read": {"contents": [{"uri": "note://one", "text": "the first"}]},
    "prompts/list": {"prompts": [{"name": "greet"}]},
    "completion/complete": {"completion": {"values": ["Ann"]}},
    "prompts/get": {
        "messages": [{"role": "user", "content": {"type": "text", "text": "Greet me."}}]
    },
}


def complete(**more: object) -> tuple[str, ...]:
    """The command of a quick server with tools (`do`, `undo`), a resource, a template, a prompt."""
    on = {method: [{"replies": {"result": result}}] for method, result in RESULTS.items()}
    return scripted(on=on, **more)


@asynccontextmanager
async def fronted(
    proxy: Proxy, path: str = "/mcp", *, around: Callable[[Application], Application] = bare
) -> AsyncGenerator[str]:
    """Serve a proxy as `run` does; yield its URL. `around`: middleware, as an application has."""
    app = proxy.http_app()
    protocol = protocol_of(app, None) if around is bare else None
    failed: Exception | None = None
    async with app.lifespan():

        def end() -> None:
            app.running.hurry()
            app.running.end_all(EndReason.SHUTDOWN)

        async with served(around(app), protocol=protocol, before_end=end) as base:
            try:
                yield base + path
            except Exception as error:  # noqa: BLE001 - raised again outside of all groups
                failed = error
    if failed is not None:
        raise failed


@asynccontextmanager
async def fronts(
    proxy: Proxy,
    *,
    mode: str = "legacy",
    elicitation_callback: ElicitationFnT | None = None,
) -> AsyncGenerator[Client]:
    """A client of the SDK in front of a proxy."""
    async with fronted(proxy) as url:
        async with Client(url, mode=mode, elicitation_callback=elicitation_callback) as client:
            yield client


@asynccontextmanager
async def elsewhere(*options: str) -> AsyncGenerator[str]:
    """The everything server as one elsewhere: `--http` or `--sse`, `0`; yield its URL."""
    command = [*EVERYTHING, *options]
    async with await anyio.open_process(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=None
    ) as process:
        try:
            assert process.stdout is not None
            said = BufferedByteReceiveStream(process.stdout)
            with anyio.fail_after(PATIENCE):
                yield (await said.receive_until(b"\n", 1000)).decode()
        finally:
            process.kill()


def text_of(result: types.CallToolResult) -> str:
    assert not result.is_error, result
    return "\n".join(block.text for block in result.content if block.type == "text")


def facts_of(result: types.CallToolResult) -> dict[str, Any]:
    """What the quick server tells of itself."""
    assert result.structured_content is not None, result
    return result.structured_content


def texts_of(result: types.ReadResourceResult) -> list[str]:
    return [each.text for each in result.contents if isinstance(each, types.TextResourceContents)]


async def names_of(client: Client) -> list[str]:
    return [tool.name for tool in (await client.list_tools()).tools]


async def works(client: Client) -> None:
    """A complete server is behind: it lists, calls, reads and renders."""
    assert await names_of(client) == ["do", "undo"]
    assert (await client.call_tool("do", {})).structured_content is not None
    assert [str(r.uri) for r in (await client.list_resources()).resources] == ["note://one"]
    templates = (await client.list_resource_templates()).resource_templates
    assert [each.uri_template for each in templates] == ["note://{name}/{?page}"]
    assert texts_of(await client.read_resource("note://one")) == ["the first"]
    assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["greet"]
    message = (await client.get_prompt("greet")).messages[0]
    assert isinstance(message.content, types.TextContent)
    assert message.content.text == "Greet me."


async def works_as_everything(client: Client) -> None:
    """The everything server is behind."""
    assert "test_simple_text" in await names_of(client)
    said = text_of(await client.call_tool("test_simple_text", {}))
    assert said == "This is a simple text response for testing."
    read = texts_of(await client.read_resource("test://static-text"))
    assert read == ["This is the content of the static text resource."]
    prompt = await client.get_prompt("test_simple_prompt")
    assert isinstance(prompt.messages[0].content, types.TextContent)


PYTHON: Final = sys.executable

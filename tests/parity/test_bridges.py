"""PARITY 69 to 78: transports in front and behind, several things at one endpoint, and what makes a
gateway. The whole matrix is `tests.clients.test_matrix`; here it goes through `create_proxy`.
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client import Transport
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.server.mcpserver import MCPServer

from sessionproxy import (
    CallNext,
    Proxy,
    ProxyProvider,
    Request,
    RequestFailed,
    Result,
    StatefulProxyClient,
    create_proxy,
)
from sessionproxy.servers import Rules
from tests.rig.embedded import scripted
from tests.rig.http import calling, connect
from tests.rig.proxy import EVERYTHING, ROOT
from tests.rig.sdk import LISTING
from tests.servers.everything import build

from .rig import PATIENCE, elsewhere, fronted
from .ways import ERAS, Person, State, do, found, text_of

pytestmark = [pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")]

RUN: Final = """
import json, sys
from sessionproxy import create_proxy
target, state = json.loads(sys.argv[1])
create_proxy(target, **state).run()
"""


def program(target: object, state: State) -> StdioServerParameters:
    """A user's program: a proxy that runs over its own stdin and stdout, as `run()` does."""
    import json

    words = ["-c", RUN, json.dumps([target, state])]
    return StdioServerParameters(command=sys.executable, args=words, cwd=ROOT)


async def asks(transport: Transport | str, mode: str = "legacy") -> None:
    """List, call, elicit."""
    person = Person()
    client = Client(transport, mode=mode, elicitation_callback=person.elicited)
    async with client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert "test_elicitation" in names
        said = text_of(await client.call_tool("test_simple_text"))
        assert said == "This is a simple text response for testing."
        result = await client.call_tool("test_elicitation", {"message": "Who?"})
        assert '"username": "Ann"' in text_of(result)
        assert len(person.asked) == 1


BACKS: Final = ("stdio", "http", "sse", "in process")


@asynccontextmanager
async def behind(back: str) -> AsyncGenerator[Any]:
    """The everything server, as a target that is reached over this transport."""
    if back in ("http", "sse"):
        async with elsewhere(f"--{back}", "0") as target:
            assert ("/sse" in target) == (back == "sse")
            yield target
    else:
        yield list(EVERYTHING) if back == "stdio" else build


@pytest.mark.parametrize("back", ["http", "sse"])
async def test_row_69_clients_over_stdio_reach_servers_over_http(back: str, state: State) -> None:
    """PARITY 69: which is what `run()` does."""
    with anyio.fail_after(2 * PATIENCE):
        async with behind(back) as target:
            await asks(stdio_client(program(target, state)))


async def test_row_70_a_server_over_stdio_is_reached_over_http(state: State) -> None:
    """PARITY 70: by clients of both eras."""
    with anyio.fail_after(2 * PATIENCE):
        async with behind("stdio") as target, fronted(create_proxy(target, **state)) as url:
            for mode in ERAS:
                await asks(url, mode)


@pytest.mark.parametrize("back", BACKS)
async def test_row_71_clients_of_http_with_sse_reach_each_server(back: str, state: State) -> None:
    """PARITY 71: of 2024-11-05."""
    with anyio.fail_after(2 * PATIENCE):
        async with behind(back) as target, fronted(create_proxy(target, **state)) as url:
            await asks(sse_client(url.replace("/mcp", "/sse")))


@pytest.mark.parametrize("back", BACKS[1:])
async def test_row_73_clients_of_http_reach_each_server(back: str, state: State) -> None:
    """PARITY 73: with rows 69 to 71 the cells of the matrix, but for stdio to stdio, which is of
    `tests.clients.test_matrix`."""
    with anyio.fail_after(2 * PATIENCE):
        async with behind(back) as target, fronted(create_proxy(target, **state)) as url:
            await asks(url)
            if back != "sse":
                await asks(url, ERAS[1])


async def test_row_72_the_default_transport_is_stdio(state: State) -> None:
    """PARITY 72: `run()`."""
    with anyio.fail_after(PATIENCE):
        transport = stdio_client(program(list(LISTING), state))
        async with Client(transport, mode="legacy") as client:
            assert found(await client.call_tool("do", do()))["count"] >= 1


async def test_row_74_several_stateful_proxies_and_own_tools_are_mounted_side_by_side(
    state: State,
) -> None:
    """PARITY 74: 2 backends + 1 built-in tool in one endpoint; the link is live; each session has
    each server once."""
    first = StatefulProxyClient(LISTING, **state)
    proxy = create_proxy(ProxyProvider(first.new_stateful), **state)
    proxy.mount(create_proxy(LISTING, **state), prefix="second")

    @proxy.tool
    def add(one: int, two: int) -> int:
        """Add."""
        return one + two

    async with fronted(proxy) as url:
        pids: list[tuple[object, object]] = []
        for mode in (ERAS[0], ERAS[0], ERAS[1]):
            async with Person().client(url, mode) as client:
                names = {tool.name for tool in (await client.list_tools()).tools}
                assert names == {"add", "do", "second_do"}
                both = [found(await client.call_tool(name, do())) for name in ("do", "second_do")]
                again = [found(await client.call_tool(name, do())) for name in ("do", "second_do")]
                used = tuple(each["pid"] for each in both)
                assert tuple(each["pid"] for each in again) == used
                pids.append((used[0], used[1]))
                assert text_of(await client.call_tool("add", {"one": 1, "two": 2})) == "3"
        assert len({pid for pair in pids for pid in pair}) == 6


async def test_row_75_a_server_of_the_sdk_is_renamed_hidden_and_wrapped_in_process(
    state: State,
) -> None:
    """PARITY 75: rename, hide and wrap tools of an SDK server in process."""
    theirs = MCPServer("theirs")

    @theirs.tool()
    def greet(name: str) -> str:
        return f"Hello {name}"

    @theirs.tool()
    def secret() -> str:
        return "secret"

    async def louder(request: Request, call_next: CallNext) -> Result:
        result = await call_next(request)
        if request.method != "tools/call":
            return result
        text = result.value["content"][0]["text"].upper()
        return Result.of({**result.value, "content": [{"type": "text", "text": text}]})

    rules = Rules(rename_tools={"greet": "welcome"}, deny_tools=("secret",))
    async with fronted(create_proxy(theirs, rules=rules, hooks=[louder], **state)) as url:
        for mode in ERAS:
            async with Person().client(url, mode) as client:
                assert [tool.name for tool in (await client.list_tools()).tools] == ["welcome"]
                result = await client.call_tool("welcome", {"name": "Ann"})
                assert result.content[0].type == "text"
                assert result.content[0].text == "HELLO ANN"
                assert "Unknown tool" in await called(client, "secret")


async def called(client: Client, name: str) -> str:
    """What is said of a tool that is not there."""
    from mcp.shared.exceptions import MCPError

    try:
        result = await client.call_tool(name)
    except MCPError as error:
        return str(error)
    assert result.is_error
    return str(result.content)


async def test_row_76_a_gateway_has_limits_and_a_log_of_who_called_what(state: State) -> None:
    """PARITY 76: auth (row 67), rate limit, size limit, audit log."""
    log: list[tuple[str | None, str, str | None]] = []

    async def gate(request: Request, call_next: CallNext) -> Result:
        log.append((request.owner, request.method, request.name))
        if sum(method == "tools/call" for _, method, _ in log) > 2:
            raise RequestFailed(-32000, "too many calls", {"retry": 60})
        return await call_next(request)

    proxy = create_proxy(scripted(), hooks=[gate], max_body=100_000, **state)
    async with fronted(proxy) as url, connect(url) as client:
        assert (await client.do())["count"] == 1
        too_large = await client.post({"x": "y" * 200_000})
        assert too_large.status_code == 413
        assert (await client.do())["count"] == 2
        answer = await client.request("tools/call", calling())
        assert answer["error"] == {
            "code": -32000,
            "message": "too many calls",
            "data": {"retry": 60},
        }
        assert [entry for entry in log if entry[1] == "tools/call"] == [
            ("local", "tools/call", "do")
        ] * 3


async def test_row_77_lists_of_a_modern_client_come_from_what_is_known(state: State) -> None:
    """PARITY 77: list from cache: nothing is started for the second one. (The figures are of
    `scripts/bench`, which compares with the direct way.)"""
    starts: list[str] = []

    async def count(request: Request, call_next: CallNext) -> Result:
        starts.append(request.method)
        return await call_next(request)

    proxy: Proxy = create_proxy(LISTING, hooks=[count], **state)
    async with fronted(proxy) as url:
        for _ in range(3):
            async with Person().client(url, ERAS[1]) as client:
                assert [tool.name for tool in (await client.list_tools()).tools] == ["do"]
    assert starts.count("tools/list") == 1


async def test_row_78_sessions_and_backends_are_counted(state: State) -> None:
    """PARITY 78: counts at `/readyz` and `/metrics`. (More in tests/ops/test_metrics.py; the spans
    in tests/ops/test_tracing.py.)"""
    async with fronted(create_proxy(scripted(), **state)) as url, connect(url) as client:
        await client.do()
        async with httpx2.AsyncClient(trust_env=False) as pool:
            ready = (await pool.get(url.replace("/mcp", "/readyz"))).json()
            metrics = (await pool.get(url.replace("/mcp", "/metrics"))).text
    assert (ready["sessions"], ready["backends"]) == (1, 1)
    called = [line for line in metrics.splitlines() if 'method="tools/call"' in line]
    assert any(line.endswith(" 1.0") and "requests_total" in line for line in called), called

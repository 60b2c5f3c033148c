"""A client by itself: its connection, what it knows of its server, and its copies (PARITY 39, 65).

Who shares a connection with whom is in `tests.client.test_runtime` and `tests.parity`.
"""

import asyncio  # noqa: TID251 - event loops are what some of these are about
import json
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import mcp_types as types
import pytest
from mcp.server.mcpserver import MCPServer

from sessionproxy import ConfigError, HandlerContext, ProxyClient, StatefulProxyClient, create_proxy
from sessionproxy.config import Settings
from sessionproxy.errors import BackendGone
from sessionproxy.keywords import FrontSettings
from tests.parity.rig import fronted
from tests.parity.ways import do, form, found
from tests.rig.embedded import SCRIPTED, gone, lives, processes_of, scripted
from tests.rig.http import connect
from tests.rig.proxy import ROOT

State = dict[str, Any]

HEEDED = {
    "idle", "linger", "shared_linger", "max_age", "session_ttl", "max_asleep", "max_sessions",
    "starts_at_once", "queue_timeout", "start_timeout", "call_timeout", "stop_grace", "max_line",
    "state_dir", "containment",
}  # fmt: skip
"""By a client, of the settings that are not about servers."""


@pytest.mark.parametrize("name", sorted(FrontSettings.__annotations__))
def test_a_setting_that_a_client_does_not_heed_is_refused(name: str) -> None:
    """PARITY 39; it would be taken and mean nothing."""
    given: Any = {name: getattr(Settings(), name)}
    if name in HEEDED:
        ProxyClient(scripted(), **given)
    else:
        with pytest.raises(ConfigError, match=f"^{name}: "):
            ProxyClient(scripted(), **given)


async def test_a_new_one_is_like_it_and_has_a_connection_of_its_own(state: State) -> None:
    """PARITY 39: `new()`: neither notices when the other connects or leaves."""

    async def rooted(context: HandlerContext) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[])

    first = ProxyClient(scripted(), name="first", roots_handler=rooted, **state)
    async with first:
        second = first.new()
        assert (first.is_connected, second.is_connected) == (True, False)
        assert (second.name, second.target, second.handlers, second.settings, second.family) == (
            first.name, first.target, first.handlers, first.settings, first.family,
        )  # fmt: skip
        async with second:
            one, other = [found(await each.call_tool("do", do())) for each in (first, second)]
            assert one["pid"] != other["pid"]
            assert [one["count"], other["count"]] == [1, 1]
        await gone(other["pid"])
        assert lives(one["pid"])
        assert found(await first.call_tool("do", do()))["count"] == 2


class Noting(StatefulProxyClient):
    """A client of a user's, which is made in another way and notes what is called."""

    def __init__(self, who: str, state: State) -> None:
        super().__init__(scripted(), **state)
        self.who = who
        self.called: list[str] = []

    async def call_tool(self, name: str, *args: Any, **more: Any) -> types.CallToolResult:  # noqa: ANN401
        self.called.append(f"{self.who} {name}")
        return await super().call_tool(name, *args, **more)


async def test_copies_are_of_the_class_of_what_they_are_copies_of(state: State) -> None:
    """PARITY 39, 61: `new()` and `new_stateful()`: what a user has overridden stays so."""
    first = Noting("Ann", state)
    async with first:
        second = first.new()
        assert type(second) is Noting
        assert not second.is_connected
        async with second:
            pids = [found(await each.call_tool("do", do()))["pid"] for each in (first, second)]
            assert pids[0] != pids[1]
    assert first.called == ["Ann do", "Ann do"]
    made = create_proxy(MCPServer("tools"), **state)

    @made.tool
    async def use() -> str:
        async with first.new_stateful() as copy:
            found(await copy.call_tool("do", do()))
            seen = [type(copy).__name__, copy.is_connected]
            for each in (second, copy, first):  # its own copies are let go, and no others
                await each.clear()
                seen.append(copy.is_connected)
            return str(seen)

    async with fronted(made) as url, connect(url) as client:
        answer = await client.request("tools/call", {"name": "use", "arguments": {}})
        seen = answer["result"]["structuredContent"]["result"]
        assert seen == "['Noting', True, True, True, False]"
    assert len(first.called) == 3


async def test_who_is_not_connected_says_so_whatever_it_is_asked(state: State) -> None:
    """PARITY 65: before its first use as well as after; a use does not connect it by the way."""
    client = ProxyClient(MCPServer("here"), **state)

    async def refuse() -> None:
        for name in ("initialize_result", "server_info", "server_capabilities", "instructions"):
            with pytest.raises(BackendGone, match="not connected: use it within `async with`"):
                getattr(client, name)
        with pytest.raises(BackendGone, match="not connected"):
            client.listen(lambda method, params: None)
        for call in (client.ping, client.list_tools):
            with pytest.raises(BackendGone, match="not connected"):
                await call()
        assert not client.is_connected
        assert repr(client) == "<ProxyClient sessionproxy disconnected>"

    await refuse()
    async with client:
        await client.ping()
        assert client.is_connected
        assert repr(client) == "<ProxyClient sessionproxy connected>"
    await refuse()


async def test_it_knows_how_its_server_introduced_itself(state: State) -> None:
    """PARITY 46: as typed models, with what no model knows."""
    async with ProxyClient(scripted(), **state) as client:
        welcome = client.initialize_result
        assert (client.server_info, client.server_capabilities, client.instructions) == (
            welcome.server_info, welcome.capabilities, welcome.instructions,
        )  # fmt: skip
        assert (client.server_info.name, client.server_info.title) == ("scripted", "Söme")
        assert client.server_capabilities.resources is not None
        assert client.server_capabilities.resources.subscribe
        assert client.instructions == "Do as you are told."
        nonce = found(await client.call_tool("do", do()))["nonce"]
        assert (welcome.meta or {})["x-nonce"] == nonce


def counting() -> MCPServer[Any]:
    """A server that counts its calls."""
    server: MCPServer[Any] = MCPServer("counting")
    count = 0

    @server.tool(name="count")
    def add_one() -> int:
        nonlocal count
        count += 1
        return count

    assert callable(add_one)
    return server


async def called(client: ProxyClient) -> object:
    return (await client.call_tool("count")).structured_content


def test_what_was_held_in_an_event_loop_that_is_gone_is_opened_anew_in_the_next(
    state: State,
) -> None:
    """PARITY 65: nobody is left who could have left it."""
    made: list[MCPServer[Any]] = []

    def make() -> MCPServer[Any]:
        made.append(counting())
        return made[-1]

    client = ProxyClient(make, **state)

    async def enter_for_good() -> object:
        await client.__aenter__()
        return await called(client)

    async def use() -> object:
        async with client:
            assert client.is_last
            return await called(client)

    assert asyncio.run(enter_for_good()) == {"result": 1}
    assert asyncio.run(use()) == {"result": 1}
    assert not client.is_connected
    assert len(made) == 2


async def test_what_is_held_in_another_event_loop_cannot_be_entered(state: State) -> None:
    """PARITY 65: its connection is that loop's; it goes on there, unharmed."""
    client = ProxyClient(counting, **state)

    async def enter() -> None:
        async with client:
            raise AssertionError("it was entered")

    async with client:
        with pytest.raises(RuntimeError, match="held in another event loop"):
            await anyio.to_thread.run_sync(asyncio.run, enter())
        assert await called(client) == {"result": 1}
        assert client.is_last
    assert not client.is_connected


async def test_a_connected_client_of_several_servers_is_one_target_with_its_handlers(
    state: State,
) -> None:
    """PARITY 9, 11, 39: all sessions of the proxy use its one session of each server; what a server
    asks comes to the handler that the client has, what has none of its own to who called."""
    asked: list[str] = []

    async def elicited(
        context: HandlerContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"name": "the handler"})

    server = {"command": SCRIPTED[0], "args": list(SCRIPTED[1:])}
    servers = {"mcpServers": {"one": server, "two": server}}
    async with ProxyClient(servers, elicitation_handler=elicited, **state) as client:
        own = {name: found(await client.call_tool(f"{name}_do", do())) for name in ("one", "two")}
        async with fronted(create_proxy(client, **state)) as url:
            async with connect(url) as ann, connect(url) as bob:
                for each, name in ((ann, "one"), (bob, "two"), (bob, "one")):
                    steps = {"ask": form(f"of {name}")}, {"ask": {"method": "roots/list"}}
                    async with each.doing(*steps, name=f"{name}_do") as incoming:
                        question = await incoming.until("roots/list")
                        roots = {"roots": [{"uri": f"file:///{name}"}]}
                        await each.respond(question["id"], result=roots)
                        answer = await incoming.answer()
                    facts = answer["result"]["structuredContent"]
                    assert facts["pid"] == own[name]["pid"]
                    given = {"action": "accept", "content": {"name": "the handler"}}
                    assert [each["result"] for each in facts["answers"]] == [given, roots]
        assert asked == ["of one", "of two", "of one"]
        pids = [facts["pid"] for facts in own.values()]
        assert len(set(pids)) == 2
        assert all(map(lives, pids)), "they outlive the proxy"
        assert found(await client.call_tool("one_do", do()))["count"] == 4
    await gone(*pids)


LEFT_OPEN = """
import asyncio, json, sys
from sessionproxy import ProxyClient

async def main():
    target, state = json.loads(sys.argv[1]), sys.argv[2]
    client = ProxyClient(target, state_dir=state, containment="guardian", stop_grace=600)
    await client.__aenter__()
    print((await client.call_tool("do")).structured_content["pid"], flush=True)

asyncio.run(main())
"""
"""A program that forgets to leave what it has entered."""


async def test_a_program_that_leaves_a_client_open_ends_all_the_same(tmp_path: Path) -> None:
    """Issue 5: `asyncio.run` cancels all tasks at once, those too that hear how backends end: then
    nobody waits for a backend's end as long as for one that is stubborn."""
    state = tmp_path / "s"
    program = [sys.executable, "-c", LEFT_OPEN, json.dumps(scripted()), str(state)]
    with anyio.fail_after(30):
        done = await anyio.run_process(program, stderr=None, cwd=ROOT)
    pid = int(done.stdout)
    assert not lives(pid)
    assert processes_of(state) == []
    assert list(state.glob("run/*")) == [], "nothing is left for the next to sweep away"

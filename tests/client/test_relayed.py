"""Sessions that share the one of a client: what each sets up is its own."""

from pathlib import Path
from typing import Any

import pytest
from mcp.server.mcpserver import MCPServer

from sessionproxy import ProxyClient, ProxyProvider, StatefulProxyClient, create_proxy
from sessionproxy.core.state import EndReason, SessionState
from sessionproxy.errors import StateLost
from tests.parity.rig import facts_of, fronted
from tests.rig.embedded import gone, lives, scripted, until
from tests.rig.http import Client, connect, http

UPDATED = "notifications/resources/updated"

EXIT = [{"exit": 3}]


async def test_a_resource_of_one_session_is_not_told_of_to_another(tmp_path: Path) -> None:
    """DESIGN 5.1; PARITY 58: and the one who leaves does not unsubscribe the other."""
    state: dict[str, Any] = {"state_dir": str(tmp_path / "s")}
    client = ProxyClient(scripted(), **state)
    async with client, fronted(create_proxy(client, **state)) as url:
        async with connect(url) as ann, connect(url) as bob:
            async with ann.listen() as to_ann, bob.listen() as to_bob:
                await ann.request("resources/subscribe", {"uri": "x://1"})
                await bob.request("resources/subscribe", {"uri": "x://2"})
                await bob.request("resources/unsubscribe", {"uri": "x://1"})
                notes = [
                    {"note": {"method": UPDATED, "params": {"uri": f"x://{n}"}}} for n in (1, 2)
                ]
                await bob.do(*notes)
                assert (await to_ann.until(UPDATED))["params"] == {"uri": "x://1"}
                assert (await to_bob.until(UPDATED))["params"] == {"uri": "x://2"}
            seen = (await ann.do({"tells": "seen"}))["seen"]
            assert "resources/unsubscribe" not in [each.get("method") for each in seen]


async def test_a_client_who_goes_while_asked_does_not_leave_the_server_waiting(
    tmp_path: Path,
) -> None:
    """DESIGN 5.3: the question is answered for them."""
    state: dict[str, Any] = {"state_dir": str(tmp_path / "s")}
    client = ProxyClient(scripted(), **state)
    async with client, fronted(create_proxy(client, **state)) as url:
        async with connect(url) as ann, connect(url) as bob:
            question = {"method": "roots/list"}
            async with ann.doing({"ask": question}, {"release": "answered"}) as incoming:
                await incoming.until("roots/list")
                await ann.delete()
            await bob.do({"wait": "answered"})


async def test_a_server_that_dies_is_told_of_and_the_next_call_is_fresh(tmp_path: Path) -> None:
    """DESIGN 5.12: by each session once, and by the client itself."""
    state: dict[str, Any] = {"state_dir": str(tmp_path / "s")}
    client = ProxyClient(scripted(), **state)
    async with client, fronted(create_proxy(client, **state)) as url:
        async with connect(url) as ann, connect(url) as bob:
            await bob.do()
            dies = await ann.request(
                "tools/call", {"name": "do", "arguments": {"steps": [{"exit": 3}]}}
            )
            assert dies["result"]["isError"] is True
            for each in (ann, bob):
                told = await each.request("tools/call", {"name": "do"})
                assert told["result"]["isError"] is True
            assert (await ann.do())["pid"] == (await bob.do())["pid"]


async def test_a_client_whose_session_is_over_serves_again_all_the_same(
    state: dict[str, Any],
) -> None:
    """DESIGN 7: nobody came for `session_ttl` seconds after its server had crashed."""
    client = ProxyClient(scripted(), **state)
    async with client, fronted(create_proxy(client, **state)) as url:
        async with connect(url) as ann:
            dies = await ann.request("tools/call", {"name": "do", "arguments": {"steps": EXIT}})
            assert dies["result"]["isError"] is True
        session = client.connection.link.session
        assert session is not None
        await until(lambda: session.state is SessionState.ASLEEP)
        client.connection.running.front.manager.end(session, EndReason.EXPIRED)
        async with connect(url) as bob, connect(url) as cid:
            assert [(await each.do())["count"] for each in (bob, cid)] == [1, 2]
        with pytest.raises(StateLost, match="exit status 3"):
            await client.call_tool("do")
        assert facts_of(await client.call_tool("do"))["count"] == 3


async def test_a_client_that_is_disconnected_under_its_proxy_fails_its_calls(
    tmp_path: Path,
) -> None:
    """PARITY 9: use after exit; connected again, it serves again."""
    state: dict[str, Any] = {"state_dir": str(tmp_path / "s")}
    client = ProxyClient(scripted(), **state)
    async with client:
        proxy = create_proxy(client, **state)
    async with fronted(proxy) as url, http() as pool:
        response = await Client(pool, url).initialize()
        assert "not connected" in response.text
        async with client, connect(url) as ann:
            assert (await ann.do())["count"] == 1


@pytest.mark.parametrize("how", ["connected", "provided", "shared"])
async def test_a_tool_that_sessions_share_has_a_copy_for_each_of_them(
    state: dict[str, Any], how: str
) -> None:
    """DESIGN 5.1, PARITY 61: what one user does with it, no other sees; with them it goes."""
    stateful = StatefulProxyClient(scripted(), **state)
    server: MCPServer[Any] = MCPServer("tools")

    @server.tool()
    async def pid() -> int:
        async with stateful.new_stateful() as copy:
            return facts_of(await copy.call_tool("do"))["pid"]

    client = ProxyClient(server, **state)
    async with client:
        if how == "shared":
            proxy = create_proxy(server, sessions="shared", **state)
        else:
            proxy = create_proxy(client if how == "connected" else provider_of(client), **state)
        async with fronted(proxy) as url, connect(url) as ann, connect(url) as bob:
            pids: list[int] = []
            for each in (ann, bob, ann):
                answer = await each.request("tools/call", {"name": "pid", "arguments": {}})
                pids.append(answer["result"]["structuredContent"]["result"])
            assert pids[0] == pids[2] != pids[1]
            await ann.delete()
            await gone(pids[0])
            assert lives(pids[1])


def provider_of(client: ProxyClient) -> ProxyProvider:
    return ProxyProvider(lambda: client)


async def test_a_listener_that_fails_keeps_nothing_from_others(state: dict[str, Any]) -> None:
    """DESIGN 5.3: a client's own, of what the sessions that share it hear of too."""

    def fails(method: str, params: object) -> None:
        raise ValueError(method)

    changed = "notifications/tools/list_changed"
    client = ProxyClient(scripted(), **state)
    async with client, fronted(create_proxy(client, **state)) as url:
        client.listen(fails)
        async with connect(url) as ann, ann.listen() as to_ann:
            await client.call_tool("do", {"steps": [{"note": {"method": changed}}]})
            assert (await to_ann.until(changed))["method"] == changed

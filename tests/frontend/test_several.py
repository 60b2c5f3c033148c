"""What clients meet of several servers: the endpoint of all, and that of each (issue)."""

from typing import Final

import pytest

from sessionproxy.core.state import EndReason, StopReason
from tests.rig.embedded import PYTHON, SCRIPTED, embedded, until
from tests.rig.http import Client, Json, calling, connect, http
from tests.rig.modern import Modern
from tests.rig.several import DOWN, listing, names, servers, two

FILTERED: Final = {
    "one": {"command": listing(tools=["do", "hide"]), "deny_tools": ["hide"]},
    "two": SCRIPTED,
}


@pytest.mark.usefixtures("both_ways")
async def test_each_server_has_an_endpoint_where_its_names_have_no_prefix() -> None:
    """Issue: `/servers/<name>/mcp`, under the same rules; its sessions are its own."""
    async with embedded(servers(**FILTERED)) as proxy, http() as pool:
        alone = f"{proxy.base}/servers/one/mcp"
        async with connect(alone) as client, connect(proxy.url) as both:
            assert await names(client, "tools/list", "tools", "name") == ["do"]
            assert client.opened["result"]["serverInfo"]["name"] == "scripted"
            refused = await client.request("tools/call", calling(name="hide"))
            assert refused["error"]["message"] == "Unknown tool: hide"
            found = [await client.do(), await both.do(name="one_do")]
            assert len({each["pid"] for each in found}) == 2
            for elsewhere in (proxy.url, f"{proxy.base}/servers/two/mcp"):
                stranger = Client(pool, elsewhere)
                stranger.id = client.id
                assert (await stranger.post({})).status_code in (400, 404)
                response = await stranger.post(_call("do"))
                assert response.status_code == 404, "its id is good at its own endpoint alone"
        modern = Modern(pool, alone)
        tools = (await modern.post("tools/list")).json()["result"]["tools"]
        assert [tool["name"] for tool in tools] == ["do"]
        assert (await modern.call())["structuredContent"]["count"]
        named = Modern(pool, f"{alone}/s/mine")
        assert (await named.call())["structuredContent"]["pid"]


def _call(name: str) -> Json:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": calling(name=name)}


async def test_a_conversation_of_one_endpoint_is_none_of_another() -> None:
    """DESIGN 5.1, 6: keys count together with the route."""
    async with embedded(two()) as proxy, http() as pool:
        urls = [proxy.url, *(f"{proxy.base}/servers/{name}/mcp" for name in ("one", "two"))]
        pids: list[int] = []
        for url in urls:
            modern = Modern(pool, f"{url}/s/same")
            name = "one_do" if url == proxy.url else "do"
            pids.append((await modern.call(name=name))["structuredContent"]["pid"])
        assert len(set(pids)) == 3
        first = Modern(pool, f"{urls[1]}/s/same")
        asks = calling({"ask": {"method": "roots/list"}})
        state = (await first.post("tools/call", asks)).json()["result"]["requestState"]
        retry: Json = {**asks, "requestState": state, "inputResponses": {"roots-1": {"roots": []}}}
        other = Modern(pool, f"{urls[2]}/s/same")
        assert (await other.post("tools/call", retry)).json()["error"]["code"] == -32602


@pytest.mark.parametrize(
    "path",
    ["/servers/three/mcp", "/servers/one", "/servers/one/mcpx", "/servers//mcp", "/servers", "/x"],
)
async def test_other_paths_are_not_found(path: str) -> None:
    """DESIGN 11; and the answer says where to ask."""
    async with embedded(two()) as proxy, http() as pool:
        answer = await pool.post(proxy.base + path, json={})
        assert answer.status_code == 404
        each = path.startswith("/servers/")
        where = "of a server is /servers/NAME/mcp" if each else "is /mcp"
        assert f'not found; the endpoint {where}"' in answer.text


async def test_a_server_alone_keeps_its_name_at_both_endpoints() -> None:
    """PARITY 10: one server, no prefix; and its own endpoint is the same one."""
    async with embedded(servers(one=SCRIPTED)) as proxy, connect(proxy.url) as client:
        assert (await client.do())["count"] == 1
        async with http() as pool:
            same = Client(pool, f"{proxy.base}/servers/one/mcp")
            same.id = client.id
            assert (await same.do())["count"] == 2
            assert "servers" not in (await pool.get(f"{proxy.base}/readyz")).json()


async def test_readyz_tells_of_each_server() -> None:
    """PARITY 13: status shows it down; PARITY 35: starting the proxy starts nothing."""
    async with embedded(two(bad=DOWN)) as proxy, http() as pool, connect(proxy.url) as client:
        ready = (await pool.get(f"{proxy.base}/readyz")).json()
        assert ready["servers"] == {
            name: {"status": "not met yet", "sessions": 0} for name in ("one", "two", "bad")
        }
        await client.do(name="one_do")
        await client.request("tools/call", calling(name="bad_do"))
        ready = (await pool.get(f"{proxy.base}/readyz")).json()
        assert {n: s["status"] for n, s in ready["servers"].items()} == {
            "one": "up",
            "two": "not met yet",
            "bad": "down",
        }
        assert (ready["sessions"], ready["backends"]) == (1, 1)
        assert client.id not in str(ready)


async def test_a_parked_call_keeps_the_whole_session() -> None:
    """DESIGN 9: parked is a lease, of the server's part and of what it is a part of."""
    async with embedded(two(), idle=0.2) as proxy, http() as pool:
        modern = Modern(pool, proxy.url)
        asks = calling({"ask": {"method": "roots/list"}}, name="one_do")
        first = (await modern.post("tools/call", asks)).json()["result"]
        whole = next(iter(proxy.manager.registry.awake()))
        assert whole.leases == 1
        (key,) = first["inputRequests"]
        retry: Json = {
            **asks,
            "requestState": first["requestState"],
            "inputResponses": {key: {"roots": []}},
        }
        last = (await modern.post("tools/call", retry)).json()["result"]
        assert last["structuredContent"]["answers"][0]["result"] == {"roots": []}
        assert whole.leases == 0
        await until(lambda: proxy.processes() == [])


async def test_a_retry_after_its_server_died_is_told_so() -> None:
    """DESIGN 5.12: not executed anew; and the loss is told."""
    async with embedded(two()) as proxy, http() as pool:
        modern = Modern(pool, proxy.url)
        asks = calling({"ask": {"method": "roots/list"}}, name="one_do")
        first = (await modern.post("tools/call", asks)).json()["result"]
        whole = next(iter(proxy.manager.registry.awake()))
        await modern.call({"exit": 1}, name="one_do")
        await until(lambda: whole.leases == 0)
        retry: Json = {**asks, "requestState": first["requestState"]}
        retry["inputResponses"] = {key: {"roots": []} for key in first["inputRequests"]}
        told = (await modern.post("tools/call", retry)).json()["result"]
        lost = {"kind": "state_lost", "outcome": "unknown", "server": "one"}
        assert told["_meta"]["sessionproxy/fault"] == lost
        again = (await modern.post("tools/call", retry)).json()["result"]
        assert again["_meta"]["sessionproxy/fault"]["kind"] == "no_longer_waiting"
        assert (await modern.call(name="one_do"))["structuredContent"]["count"] == 1


async def test_clients_of_both_eras_share_the_servers_of_one_conversation() -> None:
    """DESIGN 6: `--affinity principal`; whoever comes first opens it."""
    async with embedded(two(), affinity="principal") as proxy, http() as pool:
        modern = Modern(pool, proxy.url)
        first = (await modern.call(name="one_do"))["structuredContent"]
        async with connect(proxy.url) as client, client.listen() as listening:
            second = await client.do(name="one_do")
            assert (second["nonce"], second["count"]) == (first["nonce"], 2)
            asks = {"ask": {"method": "roots/list"}}
            async with client.doing(asks, name="two_do") as incoming:
                asked = await incoming.until("roots/list")
                await client.respond(asked["id"], result={"roots": []})
                assert (await incoming.answer())["result"]
            updated = {"method": "notifications/resources/updated", "params": {"uri": "n://x"}}
            await client.request("resources/subscribe", {"uri": "n://two/x"})
            await modern.call({"note": updated}, name="two_do")
            told = await listening.until("notifications/resources/updated")
            assert told["params"]["uri"] == "n://two/x"
            assert len(proxy.processes()) == 2


async def test_a_large_result_of_one_server_is_json() -> None:
    """DESIGN 5.13, with another server beside it."""
    async with embedded(two()) as proxy, connect(proxy.url) as client:
        size = 3 * 1024 * 1024
        async with client.doing({"fill": size}, name="two_do") as incoming:
            assert not incoming.is_stream
            answer = await incoming.answer()
        assert len(answer["result"]["structuredContent"]["fill"]) == size


EVERYTHING: Final = (PYTHON, "-m", "tests.servers.everything")


async def test_a_modern_servers_calls_fail_where_it_is_stopped() -> None:
    """DESIGN 5.3: a server of either era; the call is answered, not left behind."""
    configuration = servers(one=(*EVERYTHING, "--era", "modern"), two=SCRIPTED)
    async with embedded(configuration) as proxy, http() as pool:
        modern = Modern(pool, proxy.url)
        params: Json = {"name": "one_test_wait", "arguments": {}}
        async with modern.open("tools/call", params, meta={"progressToken": 1}) as incoming:
            await incoming.until("notifications/progress")
            (found,) = proxy.app.running.members[0].manager.registry.awake()
            found.stop(StopReason.SILENT)
            failed = (await incoming.answer())["result"]
            assert failed["content"][0]["text"].startswith("Server 'one': The backend was stopped")


async def test_sessions_that_come_and_go_leave_nothing_behind() -> None:
    """DESIGN 5.2: of their parts, neither where they end nor where they fail to start."""
    async with embedded(two(bad=DOWN)) as proxy, http() as pool:
        running = proxy.app.running
        for number in range(8):
            client = Client(pool, proxy.url)
            await client.initialize()
            await client.request("tools/list")
            await client.do(name="one_do")
            modern = Modern(pool, f"{proxy.url}/s/{number}")
            await modern.call(name="two_do")
            await client.delete()
        for session in running.manager.registry.awake():
            running.manager.end(session, EndReason.KILLED)
        await until(lambda: len(running.manager.registry) == 0)
        for member in running.members:
            registries = (member.manager.registry, member.spares.registry)
            await until(lambda found=registries: not any(map(len, found)))
            assert member.manager.admission.running == 0
        await until(lambda: proxy.processes() == [])

"""PARITY 59 to 68: who has which session of a server, for how long, and what is remembered."""

import hashlib
from typing import Any, Literal

import anyio
import pytest
from mcp.server.mcpserver import MCPServer

from sessionproxy import (
    CallNext,
    ProxyClient,
    ProxyProvider,
    Request,
    Result,
    StatefulProxyClient,
    create_proxy,
)
from tests.rig.embedded import embedded, gone, lives, scripted, until
from tests.rig.http import Client as RawClient
from tests.rig.http import Json, connect, http
from tests.rig.sdk import LISTING
from tests.rig.sse import sse
from tests.rig.upstream import Asked, Said, upstream

from .rig import PATIENCE, fronted
from .ways import (
    CLIENT,
    DIRECT,
    ERAS,
    STATEFUL,
    Person,
    State,
    do,
    found,
    through,
)

pytestmark = [pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")]

Facts = tuple[object, object]


async def facts_of(client: RawClient) -> list[Facts]:
    """The process that serves each of three calls, and how many it has served."""
    found = [await client.do() for _ in range(3)]
    return [(each["pid"], each["count"]) for each in found]


@pytest.mark.parametrize("way", [DIRECT, CLIENT, STATEFUL])
async def test_row_59_each_session_has_a_server_of_its_own(way: str, state: State) -> None:
    """PARITY 59, 60: 2 clients x 3 calls: disjoint pids and counters; 1,2,3 per client; gone after
    DELETE."""
    async with through(way, scripted(), state) as url:
        async with connect(url) as ann, connect(url) as bob:
            ours, theirs = await facts_of(ann), await facts_of(bob)
            assert [count for _, count in ours] == [count for _, count in theirs] == [1, 2, 3]
            (mine,), (other,) = {pid for pid, _ in ours}, {pid for pid, _ in theirs}
            assert mine != other
            assert isinstance(mine, int)
            assert isinstance(other, int)
            await ann.delete()
            await gone(mine)
            assert lives(other)
            assert (await bob.do())["count"] == 4
    await gone(other)


@pytest.mark.parametrize("sessions", ["frontend", "request", "shared"])
async def test_row_59_sessions_says_who_has_a_server_over_stdio(
    sessions: Literal["frontend", "request", "shared"], state: State
) -> None:
    """PARITY 59: `sessions=` chooses between a backend per session, per request, or one for all."""
    proxy = create_proxy(scripted(), sessions=sessions, **state)
    async with fronted(proxy) as url, connect(url) as ann, connect(url) as bob:
        ours, theirs = await facts_of(ann), await facts_of(bob)
    pids = [pid for pid, _ in ours], [pid for pid, _ in theirs]
    counts = [count for _, count in ours], [count for _, count in theirs]
    if sessions == "request":
        assert len({*pids[0], *pids[1]}) == 6
        assert counts == ([1, 1, 1], [1, 1, 1])
    elif sessions == "frontend":
        assert len(set(pids[0])) == len(set(pids[1])) == 1
        assert pids[0] != pids[1]
        assert counts == ([1, 2, 3], [1, 2, 3])
    else:
        assert len({*pids[0], *pids[1]}) == 1
        assert counts == ([1, 2, 3], [4, 5, 6])


@pytest.mark.parametrize("sessions", ["frontend", "request", "shared"])
async def test_row_59_sessions_says_who_has_a_session_of_a_server_over_http(
    sessions: Literal["frontend", "request", "shared"], state: State
) -> None:
    """PARITY 59: on every transport: here an `Mcp-Session-Id` each, or one for all."""
    async with upstream() as server:
        proxy = create_proxy(server.url, sessions=sessions, **state)
        async with fronted(proxy) as url, connect(url) as ann, connect(url) as bob:
            seen: list[list[Facts]] = []
            for client in (ann, bob):
                results = [await client.request("tools/call", {"name": "do"}) for _ in range(3)]
                said = [each["result"]["structuredContent"] for each in results]
                seen.append([(each["session"], each["count"]) for each in said])
    used = {session for facts in seen for session, _ in facts}
    assert len(used) == {"frontend": 2, "request": 6, "shared": 1}[sessions]
    counts = [[count for _, count in facts] for facts in seen]
    later = [4, 5, 6] if sessions == "shared" else counts[0]
    assert counts == [[1, 1, 1] if sessions == "request" else [1, 2, 3], later]


@pytest.mark.parametrize("sessions", ["frontend", "request", "shared"])
async def test_row_59_sessions_says_who_has_a_session_of_a_server_over_sse(
    sessions: Literal["frontend", "request", "shared"], state: State
) -> None:
    """PARITY 59: on every transport: here a stream each, or one for all; the clients in front are
    of the same transport. Behind it, each stream has a process of its own."""
    async with embedded() as server:
        proxy = create_proxy(f"{server.base}/sse", sessions=sessions, **state)
        async with fronted(proxy, "") as base, sse(base) as ann, sse(base) as bob:
            seen: list[list[Facts]] = []
            for stream in (ann, bob):
                await stream.initialize()
                said = [await stream.do() for _ in range(3)]
                seen.append([(each["pid"], each["count"]) for each in said])
    used = {pid for facts in seen for pid, _ in facts}
    assert len(used) == {"frontend": 2, "request": 6, "shared": 1}[sessions]
    counts = [[count for _, count in facts] for facts in seen]
    later = [4, 5, 6] if sessions == "shared" else counts[0]
    assert counts == [[1, 1, 1] if sessions == "request" else [1, 2, 3], later]


@pytest.mark.parametrize("sessions", ["frontend", "request", "shared"])
async def test_row_59_sessions_says_who_has_a_run_of_a_server_in_this_process(
    sessions: Literal["frontend", "request", "shared"], state: State
) -> None:
    """PARITY 59: on every transport: here a run of a server each, or one for all."""
    made: list[MCPServer[Any]] = []

    def make() -> MCPServer[Any]:
        server: MCPServer[Any] = MCPServer("counts")
        made.append(server)
        count = 0

        @server.tool()
        def do() -> int:
            """Count."""
            nonlocal count
            count += 1
            return count

        return server

    seen: list[list[int]] = []
    async with fronted(create_proxy(make, sessions=sessions, **state)) as url:
        async with connect(url) as ann, connect(url) as bob:
            for client in (ann, bob):
                results = [await client.request("tools/call", {"name": "do"}) for _ in range(3)]
                seen.append([each["result"]["structuredContent"]["result"] for each in results])
    later = [4, 5, 6] if sessions == "shared" else [1, 2, 3]
    assert seen == ([[1, 1, 1]] * 2 if sessions == "request" else [[1, 2, 3], later])
    opened = {"frontend": 2, "request": 8, "shared": 1}  # a request mode starts one to open, too
    assert len(made) == opened[sessions]


@pytest.mark.parametrize("script", [{}, {"eof": [{"sleep": 600}]}], ids=["obedient", "stubborn"])
async def test_row_60_a_stateful_client_counts_for_each_session_and_ends_with_it(
    script: Json, state: State
) -> None:
    """PARITY 60: 1,2,3 for each client; gone within the grace after DELETE, also where the server
    does not heed the end of its input."""
    stateful = StatefulProxyClient(scripted(**script), stop_grace=0.5, **state)
    async with fronted(create_proxy(ProxyProvider(stateful.new_stateful), **state)) as url:
        async with connect(url) as ann, connect(url) as bob:
            pids: list[object] = []
            for client in (ann, bob):
                facts = await facts_of(client)
                assert [count for _, count in facts] == [1, 2, 3]
                assert len({pid for pid, _ in facts}) == 1
                pids.append(facts[0][0])
            mine, other = pids
            assert isinstance(mine, int)
            assert isinstance(other, int)
            assert mine != other
            await ann.delete()
            await gone(mine)
            assert lives(other)
            assert (await bob.do())["count"] == 4
    await gone(other)


async def test_row_61_a_stateful_factory_gives_one_copy_for_each_session_everywhere(
    state: State,
) -> None:
    """PARITY 61: one copy, and one child, per session: for the same factory in two providers, in a
    tool of the proxy's own, and in a hook."""
    stateful = StatefulProxyClient(LISTING, **state)
    proxy = create_proxy(ProxyProvider(stateful.new_stateful), **state)
    proxy.add_provider(ProxyProvider(stateful.new_stateful), namespace="again")

    @proxy.tool
    async def own() -> int:
        """Say which process is used."""
        async with stateful.new_stateful() as client:
            return found(await client.call_tool("do", do()))["pid"]

    async def hook(request: Request, call_next: CallNext) -> Result:
        if request.method == "tools/call":
            by_hook.append(await own())
        return await call_next(request)

    proxy.add_hook(hook)
    by_hook: list[int] = []
    pids: list[int] = []
    async with fronted(proxy) as url:
        for _ in range(2):
            async with connect(url) as client:
                used = {(await client.do())["pid"]}
                answer = await client.request("tools/call", {"name": "again_do", "arguments": do()})
                used.add(answer["result"]["structuredContent"]["pid"])
                answer = await client.request("tools/call", {"name": "own", "arguments": {}})
                used.add(answer["result"]["structuredContent"]["result"])
                assert len(by_hook) == 3
                used.update(by_hook)
                by_hook.clear()
                assert len(used) == 1
                pids.append(used.pop())
                assert lives(pids[-1])
                await client.delete()
                await gone(pids[-1])
    assert pids[0] != pids[1]


async def test_row_61_outside_of_a_session_there_is_none_to_be_bound_to(state: State) -> None:
    """PARITY 61: `new_stateful` is for code that serves a session."""
    with pytest.raises(RuntimeError, match="no frontend session"):
        StatefulProxyClient(scripted(), **state).new_stateful()


async def test_row_62_clear_ends_every_process_and_the_next_call_is_fresh(state: State) -> None:
    """PARITY 62: every process ends; next call is fresh; calls in flight fail."""
    stateful = StatefulProxyClient(scripted(), **state)
    proxy = create_proxy(ProxyProvider(stateful.new_stateful), **state)
    async with fronted(proxy) as url, connect(url) as ann, connect(url) as bob:
        before = [(await client.do())["pid"] for client in (ann, bob)]
        async with bob.doing({"progress": 1}, {"wait": "ever"}, _meta={"progressToken": 1}) as one:
            await one.until("notifications/progress")
            with anyio.fail_after(PATIENCE):
                await stateful.clear()
                answer = await one.answer()
            assert answer["result"]["isError"] is True
        await gone(*before)
        for client in (ann, bob):
            facts = await client.do()
            assert facts["pid"] not in before
            assert facts["count"] == 1
            assert (await client.do())["count"] == 2


async def test_row_63_state_is_kept_for_modern_clients(state: State) -> None:
    """PARITY 63: P keeps state for stateless/modern F by its own key: here its path."""
    stateful = StatefulProxyClient(LISTING, **state)
    proxy = create_proxy(ProxyProvider(stateful.new_stateful), **state)
    async with fronted(proxy) as url:
        facts: list[Json] = []
        for _ in range(2):  # each a client with no memory of the other
            async with Person().client(f"{url}/s/{'k' * 24}", ERAS[1]) as client:
                facts.append(found(await client.call_tool("do", do())))
        assert facts[0]["nonce"] == facts[1]["nonce"]
        assert facts[0]["count"] < facts[1]["count"]


async def test_row_64_a_shared_client_is_one_handshake_for_a_hundred_calls(state: State) -> None:
    """PARITY 64: 1 initialize for 100 serial calls, and for 50 concurrent ones, of two clients in
    front; counted at the server."""
    async with upstream() as server:
        client = ProxyClient(server.url, **state)
        async with client, fronted(create_proxy(client, **state)) as url:
            async with connect(url) as ann, connect(url) as bob:
                for n in range(100):
                    await (ann, bob)[n % 2].request("tools/call", {"name": f"serial-{n}"})
                async with anyio.create_task_group() as tasks:
                    for n in range(50):
                        call = {"name": f"at-once-{n}"}
                        tasks.start_soon((ann, bob)[n % 2].request, "tools/call", call)
        methods = server.methods
        assert (methods["initialize"], methods["tools/call"]) == (1, 150)
        names = {asked.params["name"] for asked in server.all("tools/call")}
        assert len(names) == 150
        await until(lambda: server.methods["DELETE"] == 1)


async def test_row_65_nested_and_concurrent_users_share_one_session_until_the_last_leaves(
    state: State,
) -> None:
    """PARITY 65: nested and concurrent `async with` share one session; last exit closes it."""
    async with upstream() as server:
        client = ProxyClient(server.url, **state)

        async def use(n: int) -> None:
            async with client, client:
                await client.call_tool(f"t{n}")
                await used.acquire()

        used = anyio.Semaphore(0)
        async with client:
            async with anyio.create_task_group() as tasks:
                for n in range(20):
                    tasks.start_soon(use, n)
                for _ in range(20):
                    used.release()
            assert client.is_connected
            assert server.methods["DELETE"] == 0
        assert not client.is_connected
        await until(lambda: server.methods["DELETE"] == 1)
        assert server.methods["initialize"] == 1
        async with client:  # again
            await client.call_tool("t")
        assert server.methods["initialize"] == 2


async def listing(asked: Asked) -> None:
    """A list with a change each time."""
    times = len(asked.server.all("tools/list"))
    tools = [{"name": f"t{n}", "inputSchema": {"type": "object"}} for n in range(times)]
    await asked.result({"tools": tools})


async def test_row_66_lists_are_kept_until_they_change_or_their_time_is_over(
    state: State,
) -> None:
    """PARITY 66: list_changed invalidates; TTL configurable; 0 off; refreshed by each list."""
    async with upstream({"tools/list": listing}) as server:
        client = ProxyClient(server.url, **state)
        kept = ProxyProvider(lambda: client)
        off = ProxyProvider(lambda: client, cache_ttl=0)
        async with client:
            assert await kept.get_tool("t0") is not None
            assert await kept.get_tool("t1") is None  # kept: the server was not asked again
            assert server.methods["tools/list"] == 1
            assert len(await kept.list_tools()) == 2  # a list asks, and is kept
            assert await kept.get_tool("t1") is not None
            assert server.methods["tools/list"] == 2
            await off.get_tool("t0")
            await off.get_tool("t0")
            assert server.methods["tools/list"] == 4
            stream = await server.listened()
            note: Json = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
            heard = anyio.Event()
            client.listen(lambda method, params: heard.set())
            await stream.events(Said(note))
            with anyio.fail_after(PATIENCE):
                await heard.wait()
            assert await kept.get_tool("t4") is not None
            assert server.methods["tools/list"] == 5
        brief = ProxyProvider(lambda: client, cache_ttl=0.01)
        async with client:
            await brief.get_tool("t0")
            await anyio.sleep(0.05)
            await brief.get_tool("t0")
        assert server.methods["tools/list"] == 7


async def test_row_66_a_name_in_no_list_is_tried_at_the_server(state: State) -> None:
    """PARITY 66: unknown name still tried at B; a call needs no list."""
    async with upstream() as server:
        async with through(STATEFUL, server.url, state) as url, connect(url) as client:
            answer = await client.request("tools/call", {"name": "unlisted"})
        assert answer["result"]["structuredContent"]["name"] == "unlisted"
        assert server.methods["tools/list"] == 0


async def test_row_67_another_users_session_is_not_found(
    state: State, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PARITY 67: a session id is valid only for the credential that created it."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    ann, bob = "a" * 40, "b" * 40
    hashed = [hashlib.sha256(token.encode()).hexdigest() for token in (ann, bob)]
    tokens.write_text(f"ann {hashed[0]}\nbob {hashed[1]}\n")
    tokens.chmod(0o600)
    async with fronted(create_proxy(scripted(), token_file=str(tokens), **state)) as url:
        async with http() as pool:
            client = RawClient(pool, url, headers={"authorization": f"Bearer {ann}"})
            await client.initialize()
            await client.notify("notifications/initialized")
            assert (await client.do())["count"] == 1
            foreign = client.also(authorization=f"Bearer {bob}")
            call = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            assert (await foreign.post(call)).status_code == 404
            assert (await foreign.delete()).status_code == 404
            assert (await client.do())["count"] == 2


async def test_row_68_an_idle_session_loses_its_server_and_one_at_work_does_not(
    state: State,
) -> None:
    """PARITY 68: default on; counts backend use, not sockets: a call longer than the limit goes on,
    and an open stream keeps nothing."""
    assert create_proxy(scripted()).settings.idle == 300
    async with fronted(create_proxy(scripted(), idle=0.3, **state)) as url:
        async with connect(url) as client, client.listen():
            pid = (await client.do({"sleep": 0.8}))["pid"]
            await gone(pid)

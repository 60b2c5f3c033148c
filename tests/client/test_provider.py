"""What a provider keeps, and for whom (PARITY 16, 66)."""

import asyncio  # noqa: TID251 - a task of a user's
import gc
import logging
import weakref
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import anyio
import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.server.mcpserver import Context, MCPServer

from sessionproxy import (
    ProxyClient,
    ProxyError,
    ProxyProvider,
    RequestFailed,
    StatefulProxyClient,
    create_proxy,
    current_request,
)
from sessionproxy.client.launching import Given
from sessionproxy.client.provider import Provided
from sessionproxy.core import waiting
from sessionproxy.core.background import Background
from sessionproxy.core.caller import UNHEARD, Nobody
from sessionproxy.core.circuit import FAILURES
from sessionproxy.core.exchange import Exchange
from sessionproxy.core.hooks import Sender
from sessionproxy.core.memory import Opening
from sessionproxy.core.ports import Identity
from sessionproxy.core.reach import Scope
from sessionproxy.serve import protocol_of
from tests.parity.rig import complete, facts_of, fronted, fronts, names_of, text_of
from tests.rig.embedded import lives, processes_of, scripted, served, until
from tests.rig.http import Client as Raw
from tests.rig.http import calling, connect, http
from tests.rig.modern import Modern

State = dict[str, Any]

MODERN: Final = "2026-07-28"


def growing() -> MCPServer[Any]:
    """A server that has one more tool after each call of `grow`, and tells."""
    server = MCPServer[Any]("growing")

    @server.tool()
    async def grow(ctx: Context) -> str:
        name = f"more{len(await server.list_tools())}"
        server.add_tool(lambda: name, name=name)
        await ctx.session.send_tool_list_changed()
        return name

    @server.tool()
    async def fail() -> str:
        raise ValueError("it cannot")

    assert callable(grow)
    assert callable(fail)
    return server


class Listing(ProxyClient):
    """Counts how often tools are listed."""

    lists = 0

    async def list_tools(self) -> list[Any]:
        Listing.lists += 1
        return await super().list_tools()


@pytest.fixture(autouse=True)
def from_zero() -> None:
    Listing.lists = 0


async def test_a_list_is_kept_until_the_server_says_that_it_has_changed(state: State) -> None:
    """PARITY 66: `list_changed` invalidates; a list call asks always, and is kept."""
    async with Listing(growing(), **state) as client:
        provider = ProxyProvider(lambda: client)
        assert await provider.get_tool("more2") is None
        assert await provider.get_tool("grow") is not None
        assert Listing.lists == 1
        assert text_of(await client.call_tool("grow")) == "more2"
        with anyio.fail_after(10):
            while await provider.get_tool("more2") is None:
                await anyio.lowlevel.checkpoint()
        assert Listing.lists == 2
        await provider.list_tools()
        assert Listing.lists == 3
        assert await provider.get_tool("more2") is not None
        assert Listing.lists == 3


async def test_a_client_that_lasts_keeps_no_provider(state: State) -> None:
    """DESIGN 5.3, bounded: one is made for each request, perhaps."""
    async with ProxyClient(growing(), **state) as client:
        provider = ProxyProvider(lambda: client)
        await provider.get_tool("grow")
        gone = weakref.ref(provider)
        del provider
        gc.collect()
        assert gone() is None
        assert len(client.connection.link.port.lists) == 0


async def test_nothing_is_kept_where_the_ttl_is_zero_or_over(state: State) -> None:
    """PARITY 66: `cache_ttl`, in seconds."""
    async with Listing(growing(), **state) as client:
        off, brief = ProxyProvider(lambda: client, cache_ttl=0), ProxyProvider(lambda: client)
        for _ in range(2):
            assert await off.get_tool("grow") is not None
        assert Listing.lists == 2
        assert (off.cache_ttl, brief.cache_ttl) == (0, 300)
        brief = ProxyProvider(lambda: client, cache_ttl=0.01)
        await brief.get_tool("grow")
        with anyio.fail_after(10):
            while Listing.lists < 4:
                await brief.get_tool("grow")
                await anyio.sleep(0.01)


async def test_lists_of_clients_that_do_not_last_are_kept_by_client(state: State) -> None:
    """PARITY 66, DESIGN 5.1: copies of one client share them; two clients, of two users perhaps,
    never do."""
    servers: dict[str, MCPServer[Any]] = {}
    for name in ("ann", "bob"):
        servers[name] = MCPServer(name)
        servers[name].add_tool(lambda: "", name=f"of_{name}")
    users = {name: Listing(servers[name], **state) for name in servers}
    present = users["ann"]
    provider = ProxyProvider(lambda: present.new())
    assert await provider.get_tool("of_ann") is not None
    assert await provider.get_tool("of_bob") is None
    present = users["bob"]
    assert await provider.get_tool("of_ann") is None
    assert await provider.get_tool("of_bob") is not None


async def test_a_name_in_no_list_is_tried_at_the_server(state: State) -> None:
    """PARITY 66: calls need no list."""
    server = growing()
    async with ProxyClient(server, **state) as client:
        provider = ProxyProvider(lambda: client)
        await provider.list_tools()
        async with fronts(create_proxy(provider, **state)) as front:
            server.add_tool(lambda: "late", name="late")
            assert text_of(await front.call_tool("late", {})) == "late"


async def test_a_factory_that_fails_fails_the_one_request(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    """DESIGN 5.1: the reason is the operator's; the next request has its client."""
    caplog.set_level(logging.ERROR, "sessionproxy")
    fails: list[str] = []

    def factory() -> ProxyClient:
        request = current_request.get()
        assert request is not None
        if request.name in fails:
            raise RuntimeError("no such tenant")
        return client

    async with ProxyClient(complete(), **state) as client:
        async with fronts(create_proxy(ProxyProvider(factory), **state)) as front:
            await front.list_tools()
            fails.append("do")
            told = await front.call_tool("do", {})
            assert told.is_error
            assert "no such tenant" not in str(told.content)
            assert "no such tenant" in caplog.text
            fails.clear()
            assert not (await front.call_tool("do", {})).is_error


async def test_a_factory_that_returns_no_client_is_told_what_it_returned(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 5: to the one who asks, to the operator, and to who uses the provider itself."""
    inner: Any = create_proxy(complete(), **state)

    async def later() -> Any:  # noqa: ANN401 - as users write it
        return MCPServer("here")

    for factory, kind in ((lambda: inner, "Proxy"), (later, "MCPServer")):
        told = f"returned a {kind}, which is no ProxyClient"
        provider = ProxyProvider(factory)
        for use in (provider.list_tools(), provider.get_tool("do")):
            with pytest.raises(TypeError, match=told):
                await use
        caplog.clear()
        with pytest.raises(ProxyError, match=told):
            await create_proxy(provider, **state).list_tools()
        assert told in caplog.text


async def test_a_factory_that_is_cancelled_by_what_it_waits_for_fails_the_one_request(
    state: State,
) -> None:
    """DESIGN 5.1: a task of its own was cancelled, which is nothing to the proxy and its others."""
    served: list[str] = []

    async def factory() -> ProxyClient:
        request = current_request.get()
        if request is not None and request.name == "undo":
            task = asyncio.create_task(anyio.sleep(3600))
            task.cancel()
            await task
        return client

    async with ProxyClient(complete(), **state) as client:
        proxy = create_proxy(ProxyProvider(factory), **state)
        async with fronted(proxy) as url, Client(url, mode="legacy") as ann:
            async with Client(url, mode="legacy") as bob:
                await bob.list_tools()
                assert (await ann.call_tool("undo", {})).is_error
                for each in (ann, bob):
                    assert not (await each.call_tool("do", {})).is_error
                    served.append("once more")
    assert len(served) == 2, "a proxy that ends so ends without an error"


@pytest.mark.parametrize(("bound", "most"), [("MAX_WAITING", 2), ("MAX_WAITING_BYTES", 2500)])
async def test_what_waits_for_a_factory_is_bounded(
    state: State, bound: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.3, FAULTS F16: what has its client does not count, nor what is over."""
    monkeypatch.setattr(waiting, bound, most)
    began: list[str] = []

    async def factory() -> ProxyClient:
        request = current_request.get()
        if request is not None and request.name == "undo":
            began.append(request.name)
            await anyio.sleep_forever()
        return client

    def called(name: str, number: int) -> partial[Any]:
        params = calling({"wait": "ever"}, name=name, fill="x" * 1000)
        return partial(front.request, "tools/call", params, number=number)

    async with ProxyClient(complete(), **state) as client:
        proxy = create_proxy(ProxyProvider(factory), **state)
        async with fronted(proxy) as url, connect(url) as front:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(called("do", 1))
                await until(lambda: _in_flight(client) == 1)
                for number in (2, 3):
                    tasks.start_soon(called("undo", number))
                await until(lambda: len(began) == 2)
                refused = (await called("do", 4)())["result"]
                assert refused["_meta"]["sessionproxy/fault"]["kind"] == "backend_busy"
                await front.notify("notifications/cancelled", {"requestId": 2})
                tasks.start_soon(called("undo", 5))
                await until(lambda: len(began) == 3)
                tasks.cancel_scope.cancel()


async def test_a_call_that_is_given_up_is_cancelled_at_the_clients_server(state: State) -> None:
    """DESIGN 5.9: through a provider, and while others use the same client."""
    async with ProxyClient(complete(), **state) as client:
        async with fronts(create_proxy(ProxyProvider(lambda: client), **state)) as front:
            await front.list_tools()
            with anyio.CancelScope() as scope:

                async def give_up(
                    progress: float, total: float | None, message: str | None
                ) -> None:
                    scope.cancel()

                steps = {"steps": [{"progress": 1}, {"until_cancelled": None}]}
                await front.call_tool("do", steps, progress_callback=give_up)
            assert scope.cancelled_caught
            seen: list[str] = []
            with anyio.fail_after(10):
                while "notifications/cancelled" not in seen:  # it comes on a connection of its own
                    facts = facts_of(await client.call_tool("do", {"steps": [{"tells": "seen"}]}))
                    seen = [str(each.get("method")) for each in facts["seen"]]


async def test_the_backend_of_a_connected_client_comes_back_after_a_crash(state: State) -> None:
    """DESIGN 7: the loss is told to each session once, and to the client; then all go on."""
    async with ProxyClient(complete(), **state) as client:
        async with fronted(create_proxy(client, **state)) as url:
            async with Client(url, mode="legacy") as one, Client(url, mode="legacy") as two:
                for front in (one, two):
                    await front.list_tools()
                assert (await one.call_tool("do", {"steps": [{"exit": 1}]})).is_error
                await until(lambda: not _is_ready(client))
                for front in (one, two):
                    told = [(await front.call_tool("do", {})).is_error for _ in range(3)]
                    assert told[1:] == [False, False]
            with pytest.raises(Exception, match="state was lost"):
                await client.call_tool("do")
            assert (await client.call_tool("do")).structured_content is not None


async def test_a_crash_is_a_loss_where_somebody_holds_the_client_for_longer(state: State) -> None:
    """DESIGN 7: and not because others have requests there at that moment."""
    client = ProxyClient(complete(), **state)
    crashing = {"steps": [{"wait": "crash"}, {"exit": 1}]}

    async def crash(*fronts: Client) -> list[bool]:
        """All use the client when its server crashes; return whether their next calls fail."""
        async with anyio.create_task_group() as tasks:
            for front in fronts:
                tasks.start_soon(front.call_tool, "do", crashing)
            await until(lambda: _in_flight(client) == len(fronts))
            tasks.start_soon(fronts[0].call_tool, "do", {"steps": [{"release": "crash"}]})
        return [bool((await front.call_tool("do", {})).is_error) for front in fronts]

    async with fronted(create_proxy(ProxyProvider(lambda: client), **state)) as url:
        async with Client(url, mode="legacy") as one, Client(url, mode="legacy") as two:
            for front in (one, two):
                await front.list_tools()
            assert await crash(one, two) == [False, False]
            async with client:
                assert await crash(one, two) == [True, True]


def _in_flight(client: ProxyClient) -> int:
    tapped = client.connection.tap.tapped if client.is_connected else None
    backend = None if tapped is None else tapped.backend
    return 0 if backend is None else len(backend.in_flight())


async def test_a_share_that_comes_when_its_session_ends_is_given_back(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.3: both in one turn of the event loop."""
    came = anyio.Event()

    async def awake() -> None:
        await came.wait()
        tap.tapped = tapped

    async with ProxyClient(complete(), **state) as client, Background() as background:
        tap = client.connection.tap
        tapped, tap.tapped = tap.tapped, None
        assert tapped is not None
        monkeypatch.setattr(tap, "_awake", awake)
        identity = Identity("default", "somebody", "key")
        opening = Opening(b'{"protocolVersion":"2025-11-25","capabilities":{}}')
        given = Given(
            identity, Sender.of(identity, "label", Nobody()), Nobody(), opening, Scope(), background
        )
        async with Provided.of(ProxyProvider(lambda: client), given) as provided:
            provided.request(Exchange("tools/list", None, client_id=b"1", sink=UNHEARD))
            await anyio.wait_all_tasks_blocked()
            came.set()
        await anyio.wait_all_tasks_blocked()
        assert tapped.sessions == 0


async def test_a_factory_refuses_whom_it_wants_and_nobody_else_suffers(
    state: State, tmp_path: Path
) -> None:
    """`ProxyProvider`: by `RequestFailed`; nor does a client that cannot be had count against the
    others', of whom each has a server of its own (DESIGN 7: a route that rests, rests for all)."""
    broken = ProxyClient(scripted(start=[{"exit": 3}]), **state)
    seen: set[tuple[str | None, str | None]] = set()

    def factory() -> ProxyClient:
        request = current_request.get()
        assert request is not None
        seen.add((request.user, request.owner))
        if request.user == "carol":
            raise RequestFailed(-32010, "no such tenant")
        return broken.new() if request.user == "dave" else stateful.new_stateful()

    stateful = StatefulProxyClient(complete(), **state)
    provider = create_proxy(ProxyProvider(factory), **state)
    names = "ann", "carol", "dave"
    tokens = tmp_path / "tokens"
    lines = [f"{name} {sha256(name.encode()).hexdigest()}\n" for name in names]
    await anyio.Path(tokens).write_text("".join(lines))
    app = provider.http_app(token_file=str(tokens))
    async with app.lifespan(), served(app, protocol=protocol_of(app, None)) as base, http() as pool:

        def user(name: str) -> Raw:
            headers = {"authorization": f"Bearer {name}"}
            return Raw(pool, f"{base}/mcp", headers=headers)

        for _ in range(6):
            told = (await user("carol").initialize()).json()
            assert told["error"] == {"code": -32010, "message": "no such tenant"}
            assert "error" in (await user("dave").initialize()).json()
            for name in ("carol", "dave"):
                modern = Modern(pool, f"{base}/mcp", {"authorization": f"Bearer {name}"})
                assert "error" in (await modern.post("tools/list")).json()
        ann = user("ann")
        assert (await ann.initialize()).status_code == 200
        assert (await ann.do())["pid"]
        await ann.delete()
    assert seen - {(None, None)} == {(name, f"static {name}") for name in names}


async def test_a_modern_client_is_told_why_it_was_refused(state: State) -> None:
    """`ProxyProvider`: its call fails, since it opens no session that could."""

    def factory() -> ProxyClient:
        request = current_request.get()
        if request is not None and request.owner is not None:
            raise RequestFailed(-32010, "no such tenant")
        return client

    async with ProxyClient(complete(), **state) as client:
        async with fronts(create_proxy(ProxyProvider(factory), **state), mode=MODERN) as front:
            told = await front.call_tool("do", {})
    assert told.is_error
    assert "no such tenant" in str(told.content)


async def test_what_the_proxy_asks_on_its_own_account_has_no_owner(state: State) -> None:
    """`current_request`: also through what stands between the eras."""
    owners: set[str | None] = set()

    def factory() -> ProxyClient:
        request = current_request.get()
        assert request is not None
        owners.add(request.owner)
        return client

    async with ProxyClient(complete(), **state) as client:
        async with fronts(create_proxy(ProxyProvider(factory), **state), mode=MODERN) as front:
            assert await names_of(front) == ["do", "undo"]
            assert owners == {None}
            await front.call_tool("do", {})
            assert owners == {None, "local"}


@pytest.mark.parametrize("how", ["raises", "has a server that does not start"])
async def test_a_factory_that_fails_for_nobody_is_no_reason_to_rest(how: str, state: State) -> None:
    """`ProxyProvider`: whoever looks a client up by its user finds none for the proxy itself; the
    clients that there are go on."""

    def factory() -> ProxyClient:
        request = current_request.get()
        if request is not None and request.owner is not None:
            return client
        if how == "raises":
            raise KeyError("nobody")
        return broken.new()

    broken = ProxyClient(scripted(start=[{"exit": 3}]), **state)
    async with ProxyClient(complete(), **state) as client:
        async with fronted(create_proxy(ProxyProvider(factory), **state)) as url, http() as pool:
            modern = Modern(pool, url)
            for _ in range(FAILURES + 1):
                told = (await modern.post("tools/list")).json()
                assert told["error"]["code"] == -32603
            async with connect(url) as user:
                assert (await user.do())["pid"]


def _is_ready(client: ProxyClient) -> bool:
    session = client.connection.link.session
    return session is not None and session.state.value == "ready"


async def test_an_error_of_the_server_reaches_who_runs_a_component(state: State) -> None:
    """PARITY 29: its own failure is a result, a refusal an exception."""
    async with ProxyClient(growing(), **state) as client:
        provider = ProxyProvider(lambda: client)
        tool = await provider.get_tool("fail")
        assert tool is not None
        told = await tool.run()
        assert told.is_error
        assert "Error executing tool fail" in str(told.content)
        prompts = await provider.list_prompts()
        assert prompts == []
        with pytest.raises(MCPError):
            await client.get_prompt("no such")


async def test_a_place_is_given_back_once_the_server_of_a_busy_session_is_gone(
    state: State,
) -> None:
    """DESIGN 5.6, 7: backends count until they are reaped, also that of a session's copy which was
    in use when the session ended."""
    stateful = StatefulProxyClient(complete(eof=[{"sleep": 1}, {"exit": 0}]), **state)
    proxy = create_proxy(ProxyProvider(stateful.new_stateful), max_sessions=1, **state)
    steps = {"steps": [{"progress": 1}, {"wait": "ever"}]}
    asked = {"name": "do", "arguments": steps, "_meta": {"progressToken": 1}}
    async with fronted(proxy) as url, connect(url) as ann:
        async with ann.open("tools/call", asked) as incoming:
            await incoming.until("notifications/progress")
            theirs = processes_of(Path(state["state_dir"]))
            assert len(theirs) == 1
            await ann.delete()
            async with connect(url):  # it has waited for the place
                assert not lives(theirs[0])


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_each_client_of_a_factory_may_ask_the_client_in_front(
    state: State, mode: str
) -> None:
    """DESIGN 5.4: one that was not there yet when the session was opened, too, in both eras."""
    base = ProxyClient(complete(), **state)
    question: dict[str, Any] = {
        "method": "elicitation/create",
        "params": {"message": "?", "requestedSchema": {"type": "object", "properties": {}}},
    }

    async def elicited(context: object, params: object) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={})

    proxy = create_proxy(ProxyProvider(base.new), **state)
    async with fronts(proxy, mode=mode, elicitation_callback=elicited) as front:
        for _ in range(2):
            result = await front.call_tool("do", {"steps": [{"ask": question}]})
            assert facts_of(result)["answers"][0]["result"]["action"] == "accept"

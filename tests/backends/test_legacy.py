"""A backend behind HTTP with SSE (2024-11-05): the SDK's own server, and bad ones."""

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from mcp.server.mcpserver import Context, MCPServer
from starlette.applications import Starlette

from tests.rig.embedded import Embedded, served, until
from tests.rig.http import Client, connect, http
from tests.rig.modern import Modern
from tests.rig.upstream import Asked, Handler, Said, Upstream, fronting, upstream

pytestmark = [
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]


def counting() -> Starlette:
    """A server whose state is one number for each connection."""
    server = MCPServer("legacy")
    counts: Counter[str] = Counter()

    @server.tool()
    async def add(ctx: Context) -> int:
        request = ctx.request_context.request
        assert request is not None
        name = request.query_params["session_id"]
        counts[name] += 1
        return counts[name]

    @server.tool()
    async def tell(ctx: Context) -> str:
        await ctx.report_progress(1, 2)
        roots = await ctx.session.list_roots()  # pyright: ignore[reportDeprecated]
        return str(len(roots.roots))

    return server.sse_app(host="127.0.0.1")


@asynccontextmanager
async def legacy(transport: str = "auto") -> AsyncGenerator[Embedded]:
    async with served(counting(), lifespan=True) as base:
        async with fronting(f"{base}/sse", {"transport": transport}) as proxy:
            yield proxy


async def add(client: Client) -> object:
    answer = await client.request("tools/call", {"name": "add", "arguments": {}})
    return answer["result"]["content"][0]["text"]


@pytest.mark.parametrize("transport", ["auto", "sse"])
async def test_a_server_of_the_old_transport_has_a_session_for_each_of_ours(transport: str) -> None:
    """2026-07-28 basic/transports/streamable-http#http+sse-transport-2024-11-05: found out by a
    refused POST and a GET that names an endpoint."""
    async with legacy(transport) as proxy, connect(proxy.url) as one, connect(proxy.url) as two:
        assert [await add(one), await add(one), await add(two)] == ["1", "2", "1"]


async def test_questions_and_progress_come_through_the_old_transport() -> None:
    """DESIGN 5.4. All comes on one stream, so attribution is that of a pipe."""
    async with legacy() as proxy, connect(proxy.url) as client:
        params = {"name": "tell", "arguments": {}, "_meta": {"progressToken": "mine"}}
        async with client.open("tools/call", params) as stream:
            progress = await stream.until("notifications/progress")
            assert progress["params"]["progressToken"] == "mine"
            ask = await stream.until("roots/list")
            await client.respond(ask["id"], result={"roots": [{"uri": "file:///a"}]})
            assert (await stream.answer())["result"]["content"][0]["text"] == "1"


async def test_a_modern_client_is_served_by_the_old_transport() -> None:
    """DESIGN 9: it belongs to the handshake era, whatever it is asked."""
    async with legacy() as proxy, http() as pool:
        modern = Modern(pool, proxy.url)
        for number in ("1", "2"):
            answer = await modern.post("tools/call", {"name": "add", "arguments": {}})
            assert answer.json()["result"]["content"][0]["text"] == number


async def test_a_server_of_the_old_transport_is_not_asked_for_its_era() -> None:
    """DESIGN 9: the transport says it."""
    async with bad({}) as (proxy, server), http() as pool:
        await Modern(pool, proxy.url).post("tools/call", {"name": "add", "arguments": {}})
        assert server.methods["server/discover"] == 0
        assert server.methods["initialize"] > 0


async def test_the_stream_is_closed_when_the_session_is_over() -> None:
    """DESIGN 10: with it the upstream's session ends."""
    async with bad({}) as (proxy, server), connect(proxy.url) as client:
        stream = await server.heard("GET")
        assert not stream.writer.is_closing()
        await client.delete()
        await until(lambda: stream.writer not in server.readers)


# -- servers that misbehave ------------------------------------------------------------------------


@asynccontextmanager
async def bad(
    on: dict[str, Handler], transport: str = "sse", **settings: object
) -> AsyncGenerator[tuple[Embedded, Upstream]]:
    """A proxy in front of a server of the old transport, of whom a test says what it does."""

    async def stream(asked: Asked) -> None:
        await asked.events(Said("/messages?session=1", event="endpoint"))
        server.listening["1"] = asked
        await asked.hung_up()

    async def message(asked: Asked) -> None:
        if asked.path == "/mcp":
            await asked.say(405)
            return
        await asked.say(202)
        if asked.method == "initialize":
            result = {
                "protocolVersion": asked.params["protocolVersion"],
                "capabilities": {},
                "serverInfo": {"name": "old", "version": "1"},
            }
            await server.listening["1"].events(Said(asked.response(result), event="message"))
        elif "id" in asked.message and asked.method != "answer":
            await server.listening["1"].events(Said(asked.response({"content": []})))

    async with upstream({"GET": stream, "*": message, **on}) as server:
        async with fronting(server.url, {"transport": transport, **settings}) as proxy:
            yield proxy, server


async def test_a_stream_that_ends_is_the_end_of_the_session_upstream() -> None:
    """FAULTS F07 and F50: noticed at once; the next call is told of the loss."""
    async with bad({}) as (proxy, server), connect(proxy.url) as client:
        assert "result" in await client.request("tools/call", {"name": "x", "arguments": {}})
        (await server.listened()).drop()
        await until(lambda: not proxy.manager.registry.awake())
        told = await client.request("tools/call", {"name": "x", "arguments": {}})
        assert told["result"]["_meta"]["sessionproxy/fault"]["kind"] == "state_lost"
        assert "result" in await client.request("tools/call", {"name": "x", "arguments": {}})


@pytest.mark.parametrize("transport", ["auto", "sse"])
async def test_the_callers_credential_goes_along_from_the_first_request_on(transport: str) -> None:
    """DESIGN 10: with the stream, too, before anybody knows which transport it is."""
    wanted = {"forward_authorization": True}
    async with bad({}, transport, **wanted) as (proxy, server), http() as pool:
        client = Client(pool, proxy.url, headers={"authorization": "Bearer t-0"})
        await client.initialize()
        await client.notify("notifications/initialized")
        await client.also(authorization="Bearer t-1").request("tools/list")
        client.more = {}
        await client.request("prompts/list")
    sent = {asked.method: asked.headers.get("authorization") for asked in server.asked}
    assert sent == {
        "GET": "Bearer t-0",
        "initialize": "Bearer t-0",
        "notifications/initialized": "Bearer t-0",
        "tools/list": "Bearer t-1",
        "prompts/list": None,
    }


async def test_a_message_that_is_refused_fails_its_call_alone() -> None:
    """DESIGN 10: it was certainly not executed."""

    async def refuse(asked: Asked) -> None:
        await asked.say(413)

    async with bad({"tools/call": refuse}) as (proxy, _), connect(proxy.url) as client:
        answer = await client.request("tools/call", {"name": "x", "arguments": {}})
        found = answer["result"]["_meta"]["sessionproxy/fault"]
        assert (found["kind"], found["outcome"]) == ("backend_refused", "not_executed")
        assert "result" in await client.request("tools/list")


@pytest.mark.parametrize(
    "endpoint", ["http://elsewhere.invalid/messages", "//elsewhere.invalid/m", "https://127.0.0.1/"]
)
async def test_an_endpoint_of_another_origin_is_not_posted_to(endpoint: str) -> None:
    """FAULTS, credentials: what goes to the upstream was meant for the operator's URL."""

    async def stream(asked: Asked) -> None:
        await asked.events(Said(endpoint, event="endpoint"))
        await asked.hung_up()

    async with bad({"GET": stream}) as (proxy, server), http() as pool:
        answer = await Client(pool, proxy.url).initialize()
        assert answer.headers.get("mcp-session-id") is None
        assert "another origin" in answer.json()["error"]["message"]
        assert server.methods["initialize"] == 0


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("http://you:pw@{origin}/m?a=%2f", "/m?a=%2f"),
        ("/m?a=b c", "/m?a=b+c"),
        ("/m?a=%7e+#there", "/m?a=%7e+"),
    ],
)
async def test_an_endpoint_is_posted_to_as_it_was_written_and_with_the_operators_credential(
    endpoint: str, path: str
) -> None:
    """FAULTS, credentials; what is escaped may be signed, and what no request may have is."""

    async def stream(asked: Asked) -> None:
        there = endpoint.format(origin=f"127.0.0.1:{asked.server.port}")
        await asked.events(Said(there, event="endpoint"))
        asked.server.listening["1"] = asked
        await asked.hung_up()

    header = ("Authorization=Bearer s3cret",)
    async with bad({"GET": stream}, header=header) as (proxy, server), http() as pool:
        answer = await Client(pool, proxy.url).initialize()
        assert answer.headers.get("mcp-session-id") is not None
        (asked,) = server.all("initialize")
        assert asked.path == path
        assert asked.headers["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("what", ["nothing", "another kind", "another event", "an end"])
@pytest.mark.parametrize("transport", ["auto", "sse"])
async def test_a_server_of_neither_transport_fails_the_start(what: str, transport: str) -> None:
    """FAULTS F01 and F05: bounded, and the reason is told."""

    async def stream(asked: Asked) -> None:
        if what == "nothing":
            await asked.say(404)
        elif what == "another kind":
            await asked.say(200, b"hello")
        else:
            await asked.events(Said("/messages", event="message"))
            if what == "an end":
                asked.end()
            else:
                await asked.hung_up()

    async def refuse(asked: Asked) -> None:
        await asked.say(405)

    on: dict[str, Handler] = {"GET": stream, "initialize": refuse}
    async with bad(on, transport) as (proxy, server), http() as pool:
        answer = await Client(pool, proxy.url).initialize()
        assert answer.headers.get("mcp-session-id") is None
        assert answer.json()["error"]["code"] == -32603, answer.text
        assert not proxy.manager.registry.awake()
        assert {asked.path for asked in server.asked} == {"/mcp"}
        await until(lambda: not server.readers)


async def test_a_large_event_fails_its_call_alone_although_all_calls_share_the_stream() -> None:
    """FAULTS F13: with the stream every other call would be lost."""

    async def large(asked: Asked) -> None:
        await asked.say(202)
        body = asked.response({"content": [], "fill": "x" * 200_000})
        await asked.server.listening["1"].events(Said(body))

    async with bad({"prompts/list": large}, max_line=50_000) as (proxy, _):
        async with connect(proxy.url) as client:
            answer = await client.request("prompts/list")
            kind = answer["error"]["data"]["sessionproxy/fault"]["kind"]
            assert kind == "result_too_large"
            assert "result" in await client.request("tools/list")


async def test_pings_of_the_old_transport_are_answered_although_nothing_else_is_taken() -> None:
    """DESIGN 5.10."""

    async def never(asked: Asked) -> None:
        await asked.hung_up()

    on: dict[str, Handler] = {"notifications/roots/list_changed": never}
    async with bad(on) as (proxy, server), connect(proxy.url) as client:
        await client.notify("notifications/roots/list_changed")
        await server.heard("notifications/roots/list_changed")
        stream = await server.listened()
        await stream.events(Said({"jsonrpc": "2.0", "id": "p-1", "method": "ping"}))
        assert (await server.heard_answer("p-1"))["result"] == {}


async def test_a_streamable_server_that_refuses_the_client_is_not_taken_for_an_old_one() -> None:
    """2026-07-28 basic/transports/streamable-http: only where a GET names an endpoint; else what it
    said goes to the client."""
    error = {"code": -32602, "message": "no such revision"}

    async def refuse(asked: Asked) -> None:
        await asked.say(400, {"jsonrpc": "2.0", "id": None, "error": error})

    async def none(asked: Asked) -> None:
        await asked.say(405)

    async with bad({"initialize": refuse, "GET": none}, "auto") as (proxy, _), http() as pool:
        assert (await Client(pool, proxy.url).initialize()).json()["error"] == error

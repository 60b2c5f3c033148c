"""PARITY 39 to 58: what a server asks and tells reaches the client in front, and its answers and
cancellations reach the server.
"""

import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2
import mcp_types as types
import pytest
from mcp import Client
from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

from sessionproxy import (
    HandlerContext,
    ProxyClient,
    ProxyProvider,
    StatefulProxyClient,
    create_proxy,
    default_proxy_elicitation_handler,
    default_proxy_log_handler,
    default_proxy_progress_handler,
)
from sessionproxy.http.request import Receive, Scope, Send
from tests.rig.embedded import Application, scripted, until
from tests.rig.http import Client as RawClient
from tests.rig.http import Incoming, Json, connect, http
from tests.rig.proxy import EVERYTHING
from tests.rig.sdk import LISTING
from tests.rig.upstream import upstream
from tests.servers.everything import build

from .rig import PATIENCE, elsewhere, fronted
from .ways import (
    CLIENT,
    CLIENTS,
    CONNECTED,
    DIRECT,
    ERAS,
    STATEFUL,
    WAYS,
    Person,
    State,
    capabilities_seen,
    do,
    form,
    found,
    made,
    text_of,
    through,
)

pytestmark = [
    # 2026-07-28 has dropped methods that clients of the handshake era live by.
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

ODD: Final[Json] = {"x-unknown": None, "x-large": 12345678901234567890, "x-\u00e4": ["\u00f8", 1.0]}
"""Members that no model has."""

SAMPLING: Final[Json] = {
    "method": "sampling/createMessage",
    "params": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "data": "AAAA", "mimeType": "image/png", **ODD}],
            }
        ],
        "maxTokens": 10,
        "temperature": 0.0,
        "tools": [{"name": "weather", "inputSchema": {"type": "object", "x-unknown": None}}],
        "toolChoice": {"mode": "required"},
        **ODD,
    },
}
SAMPLED: Final[Json] = {
    "role": "assistant",
    "content": {"type": "image", "data": "BBBB", "mimeType": "image/png", **ODD},
    "model": "the-model",
    "stopReason": "a reason of the provider's",
    **ODD,
}


async def asked(client: RawClient, question: Json, **outcome: object) -> tuple[Json, Json]:
    """Have the backend ask; answer so; return what the client was asked and the backend told."""
    async with client.doing({"ask": question}) as incoming:
        request = await incoming.until(question["method"])
        await client.respond(request["id"], **outcome)
        answer = await incoming.answer()
    ((told),) = answer["result"]["structuredContent"]["answers"]
    return request, told


def ordered(value: object) -> str:
    """All of a value, the order of its members too."""
    return repr(value)


@pytest.mark.parametrize("way", WAYS)
async def test_row_39_all_five_features_are_forwarded_with_no_handler_given(
    way: str, state: State
) -> None:
    """PARITY 39: each feature forwarded with no handler given; in both eras."""
    with anyio.fail_after(3 * PATIENCE):
        async with through(way, EVERYTHING, state) as url:
            for mode in ERAS:
                person = Person()
                async with person.client(url, mode) as client:
                    if mode == "legacy":
                        await client.set_logging_level("info")  # pyright: ignore[reportDeprecated]
                    roots = text_of(await client.call_tool("test_list_roots"))
                    assert "file:///Ann" in roots
                    sampled = text_of(await client.call_tool("test_sampling", {"prompt": "Say"}))
                    assert sampled == "LLM response: Ann says so"
                    formed = await client.call_tool("test_elicitation", {"message": "Who?"})
                    assert '"username": "Ann"' in text_of(formed)
                    await client.call_tool("test_tool_with_logging")
                    await client.call_tool(
                        "test_tool_with_progress", progress_callback=person.report
                    )
                assert person.logged == [
                    "Tool execution started",
                    "Tool processing data",
                    "Tool execution completed",
                ], mode
                assert person.reported == [0, 50, 100], mode
                counts = person.roots_asked, len(person.sampled), len(person.asked)
                assert counts == (1, 1, 1), mode


@pytest.mark.parametrize("way", WAYS)
async def test_row_40_two_clients_roots_give_two_answers(way: str, state: State) -> None:
    """PARITY 40: F's roots reach B; two F's give two answers; also at the same time."""
    async with through(way, scripted(), state) as url:
        async with connect(url) as ann, connect(url) as bob:
            for n, client in enumerate((ann, bob, ann)):
                roots = {"roots": [{"uri": f"file:///{n}", **ODD}], **ODD}
                _, told = await asked(client, {"method": "roots/list"}, result=roots)
                assert ordered(told["result"]) == ordered(roots)


@pytest.mark.parametrize("way", WAYS)
async def test_row_41_sampling_is_forwarded_unchanged(way: str, state: State) -> None:
    """PARITY 41: request and result equal, incl. image, model, stopReason, tools, unknown members
    and nulls, in their order: no model was between."""
    async with through(way, scripted(), state) as url, connect(url) as client:
        request, told = await asked(client, SAMPLING, result=SAMPLED)
        assert ordered(request["params"]) == ordered(SAMPLING["params"])
        assert ordered(told["result"]) == ordered(SAMPLED)
        error = {"code": -1, "message": "no", "data": ODD}
        _, told = await asked(client, SAMPLING, error=error)
        assert ordered(told["error"]) == ordered(error)


@pytest.mark.parametrize("way", WAYS)
async def test_row_42_forms_and_pages_are_forwarded_with_all_three_actions(
    way: str, state: State
) -> None:
    """PARITY 42: form + url mode, all 3 actions, schema defaults kept."""
    page = {
        "method": "elicitation/create",
        "params": {
            "mode": "url",
            "message": "Go",
            "url": "https://x.org/?a=1",
            "elicitationId": "e",
        },
    }
    async with through(way, scripted(), state) as url, connect(url) as client:
        for question in (form(), page):
            for action in ("accept", "decline", "cancel"):
                result: Json = {"action": action, **ODD}
                if action == "accept" and question is not page:
                    result["content"] = {"name": "Ann"}
                request, told = await asked(client, question, result=result)
                assert ordered(request["params"]) == ordered(question["params"])
                assert ordered(told["result"]) == ordered(result)


@pytest.mark.parametrize("way", WAYS)
async def test_row_43_log_data_of_every_kind_is_unchanged_and_the_level_reaches_the_server(
    way: str, state: State
) -> None:
    """PARITY 43: string, dict, list data unchanged; setLevel reaches B."""
    data: list[object] = ["text", {"a": [None, 1.0], **ODD}, ["list", 12345678901234567890], None]
    async with through(way, scripted(), state) as url, connect(url) as client:
        level = await client.request("logging/setLevel", {"level": "info"})
        assert "result" in level
        async with client.doing(*({"log": each} for each in data), {"tells": "seen"}) as incoming:
            messages = await incoming.rest()
        logged = [m["params"]["data"] for m in messages if m.get("method")]
        assert ordered(logged) == ordered(data)
        seen = messages[-1]["result"]["structuredContent"]["seen"]
        levels = [m["params"]["level"] for m in seen if m.get("method") == "logging/setLevel"]
        assert levels == ["info"]


@pytest.mark.parametrize("way", CLIENTS)
async def test_row_43_what_a_slow_handler_passes_on_comes_before_the_answer(
    way: str, state: State
) -> None:
    """PARITY 39, 43, 44: the answer waits for the handlers of what came before it; else there would
    be nowhere to pass it on to."""

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        await anyio.sleep(0.2)
        await default_proxy_log_handler(params)

    async def report(progress: float, total: float | None, message: str | None) -> None:
        await anyio.sleep(0.2)
        await default_proxy_progress_handler(progress, total, message)

    own: Any = {"log_handler": log, "progress_handler": report}
    async with through(way, scripted(), state, **own) as url, connect(url) as client:
        meta = {"progressToken": "t"}
        async with client.doing({"log": "said"}, {"progress": 1}, _meta=meta) as incoming:
            messages = await incoming.rest()
    methods = [each.get("method") for each in messages]
    assert methods == ["notifications/message", "notifications/progress", None]


@pytest.mark.parametrize("way", WAYS)
async def test_row_44_progress_comes_in_order_under_the_clients_own_token(
    way: str, state: State
) -> None:
    """PARITY 44: 3 progress events in order, F's own token; also where two calls overlap."""
    async with through(way, scripted(), state) as url, connect(url) as client:

        async def call(token: object, number: int) -> None:
            meta = {"progressToken": token}
            async with client.doing({"progress": 3}, _meta=meta, number=number) as incoming:
                told = [m["params"] for m in await incoming.rest() if "method" in m]
            assert told == [{"progressToken": token, "progress": n, "total": 3} for n in (1, 2, 3)]

        async with anyio.create_task_group() as tasks:
            for number, token in enumerate(("own \u00e4", 7, 1), 1):
                tasks.start_soon(call, token, number)


OFF: Final[Json] = {
    "roots_handler": None,
    "sampling_handler": None,
    "elicitation_handler": None,
    "log_handler": None,
    "progress_handler": None,
}


@pytest.mark.parametrize("way", CLIENTS)
async def test_row_45_what_is_switched_off_is_not_declared_and_not_forwarded(
    way: str, state: State
) -> None:
    """PARITY 45: per-feature off switch; B sees no capability."""
    meta = {"progressToken": "t"}
    async with through(way, scripted(), state, **OFF) as url, connect(url) as client:
        questions = [SAMPLING, form(), {"method": "roots/list"}]
        steps = [{"ask": questions}, {"log": "said"}, {"progress": 2}, {"tells": "seen"}]
        async with client.doing(*steps, _meta=meta) as incoming:
            messages = await incoming.rest()
        assert [m for m in messages if "method" in m] == []
        found = messages[-1]["result"]["structuredContent"]
        assert capabilities_seen(found["seen"]) == {}
        sampled, elicited, rooted = found["answers"]
        assert "error" in sampled
        assert elicited["result"] == {"action": "decline"}
        assert rooted["result"] == {"roots": []}
        call = next(m for m in found["seen"] if m.get("method") == "tools/call")
        assert "progressToken" not in call["params"].get("_meta", {})


PAIRS: Final = ((CLIENT, "handshake"), (CLIENT, "modern"), (CONNECTED, "modern"))
"""Ways, each with the era of the server."""


@pytest.mark.parametrize(("way", "era"), PAIRS)
async def test_row_45_one_is_switched_off_and_the_others_go_on_in_both_eras(
    way: str, era: str, state: State
) -> None:
    """PARITY 45: `sampling_handler=None`: servers and clients of both eras."""
    command = (*EVERYTHING, "--era", era)
    with anyio.fail_after(2 * PATIENCE):
        async with through(way, command, state, sampling_handler=None) as url:
            for mode in ERAS:
                person = Person()
                async with person.client(url, mode) as client:
                    seen = text_of(await client.call_tool("test_client_info"))
                    assert '"sampling"' not in seen, (mode, seen)
                    assert '"elicitation"' in seen, (mode, seen)
                    formed = await client.call_tool("test_elicitation", {"message": "Who?"})
                    assert '"username": "Ann"' in text_of(formed)
                    await refused(client.call_tool("test_sampling", {"prompt": "Say"}))
                assert person.sampled == []


async def refused(call: Awaitable[types.CallToolResult]) -> None:
    """It fails, as a result or as an error."""
    try:
        assert (await call).is_error
    except MCPError:
        pass


@pytest.mark.parametrize(("way", "era"), PAIRS)
async def test_row_39_a_handler_of_the_users_own_answers_instead_or_passes_on(
    way: str, era: str, state: State
) -> None:
    """PARITY 39, 42: each is replaceable; one that changes what it passes on stands between, with
    servers and clients of both eras."""
    heard: list[object] = []

    async def elicited(
        context: HandlerContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult | types.ErrorData:
        changed = params.model_copy(update={"message": f"{params.message} (changed)"})
        return await default_proxy_elicitation_handler(context, changed)

    async def sampled(
        context: HandlerContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult:
        said = types.TextContent(type="text", text="the handler says so")
        return types.CreateMessageResult(role="assistant", content=said, model="m")

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        heard.append(params.data)

    own = {"elicitation_handler": elicited, "sampling_handler": sampled, "log_handler": log}
    with anyio.fail_after(2 * PATIENCE):
        async with through(way, (*EVERYTHING, "--era", era), state, **own) as url:
            for mode in ERAS:
                person, heard[:] = Person(), []
                async with person.client(url, mode) as client:
                    formed = await client.call_tool("test_elicitation", {"message": "Who?"})
                    assert '"username": "Ann"' in text_of(formed)
                    said = await client.call_tool("test_sampling", {"prompt": "Say"})
                    assert text_of(said) == "LLM response: the handler says so"
                    if mode == "legacy":
                        await client.set_logging_level("info")  # pyright: ignore[reportDeprecated]
                    await client.call_tool("test_logging_tool")
                assert [each.message for each in person.asked] == ["Who? (changed)"], mode
                assert (person.sampled, person.logged) == ([], []), mode
                assert heard == ["This tool logs"], mode


# -- what a client is told and asks for ------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_row_46_instructions_and_metadata_of_the_server_are_forwarded(
    way: str, state: State
) -> None:
    """PARITY 46: instructions visible in both eras; `_meta` and what no model knows too; the name
    is the upstream's."""
    async with through(way, scripted(), state) as url:
        async with connect(url) as client:
            result = client.opened["result"]
            assert result["instructions"] == "Do as you are told."
            assert "x-nonce" in result["_meta"]
            assert result["x-unknown"] is None
            server = {"name": "scripted", "version": "1", "title": "S\u00f6me", "x-unknown": [1.5]}
            assert ordered(result["serverInfo"]) == ordered(server)
        async with Person().client(url, "auto") as modern:
            assert modern.instructions == "Do as you are told."
            assert modern.server_info is not None
            assert modern.server_info.name == "scripted"


async def test_row_46_the_proxys_own_instructions_win(state: State) -> None:
    """PARITY 46: proxy's own win, where it puts several together."""
    proxy = create_proxy(scripted(), name="mine", instructions="Mine.", **state)

    @proxy.tool
    def own() -> str:
        """Own."""
        return "own"

    async with fronted(proxy) as url:
        for mode in ("legacy", "auto"):
            async with Person().client(url, mode) as client:
                assert client.instructions == "Mine."
                assert client.server_info is not None
                assert client.server_info.name == "mine"


@pytest.mark.parametrize("way", WAYS)
async def test_row_47_pings_of_the_client_reach_the_server_and_its_own_are_answered(
    way: str, state: State
) -> None:
    """PARITY 47: F's ping is forwarded to B; P answers B's ping while idle."""
    async with through(way, scripted(), state) as url, connect(url) as client:
        assert (await client.request("ping"))["result"] == {}
        await client.do({"then": [{"ask": {"method": "ping", "id": "idle"}}, {"release": "it"}]})
        await client.do({"wait": "it"})
        seen = (await client.do({"tells": "seen"}))["seen"]
        assert "ping" in [m.get("method") for m in seen]
        assert {"jsonrpc": "2.0", "id": "idle", "result": {}} in seen


WHOSE: Final[ContextVar[str]] = ContextVar("WHOSE", default="nobody")


def asking_server() -> MCPServer[Any]:
    """A server of the SDK in this process, which elicits."""
    server = MCPServer("asking")

    class Named(BaseModel):
        name: str

    @server.tool()
    async def ask(message: str, ctx: Context[Any, Any]) -> str:
        result = await ctx.elicit(message, Named)
        return f"{message} {result.data.name}" if result.action == "accept" else result.action

    return server


async def test_row_48_handlers_run_in_the_context_of_the_request_the_second_time_too(
    state: State,
) -> None:
    """PARITY 48: two sequential + two overlapping elicitations from one session; each handler has
    the ContextVars of the call that it belongs to, and not those of the opening."""
    both = anyio.Event()
    seen: list[tuple[str, str, str | None]] = []

    async def elicited(
        context: HandlerContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        exchange = context.exchange
        seen.append((params.message, WHOSE.get(), exchange.method if exchange else None))
        if len(seen) == 4:
            both.set()
        if len(seen) > 2:
            await both.wait()
        return types.ElicitResult(action="accept", content={"name": WHOSE.get()})

    WHOSE.set("the opening")
    client = ProxyClient(asking_server, elicitation_handler=elicited, **state)
    async with client:

        async def call(name: str) -> None:
            WHOSE.set(name)
            with anyio.fail_after(PATIENCE):
                result = await client.call_tool("ask", {"message": name})
            assert text_of(result) == f"{name} {name}"

        await call("one")
        await call("two")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, "three")
            tasks.start_soon(call, "four")
    assert sorted(seen) == sorted((n, n, "tools/call") for n in ("one", "two", "three", "four"))


def with_whose(app: Application) -> Application:
    """Middleware: the header `x-user` is in `WHOSE` while a request is served."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        WHOSE.set(dict(scope["headers"]).get(b"x-user", b"nobody").decode())
        await app(scope, receive, send)

    return call


@pytest.mark.parametrize("way", CLIENTS)
async def test_row_48_own_handlers_of_a_client_behind_have_the_context_of_the_request(
    way: str, state: State
) -> None:
    """PARITY 48: of each call in turn, and not of the opening one, nor of the one before."""
    seen: list[tuple[str, str]] = []

    async def elicited(
        context: HandlerContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        seen.append(("asked", WHOSE.get()))
        return types.ElicitResult(action="decline")

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        seen.append(("logged", WHOSE.get()))

    async def report(progress: float, total: float | None, message: str | None) -> None:
        seen.append(("reported", WHOSE.get()))

    own: Any = {"elicitation_handler": elicited, "log_handler": log, "progress_handler": report}
    async with made(way, scripted(), state, **own) as proxy:
        async with fronted(proxy, around=with_whose) as url, http() as pool:
            client = RawClient(pool, url, headers={"x-user": "the opening"})
            await client.initialize()
            await client.notify("notifications/initialized")
            for name in ("ann", "bob"):
                each = client.also(**{"x-user": name})
                await each.do({"log": "said"}, {"progress": 1}, {"ask": form()})
                assert sorted(seen) == [("asked", name), ("logged", name), ("reported", name)]
                seen.clear()


@pytest.mark.parametrize("make", [ProxyClient, create_proxy])
async def test_row_48_a_server_has_nothing_of_the_context_that_it_is_first_needed_in(
    make: Any,  # noqa: ANN401
    state: State,
) -> None:
    """PARITY 48: it outlives the request that opens its session; a call still has its own."""
    seen: list[str] = []

    @asynccontextmanager
    async def life(server: MCPServer[Any]) -> AsyncGenerator[None]:
        seen.append(WHOSE.get())
        yield

    server = MCPServer[Any]("lives", lifespan=life)

    @server.tool()
    async def whose() -> str:
        return WHOSE.get()

    token = WHOSE.set("ann")
    async with make(server, **state) as held:
        await held.list_tools()
        WHOSE.set("bob")
        assert text_of(await held.call_tool("whose")) == "bob"
    WHOSE.reset(token)
    assert set(seen) == {"nobody"}


@pytest.mark.parametrize("way", [DIRECT, CONNECTED, STATEFUL])
async def test_row_48_overlapping_elicitations_of_two_clients_do_not_mix(
    way: str, state: State
) -> None:
    """PARITY 48: two overlapping elicitations, each of another session, on a backend that says what
    they belong to; twice."""
    async with through(way, asking_server(), state) as url:
        ann, bob = Person("Ann"), Person("Bob")
        async with ann.client(url) as one, bob.client(url) as other:
            for _ in range(2):
                ann.waits = bob.waits = anyio.Event()
                async with anyio.create_task_group() as tasks:

                    async def call(client: Client, name: str) -> None:
                        result = await client.call_tool("ask", {"message": f"for {name}"})
                        assert text_of(result) == f"for {name} {name}"

                    count = len(ann.asked) + len(bob.asked)
                    tasks.start_soon(call, one, "Ann")
                    tasks.start_soon(call, other, "Bob")
                    await until(lambda n=count: len(ann.asked) + len(bob.asked) == n + 2)
                    ann.waits.set()
        assert {each.message for each in ann.asked} == {"for Ann"}
        assert {each.message for each in bob.asked} == {"for Bob"}


async def test_row_48_what_could_be_anothers_is_refused_on_a_shared_pipe(state: State) -> None:
    """PARITY 48: on a pipe a question names no request; with two sessions' calls in flight it goes
    to neither of them, and later ones go where they belong."""
    async with through(CONNECTED, scripted(), state) as url:
        async with connect(url) as ann, connect(url) as bob:
            waiting = {"progress": 1}, {"wait": "bob"}
            async with bob.doing(*waiting, _meta={"progressToken": 1}) as incoming:
                async with ann.doing({"ask": form()}) as other:
                    (told,) = (await other.answer())["result"]["structuredContent"]["answers"]
                assert "cannot be attributed" in told["error"]["message"]
                await ann.do({"release": "bob"})
                methods = [m.get("method") for m in await incoming.rest()]
                assert methods == ["notifications/progress", None]
            for client in (bob, ann):
                _, told = await asked(client, form(), result={"action": "decline"})
                assert told["result"] == {"action": "decline"}


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize("way", WAYS)
async def test_row_49_a_server_in_this_process_asks_the_client_once(
    way: str, mode: str, state: State
) -> None:
    """PARITY 49: in-memory backend elicits: 1 request at F; nobody talks to himself."""
    with anyio.fail_after(PATIENCE):
        async with through(way, build(), state) as url:
            person = Person()
            async with person.client(url, mode) as client:
                for n in (1, 2):
                    result = await client.call_tool("test_elicitation", {"message": "Who?"})
                    assert '"username": "Ann"' in text_of(result)
                    assert len(person.asked) == n


@pytest.mark.parametrize("way", WAYS)
async def test_row_50_a_result_against_its_schema_is_relayed_as_it_is(
    way: str, state: State
) -> None:
    """PARITY 50: backend violating its schema: F sees the raw result."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tool = {"name": "do", "inputSchema": {"type": "object"}, "outputSchema": schema}
    result = {"content": "no list", "structuredContent": {"n": "no number"}, **ODD}
    command = scripted(
        on={
            "tools/list": [{"replies": {"result": {"tools": [tool]}}}],
            "tools/call": [{"replies": {"result": result}}],
        }
    )
    async with through(way, command, state) as url, connect(url) as client:
        await client.request("tools/list")
        answer = await client.request("tools/call", {"name": "do", "arguments": {}})
        assert ordered(answer["result"]) == ordered(result)


@pytest.mark.parametrize("way", WAYS)
async def test_row_51_meta_of_users_crosses_and_the_envelope_does_not(
    way: str, state: State
) -> None:
    """PARITY 51: progress token, trace, vendor keys pass; version/clientInfo/capabilities keys
    never cross to a handshake B."""
    meta: Any = {"traceparent": "00-1-2-01", "vendor.example/key": {"a": None}}
    async with through(way, LISTING, state) as url:
        for mode in ERAS:
            async with Person().client(url, mode) as client:
                arguments = do({"tells": "seen"})
                result = await client.call_tool(
                    "do", arguments, meta=meta, progress_callback=Person().report
                )
                seen = found(result)["seen"]
                calls = [m["params"]["_meta"] for m in seen if m.get("method") == "tools/call"]
                keys = set(calls[-1])
                assert keys == {"traceparent", "vendor.example/key", "progressToken"}, mode
                assert calls[-1]["vendor.example/key"] == meta["vendor.example/key"]


async def test_row_52_a_callers_token_reaches_the_server_only_where_it_is_mapped(
    state: State,
) -> None:
    """PARITY 52: current caller's token per request, where the operator maps it (never by
    default); hop and `mcp-*` headers do not cross."""
    async with upstream() as server:
        for mapped in (False, True):
            more: Any = {"forward_authorization": True} if mapped else {}
            async with fronted(create_proxy(server.url, **state, **more)) as url:
                server.asked.clear()
                async with httpx2.AsyncClient(trust_env=False) as pool:
                    mine = {"authorization": "Bearer one", "mcp-x-own": "1", "x-hop": "1"}
                    client = RawClient(pool, url, headers=mine)
                    await client.initialize()
                    await client.notify("notifications/initialized")
                    other = client.also(authorization="Bearer two")  # it was renewed meanwhile
                    for each in (client, other, client):
                        await each.request("tools/call", {"name": "do"})
                calls = [each.headers for each in server.all("tools/call")]
                tokens = [headers.get("authorization") for headers in calls]
                one, two = "Bearer one", "Bearer two"
                assert tokens == ([one, two, one] if mapped else [None, None, None])
                assert not any("mcp-x-own" in headers or "x-hop" in headers for headers in calls)


@pytest.mark.parametrize("way", ["client", "client with a handler", "stateful client"])
async def test_row_52_a_server_that_asks_for_a_token_at_once_is_given_the_callers(
    way: str, state: State
) -> None:
    """PARITY 52, 60: all that is sent for a session has the credential of that one's client,
    whatever stands between."""

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        pass

    async with upstream() as server:
        mapped: Any = {"forward_authorization": True, **state}
        stateful = StatefulProxyClient(server.url, **mapped)
        target = {
            "client": ProxyClient(server.url, **mapped),
            "client with a handler": ProxyClient(server.url, log_handler=log, **mapped),
            "stateful client": ProxyProvider(stateful.new_stateful),
        }[way]
        async with fronted(create_proxy(target, **mapped)) as url, http() as pool:
            for token in ("Bearer one", "Bearer two"):
                server.asked.clear()
                client = RawClient(pool, url, headers={"authorization": token})
                await client.initialize()
                await client.notify("notifications/initialized")
                await client.request("tools/call", {"name": "do"})
                await server.heard("GET")
                assert {each.headers.get("authorization") for each in server.asked} == {token}
                assert server.methods["initialize"] == server.methods["tools/call"] == 1


async def test_row_52_another_users_token_on_a_sessions_id_reaches_nothing(
    state: State, tmp_path: Path
) -> None:
    """PARITY 52: foreign token on a session id -> 404, where tokens are mapped, too."""
    tokens = tmp_path / "tokens"
    ann, bob = "a" * 40, "b" * 40
    hashed = [hashlib.sha256(token.encode()).hexdigest() for token in (ann, bob)]
    tokens.write_text(f"ann {hashed[0]}\nbob {hashed[1]}\n")
    tokens.chmod(0o600)
    mapped: Any = {"forward_authorization": True, "token_file": str(tokens)}
    async with upstream() as server:
        async with fronted(create_proxy(server.url, **state, **mapped)) as url, http() as pool:
            client = RawClient(pool, url, headers={"authorization": f"Bearer {ann}"})
            await client.initialize()
            await client.notify("notifications/initialized")
            foreign = client.also(authorization=f"Bearer {bob}")
            call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "do"}}
            assert (await foreign.post(call)).status_code == 404
            assert "result" in await client.request("tools/call", {"name": "do"})
            (asked,) = server.all("tools/call")
            assert asked.headers["authorization"] == f"Bearer {ann}"


@pytest.mark.parametrize("way", WAYS)
async def test_row_53_errors_are_forwarded_unchanged(way: str, state: State) -> None:
    """PARITY 53: `isError` results intact; code, message, data equal."""
    error = {"code": -32099, "message": "M\u00fcll", "data": {"why": [None, 1.0], **ODD}}
    failed = {"content": [{"type": "text", "text": "no"}], "isError": True, **ODD}
    command = scripted(
        on={
            "resources/read": [{"replies": {"error": error}}],
            "tools/call": [{"replies": {"result": failed}}],
        }
    )
    async with through(way, command, state) as url, connect(url) as client:
        answer = await client.request("resources/read", {"uri": "x://y"})
        assert ordered(answer["error"]) == ordered(error)
        answer = await client.request("tools/call", {"name": "do"})
        assert ordered(answer["result"]) == ordered(failed)


@pytest.mark.parametrize("way", WAYS)
async def test_row_54_a_cancelled_call_is_cancelled_at_the_server(way: str, state: State) -> None:
    """PARITY 54: on explicit cancel in the handshake era, and on a lost connection in the modern
    one."""
    async with through(way, LISTING, state) as url:
        async with connect(url) as client:
            steps = {"progress": 1}, {"until_cancelled": 1}, {"release": "it"}
            async with client.doing(*steps, number=5, _meta={"progressToken": 1}) as incoming:
                await incoming.until("notifications/progress")
                reason = {"requestId": 5, "reason": "enough", **ODD}
                await client.notify("notifications/cancelled", reason)
                with anyio.fail_after(PATIENCE):
                    seen = (await client.do({"wait": "it"}, {"tells": "seen"}))["seen"]
            (told,) = [m for m in seen if m.get("method") == "notifications/cancelled"]
            assert told["params"]["reason"] == "enough"
        async with Person().client(url, ERAS[1]) as modern:
            begun = anyio.Event()

            async def report(progress: float, total: float | None, message: str | None) -> None:
                begun.set()

            steps = do({"progress": 1}, {"until_cancelled": 1}, {"release": "m"})
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(
                        partial(modern.call_tool, "do", steps, progress_callback=report)
                    )
                    await begun.wait()
                    tasks.cancel_scope.cancel()
                result = await modern.call_tool("do", do({"wait": "m"}, {"tells": "seen"}))
            methods = [m.get("method") for m in found(result)["seen"]]
            assert "notifications/cancelled" in methods


@pytest.mark.parametrize("era", ["handshake", "modern"])
async def test_row_55_clients_of_either_era_use_servers_of_either_era(
    era: str, state: State
) -> None:
    """PARITY 55: modern F works with legacy B and vice versa, with no setting; and PARITY 56:
    a modern B's `InputRequiredResult` and its state go to a modern F and back."""
    with anyio.fail_after(PATIENCE):
        async with through(DIRECT, (*EVERYTHING, "--era", era), state) as url:
            for mode in ERAS:
                person = Person()
                async with person.client(url, mode) as client:
                    version = "2025-11-25" if mode == "legacy" else mode
                    assert client.protocol_version == version
                    seen = json.loads(text_of(await client.call_tool("test_client_info")))
                    spoken = "2025-11-25" if era == "handshake" else "2026-07-28"
                    assert seen["protocolVersion"] == spoken
                    result = await client.call_tool("test_elicitation", {"message": "Who?"})
                    assert '"username": "Ann"' in text_of(result)


@pytest.mark.parametrize("way", WAYS)
async def test_row_56_a_guarded_tool_round_trips_between_modern_sides(
    way: str, state: State
) -> None:
    """PARITY 56: `InputRequiredResult`, `input_responses`, `request_state` pass through: the server
    refuses a state that is not its own."""
    with anyio.fail_after(PATIENCE):
        async with through(way, (*EVERYTHING, "--era", "modern"), state) as url:
            person = Person()
            async with person.client(url, ERAS[1]) as client:
                result = await client.call_tool("test_input_required_result_request_state")
                assert text_of(result) == "state-ok"
                result = await client.call_tool("test_input_required_result_multi_round")
                assert "Ann" in text_of(result)
            assert len(person.asked) == 3


async def test_row_57_an_annotated_argument_reaches_a_strict_modern_server_in_its_header(
    state: State,
) -> None:
    """PARITY 57: annotated tool accepted by a strict modern B, which refuses calls without the
    `Mcp-Param-*` header; from clients of both eras."""
    with anyio.fail_after(PATIENCE):
        async with (
            elsewhere("--http", "0", "--era", "modern") as server,
            through(DIRECT, server, state) as url,
        ):
            for mode in ERAS:
                async with Person().client(url, mode) as client:
                    await client.list_tools()
                    arguments = {"region": "e\u00fc-west"}
                    result = await client.call_tool("test_header_argument", arguments)
                    assert text_of(result) == "region=e\u00fc-west"


NOTES: Final = (
    "notifications/tools/list_changed",
    "notifications/prompts/list_changed",
    "notifications/resources/list_changed",
    "notifications/x-custom",
)


@pytest.mark.parametrize("way", WAYS)
async def test_row_58_notifications_and_methods_that_fastmcp_drops_are_forwarded(
    way: str, state: State
) -> None:
    """PARITY 58: list_changed, resources/updated, elicitation/complete, custom notifications;
    resources/subscribe and completion/complete; roots/list_changed from F."""
    page = {
        "method": "elicitation/create",
        "params": {"mode": "url", "message": "Go", "url": "https://x.org", "elicitationId": "e1"},
    }
    async with through(way, scripted(), state) as url, connect(url) as client:
        uri = {"uri": "x://watched"}
        assert "result" in await client.request("resources/subscribe", uri)
        done = await client.request("completion/complete", {"ref": {"x": 1}, "argument": {}})
        assert done["result"]["method"] == "completion/complete"
        assert ordered(done["result"]["params"]) == ordered({"ref": {"x": 1}, "argument": {}})
        notes = [{"note": {"method": method, "params": {**ODD}}} for method in NOTES]
        notes.append({"note": {"method": "notifications/resources/updated", "params": uri}})
        complete = {
            "method": "notifications/elicitation/complete",
            "params": {"elicitationId": "e1"},
        }
        heard: dict[str, object] = {}

        async def hear(incoming: Incoming) -> None:
            while not wanted <= heard.keys():
                message = await incoming.message()
                heard[message.get("method", "")] = message.get("params")

        wanted: set[str] = {*NOTES, "notifications/resources/updated", str(complete["method"])}
        async with client.listen() as standing:
            steps = *notes, {"ask": page}, {"note": complete}, {"wait": "heard"}
            async with anyio.create_task_group() as tasks, client.doing(*steps) as incoming:
                request = await incoming.until("elicitation/create")
                incoming.heard = lambda message: None
                await client.respond(request["id"], result={"action": "accept"})
                for event in incoming.events:
                    if event.data and "method" in (message := json.loads(event.data)):
                        heard[message["method"]] = message.get("params")
                tasks.start_soon(hear, standing)
                async with anyio.create_task_group() as own:
                    own.start_soon(hear, incoming)
                    with anyio.fail_after(PATIENCE):
                        await until(lambda: wanted <= heard.keys())
                    own.cancel_scope.cancel()
                tasks.cancel_scope.cancel()
        assert ordered(heard["notifications/x-custom"]) == ordered(ODD)
        await client.notify("notifications/roots/list_changed")
        seen = (await client.do({"release": "heard"}, {"tells": "seen"}))["seen"]
        assert "notifications/roots/list_changed" in [m.get("method") for m in seen]


@pytest.mark.parametrize("way", [DIRECT, CLIENT])
async def test_row_58_the_server_sees_exactly_the_clients_capabilities_and_name(
    way: str, state: State
) -> None:
    """PARITY 58: B sees exactly F's capabilities and clientInfo."""
    mine = {"elicitation": {}, "experimental": {"x": ODD}}
    named = {"name": "me", "version": "7", **ODD}
    async with through(way, scripted(), state) as url, http() as pool:
        client = RawClient(pool, url)
        await client.initialize(capabilities=mine, client=named)
        await client.notify("notifications/initialized")
        seen = (await client.do({"tells": "seen"}))["seen"]
        opened = next(m for m in seen if m.get("method") == "initialize")["params"]
        assert ordered(opened["capabilities"]) == ordered(mine)
        assert ordered(opened["clientInfo"]) == ordered(named)

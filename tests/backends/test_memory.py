"""A backend that is a server of the SDK in this process, unmodified; and ones that misbehave."""

import json
import logging
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import mcp_types as types
import pytest
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata

from sessionproxy.app import http_app
from sessionproxy.backends.hosted import Hosted
from sessionproxy.backends.lifespans import Lifespans
from sessionproxy.backends.memory import MemoryLauncher
from sessionproxy.config import ConfigError
from sessionproxy.core.background import Background
from sessionproxy.core.caller import Nobody
from sessionproxy.core.exchange import Exchange
from sessionproxy.core.memory import Opening
from sessionproxy.core.ports import Identity
from sessionproxy.core.relay import Relay
from sessionproxy.errors import BackendBusy
from sessionproxy.http.request import Receive, Scope, Send
from sessionproxy.plan import Fronted
from sessionproxy.wire import Kind
from tests.core.fakes import OPENING, FakeSink, FakeUpstream
from tests.rig.embedded import Application, embedded, until
from tests.rig.http import PATIENCE, Client, Json, connect, http
from tests.rig.modern import Modern

pytestmark = [
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

USER: ContextVar[str] = ContextVar("USER", default="nobody")
WHO: Final = Identity("default", "local", "key")


@dataclass
class Runs:
    """What the runs of a server have done."""

    started: int = 0
    over: int = 0
    users: list[str] = field(default_factory=list[str])
    """In whose contexts its lifespan was entered."""
    seen: list[object] = field(default_factory=list[object])
    """What its tools have seen."""
    free: anyio.Event = field(default_factory=anyio.Event)
    """Lets go what holds out until then."""

    @asynccontextmanager
    async def lifespan(self, server: object) -> AsyncGenerator[dict[str, int]]:
        self.started += 1
        self.users.append(USER.get())
        try:
            yield {"count": 0}
        finally:
            self.over += 1


def counting(runs: Runs) -> MCPServer[dict[str, int]]:
    """A server whose state is one number for each run."""
    server = MCPServer("memory", lifespan=runs.lifespan)

    @server.tool()
    async def add(ctx: Context[dict[str, int]]) -> int:
        state = ctx.request_context.lifespan_context
        state["count"] += 1
        return state["count"]

    @server.tool()
    async def who() -> str:
        await anyio.lowlevel.checkpoint()
        return USER.get()

    return server


Run = Callable[[ServerRequestContext[Any], dict[str, Any]], Awaitable[str]]


def lowlevel(lifespan: Callable[[Server[Any]], Any] | None = None, **tools: Run) -> Server[Any]:
    """A server of the lower level, with these tools."""

    async def call(
        ctx: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        said = await tools[params.name](ctx, dict(params.arguments or {}))
        return types.CallToolResult(content=[types.TextContent(type="text", text=said)])

    async def listed(
        ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[types.Tool(name=name, input_schema={"type": "object"}) for name in tools]
        )

    if lifespan is None:
        return Server("memory", on_call_tool=call, on_list_tools=listed)
    return Server("memory", lifespan=lifespan, on_call_tool=call, on_list_tools=listed)


async def one(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
    return "1"


async def log(ctx: ServerRequestContext[Any], said: str) -> None:
    params = types.LoggingMessageNotificationParams(level="info", data=said)
    message = types.LoggingMessageNotification(params=params)
    await ctx.session.send_notification(message, ctx.request_id)


async def ask_for(ctx: ServerRequestContext[Any], message: str) -> types.ElicitResult:
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    params = types.ElicitRequestFormParams(message=message, requested_schema=schema)
    return await ctx.session.send_request(
        types.ElicitRequest(params=params),
        types.ElicitResult,
        metadata=ServerMessageMetadata(related_request_id=ctx.request_id),
    )


def text_of(answer: Json) -> str:
    assert "result" in answer, answer
    return str(answer["result"]["content"][0]["text"])


def calls(name: str, /, **arguments: object) -> Json:
    return {"name": name, "arguments": arguments, "_meta": {"progressToken": name}}


async def call(client: Client, name: str, /, **arguments: object) -> str:
    return text_of(await client.request("tools/call", calls(name, **arguments)))


# -- what it is ------------------------------------------------------------------------------------


async def test_every_session_is_a_run_of_the_server_and_ends_with_it() -> None:
    """DESIGN 3 and 5.2: one session, one backend, with a lifespan of its own."""
    runs = Runs()
    async with embedded(counting(runs)) as proxy:
        async with connect(proxy.url) as one, connect(proxy.url) as two:
            assert [await call(c, "add") for c in (one, one, two)] == ["1", "2", "1"]
            assert (runs.started, runs.over) == (2, 0)
            await one.delete()
            await until(lambda: runs.over == 1)
            assert await call(two, "add") == "2"
    assert (runs.started, runs.over) == (2, 2)


async def made_later() -> Server[Any]:
    await anyio.lowlevel.checkpoint()
    return lowlevel(add=one)


class OfItsOwn(Server[Any]):
    def __init__(self) -> None:
        super().__init__("memory", on_call_tool=self.call)

    async def call(
        self, ctx: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(type="text", text="1")])


@pytest.mark.parametrize(
    "served",
    [
        OfItsOwn,
        lowlevel(add=one),
        counting(Runs()),
        lambda: lowlevel(add=one),
        lambda: counting(Runs()),
        made_later,
    ],
    ids=[
        "class",
        "lowlevel",
        "MCPServer",
        "function",
        "function of MCPServer",
        "coroutine function",
    ],
)
async def test_it_is_given_as_a_server_or_as_what_returns_one(served: Fronted) -> None:
    """Our choice; issue 5 builds on it."""
    async with embedded(served) as proxy, connect(proxy.url) as client:
        assert await call(client, "add") == "1"


async def test_a_function_is_called_for_every_session() -> None:
    """Our choice: so state outside of a lifespan may be a session's own, too."""
    made: list[object] = []

    def make() -> Server[Any]:
        made.append(lowlevel(add=one))
        return lowlevel(add=one)

    async with embedded(make) as proxy, connect(proxy.url), connect(proxy.url):
        assert len(made) == 2


async def test_it_speaks_the_era_of_the_client_that_opens_the_session() -> None:
    """DESIGN 9: its first message decides, as over stdio; both eras at once on one endpoint."""
    seen: list[str] = []

    async def version(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        seen.append(ctx.protocol_version)
        return "1"

    async with embedded(lowlevel(version=version)) as proxy, http() as pool:
        async with connect(proxy.url) as client:
            assert await call(client, "version") == "1"
            answer = await Modern(pool, proxy.url).post("tools/call", calls("version"))
            assert text_of(answer.json()) == "1"
            assert await call(client, "version") == "1"
    assert seen == ["2025-11-25", "2026-07-28", "2025-11-25"]


async def test_shared_mode_has_one_run_for_all() -> None:
    """DESIGN 10, shared."""
    runs = Runs()
    async with embedded(counting(runs), mode="shared") as proxy:
        async with connect(proxy.url) as one, connect(proxy.url) as two:
            assert [await call(c, "add") for c in (one, two, one)] == ["1", "2", "3"]
        assert runs.started == 1


def with_user(app: Application) -> Application:
    """Middleware: the header `x-user` becomes `USER`."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        USER.set(dict(scope["headers"]).get(b"x-user", b"nobody").decode())
        await app(scope, receive, send)

    return called


async def test_a_tool_runs_in_the_context_of_its_call_and_the_lifespan_in_nobodys() -> None:
    """DESIGN 8: by the exchange; sessions are never started in the opening request's context."""
    runs = Runs()
    async with embedded(counting(runs), around=with_user) as proxy, http() as pool:
        client = Client(pool, proxy.url, headers={"x-user": "opener"})
        await client.initialize()
        await client.notify("notifications/initialized")
        users: dict[str, str] = {}

        async def ask(user: str) -> None:
            users[user] = await call(client.also(x_user=user), "who")

        async with anyio.create_task_group() as tasks:
            for user in ("ann", "bob", "cid"):
                tasks.start_soon(ask, user)
    assert users == {user: user for user in ("ann", "bob", "cid")}
    assert runs.users == ["nobody"]


async def test_a_run_is_in_the_context_of_the_process_whoever_has_it_launched() -> None:
    """DESIGN 8, where a launcher is used without a session around it."""
    runs = Runs()
    launcher = MemoryLauncher(counting(runs), stop_grace=PATIENCE, max_line=1 << 20)
    async with launcher:
        USER.set("opener")
        async with launcher.launch(WHO, "test", FakeUpstream(), OPENING) as relay:
            await opened(relay)
    assert runs.users == ["nobody"]


def test_the_sdk_is_not_loaded_for_those_who_have_no_such_server() -> None:
    """It takes most of a second, of every start of the command."""
    code = "import sys, sessionproxy.serve; sys.exit('mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- whose a message is ----------------------------------------------------------------------------


async def test_what_overlapping_calls_say_goes_to_the_one_that_says_it() -> None:
    """DESIGN 8: never one slot for the current request; here each message names its request."""
    both, first_said = anyio.Event(), anyio.Event()
    running: list[object] = []

    async def ask(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        running.append(arguments["name"])
        if len(running) == 2:
            both.set()
        await both.wait()
        if arguments["name"] == "one":  # the older one speaks last
            await first_said.wait()
        await log(ctx, arguments["name"])
        first_said.set()
        answer = await ask_for(ctx, arguments["name"])
        return str((answer.content or {})["from"])

    async with embedded(lowlevel(ask=ask)) as proxy, connect(proxy.url) as client:
        seen: dict[str, tuple[object, object, str]] = {}

        async def read(name: str) -> None:
            async with client.open("tools/call", calls("ask", name=name)) as stream:
                log = await stream.until("notifications/message")
                asked = await stream.until("elicitation/create")
                content = {"from": f"answer to {name}"}
                await client.respond(asked["id"], result={"action": "accept", "content": content})
                said = text_of(await stream.answer())
                seen[name] = (log["params"]["data"], asked["params"]["message"], said)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, "one")
            await until(lambda: running == ["one"])
            tasks.start_soon(read, "two")
    assert seen == {name: (name, name, f"answer to {name}") for name in ("one", "two")}


async def test_what_belongs_to_a_call_that_is_over_reaches_no_other() -> None:
    """DESIGN 5.1: whose the next one is nobody knows, least of all in shared mode."""
    runs = Runs()

    async def clean_up(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        runs.started += 1
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await log(ctx, "late")
                try:
                    await ask_for(ctx, "late")
                except MCPError as error:
                    runs.seen.append(error.error.message)
                runs.over += 1
        return "never"

    async def wait(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        await runs.free.wait()
        return "1"

    upstream = FakeUpstream()
    async with launched(lowlevel(clean_up=clean_up, wait=wait), upstream) as relay:
        await opened(relay)
        first, second = asking(relay, "clean_up"), asking(relay, "wait")
        await until(lambda: runs.started == 1)
        relay.cancel(first, None)
        await until(lambda: runs.over == 1)
        runs.free.set()
        await until(lambda: second.outcome is not None)
    assert runs.seen == ["the request that it belongs to is over"]
    assert (upstream.notes, upstream.asks) == ([], [])


async def test_a_cancelled_call_is_cancelled_and_its_question_taken_back() -> None:
    """DESIGN 5.9; 2025-11-25 basic/utilities/cancellation: the server's own question as well."""
    runs = Runs()

    async def ask(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        try:
            await ask_for(ctx, "?")
        finally:
            runs.free.set()
        return "never"

    upstream = FakeUpstream()
    async with launched(lowlevel(ask=ask), upstream) as relay:
        await opened(relay)
        exchange = asking(relay, "ask")
        await until(lambda: bool(upstream.asks))
        assert upstream.asks[0][1] is exchange
        relay.cancel(exchange, None)
        with anyio.fail_after(PATIENCE):
            await runs.free.wait()
        await until(lambda: bool(upstream.withdrawn))
        assert upstream.withdrawn == [upstream.asks[0][0]]


# -- servers that misbehave ------------------------------------------------------------------------


@asynccontextmanager
async def launched(server: Server[Any], upstream: FakeUpstream) -> AsyncGenerator[Relay]:
    """One backend, with nothing in front of it."""
    launcher = MemoryLauncher(server, stop_grace=PATIENCE, max_line=1 << 20)
    async with launcher, launcher.launch(WHO, "test", upstream, OPENING) as relay:
        yield relay


def asking(relay: Relay, tool: str, **arguments: object) -> Exchange:
    params = json.dumps({"name": tool, "arguments": arguments}).encode()
    exchange = Exchange("tools/call", params, client_id=b"1", sink=FakeSink())
    relay.request(exchange)
    return exchange


async def opened(relay: Relay) -> None:
    params: Json = {
        "protocolVersion": "2025-11-25",
        "capabilities": {"elicitation": {}},
        "clientInfo": {"name": "tests", "version": "1"},
    }
    found = Opening(json.dumps(params).encode())
    exchange = Exchange(found.method, found.params, client_id=b"0", sink=FakeSink())
    relay.request(exchange)
    await until(lambda: exchange.outcome is not None)
    relay.notify("notifications/initialized", None)


@asynccontextmanager
async def failing(server: object) -> AsyncGenerator[None]:
    raise RuntimeError("no such database: s3cret")
    yield


def not_a_server() -> object:
    return "a server"


def leaving() -> object:
    sys.exit("no such file")


@pytest.mark.parametrize(
    ("served", "raised"),
    [
        (lowlevel(failing), "its server raised RuntimeError"),
        (not_a_server, "is no server of the SDK"),
        (leaving, "its server raised SystemExit"),
    ],
)
@pytest.mark.parametrize("exposed", [True, False])
async def test_a_server_that_cannot_start_is_named_with_what_it_raised(
    served: Fronted, raised: str, exposed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """F01, F02: reason to the client; what it would have written to stderr, only where that is
    exposed; all of it to the log. Nothing stays."""
    caplog.set_level(logging.ERROR)
    async with embedded(served, expose_stderr=exposed) as proxy, http() as pool:
        client = Client(pool, proxy.url)
        answer = (await client.initialize()).json()
        assert raised in answer["error"]["message"]
        assert ("Traceback" in json.dumps(answer)) == exposed
        assert client.id == ""
        await until(lambda: len(proxy.manager.registry) == 0)
    assert "Traceback" in caplog.text


async def test_a_function_that_is_cancelled_by_what_it_waits_for_costs_its_own_session() -> None:
    """DESIGN 5.1: a task of its own was cancelled; the sessions of others go on."""
    made: list[str] = []

    async def make() -> Server[Any]:
        made.append("one more")
        if len(made) == 2:
            raise anyio.get_cancelled_exc_class()  # as awaiting a task does that was cancelled
        return lowlevel(one=one)

    async with embedded(make) as proxy, connect(proxy.url) as ann, http() as pool:
        refused = await Client(pool, proxy.url).initialize()
        assert "StrayCancellation" in refused.text
        for _ in range(2):
            assert await call(ann, "one") == "1"
        async with connect(proxy.url):
            made.append("and that is all")
    assert len(made) == 4, "a proxy that ends so ends without an error"


async def test_a_server_that_dies_in_a_call_costs_its_own_session_and_says_why() -> None:
    """F06, F50: the call gets a tool error that names the reason; the next one is told."""
    runs = Runs()

    @asynccontextmanager
    async def fragile(server: object) -> AsyncGenerator[anyio.Event]:
        broken = anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await broken.wait()
                raise ConnectionError("the database is gone")

            tasks.start_soon(watch)
            yield broken

    async def die(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        ctx.lifespan_context.set()
        await anyio.sleep_forever()
        return "never"

    async with embedded(lowlevel(fragile, die=die, add=one)) as proxy:
        async with connect(proxy.url) as client, connect(proxy.url) as other:
            answer = await client.request("tools/call", calls("die"))
            assert answer["result"]["isError"]
            assert "its server raised ConnectionError" in text_of(answer)
            fault = answer["result"]["_meta"]["sessionproxy/fault"]
            assert fault["outcome"] == "unknown"
            told = await client.request("tools/call", calls("add"))
            assert "state was lost" in text_of(told)
            assert await call(client, "add") == "1"
            assert await call(other, "add") == "1"
    assert runs.started == 0


async def test_a_tools_own_error_of_a_closed_connection_is_its_answer() -> None:
    """DESIGN 5.4: it is left out only where the server itself is being cancelled."""

    async def closed_of_its_own(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        raise MCPError(types.CONNECTION_CLOSED, "the database has closed the connection")

    async with embedded(lowlevel(closed=closed_of_its_own)) as proxy:
        async with connect(proxy.url) as client:
            answer = await client.request("tools/call", calls("closed"))
    assert answer["error"]["message"] == "the database has closed the connection"


async def test_a_server_that_does_not_end_by_itself_is_cancelled() -> None:
    """F17: the ladder, as far as there is one within a process."""
    runs = Runs()

    @asynccontextmanager
    async def lingering(server: object) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            try:
                await anyio.sleep_forever()
            finally:
                runs.over += 1

    launcher = MemoryLauncher(lowlevel(lingering), stop_grace=0.1, max_line=1 << 20)
    async with launcher:
        async with launcher.launch(WHO, "test", FakeUpstream(), OPENING) as relay:
            await opened(relay)
        assert runs.over == 1


async def test_a_server_in_a_hurry_is_cancelled_without_waiting() -> None:
    """DESIGN 7: a second signal ends at once."""

    @asynccontextmanager
    async def lingering(server: object) -> AsyncGenerator[None]:
        yield
        await anyio.sleep_forever()

    launcher = MemoryLauncher(lowlevel(lingering), stop_grace=3 * PATIENCE, max_line=1 << 20)
    async with launcher:
        with anyio.move_on_after(PATIENCE) as patience:
            async with launcher.launch(WHO, "test", FakeUpstream(), OPENING) as relay:
                await opened(relay)
                launcher.hurry()
        assert not patience.cancel_called


async def test_who_waits_for_a_server_that_heeds_nothing_waits_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F18: nothing within a process could end it, so the log says it."""
    monkeypatch.setattr("sessionproxy.backends.hosted.CANCEL_GRACE", 0.1)
    runs = Runs()

    @asynccontextmanager
    async def stubborn(server: object) -> AsyncGenerator[None]:
        yield
        with anyio.CancelScope(shield=True):
            await runs.free.wait()

    launcher = MemoryLauncher(lowlevel(stubborn), stop_grace=0.1, max_line=1 << 20)
    async with launcher:
        async with launcher.launch(WHO, "test", FakeUpstream(), OPENING) as relay:
            await opened(relay)
        assert "does not heed its cancellation" in caplog.text
        runs.free.set()


async def test_a_server_that_never_reads_is_sent_a_bounded_number_of_messages() -> None:
    """F16: the next one fails alone; answers to its own questions find room longer."""
    lifespans = Lifespans(Background(), lasting=True)
    hosted = Hosted(
        lowlevel,
        Identity("default", "somebody", "key"),
        "test",
        Nobody(),
        max_line=1 << 20,
        context=copy_context(),
        lifespans=lifespans,
    )
    relay = Relay(hosted, FakeUpstream())
    hosted.attach(relay)
    for _ in range(1024):
        hosted.send(b"{}", Kind.NOTIFICATION)
    with pytest.raises(BackendBusy):
        hosted.send(b"{}", Kind.NOTIFICATION)
    hosted.send(b"{}", Kind.RESPONSE)
    large = Hosted(
        lowlevel,
        Identity("default", "somebody", "key"),
        "test",
        Nobody(),
        max_line=1 << 20,
        context=copy_context(),
        lifespans=lifespans,
    )
    large.send(b" " * (32 << 20), Kind.REQUEST)
    with pytest.raises(BackendBusy):
        large.send(b" ", Kind.RESPONSE)
    launcher = MemoryLauncher(lowlevel, stop_grace=0, max_line=1)
    for unused in (hosted, large):
        launcher.hurry()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(unused.run)
            await unused.close(0, launcher._hurry)  # pyright: ignore[reportPrivateUsage]


async def test_a_result_that_is_too_large_fails_alone() -> None:
    """F13: `max_line` holds for every kind of backend."""

    async def large(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        return "x" * 20_000

    async with embedded(lowlevel(large=large, add=one), max_line=10_000) as proxy:
        async with connect(proxy.url) as client:
            answer = await client.request("tools/call", calls("large"))
            assert answer["result"]["isError"]
            assert "larger than 10000 bytes" in text_of(answer)
            assert await call(client, "add") == "1"


async def test_what_the_servers_library_cannot_read_is_answered_and_stops_nothing() -> None:
    """F11: the SDK reads lists in lists to a depth of 200 only. Nobody waits for an answer to
    what is deeper: not the client, and not the server for the client's."""
    runs = Runs()

    async def ask(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        try:
            await ask_for(ctx, "?")
        except MCPError as error:
            runs.seen.append(error.error.message)
        return "asked"

    deep: Json = {"x": json.loads("[" * 300 + "]" * 300)}
    async with embedded(lowlevel(add=one, ask=ask)) as proxy, connect(proxy.url) as client:
        answer = await client.request("tools/call", calls("add", deep=deep))
        assert answer["error"]["code"] == types.INVALID_REQUEST
        assert (await client.notify("notifications/x", deep)).status_code == 202
        async with client.open("tools/call", calls("ask")) as stream:
            question = await stream.until("elicitation/create")
            await client.respond(question["id"], result={"action": "accept", "content": deep})
            assert text_of(await stream.answer()) == "asked"
        assert await call(client, "add") == "1"
    assert runs.seen == ["The server's library cannot read this message."]


async def test_a_server_that_never_waits_leaves_the_others_their_turn() -> None:
    """DESIGN 5.3: it harms nobody else, though all share one event loop."""
    heard: list[bool] = []

    async def flood(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        for number in range(20_000):
            if heard:
                return "heard"
            await ctx.session.report_progress(number)
        return "alone"

    async def hear(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        heard.append(True)
        return "1"

    async with embedded(lowlevel(flood=flood, hear=hear)) as proxy:
        async with connect(proxy.url) as client, connect(proxy.url) as other:
            async with client.open("tools/call", calls("flood")) as stream:
                await stream.until("notifications/progress")
                assert await call(other, "hear") == "1"
                assert text_of(await stream.answer()) == "heard"


async def test_one_that_is_killed_is_cancelled_and_says_nothing_more() -> None:
    """`core.relay.Transport.kill`: its end is noticed as any other."""
    upstream = FakeUpstream()
    runs = Runs()

    async def wait(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        runs.started += 1
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await ctx.session.report_progress(1)
            runs.over += 1
        return "never"

    launcher = MemoryLauncher(lowlevel(wait=wait), stop_grace=1, max_line=1 << 20)
    async with launcher, launcher.launch(WHO, "test", upstream, OPENING) as relay:
        await opened(relay)
        params = json.dumps(calls("wait")).encode()
        exchange = Exchange("tools/call", params, client_id=b"1", sink=FakeSink())
        relay.request(exchange)
        await until(lambda: runs.started == 1)
        relay._kill("did wrong")  # pyright: ignore[reportPrivateUsage] # what garbage brings about
        await until(lambda: bool(upstream.exits))
    assert runs.over == 1
    assert upstream.notes == []
    assert str(upstream.exits[0]) == "killed, since it did wrong"
    assert exchange.outcome is not None
    assert exchange.outcome.failure is not None


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("served", "settings", "why"),
    [
        (7, {}, "command: a list of words, a server of the SDK, or a function that returns one"),
        (lowlevel(), {"cwd": "/"}, "--cwd: is for a COMMAND; the server runs in this process"),
        (lowlevel(), {"warm": 1}, "--warm: is for a COMMAND"),
        (lowlevel(), {"url": "http://x/"}, "--url: there is a COMMAND too"),
        (lowlevel(), {"header": ("a: b",)}, "--header: is for a running server"),
    ],
)
def test_what_does_not_go_together_is_refused(
    served: Fronted,
    settings: dict[str, Any],
    why: str,
) -> None:
    """DESIGN 11: one line that names the setting."""
    with pytest.raises(ConfigError, match=why.replace("(", "\\(")):
        http_app(served, **settings)

"""Parity rows 1 to 22: making a proxy, its targets, its configuration."""

import json
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urljoin

import anyio
import httpx2
import mcp_types as types
import pytest
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client.session import ClientRequestContext
from mcp.client.session_group import SseServerParameters, StreamableHttpParameters
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel

from sessionproxy import (
    CallNext,
    ConfigError,
    HandlerContext,
    Proxy,
    ProxyClient,
    ProxyError,
    ProxyProvider,
    ProxyTarget,
    Request,
    RequestFailed,
    Result,
    Sessions,
    StatefulProxyClient,
    create_proxy,
    current_request,
    read_configuration,
)
from sessionproxy.backends import Target
from sessionproxy.config import Carrier, Mode
from sessionproxy.core.catalogue import UNAVAILABLE_KEY
from sessionproxy.servers import configuration_from
from tests.rig.embedded import gone, lives, scripted, until
from tests.rig.http import Client as RawClient
from tests.rig.http import connect, http
from tests.rig.proxy import PROGRAM, ROOT, proxy
from tests.rig.sdk import FORM
from tests.rig.upstream import upstream
from tests.servers.everything import build

from .rig import (
    PATIENCE,
    PYTHON,
    TOOLS,
    complete,
    elsewhere,
    facts_of,
    fronted,
    fronts,
    names_of,
    text_of,
    works,
    works_as_everything,
)

State = dict[str, Any]

DEAD: Final = scripted(start=[{"stderr": ["no licence"]}, {"exit": 3}])
"""A server that cannot be had."""

NODE_SERVER: Final = """
const lines = require("node:readline").createInterface({ input: process.stdin });
const results = RESULTS;
lines.on("line", (line) => {
  const { id, method, params } = JSON.parse(line);
  if (id === undefined) return;
  const result = {
    "initialize": {
      protocolVersion: params?.protocolVersion,
      capabilities: { tools: {}, resources: {}, prompts: {} },
      serverInfo: { name: "node", version: "1" },
    },
    "tools/call": { content: [], structuredContent: { version: process.version } },
    "ping": {},
    ...results,
  }[method];
  console.log(JSON.stringify({ jsonrpc: "2.0", id, result }));
});
"""


async def pid_of(client: Client, tool: str = "do") -> int:
    facts = facts_of(await client.call_tool(tool, {}))
    return int(facts["pid"])


async def counted(client: Client, tool: str = "do") -> tuple[int, int]:
    """Return the backend's pid, and its how manyeth call this was."""
    facts = facts_of(await client.call_tool(tool, {}))
    return facts["pid"], facts["count"]


def script(directory: Path) -> Path:
    """A server as a file that ends in `.py`."""
    path = directory / "server.py"
    words = list(complete())
    path.write_text(
        f"import runpy, sys\nsys.argv = {words[3:]!r}\n"
        f"runpy.run_path({words[3]!r}, run_name='__main__')\n"
    )
    return path


# -- targets ---------------------------------------------------------------------------------------


def a_command(directory: Path) -> ProxyTarget:
    return list(complete())


def a_script(directory: Path) -> ProxyTarget:
    return script(directory)


def sdk_parameters(directory: Path) -> ProxyTarget:
    words = complete()
    return StdioServerParameters(command=words[0], args=list(words[1:]))


def a_mapping(directory: Path) -> ProxyTarget:
    words = complete()
    return {"mcpServers": {"default": {"command": words[0], "args": list(words[1:])}}}


def a_file(directory: Path) -> ProxyTarget:
    path = directory / "mcp.json"
    path.write_text(json.dumps(a_mapping(directory)))
    return str(path)


def a_configuration(directory: Path) -> ProxyTarget:
    return read_configuration(str(a_file(directory)))


def one_of_a_configuration(directory: Path) -> ProxyTarget:
    return read_configuration(str(a_file(directory))).servers[0]


def a_client(directory: Path) -> ProxyTarget:
    return ProxyClient(complete(), state_dir=str(directory / "client"))


def a_provider(directory: Path) -> ProxyTarget:
    return ProxyProvider(ProxyClient(complete(), state_dir=str(directory / "client")).new)


def a_proxy(directory: Path) -> ProxyTarget:
    return create_proxy(complete(), state_dir=str(directory / "inner"))


@pytest.mark.parametrize(
    "target",
    [
        a_command,
        a_script,
        sdk_parameters,
        a_mapping,
        a_file,
        a_configuration,
        one_of_a_configuration,
        a_client,
        a_provider,
        a_proxy,
    ],
)
async def test_row_01_one_call_makes_a_proxy_of_any_target(
    target: Callable[[Path], ProxyTarget], tmp_path: Path, state: State
) -> None:
    """PARITY 1: list, call, read and get work from the front, for every kind of target. (URLs are
    rows 3 and 4, servers in process row 7.)"""
    async with fronts(create_proxy(target(tmp_path), **state)) as client:
        with anyio.fail_after(PATIENCE):
            await works(client)


async def test_row_01_settings_are_the_proxys_and_checked_at_once(state: State) -> None:
    """PARITY 1: settings go to the server; how sessions are shared is one word."""
    made = create_proxy(complete(), idle=7, max_sessions=1, **state)
    assert (made.settings.idle, made.settings.max_sessions) == (7, 1)
    with pytest.raises(ConfigError, match="max_sessions"):
        create_proxy(complete(), max_sessions=0)
    with pytest.raises(ConfigError, match="no_such"):
        create_proxy(complete(), no_such=1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ConfigError, match="frontend, request or shared"):
        create_proxy(complete(), sessions="all")  # pyright: ignore[reportArgumentType]
    async with fronted(create_proxy(complete(), max_sessions=1, queue_timeout=0.1, **state)) as url:
        async with Client(url, mode="legacy"):
            with pytest.raises(Exception, match=r"503|TaskGroup|limit|place"):
                async with Client(url, mode="legacy"):
                    pass


async def test_row_02_what_was_given_to_as_proxy_is_given_to_create_proxy(state: State) -> None:
    """PARITY 2: a client, or anything that a client takes; the name is the proxy's own."""
    words = complete()
    for target in (words, ProxyClient(words, **state)):
        assert create_proxy(target, name="mine", **state).name == "mine"
    made = create_proxy(words, name="mine", **state)

    @made.tool
    def local() -> str:
        return "here"

    async with fronts(made) as client:
        assert client.server_info is not None
        assert client.server_info.name == "mine"
        assert await names_of(client) == ["local", "do", "undo"]
        assert text_of(await client.call_tool("local", {})) == "here"


async def test_row_03_a_url_is_spoken_to_by_streamable_http(state: State) -> None:
    """PARITY 3: `http(s)://…/mcp`, listed and called."""
    async with elsewhere("--http", "0") as url:
        assert url.endswith("/mcp")
        for target in (url, StreamableHttpParameters(url=url)):
            async with fronts(create_proxy(target, **state)) as client:
                await works_as_everything(client)


async def test_row_04_a_url_with_a_segment_sse_is_spoken_to_by_http_with_sse(state: State) -> None:
    """PARITY 4: the older transport, so the handshake era; a modern client is bridged to it."""
    async with elsewhere("--sse", "0") as url:
        assert url.endswith("/sse")
        made = create_proxy(url, **state)
        async with fronted(made) as front:
            for mode in ("legacy", "2026-07-28"):
                async with Client(front, mode=mode) as client:
                    await works_as_everything(client)
        async with fronts(create_proxy(SseServerParameters(url=url), **state)) as client:
            told = json.loads(text_of(await client.call_tool("test_client_info", {})))
            assert told["protocolVersion"] < "2026"


@pytest.mark.parametrize(
    ("url", "is_sse"),
    [
        ("http://example.com/sse", True),
        ("http://example.com/sse/", True),
        ("http://example.com/sse?key=1", True),
        ("http://example.com/a/sse/b.json", True),
        ("HTTPS://example.com/sse&x", True),
        ("http://example.com/sse#part", True),
        ("http://example.com/mcp#/sse", False),
        ("http://example.com/mcp", False),
        ("http://example.com/sses", False),
        ("http://example.com/mcp?next=/sse", False),
        ("http://sse/mcp", False),
        ("http://sse.example.com/mcp", False),
    ],
)
def test_row_04_only_a_segment_of_the_path_counts(url: str, is_sse: bool) -> None:
    """PARITY 4: `/sse` followed by `/`, `?`, `&` or the end; in a configuration too."""
    for target in (url, {"mcpServers": {"a": {"url": url}}}):
        source = create_proxy(target).plan().servers[0].source
        assert isinstance(source, Target)
        assert (source.carrier is Carrier.SSE) is is_sse


async def test_row_05_a_script_runs_with_the_python_of_the_proxy(
    tmp_path: Path, state: State
) -> None:
    """PARITY 5: `.py`; with a working directory of its own too; with arguments, as a command."""
    path = script(tmp_path)
    relative = os.path.relpath(path)  # noqa: ASYNC240 - no file is touched
    async with fronts(create_proxy(relative, cwd="{session.dir}", **state)) as client:
        await works(client)
    async with fronts(create_proxy([sys.executable, str(path)], **state)) as client:
        await works(client)


@pytest.mark.node
async def test_row_05_a_script_in_javascript_runs_with_node(tmp_path: Path, state: State) -> None:
    """PARITY 5: `.js`."""
    from .rig import RESULTS

    path = tmp_path / "server.js"
    path.write_text(NODE_SERVER.replace("RESULTS", json.dumps(RESULTS)))
    async with fronts(create_proxy(path, **state)) as client:
        await works(client)
        told = facts_of(await client.call_tool("do", {}))
        assert str(told["version"]).startswith("v")


@pytest.mark.parametrize("path", ["server.rb", "server", "server.mjs"])
def test_row_05_another_suffix_is_an_error_that_says_what_is_expected(path: str) -> None:
    """PARITY 5."""
    with pytest.raises(ConfigError, match=r"expected a URL, or a file that ends in \.py, \.js"):
        create_proxy(path)


def test_row_05_a_script_that_is_not_there_is_an_error() -> None:
    """PARITY 5: said at once, not by the interpreter."""
    with pytest.raises(ConfigError, match=r"no-such\.py.*no such file"):
        create_proxy("no-such.py")


async def test_row_06_command_arguments_environment_and_directory_reach_the_backend(
    tmp_path: Path, state: State
) -> None:
    """PARITY 6: what the reference's Stdio, Uv, Uvx and Npx transports are."""
    words = complete(**{"x-own": "argument"})
    target = StdioServerParameters(
        command=words[0], args=list(words[1:]), env={"OWN": "of mine"}, cwd=str(tmp_path)
    )
    for made in (
        create_proxy(target, **state),
        create_proxy(words, env=["OWN=of mine"], cwd=str(tmp_path), **state),
    ):
        async with fronts(made) as client:
            steps = {"steps": [{"tells": "about"}]}
            told = facts_of(await client.call_tool("do", steps))
            about = told["about"]
            assert json.loads(about["argv"][0])["x-own"] == "argument"
            assert about["env"]["OWN"] == "of mine"
            assert Path(about["cwd"]).name == tmp_path.name


async def test_row_06_the_sdks_parameters_of_a_url_bring_their_headers(state: State) -> None:
    """PARITY 6: HTTP, as an object; what it says goes before what its URL says."""
    async with upstream() as server:
        target = StreamableHttpParameters(url=server.url, headers={"X-Own": "mine"})
        async with fronts(create_proxy(target, **state)) as client:
            assert await names_of(client) == ["do"]
        assert {asked.headers.get("x-own") for asked in server.asked} == {"mine"}


class StdioTransport:
    """A transport of FastMCP's, by its shape."""

    def __init__(self, command: str, args: list[str]) -> None:
        self.command = command
        self.args = args
        self.env: dict[str, str] | None = None
        self.cwd: str | None = None
        self.keep_alive = True

    async def connect_session(self) -> None: ...


class FastMCPTransport:
    """That for a server in process."""

    def __init__(self, server: object) -> None:
        self.server = server

    async def connect_session(self) -> None: ...


class ConfigTransport:
    """One that says nothing that could be taken over."""

    async def connect_session(self) -> None: ...


async def test_row_06_transports_of_fastmcp_are_taken_by_their_shape(state: State) -> None:
    """PARITY 6: any `ClientTransport` that says what it connects to; not a dependency."""
    words = complete()
    async with fronts(create_proxy(StdioTransport(words[0], list(words[1:])), **state)) as client:
        await works(client)
    target: Any = FastMCPTransport(in_process())
    async with fronts(create_proxy(target, **state)) as client:
        assert text_of(await client.call_tool("hello", {"name": "Ann"})) == "Hello, Ann"


def test_row_06_what_connects_for_itself_is_refused_in_a_line() -> None:
    """PARITY 6: a pair of streams is one connection, and every session needs one of its own."""
    targets: list[Any] = [ConfigTransport(), Client("http://example.com/mcp")]
    parameters = StdioServerParameters(command=PYTHON)
    targets.append(stdio_client(parameters))
    for target in targets:
        with pytest.raises(ConfigError, match="connects for itself; give what it connects to"):
            create_proxy(target)


# -- servers in process ----------------------------------------------------------------------------


class Answer(BaseModel):
    name: str


def in_process() -> MCPServer:
    """A server that greets, asks, and knows a note and a prompt."""
    server = MCPServer("in process", instructions="Greet.")

    @server.tool()
    def hello(name: str) -> str:
        return f"Hello, {name}"

    @server.tool()
    async def ask(ctx: Context) -> str:
        answer = await ctx.elicit("Who?", Answer)
        return f"{answer.action}: {answer.data.name if answer.action == 'accept' else ''}"

    @server.resource("note://one")
    def note() -> str:
        return "the first"

    @server.prompt()
    def greet() -> str:
        return "Greet me."

    assert all(map(callable, (hello, ask, note, greet)))
    return server


async def test_row_07_a_server_in_process_is_proxied_without_an_echo(state: State) -> None:
    """PARITY 7: list and call; what it asks comes to the one in front, once (row 49)."""
    asked: list[str] = []

    async def elicited(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"name": "Ann"})

    async with fronts(create_proxy(in_process(), **state), elicitation_callback=elicited) as client:
        assert client.instructions == "Greet."
        assert await names_of(client) == ["hello", "ask"]
        assert text_of(await client.call_tool("hello", {"name": "Ann"})) == "Hello, Ann"
        assert text_of(await client.call_tool("ask", {})) == "accept: Ann"
        assert asked == ["Who?"]
        read = await client.read_resource("note://one")
        assert isinstance(read.contents[0], types.TextResourceContents)
        assert (await client.get_prompt("greet")).messages


async def made_later() -> MCPServer:
    await anyio.lowlevel.checkpoint()
    return in_process()


@pytest.mark.parametrize("target", [in_process, made_later, lambda: build("both")])
async def test_row_07_or_what_returns_one(target: Callable[[], Any], state: State) -> None:
    """PARITY 7: a server object of the SDK's, of either kind, or a function; at once or awaited."""
    async with fronts(create_proxy(target, **state)) as client:
        assert await names_of(client)


class LikeFastMCP:
    """FastMCP 4's server by its shape: built around the SDK's, with one lifespan for all runs, that
    the first who enters it would take away again (4.0.11, `server/mixins/lifespan.py`)."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.value: str | None = None
        self.sessions = 0
        self._mcp_server = Server[None](
            "fast", on_list_tools=self._list, on_call_tool=self._call, lifespan=self._proxied
        )

    async def _list(self, ctx: object, params: object) -> types.ListToolsResult:
        tool = types.Tool(name="value", input_schema={"type": "object"})
        return types.ListToolsResult(tools=[tool])

    async def _call(self, ctx: object, params: object) -> types.CallToolResult:
        said = types.TextContent(type="text", text=str(self.value))
        return types.CallToolResult(content=[said])

    @asynccontextmanager
    async def _proxied(self, server: object) -> AsyncGenerator[None]:
        async with self._lifespan_manager():
            self.sessions += 1
            try:
                yield
            finally:
                self.sessions -= 1

    def _lifespan_manager(self) -> "Entered":
        return Entered(self)

    def run(self) -> None:
        raise AssertionError("it would serve stdin")


class Entered:
    """One who is within the lifespan."""

    def __init__(self, server: LikeFastMCP) -> None:
        self._server = server
        self._first = False

    async def __aenter__(self) -> None:
        server = self._server
        self._first = not server.runs or server.runs[-1] == "out"
        if self._first:
            server.runs.append("in")
            server.value = f"value {server.runs.count('in')}"

    async def __aexit__(self, *why: object) -> None:
        if self._first:
            self._server.runs.append("out")
            self._server.value = None


async def test_row_07_servers_of_fastmcp_have_one_lifespan_for_all_sessions(state: State) -> None:
    """PARITY 7, issue 5: FastMCP 4 servers are built on the SDK's; the end of the first session
    takes nothing away from the second."""
    server = LikeFastMCP()
    made = create_proxy(server, **state)  # pyright: ignore[reportArgumentType] # by its shape
    call: dict[str, Any] = {"name": "value", "arguments": {}}
    async with fronted(made) as url:
        async with connect(url) as first, connect(url) as second:
            for client in (first, second):
                told = await client.request("tools/call", call)
                assert told["result"]["content"][0]["text"] == "value 1"
            await first.delete()
            await until(lambda: server.sessions == 1)
            told = await second.request("tools/call", call)
            assert told["result"]["content"][0]["text"] == "value 1"
            await second.delete()
            await until(lambda: server.sessions == 0)
        async with Client(url, mode="legacy") as third:
            assert text_of(await third.call_tool("value", {})) == "value 1"
        assert server.runs == ["in"]
    assert server.runs == ["in", "out"]


async def test_row_07_what_a_function_returns_has_its_lifespan_while_it_is_used(
    state: State,
) -> None:
    """PARITY 7: also where the function returns the same server again."""
    server = LikeFastMCP()
    made = create_proxy(lambda: server, **state)  # pyright: ignore[reportArgumentType]
    async with fronted(made) as url:
        async with Client(url, mode="legacy") as client:
            assert text_of(await client.call_tool("value", {})) == "value 1"
        await until(lambda: server.runs == ["in", "out"])
        async with Client(url, mode="legacy") as client:
            assert text_of(await client.call_tool("value", {})) == "value 2"


async def test_row_07_a_lifespan_that_fails_fails_the_session_and_not_the_next(
    state: State,
) -> None:
    """PARITY 7: the reason is told; the next session tries again."""
    server = LikeFastMCP()
    good = server._lifespan_manager  # pyright: ignore[reportPrivateUsage]

    def fails() -> Entered:
        server._lifespan_manager = good  # pyright: ignore[reportPrivateUsage]
        raise RuntimeError("no database")

    server._lifespan_manager = fails  # pyright: ignore[reportPrivateUsage]
    made = create_proxy(server, **state)  # pyright: ignore[reportArgumentType]
    async with made:
        with pytest.raises(ProxyError, match="raised RuntimeError"):
            await made.list_tools()
        assert [tool.name for tool in await made.list_tools()] == ["value"]


# -- clients as targets ----------------------------------------------------------------------------


async def test_row_08_a_disconnected_client_keeps_its_handlers_and_is_not_changed(
    state: State,
) -> None:
    """PARITY 8: its own handler answers; each session has a backend of its own; it stays as it
    was."""
    asked: list[str] = []

    async def own(context: HandlerContext, params: types.ElicitRequestParams) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"name": "Bob"})

    given = ProxyClient(complete(), elicitation_handler=own, **state)
    before = dict(vars(given))
    async with fronted(create_proxy(given, **state)) as url:
        async with Client(url, mode="legacy") as one, Client(url, mode="legacy") as two:
            for client in (one, two):
                told = await client.call_tool("do", {"steps": [{"ask": FORM}]})
                assert not told.is_error
            assert await pid_of(one) != await pid_of(two)
            assert not given.is_connected
    assert asked == ["Who?", "Who?"]
    assert vars(given) == before
    async with given:  # and is good for use
        assert (await given.call_tool("do")).structured_content is not None


async def test_row_09_a_connected_client_is_shared_and_a_warning_says_so(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    """PARITY 9: one backend session for all clients; never without being asked for."""
    caplog.set_level(logging.WARNING, "sessionproxy")
    async with ProxyClient(complete(), **state) as given:
        async with fronted(create_proxy(given, **state)) as url:
            async with Client(url, mode="legacy") as one, Client(url, mode="legacy") as two:
                for client in (one, two):
                    await names_of(client)  # the SDK's client lists before its first call
                pid, first = await counted(one)
                assert await counted(two) == (pid, first + 1)
                assert await counted(one) == (pid, first + 2)
        facts = facts_of(await given.call_tool("do"))
        assert facts["pid"] == pid, "the client and its backend outlive the proxy"
        assert lives(pid)
    await gone(pid)
    assert "all sessions share the one session of" in caplog.text


async def test_row_09_sessions_shared_is_one_backend_for_all(state: State) -> None:
    """PARITY 9: the policy by its name; the default is one for each."""
    policies: list[tuple[Sessions, bool]] = [("shared", True), ("frontend", False)]
    for sessions, together in policies:
        made = create_proxy(complete(), sessions=sessions, **state)
        async with fronted(made) as url:
            async with Client(url, mode="legacy") as one, Client(url, mode="legacy") as two:
                assert (await pid_of(one) == await pid_of(two)) is together


# -- configuration ---------------------------------------------------------------------------------


def server_of(words: tuple[str, ...], **more: object) -> dict[str, object]:
    return {"command": words[0], "args": list(words[1:]), **more}


@pytest.mark.parametrize("is_bare", [False, True], ids=["mcpServers", "bare"])
async def test_row_10_the_one_server_of_a_configuration_is_direct(
    is_bare: bool, state: State, tmp_path: Path
) -> None:
    """PARITY 10: no prefix; a bare mapping of servers is one too; what other programs keep in
    their file (Claude Desktop) is let be."""
    servers = {"notes": server_of(complete(), type="stdio")}
    written = servers if is_bare else {"mcpServers": servers, "globalShortcut": "Ctrl+Space"}
    path = tmp_path / "claude_desktop_config.json"
    path.write_text(json.dumps(written))
    for target in (written, path):
        async with fronts(create_proxy(target, **state)) as client:
            await works(client)


def configured(directory: Path, **more: object) -> dict[str, Any]:
    """A configuration that says of the proxy whom it serves, and how."""
    tokens = directory / "tokens"
    tokens.write_text(f"ann {sha256(b'secret').hexdigest()}\n")
    tokens.chmod(0o600)
    own = {"idle": 7, "max-sessions": 3, "call_timeout": 9, "token_file": str(tokens), **more}
    return {"mcpServers": {"notes": server_of(complete())}, "sessionproxy": own}


async def test_row_10_what_a_configuration_says_of_the_proxy_counts(
    state: State, tmp_path: Path
) -> None:
    """PARITY 10: as `--config` has it, on disk or not; what is said in Python wins. Its users are
    the only ones who are let in."""
    written = configured(tmp_path, mode="shared")
    path = tmp_path / "servers.json"
    path.write_text(json.dumps(written))
    for target in (written, path, read_configuration(path)):
        settings = create_proxy(target, max_sessions=5, **state).settings
        assert (settings.idle, settings.max_sessions, settings.mode) == (7, 5, Mode.SHARED)
    assert create_proxy(path, sessions="request").settings.mode is Mode.REQUEST
    async with fronted(create_proxy(path, **state)) as url, http() as pool:
        assert (await RawClient(pool, url).initialize()).status_code == 401
        ann = RawClient(pool, url, headers={"authorization": "Bearer secret"})
        assert (await ann.initialize()).status_code == 200


def test_row_10_a_wrong_setting_of_a_configuration_is_named_where_it_stands(
    tmp_path: Path,
) -> None:
    """PARITY 10: not as if it were an argument."""
    for make in (create_proxy, ProxyClient):
        with pytest.raises(ConfigError, match=r"^configuration: sessionproxy.idle: "):
            make(configured(tmp_path, idle=-1))
        with pytest.raises(ConfigError, match=r"sessionproxy.config: this is the file"):
            make(configured(tmp_path, config="x.json"))


def test_row_10_a_client_heeds_what_a_configuration_says_of_servers(tmp_path: Path) -> None:
    """PARITY 10: it says itself how long it needs them, and nobody connects to it."""
    settings = ProxyClient(configured(tmp_path)).settings
    assert (settings.call_timeout, settings.idle, settings.token_file) == (9, 0, None)
    assert ProxyClient(configured(tmp_path), call_timeout=8, idle=6).settings.call_timeout == 8


async def test_row_10_a_url_in_a_configuration(state: State) -> None:
    """PARITY 10: `{"mcpServers": {"default": {url, transport}}}`."""
    async with upstream() as server:
        target = {"mcpServers": {"default": {"url": server.url, "transport": "http"}}}
        async with fronts(create_proxy(target, **state)) as client:
            assert await names_of(client) == ["do"]


async def test_row_11_each_server_starts_once_for_each_session_and_keeps_its_state(
    state: State, tmp_path: Path
) -> None:
    """PARITY 11: names are prefixes; a start per server and session; counters go on; all are gone
    with their session."""
    ledger = tmp_path / "ledger"
    env = {"TESTS_LEDGER": str(ledger)}
    target = {"mcpServers": {name: server_of(complete(), env=env) for name in ("a", "b")}}
    async with fronted(create_proxy(target, **state)) as url:
        async with Client(url, mode="legacy") as one, Client(url, mode="legacy") as two:
            for client in (one, two):
                assert await names_of(client) == ["a_do", "a_undo", "b_do", "b_undo"]
            seen = [
                [await counted(client, tool) for _ in range(3)]
                for client in (one, two)
                for tool in ("a_do", "b_do")
            ]
            assert len({pid for calls in seen for pid, _ in calls}) == 4
            for calls in seen:
                (pid, first), *others = calls
                assert others == [(pid, first + 1), (pid, first + 2)]
        started = [line for line in ledger.read_text().splitlines() if '"start"' in line]
        assert len(started) == 4
        await gone(*(calls[0][0] for calls in seen))


async def test_row_12_names_are_prefixed_byte_for_byte(state: State) -> None:
    """PARITY 12: `{p}_{name}`, `proto://{p}/path`, in all four lists; calls go by the server's own
    name."""
    on: dict[str, Any] = {
        "tools/list": {"tools": [{"name": "Get_it", "inputSchema": {"type": "object"}}]},
        "prompts/list": {"prompts": [{"name": "a_b"}]},
        "resources/list": {
            "resources": [
                {"uri": "data://config", "name": "1"},
                {"uri": "file:///etc/hosts", "name": "2"},
                {"uri": "urn:isbn:1", "name": "3"},
            ]
        },
        "resources/templates/list": {
            "resourceTemplates": [{"uriTemplate": "weather://{city}/now{?unit}", "name": "w"}]
        },
    }
    first = scripted(on={name: [{"replies": {"result": on[name]}}] for name in on})
    target = {"w_x": server_of(first), "other": server_of(complete())}
    async with fronts(create_proxy(target, **state)) as client:
        assert await names_of(client) == ["w_x_Get_it", "other_do", "other_undo"]
        prompts = (await client.list_prompts()).prompts
        assert [prompt.name for prompt in prompts] == ["w_x_a_b", "other_greet"]
        resources = (await client.list_resources()).resources
        assert [str(each.uri) for each in resources] == [
            "data://w_x/config",
            "file://w_x//etc/hosts",
            "urn:isbn:1",
            "note://other/one",
        ]
        templates = (await client.list_resource_templates()).resource_templates
        assert [each.uri_template for each in templates] == [
            "weather://w_x/{city}/now{?unit}",
            "note://other/{name}/{?page}",
        ]
        steps = {"steps": [{"tells": "seen"}]}
        told = facts_of(await client.call_tool("w_x_Get_it", steps))
        called = [each for each in told["seen"] if each.get("method") == "tools/call"]
        assert [each["params"]["name"] for each in called] == ["Get_it"]
        read = await client.read_resource("note://other/one")
        assert isinstance(read.contents[0], types.TextResourceContents)
        assert (read.contents[0].uri, read.contents[0].text) == ("note://other/one", "the first")
        assert (await client.get_prompt("other_greet")).messages


async def test_row_13_the_others_stay_up_and_the_status_names_the_one_that_is_down(
    state: State, tmp_path: Path
) -> None:
    """PARITY 13: a backend is killed and cannot be started again."""
    on = {"tools/list": [{"replies": {"result": {"tools": TOOLS}}}]}
    lives_ = scripted(lives=[{"on": on}, {"start": [{"stderr": ["no disk"]}, {"exit": 3}]}])
    env = {"TESTS_LEDGER": str(tmp_path / "ledger")}
    target = {"good": server_of(complete()), "bad": server_of(lives_, env=env)}
    async with fronted(create_proxy(target, **state)) as url:
        async with Client(url, mode="legacy") as client:
            pid = await pid_of(client, "bad_do")
            os.kill(pid, signal.SIGKILL)
            await gone(pid)
            failed = await client.call_tool("bad_do", {})
            assert failed.is_error
            listed = await client.list_tools()
            assert [tool.name for tool in listed.tools] == ["good_do", "good_undo"]
            assert "bad" in (listed.meta or {})[UNAVAILABLE_KEY]
            assert "exit status 3" in (listed.meta or {})[UNAVAILABLE_KEY]["bad"]
            assert await pid_of(client, "good_do")
        async with httpx2.AsyncClient(trust_env=False) as http:
            status = (await http.get(url.replace("/mcp", "/readyz"))).json()
        assert "down" in json.dumps(status)


async def test_row_14_tools_are_renamed_hidden_and_filtered_by_the_configuration(
    state: State,
) -> None:
    """PARITY 14: allow, deny, rename and tags, per server; what is hidden cannot be called."""
    tools = [
        {"name": name, "inputSchema": {"type": "object"}, "_meta": {"fastmcp": {"tags": tags}}}
        for name, tags in (("one", ["safe"]), ("two", ["safe", "slow"]), ("three", []))
    ]
    words = scripted(on={"tools/list": [{"replies": {"result": {"tools": tools}}}]})
    target = {
        "a": server_of(words, tools={"one": {"name": "uno", "description": "Eins"}}),
        "b": server_of(words, include_tags=["safe"], exclude_tags=["slow"]),
        "c": server_of(words, allow_tools=["t*"], deny_tools=["two"]),
    }
    async with fronts(create_proxy(target, **state)) as client:
        listed = (await client.list_tools()).tools
        names = [tool.name for tool in listed]
        assert names == ["a_uno", "a_two", "a_three", "b_one", "c_three"]
        assert listed[0].description == "Eins"
        steps = {"steps": [{"tells": "seen"}]}
        told = facts_of(await client.call_tool("a_uno", steps))
        assert told["seen"][-1]["params"]["name"] == "one"
        for hidden in ("a_one", "b_two", "b_three", "c_two", "c_one"):
            with pytest.raises(MCPError):
                await client.call_tool(hidden, {})


async def test_row_15_every_field_of_a_server_has_an_effect(state: State, tmp_path: Path) -> None:
    """PARITY 15: env, cwd, timeout (milliseconds); headers and auth; what nobody here knows is
    there to be asked for."""
    async with upstream() as server:
        target: dict[str, Any] = {
            "here": server_of(complete(), env={"OWN": "1"}, cwd=str(tmp_path), timeout=1000),
            "there": {"url": server.url, "headers": {"X-Own": "2"}, "auth": "s3cret"},
        }
        async with fronts(create_proxy(target, **state)) as client:
            steps = {"steps": [{"tells": "about"}]}
            told = facts_of(await client.call_tool("here_do", steps))
            assert told["about"]["env"]["OWN"] == "1"
            assert Path(told["about"]["cwd"]).name == tmp_path.name
            late = await client.call_tool("here_do", {"steps": [{"wait": "ever"}]})
            assert late.is_error
            assert "1 s" in str(late.content)
            await client.call_tool("there_do", {})
        called = server.all("tools/call")[0].headers
        assert (called["x-own"], called["authorization"]) == ("2", "Bearer s3cret")
    (read,) = configuration_from(
        {"a": {"command": "x", "description": "What", "icon": "i.png", "x-own": [1]}}
    ).servers
    assert (read.description, read.icon, read.extra) == ("What", "i.png", {"x-own": [1]})


async def test_row_15_description_and_icon_are_told_to_who_asks(state: State) -> None:
    """PARITY 15: people find both in `/readyz`; models find the description among instructions."""
    known = server_of(complete(), description="All there is.", icon="i.png")
    about = {"description": "All there is.", "icon": "i.png"}
    async with httpx2.AsyncClient() as browser:
        async with fronted(create_proxy({"a": known, "b": server_of(complete())}, **state)) as url:
            ready = (await browser.get(urljoin(url, "/readyz"))).json()["servers"]
            assert ready == {"a": {**ready["b"], **about}, "b": ready["b"]}
            assert not about.keys() & ready["b"].keys()
            async with Client(url, mode="legacy") as client:
                assert client.instructions == "# a\n\nAll there is."
                await client.list_tools()
            async with Client(url, mode="legacy") as client:
                told = ("# a", "All there is.", "Do as you are told.", "# b", "Do as you are told.")
                assert client.instructions == "\n\n".join(told)
        async with fronted(create_proxy({"a": known}, **state)) as url:
            ready = (await browser.get(urljoin(url, "/readyz"))).json()
            assert {name: ready[name] for name in about} == about


@pytest.mark.parametrize(
    "field", [{"keep_alive": True}, {"sse_read_timeout": 5}, {"auth": "oauth"}]
)
def test_row_15_a_field_without_an_effect_is_rejected(field: dict[str, object]) -> None:
    """PARITY 15: in one line that says what to do instead."""
    with pytest.raises(ConfigError, match=rf"mcpServers\.a\.{next(iter(field))}: "):
        create_proxy({"mcpServers": {"a": {"url": "http://example.com/mcp", **field}}})


# -- factories and providers -----------------------------------------------------------------------


async def test_row_16_a_factory_is_called_for_every_operation_and_says_who_shares(
    state: State,
) -> None:
    """PARITY 16: no detection; here a backend for each key that the requests name."""
    called: list[str] = []
    clients: dict[bool, ProxyClient] = {}

    def factory() -> ProxyClient:
        request = current_request.get()
        assert request is not None
        assert (request.owner, request.server) == ("local", "default")
        called.append(request.method)
        return clients[request.params.get("arguments") == {"echo": "odd"}]

    async with ProxyClient(complete(), **state) as even, ProxyClient(complete(), **state) as odd:
        clients.update({False: even, True: odd})
        async with fronts(create_proxy(ProxyProvider(factory), **state)) as client:
            await names_of(client)
            del called[:]
            told = [
                facts_of(await client.call_tool("do", {"echo": key}))
                for key in ("odd", "even", "odd")
            ]
        assert called == ["tools/call"] * 3
    assert told[0]["pid"] == told[2]["pid"] != told[1]["pid"]
    assert told[2]["count"] == told[0]["count"] + 1


async def test_row_16_a_client_that_is_made_anew_is_a_backend_for_each_request(
    state: State,
) -> None:
    """PARITY 16: as `lambda: ProxyClient(…)` does; and the backend is gone with the request."""
    made = create_proxy(ProxyProvider(lambda: ProxyClient(complete(), **state)), **state)
    async with fronts(made) as client:
        await works(client)
        pids = [await pid_of(client) for _ in range(2)]
        assert pids[0] != pids[1]
        await gone(*pids)


async def test_row_17_a_factory_may_be_a_coroutine_function(state: State) -> None:
    """PARITY 17."""
    stateful = StatefulProxyClient(complete(), **state)

    async def factory() -> ProxyClient:
        await anyio.lowlevel.checkpoint()
        return stateful.new_stateful()

    async with fronted(create_proxy(ProxyProvider(factory), **state)) as url:
        async with Client(url, mode="legacy") as one, Client(url, mode="legacy") as two:
            await names_of(one)  # the SDK's client lists before its first call
            pid, first = await counted(one)
            assert await counted(one) == (pid, first + 1)
            assert await pid_of(two) != pid
        await gone(pid)


async def test_row_18_a_provider_stands_beside_local_components_under_a_namespace(
    state: State,
) -> None:
    """PARITY 18: `add_provider(…, namespace=)`, and without one."""
    made = create_proxy(in_process(), **state)
    client_of = StatefulProxyClient(complete(), **state).new_stateful
    made.add_provider(ProxyProvider(client_of, cache_ttl=0), namespace="far")
    made.add_provider(ProxyProvider(client_of))

    @made.tool
    def local() -> str:
        return "here"

    async with fronts(made) as client:
        names = await names_of(client)
        assert names == ["local", "hello", "ask", "far_do", "far_undo", "do", "undo"]
        resources = [str(each.uri) for each in (await client.list_resources()).resources]
        assert resources == ["note://one", "note://far/one"], "the first of two is listed once"
        assert text_of(await client.call_tool("local", {})) == "here"
        assert await pid_of(client, "far_do")
        assert await pid_of(client, "do")


async def test_row_19_a_hook_acts_before_and_after_every_forwarded_request(state: State) -> None:
    """PARITY 19: what a subclass would do; it may change, answer and refuse."""
    seen: list[tuple[str, str | None]] = []

    async def hook(request: Request, call_next: CallNext) -> Result:
        if request.method != "tools/call":
            return await call_next(request)
        arguments: dict[str, Any] = dict(request.params["arguments"])
        if arguments.get("forbidden"):
            raise RequestFailed(-32001, "not here", {"why": "forbidden"})
        if arguments.get("cached"):
            return Result.of({"content": [{"type": "text", "text": "from the hook"}]})
        seen.append(("before", request.name))
        changed = {**request.params, "arguments": {**arguments, "echo": "changed"}}
        result = await call_next(request.with_params(changed))
        seen.append(("after", request.name))
        value = dict(result.value)
        return Result.of({**value, "_meta": {"x-hook": value["structuredContent"]["echo"]}})

    made = create_proxy(complete(), **state)
    made.add_hook(hook)
    async with fronts(made) as client:
        told = await client.call_tool("do", {"echo": "as sent"})
        assert (told.meta or {})["x-hook"] == "changed"
        assert seen == [("before", "do"), ("after", "do")]
        assert text_of(await client.call_tool("do", {"cached": True})) == "from the hook"
        with pytest.raises(MCPError) as refused:
            await client.call_tool("do", {"forbidden": True})
        assert (refused.value.error.code, refused.value.error.message) == (-32001, "not here")
        assert refused.value.error.data == {"why": "forbidden"}
        assert len(seen) == 2


# -- what cannot be had ----------------------------------------------------------------------------


async def test_row_20_nothing_is_contacted_before_it_is_needed(state: State) -> None:
    """PARITY 20: a proxy of a broken backend serves; the first use says what is wrong."""
    async with upstream() as server:
        for target in (server.url, DEAD):
            async with fronted(create_proxy(target, **state)) as url:
                async with httpx2.AsyncClient(trust_env=False) as http:
                    assert (await http.get(url.replace("/mcp", "/healthz"))).status_code == 200
        assert server.connections == 0
    async with fronted(create_proxy(DEAD, **state)) as url:
        with pytest.raises(Exception, match=r"TaskGroup|status 3|no licence") as failed:
            async with Client(url, mode="legacy"):
                pass
        assert "no licence" in told_by(failed.value)


def told_by(error: BaseException) -> str:
    """Return the text of an error, out of the groups that it came in."""
    if isinstance(error, MCPError):
        return f"{error} {error.error.data}"
    if isinstance(error, BaseExceptionGroup):
        several = cast("BaseExceptionGroup[BaseException]", error)
        return " ".join(map(told_by, several.exceptions))
    return str(error)


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_row_21_a_dead_backend_is_an_error_and_never_an_empty_list(
    mode: str, state: State
) -> None:
    """PARITY 21: alone, as a provider, and as the only server of a configuration's two."""
    made: list[Proxy] = [
        create_proxy(DEAD, **state),
        create_proxy(ProxyProvider(ProxyClient(DEAD, **state).new), **state),
        create_proxy({"a": server_of(DEAD), "b": server_of(DEAD)}, **state),
    ]
    for each in made:
        async with fronted(each) as url:
            with pytest.raises(Exception, match=r".*") as failed:
                async with Client(url, mode=mode) as client:
                    await client.list_tools()
            assert "exit" in told_by(failed.value) or "status" in told_by(failed.value)


# -- the command line ------------------------------------------------------------------------------


async def test_row_22_one_command_serves_a_configuration_over_http(tmp_path: Path) -> None:
    """PARITY 22: `run mcp.json`, as `run --config mcp.json`; it keeps state."""
    path = tmp_path / "mcp.json"
    servers = {"a": server_of(complete()), "b": server_of(complete())}
    path.write_text(json.dumps({"mcpServers": servers}))
    async with proxy((str(path),), "--host", "127.0.0.1") as running:
        async with Client(running.url, mode="legacy") as client:
            assert await names_of(client) == ["a_do", "a_undo", "b_do", "b_undo"]
            pid, first = await counted(client, "b_do")
            assert await counted(client, "b_do") == (pid, first + 1)


async def test_row_22_one_command_serves_a_url_over_http_and_over_stdio() -> None:
    """PARITY 22: `run URL`; `stdio URL` is what `fastmcp-remote URL` is, `--header` included."""
    async with upstream() as server:
        async with proxy((server.url,), "--header", "X-Own=mine") as running:
            async with Client(running.url, mode="legacy") as client:
                assert await names_of(client) == ["do"]
            words = [*PROGRAM[1:], "stdio", "--state-dir", str(running.state_dir.parent / "t")]
            started = StdioServerParameters(
                command=PROGRAM[0], args=[*words, "--header", "X-Own=mine", server.url], cwd=ROOT
            )
            async with Client(stdio_client(started), mode="legacy") as client:
                assert await names_of(client) == ["do"]
        assert {asked.headers.get("x-own") for asked in server.asked} == {"mine"}

"""Every way for clients to reach the proxy, with every way for the proxy to reach a server.

One test for all cells: three transports in front and two eras of clients, four transports behind
and two eras of servers, all with the Python SDK's own client and server, unmodified, in processes
and over pipes and sockets of their own. In front and behind, HTTP with SSE belongs to the handshake
era alone: it is the transport of 2024-11-05, and 2026-07-28 has none such
(basic/transports/streamable-http#http+sse-transport-2024-11-05). A server in the proxy's process is
one of a program that embeds both.

Servers elsewhere, and proxies that listen, are started once for all cells that need them; in each
cell a client has a session of its own, and leaves nothing there that another would look at.
"""

import secrets
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import mcp_types as types
import pytest
from anyio.from_thread import start_blocking_portal
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp import Client, StdioServerParameters
from mcp.client import Transport
from mcp.client.session import ClientRequestContext
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client

from tests.rig.proxy import EVERYTHING, PROGRAM, PYTHON, ROOT, Proxy, proxy
from tests.servers.everything import TOOLS

pytestmark = [
    # 2026-07-28 has dropped methods that servers and clients of the handshake era live by.
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

PATIENCE: Final = 30.0
"""Seconds for a whole cell, the start of its processes included, on a busy machine too."""

HANDSHAKE, MODERN = "handshake", "modern"
MODES: Final = {HANDSHAKE: "legacy", MODERN: "2026-07-28"}
"""What a client is told: of either era that one, and no other."""
VERSIONS: Final = {HANDSHAKE: "2025-11-25", MODERN: "2026-07-28"}

STDIO, HTTP, SSE, IN_PROCESS = "stdio", "http", "sse", "in-process"
EMBEDDING: Final = (PYTHON, "-m", "tests.servers.embedding")


class Cell(NamedTuple):
    front: str
    client: str
    """Its era."""
    back: str
    server: str
    """Its era."""


def ends(*transports: str) -> list[tuple[str, str]]:
    """Return the transports with the eras that each can carry."""
    eras = dict.fromkeys(transports, (HANDSHAKE, MODERN)) | {SSE: (HANDSHAKE,)}
    return [(transport, era) for transport in transports for era in eras[transport]]


CELLS: Final = [
    Cell(*front, *back)
    for back in ends(STDIO, HTTP, SSE, IN_PROCESS)
    for front in ends(STDIO, HTTP, SSE)
]


# -- what runs -------------------------------------------------------------------------------------


class Behind:
    """What has one kind of server behind: how such a proxy is started, and one that listens."""

    def __init__(self, words: Sequence[Sequence[str]], running: Proxy, directory: Path) -> None:
        """`words`: the program, its options and its command."""
        self._words = words
        self._running = running
        self._directory = directory

    def transport(self, cell: Cell) -> Transport | str:
        """Return the way to a session of one's own."""
        if cell.front == STDIO:
            return stdio_client(self._started())
        if cell.front == SSE:
            return sse_client(f"{self._running.base}/sse")
        own = f"/s/{secrets.token_hex(16)}" if cell.client == MODERN else ""
        return self._running.url + own

    def _started(self) -> StdioServerParameters:
        """A proxy with one client is the client's own process."""
        (python, *program), options, command = self._words
        state = ("--state-dir", str(self._directory / secrets.token_hex(4)))
        last = ("--", *command) if command else ()
        arguments = [*program, "stdio", *state, *options, *last]
        return StdioServerParameters(command=python, args=arguments, cwd=ROOT)


@asynccontextmanager
async def behind(back: str, era: str, directory: Path) -> AsyncGenerator[Behind]:
    async with AsyncExitStack() as stack:
        words: tuple[Sequence[str], Sequence[str], Sequence[str]]
        if back == STDIO:
            words = PROGRAM, (), (*EVERYTHING, "--era", era)
        elif back == IN_PROCESS:
            words = EMBEDDING, ("--era", era), ()
        else:
            url = await stack.enter_async_context(serving(f"--{back}", "0", "--era", era))
            words = PROGRAM, ("--url", url), ()
        program, options, command = words
        running = await stack.enter_async_context(proxy(command, *options, program=program))
        yield Behind(words, running, directory)


@asynccontextmanager
async def serving(*options: str) -> AsyncGenerator[str]:
    """Start a server elsewhere; yield its URL."""
    command = [*EVERYTHING, *options]
    async with await anyio.open_process(command, cwd=ROOT, stdin=None, stderr=None) as process:
        try:
            assert process.stdout is not None
            said = BufferedByteReceiveStream(process.stdout)
            yield (await said.receive_until(b"\n", 1000)).decode()
        finally:
            process.kill()


House = dict[tuple[str, str], Behind]
"""What the cells share, by what is behind."""


@asynccontextmanager
async def housed(kinds: Iterable[tuple[str, str]], directory: Path) -> AsyncGenerator[House]:
    """Start all of it, two at a time, and stop it at once."""
    found: House = {}
    starting = anyio.Semaphore(2)  # each has only so long to start
    over = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def keep(back: str, era: str) -> None:
            async with AsyncExitStack() as stack:
                async with starting:
                    opening = behind(back, era, directory)
                    found[back, era] = await stack.enter_async_context(opening)
                if len(found) == len(wanted):
                    ready.set()
                await over.wait()

        wanted, ready = set(kinds), anyio.Event()
        for back, era in wanted:
            tasks.start_soon(keep, back, era)
        await ready.wait()
        yield found
        over.set()


@pytest.fixture(scope="module")
def house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[House]:
    """Of the cells that are chosen to be run."""
    chosen = [getattr(item, "callspec", None) for item in request.session.items]
    cells: list[object] = [spec.params.get("cell") for spec in chosen if spec is not None]
    kinds = [(cell.back, cell.server) for cell in cells if isinstance(cell, Cell)]
    with start_blocking_portal() as portal:
        starting = housed(kinds, tmp_path_factory.mktemp("state"))
        with portal.wrap_async_context_manager(starting) as found:
            yield found


# -- what is seen ----------------------------------------------------------------------------------


@dataclass
class Seen:
    """What has come to a client, besides answers."""

    asked: list[tuple[str, list[str]]] = field(default_factory=list[tuple[str, list[str]]])
    """Messages, and the fields of their forms."""
    logged: list[tuple[str, object]] = field(default_factory=list[tuple[str, object]])
    reported: list[tuple[float, float | None]] = field(
        default_factory=list[tuple[float, float | None]]
    )
    begun: anyio.Event = field(default_factory=anyio.Event)

    async def elicited(
        self, context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        assert isinstance(params, types.ElicitRequestFormParams)
        self.asked.append((params.message, list(params.requested_schema["properties"])))
        return types.ElicitResult(action="accept", content={"username": "Ann", "email": "a@x.org"})

    async def log(self, params: types.LoggingMessageNotificationParams) -> None:
        self.logged.append((params.level, params.data))

    async def report(self, progress: float, total: float | None, message: str | None) -> None:
        self.reported.append((progress, total))
        self.begun.set()


async def called(client: Client, tool: str, **arguments: object) -> str:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    block = result.content[0]
    assert isinstance(block, types.TextContent)
    return block.text


@pytest.mark.parametrize("cell", CELLS, ids=["-".join(cell) for cell in CELLS])
async def test_a_client_of_any_kind_has_all_of_a_server_of_any_kind(
    cell: Cell, house: House
) -> None:
    """DESIGN 9 and issue 4: list, call, form, log, progress and cancel, each with its content."""
    transport = house[cell.back, cell.server].transport(cell)
    seen = Seen()
    log_level = "info" if cell.client == MODERN else None
    with anyio.fail_after(PATIENCE):
        async with Client(
            transport,
            mode=MODES[cell.client],
            elicitation_callback=seen.elicited,
            logging_callback=seen.log,
            log_level=log_level,
        ) as client:
            assert client.protocol_version == VERSIONS[cell.client]
            await lists(client)
            assert await called(client, "test_simple_text") == (
                "This is a simple text response for testing."
            )
            await is_asked(client, seen)
            await is_told(client, seen)
            await hears_of_progress(client, seen)
            await cancels(client)


async def lists(client: Client) -> None:
    listed = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert listed == {name: tool for name, (tool, _) in TOOLS.items()}


async def is_asked(client: Client, seen: Seen) -> None:
    answer = await called(client, "test_elicitation", message="Who are you?")
    assert seen.asked == [("Who are you?", ["username", "email"])]
    assert answer == (
        'User response: action=accept, content={"username": "Ann", "email": "a@x.org"}'
    )


async def is_told(client: Client, seen: Seen) -> None:
    await called(client, "test_tool_with_logging")
    assert seen.logged == [
        ("info", "Tool execution started"),
        ("info", "Tool processing data"),
        ("info", "Tool execution completed"),
    ]


async def hears_of_progress(client: Client, seen: Seen) -> None:
    await client.call_tool("test_tool_with_progress", progress_callback=seen.report)
    assert seen.reported == [(0, 100), (50, 100), (100, 100)]


async def cancels(client: Client) -> None:
    """The server says which call was cancelled there: this client's, by its name."""
    name, seen = secrets.token_hex(8), Seen()
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            await client.call_tool("test_wait", {"name": name}, progress_callback=seen.report)

        tasks.start_soon(wait)
        await seen.begun.wait()
        tasks.cancel_scope.cancel()
    assert await called(client, "test_cancelled", name=name) == "It was cancelled."

"""A proxy as an object: what it is put together of, and used from this process."""

import asyncio  # noqa: TID251 - its own cancellation heeds no shield
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import anyio
import anyio.to_thread
import mcp_types as types
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, MCPError
from mcp.client.sse import sse_client
from mcp.server.mcpserver import MCPServer

from sessionproxy import (
    CallNext,
    ConfigError,
    Forwarded,
    Proxy,
    ProxyClient,
    ProxyError,
    ProxyProvider,
    Request,
    RequestFailed,
    RequestHook,
    Result,
    Sessions,
    StatefulProxyClient,
    create_proxy,
    http_app,
)
from sessionproxy.client.runtime import Held
from sessionproxy.core.reach import REACH, Reach, Scope
from sessionproxy.errors import BackendGone
from tests.parity.rig import complete, facts_of, fronted, fronts, names_of, text_of
from tests.rig.embedded import gone, lives, processes_of, scripted, served, until
from tests.rig.http import Client as Raw
from tests.rig.http import connect, http
from tests.rig.proxy import ROOT

State = dict[str, Any]


async def test_its_calls_share_one_session_that_ends_with_the_last_exit(state: State) -> None:
    """PARITY 65: nested, and at the same time."""
    made = create_proxy(complete(), **state)
    pids: set[int] = set()

    async def call() -> None:
        async with made:
            pids.add(facts_of(await made.call_tool("do"))["pid"])

    async with made, made:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(call)
        (pid,) = pids
        async with made:
            pass
        assert lives(pid)
        assert facts_of(await made.call_tool("do"))["pid"] == pid
    await gone(pid)
    await call()
    assert len(pids) == 2, "it is opened anew"
    await gone(*pids)


async def test_a_call_of_a_proxy_that_nobody_holds_has_a_session_of_its_own(state: State) -> None:
    """PARITY 59: also where several overlap; and it is gone with the call."""
    made = create_proxy(scripted(), **state)
    seen: list[tuple[int, int]] = []

    async def call(*steps: dict[str, Any]) -> None:
        facts = facts_of(await made.call_tool("do", {"steps": list(steps)}))
        seen.append((facts["pid"], facts["count"]))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(call, {"sleep": 0.5})
    await call()
    assert len({pid for pid, _ in seen}) == 4
    assert {count for _, count in seen} == {1}
    assert made._runs.value is None  # pyright: ignore[reportPrivateUsage]
    assert not any(map(lives, [pid for pid, _ in seen]))


async def test_calls_for_a_session_that_is_over_have_a_session_each(state: State) -> None:
    """DESIGN 5.6: of a task that a hook has left behind; nobody would ever close one that they
    share."""
    made = create_proxy(scripted(), **state)
    async with Scope() as scope:
        context = copy_context()
        nothing: Any = None
        context.run(REACH.set, Reach(nothing, nothing, scope))
    steps = {"steps": [{"sleep": 0.5}]}
    async with made:
        tasks = [
            asyncio.create_task(made.call_tool("do", steps), context=context.copy())
            for _ in range(2)
        ]
        pids = {facts_of(await task)["pid"] for task in tasks}
        assert len(pids) == 2
        assert not any(map(lives, pids))


async def test_a_proxy_that_is_held_in_another_event_loop_cannot_be_called(state: State) -> None:
    """PARITY 65: what its calls have their session for is that loop's."""
    made = create_proxy(scripted(), **state)

    async def call() -> None:
        await made.call_tool("do")

    async with made:
        with pytest.raises(RuntimeError, match="held in another event loop"):
            await anyio.to_thread.run_sync(asyncio.run, call())
        assert facts_of(await made.call_tool("do"))["count"] == 1


@pytest.mark.parametrize("make", [create_proxy, ProxyClient])
async def test_what_is_wrong_is_raised_as_it_is(make: Any, tmp_path: Path) -> None:  # noqa: ANN401
    """Issue 5: not in groups of exceptions; and nothing stays, so it may be tried again."""
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)

    async def use(made: Any) -> None:  # noqa: ANN401
        async with made:
            await made.list_tools()

    with pytest.raises(ConfigError, match="must belong to this user alone"):
        await use(make(complete(), state_dir=str(loose)))
    dead = make(scripted(start=[{"exit": 3}]), state_dir=str(tmp_path / "s"))
    for _ in range(2):
        with pytest.raises(ProxyError, match="exit status 3"):
            await use(dead)


def test_servers_have_names_that_tell_them_apart() -> None:
    """PARITY 11: in logs, errors and paths; by prefix, else by number."""
    made = create_proxy(MCPServer("a"))
    made.mount(MCPServer("b"))
    made.mount(MCPServer("c"), prefix="far")
    inner = create_proxy(MCPServer("d"))
    inner.mount(MCPServer("e"), prefix="in")
    made.mount(inner, prefix="far")
    plan = made.plan()
    assert [server.name for server in plan.servers] == [
        "default", "default-2", "far", "far-2", "far.in",
    ]  # fmt: skip
    assert [server.prefix for server in plan.servers] == ["", "", "far", "far", "far/in"]
    assert plan.together
    assert not create_proxy(MCPServer("a")).plan().is_several


async def test_prefixes_of_mounted_proxies_add_up(state: State) -> None:
    """PARITY 12, 74."""
    inner = create_proxy(complete(), **state)
    inner.mount(complete(), prefix="in")
    outer = create_proxy(MCPServer("empty"), **state)
    outer.mount(inner, prefix="out")
    async with fronts(outer) as client:
        assert await names_of(client) == ["out_do", "out_undo", "out_in_do", "out_in_undo"]
        uris = [str(each.uri) for each in (await client.list_resources()).resources]
        assert uris == ["note://out/one", "note://out/in/one"]
        for uri in uris:
            assert (await client.read_resource(uri)).contents
        assert facts_of(await client.call_tool("out_in_do", {}))


def test_a_transport_that_there_is_not_is_refused_before_anything_starts() -> None:
    """DESIGN 11."""
    made = create_proxy(MCPServer("a"))
    with pytest.raises(ConfigError, match="transport: expected stdio, http or sse"):
        made.run("udp")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="max_sessions"):
        made.http_app(max_sessions=0)


async def test_a_decorated_function_stays_what_it_was(state: State) -> None:
    """PARITY 74: local components, with their options."""
    made: Proxy = create_proxy(MCPServer("a"), **state)

    @made.tool
    def add(x: int, y: int = 1) -> int:
        """Adds."""
        return x + y

    @made.tool(name="twice", title="Twice", annotations=types.ToolAnnotations(read_only_hint=True))
    async def double(x: int) -> int:
        return 2 * x

    assert (add(1), await double(2)) == (2, 4)
    async with made:
        found = {tool.name: tool for tool in await made.list_tools()}
        assert list(found) == ["add", "twice"]
        assert (found["add"].description, found["twice"].title) == ("Adds.", "Twice")
        assert text_of(await made.call_tool("add", {"x": 1})) == "2"
        assert (await made.call_tool("twice", {"x": 4})).structured_content == {"result": 8}
        refused = await made.call_tool("add", {"x": "no number"})
        assert refused.is_error
        with pytest.raises(MCPError):
            await made.read_resource("note://none")


def test_a_proxy_of_a_client_has_its_own_settings(state: State) -> None:
    """Issue 5: the client's are for its own connection; a limit of one server's alone stays."""
    demo = {"command": sys.executable, "args": ["-m", "sessionproxy.demo"]}
    client = ProxyClient({"mcpServers": {"a": {**demo, "call_timeout": 9}, "b": demo}}, **state)
    made = create_proxy(client, sessions="shared", idle=5, max_sessions=3, **state)
    found = [each.settings for each in made.plan().servers]
    assert {(each.idle, each.max_sessions, each.mode.value) for each in found} == {(5, 3, "shared")}
    assert [each.call_timeout for each in found] == [9, 0]


def test_settings_of_an_application_count_for_its_servers(state: State) -> None:
    """`http_app`: they are put over the proxy's own, but for what its servers are made of."""
    made = create_proxy(scripted(), idle=5, **state)
    (server,) = made.plan(made.http_app(idle=77, max_sessions=2).settings).servers
    assert (server.settings.idle, server.settings.max_sessions) == (77, 2)
    lates: list[dict[str, Any]] = [
        {"env": ("A=b",)},
        {"url": "http://x/"},
        {"mode": "shared"},
        {"header": ("A=b",)},
    ]
    for late in lates:
        with pytest.raises(ConfigError, match="where the proxy is made"):
            made.http_app(**late)


async def test_what_is_added_to_a_proxy_after_its_application_was_made_is_there(
    state: State,
) -> None:
    """`http_app`, `add_hook`: an application's module mounts it, and goes on; each start has what
    there is then, guards first of all."""
    made = create_proxy(complete(), **state)
    app = made.http_app()

    async def refuse(request: Request, call_next: CallNext) -> Result:
        if request.method == "tools/call":
            raise RequestFailed(-32000, "not for you")
        return await call_next(request)

    async def start() -> tuple[list[str], str]:
        async with app.lifespan(), served(app) as base, connect(f"{base}/mcp") as client:
            tools = (await client.request("tools/list"))["result"]["tools"]
            answer = await client.request("tools/call", {"name": "do", "arguments": {}})
            return [tool["name"] for tool in tools], answer.get("error", {}).get("message", "")

    made.mount(create_proxy(complete(), **state), prefix="in")
    made.add_hook(refuse)
    made.tool(guard_nothing)
    both = ["guard_nothing", "do", "undo", "in_do", "in_undo"]
    assert await start() == (both, "not for you")
    made.mount(create_proxy(complete(), **state), prefix="again")
    assert await start() == ([*both, "again_do", "again_undo"], "not for you")


@pytest.mark.parametrize("setting", ["config", "url", "mode"])
def test_what_is_said_otherwise_in_python_is_refused(setting: str) -> None:
    """`create_proxy`: it would be taken and mean nothing."""
    make: Any = create_proxy
    with pytest.raises(ConfigError, match=rf"^{setting}: "):
        make(scripted(), **{setting: "shared"})


def test_a_proxy_cannot_be_mounted_in_itself(state: State) -> None:
    """Nor in one that it has, through however many."""
    made = create_proxy(scripted(), **state)
    between = create_proxy(scripted(), **state)
    between.mount(made)
    within = create_proxy(scripted(), **state)
    within.mount(between, prefix="x")
    for other in (made, within):
        with pytest.raises(ConfigError, match="itself"):
            made.mount(other)
    with pytest.raises(ConfigError, match="no such file"):
        made.mount("nowhere.py")


class Guard:
    """A hook in all the ways that one can be written."""

    async def __call__(self, request: Request, call_next: CallNext) -> Result:
        return await call_next(request)

    async def method(self, request: Request, call_next: CallNext) -> Result:
        return await call_next(request)


class Watcher:
    """An observer, so too."""

    def __call__(self, message: Forwarded) -> None: ...

    def method(self, message: Forwarded) -> None: ...


async def guard(request: Request, call_next: CallNext) -> Result:
    return await call_next(request)


def watch(message: Forwarded) -> None: ...


HOOKS = (guard, Guard(), Guard().method, partial(Guard.method, Guard()))
OBSERVERS = (watch, Watcher(), Watcher().method)


@pytest.mark.parametrize("make", [create_proxy, http_app])
def test_hooks_and_observers_are_not_taken_for_each_other(make: Any, state: State) -> None:  # noqa: ANN401
    """`create_proxy` and `http_app` alike: what refuses requests would not be awaited where it only
    watches, and so be off without a word."""
    for hook in HOOKS:
        with pytest.raises(ConfigError, match=r"^observers: .* is given as hooks"):
            make(scripted(), observers=[hook], **state)
    for observer in OBSERVERS:
        with pytest.raises(ConfigError, match=r"^hooks: .* is given as observers"):
            make(scripted(), hooks=[observer], **state)
    seen: list[Forwarded] = []
    untold = (seen.append, partial(watch))
    make(scripted(), hooks=(*HOOKS, *untold), observers=(*OBSERVERS, *untold), **state)


def test_an_observer_is_not_added_as_a_hook(state: State) -> None:
    """`add_hook`: as where the proxy is made."""
    made: Any = create_proxy(scripted(), **state)
    with pytest.raises(ConfigError, match=r"^hooks: watch is no coroutine function"):
        made.add_hook(watch)


@pytest.mark.parametrize("prefix", ["a b", "a/b", "..", "x" * 65, "ä"])
def test_a_prefix_is_checked_as_names_of_servers_are(prefix: str, state: State) -> None:
    """PARITY 14: it stands in names and URIs, where such a one could not be called."""
    made = create_proxy(scripted(), **state)
    with pytest.raises(ConfigError, match=r"^mount: expected a prefix of 1 to 64 letters"):
        made.mount(scripted(), prefix)
    with pytest.raises(ConfigError, match=r"^mount: "):
        made.add_provider(ProxyProvider(lambda: ProxyClient(scripted())), namespace=prefix)
    for fine in ("", "a.b-c_1"):
        made.mount(scripted(), fine)
    assert [server.prefix for server in made.plan().servers] == ["", "", "a.b-c_1"]


RUNS = """
import logging, sys
from sessionproxy import create_proxy
if "own" in sys.argv:
    logging.basicConfig(format="mine %(message)s", level="DEBUG")
create_proxy([sys.executable, "-c", ""], log_level="debug", log_json=True, state_dir=sys.argv[1],
    containment="process-group").run("stdio")
"""


@pytest.mark.parametrize("own", [False, True])
def test_a_proxy_that_is_run_writes_its_log_unless_the_program_has_its_own(
    own: bool, tmp_path: Path
) -> None:
    """`Proxy.run` is for a process of its own, as the command line is."""
    opening = (
        '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
        '"capabilities":{},"clientInfo":{"name":"c","version":"1"}}}\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(tmp_path / "s"), *(["own"] if own else [])],
        input=opening,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done
    assert ("mine session" in done.stderr) == own
    assert ('"logger": "sessionproxy' in done.stderr) != own


async def test_what_stands_around_a_proxy_stands_around_it_where_it_is_mounted(
    state: State,
) -> None:
    """PARITY 74: hooks and observers of the inner one see its requests, and hear of its server by
    the name that it has; requests that are no client's have no owner."""
    seen: set[tuple[str, str | None]] = set()
    observed: list[str] = []

    async def hook(request: Request, call_next: CallNext) -> Result:
        seen.add((request.server, request.owner))
        return await call_next(request)

    def observe(message: Forwarded) -> None:
        if message.to_backend:
            observed.append(message.method)

    inner = create_proxy(complete(), hooks=[hook], observers=[observe], **state)
    outer = create_proxy(MCPServer("empty"), **state)
    outer.mount(inner, prefix="in")
    async with fronts(outer) as client:
        assert facts_of(await client.call_tool("in_do", {}))
    assert seen == {("in", "local")}
    assert observed.count("tools/call") == 1
    async with fronts(outer, mode="2026-07-28") as client:
        seen.clear()
        assert await names_of(client) == ["in_do", "in_undo"]
    assert ("in", None) in seen


async def test_whether_a_client_is_connected_counts_when_it_is_given(state: State) -> None:
    """PARITY 57: for the target, and for what is mounted."""
    client = ProxyClient(complete(), **state)
    made = create_proxy(client, **state)
    made.mount(client, prefix="again")
    async with client:
        shared = create_proxy(client, **state)
        own = facts_of(await client.call_tool("do"))["pid"]
        async with shared:
            assert facts_of(await shared.call_tool("do"))["pid"] == own
        async with made:
            pids = {facts_of(await made.call_tool(name))["pid"] for name in ("do", "again_do")}
            assert len(pids - {own}) == 2


async def test_of_several_failures_the_proxys_own_is_raised() -> None:
    """Issue 5: what fails while the rest is closed comes in a group with it."""

    @asynccontextmanager
    async def open_() -> AsyncGenerator[None]:
        raise BaseExceptionGroup("", [ValueError(), ExceptionGroup("", [BackendGone("this")])])
        yield

    with pytest.raises(BackendGone, match="this"):
        await Held(open_).enter()


async def test_a_first_call_that_is_cancelled_takes_nothing_from_another(state: State) -> None:
    """DESIGN 5.3: the two wait for one session to be opened."""
    made = create_proxy(complete(), **state)
    async with made, anyio.create_task_group() as tasks:
        first = anyio.CancelScope()

        async def cancelled() -> None:
            with first:
                await made.call_tool("do")

        tasks.start_soon(cancelled)
        await anyio.wait_all_tasks_blocked()
        other: list[int] = []
        answered = anyio.Event()

        async def call() -> None:
            other.append(facts_of(await made.call_tool("do"))["pid"])
            answered.set()

        tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        with anyio.fail_after(30):
            await answered.wait()
        assert facts_of(await made.call_tool("do"))["pid"] == other[0]


async def test_a_proxy_is_left_also_where_that_is_cut_off(state: dict[str, Any]) -> None:
    """DESIGN 5.6: by `asyncio.timeout` or its like, which no shield of anyio's holds off, while its
    session's backend is being stopped."""
    proxy = create_proxy(scripted(eof=[{"sleep": 0.5}, {"exit": 0}]), **state)
    used = asyncio.Event()

    async def use() -> None:
        async with proxy:
            await proxy.call_tool("do", {})
            used.set()

    using = asyncio.create_task(use())
    await used.wait()
    await asyncio.sleep(0)  # the session is being ended
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    await until(lambda: proxy._runs.value is None)  # pyright: ignore[reportPrivateUsage]
    assert proxy._runs.holds == 0  # pyright: ignore[reportPrivateUsage]


async def test_a_function_that_returns_clients_is_told_where_it_belongs(state: State) -> None:
    """Issue 5: a method of a client when it is given; of others it shows at first use."""
    client = StatefulProxyClient(scripted(), **state)
    for method in (client.new, client.new_stateful):
        with pytest.raises(ConfigError, match=r"give it as ProxyProvider\("):
            create_proxy(method)  # pyright: ignore[reportArgumentType]
    clients: Any = lambda: ProxyClient(scripted())  # noqa: E731 - as users write it
    made = create_proxy(clients, **state)
    with pytest.raises(ProxyError, match=r"returned a ProxyClient.* ProxyProvider\(function\)"):
        await made.list_tools()


async def test_servers_have_doors_of_their_own_only_where_nothing_stands_before_them(
    state: State,
) -> None:
    """Issue 5: `/servers/NAME/mcp` is for configurations; it goes around no hook and no component
    of the proxy's own, or of one that is its target."""

    async def hook(request: Request, call_next: CallNext) -> Result:
        return await call_next(request)

    def made(hooks: Sequence[RequestHook] = ()) -> Proxy:
        command, *arguments = complete()
        each = {"command": command, "args": arguments}
        return create_proxy({"mcpServers": {"one": each, "two": each}}, hooks=hooks, **state)

    async def status(proxy: Proxy) -> int:
        async with fronted(proxy, "/servers/one/mcp") as url, http() as pool:
            return (await Raw(pool, url).initialize()).status_code

    extended, mounting = made(), made()
    extended.tool(guard_nothing)
    mounting.mount(complete(), prefix="three")
    assert await status(made()) == 200
    for proxy in (extended, mounting, made([hook]), create_proxy(extended, **state)):
        assert await status(proxy) == 404


def guard_nothing() -> str:
    return "nothing"


async def test_what_a_proxy_has_of_its_own_takes_nobodys_place(state: State) -> None:
    """DESIGN 7: `max_sessions` counts backends; tools in the proxy's own process are none."""
    made = create_proxy(complete(), max_sessions=1, queue_timeout=1, **state)
    made.tool(guard_nothing)
    async with fronts(made) as client:
        assert text_of(await client.call_tool("guard_nothing", {})) == "nothing"
        assert facts_of(await client.call_tool("do", {}))["pid"]


@pytest.mark.parametrize("sessions", ["shared", "request"])
async def test_a_loss_is_told_of_what_keeps_state_wherever_it_is_mounted(
    sessions: Sessions, state: State
) -> None:
    """DESIGN 5.12: the proxy around it keeps none, and the one that is mounted does."""
    made = create_proxy(complete(), sessions=sessions, idle=1, shared_linger=0.5, **state)
    made.mount(create_proxy(complete(), **state), "kept")
    asked: tuple[str, dict[str, Any]] = "tools/call", {"name": "kept_do", "arguments": {}}
    async with fronted(made) as url, connect(url) as client:
        counts = [(await client.request(*asked))["result"] for _ in range(2)]
        assert [each["structuredContent"]["count"] for each in counts] == [2, 3]
        await until(lambda: not processes_of(Path(state["state_dir"])))
        told = (await client.request(*asked))["result"]
        assert told["isError"]
        assert "state was lost" in told["content"][0]["text"]
        assert (await client.request(*asked))["result"]["structuredContent"]["count"] == 2


async def test_nor_is_there_a_limit_on_those_who_use_it_at_once(state: State) -> None:
    """As before, with several users."""
    made = create_proxy(complete(), max_sessions=1, queue_timeout=0.3, **state)
    made.tool(guard_nothing)
    asked: tuple[str, dict[str, Any]] = "tools/call", {"name": "guard_nothing", "arguments": {}}
    async with fronted(made) as url, connect(url) as one, connect(url) as two, connect(url) as more:
        for client in (one, two, more):
            assert (await client.request(*asked))["result"]["content"][0]["text"] == "nothing"


async def test_all_servers_together_are_counted_by_a_name_that_none_of_them_has(
    state: State,
) -> None:
    """Prometheus refuses two series of one name and the same labels."""
    made = create_proxy(complete(), **state)
    made.tool(guard_nothing)
    async with fronted(made) as url, connect(url) as client:
        assert (await client.do())["pid"]
        lines = (await client.http.get(url.removesuffix("/mcp") + "/metrics")).text.splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert {'server="all"', 'server="default"', 'server="local"'} <= {
        label for line in series for label in line.replace("}", ",").replace("{", ",").split(",")
    }


# -- in an event loop that runs already ------------------------------------------------------------


@asynccontextmanager
async def run_here(made: Proxy) -> AsyncGenerator[tuple[str, anyio.CancelScope]]:
    """Run a proxy by `run_async`; yield its URL, and what cancels it."""
    where: list[str] = []
    running = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            with running:
                await made.run_async("http", port=0, on_ready=where.append)

        tasks.start_soon(run)
        await until(lambda: bool(where))
        yield where[0], running
        running.cancel()


async def test_what_runs_in_an_event_loop_and_is_cancelled_can_run_there_again(
    state: State,
) -> None:
    """`run_async`: nothing of the first one listens where the second one does."""
    for _ in range(3):
        async with run_here(create_proxy(complete(), **state)) as (url, _):
            with anyio.fail_after(30):
                async with Client(url, mode="legacy") as client:
                    assert facts_of(await client.call_tool("do", {}))["pid"]


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
@pytest.mark.parametrize("target", ["command", "url", "servers"])
def test_in_a_loop_that_asyncio_runs_every_call_is_answered(
    target: str, mode: str, state: State
) -> None:
    """`run_async`, DESIGN 5.3: what a callback of the loop begins with may ask anyio, which asks
    `sniffio` there; only `anyio.run` has told that. A limit of calls, a server elsewhere, and what
    is answered at once are such."""

    async def called(client: Client, tool: str, *steps: dict[str, object]) -> str:
        try:
            result = await client.call_tool(tool, {"steps": list(steps)})
        except MCPError as error:
            return error.message
        return str(result.content) if result.is_error else "done"

    async def main() -> None:
        async with run_here(create_proxy(complete(), call_timeout=1.0, **state)) as (url, _):
            if target == "command":
                async with Client(url, mode=mode) as client:
                    assert await called(client, "do") == "done"
                    assert "1 s" in await called(client, "do", {"wait": "ever"})
                    assert await called(client, "do") == "done"
                return
            words = list(complete())
            server = {"command": words[0], "args": words[1:]}
            found = url if target == "url" else {"a": server, "b": server}
            async with run_here(create_proxy(found, **state)) as (outer, _):
                async with Client(outer, mode=mode) as client:
                    tool = "do" if target == "url" else "a_do"
                    assert [await called(client, tool) for _ in range(4)] == ["done"] * 4
                    if target == "servers":  # of none of them, and answered at once
                        assert "nobodys" in await called(client, "nobodys")
                    assert await called(client, tool) == "done"

    asyncio.run(asyncio.wait_for(main(), 50))


@pytest.mark.parametrize(
    ("path", "told"), [(None, "/sse"), ("/sse", "/sse"), ("/far/sse", "/far/sse")]
)
async def test_a_proxy_that_speaks_http_with_sse_tells_where(
    path: str | None, told: str, state: State
) -> None:
    """PARITY 4, 71: clients of 2024-11-05 connect to what is told; `path` is as FastMCP has it."""
    urls: list[str] = []
    async with anyio.create_task_group() as tasks:
        run = partial(create_proxy(complete(), **state).run_async, "sse", port=0, path=path)
        tasks.start_soon(partial(run, on_ready=urls.append))
        await until(lambda: bool(urls))
        assert urls[0].endswith(told)
        with anyio.fail_after(30):
            async with Client(sse_client(urls[0]), mode="legacy") as client:
                assert await names_of(client) == ["do", "undo"]
            endpoint = urls[0].removesuffix("/sse") + "/mcp"
            async with Client(endpoint, mode="legacy") as client:
                assert await names_of(client) == ["do", "undo"]
        tasks.cancel_scope.cancel()


def test_a_path_that_would_hide_http_with_sse_is_refused(state: State) -> None:
    """PARITY 71: one of the two would never be reached."""
    made = create_proxy(complete(), **state)
    for path in ("/sse", "/far/messages"):
        with pytest.raises(ConfigError, match=rf"^--path {path}: .*--sse off"):
            made.http_app(path=path)
        assert made.http_app(path=path, sse="off").settings.path == path
    with pytest.raises(ConfigError, match=r"^path /events: .* ends in /sse"):
        made.run("sse", path="/events")


async def test_what_is_in_flight_when_it_is_cancelled_has_its_time(state: State) -> None:
    """`run_async`: `drain_timeout` seconds, as after a signal, and nothing new is taken."""
    made = create_proxy(scripted(), **state)
    async with http() as pool, run_here(made) as (url, running):
        client = Raw(pool, url)
        assert (await client.initialize()).status_code == 200
        async with client.doing({"ask": {"method": "roots/list"}}, echo="whole") as incoming:
            ask = await incoming.until("roots/list")
            running.cancel()
            with anyio.fail_after(30):
                while (await pool.get(url.removesuffix("/mcp") + "/readyz")).status_code == 200:
                    pass
                assert (await Raw(pool, url).initialize()).status_code == 503
                await client.respond(ask["id"], result={"roots": []})
                answer = await incoming.answer()
                assert answer["result"]["structuredContent"]["echo"] == "whole"


async def test_what_is_still_in_flight_then_is_ended(state: State) -> None:
    """`run_async`: being cancelled is bounded by `drain_timeout`."""
    made = create_proxy(scripted(), drain_timeout=0.1, **state)
    async with http() as pool, run_here(made) as (url, running):
        client = Raw(pool, url)
        assert (await client.initialize()).status_code == 200
        async with client.doing({"log": ""}, {"wait": "never"}) as incoming:
            await incoming.message()
            running.cancel()
            with anyio.fail_after(30):
                assert "ended" in (await incoming.answer())["error"]["message"]


async def test_to_be_cancelled_twice_ends_it_at_once(state: State) -> None:
    """`run_async`: as a second signal does, whatever `drain_timeout` says."""
    made = create_proxy(scripted(), drain_timeout=1000, **state)
    urls: list[str] = []
    running = asyncio.create_task(made.run_async("http", port=0, on_ready=urls.append))
    await until(lambda: bool(urls))
    async with http() as pool:
        client = Raw(pool, urls[0])
        assert (await client.initialize()).status_code == 200
        async with client.doing({"log": ""}, {"wait": "never"}) as incoming:
            await incoming.message()
            with anyio.fail_after(30):
                running.cancel()
                while (await Raw(pool, urls[0]).initialize()).status_code == 200:
                    pass
                running.cancel()
                assert "ended" in (await incoming.answer())["error"]["message"]
                await asyncio.wait([running])
    assert running.cancelled()


async def test_it_runs_in_an_event_loop_of_any_thread(state: State) -> None:
    """`run_async`: only the main thread could heed signals, and nothing of it does."""
    urls: Queue[str] = Queue()
    made = create_proxy(complete(), **state)
    ours = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def run(portal: BlockingPortal) -> Future[None]:
        return portal.start_task_soon(
            partial(made.run_async, "http", port=0, on_ready=urls.put_nowait)
        )

    with start_blocking_portal("asyncio") as portal:
        running = run(portal)
        url = await anyio.to_thread.run_sync(partial(urls.get, timeout=30))
        with anyio.fail_after(30):
            async with Client(url, mode="legacy") as client:
                assert facts_of(await client.call_tool("do", {}))["pid"]
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == ours
        running.cancel()


HOST = """
import asyncio, json, sys
from contextlib import asynccontextmanager
import uvicorn
from fastapi import FastAPI
from sessionproxy import create_proxy

async def run(name):
    made = create_proxy(["true"], state_dir=sys.argv[1], containment="guardian")
    try:
        await made.run_async("http", port=0, on_ready=lambda url: print(name, "runs"))
    finally:
        print(name, "has ended")

@asynccontextmanager
async def lifespan(app):
    running = [asyncio.create_task(run(name)) for name in ("one", "two")]
    yield
    print("the application ends")
    for each in running:
        each.cancel()
    await asyncio.wait(running)

uvicorn.run(FastAPI(lifespan=lifespan), port=0, log_level="error")
"""


def test_an_application_that_it_runs_in_ends_by_its_own_signals(state: State) -> None:
    """`run_async`: one SIGTERM, which is the server's, ends the application by its lifespan, and so
    all proxies in it."""
    words = [sys.executable, "-u", "-c", HOST, state["state_dir"]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as host:
        try:
            assert host.stdout is not None
            assert sorted(host.stdout.readline() for _ in range(2)) == ["one runs\n", "two runs\n"]
            host.send_signal(signal.SIGTERM)
            first, *rest = host.stdout.read().splitlines()
        finally:
            host.kill()
    assert first == "the application ends"
    assert sorted(rest) == ["one has ended", "two has ended"]


async def test_what_on_ready_raises_is_raised_as_it_is(state: State) -> None:
    """`run_async`: in no group of exceptions, and nothing runs on."""

    def refuse(url: str) -> None:
        raise LookupError(url)

    with anyio.fail_after(30), pytest.raises(LookupError, match="http://127"):
        await create_proxy(complete(), **state).run_async("http", port=0, on_ready=refuse)

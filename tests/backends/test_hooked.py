"""Hooks around every forwarded request (issue: ASGI-like; PARITY 19), with real backends."""

import asyncio  # noqa: TID251 - a task of a user's, which nobody waits for
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from mcp.server.mcpserver import MCPServer

from sessionproxy import create_proxy
from sessionproxy.core import waiting
from sessionproxy.core.context import current_exchange
from sessionproxy.core.exchange import Forwarded
from sessionproxy.core.hooks import (
    CallNext,
    Request,
    RequestFailed,
    RequestHook,
    Result,
    current_request,
)
from sessionproxy.errors import BackendGone, RequestCancelled
from sessionproxy.http.request import Receive, Scope, Send
from sessionproxy.serve import protocol_of
from tests.rig.embedded import Application, Embedded, embedded, scripted, served, until
from tests.rig.http import Client, Json, calling, connect, http
from tests.rig.modern import Modern
from tests.rig.sdk import TOOL
from tests.rig.several import two
from tests.rig.upstream import upstream

USER: ContextVar[str] = ContextVar("USER", default="nobody")

Do = Callable[..., Awaitable[Json]]
"""Calls a tool as a client of one era or the other; returns the response."""


def on_calls(hook: RequestHook) -> RequestHook:
    """Run `hook` around calls of tools alone."""

    async def run(request: Request, call_next: CallNext) -> Result:
        if request.method != "tools/call":
            return await call_next(request)
        return await hook(request, call_next)

    return run


def with_user(app: Application) -> Application:
    """Middleware: the header `x-user` becomes `USER`."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        USER.set(dict(scope["headers"]).get(b"x-user", b"nobody").decode())
        await app(scope, receive, send)

    return call


async def in_both_eras(proxy: Embedded, check: Callable[[Do], Awaitable[None]]) -> None:
    """Run `check` with a client of either era."""
    async with connect(proxy.url) as client, http() as pool:
        modern = Modern(pool, f"{proxy.url}/s/modern")

        async def handshake_call(*steps: Json, **more: object) -> Json:
            return await client.request("tools/call", calling(*steps, **more))

        async def modern_call(*steps: Json, **more: object) -> Json:
            return (await modern.post("tools/call", calling(*steps, **more))).json()

        for call in (handshake_call, modern_call):
            await check(call)


async def test_a_hook_changes_what_is_asked_and_what_is_answered() -> None:
    """Issue: before and after."""

    async def hook(request: Request, call_next: CallNext) -> Result:
        assert request.name == "do"
        arguments = {**request.params["arguments"], "echo": "changed"}
        result = await call_next(request.with_params({**request.params, "arguments": arguments}))
        return Result.of({**result.value, "x": 1})

    async def check(do: Do) -> None:
        result = (await do(echo="as sent"))["result"]
        assert result["structuredContent"]["echo"] == "changed"
        assert result["x"] == 1

    async with embedded(hooks=[on_calls(hook)]) as proxy:
        await in_both_eras(proxy, check)


async def test_a_hook_that_changes_nothing_changes_nothing() -> None:
    """DESIGN 5.4: byte for byte, errors too."""

    async def hook(request: Request, call_next: CallNext) -> Result:
        return await call_next(request)

    error = {"code": -5, "message": "no", "data": {"x": [1.0, None]}, "y": 1}
    answers: list[Json] = [{"error": error}, {"result": {"content": [], "x": 1.50}}]
    async with embedded() as plain, embedded(hooks=[hook]) as hooked:
        found: list[list[Json]] = []
        for proxy in (plain, hooked):
            async with connect(proxy.url) as client:
                given = [
                    await client.request("tools/call", calling({"replies": answer}))
                    for answer in answers
                ]
                found.append([*given, client.opened["result"]["capabilities"]])
        assert found[0] == found[1]


async def test_a_hook_answers_by_itself_or_refuses() -> None:
    """Issue: the backend hears nothing of it."""

    async def hook(request: Request, call_next: CallNext) -> Result:
        echo = request.params["arguments"]["echo"]
        if echo == "answer":
            return Result.of({"content": [], "by": "the hook"})
        if echo == "refuse":
            raise RequestFailed(-32001, "not today", {"why": 1})
        return await call_next(request)

    async def check(do: Do) -> None:
        assert (await do(echo="answer"))["result"]["by"] == "the hook"
        error = (await do(echo="refuse"))["error"]
        assert error == {"code": -32001, "message": "not today", "data": {"why": 1}}
        assert (await do(echo="pass"))["result"]["structuredContent"]["count"] == 1

    async with embedded(hooks=[on_calls(hook)]) as proxy:
        await in_both_eras(proxy, check)


async def test_a_hook_sees_what_failed_and_may_mend_it() -> None:
    """`CallNext` raises what was answered, or why nothing was."""
    seen: list[object] = []

    async def hook(request: Request, call_next: CallNext) -> Result:
        try:
            return await call_next(request)
        except RequestFailed as failed:
            seen.append((failed.code, failed.message, failed.data))
            return Result.of({"content": [], "mended": True})
        except BackendGone as gone:
            seen.append(str(gone))
            raise

    async with embedded(hooks=[on_calls(hook)]) as proxy, connect(proxy.url) as client:
        error = {"error": {"code": -1, "message": "x", "data": [1]}}
        answer = await client.request("tools/call", calling({"replies": error}))
        assert answer["result"]["mended"]
        died = await client.request("tools/call", calling({"exit": 5}))
        assert died["result"]["_meta"]["sessionproxy/fault"]["kind"] == "backend_gone"
        assert seen == [(-1, "x", [1]), "The backend ended: exit status 5."]
        told = await client.request("tools/call", calling())
        assert told["result"]["_meta"]["sessionproxy/fault"]["kind"] == "state_lost"


async def test_a_fault_of_a_hook_fails_its_request_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """DESIGN 5.3: answered once, and nothing of the fault reaches the client."""

    async def hook(request: Request, call_next: CallNext) -> Result:
        if request.params["arguments"]["echo"] == "fault":
            raise ZeroDivisionError("a secret")
        return await call_next(request)

    async def check(do: Do) -> None:
        failed = await do(echo="fault")
        assert failed["error"]["code"] == -32603
        assert "secret" not in str(failed)
        assert (await do())["result"]

    async with embedded(hooks=[on_calls(hook)]) as proxy:
        await in_both_eras(proxy, check)
    assert "a hook failed on tools/call" in caplog.text


async def test_hooks_run_one_inside_the_other() -> None:
    """The first one is the outermost."""
    order: list[str] = []

    def named(name: str) -> RequestHook:
        async def hook(request: Request, call_next: CallNext) -> Result:
            order.append(f"{name} before")
            result = await call_next(request)
            order.append(f"{name} after")
            return result

        return on_calls(hook)

    hooks = [named("a"), named("b")]
    async with embedded(hooks=hooks) as proxy, connect(proxy.url) as client:
        await client.do()
        assert order == ["a before", "b before", "b after", "a after"]


async def test_a_hook_that_waits_is_cancelled_with_its_request() -> None:
    """DESIGN 5.9, both eras; the session goes on."""
    ended: list[str] = []
    began = anyio.Event()

    async def hook(request: Request, call_next: CallNext) -> Result:
        if request.params["arguments"]["echo"] != "wait":
            return await call_next(request)
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")
        raise AssertionError

    async with embedded(hooks=[on_calls(hook)]) as proxy:
        async with connect(proxy.url) as client, anyio.create_task_group() as tasks:

            async def waiting() -> None:
                answer = await client.request("tools/call", calling(echo="wait"), number=4)
                assert answer["error"]["code"] == -32800

            tasks.start_soon(waiting)
            await began.wait()
            await client.notify("notifications/cancelled", {"requestId": 4})
        await until(lambda: ended == ["cancelled"])
        began = anyio.Event()
        async with http() as pool, anyio.create_task_group() as tasks:
            modern = Modern(pool, proxy.url)
            tasks.start_soon(modern.post, "tools/call", calling(echo="wait"))
            await began.wait()
            tasks.cancel_scope.cancel()
        await until(lambda: ended == ["cancelled"] * 2)
        async with connect(proxy.url) as client:
            await client.do()


@pytest.mark.parametrize(("bound", "most"), [("MAX_WAITING", 2), ("MAX_WAITING_BYTES", 2500)])
async def test_what_waits_in_hooks_is_bounded(
    bound: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.3, FAULTS F16: what was sent on does not count, nor what is over."""
    monkeypatch.setattr(waiting, bound, most)
    passes = {n: anyio.Event() for n in range(1, 6)}
    sent: list[str] = []

    async def hook(request: Request, call_next: CallNext) -> Result:
        await passes[request.params["arguments"]["echo"]].wait()
        return await call_next(request)

    def observer(message: Forwarded) -> None:
        if message.to_backend and message.method == "tools/call":
            sent.append(message.method)

    async with (
        embedded(hooks=[on_calls(hook)], observers=[observer]) as proxy,
        connect(proxy.url) as client,
        anyio.create_task_group() as tasks,
    ):
        (whole,) = proxy.manager.registry.awake()

        async def begin(echo: int, *steps: Json) -> None:
            """Begin with a call, if it is let in."""
            params = calling(*steps, echo=echo, fill="x" * 1000)
            before = whole.leases
            tasks.start_soon(partial(client.request, "tools/call", params, number=echo))
            await until(lambda: whole.leases == before + 1)

        await begin(1, {"until_cancelled": None})
        await begin(2)
        refused = await client.request("tools/call", calling(echo=3, fill="x" * 1000), number=3)
        assert refused["result"]["_meta"]["sessionproxy/fault"]["kind"] == "backend_busy"
        passes[1].set()
        await until(lambda: bool(sent))
        await begin(4)
        await client.notify("notifications/cancelled", {"requestId": 4})
        await until(lambda: whole.leases == 2)
        await begin(5)
        tasks.cancel_scope.cancel()


async def test_what_a_hook_waits_for_no_longer_is_cancelled_at_the_backend() -> None:
    """DESIGN 5.9: a hook with a limit of its own; nothing works on for nobody."""

    async def hook(request: Request, call_next: CallNext) -> Result:
        if request.params["arguments"]["echo"] != "limited":
            return await call_next(request)
        with anyio.move_on_after(0.1):
            return await call_next(request)
        return Result.of({"content": [], "late": True})

    async with embedded(hooks=[on_calls(hook)]) as proxy, connect(proxy.url) as client:
        params = calling({"until_cancelled": None}, echo="limited")
        assert (await client.request("tools/call", params))["result"]["late"]
        seen = (await client.do({"tells": "seen"}))["seen"]
        assert "notifications/cancelled" in [message.get("method") for message in seen]


async def test_of_several_that_a_hook_sends_all_are_cancelled() -> None:
    """DESIGN 5.9."""

    async def hook(request: Request, call_next: CallNext) -> Result:
        if request.params["arguments"]["echo"] != "twice":
            return await call_next(request)

        async def send() -> None:
            await call_next(request)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            tasks.start_soon(send)
        raise AssertionError

    async with embedded(hooks=[on_calls(hook)]) as proxy, connect(proxy.url) as client:
        steps: list[Json] = [{"log": 1}, {"until_cancelled": None}]
        async with client.doing(*steps, echo="twice", number=3) as incoming:
            for _ in range(2):
                await incoming.until("notifications/message")
            params = {"requestId": 3, "reason": "enough"}
            await client.notify("notifications/cancelled", params)
            assert (await incoming.answer())["error"]["code"] == -32800
        seen = (await client.do({"tells": "seen"}))["seen"]
        told = [m["params"] for m in seen if m.get("method") == "notifications/cancelled"]
        assert [each["reason"] for each in told] == ["enough"] * 2


async def test_a_hook_has_the_context_of_its_own_request() -> None:
    """DESIGN 8: ContextVars of the HTTP request, the session's name, and no other session's."""
    found: list[tuple[str, object, str, str | None, str]] = []
    together = anyio.Event()

    async def hook(request: Request, call_next: CallNext) -> Result:
        user, echo = USER.get(), request.params["arguments"]["echo"]
        exchange = current_exchange.get()
        assert exchange is not None
        assert exchange.client_id == b"1"
        found.append((user, echo, request.session, request.owner, request.server))
        if len(found) == 8:
            together.set()
        await together.wait()
        assert USER.get() == user
        result = await call_next(request)
        assert USER.get() == user
        assert result.value["structuredContent"]["echo"] == echo
        return result

    async with embedded(hooks=[on_calls(hook)], around=with_user) as proxy:
        async with connect(proxy.url) as ann, connect(proxy.url) as bob:
            clients = {"ann": ann.also(x_user="ann"), "bob": bob.also(x_user="bob")}
            nonces: dict[str, set[str]] = {"ann": set(), "bob": set()}

            async def one(user: str, client: Client, number: int) -> None:
                answer = await client.do(echo=[user, number])
                nonces[user].add(answer["nonce"])

            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    for user, client in clients.items():
                        tasks.start_soon(one, user, client, number)
    for user, echo, _, owner, server in found:
        assert (echo, owner, server) == ([user, echo[-1]], "local", "default")  # type: ignore[index]
    sessions = {user: {each[2] for each in found if each[0] == user} for user in ("ann", "bob")}
    assert [len(each) for each in sessions.values()] == [1, 1]
    assert sessions["ann"] != sessions["bob"]
    assert not nonces["ann"] & nonces["bob"]


@pytest.mark.parametrize("several", [False, True], ids=["one server", "two"])
async def test_a_hook_may_show_each_user_another_list(several: bool, tmp_path: Path) -> None:
    """DESIGN 6: clients of 2026-07-28 ask before they have a session, and each is told its own."""
    lines = [f"{name} {sha256(name.encode()).hexdigest()}\n" for name in ("ann", "bob")]
    tokens = tmp_path / "tokens"
    await anyio.Path(tokens).write_text("".join(lines))
    asked: list[str | None] = []

    async def hook(request: Request, call_next: CallNext) -> Result:
        result = await call_next(request)
        if request.method != "tools/list":
            return result
        asked.append(request.user)
        tools = [{**tool, "description": request.user} for tool in result.value["tools"]]
        return Result.of({**result.value, "tools": tools})

    listing = scripted(on={"tools/list": [{"replies": {"result": {"tools": [TOOL]}}}]})
    server = {"command": listing[0], "args": list(listing[1:])}
    config = {"mcpServers": {"a": server, "b": server} if several else {"a": server}}
    made = create_proxy(config, hooks=[hook], state_dir=str(tmp_path / "s"))
    app = made.http_app(token_file=str(tokens))
    async with app.lifespan(), served(app, protocol=protocol_of(app, None)) as base, http() as pool:
        for name in ("ann", "bob", "ann", "bob"):
            client = Modern(pool, f"{base}/mcp", {"authorization": f"Bearer {name}"})
            tools = (await client.post("tools/list")).json()["result"]["tools"]
            assert {tool["description"] for tool in tools} == {name}
            assert len(tools) == 1 + several
    assert set(asked) == {"ann", "bob"}


class OneAtATime:
    """A hook whose requests go on in a task of its own, begun with the first of all."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._turns: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._works = False

    async def __call__(self, request: Request, call_next: CallNext) -> Result:
        if not self._works:
            self._works = True
            self._tasks.start_soon(self._work)
        found: list[Result] = []
        came = anyio.Event()

        async def turn() -> None:
            found.append(await call_next(request))
            came.set()

        await self._turns.put(turn)
        await came.wait()
        return found[0]

    async def _work(self) -> None:
        while True:
            await (await self._turns.get())()


async def test_what_a_hook_sends_on_from_a_task_of_its_own_goes_to_whom_it_is_from() -> None:
    """DESIGN 5.1, security: the task was begun for another user, whose token and whose copies of
    clients are not this one's."""
    async with anyio.create_task_group() as tasks, upstream() as server:
        hooks = [OneAtATime(tasks)]
        forwarding = embedded(url=server.url, forward_authorization=True, hooks=hooks, command=())
        async with forwarding as proxy, http() as pool:
            for user in ("ann", "bob"):
                client = Client(pool, proxy.url, headers={"authorization": f"Bearer {user}"})
                await client.initialize()
                await client.notify("notifications/initialized")
                await client.request("tools/call", {"name": "do", "arguments": {"who": user}})
        calls = server.all("tools/call")
        assert [
            (each.message["params"]["arguments"]["who"], each.headers["authorization"])
            for each in calls
        ] == [("ann", "Bearer ann"), ("bob", "Bearer bob")]
        tasks.cancel_scope.cancel()


class Careful(OneAtATime):
    """Goes on with the next one, however one has ended; says how."""

    def __init__(self, tasks: TaskGroup) -> None:
        super().__init__(tasks)
        self.failures: list[Exception] = []

    async def _work(self) -> None:
        while True:
            turn = await self._turns.get()
            try:
                await turn()
            except Exception as error:  # noqa: BLE001 - looked at below
                self.failures.append(error)


@pytest.mark.parametrize("how", ["cancelled", "ended"])
async def test_a_task_of_a_hooks_own_does_not_wait_for_what_nobody_waits_for(how: str) -> None:
    """DESIGN 5.1, 5.3: what it has sent on is over with the request, or its session; the others
    that it works for get their turn."""
    async with anyio.create_task_group() as tasks:
        hook, steps = Careful(tasks), ({"progress": 1}, {"until_cancelled": None})
        async with (
            embedded(hooks=[on_calls(hook)]) as proxy,
            connect(proxy.url) as ann,
            connect(proxy.url) as bob,
            ann.doing(*steps, number=7, _meta={"progressToken": "t"}) as doing,
        ):
            await doing.until("notifications/progress")
            if how == "cancelled":
                await ann.notify("notifications/cancelled", {"requestId": 7})
            else:
                await ann.delete()
            assert (await bob.do(echo="b"))["echo"] == "b"
            assert [type(failure) for failure in hook.failures] == [RequestCancelled]
        tasks.cancel_scope.cancel()


async def test_what_a_hook_returns_has_to_be_a_result(caplog: pytest.LogCaptureFixture) -> None:
    """Who has forgotten `return` is told so, and in which hook."""

    async def forgetful(request: Request, call_next: CallNext) -> Result:
        result = await call_next(request)
        return None if request.method == "tools/call" else result  # type: ignore[return-value]

    async with embedded(hooks=[forgetful]) as proxy, connect(proxy.url) as client:
        answer = await client.request("tools/call", calling())
        assert answer["error"]["code"] == -32603
    (failed,) = [record for record in caplog.records if record.exc_info]
    told = "forgetful: a hook returns a Result, not NoneType"
    assert told in str(failed.exc_info and failed.exc_info[1])


async def test_what_fails_in_a_group_of_a_hooks_tasks_is_told_as_it_is() -> None:
    """DESIGN 5.4: a task group wraps up what its tasks raise."""

    async def hook(request: Request, call_next: CallNext) -> Result:
        found: list[Result] = []

        async def forward() -> None:
            found.append(await call_next(request))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(forward)
        return found[0]

    async with embedded(hooks=[on_calls(hook)]) as proxy, connect(proxy.url) as client:
        refusal = {"code": 7, "message": "No."}
        answer = await client.request("tools/call", calling({"replies": {"error": refusal}}))
        assert answer["error"] == refusal


async def test_a_hook_that_is_cancelled_by_what_it_waits_for_fails_its_one_request() -> None:
    """DESIGN 5.1: a task of its own was cancelled; nobody else's requests end with that."""
    counts: list[int] = []

    async def hook(request: Request, call_next: CallNext) -> Result:
        if request.params["arguments"].get("echo") == "cancelled":
            task = asyncio.create_task(anyio.sleep(3600))
            task.cancel()
            await task
        return await call_next(request)

    async with embedded(hooks=[on_calls(hook)]) as proxy:
        async with connect(proxy.url) as ann, connect(proxy.url) as bob:
            async with bob.doing({"log": 1}, {"wait": "go"}, echo="others") as incoming:
                await incoming.until("notifications/message")
                calling_off = calling(echo="cancelled")
                answer = await ann.request("tools/call", calling_off)
                assert answer["error"]["code"] == -32603
                await bob.do({"release": "go"}, number=2)
                assert (await incoming.answer())["result"]["structuredContent"]["echo"] == "others"
            counts.append((await ann.do())["count"])
    assert counts == [1], "a proxy that ends so ends without an error"


async def test_the_catalogues_own_requests_have_no_owner() -> None:
    """A hook can tell what a client asks from what the proxy asks for all of them."""
    found: list[tuple[str, str | None]] = []

    async def hook(request: Request, call_next: CallNext) -> Result:
        found.append((request.method, request.owner))
        return await call_next(request)

    async with embedded(two(), hooks=[hook]) as proxy, http() as pool:
        modern = Modern(pool, proxy.url)
        offered = (await modern.post("server/discover")).json()["result"]
        assert "experimental" in offered["capabilities"], "they were asked, not guessed"
        assert {owner for _, owner in found} == {None}
        found.clear()
        await modern.call(name="one_do")
        assert ("tools/call", "local") in found


async def test_a_hook_may_send_a_call_to_another_server() -> None:
    """Issue: hooks around several servers; DESIGN 5.12: what that one has lost is told, once."""

    async def hook(request: Request, call_next: CallNext) -> Result:
        return await call_next(request.with_params({**request.params, "name": "two_do"}))

    async with embedded(two(), hooks=[on_calls(hook)]) as proxy:
        async with connect(proxy.url) as client:
            await client.request("tools/call", calling({"exit": 1}, name="one_do"))
            told = await client.request("tools/call", calling(name="one_do"))
            assert told["result"]["content"][0]["text"].startswith("Server 'two': Its state was")
            assert (await client.do(name="one_do"))["count"] == 1


FOREVER: Final = 3600


async def test_a_session_that_ends_takes_its_hooks_along() -> None:
    """DESIGN 5.2: one that goes on all the same starts nothing any more."""
    waits, failed = anyio.Event(), anyio.Event()

    async def hook(request: Request, call_next: CallNext) -> Result:
        waits.set()
        try:
            await anyio.sleep(FOREVER)
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await call_next(request)
                except BackendGone:
                    failed.set()
        raise AssertionError

    async with embedded(two(), hooks=[on_calls(hook)]) as proxy:
        async with connect(proxy.url) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(client.request, "tools/call", calling(name="one_do"))
            await waits.wait()
            assert (await client.delete()).status_code == 204
            with anyio.fail_after(10):
                await failed.wait()
        assert proxy.processes() == []


async def test_what_a_hook_leaves_behind_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """DESIGN 5.3: its own answer counts, and what it had begun is cancelled at the backend."""
    left: list[asyncio.Task[object]] = []

    async def hook(request: Request, call_next: CallNext) -> Result:
        left.append(asyncio.ensure_future(call_next(request)))
        await anyio.lowlevel.checkpoint()
        return Result.of({"content": [], "mine": True})

    async with embedded(hooks=[on_calls(hook)]) as proxy, connect(proxy.url) as client:
        for _ in range(2):
            answer = await client.request("tools/call", calling({"sleep": 60}))
            assert answer["result"]["mine"] is True
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def test_a_tool_of_this_process_knows_its_request_and_what_hooks_have_set() -> None:
    """Hooks stand around it as middleware does: ContextVars that they set are seen behind them."""
    server = MCPServer[Any]("who")

    @server.tool()
    async def who() -> dict[str, str | None]:
        request = current_request.get()
        assert request is not None
        return {"user": USER.get(), "name": request.name, "owner": request.owner}

    async def hook(request: Request, call_next: CallNext) -> Result:
        USER.set("set by a hook")
        return await call_next(request)

    assert callable(who)
    async with embedded(server, hooks=[hook]) as proxy, connect(proxy.url) as client:
        answer = await client.request("tools/call", {"name": "who", "arguments": {}})
        found = answer["result"]["structuredContent"]
        assert found == {"user": "set by a hook", "name": "who", "owner": "local"}
        assert USER.get() == "nobody"

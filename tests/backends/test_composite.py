"""Several servers behind one session (issue "composite backend", DESIGN 5 for each of them)."""

import asyncio  # noqa: TID251 - for what runs between two steps of a task
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import anyio
import pytest

from sessionproxy import ProxyClient, create_proxy
from sessionproxy.core import waiting
from sessionproxy.core.context import current_exchange
from sessionproxy.core.exchange import Exchange, Forwarded
from sessionproxy.core.hooks import CallNext, Request, Result
from sessionproxy.core.session import Session
from sessionproxy.core.state import EndReason, SessionState, StopReason
from sessionproxy.errors import ProxyError
from tests.rig.embedded import SCRIPTED, Embedded, embedded, gone, lives, scripted, until
from tests.rig.http import Client, Json, calling, connect, http, request
from tests.rig.modern import Modern
from tests.rig.several import DOWN, UNAVAILABLE, listing, names, servers, two
from tests.rig.sse import sse

FAULT: Final = "sessionproxy/fault"
FORM: Final[Json] = {
    "method": "elicitation/create",
    "params": {"message": "Who?", "requestedSchema": {"type": "object", "properties": {}}},
}


def parts(proxy: Embedded, name: str) -> Sequence[Session]:
    """The sessions of one server's parts, awake or asleep."""
    (member,) = (m for m in proxy.app.running.members if m.name == name)
    registry = member.manager.registry
    return (*registry.awake(), *registry.asleep())


def part(proxy: Embedded, name: str) -> Session:
    (found,) = parts(proxy, name)
    return found


LOST_BY_ONE = {"kind": "state_lost", "outcome": "not_executed", "server": "one"}


async def call(client: Client, name: str, *steps: Json, **more: object) -> Json:
    """Return the whole result of a call that takes `steps`."""
    answer = await client.request("tools/call", calling(*steps, name=name, **more))
    return answer.get("result") or answer["error"]


def text_of(result: Json) -> str:
    return result["content"][0]["text"] if "content" in result else result["message"]


# -- names -----------------------------------------------------------------------------------------


ALL: Final = {
    "tools": ["read"],
    "prompts": ["greet"],
    "resources": ["file:///a", "note://x/y?q=1", "urn:isbn:1"],
    "templates": ["file:///{path}", "weather://{city}/now"],
}


async def test_all_lists_have_the_names_of_row_12() -> None:
    """PARITY 12: byte-exact names in all four lists, of both eras."""
    shown = {
        ("tools/list", "tools", "name"): ["a_read", "b_read"],
        ("prompts/list", "prompts", "name"): ["a_greet", "b_greet"],
        ("resources/list", "resources", "uri"): [
            *("file://a//a", "note://a/x/y?q=1", "urn:isbn:1"),
            *("file://b//a", "note://b/x/y?q=1"),
        ],
        ("resources/templates/list", "resourceTemplates", "uriTemplate"): [
            *("file://a//{path}", "weather://a/{city}/now"),
            *("file://b//{path}", "weather://b/{city}/now"),
        ],
    }
    both = servers(a=listing(**ALL), b=listing(**ALL))
    async with embedded(both) as proxy, connect(proxy.url) as client, http() as pool:
        modern = Modern(pool, proxy.url)
        for (method, member, key), expected in shown.items():
            assert await names(client, method, member, key) == expected
            answer = (await modern.post(method)).json()
            assert [item[key] for item in answer["result"][member]] == sorted(expected)
            assert UNAVAILABLE not in answer["result"].get("_meta", {})


async def test_each_server_gets_what_is_its_own_under_its_own_name() -> None:
    """PARITY 12: calls map back to the original name; DESIGN 5.4: the rest stays as it is."""
    async with embedded(two()) as proxy, connect(proxy.url) as client:
        sent: list[tuple[str, Json, Json]] = [
            ("prompts/get", {"name": "two_greet", "arguments": {"a": "b"}}, {"name": "greet"}),
            ("resources/read", {"uri": "note://two/x"}, {"uri": "note://x"}),
            ("resources/subscribe", {"uri": "note://two/x", "_x": 1}, {"uri": "note://x"}),
            ("resources/unsubscribe", {"uri": "note://two/x"}, {"uri": "note://x"}),
            (
                "completion/complete",
                {"ref": {"type": "ref/prompt", "name": "two_greet"}, "argument": {"name": "a"}},
                {"ref": {"type": "ref/prompt", "name": "greet"}},
            ),
            (
                "completion/complete",
                {"ref": {"type": "ref/resource", "uri": "note://two/{x}"}, "argument": {}},
                {"ref": {"type": "ref/resource", "uri": "note://{x}"}},
            ),
        ]
        for method, params, expected in sent:
            result = (await client.request(method, params))["result"]
            assert (result["method"], result["params"]) == (method, {**params, **expected})
        assert parts(proxy, "one") == ()


async def test_what_no_server_has_is_refused_as_each_era_wants_it() -> None:
    """2025-11-25 server/resources#error-handling (-32002), 2026-07-28 (-32602)."""
    async with embedded(two()) as proxy, connect(proxy.url) as client, http() as pool:
        unknown = await call(client, "three_do")
        assert (unknown["code"], unknown["message"]) == (-32602, "Unknown tool: three_do")
        params = {"uri": "note://three/x"}
        error = (await client.request("resources/read", params))["error"]
        assert error == {"code": -32002, "message": "Resource not found", "data": params}
        answer = (await Modern(pool, proxy.url).post("resources/read", params)).json()
        assert answer["error"]["code"] == -32602
        other = await client.request("x/y")
        assert other["error"]["code"] == -32601
        assert parts(proxy, "one") == parts(proxy, "two") == ()


async def test_links_in_results_and_questions_name_the_server() -> None:
    """Issue: links inside results; PARITY 12. What is text stays as it is."""
    link = {"type": "resource_link", "uri": "note://x", "name": "x"}
    content = [{"type": "text", "text": "note://x"}, link]
    result = {"content": content, "structuredContent": {"uri": "note://x"}}
    messages = [{"role": "user", "content": {"type": "resource", "resource": {"uri": "note://x"}}}]
    on: Json = {
        "prompts/get": [{"replies": {"result": {"messages": messages}}}],
        "resources/read": [{"replies": {"result": {"contents": [{"uri": "note://x"}]}}}],
    }
    async with embedded(servers(a=scripted(on=on), b=SCRIPTED)) as proxy:
        async with connect(proxy.url) as client:
            found = await call(client, "a_do", {"replies": {"result": result}})
            assert found["content"] == [content[0], {**link, "uri": "note://a/x"}]
            assert found["structuredContent"] == {"uri": "note://x"}
            found = (await client.request("prompts/get", {"name": "a_x"}))["result"]
            assert found["messages"][0]["content"]["resource"]["uri"] == "note://a/x"
            found = (await client.request("resources/read", {"uri": "note://a/x"}))["result"]
            assert found["contents"] == [{"uri": "note://a/x"}]
            sampling = {"method": "sampling/createMessage", "params": {"messages": messages}}
            async with client.doing({"ask": sampling}, name="a_do") as incoming:
                asked = await incoming.until("sampling/createMessage")
                content = asked["params"]["messages"][0]["content"]
                assert content["resource"]["uri"] == "note://a/x"
                await client.respond(asked["id"], result={"role": "assistant"})
                await incoming.answer()


async def test_a_prefix_that_begins_another_one_is_told_apart_by_the_lists() -> None:
    """Ours: `a_b_c` is the tool `b_c` of `a` or `c` of `a_b`; the list says, else the longer."""
    configuration = servers(a=listing(tools=["b_c", "b_x"]), a_b=listing(tools=["c", "d"]))
    async with embedded(configuration) as proxy, connect(proxy.url) as client:
        assert await names(client, "tools/list", "tools", "name") == ["a_b_c", "a_b_x", "a_b_d"]
        (one,), (other,) = parts(proxy, "a"), parts(proxy, "a_b")
        pids = {
            name: (await call(client, name))["structuredContent"]["pid"]
            for name in ("a_b_c", "a_b_x", "a_b_d", "a_b_unknown")
        }
        assert pids["a_b_c"] == pids["a_b_x"] != pids["a_b_d"] == pids["a_b_unknown"]
        assert one.state is other.state is SessionState.READY


# -- starting --------------------------------------------------------------------------------------


async def test_a_server_starts_once_when_it_is_first_needed() -> None:
    """Issue: one start per server per session, lazily; DESIGN 5.2: two first calls start one."""
    async with embedded(two()) as proxy, connect(proxy.url) as client:
        assert proxy.processes() == []
        found: list[Json] = []

        async def first(number: int) -> None:
            found.append(await client.do(name="one_do", number=number))

        async with anyio.create_task_group() as tasks:
            for number in (1, 2, 3):
                tasks.start_soon(first, number)
        assert len({each["pid"] for each in found}) == len(proxy.processes()) == 1
        assert parts(proxy, "two") == ()
        assert (await client.do(name="two_do"))["count"] == 1
        assert len(proxy.processes()) == 2


async def test_a_server_sees_the_opening_of_the_client_itself() -> None:
    """DESIGN 5.4: capabilities and client info are the client's; and once `initialized`."""
    async with embedded(two()) as proxy, connect(proxy.url, capabilities={"x": {}}) as client:
        seen = (await client.do({"tells": "seen"}, name="one_do"))["seen"]
        assert [m["method"] for m in seen] == [
            *("initialize", "notifications/initialized", "tools/call")
        ]
        assert seen[0]["params"]["capabilities"] == {"x": {}}
        assert seen[0]["params"]["clientInfo"] == {"name": "tests", "version": "1"}


async def test_calls_to_different_servers_do_not_wait_for_each_other() -> None:
    """Issue: not for a call, nor for a start."""
    slow = scripted(initialize=[{"wait": "ever"}])
    async with (
        embedded(two(slow=slow)) as proxy,
        connect(proxy.url) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(call, client, "slow_do")
        async with client.doing({"log": 1}, {"wait": "go"}, name="one_do", number=1) as held:
            await until(lambda: len(parts(proxy, "one")) == len(parts(proxy, "slow")) == 1)
            assert (await client.do(name="two_do", number=3))["count"] == 1
            await client.do({"release": "go"}, name="one_do", number=4)
            assert (await held.answer())["result"]
        tasks.cancel_scope.cancel()


async def cancelled(client: Client, number: int, name: str = "slow_do") -> None:
    """Call what starts slowly; the call is cancelled."""
    answer = await client.request("tools/call", calling(name=name), number=number)
    assert answer["error"]["code"] == -32800


async def test_a_call_that_waits_for_a_start_can_be_cancelled() -> None:
    """DESIGN 5.9, both eras; the start goes on for whoever comes next."""
    slow = scripted(initialize=[{"sleep": 0.3}])
    async with embedded(servers(slow=slow, other=SCRIPTED)) as proxy:
        async with connect(proxy.url) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancelled, client, 7)
                await until(lambda: bool(parts(proxy, "slow")))
                await client.notify("notifications/cancelled", {"requestId": 7})
            assert (await client.do(name="slow_do"))["count"] == 1
        async with http() as pool:
            modern = Modern(pool, f"{proxy.url}/s/modern")
            await modern.post("tools/list")
            with anyio.move_on_after(0.1):
                async with modern.open("tools/call", calling(name="slow_do")) as incoming:
                    await incoming.answer()
            result = await modern.call(name="slow_do")
            assert result["structuredContent"]["count"] == 1
            assert len(proxy.processes()) == 2  # of the two clients


async def test_a_call_that_is_cancelled_leaves_the_queue() -> None:
    """DESIGN 7: also one whose server had to be found out by lists first."""
    both = servers(a=listing(tools=["x"]), a_b=listing(tools=["c"]))
    async with embedded(both, max_sessions=2) as proxy:
        async with connect(proxy.url) as client, connect(proxy.url) as other:
            await client.request("tools/list")
            found, admission = part(proxy, "a_b"), proxy.app.running.admission
            found.stop(StopReason.IDLE)
            found.loss = None
            await until(lambda: found.state is SessionState.ASLEEP)
            await other.do(name="a_x")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancelled, client, 7, "a_b_c")
                await until(lambda: admission.queued == 1)
                await client.notify("notifications/cancelled", {"requestId": 7})
            await until(lambda: admission.queued == 0)


@pytest.mark.parametrize(("bound", "most"), [("MAX_WAITING", 2), ("MAX_WAITING_BYTES", 2500)])
async def test_what_waits_for_a_server_is_bounded(
    bound: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.3, FAULTS F16: it fails, and was not executed; what is cancelled leaves room."""
    monkeypatch.setattr(waiting, bound, most)
    silent = scripted(initialize=[{"wait": "ever"}])
    async with (
        embedded(servers(silent=silent, other=SCRIPTED)) as proxy,
        connect(proxy.url) as client,
        anyio.create_task_group() as tasks,
    ):
        (whole,) = proxy.manager.registry.awake()

        async def wait(number: int) -> None:
            call = calling(name="silent_do", fill="x" * 1000)
            await client.request("tools/call", call, number=number)

        for number in (2, 3):
            tasks.start_soon(wait, number)
        await until(lambda: whole.leases == 2)
        refused = await call(client, "silent_do", fill="x" * 1000)
        assert refused["_meta"][FAULT] == {"kind": "backend_busy", "outcome": "not_executed"}
        await client.notify("notifications/cancelled", {"requestId": 3})
        await until(lambda: whole.leases == 1)
        tasks.start_soon(wait, 4)
        await until(lambda: whole.leases == 2)
        tasks.cancel_scope.cancel()


# -- what cannot be had ----------------------------------------------------------------------------


async def test_a_call_that_may_be_for_a_server_whose_list_fails_is_not_executed() -> None:
    """DESIGN 11: and is told why; names that can be no one's but another server's work."""
    dies = scripted(on={"tools/list": [{"exit": 3}]})
    both = servers(a=dies, a_b=listing(tools=["c"]), other=SCRIPTED)
    async with embedded(both) as proxy, connect(proxy.url) as client:
        failed = await call(client, "a_b_c")
        assert text_of(failed) == "Server 'a': The backend ended: exit status 3."
        assert failed["_meta"][FAULT]["outcome"] == "not_executed"
        assert (await client.do(name="other_do"))["count"] == 1


@pytest.mark.usefixtures("both_ways")
async def test_a_server_that_is_down_is_named_and_the_others_are_there() -> None:
    """PARITY 13, 21: others list; a call fails with its name; `/readyz` shows it."""
    with_tools = listing(tools=["t"])
    async with embedded(servers(one=with_tools, bad=DOWN)) as proxy:
        async with connect(proxy.url) as client, http() as pool:
            answer = await client.request("tools/list")
            assert [tool["name"] for tool in answer["result"]["tools"]] == ["one_t"]
            reason = answer["result"]["_meta"][UNAVAILABLE]["bad"]
            assert reason.startswith("Server 'bad': ")
            failed = await call(client, "bad_do")
            assert failed["isError"]
            assert text_of(failed) == reason
            assert (await client.do(name="one_t"))["count"] == 2
            modern = Modern(pool, proxy.url)
            found = (await modern.post("tools/list")).json()["result"]
            assert [tool["name"] for tool in found["tools"]] == ["one_t"]
            assert found["_meta"][UNAVAILABLE] == {"bad": reason}
            assert found["ttlMs"] <= 5000, "asked for again soon"
            ready = (await pool.get(f"{proxy.base}/readyz")).json()
            assert ready["servers"]["one"] == {"status": "up", "sessions": 1}
            assert ready["servers"]["bad"]["status"] == "down"


async def test_lists_do_not_try_a_server_again_that_has_just_failed() -> None:
    """Ours: clients ask for four lists in a row, and each try would be one towards its rest."""
    async with embedded(two(bad=DOWN)) as proxy, connect(proxy.url) as client, http() as pool:
        bad = proxy.app.running.members[-1]
        failed: list[str] = []
        counted = bad.manager.circuit.failed

        def failing(now: float) -> None:
            failed.append("once")
            counted(now)

        bad.manager.circuit.failed = failing
        for method in ("tools/list", "prompts/list", "resources/list", "resources/templates/list"):
            answer = await client.request(method)
            assert list(answer["result"]["_meta"][UNAVAILABLE]) == ["bad"]
        assert failed == ["once"]
        assert text_of(await call(client, "bad_x")).startswith("Server 'bad'")
        assert failed == ["once"] * 2, "a call does try"
        await Modern(pool, proxy.url).post("tools/list")
        assert failed == ["once"] * 3, "nor does the catalogue"


async def test_a_server_that_rests_is_named_too() -> None:
    """DESIGN 7: after 5 failures; the answer is the call's alone (11: 200)."""
    async with embedded(two(bad=DOWN)) as proxy, connect(proxy.url) as client, http() as pool:
        for _ in range(5):
            await call(client, "bad_x")
        failed = await call(client, "bad_x")
        assert text_of(failed).startswith("Server 'bad': It does not start; try again in ")
        assert failed["_meta"][FAULT]["outcome"] == "not_executed"
        ready = (await pool.get(f"{proxy.base}/readyz")).json()
        assert ready["servers"]["bad"]["status"] == "resting"


async def test_where_all_are_down_it_is_an_error() -> None:
    """PARITY 21: never an empty list."""
    async with embedded(servers(a=DOWN, b=DOWN)) as proxy, connect(proxy.url) as client:
        answer = await client.request("tools/list")
        told = answer["error"]["message"]
        assert told.startswith("Server 'a': ")
        assert " Server 'b': " in told
        async with http() as pool:
            found = (await Modern(pool, proxy.url).post("tools/list")).json()
            assert "Server 'a': " in found["error"]["message"]
            assert "Server 'b': " in found["error"]["message"]


async def test_a_server_that_never_answers_is_missing_from_lists() -> None:
    """Ours: neither `initialize` nor a list may hold up the others for longer than a start."""
    mute = scripted(initialize=[{"wait": "ever"}])
    hangs = scripted(on={"tools/list": [{"wait": "ever"}]})
    configuration = servers(one=listing(tools=["t"]), mute=mute, hangs=hangs)
    async with embedded(configuration, start_timeout=1) as proxy, http() as pool:
        found = (await Modern(pool, proxy.url).post("tools/list")).json()["result"]
        assert [tool["name"] for tool in found["tools"]] == ["one_t"]
        assert set(found["_meta"][UNAVAILABLE]) == {"mute", "hangs"}
        async with connect(proxy.url) as client:
            found = (await client.request("tools/list"))["result"]
            assert [tool["name"] for tool in found["tools"]] == ["one_t"]
            assert "did not answer tools/list in 1 s" in found["_meta"][UNAVAILABLE]["hangs"]
            seen = (await client.do({"tells": "seen"}, name="hangs_do"))["seen"]
            assert "notifications/cancelled" in [message.get("method") for message in seen]


async def test_the_catalogue_takes_up_nobodys_place() -> None:
    """DESIGN 7: limits count the backends of sessions; so it is with one server."""
    async with (
        embedded(two(), max_sessions=1, queue_timeout=0.2) as proxy,
        connect(proxy.url) as client,
    ):
        await client.do(name="one_do")
        refused = await call(client, "two_do")
        assert text_of(refused).startswith("Server 'two': There is no room; try again in ")
        async with http() as pool:
            answer = (await Modern(pool, proxy.url).post("tools/list")).json()
            assert UNAVAILABLE not in answer["result"].get("_meta", {})


# -- what is lost ----------------------------------------------------------------------------------


async def test_a_server_that_dies_takes_nothing_of_the_others_along() -> None:
    """DESIGN 5.12: the loss is told once, names the server, and the fresh one is as before."""
    async with embedded(two()) as proxy, connect(proxy.url) as client:
        await client.request("resources/subscribe", {"uri": "note://one/x"})
        await client.request("logging/setLevel", {"level": "error"})
        before = await client.do(name="one_do")
        async with client.doing({"log": 1}, {"wait": "go"}, name="two_do", number=1) as held:
            await until(lambda: bool(parts(proxy, "two")))
            died = await call(client, "one_do", {"exit": 3})
            assert text_of(died) == "Server 'one': The backend ended: exit status 3."
            await client.do({"release": "go"}, name="two_do", number=2)
            other = (await held.answer())["result"]["structuredContent"]
        told = await call(client, "one_do")
        assert told["_meta"][FAULT] == LOST_BY_ONE
        assert "Server 'one': The previous session state was lost" in text_of(told)
        after = await client.do({"tells": "seen"}, name="one_do")
        assert after["pid"] != before["pid"]
        said = [(m.get("method"), m.get("params", {}).get("uri")) for m in after["seen"]]
        assert said[1:4] == [
            ("notifications/initialized", None),
            ("logging/setLevel", None),
            ("resources/subscribe", "note://x"),
        ]
        assert (await client.do(name="two_do"))["pid"] == other["pid"]


async def test_losses_of_two_servers_are_told_one_by_one_in_a_batch() -> None:
    """DESIGN 5.12; 2025-03-26 has batches."""
    async with embedded(two()) as proxy, connect(proxy.url, version="2025-03-26") as client:
        for name in ("one_do", "two_do"):
            await call(client, name, {"exit": 1})
        batch = [
            request("tools/call", calling(name=name), number)
            for number, name in enumerate(("one_do", "two_do", "one_do"), 1)
        ]
        answers = {each["id"]: each["result"] for each in (await client.post(batch)).json()}
        assert ["'one'" in text_of(answers[n]) for n in (1, 2, 3)] == [True, False, True]
        assert all(each["_meta"][FAULT]["kind"] == "state_lost" for each in answers.values())
        for name in ("one_do", "two_do"):
            assert (await client.do(name=name))["count"] == 1


async def renaming(request: Request, call_next: CallNext) -> Result:
    """A hook that has a name of its own for a tool."""
    if request.name == "mine":
        request = request.with_params({**request.params, "name": "one_do"})
    return await call_next(request)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("between", ["hooks", "renaming", "tracing"])
async def test_what_stands_before_the_servers_hides_no_loss(between: str) -> None:
    """DESIGN 5.12: once, whatever looks at requests on their way, or changes them."""

    async def hook(request: Request, call_next: CallNext) -> Result:
        return await call_next(request)

    hooks = {"hooks": [hook], "renaming": [renaming]}.get(between, [])
    tracing = "on" if between == "tracing" else "off"
    name = "mine" if between == "renaming" else "one_do"
    async with embedded(two(), hooks=hooks, tracing=tracing) as proxy:
        async with connect(proxy.url) as client:
            await call(client, name, {"exit": 1})
            told = await call(client, name)
            assert told["_meta"][FAULT] == LOST_BY_ONE
            assert "server 'one'" in text_of(told).lower()
            assert (await client.do(name=name))["count"] == 1


@pytest.mark.parametrize("kind", ["modern", "sse"])
async def test_a_loss_behind_a_hook_is_told_once_to_clients_of_all_kinds(kind: str) -> None:
    """DESIGN 7, `on_loss`: what the frontend has not seen before counts as told all the same."""
    async with embedded(two(), hooks=[renaming], sse="on") as proxy:
        async with http() as pool, sse(proxy.base) as stream:
            modern = Modern(pool, f"{proxy.url}/s/modern")
            await stream.initialize()

            async def do(*steps: Json) -> Json:
                if kind == "modern":
                    return await modern.call(*steps, name="mine")
                answer = await stream.request("tools/call", calling(*steps, name="mine"))
                return answer["result"]

            assert (await do({"exit": 1}))["isError"]
            assert (await do())["_meta"][FAULT]["kind"] == "state_lost"
            assert (await do())["structuredContent"]["count"] == 1


@pytest.mark.usefixtures("both_ways")
async def test_a_loss_that_comes_while_a_hook_works_is_told_once() -> None:
    """DESIGN 7, `on_loss`: the frontend has passed the call on before it."""
    began, goes_on = anyio.Event(), anyio.Event()

    async def hook(request: Request, call_next: CallNext) -> Result:
        if request.method == "tools/call" and request.params["arguments"]["echo"] == "slow":
            began.set()
            await goes_on.wait()
        return await call_next(request)

    async with embedded(two(), hooks=[hook]) as proxy, connect(proxy.url) as client:
        for _ in range(2):
            await client.do(name="one_do")
        told: list[Json] = []

        async def slow() -> None:
            told.append(await call(client, "one_do", echo="slow", number=7))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow)
            await began.wait()
            await call(client, "one_do", {"exit": 1})
            goes_on.set()
        assert told[0]["_meta"][FAULT]["kind"] == "state_lost"
        assert (await client.do(name="one_do"))["count"] == 1


async def test_a_loss_that_nobody_has_read_of_is_told_again() -> None:
    """DESIGN 7, `on_loss`: until the first telling was written. A hook has kept the frontend from
    seeing whose the call is, and its client hangs up while the server waits for its place."""
    seen: list[Exchange | None] = []

    async def hook(request: Request, call_next: CallNext) -> Result:
        seen.append(current_exchange.get())
        return await renaming(request, call_next)

    async with embedded(two(), hooks=[hook], max_sessions=1) as proxy:
        async with connect(proxy.url) as client, connect(proxy.url) as other:
            await call(client, "mine", {"exit": 1})
            await until(lambda: part(proxy, "one").state is SessionState.ASLEEP)
            await other.do(name="two_do")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, client, "mine")
                await until(lambda: proxy.app.running.admission.queued == 1)
                tasks.cancel_scope.cancel()
            exchange = seen[-1]
            assert exchange is not None
            await until(lambda: not exchange.sink.attached)
            await other.delete()
            await until(lambda: exchange.outcome is not None)
            told = await call(client, "mine")
            assert told["_meta"][FAULT]["kind"] == "state_lost"
            assert (await client.do(name="mine"))["count"] == 1


async def test_where_losses_are_annotated_the_note_names_the_server() -> None:
    """DESIGN 7, `on_loss`: the result runs, the note is added."""
    both = servers(one=listing(tools=["another"]), two=SCRIPTED)
    async with embedded(both, on_loss="annotate") as proxy, connect(proxy.url) as client:
        await client.request("tools/list")
        await call(client, "one_do", {"exit": 1})
        noted = await call(client, "one_do")
        assert noted["_meta"]["sessionproxy/loss"]["server"] == "one"
        assert noted["structuredContent"]["count"] == 1
        assert "_meta" not in await call(client, "one_do")


async def test_a_request_that_waits_while_its_server_dies_is_not_run_on_a_fresh_one() -> None:
    """DESIGN 5.12: it came before the loss, which is then told to the next one."""
    tools: Json = {"tools": [{"name": "c", "inputSchema": {}}]}
    none: Json = {"tools": []}
    slow = scripted(on={"tools/list": [{"wait": "go"}, {"replies": {"result": none}}]})
    other = scripted(on={"tools/list": [{"replies": {"result": tools}}]})
    async with embedded(servers(a=slow, a_b=other)) as proxy, connect(proxy.url) as client:
        await client.request("resources/read", {"uri": "note://a_b/x"})
        answers: list[Json] = []

        async def wait() -> None:
            answers.append(await call(client, "a_b_c"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await until(lambda: any(found.leases for found in parts(proxy, "a")))
            dying = {"uri": "note://a_b/x", "_meta": {"steps": [{"exit": 1}]}}
            assert (await client.request("resources/read", dying, number=2))["error"]
            await call(client, "a_x", {"release": "go"}, number=3)
        (failed,) = answers
        assert text_of(failed).startswith("Server 'a_b': It ended (exit status 1) before")
        assert failed["_meta"][FAULT]["outcome"] == "not_executed"
        told = await call(client, "a_b_c")
        assert told["_meta"][FAULT]["kind"] == "state_lost"
        assert (await call(client, "a_b_c"))["structuredContent"]["count"]


async def test_a_client_of_ours_is_told_of_a_servers_loss_once() -> None:
    """DESIGN 5.12: no frontend stands before it that would tell."""
    mapping = {name: {"command": SCRIPTED[0], "args": list(SCRIPTED[1:])} for name in ("a", "b")}
    async with ProxyClient({"mcpServers": mapping}) as client:
        with pytest.raises(ProxyError, match="Server 'a': The backend ended"):
            await client.call_tool("a_do", {"steps": [{"exit": 1}]})
        with pytest.raises(ProxyError, match="Server 'a': Its state was lost"):
            await client.call_tool("a_do", {"steps": []})
        again = await client.call_tool("a_do", {"steps": []})
        assert (again.structured_content or {})["count"] == 1


async def test_a_client_of_ours_is_told_once_also_behind_a_hook() -> None:
    """DESIGN 5.12: a hook has a name of its own for the tool."""
    mapping = {name: {"command": SCRIPTED[0], "args": list(SCRIPTED[1:])} for name in ("one", "b")}
    async with create_proxy({"mcpServers": mapping}, hooks=[renaming]) as made:
        with pytest.raises(ProxyError, match="Server 'one': The backend ended"):
            await made.call_tool("mine", {"steps": [{"exit": 1}]})
        with pytest.raises(ProxyError, match="state was lost"):
            await made.call_tool("mine", {"steps": []})
        again = await made.call_tool("mine", {"steps": []})
        assert (again.structured_content or {})["count"] == 1


async def test_what_slept_for_too_long_is_still_told_of() -> None:
    """DESIGN 5.12: a part is forgotten after `session_ttl`; that its state was lost is not."""
    async with embedded(two()) as proxy, connect(proxy.url) as client:
        await client.request("resources/subscribe", {"uri": "note://one/x"})
        await call(client, "one_do", {"exit": 1})
        found = part(proxy, "one")
        await until(lambda: found.state is SessionState.ASLEEP)
        member = proxy.app.running.members[0]
        member.manager.end(found, EndReason.EXPIRED)
        assert (await client.request("completion/complete", completing("one_x")))["result"]
        told = await call(client, "one_do")
        assert told["_meta"][FAULT]["kind"] == "state_lost"
        seen = (await client.do({"tells": "seen"}, name="one_do"))["seen"]
        assert "resources/subscribe" in [message.get("method") for message in seen]


def completing(name: str) -> Json:
    return {"ref": {"type": "ref/prompt", "name": name}, "argument": {"name": "a", "value": ""}}


async def test_a_question_of_a_server_that_is_stopped_is_taken_back() -> None:
    """DESIGN 5.3: nobody is left with a form that no server waits for."""
    stubborn = servers(one=scripted(eof=[{"wait": "ever"}]), two=SCRIPTED)
    async with embedded(stubborn, call_timeout=0.2) as proxy, connect(proxy.url) as client:
        async with client.listen() as listening:
            async with client.doing({"ask": FORM}, name="one_do", number=9) as incoming:
                asked = await incoming.until("elicitation/create")
                await incoming.answer()
            for number in (1, 2):
                await call(client, "one_do", {"wait": "ever"}, number=number)
            await until(lambda: part(proxy, "one").stop_reason is StopReason.SILENT)
            note = await listening.until("notifications/cancelled")
            assert note["params"]["requestId"] == asked["id"]


# -- what goes both ways ---------------------------------------------------------------------------


async def test_questions_and_news_belong_to_the_calls_they_come_from() -> None:
    """DESIGN 8, 5.11: two servers at once, with the same ids and tokens."""
    async with embedded(two()) as proxy, connect(proxy.url) as client:
        meta = {"progressToken": "mine"}
        steps: list[Json] = [{"progress": 2}, {"log": "said"}, {"ask": FORM}]

        async def one_call(name: str, number: int) -> None:
            more = {"_meta": {**meta, "name": name}}
            async with client.doing(*steps, name=f"{name}_do", number=number, **more) as incoming:
                first, second, log, asked = [await incoming.message() for _ in range(4)]
                assert [m["params"]["progress"] for m in (first, second)] == [1, 2]
                assert first["params"]["progressToken"] == "mine"
                assert log["params"]["data"] == "said"
                assert asked["method"] == "elicitation/create"
                await client.respond(asked["id"], result={"action": "accept", "by": name})
                answers = (await incoming.answer())["result"]["structuredContent"]["answers"]
                assert [answer["result"]["by"] for answer in answers] == [name]

        for _ in range(2):  # the second time too
            async with anyio.create_task_group() as tasks:
                for number, name in enumerate(("one", "two"), 1):
                    tasks.start_soon(one_call, name, number)


async def test_a_question_outlives_the_call_that_it_was_asked_in() -> None:
    """DESIGN 8: then it is the matter of another stream that is read; 2025-11-25 cancellation."""
    question = '{"jsonrpc":"2.0","id":"q1","method":"roots/list"}\n'
    taken_back = {"method": "notifications/cancelled", "params": {"requestId": "q1"}}
    async with embedded(two()) as proxy, connect(proxy.url) as client:
        async with client.listen() as listening:
            async with client.doing({"raw": question}, name="one_do", number=1) as incoming:
                asked = await incoming.until("roots/list")
                await incoming.answer()
            await client.do({"note": taken_back}, name="one_do", number=2)
            note = await listening.until("notifications/cancelled")
            assert note["params"]["requestId"] == asked["id"]


async def test_the_clients_progress_goes_to_the_server_that_asked() -> None:
    """2025-11-25 basic/utilities/progress: of what it was asked; two servers use one token."""
    question = {**FORM, "params": {**FORM["params"], "_meta": {"progressToken": 1}}}
    async with embedded(two()) as proxy, connect(proxy.url) as client:
        async with (
            client.doing({"ask": question}, name="one_do", number=1) as one,
            client.doing({"ask": question}, name="two_do", number=2) as other,
        ):
            for name, incoming in (("one", one), ("two", other)):
                asked = await incoming.until("elicitation/create")
                token = asked["params"]["_meta"]["progressToken"]
                params = {"progressToken": token, "progress": 1, "message": name}
                await client.notify("notifications/progress", params)
                await client.respond(asked["id"], result={"action": "cancel"})
                await incoming.answer()
        for name in ("one", "two"):
            seen = (await client.do({"tells": "seen"}, name=f"{name}_do"))["seen"]
            told = [m["params"] for m in seen if m.get("method") == "notifications/progress"]
            assert told == [{"progressToken": 1, "progress": 1, "message": name}]


async def test_a_cancellation_reaches_the_server_that_works_on_it() -> None:
    """DESIGN 5.9."""
    async with embedded(two()) as proxy, connect(proxy.url) as client:
        waits: list[Json] = [{"progress": {"progress": 1}}, {"until_cancelled": None}]
        more = {"name": "two_do", "_meta": {"progressToken": 5}}
        async with client.doing(*waits, number="x", **more) as incoming:
            await incoming.until("notifications/progress")
            params = {"requestId": "x", "reason": "enough"}
            await client.notify("notifications/cancelled", params)
            assert (await incoming.answer())["error"]["code"] == -32800
        seen = (await client.do({"tells": "seen"}, name="two_do"))["seen"]
        (told,) = (m["params"] for m in seen if m.get("method") == "notifications/cancelled")
        assert told["reason"] == "enough"


async def test_a_cancellation_in_the_tick_in_which_a_page_of_a_list_arrives_leaves_nothing() -> (
    None
):
    """DESIGN 5.9: nothing stays in flight, and no page is asked for that nobody waits for."""
    page: Json = {"tools": [{"name": "t", "inputSchema": {"type": "object"}}], "nextCursor": "x"}
    paged = scripted(on={"tools/list": [{"replies": {"result": page}}]})
    pages: list[bool] = []

    def cancel() -> None:
        (session,) = proxy.manager.registry.awake()
        with session.lease() as backend:
            for exchange in backend.in_flight():
                session.cancel(exchange)

    def seen(frame: Forwarded) -> None:
        if frame.method == "tools/list":
            pages.append(frame.to_backend)
            if not frame.to_backend:  # before whoever waits for the page goes on
                asyncio.get_running_loop().call_soon(cancel)

    async with embedded(servers(one=paged, two=paged), observers=[seen]) as proxy:
        async with connect(proxy.url) as client:
            answer = await client.request("tools/list", {})
            assert answer["error"]["code"] == -32800
            await client.request("ping")
            (session,) = proxy.manager.registry.awake()
            with session.lease() as backend:
                assert backend.in_flight() == ()
    assert pages.count(True) <= 2, "of each the first one"


async def test_roots_and_what_nobody_knows_reach_all_servers_that_run() -> None:
    """PARITY 58."""
    async with embedded(two(three=SCRIPTED)) as proxy, connect(proxy.url) as client:
        await client.do(name="one_do")
        await client.do(name="two_do")
        await client.notify("notifications/roots/list_changed")
        await client.notify("notifications/x", {"y": 1})
        for name in ("one", "two"):
            seen = (await client.do({"tells": "seen"}, name=f"{name}_do"))["seen"]
            said = [m["method"] for m in seen if m.get("method", "").startswith("notifications/")]
            assert said[1:] == ["notifications/roots/list_changed", "notifications/x"]
        assert parts(proxy, "three") == ()


async def test_updates_come_under_the_uri_that_was_subscribed_to() -> None:
    """Issue: subscriptions, both eras, modern listeners too; they start nothing."""
    updated = {"method": "notifications/resources/updated", "params": {"uri": "note://x"}}
    async with embedded(two()) as proxy, http() as pool:
        async with connect(proxy.url) as client, client.listen() as listening:
            await client.request("resources/subscribe", {"uri": "note://two/x"})
            await client.do({"note": updated}, name="two_do")
            told = await listening.until("notifications/resources/updated")
            assert told["params"] == {"uri": "note://two/x"}
        modern = Modern(pool, f"{proxy.url}/s/modern")
        filters = {"notifications": {"resourceSubscriptions": ["note://two/x"]}}
        await modern.call(name="one_do")
        async with modern.open("subscriptions/listen", filters) as incoming:
            await incoming.until("notifications/subscriptions/acknowledged")
            before = len(parts(proxy, "two"))
            found = await modern.call({"tells": "seen"}, {"note": updated}, name="two_do")
            assert before == 1, "only the other client's"
            seen = [m.get("method") for m in found["structuredContent"]["seen"]]
            assert seen.count("resources/subscribe") == 1
            told = await incoming.until("notifications/resources/updated")
            assert told["params"]["uri"] == "note://two/x"


async def test_a_log_level_reaches_those_that_run_and_those_that_start_later() -> None:
    """2025-11-25 server/utilities/logging; also those that died meanwhile."""
    async with embedded(two()) as proxy, connect(proxy.url) as client:
        await client.do(name="one_do")
        for level in ("error", "debug"):
            assert (await client.request("logging/setLevel", {"level": level}))["result"] == {}
        wrong = await client.request("logging/setLevel", {"level": "loud"})
        assert wrong["error"]["code"] == -32602
        for name in ("one", "two"):
            seen = (await client.do({"tells": "seen"}, name=f"{name}_do"))["seen"]
            levels = [m["params"]["level"] for m in seen if m.get("method") == "logging/setLevel"]
            assert levels == (["error", "debug"] if name == "one" else ["debug"])


async def test_a_change_of_a_list_is_told_and_looked_at_anew() -> None:
    """PARITY 58: from any server, to handshake clients and to modern ones that listen, at the
    endpoint of all servers and at its own."""
    changed = {"method": "notifications/tools/list_changed"}
    async with embedded(servers(a=listing(tools=["t"]), b=SCRIPTED)) as proxy, http() as pool:
        own = Modern(pool, f"{proxy.base}/servers/a/mcp")
        both = Modern(pool, proxy.url)
        filters = {"notifications": {"toolsListChanged": True}}
        for modern in (own, both):
            await modern.post("tools/list")
        async with (
            own.open("subscriptions/listen", filters) as at_own,
            both.open("subscriptions/listen", filters) as at_both,
            connect(proxy.url) as client,
            client.listen() as listening,
        ):
            for incoming in (at_own, at_both):
                await incoming.until("notifications/subscriptions/acknowledged")
            await client.do({"note": changed}, name="a_t")
            for incoming in (listening, at_own, at_both):
                await incoming.until("notifications/tools/list_changed")


# -- tasks -----------------------------------------------------------------------------------------


async def test_a_task_is_asked_of_the_server_that_has_it() -> None:
    """2025-11-25 basic/utilities/tasks."""
    made = {"task": {"taskId": "t-1", "status": "working"}}
    tasks = {"tasks": [{"taskId": "t-9", "status": "working"}]}
    listing_tasks = scripted(on={"tasks/list": [{"replies": {"result": tasks}}]})
    async with embedded(servers(one=SCRIPTED, two=listing_tasks)) as proxy:
        async with connect(proxy.url) as client:
            await call(client, "one_do", {"replies": {"result": made}}, task={"ttl": 60})
            found = (await client.request("tasks/get", {"taskId": "t-1"}))["result"]
            assert found["nonce"] == (await client.do(name="one_do"))["nonce"]
            unknown = await client.request("tasks/get", {"taskId": "t-9"})
            assert unknown["error"]["code"] == -32602
            found = (await client.request("tasks/list"))["result"]
            assert [task["taskId"] for task in found["tasks"]] == ["t-9"]
            found = (await client.request("tasks/get", {"taskId": "t-9"}))["result"]
            assert found["nonce"] == (await client.do(name="two_do"))["nonce"]


# -- the end ---------------------------------------------------------------------------------------


async def test_with_the_session_all_its_servers_end() -> None:
    """DESIGN 5.6: after DELETE, and when it is idle; then it sleeps, and all is lost."""
    async with embedded(two(), idle=0.3) as proxy, connect(proxy.url) as client:
        pids = [(await client.do(name=f"{name}_do"))["pid"] for name in ("one", "two")]
        await gone(*pids)
        await until(lambda: not parts(proxy, "one") and not parts(proxy, "two"))
        told = await call(client, "two_do")
        assert "session state was lost" in text_of(told)
        pids = [(await client.do(name=f"{name}_do"))["pid"] for name in ("one", "two")]
        assert all(map(lives, pids))
        assert (await client.delete()).status_code == 204
        await gone(*pids)


async def test_a_session_that_ends_while_a_server_starts_leaves_nothing() -> None:
    """DESIGN 5.2: a start that is cut off leaves nothing running."""
    slow = scripted(initialize=[{"wait": "ever"}])
    async with embedded(servers(slow=slow, one=SCRIPTED)) as proxy, connect(proxy.url) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, client, "slow_do")
            await until(lambda: len(proxy.processes()) == 1)
            assert (await client.delete()).status_code == 204
        await until(lambda: proxy.processes() == [] and not parts(proxy, "slow"))


async def test_a_session_that_ends_while_a_server_wakes_leaves_nothing(tmp_path: Path) -> None:
    """DESIGN 5.2, of a part that had a life before."""
    lives_: Json = {"lives": [{}, {"initialize": [{"wait": "ever"}]}]}
    slow = {"command": scripted(**lives_), "env": {"TESTS_LEDGER": str(tmp_path / "ledger")}}
    configuration = servers(slow=slow, one=SCRIPTED)
    async with embedded(configuration) as proxy, connect(proxy.url) as client:
        await call(client, "slow_do", {"exit": 1})
        assert (await call(client, "slow_do"))["_meta"][FAULT]["kind"] == "state_lost"
        whole = next(iter(proxy.manager.registry.awake()))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, client, "slow_do")
            await until(lambda: len(proxy.processes()) == 1)
            assert (await client.delete()).status_code == 204
        await until(lambda: whole.state is SessionState.CLOSED)
        assert parts(proxy, "slow") == (), "its end was waited for"


@pytest.mark.parametrize("mode", ["shared", "request"])
async def test_servers_can_be_shared_or_fresh_with_every_request(mode: str) -> None:
    """PARITY 59: of several servers, too."""
    async with embedded(two(), mode=mode) as proxy:
        async with connect(proxy.url) as client, connect(proxy.url) as other:
            found = [
                await each.do(name=f"{name}_do")
                for each in (client, other, client)
                for name in ("one", "two")
            ]
        pids = [each["pid"] for each in found]
        assert len(set(pids)) == (2 if mode == "shared" else 6)
        assert [each["count"] for each in found] == (
            [1, 1, 2, 2, 3, 3] if mode == "shared" else [1] * 6
        )


async def test_what_a_server_tells_one_user_of_itself_no_other_user_hears(
    tmp_path: Path,
) -> None:
    """DESIGN 5.1: instructions may name what is one user's alone; capabilities are the server's."""
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{user} {digest(user)}\n" for user in ("ann", "bob")))
    async with embedded(two(), token_file=str(tokens)) as proxy, http() as pool:
        opened: list[Json] = []
        for user in ("ann", "bob", "ann"):
            headers = {"authorization": f"Bearer {user}"}
            client = Client(pool, proxy.url, headers=headers)
            await client.initialize()
            opened.append(client.opened["result"])
            await client.do(name="one_do")
        told = [each.get("instructions") for each in opened]
        assert told == [None, None, "# one\n\nDo as you are told."]
        assert "experimental" in opened[1]["capabilities"]


def digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()

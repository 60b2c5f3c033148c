"""DESIGN section 11, second half, and FAULTS: what a client is told when its backend fails.

In HTTP terms 200 each time: SDK clients drop the text of a 5xx.
"""

import sys
from typing import Final

import anyio
import pytest

from sessionproxy.backends import stdio
from tests.rig.embedded import embedded, scripted, session, until
from tests.rig.http import Client, Json, calling, connect, http

FAULT: Final = "sessionproxy/fault"


def fault_of(answer: Json) -> Json:
    """The fault in a failed answer: of a tool in `_meta`, else in the error's data."""
    if "result" in answer:
        result = answer["result"]
        assert result["isError"] is True
        assert result["content"][0]["text"]
        return result["_meta"][FAULT]
    assert answer["error"]["code"] == -32603
    assert answer["error"]["message"]
    return answer["error"]["data"][FAULT]


def text_of(answer: Json) -> str:
    if "result" in answer:
        return answer["result"]["content"][0]["text"]
    return answer["error"]["message"]


# -- starting --------------------------------------------------------------------------------------

SILENT: Final[Json] = {"replies": {}}

BROKEN: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "exits at once": (scripted(start=[{"exit": 3}]), "exit status 3"),
    "dies at once": (scripted(start=[{"kill": "SIGKILL"}]), "SIGKILL"),
    "exits on initialize": (scripted(initialize=[{"exit": 0}]), "exit status 0"),
    "never answers": (scripted(initialize=[SILENT]), "did not answer"),
    "answers half a line": (scripted(initialize=[{"raw": '{"jsonrpc"'}, {"sleep": 60}]), "0.5 s"),
    "never reads": (scripted(reads=0), "did not answer"),
    "only pings": (scripted(initialize=[{"ask": {"method": "ping"}}, SILENT]), "0.5 s"),
}


@pytest.mark.parametrize("fault", BROKEN)
async def test_a_backend_that_does_not_start_gets_an_error_and_leaves_nothing(fault: str) -> None:
    """FAULTS F01 to F05: -32603 with the reason, no session id, the place is free again."""
    command, says = BROKEN[fault]
    limits = embedded(command, start_timeout=0.5, stop_grace=0.1, max_sessions=1)
    async with limits as proxy, http() as pool:
        for _ in range(2):
            client = Client(pool, proxy.url)
            response = await client.initialize()
            assert response.status_code == 200
            assert client.id == ""
            assert client.opened["id"] == 1
            assert says in text_of(client.opened)
            fault_found = fault_of(client.opened)
            assert fault_found["kind"] == "backend_start_failed"
            assert fault_found["outcome"] == "not_executed"
        await until(lambda: proxy.manager.admission.running == 0)
        assert len(proxy.manager.registry) == 0
        assert proxy.processes() == []
        assert proxy.session_dirs() == []


async def test_the_last_lines_on_stderr_say_why_a_backend_did_not_start() -> None:
    """DESIGN 10, 11: by default on loopback."""
    command = scripted(start=[{"stderr": ["first", "Cannot find module 'x'"]}, {"exit": 1}])
    async with embedded(command) as proxy, http() as pool:
        client = Client(pool, proxy.url)
        await client.initialize()
        fault = fault_of(client.opened)
    assert fault["exitCode"] == 1
    assert fault["stderr"] == ["first", "Cannot find module 'x'"]


@pytest.mark.parametrize("settings", [{"expose_stderr": False}, {"local": False}], ids=str)
async def test_stderr_is_not_shown_where_it_is_not_exposed(settings: Json) -> None:
    """DESIGN 11: `expose_stderr`, by default only on loopback."""
    command = scripted(start=[{"stderr": ["secret"]}, {"exit": 1}])
    async with embedded(command, **settings) as proxy, http() as pool:
        response = await Client(pool, proxy.url).initialize()
    assert "secret" not in response.text
    assert "stderr" not in fault_of(response.json())


async def test_a_command_that_vanished_gets_an_error_that_names_it() -> None:
    """FAULTS F01: command not found."""
    async with embedded((sys.executable,), cwd="/nonexistent/{session.dir}") as proxy:
        async with http() as pool:
            client = Client(pool, proxy.url)
            await client.initialize()
            assert "/nonexistent/" in text_of(client.opened)
            assert proxy.session_dirs() == []
            assert proxy.manager.admission.running == 0


async def test_an_error_as_answer_to_initialize_comes_back_as_it_was() -> None:
    """DESIGN 5.4; nothing stays."""
    error = {"code": -32602, "message": "Unsupported", "data": {"supported": ["x"]}, "odd": 1}
    command = scripted(initialize=[{"replies": {"error": error}}])
    async with embedded(command) as proxy, http() as pool:
        client = Client(pool, proxy.url)
        response = await client.initialize()
        assert response.status_code == 200
        assert client.opened == {"jsonrpc": "2.0", "id": 1, "error": error}
        assert client.id == ""
        await until(lambda: proxy.manager.admission.running == 0)
        assert len(proxy.manager.registry) == 0


async def test_what_a_backend_says_before_it_answers_initialize_reaches_the_client() -> None:
    """2025-11-25 basic/lifecycle: the server SHOULD NOT send more than pings and logging."""
    command = scripted(initialize=[{"log": "hello"}, {"ask": {"method": "ping"}}])
    async with embedded(command) as proxy, http() as pool:
        client = Client(pool, proxy.url)
        response = await client.initialize()
        assert response.headers["content-type"] == "text/event-stream"
        assert '"hello"' in response.text
        assert '"serverInfo"' in response.text
        assert (await client.do())["count"] == 1


# -- dying -----------------------------------------------------------------------------------------

DEATHS: Final[dict[str, tuple[list[Json], Json, str]]] = {
    "exit": ([{"exit": 7}], {"exitCode": 7}, "exit status 7"),
    "exit 0": ([{"exit": 0}], {"exitCode": 0}, "exit status 0"),
    "segfault": ([{"kill": "SIGSEGV"}], {"signal": "SIGSEGV"}, "SIGSEGV"),
    "out of memory": ([{"kill": "SIGKILL"}], {"signal": "SIGKILL"}, "SIGKILL"),
    "mute": ([{"close": "stdout"}, {"wait": "never"}], {}, "closed its output"),
}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("method", ["tools/call", "resources/read"])
async def test_a_backend_that_dies_fails_all_calls_in_flight_by_name(
    death: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 11, FAULTS F06: exit code or signal named, outcome unknown."""
    monkeypatch.setattr(stdio, "MUTE_GRACE", 0.05)
    steps, facts, says = DEATHS[death]
    async with session(stop_grace=0.1) as (_, client):
        waiting = {"name": "do", "_meta": {"steps": [{"log": ""}, {"wait": "never"}]}}
        waiting["arguments"] = waiting["_meta"]
        async with client.open(method, waiting, number=9) as one:
            await one.message()
            async with client.doing({"stderr": ["why"]}, *steps, number=8) as two:
                answers = [await one.answer(), await two.answer()]
    assert [answer["id"] for answer in answers] == [9, 8]
    for answer in answers:
        fault = fault_of(answer)
        assert fault["kind"] == "backend_gone"
        assert fault["outcome"] == "unknown"
        assert {name: fault.get(name) for name in facts} == facts
        assert fault["stderr"] == ["why"]
        assert says in text_of(answer)
    assert ("error" in answers[0]) == (method != "tools/call")


async def test_a_reply_written_just_before_the_end_is_delivered() -> None:
    """DESIGN 4: what is in its pipes is read before anything is failed."""
    async with session() as (_, client):
        found = await client.do({"fill": 500_000}, {"then": [{"exit": 1}]})
        assert len(found["fill"]) == 500_000


async def test_half_a_line_at_the_end_is_a_death_like_any_other() -> None:
    """FAULTS F12."""
    async with session() as (_, client):
        steps = ({"raw": '{"jsonrpc":"2.0","id":2,"res'}, {"exit": 1})
        answer = await client.request("tools/call", calling(*steps))
        assert fault_of(answer)["exitCode"] == 1


async def test_a_question_of_a_backend_that_died_is_withdrawn_from_its_client() -> None:
    """DESIGN 5.3: the client need not go on asking its user."""
    async with session() as (_, client):
        async with client.doing({"ask": {"method": "elicitation/create"}}) as incoming:
            asked = await incoming.message()
            async with client.doing({"exit": 1}, number=2):
                pass
            cancelled = await incoming.message()
            assert cancelled["method"] == "notifications/cancelled"
            assert cancelled["params"]["requestId"] == asked["id"]
            assert fault_of(await incoming.message())["kind"] == "backend_gone"


async def test_a_crash_of_one_backend_is_no_matter_to_another_session() -> None:
    """DESIGN 5.1, 10: it costs its own session at most."""
    async with embedded() as proxy, connect(proxy.url) as one, connect(proxy.url) as two:
        async with two.doing({"log": ""}, {"wait": "go"}) as waiting:
            await waiting.message()
            await one.request("tools/call", calling({"kill": "SIGKILL"}))
            await two.do({"release": "go"})
            assert "isError" not in (await waiting.answer())["result"]


# -- silence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tools/call", "resources/read"])
async def test_a_backend_silent_past_the_call_limit_gets_the_limit_named(method: str) -> None:
    """DESIGN 11, FAULTS F08: cancelled at the backend."""
    async with session(call_timeout=0.3) as (_, client):
        meta = {"steps": [{"until_cancelled": 1}]}
        params = {"name": "do", "arguments": meta, "_meta": meta}
        answer = await client.request(method, params, number=9)
        assert fault_of(answer) == {"kind": "backend_silent", "outcome": "unknown"}
        assert "0.3 s" in text_of(answer)
        call, cancelled, _ = (await client.do({"tells": "seen"}))["seen"][2:]
    assert cancelled["method"] == "notifications/cancelled"
    assert cancelled["params"]["requestId"] == call["id"]


async def test_a_backend_silent_three_times_in_a_row_is_stopped() -> None:
    """FAULTS F08: then it sleeps, and the next call is told."""
    async with session(call_timeout=0.2, stop_grace=0.1) as (_, client):
        pid = (await client.do())["pid"]
        for _ in range(3):
            await client.request("tools/call", calling({"wait": "never"}))
        told = await client.request("tools/call", calling())
        assert fault_of(told)["kind"] == "state_lost"
        assert (await client.do())["pid"] != pid


async def test_a_backend_that_does_not_read_fails_the_calls_that_find_no_room() -> None:
    """FAULTS F16: bounded, and others untouched."""
    async with embedded(scripted(reads=2), stop_grace=0.1) as proxy:
        async with connect(proxy.url) as client:
            found: list[Json] = []
            enough = anyio.Event()

            async def call(number: int) -> None:
                params = calling(echo="x" * 1_000_000)
                found.append(await client.request("tools/call", params, number=number))
                if len(found) == 3:
                    enough.set()

            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(call, number)
                with anyio.fail_after(10):
                    await enough.wait()
                await client.delete()
    busy = [answer for answer in found if "result" in answer]
    assert len(busy) >= 3
    assert {fault_of(answer)["kind"] for answer in busy} == {"backend_busy"}
    assert {fault_of(answer)["outcome"] for answer in busy} == {"not_executed"}


# -- noise -----------------------------------------------------------------------------------------

NOISE: Final = {
    "a banner": "Server listening on stdio\n",
    "empty lines": "\n\n\r\n",
    "no UTF-8": "\xff\xfe\x00\n",
    "UTF-8 in the wrong place": '{"jsonrpc":"2.0","method":"x","params":{"a":"\xff"}}\n',
    "lone surrogate": '{"jsonrpc":"2.0","method":"x","params":{"a":"\\ud800 xxxxxxxxxxx"}}\n',
    "NaN": '{"jsonrpc":"2.0","method":"x","params":{"a":NaN}}\n',
    "deep": '{"jsonrpc":"2.0","method":"x","params":' + "[" * 100_000 + "]" * 100_000 + "}\n",
    "id null": '{"jsonrpc":"2.0","id":null,"method":"ping"}\n',
    "id float": '{"jsonrpc":"2.0","id":1.5,"method":"ping"}\n',
    "id huge": '{"jsonrpc":"2.0","id":"' + "x" * 2000 + '","method":"ping"}\n',
    "empty batch": "[]\n",
    "batch of numbers": "[1,2]\n",
    "params array": '{"jsonrpc":"2.0","method":"x","params":[1]}\n',
    "no version": '{"method":"x"}\n',
}


@pytest.mark.parametrize("noise", NOISE)
async def test_garbage_on_stdout_is_dropped_and_the_pipe_survives(noise: str) -> None:
    """FAULTS F10, F11: nothing is forwarded that the era forbids."""
    async with session() as (proxy, client), client.listen() as stream:
        async with client.doing({"raw": NOISE[noise]}, echo="mine") as incoming:
            (answer,) = await incoming.rest()
        assert answer["result"]["structuredContent"]["echo"] == "mine"
        await client.do({"then": [{"log": "next"}]})
        assert (await stream.message())["params"]["data"] == "next"
        assert (proxy.app.tally["garbage_line"] > 0) == (noise != "empty lines")


async def test_a_line_above_the_limit_fails_its_call_alone() -> None:
    """FAULTS F13: discarded to the next newline; the session lives."""
    async with session(max_line=100_000) as (proxy, client):
        async with client.doing({"log": ""}, {"wait": "go"}, number=2) as other:
            await other.message()
            answer = await client.request("tools/call", calling({"fill": 1_000_000}), number=3)
            assert answer["id"] == 3
            assert fault_of(answer) == {"kind": "result_too_large", "outcome": "unknown"}
            assert "100000 bytes" in text_of(answer)
            await client.do({"release": "go"})
            assert "isError" not in (await other.answer())["result"]
        assert proxy.app.tally["line_too_long"] == 1


async def test_a_line_may_come_in_pieces_and_late() -> None:
    """FAULTS F12: the buffer is kept."""
    note = '{"jsonrpc":"2.0","method":"x/half"}\n'
    steps = ({"raw": note[:10]}, {"sleep": 0.1}, {"raw": note[10:]})
    async with session() as (_, client), client.doing(*steps) as incoming:
        assert (await incoming.message())["method"] == "x/half"
        assert "result" in await incoming.message()


async def test_a_flood_on_stderr_blocks_nobody() -> None:
    """FAULTS F15: drained always."""
    async with session() as (_, client):
        assert (await client.do({"noise": 20_000_000}, echo="out"))["echo"] == "out"

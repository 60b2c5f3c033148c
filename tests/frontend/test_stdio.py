"""The frontend for one client on stdin and stdout, in both eras: DESIGN 7 and 9, and
basic/transports/stdio of the specification.

Most tests have the frontend in their own process, with real pipes and real backends; what only a
process shows is at the end.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
import pytest
from mcp import StdioServerParameters
from mcp.client.stdio import stdio_client

from sessionproxy.backends import stdio as backend
from sessionproxy.core.exchange import Outcome
from sessionproxy.core.session import Session
from sessionproxy.errors import BackendBusy
from sessionproxy.frontend import handshake_channel, stdio
from sessionproxy.frontend.outbox import CROWDED_BYTES
from tests.rig.embedded import lives, scripted, until
from tests.rig.http import PATIENCE, Json, calling, notification, request
from tests.rig.piped import (
    MODERN,
    Lines,
    argv,
    enveloped,
    opening,
    piped,
    process,
    program,
    told,
)
from tests.rig.processes import Census
from tests.rig.proxy import ROOT
from tests.rig.sdk import FORM, LISTING, exercise

SUBSCRIPTION: Final = "io.modelcontextprotocol/subscriptionId"


def cancelling(number: object) -> Json:
    return notification("notifications/cancelled", {"requestId": number, "reason": "tests"})


async def asked_and_answered(client: Lines, number: object) -> Json:
    """Answer the one question that comes before the answer to a request; return that."""
    question = await client.until("elicitation/create")
    result = {"action": "accept", "content": {"name": "Ann"}}
    await client.send({"jsonrpc": "2.0", "id": question["id"], "result": result})
    return await client.answer(number)


# -- the handshake era -----------------------------------------------------------------------------


async def test_the_channel_is_the_session() -> None:
    """2025-11-25 basic/lifecycle and basic/transports#stdio; DESIGN 5.4: nothing is lost of it."""
    async with piped() as client:
        answer = await client.initialize()
        assert answer["result"]["instructions"] == "Do as you are told."
        assert answer["result"]["x-unknown"] is None
        first = await client.do({"tells": "seen"})
        assert [message["method"] for message in first["seen"]] == [
            "initialize", "notifications/initialized", "tools/call",
        ]  # fmt: skip
        second = await client.do()
        assert (second["nonce"], second["count"]) == (first["nonce"], 2)


async def test_what_comes_before_an_answer_comes_before_it_and_in_order() -> None:
    """DESIGN 5.3; 2025-11-25 basic/utilities/progress: under the client's own token."""
    async with piped() as client:
        await client.initialize()
        steps = [{"progress": 3}, {"log": "one"}, {"log": "two"}]
        params = calling(*steps, _meta={"progressToken": "mine"})
        answer = await client.request("tools/call", params)
        assert "result" in answer
        notes = [message["params"] for message in client.passed_over]
        assert [note.get("progress", note.get("data")) for note in notes] == [1, 2, 3, "one", "two"]
        assert {note["progressToken"] for note in notes[:3]} == {"mine"}


async def test_what_the_backend_asks_is_answered_by_its_client() -> None:
    """2025-11-25 client/elicitation; two calls that overlap each have their own answer."""
    async with piped() as client:
        await client.initialize()
        await client.send(
            request("tools/call", calling({"ask": FORM}), 1),
            request("tools/call", calling({"wait": "go"}), 2),
        )
        found = told(await asked_and_answered(client, 1))
        assert found["answers"][0]["result"]["content"] == {"name": "Ann"}
        await client.send(request("tools/call", calling({"release": "go"}), 3))
        assert {(await client.receive())["id"] for _ in range(2)} == {2, 3}


async def test_a_cancelled_request_is_cancelled_at_the_backend_and_has_no_answer() -> None:
    """2025-11-25 basic/utilities/cancellation#behavior-requirements; DESIGN 5.9."""
    async with piped() as client:
        await client.initialize()
        await client.send(request("tools/call", calling({"log": "here"}, {"wait": "ever"}), "a"))
        await client.until("notifications/message")
        await client.send(cancelling("a"))
        seen = (await client.do({"tells": "seen"}))["seen"]
        assert seen[-2]["method"] == "notifications/cancelled"
        assert seen[-2]["params"]["reason"] == "tests"
        assert not any("result" in message or "error" in message for message in client.passed_over)


async def test_a_cancellation_that_names_two_requests_cancels_neither() -> None:
    """FAULTS F32."""
    async with piped() as client:
        await client.initialize()
        await client.send(
            request("tools/call", calling({"wait": "go"}), 7),
            request("tools/call", calling({"wait": "go"}), 7),
            cancelling(7),
            request("tools/call", calling({"release": "go"}), 8),
        )
        answers = [await client.receive() for _ in range(3)]
        assert sorted(answer["id"] for answer in answers) == [7, 7, 8]
        assert all("result" in answer for answer in answers)


async def test_what_is_sent_while_the_backend_starts_reaches_it_in_order() -> None:
    """DESIGN 5.3. A client that does not wait for the answer to `initialize` loses nothing."""
    async with piped() as client:
        await client.send(
            opening(),
            notification("notifications/initialized"),
            request("tools/call", calling({"tells": "seen"}), 1),
            notification("x/last"),
            request("tools/call", calling({"tells": "seen"}), 2),
        )
        seen = told(await client.answer(1))["seen"]
        if [message["method"] for message in seen][-1] == "tools/call":
            seen = told(await client.answer(2))["seen"]
        assert [message["method"] for message in seen][:4] == [
            "initialize", "notifications/initialized", "tools/call", "x/last",
        ]  # fmt: skip


@pytest.mark.parametrize(("bound", "most"), [("MAX_WAITING", 2), ("MAX_WAITING_BYTES", 2500)])
async def test_what_waits_for_the_backend_to_start_is_bounded(
    bound: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.3, FAULTS F16: it fails, and was not executed; what waits does not fail."""
    monkeypatch.setattr(handshake_channel, bound, most)
    async with piped() as client:
        calls = [request("tools/call", calling(fill="x" * 1000), n) for n in (1, 2, 3)]
        await client.send(opening(), *calls)
        refused = await client.answer(3)
        assert refused["result"]["_meta"]["sessionproxy/fault"]["kind"] == "backend_busy"
        assert {told(await client.answer(n))["count"] for n in (1, 2)} == {1, 2}


async def test_a_request_that_is_cancelled_while_it_waits_is_never_executed() -> None:
    """DESIGN 5.9: the cancellation must not overtake it, nor get lost before it."""
    async with piped() as client:
        await client.send(
            opening(),
            request("tools/call", calling(), 1),
            cancelling(1),
            request("tools/call", calling(), 2),
        )
        assert told(await client.answer(2))["count"] == 1
        assert [message["id"] for message in client.passed_over] == ["init"]


async def test_a_cancellation_that_names_two_that_wait_cancels_neither() -> None:
    """FAULTS F32."""
    async with piped() as client:
        twice = [request("tools/call", calling(), 7)] * 2
        await client.send(opening(), *twice, cancelling(7))
        await client.answer("init")
        assert {told(await client.answer(7))["count"] for _ in range(2)} == {1, 2}


@pytest.mark.parametrize("version", ["2025-03-26", "2025-06-18"])
async def test_batches_are_served_in_2025_03_26_alone(version: str) -> None:
    """2025-03-26 basic/transports#stdio; removed in 2025-06-18."""
    async with piped() as client:
        await client.initialize(version)
        batch = [
            request("tools/list", number=1),
            notification("x/one"),
            request("ping", number="b"),
        ]
        await client.send(batch)
        answer: Any = await client.receive()
        if version == "2025-03-26":
            assert sorted(str(one["id"]) for one in answer) == ["1", "b"]
        else:
            assert answer["error"]["code"] == -32600
            assert answer["id"] is None
        seen = (await client.do({"tells": "seen"}))["seen"]
        assert ("x/one" in [message["method"] for message in seen]) == (version == "2025-03-26")


async def test_a_batch_with_an_answer_that_there_is_no_room_for_is_taken_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 5.3: nothing that was passed on already is passed on again."""
    answer, tries = Session.answer, iter([False, True])

    def full_at_first(session: Session, client_id: bytes, outcome: Outcome) -> bool:
        if not next(tries):
            raise BackendBusy("no room")
        return answer(session, client_id, outcome)

    monkeypatch.setattr(Session, "answer", full_at_first)
    async with piped() as client:
        await client.initialize("2025-03-26")
        nothing: Json = {}
        batch: list[Json] = [notification("x/once"), {"jsonrpc": "2.0", "id": 9, "result": nothing}]
        await client.send(batch)
        await client.send(request("tools/call", calling({"tells": "seen"}), 1))
        seen = told(await client.answer(1))["seen"]
        assert [message.get("method") for message in seen].count("x/once") == 1


async def test_a_cancelled_member_of_a_batch_is_left_out_of_its_answer() -> None:
    """2025-03-26 basic/utilities/cancellation."""
    async with piped() as client:
        await client.initialize("2025-03-26")
        waits = calling({"log": "here"}, {"wait": "ever"})
        await client.send([request("tools/call", waits, "a"), request("ping", number="b")])
        await client.until("notifications/message")
        await client.send(cancelling("a"))
        answer: Any = await client.receive()
        assert [one["id"] for one in answer] == ["b"]


# -- what is no session yet, or none any more ------------------------------------------------------


async def test_before_initialize_only_a_ping_is_answered() -> None:
    """2025-11-25 basic/lifecycle#initialization; nothing is started for it."""
    async with piped() as client:
        refused = await client.request("tools/list")
        assert refused["error"]["code"] == -32600
        assert "before initialize" in refused["error"]["message"]
        assert (await client.request("ping"))["result"] == {}
        assert client.proxy.processes() == []
        await client.initialize()
        again = await client.request("initialize", {})
        assert again["error"]["code"] == -32600


async def test_a_client_whose_initialize_failed_is_told_why_and_may_try_again(
    tmp_path: Path,
) -> None:
    """DESIGN 11: a backend that cannot start is told to `initialize`; nothing stays."""
    fails = {"start": [{"stderr": ["no display"]}, {"exit": 3}]}
    ledger = f"TESTS_LEDGER={tmp_path / 'ledger'}"
    async with piped(scripted(lives=[fails, {}]), env=[ledger]) as client:
        failed = await client.initialize()
        assert failed["error"]["code"] == -32603
        fault = failed["error"]["data"]["sessionproxy/fault"]
        assert (fault["exitCode"], fault["stderr"]) == (3, ["no display"])
        assert "result" in await client.initialize(number="again")
        assert (await client.do())["count"] == 1


async def test_a_loss_of_state_is_told_once_before_anything_is_executed_again() -> None:
    """FAULTS F50, I6: whatever arrives before the first telling was written is told as well."""
    async with piped() as client:
        await client.initialize()
        (session,) = client.proxy.manager.registry.awake()
        died = await client.request("tools/call", calling({"exit": 7}))
        assert died["result"]["_meta"]["sessionproxy/fault"]["exitCode"] == 7
        await client.send(*(request("tools/call", calling(), number) for number in (1, 2)))
        for number in (1, 2):
            lost = (await client.answer(number))["result"]
            assert lost["isError"]
            assert lost["_meta"]["sessionproxy/fault"]["outcome"] == "not_executed"
        await until(lambda: session.loss is None)
        assert (await client.do())["count"] == 1


async def test_a_loss_is_noted_on_a_result_where_the_operator_wants_that() -> None:
    """DESIGN 7: `on_loss`."""
    async with piped(on_loss="annotate") as client:
        await client.initialize()
        await client.request("tools/call", calling({"exit": 7}))
        answer = await client.request("tools/call", calling())
        assert answer["result"]["_meta"]["sessionproxy/loss"]["reason"] == "backend_exit"
        assert told(answer)["count"] == 1
        again = await client.request("tools/call", calling())
        assert "_meta" not in again["result"]


async def test_a_session_that_is_over_ends_the_channel() -> None:
    """DESIGN 7: what is final is final. The specification lets a server close its output and exit
    (2026-07-28 basic/transports/stdio#shutdown)."""
    async with piped(on_loss="not-found") as client:
        await client.initialize()
        await client.send(request("tools/call", calling({"exit": 7}), 1))
        answers = await client.rest()
        assert [answer["id"] for answer in answers] == [1]
        await client.wait()
        assert client.left is False


# -- what is no message ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"hello", -32700),
        (b'{"jsonrpc":"2.0","id":1', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', -32700),
        (b"[" * 100_000, -32700),
        (b'{"jsonrpc":"2.0","method":"x","params":' + b"[" * 100_000, -32700),
        (b"1", -32600),
        (b"{}", -32600),
        (b'{"id":1,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32600),
        (b"[]", -32600),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_garbage_is_answered_and_ends_nothing(line: bytes, code: int) -> None:
    """FAULTS F11, towards the client; JSON-RPC 2.0, section 5.1."""
    async with piped() as client:
        await client.initialize()
        await client.write(b"\n  \r\n" + line + b"\r\n")
        assert (await client.receive())["error"]["code"] == code
        assert (await client.do())["count"] == 1


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b'{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"x":"%b"}}', 5),
        (b'{"method":"tools/call","params":{"id":3,"x":"%b"},"jsonrpc":"2.0","id":"a"}', "a"),
        (b'{"jsonrpc":"2.0","method":"x","params":{"x":"%b","id":3}}', None),
        (b"%b", None),
    ],
    ids=["id first", "id last", "no id", "no message"],
)
async def test_a_message_that_is_too_long_fails_alone(line: bytes, number: object) -> None:
    """FAULTS F13, towards the client: discarded as it arrives, its id is found if it can be."""
    async with piped(max_body=100_000) as client:
        await client.initialize()
        await client.write(line % (b"y" * 200_000) + b"\n")
        refused = await client.receive()
        assert refused["id"] == number
        assert refused["error"]["code"] == -32600
        assert "more than 100000 bytes" in refused["error"]["message"]
        assert (await client.do())["count"] == 1


async def test_an_answer_that_is_too_long_reaches_the_backend_as_an_error() -> None:
    """DESIGN 5.3: the backend that asked is not left waiting for ever."""
    async with piped(max_body=100_000) as client:
        await client.initialize()
        await client.send(request("tools/call", calling({"ask": FORM}), 1))
        question = await client.until("elicitation/create")
        result = {"action": "accept", "content": {"name": "x" * 200_000}}
        await client.send({"jsonrpc": "2.0", "id": question["id"], "result": result})
        (answer,) = told(await client.answer(1))["answers"]
        assert "more than 100000 bytes" in answer["error"]["message"]


async def test_a_large_message_goes_through_both_ways() -> None:
    """DESIGN 13: 8 MiB each way; pipes hold 64 KiB."""
    async with piped() as client:
        await client.initialize()
        echo = "x" * (8 << 20)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send, request("tools/call", calling(echo=echo), 1))
            assert told(await client.answer(1))["echo"] == echo


# -- a client that does not read -------------------------------------------------------------------


async def test_what_may_be_dropped_is_dropped_and_the_answer_comes_all_the_same() -> None:
    """FAULTS F29, F30: bounded in memory, the oldest go first, and the client is told how many."""
    async with piped() as client:
        await client.initialize()
        await client.send(request("tools/call", calling({"flood": 6_000_000}), 1))
        (session,) = client.proxy.manager.registry.awake()
        await until(lambda: session.leases == 0 and session.client.size > 1 << 19)
        assert session.client.size < 2 << 20
        answer = await client.answer(1)
        assert "result" in answer
        logs = [message["params"] for message in client.passed_over]
        numbers = [int(log["data"][0]) for log in logs if log["logger"] == "scripted"]
        (note,) = [log["data"] for log in logs if log["logger"] == "sessionproxy"]
        assert numbers == sorted(numbers)
        assert note == f"{6000 - len(numbers)} messages were dropped: not read in time"


async def test_a_client_that_leaves_its_answers_lying_is_not_heard_until_it_reads() -> None:
    """DESIGN 5.3: every buffer is bounded. What it asks for waits in the pipe."""
    async with piped() as client:
        await client.initialize()
        steps = [{"fill": 3 * CROWDED_BYTES}, {"tells": "seen"}]
        await client.send(request("tools/call", calling(*steps), 1))
        (session,) = client.proxy.manager.registry.awake()
        await until(lambda: session.client.size > CROWDED_BYTES)
        await client.send(notification("x/early"), request("tools/call", calling(), 2))
        for _ in range(20):  # turns of the event loop in which it could have been heard
            await anyio.lowlevel.checkpoint()
        assert session.leases == 0
        assert told(await client.answer(1))["count"] == 1
        assert told(await client.answer(2))["count"] == 2


async def test_a_client_that_reads_nothing_of_what_must_not_be_dropped_is_cut_off() -> None:
    """DESIGN 5.3: cut with a reason, and its backend ends with it."""
    note = {"method": "notifications/resources/updated", "params": {"uri": "x" * 1000}}
    flood = {"repeat": {"times": 2500, "steps": [{"note": note}]}}
    async with piped() as client:
        await client.initialize()
        await client.send(request("tools/call", calling(flood), 1))
        await client.wait()
        assert client.left is False


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", ["nothing", "handshake", "modern"])
async def test_the_end_of_stdin_ends_the_session_and_its_backend(speaks: str) -> None:
    """DESIGN 7, disconnected; 2025-11-25 basic/lifecycle#stdio: with a call in flight, too."""
    async with piped(LISTING) as client:
        calls = calling({"log": "here"}, {"wait": "ever"})
        if speaks == "handshake":
            await client.initialize()
            await client.send(request("tools/call", calls, 1))
            await client.until("notifications/message")
        elif speaks == "modern":
            await client.send(request("tools/call", enveloped(calls, logLevel="info"), 1))
            await client.until("notifications/message")
        client.close_stdin()
        await client.wait()
        assert client.left is True
        await until(lambda: client.proxy.processes() == [])
        await until(lambda: len(client.proxy.manager.registry) == 0)


async def test_the_end_of_stdin_while_the_backend_starts_leaves_nothing() -> None:
    """FAULTS F39."""
    async with piped(scripted(initialize=[{"wait": "ever"}])) as client:
        await client.send(opening())
        await until(lambda: client.proxy.processes() != [])
        client.close_stdin()
        await client.wait()
        await until(lambda: client.proxy.processes() == [])


async def test_the_end_of_stdin_is_noticed_by_one_who_does_not_read_on() -> None:
    """DESIGN 5.6: while answers wait for the client, what it says waits too, but not its end."""
    async with piped() as client:
        await client.initialize()
        await client.send(request("tools/call", calling({"fill": 3 * CROWDED_BYTES}), 1))
        (session,) = client.proxy.manager.registry.awake()
        await until(lambda: session.client.size > CROWDED_BYTES)
        await client.send(request("tools/call", calling(), 2))
        client.close_stdin()
        await client.wait()
        assert client.left is True
        await until(lambda: client.proxy.processes() == [])


async def test_the_end_of_stdin_is_noticed_although_the_backend_takes_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 5.6: what it was asked is waited for in order, but not for ever."""
    monkeypatch.setattr(backend, "MAX_UNSENT", 100_000)
    question = {"method": "roots/list"}
    async with piped(scripted(reads=4), stop_grace=0.1) as client:
        await client.initialize()
        for number in (1, 2):
            await client.send(request("tools/call", calling({"ask": question}), number))
        for asked in [await client.until("roots/list") for _ in range(2)]:
            roots = [{"uri": "file:///" + "x" * 200_000}]
            await client.send({"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": roots}})
        client.close_stdin()
        await client.wait()
        await until(lambda: client.proxy.processes() == [])


async def test_what_was_said_before_the_end_can_be_read_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 5.3: it has the client's time; here, more of it than a busy machine takes."""
    monkeypatch.setattr(stdio, "FLUSHED", 5 * PATIENCE)
    async with piped() as client:
        await client.initialize()
        await client.send(request("tools/call", calling({"fill": 1_000_000}), 1))
        (session,) = client.proxy.manager.registry.awake()
        await until(lambda: session.client.size > 1_000_000)
        client.close_stdin()
        assert [message["id"] for message in await client.rest()] == [1]


async def test_half_a_line_at_the_end_is_no_message() -> None:
    """FAULTS F12: what has no line end may be any half of it."""
    async with piped() as client:
        await client.initialize()
        await client.write(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}')
        client.close_stdin()
        assert await client.rest() == []


# -- the modern era --------------------------------------------------------------------------------


async def test_every_request_of_the_modern_era_belongs_to_the_one_conversation() -> None:
    """2026-07-28 basic/transports/stdio#request-metadata: all of it is in the body; whatever a
    client calls its conversations, the process is its own."""
    async with piped(LISTING) as client:
        discovered = await client.ask("server/discover")
        assert MODERN in discovered["result"]["supportedVersions"]
        assert client.proxy.manager.registry.awake() == ()
        listed = await client.ask("tools/list")
        assert [tool["name"] for tool in listed["result"]["tools"]] == ["do"]
        first = await client.have_done()
        meta = {"vscode.conversationId": "another"}
        second = told(await client.ask("tools/call", calling(_meta=meta)))
        assert (second["nonce"], second["count"]) == (first["nonce"], 2)
        assert len(client.proxy.manager.registry.awake()) == 1


@pytest.mark.parametrize(
    ("method", "envelope", "code"),
    [
        ("tools/call", {"clientCapabilities": None}, -32602),
        ("tools/call", {"logLevel": "loud"}, -32602),
        ("tools/call", {"protocolVersion": "2030-01-01"}, -32022),
        ("server/discover", {"protocolVersion": None}, -32602),
        ("logging/setLevel", {}, -32601),
        ("ping", {}, -32601),
        ("completion/complete/what", {}, -32601),
    ],
)
async def test_a_modern_request_is_judged_by_its_envelope(
    method: str, envelope: Json, code: int
) -> None:
    """2026-07-28 basic#_meta; the checks of HTTP but for those of headers, which there are none."""
    missing = {"replies": {"error": {"code": -32601, "message": "no such method"}}}
    async with piped(scripted(on={"completion/complete/what": [missing]})) as client:
        refused = await client.ask(method, None, **envelope)
        assert refused["error"]["code"] == code
        if code == -32022:
            assert MODERN in refused["error"]["data"]["supported"]
        assert (await client.have_done())["count"] == (2 if "what" in method else 1)


async def test_a_modern_client_sends_no_responses() -> None:
    """2026-07-28 basic/transports/stdio#sending-messages."""
    async with piped(LISTING) as client:
        await client.ask("tools/list")
        await client.send({"jsonrpc": "2.0", "id": 1, "result": {}})
        refused = await client.receive()
        assert (refused["id"], refused["error"]["code"]) == (None, -32600)


async def test_a_modern_call_is_told_what_it_asked_to_be_told() -> None:
    """2026-07-28 server/utilities/logging: only requests that name a level get logs."""
    async with piped() as client:
        steps = calling({"progress": 2}, {"log": "said"}, _meta={"progressToken": "t"})
        await client.ask("tools/call", steps)
        assert [m["method"] for m in client.passed_over] == ["notifications/progress"] * 2
        client.passed_over.clear()
        await client.ask("tools/call", steps, logLevel="debug")
        assert [m["params"].get("data") for m in client.passed_over] == [None, None, "said"]


async def test_a_question_travels_in_a_result_and_its_answer_in_a_retry() -> None:
    """2026-07-28 basic/patterns/mrtr: no request is written to stdout."""
    async with piped() as client:
        params = calling({"ask": FORM})
        asked = (await client.ask("tools/call", params))["result"]
        assert asked["resultType"] == "input_required"
        ((key, question),) = asked["inputRequests"].items()
        assert question["params"]["message"] == "Who?"
        more = {
            "requestState": asked["requestState"],
            "inputResponses": {key: {"action": "accept", "content": {"name": "Ann"}}},
        }
        found = told(await client.ask("tools/call", {**params, **more}))
        assert found["answers"][0]["result"]["content"] == {"name": "Ann"}
        assert found["count"] == 1
        assert client.passed_over == []


async def test_a_modern_request_that_is_cancelled_is_not_heard_of_again() -> None:
    """2026-07-28 basic/transports/stdio#cancellation: no further messages; the backend is told."""
    async with piped() as client:
        params = enveloped(
            calling({"log": "here"}, {"until_cancelled": 1}, {"log": "late"}), logLevel="info"
        )
        await client.send(request("tools/call", params, "a"))
        await client.until("notifications/message")
        await client.send(cancelling("a"))
        seen = (await client.have_done({"tells": "seen"}))["seen"]
        assert "notifications/cancelled" in [message["method"] for message in seen]
        assert client.passed_over == []


@pytest.mark.parametrize("runs", [False, True], ids=["no backend", "a backend"])
async def test_a_modern_request_that_is_cancelled_at_once_is_never_executed(runs: bool) -> None:
    """2026-07-28 basic/transports/stdio#cancellation."""
    async with piped() as client:
        if runs:
            await client.have_done()
        await client.send(request("tools/call", enveloped(calling()), "a"), cancelling("a"))
        assert (await client.have_done())["count"] == 1 + runs
        assert client.passed_over == []


async def test_an_id_that_was_cancelled_can_be_used_again() -> None:
    """2026-07-28 basic#requests: it is unique among those in flight."""
    async with piped(LISTING) as client:
        await client.send(request("tools/list", enveloped(), "a"), cancelling("a"))
        params = enveloped(calling({"log": "here"}, {"wait": "ever"}), logLevel="info")
        await client.send(request("tools/call", params, "a"))
        await client.until("notifications/message")
        await client.send(cancelling("a"))
        seen = (await client.have_done({"tells": "seen"}))["seen"]
        assert "notifications/cancelled" in [message["method"] for message in seen]
        assert client.passed_over == []


async def test_a_cancellation_that_names_two_modern_requests_cancels_neither() -> None:
    """FAULTS F32."""
    async with piped() as client:
        await client.have_done()
        twice = [request("tools/call", enveloped(calling({"wait": "go"})), "a")] * 2
        await client.send(*twice, cancelling("a"))
        await client.have_done({"release": "go"})
        found = [m for m in client.passed_over if m["id"] == "a"]
        while len(found) < 2:
            found.append(await client.answer("a"))
        assert {told(answer)["count"] for answer in found} == {2, 3}


async def test_a_modern_client_hears_of_nothing_that_it_did_not_ask_for() -> None:
    """2026-07-28 server/utilities/logging: not even how much of its progress was dropped."""
    report = {"progress": {"progress": 1, "message": "x" * 1000}}
    many = {"repeat": {"times": 3000, "steps": [report]}}
    async with piped() as client:
        await client.have_done()
        params = enveloped(calling(many, _meta={"progressToken": "t"}))
        await client.send(request("tools/call", params, "a"))
        (session,) = client.proxy.manager.registry.awake()
        await until(lambda: session.leases == 1)
        await until(lambda: session.leases == 0)
        client.passed_over.clear()
        await client.answer("a")
        assert {m["method"] for m in client.passed_over} == {"notifications/progress"}
        assert len(client.passed_over) < 3000


async def test_listeners_share_the_channel_and_are_told_apart_by_their_ids() -> None:
    """2026-07-28 basic/patterns/subscriptions; basic/transports/stdio#receiving-messages."""
    changed = {"note": {"method": "notifications/tools/list_changed"}}
    async with piped(LISTING) as client:
        wanted = {"notifications": {"toolsListChanged": True}}
        for number in ("one", "two"):
            await client.send(request("subscriptions/listen", enveloped(wanted), number))
            heard = await client.receive()
            assert heard["method"] == "notifications/subscriptions/acknowledged"
            assert heard["params"]["_meta"][SUBSCRIPTION] == number
            assert heard["params"]["notifications"] == {"toolsListChanged": True}
        await client.have_done(changed)
        assert sorted(_told_of(client)) == ["one", "two"]
        await client.send(cancelling("one"))
        await client.ask("tools/list")  # until there is a newer offer, a change is no news
        await client.have_done(changed)
        assert _told_of(client) == ["two"]
        assert len(client.proxy.app.running.listeners) == 1
        client.proxy.app.running.listeners.end_all()
        assert (await client.answer("two"))["result"]["_meta"][SUBSCRIPTION] == "two"
        assert len(client.proxy.app.running.listeners) == 0


def _told_of(client: Lines) -> list[str]:
    """Return which subscriptions were told that the tools have changed, and forget it."""
    heard = [m["params"]["_meta"][SUBSCRIPTION] for m in client.passed_over if "params" in m]
    assert {message["method"] for message in client.passed_over} <= {
        "notifications/tools/list_changed"
    }
    client.passed_over.clear()
    return heard


# -- which era -------------------------------------------------------------------------------------


async def test_a_client_that_has_only_looked_may_still_initialise() -> None:
    """2026-07-28 basic/transports/stdio#backward-compatibility: one whose probe took too long falls
    back, whatever it is answered later."""
    async with piped(LISTING) as client:
        await client.send(request("server/discover", enveloped(), "probe"))
        answer = await client.initialize()
        assert answer["result"]["protocolVersion"] == "2025-11-25"
        assert (await client.do())["count"] == 1


async def test_initialize_is_refused_where_a_conversation_goes_on() -> None:
    """As the SDK's dual-era servers: with the revisions that are spoken on this connection."""
    async with piped(LISTING) as client:
        await client.have_done()
        refused = await client.initialize()
        assert refused["error"]["code"] == -32022
        assert refused["error"]["data"] == {"supported": [MODERN], "requested": "2025-11-25"}
        assert (await client.have_done())["count"] == 2


async def test_an_envelope_is_refused_where_a_session_goes_on() -> None:
    """As the SDK's dual-era servers."""
    async with piped() as client:
        await client.initialize()
        refused = await client.ask("tools/call", calling())
        assert refused["error"]["code"] == -32600
        assert (await client.do())["count"] == 1


# -- as a process ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["legacy", "auto", MODERN])
@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_the_sdks_own_client_works_unmodified(mode: str, tmp_path: Path) -> None:
    """The current Python SDK, in each of its modes."""
    command, *arguments = argv(
        "--state-dir", str(tmp_path / "s"), "--containment", "guardian", "--", *LISTING
    )
    server = StdioServerParameters(
        command=command, args=arguments, cwd=ROOT, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    version = "2025-11-25" if mode == "legacy" else MODERN
    await exercise(stdio_client(server), mode, version=version)
    await Census(tmp_path / "s").gone(within=PATIENCE)


async def test_the_process_ends_with_stdin_and_leaves_nothing_running() -> None:
    """2025-11-25 basic/lifecycle#stdio; DESIGN 5.6: detached grandchildren, too."""
    async with process() as client:
        await client.initialize()
        children = (await client.do({"spawn": ["session"]}))["children"]
        census = Census(client.state_dir)
        census.look()
        client.close_stdin()
        assert await client.rest() == []
        assert await client.wait() == 0
        await census.gone(within=PATIENCE)
        assert not any(map(lives, children))
        assert "ended: disconnected" in client.log
        assert "Traceback" not in client.log


async def test_a_process_that_is_killed_leaves_nothing_running() -> None:
    """DESIGN 5.6: SIGKILL of the proxy itself."""
    async with process() as client:
        await client.initialize()
        children = (await client.do({"spawn": ["session"]}))["children"]
        census = Census(client.state_dir)
        census.look()
        client.process.send_signal(signal.SIGKILL)
        await client.wait()
        await until(lambda: not census.lives() and not any(map(lives, children)))


async def test_a_signal_lets_what_is_in_flight_end_first() -> None:
    """FAULTS F23: the request that is in flight is answered, then all end; a new one is refused."""
    async with process() as client:
        await client.initialize()
        await client.send(request("tools/call", calling({"log": "here"}, {"wait": "go"}), 1))
        await client.until("notifications/message")
        client.process.send_signal(signal.SIGTERM)
        await until(lambda: "draining" in client.log)
        refused = await client.request("tools/list")
        assert refused["error"]["message"] == "The proxy is shutting down"
        client.process.send_signal(signal.SIGTERM)  # nothing can release it any more
        answers = await client.rest()
        assert [answer["id"] for answer in answers] == [1]
        assert await client.wait() == 0


async def test_a_signal_ends_a_listener_with_its_result() -> None:
    """FAULTS F23; 2026-07-28 basic/patterns/subscriptions#graceful-closure."""
    async with process(LISTING) as client:
        wanted = {"notifications": {"toolsListChanged": True}}
        await client.send(request("subscriptions/listen", enveloped(wanted), "a"))
        await client.until("notifications/subscriptions/acknowledged")
        client.process.send_signal(signal.SIGTERM)
        (result,) = await client.rest()
        assert (result["id"], result["result"]["resultType"]) == ("a", "complete")
        assert await client.wait() == 0


async def test_a_signal_after_the_end_of_stdin_cuts_the_backends_time_short() -> None:
    """What clients do to a server that takes its time: SIGTERM, and SIGKILL soon after."""
    stubborn = scripted(eof=[{"wait": "ever"}])
    async with process(stubborn, "--stop-grace", "600") as client:
        await client.initialize()
        client.close_stdin()
        await until(lambda: "the client has gone" in client.log)
        client.process.send_signal(signal.SIGTERM)
        assert await client.wait() == 0
        census = Census(client.state_dir)
        await census.gone(within=PATIENCE)


IN_A_LOOP: Final = """
import asyncio, json, signal, sys
from sessionproxy import create_proxy

async def main():
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, heard.set)
    made = create_proxy(json.loads(sys.argv[2]), state_dir=sys.argv[1], containment="guardian")
    running = asyncio.create_task(made.run_async("stdio"))
    await heard.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    heard.clear()
    signal.raise_signal(signal.SIGTERM)
    await heard.wait()
    print("the signals are still its own")

asyncio.run(main())
"""


async def test_in_an_event_loop_signals_are_its_hosts_and_being_cancelled_is_as_one() -> None:
    """`run_async`: what is in flight is answered first, a new request is refused."""
    script = json.dumps(scripted())
    async with program(lambda state: [sys.executable, "-c", IN_A_LOOP, str(state), script]) as host:
        await host.initialize()
        steps = {"ask": {"method": "roots/list"}}
        await host.send(request("tools/call", calling(steps, echo="whole"), 1))
        ask = await host.until("roots/list")
        host.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(PATIENCE):
            while "result" in (refused := await host.request("tools/list")):
                pass
        assert refused["error"]["message"] == "The proxy is shutting down"
        await host.send({"jsonrpc": "2.0", "id": ask["id"], "result": {"roots": []}})
        assert told(await host.answer(1))["echo"] == "whole"
        assert await host.line() == b"the signals are still its own"
        assert await host.wait() == 0, host.log
        await Census(host.state_dir).gone(within=PATIENCE)


def test_only_messages_go_to_stdout() -> None:
    """2025-11-25 basic/transports#stdio: whatever else is printed, by whomever, goes to stderr."""
    script = """
import os, subprocess
from sessionproxy.frontend.pipes import claimed
with claimed() as pipes:
    print("printed", flush=True)
    subprocess.run(["echo", "of a child"])
    assert os.read(0, 1) == b""
    os.write(pipes.stdout, os.read(pipes.stdin, 100))
print("afterwards", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], input="message\n", capture_output=True, text=True,
        cwd=ROOT, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "message\nafterwards\n"
    assert done.stderr == "printed\nof a child\n"


@pytest.mark.parametrize("source", ["a file", "nothing"])
async def test_what_cannot_be_waited_for_is_read_all_the_same(source: str, tmp_path: Path) -> None:
    """epoll_ctl(2), EPERM: `sessionproxy stdio < messages`, and a container without stdin."""
    messages = tmp_path / "messages"
    lines = [request("ping"), "no message"]
    messages.write_text("".join(json.dumps(line) + "\n" for line in lines))
    stdin = messages if source == "a file" else Path(os.devnull)
    with stdin.open("rb") as given:
        done = await anyio.run_process(
            argv("--state-dir", str(tmp_path / "s"), "--", *LISTING), stdin=given, cwd=ROOT
        )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("result", line.get("error", {}).get("code")) for line in said] == (
        [{}, -32600] if source == "a file" else []
    )
    assert b"Traceback" not in done.stderr


def test_without_stdin_or_stdout_nothing_is_started(tmp_path: Path) -> None:
    """DESIGN 11, last row."""
    line = " ".join(argv("--state-dir", str(tmp_path / "s")))
    done = subprocess.run(
        ["sh", "-c", f"exec {line} <&-"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "sessionproxy: stdin and stdout: both must be open\n"

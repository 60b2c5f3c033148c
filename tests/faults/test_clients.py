"""FAULTS: what clients do to a proxy by hanging up, not reading, mixing up ids, or lying."""

import json
import socket
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import anyio
import anyio.to_thread
import httpx2
import psutil
import pytest

from sessionproxy.core import manager as manager_module
from sessionproxy.core.binding import SessionIds
from sessionproxy.core.session import Session
from sessionproxy.core.state import EndReason, SessionState, StopReason
from sessionproxy.frontend import stream as stream_module
from sessionproxy.frontend.reply import Reply
from sessionproxy.frontend.stream import KEPT_BYTES, EventStream, Streams
from tests.rig.embedded import SCRIPTED, Embedded, gone, scripted, until
from tests.rig.history import FAULT, Outcome
from tests.rig.history import TOKEN as TOKEN_KEY
from tests.rig.hooks import InFlight
from tests.rig.http import (
    CAPABILITIES,
    PATIENCE,
    VERSION,
    EndOfStream,
    Json,
    calling,
    exchange,
    request,
)
from tests.rig.invariants import Watch, forged, watched, watched_process
from tests.rig.peers import head, posted, received, stalled
from tests.rig.recorded import Recorded, messages_of
from tests.rig.shim import shimmed

TOKEN: Final = {"progressToken": "mine"}
LIST_CHANGED: Final = {"note": {"method": "notifications/tools/list_changed"}}
SOON: Final = 0.05
"""Seconds of a limit that is to run out at the next look."""

FLOOD: Final[Json] = {
    "repeat": {"times": 800, "steps": [{"progress": {"progress": 1, "message": "x" * 10_000}}]}
}
"""8 MB, which belong to one call: more than the kernel takes for a reader that stalls."""

LOOSE: Final = 32 * 1024 * 1024
"""Bytes that the memory of a process may vary by, whatever it holds."""

LARGE_NOTES: Final[Json] = {
    "repeat": {
        "times": 500,
        "steps": [
            {"note": {"method": "notifications/resources/updated", "params": {"uri": "x" * 20_000}}}
        ],
    }
}
"""10 MB of notifications that must not be dropped while they are read."""


def session_of(watch: Watch[Embedded], client: Recorded) -> Session:
    return watch.proxy.manager.find("local", client.id)


def streams_of(watch: Watch[Embedded], client: Recorded) -> Streams:
    streams = session_of(watch, client).client
    assert isinstance(streams, Streams)
    return streams


def stream_of(hook: InFlight) -> EventStream:
    """Return the stream that the first call has become."""
    sink = hook.calls[0].sink
    assert isinstance(sink, Reply)
    assert sink.stream is not None
    return sink.stream


def fault_of(answer: Json) -> Json:
    return answer["result"]["_meta"][FAULT]


# -- hanging up ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("how", ["FIN", "RST", "half open"])
async def test_a_call_goes_on_when_its_stream_is_lost_and_its_answer_is_kept(how: str) -> None:
    """FAULTS F26; DESIGN 5.9: no cancel, and the answer waits for `Last-Event-ID`."""
    hook = InFlight()
    steps = ({"progress": 1}, {"wait": "go"}, {"progress": {"progress": 2}})
    async with (
        watched(observers=[hook]) as watch,
        shimmed(watch.proxy.port) as shim,
        watch.client("alice", url=shim.url()) as alice,
    ):
        async with alice.doing(*steps, _meta=TOKEN, echo="kept", number=7) as incoming:
            await incoming.message()
            if how == "half open":
                shim.stall()
            else:
                await (shim.reset() if how == "RST" else shim.cut())
                with pytest.raises((httpx2.TransportError, EndOfStream)):
                    await incoming.message()
                await hook.lost()
        shim.resume()
        found = await alice.do({"release": "go"}, {"tells": "seen"})
        await until(lambda: hook.calls[0].outcome is not None)
        async with alice.listen(incoming.last_id) as resumed:
            note, answer = await resumed.rest()
    assert "notifications/cancelled" not in [message.get("method") for message in found["seen"]]
    assert note["params"] == {"progressToken": "mine", "progress": 2}
    assert answer["id"] == 7
    assert answer["result"]["structuredContent"]["echo"] == "kept"


async def test_an_answer_that_nobody_fetches_is_dropped_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F26: kept for the resume ring, else dropped."""
    monkeypatch.setattr(stream_module, "KEPT_SECONDS", SOON)
    async with watched() as watch, watch.client("alice") as alice:
        async with alice.doing({"log": "x"}) as incoming:
            await incoming.message()
        with anyio.fail_after(PATIENCE):
            status = 200
            while status != 400:
                await anyio.sleep(0.01)
                status = (await alice.send("GET", last_event_id=incoming.last_id)).status_code
        await alice.do()


async def test_who_leaves_while_it_is_asked_something_does_not_keep_its_session_alive() -> None:
    """FAULTS F26; DESIGN 7: the question is given up at the idle limit; then the call can end."""
    async with watched(idle=0.2, linger=0) as watch, watch.client("alice") as alice:
        steps = ({"log": "x"}, {"ask": {"method": "elicitation/create"}})
        async with alice.doing(*steps, number=7) as incoming:
            await incoming.message()
            await incoming.message()
        alice_s = session_of(watch, alice)
        await until(lambda: alice_s.state is SessionState.ASLEEP)
        assert alice_s.stop_reason is StopReason.IDLE
        async with alice.listen(incoming.last_id) as resumed:
            (answer,) = await resumed.rest()
    assert "The client is gone" in json.dumps(answer["result"])


@pytest.mark.parametrize("known", [False, True], ids=["head not known", "head known"])
@pytest.mark.parametrize("when", ["together", "later", "behind a stream"])
async def test_a_client_that_hangs_up_behind_another_request_is_noticed_at_once(
    when: str, known: bool
) -> None:
    """FAULTS F26: although what was sent behind cannot be answered yet."""
    hook = InFlight()
    steps = [{"log": "x"}] if when == "behind a stream" else []
    async with watched(observers=[hook]) as watch, watch.client("alice") as alice:
        first = posted(alice, request("tools/call", calling(*steps, {"wait": "go"})))
        second = posted(alice, request("ping", {"padding": "x" * 1000}))
        for kind in ("ping", "tools/call", "ping") if known else ("tools/call", "ping"):
            watch.history.sent(alice.session, kind).left = True
        async with await anyio.connect_tcp("127.0.0.1", watch.proxy.port) as connection:
            if known:
                await connection.send(second)
                await connection.receive()
            await connection.send(first + second if when == "together" else first)
            await until(lambda: bool(hook.calls) and is_stream(hook) is bool(steps))
            if when != "together":
                await connection.send(second)
        await hook.lost()
        await alice.do({"release": "go"})


def is_stream(hook: InFlight) -> bool:
    """Whether the first call has become a stream."""
    sink = hook.calls[0].sink
    return isinstance(sink, Reply) and sink.stream is not None


async def test_a_client_that_hangs_up_in_the_queue_leaves_it() -> None:
    """FAULTS F39: nothing is started for it."""
    async with watched(max_sessions=1) as watch, watch.client("alice", opens=False) as alice:
        admission = watch.proxy.manager.admission
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alice.initialize)
            await until(lambda: admission.queued == 1)
            tasks.cancel_scope.cancel()
        await until(lambda: len(watch.proxy.manager.registry) == 1)
        assert (admission.running, admission.queued) == (1, 0)


async def test_a_client_that_hangs_up_while_its_backend_starts_leaves_nothing() -> None:
    """FAULTS F39: the spawn is abandoned."""
    script = scripted(initialize=[{"wait": "never"}])
    async with watched(script) as watch, watch.client("alice", opens=False) as alice:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alice.initialize)
            await until(lambda: len(watch.proxy.processes()) == 2)
            tasks.cancel_scope.cancel()
        await until(lambda: len(watch.proxy.manager.registry) == 1)
        await until(lambda: len(watch.proxy.processes()) == 1)
        assert watch.proxy.manager.admission.running == 1


@asynccontextmanager
async def opening_slowly(
    watch: Watch[Embedded], alice: Recorded
) -> AsyncGenerator[tuple[Session, str]]:
    """Have alice hang up on the stream that `initialize` has become; yield its first event's id."""
    params = {"protocolVersion": VERSION, "capabilities": CAPABILITIES, "clientInfo": {}}
    async with alice.open("initialize", params) as incoming:
        assert incoming.is_stream
        alice.id = incoming.response.headers["mcp-session-id"]
        alice.ids.append(alice.id)
        await incoming.event()
    yield session_of(watch, alice), incoming.last_id


async def test_a_client_that_hung_up_on_the_stream_of_initialize_resumes_it() -> None:
    """FAULTS F39: the spawn is adopted; DESIGN 5.9 holds for `initialize` too."""
    script = scripted(initialize=[{"sleep": 0.3}])
    async with (
        watched(script, keepalive=SOON) as watch,
        watch.client("alice", opens=False) as alice,
        opening_slowly(watch, alice) as (session, last),
    ):
        await until(lambda: session.state is SessionState.READY)
        async with alice.listen(last) as resumed:
            (answer,) = await resumed.rest()
        assert answer["result"]["serverInfo"]["name"] == "scripted"
        await alice.notify("notifications/initialized")
        assert (await alice.do())["count"] == 1


async def test_a_client_that_never_resumes_initialize_keeps_no_backend() -> None:
    """FAULTS F39: adopted within a grace, `linger`, and never leaked."""
    script = scripted(initialize=[{"sleep": 0.3}])
    async with (
        watched(script, keepalive=SOON, idle=0, linger=SOON) as watch,
        watch.client("alice", opens=False) as alice,
        opening_slowly(watch, alice) as (session, _),
    ):
        await until(lambda: session.state is SessionState.ASLEEP)
        assert session.stop_reason is StopReason.DISCONNECTED
        assert len(watch.proxy.processes()) == 1


# -- not reading -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("both_ways")
async def test_a_stalled_reader_of_the_get_stream_harms_no_call_of_its_session() -> None:
    """FAULTS F29: the queue is bounded, log messages are dropped, calls still answer."""
    async with watched() as watch, watch.client("alice") as alice:
        standalone = streams_of(watch, alice).standalone()
        with stalled(watch.proxy.port, head(alice, "GET")) as sock:
            await until(lambda: standalone.attached)
            await alice.do({"then": [{"flood": 20_000_000}, {"log": "the last one"}]})
            for number in range(20):
                assert (await alice.do(echo=number))["echo"] == number
                assert standalone.size <= 2 * KEPT_BYTES
            await until(lambda: standalone.dropped > 10_000)
            assert standalone.size <= KEPT_BYTES + 2000
            assert standalone.attached
            assert b"were dropped" in await read_until(sock, b"the last one")


async def test_a_stalled_reader_of_what_must_not_be_dropped_is_cut_off_and_counts_as_gone() -> None:
    """FAULTS F29: the stream is closed for the rest; DESIGN 7: then `linger` runs."""
    async with watched(linger=0.3) as watch, watch.client("alice") as alice:
        streams = streams_of(watch, alice)
        session = session_of(watch, alice)
        with stalled(watch.proxy.port, head(alice, "GET", connection="close")) as sock:
            await until(lambda: streams.listening)
            await alice.do({"then": [LARGE_NOTES]})
            await until(lambda: streams.standalone().dropped > 0)
            assert not streams.listening
            assert streams.standalone().size <= KEPT_BYTES + 30_000
            await until(lambda: session.state is SessionState.ASLEEP)
            assert session.stop_reason is StopReason.DISCONNECTED
            cut = await received(sock)
        assert b"resources/updated" in cut
        last = cut.rsplit(b"\nid: ", 1)[1].split(b"\n")[0].decode()
        async with alice.listen(last) as resumed:
            told = await resumed.message()
            assert told["params"]["logger"] == "sessionproxy"
            assert "dropped" in told["params"]["data"]
            assert (await resumed.message())["method"] == "notifications/resources/updated"


@pytest.mark.usefixtures("both_ways")
async def test_a_stalled_reader_of_a_call_fills_only_that_calls_buffer() -> None:
    """FAULTS F30: the handshake era's rule is applied: the call runs on, its answer is kept."""
    hook = InFlight()
    async with watched(observers=[hook]) as watch, watch.client("alice") as alice:
        flood = calling(FLOOD, _meta=TOKEN, echo="the end")
        watch.history.sent(alice.session, "tools/call").left = True
        with stalled(watch.proxy.port, posted(alice, request("tools/call", flood))):
            await until(lambda: bool(hook.calls))
            for number in range(20):
                assert (await alice.do(echo=number))["echo"] == number
            await until(lambda: hook.calls[0].outcome is not None)
            assert stream_of(hook).size <= KEPT_BYTES + 30_000
        async with alice.listen(f"{stream_of(hook).number}-1") as resumed:
            told, *_, answer = await resumed.rest()
        assert "dropped" in told["params"]["data"]
        assert answer["result"]["structuredContent"]["echo"] == "the end"


async def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Read until `end` has come."""

    def read() -> bytes:
        found = bytearray()
        while end not in found[-len(end) - 65536 :]:
            data = sock.recv(65536)
            assert data, "the proxy has closed it"
            found += data
        return bytes(found)

    return await anyio.to_thread.run_sync(read)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("readers", [32, pytest.param(1000, marks=pytest.mark.slow)])
async def test_many_stalled_readers_cost_at_most_a_mebibyte_each(readers: int) -> None:
    """FAULTS F31: measured as the memory of a proxy in a process of its own."""
    each = 8
    flooded = [{"wait": f"flooded {place}"} for place in range(each)]
    async with (
        watched_process(SCRIPTED, "--max-sessions", "200") as watch,
        watch.client("first") as first,
        AsyncExitStack() as held,
    ):
        await first.do()
        process = psutil.Process(watch.proxy.process.pid)
        before = process.memory_info().rss
        for number in range(readers // each):
            client = await held.enter_async_context(watch.client(f"client {number}"))
            for place in range(each):
                call = calling(FLOOD, {"release": f"flooded {place}"}, _meta=TOKEN)
                watch.history.sent(client.session, "tools/call").left = True
                sent = posted(client, request("tools/call", call))
                held.enter_context(stalled(watch.proxy.port, sent))
            await client.do(*flooded)
        grown = process.memory_info().rss - before
        assert grown < readers * KEPT_BYTES + LOOSE


# -- ids and tokens --------------------------------------------------------------------------------


async def test_every_post_gets_its_own_answer_whatever_its_id() -> None:
    """FAULTS F32: the same id in flight twice, `1` and `"1"`, a name of others, used again."""
    ids = [1, "1", 1, "_GET_stream", "_GET_stream", 0, -1, 2**63, "", "1"]
    found: list[tuple[object, object]] = []
    async with watched() as watch, watch.client("alice") as alice, alice.listen():

        async def call(number: object, place: int) -> None:
            steps = ({"wait": f"go {place}"},)
            answer = await alice.request("tools/call", calling(*steps, echo=place), number=number)
            found.append((answer["id"], answer["result"]["structuredContent"]["echo"]))

        for _ in range(2):  # and again, once they are free
            async with anyio.create_task_group() as tasks:
                for place, number in enumerate(ids):
                    tasks.start_soon(call, number, place)
                for place in reversed(range(len(ids))):
                    await alice.do({"release": f"go {place}"}, number=1)
            assert sorted(found, key=lambda pair: str(pair[1])) == [
                (number, place) for place, number in enumerate(ids)
            ]
            found.clear()


async def test_a_cancellation_of_an_id_that_names_two_cancels_none() -> None:
    """FAULTS F32: and one that names one of `1` and `"1"` cancels that one alone."""
    hook = InFlight()
    async with watched(observers=[hook]) as watch, watch.client("alice") as alice:
        answers: list[Json] = []

        async def call(number: object) -> None:
            steps = {"wait": "go"}
            answers.append(await alice.request("tools/call", calling(steps), number=number))

        async with anyio.create_task_group() as tasks:
            for number in (1, 1, "1"):
                tasks.start_soon(call, number)
            await until(lambda: len(hook.calls) == 3)
            await alice.notify("notifications/cancelled", {"requestId": 1})
            await alice.notify("notifications/cancelled", {"requestId": "1"})
            await until(lambda: len(answers) == 1)
            await alice.do({"release": "go"}, number=2)
    assert (answers[0]["id"], answers[0]["error"]["code"]) == ("1", -32800)
    assert [(answer["id"], "result" in answer) for answer in answers[1:]] == [(1, True), (1, True)]


async def test_answers_out_of_order_doubled_unknown_or_late_are_routed_or_dropped() -> None:
    """FAULTS F33: routed by private id; the rest is counted and dropped."""
    hook = InFlight()
    stray = ["999999", '"x"', '"1"', "-1", "null", "1.5", "9" * 40]
    lines = "".join(f'{{"jsonrpc":"2.0","id":{id},"result":{{}}}}\n' for id in stray)
    async with watched(observers=[hook]) as watch, watch.client("alice") as alice, alice.listen():
        dropped = watch.proxy.app.tally
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alice.do, {"wait": "the second"})
            await until(lambda: len(hook.calls) == 1)
            await alice.do({"raw": lines}, {"again": 2}, {"release": "the second"})
        await until(lambda: dropped["unmatched_response"] == len(stray) + 2)
        async with alice.doing({"log": ""}, {"until_cancelled": 1}, number="late") as late:
            await late.message()
            await alice.notify("notifications/cancelled", {"requestId": "late"})
            assert "error" in await late.answer()
        await until(lambda: dropped["unmatched_response"] == len(stray) + 3)
        assert (await alice.do(number="late", echo="next"))["echo"] == "next"


async def test_progress_that_belongs_to_nothing_or_goes_back_is_dropped() -> None:
    """FAULTS F34: after the result, of an unknown token, decreasing."""
    async with watched() as watch, watch.client("alice") as alice:
        async with alice.listen() as stream:
            steps = (
                {"progress": {"progress": 2}},
                {"progress": {"progress": 1}},
                *({"progress": {"progress": 3, "progressToken": t}} for t in (10**9, "mine", None)),
                {"progress": {"progress": 4}},
                {"then": [{"progress": {"progress": 5}}, {"log": "the last one"}]},
            )
            async with alice.doing(*steps, _meta=TOKEN) as incoming:
                *notes, answer = await incoming.rest()
            assert (await stream.message())["params"]["data"] == "the last one"
    assert [note["params"] for note in notes] == [
        {"progressToken": "mine", "progress": 2},
        {"progressToken": "mine", "progress": 4},
    ]
    assert "result" in answer


async def test_calls_with_one_progress_token_each_get_their_own_progress() -> None:
    """FAULTS F34: tokens are rewritten per hop."""
    async with watched() as watch, watch.client("alice") as alice, watch.client("bob") as bob:
        found: dict[int, list[Json]] = {}

        async def call(client: Recorded, place: int) -> None:
            steps = ({"progress": {"progress": place / 9}}, {"wait": f"{place}"}, {"progress": 99})
            async with client.doing(*steps, _meta=TOKEN) as incoming:
                *found[place], _ = await incoming.rest()

        async with anyio.create_task_group() as tasks:
            for place, client in enumerate((alice, alice, bob)):
                tasks.start_soon(call, client, place)
            for place, client in enumerate((alice, alice, bob)):
                await client.do({"release": f"{place}"})
    for place, notes in found.items():
        assert notes[0]["params"] == {"progressToken": "mine", "progress": place / 9}
        assert len(notes) == 100
        assert {note["params"]["progressToken"] for note in notes} == {"mine"}


async def test_params_nested_too_deep_never_carry_the_clients_own_token() -> None:
    """FAULTS F34: where the token cannot be found any more to be rewritten, the call is refused."""
    seen: Counter[str] = Counter()
    async with watched() as watch, watch.client("alice") as alice:
        for depth in range(900, 1001):
            entry = watch.history.sent(alice.session, "tools/call", f"deep {depth}")
            meta = {**TOKEN, TOKEN_KEY: entry.token}
            body = json.dumps(request("tools/call", calling({"progress": 1}, _meta=meta, deep="@")))
            nested = b"[" * depth + b"]" * depth
            response = await alice.post(body.encode().replace(b'"@"', nested))
            if response.status_code == 400:
                watch.history.finished(entry, Outcome.REFUSED)
                seen["refused"] += 1
                continue
            *notes, answer = messages_of(response)
            watch.history.answered(entry, answer)
            seen["result" if "result" in answer else str(answer["error"]["code"])] += 1
            tokens = [note["params"]["progressToken"] for note in notes]
            assert tokens == (["mine"] if "result" in answer else [])
    assert {"refused", "result"} <= seen.keys() <= {"refused", "result", "-32600"}


# -- requests of the backend -----------------------------------------------------------------------


async def test_a_request_of_the_backend_with_nothing_in_flight_goes_to_the_get_stream() -> None:
    """FAULTS F35 (handshake era): and waits for one where there is none."""
    ask = {"ask": {"method": "roots/list"}}
    async with watched() as watch, watch.client("alice") as alice:
        await alice.do({"then": [ask]})
        async with alice.listen() as stream:
            for _ in range(2):
                asked = await stream.until("roots/list")
                await alice.respond(asked["id"], result={"roots": []})
                await alice.do({"then": [ask]})
            asked = await stream.until("roots/list")
            await alice.respond(asked["id"], error={"code": -1, "message": "no"})
            seen = (await alice.do({"tells": "seen"}))["seen"]
    answers = [message for message in seen if "method" not in message]
    assert [("result" in answer, "error" in answer) for answer in answers] == [
        (True, False), (True, False), (False, True),
    ]  # fmt: skip


async def test_a_request_of_the_backend_with_two_calls_in_flight_goes_out_once_and_on_one() -> None:
    """FAULTS F35: stdio carries no parent id, so on the newest that is read."""
    hook = InFlight()
    ask = ({"log": ""}, {"wait": "go"}, {"ask": {"method": "roots/list"}}, {"release": "all"})
    async with watched(observers=[hook]) as watch, watch.client("alice") as alice:
        async with (
            alice.listen() as stream,
            alice.doing(*ask, number=1) as asking,
            alice.doing({"log": ""}, {"wait": "all"}, number=2) as newest,
        ):
            await asking.message()
            await newest.message()
            async with alice.doing({"log": ""}, {"wait": "all"}, number=3) as left:
                await left.message()
            await hook.lost()
            await alice.do({"release": "go"}, number=4)
            asked = await newest.until("roots/list")
            await alice.respond(asked["id"], result={"roots": []})
            assert len(await asking.rest()) == 1  # its answer alone
            assert len(await newest.rest()) == 1
            await until(lambda: hook.calls[2].outcome is not None)
            await alice.do({"then": [{"log": "over"}]}, number=5)
            heard = [await stream.message()]
            while heard[-1].get("params", {}).get("data") != "over":
                heard.append(await stream.message())
    assert "roots/list" not in [message.get("method") for message in heard]


# -- sessions --------------------------------------------------------------------------------------


async def test_a_client_that_gets_404_opens_a_new_session_in_the_place_of_the_old() -> None:
    """FAULTS F36: the old slot is not counted twice, however often."""
    async with watched(on_loss="not-found", max_sessions=2, queue_timeout=5) as watch:
        async with watch.client("alice") as alice:
            for _ in range(5):
                old = alice.id
                await alice.request("tools/call", calling({"exit": 7}))
                async with alice.open("tools/call", calling()) as refused:
                    assert refused.status == 404
                alice.id = ""
                assert (await alice.initialize()).status_code == 200
                assert alice.id not in ("", old)
                assert (await alice.do())["count"] == 1
            assert watch.proxy.manager.admission.running == 2
            assert len(watch.proxy.manager.registry) == 2


async def test_all_ids_that_name_no_session_of_the_caller_get_one_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F37: expired, deleted, never issued, forged, another server's, nonsense."""
    monkeypatch.setattr(manager_module, "SLEEPERS_EVERY", 1)
    async with watched(session_ttl=SOON) as watch:
        async with (
            watch.client("alice") as alice,
            watch.client("bob") as bob,
            watch.client("carol") as carol,
        ):
            expired = session_of(watch, bob)
            expired.stop(StopReason.IDLE)
            await until(lambda: expired.end_reason is EndReason.EXPIRED)
            await carol.delete()
            ids = SessionIds((watch.proxy.state_dir / "key").read_bytes())
            strangers = [
                bob.id, carol.id, forged(alice.id), "B" + alice.id[1:], alice.id + "A",
                ids.mint("default", "local"), ids.mint("default", "another"),
                ids.mint("another", "local"), SessionIds(b"x" * 32).mint("default", "local"),
                "x", "x" * 5000, "..", "%00",
            ]  # fmt: skip
            for method, more in (
                ("POST", {}), ("GET", {}), ("GET", {"last_event_id": "0-0"}), ("DELETE", {}),
            ):  # fmt: skip
                answers = {await refused(alice, stranger, method, **more) for stranger in strangers}
                assert len(answers) == 1
                assert answers.pop()[0] == 404
            assert (await alice.do())["count"] == 1


async def refused(alice: Recorded, key: str, method: str, **more: str) -> tuple[int, bytes, str]:
    """Return all of an answer to another session's id, but for the date."""
    client = alice.also()
    client.id = key
    body = request("ping") if method == "POST" else b""
    response = await client.send(method, body, **more)
    headers = sorted((name, value) for name, value in response.headers.items() if name != "date")
    return response.status_code, response.content, str(headers)


async def test_delete_in_a_call_ends_it_and_the_whole_tree() -> None:
    """FAULTS F44: the call gets an error; a second DELETE and a stranger's get 404."""
    async with watched() as watch, watch.client("alice") as alice, watch.client("bob") as bob:
        found = await alice.do({"spawn": []}, {"spawn": ["session"]})
        stranger = bob.also()
        ids = SessionIds((watch.proxy.state_dir / "key").read_bytes())
        stranger.id = ids.mint("default", "another")
        assert (await stranger.delete()).status_code == 404
        async with alice.doing({"log": ""}, {"wait": "never"}, number=7) as streamed:
            await streamed.message()
            assert (await alice.delete()).status_code == 204
            answer = await streamed.answer()
            assert (await alice.delete()).status_code == 404
        assert (answer["id"], "error" in answer) == (7, True)
        await gone(found["pid"], *found["children"])
        assert (await bob.do())["count"] == 1


# -- lies about the body ---------------------------------------------------------------------------

CALL: Final = json.dumps(request("tools/call", calling(_meta={TOKEN_KEY: "smuggled"}))).encode()
CHUNKED: Final = "transfer-encoding: chunked"

LIES: Final = (
    (CHUNKED, b"%x\r\n%b" % (len(CALL) + 100, CALL)),
    (CHUNKED, b"ffffffffffffffffff\r\n" + CALL),
    (CHUNKED, b"-1\r\n" + CALL),
    (CHUNKED, b"zz\r\n" + CALL),
    (CHUNKED, b"%x\r\n%bxx0\r\n\r\n" % (len(CALL), CALL)),
    ("transfer-encoding: gzip, chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(CALL), CALL)),
    (f"{CHUNKED}\r\ncontent-length: {len(CALL)}", b"%x\r\n%b\r\n0\r\n\r\n" % (len(CALL), CALL)),
    (f"content-length: {len(CALL) + 100}", CALL),
    (f"content-length: {len(CALL)}\r\ncontent-length: 5", CALL),
    (f"content-length: {len(CALL)}\r\ncontent-encoding: gzip", CALL),
    (f"content-length: {10**12}", CALL),
    ("content-length: -1", CALL),
    ("content-length: 1e3", CALL),
    ("content-length: 5", CALL),
)
"""What a head says of its body, and the body."""


async def test_a_body_that_is_not_as_its_head_says_executes_nothing() -> None:
    """FAULTS F48: chunked lies; the connection is answered with an error, or closed."""
    async with watched() as watch, watch.client("alice") as alice:
        entry = watch.history.sent(alice.session, "tools/call", "smuggled")
        for said, body in LIES:
            sent = head(alice).removesuffix(b"\r\n") + said.encode() + b"\r\n\r\n" + body
            found = await exchange(watch.proxy.port, sent, close=True)
            assert found == b"" or found.startswith(b"HTTP/1.1 4"), said
        watch.history.finished(entry, Outcome.REFUSED)  # so that I2 forbids its execution
        assert (await alice.do())["count"] == 1


# -- lost state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["crash", "hibernation"])
async def test_after_a_loss_calls_are_told_once_then_run_and_none_twice(how: str) -> None:
    """FAULTS F50: `tell`; the ledger shows that what was told was not executed."""
    async with watched() as watch, watch.client("alice") as alice:
        for _ in range(3):
            first = await alice.do()
            if how == "crash":
                crashed = await alice.request("tools/call", calling({"exit": 7}))
                assert fault_of(crashed) == {
                    "kind": "backend_gone", "outcome": "unknown", "exitCode": 7
                }  # fmt: skip
            else:
                session_of(watch, alice).stop(StopReason.IDLE)
            told = await alice.request("tools/call", calling())
            assert fault_of(told) == {"kind": "state_lost", "outcome": "not_executed"}
            assert "repeat your steps" in told["result"]["content"][0]["text"]
            second = await alice.do()
            assert (second["count"], second["nonce"] != first["nonce"]) == (1, True)


async def test_calls_that_come_at_once_after_a_loss_are_told_or_run_and_start_one_backend() -> None:
    """FAULTS F50, I2, I6: whatever the order in which they arrive."""
    async with watched() as watch, watch.client("alice") as alice:
        answers: list[Json] = []

        async def call(number: int) -> None:
            answers.append(await alice.request("tools/call", calling(echo=number)))

        for _ in range(3):
            await alice.do()
            session_of(watch, alice).stop(StopReason.IDLE)
            answers.clear()
            async with anyio.create_task_group() as tasks:
                for number in range(16):
                    tasks.start_soon(call, number)
            told = [answer for answer in answers if answer["result"].get("isError")]
            assert told
            assert {fault_of(answer)["kind"] for answer in told} == {"state_lost"}
            assert len(watch.proxy.processes()) == 2


async def test_a_loss_is_told_although_another_request_woke_the_session() -> None:
    """FAULTS F50: what needs no state is answered by the fresh backend; the next call is told."""
    async with watched() as watch, watch.client("alice") as alice:
        await alice.do()
        session_of(watch, alice).stop(StopReason.IDLE)
        assert "result" in await alice.request("tools/list")
        assert fault_of(await alice.request("tools/call", calling()))["kind"] == "state_lost"
        await alice.do()


async def test_with_annotate_a_loss_is_noted_on_the_result_that_ran() -> None:
    """FAULTS F50: `annotate`."""
    async with watched(on_loss="annotate") as watch, watch.client("alice") as alice:
        await alice.do()
        session_of(watch, alice).stop(StopReason.IDLE)
        noted = await alice.request("tools/call", calling(echo="x"))
        assert noted["result"]["_meta"]["sessionproxy/loss"]["reason"] == "idle"
        assert noted["result"]["structuredContent"]["echo"] == "x"
        assert "_meta" not in (await alice.request("tools/call", calling()))["result"]


async def test_with_not_found_a_loss_ends_the_session() -> None:
    """FAULTS F50: `not-found`."""
    async with watched(on_loss="not-found") as watch, watch.client("alice") as alice:
        await alice.do()
        session_of(watch, alice).stop(StopReason.IDLE)
        async with alice.open("tools/call", calling()) as refused:
            assert refused.status == 404

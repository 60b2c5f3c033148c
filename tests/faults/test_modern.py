"""FAULTS, for clients of 2026-07-28: they have no session of the protocol's, are asked in rounds,
and have cancelled when they hang up.

Each beside a bystander of the handshake era, in front of a backend of that era. Neighbours:
`test_backends`, `test_clients` and `test_shutdown` have the same rows for handshake clients;
`tests.eras` has what lies between the eras on virtual time.
"""

import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import httpx2
import pytest

from sessionproxy.core import circuit
from sessionproxy.core.ports import Identity
from sessionproxy.core.session import Session
from sessionproxy.core.state import EndReason, SessionState, StopReason
from tests.rig.embedded import SCRIPTED, Embedded, scripted, until
from tests.rig.history import LOSS
from tests.rig.http import PATIENCE, EndOfStream, Json, calling, http
from tests.rig.invariants import Watch, watched, watched_process
from tests.rig.modern import PREFIX, Modern, on_the_wire
from tests.rig.peers import connected
from tests.rig.proxy import Proxy, proxy
from tests.rig.recorded_modern import ANSWERS, FORM, RecordedModern, retry
from tests.rig.shim import shimmed

from .told import fault_of, text_of

TOKEN: Final = {"progressToken": "mine"}
ASKS: Final[Json] = {"ask": FORM}
URI: Final = "test://watched"
UPDATED: Final = "notifications/resources/updated"
LISTEN: Final[Json] = {"notifications": {"resourceSubscriptions": [URI]}}


async def call(client: RecordedModern, *steps: Json, **more: object) -> Json:
    """Return the answer to a call; it must be there, whatever it says."""
    status, message = await client.ask(calling(*steps, **more))
    assert status == 200, message
    return message


async def do(client: RecordedModern, *steps: Json, **more: object) -> Json:
    """Return what a backend found out in a call."""
    result = (await call(client, *steps, **more))["result"]
    assert not result.get("isError"), result
    return result["structuredContent"]


def session_of(watch: Watch[Embedded], label: str) -> Session:
    found = watch.proxy.manager.registry.get(Identity("default", "local", f"c:{label}"))
    assert found.shared
    return found


async def sleeps(watch: Watch[Embedded], label: str) -> StopReason | None:
    session = session_of(watch, label)
    await until(lambda: session.state is SessionState.ASLEEP)
    return session.stop_reason


def methods(seen: list[Json]) -> list[str | None]:
    return [message.get("method") for message in seen]


# -- backends that do not start --------------------------------------------------------------------


async def test_a_backend_that_cannot_be_started_is_an_error_with_the_reason(tmp_path: Path) -> None:
    """FAULTS F01; DESIGN 11: -32603, nothing stays; once mended, the same client is served."""
    program = tmp_path / "backend"
    words = " ".join(f"'{word}'" for word in SCRIPTED)
    text = f'#!/bin/sh\nexec {words} "$@"\n'
    program.write_text(text)
    program.chmod(0o755)
    async with watched((str(program),), max_sessions=2) as watch, watch.modern("alice") as alice:
        program.unlink()
        for method, params in (("server/discover", None), ("tools/call", calling())):
            response = await alice.post(method, params)
            answer: Json = response.json()
            assert (response.status_code, answer["id"]) == (200, 1)
            assert fault_of(answer) == {"kind": "backend_start_failed", "outcome": "not_executed"}
            assert "No such file" in text_of(answer)
            assert str(program) in text_of(answer)
        assert (watch.proxy.manager.admission.running, len(watch.proxy.session_dirs())) == (1, 1)
        program.write_text(text)
        program.chmod(0o755)
        assert (await do(alice))["count"] == 1


@pytest.mark.parametrize("exposed", [True, False])
async def test_a_route_that_does_not_start_rests_for_clients_of_both_eras(
    exposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F01 and F02; DESIGN 7: five failed starts, whoever they were for; then 503 with
    Retry-After, and nothing is started. The bystander keeps what it has."""
    monkeypatch.setattr(circuit, "FIRST_REST", 2.0)
    command = scripted(initialize=[{"stderr": ["no such module: x"]}, {"exit": 3}])
    async with watched(command, expose_stderr=exposed) as watch:
        async with watch.modern("alice") as alice, watch.client("old", opens=False) as old:
            fault: Json = {"kind": "backend_start_failed", "outcome": "not_executed", "exitCode": 3}
            if exposed:
                fault["stderr"] = ["no such module: x"]
            for method in ("server/discover", "tools/call", "tools/list", "tools/call"):
                params = calling() if method == "tools/call" else None
                answer: Json = (await alice.post(method, params)).json()
                assert fault_of(answer) == fault
                assert "exit status 3" in text_of(answer)
            assert (await old.initialize()).status_code == 200
            assert fault_of(old.opened) == fault
            for method in ("server/discover", "tools/call"):
                response = await alice.post(method, calling() if method == "tools/call" else None)
                assert response.status_code == 503
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["id"] == 1
            assert (await old.initialize()).status_code == 503
            started = len(watch.proxy.session_dirs())
            assert started <= 1 + 4  # the bystander's, and those that are being stopped
            assert watch.proxy.manager.admission.running == 1


async def test_who_hangs_up_while_its_backend_starts_leaves_it_to_the_next_call() -> None:
    """FAULTS F39: adopted; what was asked is not executed, and nothing is started twice."""
    script = scripted(lives=[{}, {}, {"initialize": [{"sleep": 0.5}]}])
    async with watched(script) as watch, watch.modern("alice") as alice:
        assert (await alice.post("server/discover")).status_code == 200  # of two of our own
        await until(lambda: len(watch.proxy.processes()) == 1)
        entry, params = alice.begins("tools/call", calling())
        entry.left = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alice.once, entry, params)
            await until(lambda: len(watch.proxy.processes()) == 2)
            tasks.cancel_scope.cancel()
        assert (await do(alice))["count"] == 1
        assert len(watch.proxy.processes()) == 2


# -- backends that fail in a call ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("death", "named"),
    [({"exit": 7}, {"exitCode": 7}), ({"kill": "SIGKILL"}, {"signal": "SIGKILL"})],
    ids=["exit 7", "SIGKILL"],
)
async def test_a_backend_that_dies_fails_all_its_calls_and_the_next_is_told_once(
    death: Json, named: Json
) -> None:
    """FAULTS F06 and F50: `outcome: unknown`, how it died; then one telling, not executed."""
    async with watched() as watch, watch.modern("alice") as alice:
        first = (await do(alice))["nonce"]
        found: list[Json] = []

        async def wait() -> None:
            found.append(await call(alice, {"wait": "never"}))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await until(lambda: session_of(watch, "alice").leases == 3)
            with anyio.fail_after(5 * 0.25):
                found.append(await call(alice, death))
        assert [fault_of(answer) for answer in found] == [
            {"kind": "backend_gone", "outcome": "unknown", **named}
        ] * 4
        assert {answer["result"]["resultType"] for answer in found} == {"complete"}
        assert await sleeps(watch, "alice") is StopReason.BACKEND_EXIT
        told = await call(alice)
        assert fault_of(told) == {"kind": "state_lost", "outcome": "not_executed"}
        assert "repeat your steps" in text_of(told)
        again = await do(alice)
        assert (again["count"], again["nonce"] == first) == (1, False)


async def test_a_call_that_hangs_ends_at_the_limit_and_is_cancelled() -> None:
    """FAULTS F08: the session goes on with the same backend."""
    async with watched(call_timeout=0.3) as watch, watch.modern("alice") as alice:
        first = (await do(alice))["nonce"]
        answer = await call(alice, {"until_cancelled": 1})
        assert fault_of(answer) == {"kind": "backend_silent", "outcome": "unknown"}
        found = await do(alice, {"tells": "seen"})
        assert found["nonce"] == first
        assert "notifications/cancelled" in methods(found["seen"])


# -- losses ----------------------------------------------------------------------------------------


async def test_calls_that_come_at_once_after_a_loss_are_told_or_run_and_start_one_backend() -> None:
    """FAULTS F50: no call runs before the first telling was written."""
    async with watched() as watch, watch.modern("alice") as alice:
        await do(alice)
        session_of(watch, "alice").stop(StopReason.IDLE)
        await sleeps(watch, "alice")
        answers: list[Json] = []

        async def come() -> None:
            answers.append(await call(alice))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(come)
        told = [answer for answer in answers if answer["result"].get("isError")]
        assert told
        assert {fault_of(answer)["kind"] for answer in told} == {"state_lost"}
        assert (await do(alice))["count"] == 8 - len(told) + 1


@pytest.mark.parametrize("reason", [EndReason.MAX_AGE, EndReason.KILLED, EndReason.EVICTED])
async def test_who_opens_a_conversation_again_that_has_ended_is_told_why(reason: EndReason) -> None:
    """FAULTS F50; DESIGN 5.12: under the same name there is another backend."""
    says = {"max_age": "greatest age", "killed": "the operator", "evicted": "too many others"}
    async with watched() as watch, watch.modern("alice") as alice:
        await do(alice)
        watch.proxy.manager.end(session_of(watch, "alice"), reason)
        told = await call(alice)
        assert fault_of(told) == {"kind": "state_lost", "outcome": "not_executed"}
        assert says[reason] in text_of(told)
        assert (await do(alice))["count"] == 1


async def test_with_annotate_a_loss_is_noted_on_the_result_that_ran() -> None:
    """FAULTS F50."""
    async with watched(on_loss="annotate") as watch, watch.modern("alice") as alice:
        await do(alice)
        session_of(watch, "alice").stop(StopReason.IDLE)
        result = (await call(alice))["result"]
        assert result["_meta"][LOSS]["reason"] == "idle"
        assert result["structuredContent"]["count"] == 1
        assert LOSS not in (await call(alice))["result"].get("_meta", {})


async def test_a_round_that_comes_after_a_loss_is_told_that_the_call_may_have_run() -> None:
    """FAULTS F50 and I2: the call had begun; `outcome: unknown`."""
    async with watched() as watch, watch.modern("alice") as alice:
        entry, params, asked = await alice.parked(ASKS)
        await call(alice, {"exit": 1})
        _, told = await alice.once(entry, retry(params, asked))
        assert fault_of(told) == {"kind": "state_lost", "outcome": "unknown"}
        assert (await do(alice))["count"] == 1
        _, late = await alice.once(entry, retry(params, asked))
        assert fault_of(late) == {"kind": "no_longer_waiting", "outcome": "unknown"}
        entry.more = 0  # it was sent twice on purpose


# -- hanging up ------------------------------------------------------------------------------------

WAYS: Final = {"JSON": (), "a stream": ({"progress": 1},), "a round": (ASKS,)}


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    ("way", "how"), [("JSON", "FIN"), ("JSON", "RST"), ("a stream", "RST"), ("a round", "FIN")]
)
async def test_a_client_that_hangs_up_has_cancelled(way: str, how: str) -> None:
    """FAULTS F27; 2026-07-28 basic/transports/streamable-http#cancellation: the backend hears of
    it, and its late answer and progress go nowhere."""
    steps = (*WAYS[way], {"release": "x"}, {"until_cancelled": 1}, {"progress": {"progress": 9}})
    async with watched() as watch, shimmed(watch.proxy.port) as shim:
        async with watch.modern("alice", url=shim.url()) as alice:
            await do(alice)
            entry, params = alice.begins("tools/call", calling(*steps))
            entry.left = True
            params["_meta"] |= TOKEN
            if way == "a round":
                _, message = await alice.once(entry, params)
                params = retry(params, message["result"])
            async with anyio.create_task_group() as tasks, watch.modern("alice") as again:

                async def wait() -> None:
                    with pytest.raises((httpx2.TransportError, EndOfStream)):
                        await alice.once(entry, params)

                tasks.start_soon(wait)
                await do(again, {"wait": "x"})
                await (shim.reset() if how == "RST" else shim.cut())
            with anyio.fail_after(5 * 0.1):
                await until(lambda: session_of(watch, "alice").leases == 0)
        async with watch.modern("alice") as again:
            found = await do(again, {"sleep": 0.05}, {"tells": "seen"})
    assert methods(found["seen"]).count("notifications/cancelled") == 1
    assert found["count"] == 4


async def _when(condition: Callable[[], bool], scope: anyio.CancelScope) -> None:
    await until(condition)
    scope.cancel()


async def test_hanging_up_cancels_ones_own_request_alone() -> None:
    """FAULTS F27 and I1: another request of the same conversation goes on."""
    async with watched() as watch, watch.modern("alice") as alice:
        await do(alice)
        found: list[Json] = []

        async def stay() -> None:
            found.append(await do(alice, {"wait": "go"}, echo="stays"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stay)
            entry, params = alice.begins("tools/call", calling({"until_cancelled": 1}))
            entry.left = True
            with anyio.CancelScope() as hanging_up:
                tasks.start_soon(_when, lambda: session_of(watch, "alice").leases == 2, hanging_up)
                await alice.once(entry, params)
            await until(lambda: session_of(watch, "alice").leases == 1)
            await do(alice, {"release": "go"})
        assert found[0]["echo"] == "stays"


@pytest.mark.usefixtures("both_ways")
async def test_a_stalled_reader_of_a_call_is_cut_off_and_has_cancelled() -> None:
    """FAULTS F30: its own buffer fills and its stream is closed; the modern rule is applied."""
    many: Json = {"note": {"method": "notifications/x", "params": {"x": "x" * 20_000}}}
    steps: Json = {"repeat": {"times": 500, "steps": [many]}}
    async with watched() as watch, watch.modern("alice") as alice:
        nonce = (await do(alice))["nonce"]
        entry, params = alice.begins("tools/call", calling(steps, {"until_cancelled": 1}))
        entry.left = True
        params["_meta"] |= TOKEN
        with connected(watch.proxy.port, receives=4096) as sock:
            sock.sendall(on_the_wire(alice.build("tools/call", params)))
            await until(lambda: session_of(watch, "alice").leases == 1)
            for number in range(20):
                found = await do(alice, echo=number)
                assert (found["echo"], found["nonce"]) == (number, nonce)
            await until(lambda: session_of(watch, "alice").leases == 0)
        found = await do(alice, {"tells": "seen"})
    assert "notifications/cancelled" in methods(found["seen"])


@pytest.mark.usefixtures("both_ways")
async def test_a_stalled_reader_of_a_listening_stream_harms_no_call() -> None:
    """FAULTS F29: what waits for it is bounded, it is cut off, and listens again if it likes."""
    many: Json = {"note": {"method": UPDATED, "params": {"uri": URI, "x": "x" * 20_000}}}
    async with watched() as watch, watch.modern("alice") as alice:
        nonce = (await do(alice))["nonce"]
        async with alice.listens(URI) as stream:
            await stream.message()
        listeners = watch.proxy.app.running.listeners
        await until(lambda: len(listeners) == 0)
        with connected(watch.proxy.port, receives=4096) as sock:
            sock.sendall(on_the_wire(alice.build("subscriptions/listen", LISTEN)))
            await until(lambda: len(listeners) == 1)
            found = await do(alice, {"repeat": {"times": 500, "steps": [many]}})
            assert found["nonce"] == nonce
            await until(lambda: len(listeners) == 0)
            assert (await do(alice))["nonce"] == nonce
        async with alice.listens(URI) as stream:
            await stream.message()
            await do(alice, {"note": {"method": UPDATED, "params": {"uri": URI}}})
            assert (await stream.until(UPDATED))["params"]["uri"] == URI
        alice.listened()  # when it did not read


# -- ids, answers and tokens -----------------------------------------------------------------------


async def test_requests_with_one_id_each_get_their_own_answer() -> None:
    """FAULTS F32: real clients send `id: 1` every time; there is no session to tell them apart."""
    async with watched() as watch, watch.modern("alice") as alice, watch.modern("bob") as bob:
        found: dict[str, Json] = {}

        async def come(client: RecordedModern, echo: str) -> None:
            found[echo] = await do(client, {"sleep": 0.02}, {"progress": 2}, echo=echo)

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(come, alice, f"alice {number}")
                tasks.start_soon(come, bob, f"bob {number}")
        assert all(answer["echo"] == echo for echo, answer in found.items())
        nonces = {echo.split()[0]: answer["nonce"] for echo, answer in found.items()}
        assert len(set(nonces.values())) == 2


async def test_answers_doubled_unknown_or_late_are_dropped_and_so_is_stray_progress() -> None:
    """FAULTS F33 and F34: tokens and ids towards the backend are the proxy's own."""
    stray = '{"jsonrpc":"2.0","id":%d,"result":{"content":[]}}\n'
    async with watched() as watch, watch.modern("alice") as alice:
        unknown: Json = {"progress": {"progressToken": 10**9, "progress": 1}}
        own: Json = {"progress": {"progressToken": "mine", "progress": 1}}
        late: Json = {"then": [{"progress": 3}]}
        entry, params = alice.begins(
            "tools/call", calling({"raw": stray % 10**9}, unknown, own, {"progress": 2}, late)
        )
        params["_meta"] |= TOKEN
        async with alice.open("tools/call", params) as incoming:
            messages = await incoming.rest()
        *notes, answer = messages
        alice.history.answered(entry, answer)
        assert [note["params"] for note in notes] == [
            {"progressToken": "mine", "progress": n, "total": 2} for n in (1, 2)
        ]
        assert (await do(alice, {"again": 2}))["count"] == 2
        assert (await do(alice))["count"] == 3


# -- what a backend asks ---------------------------------------------------------------------------


async def test_with_nothing_in_flight_roots_get_an_empty_list_and_the_rest_an_error() -> None:
    """FAULTS F35; DESIGN 9: a modern client cannot be asked then, and the backend waits for
    nothing."""
    asks: Json = {"ask": [{"method": "roots/list"}, FORM]}
    async with watched() as watch, watch.modern("alice") as alice:
        await do(alice, {"then": [asks, {"release": "told"}]})
        steps = {"_meta": {"steps": [{"wait": "told"}, {"tells": "seen"}]}}
        alice.history.sent(alice.session, "x/y").left = True
        found: Json = (await alice.post("x/y", steps)).json()["result"]
        answers = [message for message in found["seen"] if "method" not in message]
        assert [answer.get("result") for answer in answers] == [{"roots": []}, None]
        assert "error" in answers[1]


async def test_a_question_goes_to_the_newest_call_whose_client_can_be_asked() -> None:
    """FAULTS F35: stdio carries no parent id; who did not declare it is never asked."""
    async with watched() as watch, watch.modern("alice") as alice:
        await do(alice)
        others: list[Json] = []

        async def mute() -> None:
            meta: Json = {f"{PREFIX}clientCapabilities": {}}
            response = await alice.post("tools/call", calling({"wait": "go"}), meta=meta)
            others.append(response.json())

        alice.history.sent(alice.session, "tools/call").left = True
        entry, params = alice.begins("tools/call", calling({"wait": "ask"}, ASKS))
        results: list[Json] = []
        async with anyio.create_task_group() as tasks:

            async def asks() -> None:
                _, message = await alice.once(entry, params)
                results.append(message["result"])

            tasks.start_soon(asks)
            await until(lambda: session_of(watch, "alice").leases == 1)
            tasks.start_soon(mute)
            await until(lambda: session_of(watch, "alice").leases == 2)
            await do(alice, {"release": "ask"})
            await until(lambda: bool(results))
            assert results[0]["resultType"] == "input_required"
            assert not others
            await do(alice, {"release": "go"})
        assert not others[0]["result"].get("isError")
        _, done = await alice.once(entry, retry(params, results[0]))
        (told,) = done["result"]["structuredContent"]["answers"]
        assert told["result"] == ANSWERS["elicitation/create"]


async def test_a_question_that_nobody_can_be_asked_is_declined() -> None:
    """FAULTS F35; DESIGN 9: what the client did not declare is declined, not failed."""
    async with watched() as watch, watch.modern("alice") as alice:
        meta: Json = {f"{PREFIX}clientCapabilities": {}}
        alice.history.sent(alice.session, "tools/call").left = True
        asks: Json = {"ask": [{"method": "roots/list"}, FORM]}
        response = await alice.post("tools/call", calling(asks), meta=meta)
        answers = response.json()["result"]["structuredContent"]["answers"]
        assert [answer["result"] for answer in answers] == [{"roots": []}, {"action": "decline"}]


# -- the end of the proxy --------------------------------------------------------------------------


async def until_draining(watch: Watch[Proxy], pool: httpx2.AsyncClient) -> None:
    with anyio.fail_after(PATIENCE):
        while (await pool.get(f"{watch.proxy.base}/readyz")).status_code != 503:  # noqa: ASYNC110 - another process
            await anyio.sleep(0.01)


@asynccontextmanager
async def ending(command: tuple[str, ...], *options: str) -> AsyncGenerator[Watch[Proxy]]:
    """A proxy that has ended with status 0 when this is left."""
    async with watched_process(command, *options, bystander=False) as watch:
        yield watch
        assert await watch.proxy.wait(PATIENCE) == 0


async def test_a_drain_lets_what_runs_finish_tells_who_listens_and_takes_nothing_new() -> None:
    """FAULTS F23: calls in JSON, in a stream and in rounds end by themselves; who listens gets the
    result of that at once (2026-07-28 basic/patterns/subscriptions#graceful-closure), and nobody
    waits for it."""
    found: list[Json] = []
    async with (
        ending(SCRIPTED, "--drain-timeout", "1000") as watch,
        watch.modern("alice") as alice,
        watch.modern("bob") as bob,
    ):

        async def in_json() -> None:
            steps: tuple[Json, ...] = ({"release": "here"}, {"sleep": 1})
            found.append(await do(bob, *steps, echo="JSON"))

        async with alice.listens(URI) as stream, anyio.create_task_group() as tasks:
            await stream.message()
            entry, params, asked = await alice.parked(ASKS, echo="rounds")
            other, streamed = alice.begins("tools/call", calling({"progress": 1}, ASKS, echo="2"))
            streamed["_meta"] |= TOKEN
            async with alice.open("tools/call", streamed) as incoming:
                await incoming.message()
                tasks.start_soon(in_json)
                await do(bob, {"wait": "here"})
                watch.proxy.signal(signal.SIGTERM)
                (end,) = await stream.rest()
                assert end["result"] == {
                    "resultType": "complete",
                    "_meta": {f"{PREFIX}subscriptionId": 1},
                }
                again = await incoming.answer()
            await until_draining(watch, alice.http)
            for method in ("server/discover", "tools/list", "tools/call", "subscriptions/listen"):
                params_of = {"tools/call": calling(), "subscriptions/listen": LISTEN}
                response = await alice.post(method, params_of.get(method))
                assert response.status_code == 503, method
                assert "retry-after" in response.headers
            for mine, sent, told in ((entry, params, asked), (other, streamed, again["result"])):
                _, message = await alice.once(mine, retry(sent, told))
                found.append(message["result"]["structuredContent"])
    assert {answer["echo"] for answer in found} == {"JSON", "rounds", "2"}


async def test_after_a_kill_of_the_proxy_nobody_takes_another_backend_for_the_one_before(
    tmp_path: Path,
) -> None:
    """FAULTS F25 and F50: an authentic state of an earlier life waits for nothing, and says so; it
    is not executed again. Who comes back with a cookie of ours is told that its state is lost."""
    options = ("--key-cookie", "on")
    state = tmp_path / "s"
    async with watched_process(SCRIPTED, *options, bystander=False, state_dir=state) as watch:
        async with watch.modern("alice") as alice:
            await do(alice)
            entry, params, asked = await alice.parked(ASKS)
            entry.left = True
            given = await Modern(alice.http, watch.proxy.url).post("tools/call", calling())
            cookie = given.headers["set-cookie"].partition(";")[0]
            watch.proxy.signal(signal.SIGKILL)
            await watch.proxy.wait(PATIENCE)
    async with proxy(SCRIPTED, *options, state_dir=state) as again, http() as pool:
        client = Modern(pool, f"{again.url}/s/alice")
        response = await client.post("tools/call", retry(params, asked))
        assert fault_of(response.json()) == {"kind": "no_longer_waiting", "outcome": "unknown"}
        assert (await client.call())["structuredContent"]["count"] == 1
        known = Modern(pool, again.url, {"cookie": cookie})
        told: Json = (await known.post("tools/call", calling())).json()
        assert fault_of(told) == {"kind": "state_lost", "outcome": "not_executed"}
        assert (await known.call())["structuredContent"]["count"] == 1


async def test_a_storm_of_conversations_is_admitted_as_far_as_the_queue_goes() -> None:
    """FAULTS F38: beyond the limits 503 with a randomised Retry-After; nothing is started."""
    async with watched(max_sessions=3, queue_timeout=0.2) as watch, watch.modern("first") as first:
        await do(first)
        statuses: list[int] = []

        async def come(number: int) -> None:
            async with watch.modern(f"c{number}") as client:
                status, _ = await client.ask(calling())
                statuses.append(status)

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(come, number)
        assert sorted(statuses) == [200, *[503] * 7]
        assert watch.proxy.manager.admission.running == 3

"""DESIGN 10, "shared": one backend for all sessions, through the whole proxy."""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import httpx2
import pytest

from sessionproxy.core.state import SessionState, StopReason
from tests.rig.embedded import SCRIPTED, Embedded, Json, bare, embedded, gone, scripted, until
from tests.rig.http import Client, Incoming, calling, connect, http, request
from tests.rig.modern import Modern

CLIENTS = 50
ROUNDS = 20
"""Clients that call at the same time, and how often: together a thousand calls that overlap."""

UPDATED = "notifications/resources/updated"
TOOLS = "notifications/tools/list_changed"

ELICIT: Json = {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}}

MODERN_ONLY: Json = {
    "initialize": [{"replies": {"error": {"code": -32601, "message": "no such method"}}}],
    "server/discover": [
        {
            "replies": {
                "result": {
                    "resultType": "complete",
                    "supportedVersions": ["2026-07-28"],
                    "capabilities": {"tools": {"listChanged": True}, "resources": {}},
                    "_meta": {
                        "io.modelcontextprotocol/serverInfo": {"name": "modern", "version": "1"}
                    },
                }
            }
        }
    ],
    "subscriptions/listen": [{"listen": None}],
}
"""Steps of a backend that knows no `initialize`."""


@asynccontextmanager
async def shared(
    command: Sequence[str] = SCRIPTED, *, local: bool = True, **settings: object
) -> AsyncGenerator[Embedded]:
    running = embedded(
        command,
        hooks=(),
        observers=(),
        local=local,
        around=bare,
        listening=None,
        certificate=None,
        **{"mode": "shared", "shared_linger": 60, **settings},
    )
    async with running as proxy:
        yield proxy


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where backends write that they start, and what they execute."""
    path = tmp_path / "ledger"
    monkeypatch.setenv("TESTS_LEDGER", str(path))
    return path


def starts(ledger: Path) -> int:
    """How many backends have started."""
    return ledger.read_text().count('"start"')


async def seen(client: Client) -> list[Json]:
    """All that the backend has received."""
    return (await client.do({"tells": "seen"}))["seen"]


async def received(client: Client, enough: Callable[[Counter[str]], bool]) -> list[Json]:
    """All that the backend has received, as soon as that is enough."""
    with anyio.fail_after(10):
        while not enough(methods(found := await seen(client))):  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.01)
    return found


def methods(messages: list[Json]) -> Counter[str]:
    return Counter(message.get("method", "response") for message in messages)


def in_flight(proxy: Embedded) -> int:
    """How many requests the backend has been sent and has not answered."""
    return sum(session.leases for session in proxy.manager.registry.awake())


@asynccontextmanager
async def working(client: Client, *steps: Json, number: object = 1) -> AsyncGenerator[Incoming]:
    """A call that the backend works on when this is entered."""
    meta = {"progressToken": "working"}
    async with client.doing({"progress": 1}, *steps, number=number, _meta=meta) as incoming:
        await incoming.message()
        yield incoming


# -- one backend -----------------------------------------------------------------------------------


async def test_a_hundred_clients_one_after_the_other_are_one_handshake_and_one_process(
    ledger: Path,
) -> None:
    """DESIGN 10: 100 serial calls, each with a session of its own, are 1 handshake."""
    async with shared(pass_env=["TESTS_LEDGER"]) as proxy, http() as pool:
        for number in range(100):
            client = Client(pool, proxy.url)
            await client.initialize()
            await client.notify("notifications/initialized")
            found = await client.do(echo=number)
            assert (found["echo"], found["count"]) == (number, number + 1)
            await client.delete()
        async with connect(proxy.url) as client:
            sent = methods(await seen(client))
    assert sent["initialize"] == sent["notifications/initialized"] == 1
    assert starts(ledger) == 1


async def test_fifty_clients_at_once_are_one_handshake_and_one_process(ledger: Path) -> None:
    """DESIGN 5.2: they wait for the same start. No limit on backends holds up their sessions."""
    limited = shared(
        pass_env=["TESTS_LEDGER"], max_sessions=1, max_sessions_per_owner=1, starts_at_once=1
    )
    async with limited as proxy, http() as pool:
        clients = [Client(pool, proxy.url) for _ in range(50)]

        async def use(number: int, client: Client) -> None:
            await client.initialize()
            await client.notify("notifications/initialized")
            assert (await client.do(echo=number))["echo"] == number

        async with anyio.create_task_group() as tasks:
            for number, client in enumerate(clients):
                tasks.start_soon(use, number, client)
        sent = methods(await seen(clients[0]))
        assert len({client.id for client in clients}) == 50
        assert (await pool.get(f"{proxy.base}/readyz")).json()["backends"] == 1
    assert sent["initialize"] == sent["notifications/initialized"] == 1
    assert starts(ledger) == 1


async def test_every_client_is_told_what_the_backend_said_of_itself() -> None:
    """DESIGN 5.4; tasks are left out, since the backend would let each client have those of all."""
    async with shared() as proxy, connect(proxy.url) as one, connect(proxy.url) as two:
        assert one.opened["result"] == two.opened["result"]
        result = one.opened["result"]
        assert result["serverInfo"]["title"] == "Söme"
        assert (result["x-unknown"], "tasks" in result["capabilities"]) == (None, False)
        assert result["capabilities"]["experimental"] == {"x-tests": {"unknown": [1, None]}}


async def test_a_client_of_an_older_revision_gets_its_own() -> None:
    """`SharedBackend.welcome`: 2025-11-25 basic/lifecycle#version-negotiation."""
    async with shared() as proxy, connect(proxy.url) as new:
        async with connect(proxy.url, version="2025-03-26") as old:
            assert old.opened["result"]["protocolVersion"] == "2025-03-26"
            assert new.opened["result"]["protocolVersion"] == "2025-11-25"
            assert (await old.do())["pid"] == (await new.do())["pid"]


async def test_the_backend_outlives_its_last_session() -> None:
    """DESIGN 10: kept by reference count plus linger."""
    async with shared() as proxy:
        async with connect(proxy.url) as client, connect(proxy.url) as other:
            pid = (await client.do())["pid"]
            await client.delete()
            assert (await other.do())["pid"] == pid
            await other.delete()
        await until(lambda: len(proxy.manager.registry) == 0)
        async with connect(proxy.url) as client:
            assert (await client.do())["pid"] == pid


async def test_it_stops_when_nobody_has_needed_it_for_the_linger() -> None:
    """`shared_linger`; the next session starts another."""
    async with shared(shared_linger=0.2) as proxy:
        async with connect(proxy.url) as client:
            pid = (await client.do())["pid"]
            await client.delete()
            await gone(pid)
        async with connect(proxy.url) as client:
            assert (await client.do())["pid"] != pid


async def test_without_a_linger_it_stops_with_its_last_session() -> None:
    """`shared_linger` 0."""
    async with shared(shared_linger=0) as proxy, connect(proxy.url) as one:
        async with connect(proxy.url) as two:
            pid = (await two.do())["pid"]
            await two.delete()
        assert (await one.do())["pid"] == pid
        await one.delete()
        await gone(pid)


# -- whose is what ---------------------------------------------------------------------------------


async def test_a_thousand_overlapping_calls_are_never_mixed() -> None:
    """FAULTS I1, DESIGN 5.1, 5.11: every client uses the same ids and the same progress token."""
    async with shared() as proxy, AsyncExitStack() as stack:
        pool = await stack.enter_async_context(http())
        clients = [Client(pool, proxy.url) for _ in range(CLIENTS)]
        for client in clients:
            await client.initialize()
        answered = 0

        async def call(client: Client, nonce: str, gate: str) -> None:
            nonlocal answered
            told: Json = {"progress": {"progress": 1, "message": nonce}}
            reports: list[Json] = [told] if gate in ("0", "1") else []
            steps = (*reports, {"wait": gate}, *reports)
            async with client.doing(*steps, echo=nonce, _meta={"progressToken": "t"}) as incoming:
                *notes, answer = await incoming.rest()
            assert answer["id"] == 1
            assert answer["result"]["structuredContent"]["echo"] == nonce
            told_of = [(n["params"]["progressToken"], n["params"]["message"]) for n in notes]
            assert told_of == [("t", nonce)] * 2 * len(reports)
            answered += 1

        async with connect(proxy.url) as releaser:
            for number in range(ROUNDS):
                async with anyio.create_task_group() as tasks:
                    for who, client in enumerate(clients):
                        tasks.start_soon(call, client, f"{who} {number}", str(number))
                    await until(lambda: in_flight(proxy) == CLIENTS)
                    await releaser.do({"release": str(number)})
        assert answered == CLIENTS * ROUNDS


async def test_a_question_during_the_only_request_reaches_its_client() -> None:
    """DESIGN 8: what it asks belongs to what it works on."""
    async with shared() as proxy, connect(proxy.url) as one, connect(proxy.url) as other:
        await other.do()
        for client in (one, other, one):
            async with client.doing({"ask": ELICIT}) as incoming:
                question = await incoming.until("elicitation/create")
                await client.respond(question["id"], result={"action": "accept", "content": {}})
                answer = await incoming.answer()
            found = answer["result"]["structuredContent"]["answers"]
            assert found[0]["result"] == {"action": "accept", "content": {}}


@pytest.mark.parametrize("method", ["elicitation/create", "sampling/createMessage", "roots/list"])
async def test_a_question_that_may_be_anothers_is_refused_and_says_why(method: str) -> None:
    """DESIGN 5.1: nobody is asked what another user's request led to."""
    ask: Json = {"ask": {"method": method, "params": {}}}
    async with shared() as proxy, connect(proxy.url) as one, connect(proxy.url) as other:
        async with working(other, {"wait": "go"}) as waiting:
            found = (await one.do(ask))["answers"][0]
            assert found["error"]["code"] == -32603
            assert "several requests are in flight; use --mode session" in found["error"]["message"]
            await one.do({"release": "go"})
            assert [m for m in await waiting.rest() if "method" in m] == []


async def test_a_question_with_nothing_in_flight_is_refused() -> None:
    """DESIGN 9: nobody can be asked on nobody's behalf."""
    later: Json = {"then": [{"ask": ELICIT}]}
    async with shared() as proxy, connect(proxy.url) as client, client.listen():
        await client.do(later)
        await until(lambda: proxy.app.tally["ask_without_session"] == 1)
        (answer,) = [m for m in await seen(client) if "method" not in m]
        assert "no request is in flight" in answer["error"]["message"]


async def test_what_a_client_did_not_declare_is_declined() -> None:
    """DESIGN 9: the backend sees a client that can do all; what one cannot is declined."""
    questions: list[Json] = [ELICIT, {"method": "roots/list"}, {"method": "sampling/createMessage"}]
    async with shared() as proxy, connect(proxy.url, capabilities={}) as plain:
        elicited, rooted, sampled = (await plain.do({"ask": questions}))["answers"]
        assert elicited["result"] == {"action": "decline"}
        assert rooted["result"] == {"roots": []}
        assert "does not support sampling" in sampled["error"]["message"]
        url: Json = {**ELICIT, "params": {"mode": "url", "message": "?", "elicitationId": "e"}}
        async with connect(proxy.url, capabilities={"elicitation": {"form": {}}}) as forms:
            assert (await forms.do({"ask": url}))["answers"][0]["result"] == {"action": "decline"}


async def test_log_messages_reach_the_session_that_is_alone_and_wants_them() -> None:
    """Each session gets the level that it asked for; the backend writes the lowest of all."""
    async with shared() as proxy, connect(proxy.url) as talks, connect(proxy.url) as quiet:
        await quiet.request("logging/setLevel", {"level": "error"})
        await talks.request("logging/setLevel", {"level": "debug"})
        for client, heard in ((talks, ["notifications/message"]), (quiet, [])):
            async with client.doing({"log": "x"}) as incoming:
                assert [m["method"] for m in await incoming.rest() if "method" in m] == heard
        levels = [m for m in await seen(talks) if m.get("method") == "logging/setLevel"]
        assert [m["params"]["level"] for m in levels] == ["error", "debug"]
        await talks.delete()
        levels = [m for m in await seen(quiet) if m.get("method") == "logging/setLevel"]
        assert levels[-1]["params"]["level"] == "error"


async def test_a_log_message_that_may_be_anothers_reaches_nobody() -> None:
    """FAULTS I1: it names no request."""
    async with shared() as proxy, connect(proxy.url) as one, connect(proxy.url) as other:
        async with other.listen(), working(other, {"wait": "go"}) as waiting:
            async with one.doing({"log": "secret"}, {"release": "go"}) as incoming:
                assert [m for m in await incoming.rest() if "method" in m] == []
            assert [m for m in await waiting.rest() if "method" in m] == []


async def test_users_who_are_not_known_never_get_a_log_message_of_an_earlier_request() -> None:
    """FAULTS I1: a backend may log long after its answer. Where nobody is authenticated every
    session counts as another user's."""
    late: Json = {"then": [{"wait": "later"}, {"log": "secret"}, {"release": "logged"}]}
    async with shared(local=False, allow_host=["127.0.0.1"], insecure=True) as proxy:
        async with connect(proxy.url) as one, connect(proxy.url) as other:
            await one.do(late)
            steps: list[Json] = [{"release": "later"}, {"wait": "logged"}, {"log": "mine"}]
            async with other.doing(*steps) as incoming:
                assert [m for m in await incoming.rest() if "method" in m] == []


# -- what is set up --------------------------------------------------------------------------------


async def test_changed_lists_are_told_to_every_session() -> None:
    """DESIGN 10: they are the same for all."""
    async with shared() as proxy, connect(proxy.url) as one, connect(proxy.url) as other:
        async with one.listen() as first, other.listen() as second:
            await one.do({"note": {"method": TOOLS}})
            assert (await first.message())["method"] == TOOLS
            assert (await second.message())["method"] == TOOLS


async def test_an_updated_resource_is_told_to_those_who_subscribed_to_it() -> None:
    """DESIGN 10: routed by subscription; 2025-11-25 server/resources#subscriptions: the URI may be
    below the one that was subscribed to."""
    async with shared() as proxy, AsyncExitStack() as stack:
        one, two, three = [await stack.enter_async_context(connect(proxy.url)) for _ in range(3)]
        streams = [await stack.enter_async_context(c.listen()) for c in (one, two, three)]
        for client, uri in ((one, "x://a"), (two, "x://a"), (three, "x://b")):
            answer = await client.request("resources/subscribe", {"uri": uri})
            assert "result" in answer
        updates: list[Json] = [
            {"note": {"method": UPDATED, "params": {"uri": uri}}} for uri in ("x://a/1", "x://b")
        ]
        await one.do(*updates)
        for stream, uri in zip(streams, ("x://a/1", "x://a/1", "x://b"), strict=True):
            assert (await stream.message())["params"]["uri"] == uri
        # What is told to all comes next: nothing more was for one of them.
        await one.do({"note": {"method": TOOLS}})
        assert [(await stream.message())["method"] for stream in streams] == [TOOLS] * 3


async def test_the_first_subscribes_and_the_last_unsubscribes() -> None:
    """DESIGN 10: the backend is subscribed once, for as long as anybody is; also when a session
    ends."""
    uri = {"uri": "x://a"}
    async with shared() as proxy, AsyncExitStack() as stack:
        one, two, three = [await stack.enter_async_context(connect(proxy.url)) for _ in range(3)]
        for client in (one, two, one):
            assert "result" in await client.request("resources/subscribe", uri)
        # Nothing of another's is ended by one who has no subscription.
        assert (await three.request("resources/unsubscribe", uri))["result"] == {}
        assert (await one.request("resources/unsubscribe", uri))["result"] == {}
        sent = methods(await seen(three))
        assert (sent["resources/subscribe"], sent["resources/unsubscribe"]) == (1, 0)
        await two.delete()
        await received(three, lambda sent: sent["resources/unsubscribe"] == 1)


async def test_tasks_are_refused() -> None:
    """`NO_TASKS`: 2025-11-25 basic/utilities/tasks has each client see its own alone."""
    async with shared() as proxy, connect(proxy.url) as client:
        answer = await client.request("tasks/list")
        assert answer["error"]["code"] == -32601
        assert "--mode session" in answer["error"]["message"]
        await client.do(task={"ttl": 60000})
        (call,) = [m for m in await seen(client) if m.get("method") == "tools/call"][:1]
        assert "task" not in call["params"]


# -- the end of a request, a session, the backend --------------------------------------------------


async def test_a_client_cancels_its_own_request_alone() -> None:
    """DESIGN 5.9, 5.11: both have the same id."""
    async with shared() as proxy, connect(proxy.url) as one, connect(proxy.url) as other:
        async with working(other, {"wait": "go"}, number=7) as waiting:
            async with working(one, {"until_cancelled": None}, number=7) as cancelled:
                await one.notify("notifications/cancelled", {"requestId": 7, "reason": "enough"})
                assert (await cancelled.answer())["error"]["code"] == -32800
            await one.do({"release": "go"})
            assert "result" in await waiting.answer()
            found = await seen(one)
        (told,) = [m for m in found if m.get("method") == "notifications/cancelled"]
        assert told["params"]["reason"] == "enough"


async def test_a_sessions_end_cancels_what_it_has_in_flight_and_nothing_of_others() -> None:
    """DESIGN 10; what the backend asked it is answered, so that nothing waits for ever."""
    async with shared() as proxy, connect(proxy.url) as one, connect(proxy.url) as other:
        async with one.doing({"ask": ELICIT}) as asked:
            await asked.until("elicitation/create")
            async with working(other, {"wait": "go"}) as waiting:
                await one.delete()
                await other.do({"release": "go"})
                assert "result" in await waiting.answer()
        found = await received(other, lambda sent: sent["response"] == 1)
        sent = methods(found)
        assert (sent["notifications/cancelled"], sent["response"]) == (1, 1)
        (answer,) = [m for m in found if "method" not in m]
        assert "no longer there" in answer["error"]["message"]


async def test_the_backends_end_fails_all_in_flight_and_tells_every_session() -> None:
    """FAULTS F06, I6: nobody said that it would end. The next one serves all again."""
    async with shared() as proxy, connect(proxy.url) as one, connect(proxy.url) as other:
        async with working(other, {"wait": "never"}) as waiting:
            pid = (await one.do())["pid"]
            failed = await one.request("tools/call", calling({"exit": 7}))
            for answer in (failed, await waiting.answer()):
                assert answer["result"]["isError"]
                assert "exit status 7" in answer["result"]["content"][0]["text"]
        for client in (one, other):
            told = await client.request("tools/call", calling())
            assert "state was lost" in told["result"]["content"][0]["text"]
        found = [await client.do() for client in (one, other)]
        assert len({answer["pid"] for answer in found}) == 1
        assert found[0]["pid"] != pid


async def test_a_session_that_gives_its_share_back_loses_nothing() -> None:
    """`stateless`: the backend goes on, and what the session set up is set up again."""
    async with shared() as proxy, connect(proxy.url) as client, connect(proxy.url) as other:
        await client.request("resources/subscribe", {"uri": "x://a"})
        pid = (await client.do())["pid"]
        sleeper = proxy.manager.find("local", client.id)
        async with working(other, {"wait": "go"}) as waiting:
            sleeper.stop(StopReason.IDLE)
            await until(lambda: sleeper.state is SessionState.ASLEEP)
            assert (await client.do({"release": "go"}))["pid"] == pid
            assert "result" in await waiting.answer()
        sent = [m["method"] for m in await seen(client) if "subscribe" in m.get("method", "")]
        assert sent == ["resources/subscribe", "resources/unsubscribe", "resources/subscribe"]


async def test_where_a_loss_is_404_an_idle_session_is_none() -> None:
    """`--on-loss not-found`: nothing was lost, so the id stays good."""
    async with shared(idle=0.2, on_loss="not-found") as proxy, connect(proxy.url) as client:
        await client.do()
        sleeper = proxy.manager.find("local", client.id)
        await until(lambda: sleeper.state is SessionState.ASLEEP)
        assert (await client.do())["count"] == 2


async def test_a_backend_that_answers_nobody_is_replaced() -> None:
    """FAULTS F08: three calls in a row, whose ever they are."""
    hangs: Json = {"wait": "never"}
    async with shared(call_timeout=1, stop_grace=0.1) as proxy, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(proxy.url)) for _ in range(3)]
        (pid,) = proxy.processes()
        for client in clients:
            answer = await client.request("tools/call", calling(hangs))
            assert "did not answer" in answer["result"]["content"][0]["text"]
        await gone(pid)
        told = await clients[0].request("tools/call", calling())
        assert "state was lost" in told["result"]["content"][0]["text"]
        assert (await clients[0].do())["pid"] != pid


@pytest.mark.parametrize("era", ["handshake", "modern"])
async def test_a_backend_that_answers_nobody_of_the_other_era_is_replaced(era: str) -> None:
    """FAULTS F08: a bridge stands between, which has exchanges of its own."""
    command = scripted() if era == "handshake" else scripted(on=MODERN_ONLY)
    hangs = calling({"wait": "never"})
    async with shared(command, call_timeout=1, stop_grace=0.1) as proxy, http() as pool:
        if era == "handshake":
            calls = [Modern(pool, f"{proxy.url}/s/{n}").post for n in range(3)]
        else:
            clients = [Client(pool, proxy.url) for _ in range(3)]
            for client in clients:
                await client.initialize()
            calls = [partial(_post, client) for client in clients]
        await calls[0]("tools/call", calling())
        await until(lambda: len(proxy.processes()) == 1)
        (pid,) = proxy.processes()
        async with anyio.create_task_group() as tasks:
            for call in calls:
                tasks.start_soon(call, "tools/call", hangs)
        await gone(pid)
        told = await calls[0]("tools/call", calling())
        assert "state was lost" in told.text


async def _post(client: Client, method: str, params: Json) -> httpx2.Response:
    return await client.post(request(method, params))


async def test_a_start_that_fails_is_one_failure_for_all_who_wait(ledger: Path) -> None:
    """FAULTS F01, F03: more wait than failures open the circuit."""
    fails: list[Json] = [{"exit": 3}]
    command = scripted(
        lives=[{"start": [{"sleep": 2}], "initialize": fails}, {"initialize": fails}]
    )
    async with shared(command, pass_env=["TESTS_LEDGER"]) as proxy, http() as pool:
        told: list[str] = []

        async def open_session() -> None:
            response = await Client(pool, proxy.url).initialize()
            told.append(response.json()["error"]["message"])

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(open_session)
        assert [("exit status 3" in text) for text in told] == [True] * 8
        assert starts(ledger) == 1
        assert (await pool.get(f"{proxy.base}/readyz")).json()["status"] == "ready"
        for _ in range(4):
            await Client(pool, proxy.url).initialize()
        assert (await pool.get(f"{proxy.base}/readyz")).json()["status"] == "resting"


async def test_a_client_that_hangs_up_during_the_start_takes_nobody_along(ledger: Path) -> None:
    """DESIGN 5.2: the start is nobody's own."""
    command = scripted(start=[{"sleep": 1}])
    async with shared(command, pass_env=["TESTS_LEDGER"]) as proxy, http() as pool:
        first, second = Client(pool, proxy.url), Client(pool, proxy.url)
        async with anyio.create_task_group() as staying:
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(first.initialize)
                await until(lambda: len(proxy.manager.registry) == 1)
                staying.start_soon(second.initialize)
                await until(lambda: len(proxy.manager.registry) == 2)
                leaving.cancel_scope.cancel()
        assert (await second.do())["count"] == 1
    assert starts(ledger) == 1


# -- both eras -------------------------------------------------------------------------------------


async def test_clients_of_both_eras_share_one_backend_of_the_handshake_era(ledger: Path) -> None:
    """DESIGN 9, 10: the catalogue has a share too, so there is no second process."""
    async with (
        shared(pass_env=["TESTS_LEDGER"]) as proxy,
        connect(proxy.url) as old,
        http() as pool,
    ):
        one, two = Modern(pool, f"{proxy.url}/s/one"), Modern(pool, f"{proxy.url}/s/two")
        assert (await one.post("server/discover")).status_code == 200
        found = [
            (await one.call(echo="1"))["structuredContent"],
            (await two.call(echo="2"))["structuredContent"],
            await old.do(echo="3"),
        ]
        assert [answer["echo"] for answer in found] == ["1", "2", "3"]
        assert len({answer["nonce"] for answer in found}) == 1
        sent = methods(await seen(old))
        assert (sent["initialize"], sent["server/discover"]) == (1, 0)
    assert starts(ledger) == 1


async def test_clients_of_both_eras_share_one_backend_of_the_modern_era(ledger: Path) -> None:
    """DESIGN 9: a backend that refuses the handshake is probed, and then spoken to in its era."""
    command = scripted(on=MODERN_ONLY)
    async with shared(command, pass_env=["TESTS_LEDGER"]) as proxy, http() as pool:
        modern = Modern(pool, f"{proxy.url}/s/one")
        nonces = {(await modern.call())["structuredContent"]["nonce"]}
        async with connect(proxy.url) as one, connect(proxy.url) as two:
            assert one.opened["result"]["serverInfo"]["name"] == "modern"
            nonces |= {(await client.do())["nonce"] for client in (one, two)}
            assert len(nonces) == 1
            # One that was asked for the handshake, one for the probe, and the one that serves.
            assert starts(ledger) == 3
            async with one.listen() as first, two.listen() as second:
                await one.do({"tell": {"method": TOOLS}})
                assert (await first.message())["method"] == TOOLS
                assert (await second.message())["method"] == TOOLS


async def test_what_is_told_on_a_subscription_reaches_the_session_that_listens() -> None:
    """2026-07-28 basic/patterns/subscriptions: by its id."""
    async with shared(scripted(on=MODERN_ONLY)) as proxy:
        async with connect(proxy.url) as one, connect(proxy.url) as two:
            async with one.listen() as first, two.listen() as second:
                assert "result" in await one.request("resources/subscribe", {"uri": "x://a"})
                subscriptions = [
                    message
                    for message in await seen(two)
                    if message.get("method") == "subscriptions/listen"
                    and "resourceSubscriptions" in message["params"]["notifications"]
                ]
                assert len(subscriptions) == 1
                number = subscriptions[0]["id"]
                meta = {"io.modelcontextprotocol/subscriptionId": number}
                update = {"method": UPDATED, "params": {"uri": "x://a", "_meta": meta}}
                await two.do({"note": update})
                assert (await first.message())["params"] == {"uri": "x://a"}
                await two.do({"tell": {"method": TOOLS}})
                assert (await second.message())["method"] == TOOLS


async def test_a_modern_client_is_asked_in_rounds_by_a_backend_that_others_use_too() -> None:
    """DESIGN 9: a parked call is in flight, so what others lead to may be its own."""
    async with shared() as proxy, connect(proxy.url) as old, http() as pool:
        modern = Modern(pool, f"{proxy.url}/s/one")
        await old.do()
        call = calling({"ask": ELICIT}, echo="mine")
        asked = (await modern.post("tools/call", call)).json()["result"]
        assert asked["resultType"] == "input_required"
        (key,) = asked["inputRequests"]
        refused = (await old.do({"ask": ELICIT}))["answers"][0]
        assert "several requests are in flight" in refused["error"]["message"]
        answers = {key: {"action": "accept", "content": {"x": 1}}}
        again = {**call, "inputResponses": answers, "requestState": asked["requestState"]}
        result = (await modern.post("tools/call", again)).json()["result"]
        facts = result["structuredContent"]
        assert facts["echo"] == "mine"
        assert facts["answers"][0]["result"] == answers[key]


@pytest.mark.parametrize("era", ["handshake", "modern"])
async def test_users_of_both_eras_are_never_mixed(era: str) -> None:
    """FAULTS I1: modern and handshake clients at once, against a backend of either era."""
    command = scripted() if era == "handshake" else scripted(on=MODERN_ONLY)
    async with shared(command) as proxy, http() as pool, connect(proxy.url) as old:
        modern = [Modern(pool, f"{proxy.url}/s/{number}") for number in range(4)]

        async def of_the_old(echo: str) -> object:
            return (await old.do(echo=echo))["echo"]

        async def call(who: str, ask: Callable[[str], Awaitable[object]]) -> None:
            for number in range(25):
                echo = f"{who} {number}"
                assert await ask(echo) == echo

        async with anyio.create_task_group() as tasks:
            for number, client in enumerate((*modern, *modern)):

                async def of_the_new(echo: str, client: Modern = client) -> object:
                    return (await client.call(echo=echo))["structuredContent"]["echo"]

                tasks.start_soon(call, f"new {number}", of_the_new)
            for number in range(2):
                tasks.start_soon(call, f"old {number}", of_the_old)

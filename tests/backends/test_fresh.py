"""A backend of its own for every request (PARITY 59, `sessions="request"`), with real processes."""

import anyio
import pytest

from sessionproxy.core.circuit import FAILURES
from sessionproxy.core.state import EndReason
from tests.rig.embedded import Embedded, embedded, gone, scripted, until
from tests.rig.http import Client, Json, calling, connect, http
from tests.rig.modern import Modern
from tests.rig.several import two

ROOTS: Json = {"method": "roots/list"}
FORM: Json = {
    "method": "elicitation/create",
    "params": {"message": "Who?", "requestedSchema": {"type": "object", "properties": {}}},
}


async def none_is_left(proxy: Embedded) -> None:
    """Wait until no backend runs; the sessions are there."""
    await until(lambda: proxy.processes() == [] and proxy.session_dirs() == [])
    assert len(proxy.manager.registry) > 0


@pytest.mark.usefixtures("both_ways")
async def test_each_request_has_a_process_of_its_own_that_is_gone_with_it() -> None:
    """PARITY 59: disjoint pids; nothing is kept from one to the next, in both eras."""
    async with embedded(mode="request") as proxy, http() as pool:
        async with connect(proxy.url) as client:
            assert client.opened["result"]["serverInfo"]["name"] == "scripted"
            found = [await client.do() for _ in range(2)]
            modern = Modern(pool, proxy.url)
            found += [(await modern.call())["structuredContent"] for _ in range(2)]
            assert len({each["pid"] for each in found}) == 4
            assert {each["count"] for each in found} == {1}
            await none_is_left(proxy)


async def test_requests_at_once_do_not_meet() -> None:
    """DESIGN 5.1: each is asked and told its own; the server sees the client's own opening."""
    async with embedded(mode="request") as proxy:
        async with connect(proxy.url, capabilities={"x": {}, "roots": {}}) as client:

            async def one(number: int) -> None:
                steps: list[Json] = [{"progress": 1}, {"ask": ROOTS}, {"tells": "seen"}]
                meta = {"progressToken": number}
                async with client.doing(*steps, number=number, _meta=meta) as incoming:
                    told = await incoming.message()
                    assert told["params"]["progressToken"] == number
                    asked = await incoming.until("roots/list")
                    roots = {"roots": [{"uri": f"file:///{number}"}]}
                    await client.respond(asked["id"], result=roots)
                    answer = (await incoming.answer())["result"]["structuredContent"]
                    assert answer["answers"][0]["result"] == roots
                    assert answer["seen"][0]["params"]["capabilities"] == {"x": {}, "roots": {}}
                    assert answer["seen"][1]["method"] == "notifications/initialized"

            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    tasks.start_soon(one, number)
            await none_is_left(proxy)


async def test_a_modern_client_comes_back_to_the_server_that_asked() -> None:
    """DESIGN 9, multi-round-trip: parked, the server stays; then it is gone like any other."""
    async with embedded(mode="request") as proxy, http() as pool:
        modern = Modern(pool, proxy.url)
        params = calling({"ask": FORM}, {"ask": ROOTS})
        first: Json = (await modern.post("tools/call", params)).json()["result"]
        assert first["resultType"] == "input_required"
        (waiting,) = proxy.processes()
        (key,) = first["inputRequests"]
        answers: Json = {key: {"action": "accept", "content": {}}}
        retry: Json = {**params, "requestState": first["requestState"], "inputResponses": answers}
        second: Json = (await modern.post("tools/call", retry)).json()["result"]
        assert second["resultType"] == "input_required"
        (key,) = second["inputRequests"]
        answers = {key: {"roots": []}}
        retry = {**params, "requestState": second["requestState"], "inputResponses": answers}
        last = (await modern.post("tools/call", retry)).json()["result"]
        assert last["structuredContent"]["pid"] == waiting
        await gone(waiting)
        late = (await modern.post("tools/call", retry)).json()["result"]
        assert late["_meta"]["sessionproxy/fault"]["kind"] == "no_longer_waiting"
        await none_is_left(proxy)


async def test_of_several_servers_too_the_one_that_asked_is_come_back_to() -> None:
    """DESIGN 9: it keeps its part, and the whole session, until it has its answer."""
    async with embedded(two(), mode="request", idle=0.2) as proxy, http() as pool:
        modern = Modern(pool, proxy.url)
        params = calling({"ask": ROOTS}, name="two_do")
        first: Json = (await modern.post("tools/call", params)).json()["result"]
        whole = next(iter(proxy.manager.registry.awake()))
        assert whole.leases == 1
        (key,) = first["inputRequests"]
        answers: Json = {key: {"roots": []}}
        retry: Json = {**params, "requestState": first["requestState"], "inputResponses": answers}
        last = (await modern.post("tools/call", retry)).json()["result"]
        assert last["structuredContent"]["answers"][0]["result"] == {"roots": []}
        assert whole.leases == 0
        await until(lambda: proxy.processes() == [])


async def test_a_server_that_waits_for_its_client_ends_with_the_session() -> None:
    """DESIGN 5.6."""
    async with embedded(mode="request") as proxy, http() as pool:
        modern = Modern(pool, proxy.url)
        await modern.post("tools/call", calling({"ask": FORM}))
        (waiting,) = proxy.processes()
        proxy.app.running.end_all(EndReason.KILLED)
        await gone(waiting)
        await until(lambda: len(proxy.manager.registry) == 0)


async def test_a_cancellation_reaches_the_server_and_ends_it() -> None:
    """DESIGN 5.9: explicit, and a modern client that hangs up; while it starts, too."""
    slow = scripted(initialize=[{"wait": "ever"}])
    async with embedded(mode="request") as proxy, connect(proxy.url) as client, http() as pool:
        steps: list[Json] = [{"log": 1}, {"until_cancelled": None}]
        async with client.doing(*steps, number=2) as incoming:
            await incoming.until("notifications/message")
            assert len(proxy.processes()) == 1
            await client.notify("notifications/cancelled", {"requestId": 2})
            assert (await incoming.answer())["error"]["code"] == -32800
        await none_is_left(proxy)
        modern = Modern(pool, proxy.url)
        meta = {"progressToken": 1}
        params = calling({"progress": 1}, {"until_cancelled": None})
        async with modern.open("tools/call", params, meta=meta) as incoming:
            await incoming.until("notifications/progress")
        await none_is_left(proxy)
    async with embedded(slow, mode="request") as proxy, http() as pool:
        client = Client(pool, proxy.url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.initialize)
            await until(lambda: len(proxy.processes()) == 1)
            tasks.cancel_scope.cancel()
        await until(lambda: proxy.processes() == [])


async def test_what_dies_or_does_not_start_fails_its_request_alone() -> None:
    """DESIGN 11; with nothing kept, nothing is lost, and nothing is told of a loss."""
    async with embedded(mode="request") as proxy, connect(proxy.url) as client:
        died = (await client.request("tools/call", calling({"exit": 3})))["result"]
        assert died["content"][0]["text"] == "The backend ended: exit status 3."
        assert (await client.do())["count"] == 1
    async with embedded(("/bin/false",), mode="request") as proxy, http() as pool:
        answer = (await Client(pool, proxy.url).initialize()).json()
        assert "exit status 1" in answer["error"]["message"]


async def test_each_server_takes_a_place() -> None:
    """DESIGN 7: limits count backends; a session alone is none."""
    async with embedded(mode="request", max_sessions=1, queue_timeout=0.2) as proxy:
        async with connect(proxy.url) as client, connect(proxy.url) as other:
            async with client.doing({"log": 1}, {"wait": "ever"}) as incoming:
                await incoming.until("notifications/message")
                answer = await other.request("tools/call", calling())
                assert "Too many" in str(answer)
            await client.delete()
            await none_is_left(proxy)
            assert (await other.do())["count"] == 1


async def test_where_there_is_no_place_who_comes_is_told_to_come_later() -> None:
    """DESIGN 11: 503 with Retry-After, however many come; and a route whose backends work does not
    rest for it."""
    async with embedded(mode="request", max_sessions=1, queue_timeout=0.1) as proxy, http() as pool:
        async with connect(proxy.url) as client:
            async with client.doing({"log": 1}, {"wait": "ever"}) as incoming:
                await incoming.until("notifications/message")
                for _ in range(FAILURES + 1):
                    told = await Client(pool, proxy.url).initialize()
                    assert told.status_code == 503
                    assert int(told.headers["retry-after"]) > 0
                    assert "Too many" in told.text
            await client.delete()
        await until(lambda: proxy.processes() == [])
        assert (await Client(pool, proxy.url).initialize()).status_code == 200


async def test_a_log_level_is_told_to_each_and_subscriptions_are_refused() -> None:
    """2025-11-25: what is set up is set up for all that follow, where that can be."""
    async with embedded(mode="request") as proxy, connect(proxy.url) as client:
        assert (await client.request("logging/setLevel", {"level": "error"}))["result"] == {}
        assert (await client.request("logging/setLevel", {"level": "x"}))["error"]
        assert (await client.request("ping"))["result"] == {}
        seen = (await client.do({"tells": "seen"}))["seen"]
        assert [m["params"] for m in seen if m["method"] == "logging/setLevel"] == [
            {"level": "error"}
        ]
        refused = await client.request("resources/subscribe", {"uri": "note://x"})
        assert refused["error"]["code"] == -32601

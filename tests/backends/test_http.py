"""A backend elsewhere, over streamable HTTP: two real proxies, one in front of the other.

The one behind has a scripted stdio backend for each of its sessions, so what is seen there is what
an upstream sees. Neighbours: `test_upstreams` has those that misbehave.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NamedTuple

import anyio
import pytest
from mcp.shared.inbound import encode_header_value

from tests.rig.embedded import Embedded, embedded, scripted, until
from tests.rig.http import Client, Incoming, Json, calling, connect, http
from tests.rig.modern import Modern
from tests.rig.upstream import fronting


class Chain(NamedTuple):
    """A proxy, and the upstream that it is in front of."""

    front: Embedded
    behind: Embedded


@asynccontextmanager
async def chain(**settings: object) -> AsyncGenerator[Chain]:
    async with embedded(scripted()) as upstream, fronting(upstream.url, settings) as front:
        yield Chain(front, upstream)


@asynccontextmanager
async def through(**settings: object) -> AsyncGenerator[tuple[Chain, Client]]:
    async with chain(**settings) as both, connect(both.front.url) as client:
        yield both, client


async def asked(incoming: Incoming, client: Client, result: object) -> None:
    """Answer the next question that comes on a stream."""
    question = await incoming.until("elicitation/create")
    taken = await client.respond(question["id"], result=result)
    assert taken.status_code == 202


# -- fidelity --------------------------------------------------------------------------------------


async def test_what_the_upstream_says_of_itself_and_answers_comes_as_it_was_sent() -> None:
    """DESIGN 5.4: content, `_meta`, unknown members, error code and data."""
    answer: Json = {
        "content": [],
        "isError": False,
        "_meta": {"x": [1, None]},
        "x-unknown": "\u2028 ä",
    }
    error = {"code": -32050, "message": "no", "data": {"why": [1.5]}}
    async with through() as (_, client):
        welcome = client.opened["result"]
        assert welcome["serverInfo"]["x-unknown"] == [1.5]
        assert welcome["instructions"] == "Do as you are told."
        whole = await client.request("tools/call", steps({"replies": {"result": answer}}))
        assert whole == {"jsonrpc": "2.0", "id": 1, "result": answer}
        whole = await client.request("x/unknown", meta({"replies": {"error": error}}), number="a")
        assert whole == {"jsonrpc": "2.0", "id": "a", "error": error}


def steps(*taken: object) -> Json:
    return {"name": "do", "arguments": {"steps": list(taken)}}


def meta(*taken: object) -> Json:
    return {"_meta": {"steps": list(taken)}}


async def test_each_session_has_an_upstream_session_and_a_backend_of_its_own() -> None:
    """DESIGN 5.2 and FAULTS I1: one session, one upstream connection."""
    async with chain() as both, connect(both.front.url) as one, connect(both.front.url) as two:
        first, second = await one.do(), await two.do()
        assert first["nonce"] != second["nonce"]
        assert [(await one.do())["count"], (await two.do())["count"]] == [2, 2]
        assert len(both.behind.manager.registry.awake()) == 2


async def test_the_upstream_is_told_when_a_session_is_over() -> None:
    """DESIGN 10: the upstream's session is deleted; so its backend ends at once, not when idle."""
    async with through() as (both, client):
        await client.do()
        assert both.behind.manager.registry.awake()
        assert (await client.delete()).status_code in (200, 204)
        await until(lambda: not both.behind.manager.registry.awake())
        assert not list(both.behind.manager.registry.asleep())


async def test_a_large_result_passes_and_one_past_the_limit_fails_its_call_alone() -> None:
    """FAULTS F13 and F14, over HTTP: as JSON, and as an event after another one."""
    async with through(max_line=300_000) as (_, client):
        assert len((await client.do({"fill": 250_000}))["fill"]) == 250_000
        for before in ((), ({"log": "first"},)):
            answer = await client.request("tools/call", steps(*before, {"fill": 400_000}))
            fault = answer["result"]["_meta"]["sessionproxy/fault"]
            assert fault["kind"] == "result_too_large", before
        assert (await client.do())["count"] == 4


async def test_a_backend_that_dies_behind_its_upstream_fails_the_call_and_then_is_told() -> None:
    """FAULTS F06 and F50: what the proxy behind says of the loss is passed on as it is."""
    async with through() as (_, client):
        answer = await client.request("tools/call", steps({"exit": 7}))
        assert answer["result"]["_meta"]["sessionproxy/fault"]["exitCode"] == 7
        told = await client.request("tools/call", steps())
        assert told["result"]["_meta"]["sessionproxy/fault"]["kind"] == "state_lost"
        assert (await client.do())["count"] == 1


# -- whose is what ---------------------------------------------------------------------------------


def question(text: str) -> Json:
    schema: Json = {"type": "object", "properties": {}}
    params: Json = {"mode": "form", "message": text, "requestedSchema": schema}
    return {"method": "elicitation/create", "params": params}


async def test_what_belongs_to_no_call_comes_on_the_get_stream() -> None:
    """2025-11-25 basic/transports#listening-for-messages-from-the-server: one is held upstream."""
    changed = "notifications/resources/list_changed"
    async with through() as (_, client), client.listen() as stream:
        await client.do({"then": [{"note": {"method": changed}}]})
        assert (await stream.message())["method"] == changed


async def test_a_question_that_belongs_to_no_call_reaches_the_client_and_is_answered() -> None:
    """FAULTS F35, by the upstream's GET stream."""
    async with through() as (_, client), client.listen() as stream:
        await client.do({"then": [{"ask": question("when?")}, {"log": "answered"}]})
        await asked(stream, client, {"action": "decline"})
        assert (await stream.until("notifications/message"))["params"]["data"] == "answered"


async def test_a_ping_of_the_backend_is_answered_by_the_proxies_alone() -> None:
    """DESIGN 5.10: Playwright's own HTTP mode ends a session whose pings are not answered."""
    async with through() as (_, client):
        told = await client.do({"ask": {"method": "ping"}})
        assert [answer["result"] for answer in told["answers"]] == [{}]


# -- cancelling, and leaving -----------------------------------------------------------------------


async def test_a_cancelled_call_is_cancelled_upstream_under_the_id_it_has_there() -> None:
    """DESIGN 5.9 and 2025-11-25 basic/utilities/cancellation."""
    async with through() as (_, client):
        waits = ({"log": "begun"}, {"until_cancelled": None}, {"release": "it was"})
        async with client.doing(*waits, number="mine") as call:
            await call.until("notifications/message")
            await client.notify("notifications/cancelled", {"requestId": "mine", "reason": "no"})
            assert (await call.answer())["error"]["code"] == -32800
        await client.do({"wait": "it was"})


async def test_a_client_that_hangs_up_cancels_nothing_and_its_call_runs_on() -> None:
    """FAULTS F26: in the handshake era a disconnect is no cancellation, upstream neither."""
    async with through() as (_, client):
        async with client.doing({"log": "begun"}, {"wait": "go"}, {"release": "end"}) as call:
            await call.until("notifications/message")
        await client.do({"release": "go"}, {"wait": "end"})


async def test_an_idle_session_leaves_its_upstream_and_wakes_in_a_new_one() -> None:
    """DESIGN 7, hibernation: the upstream's session goes, and the client is told once."""
    async with through(idle=0.2) as (both, client):
        before = await client.do()
        await until(lambda: not both.front.manager.registry.awake())
        await until(lambda: not both.behind.manager.registry.awake())
        told = await client.request("tools/call", steps())
        assert told["result"]["_meta"]["sessionproxy/fault"]["kind"] == "state_lost"
        after = await client.do()
        assert (after["count"], after["nonce"] != before["nonce"]) == (1, True)


async def test_calls_of_one_session_run_side_by_side() -> None:
    """DESIGN 8: one POST each, none of which waits for another."""
    async with through() as (_, client):
        async with anyio.create_task_group() as tasks:
            for n in range(20):
                tasks.start_soon(client.do, {"wait": f"{n}"})
            await client.do(*({"release": f"{n}"} for n in range(20)))


# -- both eras -------------------------------------------------------------------------------------


async def test_a_modern_client_and_a_modern_upstream_meet_without_a_bridge() -> None:
    """DESIGN 9: plain relay, headers checked. The proxy behind checks those that we send."""
    async with chain() as both, http() as pool:
        client = Modern(pool, both.front.url)
        assert (await client.call())["structuredContent"]["count"] == 1
        discovered = (await client.post("server/discover")).json()["result"]
        assert "2026-07-28" in discovered["supportedVersions"]
        uri = "test://ä\n "
        read = await client.post("resources/read", {"uri": uri}, mcp_name=encode_header_value(uri))
        assert read.json()["result"]["params"]["uri"] == uri


async def test_a_modern_client_that_hangs_up_closes_the_stream_upstream() -> None:
    """FAULTS F27: closing the response stream is the cancellation, all the way."""
    async with chain() as both, http() as pool:
        client = Modern(pool, both.front.url)
        waits = ({"progress": 1}, {"until_cancelled": None}, {"release": "it was"})
        params = {**steps(*waits)}
        async with client.open("tools/call", params, meta={"progressToken": 1}) as call:
            await call.until("notifications/progress")
        await client.call({"wait": "it was"})


@pytest.mark.parametrize("client_is_modern", [True, False])
async def test_input_is_asked_for_across_the_eras(client_is_modern: bool) -> None:
    """DESIGN 9: multi-round-trip for one side, a request on the stream for the other. The upstream
    is modern for modern clients, and of the handshake era for the others."""
    async with chain() as both:
        if not client_is_modern:
            async with connect(both.front.url) as client:
                async with client.doing({"ask": question("who?")}) as call:
                    await asked(call, client, {"action": "accept", "content": {}})
                    assert "result" in await call.answer()
            return
        async with http() as pool:
            modern = Modern(pool, both.front.url)
            first = await modern.call({"ask": question("who?")})
            assert first["resultType"] == "input_required"
            (key,) = first["inputRequests"]
            more = {
                "requestState": first["requestState"],
                "inputResponses": {key: {"action": "accept", "content": {"a": 1}}},
            }
            params = calling({"ask": question("who?")}, **more)
            last = (await modern.post("tools/call", params)).json()["result"]
            assert last["structuredContent"]["answers"][0]["result"]["content"] == {"a": 1}


# -- what is written -------------------------------------------------------------------------------


async def test_no_log_line_has_an_id_of_the_upstreams_or_a_header(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """DESIGN 5.8, and no secret of the operator's."""
    caplog.set_level(logging.DEBUG, "sessionproxy")
    async with through(header=("X-Key=s3cr3t",)) as (both, client):
        await client.do()
        (upstream,) = both.behind.manager.registry.awake()
        await client.delete()
    text = caplog.text
    assert upstream.identity.key not in text
    assert "s3cr3t" not in text

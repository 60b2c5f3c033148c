"""DESIGN 5.4: what a session sees is what the backend sent, and the other way round.

The scripted backend answers a request it has no steps for with the method and params it received,
and tells all messages it has seen.
"""

import json
from typing import Final

import anyio
import pytest

from tests.rig.embedded import SCRIPTED, embedded, scripted, session, until
from tests.rig.http import Client, Json, connect, notification, request

pytestmark = pytest.mark.usefixtures("both_ways")

ODD: Final[Json] = {
    "float": 1.0,
    "exponent": 1.5e300,
    "big": 2**70,
    "null": None,
    "text": 'ä\u2028\u2029\n"\\\U0001f600\x00',
    "nested": [{"": [[], {}]}],
    "x-unknown": True,
}
"""Members no revision knows, with values that a careless relay changes."""

CLIENT_METHODS: Final[dict[str, Json | None]] = {
    "tools/list": {"cursor": "page 2"},
    "resources/list": None,
    "resources/templates/list": {"cursor": ""},
    "resources/read": {"uri": "test://x"},
    "resources/subscribe": {"uri": "test://x"},
    "resources/unsubscribe": {"uri": "test://x"},
    "prompts/list": {},
    "prompts/get": {"name": "p", "arguments": {"a": "b"}},
    "completion/complete": {"ref": {"type": "ref/prompt", "name": "p"}, "argument": {}},
    "logging/setLevel": {"level": "debug"},
    "tasks/list": None,
    "tasks/get": {"taskId": "t"},
    "tasks/result": {"taskId": "t"},
    "tasks/cancel": {"taskId": "t"},
    "x/unknown": {"y": 1},
    "notifications/odd": {"a request all the same": 1},
    "tools": None,
    'quo"ted\n': {},
}

SERVER_NOTIFICATIONS: Final[dict[str, Json | None]] = {
    "notifications/message": {"level": "alert", "logger": "l", "data": ODD},
    "notifications/tools/list_changed": None,
    "notifications/prompts/list_changed": {"_meta": ODD},
    "notifications/resources/list_changed": {},
    "notifications/resources/updated": {"uri": "test://x", "title": "T"},
    "notifications/elicitation/complete": {"elicitationId": "e"},
    "notifications/tasks/status": {"taskId": "t", "status": "working"},
    "notifications/x/unknown": ODD,
    "x-unknown": None,
}

QUESTIONS: Final[dict[str, tuple[Json | None, Json]]] = {
    "sampling": (
        {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1, **ODD}},
        {"role": "assistant", "content": {"type": "text", "text": "hi"}, "model": "m", **ODD},
    ),
    "elicitation by form": (
        {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": ODD}},
        {"action": "accept", "content": ODD},
    ),
    "elicitation by url": (
        {
            "method": "elicitation/create",
            "params": {"mode": "url", "url": "https://x", "elicitationId": "e", "message": "?"},
        },
        {"action": "decline"},
    ),
    "roots": ({"method": "roots/list"}, {"roots": [{"uri": "file:///x", "x-unknown": 1}]}),
    "unknown": ({"method": "x/unknown", "params": ODD}, ODD),
}


async def seen_by_backend(client: Client) -> list[Json]:
    """What the backend received after the handshake, this question apart."""
    return (await client.do({"tells": "seen"}))["seen"][2:-1]


# -- from the client -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CLIENT_METHODS)
@pytest.mark.parametrize("odd", [False, True], ids=["plain", "with unknown members"])
async def test_a_request_reaches_the_backend_as_it_was_and_its_result_comes_back_as_it_was(
    method: str, odd: bool
) -> None:
    """DESIGN 5.4."""
    params = CLIENT_METHODS[method]
    if odd:
        answer = {"result": {"resultType": "x", "_meta": ODD, **ODD}}
        params = {**(params or {}), **ODD, "_meta": {"x": ODD, "steps": [{"replies": answer}]}}
    async with session() as (_, client):
        got = await client.request(method, params, number="mine")
        (seen,) = await seen_by_backend(client)
    assert seen == {**request(method, params), "id": seen["id"]}
    assert (got["jsonrpc"], got["id"]) == ("2.0", "mine")
    if odd:
        assert got == {
            "jsonrpc": "2.0",
            "id": "mine",
            "result": {"resultType": "x", "_meta": ODD, **ODD},
        }
    else:
        assert (got["result"]["method"], got["result"]["params"]) == (method, params)


@pytest.mark.parametrize("method", ["tools/call", "resources/read", "x/unknown"])
async def test_an_error_of_the_backend_comes_back_with_its_code_message_and_data(
    method: str,
) -> None:
    """DESIGN 5.4: also codes that are none of ours."""
    error = {"code": -32042, "message": "söme", "data": {"elicitations": [ODD]}, "x-unknown": 1}
    steps = [{"replies": {"error": error}}]
    params = {"name": "do", "arguments": {"steps": steps}, "_meta": {"steps": steps}}
    async with session() as (_, client):
        got = await client.request(method, params, number=5)
    assert got == {"jsonrpc": "2.0", "id": 5, "error": error}


async def test_a_tool_result_comes_back_with_all_that_is_in_it() -> None:
    """DESIGN 5.4: content, isError, structuredContent, _meta, unknown fields."""
    result = {
        "content": [{"type": "text", "text": "t", "annotations": ODD}, {"type": "x", **ODD}],
        "structuredContent": ODD,
        "isError": True,
        "_meta": ODD,
        **ODD,
    }
    async with session() as (_, client):
        params = {"name": "do", "arguments": {"steps": [{"replies": {"result": result}}]}}
        assert (await client.request("tools/call", params))["result"] == result


async def test_initialize_reaches_the_backend_and_its_answer_the_client_as_they_were() -> None:
    """DESIGN 5.4: clientInfo, capabilities, serverInfo, instructions, unknown fields."""
    capabilities: Json = {"sampling": {"tools": {}}, "elicitation": {}, "experimental": ODD}
    info: Json = {"name": "cliënt", "version": "0", "title": "T", "icons": [], **ODD}
    async with embedded() as proxy, connect(proxy.url) as other:
        client = Client(other.http, proxy.url)
        await client.initialize(capabilities=capabilities, client=info, _meta=ODD, odd=ODD)
        (sent,) = (await client.do({"tells": "seen"}))["seen"][:-1]
    assert sent == {
        "jsonrpc": "2.0",
        "id": sent["id"],
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": capabilities,
            "clientInfo": info,
            "_meta": ODD,
            "odd": ODD,
        },
    }
    result = client.opened["result"]
    assert result["serverInfo"] == {
        "name": "scripted", "version": "1", "title": "Söme", "x-unknown": [1.5],
    }  # fmt: skip
    assert result["capabilities"]["experimental"] == {"x-tests": {"unknown": [1, None]}}
    assert result["capabilities"]["tasks"]["requests"] == {"tools": {"call": {}}}
    assert result["instructions"] == "Do as you are told."
    assert "x-nonce" in result["_meta"]
    assert result["x-unknown"] is None


async def test_a_backend_may_choose_another_revision_than_the_client_asked_for() -> None:
    """2025-11-25 basic/lifecycle#version-negotiation: the backend's choice is passed on."""
    answer: Json = {"protocolVersion": "2025-03-26", "capabilities": {}, "serverInfo": {}}
    backend = scripted(initialize=[{"replies": {"result": answer}}])
    async with embedded(backend) as proxy, connect(proxy.url) as client:
        assert client.opened["result"] == answer
        client.version = "2025-03-26"
        batch = await client.post([request("ping", number=1), request("ping", number=2)])
        assert [answer["id"] for answer in batch.json()] == [1, 2]


async def test_notifications_reach_the_backend_as_they_were_and_in_order() -> None:
    """DESIGN 5.3, 5.4: unknown ones too."""
    sent = [
        notification("notifications/roots/list_changed"),
        notification("notifications/progress", {"progressToken": "the backend's", "progress": 1}),
        notification("notifications/tasks/status", {"taskId": "t", **ODD}),
        notification("notifications/x/unknown", ODD),
        notification("x"),
        *(notification("notifications/x/n", {"n": n}) for n in range(50)),
    ]
    async with session() as (_, client):
        for message in sent:
            response = await client.post(message)
            assert (response.status_code, response.content) == (202, b"")
        assert await seen_by_backend(client) == sent


async def test_a_body_of_several_lines_is_one_line_for_the_backend() -> None:
    """2025-11-25 basic/transports#stdio: messages MUST NOT contain embedded newlines."""
    params = {"text": "a\nb\u2028c", "x": [1, 2]}
    body = json.dumps(request("x/pretty", params), indent=2, ensure_ascii=False)
    async with session() as (_, client):
        response = await client.post(body.replace("\n", "\r\n").encode())
        assert response.json()["result"]["params"] == params


@pytest.mark.parametrize("size", [100_000, 8_000_000])
async def test_large_messages_pass_both_ways(size: int) -> None:
    """DESIGN 13: 8 MiB each way."""
    async with session() as (_, client):
        echo = "ä" + "x" * size
        assert (await client.do(echo=echo))["echo"] == echo


# -- from the backend ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SERVER_NOTIFICATIONS)
@pytest.mark.parametrize("during", [True, False], ids=["during a call", "between calls"])
async def test_a_notification_reaches_the_client_as_it_was(method: str, during: bool) -> None:
    """DESIGN 5.4: all of the era's, and those that no revision knows."""
    message = notification(method, SERVER_NOTIFICATIONS[method])
    step: Json = {"note": message}
    async with session() as (_, client):
        if during:
            async with client.doing(step) as incoming:
                assert await incoming.message() == message
        else:
            async with client.listen() as stream:
                await client.do({"then": [step]})
                assert await stream.message() == message


@pytest.mark.parametrize("kind", QUESTIONS)
@pytest.mark.parametrize("during", [True, False], ids=["during a call", "between calls"])
async def test_a_question_reaches_the_client_and_its_answer_the_backend_as_they_were(
    kind: str, during: bool
) -> None:
    """DESIGN 4: under an id of the relay's at the client, under its own at the backend."""
    question, result = QUESTIONS[kind]
    assert question is not None
    step: Json = {"ask": {**question, "id": "the backend's own"}}
    async with session() as (_, client), client.listen() as stream:
        async with client.doing(*((step,) if during else ({"then": [step]},))) as incoming:
            asked = await (incoming if during else stream).message()
            assert asked == {"jsonrpc": "2.0", **question, "id": asked["id"]}
            response = await client.respond(asked["id"], result=result)
            assert (response.status_code, response.content) == (202, b"")
            await incoming.answer()
        seen = await seen_by_backend(client)
    assert seen[-1] == {"jsonrpc": "2.0", "id": "the backend's own", "result": result}


async def test_an_error_as_answer_reaches_the_backend_as_it_was() -> None:
    """DESIGN 5.4."""
    error = {"code": -1, "message": "User rejected sampling request", "data": ODD}
    async with session() as (_, client):
        async with client.doing({"ask": {"method": "sampling/createMessage"}}) as incoming:
            asked = await incoming.message()
            await client.respond(asked["id"], error=error)
            answers = (await incoming.answer())["result"]["structuredContent"]["answers"]
    assert [answer["error"] for answer in answers] == [error]


async def test_overlapping_questions_with_ids_of_any_kind_each_get_their_own_answer() -> None:
    """DESIGN 4: `1` and `"1"` are two ids."""
    ids = (1, "1", -5, "ö\u2028", 2**70)
    questions: list[Json] = [
        {"method": "x/ask", "params": {"n": n}, "id": i} for n, i in enumerate(ids)
    ]
    async with session() as (_, client):
        async with client.doing({"ask": questions}) as incoming:
            asked = [await incoming.message() for _ in questions]
            assert len({message["id"] for message in asked}) == len(questions)
            for message in reversed(asked):
                await client.respond(message["id"], result={"n": message["params"]["n"]})
            answers = (await incoming.answer())["result"]["structuredContent"]["answers"]
    assert [(a["id"], a["result"]["n"]) for a in answers] == [
        (question["id"], question["params"]["n"]) for question in questions
    ]


async def test_only_the_first_answer_to_a_question_counts() -> None:
    """DESIGN 5.3: answered exactly once."""
    async with session() as (_, client):
        async with client.doing({"ask": {"method": "roots/list"}}) as incoming:
            asked = await incoming.message()
            for text in ("first", "second"):
                response = await client.respond(asked["id"], result={"text": text})
                assert response.status_code == 202
            await incoming.answer()
        seen = await seen_by_backend(client)
    assert [message["result"] for message in seen if "result" in message] == [{"text": "first"}]


async def test_an_answer_to_no_question_is_taken_and_dropped() -> None:
    """2025-11-25 basic/transports: 202; a late answer is nobody's fault."""
    async with session() as (_, client):
        for number in (1, "1", "x", -1, 10**30, "ask-1"):
            assert (await client.respond(number, result={})).status_code == 202
        assert await seen_by_backend(client) == []


async def test_an_answer_of_one_session_reaches_no_other() -> None:
    """DESIGN 5.1: questions are numbered alike in every session."""
    async with embedded() as proxy, connect(proxy.url) as one, connect(proxy.url) as two:
        question = {"ask": {"method": "roots/list"}}
        async with one.doing(question) as first, two.doing(question) as second:
            asked = [await incoming.message() for incoming in (first, second)]
            assert asked[0]["id"] == asked[1]["id"]
            await two.respond(asked[1]["id"], result={"of": "two"})
            await one.respond(asked[0]["id"], result={"of": "one"})
            got = [await incoming.answer() for incoming in (first, second)]
    assert [
        answer["result"]["structuredContent"]["answers"][0]["result"]["of"] for answer in got
    ] == ["one", "two"]


# -- ping ------------------------------------------------------------------------------------------


async def test_a_ping_of_the_client_is_answered_by_the_backend() -> None:
    """2025-11-25 basic/utilities/ping."""
    async with session() as (_, client):
        assert await client.request("ping", number="p") == {
            "jsonrpc": "2.0", "id": "p", "result": {},
        }  # fmt: skip
        assert [message["method"] for message in await seen_by_backend(client)] == ["ping"]


async def test_a_ping_of_the_backend_is_answered_by_the_proxy_at_once() -> None:
    """DESIGN 5.10: the client sees nothing of it."""
    pings = [{"method": "ping", "id": number} for number in (1, "p")]
    async with session() as (_, client):
        async with client.doing({"ask": pings}) as incoming:
            assert not incoming.is_stream
            answers = (await incoming.answer())["result"]["structuredContent"]["answers"]
    assert answers == [{"jsonrpc": "2.0", "id": number, "result": {}} for number in (1, "p")]


# -- progress --------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["t", "", 0, 1, -7, 2**60, "ö\u2028"])
async def test_progress_carries_the_clients_own_token_and_all_it_came_with(token: object) -> None:
    """DESIGN 5.11: tokens are renumbered towards the backend."""
    report: Json = {"progress": 0.5, "total": 1, "message": "m", "_meta": ODD, "x-unknown": ODD}
    async with session() as (_, client):
        meta = {"progressToken": token, "x-unknown": ODD}
        async with client.doing({"progress": report}, _meta=meta) as incoming:
            note, _ = await incoming.rest()
        (seen,) = await seen_by_backend(client)
    assert note == notification("notifications/progress", {"progressToken": token, **report})
    assert seen["params"]["_meta"] == {"progressToken": seen["id"], "x-unknown": ODD}


async def test_progress_that_belongs_to_no_request_is_dropped() -> None:
    """FAULTS F34: after the result, unknown token, decreasing."""
    late = {"then": [{"progress": 1}, {"release": "late"}]}
    strangers: list[object] = [99, "x", None, 1.5, ["t"]]
    odd: list[Json] = [{"progress": {"progress": 1, "progressToken": t}} for t in strangers]
    falling = [{"progress": {"progress": n}} for n in (5, 4, 5, 6)]
    async with session() as (proxy, client), client.listen() as stream:
        async with client.doing(*odd, *falling, late, _meta={"progressToken": 1}) as incoming:
            *notes, _ = await incoming.rest()
        await client.do({"wait": "late"}, {"then": [{"log": "the end"}]})
        assert (await stream.message())["params"]["data"] == "the end"
        dropped = proxy.app.tally
    assert [note["params"]["progress"] for note in notes] == [5, 5, 6]
    assert dropped["progress_dropped"] + dropped["progress_without_token"] == len(odd) + 2


async def test_progress_of_a_task_goes_on_after_its_request_was_answered() -> None:
    """2025-11-25 basic/utilities/tasks: the token stays valid for the task's life."""
    task = {"taskId": "t", "status": "working", "createdAt": "x", "ttl": None, "x-unknown": 1}
    status = {"note": notification("notifications/tasks/status", task)}
    steps = (
        {"replies": {"result": {"task": task}}},
        {"then": [{"progress": 2}, status, {"ask": {"method": "elicitation/create"}}]},
    )
    async with session() as (_, client), client.listen() as stream:
        params = {
            "name": "do",
            "arguments": {"steps": steps},
            "task": {"ttl": 60},
            "_meta": {"progressToken": "t"},
        }
        answer = await client.request("tools/call", params)
        assert answer["result"] == {"task": task}
        for number in (1, 2):
            note = await stream.message()
            assert note["params"] == {"progressToken": "t", "progress": number, "total": 2}
        assert await stream.message() == notification("notifications/tasks/status", task)
        asked = await stream.message()
        await client.respond(asked["id"], result={"action": "cancel"})
        (sent, answered) = await seen_by_backend(client)
    assert sent["params"]["task"] == {"ttl": 60}
    assert answered["result"] == {"action": "cancel"}


# -- cancelling ------------------------------------------------------------------------------------


async def test_a_cancellation_reaches_the_backend_under_its_own_id_with_all_it_came_with() -> None:
    """DESIGN 5.9: cancelling is forwarded."""
    async with session() as (_, client):
        async with client.doing({"log": ""}, {"until_cancelled": 1}, number="mine") as incoming:
            await incoming.message()
            params = {"requestId": "mine", "reason": "söme", "x-unknown": ODD}
            assert (await client.notify("notifications/cancelled", params)).status_code == 202
            answer = await incoming.answer()
        call, cancelled = await seen_by_backend(client)
    assert "error" in answer
    assert answer["id"] == "mine"
    assert cancelled["params"] == {**params, "requestId": call["id"]}


async def test_a_late_answer_to_a_cancelled_call_is_dropped() -> None:
    """2025-11-25 basic/utilities/cancellation: the sender SHOULD ignore any response after it."""
    async with session() as (proxy, client):
        async with client.doing({"log": ""}, {"until_cancelled": 1}, number=1) as incoming:
            await incoming.message()
            await client.notify("notifications/cancelled", {"requestId": 1})
            assert [("error" in message) for message in await incoming.rest()] == [True]
        await until(lambda: proxy.app.tally["unmatched_response"] == 1)
        assert (await client.do(number=1, echo="next"))["echo"] == "next"


@pytest.mark.parametrize("named", [1, "2", None, 1.5, [], "x", {}])
async def test_a_cancellation_that_names_no_call_or_two_cancels_none(named: object) -> None:
    """FAULTS F32: real clients send every request with `id: 1`; `2` and `"2"` are two ids."""
    steps = ({"log": ""}, {"wait": "go"})
    async with session() as (_, client):
        async with (
            client.doing(*steps, number=1) as one,
            client.doing(*steps, number=1) as two,
            client.doing(*steps, number=2) as three,
        ):
            for incoming in (one, two, three):
                await incoming.message()
            await client.notify("notifications/cancelled", {"requestId": named})
            await client.do({"release": "go"}, number=3)
            for incoming in (one, two, three):
                assert "result" in await incoming.answer()
        seen = await seen_by_backend(client)
    assert "notifications/cancelled" not in [message.get("method") for message in seen]


async def test_initialize_cannot_be_cancelled() -> None:
    """2025-11-25 basic/utilities/cancellation: the client MUST NOT cancel it."""
    async with session() as (_, client):
        await client.notify("notifications/cancelled", {"requestId": 1})
        assert await seen_by_backend(client) == []


async def test_a_question_that_the_backend_cancels_is_cancelled_at_the_client() -> None:
    """DESIGN 5.9: under the id that the client knows; its late answer is dropped."""
    cancel = {"reason": "too late", "x-unknown": ODD}
    question = {"method": "elicitation/create", "cancel": cancel, "id": "q"}
    async with session() as (_, client):
        async with client.doing({"ask": question}) as incoming:
            asked, cancelled, answer = await incoming.rest()
        assert asked["method"] == "elicitation/create"
        params = {**cancel, "requestId": asked["id"]}
        assert cancelled == notification("notifications/cancelled", params)
        assert "result" in answer
        await client.respond(asked["id"], result={})
        assert len(await seen_by_backend(client)) == 1


async def test_cancelling_a_call_leaves_the_others_of_its_session_alone() -> None:
    """DESIGN 5.9."""
    async with session() as (_, client):
        async with (
            client.doing({"log": ""}, {"until_cancelled": 1}, number=1) as one,
            client.doing({"log": ""}, {"wait": "go"}, number=2) as two,
        ):
            for incoming in (one, two):
                await incoming.message()
            await client.notify("notifications/cancelled", {"requestId": 1})
            assert "error" in await one.answer()
            await client.do({"release": "go"}, number=3)
            assert "result" in await two.answer()


# -- odd backends ----------------------------------------------------------------------------------


async def test_answers_to_nothing_are_counted_and_dropped() -> None:
    """FAULTS F33: a reply twice, to an unknown id, with an id of another kind."""
    lines: list[Json] = [
        {"id": 10**6, "result": {}}, {"id": "2", "result": {}}, {"id": None, "result": {}},
        {"id": 2.0, "result": {}}, {"id": 1, "result": {"again": "initialize"}},
    ]  # fmt: skip
    raw = "".join(json.dumps({"jsonrpc": "2.0", **line}) + "\n" for line in lines)
    async with session() as (proxy, client):
        assert (await client.do({"raw": raw}, echo="mine"))["echo"] == "mine"
        assert proxy.app.tally["unmatched_response"] == len(lines)


async def test_a_batch_of_the_backend_is_taken_apart() -> None:
    """2025-03-26 basic/transports#stdio: a line may be an array of messages."""
    batch = [notification("x/one", {"n": 1}), notification("x/two"), request("ping", number="p")]
    async with session() as (_, client):
        async with client.doing({"raw": json.dumps(batch) + "\n"}) as incoming:
            *notes, _ = await incoming.rest()
        seen = await seen_by_backend(client)
    assert notes == batch[:2]
    assert seen[-1] == {"jsonrpc": "2.0", "id": "p", "result": {}}


async def test_sessions_have_backends_of_their_own() -> None:
    """DESIGN 5.1, 5.2: one session, one backend."""
    async with embedded(SCRIPTED) as proxy:
        nonces: dict[str, set[str]] = {}

        async def use(name: str) -> None:
            async with connect(proxy.url) as client:
                found = [await client.do(echo=name) for _ in range(5)]
                assert {answer["echo"] for answer in found} == {name}
                assert [answer["count"] for answer in found] == [1, 2, 3, 4, 5]
                nonces[name] = {answer["nonce"] for answer in found}

        async with anyio.create_task_group() as tasks:
            for name in "abcdefgh":
                tasks.start_soon(use, name)
    assert all(len(of_one) == 1 for of_one in nonces.values())
    assert len(set[str]().union(*nonces.values())) == len(nonces)

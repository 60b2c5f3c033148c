"""DESIGN 6, handles: the conversation as an argument of every tool, over HTTP and with the SDK."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import httpx2
import mcp_types as types
import msgspec
import pytest
from mcp import Client
from mcp.client.session import ClientRequestContext
from mcp.shared.inbound import find_invalid_x_mcp_header, x_mcp_header_map

from sessionproxy.app import http_app
from sessionproxy.config import ConfigError
from sessionproxy.core.catalogue import Offer
from sessionproxy.core.manager import SessionManager
from sessionproxy.frontend.handles import Handles, Shown
from tests.core.fakes import FakeLauncher, manager_of
from tests.rig.counting import DO, MODES, PATIENCE, SCRIPT, apart, counted, sdk
from tests.rig.embedded import Embedded, embedded, plain, scripted, until
from tests.rig.http import Json, calling, http
from tests.rig.modern import Modern, listing, naming
from tests.rig.proxy import EVERYTHING

from .test_auth import ALICE, BOB, bearer, line

SESSION: Final = "sessionproxy/session"
FAULT: Final = "sessionproxy/fault"

# -- what is shown ---------------------------------------------------------------------------------


def offer_of(*tools: Json, **more: bytes) -> Offer:
    listed = msgspec.json.encode({"resultType": "complete", "tools": tools})
    return Offer(b"{}", {}, {"tools/list": listed, **more}, {})


def handles(manager: SessionManager, *, required: bool = False) -> Handles:
    return Handles(manager, lambda owner, key: False, required=required, idle=60)


def shown(*tools: Json, required: bool = False) -> Shown:
    manager = manager_of(FakeLauncher())
    return handles(manager, required=required).shown(offer_of(*tools))


def tools_of(found: Shown) -> dict[str, Json]:
    listed = json.loads(found.offer.lists["tools/list"])
    return {tool["name"]: tool for tool in listed["tools"]}


def test_every_tool_has_one_more_argument_and_there_is_one_more_tool() -> None:
    """DESIGN 6: marked so that conforming clients send a header, and otherwise as it was."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"b": {"type": "integer", "maximum": 12345678901234567890}, "a": True},
        "required": ["b"],
        "additionalProperties": False,
        "x-unknown": [1.0, None],
    }
    tool = {**naming("z", schema), "title": "Z", "annotations": {"readOnlyHint": True}, "_meta": {}}
    found = tools_of(shown(tool, naming("a", {"type": "object"})))
    assert list(found) == ["a", "session_close", "z"]
    assert find_invalid_x_mcp_header(found["z"]["inputSchema"]) is None
    added = found["z"]["inputSchema"]["properties"].pop("session")
    assert added["type"] == "string"
    assert added["x-mcp-header"] == "Session"
    assert found["z"] == tool
    assert list(found["a"]["inputSchema"]["properties"]) == ["session"]
    closer = found["session_close"]["inputSchema"]
    assert closer["required"] == ["session"]
    assert x_mcp_header_map(closer) == {("session",): "Session"}


def test_where_a_handle_is_required_the_schema_says_so_and_how_to_begin() -> None:
    """DESIGN 6."""
    tools = tools_of(shown(naming("a", {"type": "object", "required": ["x"]}), required=True))
    assert tools["a"]["inputSchema"]["required"] == ["x", "session"]
    assert '"new"' in tools["a"]["inputSchema"]["properties"]["session"]["description"]


@pytest.mark.parametrize(
    ("taken", "argument"),
    [
        (["session"], "session_id"),
        (["session", "session_id"], "session_handle"),
        (["session", "session_id", "session_handle"], "session_handle_2"),
    ],
)
def test_an_argument_whose_name_is_taken_has_another(taken: list[str], argument: str) -> None:
    """DESIGN 6: the tool's own stays the tool's."""
    properties = {name: {"type": "integer"} for name in taken}
    found = shown(naming("a", {"type": "object", "properties": properties}))
    assert found.arguments["a"] == argument
    assert tools_of(found)["a"]["inputSchema"]["properties"].keys() == {*taken, argument}


def test_a_header_that_is_taken_is_not_used_twice() -> None:
    """2026-07-28 server/tools#x-mcp-header: else clients would drop the tool."""
    properties = {
        "where": {"type": "string", "x-mcp-header": "SESSION"},
        "deep": {
            "type": "object",
            "properties": {"x": {"type": "string", "x-mcp-header": "session-handle"}},
        },
    }
    found = tools_of(shown(naming("a", {"type": "object", "properties": properties})))
    schema = found["a"]["inputSchema"]
    assert find_invalid_x_mcp_header(schema) is None
    assert x_mcp_header_map(schema)["session",] == "Session-Handle-2"


def test_a_tool_whose_name_is_taken_has_another() -> None:
    """DESIGN 6."""
    plain = {"type": "object"}
    assert shown(naming("session_close", plain)).closer == "close_session"
    both = shown(naming("session_close", plain), naming("close_session", plain))
    assert both.closer == "close_session_2"
    assert len(tools_of(both)) == 3


@pytest.mark.parametrize("schema", [None, [], "x", {"type": "object", "properties": []}])
def test_a_tool_whose_schema_has_no_place_for_it_stays_as_it_is(schema: object) -> None:
    """A backend's slip is its clients' to see."""
    odd = {"name": "odd", "inputSchema": schema}
    found = shown(odd, naming("even", {"type": "object"}))
    assert tools_of(found)["odd"] == odd
    assert "odd" not in found.arguments
    assert "even" in found.arguments


def test_without_tools_there_is_nothing_to_close() -> None:
    """A backend of resources alone is shown as it is."""
    assert tools_of(shown()) == {}
    manager = manager_of(FakeLauncher())
    empty = Offer(b"{}", {}, {}, {})
    assert handles(manager).shown(empty).offer is empty


def test_an_offer_is_worked_on_once() -> None:
    """Every call needs it."""
    found, offer = handles(manager_of(FakeLauncher())), offer_of(DO)
    assert found.shown(offer) is found.shown(offer)
    assert found.shown(offer_of(DO)) is not found.shown(offer)


def test_handles_do_not_go_with_one_session_for_each_user() -> None:
    """DESIGN 11."""
    with pytest.raises(ConfigError, match=r"^--handles: .*principal"):
        http_app(scripted(), handles="optional", affinity="principal")


# -- calls -----------------------------------------------------------------------------------------


@asynccontextmanager
async def proxied(
    handles: str = "optional", command: tuple[str, ...] | None = None, **settings: object
) -> AsyncGenerator[tuple[Embedded, Modern]]:
    script = scripted(**SCRIPT) if command is None else command
    running = plain(script, observers=(), local=True, certificate=None, handles=handles, **settings)
    async with running as proxy, http() as pool:
        yield proxy, Modern(pool, proxy.url)


def handle_of(result: Json) -> str:
    """The handle of a result that tells of a session it began; it stands in both places."""
    handle = result["_meta"][SESSION]["handle"]
    text = result["content"][-1]["text"]
    assert f'"session": "{handle}"' in text
    assert f"{result['_meta'][SESSION]['idleTimeout']:g} s" in text
    return str(handle)


def refusal(result: Json) -> tuple[str, str]:
    """Kind and words of a call that was not passed on."""
    assert result["isError"] is True
    assert result["resultType"] == "complete"
    assert result["_meta"][FAULT]["outcome"] == "not_executed"
    return result["_meta"][FAULT]["kind"], result["content"][0]["text"]


def count(result: Json) -> int:
    return int(result["structuredContent"]["count"])


async def test_a_call_without_a_handle_begins_a_session_and_says_which() -> None:
    """DESIGN 6: in `_meta` and in one short text; those with it find it, and are told no more."""
    async with proxied(idle=90) as (proxy, client):
        first = await client.call()
        handle = handle_of(first)
        assert len(first["content"]) == 2
        for number in range(2, 5):
            again = await client.call(session=handle)
            assert count(again) == number
            assert len(again["content"]) == 1
            assert again["_meta"][SESSION] == {"idleTimeout": 90}
        other = await client.call()
        assert count(other) == 1
        assert handle_of(other) != handle
        assert proxy.manager.admission.running == 2


async def test_the_backend_sees_nothing_of_the_handle() -> None:
    """DESIGN 6: it is taken off, and all else stays as it was written."""
    async with proxied() as (_, client):
        handle = handle_of(await client.call())
        seen = (await client.call({"tells": "seen"}, session=handle, echo=1.0))["structuredContent"]
        assert handle not in json.dumps(seen)
        last = seen["seen"][-1]["params"]
        assert last["arguments"] == {"steps": [{"tells": "seen"}], "echo": 1.0}
        assert "new" not in (await client.call({"tells": "seen"}, session="new"))["content"][0]


@pytest.mark.parametrize("given", [None, ""])
async def test_an_empty_handle_is_none(given: str | None) -> None:
    """Models fill in what they need not."""
    async with proxied() as (_, client):
        params = calling()
        params["arguments"]["session"] = given
        answer = await client.post("tools/call", params, handle=given)
        assert handle_of(answer.json()["result"])


async def test_what_the_header_says_must_be_what_the_body_says() -> None:
    """2026-07-28 streamable-http#server-validation: -32020, in either direction."""
    async with proxied() as (proxy, client):
        handle = handle_of(await client.call())
        params = calling()
        bodies = [(params, handle), (params, "x")]
        params = calling()
        params["arguments"]["session"] = handle
        for body, header in (*bodies, (params, "x"), (params, None)):
            answer = await client.post("tools/call", body, handle=header)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == -32020
        assert count(await client.call(session=handle)) == 2
        assert proxy.manager.admission.running == 1


async def test_forged_and_never_issued_get_one_answer() -> None:
    """DESIGN 6, FAULTS F37: and nothing is started for them."""
    async with (
        proxied() as (_, stranger),
        proxied() as (proxy, client),
    ):
        foreign = handle_of(await stranger.call())
        own = handle_of(await client.call())
        forged = own[:-1] + ("A" if own[-1] != "A" else "Q")
        answers = [
            await client.call(session=handle) for handle in (foreign, forged, "c:", "x" * 5000)
        ]
        params = calling()
        params["arguments"]["session"] = 5
        answer = await client.post("tools/call", params, handle="5")
        answers.append(answer.json()["result"])
        assert {refusal(answer)[0] for answer in answers} == {"unknown_handle"}
        assert all(answer == answers[0] for answer in answers)
        assert 'Call again without "session"' in refusal(answers[0])[1]
        assert proxy.manager.admission.running == 1
        closed = await _close(client, foreign)
        assert closed == answers[0]


async def test_another_owners_handle_is_an_unknown_one(tmp_path: Path) -> None:
    """DESIGN 5.8: byte for byte."""
    file = tmp_path / "tokens"
    file.write_text(line("alice", ALICE) + line("bob", BOB))
    async with proxied(token_file=str(file)) as (_, client):
        alice, bob = (Modern(client.http, client.url, bearer(token)) for token in (ALICE, BOB))
        handle = handle_of(await alice.call())
        foreign = await bob.call(session=handle)
        assert refusal(foreign)[0] == "unknown_handle"
        assert foreign == await bob.call(session="never-issued")
        assert await _close(bob, handle) == foreign
        assert count(await alice.call(session=handle)) == 2


async def _close(client: Modern, handle: str, tool: str = "session_close") -> Json:
    params: Json = {"name": tool, "arguments": {"session": handle}}
    answer = await client.post("tools/call", params, handle=handle)
    result: Json = answer.json()["result"]
    return result


async def test_a_session_that_was_closed_says_so_from_then_on() -> None:
    """DESIGN 6: when, why and how to go on; its backend is gone."""
    async with proxied() as (proxy, client):
        handle = handle_of(await client.call())
        assert await _close(client, handle) == {
            "content": [{"type": "text", "text": "The session has ended."}],
            "resultType": "complete",
        }
        await until(lambda: proxy.manager.admission.running == 0)
        for answer in (await client.call(session=handle), await _close(client, handle)):
            kind, words = refusal(answer)
            assert kind == "handle_ended"
            assert "This session ended 0 s ago (it was closed)" in words
            assert 'Call again without "session" to begin a new one.' in words
        assert proxy.manager.admission.running == 0


async def test_a_session_that_ended_by_age_says_so() -> None:
    """DESIGN 6 and 7."""
    async with proxied(max_age=0.3) as (proxy, client):
        handle = handle_of(await client.call())
        await until(lambda: not proxy.manager.registry.awake())
        kind, words = refusal(await client.call(session=handle))
        assert kind == "handle_ended"
        assert "(the session had reached its greatest age)" in words


async def test_a_session_that_sleeps_is_woken_by_its_handle_and_tells_what_was_lost() -> None:
    """DESIGN 7: idle is not over."""
    async with proxied() as (proxy, client):
        handle = handle_of(await client.call())
        await client.call({"then": [{"exit": 0}]}, session=handle)
        await until(lambda: not proxy.manager.registry.awake())
        assert refusal(await client.call(session=handle))[0] == "state_lost"
        assert count(await client.call(session=handle)) == 1


async def test_a_handle_from_before_a_restart_has_ended(tmp_path: Path) -> None:
    """It is authentic, so that it was good once is no secret."""
    state = str(tmp_path / "s")
    async with proxied(state_dir=state) as (_, client):
        handle = handle_of(await client.call())
    async with proxied(state_dir=state) as (proxy, client):
        kind, words = refusal(await client.call(session=handle))
        assert kind == "handle_ended"
        assert words.startswith("This session has ended. Its state is gone.")
        assert proxy.manager.admission.running == 0


async def test_where_a_handle_is_required_a_call_without_one_is_told_how_to_begin() -> None:
    """DESIGN 6: `--handles required`."""
    async with proxied("required") as (proxy, client):
        kind, words = refusal(await client.call())
        assert kind == "handle_missing"
        assert 'pass "session": "new"' in words
        assert proxy.manager.admission.running == 0
        handle = handle_of(await client.call(session="new"))
        assert count(await client.call(session=handle)) == 2
        assert count(await client.call(session="new")) == 1
        await _close(client, handle)
        assert 'with "session": "new"' in refusal(await client.call(session=handle))[1]


async def test_a_handle_and_another_name_have_to_agree() -> None:
    """DESIGN 6: 400; and a handle is as good in another place."""
    async with proxied() as (_, client):
        handle = handle_of(await client.call())
        params = calling()
        for given, path, status in (
            (handle, "other", 400),
            ("new", "other", 400),
            (handle, handle, 200),
        ):
            params["arguments"]["session"] = given
            named = Modern(client.http, f"{client.url}/s/{path}")
            answer = await named.post("tools/call", params, handle=given)
            assert answer.status_code == status
        named = Modern(client.http, f"{client.url}/s/{handle}")
        answer = await named.call()
        assert count(answer) == 3
        assert "handle" not in answer["_meta"][SESSION]


async def test_what_is_no_call_of_a_tool_has_no_handle() -> None:
    """DESIGN 6: other keys count there, else the default session."""
    async with proxied() as (_, client):
        handle = handle_of(await client.call())
        read: Json = {"uri": "x://y"}
        answer = (await client.post("resources/read", read)).json()["result"]
        assert answer["_meta"][SESSION]["default"] is True
        meta = {"io.sessionproxy/conversation": handle}
        answer = (await client.post("resources/read", read, meta=meta)).json()["result"]
        assert answer["count"] == 2


async def test_a_handle_is_found_among_a_great_many_arguments() -> None:
    """`wire.without_member`: what is large is not taken apart."""
    async with proxied() as (_, client):
        handle = handle_of(await client.call())
        many = {f"k{n}": {"session": handle} for n in range(60_000)}
        params: Json = {"name": "do", "arguments": {**many, "session": handle, "echo": "end"}}
        answer = await client.post("tools/call", params, handle=handle)
        result = answer.json()["result"]
        assert (count(result), result["structuredContent"]["echo"]) == (2, "end")


async def test_a_session_whose_client_never_learnt_its_handle_ends() -> None:
    """Nobody could come back to it: it must not hold a place until it is idle."""
    async with proxied() as (proxy, client):
        await client.post("tools/list")
        request = client.build("tools/call", calling({"wait": "never"}))
        request.extensions["timeout"] = {"read": 1.0}
        with pytest.raises(httpx2.ReadTimeout):
            await client.http.send(request)
        await until(lambda: len(proxy.manager.registry) == 0)


@pytest.mark.parametrize("before", [[], [{"log": "as a stream"}]])
async def test_a_session_whose_handle_an_error_could_not_tell_ends(before: list[Json]) -> None:
    """As above: a client that calls with wrong arguments would soon have all places."""
    async with proxied() as (proxy, client):
        refused = {"replies": {"error": {"code": -32602, "message": "bad"}}}
        logs = {"io.modelcontextprotocol/logLevel": "debug"}
        params = calling(*before, refused)
        async with client.open("tools/call", params, meta=logs) as incoming:
            assert (await incoming.answer())["error"]["code"] == -32602
        await until(lambda: len(proxy.manager.registry) == 0)
        kept = await client.call()
        async with client.open(
            "tools/call",
            {
                **params,
                "arguments": {**params["arguments"], "session": kept["_meta"][SESSION]["handle"]},
            },
            handle=kept["_meta"][SESSION]["handle"],
        ) as incoming:
            assert (await incoming.answer())["error"]["code"] == -32602
        assert len(proxy.manager.registry) == 1


async def test_a_name_that_is_taken_by_the_tool_is_left_to_it() -> None:
    """DESIGN 6: `session_id` is ours there, and `session` goes to the backend."""
    own = naming("do", {"type": "object", "properties": {"session": {"type": "string"}}})
    async with proxied(command=scripted(**listing(own))) as (_, client):
        params = calling({"tells": "seen"})
        params["arguments"]["session"] = "the tool's"
        first = (await client.post("tools/call", params)).json()["result"]
        handle = first["_meta"][SESSION]["handle"]
        params["arguments"]["session_id"] = handle
        again = await client.post("tools/call", params, handle=handle)
        result = again.json()["result"]
        assert count(result) == 2
        seen = result["structuredContent"]["seen"][-1]["params"]["arguments"]
        assert seen["session"] == "the tool's"
        assert "session_id" not in seen


# -- multi-round-trip ------------------------------------------------------------------------------

ASKS: Final[Json] = {"ask": {"method": "roots/list"}}


@pytest.mark.parametrize("given", [None, "new"])
async def test_a_call_that_begins_a_session_and_asks_goes_on_in_it(given: str | None) -> None:
    """DESIGN 6 and 9: the retry has no handle; what it carries says which session it is."""
    async with proxied() as (proxy, client):
        params = calling(ASKS)
        if given is not None:
            params["arguments"]["session"] = given
        first: Json = (await client.post("tools/call", params, handle=given)).json()["result"]
        assert first["resultType"] == "input_required"
        (key,) = first["inputRequests"]
        answers: Json = {key: {"roots": []}}
        retry: Json = {
            **params,
            "requestState": first["requestState"],
            "inputResponses": answers,
        }
        done = (await client.post("tools/call", retry, handle=given)).json()["result"]
        assert count(done) == 1
        handle = handle_of(done)
        assert count(await client.call(session=handle)) == 2
        assert proxy.manager.admission.running == 1
        other = handle_of(await client.call())
        conflicting: Json = {**retry, "arguments": {**params["arguments"], "session": other}}
        answer = await client.post("tools/call", conflicting, handle=other)
        assert answer.status_code == 400


async def test_a_backend_that_has_a_state_of_its_own_gets_it_back() -> None:
    """DESIGN 6: the client's retry has nothing else by which it would find the session."""

    async def elicited(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"username": "u", "email": "e"})

    async with proxied(command=EVERYTHING) as (proxy, _):
        async with sdk(proxy.url, "2026-07-28", elicits=elicited) as client:
            await client.list_tools()
            with anyio.fail_after(PATIENCE):
                result = await client.call_tool("test_elicitation", {"message": "who?"})
            assert not result.is_error, result
            words = [block.text for block in result.content if isinstance(block, types.TextContent)]
            assert "accept" in words[0]
            assert "This call began a session." in words[-1]
            assert proxy.manager.admission.running == 1


# -- clients as they are ---------------------------------------------------------------------------


async def _talk(client: Client) -> str:
    """Begin a session, call ten times in it, and close it."""
    with anyio.fail_after(PATIENCE):
        first = await client.call_tool("do", {})
    found: Json = first.structured_content or {}
    assert first.meta is not None
    handle = first.meta[SESSION]["handle"]
    for number in range(2, 11):
        with anyio.fail_after(PATIENCE):
            result = await client.call_tool("do", {"session": handle, "echo": number})
        again: Json = result.structured_content or {}
        assert (again["nonce"], again["count"]) == (found["nonce"], number)
    with anyio.fail_after(PATIENCE):
        closed = await client.call_tool("session_close", {"session": handle})
        assert not closed.is_error, closed
        ended = await client.call_tool("do", {"session": handle})
    assert ended.is_error
    return str(found["nonce"])


@pytest.mark.parametrize("mode", MODES)
async def test_two_conversations_of_one_client_at_once_by_their_handles(mode: str) -> None:
    """DESIGN 6: ten calls each, interleaved on one connection; and closed in the end."""
    async with embedded(scripted(**SCRIPT), handles="optional") as proxy:
        async with sdk(proxy.url, mode) as client:
            assert len((await client.list_tools()).tools) == 2
            await apart(partial(_talk, client), partial(_talk, client))
        await until(lambda: proxy.manager.admission.running == 0)


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_that_never_listed_the_tools_can_use_handles_too(mode: str) -> None:
    """2026-07-28 streamable-http#client-behavior: it is refused, lists them, and calls again."""
    async with embedded(scripted(**SCRIPT), handles="optional") as proxy:
        async with sdk(proxy.url, mode) as client:
            await _talk(client)


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_that_knows_no_handles_names_its_conversation_otherwise(mode: str) -> None:
    """DESIGN 6: handles are one way among others."""
    async with embedded(scripted(**SCRIPT), handles="optional") as proxy:
        async with sdk(f"{proxy.url}/s/mine", mode) as client:
            await counted(client, 10)

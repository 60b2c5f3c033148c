"""Backends elsewhere that fail, lie, stall and vanish: each costs its own session at most.

Neighbours: `tests.rig.upstream` is the server; `test_http` has those that behave.
"""

import asyncio  # noqa: TID251 - the rig's own
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from sessionproxy import current_exchange
from sessionproxy.backends.remote import http as streamable
from sessionproxy.backends.remote import incoming, web
from sessionproxy.backends.remote import session as upstreams_session
from sessionproxy.core.exchange import Forwarded, Hook
from tests.rig.embedded import Embedded, until
from tests.rig.http import Client, Json, connect, http, request
from tests.rig.modern import Modern
from tests.rig.upstream import CAPABILITIES, Asked, Handler, Said, Upstream, fronting, upstream

INITIALIZED = "notifications/initialized"
CALL: Json = {"name": "do", "arguments": {}}


@asynccontextmanager
async def behind(
    on: Mapping[str, Handler] | None = None,
    *,
    eras: str = "handshake",
    observers: Sequence[Hook] = (),
    **settings: object,
) -> AsyncGenerator[tuple[Embedded, Upstream]]:
    """A proxy in front of an upstream that does what a test says."""
    modern, handshake = eras in ("modern", "both"), eras in ("handshake", "both")
    async with (
        upstream(on, modern=modern, handshake=handshake) as server,
        fronting(server.url, settings, observers=observers) as proxy,
    ):
        yield proxy, server


@asynccontextmanager
async def session(
    on: Mapping[str, Handler] | None = None, *, observers: Sequence[Hook] = (), **settings: object
) -> AsyncGenerator[tuple[Upstream, Client]]:
    running = behind(on, eras="handshake", observers=observers, **settings)
    async with running as (proxy, server), connect(proxy.url) as client:
        yield server, client


async def call(client: Client, name: str = "do", number: object = 1) -> Json:
    """Call a tool; return the whole result."""
    answer = await client.request("tools/call", {"name": name, "arguments": {}}, number=number)
    return answer["result"]


def fault(result: Json) -> Json:
    assert result["isError"]
    return result["_meta"]["sessionproxy/fault"]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that would only make the tests long."""
    monkeypatch.setattr(incoming, "RETRY", 0.05)
    monkeypatch.setattr(incoming, "LEAST_RETRY", 0.01)


# -- what belongs to what --------------------------------------------------------------------------


async def test_overlapping_calls_are_told_asked_and_logged_to_each_on_its_own_stream() -> None:
    """DESIGN 8: by the response stream it arrived on. The older call speaks while a newer one is in
    flight: by any other rule, what it says would go to that one."""
    both = asyncio.Barrier(2)

    async def handler(asked: Asked) -> None:
        name = asked.params["name"]
        await both.wait()
        token = asked.params["_meta"]["progressToken"]
        await asked.events(
            Said(note("notifications/message", level="info", data=name)),
            Said(note("notifications/progress", progressToken=token, progress=1)),
            Said({"jsonrpc": "2.0", "id": f"ask-{name}", "method": "roots/list"}),
        )
        answer = await asked.server.heard_answer(f"ask-{name}")
        await asked.events(Said(asked.response({"content": [], "said": answer["result"]})))

    seen: list[tuple[object, object]] = []

    def hook(message: Forwarded) -> None:
        if message.method == "notifications/message":
            exchange = current_exchange.get()
            params = json.loads(bytes(message.body or b""))
            seen.append((exchange and exchange.client_id, params["data"]))

    async with session({"tools/call": handler}, observers=[hook]) as (_, client):

        async def one(name: str, number: int) -> None:
            params = {"name": name, "arguments": {}, "_meta": {"progressToken": f"t-{name}"}}
            async with client.open("tools/call", params, number=number) as stream:
                assert (await stream.message())["params"]["data"] == name
                assert (await stream.message())["params"]["progressToken"] == f"t-{name}"
                ask = await stream.message()
                roots = {"roots": [{"uri": f"file:///{name}"}]}
                await client.respond(ask["id"], result=roots)
                assert (await stream.message())["result"]["said"] == roots

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, "a", 1)
            tasks.start_soon(one, "b", 2)
    assert sorted(seen, key=str) == [(b"1", "a"), (b"2", "b")]


def note(method: str, **params: object) -> Json:
    return {"jsonrpc": "2.0", "method": method, "params": params}


async def test_what_is_asked_behind_an_answer_is_asked_of_nobody_else() -> None:
    """FAULTS I1: sessions share the upstream, and only another's call is in flight by then."""
    others = asyncio.Event()

    async def handler(asked: Asked) -> None:
        if asked.params["name"] == "other":
            others.set()
            await asked.server.heard_answer("late")
            await asked.result({"content": []})
            return
        await others.wait()
        question = {"jsonrpc": "2.0", "id": "late", "method": "sampling/createMessage"}
        await asked.events(Said(asked.response({"content": []})), Said(question))

    async with behind({"tools/call": handler}, mode="shared") as (proxy, server):
        async with connect(proxy.url) as one, connect(proxy.url) as two:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, one, "other")
                assert "isError" not in await call(two)
            refused = (await server.heard_answer("late"))["error"]["message"]
            assert "cannot be attributed" in refused


async def test_nothing_overtakes_a_notification() -> None:
    """DESIGN 5.3: notifications keep their order, also towards the requests behind them."""
    order: list[str] = []
    held = asyncio.Event()

    async def slowly(asked: Asked) -> None:
        await held.wait()
        order.append("initialized")
        await asked.say(202)

    async def handler(asked: Asked) -> None:
        order.append("call")
        await asked.result({"content": []})

    async with session({INITIALIZED: slowly, "tools/call": handler}) as (server, client):
        await server.heard(INITIALIZED)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, client)
            await anyio.wait_all_tasks_blocked()
            held.set()
    assert order == ["initialized", "call"]


async def test_a_ping_is_answered_at_once_although_a_notification_is_not_taken() -> None:
    """DESIGN 5.10: an upstream that pings wants to know about its peer, whatever else goes on;
    Playwright's waits for five seconds."""

    async def never(asked: Asked) -> None:
        await asked.hung_up()

    on: dict[str, Handler] = {"notifications/roots/list_changed": never}
    async with session(on) as (server, client):
        stream = await server.listened()
        await client.notify("notifications/roots/list_changed")
        await server.heard("notifications/roots/list_changed")
        await stream.events(Said({"jsonrpc": "2.0", "id": "p-1", "method": "ping"}))
        assert (await server.heard_answer("p-1"))["result"] == {}


async def test_a_ping_is_answered_although_as_many_calls_wait_as_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Upstreams that answer with JSON take a call only with its answer (DESIGN 5.10)."""
    monkeypatch.setattr(web, "MAX_UNSENT_MESSAGES", 2)

    async def held(asked: Asked) -> None:
        await asked.hung_up()

    async with session({"prompts/get": held}) as (server, client), anyio.create_task_group() as tg:
        get = await server.listened()
        for number in (1, 2):
            body = request("prompts/get", {"name": "p"}, number=number)
            tg.start_soon(client.post, body)
        await server.heard("prompts/get", 2)
        assert fault(await call(client))["kind"] == "backend_busy"
        await get.events(Said({"jsonrpc": "2.0", "id": "p", "method": "ping"}))
        assert (await server.heard_answer("p"))["result"] == {}
        tg.cancel_scope.cancel()


async def test_an_answer_whose_id_the_upstream_could_not_read_is_that_of_its_post() -> None:
    """JSON-RPC 2.0, section 5: the id is null where it could not be detected in the request."""

    async def handler(asked: Asked) -> None:
        await asked.say(200, asked.error(-32700, "what?", number=None))

    async with session({"tools/call": handler}) as (_, client):
        answer = await client.request("tools/call", CALL, number="x")
        error = {"code": -32700, "message": "what?"}
        assert answer == {"jsonrpc": "2.0", "id": "x", "error": error}


async def test_cookies_of_the_upstream_come_back_to_it_within_their_session_alone() -> None:
    """DESIGN 5.1, and what load balancers stick sessions to their servers with."""

    async def handler(asked: Asked) -> None:
        said = asked.headers.get("cookie")
        name = asked.params["name"]
        await asked.result({"content": [], "said": said}, set_cookie=f"at={name}; Path=/")

    async with behind({"tools/call": handler}) as (proxy, _):
        async with connect(proxy.url) as one, connect(proxy.url) as two:
            assert [(await call(one, "x"))["said"], (await call(two, "y"))["said"]] == [None, None]
            assert [(await call(one))["said"], (await call(two))["said"]] == ["at=x", "at=y"]


async def test_a_connection_is_used_again() -> None:
    """Our choice: a call need not wait for a handshake; one stays with the GET stream."""
    async with session() as (server, client):
        await server.listened()
        for _ in range(5):
            await call(client)
        assert server.connections <= 3


# -- what it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_credential_is_told_and_makes_nobody_else_wait(status: int) -> None:
    """DESIGN 11 and FAULTS F01: it may be that one caller's; the route does not rest for it."""

    async def refuse(asked: Asked) -> None:
        await asked.say(status, b"go away", www_authenticate="Bearer")

    handlers: dict[str, Handler] = {"initialize": refuse}
    async with behind(handlers) as (proxy, server), http() as pool:
        for _ in range(6):
            answer = await Client(pool, proxy.url).initialize()
            assert (answer.status_code, answer.headers.get("mcp-session-id")) == (200, None)
            error = answer.json()["error"]
            assert (error["code"], f"HTTP {status}" in error["message"]) == (-32603, True)
        handlers.clear()
        assert (await Client(pool, proxy.url).initialize()).headers["mcp-session-id"]
        assert server.methods["DELETE"] == 0


async def test_a_refused_credential_makes_nobody_else_wait_in_the_modern_era_either() -> None:
    """FAULTS F01: there, `server/discover` is what is refused, whatever the client speaks."""

    async def refuse(asked: Asked) -> None:
        await asked.say(401, b"go away", www_authenticate="Bearer")

    handlers: dict[str, Handler] = {}
    async with behind(handlers, eras="modern") as (proxy, _), http() as pool:
        assert (await Client(pool, proxy.url).initialize()).headers["mcp-session-id"]
        handlers["server/discover"] = refuse
        for n in range(6):
            modern = Modern(pool, f"{proxy.url}/s/bad-{n}")
            for answer in (
                await modern.post("tools/call", CALL),
                await Client(pool, proxy.url).initialize(),
            ):
                assert "HTTP 401" in answer.text
        handlers.clear()
        assert (await Client(pool, proxy.url).initialize()).headers["mcp-session-id"]
        assert "structuredContent" in (await Modern(pool, proxy.url).call())


async def test_a_call_whose_credential_is_refused_was_certainly_not_executed() -> None:
    """FAULTS, tool-error: outcome; the session goes on."""

    async def refuse(asked: Asked) -> None:
        await asked.say(401, b"expired")

    handlers: dict[str, Handler] = {"tools/call": refuse}
    async with session(handlers) as (_, client):
        found = fault(await call(client))
        assert (found["kind"], found["outcome"]) == ("backend_refused", "not_executed")
        handlers.clear()
        assert (await call(client))["structuredContent"]["count"] == 1


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_a_call_over_which_the_upstream_fails_has_an_unknown_end_and_is_not_repeated(
    status: int,
) -> None:
    """DESIGN 5.12: nothing is retried that may have run."""

    async def fail(asked: Asked) -> None:
        await asked.say(status, b"<html>oops</html>", kind="text/html")

    handlers: dict[str, Handler] = {"tools/call": fail}
    async with session(handlers) as (server, client):
        result = await call(client)
        assert (fault(result)["kind"], fault(result)["outcome"]) == ("backend_failed", "unknown")
        assert f"HTTP {status}" in result["content"][0]["text"]
        assert server.methods["tools/call"] == 1
        handlers.clear()
        assert (await call(client))["structuredContent"]["count"] == 1


async def test_the_error_in_a_refusal_goes_to_the_client_as_it_is() -> None:
    """DESIGN 5.4: error code and data, whatever the HTTP status."""
    error = {"code": -32602, "message": "bad", "data": [1]}

    async def refuse(asked: Asked) -> None:
        await asked.say(400, {"jsonrpc": "2.0", "id": None, "error": error})

    async with session({"prompts/get": refuse}) as (_, client):
        assert (await client.request("prompts/get", {"name": "x"}))["error"] == error


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_nothing_goes_there(status: int) -> None:
    """FAULTS, credentials: what goes to the upstream was meant for the operator's URL."""
    async with upstream() as elsewhere:

        async def away(asked: Asked) -> None:
            await asked.say(status, location=f"{elsewhere.url}?secret=1")

        async with session({"tools/call": away}, header=("X-Key=k",)) as (_, client):
            result = await call(client)
            assert fault(result)["outcome"] == "not_executed"
            assert "redirect" in result["content"][0]["text"]
        assert elsewhere.asked == []


async def test_an_upstream_that_is_not_there_fails_the_start_and_leaves_nothing() -> None:
    """FAULTS F01: initialise answers -32603 with the reason, and there is no session id."""
    async with upstream() as server:
        url = server.url
    async with fronting(url) as proxy, http() as pool:
        answer = await Client(pool, proxy.url).initialize()
        assert answer.headers.get("mcp-session-id") is None
        assert "cannot be reached" in answer.json()["error"]["message"]
        assert not proxy.manager.registry.awake()


async def test_a_call_that_could_not_be_delivered_was_certainly_not_executed() -> None:
    """FAULTS, tool-error: outcome. The session outlives it."""
    async with behind() as (proxy, server), connect(proxy.url) as client:
        await server.listened()
        await server.stop()
        found = fault(await call(client))
        assert (found["kind"], found["outcome"]) == ("backend_unreachable", "not_executed")
        await server.start()
        assert (await call(client))["structuredContent"]["count"] == 1


async def test_what_is_no_answer_fails_the_call_and_not_the_session() -> None:
    """FAULTS F11: whatever comes, every call ends and the session lives."""

    async def handler(asked: Asked) -> None:
        kind = asked.params["name"]
        if kind == "accepted":
            await asked.say(202)
        elif kind == "html":
            await asked.say(200, b"<html>sign in</html>", kind="text/html")
        elif kind == "nothing":
            await asked.say(200, b"  ", kind="application/json")
        elif kind == "garbage":
            await asked.say(200, b"{{{", kind="application/json")
        elif kind == "note":
            await asked.say(200, note("notifications/message", level="info", data=1))
        elif kind == "other":
            await asked.say(200, {"jsonrpc": "2.0", "id": 12345, "result": {}})
        elif kind == "packed":
            body = json.dumps(asked.response({})).encode()
            await asked.say(200, body, kind="application/json", content_encoding="gzip")
        elif kind == "empty":
            await asked.events()
            asked.end()
        else:
            await asked.result({"content": []})

    kinds = ("accepted", "html", "nothing", "garbage", "note", "other", "packed", "empty")
    async with session({"tools/call": handler}) as (_, client):
        for kind in kinds:
            found = fault(await call(client, kind))
            assert (found["kind"], found["outcome"]) == ("backend_failed", "unknown"), kind
        assert "isError" not in await call(client, "good")


# -- the upstream's session ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["404", "400"])
async def test_a_session_that_the_upstream_lost_unused_is_begun_anew_once(how: str) -> None:
    """DESIGN 10: 404 from upstream re-initialises once where no state can be lost. Servers after
    the TypeScript SDK's example say 400."""

    async def refuse(asked: Asked) -> None:
        if asked.headers.get("mcp-session-id") in asked.server.sessions:
            await asked.server.behave(asked)
        elif how == "404":
            await asked.say(404, b"")
        else:
            text = "Bad Request: No valid session ID provided"
            await asked.say(400, asked.error(-32000, text, number=None))

    on: dict[str, Handler] = {"tools/call": refuse, "tools/list": refuse}
    async with session(on) as (server, client):
        assert "result" in await client.request("tools/list")
        server.sessions.clear()
        assert (await call(client))["structuredContent"]["session"] == "upstream-2"
        assert server.methods["initialize"] == 2
        assert server.all("initialize")[0].body == server.all("initialize")[1].body
        await server.heard(INITIALIZED, 2)


async def test_a_session_with_a_call_of_unknown_end_is_never_begun_anew_in_silence() -> None:
    """FAULTS I6: one that is being worked on, or was cancelled, may have changed something."""

    async def held(asked: Asked) -> None:
        await asked.hung_up()

    for cancelled in (False, True):
        async with session({"prompts/get": held}) as (server, client):
            ends: list[Json] = []

            async def get(client: Client = client, ends: list[Json] = ends) -> None:
                answer = await client.request("prompts/get", {"name": "p"}, number=5)
                ends.append(answer["error"].get("data", {}))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(get)
                await server.heard("prompts/get")
                if cancelled:
                    await client.notify("notifications/cancelled", {"requestId": 5})
                    await server.heard("notifications/cancelled")
                server.sessions.clear()
                answer = await client.request("tools/list")
                assert "forgotten" in answer["error"]["message"]
            if not cancelled:
                assert ends[0]["sessionproxy/fault"]["outcome"] == "unknown"
            assert fault(await call(client))["kind"] == "state_lost"


async def test_a_lost_session_that_cannot_be_begun_anew_in_time_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 5.3: whoever waits for it is answered."""
    monkeypatch.setattr(upstreams_session, "RENEWAL_TIMEOUT", 0.2)

    async def once(asked: Asked) -> None:
        if len(asked.server.all("initialize")) == 1:
            await asked.server.behave(asked)
        else:
            await asked.hung_up()

    async with session({"initialize": once}) as (server, client):
        server.sessions.clear()
        answer = await client.request("tools/list")
        assert "forgotten" in answer["error"]["message"]


async def test_a_session_that_the_upstream_lost_with_its_state_is_told_as_lost() -> None:
    """DESIGN 10 and 7: else the session ends with the reason: it sleeps, and the loss is told
    before anything is executed again (FAULTS I6)."""
    async with session() as (server, client):
        assert (await call(client))["structuredContent"]["count"] == 1
        server.sessions.clear()
        first = await call(client)
        assert fault(first)["outcome"] == "not_executed"
        assert "forgotten" in first["content"][0]["text"]
        assert fault(await call(client))["kind"] == "state_lost"
        assert server.methods["initialize"] == 2
        said = (await call(client))["structuredContent"]
        assert (said["session"], said["count"]) == ("upstream-2", 1)


async def test_an_upstream_that_loses_every_session_is_not_asked_for_ever() -> None:
    """DESIGN 10: once."""

    async def gone(asked: Asked) -> None:
        await asked.say(404)

    async with behind({"tools/list": gone}) as (proxy, server), connect(proxy.url) as client:
        answer = await client.request("tools/list")
        assert "forgotten" in answer["error"]["message"]
        await until(lambda: not proxy.manager.registry.awake())
        assert server.methods["initialize"] == 2
        assert server.methods["tools/list"] == 2


async def test_a_lost_session_is_noticed_by_its_get_stream_while_nobody_asks() -> None:
    """FAULTS F07: noticed when it happens, not at the next call."""
    async with behind() as (proxy, server), connect(proxy.url) as client:
        await call(client)
        stream = await server.listened()
        server.sessions.clear()
        stream.drop()
        await until(lambda: not proxy.manager.registry.awake())
        assert fault(await call(client))["kind"] == "state_lost"


async def test_a_server_that_has_no_get_stream_loses_nothing_by_it() -> None:
    """2025-11-25 basic/transports: 405; a server that only knows POST says 404."""
    for status in (405, 404, 400, 500):

        async def none(asked: Asked, status: int = status) -> None:
            await asked.say(status)

        async with session({"GET": none}) as (server, client):
            await server.heard("GET")
            assert [(await call(client))["structuredContent"]["count"] for _ in "ab"] == [1, 2]
            assert server.methods["GET"] == 1


async def test_the_get_stream_is_taken_up_again_where_it_broke_off() -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery."""
    async with session() as (server, client), client.listen() as stream:
        first = await server.listened()
        await first.events(Said(note("notifications/x", n=1), id="e-1"))
        assert (await stream.message())["params"] == {"n": 1}
        server.listening.clear()
        first.drop()
        second = await server.listened()
        assert second.headers["last-event-id"] == "e-1"
        await second.events(Said(note("notifications/x", n=2), id="e-2"))
        assert (await stream.message())["params"] == {"n": 2}


async def test_a_get_stream_that_is_only_refused_for_now_is_asked_for_again() -> None:
    """A server that pings over it ends sessions that have none. Where it is refused later on, the
    event to go on from may be why: then from wherever it is."""

    async def busy(asked: Asked) -> None:
        if asked.server.methods["GET"] == 1:
            await asked.say(503)
        elif asked.headers.get("last-event-id") == "e-1":
            await asked.say(400)
        else:
            await asked.server.behave(asked)

    async with session({"GET": busy}) as (server, client), client.listen() as stream:
        first = await server.listened()
        await first.events(Said(note("notifications/x", n=1), id="e-1"))
        assert (await stream.message())["params"] == {"n": 1}
        server.listening.clear()
        first.drop()
        second = await server.listened()
        await second.events(Said(note("notifications/x", n=2)))
        assert (await stream.message())["params"] == {"n": 2}


async def test_the_get_stream_is_held_although_the_client_was_not_heard_at_first() -> None:
    """A server with a session pings it, whether or not it took `notifications/initialized`."""

    async def busy(asked: Asked) -> None:
        await asked.say(503)

    async with session({INITIALIZED: busy}) as (server, client):
        get = await server.listened()
        await get.events(Said({"jsonrpc": "2.0", "id": "p", "method": "ping"}))
        assert (await server.heard_answer("p"))["result"] == {}
        assert "result" in await client.request("tools/list")


async def test_a_get_stream_of_another_session_goes_on_from_no_event() -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery: ids are of one session."""
    async with session() as (server, client):
        first = await server.listened()
        await first.events(Said(note("notifications/x", n=1), id="e-1"))
        server.sessions.clear()
        server.listening.clear()
        await client.request("tools/list")
        first.drop()
        second = await server.listened()
        assert second.headers["mcp-session-id"] == "upstream-2"
        assert "last-event-id" not in second.headers


async def test_the_upstream_is_told_of_the_end_only_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DESIGN 5.6: cleanup is bounded, whatever the upstream does."""
    monkeypatch.setattr(streamable, "DELETE_TIMEOUT", 0.2)

    async def never(asked: Asked) -> None:
        await asked.hung_up()

    async with behind({"DELETE": never}) as (proxy, server), connect(proxy.url) as client:
        await client.delete()
        await server.heard("DELETE")
        await until(lambda: not proxy.manager.registry.awake())


# -- streams that break off ------------------------------------------------------------------------


async def test_an_answer_that_breaks_off_is_taken_up_where_its_events_had_ids() -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery: by GET with Last-Event-ID, after the
    time that the server wants, and once more if need be; the call is made once."""
    mine: list[Asked] = []

    async def handler(asked: Asked) -> None:
        mine.append(asked)
        await asked.events(Said(id="c-1", retry=20), Said(logged("one"), id="c-2"))
        asked.drop()

    async def resume(asked: Asked) -> None:
        last = asked.headers.get("last-event-id")
        if last == "c-2":
            await asked.events(Said(logged("two"), id="c-3"))
            asked.end()
        elif last == "c-3":
            await asked.events(Said(mine[0].response({"content": [], "done": True})))
            asked.end()
        else:
            await asked.server.behave(asked)

    async with session({"tools/call": handler, "GET": resume}) as (_, client):
        async with client.open("tools/call", CALL) as stream:
            said = [await stream.message() for _ in range(3)]
        assert [message["params"]["data"] for message in said[:2]] == ["one", "two"]
        assert said[2]["result"]["done"]
    assert len(mine) == 1


def logged(data: str) -> Json:
    return note("notifications/message", level="info", data=data)


async def test_an_answer_is_asked_for_again_where_that_is_only_refused_for_now() -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery: an upstream that starts anew is not
    there for a moment."""
    answers: list[Said] = []

    async def breaks_off(asked: Asked) -> None:
        answers.append(Said(asked.response({"content": [], "n": 1}), id="e-2"))
        await asked.events(Said(id="e-1", retry=1))
        asked.drop()

    async def stream(asked: Asked) -> None:
        if "last-event-id" not in asked.headers:
            await asked.say(405)
        elif asked.server.methods["GET"] < 4:
            await asked.say(502)
        else:
            await asked.events(*answers)
            asked.end()

    async with session({"tools/call": breaks_off, "GET": stream}) as (server, client):
        await server.heard("GET")
        assert (await call(client))["n"] == 1
        assert server.methods["tools/call"] == 1


@pytest.mark.parametrize("how", ["without ids", "refused", "fruitless", "half", "unanswered"])
async def test_an_answer_that_cannot_be_taken_up_has_an_unknown_end(how: str) -> None:
    """DESIGN 10: else the call fails with what happened; never again, since it may have run."""

    async def handler(asked: Asked) -> None:
        if how == "half":
            head = (
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n"
            )
            await asked.raw(head + b'{"jsonrpc":"2.0",')
        elif how != "unanswered":
            name = None if how == "without ids" else "c-1"
            await asked.events(Said(logged("one"), id=name))
        asked.drop()

    async def resume(asked: Asked) -> None:
        if "last-event-id" not in asked.headers:
            await asked.server.behave(asked)
        elif how == "refused":
            await asked.say(400)
        else:
            await asked.events()
            asked.end()

    async with session({"tools/call": handler, "GET": resume}) as (server, client):
        result = await call(client)
        found = fault(result)
        assert (found["kind"], found["outcome"]) == ("backend_failed", "unknown")
        assert server.methods["tools/call"] == 1
        assert (await client.request("tools/list"))["result"]


async def test_a_dropped_call_of_one_session_is_nothing_to_another() -> None:
    """DESIGN 5.1 and FAULTS I8: one misbehaving upstream connection costs its own call."""

    async def handler(asked: Asked) -> None:
        if asked.params["name"] == "bad":
            await asked.events()
            asked.drop()
        else:
            await asked.server.behave(asked)

    async with behind({"tools/call": handler}) as (proxy, _):
        async with connect(proxy.url) as bad, connect(proxy.url) as good:
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(call, bad, "bad")
                    tasks.start_soon(call, good)
            assert (await call(good))["structuredContent"]["count"] == 6


async def test_a_server_may_close_the_connection_and_be_polled_for_the_answer() -> None:
    """2025-11-25 basic/transports#sending-messages-to-the-server, item 6: as often as it likes, if
    it says something each time, and be it a new id."""
    polls = 0

    async def handler(asked: Asked) -> None:
        await asked.events(Said(id="p-0", retry=10))
        asked.end()

    async def resume(asked: Asked) -> None:
        nonlocal polls
        if "last-event-id" not in asked.headers:
            await asked.server.behave(asked)
            return
        polls += 1
        if polls < incoming.FRUITLESS * 2:
            await asked.events(Said(id=f"p-{polls}", retry=10))
        else:
            number = asked.server.all("tools/call")[0].message["id"]
            result: Json = {"jsonrpc": "2.0", "id": number, "result": {"content": []}}
            await asked.events(Said(result, id="end"))
        asked.end()

    async with session({"tools/call": handler, "GET": resume}) as (_, client):
        assert "isError" not in await call(client)
    assert polls == incoming.FRUITLESS * 2


# -- silence and floods ----------------------------------------------------------------------------


async def test_an_upstream_that_never_answers_initialize_is_given_up_in_time() -> None:
    """FAULTS F05."""

    async def never(asked: Asked) -> None:
        await asked.hung_up()

    async with behind({"initialize": never}, start_timeout=0.3) as (proxy, server), http() as pool:
        answer = await Client(pool, proxy.url).initialize()
        assert "0.3 s" in answer.json()["error"]["message"]
        await until(lambda: not server.readers)


async def test_a_silent_call_ends_with_the_call_limit_and_is_cancelled_upstream() -> None:
    """FAULTS F08: tool-error, and `notifications/cancelled` under the upstream's id."""

    async def never(asked: Asked) -> None:
        await asked.hung_up()

    async with session({"tools/call": never}, call_timeout=0.3) as (server, client):
        assert fault(await call(client))["kind"] == "backend_silent"
        cancelled = await server.heard("notifications/cancelled")
        assert cancelled.params["requestId"] == server.all("tools/call")[0].message["id"]


async def test_an_upstream_that_floods_garbage_ends_its_own_session_alone() -> None:
    """FAULTS F10: more than 1,000 lines in 10 s that are no messages."""

    async def flood(asked: Asked) -> None:
        await asked.events(*(Said("rubbish") for _ in range(1100)))
        await asked.hung_up()

    async with behind({"prompts/list": flood}) as (proxy, _), connect(proxy.url) as good:
        async with connect(proxy.url) as bad:
            answer = await bad.request("prompts/list")
            assert "no messages" in answer["error"]["message"]
        assert (await call(good))["structuredContent"]["count"] == 1


@pytest.mark.parametrize("as_events", [True, False])
async def test_a_message_past_the_limit_fails_its_call_alone_and_is_not_kept(
    as_events: bool,
) -> None:
    """FAULTS F13: the stream goes on behind it."""
    limit = 100_000

    async def handler(asked: Asked) -> None:
        large = asked.response({"content": [], "fill": "x" * limit * 20})
        if asked.params["name"] != "large":
            await asked.server.behave(asked)
        elif as_events:
            await asked.events(Said(logged("x" * limit * 2)), Said(logged("small")), Said(large))
            asked.end()
        else:
            await asked.say(200, large)

    async with session({"tools/call": handler}, max_line=limit) as (_, client):
        async with client.open("tools/call", {"name": "large", "arguments": {}}) as stream:
            if as_events:
                assert (await stream.message())["params"]["data"] == "small"
            assert fault((await stream.message())["result"])["kind"] == "result_too_large"
        assert (await call(client))["structuredContent"]["count"] == 1


async def test_what_an_upstream_does_not_take_is_bounded() -> None:
    """FAULTS F16: too much in front of it fails at once, and other sessions do not notice."""

    async def never(asked: Asked) -> None:
        await asked.hung_up()

    async with behind({"prompts/get": never}) as (proxy, _), connect(proxy.url) as good:
        async with connect(proxy.url) as bad:
            params = {"name": "x" * (12 * 1024 * 1024)}
            outcomes: list[Json] = []

            async def one(number: int) -> None:
                outcomes.append(await bad.request("prompts/get", params, number=number))

            async with anyio.create_task_group() as tasks:
                for number in range(3):
                    tasks.start_soon(one, number)
                await until(lambda: bool(outcomes))
                assert (await call(good))["structuredContent"]["count"] == 1
                tasks.cancel_scope.cancel()
            assert outcomes[0]["error"]["data"]["sessionproxy/fault"]["kind"] == "backend_busy"


# -- the modern era --------------------------------------------------------------------------------

SCHEMA: Json = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "deep": {"type": "object", "properties": {"n": {"type": "integer", "x-mcp-header": "N"}}},
    },
}


def checking(seen: list[Mapping[str, str]], schema: Json) -> dict[str, Handler]:
    """A tool that insists on the headers its schema asks for."""

    async def lists(asked: Asked) -> None:
        tools = [{"name": "do", "inputSchema": schema}]
        await asked.result({"resultType": "complete", "ttlMs": 0, "tools": tools})

    async def calls(asked: Asked) -> None:
        seen.append(asked.headers)
        if "mcp-param-region" in asked.headers:
            await asked.result({"resultType": "complete", "content": []})
        else:
            await asked.say(400, asked.error(-32020, "Header mismatch"))

    return {"tools/list": lists, "tools/call": calls}


async def test_a_modern_request_carries_the_headers_that_mirror_its_body() -> None:
    """2026-07-28 basic/transports/streamable-http#request-metadata; names that no header can carry
    are encoded."""
    async with behind(eras="modern") as (proxy, server), http() as pool:
        name = "rühren\r\nX-Evil: 1"
        encoded = "=?base64?csO8aHJlbg0KWC1FdmlsOiAx?="
        params: Json = {"name": name, "arguments": {}}
        answer = await Modern(pool, proxy.url).post("tools/call", params, mcp_name=encoded)
        assert answer.json()["result"]["structuredContent"]["name"] == name
        headers = server.all("tools/call")[0].headers
        assert headers["mcp-protocol-version"] == "2026-07-28"
        assert headers["mcp-method"] == "tools/call"
        assert headers["mcp-name"] == encoded
        assert "x-evil" not in headers
        assert "mcp-session-id" not in headers


async def test_arguments_that_a_tool_wants_in_headers_are_sent_so() -> None:
    """2026-07-28 basic/transports/streamable-http#custom-headers-from-tool-parameters; a handshake
    client knows nothing of that."""
    seen: list[Mapping[str, str]] = []
    async with behind(checking(seen, SCHEMA), eras="modern") as (proxy, server):
        async with connect(proxy.url) as client:
            await client.request("tools/list")
            arguments = {"region": "Zürich", "deep": {"n": 7}}
            params = {"name": "do", "arguments": arguments}
            assert "result" in await client.request("tools/call", params)
        (headers,) = seen
        assert headers["mcp-param-region"] == "=?base64?WsO8cmljaA==?="
        assert headers["mcp-param-n"] == "7"
        assert server.methods["tools/call"] == 1


async def test_a_call_that_lacks_headers_is_repeated_with_them_once() -> None:
    """2026-07-28 basic/transports/streamable-http#client-behavior: list the tools, then retry. It
    was refused, so it was not executed."""
    seen: list[Mapping[str, str]] = []
    async with behind(checking(seen, SCHEMA), eras="modern") as (proxy, _):
        async with connect(proxy.url) as client:
            params = {"name": "do", "arguments": {"region": "eu"}}
            assert "result" in await client.request("tools/call", params)
        assert [headers.get("mcp-param-region") for headers in seen] == [None, "eu"]


async def test_a_call_that_lacks_headers_for_no_reason_is_refused_and_not_repeated() -> None:
    """As above: the list says nothing new."""
    seen: list[Mapping[str, str]] = []
    async with behind(checking(seen, {"type": "object"}), eras="modern") as (proxy, _):
        async with connect(proxy.url) as client:
            answer = await client.request("tools/call", CALL)
            assert answer["error"]["code"] == -32020
        assert len(seen) == 1


async def test_a_modern_answer_that_breaks_off_is_not_taken_up() -> None:
    """2026-07-28 basic/transports/streamable-http: streams are not resumable."""

    async def handler(asked: Asked) -> None:
        await asked.events(Said(logged("one"), id="c-1"))
        asked.drop()

    async with behind({"tools/call": handler}, eras="modern") as (proxy, server), http() as pool:
        answer = await Modern(pool, proxy.url).post("tools/call", CALL)
        assert fault(answer.json()["result"])["outcome"] == "unknown"
        assert server.methods["GET"] == 0


async def test_a_cancelled_call_of_the_modern_era_is_cancelled_by_closing_its_stream() -> None:
    """2026-07-28 basic/transports/streamable-http#cancellation; there is no notification for it."""
    closed = asyncio.Event()

    async def handler(asked: Asked) -> None:
        await asked.events(Said(logged("begun")))
        await asked.hung_up()
        closed.set()

    async with behind({"tools/call": handler}, eras="modern") as (proxy, server):
        async with connect(proxy.url) as client:
            params = CALL
            async with client.open("tools/call", params, number="mine") as stream:
                await stream.until("notifications/message")
                await client.notify("notifications/cancelled", {"requestId": "mine"})
                with anyio.fail_after(10):
                    await closed.wait()
        assert server.methods["notifications/cancelled"] == 0


@pytest.mark.parametrize("status", [400, 404, 405, 500])
@pytest.mark.parametrize("body", [b"", b"Cannot POST", b'{"jsonrpc":"2.0","id":null,"error":1}'])
async def test_an_upstream_that_does_not_know_discovery_is_of_the_handshake_era(
    status: int, body: bytes
) -> None:
    """2026-07-28 basic/transports/streamable-http#backward-compatibility."""

    async def refuse(asked: Asked) -> None:
        await asked.say(status, body)

    async with behind({"server/discover": refuse}) as (proxy, server), http() as pool:
        answer = await Modern(pool, proxy.url).post("tools/call", CALL)
        assert answer.json()["result"]["structuredContent"]["session"] is not None
        assert server.methods["server/discover"] == 1


async def test_what_is_queued_is_not_sent_on_a_connection_that_was_just_closed() -> None:
    """FAULTS F03: some servers hang up after each answer, and do not say so before."""

    async def hangs_up(asked: Asked) -> None:
        await asked.say(202)
        asked.end()

    changed = "notifications/roots/list_changed"
    async with session({changed: hangs_up}) as (server, client):
        for _ in range(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(client.notify, changed)
            await call(client)
        assert server.methods[changed] == 30


@pytest.mark.parametrize("version", ["2025-11-25\r\nx: y", "\x01", "ä", ""])
async def test_a_revision_that_no_header_can_have_is_sent_in_none(version: str) -> None:
    """FAULTS, credentials: what an upstream says is put into headers; nothing is added by that, and
    its session ends as any other."""

    async def opened(asked: Asked) -> None:
        asked.server.sessions["one"] = 0
        result = {
            "protocolVersion": version,
            "capabilities": CAPABILITIES,
            "serverInfo": {"name": "u", "version": "1"},
        }
        await asked.result(result, mcp_session_id="one")

    async with behind({"initialize": opened}) as (proxy, server), http() as pool:
        client = Client(pool, proxy.url)
        await client.initialize()
        await client.request("tools/call", CALL)
        await client.delete()
        gone = await server.heard("DELETE")
        for asked in (*server.all("tools/call"), gone):
            assert "mcp-protocol-version" not in asked.headers
            assert "x" not in asked.headers


async def test_conversations_have_a_session_each_at_a_server_that_speaks_both_eras() -> None:
    """DESIGN 5.1: 2026-07-28 has no sessions, so what such a server keeps for one it keeps by the
    handshake; in the other era all conversations, of all users, would be one to it."""
    async with behind(eras="both") as (proxy, server), http() as pool:
        counts = list[object]()
        for name in ("ann", "ann", "bob", "ann"):
            answer = await Modern(pool, f"{proxy.url}/s/{name}").post("tools/call", CALL)
            counts.append(answer.json()["result"]["structuredContent"]["count"])
        assert counts == [1, 2, 1, 3]
        # What it was asked to find that out is over, and it was told so.
        await until(lambda: len(server.sessions) == 2)


@pytest.mark.parametrize("status", [401, 429, 502, 503])
async def test_an_upstream_that_is_only_out_of_order_is_served_once_it_is_not(status: int) -> None:
    """DESIGN 9: no verdict for good is passed on what will pass; a modern client is told why."""

    async def refuse(asked: Asked) -> None:
        await asked.say(status)

    handlers: dict[str, Handler] = {"*": refuse}
    async with behind(handlers, eras="both") as (proxy, _), http() as pool:
        client = Modern(pool, proxy.url)
        failed = (await client.post("tools/call", CALL)).json()
        assert f"HTTP {status}" in json.dumps(failed)
        handlers.clear()
        answer = await client.post("tools/call", CALL)
        assert "isError" not in answer.json()["result"]


async def test_a_slow_answer_to_the_probe_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 9: the ping behind the probe is for pipes, where silence means something; here it
    would be refused at once, and the verdict with it."""
    monkeypatch.setattr("sessionproxy.eras.launcher.AFTER_PING", 0.0)
    go = asyncio.Event()

    async def slowly(asked: Asked) -> None:
        await go.wait()
        await asked.server.behave(asked)

    async with behind({"server/discover": slowly}, eras="modern") as (proxy, server):
        async with http() as pool, anyio.create_task_group() as tasks:
            client = Modern(pool, proxy.url)

            async def one() -> None:
                params = CALL
                answer = (await client.post("tools/call", params)).json()
                assert answer["result"]["structuredContent"]["session"] is None

            tasks.start_soon(one)
            await server.heard("server/discover")
            await anyio.wait_all_tasks_blocked()
            go.set()
        assert server.methods["ping"] == 0


async def test_a_handshake_client_is_served_by_a_modern_upstream() -> None:
    """DESIGN 9: drive `server/discover`; put the envelope on; ask what it wants to know."""

    async def handler(asked: Asked) -> None:
        if "inputResponses" not in asked.params:
            ask: Json = {"method": "roots/list", "params": {}}
            result: Json = {"resultType": "input_required", "inputRequests": {"r": ask}}
            await asked.result({**result, "requestState": "s"})
        else:
            given = asked.params["inputResponses"]["r"]
            await asked.result({"resultType": "complete", "content": [], "given": given})

    async with behind({"tools/call": handler}, eras="modern") as (proxy, server):
        async with connect(proxy.url) as client:
            assert client.opened["result"]["capabilities"] == CAPABILITIES
            async with client.open("tools/call", CALL) as stream:
                ask = await stream.until("roots/list")
                await client.respond(ask["id"], result={"roots": []})
                assert (await stream.answer())["result"]["given"] == {"roots": []}
        envelopes = [asked.params["_meta"] for asked in server.all("tools/call")]
        assert [e["io.modelcontextprotocol/protocolVersion"] for e in envelopes] == [
            "2026-07-28",
            "2026-07-28",
        ]

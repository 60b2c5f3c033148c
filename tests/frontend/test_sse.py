"""HTTP+SSE, the transport of 2024-11-05 (basic/transports#http-with-sse), with real sockets and
real backends.
"""

import hashlib
import signal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
import pytest
from mcp.client.sse import sse_client
from starlette.applications import Starlette
from starlette.routing import Mount

from sessionproxy import http_app
from sessionproxy.core.attachments import Attachments
from sessionproxy.core.binding import ID_LENGTH
from sessionproxy.core.state import EndReason
from tests.rig.embedded import SCRIPTED, embedded, scripted, served, until
from tests.rig.http import PATIENCE, EndOfStream, calling, connect, request
from tests.rig.invariants import forged
from tests.rig.processes import Census
from tests.rig.proxy import proxy
from tests.rig.sdk import LISTING, exercise
from tests.rig.sse import JSON, Stream, sse


async def other(base: str, path: str, method: str = "POST", **headers: str) -> httpx2.Response:
    """Send a request that is no stream's."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE) as http:
        async with http.stream(method, base + path, headers=more) as response:
            if response.headers.get("content-type") != "text/event-stream":
                await response.aread()
            return response


# -- the stream and its session --------------------------------------------------------------------


async def test_the_first_event_says_where_to_post_and_all_answers_come_on_the_stream() -> None:
    """2024-11-05 basic/transports#http-with-sse; DESIGN 5.4."""
    async with embedded() as served_by, sse(served_by.base) as stream:
        answer = await stream.initialize()
        assert answer["result"]["instructions"] == "Do as you are told."
        seen = (await stream.do({"progress": 1}, {"log": "said"}, {"tells": "seen"}))["seen"]
        assert [message["method"] for message in seen] == [
            "initialize", "notifications/initialized", "tools/call",
        ]  # fmt: skip
        assert [m["params"]["data"] for m in stream.passed_over if "data" in m["params"]] == [
            "said"
        ]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_the_sdks_own_client_works_unmodified(mode: str) -> None:
    """The current Python SDK; in mode `auto` it asks first for what this transport has not."""
    async with embedded(LISTING) as served_by:
        await exercise(sse_client(f"{served_by.base}/sse"), mode, version="2025-11-25")
        await until(lambda: served_by.processes() == [])


async def test_two_clients_are_apart() -> None:
    """DESIGN 5.1: each with its own backend, and what comes of it comes to its own stream."""
    async with embedded() as served_by, sse(served_by.base) as one, sse(served_by.base) as two:
        found: dict[str, list[str]] = {"one": [], "two": []}

        async def work(name: str, stream: Stream) -> None:
            await stream.initialize()
            for turn in range(20):
                done = await stream.do({"log": f"{name} {turn}"})
                assert done["count"] == turn + 1
                found[name].append(done["nonce"])
            said = [m["params"]["data"] for m in stream.passed_over if "method" in m]
            assert said == [f"{name} {turn}" for turn in range(20)]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, "one", one)
            tasks.start_soon(work, "two", two)
        assert len({*found["one"]}) == len({*found["two"]}) == 1
        assert found["one"] != found["two"]


async def test_when_the_stream_closes_the_session_ends_with_its_backend() -> None:
    """DESIGN 7, disconnected: with a call in flight, too; nobody can come back to it."""
    async with embedded() as served_by:
        async with sse(served_by.base) as stream:
            await stream.initialize()
            await stream.send(request("tools/call", calling({"log": "here"}, {"wait": "ever"}), 1))
            await stream.until("notifications/message")
            await stream.close()
            await until(lambda: served_by.processes() == [])
            await until(lambda: len(served_by.manager.registry) == 0)
            assert (await stream.post(request("ping"))).status_code == 404
        assert len(served_by.app.running.sse) == 0


async def test_a_client_that_leaves_while_its_backend_starts_leaves_nothing() -> None:
    """FAULTS F39."""
    async with embedded(scripted(initialize=[{"wait": "ever"}])) as served_by:
        async with sse(served_by.base) as stream:
            await stream.send(request("initialize", {"protocolVersion": "2024-11-05"}))
            await until(lambda: served_by.processes() != [])
        await until(lambda: served_by.processes() == [])
        await until(lambda: len(served_by.manager.registry) == 0)


async def test_a_backend_that_cannot_start_is_told_on_the_stream() -> None:
    """DESIGN 11; FAULTS F02."""
    async with embedded(scripted(start=[{"exit": 3}])) as served_by, sse(served_by.base) as stream:
        failed = await stream.initialize()
        assert failed["error"]["data"]["sessionproxy/fault"]["exitCode"] == 3
        refused = await stream.request("tools/list")
        assert (refused["error"]["code"], refused["id"]) == (-32600, 1)


async def test_a_session_that_is_ended_ends_its_stream() -> None:
    """DESIGN 7: max age and kill are final; what was answered is still read."""
    async with embedded() as served_by, sse(served_by.base) as stream:
        await stream.initialize()
        await stream.send(request("tools/call", calling({"exit": 0}), 1))
        assert (await stream.answer(1))["result"]["isError"]
        served_by.manager.end_all(EndReason.KILLED)
        with pytest.raises(EndOfStream):
            await stream.receive()


async def test_a_stream_with_nothing_to_say_shows_that_it_is_there() -> None:
    """DESIGN 4: comments, by which a half-open connection is found as well (FAULTS F28)."""
    async with embedded(keepalive=0.05) as served_by, sse(served_by.base) as stream:
        await stream.initialize()
        await stream.do({"sleep": 0.3})
        assert stream.comments


async def test_a_client_that_reads_nothing_is_cut_off_and_harms_nobody() -> None:
    """DESIGN 5.3; FAULTS F29: what must not be dropped fills its bound."""
    note = {"method": "notifications/resources/updated", "params": {"uri": "x" * 1000}}
    flood = {"repeat": {"times": 12_000, "steps": [{"note": note}]}}
    async with embedded() as served_by, sse(served_by.base) as reads:
        await reads.initialize()
        async with sse(served_by.base) as stalls:
            await stalls.initialize()
            await stalls.send(request("tools/call", calling(flood), 1))
            await until(lambda: len(served_by.manager.registry) == 1)
            assert (await reads.do())["count"] == 1


# -- ids and owners --------------------------------------------------------------------------------


async def test_an_id_that_is_no_open_streams_is_answered_as_unknown_whatever_it_is() -> None:
    """FAULTS F37: forged, ended, of the other transport: byte-identical."""
    async with embedded() as served_by, sse(served_by.base) as stream:
        await stream.initialize()
        (key,) = parse_qs(urlsplit(stream.endpoint).query)["session_id"]
        assert len(key) == ID_LENGTH
        async with sse(served_by.base) as ended:
            (gone,) = parse_qs(urlsplit(ended.endpoint).query)["session_id"]
        assert gone != key
        await until(lambda: len(served_by.app.running.sse) == 1)
        async with connect(served_by.url) as client:
            tried = [gone, "A" * ID_LENGTH, forged(key), "x", client.id]
            answers = [
                await other(served_by.base, f"/messages?session_id={one}", **JSON) for one in tried
            ]
            assert {answer.status_code for answer in answers} == {404}
            assert len({answer.content for answer in answers}) == 1
            # Nor is a stream's id one of the other transport's.
            client.id = key
            assert (await client.post(request("ping"))).status_code == 404
        missing = await other(served_by.base, "/messages", **JSON)
        assert missing.status_code == 400
        assert b"session_id" in missing.content


async def test_a_stream_is_its_owners_alone(tmp_path: Path) -> None:
    """DESIGN 5.8: an id is worth nothing to another owner, nor to nobody."""
    tokens = tmp_path / "tokens"
    lines = [f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n" for name in ("ann", "bob")]
    tokens.write_text("".join(lines))
    async with embedded(token_file=str(tokens)) as served_by:
        assert (await other(served_by.base, "/sse", "GET")).status_code == 401
        async with sse(served_by.base, authorization="Bearer ann") as stream:
            await stream.initialize()
            foreign = await stream.post(request("ping"), authorization="Bearer bob")
            unknown = await other(
                served_by.base, "/messages?session_id=x", authorization="Bearer bob", **JSON
            )
            assert (foreign.status_code, foreign.content) == (404, unknown.content)
            stream.headers.pop("authorization")
            assert (await stream.post(request("ping"))).status_code == 401
            # A credential that is revoked ends what was opened with it (FAULTS, credentials).
            tokens.write_text(lines[1])
            served_by.app.reread()
            with pytest.raises(EndOfStream):
                await stream.receive()
        await until(lambda: served_by.processes() == [])


async def test_where_users_have_one_backend_each_their_streams_share_it() -> None:
    """DESIGN 6, affinity: a stream that closes ends a share, not the session."""
    async with embedded(affinity="principal") as served_by, sse(served_by.base) as one:
        await one.initialize()
        first = await one.do()
        async with sse(served_by.base) as two:
            await two.initialize()
            second = await two.do({"log": "to two"})
            assert (second["nonce"], second["count"]) == (first["nonce"], 2)
            (session,) = served_by.manager.registry.awake()
            assert isinstance(session.client, Attachments)
            assert len(session.client) == 2
        await until(lambda: len(served_by.app.running.sse) == 1)
        assert len(session.client) == 1
        assert (await one.do())["count"] == 3
        assert not any("log" in str(message) for message in one.passed_over)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        ("/sse", "GET", {"host": "evil.example"}, 403),
        ("/sse", "GET", {"origin": "http://evil.example"}, 403),
        ("/sse", "GET", {"x_forwarded_for": "1.2.3.4"}, 403),
        ("/sse", "GET", {"accept": "application/json"}, 406),
        ("/sse", "POST", JSON, 405),
        ("/sse", "DELETE", {}, 405),
        ("/messages?session_id=x", "POST", {"host": "evil.example"}, 403),
        ("/messages?session_id=x", "POST", {"origin": "http://evil.example"}, 403),
        ("/messages?session_id=x", "GET", {}, 405),
    ],
)
async def test_the_guards_are_those_of_the_endpoint(
    path: str, method: str, headers: dict[str, str], status: int
) -> None:
    """FAULTS, security: Host and Origin on every route, before anything is started."""
    async with embedded() as served_by:
        answer = await other(served_by.base, path, method, **headers)
        assert answer.status_code == status
        assert answer.json()["id"] is None
        assert len(served_by.app.running.sse) == 0


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"1", {}, 400),
        (b"[]", {}, 400),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', {}, 400),
        (b"{}", {"content_type": "text/plain"}, 415),
        (b"{}", {"content_encoding": "gzip"}, 415),
        (b'{"x":"%b"}' % (b"y" * 2000), {}, 413),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_what_is_no_message_is_refused_where_it_was_posted(
    body: bytes, headers: dict[str, str], status: int
) -> None:
    """DESIGN 11; the stream goes on."""
    async with embedded(max_body=1000) as served_by, sse(served_by.base) as stream:
        await stream.initialize()
        assert (await stream.post(body, **headers)).status_code == status
        assert (await stream.do())["count"] == 1


async def test_a_page_of_an_allowed_origin_may_read_both() -> None:
    """Fetch, CORS protocol."""
    origin = "http://localhost:5173"
    async with embedded() as served_by, sse(served_by.base, origin=origin) as stream:
        assert stream.response.headers["access-control-allow-origin"] == origin
        posted = await stream.post(request("ping"))
        assert posted.headers["access-control-allow-origin"] == origin
        for path in ("/sse", "/messages"):
            asked = await other(served_by.base, path, "OPTIONS", origin=origin)
            assert asked.status_code == 204


async def test_it_can_be_switched_off() -> None:
    """Our choice: on by default, for clients that know nothing newer."""
    async with embedded(sse="off") as served_by:
        assert (await other(served_by.base, "/sse", "GET")).status_code == 404
        assert (await other(served_by.base, "/messages", **JSON)).status_code == 404


# -- where it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "beside"), [("/mcp", ""), ("/tools/mcp", "/tools"), ("/a b/mcp", "/a b")]
)
async def test_it_is_beside_the_endpoint(path: str, beside: str) -> None:
    """Our choice; DESIGN 3: an application may have several."""
    async with embedded(path=path) as served_by:
        base = served_by.base
        async with sse(base, f"{beside}/sse") as stream:
            assert stream.endpoint.startswith(f"{beside}/messages?".replace(" ", "%20"))
            await stream.initialize()
            assert (await stream.do())["count"] == 1


async def test_mounted_in_another_application_it_says_where_it_is(tmp_path: Path) -> None:
    """ASGI, `root_path`: the client is told a path of the same origin, whatever that is called."""
    app = http_app(SCRIPTED, state_dir=str(tmp_path / "s"), containment="guardian")
    outer = Starlette(routes=[Mount("/tools", app=app)], lifespan=app.lifespan)
    async with served(outer, lifespan=True) as base, sse(base, "/tools/sse") as stream:
        assert stream.endpoint.startswith("/tools/messages?session_id=")
        await stream.initialize()
        assert (await stream.do())["count"] == 1


# -- the end of the proxy --------------------------------------------------------------------------


async def test_a_signal_ends_every_stream_in_order() -> None:
    """FAULTS F23: what is in flight is answered, then streams end whole, those too that have no
    session."""
    async with proxy(SCRIPTED, "--containment", "guardian", "--stop-grace", "1") as running:
        census = Census(running.state_dir)
        async with sse(running.base) as stream, sse(running.base) as unused:
            await stream.initialize()
            await stream.send(request("tools/call", calling({"log": "here"}, {"wait": "go"}), 1))
            await stream.until("notifications/message")
            census.look()
            running.signal(signal.SIGTERM)
            await until(lambda: any("draining" in line for line in running.log))
            assert (await other(running.base, "/sse", "GET")).status_code == 503
            await stream.send(request("tools/call", calling(), 2))
            assert (await stream.answer(2))["error"]["message"] == "The proxy is shutting down"
            running.signal(signal.SIGTERM)
            assert (await stream.answer(1))["id"] == 1
            for one in (stream, unused):
                with pytest.raises(EndOfStream):
                    await one.receive()
            await running.wait(2 * PATIENCE)
        await census.gone(within=PATIENCE)

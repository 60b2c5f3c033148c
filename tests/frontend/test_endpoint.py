"""DESIGN section 11, first half: what a request gets that goes no further than the front door."""

import json
from base64 import urlsafe_b64encode

import anyio
import httpx2
import pytest

from sessionproxy.core.binding import SessionIds
from sessionproxy.http import request as http_request
from tests.rig.embedded import embedded, scripted, session, until
from tests.rig.http import ACCEPT, PATIENCE, Client, Json, connect, exchange, http, request

INITIALIZE = request(
    "initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {}}
)
JSON = {"accept": ACCEPT, "content-type": "application/json"}


def assert_refused(response: httpx2.Response, status: int, code: int = -32600) -> Json:
    """It is that status, with a JSON-RPC error whose id is null; returns the error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["jsonrpc"] == "2.0"
    assert body["id"] is None
    assert "result" not in body
    assert body["error"]["code"] == code
    assert body["error"]["message"]
    return body["error"]


# -- bodies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"jsonrpc":"2.0","id":1,"method":"ping"} x',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\xff"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b"[" * 100_000,
        b"[" * 100_000,
    ],
    ids=["empty", "cut off", "trailing", "not UTF-8", "NaN", "deep", "deep batch"],
)
async def test_a_body_that_is_not_json_gets_400_and_a_parse_error(body: bytes) -> None:
    """JSON-RPC 2.0 section 5.1; FAULTS F11."""
    async with session() as (_, client):
        assert_refused(await client.post(body), 400, -32700)
        assert (await client.do(echo="still there"))["echo"] == "still there"


@pytest.mark.parametrize(
    "body",
    [
        1,
        "ping",
        None,
        {},
        {"id": 1, "method": "ping"},
        {"jsonrpc": "1.0", "id": 1, "method": "ping"},
        {"jsonrpc": "2.0", "id": None, "method": "ping"},
        {"jsonrpc": "2.0", "id": 1.5, "method": "ping"},
        {"jsonrpc": "2.0", "id": True, "method": "ping"},
        {"jsonrpc": "2.0", "id": {}, "method": "ping"},
        {"jsonrpc": "2.0", "id": "x" * 2000, "method": "ping"},
        {"jsonrpc": "2.0", "id": 1, "method": 1},
        {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]},
        {"jsonrpc": "2.0", "id": 1, "method": "ping", "result": {}},
        {"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}},
        {"jsonrpc": "2.0", "id": 1},
        [],
        [[]],
        [{"jsonrpc": "2.0", "id": 1, "method": "ping"}],
    ],
    ids=lambda body: json.dumps(body)[:50],
)
async def test_json_that_is_no_message_gets_400_and_an_invalid_request_error(body: object) -> None:
    """2025-11-25 basic#messages: an id is a string or an integer and not null; no batches."""
    async with session() as (_, client):
        assert_refused(await client.post(body), 400)
        seen = (await client.do({"tells": "seen"}))["seen"]
    assert [message.get("method") for message in seen] == [
        "initialize", "notifications/initialized", "tools/call",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/jsonp", "application/json-rpc", "application/jsonx", "json"],
)
async def test_a_content_type_other_than_json_gets_415(content_type: str | None) -> None:
    """DESIGN 11, FAULTS, content type: pages may send text/plain across origins unasked."""
    async with embedded() as proxy, http() as pool:
        headers = {"accept": ACCEPT} | ({"content-type": content_type} if content_type else {})
        body = json.dumps(INITIALIZE).encode()
        response = await pool.post(proxy.url, content=body, headers=headers)
        assert_refused(response, 415)
        assert len(proxy.manager.registry) == 0


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"]
)
async def test_a_content_type_may_have_parameters_and_any_case(content_type: str) -> None:
    """RFC 9110 section 8.3.1."""
    async with embedded() as proxy, http() as pool:
        headers = {"accept": ACCEPT, "content-type": content_type}
        response = await pool.post(proxy.url, json=INITIALIZE, headers=headers)
        assert response.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
async def test_a_content_encoding_gets_415(encoding: str) -> None:
    """FAULTS F48: nothing is unpacked."""
    async with embedded() as proxy, http() as pool:
        headers = {**JSON, "content-encoding": encoding}
        assert_refused(await pool.post(proxy.url, json=INITIALIZE, headers=headers), 415)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "text/html", ""])
async def test_a_post_that_accepts_less_than_both_forms_gets_406(accept: str) -> None:
    """2025-11-25 basic/transports#sending-messages-to-the-server, item 2."""
    async with embedded() as proxy, http() as pool:
        headers = {**JSON, "accept": accept}
        assert_refused(await pool.post(proxy.url, json=INITIALIZE, headers=headers), 406)


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "text/event-stream, application/json",
        "application/json;q=0.9,text/*",
        "Application/*,text/event-stream",
    ],
)
async def test_a_post_that_accepts_both_forms_in_any_spelling_is_served(accept: str) -> None:
    """RFC 9110 section 12.5.1."""
    async with embedded() as proxy, http() as pool:
        headers = {**JSON, "accept": accept}
        response = await pool.post(proxy.url, json=INITIALIZE, headers=headers)
        assert response.status_code == 200


async def test_a_get_that_does_not_accept_event_streams_gets_406() -> None:
    """2025-11-25 basic/transports#listening-for-messages-from-the-server, item 2."""
    async with session() as (_, client):
        assert_refused(await client.send("GET", accept="application/json"), 406)


async def test_accept_may_be_spread_over_several_headers() -> None:
    """RFC 9110 section 5.3: several lines of a list are one list."""
    async with embedded() as proxy, http() as pool:
        pairs = [
            ("accept", "application/json"),
            ("accept", "text/event-stream"),
            ("content-type", "application/json"),
        ]
        response = await pool.post(proxy.url, json=INITIALIZE, headers=pairs)
        assert response.status_code == 200


# -- sizes and time --------------------------------------------------------------------------------


async def test_a_body_above_the_limit_gets_413_before_it_is_read() -> None:
    """FAULTS F48, `max_body` + 1, told by its Content-Length."""
    async with embedded(max_body=1000) as proxy:
        head = _head(proxy.port, "content-length: 1001")
        answer = await exchange(proxy.port, head)  # without a body
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"id":null' in answer


async def test_a_chunked_body_above_the_limit_gets_413() -> None:
    """FAULTS F48: chunks have no length to be told by."""
    async with embedded(max_body=1000) as proxy:
        chunk = b"1f4\r\n" + b" " * 500 + b"\r\n"
        head = _head(proxy.port, "transfer-encoding: chunked")
        answer = await exchange(proxy.port, head + chunk * 3)
        assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_at_the_limit_is_served() -> None:
    """DESIGN 11."""
    async with embedded(max_body=1000) as proxy, http() as pool:
        body = json.dumps(INITIALIZE).encode().ljust(1000)
        response = await pool.post(proxy.url, content=body, headers=JSON)
        assert response.status_code == 200


async def test_a_body_that_does_not_arrive_gets_408(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS F47: slow bodies have a deadline."""
    monkeypatch.setattr(http_request, "BODY_DEADLINE", 0.1)
    async with embedded() as proxy:
        answer = await exchange(proxy.port, _head(proxy.port, "content-length: 10") + b"{")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert len(proxy.manager.registry) == 0


def _head(port: int, *more: str) -> bytes:
    lines = [
        "POST /mcp HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        "connection: close",
        f"accept: {ACCEPT}",
        "content-type: application/json",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


# -- methods, paths, versions ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "PATCH", "HEAD", "TRACE", "OPTIONS"])
async def test_a_method_that_is_not_served_gets_405_and_the_list_of_those_that_are(
    method: str,
) -> None:
    """RFC 9110 section 15.5.6. OPTIONS without an Origin is no preflight."""
    async with embedded() as proxy, http() as pool:
        response = await pool.request(method, proxy.url, headers=JSON)
        assert response.status_code == 405
        assert response.headers["allow"] == "GET, POST, DELETE, OPTIONS"


@pytest.mark.parametrize("path", ["/", "/mcp//", "/mcp/x", "/MCP", "//mcp", "/mcp%2e", "/healthz/"])
async def test_another_path_gets_404(path: str) -> None:
    """DESIGN 11: an unknown name falls through to nothing."""
    async with embedded() as proxy, http() as pool:
        response = await pool.post(f"{proxy.base}{path}", json=INITIALIZE, headers=JSON)
        assert_refused(response, 404)


async def test_the_path_may_end_with_a_slash() -> None:
    """Our choice: people paste it so, and a redirect would lose the body."""
    async with embedded() as proxy, connect(f"{proxy.url}/") as client:
        assert (await client.do())["count"] == 1


@pytest.mark.parametrize("version", ["2099-01-01", "", "x" * 5000])
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_an_unsupported_protocol_version_gets_400_and_the_list_of_those_that_are(
    method: str, version: str
) -> None:
    """2025-11-25 basic/transports#protocol-version-header."""
    async with session() as (_, client):
        body = request("ping") if method == "POST" else b""
        response = await client.send(method, body, mcp_protocol_version=version)
        error = assert_refused(response, 400, -32022)
        assert error["data"]["supported"][:2] == ["2026-07-28", "2025-11-25"]
        assert (await client.do(echo="alive"))["echo"] == "alive"


async def test_a_request_without_the_version_header_is_served() -> None:
    """2025-11-25 basic/transports#protocol-version-header: then the session's version counts."""
    async with session() as (_, client):
        headers = {**JSON, "mcp-session-id": client.id}
        response = await client.http.post(client.url, json=request("ping"), headers=headers)
        assert response.json() == {"jsonrpc": "2.0", "id": 1, "result": {}}


# -- session ids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_a_request_without_a_session_id_gets_400(method: str) -> None:
    """2025-11-25 basic/transports#session-management, item 2."""
    async with embedded() as proxy, http() as pool:
        client = Client(pool, proxy.url)
        body = request("tools/list") if method == "POST" else b""
        assert_refused(await client.send(method, body), 400)


async def test_initialize_on_a_session_gets_400_and_leaves_it_alone() -> None:
    """2025-11-25 basic/lifecycle#initialization: it is the first interaction."""
    async with session() as (proxy, client):
        assert_refused(await client.post(INITIALIZE), 400)
        assert len(proxy.manager.registry) == 1
        assert (await client.do())["count"] == 1


async def test_all_ids_that_name_no_session_of_the_caller_get_the_same_answer() -> None:
    """FAULTS F37, DESIGN 5.8: never issued, ended, forged, of another route, owner or server."""
    async with session() as (proxy, client), connect(proxy.url) as ended:
        assert (await ended.delete()).status_code == 204
        key = (proxy.state_dir / "key").read_bytes()
        ids = SessionIds(key)
        strangers = {
            "never issued": ids.mint("default", "local"),
            "ended": ended.id,
            "forged": client.id[:-2] + ("AA" if client.id[-2:] != "AA" else "BB"),
            "of another route": ids.mint("other", "local"),
            "of another owner": ids.mint("default", "anonymous"),
            "of another server": SessionIds(b"x" * 32).mint("default", "local"),
            "of another version": urlsafe_b64encode(b"\x02" + b"x" * 40).decode().rstrip("="),
            "no id": "x",
            "long": "x" * 4000,
            "not ASCII": "ä" * 55,
            "base64 with others between": client.id[:10] + "\t" + client.id[10:],
        }
        answers: dict[str, set[str]] = {}
        for name, stranger in strangers.items():
            client.id = stranger
            for method, body in (
                ("POST", json.dumps(request("tools/call", {"name": "do"}))),
                ("POST", '{"jsonrpc": "2.0", "method": "notifications/initialized"}'),
                ("POST", '{"jsonrpc": "2.0", "id": 1, "result": {}}'),
                ("GET", ""),
                ("DELETE", ""),
            ):
                headers = {
                    **{k.encode(): v.encode() for k, v in client.headers.items()},
                    b"mcp-session-id": stranger.encode("latin-1"),
                }
                with anyio.fail_after(PATIENCE):
                    response = await client.http.request(
                        method, client.url, content=body, headers=headers
                    )
                response.headers.pop("date", None)
                whole = f"{response.status_code} {sorted(response.headers.items())} {response.text}"
                answers.setdefault(whole, set()).add(name)
    assert list(answers.values()) == [set(strangers)]
    (answer,) = answers
    assert answer.startswith("404 ")


async def test_an_id_is_of_visible_ascii_and_no_two_are_alike() -> None:
    """2025-11-25 basic/transports#session-management, item 1."""
    async with embedded() as proxy:
        async with connect(proxy.url) as one, connect(proxy.url) as two:
            assert one.id != two.id
            assert all(0x21 <= ord(character) <= 0x7E for character in one.id)
            assert len(one.id) >= 22  # 128 bits in base64


# -- limits ----------------------------------------------------------------------------------------


def assert_told_to_come_back(response: httpx2.Response) -> None:
    assert_refused(response, 503, -32603)
    assert int(response.headers["retry-after"]) >= 1
    assert "mcp-session-id" not in response.headers


async def test_at_the_limit_a_new_session_waits_and_then_gets_503() -> None:
    """DESIGN 7, 11: queue timed out; nothing was started."""
    async with session(max_sessions=1, queue_timeout=0.1) as (proxy, client):
        response = await Client(client.http, proxy.url).initialize()
        assert_told_to_come_back(response)
        assert len(proxy.session_dirs()) == 1
        assert len(proxy.manager.registry) == 1


async def test_at_the_limit_a_new_session_gets_the_place_of_one_that_ends() -> None:
    """DESIGN 7: new sessions wait in a FIFO queue."""
    async with session(max_sessions=1) as (proxy, client):
        second = Client(client.http, proxy.url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(second.initialize)
            await until(lambda: proxy.manager.admission.queued == 1)
            await client.delete()
        assert (await second.do())["count"] == 1


async def test_a_client_that_hangs_up_in_the_queue_leaves_it() -> None:
    """DESIGN 7: the waiting client leaves the queue when it hangs up."""
    async with session(max_sessions=1) as (proxy, client):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Client(client.http, proxy.url).initialize)
            await until(lambda: proxy.manager.admission.queued == 1)
            tasks.cancel_scope.cancel()
        await until(lambda: proxy.manager.admission.queued == 0)
        await until(lambda: len(proxy.manager.registry) == 1)
        assert len(proxy.session_dirs()) == 1


async def test_a_draining_proxy_takes_nothing_new() -> None:
    """DESIGN 7, 11: draining gets 503."""
    async with session() as (proxy, client):
        proxy.manager.draining = True
        assert_told_to_come_back(await Client(client.http, proxy.url).initialize())
        assert_refused(await client.post(request("tools/list")), 503, -32603)
        assert_refused(await client.send("GET"), 503, -32603)


async def test_a_route_whose_backend_fails_to_start_five_times_rests() -> None:
    """DESIGN 7, FAULTS F01."""
    async with embedded(scripted(start=[{"exit": 3}])) as proxy, http() as pool:
        for _ in range(5):
            response = await Client(pool, proxy.url).initialize()
            assert response.status_code == 200
            assert response.json()["error"]["code"] == -32603
        assert_told_to_come_back(await Client(pool, proxy.url).initialize())
        ready = await pool.get(f"{proxy.base}/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "resting")


# -- who may ask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/mcp", "/healthz", "/readyz"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "localhost.evil.com"),
        ("host", "localhost:3000.evil.com"),
        ("origin", "http://localhost.evil.com"),
        ("origin", "http://localhost:3000.evil.com"),
        ("origin", "null"),
        ("forwarded", "for=1.2.3.4"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-host", "localhost"),
        ("via", "1.1 proxy"),
    ],
)
async def test_a_request_from_elsewhere_gets_403_before_its_body_is_read(
    path: str, name: str, value: str
) -> None:
    """2025-11-25 basic/transports#security-warning; DESIGN 6: loopback is one owner."""
    async with embedded() as proxy, http() as pool:
        sent = pool.build_request("GET", f"{proxy.base}{path}", headers={**JSON, name: value})
        assert_refused(await pool.send(sent), 403)
        if path == "/mcp":
            lines = {"host": f"127.0.0.1:{proxy.port}", name: value}
            head = "\r\n".join(f"{n}: {v}" for n, v in lines.items())
            message = (
                f"POST /mcp HTTP/1.1\r\n{head}\r\nconnection: close\r\ncontent-length: 9\r\n\r\n"
            )
            assert (await exchange(proxy.port, message.encode())).startswith(b"HTTP/1.1 403 ")
        assert len(proxy.manager.registry) == 0


@pytest.mark.parametrize(
    "twice",
    [
        "mcp-session-id: x",
        "mcp-protocol-version: 2025-11-25",
        "content-type: application/json",
        "origin: http://localhost",
        "host: 127.0.0.1",
        "last-event-id: 0-1",
        "authorization: Bearer x",
    ],
)
async def test_a_header_that_decides_where_a_request_goes_is_refused_when_it_comes_twice(
    twice: str,
) -> None:
    """FAULTS, Security: duplicates refused."""
    async with embedded() as proxy:
        body = json.dumps(INITIALIZE).encode()
        name = twice.split(":")[0]
        lines = [
            line
            for line in _head(proxy.port, f"content-length: {len(body)}").decode().split("\r\n")
            if line and not line.startswith(f"{name}:")
        ]
        head = "\r\n".join([*lines, twice, twice, "", ""]).encode()
        answer = await exchange(proxy.port, head + body)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert len(proxy.manager.registry) == 0


async def test_a_preflight_of_an_allowed_origin_is_answered() -> None:
    """Fetch, CORS protocol: what the page's client sends and reads is allowed and exposed."""
    async with embedded(allow_origin=["https://app.example"]) as proxy, http() as pool:
        for origin in ("https://app.example", "http://localhost:3000"):
            asked = {
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "content-type, Mcp-Param-Region, x-other",
            }
            response = await pool.options(proxy.url, headers=asked)
            assert response.status_code == 204
            headers = response.headers
            assert headers["access-control-allow-origin"] == origin
            assert headers["vary"].lower() == "origin"
            allowed = {name.strip() for name in headers["access-control-allow-headers"].split(",")}
            assert allowed >= {
                "content-type", "accept", "authorization",
                "mcp-session-id", "mcp-protocol-version", "last-event-id",
                "mcp-method", "mcp-name", "mcp-param-region",
            }  # fmt: skip
            assert "x-other" not in allowed
            methods = {m.strip() for m in headers["access-control-allow-methods"].split(",")}
            assert methods >= {"GET", "POST", "DELETE"}
            assert "access-control-allow-credentials" not in headers


async def test_a_page_of_an_allowed_origin_can_read_answers_and_errors() -> None:
    """Fetch, CORS protocol."""
    async with embedded(allow_origin=["https://app.example"]) as proxy, http() as pool:
        headers = {**JSON, "origin": "https://app.example"}
        answers = [
            await pool.post(proxy.url, json=INITIALIZE, headers=headers),
            await pool.post(proxy.url, content=b"{", headers=headers),
            await pool.delete(proxy.url, headers={**headers, "mcp-session-id": "x"}),
        ]
        assert [answer.status_code for answer in answers] == [200, 400, 404]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            exposed = answer.headers["access-control-expose-headers"]
            assert {"mcp-session-id", "mcp-protocol-version", "retry-after"} <= {
                name.strip().lower() for name in exposed.split(",")
            }


async def test_a_page_of_another_origin_gets_no_cors_headers() -> None:
    """Fetch, CORS protocol: without them the page cannot read the answer."""
    async with embedded(allow_origin=["https://app.example"]) as proxy, http() as pool:
        for origin in ("https://app.example.evil.com", "http://app.example", "https://evil.com"):
            response = await pool.options(proxy.url, headers={"origin": origin})
            assert_refused(response, 403)
            assert not any(name.startswith("access-control") for name in response.headers)


# -- health ----------------------------------------------------------------------------------------


async def test_health_pages_show_counts_but_no_ids_and_no_owners() -> None:
    """DESIGN 5.8: ids are in no health page."""
    async with session() as (proxy, client):
        healthz = await client.http.get(f"{proxy.base}/healthz")
        readyz = await client.http.get(f"{proxy.base}/readyz")
        assert (healthz.status_code, healthz.json()) == (200, {"status": "ok"})
        assert readyz.status_code == 200
        facts = readyz.json()
        assert (facts["status"], facts["sessions"], facts["backends"]) == ("ready", 1, 1)
        assert facts["containment"]
        assert client.id not in readyz.text
        assert "local" not in readyz.text


async def test_health_pages_answer_get_only() -> None:
    """RFC 9110 section 15.5.6."""
    async with embedded() as proxy, http() as pool:
        for page in ("healthz", "readyz"):
            assert (await pool.post(f"{proxy.base}/{page}")).status_code == 405

"""FAULTS, Security, as far as it is about what is there: both eras, keys, handles, tokens, and
servers elsewhere.

Rules that are shown where their room is tested are named in `rows.SECURITY`; here are those that go
through several rooms. Neighbours: `rows`.
"""

import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

import httpx2
import pytest

from sessionproxy.core.state import StopReason
from tests.rig.embedded import Embedded, embedded, plain, scripted
from tests.rig.http import Json, calling, connect, exchange, http
from tests.rig.modern import Modern, listing, naming, on_the_wire
from tests.rig.recorded_modern import FORM, retry
from tests.rig.upstream import Asked, Handler, fronting, upstream

ASKS: Final[Json] = {"ask": FORM}

COMMAND: Final = scripted(**listing(naming("do", {"type": "object", "properties": {}})))
"""A backend with a tool that handles can be put into."""


@asynccontextmanager
async def modern(**settings: object) -> AsyncGenerator[tuple[Embedded, Modern]]:
    running = plain(COMMAND, observers=(), local=True, certificate=None, **settings)
    async with running as proxy, http() as pool:
        yield proxy, Modern(pool, proxy.url)


def started(proxy: Embedded) -> int:
    return len(proxy.session_dirs())


# -- what comes in ---------------------------------------------------------------------------------

EVIL: Final = {
    "host": ("host", "localhost.evil.com", 403),
    "origin": ("origin", "http://localhost:3000.evil.com", 403),
    "forwarded": ("x-forwarded-for", "1.2.3.4", 403),
    "via": ("via", "1.1 proxy", 403),
    "text": ("content-type", "text/plain", 415),
    "jsonp": ("content-type", "application/jsonp", 415),
    "gzip": ("content-encoding", "gzip", 415),
}


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("evil", EVIL)
async def test_modern_requests_pass_the_same_guards_before_anything_is_started(evil: str) -> None:
    """FAULTS, Security: Host and Origin on every route, content type; also on a head that is like
    one which was let in before."""
    name, value, status = EVIL[evil]
    async with modern() as (proxy, client):
        for url in (client.url, f"{proxy.url}/s/mine"):
            client.url = url
            for method, params in (("server/discover", None), ("tools/call", calling())):
                request = client.build(method, params)
                request.headers[name] = value
                answer = await client.http.send(request)
                assert (answer.status_code, answer.json()["id"]) == (status, None)
        assert started(proxy) == 0
        for _ in range(3):
            await client.call()
        request = client.build("tools/call", calling())
        request.headers[name] = value
        assert (await client.http.send(request)).status_code == status
        assert (await client.call())["structuredContent"]["count"] == 4


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", ["mcp-method", "mcp-name", "mcp-protocol-version", "host"])
async def test_a_header_that_says_what_the_body_says_is_refused_when_it_comes_twice(
    name: str,
) -> None:
    """FAULTS, Security, headers: duplicates refused, nothing executed; -32020 where it is one of
    the revision's."""
    async with modern() as (proxy, client):
        built = client.build("tools/call", calling())
        built.headers["connection"] = "close"
        twice = on_the_wire(built, (name, built.headers[name]))
        answer = await exchange(proxy.port, twice)
        assert answer.startswith(b"HTTP/1.1 400 ")
        if name.startswith("mcp-m") or name == "mcp-name":
            assert b"-32020" in answer
        assert started(proxy) == 0


async def test_a_modern_request_reaches_no_session_by_an_id_that_it_carries() -> None:
    """DESIGN 6 and the issue: whatever place a handshake client's id is put in."""
    async with plain(key_header="X-Key", key_meta=["thread"], key_cookie="on") as proxy:
        async with connect(proxy.url) as victim, http() as pool:
            theirs = (await victim.do())["nonce"]
            client = Modern(pool, proxy.url)
            found: set[str] = set()
            for name in ("mcp-session-id", "x-key", "cookie"):
                value = victim.id if name != "cookie" else f"__Host-sessionproxy={victim.id}"
                request = client.build("tools/call", calling())
                request.headers[name] = value
                answer = await pool.send(request)
                found.add(answer.json()["result"]["structuredContent"]["nonce"])
            answer = await client.call(meta={"thread": victim.id})
            found.add(answer["structuredContent"]["nonce"])
            client.url = f"{proxy.url}/s/{victim.id}"
            found.add((await client.call())["structuredContent"]["nonce"])
            assert theirs not in found
            assert (await victim.do())["count"] == 2


KEYS: Final = ("a\r\nx-evil: 1", "a\nb", "a\0b", "../../etc/passwd", "$(id)", "a" * 5000, "ü")


@pytest.mark.parametrize("key", KEYS, ids=lambda key: repr(key)[:12])
async def test_a_name_of_a_conversation_goes_nowhere_but_into_a_look_up(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """DESIGN 5.7; FAULTS, commands: no header, no log line, no path, no argument and no variable
    of a backend has what a client has named its conversation."""
    caplog.set_level(logging.DEBUG, logger="sessionproxy")
    async with modern(key_meta=["thread"]) as (proxy, client):
        params = calling({"tells": "about"})
        answer = await client.post("tools/call", params, meta={"thread": key})
        assert not [value for value in answer.headers.values() if "evil" in value]
        assert "x-evil" not in answer.headers
        if answer.status_code == 200:
            about = answer.json()["result"]["structuredContent"]["about"]
            assert key not in json.dumps(about, ensure_ascii=False)
            assert not [path for path in proxy.session_dirs() if key[:6] in str(path)]
        else:
            assert answer.status_code == 400
            assert len(proxy.manager.registry) == 0
    assert key not in caplog.text


# -- what is secret --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["handles", "cookies"])
async def test_nothing_that_opens_a_session_is_in_the_log(
    way: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """FAULTS, Security: credentials are not logged; DESIGN 5.8: nor ids. Tokens, handles, cookies,
    states and names, at the most talkative level, whether they are good or not."""
    caplog.set_level(logging.DEBUG, logger="sessionproxy")
    token = "a-token-that-is-secret"
    file = tmp_path / "tokens"
    file.write_text(f"ann {sha256(token.encode()).hexdigest()}\n")
    settings = {"handles": "optional"} if way == "handles" else {"key_cookie": "on"}
    async with modern(token_file=str(file), key_meta=["thread"], **settings) as (proxy, client):
        client.more = {"authorization": f"Bearer {token}"}
        opened = await client.post("tools/call", calling())
        if way == "handles":
            secret: str = opened.json()["result"]["_meta"]["sessionproxy/session"]["handle"]
            await client.call(session=secret[:-4] + "AAAA")
        else:
            secret = opened.headers["set-cookie"].partition("=")[2].partition(";")[0]
            client.more |= {"cookie": f"__Host-sessionproxy={secret[:-4]}AAAA"}
            await client.call()
        name = "a-name-that-is-secret"
        client.more = {"authorization": f"Bearer {token}"}
        asked = (await client.post("tools/call", calling(ASKS), meta={"thread": name})).json()
        state: str = asked["result"]["requestState"]
        for bad in (state[:-4], state + "A", 7):
            await client.post("tools/call", {**calling(), "requestState": bad})
        for session in proxy.manager.registry.awake():
            session.stop(StopReason.IDLE)
        await client.call(meta={"thread": name})
        client.more = {"authorization": f"Bearer {token}x"}
        await client.post("tools/call", calling())
    assert "sleeps" in caplog.text
    secrets = [token, secret, secret[:-4], name, state, state[:-4]]
    assert [found for found in secrets if found in caplog.text] == []


@asynccontextmanager
async def owners(tmp_path: Path) -> AsyncGenerator[tuple[Embedded, Modern, Modern]]:
    """Two clients of two owners."""
    file = tmp_path / "tokens"
    names = ("ann", "bob")
    file.write_text("".join(f"{n} {sha256(n.encode()).hexdigest()}\n" for n in names))
    async with embedded(token_file=str(file)) as proxy, http() as pool:
        clients = [
            Modern(pool, f"{proxy.url}/s/the-same", {"authorization": f"Bearer {name}"})
            for name in names
        ]
        yield proxy, clients[0], clients[1]


async def test_a_state_is_worth_nothing_to_another_owner(tmp_path: Path) -> None:
    """FAULTS, Security, requestState: owner, method and argument digest. A foreign one, a forged
    one, and one for other arguments get one answer; the owner goes on with it."""
    async with owners(tmp_path) as (_, ann, bob):
        params = calling(ASKS)
        asked = (await ann.post("tools/call", params)).json()["result"]
        good = retry(params, asked)
        forged = {**good, "requestState": "A" * len(asked["requestState"])}
        answers = [
            await bob.post("tools/call", good),
            await bob.post("tools/call", forged),
            await ann.post("tools/call", {**good, "arguments": {"steps": []}}),
        ]
        assert {answer.status_code for answer in answers} == {400}
        assert len({answer.content for answer in answers}) == 1
        done = (await ann.post("tools/call", good)).json()["result"]["structuredContent"]
        assert done["count"] == 1
        seen = (await ann.call({"tells": "seen"}))["structuredContent"]["seen"]
        assert [message.get("method") for message in seen].count("tools/call") == 2


async def test_who_listens_hears_nothing_of_another_owners_conversation(tmp_path: Path) -> None:
    """DESIGN 5.1: under the same name, of the same resource."""
    uri = "test://watched"
    note: Json = {"note": {"method": "notifications/resources/updated", "params": {"uri": uri}}}
    wanted = {"notifications": {"resourceSubscriptions": [uri]}}
    async with owners(tmp_path) as (_, ann, bob):
        await ann.call()
        async with bob.open("subscriptions/listen", wanted) as stream:
            await stream.message()
            await ann.call(note)
            await bob.call({**note})
            await bob.call({"note": {**note["note"], "params": {"uri": f"{uri}/2"}}})
            heard = [(await stream.message())["params"]["uri"] for _ in range(2)]
        assert heard == [uri, f"{uri}/2"]


# -- servers elsewhere -----------------------------------------------------------------------------

HEADERS: Final[Mapping[str, str]] = {
    "set_cookie": "at=upstream; Path=/",
    "www_authenticate": 'Bearer realm="upstream"',
    "location": "http://169.254.169.254/",
    "access_control_allow_origin": "*",
    "x_upstream": "secret",
}


async def tells(asked: Asked) -> None:
    await asked.result({"content": []}, **HEADERS)


async def fails(asked: Asked) -> None:
    await asked.say(401, b"no", **HEADERS)


@pytest.mark.parametrize("handler", [tells, fails])
async def test_no_header_of_an_upstream_reaches_a_client(handler: Handler) -> None:
    """FAULTS, credentials and headers: what it says on its connection is said to the proxy."""
    call: Json = {"name": "do", "arguments": {}}
    async with upstream({"tools/call": handler}) as server, fronting(server.url, {}) as proxy:
        async with connect(proxy.url) as old, http() as pool:
            answers: list[httpx2.Response] = [
                await old.post({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}),
                await Modern(pool, proxy.url).post("tools/call", call),
            ]
            for answer in answers:
                assert answer.status_code == 200
                names = {name.replace("_", "-") for name in HEADERS}
                assert names.isdisjoint(answer.headers)


async def test_nothing_that_a_client_sends_says_where_an_upstream_is(tmp_path: Path) -> None:
    """FAULTS, SSRF: paths, names, URIs and headers of clients reach the one URL of the operator,
    in bodies alone."""
    async with upstream() as server, fronting(server.url, {}) as proxy, http() as pool:
        evil = "http://169.254.169.254/latest"
        for path in ("/s/169.254.169.254", "/s/..", "/s/%2e%2e", "/s/http:%2f%2fevil", "?url=x"):
            client = Modern(pool, proxy.url + path)
            await client.post("tools/call", {"name": evil, "arguments": {"url": evil}})
            await client.post("resources/read", {"uri": evil}, x_target=evil, mcp_upstream=evil)
        async with connect(proxy.url) as old:
            await old.request("resources/read", {"uri": evil})
        assert {asked.path for asked in server.asked} == {"/mcp"}
        hosts = {asked.headers["host"] for asked in server.asked}
        assert hosts == {f"127.0.0.1:{server.port}"}
        assert not [a for a in server.asked if {"x-target", "mcp-upstream"} & set(a.headers)]


HOSTILE: Final = {"line": "eu\r\nx-evil: 1", "nul": "eu\0", "unicode": "eu\u2028", "pad": " eu "}


@pytest.mark.parametrize("value", HOSTILE)
async def test_an_argument_that_goes_into_a_header_brings_no_other_along(value: str) -> None:
    """2026-07-28 basic/transports/streamable-http#value-encoding: no header is injected by what a
    client writes into an argument that the upstream wants in one."""
    seen: list[Mapping[str, str]] = []
    schema: Json = {
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
    }

    async def lists(asked: Asked) -> None:
        tools = [{"name": "do", "inputSchema": schema}]
        await asked.result({"tools": tools, "resultType": "complete"})

    async def takes(asked: Asked) -> None:
        seen.append(asked.headers)
        await asked.result({"content": [], "resultType": "complete"})

    handlers = {"tools/list": lists, "tools/call": takes}
    async with upstream(handlers, modern=True, handshake=False) as server:
        async with fronting(server.url, {}) as proxy, connect(proxy.url) as client:
            await client.request("tools/list")
            arguments = {"region": HOSTILE[value]}
            answer = await client.request("tools/call", {"name": "do", "arguments": arguments})
            assert "result" in answer
    (headers,) = seen
    assert "x-evil" not in headers
    assert headers["mcp-param-region"].startswith("=?base64?")


@pytest.mark.parametrize("id", ["a b", "ü", "x" * 10_000, "a,b"])
async def test_a_session_id_that_an_upstream_must_not_give_harms_nobody(id: str) -> None:
    """2025-11-25 basic/transports#session-management: visible ASCII. Whatever it is, it comes back
    to that upstream as it was, or the start fails; no client sees it."""

    async def greets(asked: Asked) -> None:
        result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "x"}}
        body = json.dumps(asked.response(result)).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nmcp-session-id: %b\r\n"
        length = b"content-length: %d\r\n\r\n" % len(body)
        await asked.raw(head % id.encode() + length + body)

    async def answers(asked: Asked) -> None:
        await asked.say(202)

    handlers: dict[str, Handler] = {
        "initialize": greets, "notifications/initialized": answers, "tools/call": tells,
    }  # fmt: skip
    async with upstream(handlers) as server, fronting(server.url, {}) as proxy:
        async with http() as pool:
            opened = await pool.post(
                proxy.url,
                json={
                    "jsonrpc": "2.0",
                    "id": 1,
                    "method": "initialize",
                    "params": {
                        "protocolVersion": "2025-11-25",
                        "capabilities": {},
                        "clientInfo": {"name": "x", "version": "1"},
                    },
                },
                headers={"accept": "application/json, text/event-stream"},
            )
        assert opened.status_code == 200
        assert id not in opened.text
        assert id not in opened.headers.get("mcp-session-id", "")

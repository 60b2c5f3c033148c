"""The short way of `frontend.fastlane`: what it must not change. Raw sockets, so that requests come
in the very pieces a test wants.

The other tests of this room go both ways; these are about heads, bodies and connections.
"""

import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketStream

from sessionproxy.core.exchange import Outbound
from sessionproxy.core.session import Session
from sessionproxy.frontend import Endpoint
from sessionproxy.frontend.bounds import BoundedHttp, Bounds
from sessionproxy.frontend.fastlane import FastLane
from sessionproxy.frontend.handshake import Handshake
from sessionproxy.frontend.reply import Reply
from sessionproxy.http.request import Receive, Scope, Send
from tests.rig.embedded import Embedded, embedded, session, until
from tests.rig.http import PATIENCE, Client, Json, calling, connect, notification, request


class Wire:
    """One connection, with the head of one client."""

    def __init__(self, stream: SocketStream, proxy: Embedded, headers: Mapping[str, str]) -> None:
        self.stream = stream
        self._lines = [f"{name}: {value}" for name, value in headers.items()]
        self._lines.insert(0, f"host: 127.0.0.1:{proxy.port}")
        self._buffer = b""

    def message(
        self, body: Json | list[Json] | bytes, *more: str, method: str = "POST", path: str = "/mcp"
    ) -> bytes:
        """One HTTP request, always with the same head but for the length, and for `more`."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", *self._lines, *more]
        lines += [f"content-length: {len(content)}", "x-last: 1", "", ""]
        return "\r\n".join(lines).encode() + content

    async def send(self, *pieces: bytes) -> None:
        """Send each piece by itself: the next one once the last can have been read."""
        for piece in pieces:
            await self.stream.send(piece)
            await anyio.sleep(0.02)

    async def answer(self) -> tuple[int, bytes]:
        """Return status and body of the next answer, which has a length."""
        with anyio.fail_after(PATIENCE):
            head = await self._until(b"\r\n\r\n")
            found = re.search(rb"content-length: (\d+)", head)
            size = int(found[1]) if found else 0
            while len(self._buffer) < size:
                self._buffer += await self.stream.receive()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return int(head.split()[1]), body

    async def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._buffer += await self.stream.receive()
        head, self._buffer = self._buffer.split(mark, 1)
        return head

    async def echoed(self) -> object:
        """Return what the next answer, which must be a call's, echoes."""
        status, body = await self.answer()
        assert status == 200, body
        return json.loads(body)["result"]["structuredContent"]["echo"]


@asynccontextmanager
async def wired(proxy: Embedded, client: Client) -> AsyncGenerator[Wire]:
    """A connection whose head is known: the next request with it can go the short way."""
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
        wire = Wire(stream, proxy, client.headers)
        await wire.send(wire.message(call("first")))
        assert await wire.echoed() == "first"
        yield wire


def call(echo: object, *steps: Json) -> Json:
    return request("tools/call", calling(*steps, echo=echo))


async def test_a_head_that_came_before_does_not_go_through_asgi_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`docs/decisions.md`, the short way. If this fails, the others here prove nothing."""
    ordinary: list[str] = []
    served = Endpoint.__call__

    async def counted(self: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        ordinary.append(scope["method"])
        await served(self, scope, receive, send)

    monkeypatch.setattr(Endpoint, "__call__", counted)
    async with session() as (proxy, client), wired(proxy, client) as wire:
        before = len(ordinary)
        for n in range(5):
            await wire.send(wire.message(call(n)))
            assert await wire.echoed() == n
        assert len(ordinary) == before
        await wire.send(wire.message(notification("x")))
        assert (await wire.answer())[0] == 202
        assert len(ordinary) == before + 1


async def test_requests_may_come_in_any_pieces() -> None:
    """RFC 9112: the boundaries of TCP segments mean nothing."""
    async with session() as (proxy, client), wired(proxy, client) as wire:
        whole = wire.message(call("x" * 1000))
        for at in (1, 30, whole.index(b"\r\n\r\n"), whole.index(b"\r\n\r\n") + 4, len(whole) - 1):
            await wire.send(whole[:at], whole[at:])
            assert await wire.echoed() == "x" * 1000
        await wire.send(*(whole[n : n + 400] for n in range(0, len(whole), 400)))
        assert await wire.echoed() == "x" * 1000


async def test_requests_that_come_before_their_answers_are_answered_in_order() -> None:
    """RFC 9112 section 9.3.2: a server may be sent several requests at once."""
    async with session() as (proxy, client), wired(proxy, client) as wire:
        many = [wire.message(call(n)) for n in range(20)]
        await wire.send(b"".join(many))
        assert [await wire.echoed() for _ in many] == list(range(20))
        slow = wire.message(call("slow", {"wait": "go"}))
        await wire.send(slow, many[0], many[1] + many[2][:50], many[2][50:])
        await client.do({"release": "go"})
        assert [await wire.echoed() for _ in range(4)] == ["slow", 0, 1, 2]


async def test_what_is_no_plain_request_takes_the_ordinary_way_with_the_same_head() -> None:
    """`begin_fast`: None, and nothing was done."""
    async with session() as (proxy, client), wired(proxy, client) as wire:
        bodies: list[tuple[Json | list[Json] | bytes, int]] = [
            (notification("x"), 202),
            ({"jsonrpc": "2.0", "id": 5, "result": {}}, 202),
            (b"{", 400),
            (b"", 400),
            ([request("ping")], 400),
            (request("initialize", {}), 400),
            ({"jsonrpc": "2.0", "id": None, "method": "ping"}, 400),
        ]
        for body, status in bodies:
            await wire.send(wire.message(body))
            assert (await wire.answer())[0] == status, body
            await wire.send(wire.message(call("next")))
            assert await wire.echoed() == "next"
        seen = (await client.do({"tells": "seen"}))["seen"]
    assert [m["method"] for m in seen if m["method"].startswith("x")] == ["x"]


async def test_a_head_is_worth_nothing_once_its_session_has_ended() -> None:
    """DESIGN 5.8: 404, on the connection that was vouched for too."""
    async with session() as (proxy, client), wired(proxy, client) as wire:
        await client.delete()
        await wire.send(wire.message(call("late")))
        assert (await wire.answer())[0] == 404


async def test_a_head_of_a_session_that_sleeps_wakes_it_and_is_told() -> None:
    """DESIGN 5.12: the short way tells of no loss, so it is not taken."""
    async with session() as (proxy, client), wired(proxy, client) as wire:
        await client.do({"then": [{"exit": 0}]})
        await until(lambda: proxy.manager.registry.awake() == ())
        await wire.send(wire.message(call("late")))
        assert b"state_lost" in (await wire.answer())[1]
        await wire.send(wire.message(call("next")))
        assert await wire.echoed() == "next"


async def test_a_draining_proxy_is_draining_for_known_heads_too() -> None:
    """DESIGN 7."""
    async with session() as (proxy, client), wired(proxy, client) as wire:
        proxy.manager.draining = True
        await wire.send(wire.message(call("late")))
        assert (await wire.answer())[0] == 503


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ("origin: http://localhost.evil.com", 403),
        ("x-forwarded-for: 1.2.3.4", 403),
        ("mcp-session-id: x", 400),
        ("host: evil.com", 400),
        ("content-encoding: gzip", 415),
        ("content-length: 1", 400),
    ],
)
async def test_a_head_that_differs_in_one_line_is_checked_as_any_other(
    more: str, status: int
) -> None:
    """DESIGN 4: guard first."""
    async with session() as (proxy, client), wired(proxy, client) as wire:
        await wire.send(wire.message(call("evil"), more))
        assert (await wire.answer())[0] == status


@pytest.mark.parametrize(("method", "path", "status"), [("PUT", "/mcp", 405), ("POST", "/x", 404)])
async def test_another_method_or_path_is_another_head(method: str, path: str, status: int) -> None:
    """DESIGN 11."""
    async with session() as (proxy, client), wired(proxy, client) as wire:
        await wire.send(wire.message(call("x"), method=method, path=path))
        assert (await wire.answer())[0] == status


async def test_sessions_on_one_connection_are_kept_apart() -> None:
    """DESIGN 5.1: as behind a reverse proxy, which shares its connections."""
    async with embedded() as proxy, connect(proxy.url) as one, connect(proxy.url) as two:
        nonces = [(await client.do())["nonce"] for client in (one, two)]
        async with wired(proxy, one) as wire:
            heads = [Wire(wire.stream, proxy, client.headers) for client in (one, two)]
            for n in range(20):
                await wire.stream.send(heads[n % 2].message(call(n)))
                status, body = await wire.answer()
                found = json.loads(body)["result"]["structuredContent"]
                assert (status, found["echo"], found["nonce"]) == (200, n, nonces[n % 2])


@pytest.mark.parametrize("whole", [False, True])
async def test_a_body_above_the_limit_gets_413_with_a_known_head(whole: bool) -> None:
    """FAULTS F48: also where all of it comes in one read."""
    async with session(max_body=2000) as (proxy, client), wired(proxy, client) as wire:
        message = wire.message(call("x" * 3000))
        await wire.send(message if whole else message[:500])
        assert (await wire.answer())[0] == 413
        assert (await client.do())["count"] == 2


async def test_a_body_that_does_not_arrive_gets_408_with_a_known_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F47."""
    monkeypatch.setattr(BoundedHttp, "bounds", Bounds(body=0.1, look=0.05))
    async with session() as (proxy, client), wired(proxy, client) as wire:
        await wire.send(wire.message(call("x" * 1000))[:-500])
        assert (await wire.answer())[0] == 408


async def test_what_comes_on_a_refused_connection_is_not_executed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F47: it is a part of the body that was refused, whatever it looks like."""
    monkeypatch.setattr(BoundedHttp, "bounds", Bounds(body=0.1, look=0.05))
    async with session() as (proxy, client), wired(proxy, client) as wire:
        await wire.send(wire.message(call("x" * 5000))[:-4000])
        assert (await wire.answer())[0] == 408
        await wire.send(wire.message(call("hidden")))
        found = await client.do({"tells": "seen"})
    assert "hidden" not in json.dumps(found["seen"])


async def test_a_connection_that_asks_to_close_is_closed_after_its_answer() -> None:
    """RFC 9112 section 9.6."""
    async with session() as (proxy, client), wired(proxy, client) as wire:
        await wire.send(wire.message(call("last"), "connection: close"))
        assert await wire.echoed() == "last"
        with anyio.fail_after(PATIENCE), pytest.raises(anyio.EndOfStream):
            await wire.stream.receive()


async def test_a_page_can_read_every_answer_and_not_the_first_alone() -> None:
    """Fetch, CORS protocol: the headers depend on the Origin, so it takes the ordinary way."""
    async with session() as (_, client):
        page = client.also(origin="http://localhost:3000")
        for number in range(3):
            answer = await page.post(call(number))
            assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


async def test_a_client_that_waits_to_be_told_to_continue_is_told_each_time() -> None:
    """RFC 9110 section 10.1.1."""
    async with session() as (proxy, client), wired(proxy, client) as wire:
        for number in range(3):
            head, body = wire.message(call(number), "expect: 100-continue").split(b"\r\n\r\n", 1)
            await wire.send(head + b"\r\n\r\n")
            assert (await wire.answer())[0] == 100
            await wire.send(body)
            assert await wire.echoed() == number


async def test_a_large_answer_arrives_whole() -> None:
    """DESIGN 13."""
    async with session() as (proxy, client), wired(proxy, client) as wire:
        for size in (65_000, 66_000, 8_000_000):
            await wire.send(wire.message(call("big", {"fill": size})))
            _, body = await wire.answer()
            assert len(json.loads(body)["result"]["structuredContent"]["fill"]) == size


async def test_a_client_that_hangs_up_does_not_cancel_its_call() -> None:
    """DESIGN 5.9."""
    async with session() as (proxy, client):
        async with wired(proxy, client) as wire:
            await wire.send(wire.message(call("left", {"wait": "go"})))
        found = await client.do({"release": "go"}, {"tells": "seen"})
        assert (await client.do())["count"] == 4
    assert "notifications/cancelled" not in [m.get("method") for m in found["seen"]]


async def test_a_client_that_hangs_up_as_its_stream_begins_does_not_count_as_its_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F26: in one turn of the event loop: the connection closes, but is not yet lost."""
    replies: list[Reply] = []
    begin_fast = Handshake.begin_fast

    def begun(self: Handshake, session: Session, body: bytes) -> Reply | None:
        reply = begin_fast(self, session, body)
        replies.extend(() if reply is None else (reply,))
        return reply

    def hung_up(self: FastLane) -> None:
        self.transport.close()
        replies[-1].message(Outbound(b"{}"))

    async with session() as (proxy, client):
        async with wired(proxy, client) as wire:
            monkeypatch.setattr(Handshake, "begin_fast", begun)
            await wire.send(wire.message(call("left", {"wait": "go"})))
            await until(lambda: len(replies) == 1)
            (reply,) = replies
            assert reply.attached
            monkeypatch.setattr(FastLane, "eof_received", hung_up)
        await until(lambda: reply.stream is not None)
        assert not reply.attached
        monkeypatch.undo()
        await client.do({"release": "go"})

"""The short way of `frontend.fastlane` for requests of the modern era: what it must not change.

One head stands for many requests there, so what tells them apart is in their bodies. Neighbours:
`test_fastlane` is about heads, bodies and connections, whatever the era.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import anyio
import pytest

from sessionproxy.core.state import EndReason
from sessionproxy.frontend import Endpoint
from sessionproxy.frontend.problems import HEADER_MISMATCH, INVALID_PARAMS
from sessionproxy.http.request import Receive, Scope, Send
from tests.rig.embedded import Embedded, embedded, scripted, until
from tests.rig.http import ACCEPT, Json, calling, connect, notification, request
from tests.rig.modern import VERSION, envelope, listing, naming

from .test_fastlane import Wire as HandshakeWire

KEY = "io.sessionproxy/conversation"
PATH = "/mcp/s/one"


def headers_for(tool: str) -> dict[str, str]:
    """Return what the head of a call of a tool has."""
    return {
        "accept": ACCEPT,
        "content-type": "application/json",
        "mcp-protocol-version": VERSION,
        "mcp-method": "tools/call",
        "mcp-name": tool,
    }


class Wire(HandshakeWire):
    """One connection of a modern client, with the head of calls of one tool."""

    def __init__(self, stream: anyio.abc.SocketStream, proxy: Embedded, tool: str = "do") -> None:
        super().__init__(stream, proxy, headers_for(tool))

    async def ask(
        self, *steps: Json, meta: Json | None = None, path: str = PATH, **params: object
    ) -> tuple[int, Json]:
        """Call; return status and answer."""
        await self.stream.send(self.message(call(*steps, meta=meta, **params), path=path))
        status, body = await self.answer()
        return status, json.loads(body)


def call(*steps: Json, meta: Json | None = None, **params: object) -> Json:
    found = calling(*steps) | params
    found["_meta"] = {**envelope(), **(meta or {})}
    return request("tools/call", found)


def state_of(answer: Json) -> tuple[str, int]:
    """Return which backend answered, and how many requests it has executed."""
    found = answer["result"]["structuredContent"]
    return found["nonce"], found["count"]


@asynccontextmanager
async def wired(script: Json | None = None) -> AsyncGenerator[tuple[Embedded, Wire]]:
    """A connection whose head is known: the next request with it can go the short way."""
    async with (
        embedded(scripted(**(script or {}))) as proxy,
        await anyio.connect_tcp("127.0.0.1", proxy.port) as stream,
    ):
        wire = Wire(stream, proxy)
        for _ in range(3):  # the first opens the conversation, the second one is vouched for
            status, _ = await wire.ask()
            assert status == 200
        yield proxy, wire


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of the requests that went through ASGI."""
    found: list[str] = []
    served = Endpoint.__call__

    async def counted(
        self: Endpoint, scope: Scope, receive: Receive, send: Send, path_key: str | None = None
    ) -> None:
        found.append(scope["method"])
        await served(self, scope, receive, send, path_key)

    monkeypatch.setattr(Endpoint, "__call__", counted)
    return found


async def test_a_head_that_came_before_does_not_go_through_asgi_again(ordinary: list[str]) -> None:
    """DESIGN 13. If this fails, the others here prove nothing."""
    async with wired() as (proxy, wire):
        other = Wire(wire.stream, proxy, "another-tool")
        await other.ask(name="another-tool")
        before = len(ordinary)
        for n in range(5):
            assert (await wire.ask())[0] == 200
            status, answer = await other.ask(name="another-tool", meta={"progressToken": n})
            assert status == 200
            assert "result" in answer
        assert len(ordinary) == before


async def test_another_conversation_in_meta_is_another_one_with_the_same_head() -> None:
    """DESIGN 5.1, 6: heads say nothing of it."""
    async with wired() as (_, wire):
        states: dict[object, list[tuple[str, int]]] = {"a": [], "b": [], None: []}
        for key in ("a", "b", None) * 4:
            meta = {} if key is None else {KEY: key}
            status, answer = await wire.ask(meta=meta, path="/mcp")
            assert status == 200, answer
            states[key].append(state_of(answer))
    nonces = [{nonce for nonce, _ in found} for found in states.values()]
    assert [len(found) for found in nonces] == [1, 1, 1]
    assert len({nonce for found in nonces for nonce in found}) == 3
    assert [count for _, count in states["a"]] == [1, 2, 3, 4]


async def test_what_is_wrong_in_a_body_is_refused_with_a_known_head() -> None:
    """2026-07-28 basic/transports/streamable-http#server-validation; DESIGN 6."""
    async with wired() as (_, wire):
        wrong: list[tuple[Json, int]] = [
            (call(name="other"), HEADER_MISMATCH),
            (request("prompts/get", call()["params"]), HEADER_MISMATCH),
            (request("tools/call", calling()), INVALID_PARAMS),
            (call(requestState="made-up", inputResponses={}), INVALID_PARAMS),
            (call(requestState=7), INVALID_PARAMS),
        ]
        for body, code in wrong:
            await wire.send(wire.message(body, path=PATH))
            status, answer = await wire.answer()
            assert (status, json.loads(answer)["error"]["code"]) == (400, code), body
            assert (await wire.ask())[0] == 200
        status, answer = await wire.ask(meta={KEY: "another"})
        assert (status, "different conversations" in answer["error"]["message"]) == (400, True)
        await wire.send(wire.message(notification("x"), path=PATH))
        assert (await wire.answer())[0] == 202
        _, answer = await wire.ask()
        assert state_of(answer)[1] == 3 + len(wrong) + 1  # of those, none was executed


async def test_arguments_that_are_mirrored_are_compared_with_each_request() -> None:
    """2026-07-28 server/tools#x-mcp-header."""
    schema: Json = {
        "type": "object",
        "properties": {"to": {"type": "string", "x-mcp-header": "To"}},
    }
    async with wired(listing(naming("mirrors", schema))) as (proxy, wire):
        other = Wire(wire.stream, proxy, "mirrors")
        for to, status in (("x", 200), ("x", 200), ("y", 400), ("x", 200)):
            body = call(name="mirrors", arguments={"to": to})
            await other.send(other.message(body, "mcp-param-to: x", path=PATH))
            assert (await other.answer())[0] == status


async def test_an_error_has_its_status_with_a_known_head() -> None:
    """2026-07-28 basic/transports/streamable-http."""
    async with wired() as (_, wire):
        status, answer = await wire.ask({"replies": {"error": {"code": -32602, "message": "no"}}})
        assert (status, answer["error"]["code"]) == (400, -32602)
        assert (await wire.ask())[0] == 200


async def test_what_comes_before_an_answer_comes_as_a_stream_with_a_known_head() -> None:
    """DESIGN 5.4."""
    async with wired() as (_, wire):
        body = call({"progress": 2}, meta={"progressToken": "p"})
        await wire.stream.send(wire.message(body, path=PATH))
        seen = b""
        with anyio.fail_after(10):
            while b'"result"' not in seen:
                seen += await wire.stream.receive()
        assert b"text/event-stream" in seen
        assert seen.count(b"notifications/progress") == 2
        assert seen.index(b"notifications/progress") < seen.index(b'"result"')


@pytest.mark.parametrize("reads", [False, True])
async def test_a_client_that_hangs_up_has_cancelled_with_a_known_head(reads: bool) -> None:
    """2026-07-28 basic/transports/streamable-http#cancellation."""
    async with wired() as (proxy, wire):
        steps: list[Json] = [{"progress": 1}] if reads else []
        body = call(*steps, {"wait": "never"}, meta={"progressToken": "p"})
        await wire.stream.send(wire.message(body, path=PATH))
        while reads and b"notifications/progress" not in await wire.stream.receive():
            pass
        (session,) = proxy.manager.registry.awake()
        await until(lambda: session.leases == 1)
        await wire.stream.aclose()
        await until(lambda: session.leases == 0)
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            _, answer = await Wire(stream, proxy).ask({"tells": "seen"})
    seen = answer["result"]["structuredContent"]["seen"]
    assert "notifications/cancelled" in [message.get("method") for message in seen]


async def test_a_conversation_that_has_ended_begins_anew_with_a_known_head() -> None:
    """DESIGN 5.8, 6."""
    async with wired() as (proxy, wire):
        first = state_of((await wire.ask())[1])
        (session,) = proxy.manager.registry.awake()
        proxy.manager.end(session, EndReason.CLIENT_DELETE)
        answers = [(await wire.ask())[1] for _ in range(3)]
        counts = [state_of(answer) for answer in answers if "isError" not in answer["result"]]
        assert counts
        assert first[0] not in {nonce for nonce, _ in counts}


async def test_a_loss_of_state_is_told_with_a_known_head() -> None:
    """DESIGN 5.12: the short way tells of no loss, so it is not taken."""
    async with wired() as (proxy, wire):
        await wire.ask({"then": [{"exit": 0}]})
        await until(lambda: proxy.manager.registry.awake() == ())
        _, answer = await wire.ask()
        assert "state_lost" in json.dumps(answer)
        assert state_of((await wire.ask())[1])[1] == 1


async def test_a_draining_proxy_is_draining_for_known_heads_too() -> None:
    """DESIGN 7."""
    async with wired() as (proxy, wire):
        proxy.manager.draining = True
        assert (await wire.ask())[0] == 503


async def test_a_modern_head_never_reaches_a_session_of_the_protocol() -> None:
    """DESIGN 6: whatever id it carries, and whoever sent that head before."""
    async with wired() as (proxy, wire), connect(proxy.url) as client:
        nonce = (await client.do())["nonce"]
        headers: Mapping[str, str] = {"mcp-session-id": client.headers["mcp-session-id"]}
        more = [f"{name}: {value}" for name, value in headers.items()]
        for _ in range(3):
            await wire.stream.send(wire.message(call(), *more, path=PATH))
            status, body = await wire.answer()
            assert status == 200
            assert state_of(json.loads(body))[0] != nonce

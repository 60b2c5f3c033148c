"""FAULTS F47: connections that cost a client nothing must not cost the proxy much.

Deadlines are turned down, and what is awaited is the end of a connection. Neighbours:
`frontend.bounds` has the rules; `tests.frontend.test_fastlane` the short way that must keep them.
"""

import json
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import anyio
import pytest
from anyio.abc import SocketStream

from sessionproxy.frontend import fastlane
from sessionproxy.frontend.bounds import (
    FILES_OF_OUR_OWN,
    FILES_PER_BACKEND,
    REFUSALS_AT_ONCE,
    BoundedHttp,
    Bounds,
    Owing,
    Patience,
    connections_beside,
)
from sessionproxy.http import request as http_request
from tests.rig.embedded import SCRIPTED, scripted, until
from tests.rig.http import ACCEPT, PATIENCE, Json, request
from tests.rig.invariants import watched, watched_process
from tests.rig.limits import open_files
from tests.rig.recorded import Recorded

SHORT: Final = Bounds(head=0.3, body=0.3, linger=0.3, look=0.05)
LONG: Final = Bounds(head=1000, body=1000, linger=1000, look=0.05)

HOST: Final = b"host: localhost\r\n"
GET: Final = b"GET /healthz HTTP/1.1\r\n" + HOST
POST: Final = (
    b"POST /mcp HTTP/1.1\r\n" + HOST + b"content-type: application/json\r\n"
    b"accept: %b\r\n" % ACCEPT.encode()
)


@pytest.fixture
def patiences(monkeypatch: pytest.MonkeyPatch) -> list[Patience]:
    """What the servers of a test wait for: one for each, in the order of their start."""
    made: list[Patience] = []

    def make(bounds: Bounds) -> Patience:
        made.append(Patience(bounds))
        return made[-1]

    monkeypatch.setattr(fastlane, "Patience", make)
    return made


def bounded(monkeypatch: pytest.MonkeyPatch, bounds: Bounds) -> None:
    monkeypatch.setattr(BoundedHttp, "bounds", bounds)


@asynccontextmanager
async def connected(port: int) -> AsyncGenerator[SocketStream]:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        yield stream


async def rest(stream: SocketStream) -> bytes:
    """Return all that comes until the proxy closes the connection."""
    received = b""
    with anyio.fail_after(PATIENCE):
        try:
            async for chunk in stream:
                received += chunk
        except anyio.BrokenResourceError:  # it was cut off
            pass
    return received


async def drip(stream: SocketStream, data: bytes) -> None:
    """Send a byte every now and then, for as long as the proxy takes them."""
    try:
        for n in range(len(data)):
            await stream.send(data[n : n + 1])
            await anyio.sleep(0.02)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass


async def answered_while(stream: SocketStream, data: bytes) -> bytes:
    """Return all that comes while `data` drips in."""
    received: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drip, stream, data)
        received.append(await rest(stream))
        tasks.cancel_scope.cancel()
    return received[0]


async def served(stream: SocketStream, what: bytes = GET + b"\r\n") -> bytes:
    """Send a request and return its answer, which comes in one piece."""
    await stream.send(what)
    with anyio.fail_after(PATIENCE):
        return await stream.receive()


async def heard(stream: SocketStream, what: bytes, *, before: bytes = b"") -> bytes:
    """Return all that comes until `what` does, with what came `before`."""
    received = before
    with anyio.fail_after(PATIENCE):
        while what not in received:
            received += await stream.receive()
    return received


async def let_deadlines_pass(port: int) -> None:
    """Wait for as long as a connection is kept that says nothing."""
    async with connected(port) as silent:
        assert await rest(silent) == b""


# -- heads that do not end -------------------------------------------------------------------------

UNFINISHED: Final = {
    "a letter": b"G",
    "a line": b"GET /healthz HTTP/1.1\r\n",
    "all but the end": GET,
    "half a body's": POST + b"content-len",
}


@pytest.mark.parametrize("head", UNFINISHED)
async def test_a_head_that_does_not_end_gets_408(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F47: 10 s. The connection is closed."""
    bounded(monkeypatch, SHORT)
    async with watched() as watch, connected(watch.proxy.port) as stream:
        await stream.send(UNFINISHED[head])
        assert (await rest(stream)).startswith(b"HTTP/1.1 408 ")


async def test_a_head_that_comes_in_drips_has_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS F47: slowloris. Each byte shows that somebody is there, and is worth nothing."""
    bounded(monkeypatch, SHORT)
    async with watched() as watch, connected(watch.proxy.port) as stream:
        received = await answered_while(stream, GET + b"x-more: " + b"x" * 10_000)
        assert received.startswith(b"HTTP/1.1 408 ")


async def test_a_later_head_has_as_much_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS F47: from its own first byte on, however long the connection has been idle before."""
    bounded(monkeypatch, SHORT)
    async with watched() as watch, connected(watch.proxy.port) as stream:
        for _ in range(3):
            assert (await served(stream)).startswith(b"HTTP/1.1 200 ")
            await anyio.sleep(SHORT.head)
        await stream.send(GET[:-3])
        assert (await rest(stream)).startswith(b"HTTP/1.1 408 ")


async def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS F47: without a word, since nothing was asked."""
    bounded(monkeypatch, SHORT)
    async with watched() as watch, connected(watch.proxy.port) as stream:
        assert await rest(stream) == b""


@pytest.mark.parametrize("drips", [False, True])
@pytest.mark.parametrize("requests", [0, 1, 2])
async def test_blank_lines_buy_no_time(
    requests: int, drips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F47: they may come before a request (RFC 9112 section 2.2), but are not one.

    Neither on a new connection nor on one that was used, by the ordinary way or by the short one.
    """
    bounded(monkeypatch, SHORT)
    async with watched() as watch, watch.client("alice") as alice:
        async with connected(watch.proxy.port) as stream:
            for _ in range(requests):
                assert (await served(stream, ping(alice))).startswith(b"HTTP/1.1 200 ")
            await stream.send(b"\r\n")
            assert await answered_while(stream, b"\r\n" * 1000 if drips else b"") == b""


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("known", [False, True])
async def test_a_call_with_blank_lines_about_it_has_all_its_time(
    known: bool, behind: bool, monkeypatch: pytest.MonkeyPatch, patiences: list[Patience]
) -> None:
    """RFC 9112 section 2.2: they are to be ignored. The deadline is none of the answer's."""
    bounded(monkeypatch, SHORT)
    running = watched(bystander=False)
    async with running as watch, watch.client("alice") as alice, connected(watch.proxy.port) as s:
        await served(s, ping(alice) if known else GET + b"\r\n")
        if not behind:
            await s.send(b"\r\n")
            await until(lambda: patiences[0].waiting == 1)
        await s.send(asking(alice, "held", {"wait": "go"}))
        (session,) = watch.proxy.manager.registry.awake()
        await until(lambda: session.leases == 1)
        if behind:
            await s.send(b"\r\n")
        await let_deadlines_pass(watch.proxy.port)
        await alice.do({"release": "go"})
        await heard(s, b'"id":"held"')


async def test_who_finishes_in_time_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS F47: else the tests before this one could pass by refusing everybody."""
    bounded(monkeypatch, LONG)
    async with watched() as watch, connected(watch.proxy.port) as stream:
        for _ in range(3):
            head = GET + b"\r\n"
            await drip(stream, head[:-1])
            assert (await served(stream, head[-1:])).startswith(b"HTTP/1.1 200 ")


async def test_only_what_is_unfinished_is_waited_for(patiences: list[Patience]) -> None:
    """FAULTS F47: nothing is kept of what arrives whole, or is finished."""
    async with watched(bystander=False) as watch, watch.client("alice") as alice:
        (patience,) = patiences
        await alice.do()
        async with alice.listen(), connected(watch.proxy.port) as stream:
            await stream.send(GET)
            await until(lambda: patience.waiting == 1)
            await served(stream, b"\r\n")
            assert patience.waiting == 0


# -- heads without measure -------------------------------------------------------------------------

KIB: Final = 1024

TOO_LARGE: Final = {
    "one header": GET + b"x: " + b"y" * 64 * KIB + b"\r\n\r\n",
    "many headers": GET + b"".join(b"x-%d: %b\r\n" % (n, b"y" * 64) for n in range(1000)) + b"\r\n",
    "a long path": b"GET /" + b"x" * 64 * KIB + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "no end in sight": GET + b"x: " + b"y" * 40 * KIB * KIB,
    "a body as well": POST + b"x: " + b"y" * 64 * KIB + b"\r\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("head", TOO_LARGE)
async def test_a_head_without_measure_gets_431(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS F47: 64 KiB. What follows is not parsed, and the connection is closed."""
    bounded(monkeypatch, LONG)
    async with watched() as watch, connected(watch.proxy.port) as stream:

        async def send() -> None:
            try:
                await stream.send(TOO_LARGE[head])
                await stream.send_eof()
            except anyio.BrokenResourceError:
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            received = (await rest(stream)).split(b"\r\n")
            assert received[0].startswith(b"HTTP/1.1 431 ")
            assert len([line for line in received if line.startswith(b"HTTP/1.1")]) == 1


async def test_a_head_below_the_limit_is_served() -> None:
    """FAULTS F47: also where a read has far more in it than one head."""
    async with watched() as watch, connected(watch.proxy.port) as stream:
        large = GET + b"x: " + b"y" * 60 * KIB + b"\r\n\r\n"
        assert (await served(stream, large)).startswith(b"HTTP/1.1 200 ")
        await stream.send(large * 5 + GET + b"connection: close\r\n\r\n")
        assert (await rest(stream)).count(b"HTTP/1.1 200 ") == 6


async def test_a_large_head_behind_a_call_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS F47: there is no room for an answer before that of the call, so it is just closed.

    The call goes on: a lost connection is no cancellation (DESIGN 5.9).
    """
    bounded(monkeypatch, LONG)
    slow = scripted(on={"ping": [{"wait": "go"}]})
    async with watched(slow, bystander=False) as watch, watch.client("alice") as alice:
        async with connected(watch.proxy.port) as stream:
            await stream.send(ping(alice) + GET + b"x: ")
            (session,) = watch.proxy.manager.registry.awake()
            await until(lambda: session.leases == 1)
            await stream.send(b"y" * 64 * KIB)
            await until_cut_off(stream)
        assert session.leases == 1
        await alice.do({"release": "go"})
        await until(lambda: session.leases == 0)


def ping(client: Recorded, *, length: int | None = None) -> bytes:
    """A request of a session as bytes; `length`: what is said of its body's."""
    return post(client, request("ping"), length=length)


def asking(client: Recorded, name: str, *steps: Json, pad: int = 0) -> bytes:
    """A request whose answer comes after `steps`, with `name` for its id; `pad`: bytes more."""
    params = {"pad": "x" * pad, "_meta": {"steps": steps}}
    return post(client, {**request("ping", params), "id": name})


def post(client: Recorded, message: Json, *, length: int | None = None) -> bytes:
    """A message of a session as bytes, always with the same head but for the length."""
    body = json.dumps(message).encode()
    size = len(body) if length is None else length
    lines = [f"{name}: {value}\r\n".encode() for name, value in client.headers.items()]
    head = b"POST /mcp HTTP/1.1\r\n" + HOST + b"".join(lines)
    return b"%bcontent-length: %d\r\n\r\n%b" % (head, size, body)


# -- bodies that do not end ------------------------------------------------------------------------


@pytest.mark.parametrize("drips", [False, True])
@pytest.mark.parametrize("known", [False, True])
async def test_a_body_that_does_not_end_gets_408(
    drips: bool, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F47: 30 s, also where its head is known, and it goes the short way."""
    bounded(monkeypatch, SHORT)
    async with watched() as watch, watch.client("alice") as alice:
        async with connected(watch.proxy.port) as stream:
            for _ in range(2 if known else 0):
                assert (await served(stream, ping(alice))).startswith(b"HTTP/1.1 200 ")
            await stream.send(ping(alice, length=5000))
            data = b" " * 4000 if drips else b""
            assert (await answered_while(stream, data)).startswith(b"HTTP/1.1 408 ")
        assert (await alice.do())["count"] == 1


async def test_a_chunked_body_that_does_not_end_gets_408(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS F47."""
    bounded(monkeypatch, SHORT)
    async with watched() as watch, connected(watch.proxy.port) as stream:
        await stream.send(POST + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n")
        received = await answered_while(stream, b"1\r\n \r\n" * 1000)
        assert received.startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_goes_on_after_its_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F47: where the head decides, an answer does not wait for the body, which ends too."""
    bounded(monkeypatch, SHORT)
    async with watched() as watch, connected(watch.proxy.port) as stream:
        head = b"POST /nowhere HTTP/1.1\r\n" + HOST + b"content-length: 100000\r\n\r\n"
        assert (await served(stream, head)).startswith(b"HTTP/1.1 404 ")
        assert await answered_while(stream, b"x" * 10_000) == b""


@pytest.mark.parametrize("known", [False, True])
async def test_a_body_that_the_proxy_does_not_read_is_not_late(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F47, I3: behind a call, more than `ahead` is not read. That is not the client's doing,
    and the call before it has its answer, and so has this one."""
    bounded(monkeypatch, SHORT)
    async with watched(bystander=False) as watch, watch.client("alice") as alice:
        async with connected(watch.proxy.port) as stream, anyio.create_task_group() as tasks:
            await served(stream, ping(alice) if known else GET + b"\r\n")
            steps: list[Json] = [{"wait": "one"}, {"log": ""}, {"wait": "two"}]
            await stream.send(asking(alice, "first", *steps))
            (session,) = watch.proxy.manager.registry.awake()
            await until(lambda: session.leases == 1)
            large = asking(alice, "second", pad=1024 * KIB)
            tasks.start_soon(stream.send, large)
            await alice.do({"release": "one"})
            received = await heard(stream, b"notifications/message")
            await let_deadlines_pass(watch.proxy.port)
            await alice.do({"release": "two"})
            received = await heard(stream, b'"id":"first"', before=received)
            await heard(stream, b'"id":"second"', before=received)


async def test_a_body_that_is_read_on_has_all_its_time_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F47: what it had left may be much too little; while nobody reads, nobody waits."""
    bounded(monkeypatch, LONG)
    waits: defaultdict[Owing, list[float]] = defaultdict(list)
    """Of each connection; 0: it is not waited for."""
    expect, forget = Patience.expect, Patience.forget

    def expected(self: Patience, connection: Owing, seconds: float) -> None:
        waits[connection].append(seconds)
        expect(self, connection, seconds)

    def forgot(self: Patience, connection: Owing) -> None:
        waits[connection].append(0)
        forget(self, connection)

    async with watched(bystander=False) as watch, watch.client("alice") as alice:
        async with connected(watch.proxy.port) as stream, anyio.create_task_group() as tasks:
            await stream.send(asking(alice, "first", {"wait": "go"}))
            (session,) = watch.proxy.manager.registry.awake()
            await until(lambda: session.leases == 1)
            monkeypatch.setattr(Patience, "expect", expected)
            monkeypatch.setattr(Patience, "forget", forgot)
            read_on = anyio.Event()

            async def send() -> None:
                large = asking(alice, "second", pad=1024 * KIB)
                await stream.send(large[:-1])
                await read_on.wait()
                await stream.send(large[-1:])

            tasks.start_soon(send)
            await until(lambda: [LONG.body, 0] in waits.values())
            (seen,) = waits.values()
            await alice.do({"release": "go"})
            await until(lambda: seen == [LONG.body, 0, LONG.body])
            read_on.set()
            await heard(stream, b'"id":"second"')
            assert seen == [LONG.body, 0, LONG.body, 0]


async def test_a_body_that_is_read_on_and_does_not_end_gets_408(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F47: also where nothing more comes of it at all."""
    bounded(monkeypatch, SHORT)
    async with watched(bystander=False) as watch, watch.client("alice") as alice:
        async with connected(watch.proxy.port) as stream:
            await stream.send(asking(alice, "first", {"wait": "go"}))
            (session,) = watch.proxy.manager.registry.awake()
            await until(lambda: session.leases == 1)
            await stream.send(asking(alice, "second", pad=1024 * KIB)[: 100 * KIB])
            await let_deadlines_pass(watch.proxy.port)
            await alice.do({"release": "go"})
            assert (await heard(stream, b'"id":"first"')).startswith(b"HTTP/1.1 200 ")
            assert b"HTTP/1.1 408 " in await rest(stream)


STALL: Final = 2.0


@pytest.mark.parametrize("known", [False, True])
async def test_a_body_is_not_late_because_nothing_ran(
    known: bool, monkeypatch: pytest.MonkeyPatch, patiences: list[Patience]
) -> None:
    """FAULTS F42, F43: by neither of the two deadlines, the server's and the endpoint's."""
    bounded(monkeypatch, Bounds(body=0.75 * STALL, look=0.05))
    monkeypatch.setattr(http_request, "BODY_DEADLINE", 0.75 * STALL)
    async with watched(bystander=False) as watch, watch.client("alice") as alice:
        async with connected(watch.proxy.port) as stream:
            await served(stream, ping(alice) if known else GET + b"\r\n")
            whole = ping(alice)
            await stream.send(whole[:-1])
            await until(lambda: patiences[0].waiting == 1)
            await anyio.wait_all_tasks_blocked()  # the endpoint waits for the rest, too
            stand_still(STALL)
            await anyio.sleep(0.05)  # a deadline that was met has its turn
            assert (await served(stream, whole[-1:])).startswith(b"HTTP/1.1 200 ")


def stand_still(seconds: float) -> None:
    """Keep the event loop from running."""
    time.sleep(seconds)


async def test_a_body_that_ends_after_its_answer_buys_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F47: the connection is idle then, though something came after it had become so."""
    bounded(monkeypatch, SHORT)
    async with watched() as watch, connected(watch.proxy.port) as stream:
        head = b"POST /nowhere HTTP/1.1\r\n" + HOST + b"content-length: 2\r\n\r\n"
        assert (await served(stream, head)).startswith(b"HTTP/1.1 404 ")
        await stream.send(b"{}")
        assert await rest(stream) == b""


async def test_a_refused_client_can_read_why_while_it_still_sends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F47: closed at once, its kernel would throw the answer away (RFC 9112 section 9.6)."""
    bounded(monkeypatch, Bounds(linger=1000, look=0.05))
    async with watched() as watch, connected(watch.proxy.port) as stream:
        await stream.send(GET + b"x: " + b"y" * 1024 * KIB)
        for _ in range(20):
            await stream.send(b"y" * 64 * KIB)
        with anyio.fail_after(PATIENCE):
            assert (await stream.receive()).startswith(b"HTTP/1.1 431 ")


async def test_a_refused_client_is_not_listened_to_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F47: `linger`."""
    bounded(monkeypatch, SHORT)
    async with watched() as watch, connected(watch.proxy.port) as stream:
        await stream.send(GET)
        await until_cut_off(stream)


async def until_cut_off(stream: SocketStream) -> None:
    """Go on sending until the other end takes no more."""
    with anyio.fail_after(PATIENCE):
        try:
            while True:
                await stream.send(b"y" * 64)
                await anyio.sleep(0.01)
        except anyio.BrokenResourceError:
            pass


# -- connections without number --------------------------------------------------------------------


async def test_connections_above_the_limit_get_503(patiences: list[Patience]) -> None:
    """FAULTS F47: `limit_concurrency`. Those within it do not notice."""
    async with watched(max_connections=10) as watch, AsyncExitStack() as held:
        async with watch.client("alice") as alice:
            for _ in range(8):  # and one of the bystander's, and one of alice's
                await held.enter_async_context(connected(watch.proxy.port))
            await until(lambda: patiences[0].waiting == 8)
            async with connected(watch.proxy.port) as stream:
                await stream.send(GET + b"\r\n")
                received = await rest(stream)
            assert received.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: " in received
            assert (await alice.do())["count"] == 1
            assert watch.proxy.app.tally["connections"] == 1
            await held.aclose()
            await until(lambda: patiences[0].waiting == 0)
            async with connected(watch.proxy.port) as stream:
                assert (await served(stream)).startswith(b"HTTP/1.1 200 ")


async def test_far_above_the_limit_a_connection_is_closed_unheard() -> None:
    """FAULTS F47: refusing takes a descriptor for a moment, too."""
    async with watched(max_connections=10) as watch, AsyncExitStack() as held:
        streams = [
            await held.enter_async_context(connected(watch.proxy.port))
            for _ in range(9 + REFUSALS_AT_ONCE)
        ]
        await until(lambda: watch.proxy.app.tally["connections"] == REFUSALS_AT_ONCE)
        async with connected(watch.proxy.port) as stream:
            assert await rest(stream) == b""
        await streams[-1].send(GET + b"\r\n")
        assert (await rest(streams[-1])).startswith(b"HTTP/1.1 503 ")


def test_the_limit_leaves_room_for_the_backends() -> None:
    """FAULTS F47: idle connections must not use up what backends need; and never all is taken."""
    for backends in (1, 8, 64):
        left = 1024 - connections_beside(backends, open_files=1024)
        assert left >= backends * FILES_PER_BACKEND + FILES_OF_OUR_OWN + REFUSALS_AT_ONCE
    assert connections_beside(1000, open_files=1024) == 256


async def test_a_crowd_of_idle_connections_does_not_keep_backends_from_starting() -> None:
    """FAULTS F47: they may not use up the descriptors."""
    limited = ("prlimit", "--nofile=256", "--")
    running = watched_process(SCRIPTED, "--max-sessions", "8", prefix=limited)
    async with running as watch, AsyncExitStack() as held:
        async with watch.client("alice", opens=False) as alice:
            assert (await alice.http.get(f"{watch.proxy.base}/healthz")).status_code == 200
            for _ in range(400):
                await held.enter_async_context(connected(watch.proxy.port))
            await until(lambda: open_files(watch.proxy.process.pid) > 100)
            assert (await alice.initialize()).status_code == 200
            assert (await alice.do())["count"] == 1
            await held.aclose()

"""What clients and networks do: F26, F29, F30, F32, F37 to F39, F44 to F48."""

import secrets
import socket
import struct
from dataclasses import replace

import anyio
import httpx2

from sessionproxy.core.binding import KEY_SIZE, SessionIds
from sessionproxy.http.auth import ISSUER, owner_of
from tests.rig.http import Json, http
from tests.rig.invariants import forged
from tests.rig.peers import connected, head, posted, stalled, trickling
from tests.rig.recorded import Recorded
from tests.rig.shim import Line, shimmed

from .arena import Arena
from .callers import Answer, AnyCaller, Caller, expect
from .kinds import either, handshake, in_time

PING: bytes = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'

HERE: float = 0.3
"""Seconds in which a request has reached its backend, or has not: both must be good."""

REAPED: float = 1.5
"""Seconds after a limit by which its backend is being stopped."""


@handshake
async def hangs_up_in_a_call(arena: Arena, victim: Caller) -> None:
    """F26: the call goes on."""
    nonce = await victim.serves()
    with anyio.move_on_after(HERE):
        await victim.call({"sleep": 2 * HERE})
    await victim.same(nonce)


@handshake
async def resets_in_a_call(arena: Arena, victim: Caller) -> None:
    nonce = await victim.serves()
    _, message = victim.by_hand({"sleep": 2 * HERE}, {"progress": 5})
    with connected(arena.port) as sock:
        sock.sendall(posted(victim.client, message))
        await anyio.sleep(HERE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await victim.same(nonce)


@handshake
async def does_not_read_its_stream(arena: Arena, victim: Caller) -> None:
    """F29: calls of the session are answered all the same."""
    nonce = await victim.serves()
    update: Json = {
        "note": {"method": "notifications/resources/updated", "params": {"uri": "x" * 500}}
    }
    with stalled(arena.port, head(victim.client, "GET")):
        answer = await victim.call({"repeat": {"times": 4000, "steps": [update]}})
        expect(answer.ok, f"expected an answer, got {answer}")
        await victim.same(nonce)


@handshake
async def does_not_read_its_answer(arena: Arena, victim: Caller) -> None:
    """F30: the stream of one call fills up; others of the session do not wait for it."""
    nonce = await victim.serves()
    _, message = victim.by_hand({"flood": 4 << 20})
    with stalled(arena.port, posted(victim.client, message)):
        await anyio.sleep(HERE)
        await victim.same(nonce)


@handshake
async def is_half_open_for_a_while(arena: Arena, victim: Caller) -> None:
    """F28, with an end: nothing passes, then everything does."""
    await _through_a_bad_line(arena, victim, "stall")


@handshake
async def is_reset_on_the_way(arena: Arena, victim: Caller) -> None:
    await _through_a_bad_line(arena, victim, "reset")


@handshake
async def is_cut_off_on_the_way(arena: Arena, victim: Caller) -> None:
    await _through_a_bad_line(arena, victim, "cut")


async def _through_a_bad_line(arena: Arena, victim: Caller, what: str) -> None:
    nonce = await victim.serves()
    async with shimmed(arena.port) as shim, http() as pool, anyio.create_task_group() as tasks:
        client = _by_another_way(victim, pool, shim.url())

        async def call() -> None:
            with anyio.move_on_after(6 * HERE):
                try:
                    await client.do({"sleep": HERE}, {"progress": 3}, name=victim.tool)
                except httpx2.TransportError:
                    pass

        tasks.start_soon(call)
        await anyio.sleep(HERE)
        if what == "stall":
            shim.stall()
            await anyio.sleep(2 * HERE)
            shim.resume()
        else:
            await (shim.reset() if what == "reset" else shim.cut())
    await victim.same(nonce)


def _by_another_way(victim: Caller, pool: httpx2.AsyncClient, url: str) -> Recorded:
    client = victim.client.also()
    client.http, client.url = pool, url
    return client


@handshake
async def has_a_slow_line(arena: Arena, victim: Caller) -> None:
    nonce = await victim.serves()
    slow = Line(latency=0.002, piece=64)
    async with shimmed(arena.port, slow, up=slow) as shim, http() as pool:
        client = _by_another_way(victim, pool, shim.url())
        found = await client.do({"progress": 3}, echo=nonce, name=victim.tool)
    expect(found["nonce"] == nonce, f"another backend answers: {found}")
    await victim.same(nonce)


@handshake
async def uses_one_id_for_all(arena: Arena, victim: Caller) -> None:
    """F32: every POST gets its own answer (which `Caller` checks)."""
    nonce = await victim.serves()
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(lambda: victim.call({"sleep": 0.1}, number="_GET_stream"))
    await victim.same(nonce)


@handshake
async def cancels(arena: Arena, victim: Caller) -> None:
    """F33: the backend is told, its late answer dropped."""
    nonce = await victim.serves()
    answers: list[Answer] = []

    async def call() -> None:
        answers.append(await victim.call({"until_cancelled": None}, number="to be cancelled"))

    due = anyio.current_time() + HERE
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.sleep_until(due)
        await victim.client.notify("notifications/cancelled", {"requestId": "to be cancelled"})
    took = anyio.current_time() - due
    error: Json = answers[0].message.get("error") or {}
    expect(error.get("code") == -32800, f"expected that it was cancelled, got {answers[0]}")
    in_time(arena, replace(answers[0], took=took), 0.1, "a cancellation")
    await victim.same(nonce)


@handshake
async def deletes_in_a_call(arena: Arena, victim: Caller) -> None:
    """F44: the call gets an error."""
    await victim.serves()
    answers: list[Answer] = []

    async def call() -> None:
        answers.append(await victim.call({"sleep": 600}, patiently=False))

    due = anyio.current_time() + HERE
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.sleep_until(due)
        status = (await victim.client.delete()).status_code
        expect(status in (200, 204), f"DELETE got {status}")
    took = anyio.current_time() - due
    expect("error" in answers[0].message, f"expected an error, got {answers[0]}")
    in_time(arena, replace(answers[0], took=took), 0.1, "the end of its session")
    victim.client.id = ""


@handshake
async def deletes_twice(arena: Arena, victim: Caller) -> None:
    """F44."""
    await victim.serves()
    first, second = await victim.client.delete(), await victim.client.delete()
    expect(first.status_code in (200, 204), f"DELETE got {first.status_code}")
    expect(second.status_code == 404, f"the second DELETE got {second.status_code}")
    victim.client.id = ""


@handshake
async def uses_ids_that_are_not_its_own(arena: Arena, victim: Caller) -> None:
    """F37, F44, I7: forged, of another owner, of another server, never issued: one answer."""
    nonce = await victim.serves()
    key = (arena.state_dir / "key").read_bytes()
    owner, other = (owner_of(ISSUER, name) for name in (victim.name, "somebody"))
    ids = [
        forged(victim.client.id),
        SessionIds(key).mint("default", owner),
        SessionIds(key).mint("default", other),
        SessionIds(secrets.token_bytes(KEY_SIZE)).mint("default", owner),
        "x" * len(victim.client.id),
    ]
    answers: set[tuple[int, bytes]] = set()
    if others := arena.tokens.others(victim.name):
        for method in ("POST", "DELETE"):
            response = await victim.client.also(**others).send(method, PING)
            expect(response.status_code == 404, f"another owner got {response.status_code}")
            victim.client.history.foreign.append(response.status_code)
    for id in ids:
        for method, body in (
            ("POST", PING),
            ("DELETE", b""),
        ):
            response = await victim.client.send(method, body, mcp_session_id=id)
            victim.client.history.foreign.append(response.status_code)
            answers.add((response.status_code, response.content))
    expect(len(answers) == 1, f"ids can be told apart by {answers}")
    await victim.same(nonce)


@handshake
async def sends_too_much(arena: Arena, victim: Caller) -> None:
    """F48: refused by its head, before it is read."""
    nonce = await victim.serves()
    await _is_refused(arena, head(victim.client, length=arena.setting.max_body + 1), b"413")
    encoded = head(victim.client, length=2, content_encoding="gzip")
    await _is_refused(arena, encoded + b"{}", b"415")
    await victim.same(nonce)


async def _is_refused(arena: Arena, sent: bytes, status: bytes) -> None:
    async with await anyio.connect_tcp("127.0.0.1", arena.port) as stream:
        await stream.send(sent)
        with anyio.fail_after(10):
            answer = await stream.receive()
    expect(answer.split(b" ")[1] == status, f"expected {status!r}, got {answer[:100]!r}")


@handshake
async def sends_what_is_no_message(arena: Arena, victim: Caller) -> None:
    """F11."""
    nonce = await victim.serves()
    for body in (
        b"{",
        b"",
        b"\xff",
        b'{"jsonrpc":"2.0","id":null,"method":"ping"}',
        b"[" * 10**5,
        b"1",
    ):
        response = await victim.client.send("POST", body)
        expect(response.status_code == 400, f"{body[:40]!r} got {response.status_code}")
    response = await victim.client.send("POST", b"{}", content_type="text/plain")
    expect(response.status_code == 415, f"text/plain got {response.status_code}")
    await victim.same(nonce)


@handshake
async def sends_byte_after_byte(arena: Arena, victim: Caller) -> None:
    """F47: others do not wait for it."""
    nonce = await victim.serves()
    async with trickling(arena.port, head(victim.client, length=1000), every=0.02):
        for _ in range(3):
            await victim.same(nonce)


@handshake
async def leaves_before_its_session_is_open(arena: Arena, victim: Caller) -> None:
    """F39."""
    victim.client.history.sent(f"{victim.name}/never", "initialize").left = True
    params: Json = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {}}
    message: Json = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    stranger = victim.client.also()
    stranger.id = ""
    with connected(arena.port) as sock:
        sock.sendall(posted(stranger, message))
        await anyio.sleep(0.02)


@handshake
async def storms(arena: Arena, victim: Caller) -> None:
    """F38: more openings at once than there are places; each gets a session, or 503."""
    statuses: list[int] = []
    history, names = arena.record.history, f"{victim.name}/storm-{secrets.token_hex(3)}"

    async def come(pool: httpx2.AsyncClient, number: int) -> None:
        headers = arena.tokens.headers(victim.name)
        label = f"{names}-{number}"
        client = Recorded(pool, arena.url, headers=headers, history=history, label=label)
        response = await client.initialize()
        statuses.append(response.status_code)
        if response.status_code == 503:
            expect("retry-after" in response.headers, "503 without Retry-After")
        if client.id:
            await client.delete()

    async with http() as pool, anyio.create_task_group() as tasks:
        for number in range(2 * arena.setting.spare):
            tasks.start_soon(come, pool, number)
    expect(set(statuses) <= {200, 503}, f"openings got {set(statuses)}")


@either
async def idles(arena: Arena, victim: AnyCaller) -> None:
    nonce = await victim.serves()
    await anyio.sleep(arena.setting.idle + REAPED)
    await victim.is_told(nonce)


@handshake
async def disconnects(arena: Arena, victim: Caller) -> None:
    """DESIGN 7: its stream closes, and nothing more comes for `linger`."""
    nonce = await victim.serves()
    async with victim.client.listen():
        pass
    await anyio.sleep(arena.setting.linger + REAPED)
    await victim.is_told(nonce)


@handshake
async def vanishes(arena: Arena, victim: Caller) -> None:
    """It forgets its session, and opens another."""
    await victim.serves()
    victim.client.id = ""

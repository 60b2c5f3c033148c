"""What backends do: F03 to F20, F33 to F35."""

import os
import signal

import anyio

from sessionproxy.backends.stdio import MUTE_GRACE
from tests.rig.http import Json

from .arena import Arena
from .callers import AnyCaller, Caller, Unexpected, expect
from .kinds import either, handshake, in_time

DEAD: float = 0.25
"""Seconds after which a call is told that its backend has died (F06)."""

BIG: int = 3 << 20
"""Bytes of a line that is too long, and of a flood."""


async def _dies(
    arena: Arena, victim: AnyCaller, *steps: Json, within: float = DEAD, **found: object
) -> None:
    """A call must be told what it died of, and the next one that its state is lost."""
    nonce = await victim.serves()
    answer = await victim.call(*steps)
    fault = answer.fault
    expect(fault.get("kind") == "backend_gone", f"expected the end of its backend, got {answer}")
    expect(fault.get("outcome") == "unknown", f"told the wrong outcome: {answer}")
    expect(found.items() <= fault.items(), f"expected {found} of it, got {answer}")
    in_time(arena, answer, within, "its death")
    await victim.is_told(nonce)


@either
async def exits_in_a_call(arena: Arena, victim: AnyCaller) -> None:
    await _dies(arena, victim, {"exit": 7}, exitCode=7)


@either
async def exits_politely_in_a_call(arena: Arena, victim: AnyCaller) -> None:
    await _dies(arena, victim, {"exit": 0}, exitCode=0)


@either
async def segfaults(arena: Arena, victim: AnyCaller) -> None:
    await _dies(arena, victim, {"kill": "SIGSEGV"}, signal="SIGSEGV")


@either
async def is_killed(arena: Arena, victim: AnyCaller) -> None:
    """From outside, while it is idle (F07)."""
    nonce = await victim.serves()
    answer = await victim.call({"tells": "about"})
    expect(answer.ok, f"expected an answer, got {answer}")
    os.kill(await arena.host_pid(answer.facts["about"]["env"]["TMPDIR"]), signal.SIGKILL)
    await anyio.sleep(arena.setting.bound(0.1))
    await victim.is_told(nonce)


@either
async def exits_while_idle(arena: Arena, victim: AnyCaller) -> None:
    """F07: noticed at once, not replaced before there is a call."""
    nonce = await victim.serves()
    await victim.call({"then": [{"exit": 0}]})
    await anyio.sleep(arena.setting.bound(0.1))
    await victim.is_told(nonce)


@either
async def hangs(arena: Arena, victim: AnyCaller) -> None:
    """F08: cancelled at the limit; the backend's late answer is dropped, and it serves on."""
    nonce = await victim.serves()
    answer = await victim.call({"until_cancelled": None})
    expect(answer.fault.get("kind") == "backend_silent", f"expected the limit, got {answer}")
    in_time(arena, answer, arena.setting.call_timeout + 0.1, "the call limit")
    await victim.same(nonce)


@either
async def hangs_again_and_again(arena: Arena, victim: AnyCaller) -> None:
    """F08: three in a row, and it is stopped."""
    nonce = await victim.serves()
    for _ in range(3):
        answer = await victim.call({"until_cancelled": None}, {"replies": {}})
        expect(answer.fault.get("kind") == "backend_silent", f"expected the limit, got {answer}")
    await victim.is_told(nonce)


@either
async def is_stopped_by_a_signal(arena: Arena, victim: AnyCaller) -> None:
    """F09: as one that hangs; it heeds nothing but SIGKILL. A call that its client has left behind
    before may be one of the three."""
    nonce = await victim.serves()
    for steps in (({"kill": "SIGSTOP"},), (), ()):
        answer = await victim.call(*steps)
        if steps == () and answer.fault.get("kind") == "state_lost":
            expect(await victim.serves() != nonce, "the lost backend has answered")
            return
        expect(answer.fault.get("kind") == "backend_silent", f"expected the limit, got {answer}")
    await anyio.sleep(arena.setting.ladder)
    await victim.is_told(nonce)


@either
async def does_not_read(arena: Arena, victim: AnyCaller) -> None:
    """F16: calls pile up in front of it; they are refused or end at the limit."""
    nonce = await victim.serves()
    await victim.call({"kill": "SIGSTOP"})
    ends: list[str] = []

    async def call() -> None:
        answer = await victim.call({"sleep": 0}, {"log": "x" * 300_000}, patiently=False)
        ends.append(answer.fault.get("kind") or f"{answer}")

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(call)
    known = {"backend_silent", "backend_busy", "backend_gone", "state_lost"}
    expect(set(ends) <= known, f"calls to one that does not read ended as {set(ends) - known}")
    await anyio.sleep(arena.setting.ladder)
    expect(await victim.serves() != nonce, "it was not replaced")


@either
async def writes_garbage(arena: Arena, victim: AnyCaller) -> None:
    """F10, F11: dropped; the pipe survives."""
    lines = (
        "Welcome!",
        "",
        "[1,2",
        '{"id":null}',
        "\xff\xfe\x00",
        '{"jsonrpc":"1.0","id":1}',
        "[]",
    )
    nonce = await victim.serves()
    answer = await victim.call({"raw": "\n".join((*lines, ""))})
    expect(answer.ok, f"expected an answer, got {answer}")
    await victim.same(nonce)


@either
async def writes_hardly_anything_but_garbage(arena: Arena, victim: AnyCaller) -> None:
    """F10: more than 1,000 lines in 10 s, and it is killed."""
    nonce = await victim.serves()
    answer = await victim.call({"raw": "no message\n" * 1500}, {"until_cancelled": None})
    expect(answer.fault.get("kind") == "backend_gone", f"expected its end, got {answer}")
    await victim.is_told(nonce)


@either
async def writes_a_line_that_is_too_long(arena: Arena, victim: AnyCaller) -> None:
    """F13: its call fails alone."""
    nonce = await victim.serves()
    answer = await victim.call({"fill": BIG})
    expect(answer.fault.get("kind") == "result_too_large", f"expected the limit, got {answer}")
    await victim.same(nonce)


@either
async def writes_half_a_line_and_exits(arena: Arena, victim: AnyCaller) -> None:
    """F12."""
    await _dies(arena, victim, {"raw": '{"jsonrpc":"2.0","id":'}, {"exit": 3}, exitCode=3)


@either
async def writes_a_line_in_two_halves(arena: Arena, victim: AnyCaller) -> None:
    """F12: what comes late is the same line."""
    nonce = await victim.serves()
    halves = ({"raw": '{"jsonrpc":"2.0","method":'}, {"sleep": 0.3}, {"raw": '"x/y"}\n'})
    answer = await victim.call(*halves)
    expect(answer.ok, f"expected an answer, got {answer}")
    await victim.same(nonce)


@either
async def floods_stderr(arena: Arena, victim: AnyCaller) -> None:
    """F15."""
    nonce = await victim.serves()
    answer = await victim.call({"noise": 2 * BIG})
    expect(answer.ok, f"expected an answer, got {answer}")
    await victim.same(nonce)


@either
async def reports_a_thousand_times(arena: Arena, victim: AnyCaller) -> None:
    """F34 too: an unknown token, and progress after the answer."""
    nonce = await victim.serves()
    late: Json = {"then": [{"progress": 3}]}
    unknown: Json = {"progress": {"progressToken": 10**9, "progress": 1}}
    answer = await victim.call({"progress": 1000}, unknown, late)
    expect(answer.ok, f"expected an answer, got {answer}")
    await victim.same(nonce)


@either
async def answers_twice_and_to_nobody(arena: Arena, victim: AnyCaller) -> None:
    """F33."""
    nonce = await victim.serves()
    stray = '{"jsonrpc":"2.0","id":%d,"result":{"content":[]}}\n'
    answer = await victim.call({"raw": stray % 10**9 + stray % 1}, {"again": 2})
    expect(answer.ok, f"expected an answer, got {answer}")
    await victim.same(nonce)


@either
async def asks_and_takes_it_back(arena: Arena, victim: AnyCaller) -> None:
    """F35."""
    nonce = await victim.serves()
    answer = await victim.call({"ask": [{"method": "roots/list", "cancel": {"reason": "no"}}] * 5})
    expect(answer.ok, f"expected an answer, got {answer}")
    await victim.same(nonce)


@either
async def closes_its_stdout(arena: Arena, victim: AnyCaller) -> None:
    """It gets a moment to exit, so that its status is known."""
    await _dies(arena, victim, {"close": "stdout"}, within=DEAD + MUTE_GRACE)


@either
async def closes_its_stdin(arena: Arena, victim: AnyCaller) -> None:
    """It reads what was sent before, at most, and is gone when it finds out."""
    nonce = await victim.serves()
    await victim.call({"close": "stdin"})
    for _ in range(4):
        if await victim.serves() != nonce:
            return
    raise Unexpected("it serves on, with its stdin closed")


@either
async def leaves_children(arena: Arena, victim: AnyCaller) -> None:
    """F19, F20: whoever looks for strays finds none."""
    nonce = await victim.serves()
    kinds: list[list[str]] = [["holds"], ["session"], ["stubborn"], ["session", "stubborn"]]
    answer = await victim.call(*({"spawn": kind} for kind in kinds))
    expect(answer.ok, f"expected an answer, got {answer}")
    answer = await victim.call({"exit": 1})
    expect(answer.fault.get("exitCode") == 1, f"expected its exit status, got {answer}")
    await victim.is_told(nonce)


@either
async def leaves_children_at_the_end_of_its_session(arena: Arena, victim: AnyCaller) -> None:
    await victim.serves()
    answer = await victim.call({"spawn": ["holds"]}, {"spawn": ["session"]})
    expect(answer.ok, f"expected an answer, got {answer}")
    await victim.ends()


@handshake
async def dies_before_it_answers_initialize(arena: Arena, victim: Caller) -> None:
    """F03: no session."""
    await _does_not_start(arena, victim, {"exit": 9}, "exit status 9")


@handshake
async def never_answers_initialize(arena: Arena, victim: Caller) -> None:
    """F05."""
    await _does_not_start(arena, victim, {"sleep": 600}, "did not answer initialize")


async def _does_not_start(arena: Arena, victim: Caller, step: Json, said: str) -> None:
    await victim.ends()
    response = await victim.client.initialize(_meta={"steps": [step]})
    if response.status_code == 503:
        return  # no place, or the route rests
    if arena.setting.servers:  # the session is there all the same
        answer = await victim.call(patiently=False)
        text = str(answer)
        expect(said in text or "try again in" in text, f"expected {said!r}, got {text}")
        await victim.ends()
        return
    id, victim.client.id = victim.client.id, ""
    expect(said in response.text, f"expected {said!r}, got {response.text[:300]}")
    if id:  # named before it was known: the answer had become a stream
        answer = await victim.client.post(
            b'{"jsonrpc":"2.0","id":1,"method":"ping"}', mcp_session_id=id
        )
        expect(answer.status_code == 404, f"a session that did not start gives {answer.text}")

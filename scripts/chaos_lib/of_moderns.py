"""What clients of 2026-07-28 do: F26, F27, F29, F35, and what may happen to a question on its way.

Neighbours: `of_clients` has what those of the handshake era do; `of_backends` is for both.
"""

import signal
from collections.abc import Sequence

import anyio

from tests.rig.history import TOKEN
from tests.rig.http import Json, http
from tests.rig.modern import PREFIX, Modern, on_the_wire
from tests.rig.peers import connected
from tests.rig.recorded_modern import FORM, retry

from .arena import Arena
from .callers import Answer, AnyCaller, expect
from .kinds import either, modern
from .moderns import URI, ModernCaller
from .of_clients import HERE

ASKS: Json = {"ask": FORM}

UPDATED: Json = {"note": {"method": "notifications/resources/updated", "params": {"uri": URI}}}


def facts_of(message: Json) -> Json:
    result: Json = message.get("result") or {}
    expect(result.get("structuredContent"), f"expected an answer, got {str(message)[:300]}")
    return result["structuredContent"]


@modern
async def is_asked_again_and_again(arena: Arena, victim: ModernCaller) -> None:
    """DESIGN 9: several questions in one round, and another round."""
    nonce = await victim.serves()
    answer = await victim.call({"ask": [FORM, {"method": "roots/list"}]}, ASKS)
    expect(answer.ok, f"expected an answer, got {answer}")
    asked = answer.facts["answers"]
    expect(len(asked) == 3 and all("result" in one for one in asked), f"it was told {asked}")
    await victim.same(nonce)


@modern
async def tampers_with_its_state(arena: Arena, victim: ModernCaller) -> None:
    """DESIGN 9: an altered state is refused, and changes nothing for the good one."""
    nonce = await victim.serves()
    entry, params, asked = await victim.client.parked(ASKS, name=victim.tool)
    good = retry(params, asked)
    state: str = asked["requestState"]
    for bad in (state[:-8] + "AAAAAAAA", state[:20] + state[21:], "", state * 2):
        response = await victim.client.post("tools/call", {**good, "requestState": bad})
        expect(response.status_code == 400, f"an altered state got {response.text[:300]}")
    other = {**good, "arguments": {**good["arguments"], "echo": "another"}}
    response = await victim.client.post("tools/call", other)
    expect(response.status_code == 400, f"another request got {response.text[:300]}")
    _, message = await victim.client.once(entry, good)
    expect(facts_of(message)["nonce"] == nonce, f"another backend answers: {message}")
    await victim.same(nonce)


@modern
async def sends_its_answers_again(arena: Arena, victim: ModernCaller) -> None:
    """DESIGN 9: identical ones get one answer, at once and later; different ones none."""
    nonce = await victim.serves()
    entry, params, asked = await victim.client.parked(ASKS, {"sleep": HERE}, name=victim.tool)
    good = retry(params, asked)
    found: list[Json] = []

    async def again() -> None:
        response = await victim.client.post("tools/call", good)
        found.append(response.json())

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(again)
    await again()
    _, message = await victim.client.once(entry, good)
    expect(all(each == message for each in found), f"expected one answer, got {found}")
    expect(facts_of(message)["nonce"] == nonce, f"another backend answers: {message}")
    others = retry(params, asked, lambda question: {"action": "decline"})
    response = await victim.client.post("tools/call", others)
    expect(response.status_code == 400, f"other answers got {response.text[:300]}")
    await victim.same(nonce)


@modern
async def answers_as_somebody_else(arena: Arena, victim: ModernCaller) -> None:
    """I7: a state is worth nothing to another owner, nor in another conversation."""
    nonce = await victim.serves()
    entry, params, asked = await victim.client.parked(ASKS, name=victim.tool)
    good = retry(params, asked)
    own, others = arena.tokens.headers(victim.name), arena.tokens.others(victim.name)
    for headers, url in ((others, victim.client.url), (own, f"{victim.client.url}-other")):
        client = Modern(victim.client.http, url, headers or own)
        response = await client.post("tools/call", good)
        expect(response.status_code == 400, f"it got {response.status_code} {response.text[:300]}")
    _, message = await victim.client.once(entry, good)
    expect(facts_of(message)["nonce"] == nonce, f"another backend answers: {message}")


@modern
async def never_answers(arena: Arena, victim: ModernCaller) -> None:
    """A call that nobody comes back for holds up no other, and ends with its backend."""
    nonce = await victim.serves()
    entry, params, asked = await victim.client.parked(ASKS, name=victim.tool)
    await victim.same(nonce)
    answer = await victim.call({"exit": 5})
    expect(answer.fault.get("exitCode") == 5, f"expected its exit status, got {answer}")
    fault = Answer(*await victim.client.once(entry, retry(params, asked))).fault
    expect(fault.get("kind") in ("no_longer_waiting", "state_lost"), f"it is told {fault}")
    expect(fault.get("outcome") == "unknown", f"told the wrong outcome: {fault}")
    if fault.get("kind") == "no_longer_waiting":
        await victim.is_told(nonce)
    else:
        expect(await victim.serves() != nonce, "the lost backend has answered")


@modern
async def hangs_up_and_so_cancels(arena: Arena, victim: ModernCaller) -> None:
    """F27: in JSON, in a stream and in a round; the backend is told."""
    nonce = await victim.serves()
    left: list[str | None] = []
    for steps in (({"until_cancelled": 1},), ({"progress": 1}, {"until_cancelled": 1})):
        entry, params = victim.client.begins("tools/call", victim.calling(*steps))
        entry.left = True
        left.append(entry.token)
        params["_meta"]["progressToken"] = "p"
        with anyio.move_on_after(HERE):
            await victim.client.once(entry, params)
    entry, params, asked = await victim.client.parked(
        ASKS, {"until_cancelled": 1}, name=victim.tool
    )
    entry.left = True
    left.append(entry.token)
    with anyio.move_on_after(HERE):
        await victim.client.once(entry, retry(params, asked))
    missing = [str(token) for token in left]
    with anyio.move_on_after(arena.setting.bound(1)):
        while missing := await _not_cancelled(victim, nonce, left):  # noqa: ASYNC110 - it is asked
            await anyio.sleep(0.05)
    expect(not missing, f"the backend has not heard that it need not go on with {missing}")


async def _not_cancelled(victim: ModernCaller, nonce: str, left: Sequence[str | None]) -> list[str]:
    """Return which of these calls, as far as they have reached the backend, it still works on."""
    answer = await victim.call({"tells": "seen"})
    expect(answer.ok, f"expected an answer, got {answer}")
    expect(answer.facts["nonce"] == nonce, f"another backend answers: {answer}")
    came: dict[object, str] = {}
    for one in answer.facts["seen"]:
        params: Json = one.get("params") or {}
        meta: Json = params.get("_meta") or {}
        if one.get("method") == "notifications/cancelled":
            came.pop(params["requestId"], None)
        elif meta.get(TOKEN) in left:
            came[one["id"]] = str(meta[TOKEN])
    return list(came.values())


@modern
async def hears_of_changes(arena: Arena, victim: ModernCaller) -> None:
    """DESIGN 9: what its conversation's backend says of a resource."""
    nonce = await victim.serves()
    async with victim.client.listens(victim.watched) as stream:
        await _is_heard(victim, await stream.message())
        await victim.call(UPDATED)
        told = await stream.until("notifications/resources/updated")
        expect(told["params"]["_meta"][f"{PREFIX}subscriptionId"] == 1, f"it is told {told}")
    await victim.call(UPDATED)
    await victim.same(nonce)


async def _is_heard(victim: ModernCaller, first: Json) -> None:
    expect(first.get("method") == "notifications/subscriptions/acknowledged", f"first came {first}")


@modern
async def has_its_listening_cut_off(arena: Arena, victim: ModernCaller) -> None:
    """It harms no call, and it may listen again at once."""
    nonce = await victim.serves()
    for _ in range(3):
        async with http() as pool:
            before = victim.client.http
            victim.moves(pool)
            try:
                async with victim.client.listens(victim.watched) as stream:
                    await _is_heard(victim, await stream.message())
                    await victim.call(UPDATED)
            finally:
                victim.moves(before)
    await hears_of_changes(arena, victim)
    await victim.same(nonce)


@modern
async def does_not_read_what_it_listens_to(arena: Arena, victim: ModernCaller) -> None:
    """F29: calls of its conversation are answered all the same."""
    nonce = await victim.serves()
    victim.client.listened()
    wanted = {"notifications": {"resourceSubscriptions": [victim.watched]}}
    many: Json = {"note": {"method": "notifications/resources/updated", "params": {"uri": URI}}}
    request = victim.client.build("subscriptions/listen", wanted)
    with connected(arena.port, receives=4096) as sock:
        sock.sendall(on_the_wire(request))
        await anyio.sleep(HERE)
        answer = await victim.call({"repeat": {"times": 4000, "steps": [many]}})
        expect(answer.ok, f"expected an answer, got {answer}")
        await victim.same(nonce)


@modern
async def names_two_conversations(arena: Arena, victim: ModernCaller) -> None:
    """DESIGN 6: keys that disagree get 400."""
    nonce = await victim.serves()
    response = await victim.client.post(
        "tools/call",
        victim.calling(),
        meta={"io.sessionproxy/conversation": "another-conversation-of-mine"},
    )
    expect(response.status_code == 400, f"two keys got {response.text[:300]}")
    await victim.same(nonce)


@modern
async def says_one_thing_and_means_another(arena: Arena, victim: ModernCaller) -> None:
    """FAULTS, headers: they have to say what the body says."""
    nonce = await victim.serves()
    for name, value in (("mcp-method", "tools/list"), ("mcp-name", "another")):
        request = victim.client.build("tools/call", victim.calling())
        request.headers[name] = value
        response = await victim.client.http.send(request)
        code = response.json()["error"]["code"]
        expect((response.status_code, code) == (400, -32020), f"it got {response.text[:300]}")
    await victim.same(nonce)


@either
async def loses_its_token_for_a_while(arena: Arena, victim: AnyCaller) -> None:
    """A revoked token is worth nothing; its owner's session is there when it is good again."""
    nonce = await victim.serves()
    arena.tokens.revoke(victim.name)
    arena.proxy.signal(signal.SIGHUP)
    try:
        with anyio.fail_after(10):
            while (status := await victim.knocks()) != 401:
                expect(status in (200, 503), f"expected an answer or 401, got {status}")
        arena.record.history.foreign.append(401)
    finally:
        arena.tokens.restore(victim.name)
        arena.proxy.signal(signal.SIGHUP)
    with anyio.fail_after(10):
        while await victim.knocks() == 401:
            pass
    await victim.same(nonce)

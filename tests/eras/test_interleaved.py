"""Whatever the order in which things happen: no nonce reaches another call's client or session.

Chance makes up what happens in two sessions at once, the same for the same seed. Their clients say
the same with the same ids, tokens and keys; what tells them apart is known here alone. DESIGN 5.1,
5.3, 5.11, 5.12.
"""

from random import Random
from typing import Final

import anyio
import msgspec
import pytest

from sessionproxy.core.exchange import Outcome
from sessionproxy.core.memory import Opening
from sessionproxy.core.state import SessionState, StopReason
from sessionproxy.eras.calls import GATHER, PARKED
from sessionproxy.eras.turns import STORED
from sessionproxy.wire import Envelope
from sessionproxy.wire.welcome import discover_params
from tests.core.fakes import FakeClient

from .rig import FORM, Asked, Handshake, Json, Modern, Question, Request, Server, World, world

Happening = tuple[str, int]
"""What happens, and to which of those there are."""

TIMES: Final = (0.0, GATHER / 2, GATHER * 1.1, 1.0, GATHER * 1.1, STORED + 1, 0.0, PARKED + 1)

SEEDS: Final = 30
STEPS: Final = 200


class Side:
    """One session: its client, and what has become of all that went through it."""

    def __init__(self, found: World, owner: str) -> None:
        self.found = found
        self.owner = owner
        self.client: Modern
        self.requests: list[Request] = []
        """All of the client's, retries too."""
        self.works: dict[Request, tuple[Server, Asked]] = {}
        """What the backend works on for each."""
        self.questions: list[tuple[Server, Question, str]] = []
        """And the nonce of each."""
        self.given: dict[str, object] = {}
        """By nonce of a question: what its client answered first."""
        self.count = 0

    def nonce(self) -> str:
        self.count += 1
        return f"{self.owner}-{self.count}"

    @property
    def server(self) -> Server | None:
        theirs = [
            server
            for server in self.found.servers.running
            if server.opening.get("clientInfo") == {"name": self.owner, "version": "1"}
        ]
        return theirs[-1] if theirs else None

    async def awake(self) -> Modern:
        session = self.client.session
        if session.state is not SessionState.READY:
            await self.found.manager.ready(session)
        return self.client


async def two(found: World) -> list[Side]:
    sides = [Side(found, owner) for owner in ("alice", "bob")]
    for side in sides:
        info = msgspec.json.encode({"name": side.owner, "version": "1"})
        capabilities = b'{"elicitation":{},"roots":{},"sampling":{}}'
        opening = Opening(
            discover_params(Envelope("2026-07-28", capabilities, info)), "server/discover"
        )
        session = found.manager.converse(side.owner, "c:x", opening, FakeClient())
        await found.manager.ready(session)
        declared: Json = msgspec.json.decode(capabilities)
        side.client = Modern(session, capabilities=declared, log_level="debug")
    return sides


def possible(side: Side, other: Side) -> list[Happening]:
    """Return what can happen in a session now, the likelier things several times."""
    server = side.server
    awake = side.client.session.state is SessionState.READY
    open_ = [n for n, r in enumerate(side.requests) if r.waits]
    asked = [n for n, r in enumerate(side.requests) if r.is_asked]
    found: list[Happening] = [("call", 0), ("plain", 0)]
    found += [(kind, n) for n in asked for kind in ("back", "back", "again", "other")]
    if other.client.session.state is SessionState.READY:
        found += [("foreign", n) for n in asked]
    found += [(kind, n) for n in open_ for kind in ("answer", "progress", "hang up")]
    if server is not None and server.relay.in_flight():
        found += [("ask", 0)] * 4 + [("log", 0)]
    found += [("take back", n) for n, q in enumerate(side.questions) if q[1].is_open][:1]
    found += [("sleep", 2)] * 3 + [("sleep", len(side.requests) % len(TIMES))]
    if awake and server is not None and side.count % 7 == 6:
        found += [("exit", 0), ("stop", 0)]
    return found


async def step(side: Side, other: Side, kind: str, number: int) -> None:
    server = side.server
    if kind in ("call", "plain"):
        client = await side.awake()
        method = "tools/call" if kind == "call" else "completion/complete"
        request = client.call(method=method, token="t")
        side.requests.append(request)
        server = side.server
        assert server is not None
        side.works[request] = (server, server.last)
    elif kind == "ask":
        assert server is not None
        nonce = side.nonce()
        question = server.ask("elicitation/create", {**FORM, "n": nonce})
        side.questions.append((server, question, nonce))
    elif kind in ("back", "again", "other"):
        await come_back(side, side.requests[number], other=kind == "other")
    elif kind == "foreign":
        request = side.requests[number]
        answers = {key: {"action": "accept"} for key in request.questions}
        stolen = other.client.call(inputResponses=answers, requestState=request.state, token="t")
        assert stolen.failure == "invalid_request_state"
    elif kind == "answer":
        answer(side, side.requests[number])
    elif kind == "progress":
        server, work = side.works[side.requests[number]]
        if not server.stopped:
            work.progress(number + side.count)
    elif kind == "log":
        assert server is not None
        server.log("info", side.owner)
    elif kind == "take back":
        server, question, _ = side.questions[number]
        if not server.stopped:
            server.take_back(question)
    elif kind == "hang up":
        side.requests[number].hang_up()
    elif kind == "sleep":
        await anyio.sleep(TIMES[number])
    elif kind == "exit":
        assert server is not None
        server.exit()
        await anyio.sleep(0.1)
    else:
        side.client.session.stop(StopReason.IDLE)
        await anyio.sleep(5)


def answer(side: Side, request: Request) -> None:
    """Have the backend answer what it works on for a request, with that request's own nonce."""
    server, work = side.works[request]
    if not server.stopped:
        work.answer({"content": [side.owner, work.id], "life": id(server)})


async def come_back(side: Side, request: Request, *, other: bool) -> None:
    """Bring the answers to what a request was asked; each says whose question it answers."""
    client = await side.awake()
    answers: dict[str, object] = {}
    for key, question in request.questions.items():
        nonce = str(msgspec.convert(question["params"], Json)["n"])
        assert nonce.startswith(side.owner)
        said = {"action": "accept", "n": nonce}
        answers[key] = {**said, "more": 1} if other else said
        side.given.setdefault(nonce, answers[key])
    retry = client.call(inputResponses=answers, requestState=request.state, token="t")
    side.requests.append(retry)
    side.works[retry] = side.works[request]


def check(side: Side) -> None:
    for request in side.requests:
        assert request.sink.times_settled <= 1
        server, work = side.works[request]
        outcome = request.exchange.outcome
        if outcome is not None and outcome.result is not None and not request.is_asked:
            result = request.result
            assert result["content"] == [side.owner, work.id]
            assert result["life"] == id(server)
        for message in request.said:
            params = msgspec.convert(message["params"], Json)
            if message["method"] == "notifications/progress":
                assert params["progressToken"] == "t"
            else:
                assert params["data"] == side.owner
    for _, question, nonce in side.questions:
        assert question.times_answered <= 1
        if question.result is not None and question.result != {"action": "cancel"}:
            assert question.result["n"] == nonce
            assert question.result == side.given[nonce]


async def play(seed: int) -> None:
    async with world() as found:
        sides = await two(found)
        executed: dict[int, list[int]] = {}
        chance = Random(seed)
        for _ in range(STEPS):
            side, other = sides[:: chance.choice((1, -1))]
            await step(side, other, *chance.choice(possible(side, other)))
            for each in sides:
                check(each)
        for side in sides:
            for request in side.requests:
                answer(side, request)
            for request in side.requests:
                request.hang_up()
            check(side)
        await anyio.sleep(PARKED + STORED + 2)
        for side in sides:
            check(side)
            assert not any(request.waits for request in side.requests)
            assert side.client.session.leases == 0
        assert len(found.manager.timers) == 0
        for server in found.servers.started:
            executed[id(server)] = [int(str(asked.id)) for asked in server.requests]
            assert len(set(executed[id(server)])) == len(executed[id(server)])
        # As many executions as requests that were no retries.
        begun = sum(len(set(map(id, [w for _, w in side.works.values()]))) for side in sides)
        assert sum(map(len, executed.values())) == begun


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_modern_clients_of_handshake_backends(seed: int) -> None:
    await play(seed)


# -- the other way round ---------------------------------------------------------------------------


class Other:
    """One session of a handshake client at a modern backend."""

    def __init__(self, owner: str, client: Handshake, server: Server) -> None:
        self.owner = owner
        self.client = client
        self.server = server
        self.requests: list[Request] = []
        self.taken = 0
        """How many of the backend's requests were looked at."""
        self.open: list[Asked] = []
        self.origin: dict[int, int] = {}
        """By id of each of the backend's requests: that of the first of its rounds."""
        self.first: dict[int, Request] = {}
        self.replied: list[Json] = []
        self.count = 0

    def look(self) -> None:
        """Take note of what the backend was sent, and that it was sent the right thing."""
        for asked in self.server.requests[self.taken :]:
            own = int(str(asked.id))
            self.open.append(asked)
            state = asked.params.get("requestState")
            if state is None:
                self.origin[own] = own
                continue
            owner, first, nonces = str(state).split(" ")
            assert owner == self.owner
            self.origin[own] = int(first)
            given = msgspec.convert(asked.params.get("inputResponses", {}), dict[str, Json])
            assert {answer["n"] for answer in given.values()} == set(
                filter(None, nonces.split(","))
            )
        self.taken = len(self.server.requests)

    def want(self, asked: Asked, questions: int) -> None:
        """Have the backend ask for input; its state says whose, and the nonces of the questions."""
        nonces: list[str] = []
        for _ in range(questions):
            self.count += 1
            nonces.append(f"{self.owner}-{self.count}")
        first = self.origin[int(str(asked.id))]
        result: Json = {
            "resultType": "input_required",
            "requestState": f"{self.owner} {first} {','.join(nonces)}",
        }
        if nonces:
            result["inputRequests"] = {
                f"k{n}": {"method": "elicitation/create", "params": {**FORM, "n": nonce}}
                for n, nonce in enumerate(nonces)
            }
        asked.answer(result)

    def pending(self) -> list[Json]:
        """Return what the client was asked and has not answered, as far as it knows."""
        sent = [message for request in self.requests for message in request.said]
        return [m for m in sent if "id" in m and m not in self.replied]

    def reply(self, message: Json) -> None:
        nonce = str(msgspec.convert(message["params"], Json)["n"])
        result = msgspec.json.encode({"action": "accept", "n": nonce})
        self.replied.append(message)
        self.client.session.answer(str(message["id"]).encode(), Outcome(result=result))


def other_possible(side: Other) -> list[Happening]:
    waiting = [n for n, asked in enumerate(side.open) if not asked.cancelled]
    found: list[Happening] = [("call", n) for n in range(3)]
    for n in waiting:
        found += [("wants", n), ("wants more", n), ("puts off", n), ("answer", n), ("progress", n)]
    found += [("reply", n) for n in range(len(side.pending())) for _ in range(3)]
    found += [("late", 0), ("cancel", len(side.open) % 3), ("sleep", len(waiting) % len(TIMES))]
    return found


async def other_step(side: Other, kind: str, number: int) -> None:
    if kind == "call":
        request = side.client.call(token="t", client_id=b"%d" % number)
        side.requests.append(request)
        side.first[int(str(side.server.last.id))] = request
    elif kind in ("wants", "wants more", "puts off"):
        side.want(side.open.pop(number), ["puts off", "wants", "wants more"].index(kind))
    elif kind == "reply":
        side.reply(side.pending()[number])
    elif kind == "late":
        for message in side.replied[-3:]:
            side.reply(message)
    elif kind == "answer":
        asked = side.open.pop(number)
        content = [side.owner, side.origin[int(str(asked.id))]]
        asked.answer({"resultType": "complete", "content": content})
    elif kind == "progress":
        side.open[number].progress(side.count)
    elif kind == "cancel":
        side.client.cancel(number)
    else:
        await anyio.sleep(TIMES[number])


def other_check(side: Other) -> None:
    side.look()
    for first, request in side.first.items():
        assert request.sink.times_settled <= 1
        outcome = request.exchange.outcome
        if outcome is not None and outcome.result is not None:
            assert request.result["content"] == [side.owner, first]
        for message in request.said:
            params = msgspec.convert(message["params"], Json)
            if message["method"] == "notifications/progress":
                assert params["progressToken"] == "t"
            elif "id" in message:
                assert str(params["n"]).startswith(side.owner)


async def play_other(seed: int) -> None:
    async with world("modern") as found:
        sides: list[Other] = []
        for owner in ("alice", "bob"):
            client = await found.handshake(owner)
            sides.append(Other(owner, client, found.servers.running[-1]))
        chance = Random(seed)
        for _ in range(STEPS):
            side = chance.choice(sides)
            await other_step(side, *chance.choice(other_possible(side)))
            for side in sides:
                other_check(side)
        for side in sides:
            side.server.exit()
        await anyio.sleep(5)
        for side in sides:
            assert not any(request.waits for request in side.requests)
            assert side.client.session.leases == 0
        assert len(found.manager.timers) == 0


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_handshake_clients_of_modern_backends(seed: int) -> None:
    await play_other(seed)

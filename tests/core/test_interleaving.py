"""Two conversations through one process never mix, whatever the order of their messages.

Both sides use the same ids, tokens, names and methods; all that tells them apart is a nonce in
everything that is said. `Conversation` plays client and backend of one side and knows what each
nonce was said for. Who does what next is drawn: in bulk from a seeded generator, which makes up
the 100,000 exchanges, and once by Hypothesis, which shrinks what it finds.
"""

import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from operator import length_hint
from typing import Any, Final, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionproxy.core.context import current_exchange
from sessionproxy.core.exchange import Ask, Exchange, Forwarded, Outbound, Outcome
from sessionproxy.core.manager import Limits, SessionManager
from sessionproxy.core.memory import Opening
from sessionproxy.core.ports import Identity, Upstream
from sessionproxy.core.reaper import Ages
from sessionproxy.core.relay import Relay
from sessionproxy.core.session import Session
from sessionproxy.errors import Exit
from sessionproxy.wire import Bytes, Kind

from .fakes import KEY, OPENING, WELCOME, FakeClient, FakeSink, FakeTransport, SessionIds

Json = dict[str, Any]
T = TypeVar("T")
Choose = Callable[[int], int]
"""Draws a number below its argument."""

EXCHANGES: Final = 100_000
BATCHES: Final = 10
"""Tests that share them, each with a seed of its own."""

SIDES: Final = "AB"

IDS: Final = (b"1", b'"1"', b"2")
TOKENS: Final = (b"1", b'"1"', None)
MANY: Final = 8
"""Requests of one side that are in flight at once; from then on its backend answers."""

decode: Final[Callable[[Bytes], Json]] = msgspec.json.Decoder(Json).decode


class Request:
    """One request of a client, and the sink of its exchange: checks whatever reaches it."""

    attached = True

    def __init__(self, of: "Conversation", nonce: str, client_id: bytes, token: bytes | None):
        self._of = of
        self.nonce = nonce
        self.client_id = client_id
        self.token = token
        meta = b"" if token is None else b'"_meta":{"progressToken":%b},' % token
        params = b'{%b"name":"do","nonce":"%b"}' % (meta, nonce.encode())
        self.exchange = Exchange("tools/call", params, client_id=client_id, sink=self)
        self.times_settled = 0

    def takes(self, method: str) -> int:
        return 2

    def message(self, message: Outbound) -> None:
        said = decode(message.data)
        taken_back = said["method"] == "notifications/cancelled"
        assert taken_back or not self.times_settled, "something came after the answer"
        if said["method"] == "notifications/progress":
            assert said["params"]["nonce"] == self.nonce
            assert self.token is not None
            assert said["params"]["progressToken"] == msgspec.json.decode(self.token)
            self._of.tally["progress heard"] += 1
        else:
            self._of.hear(said)

    def settled(self, exchange: Exchange) -> None:
        self.times_settled += 1
        assert self.times_settled == 1
        assert self.nonce in self._of.requests, "it was cancelled"
        assert exchange is self.exchange
        outcome = exchange.outcome
        assert outcome is not None
        if outcome.failure is None:
            answer = decode(outcome.result or outcome.error or b"")
            assert answer["nonce"] == self.nonce
            self._of.tally["answers heard"] += 1


class Conversation:
    """Client and backend of one side, with whatever is tested in between."""

    def __init__(self, name: str, choose: Choose, tally: Counter[str]) -> None:
        self.name = name
        self.tally = tally
        self.transport = FakeTransport()
        self._choose = choose
        self._nonces = 0
        # What the client knows.
        self.requests: dict[str, Request] = {}
        """Those in flight, by nonce."""
        self.put: list[tuple[str, object]] = []
        """Nonces of what the backend asks, with what answers them."""
        # What the backend knows.
        self.got: dict[int, tuple[str, object]] = {}
        """Nonce and token of what it has not answered, by the relay's id."""
        self.done: list[int] = []
        """The last ids it answered, or that were cancelled."""
        self.asking: dict[bytes, str] = {}
        """Nonces of what it asks, by its own id."""

    # -- what the levels differ in -----------------------------------------------------------------

    relay: Relay

    def pass_on(self, request: Request) -> None:
        raise NotImplementedError

    def cancel(self, request: Request) -> bool:
        """Return whether it was cancelled: an id that names two requests cancels none."""
        raise NotImplementedError

    def respond(self, which: object, outcome: Outcome) -> bool:
        """Let the client answer what it was asked under `which`; return whether it was taken."""
        raise NotImplementedError

    # -- the client --------------------------------------------------------------------------------

    def requests_something(self) -> None:
        if len(self.got) >= MANY:
            self.answers_one()
            return
        client_id, token = self._one_of(IDS), self._one_of(TOKENS)
        request = Request(self, self._nonce(), client_id, token)
        self.requests[request.nonce] = request
        self.tally["exchanges"] += 1
        self.pass_on(request)

    def gives_up(self) -> None:
        """The client cancels a request."""
        if self.requests:
            request = self._one_of([*self.requests.values()])
            if self.cancel(request):
                del self.requests[request.nonce]
                self.tally["cancelled"] += 1

    def is_told(self) -> None:
        """The client answers something that it was asked, in any order."""
        if self.put:
            nonce, which = self.put.pop(self._choose(len(self.put)))
            self.respond(which, Outcome(result=b'{"nonce":"%b"}' % nonce.encode()))
            if self._choose(4) == 0:  # a second answer to the same goes nowhere
                assert not self.respond(which, Outcome(result=b'{"nonce":"doubled"}'))

    def hear(self, said: Json) -> None:
        """Take what came before an answer, or on a stream of its own."""
        method: str = said["method"]
        params: Json = said.get("params") or {}
        if method == "notifications/cancelled":
            self.put = [(n, which) for n, which in self.put if which != params["requestId"]]
            self.tally["withdrawals heard"] += 1
            return
        self._check(params["nonce"])
        self.tally[f"{method} heard"] += 1
        if "id" in said:
            self.put.append((params["nonce"], said["id"]))

    # -- the backend -------------------------------------------------------------------------------

    def read(self) -> None:
        """Take what was sent to the backend."""
        for line in self.transport.lines:
            self._read(decode(line))
        self.transport.lines.clear()

    def _read(self, said: Json) -> None:
        params: Json = said.get("params") or {}
        if "method" not in said:
            if "result" in said:  # else it is the refusal of one under an id in use
                nonce = self.asking.pop(msgspec.json.encode(said["id"]), None)
                assert said["result"]["nonce"] == nonce
                self.tally["asks answered"] += 1
        elif said["method"] == "notifications/cancelled":
            nonce, _ = self.got.pop(params["requestId"])
            assert nonce not in self.requests or self.requests[nonce].times_settled
            self._is_done(params["requestId"])
        else:
            self._check(params["nonce"])
            assert said["id"] not in self.got
            meta: Json = params.get("_meta") or {}
            self.got[said["id"]] = params["nonce"], meta.get("progressToken")

    def answers_one(self) -> None:
        """In any order."""
        if self.got:
            key = self._one_of([*self.got])
            nonce, _ = self.got.pop(key)
            self._is_done(key)
            self._answer(b"%d" % key, nonce, error=self._choose(4) == 0)
            assert self.requests.pop(nonce).times_settled == 1

    def answers_again(self) -> None:
        """What it answered before, or what was cancelled."""
        if self.done:
            self._answer(b"%d" % self._one_of(self.done), "doubled")

    def answers_nobody(self) -> None:
        """An id that it was not asked under, such as one of the other side's."""
        last = max([0, *self.got, *self.done])
        unknown = b"%d" % (last + 1 + self._choose(3))
        self._answer(self._one_of([unknown, b'"%d"' % last, b"-1", b"9" * 30]), "unknown")

    def reports(self) -> None:
        """Progress of something in flight."""
        known = [(nonce, token) for nonce, token in self.got.values() if token is not None]
        if known:
            nonce, token = self._one_of(known)
            self._progress(token, nonce)

    def reports_on_nothing(self) -> None:
        """Progress of something answered, or never begun."""
        self._progress(self._one_of([*self.done, 10**9, "1", None]), "unknown")

    def asks(self) -> None:
        """Under an id of its own, which it may be using already: then that is refused."""
        key, nonce = self._one_of(IDS), self._nonce()
        if key not in self.asking:
            self.asking[key] = nonce
        params = b'{"nonce":"%b"}' % nonce.encode()
        self._say(b'"id":%b,"method":"roots/list","params":%b' % (key, params))

    def takes_back(self) -> None:
        if self.asking:
            key = self._one_of([*self.asking])
            del self.asking[key]
            self._say(b'"method":"notifications/cancelled","params":{"requestId":%b}' % key)

    def logs(self) -> None:
        params = b'{"level":"info","nonce":"%b"}' % self._nonce().encode()
        self._say(b'"method":"notifications/message","params":%b' % params)

    def _answer(self, key: bytes, nonce: str, *, error: bool = False) -> None:
        kind = b"error" if error else b"result"
        body = b'{"code":1,"message":"m","nonce":"%b"}' % nonce.encode()
        self._say(b'"id":%b,"%b":%b' % (key, kind, body))

    def _progress(self, token: object, nonce: str) -> None:
        params = {"progressToken": token, "progress": 1, "nonce": nonce}
        encoded = msgspec.json.encode(params)
        self._say(b'"method":"notifications/progress","params":%b' % encoded)

    def _say(self, message: bytes) -> None:
        self.relay.receive(b'{"jsonrpc":"2.0",%b}' % message)

    # -- both --------------------------------------------------------------------------------------

    def _one_of(self, things: Sequence[T]) -> T:
        return things[self._choose(len(things))]

    def _nonce(self) -> str:
        self._nonces += 1
        return f"{self.name}{self._nonces}"

    def _check(self, nonce: str) -> None:
        assert nonce.startswith(self.name), f"{nonce} got to side {self.name}"

    def _is_done(self, key: int) -> None:
        self.done = [*self.done[-MANY:], key]

    def finish(self) -> None:
        """The backend answers all that is left; then nobody waits."""
        while self.got:
            self.answers_one()
        assert self.requests == {}


MOVES: Final = (
    *(Conversation.requests_something,) * 6,
    *(Conversation.answers_one,) * 5,
    *(Conversation.reports,) * 2,
    *(Conversation.asks,) * 2,
    *(Conversation.is_told,) * 2,
    Conversation.gives_up,
    Conversation.answers_again,
    Conversation.answers_nobody,
    Conversation.reports_on_nothing,
    Conversation.takes_back,
    Conversation.logs,
)


def move(sides: Sequence[Conversation], choose: Choose) -> None:
    """Let somebody on one of the sides do something."""
    side = sides[choose(len(sides))]
    MOVES[choose(len(MOVES))](side)
    side.read()


class Overheard(Conversation):
    """Through a relay alone, whose upstream this is."""

    def __init__(self, name: str, choose: Choose, tally: Counter[str]) -> None:
        super().__init__(name, choose, tally)
        self.relay = Relay(self.transport, self, hooks=(self._see,))

    def pass_on(self, request: Request) -> None:
        self.relay.request(request.exchange)

    def cancel(self, request: Request) -> bool:
        self.relay.cancel(request.exchange, None)
        return True

    def respond(self, which: object, outcome: Outcome) -> bool:
        assert isinstance(which, Ask)
        which.answer(outcome)
        return False

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        self._check_whose(exchange)
        self.hear({"id": ask, "method": ask.method, "params": decode(ask.params or b"{}")})

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        ask.withdraw()
        self.hear({"method": "notifications/cancelled", "params": {"requestId": ask}})

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        self._check_whose(exchange)
        if exchange is None or method != "notifications/progress":
            self.hear(decode(encoded))
        else:
            exchange.sink.message(Outbound(encoded))

    def hold(self, exchange: Exchange) -> None:
        raise AssertionError("a relay holds nothing")

    def ended(self, how: Exit) -> None:
        raise AssertionError("nobody ends it")

    def _check_whose(self, exchange: Exchange | None) -> None:
        if exchange is not None:
            assert isinstance(exchange.sink, Request)
            self._check(exchange.sink.nonce)

    def _see(self, message: Forwarded) -> None:
        """A hook: it runs in the context of the exchange that the message belongs to.

        What it raises would only be logged.
        """
        current, exchange = current_exchange.get(None), message.exchange
        is_over = message.to_backend if exchange is None else exchange.outcome is not None
        if current is exchange or (is_over and current is None):
            self.tally["seen by hooks"] += 1
        else:
            self.tally["seen in another's context"] += 1


class Listener(FakeClient):
    """A client's own stream."""

    conversation: Conversation

    def message(self, message: Outbound) -> None:
        self.conversation.hear(decode(message.data))


class Attended(Conversation):
    """Through a session of a manager, by its id. `Launched` puts its relay behind that."""

    def __init__(self, name: str, choose: Choose, tally: Counter[str]) -> None:
        super().__init__(name, choose, tally)
        self.client = Listener(listening=True)
        self.client.conversation = self
        self.find: Callable[[], Session]

    def pass_on(self, request: Request) -> None:
        self.find().request(request.exchange)

    def cancel(self, request: Request) -> bool:
        same = [r for r in self.requests.values() if r.client_id == request.client_id]
        params = b'{"requestId":%b}' % request.client_id
        self.find().notify("notifications/cancelled", params)
        assert request.times_settled == (same == [request])
        return same == [request]

    def respond(self, which: object, outcome: Outcome) -> bool:
        return self.find().answer(msgspec.json.encode(which), outcome)


class Greeting(FakeTransport):
    """Answers `initialize`, the first that it is sent."""

    relay: Relay

    def send(self, message: bytes, kind: Kind, exchange: Exchange | None = None) -> None:
        super().send(message, kind, exchange)
        if len(self.lines) == 1 and b'"initialize"' in message:
            self.lines.clear()
            self.relay.receive(b'{"jsonrpc":"2.0","id":1,"result":%b}' % WELCOME)


class Launched:
    """Puts the relay of a conversation behind its session. A `Launcher`."""

    def __init__(self) -> None:
        self.conversation: Attended

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Relay]:
        transport = Greeting()
        relay = transport.relay = Relay(transport, upstream)
        self.conversation.transport, self.conversation.relay = transport, relay
        yield relay


@asynccontextmanager
async def attended(names: Sequence[str], choose: Choose) -> AsyncGenerator[list[Attended]]:
    """Sessions of one manager and of one owner, each with a conversation."""
    launcher, tally = Launched(), Counter[str]()
    limits, ids = Limits(ages=Ages(idle=None, linger=None)), SessionIds(KEY)
    async with SessionManager("fake", launcher, limits, ids) as manager:
        sides: list[Attended] = []
        for name in names:
            side = launcher.conversation = Attended(name, choose, tally)
            session = manager.create("alice", OPENING, side.client, FakeSink())
            await manager.opened(session)
            side.find = partial(manager.find, "alice", session.identity.key)
            sides.append(side)
        yield sides


def interleave(sides: Sequence[Conversation], choose: Choose, exchanges: int) -> Counter[str]:
    """Let so many exchanges begin, and all end; return what happened how often."""
    tally = sides[0].tally
    while tally["exchanges"] < exchanges:
        move(sides, choose)
    for side in sides:
        side.finish()
    return tally


def drawn_by(seed: int) -> Choose:
    source = random.Random(seed)
    return lambda below: int(source.random() * below)


HAPPENED: Final = (
    "answers heard", "asks answered", "cancelled", "notifications/message heard",
    "progress heard", "roots/list heard", "withdrawals heard",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(BATCHES // 2))
def test_no_interleaving_takes_a_message_to_the_other_relay(seed: int) -> None:
    """FAULTS I1, I3, F32 to F34; DESIGN 5.1, 5.3 and 8."""
    choose, tally = drawn_by(seed), Counter[str]()
    sides = [Overheard(name, choose, tally) for name in SIDES]
    happened = interleave(sides, choose, EXCHANGES // BATCHES)
    assert happened["exchanges"] >= EXCHANGES // BATCHES
    assert all(happened[what] > 100 for what in (*HAPPENED, "seen by hooks"))
    assert not happened["seen in another's context"]


@pytest.mark.parametrize("seed", range(BATCHES // 2))
async def test_no_interleaving_takes_a_message_to_the_other_session(seed: int) -> None:
    """FAULTS I1, I3, F32 to F35; DESIGN 5.1, 5.3 and 8."""
    choose = drawn_by(seed)
    async with attended(SIDES, choose) as sides:
        happened = interleave(sides, choose, EXCHANGES // BATCHES)
    assert happened["exchanges"] >= EXCHANGES // BATCHES
    assert all(happened[what] > 100 for what in HAPPENED)


@settings(deadline=None, print_blob=True)
@given(moves=st.lists(st.integers(0, 1000), max_size=400))
def test_no_order_that_hypothesis_thinks_up_takes_a_message_to_the_other_relay(
    moves: list[int],
) -> None:
    """As above; what it finds it makes as short as it can be."""
    left = iter(moves)

    def choose(below: int) -> int:
        return next(left, 0) % below

    tally = Counter[str]()
    sides = [Overheard(name, choose, tally) for name in SIDES]
    while length_hint(left):
        move(sides, choose)
    for side in sides:
        side.finish()

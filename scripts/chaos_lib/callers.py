"""Clients that keep a session each and go on calling, whatever happens.

Here are those of the handshake era, and what they have in common with `moderns`. Neighbours: faults
borrow them to do harm through them; `tests.rig.recorded` writes down what they see, for the judge;
what a history does not show is checked here.
"""

import random
import secrets
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import anyio
import httpx2

from tests.rig.history import FAULT, Entry, Outcome
from tests.rig.http import EndOfStream, Json, calling
from tests.rig.recorded import Recorded, marked

from .arena import Arena

PATIENCE: Final = 60.0
"""Seconds in which a caller must be served again, whatever was done to the proxy."""

PAUSE: Final = 0.8
"""Seconds between two calls of one caller, on average, for each hundred callers."""

AGAIN: Final = 0.3
"""Seconds before a caller that could not be served tries once more."""


class Unexpected(Exception):
    """Something was not as FAULTS says; the text says what."""


def expect(condition: object, text: str) -> None:
    if not condition:
        raise Unexpected(text)


@dataclass(frozen=True)
class Answer:
    """How a request ended: an HTTP status and the message that came with 200."""

    status: int
    message: Json = field(default_factory=dict[str, Any])
    took: float = 0.0
    """Seconds."""

    @property
    def facts(self) -> Json:
        """What the backend says of itself; empty where it is not its answer."""
        result: Json = self.message.get("result") or {}
        return {} if result.get("isError") else result.get("structuredContent") or {}

    @property
    def fault(self) -> Json:
        """What the proxy says of a backend's failure."""
        error: Json = self.message.get("error") or {}
        result: Json = self.message.get("result") or {}
        told: Json = result.get("_meta") or error.get("data") or {}
        return told.get(FAULT) or {}

    @property
    def ok(self) -> bool:
        return bool(self.facts)

    def __str__(self) -> str:
        return f"HTTP {self.status} {str(self.message)[:300]}"


class Latency(NamedTuple):
    """How long a call took."""

    seconds: float
    beside: tuple[str, ...]
    """Kinds of harm that were being done to others when it ended."""


class AnyCaller(ABC):
    """One client, of either era. Its calls and the harm that is done through it take turns."""

    def __init__(self, name: str, arena: Arena, rng: random.Random) -> None:
        self.name = name
        self.arena = arena
        self.server = arena.setting.server_of(name)
        """The one of several that it calls; empty: there is one."""
        self.turn = anyio.Lock()
        self.calls = 0
        self.told = 0
        self.latencies: deque[Latency] = deque(maxlen=2000)
        """Of the calls that were made while nothing was done to this caller or to the proxy."""
        self.harm = ""
        """The kind that is being done through it."""
        self._random = rng
        self._answered_at = -1.0

    async def go_on(self, pause: float) -> None:
        """Call for ever."""
        while True:
            await anyio.sleep(self._random.expovariate(1 / pause))
            async with self.turn:
                await self._call_once()

    async def _call_once(self) -> None:
        calm, quiet_for = self.arena.calm, anyio.current_time() - self._answered_at
        steps = self.steps()
        try:
            answer = await self.call(*steps)
        except Exception as error:  # noqa: BLE001 - told in the verdict
            self.arena.record.is_wrong(f"{self.name}: {error!r}")
            return
        if calm and self.arena.calm and answer.ok:
            if steps:
                return  # how long those take is another matter
            self.latencies.append(Latency(answer.took, tuple(self.arena.going)))
        elif answer.fault.get("kind") == "state_lost":
            self._check_loss(answer, quiet_for)

    def _check_loss(self, answer: Answer, quiet_for: float) -> None:
        """F42, F46: who calls all the time is not idle, also when the proxy was paused."""
        text = str(answer.message)
        idle = self.arena.setting.idle
        if "(idle" in text and 0 < quiet_for < idle / 2 and self._answered_at > 0:
            self.arena.record.is_wrong(f"{self.name} was idle for {quiet_for:.1f} s only: {text}")

    def steps(self) -> tuple[Json, ...]:
        """Return what the next ordinary call is to have done."""
        return ()

    # -- one call ----------------------------------------------------------------------------------

    def calling(self, *steps: Json, **more: object) -> Json:
        """The params of a call that takes `steps` at its server."""
        return {**calling(*steps, **more), "name": self.tool}

    @property
    def tool(self) -> str:
        """What it calls, as it is in front."""
        return f"{self.server}_do" if self.server else "do"

    async def call(self, *steps: Json, number: object = 1, patiently: bool = True) -> Answer:
        """Have the backend take `steps`; return how it went.

        `patiently`: with a session that is opened where there is none, and again where there is no
        place or no proxy. Raises: Unexpected: it got another call's answer, or none in time.
        """
        deadline = anyio.current_time() + PATIENCE
        while True:
            answer = await self._try(steps, number)
            if answer.status == 200 or not patiently:
                self.calls += 1
                self._answered_at = anyio.current_time()
                self.told += answer.fault.get("kind") == "state_lost"
                return answer
            expect(answer.status in (0, 404, 503), f"a call got {answer}")
            expect(anyio.current_time() < deadline, f"not served for {PATIENCE:g} s: {answer}")
            await anyio.sleep(AGAIN)
            await self.arena.up.wait()

    @abstractmethod
    async def _try(self, steps: tuple[Json, ...], number: object) -> Answer:
        """Call once. Status 0: the connection was closed."""

    @abstractmethod
    async def ends(self) -> None:
        """Leave its session for good; the next call has another one."""

    @abstractmethod
    async def knocks(self) -> int:
        """Ask for something that executes nothing; return the HTTP status."""

    @abstractmethod
    def moves(self, pool: httpx2.AsyncClient) -> None:
        """Go on with other connections."""

    # -- what faults ask of their victim -----------------------------------------------------------

    async def serves(self) -> str:
        """Wait until it is served; return the nonce of its backend."""
        deadline = anyio.current_time() + PATIENCE
        while not (answer := await self.call()).ok:
            expect(anyio.current_time() < deadline, f"not well for {PATIENCE:g} s: {answer}")
        return str(answer.facts["nonce"])

    async def same(self, nonce: str) -> None:
        """Its backend must still be the one with this nonce."""
        answer = await self.call()
        expect(answer.ok, f"expected an answer, got {answer}")
        expect(answer.facts["nonce"] == nonce, f"another backend answers: {answer}")

    async def is_told(self, nonce: str) -> None:
        """It must be told that the state of this backend is lost, and then served (F50)."""
        answer = await self.call()
        expect(answer.fault.get("kind") == "state_lost", f"expected to be told, got {answer}")
        expect(answer.fault.get("outcome") == "not_executed", f"told the wrong outcome: {answer}")
        expect(await self.serves() != nonce, "the lost backend has answered")


class Caller(AnyCaller):
    """One of the handshake era."""

    def __init__(
        self, name: str, arena: Arena, pool: httpx2.AsyncClient, rng: random.Random
    ) -> None:
        super().__init__(name, arena, rng)
        self.client = Recorded(
            pool,
            arena.url,
            headers=arena.tokens.headers(name),
            history=arena.record.history,
            label=name,
        )

    async def _try(self, steps: tuple[Json, ...], number: object) -> Answer:
        """Status 0: the connection was closed."""
        echo = secrets.token_hex(8)
        try:
            if not self.client.id:
                opened = await self.open()
                if opened.status != 200:
                    return opened
            began = anyio.current_time()
            params = self.calling(*steps, echo=echo)
            async with self.client.open("tools/call", params, number=number) as incoming:
                if incoming.status == 404:
                    self.client.id = ""
                if incoming.status != 200:
                    return Answer(incoming.status, await incoming.message())
                message = await incoming.answer()
                answer = Answer(200, message, anyio.current_time() - began)
                if incoming.is_stream:
                    await incoming.rest()
        except TimeoutError:
            raise Unexpected("no answer in time") from None
        except (httpx2.TransportError, EndOfStream) as error:
            return Answer(0, {"closed": repr(error)})
        expect(message.get("id") == number, f"the answer to another id, not {number}: {answer}")
        got = answer.facts.get("echo", echo)
        expect(got == echo, f"I1: the answer to another call: {answer}")
        return answer

    async def open(self) -> Answer:
        """Open a session."""
        response = await self.client.initialize()
        if response.status_code == 200 and self.client.id:
            await self.client.notify("notifications/initialized")
            return Answer(200, self.client.opened)
        if response.status_code == 200:  # the backend did not start, which is told in the answer
            return Answer(503, response.json())
        return Answer(response.status_code, response.json())

    async def ends(self) -> None:
        if self.client.id:
            await self.client.delete()
            self.client.id = ""

    async def knocks(self) -> int:
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        return (await self.client.post(ping)).status_code

    def moves(self, pool: httpx2.AsyncClient) -> None:
        self.client.http = pool

    def by_hand(self, *steps: Json) -> tuple[Entry, Json]:
        """Return a call to be sent by hand, whose answer nobody waits for, and its entry."""
        token = f"{self.client.session}-{secrets.token_hex(4)}"
        entry = self.client.history.sent(self.client.session, "tools/call", token)
        entry.left = True
        params = marked(self.calling(*steps), token)
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        return entry, message


class Guest(Caller):
    """Calls another server of a caller's session, while harm is done to that caller's own server or
    to none: its calls keep the session from being idle."""

    def __init__(self, host: Caller, server: str, pool: httpx2.AsyncClient) -> None:
        super().__init__(host.name, host.arena, pool, random.Random(f"{host.name}@{server}"))
        self.server = server
        self._host = host
        self._met = ""

    async def _call_once(self) -> None:
        id, harm = self._host.client.id, self._host.harm
        if harm and harm not in self.arena.of_backends:
            return
        answer = await self._try((), 1)
        same = id and id == self._host.client.id and harm == self._host.harm
        if same and harm in self.arena.of_backends and not answer.ok:
            self.arena.record.is_wrong(f"{self.name}: {harm} at its other server: {answer}")

    async def _try(self, steps: tuple[Json, ...], number: object) -> Answer:
        self.client.id = self._host.client.id
        if not self.client.id:
            return Answer(503)
        self.client.session = f"{self._host.client.session}@{self.server}"
        if self.client.session != self._met:  # its server is told what the host has begun with
            self._met = self.client.session
            history = self.client.history
            history.finished(history.sent(self._met, "initialize"), Outcome.RESULT)
        try:
            return await super()._try(steps, number)
        except Unexpected as error:
            self.arena.record.is_wrong(f"{self.name} at {self.server}: {error}")
            return Answer(0)

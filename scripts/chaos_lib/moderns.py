"""Clients of 2026-07-28: each has a conversation, named by its path.

Neighbours: `callers` has those of the handshake era, and what both have in common;
`tests.rig.recorded_modern` writes down what they see.
"""

import random
import secrets
from dataclasses import replace
from typing import Final

import anyio
import httpx2

from tests.rig.http import EndOfStream, Json
from tests.rig.recorded_modern import FORM, RecordedModern

from .arena import Arena
from .callers import AGAIN, Answer, AnyCaller, Unexpected, expect

URI: Final = "test://watched"
"""What they listen for, as its server has it."""


class ModernCaller(AnyCaller):
    """One of the modern era. It begins another conversation with each life of the proxy, since a
    name that is used again says nothing of what was behind it before; and another with each call
    between two lives, which either of them may answer."""

    def __init__(
        self, name: str, arena: Arena, pool: httpx2.AsyncClient, rng: random.Random
    ) -> None:
        super().__init__(name, arena, rng)
        self.client = RecordedModern(
            pool,
            arena.url,
            headers=arena.tokens.headers(name),
            history=arena.record.history,
            label=name,
        )
        self.heard = 0
        """Messages on the streams that it listens on."""
        self._turn = 0
        self._begun = (0, 0)
        """The life of the proxy, and which of ours, in which its conversation began."""

    @property
    def watched(self) -> str:
        """What it listens for."""
        return URI.replace("://", f"://{self.server}/") if self.server else URI

    def steps(self) -> tuple[Json, ...]:
        """Every fifth call is asked something, every tenth several things at once."""
        at = self._random.random()
        if at < 0.1:
            return ({"ask": [FORM, {"method": "roots/list"}, FORM]}, {"ask": FORM})
        return ({"ask": FORM},) if at < 0.2 else ()

    async def listens_on(self) -> None:
        """Hear of a resource for ever, whatever becomes of the stream."""
        while True:
            await self.arena.up.wait()
            self._begin()
            try:
                async with self.client.listens(self.watched) as stream:
                    if stream.status == 200:
                        async for _ in stream:
                            self.heard += 1
            except (httpx2.TransportError, EndOfStream, TimeoutError):
                pass  # it was cut off; or it is silent, as it should be
            await anyio.sleep(AGAIN)

    async def _try(self, steps: tuple[Json, ...], number: object) -> Answer:
        echo = secrets.token_hex(8)
        self._begin()
        began = anyio.current_time()
        try:
            status, message = await self.client.ask(self.calling(*steps, echo=echo))
        except TimeoutError:
            raise Unexpected("no answer in time") from None
        except (httpx2.TransportError, EndOfStream) as error:
            return Answer(0, {"closed": repr(error)})
        answer = Answer(status, message, anyio.current_time() - began)
        if status != 200:
            return answer
        got = answer.facts.get("echo", echo)
        expect(got == echo, f"I1: the answer to another call: {answer}")
        return _retold(answer)

    def _begin(self) -> None:
        """Name a conversation, unless there is one already in this life of the proxy."""
        if not self.arena.up.is_set():
            self._turn += 1
        now = (self.arena.lives, self._turn)
        if now != self._begun:
            self._begun = now
            name = f"{self.name}-{now[0]}-{now[1]}-{secrets.token_hex(4)}"
            self.client.url = f"{self.arena.url}/s/{name}"
            self.client.session = f"{self.name}/{now[0]}.{now[1]}"

    async def ends(self) -> None:
        self._turn += 1  # what it leaves ends by being idle

    async def knocks(self) -> int:
        return (await self.client.post("server/discover")).status_code

    def moves(self, pool: httpx2.AsyncClient) -> None:
        self.client.http = pool


def _retold(answer: Answer) -> Answer:
    """Return the answer; that its backend did not start means that there was no place for it."""
    started = answer.fault.get("kind") != "backend_start_failed"
    return answer if started else replace(answer, status=503)

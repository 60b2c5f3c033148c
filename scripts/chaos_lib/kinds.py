"""The kinds of harm that can be done. Each is a function, and says what must come of it.

Neighbours: `of_backends`, `of_clients`, `of_moderns` and `of_proxies` have them; `cli` deals them
out.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from .arena import Arena
from .callers import Answer, AnyCaller, Caller, expect
from .moderns import ModernCaller

Harm = Callable[[Arena, AnyCaller], Awaitable[None]]
"""Done through a caller that nothing else is done to. Raises: Unexpected: it came to the wrong."""

OfHandshake = Callable[[Arena, Caller], Awaitable[None]]
OfModern = Callable[[Arena, ModernCaller], Awaitable[None]]

EITHER: Final[dict[str, Harm]] = {}
"""By name, those that go on beside others, whatever the era of the caller."""

HANDSHAKE: Final[dict[str, OfHandshake]] = {}
MODERN: Final[dict[str, OfModern]] = {}
"""Likewise, through callers of that era alone."""

ALONE: Final[dict[str, Harm]] = {}
"""By name, those of the proxy itself: no others meanwhile."""


def either(harm: Harm) -> Harm:
    EITHER[_name(harm)] = harm
    return harm


def handshake(harm: OfHandshake) -> OfHandshake:
    HANDSHAKE[_name(harm)] = harm
    return harm


def modern(harm: OfModern) -> OfModern:
    MODERN[_name(harm)] = harm
    return harm


def alone(harm: Harm) -> Harm:
    ALONE[_name(harm)] = harm
    return harm


def _name(harm: Callable[..., Awaitable[None]]) -> str:
    return getattr(harm, "__name__", "").replace("_", "-")


def in_time(arena: Arena, answer: Answer, bound: float, what: str) -> None:
    """The answer must have come within the `bound` of FAULTS, in seconds."""
    limit = arena.setting.bound(bound)
    expect(answer.took <= limit, f"{what} took {answer.took:.2f} s, not {limit:g}: {answer}")


class Turns:
    """Lets several of one sort go on at once, or one of the other sort alone."""

    def __init__(self) -> None:
        self._going = 0
        self._changed = anyio.Condition()
        self._alone = anyio.Lock()

    async def begin(self) -> None:
        async with self._alone, self._changed:
            self._going += 1

    async def end(self) -> None:
        async with self._changed:
            self._going -= 1
            self._changed.notify_all()

    async def by_itself(self, harm: Callable[[], Awaitable[None]]) -> None:
        """Let those that go on end, and nothing else begin before `harm` is over."""
        async with self._alone:
            async with self._changed:
                while self._going:
                    await self._changed.wait()
            await harm()

"""How code that runs for a client's request reaches that client, and what lasts as long as its
session.

A handler, a hook, a tool of this process: each may have something to ask the client that it works
for, and may keep something for that client's session. Neighbours: `backends.hosted`,
`backends.hooked` and `client` say who is reached; `client` asks.
"""

import itertools
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context, ContextVar
from typing import Final, NamedTuple, Self, TypeVar

import anyio

from .. import wire
from ..wire import Bytes
from .caller import DECLINED, decline
from .context import caller_authorization, current_exchange, current_session, inside
from .exchange import Ask, Exchange, Outcome
from .latch import Latch
from .ports import Upstream

logger: Final = logging.getLogger(__name__)

T = TypeVar("T")

_NUMBERS: Final = itertools.count(1)


class Scope:
    """What is kept for as long as a session has its backend. Left when that is given back: all that
    is kept ends."""

    def __init__(self) -> None:
        number = next(_NUMBERS)
        self.mark: object = number
        """Tells it from every other one, also from those that are over."""
        self.user: str = f"session {number}"
        """As whose it counts: of two, nobody knows whether they are the same user's."""
        self._kept: dict[Hashable, object] = {}
        self._ends: list[Callable[[], Awaitable[None]]] = []
        self.is_over: bool = False
        """Nothing of it ends any more: who still has it outlives the session."""

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept under `key`; made now, where nothing is."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[return-value] # one kind for each key

    def on_end(self, end: Callable[[], Awaitable[None]]) -> None:
        """Have `end` awaited when the session gives its backend back, the last one first. Not to be
        used where it is over."""
        self._ends.append(end)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *why: object) -> None:
        with anyio.CancelScope(shield=True):  # bounded by what stopping is bounded by
            await self._close()

    async def _close(self) -> None:
        self.is_over = True
        while self._ends:
            try:
                await self._ends.pop()()
            except Exception:  # the rest must end all the same
                logger.exception("something that a session kept could not be ended")
        self._kept.clear()


class Reach(NamedTuple):
    """The client that the present code works for."""

    upstream: Upstream
    exchange: Exchange
    """The request of it that is worked on."""
    scope: Scope
    token: bytes | None = None
    """Under which the client wants to hear of progress, encoded; None: it does not."""

    def ask(self, ask: Ask) -> None:
        """Ask it; where it cannot be asked this, or not any more, the answer is a refusal."""
        if self.exchange.outcome is None and self.exchange.sink.takes(ask.method):
            self.upstream.ask(ask, self.exchange)
        else:
            decline(ask)

    def tell(self, method: str, params: Bytes | None) -> None:
        """Tell it something that belongs to its request."""
        if self.exchange.outcome is None:
            encoded = wire.encode_notification(method, params)
            self.upstream.notification(method, params, encoded, self.exchange)


REACH: ContextVar[Reach | None] = ContextVar("REACH", default=None)
"""Whom the present code works for; None: nobody."""

SCOPE: ContextVar[Scope | None] = ContextVar("SCOPE", default=None)
"""What is kept for a session in front that has several parts; None: each part keeps its own."""


def keep_in(context: Context, scope: Scope) -> None:
    """Have what parts of a session keep kept for the whole of it. `context`: of a request."""
    if context.get(SCOPE) is None:
        context.run(SCOPE.set, scope)


def reaching(
    context: Context, upstream: Upstream, exchange: Exchange, scope: Scope, token: bytes | None
) -> Context:
    """Return `context`, of a request, in which now its client can be reached. `scope`: of this
    part of its session."""
    whole = context.get(SCOPE) or scope
    context.run(REACH.set, Reach(upstream, exchange, whole, token))
    return context


def same_request(context: Context, own: Context) -> None:
    """Have `context`, in which code of the user's goes on with a request, be of that request in all
    that the proxy has there, as `own` is: a task that serves several may have been begun by any."""
    context.run(REACH.set, own.get(REACH))
    context.run(SCOPE.set, own.get(SCOPE))
    context.run(caller_authorization.set, own.get(caller_authorization))
    context.run(current_exchange.set, own.get(current_exchange))
    context.run(current_session.set, own.get(current_session))
    context.run(inside.set, own.get(inside, ()))


class _Question(Ask):
    """A request to the client of the proxy's own."""

    def __init__(self, method: str, params: Bytes | None) -> None:
        super().__init__(method, params, self._take)
        self.outcome = DECLINED
        self.over = Latch()

    def _take(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def withdraw(self) -> None:
        super().withdraw()
        self.over.set()


async def ask_client(method: str, params: Bytes | None) -> Outcome:
    """Ask the client that the present code works for, and return its answer; a refusal, where
    there is no such, or it has gone."""
    reach = REACH.get()
    if reach is None:
        return DECLINED
    question = _Question(method, params)
    reach.ask(question)
    try:
        await question.over.wait()
    except BaseException:
        reach.upstream.withdraw(question, None)
        raise
    return question.outcome

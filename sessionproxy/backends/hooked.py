"""Runs hooks around the requests of every session.

A hook may wait, so a request that has one has a task, in a copy of the context that it came in.
Neighbours: `core.hooks` is what hooks see; `assembly` puts this behind the sessions.
"""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from functools import partial
from typing import Final, NamedTuple, Self, cast

import anyio

from .. import wire
from ..core.background import Background, Work, of_the_users
from ..core.between import Around, Between, instead_of
from ..core.exchange import FAULTY, Exchange, Outcome
from ..core.hooks import CallNext, Request, RequestFailed, RequestHook, Result, Sender
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Launcher, Upstream
from ..core.reach import Scope, keep_in, reaching, same_request
from ..core.waiting import WaitingRoom
from ..errors import ProxyError, RequestCancelled, alone
from ..wire import Bytes
from ..wire.envelope import progress_token

logger: Final = logging.getLogger(__name__)

_CANCELLED: Final = Outcome(failure=RequestCancelled("The request was cancelled."))

_NOT_WAITED_FOR: Final = b'{"reason":"nobody waits for it any more"}'


class HookedLauncher(Around, anyio.AsyncContextManagerMixin):
    """A `Launcher` around one. Entered before the first launch, left after the last backend."""

    def __init__(self, launcher: Launcher, hooks: Sequence[RequestHook]) -> None:
        """`hooks`: the first one is the outermost."""
        super().__init__(launcher)
        self._hooks = tuple(hooks)
        self._background = Background()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._background:
            yield self

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        hooked = Hooked(self._hooks, self._background, identity, label, upstream)
        launching = self.launcher.launch(identity, label, hooked, opening)
        async with hooked.scope, launching as backend:
            try:
                yield hooked.before(backend)
            finally:
                hooked.close()


class _Run(NamedTuple):
    """Hooks that run around a request, and the context that it has for them."""

    work: Work
    context: Context


class Hooked(Between):
    """A backend with hooks around it."""

    def __init__(
        self,
        hooks: Sequence[RequestHook],
        background: Background,
        identity: Identity,
        label: str,
        upstream: Upstream,
    ) -> None:
        super().__init__(upstream)
        self._hooks = hooks
        self._background = background
        self._sender = Sender.of(identity, label, upstream)
        self._label = label
        self.scope: Scope = Scope()
        """What hooks keep for this session, and what is behind them too."""
        self._running: dict[Exchange, _Run] = {}
        self._sent: dict[Exchange, list[Exchange]] = {}
        """For each that has not come back: a hook may send more than one, or wait for none."""
        self._waiting = WaitingRoom()
        """Those of which nothing was sent yet."""

    def request(self, exchange: Exchange) -> None:
        request = self._sender.request(exchange)
        keep_in(exchange.context, self.scope)
        token = progress_token(exchange.params)
        context = exchange.context.copy()
        reaching(context, self.upstream, exchange, self.scope, token)
        if not self._waiting.enter(exchange):
            return
        self._running[exchange] = run = _Run(Work(), context)
        self._background.start(self._run, exchange, request, run.work, context=context)

    async def _run(self, exchange: Exchange, request: Request, work: Work) -> None:
        outcome = _CANCELLED

        async def run_hooks() -> None:
            nonlocal outcome
            with of_the_users():
                result = await self._next(exchange, 0)(request)
            outcome = Outcome(result=_complete(result.raw, exchange))

        try:
            await work.run(run_hooks)
        except Exception as error:  # noqa: BLE001 - a hook is not ours: it fails the one request
            outcome = self._failed(request, alone(error, RequestFailed, ProxyError))
        finally:
            self._running.pop(exchange, None)
            self._waiting.leave(exchange)
            for inner in self._sent.pop(exchange, ()):  # the hook has begun it and gone
                self.backend.cancel(inner, _NOT_WAITED_FOR)
                inner.settle(_CANCELLED)  # a task that works for others, too, may wait for it
            exchange.settle(outcome)

    def _failed(self, request: Request, error: BaseException) -> Outcome:
        if isinstance(error, RequestFailed):
            return Outcome(error=error.raw)
        if isinstance(error, ProxyError):
            return Outcome(failure=error.with_traceback(None))
        text = "session %s: a hook failed on %s"
        logger.error(text, self._label, request.method, exc_info=error)
        return FAULTY

    def _next(self, exchange: Exchange, number: int) -> CallNext:
        if number == len(self._hooks):
            return partial(self._forward, exchange)
        return partial(self._run_hook, exchange, number)

    async def _run_hook(self, exchange: Exchange, number: int, request: Request) -> Result:
        hook = self._hooks[number]
        made = await hook(request, self._next(exchange, number + 1))
        result = cast("object", made)  # types alone cannot prevent others
        if not isinstance(result, Result):
            name = getattr(hook, "__qualname__", repr(hook))
            raise TypeError(f"{name}: a hook returns a Result, not {type(result).__name__}")
        return result

    async def _forward(self, exchange: Exchange, request: Request) -> Result:
        """Raises: RequestFailed, ProxyError."""
        came = anyio.Event()
        found: list[Outcome] = []

        def answered(outcome: Outcome) -> None:
            found.append(outcome)
            came.set()

        run = self._running.get(exchange)
        if run is None:  # its hooks are done, and so is it
            raise RequestCancelled("The request was cancelled.")
        inner = instead_of(exchange, request.method, request.raw, answered)
        inner.context = copy_context()  # what hooks have set is to be seen behind them
        same_request(inner.context, run.context)
        sent = self._sent.setdefault(exchange, [])
        sent.append(inner)
        self._waiting.leave(exchange)
        self.backend.request(inner)
        inner.params = None  # they may be large, and the answer may be a long time coming
        try:
            await came.wait()
        finally:
            if not found:  # the hook waits no longer
                self.backend.cancel(inner, _NOT_WAITED_FOR)
            sent.remove(inner)
        outcome = found[0]
        if outcome.error is not None:
            raise RequestFailed.read(outcome.error)
        if outcome.result is None:
            raise (outcome.failure or RequestCancelled("The request was cancelled.")).fresh()
        return Result(bytes(outcome.result))

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        for inner in self._sent.get(exchange, ()):
            self.backend.cancel(inner, params)
        run = self._running.pop(exchange, None)
        if run is not None:
            run.work.cancel()

    def in_flight(self) -> tuple[Exchange, ...]:
        return tuple(self._running)

    def close(self) -> None:
        """Wait for nothing: the backend is being stopped."""
        for run in tuple(self._running.values()):
            run.work.cancel()


def _complete(raw: bytes, exchange: Exchange) -> bytes:
    """Return a result with what a client of the modern era needs in any (2026-07-28 basic): a hook
    that answers itself need not know whose request it was."""
    if exchange.envelope is None or wire.member(raw, "resultType") is not None:
        return raw
    return wire.with_member(raw, "resultType", b'"complete"') or raw

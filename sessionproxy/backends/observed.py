"""Shows hooks what passes between a session and a backend that no relay of this proxy speaks to.

Neighbours: `route` puts it around backends of kinds that it does not know; `core.relay` shows what
passes to and from the others.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from ..core.between import Around, Between, outer_of
from ..core.exchange import Ask, Exchange, Forwarded, Hook, Outcome
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Launcher, Upstream
from ..core.shown import Shown
from ..wire import Bytes


class ObservedLauncher(Around):
    """A `Launcher` around one."""

    def __init__(self, launcher: Launcher, hooks: Sequence[Hook]) -> None:
        super().__init__(launcher)
        self._hooks = tuple(hooks)

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        observed = Observed(upstream, Shown(self._hooks, label))
        async with self.launcher.launch(identity, label, observed, opening) as backend:
            yield observed.before(backend)


class Observed(Between):
    """A backend that hooks look at."""

    def __init__(self, upstream: Upstream, shown: Shown) -> None:
        super().__init__(upstream)
        self._show = shown.show

    def request(self, exchange: Exchange) -> None:
        method = exchange.method
        self._show(Forwarded(True, "request", method, exchange.params, exchange))

        def answered(outcome: Outcome) -> None:
            if outcome.failure is None:
                self._show(
                    Forwarded.answer(to_backend=False, method=method, outcome=outcome, of=exchange)
                )
            exchange.settle(outcome)

        self.send_for(exchange, method, exchange.params, answered)

    def notify(self, method: str, params: Bytes | None) -> None:
        self._show(Forwarded(True, "notification", method, params, None))
        super().notify(method, params)

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        self._show(Forwarded(False, "request", ask.method, ask.params, outer_of(exchange)))
        super().ask(ask, exchange)

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        self._show(Forwarded(False, "notification", method, params, outer_of(exchange)))
        super().notification(method, params, encoded, exchange)

"""What stands between a session and its backend, and may send requests of its own for those.

Neighbours: `eras`, `backends.renamed`, `backends.hooked` and `backends.composite` are such; an
`Instead` is where the answer to a request of theirs goes.
"""

from collections.abc import Callable
from typing import Final, Protocol, Self, runtime_checkable

from ..errors import Exit
from ..wire import Bytes
from .caller import Nobody
from .exchange import Ask, Exchange, Outbound, Outcome
from .memory import Opening
from .ports import Backend, Composed, Identity, Launcher, Losing, Upstream

FAULTY: Final = Outcome(
    error=b'{"code":-32603,"message":"The proxy failed to pass the answer on."}'
)
"""What a request gets whose answer we failed with, by a fault of our own."""


class Instead:
    """A `ReplySink` before that of the client's own exchange."""

    def __init__(self, outer: Exchange, then: Callable[[Outcome], None]) -> None:
        """`then` is given the answer; what comes before it goes to the client."""
        self.outer = outer
        self._then = then

    @property
    def attached(self) -> bool:
        return self.outer.sink.attached

    def takes(self, method: str) -> int:
        return self.outer.sink.takes(method)

    def message(self, message: Outbound) -> None:
        self.outer.sink.message(message)

    def settled(self, exchange: Exchange) -> None:
        try:
            self._then(exchange.outcome or Outcome())
        except Exception:
            self.outer.settle(FAULTY)  # nobody else would: the answer has come
            raise  # to whoever had it from the backend, and logs it


def instead_of(
    outer: Exchange, method: str, params: Bytes | None, then: Callable[[Outcome], None]
) -> Exchange:
    """Return a request that is sent for `outer`, of the same client and in the same context."""
    return Exchange(
        method,
        params,
        client_id=outer.client_id,
        sink=Instead(outer, then),
        context=outer.context,
        envelope=outer.envelope,
        origin=outer.origin,
    )


def outer_of(exchange: Exchange | None) -> Exchange | None:
    """Return the request that `exchange` was sent for; itself, where it was for none."""
    if exchange is not None and isinstance(exchange.sink, Instead):
        return exchange.sink.outer
    return exchange


def client_of(exchange: Exchange) -> Exchange:
    """Return the client's own request that `exchange` is sent for, through however many."""
    while isinstance(exchange.sink, Instead):
        exchange = exchange.sink.outer
    return exchange


@runtime_checkable
class PassesOn(Protocol):
    """An `Upstream` that is none itself: it has one."""

    @property
    def upstream(self) -> Upstream: ...


def is_nobodys(upstream: Upstream) -> bool:
    """Return whether there is no client behind it, through however many stand between."""
    return isinstance(_innermost(upstream), Nobody)


def owner_behind(upstream: Upstream, owner: str) -> str | None:
    """Return for whom requests are: for `owner`, whose the session is, or whoever else is asked for
    where there is no client; None: for nobody."""
    innermost = _innermost(upstream)
    return innermost.owner if isinstance(innermost, Nobody) else owner


def _innermost(upstream: Upstream) -> Upstream:
    while isinstance(upstream, PassesOn):
        upstream = upstream.upstream
    return upstream


class Around:
    """A `Launcher` around one: what it adds is in its `launch`."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return await self.launcher.refused(identity, opening)


class Between:
    """A `Backend` to the session, an `Upstream` to the backend. All goes on as it is."""

    backend: Backend

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._parts: Composed | None = None
        self._inner: dict[Exchange, Exchange] = {}
        """By those of the session that are in flight: what was sent for each."""

    def before(self, backend: Backend) -> Self:
        """Take the backend, once there is one."""
        self.backend = backend
        self._parts = backend if isinstance(backend, Composed) else None
        return self

    # -- towards the backend -----------------------------------------------------------------------

    def request(self, exchange: Exchange) -> None:
        self.send_for(exchange, exchange.method, exchange.params, exchange.settle)

    def send_for(
        self, outer: Exchange, method: str, params: Bytes | None, then: Callable[[Outcome], None]
    ) -> None:
        """Send a request for one of the session's; `then` is given the answer."""

        def answered(outcome: Outcome) -> None:
            self._inner.pop(outer, None)
            then(outcome)

        inner = self._inner[outer] = instead_of(outer, method, params, answered)
        self.backend.request(inner)
        inner.params = None  # they may be large, and the answer may be a long time coming

    def notify(self, method: str, params: Bytes | None) -> None:
        self.backend.notify(method, params)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        inner = self._inner.pop(exchange, None)
        if inner is not None:
            self.backend.cancel(inner, params)

    def in_flight(self) -> tuple[Exchange, ...]:
        return tuple(self._inner)

    @property
    def bereaved(self) -> bool:
        return self._parts is not None and self._parts.bereaved

    def bereft(self, exchange: Exchange) -> Losing | None:
        return None if self._parts is None else self._parts.bereft(exchange)

    # -- from the backend --------------------------------------------------------------------------

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        self.upstream.ask(ask, outer_of(exchange))

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        self.upstream.withdraw(ask, params)

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        self.upstream.notification(method, params, encoded, outer_of(exchange))

    def hold(self, exchange: Exchange) -> None:
        self.upstream.hold(exchange)

    def ended(self, how: Exit) -> None:
        self.upstream.ended(how)

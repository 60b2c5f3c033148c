"""What one of several servers sends: what is for the client goes to the whole session.

Neighbours: `backends.parts` has the parts; `assembly` puts this around what launches a server.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from .. import wire
from ..core.between import Around
from ..core.exchange import Ask, Exchange, Outbound, Outcome
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Upstream
from ..core.session import Session
from ..errors import Exit
from ..wire import Bytes
from .parts import Part, PartClient


class PartLauncher(Around):
    """A `Launcher` around a server's: what the server sends goes to the whole."""

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        tap = _Tap(part_of(upstream), upstream)
        async with self.launcher.launch(identity, label, tap, opening) as backend:
            try:
                yield backend
            finally:
                tap.close()


class _Tap:
    """The `Upstream` of one server: to the whole goes what is for the client, to its own session
    what is about itself."""

    def __init__(self, part: Part, session: Upstream) -> None:
        part.begins()
        self._whole = part.whole
        self._part = part
        self._session = session
        self._asked: dict[Ask, None] = {}

    @property
    def upstream(self) -> Upstream:
        """Of the whole session."""
        return self._whole.upstream

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        self._asked = {asked: None for asked in self._asked if asked.waits}
        self._asked[ask] = None
        self._whole.ask(self._part, ask, exchange)

    def close(self) -> None:
        """The server is being stopped, and waits for no answer any more."""
        for ask in self._asked:
            if ask.waits:
                self.withdraw(ask, None)

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        self._whole.upstream.withdraw(ask, params)

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        if wire.method_of(method).lists:
            self._part.changed(method)
            self._session.notification(method, params, encoded, None)
        self._whole.tell(self._part, method, params, encoded, exchange)

    def hold(self, exchange: Exchange) -> None:
        """Keep both from being idle: the whole by a request that is settled together with this."""
        self._session.hold(exchange)
        stay = Exchange(exchange.method, None, client_id=b"0", sink=_Stay())
        exchange.share = _Returns(stay)
        self._whole.upstream.hold(stay)

    def ended(self, how: Exit) -> None:
        self._session.ended(how)


class _Returns:
    """A `Holder` that has another exchange settled with one."""

    def __init__(self, stay: Exchange) -> None:
        self._stay = stay

    def returned(self, exchange: Exchange) -> None:
        self._stay.settle(exchange.outcome or Outcome())


class _Stay:
    """Where the answer goes to an exchange that is there to hold a session. A `ReplySink`."""

    attached = False

    def takes(self, method: str) -> int:
        return 0

    def message(self, message: Outbound) -> None: ...

    def settled(self, exchange: Exchange) -> None: ...


def part_of(upstream: Upstream) -> Part:
    """Return whose backend it is that is launched for a session."""
    assert isinstance(upstream, Session)
    assert isinstance(upstream.client, PartClient)
    return upstream.client.part

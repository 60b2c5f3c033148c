"""Sessions of proxies that share the one session of a client.

To each of them the client's session is a shared backend, and to the client itself too: ids, tokens,
subscriptions, log levels and questions are kept apart as in shared mode. Neighbours:
`backends.share` does that; `client.connection` puts the tap behind a client's session,
`client.shared` and `client.provider` let others have a share.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from ..backends.attribution import IMPERSONAL, Party
from ..backends.share import Share, SharedBackend
from ..core.between import Around
from ..core.exchange import Ask, Exchange
from ..core.memory import Opening
from ..core.ports import Backend, Identity, Launcher, Upstream
from ..core.reach import REACH
from ..core.relay import Relay
from ..core.start import introduced, not_started
from ..eras import ToModern
from ..errors import BackendGone, BackendStartFailed, Exit, ProxyError
from ..front import LOCAL
from ..wire import Bytes
from .handled import Handled
from .handlers import PROGRESS
from .launching import Given
from .link import Desk

ANONYMOUS: Final = "anonymous"
"""Owner of the sessions of all who need no credential."""

METHOD_NOT_FOUND: Final = b'{"code":-32601,"message":"Method not found"}'

MAX_OF_OWNER: Final = 2**31
"""Requests of the client's own that may be in flight: whatever its server takes."""

ROOTS_CHANGED: Final = "notifications/roots/list_changed"

DISCONNECTED: Final = Exit(detail="its client was disconnected")


class _Own(Share):
    """The client's own. Its calls may be made for several sessions in front, by tools and hooks;
    what belongs to one of these is to reach no other."""

    def party(self, exchange: Exchange) -> Party:
        reach = exchange.context.get(REACH)
        return self if reach is None else reach.scope


class Tapped(SharedBackend):
    """A client's backend, while it runs."""

    def __init__(self, upstream: Upstream, tally: Counter[str]) -> None:
        """`upstream`: the client's own session."""
        super().__init__(modern=False, tally=tally, over=lambda how: None, useless=self.end)
        self.own: Share = _Own(self, LOCAL, upstream, most=MAX_OF_OWNER)
        self.join(self.own)
        self._own_used = False
        self._admitted = 0
        self._sessions: set[Share] = set()

    @property
    def sessions(self) -> int:
        """How many sessions of proxies have a share now."""
        return len(self._sessions)

    def admit(self, user: str, upstream: Upstream) -> Share:
        share = super().admit(user, upstream)
        self._admitted += 1
        self._sessions.add(share)
        return share

    def leave(self, share: Share) -> None:
        self._sessions.discard(share)
        super().leave(share)

    def send(self, exchange: Exchange) -> None:
        if exchange.share is self.own and exchange.method not in IMPERSONAL:
            self._own_used = True
        super().send(exchange)

    # -- whose a message is ------------------------------------------------------------------------

    def sole(self) -> Share | None:
        """Return the only one who has ever used it; None: there are more, or it has gone."""
        if self._admitted == 0:
            return self.own
        if self._admitted == 1 and not self._own_used:
            return next(iter(self._sessions), None)
        return None

    def passes_on(self, share: Share, method: str) -> bool:
        return method == ROOTS_CHANGED and self.sole() is share

    def _certain(self, method: str, exchange: Exchange | None) -> Exchange | None:
        """Return the exchange that a message belongs to, if whoever found it did not guess between
        sessions. A relay asks `candidates`; what stands before several, or before one of the other
        era, does not."""
        if exchange is None or self.backend is None or method == PROGRESS:
            return exchange
        if isinstance(self.backend, Relay):
            return exchange
        if isinstance(self.backend, ToModern) and not method.startswith("notifications/"):
            return exchange  # its question is part of the answer to that very request
        return exchange if exchange in self.candidates(method, self.backend.in_flight()) else None

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        certain, sole = self._certain(ask.method, exchange), self.sole()
        if certain is None and sole is not None and sole.may_be_asked(ask):
            self.questions.put(ask, sole, None)
        else:
            super().ask(ask, certain)

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        certain, sole = self._certain(method, exchange), self.sole()
        if certain is None and sole is not None:
            sole.upstream.notification(method, params, encoded, None)
        else:
            super().notification(method, params, encoded, certain)


class Tap:
    """Lets sessions of proxies have a share in a client's session."""

    def __init__(self, desk: Desk, awake: Callable[[], Awaitable[None]]) -> None:
        """`awake` returns once the client's session has a backend."""
        self.desk = desk
        self.tapped: Tapped | None = None
        self._awake = awake

    async def share(self, user: str, handled: Handled, opening: Opening) -> Share:
        """Return a share of a session of `user` that opened with this, behind `handled`; it is to
        be closed.

        Raises: BackendStartFailed: the client's session cannot be had.
        """
        if self.tapped is None:
            try:
                await self._awake()
            except ProxyError as error:
                raise not_started(error) from None
        if self.tapped is None:
            raise BackendStartFailed("The client is not connected.")
        share = self.tapped.admit(user, handled)
        share.scope = handled.scope
        share.introduce(handled.declaring(opening.method, opening.params))
        handled.before(share)
        return share


class TapLauncher(Around):
    """A `Launcher` around one, for the one session of a client."""

    def __init__(self, launcher: Launcher, tap: Tap) -> None:
        super().__init__(launcher)
        self._tap = tap

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        tapped = Tapped(upstream, Counter())
        async with self.launcher.launch(identity, label, tapped, opening) as backend:
            tapped.started(backend, await introduced(backend, opening))
            self._tap.tapped = tapped
            try:
                yield tapped.own
            finally:
                self._tap.tapped = None
                tapped.own.close()
                if tapped.sessions:
                    tapped.end(DISCONNECTED)


@asynccontextmanager
async def shared(tap_of: Callable[[], Tap], given: Given) -> AsyncGenerator[Backend]:
    """Have a share in a client's session for as long as a session does.

    `tap_of` raises BackendGone: the client is not connected now.

    Raises: BackendStartFailed: nor can it be.
    """
    try:
        tap = tap_of()
    except BackendGone as error:
        raise not_started(error) from None
    handled = Handled(given.upstream, tap.desk, given.scope)
    share = await tap.share(user_of(given.identity), handled, given.opening)
    try:
        yield handled
    finally:
        share.close()


def user_of(identity: Identity) -> str:
    """Return whose a session is: nobody knows who the anonymous are."""
    return identity.key if identity.owner == ANONYMOUS else identity.owner

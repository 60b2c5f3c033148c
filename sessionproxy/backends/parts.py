"""One server's part in a session that has several.

A part is a session in the server's own manager, which thinks of starting, failing, waking and
ending. What the server sends to its client goes past that session, straight to the whole.
Neighbours: `backends.composite` is the whole; `route` makes the members and their managers.
"""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol, TypeAlias

import anyio
import msgspec
from msgspec import Raw

from .. import wire
from ..core.between import Instead, outer_of
from ..core.exchange import Ask, Exchange, Outbound, Outcome
from ..core.manager import SessionManager
from ..core.memory import Loss, Opening
from ..core.ports import Backend, Identity, Launcher, Upstream
from ..core.session import Session
from ..core.state import EndReason, SessionState
from ..errors import BackendStartFailed, Exit, ProxyError, TryLater
from ..wire import Bytes
from .introduction import Welcome
from .names import KINDS, Kind, Names

logger: Final = logging.getLogger(__name__)

METHOD_NOT_FOUND: Final = -32601

_CAPABILITY: Final = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resources",
    "tasks/list": "tasks",
}


Stand: TypeAlias = Callable[[str, Bytes | None], Bytes | None]
"""Given method and parameters of a request, returns the parameters of that which another server is
to be sent instead; None: it stays."""


def _as_it_is(method: str, params: Bytes | None) -> Bytes | None:
    return None


class Member:
    """A server, as those know it who put several together."""

    whole_of: Callable[[Identity], "Whole | None"]
    """Returns what a session of its manager is a part of. Set by the whole."""

    manager: SessionManager
    """Of its parts alone. Set by whoever makes it."""

    def __init__(self, name: str, names: Names, *, instead: Stand | None = None) -> None:
        """`instead`: says which requests another server of the session is to be sent."""
        self.name = name
        self.names = names
        self.instead: Stand = instead or _as_it_is
        self.welcome: Welcome | None = None
        """As it was met last, by whomever."""
        self.failure: str | None = None
        """Why it could not be had when it was asked for last; None: it could."""

    def facts(self) -> dict[str, object]:
        """Return what `/readyz` shows of it."""
        if self.manager.circuit.rests(anyio.current_time()):
            state = "resting"
        elif self.failure is not None:
            state = "down"
        else:
            state = "up" if self.welcome is not None else "not met yet"
        return {"status": state, "sessions": len(self.manager.registry)}


class Whole(Protocol):
    """What parts belong to."""

    @property
    def upstream(self) -> Upstream: ...

    @property
    def opening(self) -> Opening: ...

    def part(self, name: str) -> "Part": ...

    def ask(self, part: "Part", ask: Ask, exchange: Exchange | None) -> None:
        """Take a question of a server's, which belongs to `exchange` of the client's, if to any."""
        ...

    def tell(
        self,
        part: "Part",
        method: str,
        params: Bytes | None,
        encoded: bytes,
        exchange: Exchange | None,
    ) -> None:
        """Take a notification of a server's, likewise."""
        ...


class Part:
    """One server's. What can lose its state (`Losing`)."""

    def __init__(self, member: Member, whole: Whole, owner: str, key: str, label: str) -> None:
        """`owner`, `key` and `label`: of the whole session."""
        self.member = member
        self.level: Bytes | None = None
        """The parameters of the last `logging/setLevel`."""
        self._whole = whole
        self._owner = owner
        self._key = key
        self._label = label
        self._session: Session | None = None
        self._listed: dict[str, set[str]] = {}
        """By list: what the server has, under its own names."""

    def __repr__(self) -> str:
        return f"<Part {self.name} {self._session!r}>"

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def names(self) -> Names:
        return self.member.names

    # -- its session -------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        return self._session is not None and self._session.state is SessionState.READY

    async def ready(self, exchange: Exchange) -> None:
        """Wait until the server is there, on behalf of a request of the client's.

        Raises: ProxyError: it cannot be had; the text names it.
        """
        try:
            if exchange.outcome is None:
                session = exchange.context.copy().run(self._opened)
                await self.member.manager.ready(session)
                self._met(session)
        except ProxyError as error:
            if not isinstance(error, TryLater):
                self.member.failure = str(error)
            raise self._named(error) from None

    def _opened(self) -> Session:
        """Return its session; a new one, where it has none or that one is over.

        Raises: Draining, RouteResting: nothing was started.
        """
        session = self._session
        if session is None or session.state in (SessionState.ENDING, SessionState.CLOSED):
            manager, opening = self.member.manager, self._whole.opening
            session = manager.part(self._owner, self._key, opening, _Unseen())
            session.memory.log_level = self.level if self._may_log else None
            logger.info("session %s: %s is session %s", self._label, self.name, session.label)
            self._session = session
        return session

    def _met(self, session: Session) -> None:
        self.member.failure = None
        if session.welcome is not None:
            self.member.welcome = Welcome.of(session.welcome)

    def request(self, inner: Exchange) -> None:
        """Raises: SessionNotFound: it is not there any more."""
        assert self._session is not None
        self._session.request(inner)

    def cancel(self, inner: Exchange, params: Bytes | None) -> None:
        if self._session is not None:
            self._session.cancel(inner, params)

    def notify(self, method: str, params: Bytes | None) -> None:
        if self._session is not None:
            self._session.notify(method, params)

    async def close(self) -> None:
        """End its session, and wait until its backend is gone."""
        session = self._session
        if session is not None:
            self.member.manager.end(session, EndReason.WHOLE_ENDED)
            await session.stopped.wait()

    # -- what it has -------------------------------------------------------------------------------

    def offers(self, kind: Kind) -> bool:
        """Return whether it has such a list at all."""
        capability = _CAPABILITY[kind.method]
        return self.member.welcome is None or capability in self.member.welcome.capabilities

    @property
    def _may_log(self) -> bool:
        return self.member.welcome is None or "logging" in self.member.welcome.capabilities

    @property
    def logs(self) -> bool:
        welcome = self.member.welcome
        return welcome is not None and "logging" in welcome.capabilities

    def listed(self, kind: Kind, items: Raw | None, *, first: bool) -> list[Raw]:
        """Take a page of a list; return its items as they are in front. `first`: it is the first
        one."""
        if items is None:
            return []
        known = self._listed.setdefault(kind.method, set())
        if first:
            known.clear()
        known.update(_keys(items, kind.key))
        named = self.names.listed(kind, items) if kind.method in KINDS else items
        return _items(Raw(named or b"[]"))

    def knows(self, kind: Kind) -> bool:
        return kind.method in self._listed

    def has(self, kind: Kind, original: str) -> bool:
        return original in self._listed.get(kind.method, ())

    def check_refusal(self, kind: Kind, error: bytes) -> None:
        """A list was refused: a server without such a list may say so.

        Raises: BackendStartFailed: it was for another reason.
        """
        self._listed[kind.method] = set()
        if wire.code_of(error) != METHOD_NOT_FOUND:
            told = error.decode(errors="replace")[:500]
            raise self._named(BackendStartFailed(f"it refused {kind.method}: {told}"))

    def in_front(self, method: str, outcome: Outcome) -> Outcome:
        """Return an answer of the server's as the client is to see it."""
        if outcome.result is not None:
            return Outcome(result=self.names.result(method, outcome.result))
        if outcome.failure is not None:
            return Outcome(failure=self._named(outcome.failure))
        return outcome

    def _named(self, error: ProxyError) -> ProxyError:
        """Return a failure that says whose it is."""
        named = error.fresh()
        named.server = self.name
        return named

    # -- what was lost -----------------------------------------------------------------------------

    @property
    def bereaved(self) -> bool:
        return self._session is not None and self._session.loss is not None

    @property
    def loss(self) -> Loss | None:
        session = self._session
        if session is None or session.loss is None:
            return None
        if not session.loss.server:
            session.loss = session.loss._replace(server=self.name)
        return session.loss

    @loss.setter
    def loss(self, loss: Loss | None) -> None:
        if self._session is not None:
            self._session.loss = loss

    # -- from the server ---------------------------------------------------------------------------

    def changed(self, method: str) -> None:
        """One of its lists has changed."""
        for kind in KINDS.values():
            if method == f"notifications/{_CAPABILITY[kind.method]}/list_changed":
                self._listed.pop(kind.method, None)


class PartLauncher:
    """A `Launcher` around a server's: what the server sends goes to the whole."""

    def __init__(self, launcher: Launcher, member: Member) -> None:
        self._launcher = launcher
        self._member = member

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Backend]:
        whole = self._member.whole_of(identity)
        if whole is None:
            raise BackendStartFailed("The session that it was to be a part of is over.")
        tap = _Tap(whole, whole.part(self._member.name), upstream)
        async with self._launcher.launch(identity, label, tap, opening) as backend:
            yield backend

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return await self._launcher.refused(identity, opening)


class _Tap:
    """The `Upstream` of one server: to the whole goes what is for the client, to its own session
    what is about itself."""

    def __init__(self, whole: Whole, part: Part, session: Upstream) -> None:
        self._whole = whole
        self._part = part
        self._session = session

    def ask(self, ask: Ask, exchange: Exchange | None) -> None:
        self._whole.ask(self._part, ask, _clients(exchange))

    def withdraw(self, ask: Ask, params: Bytes | None) -> None:
        self._whole.upstream.withdraw(ask, params)

    def notification(
        self, method: str, params: Bytes | None, encoded: bytes, exchange: Exchange | None
    ) -> None:
        if wire.method_of(method).lists:
            self._part.changed(method)
            self._session.notification(method, params, encoded, None)
        self._whole.tell(self._part, method, params, encoded, _clients(exchange))

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


class _Unseen:
    """The `ClientPort` of a part's session: its client is the whole's."""

    listening = False
    left_at: float | None = None
    size = 0

    def message(self, message: Outbound) -> None: ...

    def heard(self) -> None: ...

    def asleep(self) -> None: ...

    def close(self) -> None: ...


def _clients(exchange: Exchange | None) -> Exchange | None:
    """Return the client's request that a message belongs to. What is sent for no request of the
    client's is none of its."""
    found = outer_of(exchange)
    return found if exchange is not None and isinstance(exchange.sink, Instead) else None


def _items(items: Raw) -> list[Raw]:
    try:
        return msgspec.json.decode(items, type=list[Raw])
    except (msgspec.DecodeError, RecursionError):
        return []


def _keys(items: Raw, key: str) -> set[str]:
    """Return the names of the items."""
    found = (wire.text_member(item, key) for item in _items(items))
    return {name for name in found if name is not None}

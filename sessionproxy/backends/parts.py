"""One server's part in a session that has several.

A part is a session in the server's own manager, which thinks of starting, failing, waking and
ending. What the server sends to its client goes past that session, straight to the whole.
Neighbours: `backends.composite` is the whole; `backends.tapped` hands it what the server sends;
`assembly` makes the members and their managers.
"""

import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from functools import partial
from math import ceil
from types import MappingProxyType
from typing import Final, Protocol

import anyio
import msgspec
from msgspec import Raw

from .. import wire
from ..core.exchange import Ask, Exchange, Outbound, Outcome
from ..core.manager import SessionManager
from ..core.memory import Loss, Memory, Opening
from ..core.ports import Upstream
from ..core.session import Session
from ..core.state import EndReason, SessionState
from ..errors import (
    BackendGone,
    BackendSilent,
    BackendStartFailed,
    Draining,
    ProxyError,
    RouteResting,
    SessionEnded,
    SessionNotFound,
    StateLost,
    TryLater,
)
from ..wire import Bytes
from .introduction import Welcome
from .names import KINDS, Kind, Names, Reference, reference_of

logger: Final = logging.getLogger(__name__)

METHOD_NOT_FOUND: Final = -32601

LISTED_AGAIN: Final = 5.0
"""Seconds for which lists do without a server that could not be had: clients ask for four of them
in a row, and each try costs a start."""

MAX_OWNERS: Final = 1024
"""Owners of whom is kept what a server told them about itself; the one met first goes first."""

_CAPABILITY: Final = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resources",
    "tasks/list": "tasks",
}


_OVER: Final = (SessionState.ENDING, SessionState.CLOSED)


class Stand(Protocol):
    """A server that has names for what others of the same proxy have. All names are those that the
    proxy itself has for them, wherever it is mounted."""

    def instead(self, method: str, params: Bytes | None) -> Bytes | None:
        """Return the parameters of the request that another server is to be sent instead of this
        one; None: it is for this server."""
        ...

    def hides(self, kind: Kind, name: str) -> bool:
        """Return whether nobody is to see or use what has this name, whosever it is."""
        ...


class Member:
    """A server, as those know it who put several together."""

    manager: SessionManager
    """Of its parts alone. Set by whoever makes it, as `spares` is."""

    spares: SessionManager
    """Of its parts in what is no client's: they take up nobody's place."""

    def __init__(
        self,
        name: str,
        names: Names,
        *,
        stand: Stand | None = None,
        within: tuple[object, ...] = (),
        about: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`within`: the proxies that have it, the innermost first. `about`: what `/readyz` shows of
        it besides; its `description` is for clients, too."""
        self.name = name
        self.names = names
        self.stand = stand
        self._within = within
        self.about: Mapping[str, str] = about
        self.capabilities: Mapping[str, Raw] | None = None
        """As it was met last, by whomever; None: it was not."""
        self._instructions: OrderedDict[str, str | None] = OrderedDict()
        """By owner: a server may well say there what is only for the one it speaks to."""
        self.failure: str | None = None
        """Why it could not be had when it was asked for last; None: it could."""

    def covers(self, other: "Member") -> bool:
        """Return whether another server is of the proxy that this one is of, or of one in that."""
        return set(self._within[:1]) <= set(other._within)

    def met(self, owner: str, welcome: Welcome) -> None:
        """Take note of how it introduced itself. `owner`: to whom; empty: to nobody."""
        self.failure = None
        self.capabilities = welcome.capabilities
        self._instructions[owner] = welcome.instructions
        if len(self._instructions) > MAX_OWNERS:
            self._instructions.popitem(last=False)

    def welcome_for(self, owner: str) -> Welcome | None:
        """Return how it introduces itself to an owner, as far as known."""
        if self.capabilities is None:
            return None
        told = self._instructions.get(owner, self._instructions.get(""))
        return Welcome(self.capabilities, told)

    def facts(self) -> dict[str, object]:
        """Return what `/readyz` shows of it."""
        if self.manager.circuit.rests(anyio.current_time()):
            state = "resting"
        elif self.failure is not None:
            state = "down"
        else:
            state = "up" if self.capabilities is not None else "not met yet"
        return {"status": state, "sessions": len(self.manager.registry), **self.about}


class Whole(Protocol):
    """What parts belong to."""

    @property
    def upstream(self) -> Upstream: ...

    @property
    def opening(self) -> Opening: ...

    def ask(self, part: "Part", ask: Ask, exchange: Exchange | None) -> None:
        """Take a question of a server's. `exchange`: of ours, that it came for."""
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

    def __init__(
        self,
        member: Member,
        whole: Whole,
        owner: str,
        key: str,
        label: str,
        *,
        everybodys: bool = False,
    ) -> None:
        """`owner`, `key` and `label`: of the whole session. `everybodys`: that is no client's."""
        self.member = member
        self.memory: Memory = Memory()
        """Of all its sessions: what each is to be told when it starts."""
        self.whole = whole
        self._manager = member.spares if everybodys else member.manager
        self._told_to = "" if everybodys else owner
        self._owner = owner
        self._key = key
        self._label = label
        self._session: Session | None = None
        self._failure: tuple[float, ProxyError] | None = None
        """When it could not be had last, and why; None: it could."""
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

    @property
    def description(self) -> str | None:
        return self.member.about.get("description")

    @property
    def welcome(self) -> Welcome | None:
        """How it introduces itself to the owner of this session, as far as known."""
        return self.member.welcome_for(self._told_to)

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
                session = self._opened()
                await self._manager.ready(session)
                self._met(session)
        except ProxyError as error:
            if not isinstance(error, TryLater):
                self.member.failure = str(error)
            failure = self._named(error)
            self._failure = anyio.current_time(), failure
            raise failure from None

    def _opened(self) -> Session:
        """Return its session; a new one, where it has none or that one is over.

        Raises: Draining, RouteResting: nothing was started.
        """
        before = self._session
        if before is not None and before.state not in _OVER:
            return before
        opening = self.whole.opening
        session = self._manager.part(self._owner, self._key, opening, PartClient(self))
        session.memory = self.memory
        if before is not None:  # it slept for too long; its client has not been told for all that
            session.loss = before.loss
        logger.info("session %s: %s is session %s", self._label, self.name, session.label)
        self._session = session
        return session

    def _met(self, session: Session) -> None:
        self._failure = None
        if session.welcome is not None:
            self.member.met(self._told_to, Welcome.of(session.welcome))

    def request(self, inner: Exchange) -> None:
        """Send a request; one that comes too late fails."""
        try:
            if self._session is None:
                raise SessionNotFound("it was not started")
            self._session.request(inner)
        except SessionNotFound as error:
            inner.settle(Outcome(failure=self._named(error)))

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
            self._manager.end(session, EndReason.WHOLE_ENDED)
            await session.start.settled.wait()  # of one that was just waking
            await session.stopped.wait()

    # -- what it has of others ---------------------------------------------------------------------

    def covers(self, other: "Part") -> bool:
        """Return whether what another one has may be had under names of this one's."""
        return self.member.stand is not None and self.member.covers(other.member)

    def hides(self, reference: Reference) -> bool:
        """Return whether what has this name in front, of those that it covers, is not there for
        anybody else."""
        stand, name = self.member.stand, self.names.original(reference.kind, reference.name)
        return stand is not None and name is not None and stand.hides(reference.kind, name)

    def instead(
        self, method: str, params: Bytes | None, original: str
    ) -> tuple[Reference, Bytes] | None:
        """Return what the request about `original` comes to that one of those that it covers is to
        be sent, by the name in front; None: it is for this one."""
        stand = self.member.stand
        if stand is None:
            return None
        found = stand.instead(method, self.names.request(method, params, original))
        about = reference_of(method, found)
        if found is None or about is None:
            return None
        about = about._replace(name=self.names.public(about.kind, about.name))
        return about, self.names.request(method, found, about.name) or found

    # -- what it has -------------------------------------------------------------------------------

    def offers(self, kind: Kind) -> bool:
        """Return whether it has such a list at all."""
        declared = self.member.capabilities
        return declared is None or _CAPABILITY[kind.method] in declared

    @property
    def logs(self) -> bool:
        return "logging" in (self.member.capabilities or ())

    def patience(self) -> AbstractContextManager[object]:
        """Return what cuts off a list that takes longer than a start may take."""
        return self._manager.pauses.move_on_after(self._manager.limits.start_timeout)

    def gave_no(self, kind: Kind) -> ProxyError:
        """Return why there is no list, and do without this server for a while."""
        seconds = self._manager.limits.start_timeout
        failure = self._named(BackendSilent(f"It did not answer {kind.method} in {seconds:g} s."))
        self._failure = anyio.current_time(), failure
        return failure

    def check_listed(self) -> None:
        """Raises: ProxyError: it could not be had a moment ago."""
        if self._failure is not None and anyio.current_time() < self._failure[0] + LISTED_AGAIN:
            raise self._failure[1].fresh()

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

    def known(self, kind: Kind) -> Collection[str]:
        """Return what it has, under its own names, as far as known."""
        return self._listed.get(kind.method, ())

    def check_refusal(self, kind: Kind, error: bytes) -> None:
        """A list was refused: a server without such a list may say so.

        Raises: BackendStartFailed: it was for another reason.
        """
        if wire.code_of(error) != METHOD_NOT_FOUND:
            told = error.decode(errors="replace")[:500]
            raise self._named(BackendStartFailed(f"it refused {kind.method}: {told}"))
        self._listed[kind.method] = set()

    def in_front(self, method: str, outcome: Outcome) -> Outcome:
        """Return an answer of the server's as the client is to see it."""
        if outcome.result is not None:
            return Outcome(result=self.names.result(method, outcome.result))
        if outcome.failure is not None:
            return Outcome(failure=self._named(outcome.failure))
        return outcome

    def _named(self, error: ProxyError) -> ProxyError:
        """Return a failure that says whose it is, and that is none of the whole session's."""
        if isinstance(error, SessionNotFound | SessionEnded):
            error = BackendGone("It was ended.")
        elif isinstance(error, TryLater) and not isinstance(error, Draining):
            why = "It does not start" if isinstance(error, RouteResting) else "There is no room"
            again = ceil(error.retry_after)
            error = BackendStartFailed(f"{why}; try again in {again} s ({error}).")
        named = error.fresh()
        named.server = self.name
        return named

    def lost_meanwhile(self) -> ProxyError:
        """Return what a request gets that was here when the server was still there."""
        failure = BackendGone(f"It ended{self._why_lost()} before the request got to it.")
        failure.executed = False
        return self._named(failure)

    def lost_before(self) -> ProxyError:
        """Return what a request gets that nobody has looked at who tells of losses."""
        text = f"Its state was lost{self._why_lost()}. A fresh backend is ready; repeat your steps."
        failure = StateLost(text)
        failure.on_told = partial(self._told, self.loss)
        return self._named(failure)

    def _told(self, loss: Loss | None) -> None:
        if self.loss is loss:  # else there is another one since
            self.loss = None

    def _why_lost(self) -> str:
        loss = self.loss
        return "" if loss is None else f" ({loss.exit or loss.reason})"

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

    def begins(self) -> None:
        """Another backend begins for it."""
        self._listed.clear()

    def changed(self, method: str) -> None:
        """One of its lists has changed."""
        for kind in KINDS.values():
            if method == f"notifications/{_CAPABILITY[kind.method]}/list_changed":
                self._listed.pop(kind.method, None)


class PartClient:
    """The `ClientPort` of a part's session: its client is the whole's."""

    listening = False
    left_at: float | None = None
    size = 0

    def __init__(self, part: Part) -> None:
        self.part = part

    def message(self, message: Outbound) -> None: ...

    def heard(self) -> None: ...

    def asleep(self) -> None: ...

    def close(self) -> None: ...


def _items(items: Raw) -> list[Raw]:
    try:
        return msgspec.json.decode(items, type=list[Raw])
    except (msgspec.DecodeError, RecursionError):
        return []


def _keys(items: Raw, key: str) -> set[str]:
    """Return the names of the items."""
    found = (wire.text_member(item, key) for item in _items(items))
    return {name for name in found if name is not None}

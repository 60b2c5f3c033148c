"""Which sessions this node has. Synchronous on purpose.

No method awaits, so check-and-change is one step and no lock is needed. The core reaches it
through the port `Registry`, as one node of several would. Neighbours: only `core.manager` writes
to it; `core.reaper` reads.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from ..errors import SessionNotFound
from .byowner import ByOwner
from .ports import Identity
from .session import Session
from .state import SessionState

SLEEPER_SIZE: Final = 4096
"""Bytes that a sleeping session may keep on average; together they may keep `max_asleep` times
as many, so that a few clients with large `initialize` bodies cannot fill the memory. Where they
do, those go that keep more than this each, of the owner that keeps the most: nobody else has to pay
for them."""


class Registry(Protocol):
    """Sessions by identity, those awake apart from those asleep."""

    def add(self, session: Session) -> None: ...

    def get(self, identity: Identity) -> Session:
        """Raises: SessionNotFound: no such session on this route, or not this owner's."""
        ...

    def moved(self, session: Session) -> tuple[Session, ...]:
        """File the session under its present state; return sleepers that it had to forget for
        it, and that must go."""
        ...

    def awake(self) -> tuple[Session, ...]: ...

    def asleep(self) -> Iterator[Session]:
        """Those asleep, the one that fell asleep first first."""
        ...

    def __len__(self) -> int: ...


class _Sleeper(NamedTuple):
    session: Session
    size: int
    """As it was when it was filed: what is kept for its client may be forgotten meanwhile."""


class LocalRegistry:
    """The registry of a node that is alone."""

    def __init__(self, max_asleep: int) -> None:
        self._max_asleep = max_asleep
        self._awake: dict[Identity, Session] = {}
        self._asleep: ByOwner[_Sleeper] = ByOwner()
        self._large: OrderedDict[Identity, int] = OrderedDict()
        """The sizes of those asleep that are above `SLEEPER_SIZE`."""
        self._asleep_size = 0

    def add(self, session: Session) -> None:
        self._awake[session.identity] = session

    def get(self, identity: Identity) -> Session:
        session = self._awake.get(identity)
        if session is not None:
            return session
        sleeper = self._asleep.get(identity)
        if sleeper is None:
            raise SessionNotFound("no such session")
        return sleeper.session

    def moved(self, session: Session) -> tuple[Session, ...]:
        self._forget(session)
        if session.state is SessionState.ASLEEP:
            self._keep(session)
            return tuple(self._overdue())
        if session.state is not SessionState.CLOSED:
            self._awake[session.identity] = session
        return ()

    def _forget(self, session: Session) -> None:
        """Forget this one: a conversation may have begun anew while it was being stopped."""
        identity = session.identity
        if self._awake.get(identity) is session:
            del self._awake[identity]
        sleeper = self._asleep.get(identity)
        if sleeper is not None and sleeper.session is session:
            self._asleep.pop(identity)
            self._large.pop(identity, None)
            self._asleep_size -= sleeper.size

    def _keep(self, session: Session) -> None:
        sleeper = _Sleeper(session, session.size)
        self._asleep.put(session.identity, sleeper)
        self._asleep_size += sleeper.size
        if sleeper.size > SLEEPER_SIZE:
            self._large[session.identity] = sleeper.size

    def _overdue(self) -> Iterator[Session]:
        """Forget those that must go: large ones until the rest is small enough together, then any
        until they are few enough. Those of the owner that keeps the most, oldest first, so that
        nobody pays for another."""
        while self._large and self._asleep_size > self._max_asleep * SLEEPER_SIZE:
            yield self._let_go(self._first_large())
        while len(self._asleep) > self._max_asleep:
            yield self._let_go(self._asleep.first_to_go())

    def _let_go(self, identity: Identity) -> Session:
        sleeper = self._asleep.get(identity)
        assert sleeper is not None
        self._forget(sleeper.session)
        return sleeper.session

    def _first_large(self) -> Identity:
        """Return the oldest large sleeper of the owner whose large ones keep the most together."""
        sizes: Counter[str] = Counter()
        for identity, size in self._large.items():
            sizes[identity.owner] += size
        owner = max(sizes, key=lambda owner: sizes[owner])
        return next(identity for identity in self._large if identity.owner == owner)

    def awake(self) -> tuple[Session, ...]:
        return tuple(self._awake.values())

    def asleep(self) -> Iterator[Session]:
        return iter([sleeper.session for sleeper in self._asleep])

    def __len__(self) -> int:
        return len(self._awake) + len(self._asleep)

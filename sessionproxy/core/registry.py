"""Which sessions this node has. Synchronous on purpose.

No method awaits, so check-and-change is one step and no lock is needed. The core reaches it
through the port `Registry`, as one node of several would. Neighbours: only `core.manager` writes
to it; `core.reaper` reads.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from ..errors import SessionNotFound
from .ports import Identity
from .session import Session
from .state import SessionState

SLEEPER_SIZE: Final = 4096
"""Bytes that a sleeping session may keep on average; together they may keep `max_asleep` times
as many, so that a few clients with large `initialize` bodies cannot fill the memory. Where they
do, those go that keep more than this each: nobody else has to pay for them."""


class Registry(Protocol):
    """Sessions by identity, those awake apart from those asleep."""

    def add(self, session: Session) -> None: ...

    def get(self, identity: Identity) -> Session:
        """Raises: SessionNotFound: no such session on this route, or not this owner's."""
        ...

    def moved(self, session: Session) -> tuple[Session, ...]:
        """File the session under its present state; return sleepers that must now go."""
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
        self._asleep: OrderedDict[Identity, _Sleeper] = OrderedDict()
        self._large: OrderedDict[Identity, _Sleeper] = OrderedDict()
        """Of those asleep, those above `SLEEPER_SIZE`."""
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
        self._forget(session.identity)
        if session.state is SessionState.ASLEEP:
            self._keep(session)
            return self._overdue()
        if session.state is not SessionState.CLOSED:
            self._awake[session.identity] = session
        return ()

    def _forget(self, identity: Identity) -> None:
        self._awake.pop(identity, None)
        sleeper = self._asleep.pop(identity, None)
        if sleeper is not None:
            self._large.pop(identity, None)
            self._asleep_size -= sleeper.size

    def _keep(self, session: Session) -> None:
        sleeper = _Sleeper(session, session.size)
        self._asleep[session.identity] = sleeper
        self._asleep_size += sleeper.size
        if sleeper.size > SLEEPER_SIZE:
            self._large[session.identity] = sleeper

    def _overdue(self) -> tuple[Session, ...]:
        """Return the oldest large sleepers until the rest is small enough together, and the oldest
        of all until they are few enough. No more of them are looked at than that takes."""
        going: dict[Identity, Session] = {}
        size = self._asleep_size
        for identity, sleeper in self._large.items():
            if size <= self._max_asleep * SLEEPER_SIZE:
                break
            going[identity] = sleeper.session
            size -= sleeper.size
        for identity, sleeper in self._asleep.items():
            if len(self._asleep) - len(going) <= self._max_asleep:
                break
            going[identity] = sleeper.session
        return tuple(going.values())

    def awake(self) -> tuple[Session, ...]:
        return tuple(self._awake.values())

    def asleep(self) -> Iterator[Session]:
        return iter([sleeper.session for sleeper in self._asleep.values()])

    def __len__(self) -> int:
        return len(self._awake) + len(self._asleep)

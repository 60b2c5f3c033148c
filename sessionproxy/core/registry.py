"""Which sessions this node has. Synchronous on purpose.

No method awaits, so check-and-change is one step and no lock is needed. The core reaches it
through the port `Registry`, as one node of several would. Neighbours: only `core.manager` writes
to it; `core.reaper` reads.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from ..errors import SessionNotFound
from .ports import Identity
from .session import Session
from .state import SessionState

SLEEPER_SIZE = 4096
"""Bytes that a sleeping session may keep on average; together they may keep `max_asleep` times
as many, so that a few clients with large `initialize` bodies cannot fill the memory."""


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


class LocalRegistry:
    """The registry of a node that is alone."""

    def __init__(self, max_asleep: int) -> None:
        self._max_asleep = max_asleep
        self._awake: dict[Identity, Session] = {}
        self._asleep: OrderedDict[Identity, Session] = OrderedDict()
        self._asleep_size = 0

    def add(self, session: Session) -> None:
        self._awake[session.identity] = session

    def get(self, identity: Identity) -> Session:
        session = self._awake.get(identity) or self._asleep.get(identity)
        if session is None:
            raise SessionNotFound("no such session")
        return session

    def moved(self, session: Session) -> tuple[Session, ...]:
        identity = session.identity
        self._awake.pop(identity, None)
        if self._asleep.pop(identity, None) is not None:
            self._asleep_size -= session.size
        if session.state is SessionState.ASLEEP:
            self._asleep[identity] = session
            self._asleep_size += session.size
            return tuple(self._overdue())
        if session.state is not SessionState.CLOSED:
            self._awake[identity] = session
        return ()

    def _overdue(self) -> Iterator[Session]:
        """Yield the oldest sleepers until the rest is within the limits."""
        count, size = len(self._asleep), self._asleep_size
        for session in self._asleep.values():
            if count <= self._max_asleep and size <= self._max_asleep * SLEEPER_SIZE:
                return
            count, size = count - 1, size - session.size
            yield session

    def awake(self) -> tuple[Session, ...]:
        return tuple(self._awake.values())

    def asleep(self) -> Iterator[Session]:
        return iter(tuple(self._asleep.values()))

    def __len__(self) -> int:
        return len(self._awake) + len(self._asleep)

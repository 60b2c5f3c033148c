"""Things kept for owners, in the order they came, and whose turn it is when there are too many.

Synchronous, and no more is looked at than it takes. An owner pays for its own: it is the one with
the most that gives up its oldest. Neighbours: `core.registry` keeps sleepers so, `core.manager` how
conversations ended.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from .ports import Identity

T = TypeVar("T")


class ByOwner(Generic[T]):
    """Values by identity."""

    __slots__ = ("_all", "_most", "_of", "_with")

    def __init__(self) -> None:
        self._all: OrderedDict[Identity, T] = OrderedDict()
        self._of: dict[str, dict[Identity, None]] = {}
        """By owner, what it has, oldest first."""
        self._with: dict[int, dict[str, None]] = {}
        """By number, the owners that have so many; first who has had them for the longest."""
        self._most = 0

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[T]:
        """Oldest first."""
        return iter(self._all.values())

    def get(self, identity: Identity) -> T | None:
        return self._all.get(identity)

    def put(self, identity: Identity, value: T) -> None:
        """Add it as the newest."""
        self.pop(identity)
        self._all[identity] = value
        had = self._of.setdefault(identity.owner, {})
        had[identity] = None
        self._has(identity.owner, len(had) - 1, len(had))

    def pop(self, identity: Identity) -> T | None:
        """Take it out; None: it was not there."""
        value = self._all.pop(identity, None)
        had = self._of.get(identity.owner, {})
        if identity in had:
            del had[identity]
            self._has(identity.owner, len(had) + 1, len(had))
        return value

    def first_to_go(self) -> Identity:
        """Return the oldest of the owner that has the most.

        Raises: KeyError: there is nothing.
        """
        owner = next(iter(self._with[self._most]))
        return next(iter(self._of[owner]))

    def _has(self, owner: str, before: int, now: int) -> None:
        if before:
            del self._with[before][owner]
            if not self._with[before]:
                del self._with[before]
        if now:
            self._with.setdefault(now, {})[owner] = None
        else:
            del self._of[owner]
        if now > self._most or self._most not in self._with:
            self._most = now

"""A route whose backend fails to start again and again rests for a while.

Neighbours: `core.manager` asks before every start and tells how it went; so do `core.catalogue` and
`eras` for the backends that they look at.
"""

import math
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import anyio

from ..errors import BackendStartFailed, RouteResting

FAILURES: Final = 5
"""Failed starts within `WINDOW` after which the route rests."""

WINDOW: Final = 60.0
"""Seconds."""

FIRST_REST: Final = 5.0
LONGEST_REST: Final = 300.0
"""Seconds of the first rest and of the longest; each rest is twice the one before."""


class Circuit:
    """Open for business until `FAILURES` starts have failed within `WINDOW` seconds."""

    def __init__(self) -> None:
        self._failed_at: deque[float] = deque(maxlen=FAILURES)
        self._rests_until = -math.inf
        self._rests = 0

    def check(self, now: float) -> None:
        """Raises: RouteResting: the pause is not over."""
        if now < self._rests_until:
            left = self._rests_until - now
            raise RouteResting("the backend failed to start too often", retry_after=left)

    def failed(self, now: float) -> None:
        """Count a failed start; after a rest, one more failure is enough for the next rest."""
        if now < self._rests_until:
            return  # it was started before the rest began
        self._failed_at.append(now)
        full = len(self._failed_at) == FAILURES and now - self._failed_at[0] <= WINDOW
        if full or self._rests:
            pause = min(FIRST_REST * 2**self._rests, LONGEST_REST)
            self._rests_until = now + pause
            self._rests = min(self._rests + 1, 10)
            self._failed_at.clear()

    @contextmanager
    def trying(self) -> Generator[None]:
        """Start a backend that is no session's: a start that fails counts, whoever it was for.

        Raises: RouteResting: the pause is not over.
        """
        self.check(anyio.current_time())
        try:
            yield
        except BackendStartFailed as failure:
            if not failure.counted:
                failure.counted = True  # a session that waited for it is given it too
                self.failed(anyio.current_time())
            raise

    def succeeded(self) -> None:
        self._failed_at.clear()
        self._rests = 0

    def rests(self, now: float) -> bool:
        return now < self._rests_until

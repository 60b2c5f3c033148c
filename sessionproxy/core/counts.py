"""What has happened on one route since the process began, as plain numbers.

Counted where it happens, in one step each, and read when somebody asks: what the core keeps anyway
(sessions by state, backends that run) is not counted twice. Synchronous, and never reset.
Neighbours: `core.manager` counts lives of sessions, `core.session` their requests; `ops.metrics`
reads.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Final

from ..wire.methods import METHODS
from .exchange import Outcome
from .state import EndReason, StopReason

BOUNDS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    300,
)
"""Seconds: what an answer took is counted in the first of these classes that it fits in, or in one
more. From a relay's own cost to that of a browser that loads a page."""

OTHER: Final = "other"
"""Instead of a method that is not in the table: clients may make up as many as they like."""


class Requests:
    """The requests of one method that were passed on, and are over."""

    __slots__ = ("durations", "errors", "failed", "seconds")

    def __init__(self) -> None:
        self.durations: list[int] = [0] * (len(BOUNDS) + 1)
        """Answers, results and errors alike, by the class of the time that they took."""
        self.seconds: float = 0.0
        """All of that together."""
        self.errors: int = 0
        """Answers that are JSON-RPC errors."""
        self.failed: int = 0
        """Requests that the backend gave no answer to."""

    @property
    def answered(self) -> int:
        return sum(self.durations)


class Counts:
    """Of one route."""

    def __init__(self) -> None:
        self.opened = 0
        """Sessions."""
        self.starts = 0
        """Attempts to get a session a backend, at its opening and whenever it wakes."""
        self.start_failures: Counter[str] = Counter()
        """Those of them that came to nothing, by the reason of the failure."""
        self.stops: Counter[StopReason] = Counter()
        """Backends that stopped while their session lives on."""
        self.ends: Counter[EndReason] = Counter()
        """Sessions that ended."""
        self.asks: Counter[str] = Counter()
        """Requests of backends to clients, by method."""
        self.failures: Counter[str] = Counter()
        """Requests that the backend gave no answer to, by the reason."""
        self._requests: dict[str, Requests] = {}

    def requests(self) -> Iterator[tuple[str, Requests]]:
        """Those that were passed on and are over, by method."""
        return iter(self._requests.items())

    def asked(self, method: str) -> None:
        self.asks[_known(method)] += 1

    def over(self, method: str, outcome: Outcome, seconds: float) -> None:
        """Count a request that was passed on `seconds` ago. On the way of every call."""
        found = self._requests.get(method)
        if found is None:
            found = self._requests.setdefault(_known(method), Requests())
        if outcome.failure is not None:
            found.failed += 1
            self.failures[outcome.failure.reason] += 1
            return
        found.durations[bisect_left(BOUNDS, seconds)] += 1
        found.seconds += seconds
        if outcome.error is not None:
            found.errors += 1


def _known(method: str) -> str:
    return method if method in METHODS else OTHER

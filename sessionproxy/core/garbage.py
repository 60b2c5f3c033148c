"""Lines of a backend that are no messages: logged now and then, and at some point too many.

Neighbours: `core.relay` keeps one for a backend, from its first such line on.
"""

from collections import deque
from typing import Final

MAX_LINES: Final = 1000
WINDOW: Final = 10.0
"""A backend that writes more lines without a message than this, within so many seconds, is ended:
banners and stray prints are a few, a server whose log goes to stdout writes more in a day."""

LOG_PERIOD: Final = 1.0
"""Seconds between two lines in the log about one backend."""


class Garbage:
    """When the lines came, for as long as it matters."""

    __slots__ = ("_logged_at", "_times", "_unlogged")

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=MAX_LINES + 1)
        self._logged_at: float | None = None
        self._unlogged = 0

    def add(self, now: float) -> None:
        """Take note of a line that came at `now`, in seconds."""
        self._times.append(now)
        self._unlogged += 1

    def to_log(self) -> int:
        """Return how many lines to log together, the last one included; 0: not yet."""
        now = self._times[-1]
        if self._logged_at is not None and now - self._logged_at < LOG_PERIOD:
            return 0
        count, self._unlogged = self._unlogged, 0
        self._logged_at = now
        return count

    def too_many(self) -> bool:
        times = self._times
        return len(times) > MAX_LINES and times[-1] - times[0] <= WINDOW

"""What a backend writes to stderr: to the log, and its last lines into an error.

Neighbours: `backends.stdio` feeds it.
"""

import logging
from collections import deque
from typing import Final

from ..wire import LineSplitter, Oversize

logger = logging.getLogger("sessionproxy.backend")

KEPT_LINES: Final = 20
KEPT_BYTES: Final = 4096
"""Of what is shown in an error: enough for a traceback's end."""

LINES_PER_SECOND: Final = 50
"""Lines of one backend that are logged; of a flood, the rest is only counted."""

MAX_LINE: Final = 8192
"""Bytes; what is longer is cut."""


class StderrLog:
    """Logs line by line under `label`, bounded in rate and memory."""

    __slots__ = ("_last", "_lines", "_logged", "_skipped", "_window", "label")

    def __init__(self) -> None:
        self.label = "spare"
        self._lines = LineSplitter(MAX_LINE)
        self._last: deque[str] | None = None  # most backends never write a line
        self._window = 0.0
        self._logged = 0
        self._skipped = 0

    def feed(self, chunk: bytes, now: float) -> None:
        """Take what was read at `now`, in seconds."""
        for line in self._lines.feed(chunk):
            cut = line.head if isinstance(line, Oversize) else line
            text = cut[:MAX_LINE].decode(errors="replace")
            if self._last is None:
                self._last = deque(maxlen=KEPT_LINES)
            self._last.append(text[:KEPT_BYTES])
            self._log(text, now)

    def _log(self, text: str, now: float) -> None:
        if now - self._window >= 1:
            if self._skipped:
                logger.warning("%s: %d lines on stderr were not logged", self.label, self._skipped)
            self._window, self._logged, self._skipped = now, 0, 0
        if self._logged < LINES_PER_SECOND:
            self._logged += 1
            logger.info("%s stderr: %s", self.label, text)
        else:
            self._skipped += 1

    def last_lines(self) -> tuple[str, ...]:
        """Return the last lines, at most `KEPT_BYTES` characters in all, oldest first."""
        kept: deque[str] = deque()
        size = 0
        for line in reversed(self._last or ()):
            size += len(line)
            if size > KEPT_BYTES:
                break
            kept.appendleft(line)
        return tuple(kept)

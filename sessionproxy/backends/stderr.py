"""What a backend writes to stderr: to the log, and its last lines into an error.

Of a flood most is never looked at: its lines are counted, its end is kept, and beyond a rate the
reader pauses, so that one backend's prints cost the others little. Neighbours: `backends.stdio`
feeds it.
"""

import logging
from typing import Final

from ..wire import LineSplitter, Oversize

logger: Final = logging.getLogger("sessionproxy.backend")

KEPT_LINES: Final = 20
KEPT_SIZE: Final = 4096
"""Characters of what is shown in an error: enough for a traceback's end."""

RING: Final = 16 * 1024
"""Bytes kept: as many as that many characters may have."""

LINES_PER_SECOND: Final = 50
"""Lines of one backend that are logged; of a flood, the rest is only counted."""

MAX_LINE: Final = 8192
"""Bytes; what is longer is cut."""

PERIOD: Final = 0.01
BUDGET: Final = 1280 * 1024
"""Bytes that are read in so many seconds: 125 MiB/s. `scripts/bench_stderr` shows what they cost.
A backend that writes faster waits for its turn, that long at most: it is slowed, never stopped."""


class StderrLog:
    """Logs line by line under `label`, bounded in rate and memory."""

    __slots__ = ("_left", "_lines", "_read", "_second", "_skipped", "_tail", "_turn", "label")

    def __init__(self) -> None:
        self.label: str = "spare"
        self._lines = LineSplitter(MAX_LINE)
        self._tail = b""
        """The end of all that was written."""
        self._second = 0.0
        self._left = LINES_PER_SECOND
        """Lines that may still be logged in the second that began then."""
        self._skipped = 0
        self._turn = 0.0
        self._read = 0
        """Bytes read in the period that began then."""

    def feed(self, chunk: bytes, now: float) -> float:
        """Take what was read at `now`, in seconds; return for how long to read no more."""
        self._tail = chunk[-RING:] if len(chunk) >= RING else (self._tail + chunk)[-RING:]
        if now - self._second >= 1:
            self._begin_second(now)
        shown, skipped = self._divide(chunk)
        for line in self._lines.feed(shown):
            cut = line.head if isinstance(line, Oversize) else line
            text = cut[:MAX_LINE].decode(errors="replace")
            logger.info("%s stderr: %s", self.label, text, extra={"session": self.label})
        if skipped:
            self._skip(skipped)
        return self._pause(len(chunk), now)

    def _begin_second(self, now: float) -> None:
        if self._skipped:
            text = "%s: %d lines on stderr were not logged"
            logger.warning(text, self.label, self._skipped, extra={"session": self.label})
        self._second, self._left, self._skipped = now, LINES_PER_SECOND, 0

    def _divide(self, chunk: bytes) -> tuple[bytes, bytes]:
        """Return what is within the lines that may be logged, and the rest."""
        *lines, rest = chunk.split(b"\n", self._left)
        if len(lines) < self._left:
            self._left -= len(lines)
            return chunk, b""
        self._left = 0
        return chunk[: len(chunk) - len(rest)], rest

    def _skip(self, chunk: bytes) -> None:
        """Count the lines, and keep only what the next one begins with."""
        count = chunk.count(b"\n")
        if count:
            self._skipped += count
            self._lines = LineSplitter(MAX_LINE)
            chunk = chunk[chunk.rindex(b"\n") + 1 :]
        self._lines.feed(chunk)

    def _pause(self, size: int, now: float) -> float:
        if now - self._turn >= PERIOD:
            self._turn, self._read = now, 0
        self._read += size
        return self._turn + PERIOD - now if self._read >= BUDGET else 0.0

    def last_lines(self) -> tuple[str, ...]:
        """Return the last lines, at most `KEPT_SIZE` characters in all, oldest first.

        The first of them may lack its beginning.
        """
        text = self._tail.decode(errors="replace")[-KEPT_SIZE:]
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        return tuple([line for line in lines if line][-KEPT_LINES:])

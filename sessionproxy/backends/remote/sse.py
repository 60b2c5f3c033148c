"""Server-sent events, cut out of the bytes of a response, with a bound (WHATWG HTML, 9.2.6).

`httpx2.EventSource` has a parser too. With it an event past the limit ends the whole stream, and
with it every other call that is answered on that; here such an event alone is discarded, as a line
of a pipe is. It also decodes to text what is to stay bytes (`docs/decisions.md` has the figures).
Neighbours: `incoming` and `legacy` feed it what they read.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from ...wire import LineSplitter, Oversize
from ...wire.lines import KEPT

EVENTS: Final = "text/event-stream"

_CONTROL: Final = re.compile(rb"[\0-\x1f\x7f]")
"""What no header may have in it."""

MAX_FIELD: Final = 1024
"""Bytes of an id or a name that are accepted: ids go back to the server in a header."""

MAX_DATA_LINES: Final = 100_000
"""Lines of data in one event; one with more is discarded, since every line costs an object."""

MAX_RETRY: Final = 300.0
"""Seconds before a stream is taken up again that a server can ask for."""

FIELD: Final = 16
"""Bytes of a line beside its data."""


class Event(NamedTuple):
    """One event that carries data."""

    data: bytes | Oversize
    name: bytes = b"message"


class EventReader:
    """Collects chunks and gives back whole events. Time is linear in the bytes fed."""

    def __init__(self, max_size: int) -> None:
        """`max_size`: bytes of data in one event."""
        self.last_id: bytes = b""
        """Of the last event that had one: where a stream can be taken up again."""
        self.retry: float | None = None
        """Seconds that the server wants to pass before that."""
        self.events: int = 0
        """Events so far, those without data too."""
        self._max_size = max_size
        self._lines = LineSplitter(max_size + FIELD, empty=True)
        self._after_cr = False
        # Of the event that is being read.
        self._begun = False
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0
        self._oversize: Oversize | None = None

    def successor(self) -> Self:
        """Return the reader of the same stream over another connection."""
        reader = type(self)(self._max_size)
        reader.last_id, reader.retry = self.last_id, self.retry
        return reader

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that `chunk` completes, in order."""
        for line in self._lines.feed(self._with_newlines(chunk)):
            if isinstance(line, Oversize):
                self._discard(line)
            elif line:
                self._field(line)
            elif self._begun:
                self.events += 1
                event = self._ended()
                if event is not None:
                    yield event

    def _with_newlines(self, chunk: bytes) -> bytes:
        """Return the chunk with a newline for every line end, of which there are three kinds."""
        if not chunk:  # it says nothing of what comes after a CR
            return chunk
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return chunk

    def _field(self, line: bytes) -> None:
        if line.startswith(b"data: "):  # nearly every line, and it may be large
            self._take(line[6:])
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._take(value)
        elif name == b"event":
            self._name = value[:MAX_FIELD]
        elif name == b"id" and len(value) <= MAX_FIELD and not _CONTROL.search(value):
            self.last_id = value
        elif name == b"retry" and value.isdigit() and len(value) <= 9:
            self.retry = min(int(value) / 1000, MAX_RETRY)
        else:  # a comment, or nothing that we know
            return
        self._begun = True

    def _take(self, value: bytes) -> None:
        self._begun = True
        self._size += len(value)
        self._data.append(value)
        too_large = self._size > self._max_size or len(self._data) > MAX_DATA_LINES
        if too_large or self._oversize is not None:
            self._give_up(value, value)

    def _discard(self, line: Oversize) -> None:
        """A line was too long. What is no data is of no interest."""
        if line.head.startswith(b"data"):
            self._begun = True
            self._give_up(line.head, line.tail)

    def _give_up(self, head: bytes, tail: bytes) -> None:
        """Keep no more of the event than its two ends."""
        if self._oversize is not None:
            head = self._oversize.head
        elif self._data:
            head = self._data[0]
        self._oversize = Oversize(head[:KEPT], tail[-KEPT:])
        self._data = []

    def _ended(self) -> Event | None:
        """Return the event that has ended, and begin the next; None: it had no data."""
        data, self._data = self._data, []
        oversize, self._oversize = self._oversize, None
        name, self._name = self._name or b"message", b""
        self._size = 0
        self._begun = False
        if oversize is not None:
            return Event(oversize, name)
        whole = data[0] if len(data) == 1 else b"\n".join(data)
        return Event(whole, name) if whole else None

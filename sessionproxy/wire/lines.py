"""Bytes from a pipe, cut into lines, with a bound.

Neighbours: `backends.stdio` and `backends.sse` feed it what they read.
"""

from dataclasses import dataclass
from typing import Final

KEPT: Final = 4096
"""Bytes kept of either end of a line that is discarded: enough to find the id of a response.

Python servers write the id first, those of the TypeScript SDK last.
"""


@dataclass(frozen=True, slots=True)
class Oversize:
    """A line that was longer than the limit; only its two ends were kept."""

    head: bytes
    tail: bytes


class LineSplitter:
    """Collects chunks and gives back whole lines, without their line ends; empty ones are left out,
    unless they are said to be wanted.

    A line longer than `max_line` bytes is discarded up to its newline as it arrives, never
    buffered whole. Time is linear in the bytes fed.
    """

    __slots__ = ("_empty", "_head", "_held", "_max_line", "_parts", "_tail", "ends", "taken")

    def __init__(self, max_line: int, *, empty: bool = False) -> None:
        """`empty`: empty lines mean something too."""
        self._max_line = max_line
        self._empty = empty
        self.taken: int = 0
        """Bytes fed so far."""
        self.ends: int = 0
        """Line ends in what was fed last, those of empty lines too."""
        self._parts: list[bytes | bytearray] = []
        self._held = 0
        # Of a line that is being discarded; None while there is none.
        self._head: bytes | None = None
        self._tail = b""

    def feed(self, chunk: bytes) -> list[bytes | Oversize]:
        """Return the lines that `chunk` completes, in order."""
        self.taken += len(chunk)
        *whole, rest = chunk.split(b"\n")
        self.ends = len(whole)
        lines: list[bytes | Oversize] = []
        for piece in whole:
            line = self._complete(piece)
            if line or self._empty:
                lines.append(line)
        if rest:
            self._hold(rest)
        return lines

    def _complete(self, piece: bytes) -> bytes | Oversize:
        if self._parts or self._head is not None or len(piece) > self._max_line:
            self._hold(piece)
            if self._head is not None:
                line = Oversize(self._head, self._tail)
                self._head, self._tail = None, b""
                return line
            piece = b"".join(self._parts)
            self._parts.clear()
            self._held = 0
        return piece.removesuffix(b"\r")

    def _hold(self, piece: bytes) -> None:
        if self._head is not None:
            self._tail = _end(self._tail, piece)
            return
        self._append(piece)
        self._held += len(piece)
        if self._held > self._max_line:
            self._head, self._tail = self._ends()
            self._parts.clear()
            self._held = 0

    def _append(self, piece: bytes) -> None:
        """Keep a piece: a large one as it is, small ones together, so that none costs an object."""
        last = self._parts[-1] if self._parts else None
        if len(piece) >= KEPT:
            self._parts.append(piece)
        elif isinstance(last, bytearray):
            last += piece
        else:
            self._parts.append(bytearray(piece))

    def _ends(self) -> tuple[bytes, bytes]:
        head, tail = bytearray(), b""
        for part in self._parts:
            head += part[: KEPT - len(head)]
            tail = _end(tail, part)
        return bytes(head), tail


def _end(before: bytes, piece: bytes | bytearray) -> bytes:
    """Return the last bytes of the two together; a large piece is not copied for it."""
    return bytes(piece[-KEPT:]) if len(piece) >= KEPT else (before + piece)[-KEPT:]

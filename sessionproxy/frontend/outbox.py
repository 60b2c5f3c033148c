"""What waits to be written to a client that has one channel for everything, bounded.

On stdio and on the stream of HTTP+SSE, answers, notifications and questions all go the same way,
in order. Each kind has a bound of its own, so that a long answer in front of them costs no others:
what may be dropped is dropped, oldest first, and the client is told how much; a client that leaves
the rest lying is cut off. Neighbours: `frontend.channel` writes to it; `frontend.stdio` and
`frontend.connection` read.
"""

import asyncio
import enum
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from ..core.exchange import Outbound
from ..wire import on_one_line
from .stream import DROPPED_BYTES, EVENT_BYTES, KEPT_BYTES, TAKEN_BYTES, missing_note

logger: Final = logging.getLogger(__name__)

CROWDED_BYTES: Final = 1024 * 1024
"""Bytes that wait from which on a client is not heard until it has read some of them."""


class _Lot(enum.Enum):
    """What shares a bound."""

    DROPPABLE = enum.auto()
    UNASKED = enum.auto()
    ANSWERS = enum.auto()


class _Item(NamedTuple):
    data: bytes
    lot: _Lot
    written: Callable[[], None] | None

    @property
    def weight(self) -> int:
        """Bytes in memory, about."""
        return EVENT_BYTES + len(self.data)


class Outbox:
    """Read by one at a time, and only once."""

    def __init__(
        self,
        encode: Callable[[bytes], bytes],
        *,
        answers: int,
        first: bytes = b"",
    ) -> None:
        """`encode` makes a message what is written. `answers`: bytes of answers that may wait
        behind the one that is being read. `first`: what is written before all else."""
        self._encode = encode
        self._answers = answers
        self._first = first
        self._items: list[_Item] = []
        self._sizes = dict.fromkeys(_Lot, 0)
        self._taken: list[Callable[[], None]] = []
        """To be called once what was taken is written."""
        self._taken_size = 0
        self._missing = 0
        """Messages dropped that the client was not told of."""
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Event | None = None
        self.tells = True
        """The client can be told, by a log message, that something was dropped."""
        self.dropped: int = 0
        self.ended: bool = False
        self.on_cut: Callable[[], None] = lambda: None
        """Called soon after the client was cut off."""

    # -- writing -----------------------------------------------------------------------------------

    def put(self, message: Outbound) -> None:
        """Add what is no answer."""
        lot = _Lot.DROPPABLE if message.droppable else _Lot.UNASKED
        if not self.ended and self._sizes[lot] >= KEPT_BYTES:
            if message.droppable:
                self._drop_oldest()
            else:
                self._cut()
        self._append(_Item(message.data, lot, None))

    def answer(self, data: bytes, written: Callable[[], None] | None = None) -> None:
        """Add an answer; `written` is called once it is on its way."""
        if not self.ended and self._sizes[_Lot.ANSWERS] >= self._answers:
            self._cut()
        self._append(_Item(data, _Lot.ANSWERS, written))

    def end(self) -> None:
        """Add nothing more; what waits is still read."""
        self.ended = True
        self._wake()

    def _append(self, item: _Item) -> None:
        if not self.ended:
            self._items.append(item)
            self._sizes[item.lot] += item.weight
            self._wake()

    def _drop_oldest(self) -> None:
        """Give up so many of those that may be dropped that each costs little."""
        wanted = DROPPED_BYTES
        left: list[_Item] = []
        for item in self._items:
            if wanted > 0 and item.lot is _Lot.DROPPABLE:
                wanted -= item.weight
                self._sizes[item.lot] -= item.weight
                self.dropped += 1
                self._missing += 1
            else:
                left.append(item)
        self._items = left

    def _cut(self) -> None:
        logger.warning("a client that does not read what it is sent was cut off")
        self._items.clear()
        self._sizes = dict.fromkeys(_Lot, 0)
        self.end()
        # Not at once: whoever writes is in the middle of something.
        asyncio.get_running_loop().call_soon(self.on_cut)

    # -- reading: as `frontend.connection.Readable` ------------------------------------------------

    def attach(self, after: int | None = None) -> int:
        return 0

    def detach(self, ticket: int, now: float) -> None:
        """Nobody reads it any more."""
        self._items.clear()
        self._sizes = dict.fromkeys(_Lot, 0)
        self.end()

    def priming(self) -> bytes:
        return self._first

    def take(self, ticket: int = 0) -> bytes:
        """Return the next that waits, encoded. What was taken before has been written."""
        written, self._taken = self._taken, []
        for call in written:
            call()
        taken = self._take_first()
        self._taken = [item.written for item in taken if item.written is not None]
        self._taken_size = sum(item.weight for item in taken)
        if not self.crowded and self._room is not None:
            self._room.set()
        if not taken:
            return b""
        chunks = [self._encode(bytes(on_one_line(item.data))) for item in taken]
        if self._missing and self.tells:
            chunks.insert(0, self._encode(missing_note(self._missing)))
        self._missing = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _take_first(self) -> list[_Item]:
        size = count = 0
        for item in self._items:
            if count and size + item.weight > TAKEN_BYTES:
                break
            size, count = size + item.weight, count + 1
            self._sizes[item.lot] -= item.weight
        taken = self._items[:count]
        del self._items[:count]
        return taken

    def over(self, ticket: int = 0) -> bool:
        """Return whether nothing more is to come."""
        return self.ended and not self._items

    async def wait(self, ticket: int = 0) -> None:
        """Wait until there is something to take, or nothing more to come."""
        if self._items or self.ended:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def poke(self) -> None:
        """Wake the reader although nothing came."""
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self.ended and self._room is not None:
            self._room.set()

    # -- how full it is ----------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes it keeps in memory, about; those too that are being written."""
        return sum(self._sizes.values()) + self._taken_size

    @property
    def crowded(self) -> bool:
        return self.size > CROWDED_BYTES and not self.ended

    async def room(self) -> None:
        """Wait until the client has read enough to be heard again."""
        while self.crowded:
            self._room = asyncio.Event()
            await self._room.wait()

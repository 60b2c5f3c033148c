"""Server-sent events for one client: numbered, kept for a while, bounded.

An `EventStream` outlives the connections that read it. What no connection has taken yet waits in
it; what was taken is kept for a client that resumes (2025-11-25 basic/transports
#resumability-and-redelivery). `Streams` are all streams of one session: the standalone one (GET)
and those of POSTs that became streams. Neighbours: `core.session` writes to them as its client
port; `frontend.reply` opens one per POST; `frontend.connection` reads.
"""

import asyncio
from typing import Final, NamedTuple

from ..core.exchange import Outbound, Outcome
from ..errors import SessionEnded, StreamNotKept
from ..wire import on_one_line

KEPT_EVENTS: Final = 256
KEPT_BYTES: Final = 1024 * 1024
"""Of events already taken, for resuming; and of those that wait while nobody reads."""

KEPT_SECONDS: Final = 60.0
"""For which a POST's stream that has ended can still be resumed."""

MAX_REPLIES: Final = 64
"""Streams of one session that are kept for resuming; of those that ended, the oldest go first."""

STANDALONE: Final = 0
"""Number of the stream that a GET opens; those of POSTs count from 1."""


class Event(NamedTuple):
    number: int
    message: Outbound


class EventStream:
    """One stream of one session. At most one connection reads it; a newer one takes over."""

    __slots__ = (
        "_expected",
        "_kept",
        "_kept_size",
        "_last",
        "_pending",
        "_pending_size",
        "_reader",
        "_waiter",
        "dropped",
        "ended",
        "left_at",
        "number",
    )  # fmt: skip

    def __init__(self, number: int, *, expected: bool = False) -> None:
        """`expected`: its first reader is on its way, and counts as there."""
        self.number = number
        self._expected = expected
        self._last = 0
        self._pending: list[Event] = []  # lists: an empty deque has room for 64
        self._pending_size = 0
        self._kept: list[Event] = []
        self._kept_size = 0
        self._reader = 0
        self._waiter: asyncio.Future[None] | None = None
        self.left_at: float | None = None
        self.ended = False
        self.dropped = 0
        """Messages that were given up because nobody took them."""

    # -- writing -----------------------------------------------------------------------------------

    def put(self, message: Outbound) -> None:
        """Add a message. Where too many wait, some are dropped or the reader is cut off."""
        if self.ended:
            return
        if self._full():
            self._make_room(message)
        self._last += 1
        self._pending.append(Event(self._last, message))
        self._pending_size += len(message.data)
        self._wake()

    def end(self, message: Outbound | None = None) -> None:
        """Add the last message, whatever waits before it; nothing follows it."""
        if message is not None and not self.ended:
            self._last += 1
            self._pending.append(Event(self._last, message))
            self._pending_size += len(message.data)
        self.ended = True
        self._wake()

    def _full(self) -> bool:
        if self._pending_size >= KEPT_BYTES:
            return True
        # A reader that keeps up finds any number of small messages at once.
        return not self.attached and len(self._pending) >= KEPT_EVENTS

    def _make_room(self, message: Outbound) -> None:
        """Drop the oldest that may be dropped; else cut the reader off, and drop the oldest.

        A reader that was cut off can resume, with what is kept.
        """
        for index, event in enumerate(self._pending):
            if event.message.droppable:
                del self._pending[index]
                self._forget_pending(event)
                return
        self._reader += self._reader % 2
        self._expected = False
        self._forget_pending(self._pending.pop(0))

    def _forget_pending(self, event: Event) -> None:
        self._pending_size -= len(event.message.data)
        self.dropped += 1
        if event.message.ask is not None:
            failure = SessionEnded("The client does not listen; the request was not delivered.")
            event.message.ask.answer(Outcome(failure=failure))

    # -- reading -----------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether a connection reads it, or is about to."""
        return self._reader % 2 == 1 or self._expected

    def attach(self, after: int | None = None) -> int:
        """Become its reader; the one before is told that it no longer is. Returns a ticket.

        `after`: the number of the last event the client has seen; those kept since come again.
        """
        if after is not None:
            again = [event for event in self._kept if event.number > after]
            self._pending = [*again, *self._pending]
            self._pending_size += sum(len(event.message.data) for event in again)
            self._kept = [event for event in self._kept if event.number <= after]
            self._kept_size = sum(len(event.message.data) for event in self._kept)
        self._reader += 2 if self._reader % 2 else 1
        self._expected = False
        self.left_at = None
        self._wake()
        return self._reader

    def detach(self, ticket: int, now: float) -> None:
        """Stop reading, at `now` in seconds. No effect for one that was taken over."""
        if ticket == self._reader:
            self._reader += 1
            self.left_at = now

    def over(self, ticket: int) -> bool:
        """Return whether the reader with this ticket has nothing more to come."""
        return ticket != self._reader or (self.ended and not self._pending)

    def take(self, ticket: int) -> bytes:
        """Return the events that wait, encoded, and keep them for one who resumes."""
        if ticket != self._reader or not self._pending:
            return b""
        events, self._pending = self._pending, []
        self._pending_size = 0
        for event in events:
            self._kept.append(event)
            self._kept_size += len(event.message.data)
        surplus = max(0, len(self._kept) - KEPT_EVENTS)
        self._kept_size -= sum(len(event.message.data) for event in self._kept[:surplus])
        while self._kept_size > KEPT_BYTES:
            self._kept_size -= len(self._kept[surplus].message.data)
            surplus += 1
        del self._kept[:surplus]
        return b"".join([self._encoded(event) for event in events])

    def _encoded(self, event: Event) -> bytes:
        return b"id: %d-%d\nevent: message\ndata: %b\n\n" % (
            self.number,
            event.number,
            on_one_line(event.message.data),
        )

    def priming(self) -> bytes:
        """Return the empty event that tells the client where to resume."""
        seen = self._pending[0].number - 1 if self._pending else self._last
        return b"id: %d-%d\ndata:\n\n" % (self.number, seen)

    async def wait(self, ticket: int) -> None:
        """Wait until there is something to take, or nothing more to come."""
        if self._pending or self.over(ticket):
            return
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def poke(self) -> None:
        """Wake the reader although nothing came."""
        self._wake()


class Streams:
    """All streams of one session's client. A `ClientPort`."""

    __slots__ = ("_count", "_replies", "_standalone")

    def __init__(self) -> None:
        self._standalone: EventStream | None = None
        self._replies: dict[int, EventStream] = {}
        self._count = STANDALONE

    @property
    def listening(self) -> bool:
        return self._standalone is not None and self._standalone.attached

    @property
    def left_at(self) -> float | None:
        return None if self._standalone is None else self._standalone.left_at

    def heard(self) -> None:
        if self._standalone is not None:
            self._standalone.left_at = None

    def message(self, message: Outbound) -> None:
        self.standalone().put(message)

    def close(self) -> None:
        """End the standalone stream; those of POSTs end with their answers, which are on their
        way."""
        self.standalone().end()

    def standalone(self) -> EventStream:
        if self._standalone is None:
            self._standalone = EventStream(STANDALONE)
        return self._standalone

    def open_reply(self, *, expected: bool) -> EventStream:
        """Return a new stream for the answer to a POST; `expected`: its reader is there."""
        self._count += 1
        while len(self._replies) >= MAX_REPLIES:
            ended = next((s for s in self._replies.values() if s.ended), None)
            if ended is None:
                break
            self.forget(ended)
        stream = self._replies[self._count] = EventStream(self._count, expected=expected)
        return stream

    def forget(self, stream: EventStream) -> None:
        self._replies.pop(stream.number, None)

    def resumed(self, last_event_id: str) -> tuple[EventStream, int]:
        """Return the stream that an event was on, and the event's number.

        Raises: StreamNotKept: there is none such any more, or there never was.
        """
        stream, _, event = last_event_id.partition("-")
        if stream.isdecimal() and event.isdecimal() and len(last_event_id) < 32:
            if int(stream) == STANDALONE:
                return self.standalone(), int(event)
            found = self._replies.get(int(stream))
            if found is not None:
                return found, int(event)
        raise StreamNotKept("the stream of this Last-Event-ID is no longer kept")

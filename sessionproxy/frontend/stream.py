"""Server-sent events for one client: numbered, kept for a while, bounded.

An `EventStream` outlives the connections that read it. What no connection has taken yet waits in
it; what was taken is kept for a client that resumes (2025-11-25 basic/transports
#resumability-and-redelivery). Both are bounded, and whoever reads on behind what was given up is
told how much is missing. `Streams` are all streams of one session: the standalone one (GET)
and those of POSTs that became streams. Neighbours: `core.session` writes to them as its client
port; `frontend.reply` opens one per POST; `frontend.connection` reads.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from ..core.exchange import Outbound, Outcome
from ..errors import BackendBusy, SessionEnded, StreamNotKept
from ..wire import encode_notification, on_one_line

logger: Final = logging.getLogger(__name__)

KEPT_EVENTS: Final = 256
"""Events already taken that are kept for resuming; and those that wait while nobody reads."""

KEPT_BYTES: Final = 1024 * 1024
"""Bytes of one stream in memory: of events that wait, and, as far as these leave room, of those
kept for resuming. Only the answer to a request may be larger, as long as it waits."""

EVENT_BYTES: Final = 200
"""Bytes that an event weighs besides its data."""

DROPPED_BYTES: Final = KEPT_BYTES // 8
"""Bytes that are given up at once where events wait that may be dropped."""

TAKEN_BYTES: Final = 64 * 1024
"""Bytes of events that a connection takes at once: what a reader that stalls leaves in it."""

KEPT_SECONDS: Final = 60.0
"""For which a POST's stream that has ended can still be resumed."""

MAX_REPLIES: Final = 64
"""Streams of one session that are kept for resuming; of those that ended, the oldest go first."""

LARGE_REPLY: Final = 64 * 1024
"""Bytes from which on a stream that has ended is a large one."""

REPLIES_BYTES: Final = 4 * 1024 * 1024
"""Bytes of large streams of one session that have ended and are kept; the newest is kept
whatever its size."""

STANDALONE: Final = 0
"""Number of the stream that a GET opens; those of POSTs count from 1."""


class Event(NamedTuple):
    number: int
    message: Outbound
    weight: int
    """Bytes in memory, about."""


class EventStream:
    """One stream of one session. At most one connection reads it; a newer one takes over."""

    __slots__ = (
        "_droppable",
        "_expected",
        "_kept",
        "_kept_size",
        "_last",
        "_numbered",
        "_pending",
        "_pending_size",
        "_reader",
        "_seen",
        "_taken",
        "_waiter",
        "dropped",
        "ended",
        "left_at",
        "number",
        "on_cut",
    )  # fmt: skip

    def __init__(self, number: int, *, expected: bool = False, numbered: bool = True) -> None:
        """`expected`: its first reader is on its way, and counts as there until `lost`.
        `numbered`: its events have ids, so that it can be resumed."""
        self.number: int = number
        self._numbered = numbered
        self._expected = expected
        self._last = 0
        self._pending: list[Event] = []  # lists: an empty deque has room for 64
        self._pending_size = 0
        self._droppable = 0
        """Bytes of those that wait and may be dropped."""
        self._kept: list[Event] = []
        self._kept_size = 0
        self._taken = 0
        """Number of the last event that any reader has taken."""
        self._seen = 0
        """Number of the last event that the present reader has, or has been told it lacks."""
        self._reader = 0
        self._waiter: asyncio.Future[None] | None = None
        self.left_at: float | None = None
        self.ended: bool = False
        self.dropped: int = 0
        """Messages that were given up because nobody took them."""
        self.on_cut: Callable[[], None] | None = None
        """Called soon after the reader of a stream without numbers was cut off."""

    # -- writing -----------------------------------------------------------------------------------

    def put(self, message: Outbound) -> None:
        """Add a message. Where too many wait, some are dropped or the reader is cut off."""
        if self.ended:
            return
        while self._full():
            if message.droppable and self._droppable < self._wanted:
                # To look for the few that wait would cost more than they free.
                self._last += 1
                self.dropped += 1
                return
            self._make_room()
            if self.ended:
                self._undelivered(message)
                return
        self._append(message)

    def end(self, message: Outbound | None = None) -> None:
        """Add the last message, whatever waits before it; nothing follows it."""
        if message is not None and not self.ended:
            self._append(message)
        self.ended = True
        self._wake()

    def _append(self, message: Outbound) -> None:
        self._last += 1
        weight = EVENT_BYTES + len(message.data)
        self._pending.append(Event(self._last, message, weight))
        self._pending_size += weight
        if message.droppable:
            self._droppable += weight
        self._trim()
        self._wake()

    def _full(self) -> bool:
        if self._pending_size >= KEPT_BYTES:
            return True
        # A reader that keeps up finds any number of small messages at once.
        return not self.attached and len(self._pending) >= KEPT_EVENTS

    @property
    def _wanted(self) -> int:
        """Bytes that are to be given up at once: where it is by size, so many that each costs
        little."""
        return DROPPED_BYTES if self._pending_size >= KEPT_BYTES else 1

    def _make_room(self) -> None:
        """Drop what may be dropped; else cut the reader off, and drop the oldest.

        A reader that was cut off can resume, and is told that something is missing; a stream
        without numbers ends with it.
        """
        if self._droppable:
            self._drop_oldest()
            return
        if self.attached:
            logger.info("a client that does not read its stream was cut off")
            self._reader += self._reader % 2
            self._expected = False
            self.left_at = asyncio.get_running_loop().time()
            if not self._numbered:
                self._give_up()
                return
        self._forget_pending(self._pending.pop(0))

    def _give_up(self) -> None:
        """End without another word: nobody can come back for what waits."""
        for event in self._pending:
            self._forget_pending(event)
        self._pending = []
        self.ended = True
        if self.on_cut is not None:  # soon: the message that was one too many is still on its way
            asyncio.get_running_loop().call_soon(self.on_cut)

    def _drop_oldest(self) -> None:
        """Drop the oldest that may be dropped."""
        wanted = self._wanted
        left: list[Event] = []
        for event in self._pending:
            if wanted > 0 and event.message.droppable:
                wanted -= event.weight
                self._forget_pending(event)
            else:
                left.append(event)
        self._pending = left

    def _forget_pending(self, event: Event) -> None:
        self._pending_size -= event.weight
        if event.message.droppable:
            self._droppable -= event.weight
        self._undelivered(event.message)

    def _undelivered(self, message: Outbound) -> None:
        self.dropped += 1
        if message.ask is not None:
            failure = SessionEnded("The client does not listen; the request was not delivered.")
            with suppress(BackendBusy):  # then it waits on, until its session gives it up
                message.ask.answer(Outcome(failure=failure))

    # -- reading -----------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether a connection reads it, or is about to."""
        return self._reader % 2 == 1 or self._expected

    def attach(self, after: int | None = None) -> int:
        """Become its reader; the one before is told that it no longer is. Returns a ticket.

        `after`: the number of the last event the client has seen; those kept since come again.
        """
        self._seen = self._taken
        if after is not None:
            self._seen = after
            again = [event for event in self._kept if event.number > after]
            self._pending = [*again, *self._pending]
            self._pending_size += sum(event.weight for event in again)
            self._droppable += sum(event.weight for event in again if event.message.droppable)
            self._kept = [event for event in self._kept if event.number <= after]
            self._kept_size = sum(event.weight for event in self._kept)
        self._reader += 2 if self._reader % 2 else 1
        self._expected = False
        self.left_at = None
        self._wake()
        return self._reader

    def lost(self, now: float) -> None:
        """The reader that was on its way has hung up, at `now` in seconds."""
        if self._expected:
            self._expected = False
            self.left_at = now

    def detach(self, ticket: int, now: float) -> None:
        """Stop reading, at `now` in seconds. No effect for one that was taken over."""
        if ticket == self._reader:
            self._reader += 1
            self.left_at = now

    def can_resume(self, after: int) -> bool:
        """Return whether the event was one of this stream, and the answer can still come after it.

        What else is missing then, the reader is told; an answer that is missing it would wait for.
        """
        answer_is_held = bool(self._pending or self._kept)
        return after == self._last or (after < self._last and (answer_is_held or not self.ended))

    @property
    def _news(self) -> bool:
        """Whether the present reader has not got, or not been told of, all there was."""
        return bool(self._pending) or self._seen < self._last

    def over(self, ticket: int) -> bool:
        """Return whether the reader with this ticket has nothing more to come."""
        return ticket != self._reader or (self.ended and not self._news)

    def take(self, ticket: int) -> bytes:
        """Return the next events that wait, encoded, and keep them for one who resumes."""
        if ticket != self._reader or not self._news:
            return b""
        events = self._take_first()
        last = events[-1].number if events else self._last
        missing = last - self._seen - len(events)
        self._seen = last
        self._taken = max(self._taken, last)
        if self._numbered:
            self._kept += events
            self._kept_size += sum(event.weight for event in events)
            self._trim()
        told = [_told(missing)] if missing > 0 else []
        return b"".join([*told, *(self._encoded(event) for event in events)])

    def _take_first(self) -> list[Event]:
        size = count = 0
        for event in self._pending:
            if count and size + event.weight > TAKEN_BYTES:
                break
            size, count = size + event.weight, count + 1
        events = self._pending[:count]
        del self._pending[:count]
        self._pending_size -= size
        self._droppable -= sum(event.weight for event in events if event.message.droppable)
        return events

    def _trim(self) -> None:
        """Forget the oldest of what is kept for resuming, as far as it is too much."""
        surplus = len(self._kept) - KEPT_EVENTS
        room = KEPT_BYTES - self._pending_size
        if surplus <= 0 and self._kept_size <= room:
            return  # as nearly always: this is done for every message
        surplus = max(0, surplus)
        size = sum(event.weight for event in self._kept[:surplus])
        while surplus < len(self._kept) and self._kept_size - size > room:
            size += self._kept[surplus].weight
            surplus += 1
        if surplus:
            del self._kept[:surplus]
            self._kept_size -= size

    @property
    def size(self) -> int:
        """Bytes it keeps in memory, about."""
        return self._pending_size + self._kept_size

    def asleep(self) -> None:
        """Forget what was taken: a client that resumes is told that it is missing."""
        self._kept.clear()
        self._kept_size = 0

    def _encoded(self, event: Event) -> bytes:
        if not self._numbered:
            return b"event: message\ndata: %b\n\n" % on_one_line(event.message.data)
        return b"id: %d-%d\nevent: message\ndata: %b\n\n" % (
            self.number,
            event.number,
            on_one_line(event.message.data),
        )

    def priming(self) -> bytes:
        """Return the empty event that tells the client where to resume."""
        return b"id: %d-%d\ndata:\n\n" % (self.number, self._seen)

    async def wait(self, ticket: int) -> None:
        """Wait until there is something to take, or nothing more to come."""
        if self._news or self.over(ticket):
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


def missing_note(missing: int) -> bytes:
    """Return a notification that says how many messages before the next one are missing."""
    what = "1 message was" if missing == 1 else f"{missing} messages were"
    data = f'"{what} dropped: not read in time"'
    params = f'{{"level":"warning","logger":"sessionproxy","data":{data}}}'
    return encode_notification("notifications/message", params.encode())


def _told(missing: int) -> bytes:
    """Return an event without an id that says so."""
    return b"event: message\ndata: %b\n\n" % missing_note(missing)


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

    def left(self) -> None:
        """The client hung up on the stream that opened its session, before it opened another."""
        if not self.listening:
            self.standalone().left_at = asyncio.get_running_loop().time()

    def message(self, message: Outbound) -> None:
        self.standalone().put(message)

    def asleep(self) -> None:
        if self._standalone is not None:
            self._standalone.asleep()

    @property
    def size(self) -> int:
        return 0 if self._standalone is None else self._standalone.size

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
            self.forget(ended.number)
        stream = self._replies[self._count] = EventStream(self._count, expected=expected)
        return stream

    def ended(self, stream: EventStream) -> None:
        """A POST's stream has ended. It is kept for a while, unless large ones are too many."""
        loop = asyncio.get_running_loop()
        loop.call_later(KEPT_SECONDS, self.forget, stream.number)  # not the stream itself
        if stream.size <= LARGE_REPLY:
            return
        large = [s for s in self._replies.values() if s.ended and s.size > LARGE_REPLY]
        size = sum(s.size for s in large)
        for other in large[:-1]:
            if size <= REPLIES_BYTES:
                break
            size -= other.size
            self.forget(other.number)

    def forget(self, number: int) -> None:
        self._replies.pop(number, None)

    def resumed(self, last_event_id: str) -> tuple[EventStream, int]:
        """Return the stream that an event was on, and the event's number.

        Raises: StreamNotKept: there is none such any more, or there never was.
        """
        number, _, event = last_event_id.partition("-")
        if number.isdecimal() and event.isdecimal() and len(last_event_id) < 32:
            standalone = self.standalone() if int(number) == STANDALONE else None
            stream = standalone or self._replies.get(int(number))
            if stream is not None and stream.can_resume(int(event)):
                return stream, int(event)
        raise StreamNotKept("the stream of this Last-Event-ID is no longer kept")


class Replies(Protocol):
    """Where the streams of POSTs come from."""

    def open_reply(self, *, expected: bool) -> EventStream:
        """Return a new stream for the answer to a POST; `expected`: its reader is there."""
        ...

    def ended(self, stream: EventStream) -> None:
        """A POST's stream has ended."""
        ...


class Unkept:
    """Streams that nobody can come back to: 2026-07-28 has no resumption. `Replies`."""

    def open_reply(self, *, expected: bool) -> EventStream:
        return EventStream(1, expected=expected, numbered=False)

    def ended(self, stream: EventStream) -> None: ...

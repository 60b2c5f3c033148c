"""One stream of events: what it keeps, what it gives up, and that nothing goes missing unsaid."""

import gc
import re
from collections.abc import Callable

import anyio
import pytest

from sessionproxy.core.exchange import Ask, Outbound, Outcome
from sessionproxy.errors import StreamNotKept
from sessionproxy.frontend.stream import (
    DROPPED_BYTES,
    EVENT_BYTES,
    KEPT_BYTES,
    KEPT_EVENTS,
    LARGE_REPLY,
    MAX_REPLIES,
    REPLIES_BYTES,
    TAKEN_BYTES,
    EventStream,
    Streams,
)

LARGE = 10_000
"""Bytes of a message of which some hundred are too many."""


def log(n: int, size: int = 0) -> Outbound:
    return Outbound(b'{"n":%d,"x":"%b"}' % (n, b"x" * size), droppable=True)


def note(n: int, size: int = 0) -> Outbound:
    return log(n, size)._replace(droppable=False)


def taken(stream: EventStream, ticket: int) -> bytes:
    """Take all there is."""
    found = b""
    while data := stream.take(ticket):
        found += data
    return found


def numbers(data: bytes) -> list[int]:
    return [int(n) for n in re.findall(rb'"n":(\d+)', data)]


def missing(data: bytes) -> int:
    """How many messages the reader was told that it lacks."""
    return sum(int(n) for n in re.findall(rb'"(\d+) messages? w[^"]+ dropped', data))


def filled(count: int = 0, *, droppable: bool = True) -> EventStream:
    """A stream that nobody reads, with so many large messages, or more than it can keep."""
    stream = EventStream(0, expected=True)
    for n in range(1, (count or 3 * KEPT_BYTES // LARGE) + 1):
        stream.put((log if droppable else note)(n, LARGE))
    return stream


# -- how much is kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1000, LARGE])
@pytest.mark.parametrize("droppable", [True, False])
async def test_a_stream_weighs_a_mebibyte_at_most(size: int, droppable: bool) -> None:
    """FAULTS F29, F30, F31: what waits and what is kept together, whether it is read or not."""
    stream = EventStream(0)
    ticket = stream.attach()
    message = (log if droppable else note)(1, size)
    enough = 2 * KEPT_BYTES // (EVENT_BYTES + size)
    for n in range(2 * enough):
        stream.put(message)
        if n < enough:  # then it stalls
            stream.take(ticket)
        assert stream.size <= KEPT_BYTES + EVENT_BYTES + len(message.data)


async def test_the_smallest_messages_are_bounded_in_number() -> None:
    """FAULTS F31: an event weighs more than its data."""
    stream = EventStream(0, expected=True)
    for n in range(20_000):
        stream.put(Outbound(b"{}", droppable=True))
        assert n < KEPT_BYTES // EVENT_BYTES or stream.dropped > 0
    assert taken(stream, stream.attach()).count(b"\n\n") <= KEPT_BYTES // EVENT_BYTES + 1


@pytest.mark.parametrize("kind", [log, note])
async def test_a_huge_message_makes_room_for_no_second_one(
    kind: Callable[[int, int], Outbound],
) -> None:
    """FAULTS F29: however large a message may be, one is above the limit at a time."""
    stream = EventStream(0, expected=True)
    for n in range(100):
        stream.put(kind(n, 100))
    for n in range(5):
        stream.put(kind(n, 2 * KEPT_BYTES))
        assert stream.size < 2 * KEPT_BYTES + 100 * (EVENT_BYTES + 200)


async def test_a_stream_without_numbers_ends_with_a_reader_that_does_not_read() -> None:
    """FAULTS F29 and F30, in the modern era: nothing of it stays, and it is told soon."""
    stream = EventStream(0, expected=True, numbered=False)
    ticket = stream.attach()
    cut, answers = anyio.Event(), list[Outcome]()
    stream.on_cut = cut.set
    stream.put(note(1)._replace(ask=Ask("roots/list", None, answers.append)))
    put = 1
    while not stream.ended:
        stream.put(note(1, LARGE))
        put += 1
    assert not cut.is_set()  # the message that was one too many is still on its way
    assert (stream.size, stream.dropped, len(answers)) == (0, put, 1)
    assert stream.over(ticket)
    stream.put(note(1))
    assert stream.size == 0
    assert numbers(taken(stream, stream.attach())) == []
    with anyio.fail_after(5):
        await cut.wait()


async def test_a_reader_takes_no_more_at_once_than_may_be_left_in_its_connection() -> None:
    """FAULTS F31."""
    stream = filled(20)
    ticket = stream.attach()
    while data := stream.take(ticket):
        assert len(data) <= TAKEN_BYTES


async def test_a_message_larger_than_that_is_taken_whole() -> None:
    """DESIGN 5.13: the event goes out whole."""
    stream = EventStream(0)
    ticket = stream.attach()
    stream.put(log(1, 2 * TAKEN_BYTES))
    assert numbers(stream.take(ticket)) == [1]


async def test_a_reader_that_takes_in_time_lacks_nothing() -> None:
    """DESIGN 5.3: none is dropped while its reader keeps up."""
    stream = EventStream(0)
    ticket = stream.attach()
    found = b""
    for n in range(1, 1001):
        stream.put(log(n, LARGE))
        if n % 50 == 0:
            found += taken(stream, ticket)
    assert numbers(found) == list(range(1, 1001))
    assert missing(found) == 0


async def test_while_nobody_reads_the_last_of_many_small_messages_are_kept() -> None:
    """FAULTS F29: 256 messages."""
    stream = EventStream(0)
    for n in range(1, 1001):
        stream.put(log(n))
    found = taken(stream, stream.attach())
    assert numbers(found) == list(range(1001 - KEPT_EVENTS, 1001))
    assert missing(found) == 1000 - KEPT_EVENTS


async def test_log_messages_are_dropped_before_anything_else() -> None:
    """FAULTS F29: drop-oldest for log and progress."""
    stream = EventStream(0, expected=True)
    for n in range(1, 301):
        stream.put(note(n, 100) if n % 50 == 0 else log(n, LARGE))
    assert stream.attached
    found = taken(stream, stream.attach())
    assert set(range(50, 301, 50)) <= set(numbers(found))
    assert numbers(found) == sorted(numbers(found))
    assert missing(found) == 300 - len(numbers(found)) > 0


async def test_dropping_makes_room_for_many_so_that_each_costs_little() -> None:
    """FAULTS F29: a flood to a reader that stalls must not stall the others."""
    stream = filled()
    before = stream.dropped
    dropped_at = 0
    for n in range(100):
        stream.put(log(n, LARGE))
        dropped_at += stream.dropped > before
        before = stream.dropped
    assert dropped_at <= 1 + 100 * LARGE // (DROPPED_BYTES - LARGE)


# -- readers that are cut off ----------------------------------------------------------------------


async def test_a_reader_of_what_must_not_be_dropped_is_cut_off_and_counts_as_gone() -> None:
    """FAULTS F29: the stream is closed for the rest; DESIGN 7: `linger` begins."""
    stream = EventStream(0)
    ticket = stream.attach()
    for n in range(200):
        stream.put(note(n, LARGE))
    assert stream.over(ticket)
    assert not stream.attached
    assert stream.left_at is not None
    left_at = stream.left_at
    stream.detach(ticket, left_at + 1)
    assert stream.left_at == left_at
    stream.attach()
    assert stream.left_at is None


async def test_a_request_that_is_dropped_is_answered_to_the_backend() -> None:
    """DESIGN 5.3: answered exactly once."""
    answers: list[Outcome] = []
    ask = Ask("roots/list", None, answers.append)
    stream = EventStream(0)
    stream.put(note(0, LARGE)._replace(ask=ask))
    for n in range(200):
        stream.put(note(n, LARGE))
    assert len(answers) == 1
    assert answers[0].failure is not None


# -- what is missing is said -----------------------------------------------------------------------


async def test_a_reader_that_stalled_is_told_how_many_it_lacks() -> None:
    """DESIGN 5.3: bounded in memory, and told."""
    stream = EventStream(0)
    ticket = stream.attach()
    for n in range(1, 301):
        stream.put(log(n, LARGE))
    found = taken(stream, ticket)
    assert missing(found) == stream.dropped > 0
    assert missing(found) + len(numbers(found)) == 300


@pytest.mark.parametrize("droppable", [True, False])
async def test_one_who_resumes_behind_what_was_given_up_is_told_how_many_it_lacks(
    droppable: bool,
) -> None:
    """2025-11-25 basic/transports#resumability-and-redelivery: a replay with a hole is none."""
    stream = filled(10)
    ticket = stream.attach()
    taken(stream, ticket)
    stream.detach(ticket, 1)
    for n in range(11, 301):
        stream.put((log if droppable else note)(n, LARGE))
    found = taken(stream, stream.attach(5))
    assert missing(found) + len(numbers(found)) == 295
    assert missing(found) > 0
    assert b'"logger":"sessionproxy"' in found.split(b"\n\n")[0]


async def test_one_who_resumes_behind_what_is_kept_no_more_is_told_although_nothing_follows() -> (
    None
):
    """2025-11-25 basic/transports#resumability-and-redelivery."""
    stream = EventStream(0)
    ticket = stream.attach()
    stream.put(log(1))
    stream.put(log(2, 2 * KEPT_BYTES))
    taken(stream, ticket)
    again = stream.attach(1)
    assert not stream.over(again)
    assert missing(taken(stream, again)) == 1
    assert stream.take(again) == b""


async def test_nobody_is_told_of_what_another_reader_has_taken() -> None:
    """2025-11-25 basic/transports: without `Last-Event-ID` a stream begins with what is new."""
    stream = filled(10)
    taken(stream, stream.attach())
    stream.put(log(11))
    found = taken(stream, stream.attach())
    assert (numbers(found), missing(found)) == ([11], 0)


async def test_the_first_event_of_one_who_resumes_is_where_it_was() -> None:
    """2025-11-25 basic/transports: should it be lost at once, it resumes there again."""
    stream = filled(10)
    taken(stream, stream.attach())
    stream.attach(4)
    assert stream.priming() == b"id: 0-4\ndata:\n\n"


async def test_what_was_told_to_be_missing_has_no_id_of_its_own() -> None:
    """Our choice: it is no event of the stream, and cannot be resumed from."""
    stream = filled()
    told, *events = taken(stream, stream.attach()).strip().split(b"\n\n")
    assert told.startswith(b"event: message\ndata: ")
    assert all(event.startswith(b"id: 0-") for event in events)


# -- what can be resumed ---------------------------------------------------------------------------


def ended(size: int) -> tuple[Streams, EventStream]:
    """A POST's stream whose answer, of so many bytes, was taken."""
    streams = Streams()
    stream = streams.open_reply(expected=True)
    ticket = stream.attach()
    stream.put(log(1))
    stream.end(Outbound(b'{"n":2,"x":"%b"}' % (b"x" * size)))
    taken(stream, ticket)
    return streams, stream


async def test_a_stream_that_ended_is_resumed_with_its_answer() -> None:
    """DESIGN 5.9."""
    streams, _ = ended(100)
    stream, after = streams.resumed("1-1")
    assert numbers(taken(stream, stream.attach(after))) == [2]


async def test_a_stream_whose_answer_is_kept_no_more_is_not_resumed() -> None:
    """Our choice: its reader would wait for an answer that cannot come."""
    streams, stream = ended(2 * KEPT_BYTES)
    with pytest.raises(StreamNotKept):
        streams.resumed("1-1")
    assert streams.resumed("1-2") == (stream, 2)  # it has seen it


async def test_an_event_that_never_was_is_nothing_to_resume_from() -> None:
    """Our choice: silence would hide that it is another session's, or made up."""
    streams, _ = ended(100)
    for made_up in ("1-3", "0-1"):
        with pytest.raises(StreamNotKept):
            streams.resumed(made_up)
    assert streams.resumed("0-0") == (streams.standalone(), 0)


# -- all streams of a session ----------------------------------------------------------------------


def replied(streams: Streams, size: int) -> EventStream:
    """A POST's stream that has ended with an answer of so many bytes."""
    stream = streams.open_reply(expected=False)
    stream.end(note(1, size))
    streams.ended(stream)
    return stream


def alive() -> int:
    gc.collect()
    return sum(isinstance(found, EventStream) for found in gc.get_objects())


async def test_streams_that_ended_are_bounded_in_number() -> None:
    """DESIGN 5.3: also before their minute is over."""
    before = alive()
    streams = Streams()
    for _ in range(3 * MAX_REPLIES):
        replied(streams, 100)
    assert MAX_REPLIES <= alive() - before <= MAX_REPLIES + 1


async def test_large_streams_that_ended_are_bounded_in_bytes_and_the_newest_is_kept() -> None:
    """DESIGN 5.3, 5.9: one answer of any size can be fetched."""
    before = alive()
    streams = Streams()
    small = replied(streams, 100)
    for _ in range(20):
        replied(streams, REPLIES_BYTES // 4)
    assert alive() - before <= 1 + 4
    last = replied(streams, 2 * REPLIES_BYTES)
    assert alive() - before == 2
    for stream in (small, last):
        assert streams.resumed(f"{stream.number}-0")[0] is stream
    assert REPLIES_BYTES // MAX_REPLIES <= LARGE_REPLY


async def test_a_session_that_falls_asleep_keeps_only_what_was_not_read() -> None:
    """DESIGN 7: ten thousand sleepers are to weigh little."""
    streams = Streams()
    stream = streams.standalone()
    for n in range(1, 101):
        streams.message(note(n, 1000))
    ticket = stream.attach()
    taken(stream, ticket)
    streams.message(note(101, 1000))
    assert streams.size > 100_000
    streams.asleep()
    assert 1000 < streams.size < 2000
    again = stream.attach(after=50)
    rest = taken(stream, again)
    assert numbers(rest) == [101]
    assert missing(rest) == 50


async def test_a_reader_that_hung_up_on_its_way_no_longer_counts_as_there() -> None:
    stream = EventStream(1, expected=True)
    stream.lost(5.0)
    assert not stream.attached
    assert stream.left_at == 5.0
    ticket = stream.attach()
    stream.lost(6.0)  # of another connection
    assert stream.attached
    assert not stream.over(ticket)


async def test_where_hardly_anything_may_be_dropped_the_new_one_is_and_nothing_is_searched() -> (
    None
):
    """FAULTS F29: what must not be dropped fills it; its reader is not cut off for a log."""
    stream = EventStream(0, expected=True)
    n = 0
    while stream.size < KEPT_BYTES:
        n += 1
        stream.put(note(n, 200))
    first = stream.attach()
    for extra in range(1000):
        stream.put(log(n + 1 + extra))
    assert stream.attached
    assert stream.dropped == 1000
    rest = taken(stream, first)
    assert numbers(rest) == [*range(1, n + 1)]
    assert missing(rest) == 1000

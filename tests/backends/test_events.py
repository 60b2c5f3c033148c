"""`backends.remote.sse`: events out of bytes, bounded and in linear time (WHATWG HTML, 9.2.6)."""

import random

import pytest

from sessionproxy.backends.remote.sse import MAX_DATA_LINES, Event, EventReader
from sessionproxy.wire import Oversize


def read(*chunks: bytes, limit: int = 1000) -> list[Event]:
    reader = EventReader(limit)
    return [event for chunk in chunks for event in reader.feed(chunk)]


def test_an_event_has_the_data_of_all_its_lines_and_the_name_it_was_given() -> None:
    """WHATWG HTML, 9.2.6: data lines are joined by newlines, one space after the colon is none."""
    found = read(b"event: endpoint\ndata: /a\ndata:b\ndata:  c\n\ndata: d\n\n")
    assert found == [Event(b"/a\nb\n c", b"endpoint"), Event(b"d")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_all_three_line_ends_are_heeded_wherever_the_bytes_are_cut(end: bytes) -> None:
    """WHATWG HTML, 9.2.5. A CRLF may be cut in two."""
    text = end.join((b": hello", b"id: 7", b"data: x", b"", b"data: y", b"", b""))
    for at in range(len(text)):
        assert read(text[:at], b"", text[at:]) == [Event(b"x"), Event(b"y")], at
    assert read(*(text[i : i + 1] for i in range(len(text)))) == [Event(b"x"), Event(b"y")]


def test_comments_events_without_data_and_unknown_fields_are_no_events() -> None:
    """2025-11-25 basic/transports: a stream is primed by an event with an id and no data."""
    reader = EventReader(1000)
    found = list(reader.feed(b":\n\n: a\n\nid: p1\nretry: 1500\ndata:\n\nfoo: bar\n\ndata\n\n"))
    assert found == []
    assert (reader.last_id, reader.retry, reader.events) == (b"p1", 1.5, 2)


def test_an_event_that_was_not_finished_is_not_handed_on() -> None:
    """WHATWG HTML, 9.2.6: an incomplete event at the end of the stream is discarded."""
    assert read(b"data: whole\n\ndata: half\n") == [Event(b"whole")]


def test_the_id_stays_until_another_one_comes_and_goes_on_to_the_next_connection() -> None:
    """WHATWG HTML, 9.2.6: the last event ID buffer is not reset. What no header may have in it is
    no id."""
    reader = EventReader(1000)
    list(reader.feed(b"id: a\ndata: 1\n\ndata: 2\n\nid: b\0c\ndata: 3\n\nid: \x01\nid: \x7f\n\n"))
    list(reader.feed(b"retry: soon\ndata: 4\n\n"))
    assert (reader.last_id, reader.retry) == (b"a", None)
    successor = reader.successor()
    assert (successor.last_id, successor.events) == (b"a", 0)


@pytest.mark.parametrize("pieces", [1, 7, 4096])
def test_an_event_past_the_limit_is_discarded_alone_and_leaves_its_two_ends(pieces: int) -> None:
    """FAULTS F13: discarded without being kept; its call is found by the id at either end."""
    large = b'data: {"jsonrpc":"2.0","id":12,"result":"' + b"x" * 50_000 + b'"}\n\n'
    text = b"data: before\n\n" + large + b"data: after\n\n"
    found = read(*(text[i : i + pieces] for i in range(0, len(text), pieces)), limit=10_000)
    assert [found[0], found[2]] == [Event(b"before"), Event(b"after")]
    oversize = found[1].data
    assert isinstance(oversize, Oversize)
    assert b'"id":12' in oversize.head
    assert oversize.tail.endswith(b'x"}')
    assert len(oversize.head) + len(oversize.tail) <= 8192


def test_the_limit_is_on_all_the_data_of_an_event_not_on_each_line() -> None:
    """FAULTS F13: many small lines are one large event."""
    line = b"data: " + b"x" * 90 + b"\n"
    (found, after) = read(line * 20 + b"\ndata: y\n\n", limit=1000)
    assert isinstance(found.data, Oversize)
    assert after == Event(b"y")


def test_an_event_of_very_many_lines_is_too_large_whatever_their_size() -> None:
    """FAULTS F13: every line costs an object."""
    (found,) = read(b"data:\n" * (MAX_DATA_LINES + 2) + b"\n", limit=10**9)
    assert isinstance(found.data, Oversize)


def test_an_endless_comment_costs_no_memory_and_no_event() -> None:
    """FAULTS F12 and F13: what is no data is of no interest, however long."""
    reader = EventReader(1000)
    for _ in range(1000):
        assert list(reader.feed(b":" + b"x" * 9999)) == []
    assert list(reader.feed(b"\n\ndata: y\n\n")) == [Event(b"y")]


def test_any_cutting_gives_the_same_events() -> None:
    """The reader has no state but what it has read."""
    rng = random.Random(874770983)  # one that found something once
    parts = [
        b"data: x",
        b"data:yy",
        b"id: 3",
        b"event: m",
        b": c",
        b"",
        b"",
        b"\r",
        b"data: \xc3\xa4",
    ]
    for _ in range(300):
        text = b"".join(rng.choice(parts) + rng.choice((b"\n", b"\r\n", b"\r")) for _ in range(12))
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(4))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert read(*pieces) == read(text), (text, cuts)

import re
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionproxy.wire import LineSplitter, Oversize
from sessionproxy.wire.lines import KEPT

MAX_LINE = 12


def fed(splitter: LineSplitter, *chunks: bytes) -> list[bytes | Oversize]:
    return [line for chunk in chunks for line in splitter.feed(chunk)]


def test_a_line_is_given_back_without_its_end() -> None:
    """2025-11-25 basic/transports#stdio: messages are delimited by newlines."""
    assert fed(LineSplitter(100), b"one\ntwo\n") == [b"one", b"two"]


def test_a_carriage_return_before_the_newline_is_part_of_the_line_end() -> None:
    """Our choice: servers on Windows and `print` in text mode write it."""
    assert fed(LineSplitter(100), b"one\r\n", b"two\r", b"\n") == [b"one", b"two"]


def test_a_carriage_return_within_a_line_stays() -> None:
    assert fed(LineSplitter(100), b"a\rb\r\r\n") == [b"a\rb\r"]


def test_empty_lines_are_left_out() -> None:
    """Our choice: they are no messages, and some servers separate theirs with one."""
    assert fed(LineSplitter(100), b"\n\r\n", b"\r", b"\n", b"one\n\n") == [b"one"]


def test_a_line_that_comes_in_pieces_is_given_back_whole_and_once() -> None:
    """FAULTS F12: half a line has no effect, and is kept."""
    splitter = LineSplitter(100)
    assert fed(splitter, b"o", b"n") == []
    assert fed(splitter, b"e\nt") == [b"one"]
    assert fed(splitter, b"", b"wo", b"\n") == [b"two"]
    assert fed(splitter, b"\n") == []


def test_other_line_breaks_do_not_end_a_line() -> None:
    """2025-11-25 basic/transports#stdio; U+2028 and U+0085 may stand in JSON strings."""
    line = "a\u2028b\u2029c\u0085d\x0be\x0cf".encode()
    assert fed(LineSplitter(100), line + b"\n") == [line]


def test_a_line_as_long_as_the_limit_is_whole_and_one_byte_more_is_too_long() -> None:
    """Config `max_line`: bytes of one message that are accepted."""
    assert fed(LineSplitter(5), b"12345\n", b"123456\n") == [
        b"12345",
        Oversize(b"123456", b"123456"),
    ]
    assert fed(LineSplitter(5), b"123", b"45\n", b"123", b"456\n") == [
        b"12345",
        Oversize(b"123456", b"123456"),
    ]


def test_after_a_line_that_was_too_long_the_next_one_is_whole() -> None:
    """FAULTS F13: the session lives."""
    splitter = LineSplitter(5)
    assert fed(splitter, b"123456789", b"0\nnext\nlast\n") == [
        Oversize(b"123456789", b"1234567890"),
        b"next",
        b"last",
    ]
    assert fed(splitter, b"12345\n") == [b"12345"]


def test_of_a_line_that_is_too_long_both_ends_are_kept() -> None:
    """FAULTS F13: the id is found in one of them."""
    line = b"<" + b"a" * KEPT + b"|" + b"b" * 3 * KEPT + b">"
    expected = Oversize(line[:KEPT], line[-KEPT:])
    assert fed(LineSplitter(KEPT), line + b"\n") == [expected]
    pieces = [line[i : i + 1000] for i in range(0, len(line), 1000)]
    assert fed(LineSplitter(KEPT), *pieces, b"\n") == [expected]


@pytest.mark.parametrize("size", [2, 64 * 1024])
def test_a_line_that_is_too_long_is_not_held_in_memory(size: int) -> None:
    """FAULTS F13, DESIGN 5.3: discarded as it arrives."""
    splitter = LineSplitter(64 * 1024)
    chunk = b"x" * size
    tracemalloc.start()
    try:
        for _ in range(1024 * 1024 // size):
            splitter.feed(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 512 * 1024


def test_a_line_that_drips_in_costs_about_its_own_size() -> None:
    """DESIGN 5.3: bounded by `max_line`, not by the number of writes it came in."""
    splitter = LineSplitter(1024 * 1024)
    tracemalloc.start()
    try:
        for number in range(100_000):
            splitter.feed(b"%02d" % (number % 100))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 * 200_000
    assert fed(splitter, b"\n") == [b"".join(b"%02d" % (n % 100) for n in range(100_000))]


def test_what_was_fed_is_counted() -> None:
    splitter = LineSplitter(5)
    fed(splitter, b"12", b"", b"3456789\n0")
    assert splitter.taken == 11


TEXTS = st.lists(
    st.one_of(st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]), st.binary(max_size=2 * MAX_LINE))
).map(b"".join)


@given(TEXTS, st.lists(st.integers(0, 400), max_size=12))
def test_however_it_is_cut_into_chunks_the_lines_are_those_of_the_whole(
    text: bytes, cuts: list[int]
) -> None:
    """A pipe cuts where it likes."""
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(bounds)]
    assert b"".join(chunks) == text
    lines = fed(LineSplitter(MAX_LINE), *chunks)

    whole = [line for line in text.split(b"\n")[:-1] if re.sub(rb"\r\Z", b"", line)]
    assert len(lines) == len(whole)
    for line, original in zip(lines, whole, strict=True):
        if len(original) <= MAX_LINE:
            assert line == re.sub(rb"\r\Z", b"", original)
        else:
            assert isinstance(line, Oversize)
            assert len(line.head) > MAX_LINE
            assert original.startswith(line.head)
            assert line.tail == original

"""DESIGN 10: stderr goes line by line to the log, and its last lines into an error."""

import logging

import pytest

from sessionproxy.backends.stderr import (
    BUDGET,
    KEPT_LINES,
    KEPT_SIZE,
    LINES_PER_SECOND,
    MAX_LINE,
    PERIOD,
    RING,
    StderrLog,
)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="sessionproxy.backend")
    return caplog


def logged(lines: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in lines.records]


def test_every_line_is_logged_under_the_label_of_its_session(
    lines: pytest.LogCaptureFixture,
) -> None:
    """DESIGN 10."""
    log = StderrLog()
    log.feed(b"early\n", 0)
    log.label = "abc"
    log.feed(b"half ", 0)
    log.feed("line\nsöme\xff\r\nrest".encode("latin-1"), 0)
    assert logged(lines) == [
        "spare stderr: early",
        "abc stderr: half line",
        "abc stderr: s\ufffdme\ufffd",
    ]


def test_a_flood_is_logged_at_a_bounded_rate_and_the_rest_is_counted(
    lines: pytest.LogCaptureFixture,
) -> None:
    """FAULTS F15."""
    log = StderrLog()
    log.feed(b"x\n" * 1000, 10.0)
    assert len(logged(lines)) == LINES_PER_SECOND
    log.feed(b"y\n", 11.5)
    assert logged(lines)[-2:] == [
        f"spare: {1000 - LINES_PER_SECOND} lines on stderr were not logged",
        "spare stderr: y",
    ]


def test_after_a_flood_the_next_line_is_logged_whole(lines: pytest.LogCaptureFixture) -> None:
    """FAULTS F15: although what it begins with came amidst what is not looked at."""
    log = StderrLog()
    log.feed(b"x\n" * LINES_PER_SECOND + b"lost\n", 10.0)
    log.feed(b"lost too\nlo", 10.5)
    log.feed(b"st, all three\nto", 10.5)
    log.feed(b"ge", 10.6)
    log.feed(b"ther\n", 11.5)
    assert logged(lines)[LINES_PER_SECOND:] == [
        "spare: 3 lines on stderr were not logged",
        "spare stderr: together",
    ]


def test_beyond_a_rate_the_reader_is_to_pause() -> None:
    """FAULTS F15: whatever a backend writes, reading it takes a bounded share of the time."""
    log = StderrLog()
    chunk = b"x" * (BUDGET // 4)
    assert [log.feed(chunk, 5 + n * PERIOD / 10) for n in range(3)] == [0, 0, 0]
    assert log.feed(chunk, 5 + PERIOD / 2) == pytest.approx(PERIOD / 2)
    assert log.feed(chunk, 5 + PERIOD) == 0


def test_the_last_lines_are_kept_oldest_first() -> None:
    """DESIGN 10: into the error that says why a backend failed."""
    log = StderrLog()
    log.feed(b"".join(b"%d\n" % n for n in range(100)), 0)
    assert log.last_lines() == tuple(str(n) for n in range(100 - KEPT_LINES, 100))


def test_what_is_kept_is_bounded_in_bytes() -> None:
    """FAULTS F15: a ring."""
    log = StderrLog()
    log.feed((b"x" * 1000 + b"\n") * 100, 0)
    assert sum(map(len, log.last_lines())) <= KEPT_SIZE
    assert log.last_lines()


def test_of_a_line_that_is_too_long_to_keep_the_end_is_kept() -> None:
    """FAULTS F15; a last line without its end counts as one: it is what a crash leaves."""
    log = StderrLog()
    log.feed(b"x" * 2 * RING + b" why\nand", 0)
    log.feed(b" so", 0)
    *_, first, last = log.last_lines()
    assert first.endswith("x why")
    assert last == "and so"


def test_a_giant_line_is_cut(lines: pytest.LogCaptureFixture) -> None:
    """FAULTS F15: never buffered whole."""
    log = StderrLog()
    for _ in range(1000):
        log.feed(b"x" * 10_000, 0)
    log.feed(b"\nnext\n", 0)
    assert len(logged(lines)[0]) <= MAX_LINE + len("spare stderr: ")
    assert logged(lines)[1] == "spare stderr: next"


def test_a_silent_backend_has_no_last_lines() -> None:
    """`Exit.stderr` is then empty."""
    assert StderrLog().last_lines() == ()

"""DESIGN 10: stderr goes line by line to the log, and its last lines into an error."""

import logging

import pytest

from sessionproxy.backends.stderr import (
    KEPT_LINES,
    KEPT_SIZE,
    LINES_PER_SECOND,
    MAX_LINE,
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

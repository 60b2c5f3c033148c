from sessionproxy.core.garbage import MAX_LINES, WINDOW, Garbage


def with_lines(*times: float) -> Garbage:
    garbage = Garbage()
    for now in times:
        garbage.add(now)
    return garbage


def test_a_line_is_logged_and_those_of_the_next_second_together_after_it() -> None:
    """FAULTS F10: one line in the log per second."""
    garbage = Garbage()
    logged: list[int] = []
    for now in (5.0, 5.0, 5.9, 6.0, 6.5, 60.0):
        garbage.add(now)
        logged.append(garbage.to_log())
    assert logged == [1, 0, 0, 3, 0, 2]


def test_more_lines_than_the_limit_within_the_window_are_too_many() -> None:
    """FAULTS F10: more than 1,000 in 10 s."""
    garbage = with_lines(*[7.0] * MAX_LINES)
    assert not garbage.too_many()
    garbage.add(7.0 + WINDOW)
    assert garbage.too_many()


def test_as_many_lines_over_a_longer_time_are_not() -> None:
    """A server that prints a line now and then is no flood, however long it lives."""
    garbage = with_lines(*(n * 1.01 * WINDOW / MAX_LINES for n in range(5 * MAX_LINES)))
    assert not garbage.too_many()


def test_the_window_slides() -> None:
    """A flood is one also where it begins late in some ten seconds and ends early in the next."""
    half = MAX_LINES // 2
    garbage = with_lines(0.0, *[WINDOW - 1] * half, *[WINDOW + 1] * half)
    assert not garbage.too_many()
    garbage.add(WINDOW + 1)
    assert garbage.too_many()

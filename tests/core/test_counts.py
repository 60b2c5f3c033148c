"""What `core.counts` counts of requests; `tests.ops.test_metrics` has the rest."""

from sessionproxy.core.counts import BOUNDS, OTHER, Counts, Requests
from sessionproxy.core.exchange import Outcome
from sessionproxy.errors import BackendGone, RequestCancelled

RESULT = Outcome(result=b"{}")
ERROR = Outcome(error=b"{}")


def only(counts: Counts) -> tuple[str, Requests]:
    (found,) = counts.requests()
    return found


def test_an_answer_is_counted_in_the_first_class_that_it_fits_in() -> None:
    """As Prometheus' `le`: a bound belongs to its class."""
    counts = Counts()
    for bound in BOUNDS:
        counts.over("tools/call", RESULT, float(bound))
    counts.over("tools/call", ERROR, BOUNDS[-1] + 1.0)
    _, found = only(counts)
    assert found.durations == [1] * (len(BOUNDS) + 1)
    assert (found.answered, found.errors, found.failed) == (len(BOUNDS) + 1, 1, 0)
    assert found.seconds == sum(BOUNDS) + BOUNDS[-1] + 1


def test_a_failure_is_counted_by_its_reason_and_took_no_time() -> None:
    """How long a backend did not answer says nothing of how long its answers take."""
    counts = Counts()
    counts.over("tools/call", Outcome(failure=BackendGone("gone")), 9.0)
    counts.over("tools/call", Outcome(failure=RequestCancelled("cancelled")), 9.0)
    _, found = only(counts)
    assert (found.answered, found.failed, found.seconds) == (0, 2, 0.0)
    assert counts.failures == {"backend_gone": 1, "request_cancelled": 1}


def test_methods_that_are_not_in_the_table_share_one_place() -> None:
    """Clients may make up as many as they like."""
    counts = Counts()
    for number in range(1000):
        counts.over(f"x/{number}", RESULT, 0.0)
        counts.asked(f"y/{number}")
    method, found = only(counts)
    assert (method, found.answered) == (OTHER, 1000)
    assert counts.asks == {OTHER: 1000}

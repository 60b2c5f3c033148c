"""DESIGN 11: every failure that is raised on purpose has an answer, in one table."""

from collections.abc import Iterator

import pytest

from sessionproxy import errors
from sessionproxy.core.caller import UNHEARD
from sessionproxy.core.exchange import Exchange, Outcome
from sessionproxy.errors import ProxyError
from sessionproxy.frontend.problems import ANSWERS, http_problem, modern_answer


def leaves(kind: type[ProxyError]) -> Iterator[type[ProxyError]]:
    for below in kind.__subclasses__():
        if below.__subclasses__():
            yield from leaves(below)
        else:
            yield below


def test_every_error_has_an_answer_and_every_answer_an_error() -> None:
    """CONVENTIONS: a test finds any missing."""
    assert set(leaves(ProxyError)) == set(ANSWERS)


def test_every_error_has_a_reason_of_its_own() -> None:
    """`ProxyError.reason`: metric label, log field and kind of a fault."""
    reasons = [leaf.reason for leaf in leaves(ProxyError)]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.replace("_", "").islower() for reason in reasons)


def test_what_the_backend_did_is_told_with_200() -> None:
    """DESIGN 11: SDK clients drop the text of a 5xx."""
    assert {ANSWERS[leaf].http_status for leaf in leaves(errors.BackendError)} == {200}


@pytest.mark.parametrize(
    "error",
    [
        errors.AtCapacity("", retry_after=0.2),
        errors.Draining("", retry_after=1.0),
        errors.RouteResting("", retry_after=4.5),
    ],
)
def test_what_passes_says_when_to_come_back(error: ProxyError) -> None:
    """RFC 9110 section 10.2.3: whole seconds, and never 0, which would be at once."""
    problem = http_problem(error)
    assert problem.status == 503
    assert int(dict(problem.headers)[b"retry-after"]) >= 1


def test_a_missing_session_is_told_without_what_was_asked_for() -> None:
    """DESIGN 5.8: one answer, whatever the log says."""
    bodies = {http_problem(errors.SessionNotFound(text)).body for text in ("a", "b", "")}
    assert len(bodies) == 1


def test_an_error_nested_too_deep_to_look_into_is_passed_on() -> None:
    """FAULTS F11, I3: `decode` reads deeper, where the stack is lower; a modern client waits."""
    exchange = Exchange("tools/call", None, client_id=b"7", sink=UNHEARD)
    deep = b'{"code":-32602,"message":"","data":' + b"[" * 2000 + b"]" * 2000 + b"}"
    answer, status = modern_answer(exchange, Outcome(error=deep), expose_stderr=False)
    assert answer == b'{"jsonrpc":"2.0","id":7,"error":%b}' % deep
    assert status == 200

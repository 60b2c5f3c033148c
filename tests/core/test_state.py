from itertools import product

import pytest

from sessionproxy.core.state import NEXT_STATES, EndReason, SessionState, StopReason, advance
from sessionproxy.errors import IllegalTransition, ProxyError

S = SessionState

STEPS = {
    (S.STARTING, S.READY),
    (S.STARTING, S.STOPPING),
    (S.STARTING, S.ENDING),
    (S.READY, S.STOPPING),
    (S.READY, S.ENDING),
    (S.STOPPING, S.ASLEEP),
    (S.STOPPING, S.ENDING),
    (S.ASLEEP, S.STARTING),
    (S.ASLEEP, S.ENDING),
    (S.ENDING, S.CLOSED),
}
"""DESIGN 7, first sentence; a start that nobody waits for any more stops (our addition)."""


@pytest.mark.parametrize(("current", "new"), list(product(S, S)))
def test_a_step_is_taken_if_and_only_if_the_table_has_it(current: S, new: S) -> None:
    if (current, new) in STEPS:
        assert advance(current, new) is new
    else:
        with pytest.raises(IllegalTransition):
            advance(current, new)


def test_every_state_is_reached_and_every_state_but_the_last_can_be_left() -> None:
    assert set(NEXT_STATES) == set(S)
    assert {state for following in NEXT_STATES.values() for state in following} == set(S)
    assert [state for state in S if not NEXT_STATES[state]] == [S.CLOSED]


def test_every_session_can_be_ended_whatever_it_does() -> None:
    """DESIGN 7: `ENDING -> CLOSED` from any of them."""
    assert all(S.ENDING in NEXT_STATES[state] for state in S if state not in (S.ENDING, S.CLOSED))


def test_a_step_that_is_not_in_the_table_is_a_bug_of_ours() -> None:
    """CONVENTIONS: our own bugs stay outside the tree of errors."""
    assert not issubclass(IllegalTransition, ProxyError)


def test_reasons_are_one_word_for_log_metric_and_test() -> None:
    """DESIGN 5.5."""
    for reason in (*StopReason, *EndReason):
        assert reason.replace("_", "").isalpha()
        assert str(reason) == reason.value == reason.value.lower()

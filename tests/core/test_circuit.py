import anyio
import pytest

from sessionproxy.core.circuit import FAILURES, FIRST_REST, LONGEST_REST, WINDOW, Circuit
from sessionproxy.errors import BackendGone, BackendStartFailed, RouteResting


def failing(times: int, *, at: float = 0.0, every: float = 0.0) -> Circuit:
    circuit = Circuit()
    for number in range(times):
        circuit.failed(at + number * every)
    return circuit


def test_it_rests_after_five_failures_within_a_minute() -> None:
    """DESIGN 7: fails to start 5 times in 60 s."""
    assert (FAILURES, WINDOW) == (5, 60)
    assert not failing(4).rests(0)
    assert failing(5).rests(0)
    assert failing(5, every=15).rests(60)
    assert not failing(5, every=15.1).rests(60.4)


def test_it_says_how_long_the_rest_will_be() -> None:
    """DESIGN 7: 503 with `Retry-After`."""
    circuit = failing(5, at=100)
    with pytest.raises(RouteResting) as resting:
        circuit.check(101)
    assert resting.value.retry_after == FIRST_REST - 1


def test_it_is_open_again_when_the_pause_is_over() -> None:
    circuit = failing(5)
    circuit.check(FIRST_REST)
    assert not circuit.rests(FIRST_REST)


def test_the_pauses_grow_up_to_a_limit() -> None:
    """DESIGN 7: rests for a growing pause; after a rest one failure is enough."""
    circuit = failing(5)
    now, pauses = 0.0, list[float]()
    for _ in range(12):
        with pytest.raises(RouteResting) as resting:
            circuit.check(now)
        pauses.append(resting.value.retry_after)
        now += resting.value.retry_after
        circuit.failed(now)
    assert pauses[:4] == [5, 10, 20, 40]
    assert pauses[-1] == LONGEST_REST == max(pauses)


def test_a_success_makes_it_forget() -> None:
    circuit = failing(4)
    circuit.succeeded()
    circuit.failed(0)
    assert not circuit.rests(0)

    circuit = failing(5)
    circuit.succeeded()
    circuit.failed(FIRST_REST)
    assert not circuit.rests(FIRST_REST)


def test_failures_of_starts_from_before_the_rest_do_not_prolong_it() -> None:
    """Several starts are under way at once; they fail together."""
    circuit = failing(5)
    for _ in range(5):
        circuit.failed(1)
    assert not circuit.rests(FIRST_REST)
    circuit.failed(FIRST_REST)
    with pytest.raises(RouteResting) as resting:
        circuit.check(FIRST_REST)
    assert resting.value.retry_after == 2 * FIRST_REST


def fail(circuit: Circuit, error: Exception) -> None:
    with pytest.raises(type(error)), circuit.trying():
        raise error


async def test_starts_that_are_nobodys_count_too_and_are_not_tried_while_it_rests() -> None:
    """DESIGN 7: a route rests, whoever its backends are started for."""
    circuit = Circuit()
    for _ in range(FAILURES):
        fail(circuit, BackendStartFailed("no such command"))
    with pytest.raises(RouteResting), circuit.trying():
        pytest.fail("it was tried")
    await anyio.sleep(FIRST_REST)
    with circuit.trying():
        pass


async def test_a_failure_that_several_are_given_counts_once() -> None:
    """A session's start may fail over a look at a backend."""
    circuit, failure = Circuit(), BackendStartFailed("no such command")
    for _ in range(2 * FAILURES):
        fail(circuit, failure)
    assert failure.counted
    assert not circuit.rests(anyio.current_time())


async def test_what_is_no_failed_start_does_not_count() -> None:
    circuit = Circuit()
    for _ in range(2 * FAILURES):
        fail(circuit, BackendGone("It had started."))
    assert not circuit.rests(anyio.current_time())

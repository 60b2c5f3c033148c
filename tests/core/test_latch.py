import anyio
import pytest

from sessionproxy.core.latch import Latch


async def test_all_who_wait_are_woken_when_it_is_set() -> None:
    latch = Latch()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await latch.wait()
        woken.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(wait, number)
        await anyio.wait_all_tasks_blocked()
        assert (woken, latch.is_set()) == ([], False)
        latch.set()
    assert (sorted(woken), latch.is_set()) == ([0, 1, 2], True)


async def test_it_stays_set_and_can_be_set_again() -> None:
    latch = Latch()
    latch.set()
    latch.set()
    with anyio.fail_after(1):
        await latch.wait()
    assert repr(latch) == "<Latch set>"


async def test_waiting_for_one_that_is_set_is_a_checkpoint() -> None:
    """Else who is cancelled in that moment would go on."""
    latch = Latch()
    latch.set()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await latch.wait()
        pytest.fail("it went on")
    assert scope.cancelled_caught


async def test_one_who_leaves_does_not_take_the_others_along() -> None:
    latch = Latch()
    with anyio.move_on_after(1):
        await latch.wait()
    assert repr(latch) == "<Latch unset>"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(latch.wait)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(1):
            await latch.wait()
        latch.set()

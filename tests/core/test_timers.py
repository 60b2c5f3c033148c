"""Timers: in time, in order, once, and nothing of those that were cancelled."""

import gc
import logging
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from sessionproxy.core.pauses import Pauses
from sessionproxy.core.timers import MAX_IDLE, Timers


@asynccontextmanager
async def running() -> AsyncGenerator[Timers]:
    async with anyio.create_task_group() as tasks:
        timers = Timers(Pauses())
        tasks.start_soon(timers.run)
        yield timers
        tasks.cancel_scope.cancel()


class Fired:
    """When each was called."""

    def __init__(self) -> None:
        self.begun = anyio.current_time()
        self.at: list[tuple[str, float]] = []

    def note(self, name: str) -> None:
        self.at.append((name, round(anyio.current_time() - self.begun, 6)))


async def test_each_is_called_once_in_its_time() -> None:
    async with running() as timers:
        fired = Fired()
        timers.after(5, lambda: fired.note("late"))
        timers.after(1, lambda: fired.note("early"))
        timers.after(1, lambda: fired.note("early too"))
        await anyio.sleep(0.5)
        timers.after(0.1, lambda: fired.note("earliest"))
        assert len(timers) == 4
        await anyio.sleep(10)
        assert fired.at == [("earliest", 0.6), ("early", 1), ("early too", 1), ("late", 5)]
        assert len(timers) == 0


async def test_what_is_set_before_they_run_is_called_too() -> None:
    timers = Timers(Pauses())
    fired = Fired()
    timers.after(1, lambda: fired.note("x"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(timers.run)
        await anyio.sleep(2)
        tasks.cancel_scope.cancel()
    assert fired.at == [("x", 1)]


async def test_a_cancelled_one_is_not_called() -> None:
    async with running() as timers:
        fired = Fired()
        timer = timers.after(1, lambda: fired.note("x"))
        timer.cancel()
        timer.cancel()
        assert not timer.waits
        assert len(timers) == 0
        await anyio.sleep(2)
        assert fired.at == []
        assert len(timers) == 0


async def test_cancelling_one_that_was_called_changes_nothing() -> None:
    async with running() as timers:
        fired = Fired()
        timer = timers.after(1, lambda: fired.note("x"))
        other = timers.after(2, lambda: None)
        await anyio.sleep(1.5)
        timer.cancel()
        assert len(timers) == 1
        assert other.waits


async def test_one_may_cancel_another_or_itself_and_set_more() -> None:
    async with running() as timers:
        fired = Fired()

        def first() -> None:
            fired.note("first")
            itself.cancel()
            second.cancel()
            timers.after(0, lambda: fired.note("at once"))
            timers.after(1, lambda: fired.note("next"))

        itself = timers.after(1, first)
        second = timers.after(1, lambda: fired.note("second"))
        await anyio.sleep(5)
        assert fired.at == [("first", 1), ("at once", 1), ("next", 2)]
        assert len(timers) == 0


async def test_one_that_fails_keeps_no_other_from_its_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as timers:
        fired = Fired()

        def fails() -> None:
            raise RuntimeError("a bug of ours")

        timers.after(1, fails)
        timers.after(1, lambda: fired.note("x"))
        with caplog.at_level(logging.ERROR):
            await anyio.sleep(2)
        assert fired.at == [("x", 1)]
        assert "a timer failed" in caplog.text


async def test_what_is_cancelled_keeps_nothing_alive() -> None:
    class Big:
        def call(self) -> None: ...

    async with running() as timers:
        big = Big()
        alive = weakref.ref(big)
        timers.after(300, big.call).cancel()
        del big
        gc.collect()
        assert alive() is None


async def test_cancelled_ones_take_no_room_for_long() -> None:
    """A round that gathers sets and cancels one every few milliseconds; most wait for minutes."""
    async with running() as timers:
        fired = Fired()
        kept = [timers.after(n, lambda: fired.note("x")) for n in range(1, 11)]
        for _ in range(10_000):
            timers.after(300, lambda: None).cancel()
        entries = timers._entries  # pyright: ignore[reportPrivateUsage] - their number is the matter
        assert len(entries) <= 2 * MAX_IDLE + len(kept)
        assert len(timers) == len(kept)
        await anyio.sleep(20)
        assert [at for _, at in fired.at] == list(range(1, 11))


async def test_a_pause_puts_them_off() -> None:
    """FAULTS F42: what did not run was not waited for by anybody."""

    class Paused(Pauses):
        """Ten seconds of the first twenty were one."""

        def within(self, begun: float, now: float) -> float:
            return 10.0 if now - start >= 15 and begun == start else 0.0

    start = anyio.current_time()
    timers = Timers(Paused())
    fired = Fired()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(timers.run)
        timers.after(20, lambda: fired.note("put off"))
        await anyio.sleep(1)
        timers.after(20, lambda: fired.note("not"))
        await anyio.sleep(100)
        tasks.cancel_scope.cancel()
    assert fired.at == [("not", 21), ("put off", 30)]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), st.integers(0, 5) | st.none()),
        max_size=40,
    )
)
def test_all_that_were_not_cancelled_in_time_are_called_in_order(
    plan: list[tuple[float, int | None]],
) -> None:
    """Each timer with its seconds, and after how many it is cancelled."""

    async def run() -> None:
        async with running() as timers:
            called: list[int] = []
            set_ = [
                timers.after(seconds, lambda n=n: called.append(n))
                for n, (seconds, _) in enumerate(plan)
            ]
            for second in range(6):
                for timer, (_, cancelled) in zip(set_, plan, strict=True):
                    if cancelled == second:
                        timer.cancel()
                await anyio.sleep(0.99)
            due = [
                (seconds, n)
                for n, (seconds, cancelled) in enumerate(plan)
                if cancelled is None or cancelled * 0.99 > seconds
            ]
            assert called == [n for _, n in sorted(due)]
            assert len(timers) == 0

    trio.run(run, clock=MockClock(autojump_threshold=0))

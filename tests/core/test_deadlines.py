from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from sessionproxy.core.deadlines import CallLimit
from sessionproxy.core.exchange import Exchange
from sessionproxy.core.pauses import Pauses
from sessionproxy.errors import BackendSilent, ProxyError

from .fakes import FakeSink


class Watch:
    """A call limit that runs, and when each exchange ran out of time."""

    def __init__(self, seconds: float) -> None:
        self.limit = CallLimit(seconds, Pauses())
        self.ran_out: dict[Exchange, float] = {}
        self.failures: list[ProxyError] = []

    def exchange(self) -> Exchange:
        exchange = Exchange("tools/call", None, client_id=b"1", sink=FakeSink())
        self.limit.watch(exchange, self._note)
        return exchange

    def _note(self, exchange: Exchange, failure: ProxyError) -> None:
        self.ran_out[exchange] = anyio.current_time()
        self.failures.append(failure)


@asynccontextmanager
async def running(seconds: float) -> AsyncGenerator[Watch]:
    async with anyio.create_task_group() as tasks:
        watch = Watch(seconds)
        tasks.start_soon(watch.limit.run)
        yield watch
        tasks.cancel_scope.cancel()


async def test_each_exchange_runs_out_at_the_limit_after_its_own_beginning() -> None:
    """DESIGN 11: backend silent past the call limit."""
    async with running(10) as watch:
        begun = anyio.current_time()
        first = watch.exchange()
        await anyio.sleep(3)
        second = watch.exchange()
        third = watch.exchange()
        await anyio.sleep(20)
        at = {exchange: time - begun for exchange, time in watch.ran_out.items()}
        assert at == {first: 10, second: 13, third: 13}
        assert {type(failure) for failure in watch.failures} == {BackendSilent}
        assert str(watch.failures[0]) == "The backend did not answer in 10 s."


async def test_an_exchange_that_was_answered_is_forgotten() -> None:
    async with running(10) as watch:
        answered = watch.exchange()
        await anyio.sleep(1)
        waits = watch.exchange()
        await anyio.sleep(5)
        watch.limit.forget(answered)
        await anyio.sleep(60)
        assert list(watch.ran_out) == [waits]


async def test_forgetting_one_that_is_not_watched_does_nothing() -> None:
    """What ran out is forgotten again when it is settled."""
    async with running(10) as watch:
        exchange = watch.exchange()
        await anyio.sleep(11)
        watch.limit.forget(exchange)
        assert list(watch.ran_out) == [exchange]


async def test_it_wakes_up_for_a_call_after_a_time_without_any() -> None:
    async with running(10) as watch:
        watch.limit.forget(watch.exchange())
        await anyio.sleep(100)
        begun = anyio.current_time()
        late = watch.exchange()
        await anyio.sleep(10.5)
        assert watch.ran_out[late] - begun == 10


async def test_a_call_that_comes_before_it_runs_is_watched_too() -> None:
    watch = Watch(10)
    exchange = watch.exchange()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.limit.run)
        await anyio.sleep(10.5)
        tasks.cancel_scope.cancel()
    assert list(watch.ran_out) == [exchange]

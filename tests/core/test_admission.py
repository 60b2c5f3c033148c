from contextlib import AsyncExitStack

import anyio
import pytest

from sessionproxy.core.admission import RETRY_SPREAD, Admission, Place
from sessionproxy.core.pauses import Pauses
from sessionproxy.errors import AtCapacity


def admission_of(
    pauses: Pauses | None = None,
    *,
    max_sessions: int = 100,
    starts_at_once: int = 100,
    queue_length: int = 100,
    queue_timeout: float = 30.0,
    max_per_owner: int | None = None,
) -> Admission:
    return Admission(
        pauses or Pauses(),
        max_sessions=max_sessions,
        starts_at_once=starts_at_once,
        queue_length=queue_length,
        queue_timeout=queue_timeout,
        max_per_owner=max_per_owner,
    )


class Crowd:
    """Backends that want a place, each in a task of its own, until they are told to leave."""

    def __init__(self, admission: Admission, tasks: anyio.abc.TaskGroup) -> None:
        self._admission = admission
        self._tasks = tasks
        self.came_in: list[str] = []
        self.refused: list[str] = []
        self.scopes: dict[str, anyio.CancelScope] = {}
        self.places: dict[str, Place] = {}

    async def comes(self, name: str, owner: str = "alice") -> None:
        """Return once `name` has a place, was refused, or waits in the queue."""
        self.scopes[name] = anyio.CancelScope()
        self._tasks.start_soon(self._stay, name, owner)
        await anyio.wait_all_tasks_blocked()

    async def leaves(self, name: str) -> None:
        self.scopes[name].cancel()
        await anyio.wait_all_tasks_blocked()

    async def started(self, name: str) -> None:
        self.places[name].started()
        await anyio.wait_all_tasks_blocked()

    async def _stay(self, name: str, owner: str) -> None:
        with self.scopes[name]:
            try:
                async with self._admission.place(owner) as place:
                    self.came_in.append(name)
                    self.places[name] = place
                    await anyio.sleep_forever()
            except AtCapacity:
                self.refused.append(name)


async def test_a_place_is_had_at_once_while_there_is_room() -> None:
    admission = admission_of(max_sessions=2)
    before = anyio.current_time()
    async with admission.place("alice"), admission.place("bob"):
        assert admission.running == 2
    assert admission.running == 0
    assert anyio.current_time() == before


async def test_waiting_backends_come_in_in_the_order_they_came() -> None:
    """DESIGN 7: a FIFO queue."""
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(admission_of(max_sessions=1), tasks)
        for name in ("first", "second", "third", "fourth"):
            await crowd.comes(name, owner=name)
        assert crowd.came_in == ["first"]
        await crowd.leaves("first")
        await crowd.leaves("second")
        await crowd.leaves("third")
        assert crowd.came_in == ["first", "second", "third", "fourth"]
        tasks.cancel_scope.cancel()


async def test_nobody_who_comes_later_overtakes_one_who_fits() -> None:
    """DESIGN 7: FIFO, also in the moment in which a place has just become free."""
    admission = admission_of(max_sessions=1)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(admission, tasks)
        await crowd.comes("first")
        await crowd.comes("second")
        crowd.scopes["first"].cancel()
        await crowd.comes("late")
        assert crowd.came_in == ["first", "second"]
        tasks.cancel_scope.cancel()


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    """DESIGN 7: then 503 with a randomised `Retry-After`, nothing started; FAULTS F38."""
    admission = admission_of(max_sessions=1, queue_length=2)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(admission, tasks)
        for name in ("in", "queued", "queued too"):
            await crowd.comes(name)
        before = anyio.current_time()
        pauses: set[float] = set()
        for _ in range(20):
            with pytest.raises(AtCapacity) as refused:
                async with admission.place("bob"):
                    pass
            pauses.add(refused.value.retry_after)
        assert anyio.current_time() == before
        assert len(pauses) == 20
        assert all(RETRY_SPREAD[0] <= pause <= RETRY_SPREAD[1] for pause in pauses)
        assert (admission.running, admission.queued) == (1, 2)
        tasks.cancel_scope.cancel()


async def test_a_wait_ends_at_the_queue_timeout_and_leaves_no_trace() -> None:
    """DESIGN 7: up to `queue_timeout`."""
    pauses = Pauses()
    admission = admission_of(pauses, max_sessions=1, queue_timeout=30)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pauses.run)
        async with admission.place("alice"):
            before = anyio.current_time()
            with pytest.raises(AtCapacity) as refused:
                async with admission.place("bob"):
                    pass
            assert anyio.current_time() - before == 30
            assert RETRY_SPREAD[0] <= refused.value.retry_after <= RETRY_SPREAD[1]
            assert (admission.running, admission.queued) == (1, 0)
        tasks.cancel_scope.cancel()


async def test_a_client_that_hangs_up_leaves_the_queue() -> None:
    """DESIGN 7: the waiting client leaving the queue when it hangs up."""
    admission = admission_of(max_sessions=1, queue_length=1)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(admission, tasks)
        await crowd.comes("in")
        await crowd.comes("gone")
        await crowd.leaves("gone")
        assert admission.queued == 0
        await crowd.comes("next")
        await crowd.leaves("in")
        assert (crowd.came_in, crowd.refused) == (["in", "next"], [])
        tasks.cancel_scope.cancel()


async def test_a_place_granted_to_one_who_hangs_up_in_that_moment_goes_to_the_next() -> None:
    """The race between the grant and the cancellation: no place may be lost."""
    admission = admission_of(max_sessions=1)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(admission, tasks)
        await crowd.comes("next")
        async with AsyncExitStack() as held:
            await crowd.leaves("next")
            await held.enter_async_context(admission.place("alice"))
            await crowd.comes("gone")
            await crowd.comes("waits")
            crowd.scopes["gone"].cancel()
            await held.aclose()  # grants "gone" its place, which does not know yet that it is gone
        await anyio.wait_all_tasks_blocked()
        assert crowd.came_in == ["next", "waits"]
        assert (admission.running, admission.queued) == (1, 0)
        tasks.cancel_scope.cancel()


async def test_only_so_many_start_at_once() -> None:
    """DESIGN 7, defaults; FAULTS F38."""
    admission = admission_of(starts_at_once=2)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(admission, tasks)
        for name in "abcd":
            await crowd.comes(name)
        assert crowd.came_in == ["a", "b"]
        await crowd.started("a")
        assert crowd.came_in == ["a", "b", "c"]
        await crowd.started("a")  # it has started already
        assert crowd.came_in == ["a", "b", "c"]
        await crowd.leaves("b")  # while it was starting
        assert crowd.came_in == ["a", "b", "c", "d"]
        tasks.cancel_scope.cancel()
    assert (admission.running, admission.queued) == (0, 0)


async def test_one_who_has_started_and_leaves_frees_no_start() -> None:
    admission = admission_of(starts_at_once=1)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(admission, tasks)
        for name in "abc":
            await crowd.comes(name)
        await crowd.started("a")
        assert crowd.came_in == ["a", "b"]
        await crowd.leaves("a")
        assert crowd.came_in == ["a", "b"]
        tasks.cancel_scope.cancel()


async def test_an_owner_at_its_limit_waits_and_does_not_hold_up_others() -> None:
    """DESIGN 7: limits per owner; invariant 3: harms nobody else."""
    admission = admission_of(max_sessions=3, max_per_owner=1)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(admission, tasks)
        await crowd.comes("a1", owner="alice")
        await crowd.comes("a2", owner="alice")
        await crowd.comes("b1", owner="bob")
        assert crowd.came_in == ["a1", "b1"]
        await crowd.leaves("a1")
        assert crowd.came_in == ["a1", "b1", "a2"]
        await crowd.leaves("a2")
        await crowd.comes("a3", owner="alice")
        assert crowd.came_in == ["a1", "b1", "a2", "a3"]
        tasks.cancel_scope.cancel()


async def test_an_owner_at_its_limit_does_not_fill_the_queue_either() -> None:
    """FAULTS F38: per-principal cap first. It may wait for as many as it may have."""
    admission = admission_of(max_sessions=3, max_per_owner=2, queue_length=4)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(admission, tasks)
        for n in range(10):
            await crowd.comes(f"a{n}", owner="alice")
        assert crowd.came_in == ["a0", "a1"]
        assert admission.queued == 2
        assert crowd.refused == [f"a{n}" for n in range(4, 10)]
        for name in ("b0", "b1", "b2", "b3"):
            await crowd.comes(name, owner="bob")
        assert crowd.came_in == ["a0", "a1", "b0"]
        assert admission.queued == 4
        assert crowd.refused[6:] == ["b3"]
        await crowd.leaves("a0")
        await crowd.comes("a10", owner="alice")  # one of hers came in: there is room for another
        assert crowd.came_in[3:] == ["a2"]
        assert crowd.refused[7:] == []
        tasks.cancel_scope.cancel()


async def test_owners_that_have_left_are_forgotten() -> None:
    """Every buffer is bounded: there may be any number of owners."""
    admission = admission_of(max_sessions=1)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(admission, tasks)
        async with admission.place("alice"):
            await crowd.comes("gone", owner="bob")
            crowd.scopes["gone"].cancel()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert not admission._by_owner  # pyright: ignore[reportPrivateUsage]


async def test_a_failed_start_gives_everything_back() -> None:
    admission = admission_of(max_sessions=1, starts_at_once=1, max_per_owner=1)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no such command"):
            async with admission.place("alice"):
                raise RuntimeError("no such command")
    async with admission.place("alice"):
        assert admission.running == 1


async def test_its_repr_shows_where_it_stands() -> None:
    admission = admission_of(max_sessions=2, starts_at_once=3)
    async with admission.place("alice"):
        assert repr(admission) == "<Admission running=1/2 starting=1/3 queued=0>"

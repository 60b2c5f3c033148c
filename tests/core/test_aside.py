"""`core.aside`: backends that are looked at and let go of."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import anyio
import pytest

from sessionproxy.core.aside import MAX_LEFT, Aside
from sessionproxy.core.caller import Nobody
from sessionproxy.errors import BackendStartFailed
from tests.core.fakes import FakeBackend

STOP = 20.0
"""Seconds that a backend takes to stop."""

USER = ContextVar("USER", default="nobody")


class Backends:
    """Starts backends that are slow to stop."""

    def __init__(self, *, start: float = 0.0, fails: bool = False) -> None:
        self.running = 0
        self.users: list[str] = []
        self._start = start
        self._fails = fails

    @asynccontextmanager
    async def launch(self) -> AsyncGenerator[FakeBackend]:
        self.users.append(USER.get())
        await anyio.sleep(self._start)  # virtual
        if self._fails:
            raise BackendStartFailed("no")
        self.running += 1
        try:
            yield FakeBackend(Nobody(), initialize="answers", echoes=True)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(STOP)  # virtual
            self.running -= 1


async def test_who_used_a_backend_does_not_wait_for_its_end() -> None:
    """DESIGN 10: some servers never exit on the end of their stdin, and take `stop_grace`."""
    backends = Backends()
    async with Aside() as aside:
        before = anyio.current_time()
        async with aside.lend(backends.launch()) as backend:
            assert isinstance(backend, FakeBackend)
        assert anyio.current_time() == before
        assert backends.running == 1
        await anyio.sleep(STOP + 1)  # virtual
        assert backends.running == 0


async def test_on_exit_all_backends_are_gone() -> None:
    """DESIGN 5, rule 6."""
    backends = Backends()
    async with Aside() as aside:
        for _ in range(3):
            async with aside.lend(backends.launch()):
                pass
        assert backends.running == 3
    assert backends.running == 0


async def test_why_a_backend_did_not_start_is_told_to_who_wanted_it() -> None:
    """Others are not concerned."""
    backends = Backends(fails=True)
    async with Aside() as aside:
        with pytest.raises(BackendStartFailed, match="no"):
            async with aside.lend(backends.launch()):
                pytest.fail("there is none")
        async with aside.lend(Backends().launch()):
            pass


async def test_who_no_longer_waits_for_a_start_leaves_nothing_running() -> None:
    """DESIGN 5, rule 2."""
    backends = Backends(start=5)
    async with Aside() as aside:
        with anyio.move_on_after(1) as scope:  # virtual
            async with aside.lend(backends.launch()):
                pytest.fail("it has not started")
        assert scope.cancelled_caught
        await anyio.sleep(5)  # virtual
        assert backends.running == 1
        await anyio.sleep(STOP)  # virtual
        assert backends.running == 0


async def test_of_more_backends_than_may_be_left_behind_the_end_is_waited_for() -> None:
    """Our choice of `MAX_LEFT`: who asks again and again does not fill the machine."""
    backends = Backends()
    most = 0
    async with Aside() as aside:
        for _ in range(5 * MAX_LEFT):
            async with aside.lend(backends.launch()):
                most = max(most, backends.running)
            await anyio.lowlevel.checkpoint()
    assert most == MAX_LEFT + 1


async def test_a_backend_is_not_started_in_the_context_of_a_request() -> None:
    """DESIGN 8: sessions are started in a copy of the server's context, and so are these."""
    backends = Backends()
    async with Aside() as aside:
        USER.set("alice")
        async with aside.lend(backends.launch()):
            pass
    assert backends.users == ["nobody"]


async def test_who_still_wants_a_backend_when_all_are_ended_gets_none() -> None:
    """DESIGN 5, rule 2: a start that is cut off leaves nothing running."""
    backends = Backends(start=5)
    refused: list[str] = []

    async def want(aside: Aside) -> None:
        try:
            async with aside.lend(backends.launch()):
                pytest.fail("it has not started")
        except BackendStartFailed as error:
            refused.append(str(error))

    async with anyio.create_task_group() as tasks:
        async with Aside() as aside:
            tasks.start_soon(want, aside)
            await anyio.sleep(1)  # virtual
    assert refused == ["The start was cut off."]
    assert backends.running == 0

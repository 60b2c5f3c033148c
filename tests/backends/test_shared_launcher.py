"""DESIGN 10, "shared": the life of the one backend, on virtual time."""

import math
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
import trio.testing

from sessionproxy.backends.share import Share
from sessionproxy.backends.shared import SharedLauncher
from sessionproxy.core.caller import Nobody, ask
from sessionproxy.core.memory import Opening
from sessionproxy.core.pauses import Pauses
from sessionproxy.core.ports import Identity
from sessionproxy.core.timers import Timers
from sessionproxy.errors import BackendStartFailed, Draining, Exit, InitializeRefused, ProxyError
from tests.core.fakes import OPENING, USER, FakeLauncher

DISCOVER = Opening(b"{}", "server/discover")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class Recorder(Nobody):
    """A session's end of its share, which keeps how the backend ended."""

    def __init__(self) -> None:
        super().__init__()
        self.exits: list[Exit] = []

    def ended(self, how: Exit) -> None:
        self.exits.append(how)


@asynccontextmanager
async def launcher_of(
    launcher: FakeLauncher, *, linger: float = 60
) -> AsyncGenerator[SharedLauncher]:
    pauses = Pauses()
    timers = Timers(pauses)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pauses.run)
        tasks.start_soon(timers.run)
        shared = SharedLauncher(launcher, "fake", timers, pauses, linger=linger, start_timeout=10)
        async with shared:
            yield shared
        tasks.cancel_scope.cancel()


def share(shared: SharedLauncher, opening: Opening = OPENING, upstream: Nobody | None = None):
    """A session's share, as a context manager."""
    identity = Identity("fake", "alice", "k")
    return shared.launch(identity, "label", upstream or Nobody(), opening)


async def failures(shared: SharedLauncher, times: int) -> list[ProxyError]:
    """What each of so many sessions gets that wait for the same start."""
    found: list[ProxyError] = []

    async def join() -> None:
        try:
            async with share(shared):
                raise AssertionError("it did not fail")
        except ProxyError as error:
            found.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(times):
            tasks.start_soon(join)
    return found


async def test_all_who_come_while_it_starts_wait_for_the_same_backend() -> None:
    """DESIGN 5.2."""
    launcher = FakeLauncher(launch_takes=5)
    async with launcher_of(launcher) as shared:
        joined: list[Share] = []

        async def join(after: float) -> None:
            await anyio.sleep(after)
            async with share(shared) as found:
                joined.append(found)
                await anyio.sleep(20)

        async with anyio.create_task_group() as tasks:
            for after in range(8):
                tasks.start_soon(join, float(after))
        assert (len(set(joined)), launcher.launches) == (8, 1)
        assert launcher.backend.notes == [("notifications/initialized", None)]


async def test_it_is_kept_for_the_linger_and_no_longer() -> None:
    """`linger`, counted from when the last session gave its share back."""
    launcher = FakeLauncher(stop_takes=1)
    async with launcher_of(launcher, linger=60) as shared:
        async with share(shared):
            pass
        await anyio.sleep(59)
        async with share(shared):
            await anyio.sleep(1000)
        await anyio.sleep(59)
        assert shared.backends == len(launcher.running) == 1
        await anyio.sleep(2.1)
        assert shared.backends == len(launcher.running) == 0
        assert launcher.launches == 1


async def test_another_starts_only_when_the_one_before_is_gone() -> None:
    """DESIGN 5.2: one at a time, also where a session comes while it is being stopped."""
    launcher = FakeLauncher(stop_takes=20)
    async with launcher_of(launcher, linger=0) as shared:
        async with share(shared):
            pass
        before = anyio.current_time()
        async with share(shared):
            assert anyio.current_time() - before == pytest.approx(20, abs=0.1)
            assert (launcher.launches, len(launcher.running)) == (2, 1)


async def test_who_leaves_during_the_start_does_not_end_it_for_those_who_come() -> None:
    """A start that nobody waits for goes on; without a linger it is stopped then."""
    launcher = FakeLauncher(launch_takes=5, stop_takes=0)
    async with launcher_of(launcher, linger=0) as shared:
        with anyio.move_on_after(1):
            async with share(shared):
                raise AssertionError("it started too soon")
        async with share(shared):
            assert (launcher.launches, len(launcher.running)) == (1, 1)
        await anyio.sleep(0.1)
        with anyio.move_on_after(1):
            async with share(shared):
                raise AssertionError("it started too soon")
        await anyio.sleep(5)
        assert (launcher.launches, len(launcher.running)) == (2, 0)


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        (FakeLauncher(fails=True), "no such command"),
        (FakeLauncher(initialize="silent"), "did not answer initialize in 10 s"),
        (FakeLauncher(initialize="answers_and_dies"), "exit status 7"),
    ],
)
async def test_a_start_that_fails_counts_once(launcher: FakeLauncher, said: str) -> None:
    """FAULTS F01 to F05; DESIGN 7: the circuit counts starts, not those who waited."""
    async with launcher_of(launcher) as shared:
        for attempt in (1, 2):
            found = await failures(shared, 5)
            assert all(said in str(error) for error in found)
            counted = [error.counted for error in found if isinstance(error, BackendStartFailed)]
            assert sorted(counted) == [False, True, True, True, True]
            assert launcher.launches == attempt
            assert launcher.running == []


async def test_a_refusal_is_everybodys() -> None:
    """DESIGN 11: the backend's own error."""
    launcher = FakeLauncher(initialize="refuses")
    async with launcher_of(launcher) as shared:
        for error in await failures(shared, 3):
            assert isinstance(error, InitializeRefused)
            assert b"too old" in error.error
        assert (launcher.launches, launcher.running) == (1, [])


async def test_a_session_of_the_other_era_waits_for_a_backend_of_its_own() -> None:
    """`EraLauncher` fixes the era; what is still under way in the other one is let end."""
    launcher = FakeLauncher(stop_takes=1)
    async with launcher_of(launcher, linger=5) as shared:
        async with share(shared):
            pass
        before = anyio.current_time()
        async with share(shared, DISCOVER) as found:
            assert anyio.current_time() - before == pytest.approx(6, abs=0.1)
            assert (await ask(found, "server/discover", None)).result is not None
        assert launcher.backend.notes == []


async def test_its_end_is_told_to_all_and_the_next_session_gets_another() -> None:
    """FAULTS F06, F07."""
    launcher = FakeLauncher()
    async with launcher_of(launcher) as shared, AsyncExitStack() as stack:
        told = [Recorder() for _ in range(3)]
        for upstream in told:
            await stack.enter_async_context(share(shared, upstream=upstream))
        launcher.backend.exit(Exit(code=9))
        assert [upstream.exits for upstream in told] == [[Exit(code=9)]] * 3
        async with share(shared):
            assert launcher.launches == 2


async def test_what_is_asked_after_the_end_fails() -> None:
    """DESIGN 5.3: nobody waits for a backend that is gone."""
    launcher = FakeLauncher()
    async with launcher_of(launcher) as shared:
        async with share(shared) as found:
            launcher.backend.exit(Exit(code=9))
            for method in ("tools/call", "resources/subscribe", "logging/setLevel"):
                outcome = await ask(found, method, b'{"uri":"x","level":"info"}')
                assert str(outcome.failure) == "The backend is gone."
        outcome = await ask(found, "tools/call", None)
        assert "given its backend back" in str(outcome.failure)


async def test_leaving_the_launcher_stops_the_backend_also_while_it_starts() -> None:
    """DESIGN 5.6."""
    for takes in (0.0, math.inf):
        launcher = FakeLauncher(launch_takes=takes, stop_takes=3)
        async with launcher_of(launcher) as shared:
            with anyio.move_on_after(1):
                async with share(shared):
                    pass
        assert launcher.running == []
        assert launcher.launching == 0
        with pytest.raises(Draining):
            async with share(shared):
                pass


async def test_the_backend_inherits_nothing_of_the_request_that_it_is_started_for() -> None:
    """DESIGN 8."""
    launcher = FakeLauncher()
    async with launcher_of(launcher) as shared:
        token = USER.set("alice")
        async with share(shared):
            assert (launcher.users, launcher.owners) == (["nobody"], ["shared"])
        USER.reset(token)

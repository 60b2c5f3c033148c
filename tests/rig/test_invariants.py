"""The watch over a proxy sees what breaks an invariant, and nothing where nothing does."""

import os
import signal
import subprocess

import pytest

from sessionproxy import errors
from sessionproxy.core.state import StopReason
from sessionproxy.frontend import problems

from .embedded import scripted, until
from .history import Outcome
from .http import calling
from .invariants import watched, watched_process


async def test_a_proxy_without_faults_breaks_nothing() -> None:
    """FAULTS I1 to I8."""
    async with watched() as watch:
        async with watch.client("alice") as alice, watch.client("bob") as bob:
            for client in (alice, bob, alice):
                await client.do({"progress": 3}, {"log": "x"}, _meta={"progressToken": 1})
            await alice.request("tools/list")
    assert watch.latencies
    assert {entry.outcome for entry in watch.history.entries} == {Outcome.RESULT}
    assert len(watch.history.executions) >= 5


async def test_a_proxy_in_its_own_process_breaks_nothing() -> None:
    """FAULTS I1 to I8."""
    async with watched_process() as watch, watch.client("alice") as alice:
        await alice.do()


async def test_a_proxy_that_the_test_has_killed_is_checked_as_far_as_it_can_be() -> None:
    """FAULTS I1 to I4, I6: its descriptors and its bystander went with it."""
    async with watched_process() as watch, watch.client("alice") as alice:
        await alice.do()
        watch.proxy.signal(signal.SIGKILL)
        await watch.proxy.wait(10)
        await until(lambda: bool(watch.troubles))


async def test_the_script_of_a_backend_does_not_apply_to_the_bystander() -> None:
    """FAULTS I8: it is another session, whatever becomes of those under test."""
    async with watched(scripted(initialize=[{"exit": 7}])) as watch:
        async with watch.client("alice", opens=False) as alice:
            response = await alice.initialize()
            assert "error" in response.json()
            assert not alice.id


async def test_a_crash_and_its_telling_break_nothing() -> None:
    """FAULTS I2, I6."""
    async with watched() as watch, watch.client("alice") as alice:
        await alice.do()
        for kind in ("backend_gone", "state_lost"):
            answer = await alice.request("tools/call", calling({"exit": 7}))
            assert answer["result"]["_meta"]["sessionproxy/fault"]["kind"] == kind
        await alice.do()


async def test_a_process_left_running_is_found() -> None:
    """FAULTS I4."""
    left: list[subprocess.Popen[bytes]] = []

    async def leave() -> None:
        async with watched() as watch:
            marked = {"TMPDIR": f"{watch.proxy.state_dir}/run/x"}
            left.append(subprocess.Popen(["sleep", "600"], env=marked))  # noqa: ASYNC220 - outlives it
            watch.bound = 0

    with pytest.raises(AssertionError, match="I4"):
        await leave()
    left[0].kill()
    left[0].wait()


async def test_a_descriptor_left_open_is_found() -> None:
    """FAULTS I5."""
    left: list[int] = []

    async def leave() -> None:
        async with watched() as watch:
            left.append(os.open("/dev/null", os.O_RDONLY))
            watch.bound = 0.5

    with pytest.raises(AssertionError, match="I5: 1 more descriptors"):
        await leave()
    os.close(left[0])


async def test_a_loss_that_nobody_was_told_of_is_found() -> None:
    """FAULTS I6."""

    async def lose() -> None:
        async with watched(bystander=False) as watch, watch.client("alice") as alice:
            await alice.do()
            (session,) = watch.proxy.manager.registry.awake()
            session.stop(StopReason.IDLE)
            session.loss = None
            await alice.do()

    with pytest.raises(AssertionError, match="I6"):
        await lose()


async def test_answers_that_tell_foreign_ids_apart_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS I7."""
    said = {**problems._SAID}  # pyright: ignore[reportPrivateUsage]
    del said[errors.SessionNotFound]
    monkeypatch.setattr(problems, "_SAID", said)
    with pytest.raises(AssertionError, match="I7"):
        async with watched():
            pass


async def test_a_bystander_that_is_harmed_is_found() -> None:
    """FAULTS I8."""

    async def harm() -> None:
        async with watched() as watch:
            (session,) = watch.proxy.manager.registry.awake()
            session.stop(StopReason.IDLE)
            await until(lambda: bool(watch.troubles))

    with pytest.raises(AssertionError, match="I8"):
        await harm()


async def test_what_the_test_itself_raises_comes_out_as_it_was() -> None:
    """Our choice: no exception groups, and no second failure over the first."""

    async def fail() -> None:
        async with watched():
            left.append(os.open("/dev/null", os.O_RDONLY))
            raise ValueError("mine")

    left: list[int] = []
    with pytest.raises(ValueError, match="mine"):
        await fail()
    os.close(left[0])

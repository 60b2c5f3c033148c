"""DESIGN 10: starting backends through the guardian, whatever the command and whoever gives up.

Neighbours: `test_rungs` has what the guardian ends.
"""

import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psutil
import pytest

from sessionproxy.backends import StateDir
from sessionproxy.backends.containment import Contained, Ending, chosen
from sessionproxy.backends.containment.guarded import Guarded
from sessionproxy.backends.template import Expanded
from tests.rig.embedded import processes_of, until

PATIENCE = 10


class Starter:
    """A guardian at hand, and what was started with it."""

    def __init__(self, containment: Guarded, state: StateDir) -> None:
        self.containment = containment
        self.state = state

    async def start(self, *argv: str, env: dict[str, str] | None = None) -> Contained:
        directory = self.state.new_session()
        what = Expanded(argv, None, {**os.environ, **(env or {}), "TMPDIR": str(directory.tmp)})
        return await self.containment.start(what, directory)

    async def said(self, *argv: str, env: dict[str, str] | None = None) -> bytes:
        """What a command says until it ends."""
        contained = await self.start(*argv, env=env)
        data = b""
        with anyio.fail_after(PATIENCE):
            while chunk := await anyio.to_thread.run_sync(os.read, contained.stdout, 65536):
                data += chunk
        await self.ended(contained)
        return data

    async def ended(self, contained: Contained) -> Ending:
        """How it ended; it is let go of."""
        done = anyio.Event()
        found: list[Ending] = []

        def take(how: Ending) -> None:
            found.append(how)
            done.set()

        contained.leader.watch(take)
        with anyio.fail_after(PATIENCE):
            await done.wait()
        for descriptor in (contained.stdin, contained.stdout, contained.stderr):
            os.close(descriptor)
        contained.leader.release()
        contained.tree.close()
        return found[0]


@asynccontextmanager
async def starting(tmp_path: Path) -> AsyncGenerator[Starter]:
    state = StateDir.open(tmp_path / "s")
    containment = chosen("guardian", own_process=False)
    assert isinstance(containment, Guarded)
    try:
        async with containment.running(state.instance):
            yield Starter(containment, state)
    finally:
        state.close()
    assert processes_of(tmp_path) == []


async def test_a_command_gets_its_words_and_variables_whatever_they_hold(tmp_path: Path) -> None:
    """DESIGN 5.7: also bytes that are no UTF-8, and more than a socket takes at once."""
    async with starting(tmp_path) as one:
        odd = os.fsdecode(b"\xff {x} $HOME\n\xc3\xa4")
        long = "y" * 100_000
        code = (
            "import os; os.write(1, os.fsencode(os.environ['ODD']) + os.environ['LONG'].encode())"
        )
        env = {"ODD": odd, "LONG": long, **{f"MORE{n}": long for n in range(8)}}
        assert (
            await one.said(sys.executable, "-c", code, env=env) == os.fsencode(odd) + long.encode()
        )
        assert await one.said("printf", "%s|", odd, "") == os.fsencode(odd) + b"||"


async def test_a_word_that_no_command_can_have_is_a_failed_start(tmp_path: Path) -> None:
    """FAULTS F01."""
    async with starting(tmp_path) as one:
        with pytest.raises(OSError, match="null"):
            await one.start("printf", "a\0b")
        assert await one.said("printf", "ok") == b"ok"


async def test_many_starts_at_once_get_each_their_own(tmp_path: Path) -> None:
    """DESIGN 5.1: no mixed up pipes."""
    async with starting(tmp_path) as one:

        async def look(n: int) -> None:
            assert await one.said("printf", str(n)) == str(n).encode()

        async with anyio.create_task_group() as tasks:
            for n in range(30):
                tasks.start_soon(look, n)


async def test_a_start_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    """DESIGN 5.2: it is finished, handed over, and then ended by whoever asked."""
    async with starting(tmp_path) as one:
        found: list[Contained] = []
        with anyio.CancelScope() as scope:
            scope.cancel()
            found.append(await one.start("sleep", "600"))
        (contained,) = found
        contained.tree.kill()
        assert await one.ended(contained) == Ending(signal=signal.SIGKILL)


async def test_leaving_ends_what_nobody_took(tmp_path: Path) -> None:
    """DESIGN 5.6: the guardian goes last, and takes all along."""
    async with starting(tmp_path) as one:
        contained = await one.start("sleep", "600")
        pid = contained.leader.pid
    assert not psutil.pid_exists(pid)
    for descriptor in (contained.stdin, contained.stdout, contained.stderr):
        os.close(descriptor)


async def test_without_descriptors_a_start_fails_and_the_next_one_works(tmp_path: Path) -> None:
    """FAULTS F40: in the guardian, whose limit is its own."""
    async with starting(tmp_path) as one:
        await one.said("true")
        (guardian,) = psutil.Process().children()
        limits = guardian.rlimit(psutil.RLIMIT_NOFILE)
        guardian.rlimit(psutil.RLIMIT_NOFILE, (guardian.num_fds() + 1, limits[1]))
        with pytest.raises(OSError, match="Too many open files"):
            await one.start("true")
        guardian.rlimit(psutil.RLIMIT_NOFILE, limits)
        assert await one.said("printf", "ok") == b"ok"


async def test_it_holds_nothing_of_what_has_ended(tmp_path: Path) -> None:
    """FAULTS I5: neither descriptors nor zombies."""
    async with starting(tmp_path) as one:
        await one.said("true")
        (guardian,) = psutil.Process().children()
        before = guardian.num_fds()
        ours = psutil.Process().num_fds()
        for _ in range(20):
            await one.said("true")
        await until(lambda: guardian.children() == [])
        assert guardian.num_fds() == before
        assert psutil.Process().num_fds() == ours


async def test_the_signals_of_a_terminal_do_not_reach_it(tmp_path: Path) -> None:
    """DESIGN 7: Ctrl-C drains; the guardian must outlive the drain."""
    async with starting(tmp_path) as one:
        await one.said("true")
        (guardian,) = psutil.Process().children()
        assert os.getsid(guardian.pid) == guardian.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            guardian.send_signal(number)
        assert await one.said("sh", "-c", "trap") == b""  # nor is any ignored by what it starts
        assert guardian.is_running()

"""DESIGN 10: starting backends through the guardian, whatever the command and whoever gives up.

Neighbours: `test_rungs` has what the guardian ends.
"""

import errno
import os
import secrets
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psutil
import pytest

from sessionproxy.backends import StateDir
from sessionproxy.backends.containment import (
    RUNGS,
    Contained,
    Ending,
    available,
    chosen,
    groups,
    guarded,
)
from sessionproxy.backends.containment.guarded import Guarded
from sessionproxy.backends.statedir import Record
from sessionproxy.backends.template import Expanded
from tests.rig.embedded import processes_of, until
from tests.rig.processes import Census

PATIENCE = 10

WITH_GUARDIAN = [rung for rung in RUNGS if rung != "process-group" and not available()[rung]]


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
async def starting(tmp_path: Path, rung: str = "guardian") -> AsyncGenerator[Starter]:
    state = StateDir.open(tmp_path / "s")
    containment = chosen(rung, own_process=False)
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


# -- one that hangs, or dies -----------------------------------------------------------------------


async def test_large_starts_at_once_get_each_their_own(tmp_path: Path) -> None:
    """DESIGN 5.1: a receive may return the end of one message and the beginning of the next; each
    has its own descriptors all the same."""
    async with starting(tmp_path) as one:
        env = {f"LARGE{n}": "y" * 100_000 for n in range(3)}

        async def look(n: int) -> None:
            assert await one.said("printf", str(n), env=env) == str(n).encode()

        async with anyio.create_task_group() as tasks:
            for n in range(40):
                tasks.start_soon(look, n)


async def test_a_start_that_holds_it_up_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 10: others start with another guardian, and what it starts at last is ended."""
    async with starting(tmp_path) as one:
        alive = await one.start("sleep", "600")
        (held_up,) = psutil.Process().children()
        held_up.suspend()
        monkeypatch.setattr(guarded, "START_PATIENCE", 0.1)
        with pytest.raises(OSError, match="did not answer"):
            await one.start("sleep", "600")
        monkeypatch.setattr(guarded, "START_PATIENCE", 20.0)
        assert await one.said("printf", "ok") == b"ok"
        held_up.resume()
        first = one.containment._guardians[0]  # pyright: ignore[reportPrivateUsage]
        await until(lambda: first.answers)
        await until(lambda: [child.pid for child in held_up.children()] == [alive.leader.pid])
        alive.tree.kill()
        assert await one.ended(alive) == Ending(signal=signal.SIGKILL)


async def test_one_that_is_held_up_and_has_nothing_else_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.2: with what it was about to start."""
    async with starting(tmp_path) as one:
        alive = await one.start("sleep", "600")
        (held_up,) = psutil.Process().children()
        held_up.suspend()
        monkeypatch.setattr(guarded, "START_PATIENCE", 0.1)
        with pytest.raises(OSError, match="did not answer"):
            await one.start("sleep", "600")
        assert held_up.is_running()
        alive.leader.kill_group()
        alive.leader.release()
        await until(lambda: not psutil.pid_exists(held_up.pid))  # reaped
        for descriptor in (alive.stdin, alive.stdout, alive.stderr):
            os.close(descriptor)


def faulty(tmp_path: Path, fault: str) -> Path:
    """A guardian that commits a fault instead of telling that its second start was carried out."""
    program = tmp_path / "guardian.py"
    program.write_text(
        f"import os, sys, time\nsys.path.insert(0, {str(guarded.PROGRAM.parent)!r})\n"
        "import guardian\n"
        "send = guardian.Guardian._send\n"
        "def faulty(self, message):\n"
        f"    if message.get('start') == 2: {fault}\n"
        "    send(self, message)\n"
        "guardian.Guardian._send = faulty\n"
        "guardian.main()\n"
    )
    return program


async def test_what_holds_up_a_guardian_is_ended_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.2: also what bears no mark of its directory yet, as before it is executed."""
    monkeypatch.setattr(guarded, "PROGRAM", faulty(tmp_path, "time.sleep(600)"))
    tag = f"600.{secrets.randbelow(10**9):09}"
    async with starting(tmp_path) as one:
        assert await one.said("printf", "ok") == b"ok"
        (held_up,) = psutil.Process().children()
        monkeypatch.setattr(guarded, "START_PATIENCE", 0.5)
        what = Expanded(("sleep", tag), None, dict(os.environ))
        with pytest.raises(OSError, match="the guardian is gone"):
            await one.containment.start(what, one.state.new_session())
        await until(lambda: not psutil.pid_exists(held_up.pid))
        assert not [p for p in psutil.process_iter(["cmdline"]) if tag in (p.info["cmdline"] or ())]


@pytest.mark.parametrize("rung", WITH_GUARDIAN)
async def test_what_a_guardian_started_and_did_not_live_to_tell_is_ended(
    rung: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5.2, 5.6: the start failed, so nobody else knows of it. What nobody sees at first, as
    it is being executed, is looked for again."""
    looks: list[Record] = []

    def end(record: Record) -> None:
        looks.append(record)
        if len(looks) > 1:
            groups.end_recorded(record)

    monkeypatch.setattr(guarded, "end_recorded", end)
    program = faulty(tmp_path, "os.kill(os.getpid(), 9)")
    census = Census(tmp_path / "s")
    async with starting(tmp_path, rung) as one:
        with monkeypatch.context() as patched:
            patched.setattr(guarded, "PROGRAM", program)
            assert await one.said("printf", "ok") == b"ok"
            with pytest.raises(OSError, match="the guardian is gone"):
                await one.start("sleep", "600")
        census.look()
        await until(lambda: census.groups() == {})
        await until(lambda: processes_of(tmp_path) == [])
        assert await one.said("printf", "ok") == b"ok"


async def test_it_is_listened_to_until_the_last_session_has_ended(tmp_path: Path) -> None:
    """DESIGN 5.6: who is cancelled ends its sessions, and has to hear how."""
    with anyio.CancelScope() as scope:
        async with starting(tmp_path) as one:
            contained = await one.start("sh", "-c", "read x; exit 7")
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()  # all that is cancelled is gone
                os.write(contained.stdin, b"go\n")
                assert await one.ended(contained) == Ending(code=7)


@pytest.mark.parametrize(("rung", "sockets"), [("process-group", 0), ("guardian", 1)])
async def test_what_nobody_can_look_at_is_not_started(
    rung: str, sockets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F40, DESIGN 5.2: its processes could not be told from others later."""

    def fail(pid: int) -> None:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    state = StateDir.open(tmp_path / "s")
    containment = chosen(rung, own_process=False)
    what = Expanded(("sleep", "600"), None, {**os.environ, "TMPDIR": str(tmp_path / "s" / "x")})
    before = psutil.Process().num_fds()
    async with containment.running(state.instance):
        with monkeypatch.context() as patched:
            patched.setattr(groups, "read_one", fail)
            with pytest.raises(OSError, match="Too many open"):
                await containment.start(what, state.new_session())
        await until(lambda: processes_of(tmp_path) == [])
        await until(lambda: psutil.Process().num_fds() == before + sockets)
    state.close()

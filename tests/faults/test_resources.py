"""FAULTS F38 and F40: more clients than there is room for, and a machine that runs out of things.

Neighbours: `tests.rig.limits` takes things away from a proxy process; `tests.core.test_admission`
has the queue on virtual time.
"""

import errno
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from resource import RLIMIT_NOFILE
from typing import Final

import anyio
import httpx2
import pytest

from sessionproxy import descriptors
from sessionproxy.backends import processes
from sessionproxy.backends.containment import Contained
from sessionproxy.backends.launcher import SHORTAGES, StdioLauncher
from sessionproxy.backends.processes import ProcessTable, Snapshot, in_thread, read_all
from sessionproxy.backends.statedir import StateDir
from sessionproxy.backends.template import Template
from sessionproxy.core.circuit import FAILURES
from sessionproxy.core.exchange import Forwarded
from sessionproxy.core.manager import Limits
from sessionproxy.errors import BackendStartFailed, Shortage
from tests.rig.embedded import SCRIPTED, scripted, until
from tests.rig.http import PATIENCE, http
from tests.rig.invariants import Watch, watched, watched_process
from tests.rig.limits import SmallDisk, lowered, next_file
from tests.rig.proxy import Proxy
from tests.rig.recorded import Recorded

STORM: Final = 500
SERVED: Final = 50
"""Of a storm, how many are waited for in the end."""

STARTS: Final = 2 * (os.cpu_count() or 1)
QUEUE: Final = Limits().queue_length


# -- too many at once ------------------------------------------------------------------------------


class Starts:
    """A hook that counts the backends between being asked to initialise and having done so."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    def __call__(self, message: Forwarded) -> None:
        if message.method == "initialize":
            self.now += 1 if message.kind == "request" else -1
            self.most = max(self.most, self.now)


async def test_a_storm_is_admitted_as_far_as_the_queue_goes() -> None:
    """FAULTS F38: so many start at once, 256 wait, the others are told when to come back.

    Of those that wait most hang up, which leaves their places to the others.
    """
    starts = Starts()
    waiting: dict[int, anyio.CancelScope] = {}
    opened: list[int] = []
    refused: list[httpx2.Response] = []
    settings = {"observers": [starts], "max_sessions": 4 * STARTS, "bystander": False}
    async with watched(**settings) as watch:  # pyright: ignore[reportArgumentType]

        async def come(number: int) -> None:
            async with watch.client(f"client {number}", opens=False) as client:
                with anyio.CancelScope() as waiting[number]:
                    await ask(number, client)
            del waiting[number]

        async def ask(number: int, client: Recorded) -> None:
            response = await client.http.post(client.url, json=INITIALIZE, headers=client.headers)
            if response.status_code == 503:
                refused.append(response)
                return
            assert response.status_code == 200, response.text
            opened.append(number)
            client.id = response.headers["mcp-session-id"]
            assert (await client.delete()).status_code == 204  # another one's turn

        async with anyio.create_task_group() as tasks:
            for number in range(STORM):
                tasks.start_soon(come, number)
            await until(lambda: len(opened) > 0, seconds=5 * 30)
            await until(lambda: len(waiting) <= QUEUE + STARTS, seconds=5 * 30)
            assert len(refused) >= STORM - QUEUE - STARTS - len(opened)
            for number in sorted(waiting)[SERVED:]:
                waiting[number].cancel()
        assert len(opened) >= SERVED
        assert 1 < starts.most <= STARTS
        pauses = {int(response.headers["retry-after"]) for response in refused}
        assert len(pauses) > 1, "all would come back together"
        assert min(pauses) >= 1


INITIALIZE: Final = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t"}},
}


async def test_who_finds_the_queue_full_is_refused_at_once() -> None:
    """FAULTS F38: within 100 ms, and not after the time that the others wait."""
    stuck = scripted(initialize=[{"wait": "never"}])
    async with watched(stuck, bystander=False, max_sessions=1, queue_timeout=1000) as watch:
        async with anyio.create_task_group() as tasks, http() as pool:

            async def wait() -> None:
                async with watch.client("waits", opens=False) as client:
                    await client.http.post(client.url, json=INITIALIZE, headers=client.headers)

            for _ in range(1 + QUEUE):
                tasks.start_soon(wait)
            await until(lambda: watch.proxy.manager.admission.queued == QUEUE, seconds=30)
            client = Recorded(pool, watch.proxy.url, history=watch.history, label="late")
            for _ in range(5):
                with anyio.fail_after(5 * 0.1):
                    assert (await client.initialize()).status_code == 503
            tasks.cancel_scope.cancel()


async def test_an_owner_at_its_limit_is_refused_before_the_queue_is_full() -> None:
    """FAULTS F38: per-principal cap first."""
    async with watched(bystander=False, max_sessions_per_owner=1, queue_timeout=1000) as watch:
        async with watch.client("alice"), anyio.create_task_group() as tasks:

            async def wait() -> None:
                async with watch.client("waits"):
                    pass

            tasks.start_soon(wait)
            await until(lambda: watch.proxy.manager.admission.queued == 1)
            async with watch.client("late", opens=False) as late:
                assert (await late.initialize()).status_code == 503
            tasks.cancel_scope.cancel()


# -- nothing left ----------------------------------------------------------------------------------

Fault = Callable[[Watch[Proxy]], AbstractContextManager[None]]

STUBBORN: Final = scripted(eof=[{"wait": "never"}], ignores=["SIGTERM"])


async def is_refused(client: Recorded) -> None:
    """No session, no id, and when to come back."""
    response = await client.initialize()
    assert response.status_code == 503, response.text
    assert int(response.headers["retry-after"]) >= 1
    assert "no room for another backend" in response.json()["error"]["message"]
    assert client.id == ""


@asynccontextmanager
async def short_of(what: Fault, watch: Watch[Proxy], alice: Recorded) -> AsyncGenerator[Recorded]:
    """A client that is connected, without a session, on a machine that has nothing left."""
    async with watch.client("late", opens=False) as late:
        assert (await late.http.get(f"{watch.proxy.base}/healthz")).status_code == 200
        with what(watch):
            yield late
            assert (await alice.do())["count"] > 0
        assert (await late.initialize()).status_code == 200  # at once: no circuit was opened
        assert (await late.do())["count"] == 1


def no_descriptors(watch: Watch[Proxy]) -> AbstractContextManager[None]:
    pid = watch.proxy.process.pid
    return lowered(pid, RLIMIT_NOFILE, next_file(pid) + descriptors.RESERVE)


def not_a_single_descriptor(watch: Watch[Proxy]) -> AbstractContextManager[None]:
    pid = watch.proxy.process.pid
    return lowered(pid, RLIMIT_NOFILE, next_file(pid))


@pytest.mark.parametrize("fault", [no_descriptors, not_a_single_descriptor])
async def test_without_descriptors_new_sessions_get_503_and_it_recovers_by_itself(
    fault: Fault,
) -> None:
    """FAULTS F40: `RLIMIT_NOFILE`. More often than the circuit breaker would bear."""
    async with watched_process() as watch, watch.client("alice") as alice:
        async with short_of(fault, watch, alice) as late:
            for _ in range(2 * FAILURES):
                await is_refused(late)


@pytest.mark.mounts
async def test_on_a_full_disk_new_sessions_get_503_and_it_recovers_by_itself(
    tmp_path: Path,
) -> None:
    """FAULTS F40: disk full; every backend's TMPDIR lies on it, too."""
    disk = SmallDisk(tmp_path / "s", size=1024 * 1024)
    running = watched_process(state_dir=disk.state_dir, prefix=disk.prefix)

    def full(watch: Watch[Proxy]) -> AbstractContextManager[None]:
        return disk.full(watch.proxy.process.pid)

    async with running as watch, watch.client("alice") as alice:
        before = disk.left_by(watch.proxy.process.pid)
        async with short_of(full, watch, alice) as late:
            for _ in range(2 * FAILURES):
                await is_refused(late)
            assert disk.left_by(watch.proxy.process.pid) == before
            await late.delete()


@pytest.mark.mounts
async def test_a_full_disk_does_not_keep_a_backend_from_ending(tmp_path: Path) -> None:
    """FAULTS F40, I4."""
    disk = SmallDisk(tmp_path / "s", size=1024 * 1024)
    running = watched_process(
        STUBBORN, "--stop-grace", "0.1", state_dir=disk.state_dir, prefix=disk.prefix
    )
    async with running as watch, watch.client("alice") as alice:
        await alice.do({"spawn": []}, {"spawn": ["session"]})
        pid = watch.proxy.process.pid
        with disk.full(pid):
            left = len(disk.left_by(pid))
            await alice.delete()
            await until(lambda: len(disk.left_by(pid)) < left, seconds=5 * 6)


async def test_without_descriptors_a_backend_that_does_not_want_to_end_is_killed() -> None:
    """FAULTS F40, I4: that is what some are kept in reserve for."""
    running = watched_process(STUBBORN, "--stop-grace", "0.1")
    async with running as watch, watch.client("alice") as alice:
        await alice.do({"spawn": []}, {"spawn": ["session"]})
        with no_descriptors(watch):
            await alice.delete()
            await until_backends(watch, alice, 1)


async def until_backends(watch: Watch[Proxy], client: Recorded, count: int) -> None:
    """Wait until so many run, as the proxy says on a connection that is open."""
    with anyio.fail_after(5 * 6):
        while True:
            page = (await client.http.get(f"{watch.proxy.base}/readyz")).json()
            if page["backends"] == count:
                return
            await anyio.sleep(0.05)


@pytest.mark.parametrize("left", [0, 1, descriptors.RESERVE])
async def test_without_descriptors_connections_are_closed_and_it_goes_on(left: int) -> None:
    """FAULTS F40: the accept loop lives, says little, and recovers by itself."""
    async with watched_process() as watch, watch.client("alice") as alice:
        pid = watch.proxy.process.pid
        with lowered(pid, RLIMIT_NOFILE, next_file(pid) + left):
            told = len(watch.proxy.log)
            for _ in range(100):
                assert await _closed_at_once(watch.proxy.port)
            assert (await alice.do())["count"] == 1
            assert len(watch.proxy.log) - told <= 2
        async with watch.client("bob") as bob:
            assert (await bob.do())["count"] == 1


async def _closed_at_once(port: int) -> bool:
    with anyio.fail_after(PATIENCE):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            try:
                return await stream.receive() == b""
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return True


# -- what else may be short ------------------------------------------------------------------------


class Refusing:
    """A `Containment` that can start nothing."""

    name = "none"
    orphans = 0

    def __init__(self, number: int) -> None:
        self._number = number

    @asynccontextmanager
    async def running(self, instance: Path) -> AsyncGenerator[None]:
        yield

    async def start(self, what: object, directory: object) -> Contained:
        raise OSError(self._number, os.strerror(self._number))

    def end_left_over(self, record: object) -> None: ...


@pytest.fixture
def state(tmp_path: Path) -> Generator[StateDir]:
    opened = StateDir.open(tmp_path / "s")
    yield opened
    opened.close()


async def refusal(state: StateDir, number: int) -> type[Exception]:
    """What a launcher raises when the system refuses with this error."""
    template = Template(SCRIPTED, cwd=None, env=(), pass_env=())
    launcher = StdioLauncher(template, state, Refusing(number), stop_grace=0, max_line=1024)
    with pytest.raises((Shortage, BackendStartFailed)) as raised:
        await launcher.spawn()
    assert list(state.instance.glob("[0-9]*")) == []
    return raised.type


@pytest.mark.parametrize("number", sorted(SHORTAGES), ids=errno.errorcode.get)
async def test_what_the_machine_lacks_is_no_fault_of_the_backends(
    number: int, state: StateDir
) -> None:
    """FAULTS F40: EAGAIN of `RLIMIT_NPROC`, ENOMEM, a quota, as well as the above."""
    assert await refusal(state, number) is Shortage


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.E2BIG])
async def test_what_is_wrong_with_the_command_is_no_shortage(number: int, state: StateDir) -> None:
    """FAULTS F01 and F40: these count for the circuit breaker."""
    assert await refusal(state, number) is BackendStartFailed


async def test_without_a_thread_what_it_would_do_is_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F40: `RLIMIT_NPROC` counts threads, and a backend has to be ended without one, too."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert await in_thread(threading.get_ident) == threading.get_ident()
    assert (await ProcessTable().look()).processes


async def test_a_look_that_fails_fails_for_all_who_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F40, I4: `/proc` cannot be read without a descriptor. Nobody may wait for ever."""
    table = ProcessTable()
    failures: list[int | None] = []

    def fail(*_: object) -> Snapshot:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def look() -> None:
        try:
            await table.look()
        except OSError as error:
            failures.append(error.errno)

    with monkeypatch.context() as patched:
        patched.setattr(processes, "read_all", fail)
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(look)
    assert failures == [errno.EMFILE] * 3
    assert (await table.look()).processes


async def test_a_look_that_is_given_up_is_taken_by_another_who_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAULTS F40, I4: a stop that has come to its bound is cut off, and no other stop with it."""
    table = ProcessTable()
    let_go = threading.Event()

    def held_up(walk: processes.Walk, _: object) -> Snapshot:
        walk.at = 1
        let_go.wait()
        walk.at = None
        return read_all()

    found: list[Snapshot] = []

    async def look(scope: anyio.CancelScope) -> None:
        with scope:
            found.append(await table.look())

    with monkeypatch.context() as patched, anyio.fail_after(PATIENCE):
        patched.setattr(processes, "read_all", held_up)
        async with anyio.create_task_group() as tasks:
            reads, waits, shares = (anyio.CancelScope() for _ in range(3))
            for scope in (reads, waits, shares):
                tasks.start_soon(look, scope)
                await anyio.wait_all_tasks_blocked()
            waits.cancel()
            await anyio.wait_all_tasks_blocked()
            patched.setattr(processes, "read_all", read_all)
            reads.cancel()
    let_go.set()
    assert len(found) == 1

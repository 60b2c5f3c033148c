"""A proxy under watch: whatever a test does to it, I1 to I8 of FAULTS are checked when it is over.

`watched` serves within the test's event loop, `watched_process` in a process of its own. Both have
a *bystander*, a session that goes on calling all the while, and clients that record what they see.
Neighbours: `tests.rig.history` judges the record; the tests of faults live inside of these two.
"""

import gc
import os
import secrets
import socket
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeVar

import anyio
import httpx2
import psutil

from sessionproxy.core.binding import KEY_SIZE, SessionIds
from sessionproxy.core.exchange import Hook
from sessionproxy.core.state import EndReason

from .embedded import SCRIPTED, Embedded, bare, embedded, processes_of, until
from .history import History, violations
from .http import VERSION, Json, http
from .proxy import Proxy, proxy
from .recorded import Recorded
from .recorded_modern import RecordedModern

PAUSE: Final = 0.01
"""Seconds between two calls of the bystander."""

BOUND: Final = 10.0
"""Seconds: five times the 2 within which all that a session had must be gone."""

REFERENCE: Final = 200
"""Calls of the bystander before the fault; `strict` compares those after with them."""

SLOWER: Final = 3.0
"""How many times slower the bystander may be while there are faults (I8), where `strict`."""

GROWN: Final = 1.05
"""How much memory the proxy may have more than before (I5), where `strict`."""

KEPT: Final = 1
"""Descriptors that a proxy opens with its first backend and keeps: the guardian's socket. Where
there is a bystander, it is open before the test begins."""

P = TypeVar("P", Embedded, Proxy)


@dataclass
class Watch(Generic[P]):
    """What a test has of a proxy under watch."""

    proxy: P
    history: History = field(default_factory=History)
    clients: list[Recorded] = field(default_factory=list[Recorded])
    latencies: list[float] = field(default_factory=list[float])
    """Of the bystander's calls, in seconds."""
    troubles: list[str] = field(default_factory=list[str])
    """What went wrong for the bystander."""
    bound: float = BOUND
    """Seconds within which everything must be gone when the test is over."""

    @asynccontextmanager
    async def client(
        self,
        label: str,
        *,
        url: str | None = None,
        version: str = VERSION,
        capabilities: Json | None = None,
        opens: bool = True,
    ) -> AsyncGenerator[Recorded]:
        """A client with connections of its own, which close on exit; its session is left alone.

        `label`: its session's name in the history. `url`: of a way around, such as a shim.
        `opens`: whether it has a session when this is entered.
        """
        async with http() as pool:
            client = Recorded(
                pool, url or self.proxy.url, version=version, history=self.history, label=label
            )
            self.clients.append(client)
            if opens:
                response = await client.initialize(capabilities=capabilities)
                assert client.id, response.text
                await client.notify("notifications/initialized")
            yield client

    @asynccontextmanager
    async def modern(
        self, label: str, *, url: str | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[RecordedModern]:
        """A client of 2026-07-28, with connections of its own and a conversation that is named by
        its path."""
        async with http() as pool:
            path = f"{url or self.proxy.url}/s/{label}"
            yield RecordedModern(pool, path, history=self.history, label=label, headers=headers)

    @property
    def ids(self) -> list[str]:
        """Of all sessions that its clients have opened."""
        return [id for client in self.clients for id in client.ids]

    def ids_of(self, label: str, *, others: bool = False) -> list[str]:
        """Of the sessions of the clients with this label, or of all the `others`."""
        clients = [client for client in self.clients if (client.label == label) is not others]
        return [id for client in clients for id in client.ids]


AnyWatch = Watch[Embedded] | Watch[Proxy]


# -- the two kinds of proxy ------------------------------------------------------------------------


@asynccontextmanager
async def watched(
    command: Sequence[str] = SCRIPTED,
    *,
    bystander: bool = True,
    strict: bool = False,
    observers: Sequence[Hook] = (),
    env: Sequence[str] = (),
    listening: socket.socket | None = None,
    **settings: object,
) -> AsyncGenerator[Watch[Embedded]]:
    """Serve `command` from this process, as `embedded`, and check all invariants on exit.

    `bystander`: whether there is one; the script of a scripted command does not apply to it.
    Before the end every connection and descriptor that the test has opened must be closed.
    """
    with tempfile.TemporaryDirectory(prefix="sp-ledger-") as directory:
        ledger = Path(directory) / "ledger"
        env = (*env, *_told_backends(ledger, bystander))
        serving = embedded(
            command,
            hooks=(),
            observers=observers,
            local=True,
            around=bare,
            listening=listening,
            certificate=None,
            env=env,
            **settings,
        )
        async with serving as server:
            watch = Watch(server)
            warm = bool(settings.get("warm"))
            if warm:
                pool = server.app.running.pool
                assert pool is not None
                await until(lambda: len(pool) == settings["warm"])
            async with _watching(watch, bystander=bystander, strict=strict):
                before = Resources.of(os.getpid())
                yield watch
                server.app.running.launcher.hurry()
                _end_all_but(watch, "bystander")
                await _check_resources(before, watch, strict=strict)
            watch.history.take_ledger(ledger)
            server.manager.end_all(EndReason.SHUTDOWN)
            await _check_foreign(watch)
            await until(lambda: not server.manager.registry.awake(), seconds=BOUND)
            if not warm:  # else the spares are there; what is left then, `embedded` finds
                await _check_gone(server.state_dir, watch.bound)
        _check_history(watch)


@asynccontextmanager
async def watched_process(
    command: Sequence[str] = SCRIPTED,
    *options: str,
    bystander: bool = True,
    strict: bool = False,
    state_dir: Path | None = None,
    environment: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> AsyncGenerator[Watch[Proxy]]:
    """As `watched`, with the proxy in a process of its own, which the test may have killed.

    `environment` and `prefix`: of the proxy, as in `tests.rig.proxy`.
    """
    with tempfile.TemporaryDirectory(prefix="sp-ledger-") as directory:
        ledger = Path(directory) / "ledger"
        told = [word for pair in _told_backends(ledger, bystander) for word in ("--env", pair)]
        running = proxy(
            command, *told, *options, env=environment, state_dir=state_dir, prefix=prefix
        )
        async with running as server:
            watch = Watch(server)
            async with _watching(watch, bystander=bystander, strict=strict):
                before = Resources.of(server.process.pid)
                yield watch
                if server.process.poll() is None:
                    await _delete(watch, watch.ids_of("bystander", others=True))
                    await _check_resources(before, watch, strict=strict)
            watch.history.take_ledger(ledger)
            if server.process.poll() is None:
                await _delete(watch, watch.ids)
                await _check_foreign(watch)
        await _check_gone(server.state_dir, watch.bound)
        _check_history(watch)


def _told_backends(ledger: Path, bystander: bool) -> tuple[str, ...]:
    return (f"TESTS_LEDGER={ledger}", f"TESTS_SPARED={int(bystander)}")


def _end_all_but(watch: Watch[Embedded], label: str) -> None:
    spared = watch.ids_of(label)
    manager = watch.proxy.manager
    for session in (*manager.registry.awake(), *manager.registry.asleep()):
        if session.identity.key not in spared:
            manager.end(session, EndReason.SHUTDOWN)


async def _delete(watch: Watch[Proxy], ids: Sequence[str]) -> None:
    async with http() as pool:
        for key in ids:
            await pool.delete(watch.proxy.url, headers={"mcp-session-id": key})


# -- the bystander (I8) ----------------------------------------------------------------------------


@asynccontextmanager
async def _watching(watch: AnyWatch, *, bystander: bool, strict: bool) -> AsyncGenerator[None]:
    """Have the bystander call for as long as the test goes on.

    What the test raises goes on as it is, out of all groups; then nothing else is checked.
    """
    if not bystander:
        yield
        return
    failed: Exception | None = None
    async with watch.client("bystander") as client, anyio.create_task_group() as tasks:
        over = anyio.Event()
        await _reference(watch, client, calls=REFERENCE if strict else 1)
        tasks.start_soon(_call_on, watch, client, over)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again outside of the group
            failed = error
        over.set()
    if failed is not None:
        raise failed
    if isinstance(watch.proxy, Proxy) and watch.proxy.process.poll() is not None:
        return  # the test has ended the proxy, and the bystander with it
    assert not watch.troubles, f"I8: the bystander: {watch.troubles[0]}"
    if strict:
        reference, during = watch.latencies[:REFERENCE], watch.latencies[REFERENCE:]
        assert p99(during) < SLOWER * p99(reference), f"I8: {p99(during)} vs {p99(reference)}"


async def _reference(watch: AnyWatch, client: Recorded, *, calls: int) -> None:
    for number in range(calls):
        await _call(watch, client, -number)


async def _call_on(watch: AnyWatch, client: Recorded, over: anyio.Event) -> None:
    number = 0
    while not over.is_set():
        number += 1
        try:
            await _call(watch, client, number)
        except Exception as error:  # noqa: BLE001 - told when the test is over
            watch.troubles.append(f"call {number}: {error!r}")
            return
        with anyio.move_on_after(PAUSE):
            await over.wait()


async def _call(watch: AnyWatch, client: Recorded, number: int) -> None:
    began = anyio.current_time()
    found = await client.do(echo=number)
    watch.latencies.append(anyio.current_time() - began)
    assert found["echo"] == number, f"the answer to {found['echo']} for call {number}"


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] if values else 0.0


# -- what is checked -------------------------------------------------------------------------------


def _check_history(watch: AnyWatch) -> None:
    """I1, I2, I3, I6 and I7."""
    broken = violations(watch.history)
    assert not broken, "\n".join(broken)


async def _check_gone(state_dir: Path, bound: float) -> None:
    """I4: no process and no directory of any session."""

    def left() -> list[object]:
        directories = [path for path in state_dir.glob("run/*/*") if path.is_dir()]
        return [*processes_of(state_dir), *directories]

    await _wait(lambda: not left(), lambda: f"I4: still there: {left()}", bound)


async def _check_foreign(watch: AnyWatch) -> None:
    """I7: ids that are forged, of another server, authentic but unknown: one and the same 404."""
    key = (watch.proxy.state_dir / "key").read_bytes()
    unknown = [
        SessionIds(key).mint("default", "local"),
        SessionIds(key).mint("default", "another owner"),
        SessionIds(secrets.token_bytes(KEY_SIZE)).mint("default", "local"),
        *(forged(id) for id in watch.ids[:1]),
        *watch.ids[-1:],  # it has ended
    ]
    async with http() as pool:
        answers = [await _asked(pool, watch.proxy.url, id) for id in unknown]
    watch.history.foreign.extend(status for status, _ in answers)
    assert len(set(answers)) == 1, f"I7: not one answer for all: {set(answers)}"


def forged(key: str) -> str:
    """Return a session id with one character of its MAC changed."""
    return f"{key[:-3]}{'A' if key[-3] != 'A' else 'B'}{key[-2:]}"


async def _asked(pool: httpx2.AsyncClient, url: str, id: str) -> tuple[int, bytes]:
    headers = {
        "mcp-session-id": id,
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
    }
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    response = await pool.post(url, content=body, headers=headers)
    return response.status_code, response.content


@dataclass(frozen=True)
class Resources:
    """What a process holds."""

    pid: int
    descriptors: frozenset[tuple[str, str]]
    rss: int
    """Bytes."""

    @classmethod
    def of(cls, pid: int) -> "Resources":
        gc.collect()
        found: set[tuple[str, str]] = set()
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found.add((path.name, os.readlink(path)))
            except FileNotFoundError:
                pass  # that of the directory itself
        return cls(pid, frozenset(found), psutil.Process(pid).memory_info().rss)


async def _check_resources(before: Resources, watch: AnyWatch, *, strict: bool) -> None:
    """I5: as many descriptors as at the start; and memory, where `strict`."""
    kept = 0 if watch.latencies else KEPT

    def more() -> int:
        return len(Resources.of(before.pid).descriptors) - len(before.descriptors) - kept

    def told() -> str:
        new = Resources.of(before.pid).descriptors - before.descriptors
        return f"I5: {more()} more descriptors, among these: {sorted(new)}"

    await _wait(lambda: more() <= 0, told, watch.bound)
    if strict:
        rss = Resources.of(before.pid).rss
        assert rss <= GROWN * before.rss, f"I5: {rss} bytes of memory, {before.rss} before"


async def _wait(condition: Callable[[], bool], told: Callable[[], str], bound: float) -> None:
    try:
        await until(condition, seconds=bound)
    except TimeoutError:
        raise AssertionError(told()) from None

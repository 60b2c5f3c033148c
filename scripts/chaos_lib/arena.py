"""A proxy that is ended and started again while clients use it, and what it leaves behind.

All its lives have one port and one state directory. Neighbours: `callers` call it; `faults` do harm
to it and to them; `cli` opens it.
"""

import json
import math
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from zlib import crc32

import anyio
import anyio.to_thread
import psutil

from tests.rig.embedded import scripted
from tests.rig.invariants import Resources
from tests.rig.processes import Census, is_zombie, told
from tests.rig.proxy import Proxy, proxy

from .record import Record
from .tokens import Tokens

T = TypeVar("T")

LENIENT: Final = 5.0
"""How many times a bound of FAULTS counts where it is not asked for strictly."""

KILLED: Final = 2.0
"""Seconds after a SIGKILL of the proxy within which all its backends are gone (F24)."""

WARM: Final = 20.0
"""Seconds after which a proxy's memory is taken as what it needs."""

GROWN: Final = 0.05
"""By how much it may rise (I5)."""

KEPT: Final = 1
"""Descriptors that a proxy opens with its first backend and keeps: the guardian's socket."""

LOOK: Final = 2.0
"""Seconds between two looks at the process table."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the proxy is set, in seconds and bytes, and what must hold."""

    sessions: int
    spare: int = 12
    """Places beyond those that the callers need."""
    idle: float = 5.0
    linger: float = 2.0
    call_timeout: float = 2.0
    start_timeout: float = 6.0
    queue_timeout: float = 6.0
    stop_grace: float = 1.0
    drain_timeout: float = 3.0
    max_body: int = 1 << 20
    max_line: int = 1 << 20
    containment: str = ""
    strict: bool = False
    servers: tuple[str, ...] = ()
    """Their names, where there are several behind each session; empty: there is one."""

    def server_of(self, name: str) -> str:
        """Return the server that a caller of this name calls; empty: the only one."""
        return self.servers[hash_of(name) % len(self.servers)] if self.servers else ""

    @property
    def flags(self) -> list[str]:
        names = (
            "idle", "linger", "call_timeout", "start_timeout", "queue_timeout", "stop_grace",
            "drain_timeout", "max_body", "max_line",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in names}
        places = (self.sessions + self.spare) * max(1, len(self.servers))
        given |= {"max_sessions": places, "keepalive": 1, "session_ttl": 120}
        if self.containment:
            given["containment"] = self.containment
        return [w for n, v in given.items() for w in (f"--{n.replace('_', '-')}", str(v))]

    @property
    def ladder(self) -> float:
        """Seconds in which a backend that heeds nothing is gone (DESIGN 5.6)."""
        return self.stop_grace + 5 + 1

    @property
    def all_gone(self) -> float:
        """Seconds in which all backends are gone that nobody uses any more."""
        return self.idle + 1.5 + self.ladder

    def bound(self, seconds: float) -> float:
        """What counts for a bound of so many seconds."""
        return seconds if self.strict else max(seconds * LENIENT, 2.0)


class Meters:
    """What the proxy's own processes hold: itself, and its guardian."""

    def __init__(self, pid: int) -> None:
        self._proxy = psutil.Process(pid)

    def _own(self) -> list[psutil.Process]:
        found = [self._proxy]
        for child in self._proxy.children():
            with suppress(psutil.Error):
                if any(word.endswith("guardian.py") for word in child.cmdline()):
                    found.append(child)
        return found

    def descriptors(self) -> int:
        return sum(process.num_fds() for process in self._own())

    def memory(self) -> int:
        return sum(process.memory_info().rss for process in self._own())


class Arena:
    """The proxy of the moment, and what is known of all of them."""

    def __init__(self, setting: Setting, state_dir: Path, record: Record, tokens: Tokens) -> None:
        self.setting = setting
        self.tokens = tokens
        self.state_dir = state_dir
        self.record = record
        self.lives = 0
        self.going: Counter[str] = Counter()
        """Kinds of harm that are being done."""
        self.of_backends: frozenset[str] = frozenset()
        """Kinds of harm that are one backend's, and nobody else's business."""
        self.up = anyio.Event()
        """Set while a proxy can be called."""
        self.quiet_since = math.inf
        """When the last harm to the proxy itself was over; `inf` while one is being done."""
        self.proxy: Proxy
        self._port = 0
        self._life = AsyncExitStack()
        self._begun = 0.0
        self._warm: int | None = None
        """Bytes of memory, once this life has gone on for a while."""
        self._descriptors: frozenset[tuple[str, str]] = frozenset()
        """Before its first session."""
        self._census = Census(state_dir)
        self._looking = anyio.CapacityLimiter(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/mcp"

    @property
    def port(self) -> int:
        return self._port

    def figures(self) -> str:
        """Return what the proxy holds now."""
        meters = Meters(self.proxy.process.pid)
        warm = anyio.current_time() - self._begun > WARM
        memory, descriptors = meters.memory(), meters.descriptors()
        if warm and self._warm is None:
            self._warm = memory
        return f"life {self.lives}, {descriptors} descriptors, {memory >> 10} KiB"

    # -- its lives ---------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Start a proxy, on the port that the one before had."""
        told_backends = ("--env", f"TESTS_LEDGER={self.record.ledger}")
        who = ("--token-file", str(self.tokens.path))
        flags = (*self.setting.flags, *who, *told_backends, "--port", str(self._port))
        starting = proxy(*self._command(), *flags, state_dir=self.state_dir)
        self.proxy = await self._life.enter_async_context(starting)
        self._port = self.proxy.port
        self.lives += 1
        self._begun = self.quiet_since = anyio.current_time()
        self._warm = None
        self._descriptors = Resources.of(self.proxy.process.pid).descriptors
        self.up.set()

    def _command(self) -> tuple[Sequence[str], *tuple[str, ...]]:
        """Return the command that is fronted; none, and an option, where there are several."""
        command, *arguments = scripted()
        if not self.setting.servers:
            return ((command, *arguments),)
        server = {"command": command, "args": arguments}
        servers = {"mcpServers": dict.fromkeys(self.setting.servers, server)}
        path = self.state_dir.with_name("servers.json")
        path.write_text(json.dumps(servers), encoding="utf-8")
        return ((), "--config", str(path))

    async def end(self, *signals: signal.Signals, within: float) -> int:
        """Send these signals, and wait for its end and that of its backends; return its status."""
        self.harm()
        self.up = anyio.Event()
        for number in signals:
            self.proxy.signal(number)
            await anyio.sleep(0.1)
        status = await self.proxy.wait(within)
        await self._life.aclose()
        await self.gone(
            within=self.setting.bound(KILLED),
            after=f"the end of the proxy ({signals[-1].name})",
            directories=signal.SIGKILL not in signals,  # else those are for the next one to sweep
        )
        return status

    def harm(self) -> None:
        """From now on nobody can tell how fast the proxy should be."""
        self.quiet_since = math.inf

    @property
    def calm(self) -> bool:
        """Whether nothing has been done to the proxy itself for so long that all are served again:
        each opens a session anew, and backends start one after the other."""
        patience = 5 + self.setting.sessions * 0.1
        return anyio.current_time() - self.quiet_since > patience

    async def close(self) -> None:
        await self._life.aclose()

    async def check_resources(self) -> None:
        """I5: once all sessions have ended."""
        more = self._more_descriptors()
        with anyio.move_on_after(self.setting.bound(2)):
            while len(more) > KEPT:
                await anyio.sleep(0.1)
                more = self._more_descriptors()
        if len(more) > KEPT:
            self.record.is_wrong(f"I5: descriptors that were not there at first: {more}")
        memory = Meters(self.proxy.process.pid).memory()
        if self._warm is not None:
            drift = memory / self._warm - 1
            print(f"memory: {self._warm >> 10} KiB warm, {memory >> 10} KiB now: {drift:+.1%}")
            if self.setting.strict and drift > GROWN:
                self.record.is_wrong(f"I5: memory grew by {drift:.1%}")

    def _more_descriptors(self) -> list[tuple[str, str]]:
        now = Resources.of(self.proxy.process.pid).descriptors
        return sorted(now - self._descriptors)

    # -- what is left (I4) -------------------------------------------------------------------------

    async def gone(self, *, within: float, after: str, directories: bool = True) -> None:
        """Wait until no process of any session is left, and no directory; tell where one is."""
        left: list[str] = []
        deadline = anyio.current_time() + within
        while anyio.current_time() < deadline:
            left = await self._in_thread(lambda: self._left(directories))
            if not left:
                return
            await anyio.sleep(0.05)
        self.record.is_wrong(f"I4: {within:g} s after {after} there still is {'; '.join(left)}")

    def _left(self, directories: bool) -> list[str]:
        if directories:
            return self._census.left(zombies=False)
        found = [process for processes in self._census.look().values() for process in processes]
        return [told(process) for process in found if not is_zombie(process)]

    async def watch(self) -> None:
        """Look again and again for processes of sessions whose directory is gone."""
        suspects: set[psutil.Process] = set()
        while True:
            await anyio.sleep(self.setting.bound(LOOK))
            strays = await self._in_thread(self._strays)
            for process in strays & suspects:
                self.record.is_wrong(f"I4: it outlives its session: {told(process)}")
            suspects = strays - suspects

    def _strays(self) -> set[psutil.Process]:
        found = self._census.look()
        left = [p for path, processes in found.items() if not path.exists() for p in processes]
        return {process for process in left if not is_zombie(process)}

    async def host_pid(self, tmp: str) -> int:
        """Return the pid, outside of all namespaces, of the backend with this TMPDIR."""
        found = await self._in_thread(self._census.look)
        scripts = [process for process in found.get(Path(tmp).parent, []) if _is_script(process)]
        return max(scripts, key=lambda process: len(process.parents())).pid

    async def _in_thread(self, look: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(look, limiter=self._looking)


def hash_of(name: str) -> int:
    """Return the same number for a name each time."""
    return crc32(name.encode())


def _is_script(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(word.endswith("scripted.py") for word in process.cmdline())
    return False

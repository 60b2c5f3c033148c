"""Starts the targets, reads what they cost, and ends exactly what was started.

A target's command carries a random tag, so that its backends are found wherever they are hung
in the process tree, and nothing else is ever signalled.
Neighbours: `targets` says what to start, `measures` reads the meters.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

START_TIMEOUT: Final = 60  # seconds until a target must accept connections
STOP_TIMEOUT: Final = 5  # seconds between SIGTERM and SIGKILL
TICKS: Final = 0.025  # seconds by which tick-counted CPU time may differ from the exact one
BACKEND: Final = Path(__file__).with_name("backend.py")
ELSEWHERE: Final = Path(__file__).with_name("elsewhere.py")


class StartFailed(Exception):
    """The target did not come up; the text says why."""


def backend_command(tag: str) -> list[str]:
    """The benchmark's backend, marked with `tag`."""
    return [os.path.realpath(sys.executable), "-I", "-S", str(BACKEND), "--tag", tag]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def tagged(tag: str) -> list[psutil.Process]:
    """Every process that has `tag` among or inside its arguments."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(tag in argument for argument in process.cmdline()):
                found.append(process)
    return found


@dataclass
class Server:
    """A running target, leader of its own process group."""

    name: str
    tag: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    root: psutil.Process = field(init=False)

    def __post_init__(self) -> None:
        self.root = psutil.Process(self.process.pid)

    def own(self) -> list[psutil.Process]:
        """The proxy's processes, without its backends and what wraps each of them."""
        found = [self.root]
        queue = [self.root]
        while queue:
            with contextlib.suppress(psutil.Error):
                for child in queue.pop().children():
                    if not any(self.tag in argument for argument in child.cmdline()):
                        found.append(child)
                        queue.append(child)
        return found

    def backends(self) -> list[psutil.Process]:
        """The backends: tagged processes that run the backend's script themselves."""
        own = {process.pid for process in self.own()}
        found = [process for process in tagged(self.tag) if process.pid not in own]
        parents: set[int | None] = set()
        for process in found:
            with contextlib.suppress(psutil.Error):
                parents.add(process.ppid())
        return [process for process in found if process.pid not in parents]

    def cpu(self) -> "Cpu":
        return Cpu.read(self.own())

    def rss(self) -> int:
        """Resident bytes of the proxy's own processes."""
        return sum(process.memory_info().rss for process in self.own())

    def threads(self) -> int:
        return sum(process.num_threads() for process in self.own())

    def last_words(self) -> str:
        """The last line of its log that says something."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        lines = [line.strip(" │|") for line in text.splitlines()]
        spoken = [line for line in lines if any(letter.isalnum() for letter in line)]
        return spoken[-1][:200] if spoken else "no output"

    def stop(self) -> None:
        """The target and all its backends are gone."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for process in tagged(self.tag):
            if process.pid != os.getpid():
                with contextlib.suppress(psutil.Error):
                    process.kill()


@dataclass(frozen=True)
class Cpu:
    """Processor time so far, in seconds: exact for threads alive, in ticks for all."""

    exact: float | None
    ticks: float

    @classmethod
    def read(cls, processes: list[psutil.Process]) -> "Cpu":
        exact: float | None = 0.0
        ticks = 0.0
        for process in processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                ticks += times.user + times.system
            try:
                for task in Path(f"/proc/{process.pid}/task").iterdir():
                    ran = int((task / "schedstat").read_text().split()[0]) / 1e9
                    exact = None if exact is None else exact + ran
            except (OSError, ValueError, IndexError):
                exact = None
        return cls(exact, ticks)

    def since(self, before: "Cpu") -> float:
        """Seconds used since `before`; exact where no thread ended in between."""
        ticks = self.ticks - before.ticks
        if self.exact is None or before.exact is None:
            return ticks
        exact = self.exact - before.exact
        return exact if abs(exact - ticks) <= TICKS + 0.05 * ticks else ticks


def start(
    name: str, command: list[str], *, tag: str, port: int, log: Path, env: dict[str, str]
) -> Server:
    """The target accepts connections. Raises: StartFailed."""
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **env},
            )
        except OSError as error:
            raise StartFailed(str(error)) from error
    server = Server(name, tag, port, process, log)
    try:
        wait_until_it_accepts(server)
    except BaseException:
        server.stop()
        raise
    return server


def wait_until_it_accepts(server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise StartFailed(f"exit {server.process.returncode}: {server.last_words()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            return
        time.sleep(0.05)
    raise StartFailed(f"no port open after {START_TIMEOUT} s: {server.last_words()}")


@contextlib.contextmanager
def stopping(servers: dict[str, Server]) -> Generator[None]:
    """All `servers` are stopped at the end, also on an error or Ctrl-C."""
    try:
        yield
    finally:
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(number, signal.SIG_IGN) for number in numbers]
        for server in servers.values():
            with contextlib.suppress(ProcessLookupError):
                server.process.terminate()
        for server in servers.values():
            server.stop()
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def quick_server() -> Generator[str]:
    """An MCP server over HTTP that takes next to no time itself; yield its URL."""
    port = free_port()
    with tempfile.NamedTemporaryFile() as log:
        command = [sys.executable, str(ELSEWHERE), str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until_it_accepts(Server("elsewhere", "", port, process, Path(log.name)))
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()
            process.wait()

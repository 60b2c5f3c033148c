"""A real proxy in a process of its own, started the way a user does.

Neighbours: every test that needs sockets and processes.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

PYTHON = sys.executable
ROOT = Path(__file__).parents[2]
DEMO = (PYTHON, "-m", "sessionproxy.demo")
EVERYTHING = (PYTHON, "-m", "tests.servers.everything")


class Proxy:
    """A running `sessionproxy run`. `log` grows while it runs."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, state_dir: Path) -> None:
        self.process = process
        self.url = url
        self.state_dir = state_dir
        self.log: list[str] = []

    @property
    def base(self) -> str:
        """The URL without the endpoint's path."""
        return self.url.rsplit("/", 1)[0]

    @property
    def port(self) -> int:
        return int(self.base.rsplit(":", 1)[1])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def wait(self, seconds: float) -> int:
        """Return its exit status; fail where it takes longer."""
        with anyio.fail_after(seconds):
            return await anyio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)


@asynccontextmanager
async def proxy(
    command: Sequence[str] = (),
    *options: str,
    env: dict[str, str] | None = None,
) -> AsyncGenerator[Proxy]:
    """Run a proxy on a free port with a state directory of its own, in front of `command`.

    On exit it gets SIGTERM twice, so that nothing is waited for, and must be gone in 15 s.
    """
    with tempfile.TemporaryDirectory(prefix="sp-") as state:
        state_dir = Path(state) / "s"
        argv = [PYTHON, "-m", "sessionproxy", "run", "--port", "0"]
        argv += ["--state-dir", str(state_dir), *options]
        if command:
            argv += ["--", *command]
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            with anyio.fail_after(20):
                url = await anyio.to_thread.run_sync(_endpoint, process, abandon_on_cancel=True)
            running = Proxy(process, url, state_dir)
            reader = threading.Thread(target=_read, args=(process, running.log), daemon=True)
            reader.start()
            yield running
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def _endpoint(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        name, _, value = line.partition(": ")
        if name == "endpoint":
            return value.strip()
    raise AssertionError(f"the proxy did not start: {process.stderr.read()}")


def _read(process: "subprocess.Popen[str]", log: list[str]) -> None:
    assert process.stderr is not None
    try:
        for line in process.stderr:
            log.append(line.rstrip())
    except ValueError:
        pass  # closed by the test's end


async def _end(process: "subprocess.Popen[str]") -> None:
    for _ in range(2):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            await anyio.sleep(0.05)
    with anyio.move_on_after(15) as scope:
        while process.poll() is None:
            await anyio.sleep(0.02)
    if scope.cancelled_caught:
        process.kill()
        process.wait()
        raise AssertionError("the proxy did not end within 15 s of two SIGTERMs")

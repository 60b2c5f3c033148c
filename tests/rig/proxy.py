"""A real proxy in a process of its own, started the way a user does.

Neighbours: tests of signals, of the command line and of what outlives a process; the others use
`tests.rig.embedded`.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from anyio.from_thread import start_blocking_portal

PYTHON: Final = sys.executable
ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = (PYTHON, "-m", "sessionproxy")
DEMO: Final = (PYTHON, "-m", "sessionproxy.demo")
EVERYTHING: Final = (PYTHON, "-m", "tests.servers.everything")


class Proxy:
    """A running `sessionproxy run`. `log` and `banner` grow while it runs."""

    def __init__(
        self, process: "subprocess.Popen[str]", url: str, state_dir: Path, banner: list[str]
    ) -> None:
        self.process = process
        self.url = url
        self.state_dir = state_dir
        self.banner = banner
        """Lines on stdout as far as they were read: up to the one with the endpoint's URL."""
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

    async def more_banner(self) -> list[str]:
        """Return the lines that follow on stdout, which it gets until it is asked to stop."""
        assert self.process.stdout is not None
        self.signal(signal.SIGTERM)
        with anyio.fail_after(20):
            return await anyio.to_thread.run_sync(
                self.process.stdout.read().splitlines, abandon_on_cancel=True
            )

    async def wait(self, seconds: float) -> int:
        """Return its exit status; fail where it takes longer."""
        with anyio.fail_after(seconds):
            return await anyio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)


@asynccontextmanager
async def proxy(
    command: Sequence[str] = (),
    *options: str,
    env: dict[str, str] | None = None,
    state_dir: Path | None = None,
    prefix: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
) -> AsyncGenerator[Proxy]:
    """Run a proxy on a free port with a state directory of its own, in front of `command`.

    `prefix`: what executes it; its pid must stay the same. `program`: another one that is started
    and stopped as the proxy is.

    On exit it gets SIGTERM twice, so that nothing is waited for, and must be gone in 15 s.
    """
    with tempfile.TemporaryDirectory(prefix="sp-") as directory:
        state = state_dir or Path(directory) / "s"
        options = ("--state-dir", str(state), *options)
        process = start(command, *options, env=env, prefix=prefix, program=program)
        try:
            banner: list[str] = []
            with anyio.fail_after(20):
                url = await anyio.to_thread.run_sync(
                    _endpoint, process, banner, abandon_on_cancel=True
                )
            running = Proxy(process, url, state, banner)
            reader = threading.Thread(target=_read, args=(process, running.log), daemon=True)
            reader.start()
            yield running
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@contextmanager
def lasting(command: Sequence[str], *options: str) -> Generator[Proxy]:
    """As `proxy`, for several tests one after the other: it needs no event loop of theirs."""
    with start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(proxy(command, *options)) as running:
            yield running


def start(
    command: Sequence[str],
    *options: str,
    env: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
) -> "subprocess.Popen[str]":
    """Start `sessionproxy run` on a free port, unless `options` say another."""
    argv = [*prefix, *program, "run", "--port", "0", *options]
    if command:
        argv += ["--", *command]
    return subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _endpoint(process: "subprocess.Popen[str]", banner: list[str]) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        banner.append(line.rstrip())
        name, _, value = line.partition(": ")
        if name == "endpoint":
            return value.strip()
    raise AssertionError(f"the proxy did not start: {process.stderr.read()}")


def _read(process: "subprocess.Popen[str]", log: list[str]) -> None:
    assert process.stderr is not None
    try:
        log.extend(line.rstrip() for line in process.stderr)
    except ValueError:
        pass  # closed by the test's end


async def _end(process: "subprocess.Popen[str]") -> None:
    for _ in range(2):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            await anyio.sleep(0.05)
    try:
        with anyio.fail_after(15):
            await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
    except TimeoutError:
        process.kill()
        process.wait()
        raise AssertionError("the proxy did not end within 15 s of two SIGTERMs") from None

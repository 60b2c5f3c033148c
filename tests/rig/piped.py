"""A client that speaks JSON-RPC on pipes, to a proxy in this process or in one of its own.

It hides nothing and mends nothing, as `tests.rig.http` does for HTTP. Every wait is bounded.
Neighbours: tests of the stdio frontend.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from sessionproxy.frontend.pipes import Pipes
from tests.rig.embedded import SCRIPTED, Embedded, bare, embedded
from tests.rig.http import CAPABILITIES, PATIENCE, VERSION, Json, calling, notification, request
from tests.rig.proxy import ROOT
from tests.rig.reading import Reading

MODERN: Final = "2026-07-28"
_PREFIX: Final = "io.modelcontextprotocol/"


class Lines(Reading):
    """The client's side of two pipes."""

    patience = PATIENCE
    """Seconds for anything that should happen at once."""

    def __init__(self, stdin: int, stdout: int) -> None:
        """`stdin` is what it writes to, `stdout` what it reads."""
        super().__init__()
        self._stdin = stdin
        self._stdout = stdout
        self._buffer = b""
        self._last_id = 0
        os.set_blocking(stdin, False)
        os.set_blocking(stdout, False)

    # -- sending -----------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Write it as it is."""
        view = memoryview(data)
        with anyio.fail_after(self.patience):
            while view:
                with suppress(BlockingIOError):
                    view = view[os.write(self._stdin, view) :]
                    continue
                await anyio.wait_writable(self._stdin)

    async def send(self, *messages: object) -> None:
        """Write messages, a line each, all at once."""
        await self.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def hang_up(self) -> None:
        """Close both ends."""
        self.close_stdin()
        if self._stdout >= 0:
            os.close(self._stdout)
            self._stdout = -1

    def close_stdin(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    # -- receiving ---------------------------------------------------------------------------------

    async def line(self) -> bytes:
        """Return the next line. Raises: EndOfOutput."""
        with anyio.fail_after(self.patience):
            while b"\n" not in self._buffer:
                try:
                    chunk = os.read(self._stdout, 1 << 20)
                except BlockingIOError:
                    await anyio.wait_readable(self._stdout)
                    continue
                if not chunk:
                    assert self._buffer == b"", "half a line"
                    raise EndOfOutput
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    async def receive(self) -> Json:
        """Return the next message."""
        return json.loads(await self.line())

    async def rest(self) -> list[Json]:
        """Return all messages up to the end of the output."""
        found: list[Json] = []
        with suppress(EndOfOutput):
            while True:
                found.append(await self.receive())
        return found

    # -- the handshake era -------------------------------------------------------------------------

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def initialize(self, version: str = VERSION, *, number: object = "init") -> Json:
        """Open the session, the notification that follows included; return the answer."""
        await self.send(opening(version, number=number))
        answer = await self.answer(number)
        if "result" in answer:
            await self.send(notification("notifications/initialized"))
        return answer

    async def request(self, method: str, params: object = None) -> Json:
        """Return the whole response to a request."""
        number = self.new_id()
        await self.send(request(method, params, number))
        return await self.answer(number)

    async def do(self, *steps: Json) -> Json:
        """Have the scripted backend take `steps` in a call; return what it found out."""
        return told(await self.request("tools/call", calling(*steps)))

    # -- the modern era ----------------------------------------------------------------------------

    async def ask(self, method: str, params: Json | None = None, **envelope: object) -> Json:
        """Return the whole response to a modern request."""
        number = self.new_id()
        await self.send(request(method, enveloped(params, **envelope), number))
        return await self.answer(number)

    async def have_done(self, *steps: Json) -> Json:
        """As `do`, of a modern client."""
        return told(await self.ask("tools/call", calling(*steps)))


class EndOfOutput(Exception):
    """The proxy has closed its stdout."""


def opening(version: str = VERSION, *, number: object = "init") -> Json:
    client = {"name": "tests", "version": "1"}
    params = {"protocolVersion": version, "capabilities": CAPABILITIES, "clientInfo": client}
    return request("initialize", params, number)


def enveloped(params: Json | None = None, **envelope: object) -> Json:
    """Return the parameters of a modern request. `envelope`: members of it that differ; None: it
    has none such."""
    meta: Json = {
        "protocolVersion": MODERN,
        "clientInfo": {"name": "tests", "version": "1"},
        "clientCapabilities": {"elicitation": {"form": {}}},
        **envelope,
    }
    found = dict(params or {})
    more = {_PREFIX + key: value for key, value in meta.items() if value is not None}
    return {**found, "_meta": {**found.get("_meta", {}), **more}}


def told(answer: Json) -> Json:
    result: Json = answer["result"]
    assert not result.get("isError"), result
    return result["structuredContent"]


# -- in this process -------------------------------------------------------------------------------


class Piped(Lines):
    """A proxy in this process, and the pipes to its one client."""

    def __init__(self, proxy: Embedded, stdin: int, stdout: int) -> None:
        super().__init__(stdin, stdout)
        self.proxy = proxy
        self.over = anyio.Event()
        self.left: bool | None = None
        """What the frontend says: whether the client has gone. None: it serves."""

    async def wait(self) -> None:
        with anyio.fail_after(PATIENCE):
            await self.over.wait()


@asynccontextmanager
async def piped(command: Sequence[str] = SCRIPTED, **settings: object) -> AsyncGenerator[Piped]:
    """Serve one client, whose pipes are ours. On exit it hangs up, and nothing may be left."""
    their_stdin, stdin = os.pipe()
    stdout, their_stdout = os.pipe()
    os.set_blocking(their_stdout, False)
    proxies = embedded(
        command,
        hooks=(),
        observers=(),
        local=True,
        around=bare,
        listening=None,
        certificate=None,
        **settings,
    )
    failed: Exception | None = None
    async with proxies as proxy, anyio.create_task_group() as tasks:
        client = Piped(proxy, stdin, stdout)

        async def serve() -> None:
            pipes = Pipes(their_stdin, their_stdout)
            client.left = await proxy.app.running.stdio(pipes).run()
            os.close(their_stdin)
            os.close(their_stdout)
            client.over.set()

        tasks.start_soon(serve)
        try:
            yield client
        except Exception as error:  # noqa: BLE001 - raised again outside of the group
            failed = error
        client.hang_up()
        await client.wait()
    if failed is not None:
        raise failed


# -- in a process of its own -----------------------------------------------------------------------


class Process(Lines):
    """A running `sessionproxy stdio`."""

    patience = 4 * PATIENCE  # it has to start first

    def __init__(self, process: "subprocess.Popen[bytes]", state_dir: Path, log: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        super().__init__(os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno()))
        process.stdin.close()
        process.stdout.close()
        self.process = process
        self.state_dir = state_dir
        self._log = log
        self._whole: str | None = None

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        return self._log.read_text() if self._whole is None else self._whole

    def over(self) -> None:
        """Its files go away; keep what is in them."""
        self._whole = self.log

    async def wait(self) -> int:
        """Return its exit status."""
        with anyio.fail_after(self.patience):
            return await anyio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)


def argv(*arguments: str) -> list[str]:
    """Return the command line of a proxy with one client."""
    return [sys.executable, "-m", "sessionproxy", "stdio", *arguments]


@asynccontextmanager
async def process(
    command: Sequence[str] = SCRIPTED, *options: str, **env: str
) -> AsyncGenerator[Process]:
    """Start `sessionproxy stdio`. On exit it is killed, if it is still there."""

    def words(state: Path) -> Sequence[str]:
        contained = ("--containment", "guardian")
        return [*argv("--state-dir", str(state), *contained, *options, "--"), *command]

    async with program(words, **env) as running:
        yield running


@asynccontextmanager
async def program(words: Callable[[Path], Sequence[str]], **env: str) -> AsyncGenerator[Process]:
    """Start what serves one client on its stdin and stdout. On exit it is killed, if it is still
    there. `words`: returns its command line, with its state directory."""
    with tempfile.TemporaryDirectory(prefix="sp-") as directory:
        state, log = Path(directory) / "s", Path(directory) / "log"
        started = _started(words(state), log, env)
        running = Process(started, state, log)
        try:
            yield running
        finally:
            running.hang_up()
            if started.poll() is None:
                started.kill()
            started.wait()
            running.over()


def _started(
    command: Sequence[str], log: Path, env: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    with log.open("wb") as stderr:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )

"""A page of the documentation, read and done from top to bottom as its reader would.

Fenced and indented blocks are what it tells one to do, in one directory, with one shell whose
variables stay. A comment before a block says what is done with it where that is not plain:

    <!-- run: server -->         its last line goes on while the page is read, until the next server
                                 (a Python block: all of it); `server 8081` says on which port
    <!-- run: save as FILE -->   it is a file, and not run by itself
    <!-- run: connect -->        each server in this mcpServers JSON is asked for its tools
    <!-- run: serve app PATH --> `app` of this Python block is served, and PATH asked for its tools
    <!-- run: server says -->    this is what the running server writes meanwhile

Else `python` is run; shell (`sh`, or indented) is run line by line; `json` and `toml` are read; and
`text` is what the block before it prints, where `...` stands for anything. Ports of the page
(8000 to 8099) are exchanged for free ones. Neighbours: `tests/test_pages.py` says which pages, what
stands in for the world outside, and what is not run.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import markdown_it
from markdown_it import MarkdownIt

PATIENCE: Final = 60.0
"""Seconds for anything that a page tells one to do, on a busy machine too."""

PAUSE: Final = 0.05
"""Seconds between two looks at a process."""

SHELL: Final = ("", "sh", "bash", "console")
READ: Final[Mapping[str, Callable[[str], object]]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "python": lambda text: compile(text, "a page", "exec"),
}
"""How what is not run is read, by its language."""

DIRECTION: Final = re.compile(r"<!-- run: (.*?) -->")
PORT: Final = re.compile(r"(?<![\d.])80\d\d(?![\d.])")

PACKAGES: Final = Path(markdown_it.__file__).parents[1]
"""Where the environment of the tests has what pip installed."""

LIST_TOOLS: Final = """
import sys, anyio
from mcp import Client, StdioServerParameters

async def main(url, *command):
    server = url or StdioServerParameters(command=command[0], args=command[1:])
    async with Client(server) as client:
        for tool in (await client.list_tools()).tools:
            print(tool.name)

anyio.run(main, *sys.argv[1:])
"""


@dataclass(frozen=True)
class Block:
    """One block of code. `line`: where it begins in its page, counted from 1."""

    language: str
    text: str
    direction: str
    line: int


def blocks(markdown: str) -> list[Block]:
    """Return the blocks of a page in their order."""
    found: list[Block] = []
    direction = ""
    for token in MarkdownIt("commonmark").parse(markdown):
        if token.type == "html_block" and (said := DIRECTION.search(token.content)):
            direction = said[1]
        elif token.type in ("fence", "code_block"):
            assert token.map is not None
            language = token.info.split()[0] if token.info.strip() else ""
            found.append(Block(language, token.content, direction, token.map[0] + 1))
            direction = ""
    return found


def commands(text: str) -> Iterator[str]:
    """Yield the commands of a shell block: lines, but for those that go on in the next one."""
    pending = ""
    for line in text.splitlines():
        pending += line + "\n"
        if not line.endswith("\\") and not complaint(pending):
            if pending.strip():
                yield pending.strip()
            pending = ""
    assert not pending.strip(), f"no shell command: {pending}{complaint(pending)}"


def complaint(command: str) -> str:
    """Return what bash finds wrong with it, without running it."""
    return subprocess.run(
        ["bash", "-n", "-c", command], capture_output=True, text=True, check=False
    ).stderr


def check(language: str, text: str) -> None:
    """Raises: ValueError or SyntaxError: it is none of that language, or nobody here knows it."""
    if language not in READ:
        raise ValueError(f"nobody knows what to do with {language or 'this'}")
    READ[language](text)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """What goes on while the page is read: a process, and what it has written."""

    def __init__(self, command: list[str], cwd: Path, env: Mapping[str, str], port: int) -> None:
        self.port = port
        self.written = ""
        self._command = command
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**env, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.written += line

    def until(self, what: str, true: Callable[[], bool]) -> None:
        """Wait until it is true that it did so; fail where it ends first, or patience does."""
        for _ in range(int(PATIENCE / PAUSE)):
            if true():
                return
            if self._process.poll() is not None:
                break
            time.sleep(PAUSE)
        raise AssertionError(f"{shlex.join(self._command)} never {what}:\n{self.written}")

    def listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End it as Ctrl-C would, twice, and whatever it left by force."""
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(number)
                try:
                    self._process.wait(2 if number == signal.SIGINT else PATIENCE)
                except subprocess.TimeoutExpired:
                    continue
        self._reader.join(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()


@dataclass
class Reader:
    """Who reads a page: a directory, the variables of a shell, and a server that may run."""

    directory: Path
    env: dict[str, str]
    stand_ins: Mapping[str, str] = field(default_factory=dict[str, str])
    """Words of the page, and what is put in their place here."""
    not_run: Mapping[str, str] = field(default_factory=dict[str, str])
    """How commands begin that are checked for their syntax alone, and why."""
    left_out: set[str] = field(default_factory=set[str])
    """Which of these there were."""
    printed: str = ""
    history: str = ""
    """All that was printed."""
    server: Server | None = None
    ports: dict[str, int] = field(default_factory=dict[str, int])
    _files: int = 0

    def do(self, block: Block) -> None:
        """Do what a block says. Fails with what went wrong."""
        text = self._here(block.text)
        what, _, rest = block.direction.partition(" ")
        if block.direction.startswith("save as "):
            check(block.language, text)
            (self.directory / rest.removeprefix("as ")).write_text(text)
        elif block.direction == "server says":
            server = self._running()
            for line in text.splitlines():
                server.until(f"writes {line!r}", lambda line=line: _in(line, server.written))
        elif block.direction.startswith("serve app"):
            name = self._save(text)
            port = free_port()
            module = f"{name.removesuffix('.py')}:app"
            self._serve(
                [self._python, "-m", "uvicorn", module, "--port", str(port), "--lifespan", "on"],
                port,
            )
            self._ask(f"http://127.0.0.1:{port}{rest.removeprefix('app').strip()}")
        elif what == "server":
            self._start(block, text, self._port(rest or "8080"))
        elif block.direction == "connect":
            for server in json.loads(text)["mcpServers"].values():
                self._ask(server.get("url", ""), server.get("command"), server.get("args", ()))
        elif block.direction:
            raise AssertionError(f"no such direction: run: {block.direction}")
        else:
            self._plain(block.language, text)

    def _plain(self, language: str, text: str) -> None:
        if language == "python":
            self._run([self._python, self._save(text)])
        elif language in SHELL:
            self.printed = "".join(self._shell(line) for line in commands(text))
        elif language == "text":
            assert _matches(text, self.printed), f"expected:\n{text}\nprinted:\n{self.printed}"
        else:
            check(language, text)

    # -- what is in the place of what the page says ------------------------------------------------

    def _here(self, text: str) -> str:
        for word, stand_in in self.stand_ins.items():
            text = text.replace(word, stand_in)
        return PORT.sub(lambda found: str(self._port(found[0])), text)

    def _port(self, shown: str) -> int:
        if shown not in self.ports:
            self.ports[shown] = free_port()
        return self.ports[shown]

    def _save(self, text: str) -> str:
        self._files += 1
        name = f"block_{self._files}.py"
        (self.directory / name).write_text(text)
        return name

    # -- running -----------------------------------------------------------------------------------

    @property
    def _python(self) -> str:
        """The one that the shell finds now."""
        return self._run(["bash", "-c", "command -v python"]).strip()

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        told = f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"status {done.returncode}: {told}{self._server_wrote()}"
        self.printed = done.stdout
        self.history += done.stdout
        return done.stdout

    def _server_wrote(self) -> str:
        return "" if self.server is None else f"\nthe server wrote:\n{self.server.written}"

    def _shell(self, command: str) -> str:
        """Run one command; return what it printed. Keep the variables, and where it went to."""
        for start in self.not_run:
            if command.startswith(start):
                self.left_out.add(start)
                assert not complaint(command)
                return ""
        kept = self.directory / ".kept"
        script = f"set -ea\n{command}\n{{ env -0; printf 'PWD=%s' \"$PWD\"; }} >{kept}"
        printed = self._run(["bash", "-c", script])
        pairs = (pair.partition("=") for pair in kept.read_text().split("\0") if pair)
        self.env = {name: value for name, _, value in pairs if name not in ("_", "SHLVL")}
        self.directory = Path(self.env["PWD"])
        self._complete_environments()
        return printed

    def _complete_environments(self) -> None:
        """Have an environment that a page made find what pip would have fetched into it."""
        for config in self.directory.glob("*/pyvenv.cfg"):
            for packages in config.parent.glob("lib/python3*/site-packages"):
                (packages / "here.pth").write_text(f"{PACKAGES}\n")

    def _start(self, block: Block, text: str, port: int) -> None:
        if block.language == "python":
            command = [self._python, self._save(text)]
        else:
            *before, last = commands(text)
            for line in before:
                self._shell(line)
            command = ["bash", "-c", f"exec {last}"]
        self._serve(command, port)

    def _serve(self, command: list[str], port: int) -> None:
        self.stop()
        self.server = Server(command, self.directory, self.env, port)
        self.server.until(f"listens on port {port}", self.server.listens)

    def _running(self) -> Server:
        assert self.server is not None, "no server runs"
        return self.server

    def _ask(self, url: str, command: str | None = None, arguments: tuple[str, ...] = ()) -> None:
        """Ask a server for its tools, as a client does."""
        words = [] if command is None else [command, *arguments]
        assert self._run([sys.executable, "-c", LIST_TOOLS, url, *words]).split()

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None


def _matches(pattern: str, text: str) -> bool:
    """Return whether it is the text, `...` standing for anything."""
    parts = (re.escape(part) for part in pattern.strip().split("..."))
    return re.fullmatch(".*?".join(parts), text.strip(), flags=re.DOTALL) is not None


def _in(line: str, text: str) -> bool:
    return any(_matches(line, one) for one in text.splitlines())


@contextmanager
def reader(
    directory: Path,
    *,
    env: Mapping[str, str],
    stand_ins: Mapping[str, str],
    not_run: Mapping[str, str],
) -> Generator[Reader]:
    """Whoever reads a page in that directory. On exit its server has ended."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("SESSIONPROXY_")
    }
    here = Reader(directory, {**inherited, **env}, stand_ins, not_run)
    here.env["SESSIONPROXY_PORT"] = str(here._port("8080"))  # pyright: ignore[reportPrivateUsage]
    try:
        yield here
    finally:
        here.stop()

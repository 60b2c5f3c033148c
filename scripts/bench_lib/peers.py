"""The peers: which, how they are installed, and how each is told to serve a stdio backend.

Each goes into a directory of its own below the cache, with the tool of its own world (pip, npm).
Neighbours: `targets` starts them.
"""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

INSTALL_TIMEOUT: Final = 300  # seconds for one peer
RECIPE: Final = Path(__file__).with_name("fastmcp_recipe.py")


class NotInstalled(Exception):
    """The peer cannot be used; the text says why."""


@dataclass(frozen=True)
class Peer:
    """A proxy of others, pinned to a release."""

    name: str  # in the table and on the command line
    package: str
    version: str
    kind: str  # "npm" or "pip"
    command: Callable[[Path, int, list[str]], list[str]]
    """Of its directory, the port to serve and the backend's command."""
    before_url: bool = False
    """Its backends are behind a URL, which it is told instead of their command."""

    def directory(self, cache: Path) -> Path:
        return cache / f"{self.kind}-{self.package}-{self.version}"

    def is_installed(self, cache: Path) -> bool:
        return (self.directory(cache) / "installed").exists()

    def install(self, cache: Path) -> None:
        """It is in the cache. Raises: NotInstalled."""
        directory = self.directory(cache)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for step in self._steps(directory):
            try:
                subprocess.run(
                    step,
                    check=True,
                    timeout=INSTALL_TIMEOUT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            except FileNotFoundError as error:
                raise NotInstalled(f"{step[0]} is not on this machine") from error
            except subprocess.TimeoutExpired as error:
                raise NotInstalled(f"{self.kind} took longer than {INSTALL_TIMEOUT} s") from error
            except subprocess.CalledProcessError as error:
                text: str = error.stderr or ""
                said = [line for line in text.splitlines() if "error" in line.lower()]
                last = said[-1][:200] if said else "no output"
                raise NotInstalled(f"{self.kind} failed: {last}") from error
        (directory / "installed").touch()

    def installed_version(self, cache: Path) -> str:
        """As the installed files say, not as the pin does."""
        directory = self.directory(cache)
        if self.kind == "npm":
            manifest = directory / "node_modules" / self.package / "package.json"
            return str(json.loads(manifest.read_text())["version"])
        name = self.package.replace("-", "_")
        found = list(directory.glob(f"lib/python*/site-packages/{name}-*.dist-info"))
        return found[0].name.removesuffix(".dist-info").rpartition("-")[2] if found else "unknown"

    def _steps(self, directory: Path) -> list[list[str]]:
        if self.kind == "npm":
            flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
            package = f"{self.package}@{self.version}"
            return [["npm", "--prefix", str(directory), "install", *flags, package]]
        pip = [str(directory / "bin" / "python"), "-m", "pip", "--quiet"]
        return [
            [sys.executable, "-m", "venv", str(directory)],
            [*pip, "install", f"{self.package}=={self.version}"],
        ]


def _supergateway(directory: Path, port: int, backend: list[str]) -> list[str]:
    script = directory / "node_modules" / "supergateway" / "dist" / "index.js"
    return [
        *("node", str(script), "--stdio", shlex.join(backend)),
        *("--outputTransport", "streamableHttp", "--stateful"),
        *("--port", str(port), "--logLevel", "none"),
    ]


def _mcp_proxy_npm(directory: Path, port: int, backend: list[str]) -> list[str]:
    script = directory / "node_modules" / ".bin" / "mcp-proxy"
    return [
        *("node", str(script), "--host", "127.0.0.1", "--port", str(port)),
        *("--server", "stream", "--", *backend),
    ]


def _mcp_proxy_pypi(directory: Path, port: int, backend: list[str]) -> list[str]:
    return [
        *(str(directory / "bin" / "mcp-proxy"), "--host", "127.0.0.1", "--port", str(port)),
        *("--log-level", "ERROR", "--", *backend),
    ]


def _fastmcp(directory: Path, port: int, backend: list[str]) -> list[str]:
    python = directory / "bin" / "python"
    return [str(python), str(RECIPE), "--port", str(port), "--", *backend]


PEERS: Final = (
    Peer("supergateway", "supergateway", "4.0.0", "npm", _supergateway),
    Peer("mcp-proxy-npm", "mcp-proxy", "6.7.19", "npm", _mcp_proxy_npm),
    Peer("mcp-proxy-pypi", "mcp-proxy", "0.13.0", "pip", _mcp_proxy_pypi),
    Peer("fastmcp", "fastmcp", "4.0.11", "pip", _fastmcp),
    Peer("fastmcp --url", "fastmcp", "4.0.11", "pip", _fastmcp, before_url=True),
)

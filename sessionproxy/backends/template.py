"""What a backend is started with: command, working directory and environment.

Only the operator's words reach a command line. A client's never do; the one thing that differs
between two sessions is what a placeholder stands for. Neighbours: `backends.launcher` expands it.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..config import ENV_PREFIX, ConfigError

INHERITED: Final = (
    "PATH", "HOME", "LANG", "USER", "TMPDIR",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    "http_proxy", "https_proxy", "no_proxy", "all_proxy",
)  # fmt: skip
"""Variables a backend gets from the proxy's environment. `TMPDIR` is then replaced by a directory
inside the session's own."""

_PLACEHOLDER: Final = re.compile(r"\{((?:session|owner)\.[a-z_]+)\}")
_KNOWN: Final = ("session.dir",)


@dataclass(frozen=True, slots=True)
class Expanded:
    """What one backend is started with."""

    argv: tuple[str, ...]
    cwd: str | None
    """Absolute: who starts it may stand elsewhere."""
    env: Mapping[str, str]


class Template:
    """An operator's command, checked once, expanded for every session."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: str | None = None,
        env: Sequence[str] = (),
        pass_env: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`env`: `NAME=VALUE` each. `pass_env`: names taken over from `environ`, the proxy's own.

        Raises: ConfigError: no such command, directory or variable, or an unknown placeholder.
        """
        environ = os.environ if environ is None else environ
        self._argv = tuple(command)
        self._env = {name: environ[name] for name in INHERITED if name in environ}
        self._env.update(_passed(pass_env, environ))
        self._env.update(_assigned(env))
        for text in (*self._argv, cwd or "", *self._env.values()):
            _check_placeholders(text)
        self._cwd = _absolute(cwd)
        self._check_cwd(self._cwd if cwd is None else cwd)
        self._check_command()

    @property
    def command(self) -> tuple[str, ...]:
        """The command as the operator wrote it."""
        return self._argv

    def _check_cwd(self, shown: str) -> None:
        """Where a placeholder is in it, it is checked by every start."""
        if _PLACEHOLDER.search(shown):
            return
        if not os.path.isdir(shown):
            raise ConfigError(f"--cwd {shown}: no such directory")
        if not os.access(shown, os.X_OK):
            raise ConfigError(f"--cwd {shown}: no permission to enter it")

    def _check_command(self) -> None:
        if not self._argv:
            raise ConfigError("COMMAND: no command to start backends with")
        name = self._argv[0]
        if not _PLACEHOLDER.search(name) and not self._relative_to_session(name):
            file = os.path.join(self._cwd, name) if "/" in name else name
            found = shutil.which(file, path=self._path())
            if found is None:
                where = f" in {self._cwd}" if file != name else ""
                raise ConfigError(f"COMMAND: {name}: no such command, or not executable{where}")

    def _relative_to_session(self, name: str) -> bool:
        return "/" in name and not name.startswith("/") and bool(_PLACEHOLDER.search(self._cwd))

    def _path(self) -> str:
        return self._env.get("PATH", os.defpath)

    def expand(self, session_dir: Path) -> Expanded:
        """Return what to start the backend with whose private directory is `session_dir`."""
        there = str(session_dir)

        def filled(text: str) -> str:
            return text.replace("{session.dir}", there)

        env = {name: filled(value) for name, value in self._env.items()}
        env["TMPDIR"] = str(session_dir / "tmp")
        return Expanded(tuple(map(filled, self._argv)), filled(self._cwd), env)


def _absolute(cwd: str | None) -> str:
    """Return a working directory as an absolute path: our own where none is given.

    A placeholder stands for an absolute one. Nothing is resolved: what is a link, or does not
    exist yet, is looked at by each start.
    """
    if cwd is not None and (os.path.isabs(cwd) or _PLACEHOLDER.match(cwd)):
        return cwd
    try:
        return os.path.join(os.getcwd(), cwd) if cwd else os.getcwd()
    except OSError as error:  # it was removed
        raise ConfigError(f"--cwd: the proxy's own directory: {error.strerror}") from None


def _check_placeholders(text: str) -> None:
    for name in _PLACEHOLDER.findall(text):
        if name not in _KNOWN:
            raise ConfigError(f"{{{name}}}: unknown placeholder; there is {{session.dir}}")


def _passed(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    for name in names:
        if name.startswith(ENV_PREFIX):
            raise ConfigError(f"--pass-env {name}: the proxy's own variables are not passed on")
        if name not in environ:
            raise ConfigError(f"--pass-env {name}: there is no such variable")
    return {name: environ[name] for name in names}


def _assigned(assignments: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name or name.startswith(ENV_PREFIX):
            raise ConfigError(f"--env {name}: expected NAME=VALUE")
        pairs[name] = value
    return pairs

"""Encloses a backend in a PID namespace (pid_namespaces(7)): with its first process all are gone.

Three processes stand between the guardian and the command, none of them ours to write:

    setpriv    asks the kernel to kill what follows when the guardian dies (PR_SET_PDEATHSIG)
    unshare    makes the namespace, for an ordinary user within a user namespace of his own, and
               becomes OUTER: a shell, whose first child mounts a `/proc` of its own, gives up the
               capabilities that this took, and becomes
    INIT       the namespace's first process: a shell that starts the command, passes SIGTERM on
               to all, reaps, and exits as the command did

Both shells let go of the command's pipes, so that the proxy notices when the command closes one;
`unshare --fork` would hold them. All of them have the command's environment, but are found by the
proxy's PATH, since the command's is for what the operator wants it to find. Neighbours: `groups`
for the first moment, before INIT is there.
"""

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from ..processes import Process, children_of, read_one
from ..statedir import SessionDir
from ..template import Expanded
from .groups import Groups, GroupTree
from .ports import Ending
from .shells import SET_BY_SHELLS, SHELL, kept_from_shells, path_of
from .signals import lives, send, send_group

INIT: Final = """
termed=
trap 'termed=1; kill -s TERM -- -1' TERM
exec 3<&0
{env} --default-signal=INT,QUIT {unset} "$@" <&3 3<&- &
command=$!
exec 3<&- </dev/null >/dev/null 2>&1
wait "$command"
status=$?
while [ "$termed" ] && [ "$status" -eq 143 ]; do
  termed=
  wait "$command"
  again=$?
  [ "$again" -eq 127 ] || status=$again
done
exit "$status"
"""
"""`wait` returns when SIGTERM comes, too, with 143: then it is asked again, and gives 127 if the
command had ended all the same. What a shell starts in the background ignores SIGINT and SIGQUIT,
which `env` undoes; and the variables that shells set are none of the command's, unless it was given
some, which then stand before it."""

OUTER: Final = """
trap : TERM INT HUP
exec 3<&0
{unshare} --mount-proc -- {setpriv} --pdeathsig KILL {drop} -- {sh} -c "$@" <&3 3<&- &
init=$!
exec 3<&- </dev/null >/dev/null 2>&1
while wait "$init"; status=$?; [ "$status" -gt 128 ] && kill -0 "$init"; do :; done
exit "$status"
"""
"""Its arguments are INIT, the name that INIT has in messages, and the command."""

NAME: Final = "sessionproxy"
"""Of both shells, in what they say to the backend's stderr, as that they cannot fork."""

SIGNALLED: Final = 128
"""What a shell adds to the number of the signal that killed a command (POSIX.1-2024, 2.8.2)."""

PROBE_PATIENCE: Final = 10.0


class PidNamespaces:
    """An `Enclosure` of Linux's."""

    name = "pid-namespace"

    def __init__(self, user_namespace: bool) -> None:
        """`user_namespace`: for who may not make another namespace without one."""
        self._user_namespace = user_namespace
        self._groups = Groups()

    def command(self, what: Expanded, directory: SessionDir) -> Sequence[str]:
        return enclosed(what.argv, user_namespace=self._user_namespace, env=what.env)

    def tree(self, pid: int, directory: SessionDir) -> "NamespaceTree":
        return NamespaceTree(pid, self._groups.tree(pid, directory))

    def discard(self, directory: SessionDir) -> None:
        pass

    def ending(self, leader: Ending) -> Ending:
        """A shell stands between: it tells of a signal by its exit status."""
        code = leader.code
        if code is not None and SIGNALLED < code <= SIGNALLED + signal.SIGRTMAX:
            return Ending(signal=code - SIGNALLED)
        return leader


def enclosed(
    argv: Sequence[str], *, user_namespace: bool, env: Mapping[str, str] = MappingProxyType({})
) -> Sequence[str]:
    """Return the command that starts `argv` in a namespace. `env`: what it is to find there."""
    # `-c` maps the user to itself: mapped to root (`-r`), Chromium's own sandbox fails.
    user = ("-U", "-c", "--keep-caps") if user_namespace else ()
    drop = "--inh-caps=-all --ambient-caps=-all" if user_namespace else ""
    outer, init = _scripts(drop)
    setpriv = path_of("setpriv")
    start = (setpriv, "--pdeathsig", "KILL", "--", path_of("unshare"), *user, "--pid", "--")
    kept = kept_from_shells(env)
    # What looks like an assignment or an option, `env` takes for one.
    plain = (setpriv, "--") if "=" in argv[0] or argv[0].startswith("-") else ()
    return (*start, SHELL, "-c", outer, NAME, init, NAME, *kept, *plain, *argv)


def _scripts(drop: str) -> tuple[str, str]:
    """Return OUTER and INIT with the helpers of this machine."""
    paths = {name: shlex.quote(path_of(name)) for name in ("env", "setpriv", "unshare")}
    unset = " ".join(f"-u {name}" for name in SET_BY_SHELLS)
    return OUTER.format(drop=drop, sh=SHELL, **paths), INIT.format(unset=unset, **paths)


@lru_cache(maxsize=1)
def probed() -> PidNamespaces | str:
    """Return the enclosure that works for this user on this machine, or why none does. Blocks."""
    # Root makes it without a user namespace: in one, it could give no file to another user, and
    # become none.
    ways = (False, True) if os.geteuid() == 0 else (True,)
    why = ""
    for user in ways:
        found = PidNamespaces(user)
        why = _tried(enclosed((SHELL, "-c", "test $PPID = 1"), user_namespace=user))
        if not why:
            return found
    return why


def _tried(argv: Sequence[str]) -> str:
    """Return what speaks against a command; nothing where it works."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=PROBE_PATIENCE,
            check=False,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return f"{argv[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{argv[0]} did not end within {PROBE_PATIENCE:g} s"
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return said[-1] if said else f"exit status {done.returncode}"
    return ""


class NamespaceTree:
    """All processes of one namespace: they live as long as its INIT, and no longer."""

    __slots__ = ("_init", "_leader", "_rest")

    def __init__(self, leader: int, rest: GroupTree) -> None:
        """`rest`: where the leader died before its INIT was seen, which then lives on unseen."""
        self._leader = read_one(leader)
        self._init: Process | None = None
        self._rest = rest

    async def remember(self) -> None:
        self._find()

    def _find(self) -> Process | None:
        """Return INIT, which the leader starts within milliseconds and only once."""
        if self._init is None and self._leader is not None and lives(self._leader):
            for pid in children_of(self._leader.pid):
                self._init = read_one(pid)
        return self._init

    async def signal(self, number: int) -> int:
        init = self._find()
        if init is None and not (self._leader is not None and lives(self._leader)):
            return await self._rest.signal(number)
        if number == signal.SIGKILL:
            self.kill()
        elif init is not None:
            send(init, number)  # it passes it on to all
        elif self._leader is not None:
            send(self._leader, number)
        return int(init is not None and lives(init))

    def kill(self) -> None:
        # What there was before INIT, and then all that is below it; to find that may fail.
        if self._leader is not None:
            send_group(self._leader, signal.SIGKILL)
        if (init := self._find()) is not None:
            send(init, signal.SIGKILL)

    def close(self) -> None:
        pass

"""Starts child processes from a template, each in a directory of its own, and stops them.

Neighbours: `core.session` launches and leaves; `backends.pool` keeps spares; `assembly` makes it.
"""

import errno
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio

from .. import descriptors
from ..core.admission import retry_after
from ..core.exchange import Hook
from ..core.latch import Latch
from ..core.memory import Opening
from ..core.ports import Identity, Upstream
from ..core.relay import Relay
from ..errors import BackendStartFailed, ProxyError, Shortage
from .containment import Containment, start_of
from .statedir import StateDir
from .stdio import Child
from .template import Template

DESCRIPTORS: Final = 16
"""Opened while a backend starts: its pipes, the guardian's, the record, looks at its process."""

SHORTAGES: Final = frozenset(
    {
        errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM,
        errno.ENOSPC, errno.EDQUOT, errno.ENOBUFS,
    }
)  # fmt: skip
"""What fails for want of something on this machine, and works again once there is some."""


class StdioLauncher:
    """Starts child processes from a template. A `Launcher`."""

    def __init__(
        self,
        template: Template,
        state: StateDir,
        containment: Containment,
        *,
        stop_grace: float,
        max_line: int,
        hooks: Sequence[Hook] = (),
        tally: Counter[str] | None = None,
        take_spare: Callable[[], Child | None] = lambda: None,
    ) -> None:
        """`stop_grace`: seconds to end by itself; `max_line`: bytes. `take_spare` gives a child
        that was started in advance, if there is one."""
        self._template = template
        self._state = state
        self._containment = containment
        self._stop_grace = stop_grace
        self._max_line = max_line
        self._hooks = hooks
        self._tally = tally if tally is not None else Counter[str]()
        self._take_spare = take_spare
        self._hurry = Latch()

    def hurry(self) -> None:
        """From now on backends that are being stopped are killed without waiting."""
        self._hurry.set()

    @asynccontextmanager
    async def launch(
        self, identity: Identity, label: str, upstream: Upstream, opening: Opening
    ) -> AsyncGenerator[Relay]:
        child = self._take_spare() or await self.spawn()
        try:
            relay = Relay(child, upstream, hooks=self._hooks, tally=self._tally, label=label)
            child.attach(relay, label)
            if child.has_exited:  # a spare that ended in this moment
                raise BackendStartFailed("The backend ended before it was used.")
            yield relay
        finally:
            await self.stop(child)

    async def refused(self, identity: Identity, opening: Opening) -> bool:
        return False

    async def stop(self, child: Child) -> None:
        await child.stop(self._stop_grace, self._hurry)

    async def spawn(self) -> Child:
        """Start a child, on record before it runs. Not interrupted by cancellation.

        Raises: BackendStartFailed, Shortage: it could not be started; nothing of it stays.
        """
        try:
            descriptors.check_room(DESCRIPTORS)
            directory = self._state.new_session()
        except OSError as error:
            raise _failure("No directory for the backend", error) from None
        what = self._template.expand(directory.path)
        try:
            contained = await self._containment.start(what, directory)
        except OSError as error:
            directory.remove()
            raise _failure("The backend could not be started", error) from None
        child = Child(contained, directory, max_line=self._max_line)
        try:
            directory.note(pid=child.pid, started=start_of(child.pid))
        except OSError as error:  # then nobody could end it after us
            with anyio.CancelScope(shield=True):
                await child.stop(0, self._hurry)
            raise _failure("The backend could not be started", error) from None
        return child


def _failure(what: str, error: OSError) -> ProxyError:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in SHORTAGES:  # the log's alone: it says nothing of the backend
        return Shortage(f"{what}: {where}{error.strerror}", retry_after=retry_after())
    return BackendStartFailed(f"{what}: {where}{error.strerror}.")

"""What all routes of a process stand on: a state directory, containment, secrets, clocks.

Neighbours: `app` opens it for a proxy, `client` for clients of their own; `route` and `assembly`
build on it.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

import anyio

from .backends import Limits, StateDir, chosen
from .backends.containment.ports import Containment
from .backends.statedir import default_state_dir
from .config import Settings
from .core.binding import SessionIds
from .core.pauses import Pauses
from .core.timers import Timers
from .eras import Rounds

logger: Final = logging.getLogger(__name__)


class Ground:
    """Made by `open`."""

    def __init__(
        self, state: StateDir, containment: Containment, key: bytes, tally: Counter[str]
    ) -> None:
        self.state = state
        self.containment = containment
        self.tally = tally
        self.ids: SessionIds = SessionIds(key)
        self.rounds: Rounds = Rounds(key)
        self.pauses: Pauses = Pauses()
        self.timers: Timers = Timers(self.pauses)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, containment: Containment, tally: Counter[str]
    ) -> AsyncGenerator[Self]:
        """Hold the ground. What an earlier process left behind is swept away first.

        Raises: ConfigError: the state directory cannot be used.
        """
        state = StateDir.open(state_root_from(settings))
        try:
            key = state.key()  # what is wrong is told before anything runs
            swept = await anyio.to_thread.run_sync(state.sweep, containment.end_left_over)
            if swept:
                logger.warning("%d backends of an earlier proxy were swept away", swept)
            ground = cls(state, containment, key, tally)
            async with containment.running(state.instance), anyio.create_task_group() as clocks:
                clocks.start_soon(ground.pauses.run)
                clocks.start_soon(ground.timers.run)
                try:
                    yield ground
                finally:
                    clocks.cancel_scope.cancel()
        finally:
            state.close()


def state_root_from(settings: Settings) -> Path:
    """Return where the state directory is to be."""
    root = settings.state_dir
    return default_state_dir() if root is None else Path(root).expanduser()


def containment_from(settings: Settings, *, own_process: bool) -> Containment:
    """Return what keeps hold of backends' processes. `own_process`: nothing else runs beside it.

    Raises: ConfigError: this machine has not what the settings ask for.
    """
    limits = Limits(settings.memory_max or None, settings.pids_max or None)
    return chosen(settings.containment.value, limits, own_process=own_process)

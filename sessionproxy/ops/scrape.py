"""What `/metrics` shows, and the page itself; made when it is asked for, and not before.

Until then nothing of Prometheus' is imported. Neighbours: `app` says where to look;
`frontend.health` serves the page; `ops.metrics` has the names.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import anyio

from ..core.manager import SessionManager

if TYPE_CHECKING:
    from .metrics import Metrics


class Numbers(NamedTuple):
    """What is to be shown, as it is now."""

    managers: Sequence[SessionManager]
    backends: int
    """That run."""
    queued: int
    """What waits for a place."""
    refusals: Mapping[str, int]
    """Requests that got no further than the frontend, by the reason."""
    dropped: Mapping[str, int]
    """What was dropped or refused below the level of a request, by name."""
    orphans: int
    stalls: int
    containment: str
    version: str


class Page(NamedTuple):
    content_type: bytes
    body: bytes


class Scrape:
    """Makes the page, from a registry of its own."""

    def __init__(self, look: Callable[[], Numbers], *, own_process: bool) -> None:
        """`own_process`: what the whole process uses is ours, and is shown too."""
        self._look = look
        self._own_process = own_process
        self._metrics: Metrics | None = None

    async def page(self) -> Page:
        if self._metrics is None:
            # The first time that takes a while, for which nobody else should have to wait.
            await anyio.to_thread.run_sync(import_module, "prometheus_client")
            from .metrics import Metrics

            self._metrics = Metrics(self._look, own_process=self._own_process)
        return Page(*self._metrics.exposition())

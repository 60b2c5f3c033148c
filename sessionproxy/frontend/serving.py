"""How requests are served, whatever their era; and what is told of those that are not.

Neighbours: `app` fills it from the settings; whoever refuses a request says so here.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from ..config import OnLoss
from ..errors import ProxyError

logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """How requests are served. Durations in seconds, sizes in bytes."""

    max_body: int
    keepalive: float
    on_loss: OnLoss
    idle: float | None
    start_timeout: float
    expose_stderr: bool
    refusals: Counter[str] = field(default_factory=Counter[str])
    """Requests that got no further than the frontend, by the reason."""

    def refused(self, error: ProxyError, level: int = logging.INFO) -> None:
        """Log and count a request that gets no further."""
        self.refusals[error.reason] += 1
        logger.log(level, "refused: %s (%s)", error.reason, error)

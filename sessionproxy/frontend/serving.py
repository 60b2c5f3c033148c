"""How requests are served, whatever their era.

Neighbours: `app` fills it from the settings.
"""

from dataclasses import dataclass

from ..config import OnLoss


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """How requests are served. Durations in seconds, sizes in bytes."""

    max_body: int
    keepalive: float
    on_loss: OnLoss
    idle: float | None
    start_timeout: float
    expose_stderr: bool

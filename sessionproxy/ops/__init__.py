"""What the operator sees: metrics, traces, and the watchdog over the event loop.

`ops.tracing` is imported by whoever wants traces, since it needs OpenTelemetry. Admin API and
dashboard are to come.
"""

from .scrape import Numbers, Page, Scrape
from .watchdog import Watchdog

__all__ = ["Numbers", "Page", "Scrape", "Watchdog"]

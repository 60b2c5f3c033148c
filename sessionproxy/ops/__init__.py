"""Metrics, tracing, admin API and dashboard to come; for now the watchdog over the event loop."""

from .watchdog import Watchdog

__all__ = ["Watchdog"]

"""Backends that are servers elsewhere, spoken to over HTTP."""

from .launcher import RemoteLauncher
from .target import Target, shown

__all__ = ["RemoteLauncher", "Target", "shown"]

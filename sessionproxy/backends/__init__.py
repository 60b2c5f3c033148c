"""Running MCP servers: what starts them, speaks to them, contains them, and ends them."""

from .containment import AUTO, RUNGS, Containment, Limits, available, chosen
from .launcher import StdioLauncher
from .pool import Pool
from .statedir import StateDir
from .template import Template

__all__ = [
    "AUTO",
    "RUNGS",
    "Containment",
    "Limits",
    "Pool",
    "StateDir",
    "StdioLauncher",
    "Template",
    "available",
    "chosen",
]

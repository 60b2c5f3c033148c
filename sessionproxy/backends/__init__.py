"""Running MCP servers: what starts them, speaks to them, contains them, and ends them."""

from .containment import AUTO, RUNGS, Containment, Limits, available, chosen
from .launcher import StdioLauncher
from .memory import InProcess, MemoryLauncher, factory_of
from .pool import Pool
from .remote import RemoteLauncher, Target, shown
from .shared import SharedLauncher
from .statedir import StateDir
from .template import Template

__all__ = [
    "AUTO",
    "RUNGS",
    "Containment",
    "InProcess",
    "Limits",
    "MemoryLauncher",
    "Pool",
    "RemoteLauncher",
    "SharedLauncher",
    "StateDir",
    "StdioLauncher",
    "Target",
    "Template",
    "available",
    "chosen",
    "factory_of",
    "shown",
]

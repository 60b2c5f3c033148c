"""Running MCP servers: what starts them, speaks to them, contains them, and ends them."""

from .containment import Containment, ProcessGroups, become_subreaper
from .launcher import StdioLauncher
from .pool import Pool
from .statedir import StateDir
from .template import Template

__all__ = [
    "Containment",
    "Pool",
    "ProcessGroups",
    "StateDir",
    "StdioLauncher",
    "Template",
    "become_subreaper",
]

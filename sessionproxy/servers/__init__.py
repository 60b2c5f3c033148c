"""The configuration of several servers: what stands in the file, checked before anything starts.

Neighbours: `config` has the settings of the proxy. Knows no process and no connection.
"""

from .configuration import Configuration, configuration_from, read_configuration
from .rules import NO_RULES, Rules, ToolChange, tags_of
from .server import Server, carrier_of, rules_from

__all__ = [
    "NO_RULES",
    "Configuration",
    "Rules",
    "Server",
    "ToolChange",
    "carrier_of",
    "configuration_from",
    "read_configuration",
    "rules_from",
    "tags_of",
]

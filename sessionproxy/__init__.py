"""Puts stateful MCP servers behind HTTP for many users: a backend of its own for every session."""

from .app import ProxyApp, http_app
from .config import ConfigError
from .core.context import current_exchange
from .core.exchange import Exchange, Forwarded, Hook
from .version import VERSION

__all__ = [
    "ConfigError",
    "Exchange",
    "Forwarded",
    "Hook",
    "ProxyApp",
    "current_exchange",
    "http_app",
]

__version__ = VERSION

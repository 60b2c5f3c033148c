"""Puts stateful MCP servers behind HTTP for many users: a backend of its own for every session."""

from typing import TYPE_CHECKING

from .app import ProxyApp, http_app
from .config import ConfigError
from .core.context import current_exchange
from .core.exchange import Exchange, Forwarded, Hook
from .core.hooks import (
    CallNext,
    Request,
    RequestFailed,
    RequestHook,
    Result,
    current_request,
)
from .errors import ProxyError
from .keywords import AppSettings, FrontSettings, ProxySettings
from .servers import Configuration, Rules, Server, ToolChange, read_configuration
from .version import VERSION

if TYPE_CHECKING:
    from .client import (
        ClientFactory,
        ComponentIsMirrored,
        ElicitationHandler,
        HandlerContext,
        LogHandler,
        ProgressHandler,
        Proxy,
        ProxyClient,
        ProxyPrompt,
        ProxyProvider,
        ProxyResource,
        ProxyTarget,
        ProxyTemplate,
        ProxyTool,
        RootsHandler,
        SamplingHandler,
        Sessions,
        StatefulProxyClient,
        Transport,
        create_proxy,
        default_proxy_elicitation_handler,
        default_proxy_log_handler,
        default_proxy_progress_handler,
        default_proxy_roots_handler,
        default_proxy_sampling_handler,
    )

__all__ = [
    "AppSettings",
    "CallNext",
    "ClientFactory",
    "ComponentIsMirrored",
    "ConfigError",
    "Configuration",
    "ElicitationHandler",
    "Exchange",
    "Forwarded",
    "FrontSettings",
    "HandlerContext",
    "Hook",
    "LogHandler",
    "ProgressHandler",
    "Proxy",
    "ProxyApp",
    "ProxyClient",
    "ProxyError",
    "ProxyPrompt",
    "ProxyProvider",
    "ProxyResource",
    "ProxySettings",
    "ProxyTarget",
    "ProxyTemplate",
    "ProxyTool",
    "Request",
    "RequestFailed",
    "RequestHook",
    "Result",
    "RootsHandler",
    "Rules",
    "SamplingHandler",
    "Server",
    "Sessions",
    "StatefulProxyClient",
    "ToolChange",
    "Transport",
    "create_proxy",
    "current_exchange",
    "current_request",
    "default_proxy_elicitation_handler",
    "default_proxy_log_handler",
    "default_proxy_progress_handler",
    "default_proxy_roots_handler",
    "default_proxy_sampling_handler",
    "http_app",
    "read_configuration",
]

__version__ = VERSION


def __getattr__(name: str) -> object:
    """Import what needs the SDK once it is used: the command line does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import client

    return getattr(client, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

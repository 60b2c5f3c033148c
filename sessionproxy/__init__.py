"""Puts stateful MCP servers behind HTTP for many users: a backend of its own for every session."""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from .version import VERSION

if TYPE_CHECKING:
    from .app import ProxyApp, http_app
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

_HOMES: Final = {
    name: module
    for module, names in {
        "app": ("ProxyApp", "http_app"),
        "config": ("ConfigError",),
        "core.context": ("current_exchange",),
        "core.exchange": ("Exchange", "Forwarded", "Hook"),
        "core.hooks": (
            *("CallNext", "Request", "RequestFailed", "RequestHook", "Result", "current_request"),
        ),
        "errors": ("ProxyError",),
        "keywords": ("AppSettings", "FrontSettings", "ProxySettings"),
        "servers": ("Configuration", "Rules", "Server", "ToolChange", "read_configuration"),
    }.items()
    for name in names
}
"""Where the public names are that need no SDK; the others are in `client`."""


def __getattr__(name: str) -> object:
    """Import what is used once it is used: the guardian, the demo and the command line do not need
    most of it, and start the faster."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f".{_HOMES.get(name, 'client')}", __name__)
    found = globals()[name] = getattr(home, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

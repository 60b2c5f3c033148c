"""The Python API: proxies and clients as objects, with types.

Neighbours: `sessionproxy` has its names, and imports it once one of them is used: the SDK takes
most of a second to load.
"""

from ..core.hooks import CallNext, Request, RequestFailed, RequestHook, Result
from .client import ProxyClient, StatefulProxyClient
from .components import (
    ClientFactory,
    ComponentIsMirrored,
    ProxyPrompt,
    ProxyResource,
    ProxyTemplate,
    ProxyTool,
)
from .handlers import (
    ElicitationHandler,
    HandlerContext,
    LogHandler,
    ProgressHandler,
    RootsHandler,
    SamplingHandler,
    default_proxy_elicitation_handler,
    default_proxy_log_handler,
    default_proxy_progress_handler,
    default_proxy_roots_handler,
    default_proxy_sampling_handler,
)
from .provider import ProxyProvider
from .proxy import Proxy, Sessions, Transport, create_proxy
from .targets import ProxyTarget

__all__ = [
    "CallNext",
    "ClientFactory",
    "ComponentIsMirrored",
    "ElicitationHandler",
    "HandlerContext",
    "LogHandler",
    "ProgressHandler",
    "Proxy",
    "ProxyClient",
    "ProxyPrompt",
    "ProxyProvider",
    "ProxyResource",
    "ProxyTarget",
    "ProxyTemplate",
    "ProxyTool",
    "Request",
    "RequestFailed",
    "RequestHook",
    "Result",
    "RootsHandler",
    "SamplingHandler",
    "Sessions",
    "StatefulProxyClient",
    "Transport",
    "create_proxy",
    "default_proxy_elicitation_handler",
    "default_proxy_log_handler",
    "default_proxy_progress_handler",
    "default_proxy_roots_handler",
    "default_proxy_sampling_handler",
]

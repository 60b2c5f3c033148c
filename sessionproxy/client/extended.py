"""Components of a proxy's own: functions of the user's, and changed copies of what servers have.

Neighbours: `client.local` serves the copies, the SDK's server the functions; `client.proxy` has
both beside what it fronts.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar, Unpack, overload

import mcp_types as types

from .components import (
    ClientFactory,
    Component,
    ComponentIsMirrored,
    ProxyPrompt,
    ProxyResource,
    ProxyTemplate,
    ProxyTool,
)
from .local import Components

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

P = ParamSpec("P")
T = TypeVar("T")


class PromptOptions(TypedDict, total=False):
    """Of `MCPServer.prompt`."""

    name: str | None
    title: str | None
    description: str | None
    icons: list[types.Icon] | None


class ResourceOptions(PromptOptions, total=False):
    """Of `MCPServer.resource`."""

    mime_type: str | None
    annotations: types.Annotations | None
    meta: dict[str, Any] | None


class ToolOptions(PromptOptions, total=False):
    """Of `MCPServer.tool`."""

    annotations: types.ToolAnnotations | None
    meta: dict[str, Any] | None
    structured_output: bool | None


class Extended:
    """What components can be added to."""

    def __init__(self, name: str, factory: ClientFactory) -> None:
        """`factory`: returns it itself, to be used as a client is."""
        self.name: str = name
        self._factory = factory
        self._components = Components(own=factory)
        self._local: MCPServer[Any] | None = None

    @property
    def local(self) -> "MCPServer[Any]":
        """The server with the proxy's own components: the SDK's, run in this process for each
        session. What it has wins over what others have under the same name."""
        if self._local is None:
            self._local = _quietly_made(self.name)
        return self._local

    @overload
    def tool(self, function: Callable[P, T], /) -> Callable[P, T]: ...
    @overload
    def tool(
        self, function: None = None, /, **options: Unpack[ToolOptions]
    ) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
    def tool(
        self, function: Callable[P, T] | None = None, /, **options: Unpack[ToolOptions]
    ) -> Callable[P, T] | Callable[[Callable[P, T]], Callable[P, T]]:
        """Make a function a tool: `@proxy.tool`, or with the options of `MCPServer.tool`."""
        decorate = self.local.tool(**options)
        return decorate if function is None else decorate(function)

    def resource(
        self, uri: str, **options: Unpack[ResourceOptions]
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Make a function a resource, or a template: as `MCPServer.resource`."""
        return self.local.resource(uri, **options)

    @overload
    def prompt(self, function: Callable[P, T], /) -> Callable[P, T]: ...
    @overload
    def prompt(
        self, function: None = None, /, **options: Unpack[PromptOptions]
    ) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
    def prompt(
        self, function: Callable[P, T] | None = None, /, **options: Unpack[PromptOptions]
    ) -> Callable[P, T] | Callable[[Callable[P, T]], Callable[P, T]]:
        """Make a function a prompt: `@proxy.prompt`, or with the options of `MCPServer.prompt`."""
        decorate = self.local.prompt(**options)
        return decorate if function is None else decorate(function)

    def add_tool(self, tool: ProxyTool) -> None:
        """Add a copy of another server's tool. Raises: ComponentIsMirrored: it is no copy."""
        self._add(tool)

    def add_resource(self, resource: ProxyResource) -> None:
        """Add a copy of a resource. Raises: ComponentIsMirrored: it is no copy."""
        self._add(resource)

    def add_template(self, template: ProxyTemplate) -> None:
        """Add a copy of a resource template. Raises: ComponentIsMirrored: it is no copy;
        ConfigError: it has another form than its server's, and not each URI of it is one there."""
        self._add(template)

    def add_prompt(self, prompt: ProxyPrompt) -> None:
        """Add a copy of a prompt. Raises: ComponentIsMirrored: it is no copy."""
        self._add(prompt)

    def _add(self, component: Component[Any]) -> None:
        if component.is_mirrored:
            raise ComponentIsMirrored(component)
        self._components.add(component)


def _quietly_made(name: str) -> "MCPServer[Any]":
    """Return a server of the SDK, which sets the program's log up where nobody has: that is not for
    a library to do, and it does not where there is any handler."""
    from mcp.server.mcpserver import MCPServer

    root, some = logging.getLogger(), logging.NullHandler()
    root.addHandler(some)
    try:
        return MCPServer(name)
    finally:
        root.removeHandler(some)

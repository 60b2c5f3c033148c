"""Tools, resources, templates and prompts of a server, as objects that run there.

One that mirrors what a server has cannot be changed: it would say something that the server does
not. Its `copy` can, and still knows what the server calls it. Neighbours: `client.provider` makes
them of what a server lists; `client.local` serves those that are added to a proxy.
"""

import copy as copies
from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Self, TypeAlias, TypeVar

import mcp_types as types
from pydantic import BaseModel

from ..servers import tags_of
from .handlers import ProgressHandler

if TYPE_CHECKING:
    from .client import ProxyClient

M = TypeVar("M", bound=BaseModel)

ClientFactory: TypeAlias = "Callable[[], ProxyClient | Awaitable[ProxyClient]]"
"""A function that returns the client to use, at once or when awaited."""

PROVIDER: Final = "ProxyProvider"


class ComponentIsMirrored(AttributeError):
    """A mirrored component was to be changed."""

    def __init__(self, component: "Component[Any]") -> None:
        super().__init__(
            f"{component!r} mirrors what a server has and cannot be changed; change a copy: "
            "component.copy()"
        )


async def client_of(factory: ClientFactory) -> "ProxyClient":
    """Return what a factory returns."""
    made = factory()
    return await made if isawaitable(made) else made


class Component(Generic[M]):
    """What all have in common. `definition` is what the server lists, as a model of `mcp_types`;
    its fields are attributes of the component too."""

    KIND = "component"
    OWN: ClassVar[Sequence[str]] = ("definition",)
    """What a copy does not have in common with what it is a copy of."""

    def __init__(self, definition: M, client_factory: ClientFactory, backend_name: str) -> None:
        self.__dict__.update(
            definition=definition,
            client_factory=client_factory,
            backend_name=backend_name,
            is_mirrored=True,
            enabled=True,
        )

    definition: M
    """What the server lists, changed where it is a copy: a model of `mcp_types`."""
    client_factory: ClientFactory
    """Returns the client that it runs with."""
    backend_name: str
    """What the server calls it: its name, URI or URI template."""
    behind: "Component[M] | None" = None
    """The copy that it stands for, where it mirrors a proxy that such a one was added to."""
    is_mirrored: bool
    """Whether it stands for what a server has, and cannot be changed; a copy can."""
    enabled: bool
    """Whether it is listed and may be used, where it is added to a proxy."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r}>"

    @property
    def key(self) -> str:
        """What it is called where it is listed."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the field is
        definition: BaseModel | None = self.__dict__.get("definition")
        if definition is None or name not in type(definition).model_fields:
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        return getattr(definition, name)

    def __setattr__(self, name: str, value: object) -> None:
        """Raises: ComponentIsMirrored: it is no copy."""
        if self.is_mirrored:
            raise ComponentIsMirrored(self)
        if name in type(self.definition).model_fields:
            self.__dict__["definition"] = self.definition.model_copy(update={name: value})
        else:
            super().__setattr__(name, value)

    @property
    def tags(self) -> frozenset[str]:
        """Those that its `_meta` names, as FastMCP has them."""
        return tags_of(getattr(self.definition, "meta", None))

    def copy(self, **changes: object) -> Self:
        """Return a copy that can be changed, with these fields changed already. It runs what it
        always ran: its name at the server stays. What is changed in place, too, is its own."""
        made = copies.copy(self)
        made.__dict__["is_mirrored"] = False
        for name in self.OWN:
            made.__dict__[name] = copies.deepcopy(getattr(self, name))
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    def enable(self) -> None:
        """Raises: ComponentIsMirrored: it is no copy."""
        self.enabled = True

    def disable(self) -> None:
        """Have it neither listed nor used. Raises: ComponentIsMirrored: it is no copy."""
        self.enabled = False

    def get_span_attributes(self) -> dict[str, str]:
        """Return what a trace says of it."""
        return {
            "sessionproxy.provider.type": PROVIDER,
            f"sessionproxy.backend.{self.KIND}": self.backend_name,
        }


class ProxyTool(Component[types.Tool]):
    """A tool of a server."""

    KIND = "name"

    @classmethod
    def from_mcp_tool(cls, client_factory: ClientFactory, tool: types.Tool) -> Self:
        """Return the mirror of a tool that a server lists."""
        return cls(tool, client_factory, tool.name)

    @property
    def key(self) -> str:
        return self.definition.name

    async def run(
        self,
        arguments: Mapping[str, object] | None = None,
        *,
        progress_handler: ProgressHandler | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> types.CallToolResult:
        """Call it at the server, by the name that it has there.

        Raises: as `ProxyClient.call_tool`.
        """
        async with await client_of(self.client_factory) as client:
            return await client.call_tool(
                self.backend_name, arguments, progress_handler=progress_handler, meta=meta
            )


class ProxyResource(Component[types.Resource]):
    """A resource of a server."""

    KIND = "uri"
    OWN: ClassVar[Sequence[str]] = ("definition", "contents")

    contents: "tuple[types.TextResourceContents | types.BlobResourceContents, ...] | None" = None
    """What it holds already; None: it is read when it is needed."""
    was_read: types.ReadResourceResult | None = None
    """What that is of."""

    @classmethod
    def from_mcp_resource(cls, client_factory: ClientFactory, resource: types.Resource) -> Self:
        """Return the mirror of a resource that a server lists."""
        return cls(resource, client_factory, str(resource.uri))

    @property
    def key(self) -> str:
        return str(self.definition.uri)

    async def read(self) -> types.ReadResourceResult:
        """Read it at the server, by the URI that it has there; all its contents, text and binary.
        Raises: as `ProxyClient.read_resource`."""
        if self.contents is not None:
            held = self.was_read or types.ReadResourceResult(contents=[])
            return held.model_copy(update={"contents": list(self.contents)})
        async with await client_of(self.client_factory) as client:
            return await client.read_resource(self.backend_name)


class ProxyTemplate(Component[types.ResourceTemplate]):
    """A resource template of a server."""

    KIND = "uri_template"

    @classmethod
    def from_mcp_template(
        cls, client_factory: ClientFactory, template: types.ResourceTemplate
    ) -> Self:
        """Return the mirror of a template that a server lists."""
        return cls(template, client_factory, template.uri_template)

    @property
    def key(self) -> str:
        return self.definition.uri_template

    def expand(self, arguments: Mapping[str, str]) -> str:
        """Return the URI that the server's template makes of these arguments (RFC 6570)."""
        from mcp.shared.uri_template import UriTemplate

        return UriTemplate.parse(self.backend_name).expand(dict(arguments))

    async def create_resource(self, arguments: Mapping[str, str]) -> ProxyResource:
        """Read what the template makes of these arguments; return a resource that holds it.
        Raises: as `ProxyClient.read_resource`."""
        return await resource_at(self, self.expand(arguments))


async def resource_at(template: ProxyTemplate, uri: str) -> ProxyResource:
    """Read what the server of a template has at a URI; return a resource that holds it.
    Raises: as `ProxyClient.read_resource`."""
    result = await result_at(template, uri)
    found = types.Resource(
        uri=uri,
        name=template.definition.name,
        title=template.definition.title,
        description=template.definition.description,
        mime_type=template.definition.mime_type,
    )
    made = ProxyResource(found, template.client_factory, uri)
    made.__dict__.update(contents=tuple(result.contents), was_read=result)
    return made


async def result_at(template: ProxyTemplate, uri: str) -> types.ReadResourceResult:
    """Read what the server of a template has at a URI. Raises: as `ProxyClient.read_resource`."""
    async with await client_of(template.client_factory) as client:
        return await client.read_resource(uri)


class ProxyPrompt(Component[types.Prompt]):
    """A prompt of a server."""

    KIND = "name"

    @classmethod
    def from_mcp_prompt(cls, client_factory: ClientFactory, prompt: types.Prompt) -> Self:
        """Return the mirror of a prompt that a server lists."""
        return cls(prompt, client_factory, prompt.name)

    @property
    def key(self) -> str:
        return self.definition.name

    async def render(self, arguments: Mapping[str, str] | None = None) -> types.GetPromptResult:
        """Render it at the server, by the name that it has there. Raises: as
        `ProxyClient.get_prompt`."""
        async with await client_of(self.client_factory) as client:
            return await client.get_prompt(self.backend_name, arguments)

"""Components that were added to a proxy: copies of what other servers have.

To the proxy they are one more server, in this process. Neighbours: `client.components` are what it
has; `client.proxy` adds them.
"""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, Final, Self, TypeVar, cast

import mcp_types as types
import msgspec
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

from .. import wire
from ..backends.names import NAMED, PROMPTS, RESOURCES, TEMPLATES, TOOLS, Kind, could_be
from ..config import ConfigError
from ..core.background import Work, of_the_users
from ..core.exchange import FAULTY, Exchange, Outcome
from ..core.hooks import current_request
from ..core.reach import reaching
from ..errors import BackendGone, ProxyError
from ..version import VERSION
from ..wire import Bytes
from ..wire.envelope import progress_token, text
from .components import (
    ClientFactory,
    Component,
    ProxyPrompt,
    ProxyResource,
    ProxyTemplate,
    ProxyTool,
    result_at,
)
from .handlers import default_proxy_progress_handler
from .launching import Given, HereLauncher
from .relayed import METHOD_NOT_FOUND
from .written import encoded, written

logger: Final = logging.getLogger(__name__)

C = TypeVar("C", bound=Component[Any])

_DONE: Final = Outcome(result=b"{}")


class Components:
    """Those that were added, by kind and name. A `Custom` source of backends."""

    kind = "components"

    def __init__(self, *, own: "ClientFactory | None" = None) -> None:
        """`own`: the factory of copies of what the same proxy has; those run in its sessions."""
        self._own = own
        self.tools: dict[str, ProxyTool] = {}
        self.resources: dict[str, ProxyResource] = {}
        self.templates: dict[str, ProxyTemplate] = {}
        self.prompts: dict[str, ProxyPrompt] = {}

    def __bool__(self) -> bool:
        return bool(self.tools or self.resources or self.templates or self.prompts)

    def add(self, component: Component[Any]) -> None:
        """Add a copy; one of the same name goes.

        Raises: TypeError: it is none of the kinds; ConfigError: what URIs of it are at its server
            cannot be told.
        """
        if isinstance(component, ProxyTemplate):
            _check_renaming(component)
        self._of_kind(component)[component.key] = component

    def mirrored(self, mirror: C) -> C:
        """Return the mirror of what is listed in front, which may be a copy that was added here."""
        behind = self._of_kind(mirror).get(mirror.key)
        if behind is not None and behind.enabled:
            mirror.__dict__["behind"] = behind
        return mirror

    def _of_kind(self, component: C) -> dict[str, C]:
        """Raises: TypeError: it is of none."""
        for kind, those in (
            (ProxyTool, self.tools),
            (ProxyResource, self.resources),
            (ProxyTemplate, self.templates),
            (ProxyPrompt, self.prompts),
        ):
            if isinstance(component, kind):
                return cast("dict[str, C]", those)
        raise TypeError(f"{type(component).__name__} is no component of a proxy")

    def _behind(self, component: C) -> C | None:
        """Return the copy here that it is a copy of; None: it is one of what a server has."""
        return cast("C | None", component.behind) if component.client_factory is self._own else None

    def _followed(self, component: C) -> C:
        """Return what it runs: itself, or the last of those that it is a copy of."""
        while (behind := self._behind(component)) is not None:
            component = behind
        return component

    def starts(self) -> HereLauncher:
        return HereLauncher(lambda given: Local.of(self, given))

    # -- what a session asks -----------------------------------------------------------------------

    def listed(self, method: str) -> bytes | None:
        """Return the result of a list method; None: it is none."""
        lists: Mapping[str, tuple[str, Mapping[str, Component[Any]]]] = {
            "tools/list": ("tools", self.tools),
            "resources/list": ("resources", self.resources),
            "resources/templates/list": ("resourceTemplates", self.templates),
            "prompts/list": ("prompts", self.prompts),
        }
        if method not in lists:
            return None
        member, components = lists[method]
        items = [written(each.definition) for each in components.values() if each.enabled]
        return b'{"%b":[%b]}' % (member.encode(), b",".join(items))

    def instead(self, method: str, params: Bytes | None) -> Bytes | None:
        """Return the parameters of the request about what a component of the same proxy is a copy
        of; None: it is no such copy."""
        if method == "completion/complete":
            return self._completed_instead(params)
        kind = NAMED.get(method)
        if kind is None:
            return None
        key = kind.key
        found = self._found(method, text(wire.member(params, key)) or "")
        if params is None or found is None or found[0].client_factory is not self._own:
            return None
        return wire.with_member(params, key, msgspec.json.encode(found[1]))

    def hides(self, kind: Kind, name: str) -> bool:
        """Return whether a copy that was disabled has this name, or is the template of this URI."""
        copies: Mapping[str, Mapping[str, Component[Any]]] = {
            TOOLS.method: self.tools,
            PROMPTS.method: self.prompts,
            RESOURCES.method: self.resources,
            TEMPLATES.method: self.templates,
        }
        found = copies.get(kind.method, {}).get(name)
        if found is None and kind is RESOURCES:
            made = self._template_of(name, enabled=False)
            found = None if made is None else made[0]
        return found is not None and not found.enabled

    def _completed_instead(self, params: Bytes | None) -> Bytes | None:
        ref = wire.member(params, "ref")
        prompt = self.prompts.get(text(wire.member(ref, "name")) or "")
        template = self.templates.get(text(wire.member(ref, "uri")) or "")
        found: Component[Any] | None = _usable(prompt) or _usable(template)
        if params is None or ref is None or found is None:
            return None
        key, found = "uri" if template is found else "name", self._followed(found)
        if found.client_factory is not self._own:
            return None
        changed = wire.with_member(ref, key, msgspec.json.encode(found.backend_name))
        return None if changed is None else wire.with_member(params, "ref", changed)

    def _found(self, method: str, name: str) -> tuple[Component[Any], str] | None:
        """Return what is meant by a name or URI, and what its server calls that."""
        component: Component[Any] | None = None
        if method == "tools/call":
            component = self._usable(self.tools, name)
        elif method == "prompts/get":
            component = self._usable(self.prompts, name)
        elif (resource := self._usable(self.resources, name)) is not None:
            component = resource if resource.contents is None else None
        else:
            return self._made(name)
        return None if component is None else (component, component.backend_name)

    def _usable(self, components: Mapping[str, C], name: str) -> C | None:
        """Return what the component of this name runs; None: there is none, or it is disabled."""
        found = _usable(components.get(name))
        return None if found is None else self._followed(found)

    def _made(self, uri: str) -> tuple[ProxyTemplate, str] | None:
        """Return the template that makes what has this URI, and what its server calls that."""
        found = self._template_of(uri)
        while found is not None and (behind := self._behind(found[0])) is not None:
            original = _original(behind, found[1])
            found = None if original is None else (behind, original)
        return found

    def _template_of(self, uri: str, *, enabled: bool = True) -> tuple[ProxyTemplate, str] | None:
        """Return the template that a URI is of, and what its server calls that. `enabled`: or is
        not."""
        for template in self.templates.values():
            if template.enabled is enabled:
                original = _original(template, uri)
                if original is not None:
                    return template, original
        return None

    async def run(self, method: str, params: Bytes | None) -> BaseModel | None:
        """Run the component that a request is about; None: there is none.

        Raises: MCPError, ProxyError.
        """
        name = text(wire.member(params, "uri" if method == "resources/read" else "name")) or ""
        found = self._found(method, name)
        if found is not None and found[0].client_factory is self._own:
            return None  # only a request that could not be rewritten gets here: it has no session
        if method == "tools/call" and (tool := self._usable(self.tools, name)):
            meta = _object(params, "_meta")
            wants = "progressToken" in meta
            meta.pop("progressToken", None)
            return await tool.run(
                _object(params, "arguments"),
                progress_handler=default_proxy_progress_handler if wants else None,
                meta=meta or None,
            )
        if method == "prompts/get" and (prompt := self._usable(self.prompts, name)):
            return await prompt.render(_object(params, "arguments"))
        if method == "resources/read":
            return await self._read(name)
        return None

    async def _read(self, uri: str) -> BaseModel | None:
        resource = self._usable(self.resources, uri)
        if resource is not None:
            return await resource.read()
        made = self._made(uri)
        if made is None:
            return None
        return await result_at(*made)

    def introduction(self) -> bytes:
        return msgspec.json.encode(
            {
                "protocolVersion": wire.HANDSHAKE_VERSIONS[-1],
                "capabilities": {"tools": {}, "resources": {}, "prompts": {}},
                "serverInfo": {"name": "sessionproxy", "version": VERSION},
            }
        )


def _check_renaming(template: ProxyTemplate) -> None:
    """Raises: ConfigError: a template has another form than its server's, and not each URI of it is
    one there; or the SDK knows one of the two forms as no template."""
    from mcp.shared.uri_template import UriTemplate

    if template.key == template.backend_name:
        return  # what the server writes is the server's, and its URIs stay as they are
    try:
        here, there = map(UriTemplate.parse, (template.key, template.backend_name))
    except ValueError as error:
        raise ConfigError(f"URI template {template.key}: it cannot be renamed: {error}") from None
    missing = {*there.variable_names} - {*here.variable_names}
    if missing:
        names = ", ".join(sorted(missing))
        raise ConfigError(f"URI template {template.key}: it lacks what the server's has: {names}")


def _original(template: ProxyTemplate, uri: str) -> str | None:
    """Return what its server calls a URI of this template; None: it is of another."""
    from mcp.shared.uri_template import UriTemplate

    if template.key == template.backend_name:
        return uri if _is_of(template.key, uri) else None
    try:
        matched = UriTemplate.parse(template.key).match(uri)
        return None if matched is None else UriTemplate.parse(template.backend_name).expand(matched)
    except ValueError:  # it was changed after it was added
        return None


def _is_of(template: str, uri: str) -> bool:
    """Return whether a URI is of this template; may be, where the SDK cannot read that."""
    from mcp.shared.uri_template import UriTemplate

    try:
        return UriTemplate.parse(template).match(uri) is not None
    except ValueError:
        return could_be(uri, template)


class Local:
    """A session's backend. Speaks the handshake era."""

    def __init__(self, components: Components, given: Given) -> None:
        self._components = components
        self._given = given
        self._works: dict[Exchange, Work] = {}

    @classmethod
    @asynccontextmanager
    async def of(cls, components: Components, given: Given) -> AsyncGenerator[Self]:
        """Have one for as long as a session does."""
        local = cls(components, given)
        try:
            yield local
        finally:
            for work in tuple(local._works.values()):
                work.cancel()

    def request(self, exchange: Exchange) -> None:
        method = exchange.method
        listed = self._components.listed(method)
        if listed is not None:
            exchange.settle(Outcome(result=listed))
        elif method == "initialize":
            exchange.settle(Outcome(result=self._components.introduction()))
        elif method in ("tools/call", "prompts/get", "resources/read"):
            work = self._works[exchange] = Work()
            context = self._context_of(exchange)
            self._given.background.start(
                self._run, exchange, exchange.params, work, context=context
            )
        else:
            exchange.settle(_DONE if method == "ping" else Outcome(error=METHOD_NOT_FOUND))

    def _context_of(self, exchange: Exchange) -> Context:
        token = progress_token(exchange.params)
        context, given = exchange.context.copy(), self._given
        context.run(current_request.set, given.sender.request(exchange))
        return reaching(context, given.upstream, exchange, given.scope, token)

    async def _run(self, exchange: Exchange, params: Bytes | None, work: Work) -> None:
        outcome = Outcome(failure=BackendGone("The request was cut off."))

        async def run() -> None:
            nonlocal outcome
            with of_the_users():
                outcome = await self._outcome(exchange.method, params)

        try:
            await work.run(run)
        except Exception:  # a factory is not ours: it fails the one request
            logger.exception("%r failed", exchange)
            outcome = FAULTY
        finally:
            self._works.pop(exchange, None)
            exchange.settle(outcome)

    async def _outcome(self, method: str, params: Bytes | None) -> Outcome:
        try:
            result = await self._components.run(method, params)
        except MCPError as error:
            return Outcome(error=encoded(error.error))
        except ProxyError as error:
            return Outcome(failure=error.with_traceback(None))
        if result is None:
            error = types.ErrorData(code=types.INVALID_PARAMS, message="no such component")
            return Outcome(error=encoded(error))
        return Outcome(result=written(result))

    def notify(self, method: str, params: Bytes | None) -> None: ...

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        work = self._works.pop(exchange, None)
        if work is not None:
            work.cancel()

    def in_flight(self) -> tuple[Exchange, ...]:
        return tuple(self._works)


def _usable(component: C | None) -> C | None:
    return component if component is not None and component.enabled else None


def _object(params: Bytes | None, name: str) -> dict[str, Any]:
    found = wire.member(params, name)
    return {} if found is None else msgspec.json.decode(found, type=dict[str, Any])

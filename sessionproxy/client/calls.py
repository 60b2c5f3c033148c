"""Calls with types around them: `mcp_types` models in and out, and a backend's request between.

Neighbours: `client.client` and `client.proxy` are such; each says how a request is sent.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import mcp_types as types
import msgspec
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

from ..backends.names import KINDS
from ..core.exchange import Outcome
from ..errors import BackendGone
from ..wire import Bytes
from .handlers import ProgressHandler, error_of
from .written import keep_items, read

M = TypeVar("M", bound=BaseModel)
P = TypeVar("P", bound=types.PaginatedResult)
T = TypeVar("T", bound=BaseModel)

MAX_PAGES: Final = 1000
"""Pages of one list that are fetched."""

Reference = types.PromptReference | types.ResourceTemplateReference
"""What a completion is for."""


class Calls(ABC):
    """What can be asked of a server.

    Every call raises `MCPError` where the server answers with an error, a `ProxyError` (its
    `reason` says which) where it could not be asked or gave no answer, and pydantic's
    `ValidationError` for an answer that is not of its type. Cancelled, it is cancelled at the
    server; so `anyio.fail_after` gives it a limit.
    """

    @abstractmethod
    async def outcome_of(
        self, method: str, params: Bytes | None, progress_handler: ProgressHandler | None
    ) -> Outcome:
        """Send a request, and return how it ended."""

    def hears_progress(self, method: str) -> bool:
        """Return whether the progress of such a request is of interest, though it has no handler of
        its own."""
        return False

    async def raw_request(
        self,
        method: str,
        params: Bytes | None = None,
        *,
        progress_handler: ProgressHandler | None = None,
    ) -> bytes:
        """Send a request as it is encoded, and return the result as the server wrote it."""
        outcome = await self.outcome_of(method, params, progress_handler)
        if outcome.error is not None:
            raise error_of(outcome.error)
        if outcome.result is None:
            raise outcome.failure or BackendGone("The backend gave no answer.")
        return bytes(outcome.result)

    async def request(
        self,
        method: str,
        params: Mapping[str, object],
        kind: type[M],
        *,
        meta: Mapping[str, Any] | None = None,
        progress_handler: ProgressHandler | None = None,
    ) -> M:
        """Send a request and return its result as a model of `kind`. `meta`: its `_meta`."""
        fields = {name: value for name, value in params.items() if value is not None}
        wants_progress = progress_handler is not None or self.hears_progress(method)
        if meta is not None or wants_progress:
            token = {"progressToken": 1} if wants_progress else {}
            fields["_meta"] = {**token, **(meta or {})}
        encoded = msgspec.json.encode(fields)
        result = await self.raw_request(method, encoded, progress_handler=progress_handler)
        return read(kind, result)

    # -- lists -------------------------------------------------------------------------------------

    async def list_tools(self) -> list[types.Tool]:
        """Return all tools, of all pages."""
        return await self._all("tools/list", types.ListToolsResult, lambda page: page.tools)

    async def list_resources(self) -> list[types.Resource]:
        """Return all resources, of all pages."""
        kind = types.ListResourcesResult
        return await self._all("resources/list", kind, lambda page: page.resources)

    async def list_resource_templates(self) -> list[types.ResourceTemplate]:
        """Return all templates, of all pages."""
        kind = types.ListResourceTemplatesResult
        method = "resources/templates/list"
        return await self._all(method, kind, lambda page: page.resource_templates)

    async def list_prompts(self) -> list[types.Prompt]:
        """Return all prompts, of all pages."""
        return await self._all("prompts/list", types.ListPromptsResult, lambda page: page.prompts)

    async def _all(self, method: str, kind: type[P], items: Callable[[P], list[T]]) -> list[T]:
        """Return all items of a list; none, where the server has no such list."""
        found: list[T] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            try:
                page = await self.request(method, {"cursor": cursor}, kind)
            except MCPError as error:
                if error.code != types.METHOD_NOT_FOUND:
                    raise
                break
            listed = items(page)
            keep_items(page, KINDS[method].member, listed)
            found += listed
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    # -- one component -----------------------------------------------------------------------------

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, object] | None = None,
        *,
        progress_handler: ProgressHandler | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> types.CallToolResult:
        """Call a tool. What it tells of as its own failure is a result with `is_error`."""
        return await self.request(
            "tools/call",
            {"name": name, "arguments": arguments or {}},
            types.CallToolResult,
            meta=meta,
            progress_handler=progress_handler,
        )

    async def read_resource(
        self, uri: str, *, meta: Mapping[str, Any] | None = None
    ) -> types.ReadResourceResult:
        """Read a resource, or one that a template makes."""
        kind = types.ReadResourceResult
        return await self.request("resources/read", {"uri": uri}, kind, meta=meta)

    async def get_prompt(
        self,
        name: str,
        arguments: Mapping[str, str] | None = None,
        *,
        meta: Mapping[str, Any] | None = None,
    ) -> types.GetPromptResult:
        """Render a prompt."""
        params = {"name": name, "arguments": arguments}
        kind = types.GetPromptResult
        return await self.request("prompts/get", params, kind, meta=meta)

    async def complete(
        self,
        reference: Reference,
        argument: Mapping[str, str],
        *,
        context: Mapping[str, str] | None = None,
    ) -> types.Completion:
        """Return completions for an argument (`name` and `value`). `context`: arguments that are
        known already."""
        params: dict[str, object] = {
            "ref": reference.model_dump(by_alias=True, exclude_none=True),
            "argument": argument,
            "context": None if context is None else {"arguments": context},
        }
        found = await self.request("completion/complete", params, types.CompleteResult)
        return found.completion

    # -- what is set up ----------------------------------------------------------------------------

    async def set_logging_level(self, level: types.LoggingLevel) -> None:
        """Have log messages from this level on sent to the log handler."""
        await self.request("logging/setLevel", {"level": level}, types.EmptyResult)

    async def subscribe_resource(self, uri: str) -> None:
        """Have the server tell of changes of a resource."""
        await self.request("resources/subscribe", {"uri": uri}, types.EmptyResult)

    async def unsubscribe_resource(self, uri: str) -> None:
        """Have it tell of them no more."""
        await self.request("resources/unsubscribe", {"uri": uri}, types.EmptyResult)

    async def ping(self) -> None:
        """Return once the server has answered."""
        await self.request("ping", {}, types.EmptyResult)

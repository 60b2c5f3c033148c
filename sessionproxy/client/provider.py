"""Components from a client that a function of the user's returns, whenever one is needed.

So the user says who shares what: a new client each time, one for each session
(`StatefulProxyClient.new_stateful`), or always the same. Neighbours: `client.components` are what
it provides; `plan` has it as a source of backends.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, Final, Self, TypeVar, cast

from cachetools import TTLCache

from ..backends.share import Share, SharedBackend
from ..config import Settings
from ..core.background import Work, cut_off, of_the_users
from ..core.between import Between, instead_of
from ..core.exchange import Exchange, Outcome
from ..core.hooks import RequestFailed, current_request
from ..core.latch import Latch
from ..core.memory import Opening
from ..core.reach import Scope, reaching
from ..core.waiting import WaitingRoom
from ..errors import BackendGone, Exit, ProxyError
from ..plan import ONLY, Planned
from ..wire import Bytes
from ..wire.envelope import progress_token
from .client import ProxyClient
from .components import (
    ClientFactory,
    Component,
    ProxyPrompt,
    ProxyResource,
    ProxyTemplate,
    ProxyTool,
    client_of,
)
from .handled import Handled
from .launching import Given, HereLauncher
from .link import Desk
from .relayed import DISCONNECTED, METHOD_NOT_FOUND, user_of

logger: Final = logging.getLogger(__name__)

C = TypeVar("C", bound=Component[Any])

CACHE_TTL: Final = 300.0
"""Seconds for which the lists of components are kept."""

MAX_LISTS: Final = 256
"""Lists that are kept; the oldest goes first."""

CHANGES: Final[Mapping[str, tuple[str, ...]]] = {
    "notifications/tools/list_changed": ("tools",),
    "notifications/prompts/list_changed": ("prompts",),
    "notifications/resources/list_changed": ("resources", "templates"),
}


class NoClient(TypeError):
    """A function that should return a client did not. Its text may be shown to clients."""


async def _client_of(factory: ClientFactory) -> ProxyClient:
    """Return what a factory returns. Raises: NoClient: it is none."""
    made = cast("object", await client_of(factory))  # types alone cannot prevent others
    if not isinstance(made, ProxyClient):
        raise NoClient(
            f"the function of the ProxyProvider returned a {type(made).__name__}, which is no "
            "ProxyClient; what else there is to be fronted is given to create_proxy or mount itself"
        )
    return made


class ProxyProvider:
    """Provides what the server of a client has.

    `list_tools` and its like ask the server; `get_tool` and its like look into the list that was
    had last, which is kept for `cache_ttl` seconds, and forgotten when the server says that it has
    changed. Calls need no list: a name that is in none is tried at the server.
    """

    kind = "ProxyProvider"

    def __init__(self, client_factory: ClientFactory, *, cache_ttl: float = CACHE_TTL) -> None:
        """`client_factory`: a function, or a coroutine function, that returns the client to use; it
        is called for every request, which `current_request` has for it; it refuses one by
        raising `RequestFailed`. `cache_ttl`: seconds; 0: nothing is kept."""
        self.client_factory = client_factory
        self.cache_ttl = cache_ttl
        self._lists = TTLCache[tuple[str, int], list[Any]](MAX_LISTS, ttl=cache_ttl)
        """By list, and the client's session that it came from; where that does not last, by the
        client that it is a copy of, negative."""

    # -- components --------------------------------------------------------------------------------

    async def list_tools(self) -> list[ProxyTool]:
        """Return all tools that the server has now."""
        return await self._listed("tools", self._tools)

    async def list_resources(self) -> list[ProxyResource]:
        """Return all resources that the server has now."""
        return await self._listed("resources", self._resources)

    async def list_resource_templates(self) -> list[ProxyTemplate]:
        """Return all templates that the server has now."""
        return await self._listed("templates", self._templates)

    async def list_prompts(self) -> list[ProxyPrompt]:
        """Return all prompts that the server has now."""
        return await self._listed("prompts", self._prompts)

    async def get_tool(self, name: str) -> ProxyTool | None:
        """Return the tool of this name; None: there is none."""
        return await self._found("tools", self._tools, name)

    async def get_resource(self, uri: str) -> ProxyResource | None:
        """Return the resource with this URI; None: none is listed."""
        return await self._found("resources", self._resources, uri)

    async def get_resource_template(self, uri_template: str) -> ProxyTemplate | None:
        """Return the template that is written so; None: there is none."""
        return await self._found("templates", self._templates, uri_template)

    async def get_prompt(self, name: str) -> ProxyPrompt | None:
        """Return the prompt of this name; None: there is none."""
        return await self._found("prompts", self._prompts, name)

    async def _tools(self, client: ProxyClient) -> list[ProxyTool]:
        found = await client.list_tools()
        return [ProxyTool.from_mcp_tool(self.client_factory, each) for each in found]

    async def _resources(self, client: ProxyClient) -> list[ProxyResource]:
        found = await client.list_resources()
        return [ProxyResource.from_mcp_resource(self.client_factory, each) for each in found]

    async def _templates(self, client: ProxyClient) -> list[ProxyTemplate]:
        found = await client.list_resource_templates()
        return [ProxyTemplate.from_mcp_template(self.client_factory, each) for each in found]

    async def _prompts(self, client: ProxyClient) -> list[ProxyPrompt]:
        found = await client.list_prompts()
        return [ProxyPrompt.from_mcp_prompt(self.client_factory, each) for each in found]

    async def _listed(
        self, kind: str, fetch: Callable[[ProxyClient], Awaitable[list[C]]]
    ) -> list[C]:
        async with (await _client_of(self.client_factory)).in_passing() as client:
            found = await fetch(client)
            self._keep(kind, client, found)
            return found

    async def _found(
        self, kind: str, fetch: Callable[[ProxyClient], Awaitable[list[C]]], key: str
    ) -> C | None:
        async with (await _client_of(self.client_factory)).in_passing() as client:
            kept: list[C] | None = self._lists.get((kind, self._key_of(client)))
            if kept is None:
                kept = await fetch(client)
                self._keep(kind, client, kept)
            return next((each for each in kept if each.key == key), None)

    def _keep(self, kind: str, client: ProxyClient, found: list[C]) -> None:
        if self.cache_ttl:
            self._lists[kind, self._key_of(client)] = found

    def _key_of(self, client: ProxyClient) -> int:
        """Return what tells sessions of servers apart, and have the lists of one forgotten when it
        says that they have changed."""
        link = client.connection.link
        brief, lasting = -client.family, link.number
        link.port.lists[self] = brief, lasting
        return lasting if client.lasts else brief

    def changed(self, method: str, keys: tuple[int, ...]) -> None:
        """Forget lists that were kept under these keys, if a server says by this notification that
        they have changed."""
        for kind in CHANGES.get(method, ()):
            for key in keys:
                self._lists.pop((kind, key), None)

    # -- as a source of backends -------------------------------------------------------------------

    def planned(self, settings: Settings) -> Sequence[Planned]:
        return [Planned(name=ONLY, source=self, settings=settings)]

    def starts(self) -> HereLauncher:
        return HereLauncher(lambda given: Provided.of(self, given))


class Provided(Between):
    """A session's backend: for each request, that of a client. Speaks the handshake era."""

    def __init__(self, provider: ProxyProvider, given: Given) -> None:
        super().__init__(given.upstream)
        self._provider = provider
        self._given = given
        self._opening = given.opening
        """What each client's session is told of the client in front."""
        self._works: dict[Exchange, Work] = {}
        self._ended: dict[Exchange, Latch] = {}
        self._waiting = WaitingRoom()
        """Those whose client is not there yet."""
        self._shares: dict[SharedBackend, Part] = {}
        """By the backend of a client's."""
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def of(cls, provider: ProxyProvider, given: Given) -> AsyncGenerator[Self]:
        """Have one for as long as a session does."""
        provided = cls(provider, given)
        try:
            yield provided
        finally:
            await provided._close()

    @property
    def scope(self) -> Scope:
        return self._given.scope

    def request(self, exchange: Exchange) -> None:
        if exchange.method == "server/discover":
            exchange.settle(Outcome(error=METHOD_NOT_FOUND))
            return
        if exchange.method == "initialize" and exchange.params is not None:
            self._opening = Opening(bytes(exchange.params))  # also of a client of the modern era

        def answered(outcome: Outcome) -> None:
            self._inner.pop(exchange, None)
            self._ended[exchange].set()
            exchange.settle(outcome)

        if not self._waiting.enter(exchange):
            return
        inner = instead_of(exchange, exchange.method, exchange.params, answered)
        self._inner[exchange] = inner
        self._ended[exchange] = Latch()
        work = self._works[exchange] = Work()
        context = self._context_of(exchange)
        self._given.background.start(self._work, exchange, inner, work, context=context)

    def _context_of(self, exchange: Exchange) -> Context:
        token = progress_token(exchange.params)
        context = exchange.context.copy()
        reaching(context, self.upstream, exchange, self._given.scope, token)
        context.run(current_request.set, self._given.sender.request(exchange))
        return context

    async def _work(self, exchange: Exchange, inner: Exchange, work: Work) -> None:
        async def serve() -> None:
            with of_the_users():
                client = await _client_of(self._provider.client_factory)
            async with client.in_passing():
                part = await self._part_of(client)
                try:
                    self._waiting.leave(exchange)
                    part.request(inner)
                    await self._ended[exchange].wait()
                finally:
                    if client.is_last or self._closed:  # its session ends with this request
                        self._leave(part)

        try:
            await work.run(serve)
        except RequestFailed as error:
            inner.settle(Outcome(error=error.raw))
        except ProxyError as error:
            inner.settle(_of_caller(error))
        except NoClient as error:
            logger.error("%r: %s", exchange, error)
            inner.settle(_of_caller(BackendGone(f"The client could not be had: {error}.")))
        except Exception:  # a factory is not ours: it fails the one request
            logger.exception("%r: its client could not be had", exchange)
            inner.settle(_of_caller(BackendGone("The client could not be had.")))
        finally:
            inner.settle(Outcome(failure=BackendGone("The request was cut off.")))
            self._works.pop(exchange, None)
            self._ended.pop(exchange, None)
            self._waiting.leave(exchange)

    async def _part_of(self, client: ProxyClient) -> "Part":
        """Return what this session has of a client's.

        Raises: BackendStartFailed: the client's session cannot be had.
        """
        tap = client.connection.tap
        found = None if tap.tapped is None else self._shares.get(tap.tapped)
        if found is None:
            part = Part(self, tap.desk, client)
            part.share = await tap.share(user_of(self._given.identity), part, self._opening)
            found = self._shares.setdefault(part.share.of, part)
            if found is not part:  # another request came first
                part.share.close()
        return found

    def _leave(self, part: "Part") -> None:
        self._shares.pop(part.share.of, None)
        part.share.close()

    def lost(self, part: "Part", how: Exit) -> None:
        """The server of a client has ended, or the client was disconnected. What is built up in a
        session that ends with the request anyway cannot be lost."""
        self._leave(part)
        if part.client.lasts and how is not DISCONNECTED:
            self.ended(how)

    def notify(self, method: str, params: Bytes | None) -> None:
        for part in self._shares.values():
            part.notify(method, params)

    def cancel(self, exchange: Exchange, params: Bytes | None) -> None:
        inner = self._inner.pop(exchange, None)
        if inner is None:
            return
        for part in self._shares.values():
            part.cancel(inner, params)
        work = self._works.get(exchange)
        if work is not None:
            work.cancel()

    async def _close(self) -> None:
        """Wait for nothing more, but until no request holds a client: it would be in use when the
        session lets go of it, and its server would outlive the session."""
        self._closed = True
        works = tuple(self._works.values())
        for exchange in self.in_flight():
            self.cancel(exchange, None)
        await cut_off(works)
        for part in tuple(self._shares.values()):
            self._leave(part)


def _of_caller(error: ProxyError) -> Outcome:
    """Return the failure of a client that may well be one user's alone: others have their own."""
    failure = error.fresh()
    failure.of_caller = True
    return Outcome(failure=failure)


class Part(Handled):
    """What a session has of a client's."""

    share: Share

    def __init__(self, provided: Provided, desk: Desk, client: ProxyClient) -> None:
        super().__init__(provided, desk, provided.scope)
        self._provided = provided
        self.client = client

    def ended(self, how: Exit) -> None:
        self._provided.lost(self, how)
